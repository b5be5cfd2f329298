"""What can be read off each layer of one encoder: a linear probe, retrieval, and gains from layer to layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest  # scikit-learn, which we depend on, depends on scipy

from tubelet.evaluate.linear import LinearProbe
from tubelet.evaluate.metrics import Estimate, Predictions, difference, estimates, join
from tubelet.evaluate.noise import Interval
from tubelet.evaluate.retrieval import Queries, Retrieval, ask, map_difference, summary
from tubelet.evaluate.tasks import Fold, Task
from tubelet.inside.footage import Asked
from tubelet.inside.records import Records, interval

C = 1.0  # scikit-learn's default, which the paper's probe leaves as it is
CONSTANT = "the features are the same for all clips"
PEEK = 1024  # rows that tell whether a table of any length is constant


@dataclass(frozen=True)
class Decoded:
    """What a linear probe said of the test clips, and what each clip found; of one layer."""

    answers: Predictions
    queries: Queries | None
    found: Retrieval | None


def constant(features: np.ndarray) -> bool:
    """Whether rows [n, D] are all the same, but for rounding."""
    scale = np.abs(features).max(initial=0.0)
    return bool((np.ptp(features, axis=0) <= 1e-6 * scale).all())


def decode(features: np.ndarray, asked: Asked, seed: int = 0) -> Decoded | None:
    """Probe and retrieval on features [n, D] of one layer; None if they are constant, and so both undefined.

    Standardised features, logistic regression with scikit-learn's defaults (L2, C = 1, at most 1000 iterations), fitted
    and tested on every fold; retrieval by cosine within the test clips. Source: BWSSL (arXiv 2601.09040), rows 003 and
    007 of its evaluation.
    """
    assert asked.task is not None
    if (answers := decode_linear(features, asked)) is None:
        return None
    label = asked.task.label[asked.tested]
    if not (np.bincount(label) > 1).any():
        return Decoded(answers, None, None)
    queries = ask(features[asked.tested], label)
    return Decoded(answers, queries, summary(queries, asked.clusters, seed))


def decode_linear(features: np.ndarray, asked: Asked) -> Predictions | None:
    """`linear` on features [n, D] of one layer; None if they are constant."""
    assert asked.task is not None
    return None if constant(features) else linear(features, asked.task, asked.folds)


def linear(features: np.ndarray, task: Task, folds: Sequence[Fold]) -> Predictions:
    """What the probe of `decode` says of the test clips of all folds.

    Only which class it names is kept, as scores of one and zero in a byte each: there is a table for every layer.
    """
    parts = []
    for fold in folds:
        probe = LinearProbe(features[fold.train], task.label[fold.train], len(task.classes)).fit(C)
        named = probe.scores(features[fold.test]).argmax(axis=1)
        scores = np.eye(len(task.classes), dtype=np.int8)[named]
        parts.append(
            Predictions(fold.test, np.zeros(len(fold.test), np.int64), task.label[fold.test], scores)
        )
    answers = join(parts)
    assert isinstance(answers, Predictions)
    return answers


def record(found: Mapping[int, Decoded | None], asked: Asked, name: str, records: Records, seed: int) -> None:
    """Every number of `decode` into ``records``."""
    task = asked.task
    assert task is not None
    for layer, one in found.items():
        if one is None:
            for metric in ("linear", "macro_recall", "map", "hit@1", "hit@5", "hit@10"):
                records.add(name, layer, metric, None, undefined=CONSTANT)
            continue
        scores = estimates(one.answers, task.group, seed, ("top1", "macro_recall"))
        records.add(name, layer, "linear", scores["top1"])
        records.add(name, layer, "macro_recall", scores["macro_recall"])
        if one.found is None:
            records.add(name, layer, "map", None, undefined="no test clip has another of its class to find")
            continue
        for metric, value in one.found.values.items():
            if not metric.startswith("recall"):
                records.add(name, layer, metric, Estimate(value, *one.found.intervals[metric]))


def gain(
    one: Decoded | None, other: Decoded | None, asked: Asked, seed: int
) -> tuple[Interval, Interval] | None:
    """``one`` minus ``other``: top-1 of the probes and mAP, with paired 95 % intervals; None where undefined.

    A bootstrap of few clips can promise too much. So the interval of top-1 contains zero unless an exact sign test of
    the clips that only one of the two gets right rejects it at 5 % too, and reaches at least 3 / n to both sides (n
    test clips: what never happened in n may still happen 3 times in n; both ours).
    """
    if one is None or other is None or asked.task is None or one.queries is None or other.queries is None:
        return None
    found = difference(one.answers, other.answers, asked.task.group, "top1", seed)
    right, wrong = one.answers.correct, other.answers.correct
    better, worse = int((right & ~wrong).sum()), int((wrong & ~right).sum())
    top1 = cautious(Interval(found.value, found.low, found.high), better, worse, len(right))
    return top1, map_difference(one.queries, other.queries, asked.clusters, seed)


def cautious(found: Interval, better: int, worse: int, clips: int) -> Interval:
    """An interval of a difference of accuracies as wide as `gain` says."""
    low, high = min(found.low, found.value - 3 / clips), max(found.high, found.value + 3 / clips)
    if better + worse and binomtest(better, better + worse).pvalue >= 0.05:
        low, high = min(low, 0.0), max(high, 0.0)
    return Interval(found.value, low, high)


def record_gain(found: tuple[Interval, Interval] | None) -> dict[str, Any]:
    """A gain as analysis.json has it."""
    top1, found_map = found or (None, None)
    return {"gain_linear": interval(top1), "gain_map": interval(found_map)}
