"""Scores with intervals. Test sets are small, so a number without its interval says little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
FEW_GROUPS = 10  # below this, an interval over groups is itself a guess


@dataclass(frozen=True)
class Estimate:
    """A score in [0, 1], its 95 % bootstrap interval over groups, and its sd over label draws (None for one).

    The interval says how far other test groups could move the score of these trained probes; the sd says how
    far other training labels could. Neither contains another pretraining run.
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


def join(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of several folds or draws."""
    return Predictions(
        np.concatenate([p.clip for p in parts]),
        np.concatenate([p.draw for p in parts]),
        np.concatenate([p.label for p in parts]),
        np.concatenate([p.scores for p in parts]),
    )


def top1(label: np.ndarray, correct: np.ndarray) -> float:
    """Share of clips that are right."""
    return float(correct.mean())


def macro_recall(label: np.ndarray, correct: np.ndarray) -> float:
    """Mean over classes of the share that is right (mean class accuracy), over the classes that occur."""
    return float(np.mean([correct[label == c].mean() for c in np.unique(label)]))


METRICS = {"top1": top1, "macro_recall": macro_recall}


def estimates(predictions: Predictions, group: np.ndarray | None, seed: int = 0) -> dict[str, Estimate]:
    """top1 and macro_recall: mean over draws, interval over groups, sd over draws.

    group: [clips of the task] of names; None treats every clip as a group of its own.
    """
    names = predictions.clip if group is None else group[predictions.clip]
    right, seen = _tally(names, predictions.label, predictions.correct)
    resampled = _resample(right, seen, seed)
    found = {}
    for metric, function in METRICS.items():
        values = [
            function(predictions.label[mine], predictions.correct[mine])
            for mine in (predictions.draw == d for d in np.unique(predictions.draw))
        ]
        low, high = np.quantile(resampled[metric], (0.025, 0.975))
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        found[metric] = Estimate(float(np.mean(values)), float(low), float(high), sd)
    return found


def difference(
    one: Predictions,
    other: Predictions,
    group: np.ndarray | None,
    metric: str = "macro_recall",
    seed: int = 0,
) -> Estimate:
    """Score of ``one`` minus that of ``other`` on the same clips, with its paired bootstrap interval over groups.

    Two encoders err on the same hard clips, so this interval is narrower than the two apart suggest. Zero
    outside it: the difference is not the choice of test groups. Raises ValueError if the clips differ.
    """
    if sorted(zip(one.clip, one.draw, strict=True)) != sorted(zip(other.clip, other.draw, strict=True)):
        raise ValueError("the two probes were tested on different clips or draws; they cannot be paired")
    tallies = [_tally(p.clip if group is None else group[p.clip], p.label, p.correct) for p in (one, other)]
    first, second = (_resample(right, seen, seed)[metric] for right, seen in tallies)
    function = METRICS[metric]
    value = function(one.label, one.correct) - function(other.label, other.correct)
    low, high = np.quantile(first - second, (0.025, 0.975))
    return Estimate(value, float(low), float(high))


def _tally(names: np.ndarray, label: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right answers and clips of each group and class, float64 [groups, classes] each; groups sorted by name."""
    _, group = np.unique(names, return_inverse=True)
    right = np.zeros((group.max() + 1, label.max() + 1))
    seen = np.zeros_like(right)
    np.add.at(right, (group, label), correct)
    np.add.at(seen, (group, label), 1)
    return right, seen


def _resample(right: np.ndarray, seen: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Each metric on RESAMPLES draws of as many groups with replacement."""
    n = len(right)
    weight = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    hits, total = weight @ right, weight @ seen  # [RESAMPLES, classes]
    with np.errstate(invalid="ignore"):
        recall = hits / total
    return {"top1": hits.sum(1) / total.sum(1), "macro_recall": np.nanmean(recall, axis=1)}
