"""Scores with intervals. Test sets are small, so a number without its interval says little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

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
    labels could. Neither contains another pretraining run: see `noise`.
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


@dataclass(frozen=True)
class Resampled:
    """One encoder's metric. values: float64 [label draws], on the test clips.

    resamples: float64 [resamples], its mean over label draws on test groups drawn with replacement. Encoders that
    were tested on the same groups and resampled with the same seed have seen the same groups.
    """

    metric: str
    values: np.ndarray
    resamples: np.ndarray

    @property
    def value(self) -> float:
        """Mean over label draws."""
        return float(self.values.mean())


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
    answers: Answers, group: np.ndarray | None, seed: int = 0, metrics: Sequence[str] | None = None
) -> dict[str, Estimate]:
    """Every metric that is defined on the clips: mean over draws, interval over groups, sd over draws.

    answers: of one encoder. group: [clips of the task] of names; None treats every clip as a group of its own.
    metrics: only these of the answers' own. Metrics of folds are of all folds' clips together; scores of several
    probes are then ranked in one list.
    """
    found = {}
    for metric, made in resample(answers, group, metrics or answers.metrics, seed).items():
        if not np.isfinite(made.values).all():
            continue  # R² of equal values, AUROC of one class
        low, high = interval(made.value, made.resamples, metric, lowest=0.0)
        sd = float(np.std(made.values, ddof=1)) if len(made.values) > 1 else None
        found[metric] = Estimate(made.value, low, high, sd)
    return found


def difference(
    one: Answers, other: Answers, group: np.ndarray | None, metric: str = "macro_recall", seed: int = 0
) -> Estimate:
    """Score of ``one`` minus that of ``other`` on the same clips, with its paired bootstrap interval over groups.

    Two encoders err on the same hard clips, so this interval is narrower than the two apart suggest. Zero
    outside it: the difference is not the choice of test groups. It says nothing of other pretraining seeds, which
    `noise.difference_interval` draws too. group: as of `estimates`.
    Raises ValueError if the clips differ or ``metric`` is not measured here.
    """
    _check_same(one, other)
    first, second = (resample(answers, group, [metric], seed)[metric] for answers in (one, other))
    value = first.value - second.value
    return Estimate(value, *interval(value, first.resamples - second.resamples, metric, lowest=-1.0))


def resample(
    answers: Answers, group: np.ndarray | None, metrics: Sequence[str], seed: int = 0
) -> dict[str, Resampled]:
    """``metrics`` of one encoder's ``answers``, on the clips and on draws of as many groups with replacement.

    There are RESAMPLES draws, of rank metrics of very large test sets fewer. group: as of `estimates`.
    Raises ValueError if one of ``metrics`` is not measured here.
    """
    for metric in metrics:
        if metric not in answers.metrics:
            raise ValueError(f'metric="{metric}" is unknown; there are {", ".join(answers.metrics)}')
    names = np.unique(answers.clip if group is None else group[answers.clip])
    parts = [answers.of_draw(d) for d in np.unique(answers.draw)]
    places = [np.searchsorted(names, p.clip if group is None else group[p.clip]) for p in parts]
    tables = {metric: np.zeros(_resamples(metric, answers)) for metric in metrics}
    done = 0
    for weight in group_draws(len(names), max(map(len, tables.values())), len(answers.clip), seed):
        for part, place in zip(parts, places, strict=True):
            drawn = weight[:, place]  # [resamples, clips]
            for metric, table in tables.items():
                asked = drawn[: max(0, len(table) - done)]
                table[done : done + len(asked)] += part.measure(metric, asked) / len(parts)
        done += len(weight)
    return {
        metric: Resampled(metric, np.array([_once(part, metric) for part in parts]), table)
        for metric, table in tables.items()
    }


def interval(
    value: float, resamples: np.ndarray, metric: str, lowest: float, around: np.ndarray | float = 0.0
) -> tuple[float, float]:
    """The middle 95 % of ``resamples + around``, for rank metrics moved so that the mean of ``resamples`` is the value.

    A clip drawn twice ranks beside itself, so average precision is higher on most resamples than on the clips
    themselves, the more so the worse the scores; without the shift the value can lie outside its interval (ours).
    lowest: 0 of a score, -1 of a difference; the interval of a share lies in [lowest, 1], where the shift and
    ``around`` may lead out of it. R² and the error have no such bounds. around: float64 [resamples], what else moves
    the score, about zero.
    """
    low, high = np.nanquantile(resamples + around, (0.025, 0.975))
    shift = value - np.nanmean(resamples) if metric in RANKS else 0.0
    low, high = float(low + shift), float(high + shift)
    return (low, high) if metric in ERRORS else (max(low, lowest), min(high, 1.0))


def _check_same(one: Answers, other: Answers) -> None:
    """Both must be of the same clips, draws and labels, in whatever order."""
    mine, theirs = (np.lexsort((p.draw, p.clip)) for p in (one, other))
    for name in ("clip", "draw", "label"):
        if not np.array_equal(getattr(one, name)[mine], getattr(other, name)[theirs]):
            raise ValueError(f"the probes were tested on different {name}s; they cannot be paired")


def _once(answers: Answers, metric: str) -> float:
    return float(answers.measure(metric, np.ones((1, len(answers.clip))))[0])


def _resamples(metric: str, answers: Answers) -> int:
    if metric not in RANKS or not isinstance(answers, Predictions):
        return RESAMPLES
    return min(RESAMPLES, max(FEW_RESAMPLES, int(WORK / answers.scores.size)))


def group_draws(groups: int, count: int, clips: int, seed: int) -> Iterator[np.ndarray]:
    """How often each group is drawn, in ``count`` draws of as many groups with replacement: float64 [some, groups].

    Chunk by chunk, so that neither [count, groups] nor [count, clips] is ever held.
    """
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK // max(groups, clips))
    for start in range(0, count, chunk):
        size = min(chunk, count - start)
        yield generator.multinomial(groups, np.full(groups, 1 / groups), size=size).astype(np.float64)
