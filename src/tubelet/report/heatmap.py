"""Tables of numbers as colours that fade evenly in grey and for the colour-blind, each with its scale."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tubelet.report.curves import PAGE, PRINT, Drawer, Palette, draw_svg, plain

_COLOURS = "cividis"
_WRITTEN = 9  # a side: of tables up to this size the numbers are written into the cells
_TICKS = 7  # labels that an axis has room for,
_LETTERS = 24  # and letters in all of them
_STEPS = 8  # columns of an influence picture


@dataclass(frozen=True)
class Heatmap:
    """One table as colours, its first row at the bottom.

    values: [rows][columns]; what is not finite is crossed out, never coloured. low, high: the ends of the scale.
    square: cells are as high as wide, unless the table is far from square itself.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    low: float
    high: float
    x_label: str = ""
    y_label: str = ""
    square: bool = True


def draw_heatmaps(maps: Sequence[Heatmap]) -> str:
    """The tables side by side, as HTML."""
    width = 3.4 if len(maps) > 2 else 4.2
    drawn = "".join(
        f'<div class="panel"><h3>{escape(one.title)}</h3>'
        + draw_svg(lambda axes, one=one: _draw(axes, one, PAGE), one.title, width, 0.8 * width)
        + "</div>"
        for one in maps
    )
    return f'<div class="panels">{drawn}</div>'


def heatmap_drawer(one: Heatmap) -> Drawer:
    """A table for `curves.draw_png`."""
    return one.title, lambda axes: _draw(axes, one, PRINT)


def influence_picture(
    frame: np.ndarray, influence: np.ndarray, place: tuple[int, int], layers: Sequence[int]
) -> bytes:
    """How much every token changes when one patch of the clip is removed: a row per layer, a column per time, a PNG.

    frame: uint8 [H, W, 3], a picture of the clip. influence: [layers, t, h, w], not negative; at most 8 times are
    drawn, evenly spread. place: row and column of the removed patch in the h x w grid, framed everywhere.
    The colours follow the square root, from 0 to the largest of all; what is not finite stays blank.
    Raises ValueError for other shapes or a place outside the grid.
    """
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise ValueError(f"a frame is uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}")
    if influence.ndim != 4 or len(influence) != len(layers) or not influence.size:
        raise ValueError(
            f"influence of {len(layers)} layers is [layers, t, h, w], got {list(influence.shape)}"
        )
    times, height, width = influence.shape[1:]
    if not (0 <= place[0] < height and 0 <= place[1] < width):
        raise ValueError(f"place {tuple(place)} lies outside the grid of {height} x {width} patches")
    chosen = np.linspace(0, times - 1, min(_STEPS, times)).round().astype(int)
    finite = influence[np.isfinite(influence)]
    norm = PowerNorm(0.5, 0.0, float(finite.max(initial=0.0)) or 1.0)
    ratio = frame.shape[0] / frame.shape[1]
    side = 0.85  # inches, the width of one small picture
    with rc_context(PRINT.style()):
        figure = Figure(
            figsize=(side * (len(chosen) + 1) + 1.7, ratio * side * len(layers) + 0.7), layout="constrained"
        )
        grid = figure.add_gridspec(len(layers), len(chosen) + 1)
        shown = [figure.add_subplot(grid[0, 0])]
        shown[0].imshow(frame, extent=(-0.5, width - 0.5, height - 0.5, -0.5), aspect="auto")
        shown[0].set_title("removed", fontsize=8)
        for row, layer in enumerate(layers):
            for column, time in enumerate(chosen, 1):
                axes = figure.add_subplot(grid[row, column])
                axes.imshow(
                    influence[row, time], cmap=_COLOURS, norm=norm, aspect="auto", interpolation="none"
                )
                if row == 0:
                    axes.set_title(f"time {time + 1}", fontsize=8)
                if column == 1:
                    axes.set_ylabel(f"layer {layer}", rotation=0, ha="right", va="center")
                shown.append(axes)
        for axes in shown:
            axes.set_box_aspect(ratio)
            axes.set_xticks([])
            axes.set_yticks([])
            corner = place[1] - 0.5, place[0] - 0.5
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=2.2))
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="black", linewidth=0.9))
        bar = figure.colorbar(
            ScalarMappable(norm, _COLOURS),
            ax=shown,
            label="relative change of the token",
            aspect=30,
            pad=0.02,
        )
        bar.outline.set_visible(False)  # type: ignore[operator]
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    return file.getvalue()


def _draw(axes: Axes, one: Heatmap, palette: Palette) -> None:
    values = np.asarray(one.values, float).reshape(len(one.rows), len(one.columns))
    colours, norm = colormaps[_COLOURS], Normalize(one.low, one.high)
    axes.imshow(
        np.ma.masked_invalid(values),
        cmap=colours,
        norm=norm,
        origin="lower",
        interpolation="none",
        aspect="equal" if one.square and 0.75 <= len(one.rows) / len(one.columns) <= 1.34 else "auto",
    )
    written = max(values.shape) <= _WRITTEN
    for (row, column), value in np.ndenumerate(values):
        if not math.isfinite(value):
            axes.text(column, row, "×", ha="center", va="center", color=palette.soft)
        elif written:
            luminance = float(np.dot(colours(norm(value))[:3], (0.2126, 0.7152, 0.0722)))
            ink = "black" if luminance > 0.45 else "white"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink, fontsize=5.5)
    for axis, names in ((axes.xaxis, one.columns), (axes.yaxis, one.rows)):
        longest = max(map(len, names)) if axis is axes.xaxis else 1
        room = max(2, min(_TICKS, _LETTERS // longest))
        places = range(0, len(names), -(-len(names) // room))
        axis.set_ticks(list(places), [plain(names[place]) for place in places])
    axes.set_xlabel(plain(one.x_label))
    axes.set_ylabel(plain(one.y_label))
    axes.spines[:].set_visible(False)
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, aspect=18, pad=0.03)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(length=0)
