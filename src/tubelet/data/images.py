"""Folders of numbered images, read as videos."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame

from .container import DecodeError, plain
from .pictures import Converter

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"})
_NUMBER = re.compile(r"(\d+)\D*$")


def numbered(names: Iterable[str]) -> list[str]:
    """The images among ``names`` in the order of their numbers, if they are the frames of one video.

    They are when there are two or more, each has a number (the last run of digits of its stem), no number
    comes twice, and what stands before the number is the same for all. Otherwise the list is empty.
    """
    found = [name for name in names if os.path.splitext(name)[1].lower() in EXTENSIONS]
    matches = [_NUMBER.search(os.path.splitext(name)[0]) for name in found]
    numbers = {int(m.group(1)): name for name, m in zip(found, matches, strict=True) if m}
    heads = {name[: m.start(1)] for name, m in zip(found, matches, strict=True) if m}
    if len(numbers) < 2 or len(numbers) < len(found) or len(heads) > 1:
        return []
    return [numbers[n] for n in sorted(numbers)]


def frame_files(folder: Path) -> list[Path]:
    """The frames of ``folder`` in order; raises DecodeError if it holds none, or may not be listed."""
    if not os.path.isdir(folder):
        raise DecodeError(folder, "folder not found")
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
    except OSError as error:
        raise DecodeError(folder, error.strerror or str(error)) from error
    files = [folder / name for name in numbered(names)]
    if not files:
        raise DecodeError(folder, "not a folder of numbered images")
    return files


def iterate(folder: Path, wanted: np.ndarray, short_side: int | None) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3] for each of ``wanted``; all have the size of the first. Raises DecodeError."""
    files = frame_files(folder)
    convert = Converter(short_side)
    for number in wanted:
        try:
            yield convert(picture(files[number]))
        except (FFmpegError, EOFError) as error:
            raise DecodeError(folder, f"{files[number].name}: {plain(error)}") from error


def picture(file: Path) -> VideoFrame:
    """The image in ``file``; raises FFmpegError or EOFError."""
    with av.open(f"file:{os.path.abspath(file)}", metadata_errors="replace") as container:
        for frame in container.decode(video=0):
            return frame
    raise EOFError("no picture in it")
