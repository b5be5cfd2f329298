"""HMDB51 (ICCV 2011): 51 actions, clips from films and YouTube, three official splits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from tubelet.errors import UserError

from ..manifest import Manifest
from .parse import read_lines
from .places import VIDEOS, Places
from .rows import Row, manifest_of

LISTS = ("testTrainMulti_7030_splits", "splits", "annotations", "")
ROOTS = ("hmdb51_org", *VIDEOS)
SPLITS = {"1": "train", "2": "test"}  # 0: in neither of the two


def read_hmdb51(folder: Path, variant: str) -> Manifest:
    """Train and test rows of split 1, or of split ``variant`` (2, 3); clips of neither side are left out.

    Files: `CLASS_test_split1.txt` for each class, lines `NAME.avi 1` (train), `2` (test) or `0` (neither). Videos:
    `CLASS/NAME.avi`, or without the folder. A name begins with that of the film, then class, visible body, camera, ...;
    what stands before the class is the group (ours), unless the split shares it.
    Raises UserError for files that are absent or not of this form.
    """
    ending = f"_test_split{variant or 1}.txt"
    places = [folder / place for place in LISTS]
    files = next((found for place in places if (found := sorted(place.glob(f"*{ending}")))), [])
    if not files:
        raise UserError(
            f"HMDB51: no file *{ending} in {', '.join(map(str, places))}; put the official splits there"
        )

    def rows() -> Iterator[Row]:
        for file in files:
            label = file.name.removesuffix(ending)
            for where, (name, side) in read_lines(file, None, 2, "NAME.avi 1"):
                if side not in ("0", *SPLITS):
                    raise UserError(f'{where}: "{side}" is none of 0 (neither), 1 (train), 2 (test)')
                if side != "0":
                    stem = os.path.splitext(name)[0]
                    film = stem.partition(f"_{label}_")[0] if f"_{label}_" in stem else None
                    yield Row([f"{label}/{stem}", stem], label, SPLITS[side], where, film)

    notes = [] if len(files) == 51 else [f"only {len(files)} of 51 classes have a file *{ending}"]
    return manifest_of(rows(), Places(folder, ROOTS), folder, ".avi", notes)
