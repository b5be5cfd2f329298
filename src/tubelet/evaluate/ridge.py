"""Ridge regression on frozen features: how much of a number can be read off linearly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.preprocessing import StandardScaler

from tubelet.evaluate.values import inner_value_folds

ALPHAS = tuple(float(10.0**k) for k in range(-2, 7))  # strengths of the L2 penalty, on standardised features
DEFAULT_ALPHA = 100.0  # where there are too few clips to choose
FOLDS = 5  # of the training clips, to choose alpha on


class RidgeProbe:
    """Standardised features, least squares with an L2 penalty on the slopes and none on the mean.

    One singular value decomposition answers every penalty: minimise |y - mean - Xw|² + alpha |w|².
    """

    def __init__(self, train: np.ndarray, value: np.ndarray):
        self.scaler = StandardScaler()
        scaled = np.asarray(self.scaler.fit_transform(train.astype(np.float64)))
        self.mean = float(value.mean())
        left, self.sizes, self.axes = np.linalg.svd(scaled, full_matrices=False)  # [n, r], [r], [r, D]
        self.answer = left.T @ (value - self.mean)

    def predict(self, test: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
        """float64 [alphas, m]: what is said of test features [m, D] under each penalty (above 0)."""
        turned = np.asarray(self.scaler.transform(test.astype(np.float64))) @ self.axes.T  # [m, r]
        slopes = [self.sizes * self.answer / (self.sizes**2 + alpha) for alpha in alphas]
        return np.stack(slopes) @ turned.T + self.mean


def choose_alpha(
    train: np.ndarray,
    value: np.ndarray,
    group: np.ndarray | None,
    seed: int,
    alphas: Sequence[float] = ALPHAS,
) -> tuple[float, str]:
    """The alpha with the least squared error over folds of the training clips, and a note.

    Folds share no group where groups are known (see `values.inner_value_folds`). Of equal errors the stronger
    penalty wins: it claims less.
    """
    folds, note = inner_value_folds(len(value), group, FOLDS, seed)
    if not folds:
        return DEFAULT_ALPHA, note
    error = np.zeros(len(alphas))
    for fold in folds:
        said = RidgeProbe(train[fold.train], value[fold.train]).predict(train[fold.test], alphas)
        error += ((said - value[fold.test]) ** 2).sum(axis=1)
    return max(zip(-error, alphas, strict=True))[1], note


def ridge_values(train: np.ndarray, value: np.ndarray, test: np.ndarray, alpha: float) -> np.ndarray:
    """float64 [m]: what is said of test features [m, D], learned from train features [n, D] of values [n]."""
    return RidgeProbe(train, value).predict(test, [alpha])[0]
