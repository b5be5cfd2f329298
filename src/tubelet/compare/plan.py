"""Which runs a comparison consists of, and what is evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tubelet.data.manifest import Manifest
from tubelet.errors import UserError, nearest
from tubelet.recipes import own_knobs
from tubelet.recipes.knobs import about_knobs
from tubelet.recipes.run import Planned

RETRIEVAL = "retrieval"  # the evaluation that trains nothing


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
    """Labelled videos to be evaluated on. folds: as `tasks.folds`, 0 is the list's own split. digest: of the list."""

    name: str
    data: str
    folds: int = 0
    digest: str = ""


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

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.arm.name}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A whole comparison, as plan.json has it.

    digest: of the videos to pretrain on. knobs: what all runs share. headline: the metric that arms are ranked by.
    unlabelled: as `tasks.read_task`. draws: of few labels. checkpoints: whether every checkpoint that a run kept is
    evaluated too, or its last state alone. not_equal: what a reader must know of differences that remain.
    """

    kind: str
    name: str
    title: str
    question: str
    data: str
    digest: str
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


# Knobs that must be the same for all runs: what is compared is what they share.
SHARED = {
    "frames",
    "fps",
    "frame_step",
    "crop_size",
    "patch_size",
    "tubelet_size",
    "positions",
    "positions_base",
    "batch_size",
    "clips_per_video",
    "split",
    "area",
    "aspect",
    "flip",
}


def check_knobs(knobs: Mapping[str, Any], recipes: Sequence[str], alone: bool = False) -> None:
    """Raises UserError for a knob that is set by the comparison itself, or that no recipe has.

    alone: the knobs are of one method, which may then have none of those that all must share.
    """
    known = set(about_knobs()).union(*(own_knobs(recipe) for recipe in recipes))
    for name in knobs:
        if name in SET_HERE:
            raise UserError(f"{name} is what the comparison decides for each run; leave it out")
        if alone and name in SHARED:
            raise UserError(
                f"{name} is the same for all that is compared; give it as --{name.replace('_', '-')}"
            )
        if alone and name == "teacher":
            raise UserError(
                "teacher is trained within the budget; a finished one would not be charged: leave it out"
            )
        if name not in known:
            raise UserError(f'{", ".join(recipes)} has no knob "{name}"{nearest(name, known)}')


def readable(manifest: Manifest, knobs: Mapping[str, Any]) -> int:
    """How many videos there are to pretrain on."""
    split = knobs.get("split")
    return len((manifest.with_split(*split.split(",")) if split else manifest).readable())


def task_name(source: str) -> str:
    """The list's name, or its folder's where the list is called labels or manifest."""
    path = Path(source)
    return path.resolve().parent.name if path.stem in ("labels", "manifest") else path.stem or path.name
