"""Gratings are where Fourier's transform says they are, their labels say the same, and subsets are balanced."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.data import gratings
from tubelet.data.gratings import COLOURS, FPS, DoubleGratings, Gratings, SingleGratings, grating
from tubelet.errors import UserError

WORLDS = (SingleGratings, DoubleGratings)


def fold(hertz: float) -> float:
    """The frequency in [-FPS / 2, FPS / 2) that looks like ``hertz``."""
    return (hertz + FPS / 2) % FPS - FPS / 2


# One grating


@pytest.mark.parametrize(
    ("kx", "ky", "hertz"),
    [(5, 0, 3), (5, 0, -3), (0, 4, 2), (0, 4, -2), (3, 6, 1), (6, -3, 5), (-2, 5, -4), (7, 2, 0)],
)
def test_a_grating_is_one_peak_in_the_fourier_transform(kx: int, ky: int, hertz: int) -> None:
    """Whole cycles in 16 frames of one second and 40 pixels: two bins, opposite, and nothing else.

    sin(2 pi (kx x + ky y - f t)) is the bin (-f, ky, kx) and its conjugate, for either sign of f.
    """
    frames, size, contrast = 16, 40, 0.7
    orientation, cycles = float(np.rad2deg(np.arctan2(ky, kx))), float(np.hypot(kx, ky))
    clip = grating(orientation, cycles, hertz, fps=16, contrast=contrast, frames=frames, size=size)
    assert clip.shape == (frames, size, size) and clip.dtype == np.float32
    found = np.abs(np.fft.fftn(clip)) / clip.size
    peaks = {tuple(int(i) for i in place) for place in np.argwhere(found > 1e-4)}
    expected = {(-hertz % frames, ky % size, kx % size), (hertz % frames, -ky % size, -kx % size)}
    assert peaks == expected
    assert found[tuple(np.array(list(expected)).T)] == pytest.approx(contrast / 2, abs=1e-5)


def test_a_positive_temporal_frequency_drifts_along_the_orientation() -> None:
    """4 cycles in 64 pixels at a quarter of a cycle a frame: 4 pixels a frame, to the right, or down."""
    for orientation, axis in ((0, 2), (90, 1)):
        for sign in (1, -1):
            clip = grating(orientation, 4, sign * 1.5, fps=6, size=64, frames=5)
            moved = np.roll(clip[:-1], 4 * sign, axis=axis)
            np.testing.assert_allclose(clip[1:], moved, atol=1e-5)


def test_the_published_gratings() -> None:
    clip = grating(30, 8, 1.25, phase=0.4)
    assert clip.shape == (16, 128, 128) and 0.99 < np.abs(clip).max() <= 1
    assert np.array_equal(clip, grating(30, 8, 1.25, phase=0.4))
    np.testing.assert_allclose(clip, -grating(30, 8, 1.25, phase=0.4 + np.pi), atol=1e-5)


def test_frequencies_above_half_the_rate_alias() -> None:
    """Not only nearly: the very same clip, drifting backwards where the alias is negative."""
    assert [fold(f) for f in (0.5, 1, 2, 4, 5, 6, 8)] == [0.5, 1, 2, -2.25, -1.25, -0.25, 1.75]
    for hertz in (4, 5, 6, 8):
        true, alias = (grating(60, 4, f, phase=0.3, size=32) for f in (hertz, fold(hertz)))
        np.testing.assert_allclose(true, alias, atol=1e-5)


@pytest.mark.parametrize("world", WORLDS)
def test_no_two_temporal_frequencies_look_alike_nor_reversed(world: type[Gratings]) -> None:
    speeds = [abs(fold(float(hertz))) for hertz in world.factors["temporal_frequency"]]
    assert min(np.diff(sorted(speeds))) > 0.2


# The worlds


def test_the_single_gratings_are_10800_clips_with_five_targets() -> None:
    world = SingleGratings()
    assert len(world) == 10_800
    classes = {target: len(np.unique(label)) for target, label in world.labels().items()}
    assert classes == {
        "spatial_frequency": 6,
        "orientation": 12,
        "temporal_frequency": 6,
        "contrast": 5,
        "colour": 5,
    }


def test_the_double_gratings_are_15552_clips_with_nine_targets() -> None:
    world = DoubleGratings()
    assert len(world) == 15_552
    classes = {target: len(np.unique(label)) for target, label in world.labels().items()}
    assert classes == {
        "left_spatial_frequency": 3,
        "right_spatial_frequency": 3,
        "spatial_frequency_difference": 5,
        "higher_side": 3,
        "spatial_frequency_match": 2,
        "left_orientation": 12,
        "right_orientation": 24,
        "orientation_delta": 4,
        "orientation_match": 2,
    }
    values = world.values()
    assert values["spatial_frequency_match"].mean() == pytest.approx(1 / 3)
    assert values["orientation_match"].mean() == pytest.approx(1 / 4)


@pytest.mark.parametrize("world", WORLDS)
def test_every_combination_of_factors_is_one_clip(world: type[Gratings]) -> None:
    made = world()
    met = {tuple(made.levels(index).values()) for index in range(len(made))}
    assert len(met) == len(made)
    # and every class of a factor is as large as any other
    for target, label in made.labels().items():
        if target in made.factors:
            assert np.ptp(np.bincount(label)) == 0
    with pytest.raises(ValueError):
        made.render(len(made))


def seen(clip: np.ndarray) -> dict[str, float]:
    """What Fourier's transform finds in [T, H, W]: cycles in 128 pixels, degrees, alias in Hz, amplitude.

    The peak in space over all frames, then the frequency of what happens there. sin(k x - w t) is at (k, -w) and its
    conjugate at (-k, w): which of the two the peak is does not matter, for both say the same drift.
    """
    side = 256
    window = np.multiply.outer(np.hanning(clip.shape[1]), np.hanning(clip.shape[2]))
    found = np.fft.rfft2(clip * window, s=(side, side))
    power = (np.abs(found) ** 2).sum(0)
    row, column = np.unravel_index(np.argmax(power), power.shape)
    ky, kx = 128 * np.fft.fftfreq(side)[row], 128 * np.fft.rfftfreq(side)[column]
    times = np.fft.fft(found[:, row, column] * np.hanning(len(clip)), n=500)
    hertz = -float(np.fft.fftfreq(500)[np.argmax(np.abs(times))]) * FPS
    return {
        "spatial_frequency": float(np.hypot(ky, kx)),
        "orientation": float(np.rad2deg(np.arctan2(ky, kx))) % 360,
        "alias": hertz,
        "contrast": float(np.abs(clip).max()),
    }


def agrees(found: dict[str, float], world: Gratings, spatial: float, turned: float, hertz: float) -> bool:
    """Whether ``found`` lies nearest to what is stated, of all that the world has; either end of the wave."""
    frequencies = {value for name in world.factors if "spatial" in name for value in world.factors[name]}
    nearest = min(frequencies, key=lambda value: abs(float(value) - found["spatial_frequency"]))
    # a wave and its reverse are one: the end whose drift the world has
    ends = [
        ((found["orientation"] + half) % 360, sign * found["alias"]) for half, sign in ((0, 1), (180, -1))
    ]
    speeds = [fold(float(value)) for value in world.factors["temporal_frequency"]]
    angle, drift = min(ends, key=lambda end: min(abs(end[1] - speed) for speed in speeds))
    off = abs((angle - turned + 180) % 360 - 180)
    same_speed = min(speeds, key=lambda speed: abs(speed - drift)) == fold(hertz)
    return nearest == spatial and off < 7.5 and same_speed


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_799), st.integers(0, 99))
def test_single_labels_agree_with_the_fourier_peak(index: int, seed: int) -> None:
    world = SingleGratings(seed)
    clip = world.render(index)
    assert clip.shape == (3, 16, 128, 128) and clip.dtype == np.float32
    values = {target: value[index] for target, value in world.values().items()}
    brightest = np.abs(clip).max(axis=(1, 2, 3)).argmax()
    found = seen(clip[brightest])
    turned, hertz = values["orientation"], values["temporal_frequency"]
    assert agrees(found, world, values["spatial_frequency"], turned, hertz), (found, values)
    assert found["contrast"] == pytest.approx(values["contrast"], rel=0.02)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 15_551), st.integers(0, 99))
def test_double_labels_agree_with_the_fourier_peak_of_each_half(index: int, seed: int) -> None:
    world = DoubleGratings(seed)
    grey = index - index % len(world.factors["colour"])
    clip = world.render(grey)
    values = {target: value[grey] for target, value in world.values().items()}
    levels = world.levels(grey)
    hertz, contrast = float(levels["temporal_frequency"]), levels["contrast"]
    halves = {"left": seen(clip[0, ..., :64]), "right": seen(clip[0, ..., 64:])}
    for side, found in halves.items():
        spatial, turned = values[f"{side}_spatial_frequency"], values[f"{side}_orientation"]
        assert agrees(found, world, spatial, turned, hertz), (side, found, values)
        assert found["contrast"] == pytest.approx(contrast, rel=0.05)
    left, right = (halves[side]["spatial_frequency"] for side in ("left", "right"))
    assert values["spatial_frequency_difference"] == pytest.approx(right - left, abs=2.9)
    higher = "equal" if abs(right - left) < 3 else "left" if left > right else "right"
    assert values["higher_side"] == higher
    assert values["spatial_frequency_match"] == (higher == "equal")
    assert values["orientation_match"] == (values["left_orientation"] == values["right_orientation"])
    delta = (values["right_orientation"] - values["left_orientation"]) % 360
    assert values["orientation_delta"] == delta


@pytest.mark.parametrize("world", WORLDS)
def test_colour_scales_the_channels(world: type[Gratings]) -> None:
    made = world(seed=3)
    for index, colour in enumerate(made.factors["colour"]):
        clip = made.render(len(made) - len(made.factors["colour"]) + index, frames=4, size=16)
        wave = clip[0] if colour not in ("green", "blue") else clip[1 if colour == "green" else 2]
        assert np.abs(wave).max() > 0.5  # the last clips have the highest contrast
        assert np.array_equal(clip, np.stack([np.float32(c) * wave for c in COLOURS[str(colour)]]))
        assert np.abs(clip).max() <= 1


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(WORLDS), st.integers(0, 10_799), st.integers(0, 9))
def test_a_clip_is_a_function_of_seed_and_index(world: type[Gratings], index: int, seed: int) -> None:
    made = world(seed)
    clip = made.render(index, 4, 16)
    made.render(10_799 - index, 4, 16)  # what else is rendered does not matter
    assert np.array_equal(clip, world(seed).render(index, 4, 16))
    assert not np.allclose(clip, world(seed + 1).render(index, 4, 16), atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(WORLDS), st.integers(0, 10_799), st.sampled_from([16, 48, 64]), st.integers(1, 16))
def test_a_smaller_picture_is_the_middle_of_the_published_one(
    world: type[Gratings], index: int, size: int, frames: int
) -> None:
    """So cycles per pixel, seconds per frame and the seam between the halves stay where they are."""
    edge = (128 - size) // 2
    whole = world(seed=2).render(index)
    small = world(seed=2).render(index, frames, size)
    np.testing.assert_allclose(small, whole[:, :frames, edge : edge + size, edge : edge + size], atol=1e-5)


def test_phases_are_drawn_for_every_clip_and_half() -> None:
    first = [SingleGratings(seed).render(0, 1, 2)[0, 0, 0, 0] / 0.2 for seed in range(200)]
    assert abs(np.mean(first)) < 0.2 and np.mean(np.square(first)) == pytest.approx(0.5, abs=0.15)
    # the first clip's halves match in everything: with one phase they are one grating, otherwise they are two
    fixed, drawn = DoubleGratings(phase=0.7), DoubleGratings()
    assert fixed.levels(0)["orientation_delta"] == 0
    whole = grating(0, 4, 2, contrast=0.33, phase=0.7)
    np.testing.assert_allclose(fixed.render(0)[0], whole, atol=1e-6)
    alone = SingleGratings(phase=0.7).render(0)[0]
    np.testing.assert_allclose(alone, grating(0, 4, 0.5, contrast=0.2, phase=0.7), atol=1e-6)
    assert np.array_equal(fixed.render(77), DoubleGratings(seed=5, phase=0.7).render(77))
    one = drawn.render(0)[0]
    jump = np.abs(np.diff(one, axis=-1)).max(axis=(0, 1))
    assert jump[63] > 1.5 * np.delete(jump, 63).max()


def test_names_tell_the_factors() -> None:
    name = SingleGratings().name(4)
    assert name.startswith("single grating 4 (") and "contrast 0.2" in name and "colour orange" in name


# Labels


@pytest.mark.parametrize("world", WORLDS)
def test_class_ids_are_ranks_of_the_values(world: type[Gratings]) -> None:
    made = world()
    values = made.values()
    assert list(values) == list(made.labels())
    for target, label in made.labels().items():
        assert label.dtype == np.int64 and label.shape == (len(made),)
        ranks = sorted(set(values[target].tolist()))
        assert [ranks[i] for i in label] == values[target].tolist()


def test_the_quirk_hits_contrast_alone() -> None:
    world = SingleGratings()
    plain, cut = world.labels(), world.labels(quirk=True)
    assert [target for target in plain if not np.array_equal(plain[target], cut[target])] == ["contrast"]
    assert np.bincount(cut["contrast"]).tolist() == [8_640, 2_160]  # a majority of 80 %
    assert np.array_equal(cut["contrast"] == 1, world.values()["contrast"] == 1.0)
    double = DoubleGratings()
    for target, label in double.labels(quirk=True).items():
        assert np.array_equal(label, double.labels()[target])


# Subsets


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(WORLDS), st.integers(1, 10_800), st.integers(0, 2**31))
def test_a_subset_is_balanced_in_every_factor_and_joint(world: type[Gratings], count: int, seed: int) -> None:
    made = world()
    rows = made.subset(count, seed)
    assert rows.dtype == np.int64 and len(rows) == count and (np.diff(rows) > 0).all()
    assert rows[0] >= 0 and rows[-1] < len(made)
    shape = [len(levels) for levels in made.factors.values()]
    places = dict(zip(made.factors, np.unravel_index(rows, shape), strict=True))
    for names in (*((name,) for name in made.factors), *made.joined):
        sizes = [len(made.factors[name]) for name in names]
        kind = np.ravel_multi_index(tuple(places[name] for name in names), sizes)
        met = np.bincount(kind, minlength=int(np.prod(sizes)))
        assert met.min() >= count // len(met) and met.max() <= -(-count // len(met)), names


def test_targets_keep_their_proportions_in_a_subset() -> None:
    for world in (SingleGratings(), DoubleGratings()):
        rows = world.subset(1500, seed=4)
        for target, label in world.labels().items():
            share, kept = (np.bincount(ids) / len(ids) for ids in (label, label[rows]))
            assert np.abs(share - kept).max() < 0.005, target


def test_factors_are_independent_in_a_subset() -> None:
    """A balance of each factor alone would allow colour to be told by contrast."""
    world = SingleGratings()
    rows = world.subset(2500, seed=1)
    labels = world.labels()
    table = np.zeros((5, 5))
    np.add.at(table, (labels["contrast"][rows], labels["colour"][rows]), 1)
    assert table.min() > 60 and table.max() < 140  # 100 expected, standard deviation about 9


def test_subsets_are_drawn_by_seed() -> None:
    world = DoubleGratings()
    assert np.array_equal(world.subset(200, 7), DoubleGratings(seed=9).subset(200, 7))
    assert not np.array_equal(world.subset(200, 7), world.subset(200, 8))
    assert np.array_equal(world.subset(len(world)), np.arange(len(world)))
    for count in (0, len(world) + 1):
        with pytest.raises(UserError, match="1 to 15552 clips"):
            world.subset(count)


@pytest.mark.parametrize(
    "axes", [[[2], [2]], [[3], [3], [2]], [[1], [4]], [[7]], [[2, 3], [2]], [[2, 2], [3, 2]]]
)
def test_small_products_are_cut_evenly_too(axes: list[list[int]]) -> None:
    total = int(np.prod([size for axis in axes for size in axis]))
    for count in range(total + 1):
        for seed in range(20):
            found = gratings._balanced(axes, count, np.random.default_rng(seed))
            assert len(np.unique(found)) == count
            for at in np.unravel_index(found, [int(np.prod(axis)) for axis in axes]):
                assert count == 0 or np.ptp(np.bincount(at, minlength=int(at.max()) + 1)) <= 1
