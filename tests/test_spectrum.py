"""Spectrum of streamed tables: singular values that were chosen, sums written out, and what is undefined."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from tubelet.analysis import health, spectrum
from tubelet.analysis.spectrum import Spectrum, lidar

SPREAD = {"effective_rank", "participation_ratio", "isotropy", "components_90", "condition_number"}


def known(singular: list[float], n: int = 60, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    """Rows [n, D] about ``mean`` whose centred singular values are these, in directions at random."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(n, len(singular)))
    left, _ = np.linalg.qr(rows - rows.mean(0))  # its columns sum to zero
    right, _ = np.linalg.qr(random.normal(size=(len(singular),) * 2))
    return left @ np.diag(singular) @ right + mean


def entropy_exp(weights: np.ndarray) -> float:
    share = weights[weights > 0] / weights.sum()
    return math.exp(-(share * np.log(share)).sum())


@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_a_spectrum_that_was_chosen(mean: float) -> None:
    singular = [4.0, 2.0, 1.0, 1.0, 0.5]
    values = np.square(singular)
    found = spectrum.spectrum(known(singular, mean=mean))
    assert found.effective_rank == pytest.approx(entropy_exp(values))
    assert found.participation_ratio == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert found.isotropy == pytest.approx(16 / (22.25 / 5))
    assert found.components_90 == 3  # 20 of 22.25 are not enough
    assert found.condition_number == pytest.approx(64)


def test_equal_directions_and_a_single_one() -> None:
    even = spectrum.spectrum(known([3.0] * 10))
    assert even.effective_rank == pytest.approx(10) and even.participation_ratio == pytest.approx(10)
    assert even.isotropy == pytest.approx(1) and even.condition_number == pytest.approx(1)
    line = spectrum.spectrum(known([3.0, 0, 0, 0], mean=2.0))
    assert line.effective_rank == pytest.approx(1) and line.participation_ratio == pytest.approx(1)
    assert line.isotropy == pytest.approx(4) and line.components_90 == 1


def test_a_share_of_exactly_ninety_percent_is_enough() -> None:
    for size in np.linspace(0.1, 5, 20):
        assert spectrum.spectrum(known([size] * 10)).components_90 == 9
        assert spectrum.spectrum(known([size] * 11)).components_90 == 10


def test_an_unused_direction_makes_the_condition_infinite() -> None:
    assert spectrum.spectrum(known([3.0, 2.0, 0.0])).condition_number == math.inf
    few = np.random.default_rng(0).normal(size=(12, 12))  # centred, 12 rows have 11 directions
    assert spectrum.spectrum(few).condition_number == math.inf
    assert spectrum.spectrum(np.vstack([few, few + few[::-1]])).condition_number < math.inf


@pytest.mark.parametrize("n", [8, 60])
def test_rankme_is_that_of_the_uncentred_singular_values(n: int) -> None:
    rows = np.random.default_rng(1).normal(size=(n, 12)) @ np.diag(np.arange(1.0, 13)) + 3
    found = spectrum.spectrum(rows, chunk=7).rankme
    assert found == pytest.approx(entropy_exp(np.linalg.svd(rows, compute_uv=False)))
    assert found == pytest.approx(health.rankme(torch.from_numpy(rows)), rel=1e-5)
    assert found != pytest.approx(spectrum.spectrum(rows - rows.mean(0)).rankme, rel=1e-2)


def test_norms_and_all_pairs_of_few_rows_are_what_scipy_gives() -> None:
    rows = np.random.default_rng(2).normal(size=(45, 6)) + 1
    found = spectrum.spectrum(rows, chunk=8)
    norm = np.linalg.norm(rows, axis=1)
    assert (found.norm_min, found.norm_max) == pytest.approx((norm.min(), norm.max()))
    assert (found.norm_mean, found.norm_sd) == pytest.approx((norm.mean(), norm.std()))
    euclid, cosine = pdist(rows), 1 - pdist(rows, "cosine")
    assert (found.euclid_mean, found.euclid_sd) == pytest.approx((euclid.mean(), euclid.std()))
    assert (found.cosine_mean, found.cosine_sd) == pytest.approx((cosine.mean(), cosine.std()))
    sphere = pdist(rows / norm[:, None])
    assert found.uniformity == pytest.approx(math.log(np.exp(-2 * sphere**2).mean()))


def test_of_many_rows_pairs_are_drawn_and_no_row_is_paired_with_itself() -> None:
    random = np.random.default_rng(3)
    rows = random.normal(size=(400, 5))
    one, again, other = (spectrum.spectrum(rows, seed=seed) for seed in (0, 0, 1))
    assert one == again and one.euclid_mean != other.euclid_mean
    euclid = pdist(rows)
    for found in (one, other):  # 20 000 of 79 800: within five standard errors
        assert abs(found.euclid_mean - euclid.mean()) < 5 * euclid.std() / math.sqrt(spectrum.PAIRS)
        assert found.euclid_sd == pytest.approx(euclid.std(), rel=0.03)
    apart = np.eye(400)  # all pairs are equally far, but those with itself
    assert spectrum.spectrum(apart).euclid_sd == pytest.approx(0, abs=1e-12)
    assert spectrum.spectrum(apart).cosine_mean == 0


def test_uniformity_is_between_minus_eight_and_zero() -> None:
    assert spectrum.spectrum(np.array([[1.0, 2.0], [2.0, 4.0]])).uniformity == pytest.approx(0)
    assert spectrum.spectrum(np.array([[1.0, 2.0], [-2.0, -4.0]])).uniformity == pytest.approx(-8)


@settings(max_examples=25, deadline=None)
@given(chunk=st.integers(1, 50), seed=st.integers(0, 10**6))
def test_it_does_not_depend_on_the_chunk(chunk: int, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(size=(37, 5)) + 4
    assert asdict(spectrum.spectrum(rows, chunk=chunk)) == pytest.approx(asdict(spectrum.spectrum(rows)))
    views = rows[:36].reshape(12, 3, 5)
    assert lidar(views, chunk=chunk) == pytest.approx(lidar(views))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
def test_it_sees_no_rotation_and_only_distances_see_scale(seed: int, scale: float) -> None:
    rows = known([5.0, 3.0, 2.0, 1.0], n=30, mean=0.2, seed=seed)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))
    one, other = asdict(spectrum.spectrum(rows)), asdict(spectrum.spectrum(scale * rows @ rotation))
    for name, value in one.items():
        grows = name.startswith(("norm", "euclid"))
        assert other[name] == pytest.approx(value * scale if grows else value, rel=1e-6, abs=1e-9), name


def nans(found: Spectrum) -> set[str]:
    return {name for name, value in asdict(found).items() if math.isnan(value)}


@pytest.mark.parametrize("n", [2, 300])
def test_a_constant_table_has_no_spread_but_is_one_direction(n: int) -> None:
    found = spectrum.spectrum(np.full((n, 7), 0.1, np.float32))
    assert nans(found) == SPREAD
    assert found.rankme == pytest.approx(1) and found.cosine_mean == pytest.approx(1)
    assert found.uniformity == pytest.approx(0, abs=1e-12) and found.euclid_mean == found.euclid_sd == 0
    assert found.norm_mean == pytest.approx(0.1 * math.sqrt(7)) and found.norm_sd == pytest.approx(
        0, abs=1e-9
    )


def test_zero_rows_have_no_direction() -> None:
    found = spectrum.spectrum(np.zeros((9, 4)))
    assert nans(found) == SPREAD | {"rankme", "uniformity", "cosine_mean", "cosine_sd"}
    assert found.norm_mean == found.euclid_mean == 0
    one = spectrum.spectrum(np.vstack([np.zeros(4), np.eye(4)]))
    assert nans(one) == {"uniformity", "cosine_mean", "cosine_sd"}


def test_a_single_row_has_no_pair() -> None:
    found = spectrum.spectrum(np.ones((1, 4)))
    assert nans(found) == SPREAD | {"uniformity", "cosine_mean", "cosine_sd", "euclid_mean", "euclid_sd"}


def test_a_small_spread_of_large_norms_is_not_lost() -> None:
    norm = 1e6 + np.random.default_rng(4).normal(size=500)
    found = spectrum.spectrum(np.stack([norm, np.zeros(500)], 1), chunk=9)
    assert found.norm_sd == pytest.approx(norm.std())


def test_what_is_not_finite_is_named() -> None:
    rows = np.ones((30, 3))
    rows[21, 1] = math.nan
    with pytest.raises(ValueError, match="the table, row 21: not finite"):
        spectrum.spectrum(rows, chunk=4)
    with pytest.raises(ValueError, match="the views, row 10: not finite"):
        lidar(rows.reshape(15, 2, 3), chunk=4)


def test_tables_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(0, 3\).* \[n, D\]"):
        spectrum.spectrum(np.ones((0, 3)))
    with pytest.raises(ValueError, match=r"shape \(4, 3\).* \[n, q, D\]"):
        lidar(np.ones((4, 3)))
    with pytest.raises(ValueError, match="delta"):
        lidar(np.ones((4, 3, 2)), delta=0)


def views(n: int = 40, q: int = 3, width: int = 6, seed: int = 0) -> np.ndarray:
    """Clips that differ most along the first axes, views that differ most along the last."""
    random = np.random.default_rng(seed)
    clips = random.normal(size=(n, 1, width)) * np.linspace(3, 0.2, width)
    return clips + random.normal(size=(n, q, width)) * np.linspace(0.1, 1, width) + 2


def lidar_written_out(rows: np.ndarray, delta: float) -> float:
    n, q, width = rows.shape
    within, between, grand = delta * np.eye(width), np.zeros((width, width)), rows.mean((0, 1))
    for clip in rows:
        mean = clip.mean(0)
        between += np.outer(mean - grand, mean - grand) / n
        for view in clip:
            within += np.outer(view - mean, view - mean) / (n * q)
    root = np.linalg.inv(np.real(scipy.linalg.sqrtm(within)))
    return entropy_exp(np.linalg.eigvalsh(root @ between @ root))


@pytest.mark.parametrize("delta", [1e-4, 0.3])
@pytest.mark.parametrize(("n", "q"), [(40, 3), (60, 2), (5, 4)])
def test_lidar_is_what_is_written_in_the_paper(n: int, q: int, delta: float) -> None:
    rows = views(n, q)
    assert lidar(rows, delta) == pytest.approx(lidar_written_out(rows, delta), rel=1e-6)
    assert lidar(rows, delta, chunk=5) == pytest.approx(lidar_written_out(rows, delta), rel=1e-6)


def test_lidar_uses_delta_of_one_ten_thousandth() -> None:
    rows = views() * 0.01
    assert lidar(rows) == lidar(rows, delta=1e-4) != pytest.approx(lidar(rows, delta=1e-5), rel=1e-2)


def test_lidar_counts_what_tells_clips_apart() -> None:
    random = np.random.default_rng(5)
    clips = np.zeros((500, 1, 8))
    clips[..., :3] = random.normal(size=(500, 1, 3))
    noise = 0.05 * random.normal(size=(500, 4, 8))
    assert lidar(clips + noise) == pytest.approx(3, abs=0.15)
    noise[..., 3:] += 2 * random.normal(size=(500, 4, 5))  # high rank that means nothing
    rows = clips + noise
    assert lidar(rows) == pytest.approx(3, abs=0.15)
    assert spectrum.spectrum(rows.reshape(-1, 8)).effective_rank > 6


def test_lidar_is_undefined_with_one_view_or_clip_or_nothing_between() -> None:
    assert math.isnan(lidar(np.random.default_rng(0).normal(size=(9, 1, 4))))
    assert math.isnan(lidar(np.random.default_rng(0).normal(size=(1, 9, 4))))
    assert math.isnan(lidar(np.full((9, 3, 4), 0.1)))
    assert math.isnan(lidar(np.tile(np.array([[1.0, 2.0], [3.0, 5.0]]), (9, 1, 1))))


def test_lidar_of_views_that_never_differ_is_finite() -> None:
    rows = np.repeat(np.random.default_rng(6).normal(size=(200, 1, 5)), 3, 1)
    assert lidar(rows) == pytest.approx(5, abs=0.3)


@pytest.mark.parametrize("q", [None, 4])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, q: int | None) -> None:
    shape = (60_000, 16) if q is None else (15_000, q, 16)
    table = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, shape)  # 4 MB
    table[:] = np.random.default_rng(7).normal(size=shape)
    peaks = []
    for rows in (table[: len(table) // 20], table):
        tracemalloc.start()
        try:
            spectrum.spectrum(rows) if q is None else lidar(rows)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < peaks[0] + 2**17
