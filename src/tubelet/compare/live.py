"""What a comparison shows before it starts and while it runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tubelet.compare.plan import Plan, Run
from tubelet.evaluate.comparison import read_comparison
from tubelet.report.overview import comparison_table
from tubelet.report.units import flops
from tubelet.train.report import duration

TAIL = 4096  # bytes at the end of metrics.jsonl that its last line is in


def state_cost(plan: Plan, out: Path, rate: float, jobs: int, console: Console) -> None:
    """Prints what will run, what it costs and about how long it takes at ``rate`` FLOPs a second.

    Methods of which a run has finished are timed by it.
    """
    table = Table(
        title=f"{plan.title}: {plan.clips} videos, seeds {', '.join(map(str, plan.seeds))}",
        title_justify="left",
    )
    for column in ("arm", "recipe", "encoder", "steps", "FLOPs", "time", "runs left"):
        table.add_column(
            column, justify="left" if column in ("arm", "recipe", "encoder") else "right", no_wrap=True
        )
    total, seconds = 0.0, 0.0
    for arm in plan.arms:
        mine = [run for run in plan.runs if run.arm.key == arm.key]
        left = [run for run in mine if done_share(out, run) < 1]
        pace = _pace(plan, out, arm.method) or rate
        each = mine[0].planned.total_flops
        rest = sum(each * (1 - done_share(out, run)) for run in left)
        total, seconds = total + rest, seconds + rest / pace
        table.add_row(
            arm.name,
            arm.recipe,
            arm.model,
            f"{mine[0].planned.steps:,}",
            flops(each),
            duration(each / pace),
            f"{len(left)} of {len(mine)}",
        )
    console.print(table)
    several = f", {jobs} at once" if jobs > 1 else ""
    console.print(
        f"to do: {flops(total)} of pretraining, about {duration(seconds / jobs)}{several} at {rate / 1e9:.0f} GFLOP/s "
        f"where nothing is known yet; then {len(plan.evals)} evaluations of each encoder and of "
        f"{len(plan.baselines())} that nobody trained",
        highlight=False,
        soft_wrap=True,
    )


def progress(plan: Plan, out: Path, running: Collection[str]) -> Group:
    """What every arm has reached, and how far each of the ``running`` pieces of work is (by `Run.name`)."""
    lines = []
    for run in plan.runs:
        if run.name in running:
            row, share = last_row(out / run.folder), done_share(out, run)
            loss = f", loss {row['train/loss']:.4g}" if row else ""
            lines.append(
                f"{run.name}: {'evaluating' if share == 1 else f'{share:.0%} of {run.planned.steps:,} steps'}{loss}"
            )
    lines += [f"{name}: evaluating" for name in running if name not in {run.name for run in plan.runs}]
    return Group(comparison_table(read_comparison(out)), *(Text(line) for line in lines))


def done_share(out: Path, run: Run) -> float:
    """How much of a run's steps is done, in all its stages."""
    folder = out / run.folder
    if _read(folder / "run.json").get("finished"):
        return 1.0
    steps = 0
    for stage in (folder, *folder.glob("*/")):
        row = last_row(stage) if (stage / "metrics.jsonl").is_file() else None
        steps += int(row["step"]) + 1 if row else 0
    return min(steps / run.planned.steps, 0.999)


def last_row(folder: Path) -> dict[str, float] | None:
    """The last whole line of a run's metrics.jsonl that has a loss, or None."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # half a line: being written, or cut by the window
        if isinstance(row, dict) and row.get("train/loss") is not None:
            return row
    return None


def _pace(plan: Plan, out: Path, method: str) -> float | None:
    """FLOPs a second of the method's finished runs."""
    rates = []
    for run in plan.runs:
        about = _read(out / run.folder / "run.json")
        if run.arm.method == method and about.get("finished") and about["seconds"]:
            rates.append(about["train_flops"] / about["seconds"])
    return statistics.fmean(rates) if rates else None


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # not there yet
