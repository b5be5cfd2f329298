"""Nearest windows by cosine: all of them compared up to a million, an index of faiss beside the table beyond that."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.embed.table import Embeddings
from tubelet.errors import UserError
from tubelet.files import replace_file, write_json, writing

EXACT_UP_TO = 1_000_000  # windows; beyond that an index is worth its memory and the time to build it
INDEX, ABOUT = "search.faiss", "search.json"
MOST_BYTES = 2**32  # of vectors as float64 that are held at once, where they have to be
_CHUNK = 2**22  # numbers held at once: 32 MiB as float64
DIGITS = 12  # what differs behind these is rounding: copies tie, and the size of the chunks changes nothing
_PER_CELL = 64  # windows that each cell of the index is learned from
_ROUNDS = 10  # of k-means; cells need not be the best there are
_PROBED = 16  # one in so many cells is looked into
_WIDER = 8  # candidates of the index for each window wanted, compared exactly afterwards


@dataclass(frozen=True)
class Nearest:
    """What is nearest. rows: int64 [k], the nearest first. cosine: float64 [k], in [-1, 1].

    exact: every window was compared; else the index chose which were.
    """

    rows: np.ndarray
    cosine: np.ndarray
    exact: bool


def nearest(
    table: Embeddings, queries: np.ndarray, k: int, leave_out: np.ndarray | None = None, exact: bool = False
) -> Nearest:
    """The ``k`` windows nearest to ``queries``: exactly up to `EXACT_UP_TO` windows, through an index beyond.

    queries: [Q, width]; a window is as near as its best cosine to any of them. leave_out: bool [N], windows not to be
    found. exact: never through the index. Fewer than ``k`` come back where there are no more; ties go to the earlier
    row. Without faiss large tables are compared exactly too, which only takes longer.
    Raises UserError as `nearest_exact` does, and if the index is damaged or cannot be written.
    """
    if exact or len(table.file) <= EXACT_UP_TO or not has_faiss():
        return nearest_exact(table, queries, k, leave_out)
    return nearest_indexed(table, queries, k, leave_out)


def nearest_exact(
    table: Embeddings, queries: np.ndarray, k: int, leave_out: np.ndarray | None = None
) -> Nearest:
    """As `nearest`, comparing every window in float64; holds some 100 MiB beside memory map and query, however many.

    Windows of length 0 have no direction and are never found.
    Raises UserError for an empty table, a query of another width, without a direction or not finite, and for vectors
    that are not finite.
    """
    directions = directions_of(table, queries)
    rows, best = np.zeros(0, np.int64), np.zeros(0)
    for first, block in chunks(table, len(directions)):
        cosine = _cosine(block, directions)
        if leave_out is not None:
            cosine[leave_out[first : first + len(block)]] = -np.inf
        level = best[-1] if len(best) == k else -np.inf
        beyond = np.flatnonzero(cosine > level)
        rows, best = _first(k, np.concatenate([rows, first + beyond]), np.concatenate([best, cosine[beyond]]))
    return Nearest(rows, best, True)


def nearest_indexed(
    table: Embeddings, queries: np.ndarray, k: int, leave_out: np.ndarray | None = None
) -> Nearest:
    """As `nearest`, through the index, which is built first if it is not there or is of other vectors.

    The index only chooses candidates; their cosines are exact. Raises UserError as `nearest_exact` does, and if
    faiss is not installed.
    """
    directions = directions_of(table, queries)
    index = _open(table)
    hidden = 0 if leave_out is None else int(leave_out.sum())
    wanted = min(len(table.file), _WIDER * k + hidden)
    chosen = np.zeros(len(table.file), bool)
    for some in _parts(directions.astype(np.float32), wanted):
        found = index.search(some, wanted)[1]
        chosen[found[found >= 0]] = True
    if leave_out is not None:
        chosen &= ~leave_out
    rows, best = np.zeros(0, np.int64), np.zeros(0)
    for some in _parts(np.flatnonzero(chosen), max(directions.shape)):
        block = _finite(np.asarray(table.vectors[some], np.float64), table, some)
        cosine = _cosine(block, directions)
        rows, best = _first(k, np.concatenate([rows, some]), np.concatenate([best, cosine]))
    return Nearest(rows, best, False)


def chunks(table: Embeddings, beside: int = 0) -> Iterator[tuple[int, np.ndarray]]:
    """All vectors, some at a time: the first row's number, and float64 [n, width].

    beside: how many numbers are made of each vector; where these are more than its own, there are fewer at a time.
    Raises UserError for an empty table, and naming the first window whose vector is not finite.
    """
    count, width = table.vectors.shape
    if not count:
        raise UserError(
            f"{table.folder} holds no windows: there is nothing to look through; embed some videos"
        )
    size = max(1, _CHUNK // max(width, beside))
    for first in range(0, count, size):
        block = np.asarray(table.vectors[first : first + size], np.float64)
        yield first, _finite(block, table, np.arange(first, first + len(block)))


def refuse_wide(table: Embeddings, rows: int) -> None:
    """Raises UserError if ``rows`` vectors as float64 would be more than `MOST_BYTES`."""
    width = int(table.about.get("width", 0)) or table.vectors.shape[1]
    if (size := rows * width * 8) > MOST_BYTES:
        raise UserError(
            f"{table.folder} has {width:,} numbers a window, and {rows:,} windows at once would take "
            f"{size / 2**30:.0f} GiB; embed again with pool mean (--pool mean)"
        )


def unit(vectors: np.ndarray) -> np.ndarray:
    """float64 [n, D] of length 1; rows of length 0 stay 0."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros(vectors.shape), where=length > 0)


def directions_of(table: Embeddings, queries: np.ndarray) -> np.ndarray:
    """float64 [Q, width]: the queries at length 1; errors as of `nearest_exact`."""
    width = table.vectors.shape[1]
    if queries.ndim != 2 or queries.shape[1] != width or not len(queries):
        raise UserError(
            f"the query's vectors are {list(queries.shape)}, those of {table.folder} have {width} numbers each; "
            "embed the query as the table was (same encoder, layer and pool)"
        )
    if not np.isfinite(queries).all():
        raise UserError("the query's vector is not finite: cosines with it are undefined")
    found = unit(np.asarray(queries, np.float64))
    if not found.any(axis=1).all():
        raise UserError("the query's vector is 0: it has no direction to compare")
    return found


def has_faiss() -> bool:
    """Whether faiss is installed (the extra "search")."""
    return importlib.util.find_spec("faiss") is not None


def _parts(rows: np.ndarray, numbers: int) -> list[np.ndarray]:
    """The rows, so many at a time that ``numbers`` for each are no more than are held at once."""
    size = max(1, _CHUNK // numbers)
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _finite(block: np.ndarray, table: Embeddings, rows: np.ndarray) -> np.ndarray:
    fine = np.isfinite(block).all(axis=1)
    if not fine.all():
        row = int(rows[np.argmin(fine)])
        raise UserError(
            f"{table.folder}: the vector of {table.file[row]} at {table.start[row]:g} s (row {row}) is not finite; "
            "cosines are undefined: embed this file again, or without --fp16"
        )
    return block


def _cosine(block: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """float64 [n]: the best cosine with any of ``directions``; -inf for rows of length 0."""
    length = np.linalg.norm(block, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = (block @ directions.T).max(axis=1) / length
    return np.where(length > 0, np.round(cosine, DIGITS), -np.inf)


def _first(k: int, rows: np.ndarray, cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` of highest cosine, of equal ones the earlier row; those at -inf do not count."""
    order = np.lexsort((rows, -cosine))[:k]
    order = order[cosine[order] > -np.inf]
    return rows[order], cosine[order]


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise UserError(
            f"an index needs faiss, which cannot be loaded ({error}); pip install 'tubelet[search]', or search exactly"
        ) from error


def _stamp(table: Embeddings) -> dict[str, Any]:
    """What changes when the vectors do."""
    files = [table.folder / name for name in ("embeddings.json", "vectors.npy", "windows.parquet")]
    return {
        "format": 1,
        "encoder": table.about["encoder"]["digest"],
        "shape": list(table.vectors.shape),
        "files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.is_file()],
    }


def _open(table: Embeddings) -> Any:
    faiss = _faiss()
    file, about = table.folder / INDEX, table.folder / ABOUT
    if not (file.is_file() and _stamped(about) == _stamp(table)):
        _build(table, faiss)
    try:
        # mapped, not loaded: only the cells that are looked into are read
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    except RuntimeError as error:  # faiss throws nothing more particular
        raise UserError(f"{file} is damaged; remove it, and it is built again") from error
    index.nprobe = max(1, math.ceil(index.nlist / _PROBED))
    return index


def _stamped(about: Path) -> Any:
    """What an index says that it is of; None where nothing can be read, as after damage: then it is built again."""
    try:
        return json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _build(table: Embeddings, faiss: Any) -> None:
    """Cells by k-means, one byte a number within them; the same table gives the same index."""
    count, width = table.vectors.shape
    cells = max(1, min(round(2 * math.sqrt(count)), count // _PER_CELL))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(width),
        width,
        cells,
        faiss.ScalarQuantizer.QT_8bit,
        faiss.METRIC_INNER_PRODUCT,
    )
    index.cp.spherical, index.cp.niter = True, _ROUNDS
    drawn = np.sort(
        np.random.default_rng(0).choice(count, min(count, max(_PER_CELL * cells, 1000)), replace=False)
    )
    sample = _finite(np.asarray(table.vectors[drawn], np.float64), table, drawn)
    index.train(unit(sample).astype(np.float32))
    for _, block in chunks(table):
        index.add(unit(block).astype(np.float32))
    # the stamp comes last: an index without the right one is built again
    (table.folder / ABOUT).unlink(missing_ok=True)
    with replace_file(table.folder / INDEX) as draft, writing(draft) as sink:
        faiss.write_index(index, faiss.PyCallbackIOWriter(sink.write))
    write_json(table.folder / ABOUT, _stamp(table))
