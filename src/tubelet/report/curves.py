"""Small line and dot charts as inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

# Okabe and Ito's colours, told apart by people who do not see red or green; dashes tell them apart in grey.
# The values themselves are CSS variables: matplotlib draws with the stand-ins, which are replaced in its SVG.
COLOURS = [f"#0a0b{place:02x}" for place in range(1, 8)]
DASHES = ["-", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (6, 1.6, 1.4, 1.6)), "-", (0, (5, 1.6)), (0, (1.4, 1.4))]
MARKS = [("o", "●"), ("s", "■"), ("D", "◆"), ("^", "▲"), ("v", "▼"), ("<", "◀"), (">", "▶")]
INK, SOFT, LINE, PAPER = "#0a0c01", "#0a0c02", "#0a0c03", "#0a0c04"
_REPLACE = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)", PAPER: "var(--paper)"} | {
    colour: f"var(--c{place})" for place, colour in enumerate(COLOURS, 1)
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tubelet",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
}
_FLAT = 0.05  # an axis spans at least this share of its values: what hardly moves shall look so
_POINTS = 300  # more than a panel has pixels for


@dataclass(frozen=True)
class Line:
    """A named series. x, y: equally long; values that are not finite are left out, as a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    sd: Sequence[float] | None = None


@dataclass(frozen=True)
class Panel:
    """One small chart: lines over a common x.

    level: a horizontal reference with its name. marks: vertical ones. ticks: places on the x axis and what stands
    there, where x is no number that means anything; every point is then marked.
    """

    title: str
    lines: Sequence[Line]
    x_label: str = "step"
    log: bool = False
    level: tuple[str, float] | None = None
    marks: Sequence[tuple[str, float]] = field(default=())
    ticks: Sequence[tuple[float, str]] = field(default=())


@dataclass(frozen=True)
class Dots:
    """One small chart of scores: a row per name, a dot at each mean, a bar of one sd to both sides.

    series: name of the series -> (name of the row -> (mean, sd)). chance: a level to compare with.
    """

    title: str
    series: dict[str, dict[str, tuple[float, float]]]
    chance: float | None = None


def draw_panels(panels: Sequence[Panel | Dots]) -> str:
    """The panels side by side, with one legend for all the names in them.

    More names than there are colours are drawn in several rows of panels, each with a legend of its own.
    """
    names: list[str] = []
    for panel in panels:
        for name in panel.series if isinstance(panel, Dots) else [line.name for line in panel.lines]:
            if name not in names:
                names.append(name)
    if len(names) > len(COLOURS):
        parts = [[_only(panel, part) for panel in panels] for part in split(names)]
        return "".join(draw_panels([panel for panel in part if panel is not None]) for part in parts)
    style = {name: place for place, name in enumerate(names)}
    dots = any(isinstance(panel, Dots) for panel in panels)
    legend = "".join(f"<li>{swatch(style[name], dots)}{escape(name)}</li>" for name in names)
    width = 3.4 if len(panels) > 2 else 5.0  # inches, as drawn three or two in a row
    drawn = "".join(
        f'<div class="panel"><h3>{escape(panel.title)}</h3>{_draw(panel, style, width)}</div>'
        for panel in panels
    )
    above = f'<ul class="legend">{legend}</ul>' if len(names) > 1 else ""
    return f'{above}<div class="panels">{drawn}</div>'


def split(names: Sequence[str]) -> list[list[str]]:
    """The names in as few parts as there are colours for, about equally long."""
    parts = -(-len(names) // len(COLOURS))
    edges = np.linspace(0, len(names), parts + 1).round().astype(int)
    return [list(names[a:b]) for a, b in pairwise(edges)]


def _only(panel: Panel | Dots, names: Sequence[str]) -> Panel | Dots | None:
    """The panel with those of ``names`` that it has, or None if it has none."""
    if isinstance(panel, Dots):
        series = {name: rows for name, rows in panel.series.items() if name in names}
        return replace(panel, series=series) if series else None
    lines = [line for line in panel.lines if line.name in names]
    return replace(panel, lines=lines) if lines else None


def thin(line: Line, points: int = _POINTS) -> Line:
    """The line with at most ``points`` points, each the mean of equally many neighbours."""
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    whole = np.isfinite(y)
    x, y = x[whole], y[whole]
    if len(x) <= points or line.sd is not None:
        return Line(line.name, x.tolist(), y.tolist(), line.sd)
    edges = np.linspace(0, len(x), points + 1).astype(int)
    bins = list(pairwise(edges))
    return Line(line.name, [x[a:b].mean() for a, b in bins], [y[a:b].mean() for a, b in bins])


def _draw(panel: Panel | Dots, style: dict[str, int], width: float) -> str:
    if isinstance(panel, Dots):
        height = 0.75 + 0.32 * len(_row_names(panel))
        return draw_svg(lambda axes: _dots(axes, panel, style), panel.title, width, height)
    return draw_svg(lambda axes: _lines(axes, panel, style), panel.title, width, 0.2 + 0.5 * width)


def draw_svg(draw: Callable[[Axes], None], title: str, width: float, height: float) -> str:
    """What ``draw`` puts on axes, as inline SVG in the page's colours; sizes in inches."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.tick_params(length=0, pad=4)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    for stand_in, variable in _REPLACE.items():
        svg = svg.replace(stand_in, variable)
    # Matplotlib names a font of its own; the page's is better and always there.
    svg = svg.replace("'DejaVu Sans'", "inherit")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)


def _lines(axes: Axes, panel: Panel, style: dict[str, int]) -> None:
    for raw in panel.lines:
        line = thin(raw)
        place = style[line.name]
        single = {"marker": "o", "markersize": 3} if len(line.x) == 1 or panel.ticks else {}
        axes.plot(line.x, line.y, color=COLOURS[place], linestyle=DASHES[place], linewidth=1.5, **single)
        if line.sd is not None:
            low, high = np.subtract(line.y, line.sd), np.add(line.y, line.sd)
            axes.fill_between(line.x, low, high, color=COLOURS[place], alpha=0.15, linewidth=0)
    if panel.log:
        axes.set_yscale("log")
    else:
        low, high = axes.get_ylim()
        room = _FLAT * max(abs(low), abs(high)) - (high - low)
        if room > 0:
            axes.set_ylim(low - room / 2, high + room / 2)
        axes.ticklabel_format(axis="y", useOffset=False)
    if panel.level is not None:
        name, value = panel.level
        axes.axhline(value, color=SOFT, linewidth=0.9, linestyle=(0, (2, 2)))
        axes.annotate(
            name, (1, value), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=SOFT
        )
    for name, x in panel.marks:
        axes.axvline(x, color=SOFT, linewidth=0.9)
        axes.annotate(name, (x, 1), xycoords=("data", "axes fraction"), ha="left", va="top", color=SOFT)
    axes.set_xlabel(panel.x_label)
    if panel.ticks:
        axes.set_xticks([x for x, _ in panel.ticks], [name for _, name in panel.ticks])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=panel.x_label == "step"))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y")


def _row_names(panel: Dots) -> list[str]:
    return list(dict.fromkeys(row for scores in panel.series.values() for row in scores))


def _dots(axes: Axes, panel: Dots, style: dict[str, int]) -> None:
    rows = _row_names(panel)
    for turn, (name, scores) in enumerate(panel.series.items()):
        place = style[name]
        shift = 0.16 * (turn - (len(panel.series) - 1) / 2)
        for row, (mean, sd) in scores.items():
            axes.errorbar(
                mean,
                len(rows) - 1 - rows.index(row) - shift,
                xerr=sd,
                fmt=MARKS[place][0],
                color=COLOURS[place],
                markersize=4.5,
                linewidth=1.3,
            )
    if panel.chance is not None:
        axes.axvline(panel.chance, color=SOFT, linewidth=0.9, linestyle=(0, (2, 2)))
        axes.annotate(
            "chance",
            (panel.chance, 1),
            xycoords=("data", "axes fraction"),
            ha="left",
            va="bottom",
            color=SOFT,
            xytext=(2, 1),
            textcoords="offset points",
        )
    axes.set_yticks(range(len(rows)), rows[::-1])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.grid(axis="x")
    axes.tick_params(axis="y", labelcolor=INK)


def swatch(place: int, dots: bool = False) -> str:
    """A legend's sign: a piece of the line, or the dots' shape."""
    colour = f"var(--c{place + 1})"
    if dots:
        return f'<b class="mark" style="color: {colour}">{MARKS[place][1]}</b>'
    dashes = DASHES[place]
    lengths = [] if isinstance(dashes, str) else [f"{2 * length:g}" for length in dashes[1]]
    array = f' stroke-dasharray="{" ".join(lengths)}"' if lengths else ""
    line = f'<line x1="0" y1="4" x2="26" y2="4" stroke="{colour}" stroke-width="2.2"{array}/>'
    return f'<svg width="26" height="8">{line}</svg>'
