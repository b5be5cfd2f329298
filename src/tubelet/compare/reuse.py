"""Runs of another comparison that would come out the same here."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tubelet.compare.plan import Plan, Run
from tubelet.compare.saved import MAY_DIFFER, load_plan
from tubelet.compare.state import trained
from tubelet.errors import UserError
from tubelet.files import replace_folder


def reuse(plan: Plan, out: Path, other: Path) -> int:
    """Copies from the comparison in ``other`` the finished runs that ``plan`` has too; returns how many.

    The same are recipe, encoder, seed, steps, videos and every knob that changes a number. Their evaluations come along
    where the tasks are the same. Runs that learn from another run's encoder are not taken over.
    Raises UserError if ``other`` holds no comparison.
    """
    source = load_plan(other)
    if source is None:
        raise UserError(f"reuse={other} holds no comparison (no plan.json in it)")
    there = {
        _identity(source, run): run for run in source.runs if run.arm.teacher is None and trained(other, run)
    }
    same_tasks = all(task in source.tasks for task in plan.tasks)
    copied = 0
    for run in plan.runs:
        known = there.get(_identity(plan, run)) if run.arm.teacher is None else None
        if known is None or (out / run.folder).exists():
            continue
        with replace_folder(out / run.folder) as draft:
            left_out = () if same_tasks else ("eval", "at")
            ignore = shutil.ignore_patterns(*left_out)
            shutil.copytree(other / known.folder, draft, dirs_exist_ok=True, ignore=ignore)
        copied += 1
    return copied


def _identity(plan: Plan, run: Run) -> str:
    videos = plan.digest if run.arm.data is None else run.arm.data
    knobs: dict[str, Any] = {**plan.knobs, **run.arm.knobs, "videos": videos}
    same = {name: value for name, value in knobs.items() if name not in MAY_DIFFER | {"steps"}}
    return repr((run.arm.recipe, run.arm.model, run.seed, run.planned.steps, sorted(same.items(), key=str)))
