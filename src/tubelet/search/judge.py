"""How well windows find windows of their class in other files, and in files of other groups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tubelet.embed.table import Embeddings
from tubelet.errors import UserError
from tubelet.evaluate.retrieval import KS, Retrieval, ask, summary
from tubelet.files import write_json
from tubelet.search.index import chunks, refuse_wide
from tubelet.search.query import write_rows

MOST = 20_000  # windows; every one is ranked against every other
ELSEWHERE = "map_other_groups"
COLUMNS = ("map", *(f"hit@{k}" for k in KS), *(f"recall@{k}" for k in KS))


@dataclass(frozen=True)
class Judged:
    """Means over windows that ask.

    overall: windows of the query's own file left out; with intervals over groups, or over files where no groups are
    known. elsewhere: windows of its own group left out too; None if no group is known, or no class occurs in two.
    classes: class -> its values by name (NaN where no window of it could ask) and "windows", "asked";
    "map_other_groups" is of ``elsewhere``. windows, files: how many took part. groups: of these files, 0 if none is
    known. left_out: windows without a label. drawn: whether these are some of the files only.
    """

    overall: Retrieval
    elsewhere: Retrieval | None
    classes: dict[str, dict[str, float]]
    windows: int
    files: int
    groups: int
    left_out: int
    drawn: bool

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """Writes retrieval.csv (a row per class) and retrieval.json; undefined values are empty and null."""
        rows = [
            {"class": name, **{k: None if math.isnan(v) else v for k, v in values.items()}}
            for name, values in self.classes.items()
        ]
        columns = ["class", *COLUMNS, ELSEWHERE, "windows", "asked"]
        write_rows(Path(folder) / "retrieval.csv", columns, rows)
        intervals = {name: list(pair) for name, pair in self.overall.intervals.items()}
        if self.elsewhere is not None:
            intervals[ELSEWHERE] = list(self.elsewhere.intervals["map"])
        record = {
            **self.overall.values,
            ELSEWHERE: None if self.elsewhere is None else self.elsewhere.map,
            "intervals": intervals,
            "asked": self.overall.queries,
            "skipped": self.overall.skipped,
            "windows": self.windows,
            "files": self.files,
            "groups": self.groups,
            "without_label": self.left_out,
            "files_drawn": self.drawn,
            "classes": rows,
        }
        write_json(Path(folder) / "retrieval.json", {**record, **about})


def judge_search(table: Embeddings, seed: int = 0, most: int = MOST) -> Judged:
    """mAP, hit@k and recall@k of windows that ask for their class, windows of their own file left out.

    Where groups are known (the list's `group` column), mAP is also computed with windows of the query's own group left
    out; a file without one is a group of its own, and groups that share a file are one.
    Of more than ``most`` labelled windows, whole files are drawn at random until there are so many. Classes that occur
    in one file alone cannot ask. Definitions: `evaluate.retrieval`; the files as groups are ours.
    Raises UserError if no window has a label, no class occurs in two files, vectors are not finite, or are so wide that
    they take more than 4 GiB.
    """
    labelled = np.array([label is not None for label in table.label], bool)
    if not labelled.any():
        raise UserError(f"{table.folder} has no labels to judge by; embed a list with a `label` column")
    files = np.unique(table.file, return_inverse=True)[1]
    kept = _some(np.flatnonzero(labelled), files, most, seed)
    refuse_wide(table, len(kept))
    label = np.array([str(table.label[row]) for row in kept])
    vectors = np.concatenate(
        [block[kept[(kept >= a) & (kept < a + len(block))] - a] for a, block in chunks(table)]
    )
    classes, number = np.unique(label, return_inverse=True)
    known = any(table.group[row] is not None for row in kept)
    groups = _groups(files[kept], [table.group[row] for row in kept])
    try:
        asked = ask(vectors, number, files[kept])
    except ValueError as error:
        raise UserError(
            f"{table.folder}: no class occurs in two files, and windows of a file do not count for it"
        ) from error
    apart = ask(vectors, number, groups) if known and _in_two(number, groups) else None
    found: dict[str, dict[str, float]] = {}
    for place, name in enumerate(classes):
        mine = number == place
        values = asked.values[mine & asked.asked]
        means = values.mean(axis=0) if len(values) else np.full(len(COLUMNS), np.nan)
        found[str(name)] = {k: float(v) for k, v in zip(COLUMNS, means, strict=True)}
        others = np.zeros(0) if apart is None else apart.values[mine & apart.asked, 0]
        found[str(name)][ELSEWHERE] = float(others.mean()) if len(others) else math.nan
        found[str(name)] |= {"windows": int(mine.sum()), "asked": len(values)}
    return Judged(
        summary(asked, groups, seed),
        None if apart is None else summary(apart, groups, seed),
        found,
        len(kept),
        len(np.unique(files[kept])),
        len(np.unique(groups)) if known else 0,
        int((~labelled).sum()),
        len(kept) < int(labelled.sum()),
    )


def _groups(files: np.ndarray, group: list[str | None]) -> np.ndarray:
    """int [n]: windows that share a file or a group have the same number, and so have those that they share with."""
    named = [
        f"file {file}" if name is None else f"group {name}" for file, name in zip(files, group, strict=True)
    ]
    place = np.unique(np.array(named, object), return_inverse=True)[1]
    first = int(files.max()) + 1
    size = first + int(place.max()) + 1
    shared = coo_array((np.ones(len(files)), (files, first + place)), shape=(size, size))
    return connected_components(shared, directed=False)[1][files]


def _in_two(label: np.ndarray, group: np.ndarray) -> bool:
    """Whether any class occurs in two groups."""
    return any(len(np.unique(group[label == c])) > 1 for c in np.unique(label))


def _some(rows: np.ndarray, files: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Rows of files in random order while they are at most ``most`` (one file at least), ascending."""
    if len(rows) <= most:
        return rows
    count = np.bincount(files[rows], minlength=files.max() + 1)
    order = np.random.default_rng(seed).permutation(np.flatnonzero(count))
    taken = order[: max(1, int(np.searchsorted(np.cumsum(count[order]), most, side="right")))]
    return rows[np.isin(files[rows], taken)]
