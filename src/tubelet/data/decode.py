"""Frame-exact reading of one video, with PyAV.

A read seeks to the key frame at or before the first wanted frame, decodes forward, and converts only wanted
frames to RGB. Nothing is taken on trust: packets are thrown away until the very key frame that was asked for
appears, the decoder must call its first picture a key frame and whole, pictures must come in order, and none may be
missing without a decoding error. A file that breaks one of these is read from its start from then on:
slower, and still exact.

Pictures are turned and mirrored as the display matrix says (only by multiples of 90 degrees; anything else is
ignored) and have the size of the clip's first one. Sample aspect ratio and HDR transfer are left as coded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from . import images
from .container import DecodeError, opened, packets, pictures, plain
from .index import Index, forget_keys, forget_stamps, index
from .pictures import Converter

__all__ = ["DecodeError", "IndexChanged", "index", "iterate", "read", "refuse_holes"]

# Decoding on costs little, so a seek must jump over more pictures than this.
SEEK_BEYOND = 8


class IndexChanged(DecodeError):
    """The index was found wrong while frames were read, and has been mended: choose frames and read again."""


def read(path: str | Path, frames: Sequence[int] | np.ndarray, short_side: int | None = None) -> np.ndarray:
    """uint8 [T, H, W, 3], RGB: frame numbers ``frames`` (any order, repeats allowed) of a video or image folder.

    short_side: larger pictures are scaled down (bilinear) so that their short side is this.
    A frame that cannot be decoded is stood in for by the one shown before it; if that befalls more than a
    quarter of the wanted frames, or the file cannot be read, DecodeError is raised.
    """
    numbers = np.asarray(frames, np.int64)
    assert numbers.ndim == 1 and len(numbers) > 0
    path = Path(path)
    wanted, place = np.unique(numbers, return_inverse=True)
    found: list[tuple[np.ndarray, bool]] = []
    while not found:
        try:
            found = list(iterate(path, wanted, short_side))
        except IndexChanged:
            if wanted[-1] >= len(index(path)):
                raise  # there are fewer frames than the caller thought
    refuse_holes(path, [exact for _, exact in found])
    clip = np.empty((len(numbers), *found[0][0].shape), np.uint8)
    for i, j in enumerate(place):
        clip[i] = found[j][0]
    return clip


def refuse_holes(path: Path, exact: Sequence[bool] | np.ndarray) -> None:
    """Raises DecodeError if more than a quarter of a clip's frames are stood in for."""
    holes = len(exact) - int(np.count_nonzero(exact))
    if holes * 4 > len(exact):
        raise DecodeError(path, f"{holes} of {len(exact)} wanted frames do not decode")


def iterate(
    path: Path, wanted: np.ndarray, short_side: int | None = None
) -> Iterator[tuple[np.ndarray, bool]]:
    """uint8 [H, W, 3] for each of ``wanted`` (ascending, no repeats), and whether it is that very frame.

    Raises DecodeError; IndexChanged, after any number of frames, when the index was wrong: start again then.
    """
    if os.path.isdir(path):
        for picture in images.iterate(path, wanted, short_side):
            yield picture, True
        return
    entry = index(path)
    if wanted[0] < 0 or wanted[-1] >= len(entry):
        raise IndexError(f"{path} has frames 0 to {len(entry) - 1}; asked for {wanted[0]} to {wanted[-1]}")
    convert = Converter(short_side)
    try:
        with opened(path) as (container, stream):
            for frame, exact in _frames(container, stream, entry, wanted):
                yield convert(frame), exact
    except _SeekFailed:
        forget_keys(path, entry)
        raise IndexChanged(path, "its index was wrong") from None
    except _OrderFailed:
        forget_stamps(path)
        raise IndexChanged(path, "its index was wrong") from None
    except FFmpegError as error:
        raise DecodeError(path, plain(error)) from error


class _SeekFailed(Exception):
    """Seeking did not lead to the key frame that the packets promised."""


class _OrderFailed(Exception):
    """The pictures do not follow the packets' time stamps."""


def _frames(
    container: InputContainer, stream: VideoStream, entry: Index, wanted: np.ndarray
) -> Iterator[tuple[VideoFrame, bool]]:
    """Each wanted frame and True; or the one that stands in for it and False."""
    if entry.pts is None:
        yield from _by_counting(container, stream, wanted)
        return
    errors: list[str] = []
    source = pictures(stream, packets(container, stream, errors), errors)
    expected = 0  # the number of the next picture, unless something does not decode
    before: VideoFrame | None = None  # the last two pictures shown
    last: VideoFrame | None = None
    key_of = np.searchsorted(entry.keys, wanted, side="right") - 1
    for number, k in zip(wanted, key_of, strict=True):
        # The first key frame needs no seek from a fresh start.
        if k > 0 and entry.keys[k] >= expected + SEEK_BEYOND:
            expected = int(entry.keys[k])
            source = _from_key(container, stream, int(entry.key_dts[k]), int(entry.pts[expected]), errors)
            before = last = None
        target = int(entry.pts[number])
        while last is None or _stamp(last) < target:
            following = next(source, None)
            if following is None:
                break
            place = int(np.searchsorted(entry.pts, _stamp(following)))
            stray = place == len(entry.pts) or entry.pts[place] != following.pts
            if stray or place < expected or (place > expected and not errors):
                raise _OrderFailed
            before, last, expected = last, following, place + 1
        if last is not None and last.pts == target:
            yield last, True
            continue
        if not errors:
            raise _OrderFailed
        stand_in = last if last is not None and _stamp(last) < target else before or last
        if stand_in is None:
            raise DecodeError(
                container.name.removeprefix("file:"), f"nothing decodes at frame {number} ({errors[0]})"
            )
        yield stand_in, False


def _by_counting(
    container: InputContainer, stream: VideoStream, wanted: np.ndarray
) -> Iterator[tuple[VideoFrame, bool]]:
    ahead = iter(wanted)
    target = next(ahead, None)
    for number, frame in enumerate(pictures(stream, packets(container, stream, []), [])):
        if number == target:
            yield frame, True
            target = next(ahead, None)
            if target is None:
                return


def _from_key(
    container: InputContainer, stream: VideoStream, dts: int, pts: int, errors: list[str]
) -> Iterator[VideoFrame]:
    """Pictures from the key frame with time stamp ``pts`` on; raises _SeekFailed if it is not one."""
    try:
        container.seek(dts, stream=stream, backward=True)
    except FFmpegError:
        raise _SeekFailed from None

    def from_key() -> Iterator[Packet]:
        reached = False
        for packet in packets(container, stream, errors):
            if not reached and packet.dts is not None and packet.dts > dts:
                raise _SeekFailed
            reached = reached or packet.pts == pts
            if reached:
                yield packet
        if not reached:
            raise _SeekFailed

    started = False
    for frame in pictures(stream, from_key(), errors):
        if not started:
            if frame.pts is not None and frame.pts < pts:
                continue  # shown before the key frame, and leaning on pictures before it
            # Old x264 4:4:4 decodes only after its first packet's note on the encoder; the decoder flags the rest.
            if frame.pts != pts or not frame.key_frame or frame.is_corrupt:
                raise _SeekFailed
            started = True
        yield frame
    if not started:
        raise _SeekFailed


def _stamp(frame: VideoFrame) -> int:
    if frame.pts is None:
        raise _OrderFailed
    return frame.pts
