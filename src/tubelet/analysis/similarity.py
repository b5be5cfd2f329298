"""How alike are layers? Centred kernel alignment (CKA) of tables of features, however long they are.

A table is read a few rows at a time, so it may lie on disk: memory does not grow with its length. Twice at least:
once for its mean, since sums of squares about zero would lose what a large mean hides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

CHUNK = 1024  # rows read at once
RBF_CLIPS = 4096  # rows that RBF-CKA looks at, at most: its cost grows with their square
_SUMS = 2**23  # float64 numbers in one block of sums of products, 64 MB
_TILE = 2**21  # float64 numbers in one tile of inner products, 16 MB: larger ones are slower
_ROUNDING = 1e-12  # below this share of what it was made of, a difference of sums is rounding


class Rows(Protocol):
    """A table of features in memory or not: a numpy array, a memory map, or what behaves like one.

    shape: [n, D], of `spectrum.lidar` [n, q, D]. Indexed by a slice of rows or an int64 array of row numbers, it
    gives those rows as an array of any real dtype.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: Any, /) -> Any: ...


class Table:
    """A table, checked once, and its mean row; what is read of it is float64.

    rows: [n, D]; with three ``dimensions`` [n, q, D], then the mean is over n and q. name: what a message calls it.
    chunk: rows read at once. The rows of a constant table are exactly zero once centred. Raises ValueError if the
    shape is another, or a row is not finite: which, and of which table.
    """

    def __init__(self, rows: Rows, name: str, chunk: int = CHUNK, dimensions: int = 2):
        if len(rows.shape) != dimensions or 0 in rows.shape:
            wanted = "[n, D]" if dimensions == 2 else "[n, q, D]"
            raise ValueError(
                f"{name} has shape {tuple(rows.shape)}: features {wanted} are needed, none of them 0"
            )
        self.rows, self.name, self.chunk = rows, name, chunk
        first = self.read(slice(0, 1)).reshape(-1, self.width)[0]
        total = np.zeros_like(first)
        for part in self.parts():
            read = self.read(part)
            if not (finite := np.isfinite(read).reshape(len(read), -1).all(1)).all():
                raise ValueError(f"{name}, row {part.start + int(finite.argmin())}: not finite")
            # about the first row: those of a constant table are then zero without rounding
            total += (read - first).reshape(-1, self.width).sum(0)
        self.mean = first + total / math.prod(rows.shape[:-1])  # [D]

    def __len__(self) -> int:
        return self.rows.shape[0]

    @property
    def width(self) -> int:
        """D."""
        return self.rows.shape[-1]

    def parts(self) -> Iterator[slice]:
        """All rows, at most ``chunk`` at a time."""
        return (slice(i, min(i + self.chunk, len(self))) for i in range(0, len(self), self.chunk))

    def read(self, rows: slice | np.ndarray) -> np.ndarray:
        """Those rows as they are, float64 [r, D] or [r, q, D], a copy."""
        return np.array(self.rows[rows], np.float64)

    def centre_(self, rows: np.ndarray) -> np.ndarray:
        """``rows`` that were read minus the mean, in place."""
        rows -= self.mean
        return rows

    def centred(self, rows: slice | np.ndarray) -> np.ndarray:
        """Those rows minus the mean, float64 [r, D] or [r, q, D], a copy."""
        return self.centre_(self.read(rows))


@dataclass(frozen=True)
class SimilarityMap:
    """CKA of every layer of one encoder with every layer of another, or with its own.

    linear, debiased, rbf: float64 [layers of one, layers of the other], nan where a layer is constant. rbf_rows: how
    many rows the last was computed from; the others are always of all.
    """

    linear: np.ndarray
    debiased: np.ndarray
    rbf: np.ndarray
    rbf_rows: int


def linear_cka(one: Rows, other: Rows, *, chunk: int = CHUNK) -> float:
    """Linear CKA of tables [n, D] and [n, E] of the same clips: 1 if equal up to rotation, scale and shift.

    ||X^T Y||_F^2 / (||X^T X||_F ||Y^T Y||_F) of centred columns, between 0 and 1: the biased estimator, which grows
    towards 1 as n gets small beside D. Source: arXiv 1905.00414; used by BWSSL (arXiv 2601.09040). Exact over all n
    rows, in float64. nan where a side is constant (also for n = 1): undefined, not zero. Memory: `similarity_map`.
    Raises ValueError if the tables are not equally long, or not finite (which row).
    """
    stack = _Stack.of([one], [other], chunk)
    return float(stack.align(_linear(stack).biased)[0, 0])


def debiased_cka(one: Rows, other: Rows, *, chunk: int = CHUNK) -> float:
    """Linear CKA of tables [n, D] and [n, E] from the unbiased HSIC_1: about 0 for unrelated ones, however small n.

    Between -1 and 1. Source: HSIC_1 of Song et al. (JMLR 2012) as in arXiv 2010.15327, equation 3; there averaged
    over minibatches, here of all n rows at once: with a linear kernel every term is a sum over rows. nan for n < 4,
    and where a side is constant (or its clips all equally far apart). Otherwise as `linear_cka`.
    """
    stack = _Stack.of([one], [other], chunk)
    return float(stack.align(_linear(stack).debiased)[0, 0])


def rbf_cka(one: Rows, other: Rows, *, chunk: int = CHUNK, seed: int = 0) -> float:
    """CKA of tables [n, D] and [n, E] with Gaussian kernels exp(-gamma ||a - b||^2), the biased estimator.

    Each side has its own gamma = 1 / (2 median^2), the median of the Euclidean distances of its pairs i < j. Source:
    arXiv 1905.00414; this gamma: BWSSL (arXiv 2601.09040). Exact up to `RBF_CLIPS` rows; of more, that many are drawn
    without replacement by ``seed``, the same of both sides (ours). nan where the median is zero: a side is constant,
    or more than half of its pairs are the same. Otherwise as `linear_cka`.
    """
    stack = _Stack.of([one], [other], chunk)
    return float(stack.align(_rbf(stack, _drawn(stack, seed)))[0, 0])


def similarity_map(
    one: Sequence[Rows],
    other: Sequence[Rows] | None = None,
    *,
    chunk: int = CHUNK,
    seed: int = 0,
    advance: Callable[[float], None] | None = None,
) -> SimilarityMap:
    """`linear_cka`, `debiased_cka` and `rbf_cka` of every layer of ``one`` with every layer of ``other``.

    one, other: tables [n, D] of the same clips, one for each layer; widths may differ. Without ``other`` the layers
    of ``one`` among themselves: symmetric, the diagonal 1 where it is defined. advance: told the share of the work
    that is done, rising to 1.

    Means are taken once for each table. Pairs are then compared by inner products of rows or of columns, whichever is
    less work: with L layers it grows with L n^2 D or L^2 n D^2. Memory does not grow with n: at most about 150 MB
    (32 D^2 bytes, if that is more), and 24 * ``chunk`` * D bytes for each of the layers compared at once. Raises
    ValueError as they do, or if there is no layer.
    """
    stack = _Stack.of(one, other, chunk, advance)
    drawn = _drawn(stack, seed)
    width = sum(table.width for table in stack.tables)
    stack.work.total = min(_row_work(stack), _column_work(stack)) + 2 * len(drawn) ** 2 * width
    linear = _linear(stack)
    return SimilarityMap(
        linear=stack.align(linear.biased),
        debiased=stack.align(linear.debiased),
        rbf=stack.align(_rbf(stack, drawn)),
        rbf_rows=len(drawn),
    )


class _Work:
    """Tells how much is done. total, and what is added: multiplications, roughly."""

    def __init__(self, advance: Callable[[float], None] | None):
        self.advance, self.total, self.done = advance, 0.0, 0.0

    def add(self, amount: float) -> None:
        self.done += amount
        if self.advance is not None and self.total:
            self.advance(min(1.0, self.done / self.total))


@dataclass(frozen=True)
class _Stack:
    """Layers that are compared, those of the other encoder after those of the one (which may be all)."""

    tables: list[Table]
    first: int  # how many are of the one
    work: _Work

    @staticmethod
    def of(
        one: Sequence[Rows],
        other: Sequence[Rows] | None,
        chunk: int,
        advance: Callable[[float], None] | None = None,
    ) -> _Stack:
        if not one or (other is not None and not other):
            raise ValueError("similarity needs at least one layer of each encoder")
        sides = [("one", one)] if other is None else [("one", one), ("other", other)]
        named = [(f"table {i} of {side}", rows) for side, tables in sides for i, rows in enumerate(tables)]
        length = named[0][1].shape[0]
        for name, rows in named:
            if rows.shape[0] != length:
                raise ValueError(
                    f"{name} has {rows.shape[0]} rows, {named[0][0]} has {length}: the same clips are compared"
                )
        return _Stack([Table(rows, name, chunk) for name, rows in named], len(one), _Work(advance))

    @property
    def n(self) -> int:
        return len(self.tables[0])

    def partners(self, a: int) -> list[int]:
        """Those that layer ``a`` is to be compared with, itself first, later ones only."""
        layers = range(len(self.tables))
        if self.first == len(self.tables):
            return list(layers[a:])
        return [a, *(layers[self.first :] if a < self.first else [])]

    def align(self, hsic: np.ndarray) -> np.ndarray:
        """CKA from HSIC [layers, layers]: one against the other. nan where a layer's own is not positive."""
        own = hsic.diagonal()
        norm = np.sqrt(np.where(own > 0, own, np.nan))
        # the product of the roots, as that of the squares might overflow
        found = hsic / (norm[:, None] * norm[None, :])
        other = slice(0 if self.first == len(self.tables) else self.first, None)
        return found[: self.first, other].clip(-1, 1)  # rounding may pass 1


@dataclass(frozen=True)
class _Linear:
    """HSIC of linear kernels, [layers, layers], each up to a factor; what nobody asked for is nan."""

    biased: np.ndarray
    debiased: np.ndarray


def _linear(stack: _Stack) -> _Linear:
    product = _by_rows(stack) if _row_work(stack) <= _column_work(stack) else _by_columns(stack)
    n, count = stack.n, len(stack.tables)
    if n < 4:
        return _Linear(product, np.full_like(product, np.nan))
    # HSIC_1 does not see a shift of the rows, and centred ones have Gram matrices whose rows sum to zero: without
    # their diagonals they sum to minus the squared norms, which are then all that is left beside the product
    both, total = np.zeros_like(product), np.zeros(count)
    for part in stack.tables[0].parts():
        norms = np.stack([_norms(table, part) for table in stack.tables])  # [layers, rows]
        both += norms @ norms.T
        total += norms.sum(1)
    hsic = product - n / (n - 2) * both + total[:, None] * total[None, :] / ((n - 1) * (n - 2))
    own = np.einsum("ii->i", hsic)  # a view that can be written to
    own[own <= _ROUNDING * product.diagonal()] = 0
    return _Linear(product, hsic)


def _norms(table: Table, rows: slice | np.ndarray) -> np.ndarray:
    """Squared norms of centred rows."""
    centred = table.centred(rows)
    return np.einsum("rd,rd->r", centred, centred)


def _row_work(stack: _Stack) -> float:
    return stack.n**2 * (sum(table.width for table in stack.tables) + len(stack.tables) ** 2)


def _column_work(stack: _Stack) -> float:
    width = [table.width for table in stack.tables]
    return 2.0 * stack.n * sum(width[a] * width[b] for a in range(len(width)) for b in stack.partners(a))


def _by_columns(stack: _Stack) -> np.ndarray:
    """||X^T Y||_F^2 of the layers asked for, from products of columns; nan elsewhere. [layers, layers]"""
    tables, found = stack.tables, np.full((len(stack.tables),) * 2, np.nan)
    for a, table in enumerate(tables):
        waiting = stack.partners(a)
        while waiting:
            fit = max(1, _SUMS // (table.width * max(tables[b].width for b in waiting)))
            group, waiting = waiting[:fit], waiting[fit:]
            width = [tables[b].width for b in group]
            sums = np.zeros((table.width, sum(width)))
            for part in table.parts():
                rows = table.centred(part)
                sums += rows.T @ np.hstack([rows if b == a else tables[b].centred(part) for b in group])
                stack.work.add(2.0 * len(rows) * sums.size)
            for b, block in zip(group, np.split(sums, np.cumsum(width)[:-1], axis=1), strict=True):
                found[a, b] = found[b, a] = np.square(block).sum()
    return found


def _by_rows(stack: _Stack) -> np.ndarray:
    """The same, ||X^T Y||_F^2 of all layers, as the sum of the products of their Gram matrices."""
    found = np.zeros((len(stack.tables),) * 2)
    for tile in _tiles(stack, np.arange(stack.n)):
        flat = tile.gram.reshape(len(tile.gram), -1)
        found += tile.times * (flat @ flat.T)
        stack.work.add(tile.times * flat.size / len(flat) * (_row_work(stack) / stack.n**2))
    return found


@dataclass(frozen=True)
class _Tile:
    """Inner products of some rows with some others, of each layer.

    gram: float64 [layers, rows, others], overwritten by the next tile's. times: 1 on the diagonal of the Gram matrix,
    2 beside it, where a tile stands for its mirror image too.
    """

    rows: slice
    others: slice
    gram: np.ndarray

    @property
    def times(self) -> int:
        return 1 if self.rows == self.others else 2


def _tiles(stack: _Stack, places: np.ndarray) -> Iterator[_Tile]:
    """The Gram matrices of all layers' centred rows ``places``, the upper half, tile by tile."""
    side = max(1, min(stack.tables[0].chunk, math.isqrt(_TILE // len(stack.tables))))
    held = np.empty(len(stack.tables) * side**2)
    parts = [slice(i, min(i + side, len(places))) for i in range(0, len(places), side)]
    for i, rows in enumerate(parts):
        for others in parts[i:]:
            shape = len(stack.tables), rows.stop - rows.start, others.stop - others.start
            gram = held[: math.prod(shape)].reshape(shape)
            for table, out in zip(stack.tables, gram, strict=True):
                one = table.centred(places[rows])
                other = one if others == rows else table.centred(places[others])
                np.matmul(one, other.T, out=out)
            yield _Tile(rows, others, gram)


def _drawn(stack: _Stack, seed: int) -> np.ndarray:
    """The rows that RBF-CKA looks at, ascending."""
    if stack.n <= RBF_CLIPS:
        return np.arange(stack.n)
    return np.sort(np.random.default_rng(seed).choice(stack.n, RBF_CLIPS, replace=False))


def _rbf(stack: _Stack, places: np.ndarray) -> np.ndarray:
    """HSIC of Gaussian kernels of the rows ``places``, [layers, layers]; nan where a layer has no gamma."""
    count, n = len(stack.tables), len(places)
    norms, gamma = np.zeros((count, n)), np.zeros((count, 1, 1))
    for layer, table in enumerate(stack.tables):
        for i in range(0, n, table.chunk):
            part = slice(i, i + table.chunk)
            norms[layer, part] = _norms(table, places[part])
        gamma[layer] = _gamma(table, places, norms[layer])
        stack.work.add(n**2 * table.width)
    product, sums = np.zeros((count, count)), np.zeros_like(norms)  # of the rows of each kernel matrix
    for tile in _tiles(stack, places):
        distance = _squared(norms[:, tile.rows], norms[:, tile.others], tile.gram)
        distance *= -gamma
        kernel = np.exp(distance, out=distance)
        flat = kernel.reshape(count, -1)
        product += tile.times * (flat @ flat.T)
        sums[:, tile.rows] += kernel.sum(2)
        if tile.times == 2:
            sums[:, tile.others] += kernel.sum(1)
        stack.work.add(tile.times * flat.size / count * sum(table.width for table in stack.tables))
    total = sums.sum(1)
    return product - 2 / n * (sums @ sums.T) + total[:, None] * total[None, :] / n**2


def _squared(rows: np.ndarray, others: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Squared distances [..., a, b] from squared norms [..., a], [..., b] and inner products, which are lost."""
    gram *= -2
    gram += rows[..., :, None]
    gram += others[..., None, :]
    return np.maximum(gram, 0, out=gram)


def _gamma(table: Table, places: np.ndarray, norms: np.ndarray) -> float:
    """1 / (2 median^2) of the distances between the rows ``places``; nan if the median is zero or there is no pair."""
    n = len(places)
    if n < 2:
        return math.nan
    squared = np.empty(n * (n - 1) // 2)  # 64 MB at most, by RBF_CLIPS
    filled = 0
    for i in range(0, n, table.chunk):
        rows = table.centred(places[i : i + table.chunk])
        for j in range(i, n, table.chunk):
            part = slice(j, j + table.chunk)
            others = rows if j == i else table.centred(places[part])
            tile = _squared(norms[i : i + len(rows)], norms[part], rows @ others.T)
            pairs = tile[np.triu_indices(len(rows), 1)] if j == i else tile.ravel()
            squared[filled : filled + pairs.size] = pairs
            filled += pairs.size
    assert filled == len(squared)
    middle = [(filled - 1) // 2, filled // 2]  # the same one twice, if there is one
    squared.partition(middle)
    median = np.sqrt(squared[middle]).mean()
    # equal rows come out only about equally far from zero: their distance is a difference of large numbers
    return math.nan if median**2 <= _ROUNDING * norms.mean() else float(1 / (2 * median**2))
