"""Logistic regression on frozen features: how much of the label can be read off linearly."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from tubelet.evaluate.metrics import macro_recall
from tubelet.evaluate.tasks import inner_folds

CS = (
    1e-5,
    1e-4,
    1e-3,
    1e-2,
    1e-1,
    1.0,
    10.0,
)  # inverse strengths of the L2 penalty, on standardised features
DEFAULT_C = 1e-2  # where there are too few clips to choose
FOLDS = 3  # of the training clips, to choose C on
SMALL = (
    2**24
)  # numbers in a table; fits on smaller ones take one thread, as several would mostly wait for each other


class LinearProbe:
    """Standardised features, multinomial logistic regression with an L2 penalty.

    With more features than clips both are turned into the clips' own principal axes first: the penalty does not
    see a rotation, so this is the same probe, at the cost of n axes instead of D.
    """

    def __init__(self, train: np.ndarray, label: np.ndarray, classes: int):
        self.scaler = StandardScaler()
        scaled = np.asarray(self.scaler.fit_transform(train.astype(np.float64)))
        n, d = scaled.shape
        self.axes = None if d <= n else np.linalg.svd(scaled, full_matrices=False)[2].T  # [D, n]
        self.train, self.label, self.classes = self._turn(scaled), label, classes
        self.model = LogisticRegression(max_iter=1000, warm_start=True)

    def fit(self, c: float) -> LinearProbe:
        """Fits with penalty 1/c, from the last fit's weights."""
        self.model.C = c
        with warnings.catch_warnings(), threadpool_limits(1 if self.train.size < SMALL else None):
            # Weak penalties on separable clips need not converge; what the last step predicts is what is scored.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model.fit(self.train, self.label)
        return self

    def scores(self, test: np.ndarray) -> np.ndarray:
        """Class probabilities float64 [m, classes]; 0 for a class without training clips."""
        found = self.model.predict_proba(
            self._turn(np.asarray(self.scaler.transform(test.astype(np.float64))))
        )
        full = np.zeros((len(test), self.classes))
        full[:, self.model.classes_] = found
        return full

    def _turn(self, scaled: np.ndarray) -> np.ndarray:
        return scaled if self.axes is None else scaled @ self.axes


def choose_c(
    train: np.ndarray, label: np.ndarray, group: np.ndarray | None, seed: int, cs: Sequence[float] = CS
) -> tuple[float, str]:
    """The C with the best mean macro recall over folds of the training clips, and a note (see `inner_folds`).

    Ties go to the lower log loss: on few clips many penalties make the same mistakes.
    """
    folds, note = inner_folds(label, group, FOLDS, seed)
    if not folds:
        return DEFAULT_C, note
    classes = int(label.max()) + 1
    quality = np.zeros((len(cs), 2))
    for fold in folds:
        probe = LinearProbe(train[fold.train], label[fold.train], classes)
        asked, truth = train[fold.test], label[fold.test]
        for i, c in enumerate(sorted(cs)):
            scores = probe.fit(c).scores(asked)
            surprise = -np.log(scores[np.arange(len(truth)), truth].clip(1e-12)).mean()
            quality[i] += macro_recall(truth, scores.argmax(1) == truth), -surprise
    best = max(range(len(cs)), key=lambda i: tuple(quality[i].round(9)))
    return sorted(cs)[best], note


def linear_scores(
    train: np.ndarray, label: np.ndarray, test: np.ndarray, classes: int, c: float
) -> np.ndarray:
    """Class probabilities float64 [m, classes] of test features [m, D], learned from train features [n, D]."""
    return LinearProbe(train, label, classes).fit(c).scores(test)
