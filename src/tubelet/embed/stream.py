"""Windows of a video as clips, decoded once and in passing; and several videos ahead of whoever wants them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Full, Queue
from types import TracebackType
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from tubelet.data import decode
from tubelet.data.augment import CenterCrop, resample
from tubelet.data.manifest import Video
from tubelet.embed.windows import Plan, Sliding, plan
from tubelet.evaluate.source import Views
from tubelet.export.geometry import Geometry

T = TypeVar("T")


class Shown(NamedTuple):
    """One window of ``plan``. clips: uint8 [crops * segments, 3, T, S, S], crops outermost.

    None if more than a quarter of its frames do not decode.
    """

    plan: Plan
    start: float
    end: float
    clips: Tensor | None


@dataclass(frozen=True)
class Cutting:
    """How videos are cut into windows, and how a window is looked at: see `windows.Plan` and `Views`."""

    geometry: Geometry
    views: Views
    sliding: Sliding

    def windows(self, video: Video) -> Iterator[Shown]:
        """All windows of ``video`` in order, in one pass over the file.

        A picture is cut to the crops that the encoder sees as soon as it is decoded, and kept until the last window
        that shows it; so memory holds the pictures of about one window, and numbers for every frame of the file.
        Raises DecodeError, after any number of windows, also for what the system has against the file;
        `decode.IndexChanged` if those were not the right ones: the next call gives them.
        """
        entry = decode.index(video.path, video.fps, video.frames if video.status == "ok" else None)
        windows = plan(video, entry, self.geometry, self.views.segments, self.sliding)
        uses = np.zeros(len(entry), np.int32)
        for window in windows:
            uses[np.unique(window.frames)] += 1
        crop = CenterCrop(self.geometry.crop_size, self.views.crops)
        wanted = np.flatnonzero(uses)
        source = zip(wanted.tolist(), decode.iterate(video.path, wanted, crop.short_side), strict=True)
        held: dict[int, tuple[Tensor, bool]] = {}
        for window in windows:
            frames = np.unique(window.frames).tolist()
            while frames[-1] not in held:
                number, (picture, exact) = next(source)
                held[number] = _cut(crop, picture), exact
            holes = sum(not held[number][1] for number in frames)
            clips = None
            if holes * 4 <= len(frames):  # as `decode.refuse_holes`
                shown = torch.stack([held[number][0] for number in window.frames.ravel().tolist()])
                shown = shown.unflatten(0, window.frames.shape)  # [segments, T, crops, 3, S, S]
                clips = shown.permute(2, 0, 3, 1, 4, 5).flatten(0, 1).contiguous()
            for number in frames:
                uses[number] -= 1
                if not uses[number]:
                    del held[number]
            yield Shown(windows, window.start, window.end, clips)


def _cut(crop: CenterCrop, picture: np.ndarray) -> Tensor:
    """uint8 [crops, 3, S, S] of a picture [H, W, 3]."""
    frame = torch.from_numpy(picture)[None]
    boxes = crop.boxes(picture.shape[0], picture.shape[1])
    return torch.stack([resample(frame, box, crop.crop_size)[:, 0] for box in boxes])


class Ahead(Generic[T]):
    """Runs several iterators in threads, each into a queue of its own that holds ``depth`` items at most.

    sources: what is to be run, in the order in which it will be asked for. A context manager: on leaving it, all
    threads stop.
    """

    def __init__(self, sources: Sequence[Callable[[], Iterator[T]]], threads: int, depth: int) -> None:
        self.sources, self.depth = deque(sources), depth
        self.pool = ThreadPoolExecutor(threads)
        self.running: deque[tuple[Queue[T | None], Future[None]]] = deque()
        self.stop = threading.Event()
        for _ in range(threads):
            self._start()

    def _start(self) -> None:
        if self.sources:
            queue: Queue[T | None] = Queue(self.depth)
            self.running.append((queue, self.pool.submit(self._run, self.sources.popleft(), queue)))

    def _run(self, source: Callable[[], Iterator[T]], queue: Queue[T | None]) -> None:
        try:
            for item in source():
                if not self._put(queue, item):
                    return
        finally:
            self._put(queue, None)  # whoever waits looks at the future then

    def _put(self, queue: Queue[T | None], item: T | None) -> bool:
        while not self.stop.is_set():
            try:
                queue.put(item, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def following(self) -> Iterator[T]:
        """The items of the next source; raises what it raised, after its items."""
        queue, future = self.running.popleft()
        while (item := queue.get()) is not None:
            yield item
        self._start()
        future.result()

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop.set()
        self.pool.shutdown(cancel_futures=True)
