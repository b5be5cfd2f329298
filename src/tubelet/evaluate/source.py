"""Where clips to be looked at come from: videos, or anything else that can be read row by row."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tubelet.data import cache as frames
from tubelet.data import clips
from tubelet.data.augment import CenterCrop
from tubelet.data.container import DecodeError
from tubelet.data.manifest import Video
from tubelet.data.source import ClipReader
from tubelet.data.stamp import stamp
from tubelet.errors import UserError
from tubelet.export.weights import Geometry


@dataclass(frozen=True)
class Views:
    """How a video is looked at: ``segments`` clips evenly spaced in time, ``crops`` along the long side.

    One crop: the centre. Several: evenly from one end of the long side to the other. How large a part of the
    picture a crop shows, and what happens to small videos: `data.augment.CenterCrop`. Source: V-JEPA's evaluation.
    """

    segments: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        if self.segments < 1 or self.crops < 1:
            raise UserError(f"views need at least 1 segment and 1 crop, not {self.segments} and {self.crops}")

    @property
    def count(self) -> int:
        """Clips per video."""
        return self.segments * self.crops


class Source(Protocol):
    """Rows of clips, each a pure function of its number; read from several threads at once."""

    @property
    def views(self) -> Views:
        """How many clips a row has."""
        ...

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def read(self, row: int) -> Tensor:
        """Float32 [crops * segments, 3, T, H, W], crops outermost, as the encoder wants them.

        Raises DecodeError if the row cannot be read.
        """
        ...

    def name(self, row: int) -> str:
        """What a message calls the row."""
        ...

    def identity(self) -> dict[str, Any]:
        """Everything that the clips depend on, as JSON."""
        ...

    def prepare(self) -> None:
        """Called once before rows are read; raises UserError for what would stop the reading half-way."""
        ...


@dataclass(frozen=True)
class VideoSource:
    """Clips of videos, by an encoder's geometry.

    frame_cache: where decoded frames are kept; the clips are the same without it, and so is the identity.
    """

    videos: Sequence[Video]
    geometry: Geometry
    views: Views = Views()
    frame_cache: Path | None = None

    def __len__(self) -> int:
        return len(self.videos)

    def read(self, row: int) -> Tensor:
        """Clips of one video, see `read_views`."""
        return read_views(self.videos[row], self.geometry, self.views, self.frame_cache)

    def name(self, row: int) -> str:
        """The video's path."""
        return str(self.videos[row].path)

    def identity(self) -> dict[str, Any]:
        """Path and stamp of every video, what of it is used, and how it is looked at."""
        geometry = self.geometry
        return {
            "views": asdict(self.views),
            "geometry": [
                geometry.frames,
                geometry.fps,
                None if geometry.fps else geometry.frame_step,
                geometry.crop_size,
                list(geometry.mean),
                list(geometry.std),
            ],
            "videos": [_identity(video) for video in self.videos],
        }

    def prepare(self) -> None:
        """Raises UserError if the frame cache's disk cannot hold the videos."""
        if self.frame_cache is not None:
            readable = [video for video in self.videos if _state(video) is not None]
            side = _crop(self.geometry, self.views).short_side
            frames.check_room(readable, side, self.frame_cache)


def read_views(video: Video, geometry: Geometry, views: Views, frame_cache: Path | None = None) -> Tensor:
    """Clips of one video, float32 [crops * segments, 3, T, H, W], crops outermost, normalised.

    frame_cache: where decoded frames are kept; the clips are the same without it. Raises DecodeError if the video
    cannot be read.
    """
    crop = _crop(geometry, views)
    step = None if geometry.fps else geometry.frame_step
    reader = ClipReader(geometry.frames, geometry.fps, step, crop.short_side, frame_cache)
    pictures = reader.read(video, clips.places(views.segments))  # segments of [T, H, W, 3]
    cut = crop([torch.from_numpy(clip) for clip in pictures])  # [segments, crops, 3, T, H, W]
    return cut.transpose(0, 1).flatten(0, 1)


def _crop(geometry: Geometry, views: Views) -> CenterCrop:
    return CenterCrop(geometry.crop_size, views.crops, mean=geometry.mean, std=geometry.std)


def _state(video: Video) -> list[Any] | None:
    """The stamp of the file, None if it cannot be read."""
    try:
        return list(stamp(video.path))
    except DecodeError:
        return None


def _identity(video: Video) -> list[Any]:
    """Path and stamp; what of it is used; the rate, where a list alone knows it."""
    rate = video.fps if os.path.isdir(video.path) else None
    return [os.path.realpath(video.path), _state(video), video.start, video.end, rate]
