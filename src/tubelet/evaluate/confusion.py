"""Which class was taken for which, as numbers and as a picture."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

NAMED = 60  # classes whose names can be read along an axis
NUMBERED = 25  # classes whose shares can be read in the cells
_SHORT = 28  # letters of a name


def confusion(label: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes]: clips of the class in the row that were taken for the class in the column."""
    return np.bincount(label * classes + predicted, minlength=classes**2).reshape(classes, classes)


def draw_confusion(counts: np.ndarray, classes: Sequence[str], title: str) -> bytes:
    """A PNG on white: each row in shares of its clips, in colours that fade evenly in grey and for the colour-blind.

    counts: see `confusion`. A class without clips has a hatched row. Numbers (per cent) stand in the cells of up to
    `NUMBERED` classes, names along the axes of up to `NAMED`; long names are cut.
    """
    seen = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, seen, out=np.zeros(counts.shape), where=seen > 0)
    n = len(classes)
    cell = 0.42 if n <= NUMBERED else 0.22 if n <= NAMED else max(0.02, 9 / n)  # inches
    size = 7.5 if n <= NUMBERED else 6.5
    side = max(1.6, n * cell)
    with rc_context({"font.size": size, "font.family": "sans-serif", "hatch.linewidth": 0.4}):
        figure = Figure(figsize=(side + 2.6, side + 2.2), layout="constrained")
        axes = figure.add_subplot()
        picture = axes.imshow(shares, colormaps["Blues"], vmin=0, vmax=1, aspect="equal")
        for border in range(1, n if n <= NAMED else 0):
            axes.axhline(border - 0.5, color="#dddddd", linewidth=0.4)
            axes.axvline(border - 0.5, color="#dddddd", linewidth=0.4)
        for row in np.flatnonzero(seen[:, 0] == 0):
            axes.axhspan(row - 0.5, row + 0.5, facecolor="#f2f2f2", edgecolor="#c4c4c4", hatch="///")
        if n <= NUMBERED:
            _write_numbers(axes, shares, seen[:, 0] > 0)
        if n <= NAMED:
            names = [_shortened(name, _SHORT) for name in classes]
            axes.set_xticks(range(n), names, rotation=90)
            axes.set_yticks(
                range(n), [f"{name} ({count})" for name, count in zip(names, seen[:, 0], strict=True)]
            )
        axes.set_xlabel("taken for")
        axes.set_ylabel("is (clips)" if n <= NAMED else f"is ({n} classes, sorted by name)")
        axes.tick_params(length=0)
        axes.spines[:].set_color("#c4c4c4")
        letters = round(11 * (side + 2.6))  # that fit the width
        lines = "\n".join(_shortened(line, letters) for line in title.splitlines())
        figure.suptitle(lines, x=0.02, ha="left", fontsize=size + 1)
        scale = figure.colorbar(
            picture, ax=axes, shrink=min(1.0, 2.5 / side), label="share of the row's clips"
        )
        scale.outline.set_visible(False)  # type: ignore[operator]
        for text in figure.findobj(Text):
            text.set_parse_math(False)  # type: ignore[attr-defined]  # a class may be called $1$
        file = io.BytesIO()
        with warnings.catch_warnings():
            # Names in other scripts than the font's come out as boxes; the numbers are still right.
            warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
            figure.savefig(file, format="png", dpi=160, metadata={"Software": None})
    return file.getvalue()


def worst_pairs(counts: np.ndarray, most: int = 10) -> list[tuple[int, int, int, float]]:
    """(class, taken for, clips, share of the class's clips) of what is confused most often, by clips, then share."""
    seen = counts.sum(axis=1)
    pairs = [
        (int(row), int(column), int(counts[row, column]), float(counts[row, column] / seen[row]))
        for row, column in zip(*np.nonzero(counts), strict=True)
        if row != column
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], -pair[3], pair[0], pair[1]))[:most]


def _shortened(name: str, letters: int) -> str:
    """Cut in the middle: long descriptions and paths differ at their ends as often as at their starts."""
    half = letters // 2
    return name if len(name) <= letters else f"{name[:half]}…{name[-half:]}"


def _write_numbers(axes: Axes, shares: np.ndarray, there: np.ndarray) -> None:
    for row, column in zip(*np.nonzero(shares), strict=True):
        if there[row]:
            share = shares[row, column]
            ink = "white" if share > 0.55 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=6.5)
