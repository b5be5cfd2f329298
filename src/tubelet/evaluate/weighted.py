"""Metrics of weighted clips, for many weightings at once: what a bootstrap over groups evaluates.

A weight of 2 counts a clip as if it were there twice, 0 as if it were not there. Every function takes ``weight``
float64 [r, m], r weightings of m clips, and returns float64 [r]; nan where a weighting leaves nothing to measure.
With weights of 1 each equals scikit-learn's metric of the same name.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# Of each clip of a class (rows) in each weighting (columns), from sums of weights: clips of the class, and all, that
# are ranked as high or higher; clips of other classes ranked lower; all clips of other classes.
_Quality = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def top1(weight: np.ndarray, label: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Share of clips whose class has the highest score (of equal scores, the first class)."""
    return _share(weight, scores.argmax(axis=1) == label)


def top5(weight: np.ndarray, label: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Share of clips whose class is among the five highest scores.

    Of equal scores the first class counts as higher, as in `top1`; a class with score 0 was not named at all, so
    neighbours that vote for two classes are no reason to believe in three others.
    """
    mine = scores[np.arange(len(label)), label][:, None]
    before = np.arange(scores.shape[1]) < label[:, None]
    rank = ((scores > mine) | ((scores == mine) & before)).sum(axis=1)
    return _share(weight, (rank < 5) & (mine[:, 0] > 0))


def macro_recall(weight: np.ndarray, label: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Mean over classes of the share of clips that is right (mean class accuracy), over the classes that occur."""
    truth = _one_hot(label, scores.shape[1])
    right = truth * (scores.argmax(axis=1) == label)[:, None]
    seen = weight @ truth  # [r, classes]
    return _class_mean(weight @ right, seen)


def f1_macro(weight: np.ndarray, label: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Mean over classes of F1, the harmonic mean of precision and recall, over classes that occur or are said."""
    classes = scores.shape[1]
    truth, said = _one_hot(label, classes), _one_hot(scores.argmax(axis=1), classes)
    return _class_mean(2 * (weight @ (truth * said)), weight @ truth + weight @ said)


def mean_average_precision(weight: np.ndarray, label: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Mean over classes of average precision (no interpolation), over the classes that occur."""
    return _rank_mean(weight, label, scores, _precision)


def auroc(weight: np.ndarray, label: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Mean over classes of the area under the ROC curve, one class against the rest; equal scores count half.

    Over the classes that occur; nan if a single one does.
    """
    return _rank_mean(weight, label, scores, _beaten)


def r2(weight: np.ndarray, value: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """1 minus squared error over squared distance from the mean; nan where all values are equal."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = weight @ value / weight.sum(axis=1)
        # about the mean over all clips first, or large values would cancel
        middle = value.mean()
        around = weight @ (value - middle) ** 2 - weight.sum(axis=1) * (mean - middle) ** 2
        # a spread that is only rounding is none
        flat = around <= 1e-12 * (weight @ (value**2))
        return np.where(flat, np.nan, 1 - weight @ (value - predicted) ** 2 / around)


def mae(weight: np.ndarray, value: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Mean absolute error, in the unit of the values."""
    with np.errstate(invalid="ignore"):
        return weight @ np.abs(value - predicted) / weight.sum(axis=1)


def _share(weight: np.ndarray, right: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return weight @ right / weight.sum(axis=1)


def _one_hot(label: np.ndarray, classes: int) -> np.ndarray:
    return (label[:, None] == np.arange(classes)).astype(np.float64)


def _class_mean(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Mean over the classes (columns) of ``part / whole``, where ``whole`` is not zero."""
    there = whole > 0
    shares = np.divide(part, whole, out=np.zeros_like(part), where=there)
    with np.errstate(invalid="ignore"):
        return shares.sum(axis=1) / there.sum(axis=1)


def _rank_mean(weight: np.ndarray, label: np.ndarray, scores: np.ndarray, quality: _Quality) -> np.ndarray:
    """Mean over classes of the weighted mean of ``quality`` over the class's clips."""
    columns = np.ascontiguousarray(weight.T)  # [m, r]: sums down a ranking are then sums of whole rows
    total, count = np.zeros(len(weight)), np.zeros(len(weight))
    for c in np.unique(label):
        order = np.argsort(-scores[:, c], kind="stable")
        worse = -scores[order, c]  # ascending
        own = np.flatnonzero(label[order] == c)
        mine = columns[order[own]]  # [n of the class, r]
        # Equal scores are one threshold: what a clip is compared with begins before and ends after all of them.
        ends = [np.searchsorted(worse, worse[own], side) for side in ("left", "right")]
        seen = _running(columns[order])
        found = _running(mine)
        all_before, all_after = (seen[end] for end in ends)
        own_before, own_after = (found[np.searchsorted(own, end)] for end in ends)
        others = seen[-1] - found[-1]
        rest = others - (all_before - own_before + all_after - own_after) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            value = (mine * quality(own_after, all_after, rest, others)).sum(axis=0) / found[-1]
        there = np.isfinite(value)
        total += np.where(there, value, 0)
        count += there
    with np.errstate(invalid="ignore"):
        return total / count


def _running(rows: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, … rows."""
    sums = np.zeros((len(rows) + 1, rows.shape[1]))
    np.cumsum(rows, axis=0, out=sums[1:])
    return sums


def _precision(own: np.ndarray, seen: np.ndarray, rest: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Of what is ranked as high as a clip, the share that is of its class."""
    return np.divide(own, seen, out=np.zeros_like(own), where=seen > 0)


def _beaten(own: np.ndarray, seen: np.ndarray, rest: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The share of the clips of other classes that is ranked lower than a clip; equal scores count half."""
    return rest / others
