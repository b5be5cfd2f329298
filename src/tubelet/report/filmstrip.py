"""Clips as pictures: some frames side by side in one PNG, carried inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from matplotlib.image import imsave


class Strip(NamedTuple):
    """A clip with its ``label`` and a ``note`` under it.

    clip: uint8 [T, H, W, 3]. frames, apart: see `strip_picture`.
    """

    label: str
    clip: np.ndarray
    note: str = ""
    frames: int = 8
    apart: int = 0


def strip_picture(clip: np.ndarray, frames: int = 8, gap: int = 2, apart: int = 0) -> np.ndarray:
    """At most ``frames`` frames, evenly spread over the clip, side by side: uint8 [H, W', 4].

    The gaps between frames are transparent, so that they take the colour of the page. apart: after so many frames
    the gap is five times as wide, for a clip that is several joined.
    Raises ValueError for anything but uint8 [T, H, W, 3].
    """
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
        raise ValueError(f"a filmstrip needs uint8 [T, H, W, 3], got {clip.dtype} {list(clip.shape)}")
    total, height, width, _ = clip.shape
    chosen = np.linspace(0, total - 1, min(frames, total)).round().astype(int)
    wider = np.arange(len(chosen)) // apart if apart else np.zeros(len(chosen), int)
    lefts = np.arange(len(chosen)) * (width + gap) + wider * 4 * gap
    picture = np.zeros((height, lefts[-1] + width, 4), np.uint8)
    for left, frame in zip(lefts, chosen, strict=True):
        picture[:, left : left + width, :3] = clip[frame]
        picture[:, left : left + width, 3] = 255
    return picture


def draw_strips(strips: Sequence[Strip]) -> str:
    """One row per strip: its label on the left, its frames on the right."""
    rows = [
        f"<span><b>{escape(strip.label)}</b>{escape(strip.note)}</span>"
        f'<img alt="{escape(f"frames of {strip.label} {strip.note}".strip())}" src="{_png(strip)}">'
        for strip in strips
    ]
    return f'<div class="strips">{"".join(rows)}</div>'


def _png(strip: Strip) -> str:
    file = io.BytesIO()
    imsave(file, strip_picture(strip.clip, strip.frames, apart=strip.apart), format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
