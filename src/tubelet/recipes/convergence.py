"""LayerLock's convergence map (arXiv 2509.10156, Figure 1): which blocks of a run have settled at which step.

A finished run is taken up again at steps of which it kept a checkpoint, each time with its first blocks frozen, and
trained to its end with everything else as it was. Blocks whose freezing leaves the final loss where it was had
settled. The grid's cells are runs in OUT/cells; what is finished there is never trained again.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tubelet.analysis.convergence import Continuation, ConvergenceMap
from tubelet.errors import UserError
from tubelet.files import read_json, write_json
from tubelet.quiet import muted
from tubelet.recipes import run_recipe
from tubelet.recipes.continuation import Base, continuation, prices, read_base, resolved, where
from tubelet.recipes.run import saved_config
from tubelet.report.convergence import blocks, tell, write_map
from tubelet.report.units import flops as in_flops
from tubelet.train import checkpoint
from tubelet.train.report import duration, read_metrics
from tubelet.train.signals import Stopped

MOST = 6  # blocks up to which every depth is tried if none were named; of more, the quarters
_CELL = re.compile(r"step-(\d+)-layers-(\d+)")
# recipes whose target moves with the encoder (layerlock's does not where it is pixels)
MOVING = {"vjepa", "vjepa2", "vjepa-layerlock", "layerlock", "layerlock-collapse"}


@dataclass(frozen=True)
class Window:
    """The last steps, over which losses are averaged: from ``first`` on, those in ``logged`` were logged."""

    first: int
    logged: list[int]


@dataclass(frozen=True)
class Planned:
    """A cell of the grid. begin: the step it is at; left: steps to go. flops: of these. done: it is finished."""

    step: int
    layers: int
    folder: Path
    begin: int
    left: int
    flops: float
    done: bool


@dataclass(frozen=True)
class Agenda:
    """What there is to do. pace: seconds a step of the run took; start: seconds that a cell takes before its first."""

    cells: list[Planned]
    pace: float
    start: float

    @property
    def left(self) -> list[Planned]:
        """The cells that are not finished."""
        return [cell for cell in self.cells if not cell.done]

    def seconds(self, cells: Sequence[Planned]) -> float:
        """How long ``cells`` take at most: at the run's pace, though what is frozen is not trained."""
        return sum(cell.left * self.pace + self.start for cell in cells)


def convergence(
    run: Path | str,
    out: Path | str | None = None,
    *,
    depths: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    tolerance: float = 0.01,
    window: float = 0.05,
    data: str | None = None,
    device: str | None = None,
    dry_run: bool = False,
) -> ConvergenceMap | None:
    """Trains what the grid still lacks and draws the map of all that ``out`` has; None with ``dry_run``.

    run: folder of a finished run whose checkpoints were kept (`keep_every`). out: default RUN/convergence. depths:
    how many blocks are frozen (default: all up to six, else the quarters). steps: from when on (default: every
    checkpoint that was kept and lies before the window). tolerance: how much higher than the run's a final loss may
    be, as a share of it, and still count as converged: ours, the paper names none. window: share of the run, at its
    end, over whose steps losses are averaged. data, device: where they are not the run's. dry_run: state the cost,
    write nothing.

    The cost is stated first. Interrupted and called again, it goes on where it stopped; other arguments add cells.
    Raises UserError for a run that is not finished, that was made by another version, that kept no checkpoint, or
    that is not the one ``out`` was begun with; for depths or steps that there are not; and for all that keeps the
    run from being resumed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "tubelet convergence runs in one process; start it without torchrun (the cells of a run that had several "
            "are trained with micro_batches in their place)"
        )
    base = read_base(Path(run))
    out = base.folder / "convergence" if out is None else Path(out)
    _refuse_other_run(base, out)
    span = read_window(base, window)
    if not 0 <= tolerance < math.inf:
        raise UserError(f"tolerance={tolerance}: must be 0 or more, such as .01 for 1 %")
    grid = _grid(base, span, depths, steps)
    todo = plan(base, out, grid, data, device)
    console = Console(stderr=True)
    state_cost(base, todo, console)
    if dry_run:
        return None
    write_json(out / "plan.json", {"run": str(base.folder), "digest": base.digest})
    _train(base, todo, data, device, console)
    found = read_map(base, out, span, tolerance)
    write_map(found, out)
    tell(found, Console())
    console.print(f"{out / 'map.png'}, {out / 'report.html'}", soft_wrap=True, highlight=False)
    return found


def read_window(base: Base, share: float) -> Window:
    """The last ``share`` of the steps; raises UserError if fewer than two of them were logged."""
    if not 0 < share < 1:
        raise UserError(f"window={share}: must lie between 0 and 1, such as .05 for the last 5 %")
    first = base.steps - max(1, round(share * base.steps))
    every = base.knobs["log_every"]
    # what a cell logs too: its first look at the features comes at other steps than the run's
    logged = [
        step
        for step in _losses(base.folder)
        if step >= first and (step % every == 0 or step == base.steps - 1)
    ]
    if len(logged) < 2:
        raise UserError(
            f"window={share}: {base.folder} logged {len(logged)} of its last {base.steps - first} steps, and two or "
            "more are needed; choose a larger window"
        )
    return Window(first, logged)


def plan(
    base: Base, out: Path, grid: Sequence[tuple[int, int]], data: str | None, device: str | None
) -> Agenda:
    """The cells of ``grid``, (step, layers) each, with what is left to do for them."""
    folders = {at: out / "cells" / f"step-{at[0]:06d}-layers-{at[1]:02d}" for at in grid}
    open_cells = [at for at in grid if not _finished(folders[at])]
    began = time.perf_counter()
    price = prices(base, {layers for _, layers in open_cells}, data, device) if open_cells else None
    start = time.perf_counter() - began
    cells = []
    for (step, layers), folder in folders.items():
        if price is None or (step, layers) not in open_cells:
            cells.append(Planned(step, layers, folder, base.steps, 0, 0.0, done=True))
            continue
        saved = checkpoint.found(folder / "checkpoints")
        begin = checkpoint.step_of(saved[-1]) if saved else step
        flops = price(layers, begin)
        cells.append(Planned(step, layers, folder, begin, base.steps - begin, flops, done=False))
    return Agenda(cells, base.ran["seconds"] / base.steps, start)


def state_cost(base: Base, todo: Agenda, console: Console) -> None:
    """Prints what each cell will cost, and all of them together."""
    table = Table(
        title=f"continuations of {base.folder}, {base.steps} steps, with blocks frozen", title_justify="left"
    )
    for column in ("frozen", "from step", "steps left", "cost", "x the run", "time", "state"):
        table.add_column(column, justify="left" if column in ("frozen", "state") else "right", no_wrap=True)
    for cell in todo.cells:
        table.add_row(
            blocks(cell.layers),
            str(cell.step),
            str(cell.left),
            in_flops(cell.flops),
            f"{cell.flops / base.ran['train_flops']:.3f}",
            duration(0 if cell.done else todo.seconds([cell])),
            "done" if cell.done else "to do" if cell.begin == cell.step else f"goes on at {cell.begin}",
        )
    console.print(table)
    flops = sum(cell.flops for cell in todo.left)
    console.print(
        f"to do: {len(todo.left)} of {len(todo.cells)} cells, {sum(cell.left for cell in todo.left)} steps, "
        f"{in_flops(flops)} = {flops / base.ran['train_flops']:.2f} x the run; {duration(todo.seconds(todo.left))} "
        f"at the run's {todo.pace:.3g} s a step and {todo.start:.1f} s for each cell to start",
        highlight=False,
        soft_wrap=True,
    )


def read_map(base: Base, out: Path, window: Window, tolerance: float) -> ConvergenceMap:
    """All finished cells of ``out`` that begin before the window, compared with the run."""
    ours = _losses(base.folder)
    cells = []
    for folder in sorted((out / "cells").glob("step-*-layers-*")):
        place = _CELL.fullmatch(folder.name)
        if place and _finished(folder) and int(place[1]) <= window.first:
            cells.append(_measure(base, folder, int(place[1]), int(place[2]), ours, window))
    last = [ours[step] for step in window.logged]
    reached = {}
    for start in {cell.step for cell in cells}:
        before = [loss for step, loss in ours.items() if step < start][-len(last) :]
        # other steps on other clips: not paired, so the spread over clips counts in full
        noise = statistics.stdev(last) * math.sqrt(1 / len(before) + 1 / len(last))
        reached[start] = statistics.fmean(before), noise
    return ConvergenceMap(
        run=base.folder.resolve().name,
        recipe=base.recipe,
        model=base.chosen["model"],
        depth=base.encoder.depth,
        steps=base.steps,
        flops=base.ran["train_flops"],
        seconds=base.ran["seconds"],
        first=window.first,
        logged=len(window.logged),
        tolerance=tolerance,
        base_loss=statistics.fmean(last),
        reached=reached,
        cells=cells,
        cautions=_cautions(base),
    )


def _train(base: Base, todo: Agenda, data: str | None, device: str | None, console: Console) -> None:
    """The open cells one after the other; of each that is finished, only what was measured stays."""
    began = time.perf_counter()
    for cell in todo.cells:
        if cell.done:  # and killed before it was cleared
            _clear(cell.folder)
    for number, cell in enumerate(todo.left):
        left = todo.seconds(todo.left[number:])
        if number:  # by what the ones before took, in place of what was planned
            left *= (time.perf_counter() - began) / todo.seconds(todo.left[:number])
        what = f"blocks {blocks(cell.layers)}" if cell.layers else "nothing"
        console.print(
            f"\ncell {number + 1} of {len(todo.left)}: {what} frozen from step {cell.step}; "
            f"about {duration(left)} left in all",
            style="bold",
            highlight=False,
            soft_wrap=True,
        )
        given = continuation(base, cell.step, cell.layers, cell.folder)
        if checkpoint.found(cell.folder / "checkpoints"):
            given = {"out": str(cell.folder), "resume": True}  # its other knobs are in its config.yaml
        try:
            with muted("tubelet"):  # of its end, which speaks of encoders that do not stay
                run_recipe(base.recipe, **{**given, **where(data, device)})
        except Stopped:
            console.print("the same command goes on from there")
            raise
        _clear(cell.folder)


def _grid(
    base: Base, window: Window, depths: Sequence[int] | None, steps: Sequence[int] | None
) -> list[tuple[int, int]]:
    """The (step, layers) that were asked for, or the default ones."""
    depth = base.encoder.depth
    if depths is None:
        depths = range(1, depth + 1) if depth <= MOST else [round(depth * part / 4) for part in (1, 2, 3, 4)]
    if not depths or not all(0 <= layers <= depth for layers in depths):
        raise UserError(f"depths={_listed(depths)}: the run's encoder has blocks 1 to {depth}")
    before = [step for step in base.kept if step <= window.first]
    if steps is None:
        if not before:
            raise UserError(
                f"{base.folder} kept the checkpoints {_listed(base.kept)}, all within the last steps that losses are "
                f"averaged over (from {window.first} on); choose a smaller window, or train with --keep-every N"
            )
        steps = before
    for step in steps:
        if step not in base.kept:
            raise UserError(
                f"steps={_listed(steps)}: {base.folder} has no checkpoint to go on from at step {step}; there are "
                f"{_listed(base.kept)}"
            )
        if step not in before:
            raise UserError(
                f"steps={_listed(steps)}: losses are averaged from step {window.first} on, so freezing from step "
                f"{step} on says nothing; leave it out, or choose a smaller window"
            )
    return [(step, layers) for step in sorted(set(steps)) for layers in sorted(set(depths))]


def _measure(
    base: Base, folder: Path, step: int, layers: int, ours: dict[int, float], window: Window
) -> Continuation:
    """The final loss of a finished cell beside the run's; raises UserError if they cannot be compared."""
    config = saved_config(folder, base.recipe)
    if config is None or resolved(config["chosen"]) != resolved(base.chosen):
        raise UserError(
            f"{folder} was not trained with the numbers of {base.folder}; remove it and run again"
        )
    theirs = _losses(folder)
    if missing := [at for at in window.logged if at not in theirs]:
        raise UserError(f"{folder / 'metrics.jsonl'} lacks step {missing[0]}; remove {folder} and run again")
    apart = [theirs[at] - ours[at] for at in window.logged]
    ran, before = read_json(folder / "run.json"), read_json(base.kept[step] / "state.json")["spent"]
    return Continuation(
        step=step,
        layers=layers,
        final_loss=statistics.fmean([theirs[at] for at in window.logged]),
        difference=statistics.fmean(apart),
        standard_error=statistics.stdev(apart) / math.sqrt(len(apart)),
        flops=ran["train_flops"] - sum(before["flops"].values()),
        seconds=ran["seconds"] - before["seconds"],
    )


def _cautions(base: Base) -> list[str]:
    found = []
    moves = base.recipe in MOVING or base.knobs.get("targets") == "previous"
    if moves and base.knobs.get("target") != "pixels":
        found.append(
            f"The target of {base.recipe} follows the encoder: a frozen encoder has another target than a trained "
            "one, and a lower loss is not a better encoder. The map is meant for targets that stand still, like pixels."
        )
    if base.recipe in ("layerlock", "vjepa-layerlock"):
        found.append(
            f"{base.recipe} freezes blocks itself, so what the map compares with was frozen as well."
        )
    return found


def _finished(folder: Path) -> bool:
    return (folder / "run.json").is_file() and bool(read_json(folder / "run.json").get("finished"))


def _clear(folder: Path) -> None:
    """Removes checkpoints and encoders of a finished cell; run.json, which says that it is, stays."""
    for path in (folder / "checkpoints", *folder.glob("encoder*")):
        if path.is_dir():
            shutil.rmtree(path)


def _losses(run: Path) -> dict[int, float]:
    """step -> training loss, of the logged steps."""
    rows = read_metrics(run / "metrics.jsonl")
    losses = {row["step"]: row["train/loss"] for row in rows if row.get("train/loss") is not None}
    if not losses:
        raise UserError(f"{run / 'metrics.jsonl'} holds no losses; put back what the run wrote there")
    return losses


def _refuse_other_run(base: Base, out: Path) -> None:
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / "plan.json").is_file():
        raise UserError(f"{out} is not empty and holds no convergence map; choose another folder with --out")
    if read_json(out / "plan.json").get("digest") != base.digest:
        raise UserError(
            f"{out} was begun with another run than {base.folder} is now (its config.yaml or its weights have "
            "changed); choose another folder with --out, or remove this one"
        )


def _listed(numbers: Any) -> str:
    return ",".join(map(str, numbers)) or "none"
