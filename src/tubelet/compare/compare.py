"""``tubelet compare``: which method gives the best encoder for the compute that can be paid?"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tubelet.compare.execute import Manner, carry_out
from tubelet.compare.plan import RETRIEVAL, Arm, Eval, Plan, Task, check_knobs, readable, task_name
from tubelet.compare.saved import COMPARE, named
from tubelet.data.manifest import Manifest, read_manifest
from tubelet.errors import UserError, nearest
from tubelet.evaluate.comparison import read_comparison
from tubelet.evaluate.probe import Judging, check_folds
from tubelet.evaluate.score import KINDS, Kind
from tubelet.evaluate.tasks import TRAIN
from tubelet.evaluate.tasks import Task as Judged
from tubelet.evaluate.values import RealTask
from tubelet.quiet import quietly
from tubelet.recipes import find_recipe, own_knobs, run_recipe
from tubelet.recipes.knobs import about_knobs
from tubelet.recipes.words import read_word
from tubelet.report.comparison import comparison_report

METHODS = ("videomae", "vjepa", "salt", "layerlock", "blockwise")
PROBES = ("linear", "knn", "attentive", RETRIEVAL)
HEADLINES = ("macro_recall", "top1", "top5", "f1_macro", "map", "auroc")
POSITIONS = "sincos"  # one encoder for all: VideoMAE's and V-JEPA's own


def compare(
    data: str,
    out: str | Path,
    budgets: Sequence[float],
    *,
    methods: Sequence[str] = METHODS,
    sizes: Sequence[str] = (),
    seeds: int = 1,
    tasks: Sequence[str] = (),
    folds: int = 0,
    probes: Sequence[str] = PROBES,
    headline: str = "macro_recall",
    settings: Sequence[str] = (),
    unlabelled: str = "error",
    manner: Manner | None = None,
    knobs: Mapping[str, Any] | None = None,
) -> None:
    """Pretrains an encoder per method, size, budget and seed at equal FLOPs, evaluates all alike, draws the page.

    data: videos to pretrain on; of a list with a split column its training rows alone. budgets: FLOPs of a whole
    run by formula: a SALT budget contains its teacher, frozen parts and target passes are charged. methods:
    recipes. sizes: of the encoder (default: what fits the machine). tasks: labelled lists to evaluate on
    (default: ``data``). folds: see `tasks.folds`. probes: kinds of `probe`, "retrieval". headline: the metric
    that is ranked by. settings: knobs of single methods, ``METHOD.KNOB=VALUE``. unlabelled: as `tasks.read_task`.
    manner: how runs are done. knobs: shared ones, for all runs.
    Interrupted and called again it goes on run by run; more methods, budgets, sizes, seeds, tasks and probes may
    be added then. Raises UserError for whatever is wrong with data, labels, knobs or ``out``, before it trains.
    """
    for method in methods:
        find_recipe(method)
    own = read_settings(settings, methods)
    shared = dict(knobs or {})
    check_knobs(shared, methods)
    manifest = read_manifest(data)
    manner = manner or Manner()
    evals_of = known_probes(probes)
    labelled = read_tasks(data, tasks, folds, unlabelled, evals_of, headline)
    model, shared = same_for_all(data, methods[0], manifest, shared, own.get(methods[0], {}), sizes)
    arms = [
        Arm(method, method, method, size, budget, own.get(method, {}))
        for budget in budgets
        for size in (sizes or [model])
        for method in methods
    ]
    plan = Plan(
        kind=COMPARE,
        name="compare",
        title=f"{', '.join(methods)} at equal compute",
        question="Which method gives the best encoder for the compute that can be paid?",
        data=data,
        digest=manifest.digest(),
        clips=readable(manifest, shared),
        tasks=labelled,
        evals=tuple(
            Eval(f"{task.name}-{probe}", task.name, probe) for task in labelled for probe in evals_of
        ),
        headline=headline,
        seeds=read_seeds(seeds),
        arms=tuple(named(arms)),
        knobs=shared,
        unlabelled=unlabelled,
        not_equal=(
            "Equal are the pretraining FLOPs by formula (a teacher's own training, target passes and frozen parts "
            "included), the encoder, its clips, the order of the videos for a seed, the batch, and the evaluation. Not "
            "equal are the steps, the clips seen, wall clock and memory (in the table), and what each recipe brings: "
            "masks, rates, weight decay, the second network's size.",
            "Each method has the rates of its paper, scaled to batch and width; none was tuned on this data.",
            *told(settings, manifest, shared),
            *side_by_side(manner),
        ),
        command=f"tubelet {shlex.join(sys.argv[1:])}",
    )

    def draw(folder: Path) -> None:
        comparison_report(read_comparison(folder), folder / "report.html")

    carry_out(plan, Path(out), manner, draw)


def side_by_side(manner: Manner) -> list[str]:
    """What a reader must know of wall clocks."""
    if manner.jobs == 1:
        return []
    return [f"{manner.jobs} runs at a time shared the machine: wall clock is longer than alone."]


def read_seeds(count: int) -> tuple[int, ...]:
    """0, 1, ...; raises UserError for none."""
    if count < 1:
        raise UserError(f"seeds={count}: must be at least 1")
    return tuple(range(count))


def read_settings(settings: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """``METHOD.KNOB=VALUE`` -> method -> knob -> value, read as the recipe's own option would be.

    Raises UserError for what is no such thing, for a method that is not compared, or a knob it has not.
    """
    found: dict[str, dict[str, Any]] = {}
    for word in settings:
        place, equals, text = word.partition("=")
        method, dot, knob = place.partition(".")
        if not (equals and dot):
            raise UserError(f'"{word}" is not METHOD.KNOB=VALUE, such as salt.teacher_share=0.25')
        if method not in methods:
            raise UserError(f'"{word}": "{method}" is not among the methods {", ".join(methods)}')
        knob = knob.replace("-", "_")
        check_knobs({knob: text}, [method], alone=True)
        known = {name: kind for name, (kind, *_) in {**about_knobs(), **own_knobs(method)}.items()}
        found.setdefault(method, {})[knob] = read_word(known[knob], text, word)
    return found


def read_tasks(
    data: str, tasks: Sequence[str], folds: int, unlabelled: str, probes: Sequence[str], headline: str
) -> tuple[Task, ...]:
    """The labelled lists, each tried out: what is wrong with labels or groups shows before hours of training."""
    found: dict[str, Task] = {}
    kinds = dict.fromkeys("linear" if probe == RETRIEVAL else probe for probe in probes)
    for source in tasks or [data]:
        manifest = read_manifest(source)
        name = task_name(source)
        if name in found:
            raise UserError(f'two tasks are called "{name}"; rename a list or its folder')
        judging = Judging(folds=folds, unlabelled=unlabelled)
        for kind in kinds:
            try:
                task = judging.task(manifest, cast(Kind, kind))
                check_folds(task, folds)
            except UserError as error:
                hint = "" if tasks else "; name labelled videos to evaluate on with --tasks"
                raise UserError(f"{error}{hint}") from error
            check_headline(headline, task)
        found[name] = Task(name, source, folds, manifest.digest())
    return tuple(found.values())


def check_headline(headline: str, task: Judged | RealTask) -> None:
    """Raises UserError for a metric that probes of ``task`` do not have."""
    if isinstance(task, RealTask):
        return  # numbers are judged by R²
    known = [name for name in HEADLINES if name != "top5" or len(task.classes) > 5]
    if headline not in known:
        raise UserError(
            f'headline="{headline}" is no metric here{nearest(headline, known)} (there are: {", ".join(known)})'
        )


def told(settings: Sequence[str], manifest: Manifest, shared: Mapping[str, Any]) -> list[str]:
    """What a reader must know of knobs of single methods, and of test clips among those that are pretrained on."""
    notes = [f"Set for single methods: {', '.join(settings)}."] if settings else []
    if "split" not in shared:
        notes.append(
            "The videos to pretrain on have no split, or all splits were asked for: clips that are evaluated on may be "
            "among them, without their labels, for all methods alike."
        )
    return notes


def known_probes(probes: Sequence[str]) -> tuple[str, ...]:
    """``probes``; raises UserError for one that there is not."""
    known = (*KINDS, RETRIEVAL)
    if wrong := [probe for probe in probes if probe not in known]:
        raise UserError(
            f'probe "{wrong[0]}" is unknown{nearest(wrong[0], known)} (there are: {", ".join(known)})'
        )
    return tuple(probes)


def same_for_all(
    data: str,
    recipe: str,
    manifest: Manifest,
    knobs: Mapping[str, Any],
    own: Mapping[str, Any],
    sizes: Sequence[str],
) -> tuple[str, dict[str, Any]]:
    """Encoder's size and the shared knobs, those of clip and batch decided as ``recipe`` would decide them."""
    shared = {"positions": POSITIONS, **knobs}
    if "split" not in shared and (training := sorted({v.split for v in manifest.videos if v.split in TRAIN})):
        shared["split"] = ",".join(training)
    if sizes:
        shared["model"] = sizes[0]
    with quietly():
        chosen = run_recipe(
            recipe, **{**shared, "steps": 1, **own}, data=data, out="unused", dry_run=True
        ).chosen
    shared.pop("model", None)
    sampling = {"fps": chosen.fps} if chosen.fps else {"frame_step": chosen.frame_step}
    return chosen.model, {
        **shared,
        **sampling,
        "crop_size": chosen.crop_size,
        "batch_size": chosen.batch_size,
    }
