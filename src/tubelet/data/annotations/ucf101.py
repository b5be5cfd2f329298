"""UCF101 (arXiv 1212.0402): 101 actions, clips from YouTube, three official splits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tubelet.errors import UserError

from ..manifest import Manifest
from .parse import read_lines
from .places import VIDEOS, Places, official_file, required_file
from .rows import Row, manifest_of

LISTS = ("ucfTrainTestlist", "", "annotations", "labels", "splits")
ROOTS = ("UCF-101", *VIDEOS)
_GROUP = re.compile(r"v_(.+_g\d+)_c\d+")


def read_ucf101(folder: Path, variant: str) -> Manifest:
    """Train and test rows of split 1, or of split ``variant`` (2, 3).

    Files: `trainlist01.txt` (`Class/v_Class_g01_c01.avi 1` per line), `testlist01.txt` (without the number), and
    `classInd.txt` (`1 Class`), against which the classes are checked if it is there. Videos: `Class/NAME.avi` in
    UCF-101/, videos/, clips/ or the folder itself, or without the folder of the class. Clips cut from one video share
    class and number g; that is the group, and the official splits keep it on one side.
    Raises UserError for files that are absent or not of this form.
    """
    number = int(variant or 1)
    indices = official_file(folder, ["classInd.txt"], LISTS)
    known = {name: index for _, (index, name) in read_lines(indices, None, 2, "1 Class")} if indices else None

    def rows() -> Iterator[Row]:
        for split in ("train", "test"):
            file = required_file(folder, [f"{split}list{number:02d}.txt"], "UCF101", LISTS)
            for where, (line,) in read_lines(file, "\n", 1, "Class/v_Class_g01_c01.avi"):
                path, _, index = line.partition(" ")
                label, _, name = path.removesuffix(".avi").partition("/")
                group = _GROUP.fullmatch(name)
                if group is None:
                    raise UserError(f'{where}: "{line[:80]}" is not of the form Class/v_Class_g01_c01.avi')
                if known is not None and (label not in known or index.strip() not in ("", known[label])):
                    raise UserError(f'{where}: "{line[:80]}" does not agree with {indices}')
                yield Row([f"{label}/{name}", name], label, split, where, group[1])

    return manifest_of(rows(), Places(folder, ROOTS), folder, ".avi")
