"""Sliding windows: where they lie, and which frames they show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tubelet.data import clips
from tubelet.data.container import DecodeError
from tubelet.data.index import Index
from tubelet.data.manifest import Video
from tubelet.data.source import ClipReader
from tubelet.embed.windows import Sliding, Span, Window, plan, read_span, sliding
from tubelet.errors import UserError
from tubelet.export.geometry import Geometry

EVERY = Geometry(frames=4, frame_step=2)
RATED = Geometry(frames=4, fps=5.0)


def even(frames: int, rate: float = 10.0) -> Index:
    """Frames at a constant rate."""
    return Index(np.arange(frames) / rate, frames / rate)


def cut(window: str, stride: str | None = None, geometry: Geometry = EVERY) -> Sliding:
    return sliding(window, stride, geometry)


def windows(
    index: Index, given: Sliding, geometry: Geometry = EVERY, video: Video | None = None, segments: int = 1
) -> list[Window]:
    return list(plan(video or Video(Path("a.mp4")), index, geometry, segments, given))


def bounds(found: list[Window]) -> list[tuple[float, float]]:
    return [(round(w.start, 6), round(w.end, 6)) for w in found]


@pytest.mark.parametrize(
    ("text", "span"),
    [("4s", Span(4, "s")), ("0.5s", Span(0.5, "s")), ("64", Span(64, "frames")), (64, Span(64, "frames"))],
)
def test_a_length_is_seconds_or_frames(text, span):
    assert read_span(text) == span
    assert read_span(str(span)) == span
    assert str(span) == str(text)


@given(st.floats(1e-6, 1e9) | st.integers(1, 10**9))
def test_a_length_is_written_with_all_its_digits(amount):
    span = Span(amount, "frames" if isinstance(amount, int) else "s")
    assert read_span(str(span)) == span


@pytest.mark.parametrize("text", ["", "s", "0", "0s", "-1s", "nans", "infs", "1.5", "4m", "four"])
def test_a_length_that_is_none_is_refused(text):
    with pytest.raises(UserError, match=r'stride=.* write seconds as "4s", or frames as "64"'):
        read_span(text, "stride")


def test_seconds_and_frames_do_not_mix():
    with pytest.raises(UserError, match="both in seconds, or both in frames"):
        cut("4s", "10")
    with pytest.raises(UserError, match="both in seconds, or both in frames"):
        sliding(None, "1s", EVERY)  # the default is in frames there


def test_by_default_a_window_is_the_clip_of_the_encoder():
    assert sliding(None, None, EVERY) == Sliding(Span(8, "frames"), Span(8, "frames"))
    assert sliding(None, None, RATED) == Sliding(Span(0.8, "s"), Span(0.8, "s"))


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 60))
@settings(max_examples=50, deadline=None)
def test_windows_tile_the_video_and_a_tail_of_half_a_window_is_kept(total, window, stride):
    """Counted one by one, in tenths of a second: what the formula says for all units."""
    expected = [(s, s + window) for s in range(0, total, stride) if s + window <= total]
    following = len(expected) * stride
    if not expected:
        expected = [(0, total)]
    elif expected[-1][1] < total and 2 * (total - following) >= window:
        expected.append((following, total))
    frames = Sliding(Span(window, "frames"), Span(stride, "frames"))
    seconds = Sliding(Span(window / 10, "s"), Span(stride / 10, "s"))
    tenths = [(s / 10, e / 10) for s, e in expected]
    assert bounds(windows(even(total), frames)) == tenths
    assert bounds(windows(even(total), seconds)) == tenths
    assert len(plan(Video(Path("a")), even(total), EVERY, 1, seconds)) == len(expected)


def test_time_stamps_rounded_to_milliseconds_make_no_windows_of_their_own():
    times = np.round(np.arange(300) / 29.97, 3)
    for off in (-0.001, 0.0, 0.001):
        found = windows(Index(times, 10.0 + off), cut("2s"))
        assert [w.start for w in found] == [0, 2, 4, 6, 8]


@example(11, 8, 1, RATED, 1)  # the fourth window starts at 3 * 0.1, which is more than 0.3
@given(
    st.integers(4, 120),
    st.integers(1, 50),
    st.integers(1, 50),
    st.sampled_from([EVERY, RATED, Geometry(frames=6, frame_step=1), Geometry(frames=6, fps=12.5)]),
    st.integers(1, 3),
)
@settings(max_examples=50, deadline=None)
def test_a_window_shows_what_a_row_of_its_stretch_would(total, window, stride, geometry, segments):
    """`ClipReader` on the same seconds is the oracle: evaluation and windows sample alike."""
    step = None if geometry.fps else geometry.frame_step
    reader = ClipReader(geometry.frames, geometry.fps, step)
    given_cut = Sliding(Span(window / 10, "s"), Span(stride / 10, "s"))
    index = even(total)
    for found in windows(index, given_cut, geometry, segments=segments):
        row = Video(Path("a"), start=found.start, end=found.end)
        expected = [reader._choose(row, index.times, at) for at in clips.places(segments)]
        np.testing.assert_array_equal(found.frames, expected)
        assert index.times[found.frames].min() >= found.start - 1e-6
        assert index.times[found.frames].max() < found.end


def test_frames_of_windows_counted_in_frames():
    found = windows(even(20), cut("8", "4"))
    # a clip spans 7 of 8 frames, and of its two starts the middle is the second
    assert [w.frames.tolist() for w in found] == [[[a + 1, a + 3, a + 5, a + 7]] for a in (0, 4, 8, 12)]
    assert bounds(found) == [(0, 0.8), (0.4, 1.2), (0.8, 1.6), (1.2, 2.0)]


def test_a_short_tail_and_a_short_video_repeat_their_last_frame():
    tail = windows(even(13), cut("8"))[-1]
    assert tail.frames.tolist() == [[8, 10, 12, 12]] and (tail.start, tail.end) == (0.8, 1.3)
    (short,) = windows(even(3), cut("8s"))
    assert short.frames.tolist() == [[0, 2, 2, 2]] and (short.start, short.end) == (0, 0.3)


def test_start_and_end_of_a_row_are_respected():
    row = Video(Path("a"), start=1.0, end=2.5)
    for given_cut in (cut("1s"), cut("10")):
        found = windows(even(100), given_cut, video=row)
        assert bounds(found) == [(1.0, 2.0), (2.0, 2.5)]
        assert found[0].frames.min() >= 10 and found[-1].frames.max() == 24
    beyond = windows(even(20), cut("1s"), video=replace(row, end=9.0))
    assert bounds(beyond) == [(1.0, 2.0)]
    with pytest.raises(DecodeError, match="no frame between 5 s and the end"):
        windows(even(20), cut("1s"), video=Video(Path("a"), start=5.0))


def test_variable_frame_rate_goes_by_time_stamps():
    """A slide that stays for six seconds is what all windows of these seconds show."""
    times = np.concatenate([np.arange(10) / 10, [1.0, 7.0], 7.1 + np.arange(9) / 10])
    index = Index(times, 8.0)
    found = windows(index, cut("1s", geometry=RATED), RATED)
    assert [w.start for w in found] == list(range(8))
    shown = [sorted(set(w.frames.ravel().tolist())) for w in found]
    assert shown[2:7] == [[10]] * 5 and shown[1] == [10]
    assert min(shown[0]) >= 0 and max(shown[0]) < 10 and min(shown[7]) >= 11
    half = windows(index, cut("4s", geometry=RATED), RATED)[1]  # the slide for three seconds, then movement
    moments = times[half.frames[0]]
    assert moments[0] == 1.0 and (np.diff(moments) >= 0).all()


def test_images_without_a_rate_have_windows_in_frames_alone():
    index = Index(np.full(20, np.nan), np.nan)
    found = windows(index, cut("8"))
    assert [w.frames.min() // 8 for w in found] == [0, 1, 2]
    assert all(np.isnan([w.start, w.end]).all() for w in found)
    for given_cut, geometry, row in (
        (cut("1s"), EVERY, Video(Path("a"))),
        (cut("8"), RATED, Video(Path("a"))),
        (cut("8"), EVERY, Video(Path("a"), start=1.0)),
    ):
        with pytest.raises(DecodeError, match="images have no times: give the list an fps column"):
            windows(index, given_cut, geometry, row)


def test_how_much_of_a_window_is_seen():
    def seen(given_cut: Sliding, geometry: Geometry, segments: int = 1) -> float:
        return plan(Video(Path("a")), even(100), geometry, segments, given_cut).seen

    assert seen(cut("8"), EVERY) == pytest.approx(1)
    assert seen(cut("1.6s"), EVERY) == pytest.approx(0.5)
    assert seen(cut("1.6s"), EVERY, 2) == pytest.approx(1)
    assert seen(cut("1.6s", geometry=RATED), RATED) == pytest.approx(0.5)
    assert seen(cut("16"), RATED) == pytest.approx(0.5)
