"""Decoded frames kept on disk, so that every video is decoded once and not once per epoch.

One .npy file of raw RGB per video, read through memory mapping: the frames of a clip are index reads. Where
decoding is the bottleneck (small data, small pictures, many epochs) this is an order of magnitude.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tubelet.errors import UserError
from tubelet.files import replace_file

from . import decode, images
from .container import DecodeError, opened
from .manifest import Video
from .pictures import scaled
from .stamp import stamp

VERSION = 1  # part of every key; raise it when the same file decodes to other pixels
SAMPLE = 64  # files looked at to estimate the size of a data set that was never scanned
# Threads that need the same file take turns, for a draft is named by its process alone. A few locks for all files.
_TURNS = [threading.Lock() for _ in range(64)]
# NumPy parses a header as Python, and two threads of CPython 3.11 that do so at once fail now and then ("AST
# constructor recursion depth mismatch").
_HEADERS = threading.Lock()


@dataclass(frozen=True)
class Cached:
    """All frames of one video.

    pictures: uint8 [N, H, W, 3], memory-mapped. times: float64 [N], as `index.Index.times`. exact: bool [N],
    False where a frame did not decode and the one before it stands in.
    """

    pictures: np.ndarray
    times: np.ndarray
    exact: np.ndarray


def frames_of(video: Video, short_side: int | None, folder: Path) -> Cached:
    """The decoded frames of ``video``'s file, from ``folder`` if it has them; decodes them into it if not.

    The key holds path, size and time of change of the file, and ``short_side`` (to which larger pictures are
    shrunk). Two processes that need the same file at once both decode it, and either result stays.
    Threads of one process decode it once. Raises DecodeError, and UserError if the disk is full.
    """
    file = _file(video, short_side, folder)
    if not file.exists():
        with _TURNS[hash(file) % len(_TURNS)]:
            if not file.exists():
                _store(video, short_side, file)
    with _HEADERS:
        about = np.load(file.with_suffix(".times.npy"))
        return Cached(np.load(file, mmap_mode="r"), about["time"], about["exact"])


def check_room(videos: Sequence[Video], short_side: int | None, folder: Path) -> None:
    """Raises UserError, with the numbers, if ``folder``'s disk has no room for what is not yet cached.

    Exact for scanned videos; of others, up to SAMPLE are looked at.
    """
    paths = {video.path: video for video in videos}.values()
    missing = [video for video in paths if not _file(video, short_side, folder).exists()]
    if not missing:
        return
    unscanned = [video for video in missing if video.frames is None or not video.width or not video.height]
    sample = unscanned[:: max(1, len(unscanned) // SAMPLE)]
    sampled = [_bytes(*size, short_side) for video in sample if (size := _look(video))]
    needed = sum(
        _bytes(v.frames, v.width, v.height, short_side) for v in missing if v.frames and v.width and v.height
    )
    if sampled:
        needed += round(sum(sampled) / len(sampled) * len(unscanned))
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise UserError(
            f"cache_dir={folder}: the decoded frames of {len(missing)} videos need about {needed / 1e9:.1f} GB at "
            f"short side {short_side or 'as it is'}, and {free / 1e9:.1f} GB are free; free some space, name "
            "another folder, lower decode_size, or leave cache_dir out"
        )


def _store(video: Video, short_side: int | None, file: Path) -> None:
    with replace_file(file) as draft:
        while True:
            entry = decode.index(video.path, video.fps, video.frames if video.status == "ok" else None)
            exact = np.ones(len(entry), bool)
            try:
                # Plain writes, not a writable memory map: on a full disk they raise, a map would kill the process.
                with draft.open("wb") as out:
                    for i, (picture, whole) in enumerate(
                        decode.iterate(video.path, np.arange(len(entry)), short_side)
                    ):
                        if i == 0:
                            shape = (len(entry), *picture.shape)
                            head = {"descr": "|u1", "fortran_order": False, "shape": shape}
                            np.lib.format.write_array_header_1_0(out, head)
                        exact[i] = whole
                        out.write(picture.tobytes())
                break
            except decode.IndexChanged:
                continue
        about = np.empty(len(entry), [("time", "f8"), ("exact", "?")])
        about["time"], about["exact"] = entry.times, exact
        # The frames' file takes its name after this one, so whoever sees it finds both.
        with replace_file(file.with_suffix(".times.npy")) as times, times.open("wb") as out:
            np.save(out, about)


def _file(video: Video, short_side: int | None, folder: Path) -> Path:
    rate = video.fps if os.path.isdir(video.path) else None
    text = repr((VERSION, os.path.abspath(video.path), *stamp(video.path), short_side, rate))
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    return Path(folder) / key[:2] / f"{key}.npy"


def _look(video: Video) -> tuple[int, int, int] | None:
    """Frames, width and height by the file's own word; None if it cannot be opened."""
    try:
        n = len(decode.index(video.path, video.fps))
        if os.path.isdir(video.path):
            frame = images.picture(images.frame_files(video.path)[0])
            return n, frame.width, frame.height
        with opened(video.path) as (_, stream):
            return n, stream.codec_context.width, stream.codec_context.height
    except (DecodeError, EOFError):
        return None


def _bytes(frames: int, width: int, height: int, short_side: int | None) -> int:
    w, h = scaled(width, height, short_side)
    return frames * w * h * 3
