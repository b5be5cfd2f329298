"""Stretches of videos as filmstrips: what a search found, groups of windows, and the odd ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tubelet.data import clips, decode
from tubelet.data.container import DecodeError
from tubelet.report.filmstrip import Strip
from tubelet.report.page import Page

SIDE, FRAMES = 72, 8  # the short side in pixels, and how many frames are shown
_GREY = 160


class Stretch(NamedTuple):
    """A part of a file with its ``label`` and a ``note`` under it. start, end: s."""

    path: Path
    start: float
    end: float
    label: str
    note: str = ""


def add_stretches(
    page: Page, groups: Sequence[Sequence[Stretch]], shows: str, computed: str = "", frames: int = FRAMES
) -> None:
    """Filmstrips of all stretches; what cannot be read is grey, and the caption names it."""
    gone: dict[str, str] = {}
    strips = [[_strip(stretch, frames, gone) for stretch in group] for group in groups]
    missing = "; ".join(f"{name} ({reason})" for name, reason in sorted(gone.items()))
    page.filmstrips(strips, shows, computed + (f" Could not be read: {missing}." if gone else ""))


def frames_between(path: Path, start: float, end: float, count: int = FRAMES, side: int = SIDE) -> np.ndarray:
    """uint8 [count, H, W, 3]: frames evenly spread over ``start`` to ``end`` (s), short sides at most ``side``.

    Of a folder of images, which has no times, over all of it. A stretch without a frame of its own shows the frame
    that was on screen when it began. Raises DecodeError or OSError if the file is missing or cannot be read.
    """
    if not path.exists():
        raise DecodeError(path, "the file is not there")
    while True:
        times = decode.index(path).times
        first, last = (0, len(times)) if np.isnan(times[0]) else clips.within(times, start, end)
        if last == first:
            first = max(0, first - 1)
        numbers = np.linspace(first, max(first, last - 1), count).round().astype(np.int64)
        try:
            return decode.read(path, numbers, side)
        except decode.IndexChanged:
            continue


def clock(seconds: float) -> str:
    """1:02:03.5; 2:03.5 below an hour."""
    tenths = round(10 * seconds)
    hours, minutes = tenths // 36000, tenths // 600 % 60
    rest = f"{tenths % 600 // 10:02d}.{tenths % 10}"
    return f"{hours}:{minutes:02d}:{rest}" if hours else f"{minutes}:{rest}"


def between(start: float, end: float) -> str:
    """2:03.5–2:07.5; "all of it" for images, which have no times."""
    if math.isnan(start):
        return "all of it"
    return f"{clock(start)}–{clock(end)}"


def _strip(stretch: Stretch, frames: int, gone: dict[str, str]) -> Strip:
    try:
        clip = frames_between(stretch.path, stretch.start, stretch.end, frames)
    except DecodeError as error:
        gone[stretch.path.name] = error.reason
    except OSError as error:
        gone[stretch.path.name] = str(error.strerror)
    else:
        return Strip(stretch.label, clip, stretch.note, frames)
    grey = np.full((frames, SIDE, SIDE * 4 // 3, 3), _GREY, np.uint8)
    return Strip(stretch.label, grey, f"{stretch.note} (cannot be read)".strip(), frames)
