"""Groups of windows that are alike, and the windows that are like no other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from tubelet.embed.table import Embeddings
from tubelet.errors import UserError
from tubelet.search.index import DIGITS, chunks, refuse_wide, unit

CANDIDATES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20)  # how many groups are tried
SAMPLE = 5000  # windows that groups are learned from, and among which neighbours are sought
_JUDGED = 2000  # windows of the sample for the silhouette
NEIGHBOURS = 5
FAR_OUT = 3.0  # quartile distances above the upper quartile: Tukey's "far out"
_STARTS = 4
_PIECE = 2**22  # cosines held at once


@dataclass(frozen=True)
class Clusters:
    """Every window's group, and how odd it is.

    cluster: int64 [N], 1 is the largest group; 0 for vectors of length 0, which have no direction. distance: float64
    [N], 1 - cosine to the group's centre. oddness: float64 [N], mean of 1 - cosine to the nearest others, to
    `index.DIGITS` digits, so that it is 0 for copies of each other; NaN, as is distance, where cluster is 0, and for a
    window that overlaps all others. odd: bool [N]. silhouettes: number of groups -> its mean silhouette (NaN if
    undefined), of those tried. sample: int64 [n], the rows that groups were learned from.
    """

    cluster: np.ndarray
    distance: np.ndarray
    oddness: np.ndarray
    odd: np.ndarray
    silhouettes: dict[int, float]
    sample: np.ndarray

    @property
    def groups(self) -> int:
        """How many."""
        return int(self.cluster.max())


def cluster(table: Embeddings, groups: int | None = None, seed: int = 0) -> Clusters:
    """K-means on directions; the number of groups is the one of `CANDIDATES` with the highest mean silhouette.

    K-means (scikit-learn) rather than a density method: in hundreds of dimensions density calls most windows noise, and
    a centre can be shown. Learned from at most `SAMPLE` windows drawn by ``seed``; all are then assigned, some at a
    time. The same table and seed give the same groups. groups: so many instead. Oddness (ours): the mean distance,
    1 - cosine, to the `NEIGHBOURS` nearest windows of the sample, leaving out those that overlap in the same file; not
    the distance to the centre, because a few odd windows can have a centre of their own. odd: beyond the upper quartile
    by `FAR_OUT` times the distance of the quartiles (Tukey, 1977, "far out").
    Raises UserError for fewer than three different windows, for ``groups`` below 2 or more than there are different
    windows in the sample, for vectors that are not finite, and for those so wide that a sample takes more than 4 GiB.
    """
    count = len(table)
    drawn = np.sort(np.random.default_rng(seed).choice(count, min(count, SAMPLE), replace=False))
    refuse_wide(table, len(drawn))
    sample = directions(table, drawn)
    drawn, sample = drawn[sample.any(axis=1)], sample[sample.any(axis=1)]
    distinct = len(np.unique(sample.round(6), axis=0))
    if distinct < 3:
        raise UserError(f"{table.folder} has {distinct} different windows; groups need 3 at least")
    if groups is not None and not 2 <= groups <= distinct:
        raise UserError(f"groups={groups}: must be between 2 and {distinct}, the different windows to group")
    model, silhouettes = _learn(sample, groups, distinct, seed)
    cluster, distance = np.zeros(count, np.int64), np.full(count, np.nan)
    oddness = np.full(count, np.nan)
    files = np.unique(table.file, return_inverse=True)[1]
    centres = unit(model.cluster_centers_)
    for first, block in chunks(table):
        direction = unit(block)
        there = np.flatnonzero(direction.any(axis=1))
        if not len(there):
            continue
        own = np.asarray(model.predict(direction[there]), np.int64)
        cluster[first + there] = own + 1
        distance[first + there] = np.maximum(0.0, 1 - (direction[there] * centres[own]).sum(axis=1))
        for some in np.array_split(there, -(-len(there) * len(sample) // _PIECE)):
            rows = first + some
            oddness[rows] = _oddness(table, files, rows, direction[some], drawn, sample)
    low, high = np.nanquantile(oddness, (0.25, 0.75)) if np.isfinite(oddness).any() else (np.nan, np.nan)
    odd = oddness > high + FAR_OUT * (high - low)
    return Clusters(_by_size(cluster), distance, oddness, odd, silhouettes, drawn)


def directions(table: Embeddings, rows: np.ndarray) -> np.ndarray:
    """float64 [n, width]: some rows (ascending) at length 1, all of the table having been looked at."""
    parts = []
    for first, block in chunks(table):
        parts.append(unit(block[rows[(rows >= first) & (rows < first + len(block))] - first]))
    return np.concatenate(parts)


def _learn(
    sample: np.ndarray, groups: int | None, distinct: int, seed: int
) -> tuple[KMeans, dict[int, float]]:
    """The model of the best number of groups (the smaller of equals), and the silhouettes of all that were tried."""
    judged = np.random.default_rng(seed).permutation(len(sample))[:_JUDGED]
    tried: dict[int, tuple[KMeans, float]] = {}
    for k in (groups,) if groups is not None else [k for k in CANDIDATES if k < distinct]:
        model = KMeans(k, n_init=_STARTS, random_state=seed).fit(sample)  # pyright: ignore[reportArgumentType]
        assert model.labels_ is not None
        label = model.labels_[judged]
        defined = 1 < len(np.unique(label)) < len(label)
        tried[k] = model, float(silhouette_score(sample[judged], label)) if defined else math.nan
    best = max(tried, key=lambda k: (-math.inf if math.isnan(tried[k][1]) else tried[k][1], -k))
    return tried[best][0], {k: value for k, (_, value) in tried.items()}


def _oddness(
    table: Embeddings,
    files: np.ndarray,
    rows: np.ndarray,
    direction: np.ndarray,
    drawn: np.ndarray,
    sample: np.ndarray,
) -> np.ndarray:
    """float64 [n], rounded; NaN for a window that overlaps all others."""
    shared = np.minimum.outer(table.end[rows], table.end[drawn])
    shared -= np.maximum.outer(table.start[rows], table.start[drawn])
    same = (files[rows][:, None] == files[drawn]) & (shared > 0)
    same |= rows[:, None] == drawn
    apart = np.maximum(0.0, 1 - direction @ sample.T)
    apart[same] = np.inf
    near = np.sort(np.partition(apart, min(NEIGHBOURS, apart.shape[1] - 1), axis=1)[:, :NEIGHBOURS], axis=1)
    near[np.isinf(near)] = np.nan
    known = np.isfinite(near).any(axis=1)
    found = np.full(len(rows), np.nan)
    found[known] = np.nanmean(near[known], axis=1)
    return found.round(DIGITS)


def _by_size(cluster: np.ndarray) -> np.ndarray:
    """Numbers again, 1 for the largest group; of equal ones the one that comes first."""
    names, first, size = np.unique(cluster[cluster > 0], return_index=True, return_counts=True)
    order = np.lexsort((first, -size))
    number = np.zeros(cluster.max() + 1, np.int64)
    number[names[order]] = np.arange(1, len(names) + 1)
    return number[cluster]
