"""Intervals cover what they say they cover, pairs are paired, and correlations equal scipy's."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, recall_score

from tubelet.evaluate.metrics import (
    Answers,
    Predictions,
    RealPredictions,
    Resampled,
    difference,
    estimates,
    resample,
)
from tubelet.evaluate.noise import correlation, difference_interval, front, mean_interval


def answers(seed: int, clips: int = 90, classes: int = 4, skill: float = 0.5, draws: int = 1) -> Predictions:
    random = np.random.default_rng(seed)
    label = np.tile(np.arange(clips) % classes, draws)
    scores = random.random((clips * draws, classes))
    scores[np.arange(len(label)), label] += skill
    draw = np.repeat(np.arange(draws), clips)
    return Predictions(np.tile(np.arange(clips), draws), draw, label, scores / scores.sum(1, keepdims=True))


GROUP = np.array([f"g{i // 5}" for i in range(90)])


def drawn(made: Answers, metric: str = "macro_recall") -> Resampled:
    return resample(made, GROUP, [metric])[metric]


def test_of_one_run_intervals_are_those_of_its_own_estimate() -> None:
    made, other = answers(0, draws=2), answers(1, draws=2)
    for metric in made.metrics:
        own, apart = estimates(made, GROUP)[metric], difference(made, other, GROUP, metric)
        found = mean_interval([drawn(made, metric)])
        pair = difference_interval([drawn(made, metric)], [drawn(other, metric)])
        assert (found.value, found.low, found.high) == pytest.approx((own.value, own.low, own.high), abs=1e-9)
        assert (pair.value, pair.low, pair.high) == pytest.approx(
            (apart.value, apart.low, apart.high), abs=1e-9
        )


def test_intervals_of_shares_stay_where_shares_are() -> None:
    """Two seeds far apart, widened by Student's t, would reach far beyond; the error in its unit does."""

    def runs(metric: str, *values: float) -> list[Resampled]:
        return [Resampled(metric, np.array([value]), np.full(2000, value)) for value in values]

    for metric in ("macro_recall", "map"):
        far, near = runs(metric, 0.4, 1.0), runs(metric, 0.0, 0.6)
        alone, apart = mean_interval(far), difference_interval(far, near)
        assert (alone.value, alone.low, alone.high) == (pytest.approx(0.7), 0, 1)
        assert (apart.value, apart.low, apart.high) == (pytest.approx(0.4), -1, 1)
    error = mean_interval(runs("mae", 0.4, 1.0))
    assert error.low < 0 and error.high > 1


def test_values_equal_scikit_learns() -> None:
    made = answers(1)
    said = drawn(made).value
    assert said == pytest.approx(recall_score(made.label, made.predicted, average="macro"))
    truth = made.label[:, None] == np.arange(4)
    assert drawn(made, "map").value == pytest.approx(average_precision_score(truth, made.scores))


def test_numbers_are_resampled_too() -> None:
    random = np.random.default_rng(2)
    truth = random.normal(size=90)
    made = RealPredictions(np.arange(90), np.zeros(90, np.int64), truth, truth + 0.1 * random.normal(size=90))
    found = mean_interval([drawn(made, "r2")])
    assert 0.98 < found.low < found.value < found.high < 1


def test_pairs_see_the_same_groups() -> None:
    """A difference to itself is zero for certain, though the score itself is not certain at all."""
    run = drawn(answers(3))
    again = difference_interval([run], [run])
    assert (again.value, again.low, again.high) == (0.0, 0.0, 0.0) and not again.clear
    alone = mean_interval([run])
    assert alone.high - alone.low > 0.05


def test_a_better_arm_is_seen_and_an_equal_one_is_not() -> None:
    good, better = (
        [drawn(answers(s, skill=k)) for s in seeds] for seeds, k in ((range(3), 0.2), (range(10, 13), 0.9))
    )
    equal = [drawn(answers(s, skill=0.2)) for s in range(20, 23)]
    assert difference_interval(better, good).clear
    assert difference_interval(better, good).low > 0 > difference_interval(good, better).high
    assert not difference_interval(good, equal).clear


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("groups", "spread", "own"), [(1e-3, 1.0, 0.0), (3.0, 1.0, 0.0), (3.0, 1.0, 3.0)])
def test_an_interval_covers_the_truth_as_often_as_it_says(
    seeds: int, groups: float, spread: float, own: float
) -> None:
    """The true difference is 0. Drawn from normal distributions are 30 test groups, seeds, and seeds' own groups."""
    random = np.random.default_rng(seeds)
    trials, covered = 300, 0
    weight = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=2000) / 30

    def side(effect: np.ndarray) -> list[Resampled]:
        table = effect + random.normal(0, spread, size=(seeds, 1)) + random.normal(0, own, size=(seeds, 30))
        return [Resampled("mae", row.mean(keepdims=True), weight @ row) for row in table]

    for _ in range(trials):
        found = difference_interval(side(random.normal(0, groups, size=30)), side(np.zeros(30)))
        covered += found.low <= 0 <= found.high
    assert covered / trials > 0.91  # 0.95 less three standard errors; seeds drawn plainly reach 0.69 to 0.9


def test_one_seed_says_nothing_of_others() -> None:
    run = drawn(answers(4))
    low, high = np.quantile(run.resamples, (0.025, 0.975))
    assert (mean_interval([run]).low, mean_interval([run]).high) == (low, high)


def test_the_front_is_what_nothing_beats() -> None:
    points = [(1.0, 0.3), (2.0, 0.5), (2.0, 0.4), (3.0, 0.5), (4.0, 0.6), (0.5, 0.1)]
    assert front(points) == [True, True, False, False, True, True]
    assert front([(1.0, 0.3), (1.0, 0.3)]) == [True, True]
    assert front([(0.999, 0.3), (1.0, 0.5), (1.001, 0.4)]) == [False, True, False]  # one price
    assert front([]) == []


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float)), min_size=1, max_size=12)
)
def test_along_the_front_more_costs_more(points: list[tuple[float, float]]) -> None:
    best = sorted({point for point, kept in zip(points, front(points), strict=True) if kept})
    assert best
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(best))


def test_correlation_equals_scipys() -> None:
    random = np.random.default_rng(5)
    x = random.normal(size=14)
    y = -2 * x + random.normal(size=14)
    found = correlation(x.tolist(), y.tolist())
    r, chance = np.asarray(stats.pearsonr(x, y))
    assert found.r2 == pytest.approx(r**2)
    assert (found.slope, found.n) == (-1.0, 14)
    assert found.low < found.r2 < found.high
    assert found.p == pytest.approx(1 / 10_001, abs=3e-4) and chance < 1e-3
    noise = random.normal(size=14)
    _, chance = np.asarray(stats.pearsonr(x, noise))
    assert correlation(x.tolist(), noise.tolist()).p == pytest.approx(chance, abs=0.03)


def test_correlation_says_where_there_is_none() -> None:
    assert np.isnan(correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).r2)
    with pytest.raises(ValueError, match="three pairs"):
        correlation([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="finite"):
        correlation([1.0, 2.0, np.nan], [1.0, 2.0, 3.0])
