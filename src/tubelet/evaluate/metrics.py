"""Scores with intervals. Test sets are small, so a number without its interval says little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from tubelet.evaluate import weighted

RESAMPLES = 2000
FEW_RESAMPLES = 200  # rank metrics of very large test sets: their intervals are narrow, and sorting is dear
WORK = 4e8  # resamples x clips x classes that rank metrics may cost before there are fewer resamples
FEW_GROUPS = 10  # below this, an interval over groups is itself a guess
_CHUNK = 2**21  # weights held at once

COUNTS = {
    "top1": weighted.top1,
    "top5": weighted.top5,
    "macro_recall": weighted.macro_recall,
    "f1_macro": weighted.f1_macro,
}
RANKS = {"map": weighted.mean_average_precision, "auroc": weighted.auroc}
ERRORS = {"r2": weighted.r2, "mae": weighted.mae}


@dataclass(frozen=True)
class Estimate:
    """A score, its 95 % bootstrap interval over groups, and its sd over label draws (None for one).

    Scores are in [0, 1], but "r2", which is at most 1, and "mae", which is in the label's unit. The interval says
    how far other test groups could move the score of these trained probes; the sd says how far other training
    labels could. Neither contains another pretraining run, unless several were given (see `estimates`).
    """

    value: float
    low: float
    high: float
    sd: float | None = None

    def __str__(self) -> str:
        spread = "" if self.sd is None else f" ± {self.sd:.3f}"
        return f"{self.value:.3f}{spread} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Predictions:
    """What probes said of test clips; a clip occurs once per label draw.

    clip: int64 [m], index into the task. draw: int64 [m]. label: int64 [m]. scores: float64 [m, classes],
    each row sums to 1.
    """

    clip: np.ndarray
    draw: np.ndarray
    label: np.ndarray
    scores: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """int64 [m]: the class with the highest score."""
        return self.scores.argmax(axis=1)

    @property
    def correct(self) -> np.ndarray:
        """bool [m]."""
        return self.predicted == self.label

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what can be measured; "top5" only where there are more than five classes."""
        few = self.scores.shape[1] <= 5
        return tuple(name for name in (*COUNTS, *RANKS) if not (few and name == "top5"))

    def measure(self, metric: str, weight: np.ndarray) -> np.ndarray:
        """float64 [r]: ``metric`` of the clips weighted by ``weight`` [r, m]."""
        return (COUNTS | RANKS)[metric](weight, self.label, self.scores)

    def of_draw(self, draw: int) -> Predictions:
        """Those of one label draw."""
        mine = self.draw == draw
        return Predictions(self.clip[mine], self.draw[mine], self.label[mine], self.scores[mine])


@dataclass(frozen=True)
class RealPredictions:
    """As `Predictions`, for labels that are numbers. clip, draw: int64 [m]. label, predicted: float64 [m]."""

    clip: np.ndarray
    draw: np.ndarray
    label: np.ndarray
    predicted: np.ndarray

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what can be measured: "r2" and "mae"."""
        return tuple(ERRORS)

    def measure(self, metric: str, weight: np.ndarray) -> np.ndarray:
        """float64 [r]: ``metric`` of the clips weighted by ``weight`` [r, m]."""
        return ERRORS[metric](weight, self.label, self.predicted)

    def of_draw(self, draw: int) -> RealPredictions:
        """Those of one label draw."""
        mine = self.draw == draw
        return RealPredictions(self.clip[mine], self.draw[mine], self.label[mine], self.predicted[mine])


Answers: TypeAlias = Predictions | RealPredictions


def join(parts: Sequence[Answers]) -> Answers:
    """The predictions of several folds or draws, all of one kind."""
    clip, draw, label = (
        np.concatenate([getattr(p, name) for p in parts]) for name in ("clip", "draw", "label")
    )
    if classified := [p.scores for p in parts if isinstance(p, Predictions)]:
        return Predictions(clip, draw, label, np.concatenate(classified))
    return RealPredictions(clip, draw, label, np.concatenate([p.predicted for p in parts]))


def top1(label: np.ndarray, correct: np.ndarray) -> float:
    """Share of clips that are right."""
    return float(correct.mean())


def macro_recall(label: np.ndarray, correct: np.ndarray) -> float:
    """Mean over classes of the share that is right (mean class accuracy), over the classes that occur."""
    return float(np.mean([correct[label == c].mean() for c in np.unique(label)]))


def estimates(
    answers: Answers | Sequence[Answers], group: np.ndarray | None, seed: int = 0
) -> dict[str, Estimate]:
    """Every metric that is defined on the clips: mean over draws, interval over groups, sd over draws.

    answers: of one encoder. Several are the same evaluation of encoders pretrained with other seeds: the value is
    then their mean, the sd is over seeds, and the interval resamples groups and seeds (see `difference`).
    group: [clips of the task] of names; None treats every clip as a group of its own.
    Metrics of folds are of all folds' clips together; scores of several probes are then ranked in one list.
    Raises ValueError if several answers are not to the same clips.
    """
    seeds = _listed(answers)
    _check_same(seeds)
    found = {}
    for metric, (values, table) in _resample(seeds, group, seeds[0].metrics, seed).items():
        if not np.isfinite(values).all():
            continue  # R² of equal values, AUROC of one class
        spread = values.mean(axis=1) if len(seeds) > 1 else values[0]
        low, high = _interval(_over_seeds(table, seed, 0), float(values.mean()), metric)
        if metric in RANKS:
            low, high = max(low, 0.0), min(high, 1.0)  # the shift may lead out of what there is
        sd = float(np.std(spread, ddof=1)) if len(spread) > 1 else None
        found[metric] = Estimate(float(values.mean()), low, high, sd)
    return found


def difference(
    one: Answers | Sequence[Answers],
    other: Answers | Sequence[Answers],
    group: np.ndarray | None,
    metric: str = "macro_recall",
    seed: int = 0,
) -> Estimate:
    """Score of ``one`` minus that of ``other`` on the same clips, with its paired bootstrap interval over groups.

    Two encoders err on the same hard clips, so this interval is narrower than the two apart suggest. Zero
    outside it: the difference is not the choice of test groups. Several answers are encoders pretrained with
    several seeds: their means are compared, and each side's seeds are resampled too, independently of the other
    side's, their spread widened by sqrt(n / (n - 1)) because so few are drawn from themselves (ours). An interval
    over two or three seeds is rough all the same. A single answer says nothing of other seeds.
    Raises ValueError if the clips differ or ``metric`` is not measured here.
    """
    sides = _listed(one), _listed(other)
    _check_same([*sides[0], *sides[1]])
    if metric not in sides[0][0].metrics:
        raise ValueError(f'metric="{metric}" is unknown; there are {", ".join(sides[0][0].metrics)}')
    found = [_resample(side, group, [metric], seed)[metric] for side in sides]
    first, second = (_over_seeds(side.table, seed, place) for place, side in enumerate(found))
    value = float(found[0].values.mean() - found[1].values.mean())
    return Estimate(value, *_interval(first - second, value, metric))


def _interval(resampled: np.ndarray, value: float, metric: str) -> tuple[float, float]:
    """The middle 95 % of the resamples, for rank metrics moved so that their mean is the value.

    A clip drawn twice ranks beside itself, so average precision is higher on most resamples than on the clips
    themselves, the more so the worse the scores; without the shift the value can lie outside its interval (ours).
    """
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    shift = value - np.nanmean(resampled) if metric in RANKS else 0.0
    return float(low + shift), float(high + shift)


def _listed(answers: Answers | Sequence[Answers]) -> list[Answers]:
    found = [answers] if isinstance(answers, Predictions | RealPredictions) else list(answers)
    if not found:
        raise ValueError("there are no predictions to score")
    return found


def _check_same(answers: Sequence[Answers]) -> None:
    """All must be of the same clips, draws and labels, in whatever order."""
    keys = [np.lexsort((p.draw, p.clip)) for p in answers]
    for name in ("clip", "draw", "label"):
        first = getattr(answers[0], name)[keys[0]]
        if not all(np.array_equal(first, getattr(p, name)[k]) for p, k in zip(answers, keys, strict=True)):
            raise ValueError(f"the probes were tested on different {name}s; they cannot be paired")


class _Resampled(NamedTuple):
    """A metric of every seed and draw [seeds, draws]; of every seed, mean over draws, on resamples [seeds, count]."""

    values: np.ndarray
    table: np.ndarray


def _resample(
    seeds: Sequence[Answers], group: np.ndarray | None, metrics: Sequence[str], seed: int
) -> dict[str, _Resampled]:
    names = np.unique(seeds[0].clip if group is None else group[seeds[0].clip])
    draws = [[answers.of_draw(d) for d in np.unique(answers.draw)] for answers in seeds]
    places = [
        [np.searchsorted(names, p.clip if group is None else group[p.clip]) for p in parts] for parts in draws
    ]
    counts = {metric: _resamples(metric, seeds[0]) for metric in metrics}
    tables = {metric: np.zeros((len(seeds), counts[metric])) for metric in metrics}
    done = 0
    for weight in _weights(len(names), max(counts.values()), len(seeds[0].clip), seed):
        for row, (parts, where) in enumerate(zip(draws, places, strict=True)):
            for part, place in zip(parts, where, strict=True):
                drawn = weight[:, place]  # [resamples, clips]
                for metric, table in tables.items():
                    asked = drawn[: max(0, counts[metric] - done)]
                    found = part.measure(metric, asked)
                    table[row, done : done + len(asked)] += found / len(parts)
        done += len(weight)
    return {
        metric: _Resampled(
            np.array([[_once(part, metric) for part in parts] for parts in draws]), tables[metric]
        )
        for metric in metrics
    }


def _once(answers: Answers, metric: str) -> float:
    return float(answers.measure(metric, np.ones((1, len(answers.clip))))[0])


def _resamples(metric: str, answers: Answers) -> int:
    if metric not in RANKS or not isinstance(answers, Predictions):
        return RESAMPLES
    return min(RESAMPLES, max(FEW_RESAMPLES, int(WORK / answers.scores.size)))


def _weights(groups: int, count: int, clips: int, seed: int) -> Iterator[np.ndarray]:
    """How often each group is drawn, in ``count`` draws of as many groups with replacement: chunks of rows."""
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // max(groups, clips))
    for start in range(0, count, chunk):
        size = min(chunk, count - start)
        yield generator.multinomial(groups, np.full(groups, 1 / groups), size=size).astype(np.float64)


def _over_seeds(table: np.ndarray, seed: int, side: int) -> np.ndarray:
    """The mean over resampled seeds: float64 [resamples] from [seeds, resamples]."""
    n, count = table.shape
    mean = table.mean(axis=0)
    if n == 1:
        return mean
    drawn = np.random.default_rng([seed, side]).multinomial(n, np.full(n, 1 / n), size=count).T / n
    return mean + np.sqrt(n / (n - 1)) * ((drawn * table).sum(axis=0) - mean)
