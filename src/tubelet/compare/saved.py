"""A plan on disk: written, read back, and compared with what is asked for now."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tubelet.compare.plan import Arm, Eval, Plan, Run, Task
from tubelet.errors import UserError
from tubelet.files import write_json
from tubelet.recipes.run import Planned

COMPARE = "compare"  # the kind whose arms are told apart by method, size and budget


def save_plan(plan: Plan, out: Path) -> None:
    """Writes plan.json, whole or not at all."""
    about = asdict(plan)
    about["baselines"] = plan.baselines()
    about["runs"] = [
        {
            "key": run.arm.key,
            "arm": run.arm.name,
            "method": run.arm.method,
            "recipe": run.arm.recipe,
            "model": run.arm.model,
            "budget": run.arm.budget,
            "seed": run.seed,
            "folder": run.folder,
            "steps": run.planned.steps,
            "planned_flops": run.planned.total_flops,
            "planned_parts": run.planned.flops,
        }
        for run in plan.runs
    ]
    write_json(out / "plan.json", about)


def load_plan(out: Path) -> Plan | None:
    """The plan in ``out``, or None; raises UserError if it cannot be read."""
    file = out / "plan.json"
    if not file.is_file():
        return None
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        arms = tuple(Arm(**{**arm, "knobs": _knobs(arm["knobs"])}) for arm in about["arms"])
        known = {arm.key: arm for arm in arms}
        runs = tuple(
            Run(known[run["key"]], run["seed"], run["folder"], Planned(run["steps"], run["planned_parts"]))
            for run in about.pop("runs")
        )
        del about["baselines"]
        lists: dict[str, Any] = {name: tuple(about[name]) for name in ("seeds", "not_equal")}
        tasks, evals = tuple(Task(**t) for t in about["tasks"]), tuple(Eval(**e) for e in about["evals"])
        lists["knobs"] = _knobs(about["knobs"])
        return Plan(**{**about, **lists, "arms": arms, "tasks": tasks, "evals": evals, "runs": runs})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error!r}); put back what was written there") from error


def _knobs(given: dict[str, Any]) -> dict[str, Any]:
    """Pairs are lists in JSON."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def grown(earlier: Plan, asked: Plan, out: Path) -> Plan:
    """``asked``, which may have more arms, seeds, tasks and evaluations than ``earlier``, and fewer of none.

    What was trained is never trained differently: raises UserError if anything else differs but the headline.
    """
    changed = [
        name
        for name in ("kind", "name", "data", "digest", "clips", "unlabelled", "draws")
        if getattr(earlier, name) != getattr(asked, name)
    ]
    changed += sorted(
        name
        for name in earlier.knobs.keys() | asked.knobs.keys()
        if earlier.knobs.get(name) != asked.knobs.get(name) and name not in MAY_DIFFER
    )
    before = {arm.key: arm for arm in earlier.arms}
    for now in asked.arms:
        then = before.get(now.key)
        if then and replace(then, **_SHOWN) != replace(now, **_SHOWN):
            changed.append(f"the arm {now.name}")
    for what, now, old in (
        ("task", {t.name: t for t in asked.tasks}, {t.name: t for t in earlier.tasks}),
        ("evaluation", {e.key: e for e in asked.evals}, {e.key: e for e in earlier.evals}),
    ):
        changed += [f"the {what} {name}" for name in now.keys() & old.keys() if now[name] != old[name]]
    if changed:
        raise UserError(
            f"{out} holds another comparison ({', '.join(changed)} differ); give what it was begun with, or choose "
            "another out. More methods, budgets, sizes, seeds, tasks and probes may be added"
        )

    def joined(first: Sequence[Any], second: Sequence[Any]) -> tuple[Any, ...]:
        return (*first, *(item for item in second if item not in first))

    merged = {arm.key: arm for arm in (*earlier.arms, *asked.arms)}
    if asked.kind != COMPARE and len({arm.name for arm in merged.values()}) < len(merged):
        raise UserError(
            f"{out} holds this study with another budget or model; its arms would have the same names: choose "
            "another out"
        )
    arms = {
        arm.key: arm for arm in (named(tuple(merged.values())) if asked.kind == COMPARE else merged.values())
    }
    tasks = {task.name: task for task in (*earlier.tasks, *asked.tasks)}
    evals = {one.key: one for one in (*earlier.evals, *asked.evals)}
    return replace(
        asked,
        arms=tuple(arms.values()),
        seeds=joined(earlier.seeds, asked.seeds),
        tasks=tuple(tasks.values()),
        evals=tuple(evals.values()),
        runs=tuple(replace(run, arm=arms[run.arm.key]) for run in earlier.runs),
        knobs={**earlier.knobs, **{k: v for k, v in asked.knobs.items() if k in MAY_DIFFER}},
    )


_SHOWN: dict[str, Any] = {"name": "", "note": "", "teacher": None}  # of an arm: words, and another arm's name
# Knobs that change no number of a run.
MAY_DIFFER = {"workers", "cache_dir", "device"}


def named(arms: Sequence[Arm]) -> list[Arm]:
    """The arms of a comparison under their methods' names, and what tells those of one method apart."""
    sizes, budgets = {arm.model for arm in arms}, {arm.budget for arm in arms}

    def name(arm: Arm) -> str:
        size = [arm.model] if len(sizes) > 1 else []
        budget = [f"{arm.budget:.3g}".replace("+", "")] if len(budgets) > 1 and arm.budget else []
        return " ".join([arm.method, *size, *budget])

    return [replace(arm, name=name(arm)) for arm in arms]
