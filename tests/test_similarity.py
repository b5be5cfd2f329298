"""CKA of streamed tables: against Gram matrices written out, under what it must not see, and what is undefined."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.analysis import health, similarity
from tubelet.analysis.similarity import Rows, debiased_cka, linear_cka, rbf_cka, similarity_map

MEASURES = [linear_cka, debiased_cka, rbf_cka]
Measure = Callable[..., float]


class Asked:
    """A table that is nowhere: rows are made when asked for. Remembers the most that were asked for at once."""

    def __init__(self, n: int, width: int, seed: int = 0):
        self.shape, self.most = (n, width), 0
        self.mix = np.random.default_rng(seed).normal(size=(4, width))

    def __getitem__(self, rows: Any) -> np.ndarray:
        places = np.arange(self.shape[0])[rows] if isinstance(rows, slice) else rows
        self.most = max(self.most, len(places))
        return np.sin(np.outer(places, [0.1, 0.37, 1.3, 2.9])) @ self.mix


def pair(n: int, width: int, other: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two tables that share something, far from zero."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(n, width)) @ np.diag(1.0 + np.arange(width)) + 5
    return x, np.tanh(x @ random.normal(size=(width, other)) / 9) + 0.3 * random.normal(size=(n, other))


def centring(n: int) -> np.ndarray:
    return np.eye(n) - 1 / n


def biased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    h = centring(len(k))
    return np.trace(k @ h @ m @ h)


def unbiased_hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Equation 3 of arXiv 2010.15327, term by term."""
    n, one = len(k), np.ones(len(k))
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    terms = (
        np.trace(k @ m)
        + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * one @ k @ m @ one
    )
    return terms / (n * (n - 3))


def align(hsic: Callable[[np.ndarray, np.ndarray], float], k: np.ndarray, m: np.ndarray) -> float:
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def gaussian(x: np.ndarray) -> np.ndarray:
    distance = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in x])
    median = np.median([distance[i, j] for i in range(len(x)) for j in range(i + 1, len(x))])
    return np.exp(-(distance**2) / (2 * median**2))


def written_out(measure: Measure, x: np.ndarray, y: np.ndarray) -> float:
    if measure is rbf_cka:
        return align(biased_hsic, gaussian(x), gaussian(y))
    return align(biased_hsic if measure is linear_cka else unbiased_hsic, x @ x.T, y @ y.T)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    "n", [5, 12, 41]
)  # an even and odd number of pairs, fewer rows than columns and more
def test_it_is_what_gram_matrices_written_out_give(measure: Measure, n: int) -> None:
    x, y = pair(n, 9, 7)
    assert measure(x, y) == pytest.approx(written_out(measure, x, y), abs=1e-10)
    assert measure(x, y, chunk=3) == pytest.approx(written_out(measure, x, y), abs=1e-10)


def test_linear_cka_is_the_norms_of_products_of_centred_columns() -> None:
    x, y = pair(50, 6, 3)
    x, y = x - x.mean(0), y - y.mean(0)
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    assert linear_cka(x, y) == pytest.approx(np.linalg.norm(x.T @ y) ** 2 / norms)


def test_products_of_rows_and_of_columns_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = [*pair(60, 8, 5), *pair(60, 11, 2, seed=1)]
    maps = []
    for row, column in ((0.0, 1.0), (1.0, 0.0)):
        monkeypatch.setattr(similarity, "_row_work", lambda stack, work=row: work)
        monkeypatch.setattr(similarity, "_column_work", lambda stack, work=column: work)
        maps += [similarity_map(tables, chunk=7), similarity_map(tables[:1], tables[1:], chunk=7)]
    monkeypatch.setattr(similarity, "_SUMS", 1)  # one pair of layers at a time
    maps += [similarity_map(tables, chunk=7), similarity_map(tables[:1], tables[1:], chunk=7)]
    for one, other in ((maps[0], maps[2]), (maps[1], maps[3]), (maps[0], maps[4]), (maps[1], maps[5])):
        np.testing.assert_allclose(one.linear, other.linear, atol=1e-12)
        np.testing.assert_allclose(one.debiased, other.debiased, atol=1e-12)


@pytest.mark.parametrize("measure", MEASURES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3))
def test_it_sees_no_rotation_scale_or_shift(measure: Measure, seed: int, scale: float, shift: float) -> None:
    x, y = pair(20, 6, 4, seed)
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(6, 6)))
    moved = scale * x @ rotation + shift
    assert measure(moved, y) == pytest.approx(measure(x, y), abs=1e-7)
    assert measure(y, moved) == pytest.approx(measure(x, y), abs=1e-7)
    assert measure(x, moved) == pytest.approx(1, abs=1e-7)
    assert max(measure(x, moved), measure(x, x), measure(y, y)) <= 1


@settings(max_examples=25, deadline=None)
@given(chunk=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_it_does_not_depend_on_the_chunk(chunk: int, seed: int) -> None:
    tables = pair(33, 5, 8, seed)
    one, other = similarity_map(tables, chunk=chunk), similarity_map(tables)
    for name in ("linear", "debiased", "rbf"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-11)


def test_a_large_mean_does_not_cost_precision() -> None:
    x, y = pair(40, 6, 4)
    assert linear_cka(x + 1e6, y) == pytest.approx(linear_cka(x, y), abs=1e-8)
    assert debiased_cka(x + 1e6, y) == pytest.approx(debiased_cka(x, y), abs=1e-8)
    assert rbf_cka(x + 1e6, y) == pytest.approx(rbf_cka(x, y), abs=1e-8)


def test_unrelated_tables_are_about_zero_only_without_the_bias() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(40, 200)), random.normal(size=(40, 200))
    assert linear_cka(x, y) > 0.7
    assert abs(debiased_cka(x, y)) < 0.1


def test_a_map_is_every_pair_of_layers() -> None:
    one, other = pair(30, 5, 7), (*pair(30, 4, 6, seed=1), pair(30, 3, 2, seed=2)[0])
    found = similarity_map(one, other)
    for values, measure in zip((found.linear, found.debiased, found.rbf), MEASURES, strict=True):
        np.testing.assert_allclose(values, [[measure(x, y) for y in other] for x in one], atol=1e-12)
    assert found.rbf_rows == 30


def test_a_map_of_one_encoder_is_symmetric_with_ones_on_the_diagonal() -> None:
    tables = [*pair(30, 5, 7), pair(30, 4, 6, seed=1)[0]]
    found = similarity_map(tables)
    for values, measure in zip((found.linear, found.debiased, found.rbf), MEASURES, strict=True):
        assert np.array_equal(values, values.T)
        np.testing.assert_allclose(values.diagonal(), 1, atol=1e-12)
        np.testing.assert_allclose(values, [[measure(x, y) for y in tables] for x in tables], atol=1e-12)


def test_the_share_done_rises_to_one() -> None:
    for tables, other in ((pair(50, 5, 7), None), (pair(9, 20, 30), pair(9, 3, 4))):
        told: list[float] = []
        similarity_map(tables, other, chunk=4, advance=told.append)
        assert told == sorted(told) and told[-1] == pytest.approx(1) and told[0] < 0.5


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("value", [0.0, 0.1, 1e5 / 3])
def test_a_constant_side_is_undefined(measure: Measure, value: float) -> None:
    x, y = pair(20, 6, 4)
    flat = np.full((20, 3), value, np.float32)
    assert math.isnan(measure(x, flat)) and math.isnan(measure(flat, y)) and math.isnan(measure(flat, flat))
    assert math.isnan(measure(x[:1], y[:1]))


def test_a_constant_layer_leaves_the_others_defined() -> None:
    x, y = pair(20, 6, 4)
    found, without = similarity_map([x, np.full((20, 3), 0.1), y]), similarity_map([x, y])
    for name in ("linear", "debiased", "rbf"):
        values = getattr(found, name)
        assert np.isnan(values[1]).all() and np.isnan(values[:, 1]).all()
        np.testing.assert_allclose(values[np.ix_([0, 2], [0, 2])], getattr(without, name), atol=1e-12)


def test_debiased_needs_four_rows_and_a_kernel_that_varies() -> None:
    x, y = pair(4, 6, 5)
    assert debiased_cka(x, y) == pytest.approx(written_out(debiased_cka, x, y), abs=1e-10)
    assert math.isnan(debiased_cka(x[:3], y[:3])) and not math.isnan(linear_cka(x[:3], y[:3]))
    for size in np.linspace(0.1, 3, 20):
        equally_far = size * np.eye(4, 5) + 0.1
        assert math.isnan(debiased_cka(equally_far, y)) and not math.isnan(linear_cka(equally_far, y))


def test_rbf_is_undefined_if_more_than_half_of_the_pairs_are_the_same() -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        same = np.repeat(random.normal(size=(1, 300)) + 7, 20, 0)
        few, many = same.copy(), same.copy()
        few[10:] = random.normal(size=(10, 300))
        many[17:] = random.normal(size=(3, 300))
        y = random.normal(size=(20, 4))
        assert math.isnan(rbf_cka(many, y, chunk=3 + seed))
        assert rbf_cka(few, y) == pytest.approx(rbf_cka(few, y, chunk=3 + seed))
    assert rbf_cka(few, y) == pytest.approx(written_out(rbf_cka, few, y), abs=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(measure: Measure, bad: float) -> None:
    x, y = pair(20, 6, 4)
    y[13, 2] = bad
    with pytest.raises(ValueError, match="table 0 of other, row 13: not finite"):
        measure(x, y, chunk=5)
    with pytest.raises(ValueError, match="table 1 of one, row 13: not finite"):
        similarity_map([x, y], chunk=5)
    y[0, 0] = bad
    with pytest.raises(ValueError, match="row 0: not finite"):
        measure(x, y)


def test_tables_that_cannot_be_compared_are_refused() -> None:
    x, y = pair(20, 6, 4)
    with pytest.raises(ValueError, match="table 0 of other has 19 rows, table 0 of one has 20"):
        linear_cka(x, y[:19])
    with pytest.raises(ValueError, match=r"shape \(20, 6, 1\)"):
        linear_cka(x[:, :, None], y)
    with pytest.raises(ValueError, match="none of them 0"):
        linear_cka(x[:0], y[:0])
    with pytest.raises(ValueError, match="at least one layer"):
        similarity_map([])
    with pytest.raises(ValueError, match="at least one layer"):
        similarity_map([x], [])


def test_of_many_rows_rbf_takes_the_same_few_of_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "RBF_CLIPS", 25)
    x, y = pair(70, 6, 4)
    drawn = np.sort(np.random.default_rng(3).choice(70, 25, replace=False))
    assert rbf_cka(x, y, seed=3, chunk=8) == pytest.approx(
        written_out(rbf_cka, x[drawn], y[drawn]), abs=1e-10
    )
    assert rbf_cka(x, x, seed=3) == pytest.approx(1)
    found = similarity_map([x, y], seed=3)
    assert found.rbf_rows == 25 and found.rbf[0, 1] == pytest.approx(rbf_cka(x, y, seed=3))
    assert rbf_cka(x, y, seed=4) != rbf_cka(x, y, seed=3)


def test_a_file_and_an_array_are_the_same(tmp_path: Path) -> None:
    x, y = (table.astype(np.float32) for table in pair(50, 6, 4))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for measure in MEASURES:
        assert measure(mapped, y) == measure(x, y)
    assert np.array_equal(mapped, x)  # centring was in a copy


def peak(n: int) -> tuple[float, int]:
    """Most memory that a map of two lazy tables took, MB, and most rows asked for at once."""
    tables = [Asked(n, 40), Asked(n, 24, seed=1)]
    tracemalloc.start()
    try:
        similarity_map(tables, chunk=64)
        return tracemalloc.get_traced_memory()[1] / 2**20, max(table.most for table in tables)
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "RBF_CLIPS", 300)  # in reach of a test
    (small, few), (large, many) = peak(1_000), peak(16_000)  # 16 000 rows of both are 8 MB
    assert few == many == 64
    assert large < small + 0.5


def test_thirteen_layers_of_two_thousand_clips_take_seconds() -> None:
    random = np.random.default_rng(0)
    tables: list[Rows] = [random.normal(size=(2000, 96)).astype(np.float32) for _ in range(13)]
    found = similarity_map(tables)
    assert found.rbf_rows == 2000
    off = ~np.eye(13, dtype=bool)
    assert abs(found.debiased[off]).max() < 0.02 < found.linear[off].min()


def test_the_health_monitors_cka_of_centred_rows_agrees() -> None:
    x, y = pair(40, 6, 4)
    centred = (torch.from_numpy(table - table.mean(0)) for table in (x, y))
    assert linear_cka(x, y) == pytest.approx(health.linear_cka(*centred), rel=1e-12)
