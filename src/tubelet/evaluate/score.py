"""A probe on features that are already there: folds, label draws, fitting, scores with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch

from tubelet.errors import UserError
from tubelet.evaluate.amount import Amount
from tubelet.evaluate.attentive import AttentiveSettings, Tokens, attentive_scores
from tubelet.evaluate.finetune import FinetuneResult
from tubelet.evaluate.knn import KS, knn_scores
from tubelet.evaluate.linear import choose_c, linear_scores
from tubelet.evaluate.metrics import (
    FEW_GROUPS,
    Answers,
    Estimate,
    Predictions,
    RealPredictions,
    estimates,
    join,
)
from tubelet.evaluate.ridge import choose_alpha, ridge_values
from tubelet.evaluate.tasks import Fold, Task, few_labels, folds
from tubelet.evaluate.values import RealTask, value_folds
from tubelet.nn.heads import AttentiveClassifier

Kind = Literal["linear", "knn", "attentive", "ridge", "finetune"]
KINDS: tuple[Kind, ...] = ("linear", "knn", "attentive", "ridge", "finetune")
# clips to learn from, their labels, clips to score, the groups of the first -> what fine-tuning reached
Tuned = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None], FinetuneResult]


@dataclass(frozen=True)
class Scored:
    """What a probe reached.

    metrics: "top1", "top5" (of more than five classes), "macro_recall", "f1_macro", "map", "auroc"; for ridge "r2"
    and "mae"; for knn one of each per k, "top1@k5". predictions: by the same suffix ("" or "@k5"). chosen: the
    knobs of every fit. train, test: clips per fit (means over folds), and in all. notes: what a reader must know.
    head: the attentive head that gave the predictions, if it was one head that gave them all.
    """

    metrics: dict[str, Estimate]
    predictions: dict[str, Answers]
    chosen: list[dict[str, Any]]
    train: int
    test: int
    notes: tuple[str, ...]
    head: AttentiveClassifier | None = None


def score(
    features: np.ndarray | Tokens | Tuned,
    task: Task | RealTask,
    kind: Kind,
    *,
    split_folds: int = 0,
    labels: Amount | None = None,
    per_class: int | None = None,
    draws: int = 5,
    ks: Sequence[int] = KS,
    settings: AttentiveSettings | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> Scored:
    """Fits and tests a probe on every fold (see `tasks.folds`, `values.value_folds`) and label draw.

    features: [clips of the task, D]; for "attentive" a function from clips of the task to their tokens; for "finetune"
    one that fine-tunes on clips of the task (`Tuned`).
    task: a `RealTask` for "ridge", a `Task` for all others. labels: learn from that many labels per class, or from
    that share of each class's, ``draws`` times (see `tasks.few_labels`; for ridge: of all training clips); None
    or as many as there are: from all, once. per_class: the same as a plain number. progress: shows a bar while
    heads train. Everything random follows from ``seed``.
    Raises UserError for an unknown kind, ``per_class`` or ``draws`` below 1, features that are not finite, or
    folds that cannot be cut.
    """
    if kind not in KINDS:
        raise UserError(f'kind="{kind}" is unknown; use {", ".join(KINDS[:-1])} or {KINDS[-1]}')
    if (per_class is not None and per_class < 1) or draws < 1:
        raise UserError(f"per_class={per_class} and draws={draws} must be at least 1")
    if per_class is not None:
        assert labels is None, "two amounts"
        labels = Amount(count=per_class)
    if isinstance(features, np.ndarray):
        _check_finite(features)
    cut = (
        value_folds(task, split_folds, seed) if isinstance(task, RealTask) else folds(task, split_folds, seed)
    )
    stratum = np.zeros(len(task), np.int64) if isinstance(task, RealTask) else task.label
    found: dict[str, list[Answers]] = {}
    chosen: list[dict[str, Any]] = []
    notes = list(task.notes)
    head: AttentiveClassifier | None = None
    sizes, least = [], []
    choice = labels is not None and any(
        len(few_labels(stratum, fold.train, labels, 0, seed)) < len(fold.train) for fold in cut
    )
    for draw in range(draws if choice else 1):
        for number, fold in enumerate(cut):
            train = fold.train if labels is None else few_labels(stratum, fold.train, labels, draw, seed)
            sizes.append(len(train))
            least.append(int(np.bincount(stratum[train])[np.unique(stratum[fold.train])].min()))
            fit = _fit(
                features, task, kind, Fold(train, fold.test), draw, ks, settings, seed, device, progress
            )
            chosen.append({"draw": draw, "fold": number, **fit.choice})
            head = fit.head
            if fit.note and fit.note not in notes:
                notes.append(fit.note)
            for suffix, answers in fit.answers.items():
                found.setdefault(suffix, []).append(answers)
    predictions = {suffix: join(parts) for suffix, parts in found.items()}
    metrics = {
        name + suffix: value
        for suffix, made in predictions.items()
        for name, value in estimates(made, task.group, seed).items()
    }
    tested = np.unique(np.concatenate([fold.test for fold in cut]))
    notes += _remarks(task, tested, len(cut))
    if isinstance(task, Task):
        notes += _class_remarks(task, tested, kind, min(sizes), min(least), labels)
    only = head if len(chosen) == 1 else None
    return Scored(metrics, predictions, chosen, round(float(np.mean(sizes))), len(tested), tuple(notes), only)


class _Fit(NamedTuple):
    """One probe: what it says of the test clips, by suffix; the knobs chosen for it; what to tell; its head."""

    answers: dict[str, Answers]
    choice: dict[str, Any]
    note: str = ""
    head: AttentiveClassifier | None = None


def _fit(
    features: np.ndarray | Tokens | Tuned,
    task: Task | RealTask,
    kind: Kind,
    fold: Fold,
    draw: int,
    ks: Sequence[int],
    settings: AttentiveSettings | None,
    seed: int,
    device: torch.device | str,
    progress: bool,
) -> _Fit:
    train, test = fold.train, fold.test
    group = None if task.group is None else task.group[train]
    draws = np.full(len(test), draw)
    if isinstance(task, RealTask):
        assert kind == "ridge" and isinstance(features, np.ndarray), "numbers are for ridge"
        x, value = features[train], task.value[train]
        alpha, note = choose_alpha(x, value, group, seed)
        said = ridge_values(x, value, features[test], alpha)
        return _Fit({"": RealPredictions(test, draws, task.value[test], said)}, {"alpha": alpha}, note)
    assert kind != "ridge", "ridge is for numbers"
    classes, label = len(task.classes), task.label[train]
    choice: dict[str, Any] = {}
    head: AttentiveClassifier | None = None
    if kind == "attentive":
        assert callable(features)
        seen = settings is not None and settings.best_on == "test"  # else no test label leaves this function
        result = attentive_scores(
            cast(Tokens, features),
            train,
            label,
            test,
            classes,
            group,
            settings,
            seed,
            device,
            test_label=task.label[test] if seen else None,
            progress=progress,
        )
        scores, note, head = {"": result.scores}, result.note, result.head
        choice = {"lr": result.lr, "wd": result.wd, "heads": [asdict(head) for head in result.heads]}
    elif kind == "finetune":
        assert callable(features)
        tuned = cast(Tuned, features)(train, label, test, group)
        scores, note = {"": tuned.scores}, tuned.note
        rates, epochs = ([asdict(one) for one in many] for many in (tuned.tried, tuned.history))
        choice = {"lr": tuned.lr, "rates": rates, "epochs": epochs}
    else:
        assert isinstance(features, np.ndarray)
        x, asked = features[train], features[test]
        if kind == "linear":
            c, note = choose_c(x, label, group, seed)
            scores = {"": linear_scores(x, label, asked, classes, c)}
            choice = {"c": c}
        else:
            scores, note = {f"@k{k}": knn_scores(x, label, asked, classes, k) for k in ks}, ""
    answers: dict[str, Answers] = {
        suffix: Predictions(test, draws, task.label[test], values) for suffix, values in scores.items()
    }
    return _Fit(answers, choice, note, head)


def _check_finite(features: np.ndarray) -> None:
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(broken):
        raise UserError(
            f"the features of {len(broken)} of {len(features)} clips are not finite (the first: clip {broken[0]}); "
            "no probe can learn from them; the encoder's weights or its precision are broken"
        )


def _remarks(task: Task | RealTask, tested: np.ndarray, cuts: int) -> list[str]:
    notes = []
    if cuts > 1:
        plain = "random" if isinstance(task, RealTask) else "stratified"
        how = "group-disjoint" if task.group is not None else plain
        notes.append(f"{cuts} {how} folds; every clip is tested once, by a probe that did not see it")
    if task.group is None:
        notes.append(
            "no group column: clips of one source may lie in train and test, and intervals are per clip"
        )
    elif (groups := len(set(task.group[tested]))) < FEW_GROUPS:
        notes.append(f"the test clips come from {groups} groups: take the intervals as rough")
    return notes


def _class_remarks(
    task: Task, tested: np.ndarray, kind: str, least: int, per_class: int, labels: Amount | None
) -> list[str]:
    """least: training clips of the smallest fit; per_class: of its rarest class."""
    notes = []
    if absent := sorted(set(range(len(task.classes))) - set(task.label[tested])):
        names = ", ".join(task.classes[c] for c in absent)
        notes.append(f"no test clip has the class {names}; macro recall, mAP and AUROC leave it out")
    if kind == "knn" and least < max(KS):
        notes.append(f"{least} training clips: where k is larger, all of them vote")
    if labels is not None and labels.count is not None and per_class < labels.count:
        notes.append(f"some classes have fewer than {labels.count} training clips and gave all they have")
    return notes
