"""Real video files whose frames show their own number, and how to read it back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS, COLUMNS = 12, 4  # a code of 4 x 3 blocks


def picture(number: int, width: int = 96, height: int = 72) -> np.ndarray:
    """uint8 [H, W, 3]: the bits of ``number`` as black and white blocks, highest first."""
    bits = np.array([number >> (BITS - 1 - i) & 1 for i in range(BITS)], np.uint8).reshape(-1, COLUMNS)
    rows = np.arange(height) * len(bits) // height
    columns = np.arange(width) * COLUMNS // width
    return np.repeat(bits[rows][:, columns, None] * 215 + 20, 3, axis=2).astype(np.uint8)


def number_in(shown: np.ndarray) -> int:
    """The number in a picture [H, W, 3], from the middles of its blocks."""
    height, width = shown.shape[:2]
    rows = BITS // COLUMNS
    bits = 0
    for i in range(BITS):
        y, x = (
            (2 * (i // COLUMNS) + 1) * height // (2 * rows),
            (2 * (i % COLUMNS) + 1) * width // (2 * COLUMNS),
        )
        patch = shown[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3]
        bits = bits << 1 | int(patch.mean() > 128)
    return bits


def numbers_in(clip: np.ndarray) -> list[int]:
    """The numbers in a clip [T, H, W, 3]."""
    return [number_in(shown) for shown in clip]


def write_video(
    path: Path,
    frames: int | Sequence[int] = 60,
    codec: str = "libx264",
    size: tuple[int, int] = (96, 72),
    rate: int = 25,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    stamps: Iterable[int] | None = None,
    time_base: Fraction | None = None,
    muxer: dict[str, str] | None = None,
) -> Path:
    """Writes a video of numbered pictures; ``stamps`` are time stamps in units of ``time_base``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = range(frames) if isinstance(frames, int) else frames
    with av.open(str(path), "w", container_options=muxer or {}) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        if time_base is not None:
            stream.codec_context.time_base = time_base
        at = list(stamps) if stamps is not None else list(range(len(numbers)))
        for number, stamp in zip(numbers, at, strict=True):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = stamp, time_base or Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def write_images(folder: Path, frames: int = 10, name: str = "frame_{:05d}.png") -> Path:
    """A folder of numbered images."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(frames):
        with av.open(
            str(folder / name.format(number + 1)), "w", format="image2", options={"update": "1"}
        ) as out:
            stream = out.add_stream("png", rate=1)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = 96, 72, "rgb24"
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), format="rgb24")))
            out.mux(stream.encode(None))
    return folder
