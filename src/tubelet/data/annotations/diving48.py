"""Diving48 V2 (ECCV 2018, "RESOUND"): 48 kinds of competitive dives, which hardly differ but in motion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tubelet.errors import UserError

from ..manifest import Manifest
from .parse import items, read_json
from .places import VIDEOS, Places, official_file, required_file
from .rows import Row, manifest_of

KEYS = ("vid_name", "label")


def read_diving48(folder: Path, variant: str) -> Manifest:
    """Train and test rows; a label reads "Back 15som 05Twis FREE" where the vocabulary is there, else its number.

    Files: `Diving48_V2_train.json` and `Diving48_V2_test.json`, lists of objects with vid_name, label (0 to 47),
    start_frame, end_frame; `Diving48_vocab.json`, a list of [take-off, somersault, twist, position]. Videos:
    `VIDNAME.mp4`, in rgb/, videos/ or the folder itself, already cut to one dive: start_frame and end_frame count
    within the clip and are kept as extra columns. A vid_name is a competition's YouTube id and a number; the
    competition is the group, unless the split shares it.
    Raises UserError for files that are absent or not of this form.
    """
    vocabulary = official_file(folder, ["Diving48_vocab.json"])
    words = read_json(vocabulary, list, "a list of lists of words") if vocabulary else None

    def label_of(where: str, value: object) -> str:
        if not isinstance(value, int) or value < 0 or (words is not None and value >= len(words)):
            known = "a number from 0" if words is None else f"a number from 0 to {len(words) - 1}"
            raise UserError(f"{where}: label must be {known}, not {value!r}")
        if words is None:
            return str(value)
        return " ".join(map(str, words[value])) if isinstance(words[value], list) else str(words[value])

    def rows() -> Iterator[Row]:
        for split in ("train", "test"):
            file = required_file(folder, [f"Diving48_V2_{split}.json"], "Diving48")
            values = read_json(file, list, "a list of objects with vid_name and label")
            for where, item in items(file, values, KEYS):
                name, label = str(item["vid_name"]), label_of(where, item["label"])
                cut = {key: str(item[key]) for key in ("start_frame", "end_frame") if key in item}
                yield Row([name], label, split, where, group=name.rpartition("_")[0] or None, extra=cut)

    notes = [] if words else ["Diving48_vocab.json is not there, so labels are numbers"]
    return manifest_of(rows(), Places(folder, ("rgb", *VIDEOS)), folder, notes=notes)
