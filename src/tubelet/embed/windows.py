"""Which frames a sliding window shows: pure functions from time stamps to frame numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tubelet.data import clips
from tubelet.data.container import DecodeError
from tubelet.data.index import Index
from tubelet.data.manifest import Video
from tubelet.errors import UserError
from tubelet.export.geometry import Geometry

SLACK = 1e-6  # seconds or frames: what rounding may do


@dataclass(frozen=True)
class Span:
    """A length of video: seconds, or frames as the file has them."""

    amount: float
    unit: Literal["s", "frames"]

    def __str__(self) -> str:
        """What `read_span` reads back as the very same length, however many digits that takes."""
        return f"{self.amount!r}".removesuffix(".0") + ("s" if self.unit == "s" else "")


def read_span(text: str | int, what: str = "window") -> Span:
    """ "4s" and "0.5s" are seconds, "64" is frames; raises UserError, with ``what`` it is, for anything else."""
    word = str(text).strip()
    seconds = word.endswith("s")
    try:
        amount = float(word.removesuffix("s")) if seconds else int(word)
    except ValueError:
        amount = math.nan
    if not (0 < amount < math.inf):
        raise UserError(f'{what}="{text}" is no length of video; write seconds as "4s", or frames as "64"')
    return Span(amount, "s" if seconds else "frames")


@dataclass(frozen=True)
class Sliding:
    """Windows of length ``window``, one every ``stride``, from the beginning of a video on.

    The last window may be shorter: it is kept if the video fills at least half of it and something in it that no
    full window shows. A video shorter than a window is one window. (All ours.)
    Raises UserError if one length is seconds and the other frames.
    """

    window: Span
    stride: Span

    def __post_init__(self) -> None:
        if self.window.unit != self.stride.unit:
            raise UserError(
                f"window={self.window} and stride={self.stride}: give both in seconds, or both in frames"
            )

    def count(self, total: float) -> int:
        """How many windows a video of length ``total`` (in the unit of the window) has; at least one."""
        window, stride = self.window.amount, self.stride.amount
        if total < window + SLACK:
            return 1
        full = int((total - window + SLACK) // stride) + 1
        shown = (full - 1) * stride + window
        rest = total - full * stride
        return full + (shown < total - SLACK and rest >= window / 2 - SLACK)


def sliding(window: str | int | None, stride: str | int | None, geometry: Geometry) -> Sliding:
    """Windows as they are asked for; by default the clip that the encoder expects, and one after the other."""
    if window is not None:
        length = read_span(window)
    elif geometry.fps is not None:
        length = Span(geometry.frames / geometry.fps, "s")
    else:
        length = Span(geometry.frames * geometry.frame_step, "frames")
    return Sliding(length, length if stride is None else read_span(stride, "stride"))


@dataclass(frozen=True)
class Window:
    """start, end: seconds after the file's first frame. frames: int64 [segments, T], frame numbers of the file."""

    start: float
    end: float
    frames: np.ndarray


@dataclass(frozen=True)
class Plan:
    """All windows of one video, in order. seconds: of the video that they are cut from.

    Frames of a window are chosen as `data.source.ClipReader` does: every 1/fps seconds or every ``frame_step``-th,
    ``segments`` clips evenly spaced in it (one: its middle), and where there are too few, the last is repeated. One
    that appeared before the window and is on screen when it begins counts as its first, where no other follows soon.
    Iterating twice gives the same.
    """

    video: Video
    times: np.ndarray
    duration: float
    geometry: Geometry
    segments: int
    cut: Sliding

    def __post_init__(self) -> None:
        timed = self.cut.window.unit == "s" or self.geometry.fps is not None
        if np.isnan(self.times[0]) and (timed or self.video.start is not None or self.video.end is not None):
            raise DecodeError(
                self.video.path,
                "images have no times: give the list an fps column, or use an encoder that takes every n-th frame, "
                "and windows in frames",
            )
        first, last = self.stretch
        if first == last:
            end = "the end" if self.video.end is None else f"{self.video.end:g} s"
            raise DecodeError(self.video.path, f"no frame between {self.video.start or 0:g} s and {end}")

    @property
    def stretch(self) -> tuple[int, int]:
        """Number of the first frame of the row's stretch, and one past its last."""
        return clips.within(self.times, self.video.start, self.video.end)

    @property
    def begin(self) -> float:
        """Seconds at which the stretch begins."""
        return 0.0 if self.video.start is None else self.video.start

    @property
    def stop(self) -> float:
        """Seconds at which it ends; NaN for images without a rate."""
        return self.duration if self.video.end is None else min(self.video.end, self.duration)

    @property
    def seconds(self) -> float:
        """How much video it is; NaN for images without a rate."""
        return self.stop - self.begin

    @property
    def gap(self) -> float:
        """Seconds from one frame to the next, the median; NaN where there is none or no rate."""
        first, last = self.stretch
        return float(np.median(np.diff(self.times[first:last]))) if last - first > 1 else math.nan

    @property
    def seen(self) -> float:
        """Which share of a full window its clips span, above 1 where the window is the shorter; NaN if not known."""
        geometry, window = self.geometry, self.cut.window
        if geometry.fps is None:
            clip = geometry.frames * geometry.frame_step * (self.gap if window.unit == "s" else 1.0)
        else:
            clip = geometry.frames / geometry.fps / (1.0 if window.unit == "s" else self.gap)
        return self.segments * clip / window.amount

    def __len__(self) -> int:
        first, last = self.stretch
        return self.cut.count(self.seconds if self.cut.window.unit == "s" else last - first)

    def __iter__(self) -> Iterator[Window]:
        first, last = self.stretch
        late = 1.5 * self.gap  # a first frame later than that leaves a hole, which the one before it fills
        make = self._timed if self.cut.window.unit == "s" else self._counted
        for number in range(len(self)):
            yield make(number, first, last, late)

    def _timed(self, number: int, first: int, last: int, late: float) -> Window:
        start = self.begin + number * self.cut.stride.amount
        end = min(start + self.cut.window.amount, self.stop)
        a, b = clips.within(self.times, start, None if end == self.stop else end)
        a, b = max(a, first), min(b, last)
        if a > first and (a >= b or self.times[a] - start > late):
            a -= 1
        return Window(start, end, self._frames(a, max(b, a + 1), start))

    def _counted(self, number: int, first: int, last: int, late: float) -> Window:
        a = first + number * int(self.cut.stride.amount)
        b = min(a + int(self.cut.window.amount), last)
        end = float(self.times[b]) if b < last else self.stop
        return Window(float(self.times[a]), end, self._frames(a, b, float(self.times[a])))

    def _frames(self, a: int, b: int, start: float) -> np.ndarray:
        geometry = self.geometry
        chosen = []
        for at in clips.places(self.segments):
            if geometry.fps is None:
                chosen.append(a + clips.by_step(b - a, geometry.frames, geometry.frame_step, at))
            else:
                times = self.times[a:b].copy()
                if times[0] < start - SLACK:
                    times[0] = start  # it is on screen from then on, as far as the window goes
                chosen.append(a + clips.by_fps(times, geometry.frames, geometry.fps, at))
        return np.stack(chosen)


def plan(video: Video, index: Index, geometry: Geometry, segments: int, cut: Sliding) -> Plan:
    """The windows of ``video``, whose frames are where ``index`` says; raises DecodeError if it has no frame."""
    return Plan(video, index.times, index.duration, geometry, segments, cut)
