"""The clips that an encoder expects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """The clips an encoder was trained on, and those it is evaluated on unless told otherwise.

    frames: per clip. fps: sampling rate in frames per second, or None: then every ``frame_step``-th frame.
    crop_size: height and width in pixels. mean, std: per channel, of pixels in [0, 1].
    """

    frames: int = 16
    fps: float | None = None
    frame_step: int = 4
    crop_size: int = 224
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
