"""A labelled world that is computed: textures that drift.

`render` gives clips whose *motion* cannot be read from one frame and whose *appearance* can; everything else
about them (the texture, its colours, its density, where it starts) is drawn anew for every clip and says nothing
about either label.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from rich.progress import track

from tubelet.files import replace_file

from .cores import cores

# Displacement of the content, (down, right), in pixels per frame.
MOTIONS = {"still": (0, 0), "right": (0, 2), "left": (0, -2), "down": (2, 0), "up": (-2, 0)}
# Wavelengths of the texture, (vertical, horizontal), in pixels.
APPEARANCES = {"fine": (6.0, 6.0), "coarse": (16.0, 16.0), "tall": (18.0, 6.0), "wide": (6.0, 18.0)}
FRAMES, SIZE, FPS = 16, 48, 8
CANVAS = 96  # at least SIZE + 2 * (FRAMES - 1): no part of a texture comes round within a clip
BANDWIDTH = 0.28  # of the textures' spectrum, in natural logarithms of the wavelength
STEEPNESS = 8.0  # of the sigmoid that turns noise into two tones
DENSITY = 0.15  # the threshold between the tones moves by so many standard deviations


@dataclass(frozen=True)
class Clip:
    """A rendered clip: uint8 [T, H, W, 3] and its two labels."""

    frames: np.ndarray
    motion: str
    appearance: str


def labels(index: int) -> tuple[str, str]:
    """Motion and appearance of clip ``index``, of any world."""
    return (
        list(MOTIONS)[index % len(MOTIONS)],
        list(APPEARANCES)[index // len(MOTIONS) % len(APPEARANCES)],
    )


def render(index: int, seed: int, frames: int = FRAMES, size: int = SIZE) -> Clip:
    """Clip ``index`` of the world ``seed``: a two-tone texture that fills the picture and drifts, or stays.

    Labels are balanced: motion goes through `MOTIONS`, appearance through `APPEARANCES`, all pairs in 20 clips.
    """
    rng = np.random.default_rng([seed, index])
    motion, appearance = labels(index)
    texture = _texture(rng, appearance)
    start = rng.integers(0, CANVAS, 2)
    rows, columns = (
        (start[axis] - MOTIONS[motion][axis] * np.arange(frames)[:, None] + np.arange(size)) % CANVAS
        for axis in (0, 1)
    )
    return Clip(texture[rows[:, :, None], columns[:, None, :]], motion, appearance)


def _texture(rng: np.random.Generator, appearance: str) -> np.ndarray:
    """uint8 [CANVAS, CANVAS, 3], periodic: band-passed noise through a steep sigmoid, between two colours."""
    threshold = rng.uniform(-DENSITY, DENSITY)
    noise = rng.standard_normal((CANVAS, CANVAS), dtype=np.float32)
    band = np.fft.irfft2(np.fft.rfft2(noise) * _band(*APPEARANCES[appearance]), s=(CANVAS, CANVAS))
    tone = 0.5 + 0.5 * np.tanh(0.5 * STEEPNESS * (band / band.std() - threshold))
    dark, light = rng.uniform(0.0, 0.2, 3), rng.uniform(0.75, 1.0, 3)
    return ((dark + (light - dark) * tone[..., None]) * 255 + 0.5).astype(np.uint8)


@functools.cache
def _band(vertical: float, horizontal: float) -> np.ndarray:
    fy = np.fft.fftfreq(CANVAS)[:, None] * vertical
    fx = np.fft.rfftfreq(CANVAS)[None, :] * horizontal
    return np.exp(-0.5 * (np.log(np.hypot(fy, fx) + 1e-9) / BANDWIDTH) ** 2).astype(np.float32)


def write_video(
    path: Path,
    frames: np.ndarray,
    fps: float = FPS,
    quality: int = 20,
    more: Mapping[str, str] | None = None,
) -> None:
    """Encodes uint8 [T, H, W, 3] as H.264 (yuv420p, even sides) at a constant quality (crf; less is better).

    more: further options of x264, such as {"bf": "0"}. The file appears under its name only once it is complete.
    """
    with replace_file(path) as draft, av.open(str(draft), "w", format="mp4") as container:
        rate = Fraction(fps).limit_denominator(1001)
        options = {"crf": str(quality), "preset": "veryfast", "threads": "1", **(more or {})}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def write_world(
    folder: Path, count: int, seed: int, size: int = SIZE, workers: int | None = None
) -> list[dict[str, str]]:
    """Renders clips 0 to ``count`` of the world ``seed`` into ``folder``; files that are there are kept.

    Returns a row per clip: path, motion, appearance. size: height and width in pixels, even. workers: processes
    (default: one per core).
    """
    folder.mkdir(parents=True, exist_ok=True)
    workers = workers or cores()
    paths = [folder / f"{index:05d}.mp4" for index in range(count)]
    missing = [index for index, path in enumerate(paths) if not path.exists()]
    parts = [(folder, seed, size, missing[first : first + 50]) for first in range(0, len(missing), 50)]
    if parts:
        # spawned, not forked: the parent may already run torch's threads
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            done = pool.map(_write_part, parts)
            for _ in track(done, f"rendering {folder.name}", len(parts), transient=True):
                pass
    return [
        {"path": str(path), "motion": motion, "appearance": appearance}
        for path, (motion, appearance) in zip(paths, map(labels, range(count)), strict=True)
    ]


def _write_part(part: tuple[Path, int, int, Sequence[int]]) -> None:
    folder, seed, size, indices = part
    for index in indices:
        write_video(folder / f"{index:05d}.mp4", render(index, seed, size=size).frames)
