"""From an encoder and labelled videos to a score: what ``tubelet probe`` does."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from tubelet.data.manifest import Manifest, read_manifest
from tubelet.errors import UserError
from tubelet.evaluate.attentive import AttentiveSettings
from tubelet.evaluate.features import Pool, Views, extract
from tubelet.evaluate.metrics import Estimate
from tubelet.evaluate.score import KINDS, Kind, Scored, score
from tubelet.evaluate.tasks import Task, read_task
from tubelet.export.weights import Encoder
from tubelet.files import replace_file, write_json
from tubelet.nn.pixels import Pixels


@dataclass(frozen=True)
class ProbeResult:
    """A probe's scores and all that is needed to quote them.

    scored: metrics, predictions, chosen knobs, notes. paths: of the task's clips. excluded: unreadable videos and
    why. about: encoder, data, protocol and knobs, as they go into results.json.
    """

    about: dict[str, Any]
    task: Task
    scored: Scored
    paths: list[str]
    excluded: dict[str, str]

    @property
    def metrics(self) -> dict[str, Estimate]:
        """ "top1" and "macro_recall"; for knn one of each per k, "top1@k5"."""
        return self.scored.metrics

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers must know."""
        return self.scored.notes

    @property
    def guessing(self) -> dict[str, float]:
        """What a blind guess reaches: macro recall of any, top1 of always the commonest test class."""
        tested = np.bincount(next(iter(self.scored.predictions.values())).label)
        return {"macro_recall": 1 / int((tested > 0).sum()), "top1": float(tested.max() / tested.sum())}

    def sentence(self) -> str:
        """The result in a line: macro recall with its interval, and what guessing reaches."""
        shown = ", ".join(f"{name} {value}" for name, value in self.metrics.items() if "macro_recall" in name)
        return (
            f"{self.about['encoder']['name']}, {self.about['kind']} probe on {self.about['data']}: {shown} "
            f"(guessing {self.guessing['macro_recall']:.3f}; {self.scored.train} training and {self.scored.test} "
            "test clips)"
        )

    def save(self, folder: Path) -> None:
        """Writes predictions.csv and results.json into ``folder``, each whole or not at all."""
        with replace_file(Path(folder) / "predictions.csv") as draft, draft.open("w", newline="") as handle:
            self._write_predictions(handle)
        record = {
            **self.about,
            "metrics": {name: asdict(value) for name, value in self.metrics.items()},
            "guessing": self.guessing,
            "train_clips": self.scored.train,
            "test_clips": self.scored.test,
            "classes": list(self.task.classes),
            "chosen": self.scored.chosen,
            "excluded": self.excluded,
            "notes": list(self.notes),
        }
        write_json(Path(folder) / "results.json", record)

    def _write_predictions(self, handle: TextIO) -> None:
        classes, group = self.task.classes, self.task.group
        writer = csv.writer(handle)
        writer.writerow(
            ["path", "group", "probe", "draw", "label", "predicted", *(f"p_{c}" for c in classes)]
        )
        for suffix, made in self.scored.predictions.items():
            for clip, draw, label, best, scores in zip(
                made.clip, made.draw, made.label, made.predicted, made.scores, strict=True
            ):
                where = [self.paths[clip], "" if group is None else group[clip], self.about["kind"] + suffix]
                said = [draw, classes[label], classes[best], *(f"{p:.4f}" for p in scores)]
                writer.writerow(where + said)


def probe(
    encoder: Encoder,
    data: Manifest | Path | str,
    kind: Kind = "linear",
    *,
    pool: Pool | None = None,
    layers: Sequence[int] | None = None,
    views: Views | None = None,
    folds: int = 0,
    per_class: int | None = None,
    draws: int = 5,
    unlabelled: str = "error",
    settings: AttentiveSettings | None = None,
    seed: int = 0,
    out: Path | None = None,
    cache: Path | str | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> ProbeResult:
    """Trains a probe on the frozen features of ``encoder`` and tests it.

    encoder: from `tubelet.export.weights.load_encoder`. data: a manifest, or what `read_manifest` reads; its
    labels, splits and groups make the task (`tasks.read_task`). kind: "linear" (logistic regression, penalty
    chosen inside the training clips), "knn" (cosine, k 5 and 20) or "attentive" (`AttentiveSettings`). pool:
    "mean", "time" or "flat" for linear and knn, see `extract` (default: mean, for raw pixels flat: their mean
    is a colour); attentive reads all tokens. layers: joined (default:
    the last). folds: 0 follows the split column, 2 or more cuts group-disjoint folds instead. per_class, draws:
    few labels, see `score`. out: folder for results.json and predictions.csv.
    Raises UserError for whatever is wrong with data or knobs.
    """
    if kind not in KINDS:
        raise UserError(f'kind="{kind}" is unknown; use "linear", "knn" or "attentive"')
    if folds < 0 or folds == 1:
        raise UserError(
            f"folds={folds}: 0 follows the split column, 2 or more cut the clips into as many folds"
        )
    if workers is not None and workers < 0:
        raise UserError(f"workers={workers}: must be 0 (one per core) or more")
    dense = kind == "attentive"
    if pool is not None and dense != (pool == "none"):
        raise UserError(f'pool="{pool}" does not go with kind="{kind}"; leave it out')
    if pool is None:
        pool = "none" if dense else "flat" if isinstance(encoder.model, Pixels) else "mean"
    manifest = read_manifest(data)
    source = str(manifest.source)
    videos = manifest.videos
    read_task(videos, source, unlabelled)  # mistakes in the labels come before hours of extraction
    features = extract(
        encoder,
        videos,
        layers=layers,
        pool=pool,
        views=views,
        cache=cache,
        batch_size=batch_size,
        workers=workers,
        device=device,
        progress=progress,
    )
    task = read_task(videos, source, unlabelled, list(features.excluded))

    def tokens(clips: np.ndarray) -> Tensor:
        return features.tokens(task.rows[clips])

    scored = score(
        tokens if dense else features.pooled()[np.searchsorted(features.rows, task.rows)],
        task,
        kind,
        split_folds=folds,
        per_class=per_class,
        draws=draws,
        settings=settings,
        seed=seed,
        device=device,
    )
    geometry, seen = encoder.geometry, views or Views()
    about = {
        "encoder": {"name": encoder.name, "digest": encoder.digest},
        "data": source,
        "kind": kind,
        "protocol": f"{geometry.frames}x{seen.segments}x{seen.crops}",
        "pool": pool,
        "layers": list(features.tables),
        "folds": folds,
        "per_class": per_class,
        "draws": draws if per_class is not None else 1,
        "seed": seed,
        "unlabelled": unlabelled,
        "settings": asdict(settings or AttentiveSettings()) if dense else None,
    }
    paths = [str(videos[row].path) for row in task.rows]
    excluded = {str(videos[row].path): why for row, why in features.excluded.items()}
    result = ProbeResult(about, task, scored, paths, excluded)
    if out is not None:
        result.save(out)
    return result
