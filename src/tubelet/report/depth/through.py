"""The section on layers through training: what each knew at every saved step, and when it settled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tubelet.report.curves import Drawer, Line, Panel, draw_png, drawer, line_signs
from tubelet.report.depth.analysis import Analysis, number, scale_of
from tubelet.report.depth.charts import has_gap, prefixed
from tubelet.report.heatmap import Heatmap, heatmap_drawer
from tubelet.report.page import Page
from tubelet.report.table import Cell

_DRAWN = 7  # layers that one chart of curves over training can tell apart


def add_through(page: Page, found: Analysis, figures: dict[str, bytes]) -> None:
    """Every run's layers over its steps; the picture for print goes into ``figures``."""
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
                "Yellow: as in the end." + (" ×: undefined." if has_gap(maps) else ""),
            )
        drawn += [drawer(prefixed(panel, run["encoder"]), style) for panel in panels]
        drawn += [(f"{run['encoder']}: {title}", draw) for title, draw in map(heatmap_drawer, maps)]
    if drawn:
        figures["through"] = draw_png(drawn, line_signs(list(style), style))
    _settled(page, runs)


def _course(found: Analysis, run: Mapping[str, Any], series: Mapping[str, Any]) -> Panel | None:
    """A measure of some layers over the steps of a run, or None if it is defined nowhere."""
    scale = scale_of(series["metric"])
    rows = dict(zip(run["layers"], series["values"], strict=True))
    lines = [
        Line(f"layer {layer}", run["steps"], [scale * number(value) for value in rows[layer]])
        for layer in _spread(run["layers"])
    ]
    if not any(math.isfinite(y) for line in lines for y in line.y):
        return None
    ticks = [(step, f"{step:,}") for step in _spread(run["steps"], 4)]
    return Panel(found.name(series["metric"]), lines, ticks=ticks)


def _course_map(found: Analysis, run: Mapping[str, Any], series: Mapping[str, Any]) -> Heatmap | None:
    """A measure of all layers over the steps of a run, or None if it is defined nowhere."""
    values = [[number(value) for value in row] for row in series["values"]]
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
    limits = sorted({number(run.get("threshold")) for run in there if run.get("threshold") is not None})
    at = f" ({' or '.join(f'{limit:g}' for limit in limits)})" if limits else ""
    page.table(
        ["run", *map(str, layers)],
        rows,
        "The step at which each layer settled.",
        f"The first saved step from which on its CKA with the final state stays above the threshold{at}.",
        [("layer", len(layers))],
    )


def _spread(items: Sequence[Any], most: int = _DRAWN) -> list[Any]:
    """At most so many of them, evenly spread, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]
