"""From an encoder and labelled videos to a score: what ``tubelet probe`` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tubelet.data.manifest import Manifest, Video, read_manifest
from tubelet.errors import UserError, nearest
from tubelet.evaluate.amount import Amount, read_amounts
from tubelet.evaluate.attentive import AttentiveSettings, Tokens
from tubelet.evaluate.features import Features, Pool, extract
from tubelet.evaluate.finetune import FinetuneResult, FinetuneSettings, find_finetune, finetune_scores
from tubelet.evaluate.presets import find_preset
from tubelet.evaluate.result import FewLabels, ProbeResult, count_draws
from tubelet.evaluate.retrieval import RetrievalResult, judge_retrieval
from tubelet.evaluate.score import KINDS, Kind, Scored, Tuned, score
from tubelet.evaluate.source import Views
from tubelet.evaluate.tasks import Task, folds, read_task, take_label
from tubelet.evaluate.values import RealTask, read_values, value_folds
from tubelet.export.weights import Encoder
from tubelet.nn.pixels import Pixels

DENSE: tuple[Kind, ...] = ("attentive",)  # these read all tokens, the others one vector per video


@dataclass(frozen=True)
class Judging:
    """How features are judged, whatever they are of.

    label: the manifest's column to take labels from. folds: 0 follows the split column, 2 or more cuts
    group-disjoint folds. labels: amounts of labels to learn from, all of them if empty. draws: how often few
    labels are drawn. unlabelled: "error", or "exclude". settings: of the attentive probe. tuning: of fine-tuning. seed:
    of everything random. notes: what a reader must know besides.
    Raises UserError for numbers that make no sense.
    """

    label: str | None = None
    folds: int = 0
    labels: tuple[Amount, ...] = ()
    draws: int = 5
    unlabelled: str = "error"
    settings: AttentiveSettings | None = None
    tuning: FinetuneSettings | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.folds < 0 or self.folds == 1:
            raise UserError(
                f"folds={self.folds}: 0 follows the split column, 2 or more cut the clips into as many folds"
            )
        if self.draws < 1:
            raise UserError(f"draws={self.draws}: must be at least 1")

    def videos(self, manifest: Manifest) -> Sequence[Video]:
        """The manifest's videos, with the label that is asked for."""
        source = str(manifest.source)
        return manifest.videos if self.label is None else take_label(manifest.videos, self.label, source)

    def task(self, manifest: Manifest, kind: Kind, excluded: Sequence[int] = ()) -> Task | RealTask:
        """The task that ``kind`` is asked; raises UserError for labels, splits or groups that make none."""
        read = read_values if kind == "ridge" else read_task
        return read(self.videos(manifest), str(manifest.source), self.unlabelled, excluded)


def probe(
    encoder: Encoder,
    data: Manifest | Path | str,
    kind: Kind = "linear",
    *,
    preset: str | None = None,
    pool: Pool | None = None,
    layers: Sequence[int] | None = None,
    views: Views | None = None,
    label: str | None = None,
    folds: int = 0,
    labels: str | None = None,
    per_class: int | None = None,
    draws: int = 5,
    unlabelled: str = "error",
    settings: AttentiveSettings | None = None,
    tuning: FinetuneSettings | None = None,
    best_on_test: bool = False,
    seed: int = 0,
    out: Path | None = None,
    cache: Path | str | None = None,
    frame_cache: Path | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ProbeResult:
    """Trains a probe on the frozen features of ``encoder`` and tests it.

    encoder: from `tubelet.export.weights.load_encoder`; its geometry says how many frames a clip has. data: a
    manifest, or what `read_manifest` reads; its labels, splits and groups make the task (`tasks.read_task`,
    `values.read_values`). kind: "linear" (logistic regression, penalty chosen inside the training clips), "knn"
    (cosine, k 5 and 20), "attentive" (`AttentiveSettings`), "ridge" (labels that are numbers, penalty chosen as
    for linear) or "finetune" (not frozen: a copy of the encoder is trained too, `FinetuneSettings`). preset: of
    `presets.PRESETS` for attentive, of `finetune.FINETUNE` for finetune; it decides clips, views, layers and settings.
    best_on_test: choose the attentive head by its test score, as V-JEPA 2's published numbers do; the result says so.
    pool: "mean", "time" or "flat", see `extract` (default: mean, for raw pixels flat: their mean is
    a colour); attentive reads all tokens. layers: joined (default: the last). views: segments and crops of each
    video. label: another column of the manifest to take labels from. folds: 0 follows the split column, 2 or
    more cuts group-disjoint folds instead. labels: amounts such as "1,5,10%,100%", each with a result of its own
    (`amount.read_amounts`); the largest is the headline. per_class: the same, of one number. draws: how often few
    labels are drawn. out: folder for the files of `ProbeResult.save`. frame_cache: see `extract`.
    Raises UserError for whatever is wrong with data or knobs.
    """
    if kind not in KINDS:
        known = f"{', '.join(KINDS[:-1])} or {KINDS[-1]}"
        raise UserError(f'kind="{kind}" is unknown{nearest(kind, KINDS)} (known: {known})')
    _refuse(pool, workers)
    if kind in DENSE and pool is not None:
        raise UserError(f'pool="{pool}" does not go with kind="{kind}"; leave it out')
    notes: tuple[str, ...] = ()
    if preset is not None:
        if any(given is not None for given in (layers, views, settings, tuning)):
            raise UserError(f"preset={preset} decides layers, views and settings; leave those out")
        encoder, layers, views, settings, tuning, notes = _preset(encoder, kind, preset)
    if best_on_test:
        if kind != "attentive":
            raise UserError(
                f'best_on_test is about attentive heads, and kind="{kind}" has none; leave it out'
            )
        settings = replace(settings or AttentiveSettings(), best_on="test")
    judging = Judging(
        label, folds, _amounts(labels, per_class), draws, unlabelled, settings, tuning, seed, notes
    )
    manifest = read_manifest(data)
    # mistakes in the labels come before hours of extraction
    check_folds(judging.task(manifest, kind), folds, seed)
    features = extract(
        encoder,
        manifest.videos,
        layers=layers,
        pool="none" if kind in DENSE else pool or plain_pool(encoder),
        views=views,
        cache=cache,
        frame_cache=frame_cache,
        batch_size=batch_size,
        workers=workers,
        device=device,
        progress=progress,
    )
    result = judge(encoder, manifest, features, kind, judging, views, device, progress, frame_cache, workers)
    if out is not None:
        result.save(out)
    return result


def retrieve(
    encoder: Encoder,
    data: Manifest | Path | str,
    *,
    pool: Pool | None = None,
    layers: Sequence[int] | None = None,
    views: Views | None = None,
    label: str | None = None,
    unlabelled: str = "error",
    within: str = "test",
    seed: int = 0,
    out: Path | None = None,
    cache: Path | str | None = None,
    frame_cache: Path | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> RetrievalResult:
    """Whether the clips nearest to a clip show the same: mAP, hit@k and recall@k, no probe trained.

    within: "test" searches among the test clips, as the blockwise paper does (among all, if the list has no split);
    "all" among all. The other arguments as for `probe`; out: folder for results.json.
    Raises UserError as `probe` does, and if no clip has another of its class to find.
    """
    if within not in ("test", "all"):
        raise UserError(f'within="{within}" is unknown{nearest(within, ("test", "all"))} (known: test, all)')
    _refuse(pool, workers)
    judging = Judging(label, unlabelled=unlabelled, seed=seed)
    manifest = read_manifest(data)
    judging.task(manifest, "linear")  # mistakes in the labels come before hours of extraction
    features = extract(
        encoder,
        manifest.videos,
        layers=layers,
        pool=pool or plain_pool(encoder),
        views=views,
        cache=cache,
        frame_cache=frame_cache,
        batch_size=batch_size,
        workers=workers,
        device=device,
        progress=progress,
    )
    result = judge_neighbours(encoder, manifest, features, judging, within == "all")
    if out is not None:
        result.save(out)
    return result


def _refuse(pool: Pool | None, workers: int | None) -> None:
    """Raises UserError for what `extract` would take, or complain of after the videos were looked at."""
    if pool == "none":
        raise UserError('pool="none" does not go with one vector per video; leave it out')
    if workers is not None and workers < 0:
        raise UserError(f"workers={workers}: must be 0 (one per core) or more")


def plain_pool(encoder: Encoder) -> Pool:
    """How probes of one vector per video pool: the mean token; of raw pixels all, for their mean is a colour."""
    return "flat" if isinstance(encoder.model, Pixels) else "mean"


def judge_neighbours(
    encoder: Encoder, manifest: Manifest, features: Features, judging: Judging, everywhere: bool
) -> RetrievalResult:
    """Retrieval on features that were extracted from ``manifest``'s videos, among its test clips or ``everywhere``.

    Raises UserError if no clip has another of its class to find.
    """
    task = judging.task(manifest, "linear", list(features.excluded))
    assert isinstance(task, Task)
    about = {"encoder": {"name": encoder.name, "digest": encoder.digest}, "data": str(manifest.source)}
    rows = features.pooled()[np.searchsorted(features.rows, task.rows)]
    clips = np.arange(len(task)) if everywhere else None
    try:
        return judge_retrieval(rows, task, judging.videos(manifest), about, clips, seed=judging.seed)
    except ValueError as error:
        raise UserError(f"{manifest.source}: {error}") from error


def judge(
    encoder: Encoder,
    manifest: Manifest,
    features: Features,
    kind: Kind,
    judging: Judging,
    views: Views | None = None,
    device: torch.device | str = "cpu",
    progress: bool = False,
    frame_cache: Path | None = None,
    workers: int | None = None,
) -> ProbeResult:
    """Trains and tests a probe on features that were extracted from ``manifest``'s videos by ``encoder``.

    views: as the features were extracted with; for the record only. frame_cache, workers: for fine-tuning, which
    reads the videos again.
    Raises UserError if the labels of the videos that could be read make no task.
    """
    task = judging.task(manifest, kind, list(features.excluded))

    def tokens(clips: np.ndarray) -> Tensor:
        return features.tokens(task.rows[clips])

    def tuned(
        train: np.ndarray, label: np.ndarray, test: np.ndarray, group: np.ndarray | None
    ) -> FinetuneResult:
        assert isinstance(task, Task)
        return finetune_scores(
            encoder,
            judging.videos(manifest),
            task.rows[train],
            label,
            task.rows[test],
            len(task.classes),
            group,
            judging.tuning,
            judging.seed,
            device,
            frame_cache=frame_cache,
            workers=workers or None,
            progress=progress,
        )

    if kind == "finetune":
        given: np.ndarray | Tokens | Tuned = tuned
    elif kind in DENSE:
        given = tokens
    else:
        given = features.pooled()[np.searchsorted(features.rows, task.rows)]
    scored = [
        score(
            given,
            task,
            kind,
            split_folds=judging.folds,
            labels=amount,
            draws=judging.draws,
            settings=judging.settings,
            seed=judging.seed,
            device=device,
            progress=progress,
        )
        for amount in judging.labels or (None,)
    ]
    scored = [replace(one, notes=(*one.notes, *judging.notes)) for one in scored]
    few = tuple(FewLabels(amount, one) for amount, one in zip(judging.labels, scored, strict=False))
    most = max(range(len(scored)), key=lambda place: (scored[place].train, place))
    videos = manifest.videos
    return ProbeResult(
        _about(encoder, manifest, features, kind, judging, views or Views(), scored, most),
        task,
        scored[most],
        [videos[row] for row in task.rows],
        {str(videos[row].path): why for row, why in features.excluded.items()},
        few,
    )


def _about(
    encoder: Encoder,
    manifest: Manifest,
    features: Features,
    kind: Kind,
    judging: Judging,
    views: Views,
    scored: Sequence[Scored],
    most: int,
) -> dict[str, Any]:
    """What goes into results.json beside the scores. most: place of the headline among ``scored``."""
    headline = judging.labels[most] if judging.labels else None
    return {
        "encoder": {"name": encoder.name, "digest": encoder.digest},
        "data": str(manifest.source),
        "kind": kind,
        "protocol": f"{encoder.geometry.frames}x{views.segments}x{views.crops}",
        "pool": features.pool,
        "layers": list(features.tables),
        "label": judging.label,
        "folds": judging.folds,
        "labels": [str(amount) for amount in judging.labels],
        "headline_labels": None if headline is None else str(headline),
        "per_class": None if headline is None else headline.count,
        "draws": count_draws(scored[most]),
        "seed": judging.seed,
        "unlabelled": judging.unlabelled,
        "settings": _settings(kind, judging),
    }


def _settings(kind: Kind, judging: Judging) -> dict[str, Any] | None:
    """What heads, or the whole encoder, are trained with; None where nothing is."""
    if kind == "finetune":
        return asdict(judging.tuning or FinetuneSettings())
    return asdict(judging.settings or AttentiveSettings()) if kind in DENSE else None


class _Chosen(NamedTuple):
    """What a preset decides."""

    encoder: Encoder
    layers: Sequence[int] | None
    views: Views | None
    settings: AttentiveSettings | None
    tuning: FinetuneSettings | None
    notes: tuple[str, ...]


def _preset(encoder: Encoder, kind: Kind, name: str) -> _Chosen:
    if kind == "finetune":
        tuning = find_finetune(name)
        return _Chosen(encoder, None, Views(tuning.segments, tuning.crops), None, tuning, ())
    if kind != "attentive":
        raise UserError(f'preset="{name}" is for kind="attentive" or "finetune", not "{kind}"')
    preset = find_preset(name)
    clips = replace(encoder, geometry=preset.geometry(encoder.geometry))
    views = preset.protocol(encoder.geometry).views
    layers = preset.layers_of(encoder.model.depth)
    return _Chosen(clips, layers, views, preset.settings, None, (f"{preset.source}: {preset.note}",))


def _amounts(labels: str | None, per_class: int | None) -> tuple[Amount, ...]:
    if labels is not None and per_class is not None:
        raise UserError("labels and per_class were both given; labels can say all that per_class says")
    if per_class is not None:
        if per_class < 1:
            raise UserError(f"per_class={per_class}: must be at least 1")
        return (Amount(count=per_class),)
    return () if labels is None else read_amounts(labels)


def check_folds(task: Task | RealTask, count: int, seed: int = 0) -> None:
    """Raises UserError if the task cannot be cut into folds."""
    if isinstance(task, RealTask):
        value_folds(task, count, seed)
    else:
        folds(task, count, seed)
