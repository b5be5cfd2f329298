"""COIN (arXiv 1903.02874): 180 tasks of instructional videos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tubelet.errors import UserError

from ..manifest import Manifest
from .parse import check, number, read_json
from .places import Places, required_file
from .rows import Row, manifest_of

KEYS = ("class", "subset", "start", "end")
SPLITS = {"training": "train", "testing": "test", "validation": "val"}


def read_coin(folder: Path, variant: str) -> Manifest:
    """Each video with its task as label, from the start to the end of what belongs to the task.

    File: `COIN.json`, {"database": {YOUTUBEID: {class, recipe_type, subset, start, end, annotation, ...}}}; subset
    is training or testing (the readme says validation: taken too). Videos: `RECIPETYPE/YOUTUBEID.mp4`, as
    the official script stores them, or without the folders. The steps within a video are not read.
    Raises UserError for a file that is absent or not of this form.
    """
    file = required_file(folder, ["COIN.json"], "COIN")
    database = read_json(file, dict, 'an object with the key "database"').get("database")
    if not isinstance(database, dict):
        raise UserError(f'{file} has no object "database"; expected the official COIN.json')

    def rows() -> Iterator[Row]:
        for name, about in database.items():
            where = f'{file}, "{name}"'
            check(where, about, KEYS)
            if (split := SPLITS.get(str(about["subset"]).lower())) is None:
                raise UserError(f'{where}: subset "{about["subset"]}" is none of {", ".join(SPLITS)}')
            start, end = (number(where, key, about[key]) for key in ("start", "end"))
            names = [f"{about['recipe_type']}/{name}", name] if "recipe_type" in about else [name]
            yield Row(names, str(about["class"]), split, where, start=start, end=end)

    return manifest_of(rows(), Places(folder), folder)
