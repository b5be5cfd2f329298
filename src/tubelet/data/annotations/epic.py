"""EPIC-KITCHENS-100 (arXiv 2006.13256): actions in kitchens, seen by who does them; 97 verbs, 300 nouns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tubelet.errors import UserError

from ..manifest import Manifest
from .parse import number, read_table
from .places import Places, official_file, required_file
from .rows import Row, manifest_of

COLUMNS = (
    "narration_id",
    "participant_id",
    "video_id",
    "start_timestamp",
    "stop_timestamp",
    "verb_class",
    "noun_class",
)
ROOTS = ("", "EPIC-KITCHENS", "videos", "clips")
LISTS = ("", "annotations", "epic-kitchens-100-annotations", "labels")


def read_epic(folder: Path, variant: str) -> Manifest:
    """Train and validation rows, one per narrated action; the label is the verb, or what ``variant`` says.

    variant: "verb", "noun" or "action" (verb and noun). All three are extra columns, with the narration and the
    participant. Files: `EPIC_100_train.csv`, `EPIC_100_validation.csv` (narration_id, participant_id, video_id,
    start_timestamp, stop_timestamp as HH:MM:SS.ss, verb_class, noun_class, ...); with `EPIC_100_verb_classes.csv` and
    `EPIC_100_noun_classes.csv` (id, key) classes have names, else numbers. The test split has no labels and is not
    read. Videos: `P01/videos/P01_01.MP4`, as the official script stores them, or `P01/P01_01`, or `P01_01`.
    The group is the video: the official splits share participants, so a probe would refuse those as groups.
    Raises UserError for files that are absent or not of this form.
    """
    verbs, nouns = _names(folder, "verb"), _names(folder, "noun")

    def rows() -> Iterator[Row]:
        for split, name in (("train", "EPIC_100_train.csv"), ("val", "EPIC_100_validation.csv")):
            for where, row in read_table(required_file(folder, [name], "EPIC-KITCHENS", LISTS), COLUMNS):
                verb, noun = _name(where, verbs, row["verb_class"]), _name(where, nouns, row["noun_class"])
                told = {"verb": verb, "noun": noun, "action": f"{verb} {noun}"}
                video, participant = row["video_id"], row["participant_id"]
                extra = {
                    **told,
                    "narration": row.get("narration") or "",
                    "narration_id": row["narration_id"],
                    "participant": participant,
                }
                yield Row(
                    [f"{participant}/videos/{video}", f"{participant}/{video}", video],
                    told[variant or "verb"],
                    split,
                    where,
                    group=video,
                    start=_seconds(where, row["start_timestamp"]),
                    end=_seconds(where, row["stop_timestamp"]),
                    extra=extra,
                )

    notes = [] if verbs and nouns else ["EPIC_100_*_classes.csv are not there, so classes are numbers"]
    return manifest_of(rows(), Places(folder, ROOTS), folder, ".MP4", notes)


def _names(folder: Path, kind: str) -> dict[str, str] | None:
    """Names of the classes by number; the repository has a second version of the nouns' file."""
    files = [f"EPIC_100_{kind}_classes{version}.csv" for version in ("", "_v2")]
    file = official_file(folder, files, LISTS)
    return None if file is None else {row["id"]: row["key"] for _, row in read_table(file, ("id", "key"))}


def _name(where: str, names: dict[str, str] | None, index: str) -> str:
    if names is None:
        return index
    if index not in names:
        raise UserError(f'{where}: the class "{index}" is not among the {len(names)} of the class file')
    return names[index]


def _seconds(where: str, stamp: str) -> float:
    parts = stamp.split(":")
    if len(parts) != 3:
        raise UserError(f'{where}: the time "{stamp}" is not of the form HH:MM:SS.ss')
    hours, minutes, seconds = (number(where, "a time", part) for part in parts)
    return round(3600 * hours + 60 * minutes + seconds, 3)
