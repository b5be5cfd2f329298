"""One measure against another: points, and the straight line through them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tubelet.report.curves import COLOURS, MARKS, PAGE, PRINT, Drawer, Palette, draw_svg, plain, split, swatch


@dataclass(frozen=True)
class Scatter:
    """One chart. points: name -> pairs of x and y. fit: slope and intercept of the line, drawn as far as they reach.

    level: y of a horizontal reference line.
    """

    title: str
    points: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str
    y_label: str
    fit: tuple[float, float] | None = None
    level: float | None = None


def draw_scatters(panels: Sequence[Scatter], names: Sequence[str] = ()) -> str:
    """The charts side by side with a legend, as HTML; names as in `curves.draw_panels`.

    Beyond the colours there are, signs are hollow; names for which these do not suffice either are drawn in several
    rows of charts, each with a legend of its own, the same lines and the same axes.
    """
    there = [name for panel in panels for name in panel.points]
    names = names or list(dict.fromkeys(there))
    width = 3.4 if len(panels) > 2 else 4.2
    html = ""
    for part in split(names, 2 * len(COLOURS)):
        style = {name: place for place, name in enumerate(part)}
        shown = [name for name in part if name in there]
        legend = "".join(f"<li>{swatch(style[name], dots=True)}{escape(name)}</li>" for name in shown)
        drawn = "".join(
            f'<div class="panel"><h3>{escape(panel.title)}</h3>'
            + draw_svg(
                lambda axes, panel=panel, style=style: _draw(axes, panel, style, PAGE),
                panel.title,
                width,
                0.2 + 0.6 * width,
            )
            + "</div>"
            for panel in panels
            if any(name in panel.points for name in part)
        )
        if drawn:
            html += (f'<ul class="legend">{legend}</ul>' if len(names) > 1 else "") + (
                f'<div class="panels">{drawn}</div>'
            )
    return html


def scatter_drawer(panel: Scatter, style: Mapping[str, int]) -> Drawer:
    """A chart for `curves.draw_png`; style: the place of each name among the colours."""
    return panel.title, lambda axes: _draw(axes, panel, style, PRINT)


def dot_signs(names: Sequence[str], style: Mapping[str, int]) -> list[Line2D]:
    """A picture's legend for points; nothing for one name alone."""
    if len(style) < 2:
        return []
    return [Line2D([], [], linestyle="", label=plain(name), **_sign(style[name], PRINT)) for name in names]


def _draw(axes: Axes, panel: Scatter, style: Mapping[str, int], palette: Palette) -> None:
    for name, pairs in panel.points.items():
        if name in style:
            axes.plot(*zip(*pairs, strict=True), linestyle="", **_sign(style[name], palette))
    # the axes reach as far as all points do, also where this chart shows some of them
    axes.update_datalim([pair for pairs in panel.points.values() for pair in pairs])
    if panel.level is not None:
        axes.axhline(panel.level, color=palette.soft, linewidth=0.9, linestyle=(0, (2, 2)))
    if panel.fit is not None:
        slope, intercept = panel.fit
        every = [x for pairs in panel.points.values() for x, _ in pairs]
        ends = [min(every), max(every)]
        axes.plot(ends, [intercept + slope * x for x in ends], color=palette.ink, linewidth=1.2)
    axes.set_xlabel(plain(panel.x_label))
    axes.set_ylabel(plain(panel.y_label))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.ticklabel_format(useOffset=False)
    axes.grid()


def _sign(place: int, palette: Palette) -> dict[str, Any]:
    """Hollow beyond the colours there are."""
    colour = palette.lines[place % len(palette.lines)]
    filled = colour if place < len(palette.lines) else palette.paper
    return {
        "marker": MARKS[place % len(MARKS)][0],
        "markersize": 4.5,
        "color": colour,
        "markerfacecolor": filled,
    }
