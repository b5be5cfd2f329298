"""Which frames make a clip: by stride, by rate, short videos, stretches, segments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.data.clips import by_fps, by_step, places, within


def test_stride_is_exact() -> None:
    assert by_step(100, 16, 4, 0.0).tolist() == list(range(0, 64, 4))
    assert by_step(100, 16, 4, 0.999999).tolist() == list(range(39, 100, 4))


def test_short_videos_repeat_their_last_frame() -> None:
    assert by_step(10, 6, 4, 0.7).tolist() == [0, 4, 8, 9, 9, 9]
    assert by_step(1, 4, 4, 0.5).tolist() == [0, 0, 0, 0]
    assert by_fps(np.arange(5) / 25, 4, 12.5, 0.9).tolist() == [0, 2, 4, 4]
    assert by_fps(np.zeros(1), 3, 4.0, 0.3).tolist() == [0, 0, 0]


@given(st.integers(1, 400), st.integers(1, 20), st.integers(1, 9), st.floats(0, 1, exclude_max=True))
def test_by_step_stays_inside_and_ascends(length: int, frames: int, step: int, at: float) -> None:
    chosen = by_step(length, frames, step, at)
    assert len(chosen) == frames and chosen[0] >= 0 and chosen[-1] < length
    assert (np.diff(chosen) >= 0).all()
    if length > (frames - 1) * step:
        assert (np.diff(chosen) == step).all()


@given(
    st.lists(st.floats(0.001, 0.5), min_size=1, max_size=60),
    st.floats(0.5, 60),
    st.floats(0, 1, exclude_max=True),
)
def test_by_fps_shows_what_is_on_screen(gaps: list[float], fps: float, at: float) -> None:
    times = np.cumsum([0.0, *gaps])
    chosen = by_fps(times, 7, fps, at)
    assert chosen[0] >= 0 and chosen[-1] < len(times) and (np.diff(chosen) >= 0).all()
    slack = np.diff(times).min() / 4
    for i, k in enumerate(chosen):
        moment = times[chosen[0]] + i / fps + slack
        assert times[k] <= moment + 1e-9
        assert k == len(times) - 1 or times[k + 1] > moment - 1e-9


def test_starts_are_uniform() -> None:
    for counts in (
        np.bincount([by_step(40, 4, 2, u)[0] for u in np.arange(3400) / 3400]),
        np.bincount([by_fps(np.arange(40) / 25, 4, 12.5, u)[0] for u in np.arange(3400) / 3400]),
    ):
        assert len(counts) == 34 and counts.min() >= 99 and counts.max() <= 101


@pytest.mark.parametrize("rate", [24.0, 25.0, 30000 / 1001, 60.0])
def test_rounded_time_stamps_give_an_even_stride(rate: float) -> None:
    times = np.round(np.arange(200) / rate, 3)  # as Matroska rounds
    for u in (0.0, 0.31, 0.77):
        assert set(np.diff(by_fps(times, 16, rate / 4, u))) == {4}


def test_above_the_video_s_own_rate_frames_repeat() -> None:
    assert by_fps(np.arange(10) / 5, 6, 10, 0.0).tolist() == [0, 0, 1, 1, 2, 2]


def test_a_frame_that_stays_is_taken_as_long_as_it_stays() -> None:
    times = np.array([0.0, 0.1, 0.2, 2.2, 2.3, 2.4])
    assert by_fps(times, 5, 2.0, 0.0).tolist() == [0, 2, 2, 2, 2]


def test_stretches() -> None:
    times = np.arange(50) / 25
    assert within(times, None, None) == (0, 50)
    assert within(times, 0.4, 1.2) == (10, 30)
    assert within(times, 5.0, 6.0) == (50, 50)


def test_places_are_centres() -> None:
    assert places(1) == [0.5]
    assert places(2) == [0.25, 0.75]
    starts = [by_step(101, 2, 1, at)[0] for at in places(4)]
    assert starts == [12, 37, 62, 87]
