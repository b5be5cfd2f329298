"""LayerLock's convergence map as numbers, as a picture and as a page, made from plain data."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import AsinhNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter
from rich.console import Console
from rich.table import Table

from tubelet.analysis.convergence import Continuation, ConvergenceMap
from tubelet.files import replace_file, write_json, write_text
from tubelet.report.curves import Line, Panel
from tubelet.report.page import Key, Page
from tubelet.report.table import Cell
from tubelet.report.units import flops
from tubelet.train.report import duration

_LINES = 7  # as many as one chart can tell apart
_MEANING = {
    "step": "from this step on the patch embedding and blocks 1 to `layers` were frozen (the run's state after so "
    "many steps)",
    "layers": "how many blocks were frozen; 0: none, a control that equals the run",
    "final_loss": "mean of train/loss over the logged steps from `window.first_step` on",
    "base_loss": "the same mean of the run itself, over the same steps",
    "difference": "final_loss minus base_loss: the mean of the steps' differences",
    "standard_error": "of that mean: standard deviation of the steps' differences over the root of their number",
    "relative": "difference as a share of base_loss",
    "converged": "relative is at most `tolerance` (ours)",
    "clear": "difference is more than two standard errors from the tolerance",
    "flops": "charged for the steps from `step` on, by formula",
    "seconds": "wall clock of the steps from `step` on",
    "reached": "step -> the run's own mean loss over as many logged steps before it as the window has, and the "
    "standard error of its difference from base_loss (other steps, other clips: not paired)",
    "settled": "layers -> the first step from which on it is converged at every step of the grid, or null",
}


def write_map(found: ConvergenceMap, out: Path) -> None:
    """convergence.json, convergence.csv, map.png and report.html, each whole or not at all."""
    rows = [
        {
            **{name: value for name, value in asdict(cell).items() if name not in ("flops", "seconds")},
            "base_loss": found.base_loss,
            "relative": found.relative(cell),
            "converged": found.converged(cell),
            "clear": found.clear(cell),
            "flops": cell.flops,
            "seconds": cell.seconds,
        }
        for cell in found.cells
    ]
    schedule = found.schedule()
    about = {
        "what": found.how(),
        "run": found.run,
        "recipe": found.recipe,
        "model": found.model,
        "depth": found.depth,
        "steps": found.steps,
        "train_flops": found.flops,
        "window": {"first_step": found.first, "logged_steps": found.logged},
        "tolerance": found.tolerance,
        "base_loss": found.base_loss,
        "reached": {
            step: {"loss": loss, "standard_error": error} for step, (loss, error) in found.reached.items()
        },
        "settled": found.settled(),
        "schedule": None if schedule is None else asdict(schedule),
        "cautions": [*found.cautions, *bluntness(found)],
        "meaning": _MEANING,
        "cells": rows,
    }
    write_json(out / "convergence.json", about)
    table = io.StringIO()
    writer = csv.DictWriter(table, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "convergence.csv", table.getvalue())
    picture = map_picture(found)
    with replace_file(out / "map.png") as draft:
        draft.write_bytes(picture)
    convergence_report(found, picture, out / "report.html")


def tell(found: ConvergenceMap, console: Console) -> None:
    """Prints the map, and what it suggests."""
    title = (
        f"final loss above the run's {found.base_loss:.4g}; * converged (within {found.percent(found.tolerance, '')}), "
        "? within two standard errors of that"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("frozen")
    for step in found.columns:
        table.add_column(f"from {step}", justify="right")
    cells = {(cell.step, cell.layers): cell for cell in found.cells}
    for layers in reversed(found.rows):
        row = [blocks(layers)]
        for step in found.columns:
            cell = cells.get((step, layers))
            marks = cell and ("*" if found.converged(cell) else "") + ("" if found.clear(cell) else "?")
            row.append(f"{found.percent(found.relative(cell))} {marks:2}" if cell else "")
        table.add_row(*row)
    table.add_section()
    table.add_row("the run there", *(f"{found.percent(found.to_gain(step))}   " for step in found.columns))
    console.print(table)
    for caution in (*found.cautions, *bluntness(found)):
        console.print(caution, highlight=False, soft_wrap=True)
    sentence, options = advice(found)
    console.print(sentence, highlight=False, soft_wrap=True)
    if options is not None:
        console.print(f"  tubelet pretrain layerlock {options} ...", highlight=False, soft_wrap=True)


def map_picture(found: ConvergenceMap) -> bytes:
    """The map as a PNG on white: colours that fade evenly in grey and for the colour-blind, numbers in the cells."""
    columns, rows = found.columns, found.rows
    worst = max([found.relative(cell) for cell in found.cells] + [2 * found.tolerance])
    least = min(0.0, *(found.relative(cell) for cell in found.cells))
    colours = colormaps["cividis_r"]
    # in equal steps up to the tolerance, in equal ratios beyond: what is near the limit stays apart
    norm = (
        AsinhNorm(linear_width=found.tolerance, vmin=least, vmax=worst)
        if found.tolerance
        else Normalize(least, worst or 1.0)
    )
    with rc_context({"font.size": 9, "font.family": "sans-serif", "hatch.linewidth": 0.4}):
        figure = Figure(figsize=(2.5 + 0.92 * len(columns), 2.0 + 0.56 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(-0.5, len(rows) - 0.5)
        axes.set_facecolor("#f2f2f2")
        for cell in found.cells:
            place = columns.index(cell.step), rows.index(cell.layers)
            _draw_cell(axes, place, found, cell, colours(norm(found.relative(cell))))
        for layers in rows:
            for step in columns:
                if not any((cell.step, cell.layers) == (step, layers) for cell in found.cells):
                    corner = columns.index(step) - 0.5, rows.index(layers) - 0.5
                    axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="///", edgecolor="#c4c4c4"))
        axes.set_xticks(
            range(len(columns)),
            [
                f"{step:,}\n{found.percent(found.to_gain(step))}\n"
                f"± {found.percent(found.reached[step][1] / abs(found.base_loss), '')}"
                for step in columns
            ],
        )
        axes.set_yticks(range(len(rows)), [blocks(layers) for layers in rows])
        axes.set_xlabel("frozen from step on; below: how much higher the run's own loss was at that step")
        axes.set_ylabel("frozen blocks (and the patch embedding)")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        scale = figure.colorbar(
            ScalarMappable(norm, colours), ax=axes, label=f"final loss above the run's {found.base_loss:.4g}"
        )
        ticks = _ticks(least, worst, found.tolerance)
        scale.ax.yaxis.set_major_locator(FixedLocator(ticks))
        scale.ax.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{100 * value:{'+' if value else ''}.3g} %".replace("-", "−"))
        )
        scale.ax.yaxis.set_minor_locator(FixedLocator([]))
        scale.ax.axhline(found.tolerance, color="black", linewidth=1.6)
        scale.outline.set_visible(False)  # type: ignore[operator]
        axes.set_title(
            f"{found.recipe}, {found.model}, {found.steps:,} steps\n"
            f"framed: converged, within {found.percent(found.tolerance, '')} (ours); "
            "?: within two standard errors of that",
            fontsize=8.5,
            loc="left",
        )
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=200, metadata={"Software": None})
    return file.getvalue()


def convergence_report(found: ConvergenceMap, picture: bytes, file: Path | str) -> Path:
    """Writes the map's page to ``file``, whole or not at all; raises UserError if the disk is full."""
    page = Page(
        f"Which blocks settle when: {found.run}",
        f"{found.recipe}, {found.model}, {found.steps:,} steps: {len(found.cells)} continuations of the run, each with "
        "its first blocks frozen from some step on.",
    )
    spent, took = sum(cell.flops for cell in found.cells), sum(cell.seconds for cell in found.cells)
    page.keys(
        [
            Key("the run's final loss", f"{found.base_loss:.4g}", f"mean from step {found.first:,} on"),
            Key("converged", f"{sum(map(found.converged, found.cells))} of {len(found.cells)}", "cells"),
            Key(
                "tolerance",
                found.percent(found.tolerance, ""),
                "of the final loss; ours, the paper names none",
            ),
            Key("the map's cost", f"{spent / max(found.flops, 1):.2f} runs", flops(spent)),
            Key("time", duration(took), f"the run itself: {duration(found.seconds)}"),
        ]
    )
    page.heading("The map")
    page.picture(picture, f"{found.how()}.", "Protocol: LayerLock (arXiv 2509.10156), Figure 1.")
    for caution in (*found.cautions, *bluntness(found)):
        page.verdict(caution, None)
    _curves(page, found)
    page.heading("When each depth settles")
    _settling(page, found)
    page.heading("All numbers")
    page.table(
        ["frozen", "from step", "final loss", "difference", "± standard error", "relative", "converged"],
        [_row(found, cell) for cell in found.cells],
        "Every continuation.",
        "Difference: final loss minus the run's, paired step by step; its standard error takes the steps as "
        "independent, which makes it a little too small. A question mark: within two standard errors of the limit. "
        "`convergence.json` and `convergence.csv` have the same.",
    )
    return page.write(file)


def advice(found: ConvergenceMap) -> tuple[str, str | None]:
    """What the map suggests, in a sentence, and as options of `tubelet pretrain layerlock` if it suggests anything."""
    if len(found.blunt()) == len(found.columns):
        return "No step that was tried tells anything, so there is no schedule to suggest.", None
    schedule = found.schedule()
    if schedule is None:
        return (
            "No depth is converged at the last step that was tried, so there is no schedule to suggest: "
            "try later steps, or fewer blocks.",
            None,
        )
    settled = {step for layers, step in found.settled().items() if step is not None and layers}
    sentence = "The fastest schedule of one block at a time that freezes none before it had settled here."
    if settled == {found.columns[0]}:
        sentence += " But all that settled had at the first step tried; earlier checkpoints would tell when."
    elif schedule.interval == 1:
        sentence += (
            " All of its blocks had settled by its first lock, so the map does not say how fast to go on."
        )
    if schedule.interval == 1:
        sentence += " In the paper, freezing many blocks at once hurts: choose a longer interval."
    return sentence, (
        f"--steps {found.steps} --pixel-steps {schedule.pixel_steps} --interval {schedule.interval} "
        f"--deepest {schedule.deepest}"
    )


def bluntness(found: ConvergenceMap) -> list[str]:
    """A sentence on the steps at which the criterion cannot fail, if there are any."""
    steps = found.blunt()
    if not steps:
        return []
    return [
        f"At step{'s' if len(steps) > 1 else ''} {', '.join(f'{step:,}' for step in steps)} the run's own loss was "
        f"already within {found.percent(found.tolerance, '')} of its final one: there, any freezing counts as "
        "converged. Ask for a smaller tolerance or look at earlier steps."
    ]


def blocks(layers: int) -> str:
    """Blocks 1 to ``layers``, as a table's entry."""
    return f"1 to {layers}" if layers > 1 else "1" if layers else "none"


def _draw_cell(
    axes: Axes,
    place: tuple[int, int],
    found: ConvergenceMap,
    cell: Continuation,
    colour: tuple[float, float, float, float],
) -> None:
    x, y = place
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
    luminance = float(np.dot(colour[:3], (0.2126, 0.7152, 0.0722)))
    ink = "black" if luminance > 0.45 else "white"
    if found.converged(cell):
        axes.add_patch(Rectangle((x - 0.44, y - 0.42), 0.88, 0.84, fill=False, edgecolor=ink, linewidth=1.8))
    doubt = "" if found.clear(cell) else " ?"
    axes.text(x, y + 0.11, found.percent(found.relative(cell)) + doubt, ha="center", va="center", color=ink)
    error = f"± {found.percent(cell.standard_error / abs(found.base_loss), '')}"
    axes.text(x, y - 0.2, error, ha="center", va="center", color=ink, fontsize=6.5)


def _ticks(least: float, worst: float, tolerance: float) -> list[float]:
    """Round numbers between the ends of the scale, and the tolerance."""
    if not tolerance:
        return [least, 0.0, worst]
    around = [tolerance * factor for factor in (-10, -3, -1, 0, 1, 3, 10, 30, 100, 300)]
    return [value for value in around if least <= value <= worst]


def _curves(page: Page, found: ConvergenceMap) -> None:
    if not 1 <= len(found.rows) <= _LINES or len(found.columns) < 2:
        return
    lines = []
    for layers in found.rows:
        cells = [cell for cell in found.cells if cell.layers == layers]
        lines.append(
            Line(
                blocks(layers),
                [cell.step for cell in cells],
                [cell.final_loss for cell in cells],
                [cell.standard_error for cell in cells],
            )
        )
    page.curves(
        [
            Panel(
                "Final loss by the step from which on blocks are frozen",
                lines,
                level=("the run", found.base_loss),
            )
        ],
        "The same as lines, one per number of frozen blocks.",
        "Shaded: one standard error of the difference to the run.",
    )


def _settling(page: Page, found: ConvergenceMap) -> None:
    page.table(
        ["frozen blocks", "converged from step"],
        [
            [blocks(layers), "not yet" if step is None else f"{step:,}"]
            for layers, step in found.settled().items()
        ],
        "The first step from which on each depth is converged at every step tried.",
        "Blocks may have settled at any time since the step before it on the grid.",
    )
    sentence, options = advice(found)
    page.text(sentence)
    if options is not None:
        page.code(f"tubelet pretrain layerlock --data DATA --out OUT {options}")


def _row(found: ConvergenceMap, cell: Continuation) -> list[str | Cell]:
    return [
        blocks(cell.layers),
        f"{cell.step:,}",
        f"{cell.final_loss:.5g}",
        f"{cell.difference:+.2g}".replace("-", "−"),
        f"{cell.standard_error:.2g}",
        found.percent(found.relative(cell)),
        ("yes" if found.converged(cell) else "no") + ("" if found.clear(cell) else " ?"),
    ]
