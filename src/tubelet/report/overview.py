"""A comparison as a table for the terminal."""

from __future__ import annotations

from collections import Counter

from rich.table import Table

from tubelet.evaluate.comparison import Arm, Comparison
from tubelet.report.conclusion import headlines, unit
from tubelet.report.units import flops
from tubelet.train.report import duration

_SHOWN = 4  # evaluations that a terminal has room for


def comparison_table(found: Comparison) -> Table:
    """Arms, then baselines: mean and standard deviation over seeds of each headline, health, FLOPs, time, state.

    The first `_SHOWN` evaluations; what is not there yet is empty.
    """
    shown = headlines(found)[:_SHOWN]
    table = Table(title=found.title, title_justify="left")
    table.add_column("arm")
    for one in shown:
        table.add_column(f"{one.task}\n{one.probe}", justify="right")
    table.add_column("health")
    for name in ("FLOPs", "time"):
        table.add_column(name, justify="right")
    table.add_column("state")
    for arm in found.arms:
        if arm.baseline and arm == found.baselines[0]:
            table.add_section()
        work = found.cost(arm, lambda cost: cost.train_flops)
        took = found.cost(arm, lambda cost: cost.seconds)
        table.add_row(
            arm.name,
            *(_score(found, arm, place) for place in range(len(shown))),
            health(found, arm),
            "" if work is None else flops(work),
            "" if took is None else duration(took),
            states(found, arm),
        )
    return table


def health(found: Comparison, arm: Arm) -> str:
    """ "healthy", or how many of the arm's finished runs are what."""
    told = Counter(run.verdict for run in found.of(arm) if run.verdict is not None)
    if len(told) < 2:
        return next(iter(told), "")
    return ", ".join(f"{count} {state}" for state, count in told.items())


def states(found: Comparison, arm: Arm) -> str:
    """ "done", or how many of the arm's runs are in which state."""
    told = Counter(found.state(run) for run in found.of(arm))
    if len(told) == 1:
        return next(iter(told))
    return ", ".join(f"{count} {state}" for state, count in told.items())


def _score(found: Comparison, arm: Arm, place: int) -> str:
    one = headlines(found)[place]
    mean, shown = found.mean(arm, one), unit(one.metric)
    if mean is None:
        return ""
    spread = "" if mean.sd is None else f" ± {shown.scale * mean.sd:.{shown.digits}f}"
    return f"{shown.scale * mean.value:.{shown.digits}f}{spread}"
