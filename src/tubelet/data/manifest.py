"""What a data set consists of: one row per video (or per stretch of one), with labels and, once scanned, facts."""

from __future__ import annotations

import csv
import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tubelet.errors import UserError
from tubelet.files import replace_file, unread

from .container import GONE, DecodeError, status

# What a scan measures, in the order of a manifest's columns.
MEASURED = (
    "status",
    "codec",
    "duration",
    "frames",
    "fps",
    "width",
    "height",
    "rotation",
    "reason",
    "size",
    "mtime_ns",
)
GIVEN = ("path", "label", "split", "group", "start", "end")
STATUSES = ("ok", "damaged", "unreadable")


@dataclass(frozen=True)
class Video:
    """One row: a video file, or a folder of numbered images, or a stretch of one.

    start, end: seconds after the first frame; None is the file's own. label, split, group: as the list says.
    The rest is None until a scan has measured it. status: `ok`; `damaged` (frames decode, with errors);
    `unreadable`. frames: really decoded. fps: their average rate (for images: as the list says). width, height:
    as shown, after rotation. rotation: degrees counter-clockwise. size, mtime_ns: of the file when it was
    scanned. extra: the list's further columns.
    """

    path: Path
    label: str | None = None
    split: str | None = None
    group: str | None = None
    start: float | None = None
    end: float | None = None
    status: str | None = None
    codec: str | None = None
    duration: float | None = None
    frames: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    rotation: int | None = None
    reason: str | None = None
    size: int | None = None
    mtime_ns: int | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Rows, where they came from, and what their reader has to tell (one line each).

    Raises UserError for a file whose name is not UTF-8: no list, table or report could hold it.
    """

    videos: tuple[Video, ...]
    source: Path
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for video in self.videos:
            try:
                str(video.path).encode()
            except UnicodeEncodeError:
                shown = str(video.path).encode(errors="backslashreplace").decode()
                raise UserError(
                    f"{shown}: the name is not UTF-8, and no list can hold it; rename the file"
                ) from None

    def __len__(self) -> int:
        return len(self.videos)

    def readable(self) -> Manifest:
        """Without the rows known to be unreadable."""
        return replace(self, videos=tuple(v for v in self.videos if v.status != "unreadable"))

    def with_split(self, *names: str) -> Manifest:
        """The rows whose split is one of ``names``; raises UserError if there is none."""
        kept = tuple(v for v in self.videos if v.split in names)
        if not kept:
            there = sorted({v.split for v in self.videos if v.split}) or "none at all"
            raise UserError(f"{self.source}: no video has the split {' or '.join(names)}; there are {there}")
        return replace(self, videos=kept)

    def without_labels(self) -> Manifest:
        """As training sees it: no label can reach a batch."""
        return replace(self, videos=tuple(replace(v, label=None) for v in self.videos))

    def classes(self) -> list[str]:
        """The labels that occur, sorted."""
        return sorted({v.label for v in self.videos if v.label is not None})

    def digest(self) -> str:
        """16 hex digits that change when a row's path, stretch, label, split or group does; not with the disk."""
        rows = [(v.path.as_posix(), v.label, v.split, v.group, v.start, v.end, v.status) for v in self.videos]
        return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def read_manifest(data: str | Path | Manifest) -> Manifest:
    """The videos that ``data`` names; no file is decoded.

    data: a folder (searched recursively), a list (headed CSV, TSV, Parquet or JSON lines with a `path` column,
    or a headerless `path label` or `path 0 -1` file), a scan's manifest, one video, a folder of numbered
    images, or a published data set with its official files, as `ssv2:FOLDER` (see `annotations.official`; a file
    of that very name goes first). Relative paths in a list start at the list's folder. Labels of a folder: see
    `folders.read_folder`.
    Rows whose file does not exist, or may not be looked at, come back as `unreadable`. Raises UserError, with the cure,
    when there is nothing to read, a list makes no sense, or the name of a file is not UTF-8.
    """
    from . import folders, lists  # they build what is defined here
    from .annotations import official

    if isinstance(data, Manifest):
        return data
    path = Path(os.path.expanduser(data))  # Path.expanduser raises for a user that does not exist
    if not str(data):
        raise UserError("no data given; name a folder of videos, a list of them, or a scan's manifest")
    wrong = _wrong(path)
    if wrong and official.is_official(str(data)):
        return official.read_official(str(data))
    if wrong:
        told = "does not exist" if wrong == GONE else f"cannot be read ({wrong})"
        raise UserError(f"{path} {told}; data must be a folder of videos, a list of them, or one video")
    if path.is_dir():
        return folders.read_folder(path)
    if path.suffix.lower() in lists.SUFFIXES:
        try:
            return lists.read_list(path)
        except OSError as error:
            raise unread(path, error) from error
    if folders.kind(path) == "video":
        return Manifest((Video(path.absolute()),), path)
    raise UserError(
        f"{path} is neither a video nor a list of them; lists end in {', '.join(sorted(lists.SUFFIXES))}"
    )


def write_manifest(manifest: Manifest, out: str | Path) -> None:
    """Writes a CSV that `read_manifest` reads back, whole or not at all.

    Files below the manifest's folder are named relative to it, others absolutely.
    """
    out = Path(out)
    base = os.path.abspath(out.parent)
    extra = list(dict.fromkeys(name for v in manifest.videos for name in v.extra if name not in MEASURED))
    with replace_file(out) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow([*GIVEN, *MEASURED, *extra])
        for v in manifest.videos:
            path = os.path.abspath(v.path)
            inside = os.path.commonpath([base, path]) == base if os.path.isabs(path) else False
            values = [os.path.relpath(path, base) if inside else path]
            values += [_cell(getattr(v, name)) for name in (*GIVEN[1:], *MEASURED)]
            rows.writerow([*values, *(v.extra.get(name, "") for name in extra)])


def build(rows: Iterable[tuple[str, Mapping[str, Any]]], source: Path, notes: Iterable[str]) -> Manifest:
    """A manifest from (where the row stands, its columns by name), `path` among them.

    Measured columns are believed only from a scan, which writes them all; in other lists they are the user's
    own and kept as extra (but `fps`, which is the only way to give a folder of images a rate).
    Identical rows are taken once. Raises UserError for values that make no sense and for one stretch with two
    labels.
    """
    base = source.absolute().parent
    videos: dict[tuple[Path, float | None, float | None], Video] = {}
    repeats = 0
    for where, row in rows:
        text = {name: "" if value is None else str(value).strip() for name, value in row.items()}
        if not text.get("path"):
            raise UserError(f"{source}, {where}: the path is empty; fill it or remove the row")
        path = Path(os.path.normpath(base / os.path.expanduser(text["path"])))
        scanned = text.keys() >= _SCANNED
        measured = MEASURED if scanned else ("fps",) if "fps" in text and os.path.isdir(path) else ()
        taken = {*GIVEN, *measured}
        video = Video(
            path=path,
            label=text.get("label") or None,
            split=text.get("split") or None,
            group=text.get("group") or None,
            start=_number(text.get("start"), float, "start", source, where),
            end=_number(text.get("end"), float, "end", source, where),
            **{name: _number(text.get(name), _KIND[name], name, source, where) for name in measured},
            extra={name: value for name, value in text.items() if name not in taken},
        )
        _check(video, source, where)
        key = (video.path, video.start, video.end)
        if (known := videos.get(key)) is not None:
            if known.label != video.label:
                raise UserError(
                    f'{source}, {where}: {text["path"]} has the label "{video.label}", and "{known.label}" in an '
                    "earlier row; keep one of them, or give the rows different start and end"
                )
            repeats += 1
            continue
        videos[key] = video
    found, left_out = _existing(list(videos.values()), source)
    told = [*notes]
    if repeats:
        told.append(f"{repeats} rows repeat an earlier one and are taken once")
    told += left_out
    unlabelled = sum(v.label is None for v in found)
    if 0 < unlabelled < len(found):
        told.append(f"{unlabelled} of {len(found)} rows have no label")
    return Manifest(tuple(found), source, tuple(told))


def _existing(videos: list[Video], source: Path) -> tuple[list[Video], list[str]]:
    """Files that are gone, or may not be looked at, become `unreadable`; and what there is to tell of them.

    What an earlier scan said of them no longer holds.
    """
    if not videos:
        raise UserError(f"{source} lists no videos")
    wrong = [_wrong(video.path) for video in videos]
    gone = wrong.count(GONE)
    if gone == len(videos):
        raise UserError(
            f"{source}: none of its {gone} files exists, for instance {videos[0].path}; relative paths start "
            "at the folder of the list"
        )
    if all(wrong):
        first = next(i for i, reason in enumerate(wrong) if reason != GONE)
        raise UserError(
            f"{source}: none of its {len(videos)} files can be read, for instance {videos[first].path}: "
            f"{wrong[first]}; ask for the right to read them, or correct the list"
        )
    told = [f"{gone} of {len(videos)} files do not exist"] if gone else []
    if closed := [i for i, reason in enumerate(wrong) if reason not in (None, GONE)]:
        first = closed[0]
        told.append(
            f"{len(closed)} of {len(videos)} files cannot be read, for instance {videos[first].path}: {wrong[first]}"
        )
    checked = [
        replace(video, status="unreadable", reason=reason) if reason else video
        for video, reason in zip(videos, wrong, strict=True)
    ]
    return checked, told


def _wrong(path: Path) -> str | None:
    """Why a file cannot be read, as far as that shows without opening it; None if nothing is wrong."""
    try:
        status(path)
    except DecodeError as error:
        return error.reason
    return None


def _check(video: Video, source: Path, where: str) -> None:
    if video.status is not None and video.status not in STATUSES:
        raise UserError(f'{source}, {where}: status "{video.status}" is none of {", ".join(STATUSES)}')
    start, end = video.start or 0.0, math.inf if video.end is None else video.end
    if start < 0 or end <= start:
        raise UserError(
            f"{source}, {where}: start {video.start} and end {video.end} hold no video; they are seconds, and end "
            "comes after start"
        )


_SCANNED = {"status", "codec", "size", "mtime_ns"}
_KIND: dict[str, type] = {
    "status": str,
    "codec": str,
    "reason": str,
    "duration": float,
    "fps": float,
    "frames": int,
    "width": int,
    "height": int,
    "rotation": int,
    "size": int,
    "mtime_ns": int,
}


def _number(text: str | None, kind: type, name: str, source: Path, where: str) -> Any:
    if text is None or text == "" or text.lower() in ("nan", "none", "null"):
        return None
    try:
        value = kind(text)
    except ValueError:
        raise UserError(f'{source}, {where}: {name} must be a number, not "{text}"') from None
    if kind is float and not math.isfinite(value):
        raise UserError(f'{source}, {where}: {name} must be finite, not "{text}"')
    return value


def _cell(value: Any) -> str:
    return "" if value is None else str(value)
