"""The page of an analysis of encoders layer by layer, with its pictures for print and its tables as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from tubelet.errors import UserError
from tubelet.files import replace_file, write_text
from tubelet.report.curves import Drawer, Line, Panel, draw_png, drawer, line_signs
from tubelet.report.heatmap import Heatmap, heatmap_drawer
from tubelet.report.page import Key, Page
from tubelet.report.scatter import Scatter, dot_signs, scatter_drawer
from tubelet.report.table import Cell, Score
from tubelet.train.report import duration

_SCORES = (
    "linear",
    "macro_recall",
    "map",
    "hit@1",
    "hit@5",
    "hit@10",
    "grating",
    "double",
    "linear_occluded",
)
_CKA = ("cka_linear", "cka_debiased", "cka_rbf")
_READABLE = ("linear", "macro_recall", "linear_occluded")
_RETRIEVAL = ("map", "hit@1", "hit@5", "hit@10")
_GRATINGS = ("grating", "double")
_MIXING = ("patch_similarity", "occdrop", "occdrop_grating", "occdrop_double")
_ATTENTION = ("attention_space", "attention_time", "attention_entropy")
_NORMS = ("token_norm", "token_norm_sd", "token_outliers")
_SPECTRUM = (
    "effective_rank",
    "participation_ratio",
    "isotropy",
    "components_90",
    "uniformity",
    "rankme",
    "lidar",
)
_SIZES = (
    "condition_number",
    "norm_mean",
    "norm_sd",
    "cosine_mean",
    "cosine_sd",
    "euclid_mean",
    "euclid_sd",
)
_LOG = ("condition_number",)
_CHANCE = ("linear", "macro_recall", "linear_occluded")  # the metrics that about.data.chance is the level of
_CAPTION = 3  # definitions that a caption has room for; more are folded away below the figure
_DRAWN = 7  # layers that one chart of curves over training can tell apart
_OPEN = 6  # charts of single transitions; more are folded away
_FITTED = 3  # points that a transition needs for a chart of its own
_TICKS = 6  # steps between the labels of the axis of layers
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
_TABLES = ("layers", "transitions", "similarity", "saturation", "through")
# Every entry of a list in analysis.json has these; what else it has is looked up where it is used.
_ENTRIES: dict[str, dict[str, type | tuple[type, ...]]] = {
    "encoders": {"name": str, "depth": int},
    "layers": {"encoder": str, "layer": int, "metric": str},
    "transitions": {"encoder": str, "from": int, "to": int},
    "maps": {
        "one": str,
        "other": str,
        "metric": str,
        "layers_one": list,
        "layers_other": list,
        "values": list,
    },
    "saturation": {"encoder": str, "sentence": str, "cuts": list},
    "influence": {"encoder": str, "clip": str, "picture": str},
    "through": {"encoder": str, "steps": list, "layers": list, "series": list},
    "levels": {"metric": str, "name": str, "value": (int, float)},
    "geometry_vs_gain.points": {"encoder": str, "from": int, "to": int},
    "geometry_vs_gain.fits": {"transition": str},
}
_NUMBERS = ("value", "low", "high", *_CKA)


class _Reading(NamedTuple):
    layer: int
    value: float
    low: float
    high: float
    undefined: str


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
    found = _Found(_load(folder / "analysis.json"))
    data = _data(found)
    page = Page(
        f"Inside {_listed(found.names)}",
        f"What every layer of {'an encoder' if len(found.names) == 1 else f'{len(found.names)} encoders'} knows of "
        f"{data.get('name', 'the data')}, and how it changes from one layer to the next.",
    )
    figures: dict[str, bytes] = {}
    _words(page, found)
    _readable(page, found, figures)
    _similarity(page, found, figures)
    _geometry(page, found, figures)
    _tokens(page, found, figures)
    _influence(page, found, folder)
    _spectrum(page, found, figures)
    _saturation(page, found, figures)
    _through(page, found, figures)
    _rest(page, found)
    _numbers(page, found)
    for name in _FIGURES:
        file = folder / "figures" / f"{name}.png"
        if name not in figures:
            file.unlink(missing_ok=True)
            continue
        with replace_file(file) as draft:
            draft.write_bytes(figures[name])
    return page.write(folder / "report.html")


def write_tables(analysis: Mapping[str, Any], folder: Path) -> None:
    """layers.csv, transitions.csv, similarity.csv (one row per cell of a map), saturation.csv and through.csv.

    A null is an empty field, numbers are written so that they read back as they were. Each file is whole or absent;
    what ``analysis`` has no rows of has no file, and an earlier one is removed.
    Raises UserError if the analysis is not of the shape that `depth_report` reads, or if the disk is full.
    """
    checked = _check(dict(analysis), "the analysis")
    rows: dict[str, list[dict[str, Any]]] = {
        "layers": [
            {
                key: entry.get(key)
                for key in ("encoder", "layer", "metric", "target", "value", "low", "high", "undefined")
            }
            for entry in checked["layers"]
        ],
        "transitions": [
            {
                **{key: entry.get(key) for key in ("encoder", "from", "to", *_CKA)},
                **_flat("gain_linear", entry.get("gain_linear")),
                **_flat("gain_map", entry.get("gain_map")),
            }
            for entry in checked["transitions"]
        ],
        "similarity": [
            {
                "one": entry["one"],
                "other": entry["other"],
                "metric": entry["metric"],
                "layer_one": one,
                "layer_other": other,
                "value": value,
            }
            for entry in checked["maps"]
            for one, row in zip(entry["layers_one"], entry["values"], strict=True)
            for other, value in zip(entry["layers_other"], row, strict=True)
        ],
        "saturation": [
            {
                "encoder": entry["encoder"],
                "layers": cut["layers"],
                "kept": cut["layers"] == entry.get("keep"),
                **_flat("score", cut.get("score")),
                **_flat("difference", cut.get("difference")),
                **{key: cut.get(key) for key in ("flops_share", "time_share", "parameters_share")},
            }
            for entry in checked["saturation"]
            for cut in entry["cuts"]
        ],
        "through": [
            {
                "encoder": entry["encoder"],
                "metric": series["metric"],
                "layer": layer,
                "step": step,
                "value": value,
            }
            for entry in checked["through"]
            for series in entry["series"]
            for layer, row in zip(entry["layers"], series["values"], strict=True)
            for step, value in zip(entry["steps"], row, strict=True)
        ],
    }
    assert tuple(rows) == _TABLES
    for name, lines in rows.items():
        file = Path(folder) / f"{name}.csv"
        if not lines:
            file.unlink(missing_ok=True)
            continue
        text = io.StringIO()
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        write_text(file, text.getvalue())


class _Found:
    """A checked analysis, looked up by encoder, metric and target."""

    def __init__(self, analysis: dict[str, Any]) -> None:
        self.all = analysis
        self.about: dict[str, Any] = analysis["about"]
        self.names = [entry["name"] for entry in analysis["encoders"]]
        self.depths = {entry["name"]: entry["depth"] for entry in analysis["encoders"]}
        # pixels have no blocks: they fit on any axis
        deep = {depth for depth in self.depths.values() if depth}
        self.depth = deep.pop() if len(deep) == 1 else None
        self.x_label = "layer" if self.depth else "share of depth"
        self.style = {name: place for place, name in enumerate(self.names)}
        self._readings: dict[tuple[str, str, str | None], list[_Reading]] = {}
        for entry in analysis["layers"]:
            reading = _Reading(
                entry["layer"],
                _number(entry.get("value")),
                _number(entry.get("low")),
                _number(entry.get("high")),
                entry.get("undefined") or "",
            )
            key = entry["encoder"], entry["metric"], entry.get("target")
            self._readings.setdefault(key, []).append(reading)
        for readings in self._readings.values():
            readings.sort(key=lambda reading: reading.layer)

    def measures(self, encoder: str | None = None) -> list[tuple[str, str | None]]:
        """Metrics with their targets, as they come; of one encoder, or of all."""
        there = [(m, target) for name, m, target in self._readings if encoder in (None, name)]
        return list(dict.fromkeys(there))

    def targets(self, metric: str) -> list[str]:
        return [target for name, target in self.measures() if name == metric and target is not None]

    def readings(self, encoder: str, metric: str, target: str | None = None) -> list[_Reading]:
        return self._readings.get((encoder, metric, target), [])

    def name(self, metric: str) -> str:
        """What a metric is called, with its unit."""
        about = self.all["definitions"].get(metric, {})
        unit = "%" if metric in _SCORES else about.get("unit", "")
        return f"{about.get('name', metric.replace('_', ' '))}{unit and f' ({unit})'}"

    def how(self, metrics: Iterable[str]) -> list[str]:
        """A sentence for each metric on what it is and where it comes from."""
        there = [(m, self.all["definitions"][m]) for m in metrics if m in self.all["definitions"]]
        return [
            f"{about.get('name', m)}: {about['text']}"
            + (f" Source: {about['source']}." if about.get("source") else "")
            for m, about in there
            if about.get("text")
        ]

    def x(self, encoder: str, layer: int) -> float:
        """Where a layer stands on the axis: at its number, or where depths differ at its share of the depth."""
        return layer if self.depth else layer / max(self.depths[encoder], 1)

    def ticks(self) -> list[tuple[float, str]]:
        if self.depth is None:
            return [(share / 4, f"{share / 4:g}") for share in range(5)]
        return [(layer, str(layer)) for layer in range(0, self.depth + 1, -(-self.depth // _TICKS))]

    def level(self, metric: str, target: str | None) -> tuple[str, float] | None:
        scale = 100 if metric in _SCORES else 1
        for entry in self.all["levels"]:
            if (entry["metric"], entry.get("target")) == (metric, target):
                return entry["name"], scale * entry["value"]
        chance = _number(_data(self).get("chance"))
        return ("chance", scale * chance) if metric in _CHANCE and math.isfinite(chance) else None

    def panel(self, metric: str, target: str | None = None) -> Panel | None:
        """A measure of every encoder over depth, or None if it is defined nowhere."""
        scale = 100 if metric in _SCORES else 1
        rows = {
            name: [
                (self.x(name, one.layer), scale * one.value, scale * one.low, scale * one.high)
                for one in self.readings(name, metric, target)
            ]
            for name in self.names
        }
        title = self.name(metric) if target is None else target.replace("_", " ")
        return self.chart(title, rows, self.level(metric, target), metric in _LOG)

    def chart(
        self,
        title: str,
        rows: Mapping[str, Sequence[tuple[float, float, float, float]]],
        level: tuple[str, float] | None = None,
        log: bool = False,
        x_label: str = "",
    ) -> Panel | None:
        """A line per encoder of (x, y, low, high), or None if no y is finite."""
        lines = []
        for name, points in rows.items():
            if any(math.isfinite(y) for _, y, _, _ in points):
                x, y, low, high = zip(*points, strict=True)
                lines.append(Line(name, x, y, low=low, high=high))
        if not lines:
            return None
        return Panel(title, lines, x_label or self.x_label, log, level, ticks=self.ticks())

    def panels(self, metrics: Iterable[str]) -> list[Panel]:
        return [panel for metric in metrics if (panel := self.panel(metric))]

    def map_order(self, metric: str) -> list[dict[str, Any]]:
        """The maps of a metric, within encoders first."""
        mine = [entry for entry in self.all["maps"] if entry["metric"] == metric]
        return sorted(mine, key=lambda entry: entry["one"] != entry["other"])


def _load(file: Path) -> dict[str, Any]:
    again = f"run `tubelet analyze ENCODER --data DATA --out {file.parent}` again"
    try:
        analysis = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file} is not there, so there is nothing to draw; {again}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged ({error}); {again}") from error
    return _check(analysis, str(file))


def _check(analysis: Any, where: str) -> dict[str, Any]:
    """The analysis with an empty list for every part that it lacks; raises UserError if it has another shape."""

    def need(right: bool, what: str) -> None:
        if not right:
            raise UserError(
                f"{where} is not an analysis that this tubelet reads: {what}; run the analysis again"
            )

    need(isinstance(analysis, dict), "it is no object")
    for key in ("about", "encoders", "layers"):
        need(key in analysis, f'"{key}" is missing')
    found = analysis | {key: analysis.get(key) or [] for key in _ENTRIES if "." not in key}
    found["definitions"] = analysis.get("definitions") or {}
    for key in ("about", "definitions"):
        need(isinstance(found[key], dict), f'"{key}" is no object')
    about = analysis.get("geometry_vs_gain") or {}
    need(isinstance(about, dict), '"geometry_vs_gain" is no object')
    found["geometry_vs_gain"] = {key: about.get(key) or [] for key in ("points", "fits")}
    nested = {f"geometry_vs_gain.{key}": entries for key, entries in found["geometry_vs_gain"].items()}
    for key, fields in _ENTRIES.items():
        entries = nested.get(key, found.get(key))
        need(isinstance(entries, list), f'"{key}" is no list')
        for number, entry in enumerate(entries):
            place = f"{key}[{number}]"
            need(isinstance(entry, dict), f"{place} is no object")
            for field, kind in fields.items():
                need(isinstance(entry.get(field), kind), f'{place} has no proper "{field}"')
            for field in _NUMBERS:
                need(isinstance(entry.get(field), int | float | None), f'"{field}" of {place} is no number')
    names = {entry["name"] for entry in found["encoders"]}
    need(bool(names), "there are no encoders")
    need(len(names) == len(found["encoders"]), "two encoders have one name")
    for key in ("layers", "transitions", "saturation", "influence"):
        for number, entry in enumerate(found[key]):
            need(entry["encoder"] in names, f"{key}[{number}] is of an unknown encoder {entry['encoder']!r}")
    for number, entry in enumerate(found["maps"]):
        size = len(entry["layers_one"]), len(entry["layers_other"])
        need(_is_table(entry["values"], *size), f"maps[{number}] has no {size[0]} x {size[1]} values")
    for number, entry in enumerate(found["through"]):
        size = len(entry["layers"]), len(entry["steps"])
        for series in entry["series"]:
            right = isinstance(series, dict) and isinstance(series.get("metric"), str)
            need(
                right and _is_table(series.get("values"), *size),
                f"through[{number}] has no {size[0]} x {size[1]} values",
            )
    for number, entry in enumerate(found["saturation"]):
        right = all(isinstance(cut, dict) and isinstance(cut.get("layers"), int) for cut in entry["cuts"])
        need(right, f'saturation[{number}] has cuts without "layers"')
    return found


def _is_table(values: Any, rows: int, columns: int) -> bool:
    right = isinstance(values, list) and len(values) == rows
    return right and all(isinstance(row, list) and len(row) == columns for row in values)


def _words(page: Page, found: _Found) -> None:
    data, seconds = _data(found), found.about.get("seconds")
    keys = [Key("encoders", str(len(found.names)), _depths(found))]
    if data.get("clips"):
        split = [
            f"{data[key]:,} {word}"
            for key, word in (("train", "to fit"), ("test", "to test"))
            if data.get(key)
        ]
        keys.append(Key("clips", f"{data['clips']:,}", ", ".join(split)))
    if data.get("classes"):
        chance = _number(data.get("chance"))
        note = f"chance: {_told(chance, 'linear')} %" if math.isfinite(chance) else ""
        keys.append(Key("classes", f"{len(data['classes']):,}", note))
    if data.get("folds"):
        keys.append(
            Key("folds", str(data["folds"]), "groups are kept together" if data.get("grouped") else "")
        )
    if isinstance(seconds, dict) and seconds:
        spent = [value for value in map(_number, seconds.values()) if math.isfinite(value)]
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


def _glance(page: Page, found: _Found) -> None:
    """The best and the last layer of every encoder by the main scores."""
    metrics = [m for m in ("linear", "map") if found.panel(m)]
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


def _readable(page: Page, found: _Found, figures: dict[str, bytes]) -> None:
    readable, retrieval = found.panels(_READABLE), found.panels(_RETRIEVAL)
    gratings = found.panels(_GRATINGS)
    if not (readable or retrieval or gratings):
        return
    page.heading("What is readable at which depth")
    _axis(page, found)
    if readable:
        _curves(
            page,
            found,
            readable,
            _READABLE,
            "How well a linear reader tells the classes apart from each layer.",
            "Dashed: a guess.",
        )
        figures["decodability"] = _picture(found, readable)
    if retrieval:
        shows = "How often the clips nearest to a clip are of its class."
        _curves(page, found, retrieval, _RETRIEVAL, shows)
        figures["retrieval"] = _picture(found, retrieval)
    if gratings:
        shows = "How well a linear reader tells the properties of drifting gratings from each layer: means over them."
        _curves(page, found, gratings, _GRATINGS, shows)
        for metric in _GRATINGS:
            single = [panel for target in found.targets(metric) if (panel := found.panel(metric, target))]
            if single:
                shows = f"{found.name(metric)}: each property by itself."
                page.curves(single, shows, "One linear reader for each.", found.names)
                gratings += [_prefixed(panel, found.name(metric)) for panel in single]
        figures["gratings"] = _picture(found, gratings)


def _prefixed(panel: Panel, name: str) -> Panel:
    return Panel(
        f"{name}: {panel.title}", panel.lines, panel.x_label, panel.log, panel.level, panel.marks, panel.ticks
    )


def _similarity(page: Page, found: _Found, figures: dict[str, bytes]) -> None:
    panels = [panel for metric in _CKA if (panel := _transition_panel(found, metric))]
    maps = {metric: _heatmaps(found, metric) for metric in _CKA}
    if not panels and not any(maps.values()):
        return
    page.heading("How alike layers are")
    if panels:
        _curves(
            page,
            found,
            panels,
            _CKA,
            "How alike each layer is to the one before it.",
            "High: the block changes little; low: it rearranges the clips.",
        )
        figures["neighbours"] = _picture(found, panels)
    for metric, drawn in maps.items():
        if not drawn:
            continue
        shows = (
            f"{found.name(metric)} of every layer with every other, within each encoder and between encoders."
        )
        computed = " ".join(
            [
                "Yellow: alike, blue: different; all these maps have the same scale.",
                *(["×: undefined."] if _has_gap(drawn) else []),
                *found.how([metric]),
            ]
        )
        if metric == "cka_linear":
            page.heatmaps(drawn, shows, computed)
            figures["similarity"] = draw_png([heatmap_drawer(one) for one in drawn])
        else:
            with page.folded(f"The same by {found.name(metric)}"):
                page.heatmaps(drawn, shows, computed)


def _transition_panel(found: _Found, metric: str) -> Panel | None:
    """A measure of each step from one layer to the next; one that is a value with an interval, or a number."""
    rows: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in found.names}
    for entry in sorted(found.all["transitions"], key=lambda entry: entry["to"]):
        value = entry.get(metric)
        rows[entry["encoder"]].append((found.x(entry["encoder"], entry["to"]), *_interval(value)))
    level = ("no gain", 0.0) if metric.startswith("gain") else None
    return found.chart(found.name(metric), rows, level, x_label=f"{found.x_label}, the later of the two")


def _heatmaps(found: _Found, metric: str) -> list[Heatmap]:
    mine = found.map_order(metric)
    every = [value for entry in mine for row in entry["values"] for value in map(_number, row)]
    finite = [value for value in every if math.isfinite(value)]
    if not finite:
        return []
    low, high = math.floor(10 * min(finite)) / 10, max(1.0, *finite)
    return [
        Heatmap(
            entry["one"] if entry["one"] == entry["other"] else f"{entry['one']} and {entry['other']}",
            [str(layer) for layer in entry["layers_one"]],
            [str(layer) for layer in entry["layers_other"]],
            [[_number(value) for value in row] for row in entry["values"]],
            min(low, high - 0.1),
            high,
            "layer" if entry["one"] == entry["other"] else f"layer of {_short(entry['other'])}",
            "layer" if entry["one"] == entry["other"] else f"layer of {_short(entry['one'])}",
        )
        for entry in mine
    ]


def _geometry(page: Page, found: _Found, figures: dict[str, bytes]) -> None:
    gains = [panel for metric in ("gain_linear", "gain_map") if (panel := _transition_panel(found, metric))]
    about = found.all["geometry_vs_gain"]
    points = [
        (entry, _number(entry.get("cka")), _number(entry.get("gain")))
        for entry in about["points"]
        if math.isfinite(_number(entry.get("cka"))) and math.isfinite(_number(entry.get("gain")))
    ]
    if not gains and not points:
        return
    page.heading("Geometry against gain")
    if points:
        fits = {fit["transition"]: fit for fit in about["fits"]}
        chosen = [("all", points)]
        for transition in fits:
            some = [point for point in points if _transition(point[0]) == transition]
            if len(some) >= _FITTED:
                chosen.append((transition, some))
        charts = [_scatter(found, transition, some, fits.get(transition)) for transition, some in chosen]
        page.scatters(
            charts[:1],
            "Does a block that changes the geometry more also gain more? One point per encoder and transition.",
            " ".join(
                [
                    *found.how(["geometry_vs_gain"]),
                    "Across: CKA of a layer with the next; up: the score of the next minus that of the first.",
                    *([_fit_told(fits["all"])] if "all" in fits else []),
                ]
            ),
            found.names,
        )
        signs = dot_signs([n for n in found.names if any(n in c.points for c in charts)], found.style)
        figures["geometry"] = draw_png([scatter_drawer(chart, found.style) for chart in charts], signs)
        if charts[1:]:
            told = [_fit_told(fits[transition]) for transition, _ in chosen[1:]]
            with page.folded("Each transition by itself") if len(told) > _OPEN else nullcontext():
                page.scatters(
                    charts[1:], "The same for each transition by itself.", " ".join(told), found.names
                )
        if fits:
            with page.folded("Every regression line in numbers"):
                page.table(
                    ["transition", "slope", "intercept", "r", "n"],
                    [
                        [name, *(_plain(fit.get(key)) for key in ("slope", "intercept", "r", "n"))]
                        for name, fit in fits.items()
                    ],
                    "Slope and intercept of gain on CKA, correlation r, number of points n.",
                    "A line through two points always fits.",
                )
    if gains:
        _curves(
            page,
            found,
            gains,
            ("gain_linear", "gain_map"),
            "What each layer gains on the one before it, as a share (0.01 is one percent point).",
        )


def _scatter(
    found: _Found, transition: str, points: Sequence[tuple[dict[str, Any], float, float]], fit: Any
) -> Scatter:
    pairs: dict[str, list[tuple[float, float]]] = {}
    for entry, cka, gain in points:
        pairs.setdefault(entry["encoder"], []).append((cka, gain))
    slope, intercept = (_number((fit or {}).get(key)) for key in ("slope", "intercept"))
    line = (slope, intercept) if math.isfinite(slope) and math.isfinite(intercept) else None
    title = "All transitions" if transition == "all" else f"Layers {_arrow(transition)}"
    return Scatter(title, pairs, "CKA of neighbours", "gain", line, 0.0)


def _fit_told(fit: Mapping[str, Any]) -> str:
    name = "All transitions" if fit["transition"] == "all" else f"Layers {_arrow(fit['transition'])}"
    return f"{name}: slope {_plain(fit.get('slope'))}, r {_plain(fit.get('r'))}, n {_plain(fit.get('n'))}."


def _tokens(page: Page, found: _Found, figures: dict[str, bytes]) -> None:
    mixing, attention, norms = (found.panels(some) for some in (_MIXING, _ATTENTION, _NORMS))
    if not (mixing or attention or norms or found.all["influence"]):
        return
    page.heading("Tokens")
    if mixing:
        _curves(
            page,
            found,
            mixing,
            _MIXING,
            "How alike the tokens of a clip are, and how much of the score is lost when all of the clip but one patch "
            "is blank.",
            "Tokens that have taken in the whole clip are alike; what lies in a relation of patches is lost with them.",
        )
    if attention:
        shows = "How far attention looks in space and in time, and how evenly it is spread."
        _curves(page, found, attention, _ATTENTION, shows)
    if norms:
        _curves(page, found, norms, _NORMS, "How long the tokens are, and how many stand out.")
    if mixing or attention or norms:
        figures["tokens"] = _picture(found, [*mixing, *attention, *norms])


def _influence(page: Page, found: _Found, folder: Path) -> None:
    for entry in found.all["influence"]:
        file = folder / entry["picture"]
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{folder / 'analysis.json'} names a picture outside its folder: {entry['picture']}"
            )
        try:
            png = file.read_bytes()
        except OSError as error:
            raise UserError(
                f"{file} is named in analysis.json but cannot be read ({error.strerror}); run the analysis again"
            ) from error
        page.picture(
            png,
            f"{entry['encoder']}, clip {entry['clip']}: how much each token changes when the framed patch is removed.",
            " ".join(found.how(["influence"])),
        )


def _spectrum(page: Page, found: _Found, figures: dict[str, bytes]) -> None:
    panels, sizes = found.panels(_SPECTRUM), found.panels(_SIZES)
    if not (panels or sizes):
        return
    page.heading("Spectrum")
    if panels:
        shows = "Into how many directions the clips spread, and how evenly."
        _curves(page, found, panels, _SPECTRUM, shows)
        figures["spectrum"] = _picture(found, panels)
    if sizes:
        with page.folded("Sizes, angles and distances"):
            _curves(page, found, sizes, _SIZES, "Lengths of the clips' vectors, and pairs of clips.")


def _saturation(page: Page, found: _Found, figures: dict[str, bytes]) -> None:
    there = [entry for entry in found.all["saturation"] if entry["cuts"]]
    if not there:
        return
    page.heading("How many layers are worth keeping")
    panels = []
    for key, title, level in (
        ("score", "Score (%)", None),
        ("difference", "Difference (points)", ("none", 0.0)),
    ):
        rows = {
            entry["encoder"]: [
                (
                    found.x(entry["encoder"], cut["layers"]),
                    *_percent(cut.get(key)),
                )
                for cut in sorted(entry["cuts"], key=lambda cut: cut["layers"])
            ]
            for entry in there
        }
        if panel := found.chart(
            title, rows, level, x_label="layers kept" if found.depth else "share of depth kept"
        ):
            panels.append(panel)
    if panels:
        page.curves(
            panels,
            "What an encoder reaches when it is cut, and the difference to the whole one.",
            " ".join(["Shaded: the interval of each value.", *found.how(["saturation"])]),
            found.names,
        )
        figures["saturation"] = _picture(found, panels)
    rows_told: list[list[str | Cell]] = []
    for entry in there:
        for cut in entry["cuts"]:
            shares = [_number(cut.get(key)) for key in ("flops_share", "time_share", "parameters_share")]
            rows_told.append(
                [
                    entry["encoder"],
                    str(cut["layers"]),
                    _cell(cut.get("score"), best=cut["layers"] == entry.get("keep")),
                    _cell(cut.get("difference"), signed=True),
                    *(f"{100 * share:.0f} %" if math.isfinite(share) else "–" for share in shares),
                ]
            )
    page.table(
        ["encoder", "layers kept", "score (%)", "difference (points)", "FLOPs", "time", "parameters"],
        rows_told,
        "Every cut: its score, the difference to the whole encoder, and what is left of the price.",
        "In brackets: intervals; the difference is paired. Marked: the fewest layers that are enough.",
    )
    kept = [entry for entry in there if entry.get("keep") is not None]
    if kept:
        page.text("To keep only those layers:")
        page.code(
            "\n".join(
                f"tubelet export ENCODER --layers {entry['keep']} --out DIR   # {entry['encoder']}"
                for entry in kept
            )
        )


def _through(page: Page, found: _Found, figures: dict[str, bytes]) -> None:
    runs = found.all["through"]
    if not runs:
        return
    page.heading("Through training")
    every = sorted({layer for run in runs for layer in _spread(run["layers"])})
    style = {f"layer {layer}": place for place, layer in enumerate(every)}
    drawn: list[Drawer] = []
    for run in runs:
        metrics = [series["metric"] for series in run["series"]]
        panels = [panel for series in run["series"] if (panel := _course(found, run, series))]
        maps = [
            one
            for series in run["series"]
            if series["metric"] == "cka_with_final" and (one := _course_map(found, run, series))
        ]
        few = len(_spread(run["layers"])) == len(run["layers"])
        if panels:
            page.curves(
                panels,
                f"{run['encoder']}: each layer over the steps of training.",
                " ".join(
                    [*([] if few else ["Some of the layers; `through.csv` has all."]), *found.how(metrics)]
                ),
            )
        if maps:
            page.heatmaps(
                maps,
                f"{run['encoder']}: how alike each layer already was to what it became.",
                "Yellow: as in the end." + (" ×: undefined." if _has_gap(maps) else ""),
            )
        drawn += [drawer(_prefixed(panel, run["encoder"]), style) for panel in panels]
        drawn += [(f"{run['encoder']}: {title}", draw) for title, draw in map(heatmap_drawer, maps)]
    if drawn:
        figures["through"] = draw_png(drawn, line_signs(list(style), style))
    _settled(page, runs)


def _course(found: _Found, run: Mapping[str, Any], series: Mapping[str, Any]) -> Panel | None:
    """A measure of some layers over the steps of a run, or None if it is defined nowhere."""
    scale = 100 if series["metric"] in _SCORES else 1
    rows = dict(zip(run["layers"], series["values"], strict=True))
    lines = [
        Line(f"layer {layer}", run["steps"], [scale * _number(value) for value in rows[layer]])
        for layer in _spread(run["layers"])
    ]
    if not any(math.isfinite(y) for line in lines for y in line.y):
        return None
    ticks = [(step, f"{step:,}") for step in _spread(run["steps"], 4)]
    return Panel(found.name(series["metric"]), lines, ticks=ticks)


def _course_map(found: _Found, run: Mapping[str, Any], series: Mapping[str, Any]) -> Heatmap | None:
    """A measure of all layers over the steps of a run, or None if it is defined nowhere."""
    values = [[_number(value) for value in row] for row in series["values"]]
    finite = [value for row in values for value in row if math.isfinite(value)]
    if not finite:
        return None
    return Heatmap(
        found.name(series["metric"]),
        [str(layer) for layer in run["layers"]],
        [f"{step:,}" for step in run["steps"]],
        values,
        min(math.floor(10 * min(finite)) / 10, 0.9),
        max(1.0, *finite),
        "step",
        "layer",
        square=False,
    )


def _settled(page: Page, runs: Sequence[Mapping[str, Any]]) -> None:
    """When each layer of each run settled, one row per run."""
    there = [run for run in runs if run.get("settled")]
    if not there:
        return
    layers = sorted({int(layer) for run in there for layer in run["settled"]})
    rows: list[list[str | Cell]] = []
    for run in there:
        steps = {
            int(layer): "not yet" if step is None else f"{step:,}" for layer, step in run["settled"].items()
        }
        rows.append([run["encoder"], *(steps.get(layer, "–") for layer in layers)])
    limits = sorted({_number(run.get("threshold")) for run in there if run.get("threshold") is not None})
    at = f" ({' or '.join(f'{limit:g}' for limit in limits)})" if limits else ""
    page.table(
        ["run", *map(str, layers)],
        rows,
        "The step at which each layer settled.",
        f"The first saved step from which on its CKA with the final state stays above the threshold{at}.",
        [("layer", len(layers))],
    )


def _rest(page: Page, found: _Found) -> None:
    """What is measured but has no place above."""
    known = {*_READABLE, *_RETRIEVAL, *_GRATINGS, *_MIXING, *_ATTENTION, *_NORMS, *_SPECTRUM, *_SIZES}
    others = [
        (metric, target)
        for metric, target in found.measures()
        if metric not in known or (target is not None and metric not in _GRATINGS)
    ]
    panels = []
    for metric, target in others:
        if panel := found.panel(metric, target):
            panels.append(panel if target is None else _prefixed(panel, found.name(metric)))
    if panels:
        page.heading("Other measures")
        names = dict.fromkeys(metric for metric, _ in others)
        _curves(page, found, panels, tuple(names), "What else was measured at every layer.")


def _numbers(page: Page, found: _Found) -> None:
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


def _curves(
    page: Page, found: _Found, panels: Sequence[Panel], metrics: Sequence[str], shows: str, computed: str = ""
) -> None:
    """Curves with the definitions of what they show in the caption, or where they are many folded below it."""
    transitions = [m for m in _NUMBERS if any(m in entry for entry in found.all["transitions"])]
    measured = {metric for metric, _ in found.measures()} | {*transitions, "gain_linear", "gain_map"}
    how = found.how([metric for metric in metrics if metric in measured])
    lines = [line for panel in panels for line in panel.lines]
    if any(math.isfinite(low) for line in lines for low in line.low or ()):
        computed = f"Shaded: the interval of each value. {computed}".rstrip()
    if len(how) <= _CAPTION:
        page.curves(panels, shows, " ".join([*([computed] if computed else []), *how]), found.names)
        return
    page.curves(panels, shows, computed, found.names)
    with page.folded("How these were computed"):
        page.points(how)


def _picture(found: _Found, panels: Sequence[Panel]) -> bytes:
    there = {line.name for panel in panels for line in panel.lines}
    signs = line_signs([name for name in found.names if name in there], found.style)
    return draw_png([drawer(panel, found.style) for panel in panels], signs)


def _axis(page: Page, found: _Found) -> None:
    if found.depth is None:
        page.text(
            "The encoders have different depths, so they are drawn over the share of their depth: 0 is before the "
            "first block, 1 after the last."
        )


def _data(found: _Found) -> dict[str, Any]:
    return found.about.get("data") or {}


def _depths(found: _Found) -> str:
    depths = sorted(set(found.depths.values()))
    return f"{depths[0]} blocks" if len(depths) == 1 else f"{depths[0]} to {depths[-1]} blocks"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} encoders"


def _short(name: str, length: int = 22) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _number(value: Any) -> float:
    """nan for null and for what is no number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _interval(value: Any) -> tuple[float, float, float]:
    """Value, low and high of an entry that has them, or of a bare number without an interval."""
    if isinstance(value, dict):
        return _number(value.get("value")), _number(value.get("low")), _number(value.get("high"))
    return _number(value), math.nan, math.nan


def _percent(value: Any) -> tuple[float, float, float]:
    middle, low, high = _interval(value)
    return 100 * middle, 100 * low, 100 * high


def _flat(name: str, value: Any) -> dict[str, Any]:
    entry = value or {}
    return {name: entry.get("value"), f"{name}_low": entry.get("low"), f"{name}_high": entry.get("high")}


def _told(value: float, metric: str) -> str:
    """As it is read: scores in percent, all else with four digits."""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{100 * value:.1f}" if metric in _SCORES else f"{value:.4g}"
    return text.replace("-", "−")


def _plain(value: Any) -> str:
    number = _number(value)
    return f"{number:.3g}".replace("-", "−") if math.isfinite(number) else "–"


def _reading(reading: _Reading | None, metric: str) -> str:
    if reading is None or math.isnan(reading.value):
        return "–"
    text = _told(reading.value, metric)
    if math.isfinite(reading.low) and math.isfinite(reading.high):
        text += f" [{_told(reading.low, metric)}, {_told(reading.high, metric)}]"
    return text


def _undefined(readings: Iterable[_Reading]) -> str:
    """Which layers have no value, by reason."""
    reasons: dict[str, list[str]] = {}
    for one in readings:
        if math.isnan(one.value):
            reasons.setdefault(one.undefined or "no reason is given", []).append(str(one.layer))
    return "; ".join(
        f"layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}: undefined: {why}"
        for why, layers in reasons.items()
    )


def _cell(value: Any, best: bool = False, signed: bool = False) -> str | Cell:
    """A score in percent with its interval."""
    mean, low, high = _percent(value)
    if not math.isfinite(mean):
        return "–"
    ends = (low, high) if math.isfinite(low) and math.isfinite(high) else None
    return Cell(Score(mean), best, 1, ends, signed)


def _transition(entry: Mapping[str, Any]) -> str:
    return f"{entry['from']} -> {entry['to']}"


def _arrow(transition: str) -> str:
    return transition.replace("->", "→")


def _has_gap(maps: Iterable[Heatmap]) -> bool:
    return any(not math.isfinite(value) for one in maps for row in one.values for value in row)


def _spread(items: Sequence[Any], most: int = _DRAWN) -> list[Any]:
    """At most so many of them, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]
