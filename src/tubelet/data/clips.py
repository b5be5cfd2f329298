"""Which frames make a clip: pure functions from a place in the video to frame numbers.

``at`` in [0, 1) says where the clip starts: 0 at the first possible start, just below 1 at the last. The
stride is exact: ``frame_step=4`` takes every fourth frame (the released V-JEPA code spreads its indices
over the window instead, so its real stride is 64/15 for 16 frames of step 4).

Short videos follow V-JEPA 2: frames at the wanted step from the part that exists, then the last frame is
repeated.
"""

from __future__ import annotations

import numpy as np


def by_step(length: int, frames: int, step: int, at: float) -> np.ndarray:
    """int64 [frames]: every ``step``-th of ``length`` frames.

    The start is uniform over all starts from which the whole clip exists.
    """
    assert length > 0 and frames > 0 and step > 0 and 0 <= at < 1
    starts = max(1, length - (frames - 1) * step)
    return np.minimum(int(at * starts) + step * np.arange(frames), length - 1)


def by_fps(times: np.ndarray, frames: int, fps: float, at: float) -> np.ndarray:
    """int64 [frames]: the frames on screen every 1/``fps`` seconds.

    ``times``: float64 [N], seconds at which each frame appears, ascending. The start is uniform in time
    and falls on a frame; then whatever is on screen at each moment is taken, so on variable-rate video a
    frame that stays longer is taken more often, and above the video's own rate frames repeat.
    """
    assert len(times) > 0 and frames > 0 and fps > 0 and 0 <= at < 1
    gaps = np.diff(times) if len(times) > 1 else np.zeros(1)
    # A quarter frame of tolerance: time stamps are rounded (Matroska: to 1 ms), frames do not move for it.
    slack = float(gaps.min()) / 4
    room = times[-1] - times[0] - (frames - 1) / fps  # how much later than the first frame a clip may start
    start = _on_screen(times, times[0] + at * (room + float(np.median(gaps)))) if room > -slack else 0
    return _on_screen(times, times[start] + np.arange(frames) / fps + slack)


def within(times: np.ndarray, start: float | None, end: float | None) -> tuple[int, int]:
    """First frame number and one past the last, of the frames with ``start <= time < end`` (seconds)."""
    first = 0 if start is None else int(np.searchsorted(times, start - 1e-6))
    last = len(times) if end is None else int(np.searchsorted(times, end - 1e-6))
    return first, max(first, last)


def places(segments: int) -> list[float]:
    """Where evaluation clips start: ``segments`` places evenly spaced over the video, the centre for one."""
    assert segments > 0
    return [(i + 0.5) / segments for i in range(segments)]


def _on_screen(times: np.ndarray, moments: np.ndarray | float) -> np.ndarray:
    return np.clip(np.searchsorted(times, moments, side="right") - 1, 0, len(times) - 1)
