"""What an analysis measured, as charts over the depth of its encoders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from tubelet.report.curves import Line, Panel, draw_png, drawer, line_signs
from tubelet.report.depth.analysis import CKA, Analysis, interval, scale_of
from tubelet.report.heatmap import Heatmap
from tubelet.report.page import Page

_LOG = ("condition_number",)
_CAPTION = 3  # definitions that a caption has room for; more are folded away below the figure
_TICKS = 6  # steps between the labels of the axis of layers


def layer_panel(found: Analysis, metric: str, target: str | None = None) -> Panel | None:
    """A measure of every encoder over depth, or None if it is defined nowhere."""
    scale = scale_of(metric)
    rows = {
        name: [
            (place_of(found, name, one.layer), scale * one.value, scale * one.low, scale * one.high)
            for one in found.readings(name, metric, target)
        ]
        for name in found.names
    }
    title = found.name(metric) if target is None else target.replace("_", " ")
    return depth_panel(found, title, rows, found.level(metric, target), metric in _LOG)


def depth_panel(
    found: Analysis,
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
    return Panel(title, lines, x_label or depth_label(found), log, level, ticks=_ticks(found))


def layer_panels(found: Analysis, metrics: Iterable[str]) -> list[Panel]:
    """`layer_panel` of each metric that is defined anywhere."""
    return [panel for metric in metrics if (panel := layer_panel(found, metric))]


def transition_panel(found: Analysis, metric: str) -> Panel | None:
    """A measure of each step from one layer to the next; one that is a value with an interval, or a number."""
    rows: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in found.names}
    for entry in sorted(found.all["transitions"], key=lambda entry: entry["to"]):
        value = entry.get(metric)
        rows[entry["encoder"]].append((place_of(found, entry["encoder"], entry["to"]), *interval(value)))
    level = ("no gain", 0.0) if metric.startswith("gain") else None
    return depth_panel(
        found, found.name(metric), rows, level, x_label=f"{depth_label(found)}, the later of the two"
    )


def prefixed(panel: Panel, name: str) -> Panel:
    """The panel with a name before its title, for a picture that has several kinds of it."""
    return Panel(
        f"{name}: {panel.title}", panel.lines, panel.x_label, panel.log, panel.level, panel.marks, panel.ticks
    )


def add_panels(
    page: Page,
    found: Analysis,
    panels: Sequence[Panel],
    metrics: Sequence[str],
    shows: str,
    computed: str = "",
) -> None:
    """Curves with the definitions of what they show in the caption, or where they are many folded below it."""
    transitions = [m for m in CKA if any(m in entry for entry in found.all["transitions"])]
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


def print_panels(found: Analysis, panels: Sequence[Panel]) -> bytes:
    """The panels for print, with a legend of the encoders that they have."""
    there = {line.name for panel in panels for line in panel.lines}
    signs = line_signs([name for name in found.names if name in there], places(found))
    return draw_png([drawer(panel, places(found)) for panel in panels], signs)


def has_gap(maps: Iterable[Heatmap]) -> bool:
    """Whether any cell is undefined."""
    return any(not math.isfinite(value) for one in maps for row in one.values for value in row)


def place_of(found: Analysis, encoder: str, layer: int) -> float:
    """Where a layer stands on the axis: at its number, or where depths differ at its share of the depth."""
    return layer if found.depth else layer / max(found.depths[encoder], 1)


def depth_label(found: Analysis) -> str:
    """What the axis of layers says."""
    return "layer" if found.depth else "share of depth"


def places(found: Analysis) -> dict[str, int]:
    """The place of each encoder among the colours, the same in all figures."""
    return {name: place for place, name in enumerate(found.names)}


def _ticks(found: Analysis) -> list[tuple[float, str]]:
    if found.depth is None:
        return [(share / 4, f"{share / 4:g}") for share in range(5)]
    return [(layer, str(layer)) for layer in range(0, found.depth + 1, -(-found.depth // _TICKS))]
