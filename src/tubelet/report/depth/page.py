"""The page of an analysis of encoders layer by layer, with its pictures for print."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from tubelet.files import replace_file
from tubelet.report.depth.analysis import SCORES, Analysis, Reading, number, read_analysis
from tubelet.report.depth.charts import layer_panel
from tubelet.report.depth.gain import add_gain
from tubelet.report.depth.measures import add_influence, add_readable, add_rest, add_spectrum, add_tokens
from tubelet.report.depth.saturation import add_saturation
from tubelet.report.depth.similarity import add_similarity
from tubelet.report.depth.through import add_through
from tubelet.report.page import Key, Page
from tubelet.report.table import Cell
from tubelet.train.report import duration

_FIGURES = (
    "decodability",
    "retrieval",
    "gratings",
    "neighbours",
    "similarity",
    "geometry",
    "tokens",
    "spectrum",
    "saturation",
    "through",
)


def depth_report(folder: Path) -> Path:
    """Draws the page of ``folder``/analysis.json into report.html beside it, and figures/*.png for print.

    analysis.json: {"about", "definitions", "encoders", "layers", "transitions", "maps", "geometry_vs_gain",
    "saturation", "influence", "through"}, as `tubelet analyze` writes it; all but about, encoders and layers may be
    missing. An optional list "levels" of {"metric", "target", "name", "value"} adds reference lines.
    Each file is written whole or not at all, the page last; a figure that there is no data for any more is removed.
    A null is a gap in every line and a cross in every map. Returns the page's path.
    Raises UserError if analysis.json or a picture it names is missing or damaged, or if the disk is full.
    """
    folder = Path(folder)
    found = read_analysis(folder / "analysis.json")
    page = Page(
        f"Inside {_listed(found.names)}",
        f"What every layer of {'an encoder' if len(found.names) == 1 else f'{len(found.names)} encoders'} knows of "
        f"{found.data.get('name', 'the data')}, and how it changes from one layer to the next.",
    )
    figures: dict[str, bytes] = {}
    _words(page, found)
    add_readable(page, found, figures)
    add_similarity(page, found, figures)
    add_gain(page, found, figures)
    add_tokens(page, found, figures)
    add_influence(page, found, folder)
    add_spectrum(page, found, figures)
    add_saturation(page, found, figures)
    add_through(page, found, figures)
    add_rest(page, found)
    _numbers(page, found)
    for name in _FIGURES:
        file = folder / "figures" / f"{name}.png"
        if name not in figures:
            file.unlink(missing_ok=True)
            continue
        with replace_file(file) as draft:
            draft.write_bytes(figures[name])
    return page.write(folder / "report.html")


def _words(page: Page, found: Analysis) -> None:
    data, seconds = found.data, found.about.get("seconds")
    keys = [Key("encoders", str(len(found.names)), _depths(found))]
    if data.get("clips"):
        split = [
            f"{data[key]:,} {word}"
            for key, word in (("train", "to fit"), ("test", "to test"))
            if data.get(key)
        ]
        keys.append(Key("clips", f"{data['clips']:,}", ", ".join(split)))
    if data.get("classes"):
        chance = number(data.get("chance"))
        note = f"chance: {_told(chance, 'linear')} %" if math.isfinite(chance) else ""
        keys.append(Key("classes", f"{len(data['classes']):,}", note))
    if data.get("folds"):
        keys.append(
            Key("folds", str(data["folds"]), "groups are kept together" if data.get("grouped") else "")
        )
    if isinstance(seconds, dict) and seconds:
        spent = [value for value in map(number, seconds.values()) if math.isfinite(value)]
        keys.append(Key("time", duration(sum(spent)), "all measurements"))
    page.keys(keys)
    page.heading("In words")
    page.text(
        "An encoder is a stack of blocks. Each block takes a grid of tokens, small vectors that each stand for a "
        "patch of the clip over a few frames, and hands on a changed grid. Layer 0 is the grid before the first "
        "block, layer k the grid after block k, and the last is what is usually used. Here every layer is looked at by "
        "itself: whether a simple reader can tell what a clip shows from it, whether clips of a class lie close to "
        "each other in it, and how much it differs from other layers.",
    )
    if found.all["transitions"] or found.all["maps"]:
        page.text(
            "CKA (centred kernel alignment) says how alike two layers are. It asks whether the clips that lie close "
            "together in one also lie close together in the other, whatever the axes: 1 if one layer is the other "
            "turned and scaled, near 0 if they have nothing to do with each other."
        )
    for entry in found.all["saturation"]:
        named = "" if entry["encoder"] in entry["sentence"] else f"{entry['encoder']}: "
        page.verdict(f"{named}{entry['sentence']}", None if entry.get("keep") is None else True)
    _glance(page, found)
    notes = found.about.get("notes") or []
    if notes:
        page.text("What cannot be concluded from these numbers, and what to know about them:")
        page.points([str(note) for note in notes])


def _glance(page: Page, found: Analysis) -> None:
    """The best and the last layer of every encoder by the main scores."""
    metrics = [m for m in ("linear", "map") if layer_panel(found, m)]
    if not metrics:
        return
    rows: list[list[str | Cell]] = []
    for name in found.names:
        row: list[str | Cell] = [name]
        for metric in metrics:
            there = [one for one in found.readings(name, metric) if math.isfinite(one.value)]
            best = max(there, key=lambda one: one.value, default=None)
            row.append("–" if best is None else f"{_told(best.value, metric)} (layer {best.layer})")
            last = [one for one in there if one.layer == found.depths[name]]
            row.append(_told(last[0].value, metric) if last else "–")
        rows.append(row)
    page.table(
        ["encoder", *("best layer" if first else "last layer" for _ in metrics for first in (True, False))],
        rows,
        "The best and the last layer of each encoder.",
        "The best of many layers, chosen by the same clips as it is scored on, looks a little better than it is.",
        [(found.name(metric), 2) for metric in metrics],
    )


def _numbers(page: Page, found: Analysis) -> None:
    page.heading("All numbers")
    page.text(
        "`analysis.json` has everything on this page; the same as tables: `layers.csv`, `transitions.csv`, "
        "`similarity.csv`, `saturation.csv` and `through.csv`, those of them that there are numbers for. "
        "`figures/` has the figures for print."
    )
    for name in found.names:
        measures = found.measures(name)
        layers = sorted({one.layer for m, t in measures for one in found.readings(name, m, t)})
        if not layers:
            continue
        rows: list[list[str | Cell]] = []
        undefined: list[str] = []
        for metric, target in measures:
            readings = {one.layer: one for one in found.readings(name, metric, target)}
            told = [_reading(readings.get(layer), metric) for layer in layers]
            title = found.name(metric) + ("" if target is None else f": {target.replace('_', ' ')}")
            rows.append([title, *told])
            if gaps := _undefined(readings.values()):
                undefined.append(f"{title}: {gaps}.")
        with page.folded(f"{name}: every measure at every layer"):
            page.table(
                ["measure", *(str(layer) for layer in layers)],
                rows,
                f"{name}, layer by layer.",
                "In brackets: intervals. A dash: not measured, or undefined; then the reason is below.",
            )
            if undefined:
                page.points(undefined)
    definitions = found.how(found.all["definitions"])
    if definitions:
        with page.folded("What each measure is"):
            page.points(definitions)
    if found.about.get("command"):
        page.text("How it was run:")
        page.code(str(found.about["command"]))
    environment = {
        "about": {key: value for key, value in found.about.items() if key not in ("command", "notes")},
        "encoders": found.all["encoders"],
    }
    page.fold("encoders, data and time", json.dumps(environment, indent=2, ensure_ascii=False))


def _depths(found: Analysis) -> str:
    depths = sorted(set(found.depths.values()))
    return f"{depths[0]} blocks" if len(depths) == 1 else f"{depths[0]} to {depths[-1]} blocks"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} encoders"


def _told(value: float, metric: str) -> str:
    """As it is read: scores in percent, all else with four digits."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{100 * value:.1f}" if metric in SCORES else f"{value:.4g}"
    return text.replace("-", "−")


def _reading(reading: Reading | None, metric: str) -> str:
    if reading is None or math.isnan(reading.value):
        return "–"
    text = _told(reading.value, metric)
    if math.isfinite(reading.low) and math.isfinite(reading.high):
        text += f" [{_told(reading.low, metric)}, {_told(reading.high, metric)}]"
    return text


def _undefined(readings: Iterable[Reading]) -> str:
    """Which layers have no value, by reason."""
    reasons: dict[str, list[str]] = {}
    for one in readings:
        if math.isnan(one.value):
            reasons.setdefault(one.undefined or "no reason is given", []).append(str(one.layer))
    return "; ".join(
        f"layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}: undefined: {why}"
        for why, layers in reasons.items()
    )
