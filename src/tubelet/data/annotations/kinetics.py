"""Kinetics-400, -600 and -700 (arXiv 1705.06950, 1808.01340, 1907.06987), and the merged Kinetics-710 (2211.09552)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tubelet.errors import UserError

from ..manifest import Manifest
from .parse import number, read_lines, read_table, read_text
from .places import ANNOTATIONS, VIDEOS, Places, required_file
from .rows import Row, manifest_of

COLUMNS = ("youtube_id", "time_start", "time_end")
_CSV = re.compile(r"(?:.*[_-])?(train|val|validate|validation|test)\.csv", re.I)
_LIST = re.compile(r"(?:.*[_-])?(train|val)(?:_list_videos)?\.(?:csv|txt)", re.I)
# What the folder of a split is called: by DeepMind, by downloaders, by MMAction2.
_FOLDERS = {
    "train": ("train", "videos_train"),
    "val": ("val", "validate", "validation", "videos_val"),
    "test": ("test", "videos_test"),
}


def read_kinetics(folder: Path, variant: str) -> Manifest:
    """Train and validation rows of one Kinetics; variant "test" adds the test split.

    Files: DeepMind's CSVs, one per split, whose names end in train, val or validate, or test (`train.csv`,
    `kinetics-400_train.csv`, ...), with the columns label,youtube_id,time_start,time_end,split (and is_cc); a test
    file may lack the labels. Videos: `YOUTUBEID_%06d_%06d` (start and end, seconds), already cut, in folders per
    split, per class (spaces as they are or as underscores), both or none.
    Raises UserError for files that are absent or not of this form.
    """
    files: dict[str, Path] = {}
    wanted = ("train", "val", "test") if variant else ("train", "val")
    for file in _files(folder, _CSV):
        match = _CSV.fullmatch(file.name)
        assert match is not None
        split = {"train": "train", "test": "test"}.get(match[1].lower(), "val")
        if not set(COLUMNS) <= set(_header(file)):
            continue  # a list of another kind
        if split in files:
            raise UserError(
                f"{files[split]} and {file} both describe the {split} split; leave one of them in {folder}"
            )
        files[split] = file
    if absent := [split for split in wanted if split not in files]:
        raise UserError(
            f"{folder}: no annotation file of the {absent[0]} split; expected a CSV such as "
            f"{folder / f'{absent[0]}.csv'} (or in annotations/) with the columns "
            "label,youtube_id,time_start,time_end,split"
        )
    rows = (row for split in wanted for row in _rows(files[split], split))
    return manifest_of(rows, Places(folder), folder)


def _rows(file: Path, split: str) -> Iterator[Row]:
    for where, row in read_table(file, COLUMNS if split == "test" else ("label", *COLUMNS)):
        start, end = (round(number(where, name, row[name])) for name in ("time_start", "time_end"))
        name, label = f"{row['youtube_id']}_{start:06d}_{end:06d}", row.get("label") or None
        below = [""]
        if label:
            below = [f"{label}/", f"{label.replace(' ', '_')}/", ""]
        names = [f"{top}/{rest}{name}" for top in _FOLDERS[split] for rest in below]
        yield Row(names + [f"{rest}{name}" for rest in below], label, split, where)


def read_kinetics710(folder: Path, variant: str) -> Manifest:
    """Train and validation rows of Kinetics-710, UniFormerV2's merger of the three.

    It has no official annotation files of DeepMind's. Read are the lists that go round with it, `path number` per
    line and without a header, whose names end in train or val (`train.csv`, `k400_train_list_videos.txt`), and
    `label_map_k710.txt`, one class per line; paths are relative to the folder or its videos/. This form is taken from
    the code that reads such lists; the files themselves could not be checked. Any number of lists per split.
    Raises UserError for files that are absent or not of this form.
    """
    classes = read_text(required_file(folder, ["label_map_k710.txt"], "Kinetics-710")).split("\n")
    classes = [name.strip() for name in classes if name.strip()]
    lists = _files(folder, _LIST)
    if not lists:
        raise UserError(
            f"{folder}: no list of Kinetics-710; expected train.csv and val.csv, each line a path and a class number"
        )

    def rows() -> Iterator[Row]:
        for file in lists:
            match = _LIST.fullmatch(file.name)
            assert match is not None
            for where, (path, text) in _paths(file):
                if not text.isdigit() or int(text) >= len(classes):
                    raise UserError(
                        f'{where}: the class must be a number from 0 to {len(classes) - 1}, not "{text}"'
                    )
                stem = path.rsplit(".", 1)[0].lstrip("/")
                yield Row([stem], classes[int(text)], match[1].lower(), where)

    return manifest_of(rows(), Places(folder, ("", *VIDEOS)), folder)


def _paths(file: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Where each line stands, its path (which may hold spaces) and its last word."""
    for where, (line,) in read_lines(file, "\n", 1, "path number"):
        path, _, label = line.rpartition(" ")
        if not path:
            raise UserError(f'{where}: "{line[:80]}" is not of the form path number')
        yield where, (path.strip(), label)


def _files(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    places = [folder / place for place in ANNOTATIONS]
    return [
        file
        for place in places
        if place.is_dir()
        for file in sorted(place.iterdir())
        if pattern.fullmatch(file.name) and file.is_file()
    ]


def _header(file: Path) -> list[str]:
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        return [name.strip().strip('"') for name in lines.readline().split(",")]
