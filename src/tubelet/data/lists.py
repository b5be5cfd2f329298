"""Lists of videos: headed CSV, TSV, Parquet and JSON lines, and the headerless lists of older code."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tubelet.errors import UserError

from .folders import KNOWN_SUFFIXES
from .manifest import Manifest, build

TEXT = {".csv", ".tsv", ".txt", ".lst", ".list"}
JSON = {".jsonl", ".ndjson"}
PARQUET = {".parquet", ".pq"}
SUFFIXES = TEXT | JSON | PARQUET
# How others call the column; the first that a list has is taken.
PATH_NAMES = ("path", "file_name", "filename", "file", "filepath", "file_path", "video", "video_path")

Rows = list[tuple[str, Mapping[str, Any]]]


def read_list(path: Path) -> Manifest:
    """The manifest in a list file; see `manifest.read_manifest`. Raises UserError."""
    suffix = path.suffix.lower()
    notes: list[str] = []
    if suffix in PARQUET:
        rows = _parquet(path)
    elif suffix in JSON:
        rows = _json_lines(path)
    else:
        rows = _text(path, notes)
    return build(_with_path(rows, path), path, notes)


def _text(path: Path, notes: list[str]) -> Rows:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise UserError(
            f"{path} is empty; it should list videos, one per line under a header with a path column"
        )
    delimiter = next((d for d in ",\t;" if _names_path(first.split(d))), None)
    if delimiter is None:
        return _headerless(
            path, [(i, line.strip()) for i, line in enumerate(lines, 1) if line.strip()], notes
        )
    reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter)
    head: list[str] = []
    rows: Rows = []
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if not head:
            head = [cell.strip() for cell in cells]
            if len(set(head)) < len(head):
                raise UserError(f"{path}: two columns have the same name: {', '.join(head)}")
            continue
        if len(cells) > len(head):
            raise UserError(
                f"{path}, line {reader.line_num}: {len(cells)} values under {len(head)} columns; put a value that "
                f'contains "{delimiter}" in double quotes'
            )
        rows.append((f"line {reader.line_num}", dict(zip(head, cells, strict=False))))
    return rows


def _json_lines(path: Path) -> Rows:
    rows: Rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: not a JSON object but {type(row).__name__}")
        rows.append((f"line {number}", row))
    return rows


def _parquet(path: Path) -> Rows:
    import pyarrow
    import pyarrow.parquet  # large, and few lists are Parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a Parquet file ({error})") from None
    return [(f"row {number}", row) for number, row in enumerate(table.to_pylist(), 1)]


def _names_path(names: Iterable[str]) -> bool:
    return any(name.strip().strip('"').lower() in PATH_NAMES for name in names)


def _with_path(rows: Rows, source: Path) -> Rows:
    """Column names in lower case where they are ours, the path's under `path`."""
    if not rows:
        raise UserError(f"{source} lists no videos")
    names = {name: name.strip().lower() for _, row in rows for name in row}
    found = next((name for want in PATH_NAMES for name, lower in names.items() if lower == want), None)
    if found is None:
        raise UserError(
            f"{source} has no path column, only {', '.join(names)}; name the column of the files path"
        )
    ours = {"label", "split", "group", "start", "end", "status"}
    renamed = {name: lower if lower in ours else name for name, lower in names.items()} | {found: "path"}
    return [(where, {renamed[name]: value for name, value in row.items()}) for where, row in rows]


# Ways of writing a line, tried in this order: name, and a line -> (path, rest) or None.
_Split = Callable[[str], tuple[str, list[str]] | None]


def _cut(separator: str | None, count: int) -> _Split:
    def cut(line: str) -> tuple[str, list[str]] | None:
        parts = [part.strip() for part in line.rsplit(separator, count)]
        return (parts[0].strip('"'), parts[1:]) if len(parts) == count + 1 and all(parts) else None

    return cut


_STYLES: dict[str, _Split] = {
    "path": lambda line: (line.strip('"'), []),
    "path::label": _cut("::", 1),
    "path 0 -1": _cut(None, 2),
    "path label": _cut(None, 1),
    "path,label": _cut(",", 1),
}


def _headerless(path: Path, lines: list[tuple[int, str]], notes: list[str]) -> Rows:
    """Lines without a header: the way of writing under which the most of (up to 200) files exist."""
    sample = [line for _, line in lines[:200]]
    base = path.absolute().parent

    def score(style: str) -> tuple[int, int]:
        cuts = [_STYLES[style](line) for line in sample]
        exist = sum(cut is not None and (base / cut[0]).exists() for cut in cuts)
        likely = sum(cut is not None and Path(cut[0]).suffix.lower() in KNOWN_SUFFIXES for cut in cuts)
        return exist, likely

    best = max(_STYLES, key=score)
    if score(best) == (0, 0):
        raise UserError(
            f'{path} has no header with a path column, and its first line, "{sample[0][:80]}", names no file '
            f"(tried {', '.join(_STYLES)}); start it with a line such as path,label"
        )
    rows: Rows = []
    for number, line in lines:
        cut = _STYLES[best](line)
        if cut is None:
            raise UserError(f'{path}, line {number}: "{line[:80]}" is not "{best}" as the other lines are')
        file, rest = cut
        row: dict[str, str] = {"path": file}
        if len(rest) == 1:
            row["label"] = rest[0]
        elif len(rest) == 2:
            row |= _two_numbers(path, number, base / file, rest)
        rows.append((f"line {number}", row))
    what = {
        "path": "paths only",
        "path 0 -1": 'three columns, of which only the path is used if they end in "0 -1"',
    }
    notes.append(
        f'{path.name} has no header; read as "{best}" ({what.get(best, "the last word is the label")})'
    )
    return rows


def _two_numbers(source: Path, number: int, file: Path, rest: list[str]) -> dict[str, str]:
    """VideoMAE's `path 0 -1` (whole video, no label) or raw frames' `folder count label`."""
    if rest == ["0", "-1"]:
        return {}
    if file.is_dir() and rest[0].isdigit():
        return {"label": rest[1]}
    raise UserError(
        f'{source}, line {number}: "{" ".join(rest)}" after the path is neither "0 -1" nor the frame count and label '
        "of a folder of images; use a header: path,label,start,end (seconds)"
    )
