"""How long each run is: steps that a budget pays, by dry runs of the recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tubelet.compare.plan import Arm, Plan, Run
from tubelet.errors import UserError
from tubelet.export.weights import Geometry, save_encoder
from tubelet.nn.tokens import build_positions
from tubelet.nn.vit import ViT, build_vit
from tubelet.quiet import quietly
from tubelet.recipes import run_recipe
from tubelet.recipes.knobs import Knobs
from tubelet.recipes.run import Planned

FIRST_GUESS = 100  # steps of the dry run that a budget is first divided by
CLOSE = 0.002  # how near to the budget a plan must come, where whole steps allow it
TRIES = 6


def length(recipe: str, knobs: Mapping[str, Any], budget: float | None) -> Planned:
    """What a run takes: with ``budget`` the steps whose FLOPs come closest to it from below, else as knobs say.

    What a step costs may depend on how long the run is (a schedule of freezing), so the plan is made again until
    it fits. Raises UserError for a budget that does not pay a single step, and for all that the recipe refuses.
    """

    def plan(**more: Any) -> Planned:
        with quietly():
            return run_recipe(recipe, **{**knobs, **more}, out="unused", dry_run=True).planned

    if budget is None:
        return plan()
    if not 0 < budget < math.inf:
        raise UserError(f"budget={budget}: must be a number of FLOPs above 0, such as 2e15")
    steps, best = FIRST_GUESS, None
    for _ in range(TRIES):
        found = plan(steps=steps)
        each = found.total_flops / found.steps
        if found.total_flops <= budget and (best is None or found.steps > best.steps):
            best = found
        if best is not None and (budget - best.total_flops < max(CLOSE * budget, each)):
            return best
        steps = max(1, int(budget / each)) if steps != int(budget / each) else steps - 1
        if not steps:
            break
    if best is None:
        raise UserError(
            f"budget={budget:g} does not pay one step of {recipe}, which takes {each:.3g} FLOPs; raise it"
        )
    return best


def with_runs(plan: Plan) -> Plan:
    """The plan with a run for every arm and seed; lengths that are known stay as they are.

    Runs stand in the order in which they are done: cheap before dear, so that what is interrupted is complete at the
    smaller budgets; then seed by seed, teachers before students.
    """
    known = {(run.arm.key, run.seed): run for run in plan.runs}
    lengths = {run.arm.key: run.planned for run in plan.runs}
    order = sorted(plan.arms, key=lambda arm: (arm.teacher is not None, arm.budget or 0.0))
    for arm in order:
        if arm.key not in lengths:
            lengths[arm.key] = _length(plan, arm)
    runs = [
        known.get((arm.key, seed)) or Run(arm, seed, f"runs/{arm.key}-seed{seed}", lengths[arm.key])
        for budget in dict.fromkeys(arm.budget for arm in order)
        for seed in plan.seeds
        for arm in order
        if arm.budget == budget
    ]
    return replace(plan, runs=tuple(runs))


def _length(plan: Plan, arm: Arm) -> Planned:
    knobs = {**plan.knobs, "data": arm.data or plan.data, "model": arm.model, **arm.knobs}
    if arm.teacher is None:
        return length(arm.recipe, knobs, arm.budget)
    with TemporaryDirectory() as place:  # an untrained stand-in of the teacher's shape, to count with
        stand_in = untrained(plan, plan.arm(arm.teacher).model)
        save_encoder(stand_in, Path(place) / "encoder", Geometry(), {"name": "stand-in"})
        return length(arm.recipe, {**knobs, "teacher": place}, arm.budget)


def untrained(plan: Plan, model: str) -> ViT:
    """A new encoder of the size ``model``, cut and positioned as all of the comparison's are."""
    default = Knobs(data="unused", out="unused")
    knobs = {name: plan.knobs.get(name) or getattr(default, name) for name in ENCODER_KNOBS}
    patch = (knobs["tubelet_size"], knobs["patch_size"], knobs["patch_size"])
    return build_vit(model, patch, positions=build_positions(knobs["positions"], knobs["positions_base"]))


ENCODER_KNOBS = ("tubelet_size", "patch_size", "positions", "positions_base")
