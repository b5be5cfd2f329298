"""A probe on features that are already there: folds, label draws, fitting, scores with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from tubelet.errors import UserError
from tubelet.evaluate.attentive import AttentiveSettings, Tokens, attentive_scores
from tubelet.evaluate.knn import KS, knn_scores
from tubelet.evaluate.linear import choose_c, linear_scores
from tubelet.evaluate.metrics import FEW_GROUPS, Estimate, Predictions, estimates, join
from tubelet.evaluate.tasks import Task, few_labels, folds

Kind = Literal["linear", "knn", "attentive"]
KINDS: tuple[Kind, ...] = ("linear", "knn", "attentive")


@dataclass(frozen=True)
class Scored:
    """What a probe reached.

    metrics: "top1", "macro_recall"; for knn one of each per k, "top1@k5". predictions: by the same suffix ("" or
    "@k5"). chosen: the knobs of every fit. train, test: clips per fit (means over folds), and in all. notes: what
    a reader must know.
    """

    metrics: dict[str, Estimate]
    predictions: dict[str, Predictions]
    chosen: list[dict[str, Any]]
    train: int
    test: int
    notes: tuple[str, ...]


def score(
    features: np.ndarray | Tokens,
    task: Task,
    kind: Kind,
    *,
    split_folds: int = 0,
    per_class: int | None = None,
    draws: int = 5,
    ks: Sequence[int] = KS,
    settings: AttentiveSettings | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Scored:
    """Fits and tests a probe on every fold (see `tasks.folds`) and label draw.

    features: [clips of the task, D], or for "attentive" a function from clips of the task to their tokens.
    per_class: learn from that many labels per class only, ``draws`` times (see `tasks.few_labels`); None: from
    all, once. Everything random follows from ``seed``.
    Raises UserError for an unknown kind, ``per_class`` or ``draws`` below 1, or folds that cannot be cut.
    """
    if kind not in KINDS:
        raise UserError(f'kind="{kind}" is unknown; use "linear", "knn" or "attentive"')
    if (per_class is not None and per_class < 1) or draws < 1:
        raise UserError(f"per_class={per_class} and draws={draws} must be at least 1")
    cut = folds(task, split_folds, seed)
    classes = len(task.classes)
    found: dict[str, list[Predictions]] = {}
    chosen: list[dict[str, Any]] = []
    notes = list(task.notes)
    sizes = []
    for draw in range(1 if per_class is None else draws):
        for number, fold in enumerate(cut):
            train = fold.train
            if per_class is not None:
                train = few_labels(task.label, train, per_class, draw, seed)
            label, group = task.label[train], None if task.group is None else task.group[train]
            sizes.append(len(train))
            truth = task.label[fold.test]
            choice: dict[str, Any] = {"draw": draw, "fold": number}
            if kind == "attentive":
                assert callable(features)
                result = attentive_scores(
                    features, train, label, fold.test, classes, group, settings, seed, device
                )
                scores, note = {"": result.scores}, result.note
                choice |= {"lr": result.lr, "wd": result.wd}
            else:
                assert isinstance(features, np.ndarray)
                x, asked = features[train], features[fold.test]
                if kind == "linear":
                    c, note = choose_c(x, label, group, seed)
                    scores = {"": linear_scores(x, label, asked, classes, c)}
                    choice["c"] = c
                else:
                    scores, note = {f"@k{k}": knn_scores(x, label, asked, classes, k) for k in ks}, ""
            chosen.append(choice)
            if note and note not in notes:
                notes.append(note)
            for suffix, values in scores.items():
                draws_of = np.full(len(truth), draw)
                found.setdefault(suffix, []).append(Predictions(fold.test, draws_of, truth, values))
    predictions = {suffix: join(parts) for suffix, parts in found.items()}
    metrics = {
        name + suffix: value
        for suffix, made in predictions.items()
        for name, value in estimates(made, task.group, seed).items()
    }
    tested = np.unique(np.concatenate([fold.test for fold in cut]))
    notes += _remarks(task, tested, len(cut), min(sizes), kind, per_class)
    return Scored(metrics, predictions, chosen, round(float(np.mean(sizes))), len(tested), tuple(notes))


def _remarks(
    task: Task, tested: np.ndarray, cuts: int, least: int, kind: str, per_class: int | None
) -> list[str]:
    notes = []
    if cuts > 1:
        how = "group-disjoint" if task.group is not None else "stratified"
        notes.append(f"{cuts} {how} folds; every clip is tested once, by a probe that did not see it")
    if task.group is None:
        notes.append(
            "no group column: clips of one source may lie in train and test, and intervals are per clip"
        )
    elif (groups := len(set(task.group[tested]))) < FEW_GROUPS:
        notes.append(f"the test clips come from {groups} groups: take the intervals as rough")
    if absent := sorted(set(range(len(task.classes))) - set(task.label[tested])):
        names = ", ".join(task.classes[c] for c in absent)
        notes.append(f"no test clip has the class {names}; macro recall leaves it out")
    if kind == "knn" and least < max(KS):
        notes.append(f"{least} training clips: where k is larger, all of them vote")
    if per_class is not None and least < per_class * len(task.classes):
        notes.append(f"some classes have fewer than {per_class} training clips and gave all they have")
    return notes
