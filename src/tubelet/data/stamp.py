"""By what a video on disk is known again: whatever was computed from it stays true while this is the same."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from . import images
from .container import status


class Stamp(NamedTuple):
    """size: bytes. mtime_ns: time of change. Of a folder of images: their sum, the latest, and how many."""

    size: int
    mtime_ns: int
    files: int


def stamp(path: Path) -> Stamp:
    """The stamp of a video file or a folder of images.

    Raises DecodeError, with the system's reason, if there is none or it may not be looked at.
    """
    files = images.frame_files(path) if os.path.isdir(path) else [path]
    stats = [status(file) for file in files]
    return Stamp(sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats), len(stats))
