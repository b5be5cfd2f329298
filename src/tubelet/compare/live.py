"""What a comparison shows before it starts and while it runs."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tubelet.compare.plan import Plan
from tubelet.compare.state import about, done_share, last_row
from tubelet.evaluate.comparison import read_comparison
from tubelet.report.overview import comparison_table
from tubelet.report.units import flops
from tubelet.train.report import duration


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


def _pace(plan: Plan, out: Path, method: str) -> float | None:
    """FLOPs a second of the method's finished runs."""
    rates = []
    for run in plan.runs:
        spent = about(out / run.folder)
        if run.arm.method == method and spent.get("finished") and spent["seconds"]:
            rates.append(spent["train_flops"] / spent["seconds"])
    return statistics.fmean(rates) if rates else None
