"""How much of a score, or of a difference of scores, could be chance: other test groups, another pretraining seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # scikit-learn, which we depend on, depends on scipy

from tubelet.evaluate.metrics import RESAMPLES, Resampled, interval

_PERMUTATIONS = 10_000
SAME = 0.01  # of a cost


@dataclass(frozen=True)
class Interval:
    """value, and 95 % of what chance could make of it: [low, high]."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether zero lies outside."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Correlation:
    """r2: squared correlation of n points, with its 95 % bootstrap interval. slope: +1 or -1, the way they go together.

    p: share of random pairings whose r2 is as high, the true one counted. All nan where a side is constant.
    """

    r2: float
    low: float
    high: float
    p: float
    slope: float
    n: int


def mean_interval(runs: Sequence[Resampled], seed: int = 0) -> Interval:
    """The mean over ``runs``, an arm's seeds; its interval draws test groups and seeds again.

    runs: one metric of each seed, on the same draws of groups. The interval of a share lies in [0, 1].
    Source: ours. Few seeds drawn from themselves spread too little: of three, the interval of a difference that is
    seeds' noise alone covers the truth 80 times in 100. So what a draw of seeds adds to the mean of all is scaled by
    sqrt(n / (n - 1)), and by Student's t over the normal quantile for n - 1 degrees of freedom; then it is 95 in 100.
    The seeds' scores are those on the test clips as they are: on drawn groups they would also differ by the draw, which
    the mean has counted already. One run says nothing of other seeds: its interval is that of the test groups.
    """
    mean, around = _over_seeds(runs, seed, 0)
    value = float(np.mean([run.value for run in runs]))
    wider = _widening(len(runs) - 1)
    return Interval(value, *interval(value, mean, runs[0].metric, lowest=0.0, around=wider * around))


def difference_interval(one: Sequence[Resampled], other: Sequence[Resampled], seed: int = 0) -> Interval:
    """Mean of ``one`` minus mean of ``other``, paired over test groups, each side's seeds drawn by themselves.

    As `mean_interval`, with the degrees of freedom of both sides together, and in [-1, 1] for a share.
    """
    (mean, around), (other_mean, other_around) = _over_seeds(one, seed, 0), _over_seeds(other, seed, 1)
    value = float(np.mean([run.value for run in one]) - np.mean([run.value for run in other]))
    around = _widening(len(one) + len(other) - 2) * (around - other_around)
    return Interval(value, *interval(value, mean - other_mean, one[0].metric, lowest=-1.0, around=around))


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of the ``points`` (cost, score) no other beats: none that is as cheap and as good is better in either.

    Costs that differ by less than SAME are equal: runs have whole steps, no budget is met exactly.
    """
    return [
        not any(
            a <= cost * (1 + SAME) and b >= score and (b > score or a * (1 + SAME) < cost) for a, b in points
        )
        for cost, score in points
    ]


def correlation(x: Sequence[float], y: Sequence[float], seed: int = 0) -> Correlation:
    """How well a straight line through ``x`` tells ``y``.

    The bootstrap draws points, the permutation test pairs them at random, as if they were independent; checkpoints
    of one run are not, they all come one after the other, so p is then too small. Raises ValueError for fewer than
    three points, unequal lengths, or a value that is not finite.
    """
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 3:
        raise ValueError(f"a correlation needs at least three pairs, not {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("a correlation needs finite values")
    n = len(a)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return Correlation(np.nan, np.nan, np.nan, np.nan, np.nan, n)
    random = np.random.default_rng(seed)
    true = float(_pearson(a, b))
    drawn = random.integers(0, n, size=(RESAMPLES, n))
    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile(_pearson(a[drawn], b[drawn]) ** 2, (0.025, 0.975))
    shuffled = random.permuted(np.tile(b, (_PERMUTATIONS, 1)), axis=1)
    as_high = np.count_nonzero(_pearson(a, shuffled) ** 2 >= true**2 - 1e-12)
    return Correlation(
        true**2, float(low), float(high), (as_high + 1) / (_PERMUTATIONS + 1), float(np.sign(true)), n
    )


def _pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlation along the last axis."""
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def _over_seeds(runs: Sequence[Resampled], seed: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """float64 [resamples]: all seeds' mean on drawn groups; how far the mean of drawn seeds is from that of all."""
    n, mean = len(runs), np.mean([run.resamples for run in runs], axis=0)
    if n == 1:
        return mean, np.zeros_like(mean)
    values = np.array([run.value for run in runs])
    share = np.random.default_rng([seed, side]).multinomial(n, np.full(n, 1 / n), size=len(mean)) / n
    return mean, np.sqrt(n / (n - 1)) * (share @ (values - values.mean()))


def _widening(freedom: int) -> float:
    """Student's t over the normal quantile; 0 where no side has a second seed."""
    return float(stdtrit(freedom, 0.975)) / 1.96 if freedom else 0.0
