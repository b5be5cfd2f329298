"""What a recipe wants to know of the videos before it trains."""

from __future__ import annotations

import functools
import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tubelet.data.decode import DecodeError, index, read
from tubelet.data.manifest import Manifest, Video
from tubelet.data.stamp import Stamp, stamp
from tubelet.data.stream import STILLS
from tubelet.errors import UserError
from tubelet.evaluate.source import Views, read_views
from tubelet.export.weights import Geometry
from tubelet.recipes.fit import Footage

log = logging.getLogger("tubelet")
LOOKS = 64


def look_at(manifest: Manifest) -> Footage:
    """Length, rate and size of the videos: from a scan's columns, or of up to 64 files read now.

    Without a scan, the lengths of the others are taken to be spread like those of the 64.
    Raises UserError if not one of them can be read.
    """
    videos = manifest.videos
    scanned = [v for v in videos if v.frames and v.fps and v.width and v.height]
    if len(scanned) == len(videos):
        fps = [float(v.fps or 0) for v in videos]
        frames = [_within(v, int(v.frames or 0), rate) for v, rate in zip(videos, fps, strict=True)]
        return Footage(len(videos), frames, fps, [min(int(v.width or 0), int(v.height or 0)) for v in videos])
    frames, fps, sides = [], [], []
    for place in np.linspace(0, len(videos) - 1, min(LOOKS, len(videos))).round().astype(int).tolist():
        video = videos[place]
        try:
            count, rate, side = _measure(video.path, video.fps, stamp(video.path))
        except DecodeError as error:
            log.warning(f"{error}")
            continue
        fps.append(rate)
        frames.append(_within(video, count, rate))
        sides.append(side)
    if not frames:
        raise UserError(
            f"{manifest.source}: none of the first looks at {len(videos)} videos found a readable one"
        )
    repeat = np.resize(np.arange(len(frames)), len(videos))
    return Footage(len(videos), [frames[i] for i in repeat], [fps[i] for i in repeat], sides)


@functools.lru_cache(maxsize=16 * LOOKS)  # a plan of many runs looks at the same files many times
def _measure(path: Path, fps: float | None, _: Stamp) -> tuple[int, float, int]:
    """Frames, frames a second and short side of a file in the state that its stamp tells."""
    found = index(path, fps)
    picture = read(path, [0])
    return len(found), len(found) / found.duration if found.duration > 0 else STILLS, min(picture.shape[1:3])


def _within(video: Video, frames: int, fps: float) -> int:
    """How many of a file's frames a row's start and end leave."""
    first, last = (video.start or 0.0) * fps, frames if video.end is None else min(frames, video.end * fps)
    return max(1, round(last - first))


def probe_clips(manifest: Manifest, geometry: Geometry, count: int) -> Tensor:
    """Centre clips of up to ``count`` videos spread over the manifest, float32 [n, C, T, H, W], normalised.

    Always the same ones for a manifest, so that what is measured on them over time can be compared. A single
    video gives several clips of its own. Raises UserError if fewer than two clips can be read.
    """
    videos = manifest.videos
    segments = -(-8 // len(videos))  # from eight videos on: one
    clips: list[Tensor] = []
    for place in np.linspace(0, len(videos) - 1, min(count, len(videos))).round().astype(int).tolist():
        try:
            clips.append(read_views(videos[place], geometry, Views(segments=segments)))
        except DecodeError as error:
            log.warning(f"not among the clips that health is measured on: {error}")
    if not clips:
        raise UserError(f"{manifest.source}: no clip could be read")
    return torch.cat(clips)[:count]
