"""Where the frames of a video are: time stamps and key frames, from the packets alone.

Containers lie. Where packets do not tell the pictures apart (AVI with B-frames, repeated or missing time
stamps), the file is decoded once instead and its frames are found by counting.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from av.packet import Packet

from . import images
from .container import DecodeError, opened, packets, pictures, status

# Pictures that one process remembers, at 16 bytes each.
REMEMBERED = 4_000_000


@dataclass(frozen=True)
class Index:
    """Frame ``k`` is the k-th picture that a decode from the start shows.

    times: float64 [N], seconds after the first frame, ascending (NaN for images without a rate).
    duration: seconds, the last frame's own included. pts: int64 [N] time stamps, or None where frames are
    found by counting. keys: int64 [K], the frames that decoding can start from. key_dts: int64 [K], where to
    seek for them.
    """

    times: np.ndarray
    duration: float
    pts: np.ndarray | None = None
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    key_dts: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(self.times)


def index(path: str | Path, fps: float | None = None, frames: int | None = None) -> Index:
    """The index of ``path``, a video file or a folder of numbered images (``fps`` is theirs alone).

    frames: how many a complete decode found, if that is known; packets that promise another number are not
    believed. Remembered per process for as long as size and time of change stay. Raises DecodeError if the file cannot
    be opened or holds no picture.
    """
    path = Path(path)
    if os.path.isdir(path):
        n = len(images.frame_files(path))
        return Index(np.arange(n) / (fps or np.nan), n / (fps or np.nan))
    key = _identity(path)
    found = _memory.get(key)
    if found is None:
        found = _by_packets(path) or _by_pictures(path)
        _memory.put(key, found)
    if frames is not None and found.pts is not None and frames != len(found):
        found = _by_pictures(path)
        _memory.put(key, found)
    return found


def forget_keys(path: Path, entry: Index) -> None:
    """Key frames proved false: from now on the file is decoded from its start, matching time stamps."""
    _memory.put(_identity(path), replace(entry, keys=entry.keys[:0], key_dts=entry.key_dts[:0]))


def forget_stamps(path: Path) -> None:
    """Time stamps proved false: decodes the file, and finds its frames by counting from now on."""
    _memory.put(_identity(path), _by_pictures(path))


def times_of(stamps: Sequence[int | None], base: float, rate: float, step: float) -> tuple[np.ndarray, float]:
    """float64 [N] ascending seconds from 0, and the duration; ``step`` is the last frame's own, if known.

    Stamps that are missing or all the same yield to the frame ``rate``.
    """
    n = len(stamps)
    known = sorted(stamp for stamp in stamps if stamp is not None)
    if len(known) == n and base and (n == 1 or known[-1] > known[0]):
        times = (np.array(known, np.float64) - known[0]) * base
    else:
        times = np.arange(n) / (rate or 25.0)
    typical = float(np.median(np.diff(times))) if n > 1 else 0.0
    return times, float(times[-1]) + (step or typical or (1 / rate if rate else 0.0))


def _by_packets(path: Path) -> Index | None:
    pts: list[int] = []
    keys: list[tuple[int, int]] = []
    step = 0
    with opened(path) as (container, stream):
        # AVI has no presentation times: those of a stream with B-frames are guesses.
        if container.format.name == "avi" and stream.codec_context.has_b_frames:
            return None
        shows = _SHOWS.get(stream.codec.canonical_name, _always)
        for packet in packets(container, stream, []):
            if packet.is_discard or not shows(packet):
                continue
            if packet.pts is None:
                return None
            pts.append(packet.pts)
            step = packet.duration or step
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
        base, rate = float(stream.time_base or 0), float(stream.average_rate or 0)
    stamps = np.unique(np.array(pts, np.int64))
    if not pts or len(stamps) != len(pts):
        return None
    times, duration = times_of(stamps.tolist(), base, rate, step * base)
    marks = np.array(sorted(keys), np.int64).reshape(-1, 2)
    return Index(times, duration, stamps, np.searchsorted(stamps, marks[:, 0]), marks[:, 1])


def _by_pictures(path: Path) -> Index:
    errors: list[str] = []
    with opened(path) as (container, stream):
        base, rate = float(stream.time_base or 0), float(stream.average_rate or 0)
        stamps = [frame.pts for frame in pictures(stream, packets(container, stream, errors), errors)]
    if not stamps:
        raise DecodeError(path, "opens, but no frame decodes" + (f": {errors[0]}" if errors else ""))
    return Index(*times_of(stamps, base, rate, 0.0))


def _always(packet: Packet) -> bool:
    return True


def _vp8_shows(packet: Packet) -> bool:
    """RFC 6386 §9.1: bit 4 of the first byte is show_frame."""
    return bool(bytes(packet)[0] >> 4 & 1)


def _vp9_shows(packet: Packet) -> bool:
    """VP9 bitstream §6.2 and Annex B: show_existing_frame or show_frame; a superframe always shows one."""
    data = bytes(packet)
    if data[-1] >> 5 == 0b110:
        return True
    at = 2 if data[0] >> 4 & 3 == 3 else 3  # profile 3 has one more bit before
    return bool(data[0] >> at & 1 or data[0] >> (at - 2) & 1)


# Packets of these may carry a picture that is never shown, only referred to.
_SHOWS: dict[str, Callable[[Packet], bool]] = {"vp8": _vp8_shows, "vp9": _vp9_shows}


class _Memory:
    """The most recently used indexes, up to a number of pictures in all."""

    def __init__(self) -> None:
        self.entries: OrderedDict[tuple[str, int, int], Index] = OrderedDict()
        self.pictures = 0

    def get(self, key: tuple[str, int, int]) -> Index | None:
        if key in self.entries:
            self.entries.move_to_end(key)
        return self.entries.get(key)

    def put(self, key: tuple[str, int, int], entry: Index) -> None:
        old = self.entries.pop(key, None)
        self.entries[key] = entry
        self.pictures += len(entry) - (len(old) if old else 0)
        while self.pictures > REMEMBERED and len(self.entries) > 1:
            self.pictures -= len(self.entries.popitem(last=False)[1])


_memory = _Memory()


def _identity(path: Path) -> tuple[str, int, int]:
    stat = status(path)
    return os.path.abspath(path), stat.st_size, stat.st_mtime_ns
