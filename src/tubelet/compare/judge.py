"""All evaluations of one encoder."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from tubelet.compare.plan import RETRIEVAL, Eval, Plan, Task
from tubelet.data.manifest import Manifest, read_manifest
from tubelet.evaluate.amount import read_amounts
from tubelet.evaluate.features import Features, extract
from tubelet.evaluate.probe import DENSE, Judging, judge, judge_neighbours, plain_pool
from tubelet.evaluate.score import Kind
from tubelet.export.weights import Encoder, load_encoder
from tubelet.nn.pixels import Pixels
from tubelet.train.parallel import resolve_device


def left(plan: Plan, folder: Path) -> list[Eval]:
    """The evaluations that are not in ``folder`` yet."""
    return [one for one in plan.evals if not (folder / "eval" / one.key / "results.json").is_file()]


def judge_encoder(plan: Plan, folder: Path, spec: str, out: Path) -> None:
    """Evaluates the encoder ``spec`` in every way of the plan, into ``folder``/eval.

    What is there stays. Evaluations that read the same features share them. A layer that is deeper than the
    encoder, as raw pixels have none, is read as its last.
    """
    todo = left(plan, folder)
    if not todo:
        return
    encoder = load_encoder(spec)
    if isinstance(encoder.model, Pixels):
        todo = [one for one in todo if one.probe != "finetune"]  # pixels have nothing to tune
    for task in plan.tasks:
        mine = [one for one in todo if one.task == task.name]
        if not mine:
            continue
        manifest = read_manifest(task.data)
        groups = dict.fromkeys((one.probe in DENSE, one.layer) for one in mine)
        for dense, layer in groups:
            features = _features(plan, encoder, manifest, dense, layer, out)
            for one in mine:
                if (one.probe in DENSE, one.layer) == (dense, layer):
                    _judge(plan, encoder, manifest, features, task, one, folder / "eval" / one.key)


def _features(
    plan: Plan, encoder: Encoder, manifest: Manifest, dense: bool, layer: int | None, out: Path
) -> Features:
    return extract(
        encoder,
        manifest.videos,
        layers=None if layer is None else [min(layer, encoder.model.depth)],
        pool="none" if dense else plain_pool(encoder),
        cache=out / "features",
        frame_cache=_frames(plan),
        device=_device(plan),
        progress=False,
    )


def _judge(
    plan: Plan, encoder: Encoder, manifest: Manifest, features: Features, task: Task, one: Eval, folder: Path
) -> None:
    if one.probe == RETRIEVAL:
        judging = Judging(unlabelled=plan.unlabelled)
        judge_neighbours(encoder, manifest, features, judging, everywhere=task.folds > 0).save(folder)
        return
    kind = cast(Kind, one.probe)
    judging = Judging(
        folds=task.folds,
        labels=() if one.labels is None else read_amounts(one.labels),
        unlabelled=plan.unlabelled,
        draws=plan.draws,
    )
    judge(encoder, manifest, features, kind, judging, device=_device(plan), frame_cache=_frames(plan)).save(
        folder
    )


def _frames(plan: Plan) -> Path | None:
    """Where training has left decoded frames."""
    folder = plan.knobs.get("cache_dir")
    return None if folder is None else Path(folder)


def _device(plan: Plan) -> str:
    return str(resolve_device(str(plan.knobs.get("device", "auto"))))
