"""Which runs a comparison consists of, how long each is, and what makes it the same comparison tomorrow."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tubelet.data.manifest import Manifest
from tubelet.errors import UserError
from tubelet.export.weights import Geometry, save_encoder
from tubelet.files import write_json
from tubelet.nn.tokens import build_positions
from tubelet.nn.vit import ViT, build_vit
from tubelet.recipes import own_knobs, run_recipe
from tubelet.recipes.knobs import Knobs, about_knobs
from tubelet.recipes.quiet import quietly
from tubelet.recipes.run import Planned

RETRIEVAL = "retrieval"  # the evaluation that trains nothing
FIRST_GUESS = 100  # steps of the dry run that a budget is first divided by
CLOSE = 0.002  # how near to the budget a plan must come, where whole steps allow it
TRIES = 4


@dataclass(frozen=True)
class Arm:
    """One way of pretraining, run once for each seed: a recipe, an encoder's size, and how long.

    method: arms of one method are joined by a line. budget: FLOPs of the whole run with all its stages, or None
    where ``knobs`` name the steps. teacher: name of the arm whose encoder, of the same seed, it learns from.
    data: its own videos, where those differ from the others'.
    """

    name: str
    method: str
    recipe: str
    model: str
    budget: float | None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    teacher: str | None = None
    data: str | None = None
    note: str = ""

    @property
    def key(self) -> str:
        """What names its folders: unlike ``name``, the same in a comparison that has grown."""
        words = [self.method, self.model, *([] if self.budget is None else [f"{self.budget:.4g}"])]
        return "-".join(words).replace(" ", "-").replace("/", "-").replace("+", "")


@dataclass(frozen=True)
class Task:
    """Labelled videos to be evaluated on. folds: as `tasks.folds`, 0 is the list's own split."""

    name: str
    data: str
    folds: int = 0


@dataclass(frozen=True)
class Eval:
    """One frozen evaluation.

    probe: a kind of `probe`, or "retrieval". labels: how many of each class to learn from, such as "5" or "10%"; None
    is all of them. layer: read after so many blocks; None is the last.
    """

    key: str
    task: str
    probe: str
    labels: str | None = None
    layer: int | None = None


@dataclass(frozen=True)
class Run:
    """One pretraining run of an arm. folder: below the comparison's. planned: see `recipes.run.Planned`."""

    arm: Arm
    seed: int
    folder: str
    planned: Planned


@dataclass(frozen=True)
class Plan:
    """A whole comparison, as plan.json has it.

    knobs: what all runs share. headline: the metric that arms are ranked by. unlabelled: as `tasks.read_task`. draws:
    of few labels. checkpoints: whether every checkpoint that a run kept is evaluated too, or its last state alone.
    not_equal: what a reader must know of differences that remain.
    """

    kind: str
    name: str
    title: str
    question: str
    data: str
    clips: int
    tasks: tuple[Task, ...]
    evals: tuple[Eval, ...]
    headline: str
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    knobs: Mapping[str, Any]
    runs: tuple[Run, ...] = ()
    unlabelled: str = "error"
    draws: int = 5
    checkpoints: bool = False
    not_equal: tuple[str, ...] = ()
    command: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)

    def arm(self, name: str) -> Arm:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def run_of(self, arm: str, seed: int) -> Run:
        """The run of an arm and a seed."""
        return next(run for run in self.runs if (run.arm.name, run.seed) == (arm, seed))

    @property
    def sizes(self) -> list[str]:
        """The encoders' sizes, each once."""
        return list(dict.fromkeys(arm.model for arm in self.arms))

    def baselines(self) -> list[dict[str, Any]]:
        """What every number should stand beside: untrained encoders of each size, and raw pixels."""
        several = len(self.sizes) > 1
        found = []
        for size in self.sizes:
            name = f"random {size}" if several else "random"
            for seed in self.seeds:
                folder = f"baselines/{name.replace(' ', '-')}-seed{seed}"
                found.append({"arm": name, "model": size, "seed": seed, "folder": folder})
        return [*found, {"arm": "pixels", "model": self.sizes[0], "seed": 0, "folder": "baselines/pixels"}]


def knobs_of(plan: Plan, arm: Arm, seed: int, out: Path) -> dict[str, Any]:
    """Everything `run_recipe` is given for a run, but for its length where a budget decides it, in ``out``."""
    teacher = {} if arm.teacher is None else {"teacher": str(out / plan.run_of(arm.teacher, seed).folder)}
    return {
        **plan.knobs,
        "data": arm.data or plan.data,
        "model": arm.model,
        "seed": seed,
        **arm.knobs,
        **teacher,
    }


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


# Knobs that are a comparison's to decide.
SET_HERE = {
    "data",
    "out",
    "seed",
    "resume",
    "dry_run",
    "steps",
    "model",
    "hours",
    "init_from",
    "branch_from",
    "schedule",
    "freeze_layers",
    "tensorboard",
}


def check_knobs(knobs: Mapping[str, Any], recipes: Sequence[str]) -> None:
    """Raises UserError for a knob that is set by the comparison itself, or that no recipe has."""
    known = set(about_knobs()).union(*(own_knobs(recipe) for recipe in recipes))
    for name in knobs:
        if name in SET_HERE:
            raise UserError(f"{name} is what the comparison decides for each run; leave it out")
        if name not in known:
            raise UserError(f'none of the recipes has a knob "{name}"')


def readable(manifest: Manifest, knobs: Mapping[str, Any]) -> int:
    """How many videos there are to pretrain on."""
    split = knobs.get("split")
    return len((manifest.with_split(*split.split(",")) if split else manifest).readable())


def save_plan(plan: Plan, out: Path) -> None:
    """Writes plan.json, whole or not at all."""
    about = asdict(plan)
    about["baselines"] = plan.baselines()
    about["runs"] = [
        {
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
        arms = tuple(Arm(**arm) for arm in about["arms"])
        named = {arm.name: arm for arm in arms}
        runs = tuple(
            Run(named[run["arm"]], run["seed"], run["folder"], Planned(run["steps"], run["planned_parts"]))
            for run in about.pop("runs")
        )
        del about["baselines"]
        lists = {name: tuple(about[name]) for name in ("seeds", "not_equal")}
        tasks, evals = tuple(Task(**t) for t in about["tasks"]), tuple(Eval(**e) for e in about["evals"])
        return Plan(**{**about, **lists, "arms": arms, "tasks": tasks, "evals": evals, "runs": runs})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} cannot be read ({error!r}); put back what was written there") from error


def grown(earlier: Plan, asked: Plan, out: Path) -> Plan:
    """``asked``, which may have more arms, seeds, tasks and evaluations than ``earlier``, and fewer of none.

    What was trained is never trained differently: raises UserError if anything else differs.
    """
    changed = [
        name
        for name in ("kind", "name", "data", "clips", "headline")
        if getattr(earlier, name) != getattr(asked, name)
    ]
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asked.knobs.items()}
    changed += sorted(
        name
        for name in earlier.knobs.keys() | plain.keys()
        if earlier.knobs.get(name) != plain.get(name) and name not in MAY_DIFFER
    )
    before = {arm.key: arm for arm in earlier.arms}
    for now in asked.arms:
        then = before.get(now.key)
        if then and asdict(replace(then, **_SHOWN)) != _plain(asdict(replace(now, **_SHOWN))):
            changed.append(f"the arm {now.name}")
    if changed:
        raise UserError(
            f"{out} holds another comparison ({', '.join(changed)} differ); give what it was begun with, or choose "
            "another out. More methods, budgets, sizes, seeds, tasks and probes may be added"
        )

    def joined(first: Sequence[Any], second: Sequence[Any]) -> tuple[Any, ...]:
        return (*first, *(item for item in second if item not in first))

    arms = {arm.key: arm for arm in (*earlier.arms, *asked.arms)}  # under the names that are asked for now
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


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


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
