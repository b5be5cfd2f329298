"""What can be read off each layer of one encoder: a linear probe, retrieval, and gains from layer to layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tubelet.evaluate.linear import LinearProbe
from tubelet.evaluate.metrics import Estimate, Predictions, difference, estimates, join
from tubelet.evaluate.noise import Interval
from tubelet.evaluate.retrieval import Queries, Retrieval, ask, map_difference, retrieval
from tubelet.evaluate.tasks import Fold, Task
from tubelet.inside.footage import Asked
from tubelet.inside.records import Records

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
    if constant(features):
        return None
    answers = linear(features, asked.task, asked.folds)
    tested = asked.tested
    label = asked.task.label[tested]
    if not _can_be_found(label):
        return Decoded(answers, None, None)
    group = None if asked.task.group is None else asked.task.group[tested]
    rows = features[tested]
    return Decoded(answers, ask(rows, label), retrieval(rows, label, resampled=group, seed=seed))


def linear(features: np.ndarray, task: Task, folds: Sequence[Fold]) -> Predictions:
    """What the probe of `decode` says of the test clips of all folds."""
    parts = []
    for fold in folds:
        probe = LinearProbe(features[fold.train], task.label[fold.train], len(task.classes)).fit(C)
        scores = probe.scores(features[fold.test])
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
        scores = estimates(one.answers, task.group, seed)
        records.add(name, layer, "linear", scores["top1"])
        records.add(name, layer, "macro_recall", scores["macro_recall"])
        if one.found is None:
            records.add(name, layer, "map", None, undefined="no test clip has another of its class to find")
            continue
        for metric, value in one.found.values.items():
            if not metric.startswith("recall"):
                records.add(name, layer, metric, Estimate(value, *one.found.intervals[metric]))


def gains(
    found: Mapping[int, Decoded | None], start: int, stop: int, asked: Asked, seed: int
) -> tuple[Interval | None, Interval | None]:
    """Layer ``stop`` minus layer ``start``: top-1 of the probes and mAP, paired; None where undefined."""
    one, other = found[stop], found[start]
    if one is None or other is None or asked.task is None:
        return None, None
    top1 = difference(one.answers, other.answers, asked.task.group, "top1", seed)
    gained = Interval(top1.value, top1.low, top1.high)
    if one.queries is None or other.queries is None:
        return gained, None
    group = None if asked.task.group is None else asked.task.group[asked.tested]
    return gained, map_difference(one.queries, other.queries, group, seed)


def _can_be_found(label: np.ndarray) -> bool:
    return bool((np.bincount(label) > 1).any())
