"""From windows to hits: what overlaps in one file is one find."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tubelet.embed.table import Embeddings
from tubelet.search.index import Nearest

TOUCHING = 1e-3  # s; windows that share no more than this do not overlap, their times are rounded


@dataclass(frozen=True)
class Hit:
    """A stretch of a file. start, end: s. cosine, row, label: of its best window. windows: how many were joined."""

    file: str
    start: float
    end: float
    cosine: float
    row: int
    windows: int = 1
    label: str | None = None


def merge(table: Embeddings, found: Nearest, top: int) -> list[Hit]:
    """At most ``top`` stretches, the nearest first, no two of one file overlapping (ours).

    The ``top`` nearest windows are taken, and those of a file that overlap are joined. Places that this frees go to the
    next nearest windows that overlap no stretch; those that do are passed over, so that a stretch only grows by windows
    that are among the ``top`` nearest.
    """
    hits: list[Hit] = []
    for place, (row, cosine) in enumerate(zip(found.rows.tolist(), found.cosine.tolist(), strict=True)):
        if place >= top and len(hits) == top:
            break
        file, start, end = str(table.file[row]), float(table.start[row]), float(table.end[row])
        same = [hit for hit in hits if hit.file == file and overlap(hit.start, hit.end, start, end)]
        if not same:
            hits.append(Hit(file, start, end, cosine, row, 1, table.label[row]))
        elif place < top:
            # the earliest of them is the nearest; this window may be what joins it to others
            joined = replace(
                same[0],
                start=min(start, *(hit.start for hit in same)),
                end=max(end, *(hit.end for hit in same)),
                windows=1 + sum(hit.windows for hit in same),
            )
            hits = [joined if hit is same[0] else hit for hit in hits if hit not in same[1:]]
    return hits


def overlap(start: float, end: float, other_start: float, other_end: float) -> bool:
    """Whether two stretches share more than `TOUCHING` seconds."""
    return min(end, other_end) - max(start, other_start) > TOUCHING


def overlapping(table: Embeddings, file: np.ndarray, start: float, end: float) -> np.ndarray:
    """bool [N]: windows of a file (``file``: bool [N], its rows) that share more than `TOUCHING` s with a stretch."""
    shared = np.minimum(table.end, end) - np.maximum(table.start, start)
    return file & (shared > TOUCHING)
