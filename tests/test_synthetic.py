"""The rendered worlds hold what they promise: labels, motion to the pixel, spectra where they are said to be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tubelet.data import decode, synthetic
from tubelet.data.synthetic import (
    APPEARANCES,
    CANVAS,
    FPS,
    FRAMES,
    MOTIONS,
    SIZE,
    render,
    write_video,
    write_world,
)

PAIRS = len(MOTIONS) * len(APPEARANCES)


# The world of drifting textures


def test_labels_are_balanced() -> None:
    pairs = Counter(
        (c.motion, c.appearance) for c in (render(i, 3, frames=1, size=2) for i in range(2 * PAIRS))
    )
    assert len(pairs) == PAIRS and set(pairs.values()) == {2}
    assert {motion for motion, _ in pairs} == set(MOTIONS)


def test_a_clip_is_a_function_of_seed_and_index() -> None:
    clip = render(7, seed=5)
    assert clip.frames.shape == (FRAMES, SIZE, SIZE, 3) and clip.frames.dtype == np.uint8
    render(8, seed=5)  # what else is rendered does not matter
    again = render(7, seed=5)
    assert np.array_equal(clip.frames, again.frames)
    assert (clip.motion, clip.appearance) == (again.motion, again.appearance)
    assert not np.array_equal(clip.frames, render(7, seed=6).frames)
    # the same labels, another texture
    other = render(7 + PAIRS, seed=5)
    assert (clip.motion, clip.appearance) == (other.motion, other.appearance)
    assert not np.array_equal(clip.frames, other.frames)


def shown_by_both(frames: np.ndarray, down: int, right: int) -> tuple[np.ndarray, np.ndarray]:
    """Each frame but the last, and the one after it moved back by (down, right), where both show something."""
    height, width = frames.shape[1:3]
    before = frames[:-1, max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
    after = frames[1:, max(0, down) : height - max(0, -down), max(0, right) : width - max(0, -right)]
    return before, after


@pytest.mark.parametrize("index", range(len(MOTIONS) + 1))
def test_content_moves_by_exactly_the_stated_displacement(index: int) -> None:
    clip = render(index, seed=2, size=20)
    exact = [
        (down, right)
        for down in range(-3, 4)
        for right in range(-3, 4)
        if np.array_equal(*shown_by_both(clip.frames, down, right))
    ]
    assert exact == [MOTIONS[clip.motion]]


def test_still_is_still() -> None:
    clip = render(list(MOTIONS).index("still"), seed=4)
    assert clip.motion == "still" and (clip.frames == clip.frames[0]).all()


def test_one_frame_says_nothing_about_motion(monkeypatch: pytest.MonkeyPatch) -> None:
    """One generator: the texture and its start are drawn alike for every motion, and only the drift differs.

    On the whole canvas, which is periodic, each frame is a shift of the first; starts are uniform.
    """
    first = [render(0, seed=9).frames[0]]
    names = list(MOTIONS)
    for turn in range(1, len(names)):
        turned = {name: MOTIONS[name] for name in names[turn:] + names[:turn]}
        monkeypatch.setattr(synthetic, "MOTIONS", turned)
        clip = render(0, seed=9)
        assert clip.motion == names[turn]
        first.append(clip.frames[0])
        whole = render(0, seed=9, size=CANVAS).frames
        for t in (1, FRAMES - 1):
            down, right = (t * step for step in turned[clip.motion])
            assert np.array_equal(whole[t], np.roll(whole[0], (down, right), axis=(0, 1)))
    assert all(np.array_equal(first[0], frame) for frame in first[1:])


def test_no_part_of_a_texture_comes_round_within_a_clip() -> None:
    fastest = max(abs(step) for motion in MOTIONS.values() for step in motion)
    assert SIZE + fastest * (FRAMES - 1) <= CANVAS


@pytest.mark.parametrize("appearance", APPEARANCES)
def test_spectra_peak_at_the_stated_wavelengths(appearance: str) -> None:
    """Along either axis of the picture; within a fifth, as the frequencies of 96 pixels lie that far apart."""
    place = list(APPEARANCES).index(appearance) * len(MOTIONS)
    power = np.zeros((CANVAS, CANVAS))
    for index in range(place, place + 12 * PAIRS, PAIRS):
        clip = render(index, seed=1, frames=1, size=CANVAS)
        assert clip.appearance == appearance
        grey = clip.frames[0].mean(-1)
        power += np.abs(np.fft.fft2(grey - grey.mean())) ** 2
    fy, fx = np.meshgrid(*(np.fft.fftfreq(CANVAS),) * 2, indexing="ij")
    vertical, horizontal = APPEARANCES[appearance]
    # of vertical waves (constant along a row), those within 10 degrees, and the other way round
    for along, across, stated in ((fy, fx, vertical), (fx, fy, horizontal)):
        wedge = (along > 0) & (np.abs(across) < along * np.tan(np.deg2rad(10)))
        steps = np.round(along * CANVAS).astype(int)
        mean = [power[wedge & (steps == k)].mean() for k in range(1, CANVAS // 2)]
        assert CANVAS / (1 + int(np.argmax(mean))) == pytest.approx(stated, rel=0.2)


# On disk


@pytest.mark.parametrize("index", [0, 6, 12, 18])
def test_a_video_comes_back_almost_as_it_was(index: int, tmp_path: Path) -> None:
    frames = render(index, seed=8).frames[:, :, :44]  # sides that differ
    file = tmp_path / "clip.mp4"
    write_video(file, frames)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    entry = decode.index(file)
    assert len(entry) == FRAMES and entry.times[1] == pytest.approx(1 / FPS)
    back = decode.read(file, list(range(FRAMES)))
    assert back.shape == frames.shape
    error = np.abs(back.astype(float) - frames)
    # brightness is kept, colours are stored at half the resolution
    assert error.mean() < 8 and np.abs(back.mean(-1) - frames.mean(-1)).mean() < 6
    finer = tmp_path / "finer.mp4"
    write_video(finer, frames, quality=5)
    closer = np.abs(decode.read(finer, list(range(FRAMES))).astype(float) - frames).mean()
    assert closer < error.mean() and finer.stat().st_size > file.stat().st_size


def test_a_world_on_disk_keeps_what_is_there(tmp_path: Path) -> None:
    rows = write_world(tmp_path / "world", 3, seed=6, size=16, workers=1)
    files = [Path(row["path"]) for row in rows]
    assert [path.name for path in files] == ["00000.mp4", "00001.mp4", "00002.mp4"]
    assert [row["motion"] for row in rows] == list(MOTIONS)[:3]
    assert {row["appearance"] for row in rows} == {"fine"}
    files[0].write_bytes(b"mine")
    files[1].unlink()
    before = files[2].stat().st_mtime_ns
    more = write_world(tmp_path / "world", 6, seed=6, size=16, workers=1)
    assert more[:3] == rows and more[5]["appearance"] == "coarse" and len(more) == 6
    assert files[0].read_bytes() == b"mine" and files[2].stat().st_mtime_ns == before
    shown = decode.read(files[1], [0])[0].astype(float)
    assert np.abs(shown - render(1, seed=6, size=16).frames[0]).mean() < 25
    assert sorted(path.name for path in (tmp_path / "world").iterdir()) == [
        Path(r["path"]).name for r in more
    ]
