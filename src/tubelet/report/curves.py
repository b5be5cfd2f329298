"""Small line and dot charts: inline SVG that follows the page's light or dark colours, and PNGs for print."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import pairwise
from textwrap import wrap
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

# Okabe and Ito's colours, told apart by people who do not see red or green; dashes tell them apart in grey.
# The values themselves are CSS variables: matplotlib draws with the stand-ins, which are replaced in its SVG.
COLOURS = [f"#0a0b{place:02x}" for place in range(1, 8)]
DASHES = ["-", (0, (5, 1.6)), (0, (1.4, 1.4)), (0, (6, 1.6, 1.4, 1.6)), "-", (0, (5, 1.6)), (0, (1.4, 1.4))]
# a marker, and the same as a letter, filled and hollow
MARKS = list(zip("osD^v<>", "●■◆▲▼◀▶", "○□◇△▽◁▷", strict=True))
INK, SOFT, LINE, PAPER = "#0a0c01", "#0a0c02", "#0a0c03", "#0a0c04"
_REPLACE = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)", PAPER: "var(--paper)"} | {
    colour: f"var(--c{place})" for place, colour in enumerate(COLOURS, 1)
}


class Palette(NamedTuple):
    """Colours of a chart: one per line, then text, labels, grid and background."""

    lines: Sequence[str]
    ink: str
    soft: str
    line: str
    paper: str

    def style(self) -> dict[Any, Any]:
        """Matplotlib's settings for a chart in these colours."""
        return {
            "svg.fonttype": "none",
            "svg.hashsalt": "tubelet",
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],
            "font.size": 8,
            "axes.edgecolor": self.line,
            "axes.labelcolor": self.soft,
            "xtick.color": self.soft,
            "ytick.color": self.soft,
            "text.color": self.ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": self.line,
            "grid.linewidth": 0.6,
        }

    def look(self, place: int) -> dict[str, Any]:
        """Colour and dash of the line at ``place``; beyond the colours there are, one comes again, dashed anew."""
        dash = (place + place // len(self.lines)) % len(DASHES)
        return {"color": self.lines[place % len(self.lines)], "linestyle": DASHES[dash]}


PAGE = Palette(COLOURS, INK, SOFT, LINE, PAPER)
# style.css's colours on white paper
PRINT = Palette(
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b"],
    "#1c1d1f",
    "#62666b",
    "#d0d0ca",
    "#ffffff",
)
_FLAT = 0.05  # an axis spans at least this share of its values: what hardly moves shall look so
_POINTS = 300  # more than a panel has pixels for

Drawer = tuple[str, Callable[[Axes], None]]  # a chart's title, and what puts it on axes


@dataclass(frozen=True)
class Line:
    """A named series. x, y: equally long; values that are not finite are left out, as a gap.

    sd: half the height of a band around it; or low and high: the band's ends, not finite where there is none.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    sd: Sequence[float] | None = None
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Panel:
    """One small chart: lines over a common x.

    level: a horizontal reference with its name. marks: vertical ones. ticks: places on the x axis and what stands
    there, where x is no number that means anything or has few values; every point is then marked, and none is
    joined to another over a gap.
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


def draw_panels(panels: Sequence[Panel | Dots], names: Sequence[str] = ()) -> str:
    """The panels side by side, with one legend for all the names in them.

    names: in the order of their colours, so that a name has the same colour in several figures; more may be given
    than the panels have, and none: they are taken in the order in which they appear.
    More names than there are colours are drawn in several rows of panels, each with a legend of its own.
    """
    there = list(dict.fromkeys(name for panel in panels for name in _names(panel)))
    names = names or there
    if len(names) > len(COLOURS):
        parts = [([_only(panel, part) for panel in panels], part) for part in split(names)]
        whole = [([panel for panel in some if panel is not None], part) for some, part in parts]
        return "".join(draw_panels(some, part) for some, part in whole if some)
    style = {name: place for place, name in enumerate(names)}
    dots = any(isinstance(panel, Dots) for panel in panels)
    shown = [name for name in names if name in there]
    legend = "".join(f"<li>{swatch(style[name], dots)}{escape(name)}</li>" for name in shown)
    width = 3.4 if len(panels) > 2 else 4.2  # inches, as drawn three or two in a row
    drawn = "".join(
        f'<div class="panel"><h3>{escape(panel.title)}</h3>{_draw(panel, style, width)}</div>'
        for panel in panels
    )
    above = f'<ul class="legend">{legend}</ul>' if len(names) > 1 else ""
    return f'{above}<div class="panels">{drawn}</div>'


def panels_picture(panels: Sequence[Panel], names: Sequence[str] = ()) -> bytes:
    """The panels as one PNG on white, for a document; names as in `draw_panels`."""
    there = list(dict.fromkeys(name for panel in panels for name in _names(panel)))
    style = {name: place for place, name in enumerate(names or there)}
    shown = [name for name in style if name in there]
    return draw_png([drawer(panel, style) for panel in panels], line_signs(shown, style))


def drawer(panel: Panel, style: Mapping[str, int]) -> Drawer:
    """A panel for `draw_png`; style: the place of each name among the colours."""
    return panel.title, lambda axes: _lines(axes, panel, style, PRINT)


def line_signs(names: Sequence[str], style: Mapping[str, int]) -> list[Line2D]:
    """A picture's legend for lines; nothing for one name alone."""
    if len(style) < 2:
        return []
    return [
        Line2D([], [], label=plain(n), marker=MARKS[style[n] % len(MARKS)][0], ms=3, **PRINT.look(style[n]))
        for n in names
    ]


def draw_png(drawn: Sequence[Drawer], signs: Sequence[Line2D] = ()) -> bytes:
    """Titled charts in rows of three as a PNG on white, with a legend of ``signs``; told apart in grey too.

    The picture grows by its legend, so that this takes no room from the charts.
    """
    columns = min(3, len(drawn))
    rows = -(-len(drawn) // columns)
    with rc_context(PRINT.style()):
        figure = Figure(
            figsize=(max(2.8 * columns, 4.0), 0.3 + 2.15 * rows), facecolor=PRINT.paper, layout="constrained"
        )
        for place, (title, draw) in enumerate(drawn, 1):
            axes = figure.add_subplot(rows, columns, place)
            draw(axes)
            axes.set_title(plain("\n".join(wrap(title, 30))), loc="left", fontsize=8.5)
            axes.tick_params(length=0, pad=4)
        if signs:
            _add_legend(figure, signs)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
    return file.getvalue()


def _add_legend(figure: Figure, signs: Sequence[Line2D]) -> None:
    """A legend above the charts, in as many columns as the picture is wide enough for."""
    for columns in range(len(signs), 0, -1):
        # its margin is within it, so that its size is all the room it takes
        legend = figure.legend(
            handles=list(signs),
            loc="outside upper left",
            ncols=columns,
            frameon=False,
            borderpad=0.9,
            borderaxespad=0,
        )
        size = legend.get_window_extent()
        if columns == 1 or size.width <= figure.bbox.width:
            figure.set_figheight(figure.get_figheight() + size.height / figure.dpi)
            return
        legend.remove()


def plain(text: str) -> str:
    """The text such that matplotlib reads no formula into it, and leaves it in a legend."""
    return ("\u200b" if text.startswith("_") else "") + text.replace("$", r"\$")


def split(names: Sequence[str], most: int = len(COLOURS)) -> list[list[str]]:
    """The names in as few parts as have at most ``most`` (as there are colours), about equally long."""
    parts = -(-len(names) // most)
    edges = np.linspace(0, len(names), parts + 1).round().astype(int)
    return [list(names[a:b]) for a, b in pairwise(edges)]


def _names(panel: Panel | Dots) -> list[str]:
    return list(panel.series) if isinstance(panel, Dots) else [line.name for line in panel.lines]


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
    sd, low, high = (
        None if band is None else np.asarray(band, float)[whole].tolist()
        for band in (line.sd, line.low, line.high)
    )
    if len(x) <= points or sd is not None or low is not None:
        return Line(line.name, x.tolist(), y.tolist(), sd, low, high)
    edges = np.linspace(0, len(x), points + 1).astype(int)
    bins = list(pairwise(edges))
    return Line(line.name, [x[a:b].mean() for a, b in bins], [y[a:b].mean() for a, b in bins])


def _draw(panel: Panel | Dots, style: dict[str, int], width: float) -> str:
    if isinstance(panel, Dots):
        height = 0.75 + 0.32 * len(_row_names(panel))
        return draw_svg(lambda axes: _dots(axes, panel, style), panel.title, width, height)
    return draw_svg(lambda axes: _lines(axes, panel, style, PAGE), panel.title, width, 0.2 + 0.5 * width)


def draw_svg(draw: Callable[[Axes], None], title: str, width: float, height: float) -> str:
    """What ``draw`` puts on axes, as inline SVG in the page's colours; sizes in inches."""
    with rc_context(PAGE.style()):
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


def _lines(axes: Axes, panel: Panel, style: Mapping[str, int], palette: Palette) -> None:
    for raw in panel.lines:
        line = raw if panel.ticks else thin(raw)
        place = style[line.name]
        look = palette.look(place)
        mark = MARKS[place % len(MARKS)][0]
        single = {"marker": mark, "markersize": 3} if len(line.x) == 1 or panel.ticks else {}
        axes.plot(line.x, line.y, linewidth=1.5, **look, **single)
        if line.sd is not None:
            _band(axes, line.x, np.subtract(line.y, line.sd), np.add(line.y, line.sd), look["color"])
        if line.low is not None and line.high is not None:
            _band(axes, line.x, np.asarray(line.low, float), np.asarray(line.high, float), look["color"])
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
        axes.axhline(value, color=palette.soft, linewidth=0.9, linestyle=(0, (2, 2)))
        coords = ("axes fraction", "data")
        axes.annotate(name, (1, value), xycoords=coords, ha="right", va="bottom", color=palette.soft)
    for name, x in panel.marks:
        axes.axvline(x, color=palette.soft, linewidth=0.9)
        coords = ("data", "axes fraction")
        axes.annotate(name, (x, 1), xycoords=coords, ha="left", va="top", color=palette.soft)
    axes.set_xlabel(panel.x_label)
    if panel.ticks:
        axes.set_xticks([x for x, _ in panel.ticks], [name for _, name in panel.ticks])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=panel.x_label == "step"))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(axis="y")


def _band(axes: Axes, x: Sequence[float], low: np.ndarray, high: np.ndarray, colour: str) -> None:
    """A shaded band, and a bar where a point stands between gaps and has no neighbour to shade towards."""
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    there = np.pad(np.isfinite(low) & np.isfinite(high), 1)
    alone = there[1:-1] & ~there[:-2] & ~there[2:]
    axes.vlines(np.asarray(x, float)[alone], low[alone], high[alone], color=colour, alpha=0.5, linewidth=1.3)


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
    """A legend's sign: a piece of the line, or the dots' shape, which beyond the colours there are is hollow."""
    again, place = divmod(place, len(COLOURS))
    colour = f"var(--c{place + 1})"
    if dots:
        return f'<b class="mark" style="color: {colour}">{MARKS[place][1 + again]}</b>'
    dashes = DASHES[place]
    lengths = [] if isinstance(dashes, str) else [f"{2 * length:g}" for length in dashes[1]]
    array = f' stroke-dasharray="{" ".join(lengths)}"' if lengths else ""
    line = f'<line x1="0" y1="4" x2="26" y2="4" stroke="{colour}" stroke-width="2.2"{array}/>'
    return f'<svg width="26" height="8">{line}</svg>'
