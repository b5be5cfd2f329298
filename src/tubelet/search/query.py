"""What is asked for: a clip, embedded as the table was, or windows that are in the table."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.embed.table import Embeddings
from tubelet.errors import UserError
from tubelet.errors import nearest as closest_word
from tubelet.files import replace_file, write_json
from tubelet.search.embedding import embed_query
from tubelet.search.hits import Hit, merge, overlapping
from tubelet.search.index import nearest

SAME = 0.02  # s; a stretch named to two decimals is meant to be the window that has these times


@dataclass(frozen=True)
class Query:
    """A stretch of a file and its vectors. vectors: [Q, width]. start, end: s.

    rows: where it stands in the table, empty if it was embedded for this. own: bool [N], windows that overlap it,
    which are not to be found.
    """

    file: str
    start: float
    end: float
    vectors: np.ndarray
    rows: np.ndarray
    own: np.ndarray


@dataclass(frozen=True)
class Found:
    """The answer to a query. exact: every window was compared. windows: how many the table has."""

    query: Query
    hits: list[Hit]
    exact: bool
    windows: int

    def save(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Writes results.csv (rank, file, start, end, cosine, windows, row, label) and results.json into ``folder``."""
        rows = [{"rank": rank, **_timed(asdict(hit))} for rank, hit in enumerate(self.hits, 1)]
        write_rows(Path(folder) / "results.csv", ["rank", *(f.name for f in fields(Hit))], rows)
        stretch = {"file": self.query.file, "start": self.query.start, "end": self.query.end}
        query = {**_timed(stretch), "rows": self.query.rows.tolist()}
        write_json(
            Path(folder) / "results.json",
            {"query": query, "hits": rows, "exact": self.exact, "windows": self.windows, **about},
        )


def search(table: Embeddings, query: Query, top: int = 10, exact: bool = False) -> Found:
    """The ``top`` stretches nearest to ``query``, windows that overlap it left out; fewer where there are not so many.

    Of a query of several windows each asks, and a window is as near as the nearest of them (ours). Hits: see
    `hits.merge`. Raises UserError as `index.nearest` does, and if ``top`` is not positive.
    """
    if top < 1:
        raise UserError(f"top={top}: ask for at least 1")
    count, depth = len(table.file), max(64, 16 * top)
    while True:
        found = nearest(table, query.vectors, min(depth, count), query.own, exact)
        hits = merge(table, found, top)
        if len(hits) == top or len(found.rows) < depth:
            return Found(query, hits, found.exact, count)
        depth *= 8  # nearly all of them overlapped


def query_of_row(table: Embeddings, row: int) -> Query:
    """One window of the table. Raises UserError if there is no such row."""
    if not 0 <= row < len(table.file):
        raise UserError(f"there is no row {row}: {table.folder} has rows 0 to {len(table.file) - 1}")
    file = str(table.file[row])
    start, end = float(table.start[row]), float(table.end[row])
    return _inside(table, file, table.file == file, np.array([row]), start, end)


def query_of_file(
    table: Embeddings,
    file: str | Path,
    start: float | None = None,
    end: float | None = None,
    device: str = "auto",
    head: str | Path | None = None,
    encoder: str | Path | None = None,
) -> Query:
    """A file, or a stretch of it, as a query.

    Of a file in the table no encoder is needed for: all that the table has of it (all its windows ask), ``start`` alone
    (of its windows that hold this second the one that begins nearest to it), and a stretch that is one of its windows.
    All else is embedded by the table's encoder, layer, pool and geometry (head, encoder: see `embedding.embed_query`).
    Raises UserError if the stretch is none, no window holds ``start`` alone, the file is neither in the table nor on
    disk, or the encoder is gone or another one now.
    """
    if (start is not None and not start >= 0) or (end is not None and not end > (start or 0.0)):
        raise UserError(
            f"start {start} and end {end} hold no video; they are seconds, and end comes after start"
        )
    name, here = rows_of_file(table, file)
    if here.any():
        rows = np.flatnonzero(here)
        if (start is not None or end is not None) and np.isnan(table.start[rows]).any():
            raise UserError(
                f"{name} is a folder of images without times; ask for all of it, without start and end"
            )
        if end is None:
            rows = rows if start is None else _holding(table, name, rows, start)
        else:
            near = np.maximum(abs(table.start[rows] - (start or 0.0)), abs(table.end[rows] - end))
            rows = rows[near <= SAME][:1]
        if len(rows):
            first, last = float(table.start[rows].min()), float(table.end[rows].max())
            return _inside(table, name, here, rows, first, last)
    path = path_of(name)
    if not path.exists():
        known = closest_word(str(file), dict.fromkeys(map(str, table.file)))
        if here.any():
            raise UserError(
                f"{name} is in {table.folder} but not at its place any more, and this stretch is none of its windows; "
                "ask for one of them (--start alone takes the one that holds it), for all of it, or name the file "
                "where it is now"
            )
        raise UserError(f"{file} is neither in {table.folder} nor on disk{known}")
    vectors, times = embed_query(table, path, start, end, device, encoder, head)
    first, last = float(times[:, 0].min()), float(times[:, 1].max())
    return Query(name, first, last, vectors, np.zeros(0, np.int64), overlapping(table, here, first, last))


def rows_of_file(table: Embeddings, file: str | Path) -> tuple[str, np.ndarray]:
    """The name that a file has in the table (or its own), and bool [N], its rows: by name as listed, or by place."""
    here = table.file == str(file)
    if here.any():
        return str(file), here
    place = Path(file).absolute().resolve()
    for name in dict.fromkeys(map(str, table.file)):
        if Path(name).name == place.name and path_of(name).absolute().resolve() == place:
            return name, table.file == name
    return str(file), here


def path_of(file: str) -> Path:
    """Where a file of the table is."""
    return Path(file).expanduser()


def write_rows(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a headed CSV, whole or not at all."""
    with replace_file(file) as draft, draft.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, columns)
        writer.writeheader()
        writer.writerows(rows)


def _holding(table: Embeddings, name: str, rows: np.ndarray, start: float) -> np.ndarray:
    """[1]: of a file's ``rows`` that hold the second ``start`` the one that begins nearest to it.

    Raises UserError if none does: to embed a stretch instead would mean to guess how long it shall be.
    """
    begins, ends = table.start[rows], table.end[rows]
    holds = rows[(begins - SAME <= start) & (start < ends)]
    if not len(holds):
        near = np.argmin(np.maximum(begins - start, start - ends))
        raise UserError(
            f"no window of {name} in {table.folder} holds second {start:.12g}; the nearest is {begins[near]:.12g} to "
            f"{ends[near]:.12g} s: ask for it (--start {begins[near]:.12g}), or say the end of the stretch too (--end)"
        )
    return holds[[np.argmin(abs(table.start[holds] - start))]]


def _timed(record: dict[str, Any]) -> dict[str, Any]:
    """The record, with None for times of images, which have none."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()}


def _inside(
    table: Embeddings, name: str, here: np.ndarray, rows: np.ndarray, start: float, end: float
) -> Query:
    own = overlapping(table, here, start, end)
    own[rows] = True  # images have no times to overlap by
    return Query(name, start, end, np.asarray(table.vectors[rows]), rows, own)
