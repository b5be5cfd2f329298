"""Decoded pictures to RGB arrays: one size per clip, turned as they are meant to be shown."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter


class Converter:
    """Decoded pictures to RGB arrays of one size, turned as the display matrix says."""

    def __init__(self, short_side: int | None = None) -> None:
        self.short_side = short_side
        self.size: tuple[int, int] | None = None  # width, height before turning: the first picture's
        self.turn = UPRIGHT
        self.reformatter = VideoReformatter()  # one per clip: it keeps the scaling tables

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """uint8 [H, W, 3]."""
        if self.size is None:
            self.size = scaled(frame.width, frame.height, self.short_side)
            self.turn = turn_of(frame)
        width, height = self.size
        picture = self.reformatter.reformat(
            frame, width, height, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1
        )
        return self.turn(picture.to_ndarray())


def scaled(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Width and height after shrinking the short side to ``short_side``; never enlarges."""
    short = min(width, height)
    if short_side is None or short <= short_side:
        return width, height
    return max(1, round(width * short_side / short)), max(1, round(height * short_side / short))


@dataclass(frozen=True)
class Turn:
    """How a picture is to be shown: flipped upside down first, then turned counter-clockwise.

    In this order ``degrees`` is what ffprobe prints, for mirrored matrices too.
    """

    degrees: int
    flipped: bool

    @property
    def swaps(self) -> bool:
        """Whether width and height change places."""
        return self.degrees % 180 != 0

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """[H, W, C] as shown."""
        if not self.flipped and not self.degrees:
            return picture
        if self.flipped:
            picture = picture[::-1]
        return np.ascontiguousarray(np.rot90(picture, self.degrees // 90))


UPRIGHT = Turn(0, False)
# By the signs of (a, b, c, d) in x' = a x + c y, y' = b x + d y, with y pointing down.
_TURNS: dict[tuple[int, ...], Turn] = {
    (1, 0, 0, 1): UPRIGHT,
    (0, -1, 1, 0): Turn(90, False),
    (-1, 0, 0, -1): Turn(180, False),
    (0, 1, -1, 0): Turn(-90, False),
    (1, 0, 0, -1): Turn(0, True),
    (0, -1, -1, 0): Turn(90, True),
    (-1, 0, 0, 1): Turn(180, True),
    (0, 1, 1, 0): Turn(-90, True),
}


def turn_of(frame: VideoFrame) -> Turn:
    """What the display matrix asks for; upright where it is missing or not a multiple of 90 degrees."""
    try:
        found = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV 18 knows fewer kinds of side data than FFmpeg; the angle alone it finds itself
        turns = {turn.degrees % 360: turn for turn in _TURNS.values() if not turn.flipped}
        return turns.get(frame.rotation % 360, UPRIGHT)
    matrix = b"" if found is None else bytes(found)
    if len(matrix) != 36:
        return UPRIGHT
    a, b, _, c, d, *_ = struct.unpack("<9i", matrix)  # 16.16 fixed point
    largest = max(abs(a), abs(b), abs(c), abs(d))
    # Only which axis goes where counts, for a matrix may also stretch; slanted and zero ones are ignored.
    axes = [(v > 0) - (v < 0) if abs(v) * 100 > largest else 0 for v in (a, b, c, d)]
    return _TURNS.get(tuple(axes), UPRIGHT)
