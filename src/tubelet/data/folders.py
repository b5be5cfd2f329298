"""Which videos lie in a folder, and what their places say about labels and splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tubelet.errors import UserError

from . import images
from .manifest import Manifest, Video

_VIDEO = (
    ".mp4 .m4v .mov .qt .mkv .webm .avi .divx .xvid .mpg .mpeg .mpe .m1v .m2v .mpv .vob .ts .mts .m2ts .m2t .wmv"
    " .asf .flv .f4v .3gp .3g2 .ogv .ogm .ogg .gif .mxf .dv .ivf .y4m .h264 .264 .h265 .hevc .265 .av1 .obu .mjpg"
    " .mjpeg .rm .rmvb .nut .amv .apng"
)
_NOT_VIDEO = (
    ".txt .csv .tsv .json .jsonl .ndjson .xml .yaml .yml .md .rst .html .htm .pdf .log .ini .toml .cfg .py .ipynb .sh"
    " .npy .npz .pt .pth .pkl .h5 .hdf5 .mat .parquet .pq .zip .tar .gz .bz2 .xz .7z .rar .wav .mp3 .flac .aac .m4a"
    " .opus .srt .vtt .ass .db .sqlite .doc .docx .xls .xlsx .ppt .pptx .lock .tmp .part .ds_store .sha256 .md5"
)
VIDEO, NOT_VIDEO = frozenset(_VIDEO.split()), frozenset(_NOT_VIDEO.split())
KNOWN_SUFFIXES = VIDEO | images.EXTENSIONS
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
}
SPLITS |= {"test": "test", "testing": "test"}
# Lists that often lie beside the videos and hold their labels.
LISTS = ("metadata.csv", "labels.csv", "manifest.csv", "metadata.jsonl", "metadata.parquet")

Kind = Literal["video", "image", "other"]


def read_folder(folder: Path) -> Manifest:
    """All videos below ``folder``, in the order of their paths; hidden files and folders are left out.

    A file is a video by its extension in any case; without a known one, by its first bytes. A folder of two or
    more numbered images and no video is itself one video. Everything else is skipped, counted and told.

    Labels: when every video lies exactly one folder down, in two or more folders, the folder's name is the
    label; if all those names are splits (train, val, test, ...), it is the split instead. When every video lies
    in SPLIT/CLASS, both are taken. In any other shape the folders mean nothing.
    Raises UserError when there is no video.
    """
    found: list[Path] = []
    skipped: Counter[str] = Counter()
    for path, names in _walk(folder):
        kinds = {name: kind(path / name) for name in names}
        found += [path / name for name in names if kinds[name] == "video"]
        skipped.update(_ending(name) for name in names if kinds[name] == "other")
        pictures = [name for name in names if kinds[name] == "image"]
        if "video" not in kinds.values() and images.numbered(pictures):
            found.append(path)
        elif pictures:
            skipped["single images"] += len(pictures)
    told = ", ".join(f"{count} {what}" for what, count in skipped.most_common(6))
    if not found:
        beside = f"; what lies there: {told}" if told else "; it is empty"
        raise UserError(
            f"{folder} holds no video{beside}. Data must be a folder with video files, or a list of them"
        )
    notes = [f"{sum(skipped.values())} files are no videos and were skipped: {told}"] if skipped else []
    rows = sorted(found)
    labels, splits, note = _places([path.relative_to(folder).parts for path in rows])
    notes += [note] if note else []
    for name in LISTS:
        if labels is None and (folder / name).is_file():
            notes.append(f"{folder / name} was not read; give it as data to use its labels")
            break
    base = folder.absolute()
    return Manifest(
        tuple(
            Video(
                base / path.relative_to(folder), labels[i] if labels else None, splits[i] if splits else None
            )
            for i, path in enumerate(rows)
        ),
        folder,
        tuple(notes),
    )


def kind(path: Path) -> Kind:
    """What a file is, by extension, else by its first bytes."""
    suffix = path.suffix.lower()
    if suffix in VIDEO:
        return "video"
    if suffix in images.EXTENSIONS:
        return "image"
    if suffix in NOT_VIDEO:
        return "other"
    try:
        with path.open("rb") as file:
            return "video" if _signed(file.read(512)) else "other"
    except OSError:
        return "other"


def _signed(head: bytes) -> bool:
    """Whether a file begins as a video container does."""
    boxes = (b"ftyp", b"moov", b"mdat", b"wide", b"pnot")
    starts = (
        b"\x1aE\xdf\xa3",
        b"FLV\x01",
        b"OggS",
        b"\0\0\x01\xba",
        b"\0\0\x01\xb3",
        b"GIF8",
        b"DKIF",
        b"YUV4MPEG2",
    )
    return (
        head[4:8] in boxes
        or head.startswith((*starts, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\x06\x0e\x2b\x34", b".RMF"))
        or (head.startswith(b"RIFF") and head[8:12] == b"AVI ")
        or (len(head) > 376 and head[0] == head[188] == head[376] == 0x47)
    )


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders and the names of their visible files, sorted; links are followed, loops are not."""
    seen: set[str] = set()
    for path, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(path), sorted(name for name in names if not name.startswith("."))


def _ending(name: str) -> str:
    suffix = os.path.splitext(name)[1].lower()
    return f"{suffix} files" if suffix else "files without extension"


def _places(parts: list[tuple[str, ...]]) -> tuple[list[str] | None, list[str] | None, str | None]:
    """Labels, splits, and a sentence on them, from the paths' parts below the folder."""
    depths = {len(p) for p in parts}
    top = {p[0] for p in parts if p}
    only_splits = all(name.lower() in SPLITS for name in top)
    if depths == {2} and only_splits:
        return None, [SPLITS[p[0].lower()] for p in parts], f"splits taken from the folders: {_some(top)}"
    if depths == {2} and len(top) > 1:
        return [p[0] for p in parts], None, f"labels taken from the {len(top)} folders: {_some(top)}"
    if depths == {3} and only_splits:
        classes = {p[1] for p in parts}
        told = f"splits and {len(classes)} labels taken from the folders: {_some(classes)}"
        return [p[1] for p in parts], [SPLITS[p[0].lower()] for p in parts], told
    return None, None, None


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")
