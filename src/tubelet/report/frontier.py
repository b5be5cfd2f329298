"""Scores against what they cost: a line per method, the best for each price filled, on the page and as a PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from tubelet.report.curves import MARKS, PAGE, PRINT, Palette, draw_svg, split, swatch

_NEAR = 0.03  # costs that differ by less are drawn side by side, or their marks would hide each other
_APART = 0.045  # of the axis: how far apart they are then
_ALONE = 0.12  # the same, where all cost the same and the axis is free
_ROOM = 0.12  # of the axis, free at either end
_LEAST = math.log10(3)  # an axis spans at least this, or equal costs would look different


@dataclass(frozen=True)
class Point:
    """A score and its cost. low, high: its interval, if it is known. best: nothing as cheap is as good.

    name: written beside it, where lines and marks do not tell what it is.
    """

    cost: float
    score: float
    low: float | None = None
    high: float | None = None
    best: bool = False
    name: str = ""


@dataclass(frozen=True)
class Track:
    """The points of one method and one size of encoder, joined by a line unless they have names."""

    method: str
    size: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Frontier:
    """One chart. x_label: what it costs. tell: a cost in words, for the axis. levels: name -> score, untrained."""

    title: str
    tracks: Sequence[Track]
    x_label: str
    tell: Callable[[float], str]
    levels: Mapping[str, float]


def draw_frontiers(panels: Sequence[Frontier]) -> str:
    """The charts side by side with a legend, as HTML; more methods than colours in several rows of them."""
    methods = _methods(panels)
    if len(methods) > len(PAGE.lines):
        return "".join(draw_frontiers(_of(panels, part)) for part in split(methods))
    sizes = _sizes(panels)
    width = 3.4 if len(panels) > 2 else 5.0
    dots = len(sizes) == 1
    legend = "".join(
        f"<li>{swatch(place, dots)}{escape(method)}</li>" for place, method in enumerate(methods)
    )
    if len(sizes) > 1:
        legend += "".join(
            f'<li><b class="mark">{MARKS[place % len(MARKS)][1]}</b>{escape(size)}</li>'
            for place, size in enumerate(sizes)
        )
    drawn = "".join(
        f'<div class="panel"><h3>{escape(panel.title)}</h3>'
        + draw_svg(_drawer(panel, methods, sizes, PAGE), panel.title, width, 0.3 + 0.66 * width)
        + "</div>"
        for panel in panels
    )
    return f'<ul class="legend">{legend}</ul><div class="panels">{drawn}</div>'


def frontier_picture(rows: Sequence[Sequence[Frontier]]) -> bytes:
    """The charts as one PNG on white, row by row, for a document; told apart in grey and by the colour-blind."""
    panels = [panel for row in rows for panel in row]
    methods, sizes = _methods(panels), _sizes(panels)
    columns = max(len(row) for row in rows)
    # larger than a panel's, its lines lighter and its axes darker
    style: dict[Any, Any] = PRINT.style() | {
        "font.size": 8.5,
        "grid.color": "#e3e3de",
        "axes.edgecolor": "#b8b8b2",
    }
    with rc_context(style):
        figure = Figure(figsize=(3.6 * columns, 0.5 + 2.7 * len(rows)), layout="constrained")
        for number, row in enumerate(rows):
            for place, panel in enumerate(row):
                axes = figure.add_subplot(len(rows), columns, number * columns + place + 1)
                _drawer(panel, methods, sizes, PRINT)(axes)
                axes.set_title(panel.title, loc="left", fontsize=9.5)
                axes.tick_params(length=0)
        signs = [
            Line2D(
                [],
                [],
                **PRINT.look(place),
                marker=MARKS[place % len(MARKS)][0] if len(sizes) == 1 else None,
                label=method,
            )
            for place, method in enumerate(methods)
        ]
        if len(sizes) > 1:
            signs += [
                Line2D([], [], color=PRINT.ink, linestyle="", marker=MARKS[p % len(MARKS)][0], label=size)
                for p, size in enumerate(sizes)
            ]
        figure.legend(
            handles=signs, loc="outside upper left", ncols=min(len(signs), 2 * columns), frameon=False
        )
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=180, metadata={"Software": None})
    return file.getvalue()


def _methods(panels: Sequence[Frontier]) -> list[str]:
    return list(dict.fromkeys(track.method for panel in panels for track in panel.tracks))


def _sizes(panels: Sequence[Frontier]) -> list[str]:
    return list(dict.fromkeys(track.size for panel in panels for track in panel.tracks))


def _of(panels: Sequence[Frontier], methods: Sequence[str]) -> list[Frontier]:
    return [
        replace(panel, tracks=[track for track in panel.tracks if track.method in methods])
        for panel in panels
    ]


def _drawer(
    panel: Frontier, methods: Sequence[str], sizes: Sequence[str], palette: Palette
) -> Callable[[Axes], None]:
    return lambda axes: _draw(axes, panel, methods, sizes, palette)


def _draw(
    axes: Axes, panel: Frontier, methods: Sequence[str], sizes: Sequence[str], palette: Palette
) -> None:
    costs = [point.cost for track in panel.tracks for point in track.points]
    axes.set_xscale("log")
    if costs:
        middle, span = _middle(costs)
        axes.set_xlim(10 ** (middle - span * (0.5 + _ROOM)), 10 ** (middle + span * (0.5 + _ROOM)))
        _ticks(axes, costs, panel.tell)
    shown = _beside(panel.tracks)
    for track, places in zip(panel.tracks, shown, strict=True):
        place = methods.index(track.method)
        # marks are the sizes' where there are several, and else help colours to tell methods apart
        sign = sizes.index(track.size) if len(sizes) > 1 else place
        look, mark = palette.look(place), MARKS[sign % len(MARKS)][0]
        colour = look["color"]
        line = sorted(zip(places, track.points, strict=True), key=lambda pair: pair[0])
        if not any(point.name for point in track.points):
            axes.plot(
                [x for x, _ in line],
                [point.score for _, point in line],
                **look,
                linewidth=1.5,
            )
        for x, point in line:
            if point.low is not None and point.high is not None:
                axes.plot([x, x], [point.low, point.high], color=colour, linewidth=1.1, alpha=0.75)
            axes.plot(
                [x],
                [point.score],
                marker=mark,
                markersize=5.5,
                color=colour,
                markerfacecolor=colour if point.best else palette.paper,
                markeredgewidth=1.3,
                zorder=3,
            )
            if point.name:
                axes.annotate(
                    point.name,
                    (x, point.score),
                    (6, 0),
                    textcoords="offset points",
                    va="center",
                    color=palette.ink,
                )
    _levels(axes, panel.levels, palette)
    axes.set_xlabel(panel.x_label)
    axes.grid(axis="y")


def _levels(axes: Axes, levels: Mapping[str, float], palette: Palette) -> None:
    """Horizontal lines with their names on the left; of two that are close, the lower has its name below the line."""
    low, high = axes.get_ylim()
    for level in levels.values():
        low, high = min(low, level - 0.04 * (high - low)), max(high, level + 0.04 * (high - low))
    axes.set_ylim(low, high)
    ordered = sorted(levels.items(), key=lambda item: item[1])
    for number, (name, level) in enumerate(ordered):
        above = [other for _, other in ordered[number + 1 :]]
        crowded = bool(above) and above[0] - level < 0.08 * (high - low)
        axes.axhline(level, color=palette.soft, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1)
        axes.annotate(
            name,
            (0.01, level),
            xycoords=("axes fraction", "data"),
            va="top" if crowded else "bottom",
            color=palette.soft,
            fontsize="small",
        )


def _beside(tracks: Sequence[Track]) -> list[list[float]]:
    """Where each point stands on the axis: at its cost, or beside it where several cost the same."""
    every = [(point.cost, t, p) for t, track in enumerate(tracks) for p, point in enumerate(track.points)]
    places = [[point.cost for point in track.points] for track in tracks]
    if not every:
        return places
    every.sort()
    alone = every[-1][0] < every[0][0] * (1 + _NEAR)
    apart = min(_ALONE, 1 / len(every)) if alone else _APART
    step = 10 ** (_middle([cost for cost, _, _ in every])[1] * apart)
    start = 0
    for end in range(1, len(every) + 1):
        if end < len(every) and every[end][0] < every[start][0] * (1 + _NEAR):
            continue
        same = sorted(every[start:end], key=lambda item: item[1:])  # in the order of the legend
        for turn, (cost, t, p) in enumerate(same):
            places[t][p] = cost * step ** (turn - (len(same) - 1) / 2)
        start = end
    return places


def _middle(costs: Sequence[float]) -> tuple[float, float]:
    """Middle and length of the costs' range, in powers of ten."""
    low, high = math.log10(min(costs)), math.log10(max(costs))
    return (low + high) / 2, max(high - low, _LEAST)


def _ticks(axes: Axes, costs: Sequence[float], tell: Callable[[float], str]) -> None:
    """The costs themselves where they are few, else round numbers."""
    distinct: list[float] = []
    for cost in sorted(costs):
        if not distinct or cost > 1.3 * distinct[-1]:
            distinct.append(cost)
    if len(distinct) > 4:
        first, last = math.floor(math.log10(distinct[0])), math.ceil(math.log10(distinct[-1]))
        distinct = [10.0**power for power in range(first, last + 1)]
    axes.xaxis.set_major_locator(FixedLocator(distinct))
    axes.xaxis.set_major_formatter(FixedFormatter([tell(cost) for cost in distinct]))
    axes.xaxis.set_minor_locator(NullLocator())
