"""The global order of samples: a pure function of (seed, position), and arithmetic on it.

An entry is a video, a stretch of one, or a window of a long one. Epochs show every entry once, in an order of
their own; each time it is shown, ``clips_per_video`` clips are cut from it, at consecutive positions. Step
``s`` takes the positions from ``s * batch_size`` on, and rank ``r`` of ``world`` its contiguous share of them.
Nothing is dropped: a batch may straddle two epochs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .draws import Purpose, permutation, raw


@dataclass(frozen=True)
class Order:
    """Which entry, of ``entries``, stands at a position; all arguments are checked by `stream.Stream`."""

    seed: int
    entries: int
    clips_per_video: int
    batch_size: int
    rank: int = 0
    world: int = 1

    def entry(self, position: int) -> int:
        """The entry at ``position``."""
        epoch, place = divmod(position // self.clips_per_video, self.entries)
        return int(_epoch(self.seed, epoch, self.entries)[place])

    def substitute(self, position: int, attempt: int) -> int:
        """The entry tried at ``position`` instead, at attempt 1, 2, ..."""
        return int(raw(self.seed, Purpose.REPLACE, position, 1, attempt)[0] % np.uint64(self.entries))

    def batch(self, step: int) -> list[tuple[int, int]]:
        """This rank's share of a step: (position of the first of ``clips_per_video`` clips, entry)."""
        share = self.batch_size // self.world
        first = step * self.batch_size + self.rank * share
        return [(p, self.entry(p)) for p in range(first, first + share, self.clips_per_video)]


@dataclass(frozen=True)
class Batches:
    """This rank's batches from ``start`` on, without end; a batch sampler for a DataLoader."""

    order: Order
    start: int

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start
        while True:
            yield self.order.batch(step)
            step += 1


@lru_cache(maxsize=2)  # a batch may straddle two epochs
def _epoch(seed: int, epoch: int, entries: int) -> np.ndarray:
    return permutation(seed, epoch, entries)
