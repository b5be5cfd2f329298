"""By what a video on disk is known again: whatever was computed from it stays true while this is the same."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from . import images
from .container import DecodeError


class Stamp(NamedTuple):
    """size: bytes. mtime_ns: time of change. Of a folder of images: their sum, the latest, and how many."""

    size: int
    mtime_ns: int
    files: int


def stamp(path: Path) -> Stamp:
    """The stamp of a video file or a folder of images; raises DecodeError if there is none."""
    files = images.frame_files(path) if path.is_dir() else [path]
    try:
        stats = [file.stat() for file in files]
    except FileNotFoundError:
        raise DecodeError(path, "file not found") from None
    return Stamp(sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats), len(stats))
