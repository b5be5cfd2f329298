"""What the encoders are shown: the same clips for all of them, their labels, and who learns from which."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tubelet.data.clips import within
from tubelet.data.container import DecodeError
from tubelet.data.index import index
from tubelet.data.manifest import Manifest, Video, read_manifest
from tubelet.errors import UserError
from tubelet.evaluate.features import Features, Reading, extract_source
from tubelet.evaluate.source import Source, VideoSource, Views
from tubelet.evaluate.tasks import Fold, Task, folds, read_task, take_label
from tubelet.export.weights import Encoder, Geometry

_AT_ONCE = 4096  # rows whose views are held at once


@dataclass(frozen=True)
class Manner:
    """How features are computed: where they and decoded frames are kept, how many clips at once, on what."""

    cache: Path | str | None = None
    frame_cache: Path | None = None
    batch_size: int = 16
    workers: int | None = None
    device: torch.device | str = "cpu"

    def extract(
        self, encoder: Encoder, source: Source, readings: Sequence[Reading], what: str = "features"
    ) -> dict[bool, Features]:
        """Means over each clip of ``source``, by whether the tokens were normed first."""
        return extract_source(
            encoder,
            source,
            readings,
            pool="clip",
            cache=self.cache,
            batch_size=self.batch_size,
            workers=self.workers,
            device=self.device,
            what=what,
        )

    def before_norm(self, encoder: Encoder, source: Source, layers: Sequence[int], what: str) -> Features:
        """The same of tokens as they leave their block; the last layer's are always normed."""
        return self.extract(encoder, source, [Reading(k, False) for k in layers], what)[False]


class Means:
    """Rows [n, D] of one layer's features, views averaged as they are read; see `analysis.similarity.Rows`.

    rows: int64 [n], of the source. Raises UserError if one of them could not be read when the features were made.
    """

    def __init__(self, found: Features, layer: int, rows: np.ndarray):
        if len(gone := np.setdiff1d(rows, found.rows)):
            why = found.excluded.get(int(gone[0]), "no reason was kept")
            raise UserError(
                f"{len(gone)} of {len(rows)} clips could be read before and cannot be any more; the first: {why}; "
                "bring the files back, or scan the data again"
            )
        self.table, self.rows = found.tables[layer], rows  # [videos, crops, segments, 1, D], memory-mapped

    @property
    def shape(self) -> tuple[int, ...]:
        """Clips and width."""
        return len(self.rows), self.table.shape[-1]

    def __getitem__(self, chosen: Any, /) -> np.ndarray:
        """float32 [len, D] of the chosen of the n rows, some of which at a time are held with all their views."""
        picked = np.atleast_1d(self.rows[chosen])
        out = np.empty((len(picked), self.table.shape[-1]), np.float32)
        for start in range(0, len(picked), _AT_ONCE):
            part = self.table[picked[start : start + _AT_ONCE]]
            out[start : start + _AT_ONCE] = part.mean(axis=(1, 2, 3), dtype=np.float32)
        return out


@dataclass(frozen=True)
class Footage:
    """The videos of DATA, and the task that their labels make.

    count: folds, 0 for the list's own split. views: clips per video. labelled: whether there are labels at all;
    without, nothing that needs them is measured.
    """

    manifest: Manifest
    videos: Sequence[Video]
    count: int
    unlabelled: str
    views: Views
    seed: int
    labelled: bool = field(default=True)

    @property
    def source(self) -> str:
        """What the data are called."""
        return str(self.manifest.source)

    def of(self, geometry: Geometry, frame_cache: Path | None) -> VideoSource:
        """The clips of all videos, as an encoder of ``geometry`` wants them."""
        return VideoSource(self.videos, geometry, self.views, frame_cache)

    def task(self, readable: np.ndarray) -> Asked:
        """What is asked of the clips ``readable``, int64 [n] rows of the manifest."""
        if not self.labelled:
            return Asked(readable, None, [])
        gone = sorted(set(range(len(self.videos))) - set(readable.tolist()))
        task = read_task(self.videos, self.source, self.unlabelled, gone)
        return Asked(task.rows, task, folds(task, self.count, self.seed))

    def shorter(self, geometry: Geometry) -> int:
        """How many videos are shorter than a clip of ``geometry``: their last frame is repeated."""
        found = 0
        for video in self.videos:
            try:
                times = index(video.path, video.fps, video.frames).times
            except DecodeError:
                continue
            first, end = within(times, video.start, video.end)
            if geometry.fps:
                # half a frame of tolerance: a clip that ends with the video is whole
                seconds = float(times[end - 1] - times[first]) if end > first else 0.0
                found += seconds < (geometry.frames - 1.5) / geometry.fps
            else:
                found += end - first < (geometry.frames - 1) * geometry.frame_step + 1
        return found


@dataclass(frozen=True)
class Asked:
    """The clips that count, int64 [n] rows of the manifest; their task and its folds, None and none without labels."""

    rows: np.ndarray
    task: Task | None
    folds: list[Fold]

    @property
    def tested(self) -> np.ndarray:
        """The clips that retrieval searches: the test clips of the split, all of folds; places in ``rows``."""
        return np.unique(np.concatenate([fold.test for fold in self.folds]))

    @property
    def clusters(self) -> np.ndarray | None:
        """Groups of the clips in ``tested``, which intervals draw again; None if there are none."""
        return None if self.task is None or self.task.group is None else self.task.group[self.tested]

    @property
    def chance(self) -> float:
        """Share of the commonest class among the test clips: what an answer without looking gets."""
        assert self.task is not None
        label = self.task.label[self.tested]
        return float(np.bincount(label).max() / len(label))

    def digest(self) -> str:
        """16 hex digits over rows, labels and folds."""
        assert self.task is not None
        parts = [
            self.rows,
            self.task.label,
            *(part for fold in self.folds for part in (fold.train, fold.test)),
        ]
        seen = hashlib.sha256()
        for part in parts:
            seen.update(np.ascontiguousarray(part, np.int64).tobytes() + b"|")
        return seen.hexdigest()[:16]


def read_footage(
    data: Path | str,
    label: str | None = None,
    count: int = 0,
    unlabelled: str = "error",
    views: Views | None = None,
    seed: int = 0,
) -> Footage:
    """The footage of DATA; raises UserError for labels, splits, groups or folds that make no task.

    Videos that have no label at all are no mistake: then nothing that needs labels is measured.
    """
    if count < 0 or count == 1:
        raise UserError(
            f"folds={count}: 0 follows the split column, 2 or more cut the clips into as many folds"
        )
    manifest = read_manifest(data)
    videos = manifest.videos if label is None else take_label(manifest.videos, label, str(manifest.source))
    labelled = label is not None or any(video.label for video in videos)
    footage = Footage(manifest, videos, count, unlabelled, views or Views(), seed, labelled)
    footage.task(np.arange(len(videos)))  # mistakes in the labels come before hours of extraction
    return footage


def digest(identity: dict[str, Any]) -> str:
    """16 hex digits of a source's identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
