"""Clips of one video: frames chosen, then decoded or taken from the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tubelet.errors import UserError

from . import cache, clips, decode
from .container import DecodeError
from .manifest import Video


@dataclass(frozen=True)
class ClipReader:
    """Reads clips of ``frames`` frames, either ``fps`` a second or every ``frame_step``-th.

    short_side: larger pictures are shrunk to it. cache_dir: where decoded frames are kept (see `cache`).
    """

    frames: int
    fps: float | None = None
    frame_step: int | None = None
    short_side: int | None = None
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        if (self.fps is None) == (self.frame_step is None):
            raise UserError(f"fps={self.fps}, frame_step={self.frame_step}: give exactly one of the two")
        for name in ("frames", "fps", "frame_step", "short_side"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"{name}={value} must be positive")

    def read(self, video: Video, at: Sequence[float]) -> list[np.ndarray]:
        """One clip, uint8 [T, H, W, 3], for each place of ``at`` in [0, 1) (see `clips`); all in one pass.

        Raises DecodeError.
        """
        if self.cache_dir is not None:
            stored = cache.frames_of(video, self.short_side, self.cache_dir)
            chosen = [self._choose(video, stored.times, place) for place in at]
            for numbers in chosen:
                decode.refuse_holes(video.path, stored.exact[np.unique(numbers)])
            return [stored.pictures[numbers] for numbers in chosen]
        known = video.frames if video.status == "ok" else None
        while True:
            entry = decode.index(video.path, video.fps, known)
            chosen = [self._choose(video, entry.times, place) for place in at]
            try:
                pictures = decode.read(video.path, np.concatenate(chosen), self.short_side)
                return list(pictures.reshape(len(at), self.frames, *pictures.shape[1:]))
            except decode.IndexChanged:
                continue

    def _choose(self, video: Video, times: np.ndarray, at: float) -> np.ndarray:
        """int64 [frames]: frame numbers."""
        if np.isnan(times[0]):
            if self.fps is not None or video.start is not None or video.end is not None:
                raise DecodeError(
                    video.path, "images have no times: give the list an fps column, or use frame_step"
                )
            return clips.by_step(len(times), self.frames, self.frame_step or 1, at)
        first, last = clips.within(times, video.start, video.end)
        if first == last:
            end = "the end" if video.end is None else f"{video.end:g} s"
            raise DecodeError(video.path, f"no frame between {video.start or 0:g} s and {end}")
        if self.fps is not None:
            return first + clips.by_fps(times[first:last], self.frames, self.fps, at)
        return first + clips.by_step(last - first, self.frames, self.frame_step or 1, at)
