"""The clips that an encoder expects."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from tubelet.export.numbers import finite, named, positive, positives, whole


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


def read_geometry(stored: Any) -> Geometry:
    """The geometry that `dataclasses.asdict` made ``stored`` of.

    Raises ValueError for anything that is not exactly that, for numbers that are none or not above 0 (means may be),
    and for a mean without its std.
    """
    stored = named(stored, "geometry", (field.name for field in fields(Geometry)))
    mean = finite(stored, "mean")
    return Geometry(
        whole(stored, "frames"),
        None if stored["fps"] is None else positive(stored, "fps"),
        whole(stored, "frame_step"),
        whole(stored, "crop_size"),
        mean,
        positives(stored, "std", len(mean)),
    )
