"""How much of each of several known targets can be read off linearly: gratings as clips, and the paper's probe."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from tubelet.data.cores import cores
from tubelet.data.gratings import Gratings
from tubelet.errors import UserError
from tubelet.evaluate.source import Views
from tubelet.export.weights import Geometry

RENDERING = 1  # part of every identity; raise it when the same world is drawn otherwise


@dataclass(frozen=True)
class GratingSource:
    """Gratings as a `Source`, with as many frames and pixels as an encoder wants and without its mean and deviation.

    rows: the world's clips that are used (`Gratings.subset`), all if None.
    """

    world: Gratings
    geometry: Geometry
    rows: Sequence[int] | None = None

    @property
    def views(self) -> Views:
        """One clip a row."""
        return Views()

    def __len__(self) -> int:
        return len(self.world) if self.rows is None else len(self.rows)

    def read(self, row: int) -> Tensor:
        """Float32 [1, 3, T, H, W] in [-1, 1], see `Gratings.render`."""
        clip = self.world.render(self._index(row), self.geometry.frames, self.geometry.crop_size)
        return torch.from_numpy(clip).unsqueeze(0)

    def name(self, row: int) -> str:
        """The clip's number in its world, and its factors."""
        return self.world.name(self._index(row))

    def identity(self) -> dict[str, Any]:
        """The world with all its levels, seed and phase, the size of the clips, and which of them."""
        world = self.world
        return {
            "gratings": world.kind,
            "rendering": RENDERING,
            "factors": {name: list(levels) for name, levels in world.factors.items()},
            "seed": world.seed,
            "phase": world.phase,
            "geometry": [self.geometry.frames, self.geometry.crop_size],
            "rows": None if self.rows is None else [int(row) for row in self.rows],
        }

    def prepare(self) -> None:
        """Nothing: gratings are computed."""

    def labels(self, quirk: bool = False) -> dict[str, np.ndarray]:
        """Class ids of each target, int64 [rows] each, see `Gratings.labels`."""
        rows = slice(None) if self.rows is None else np.asarray(self.rows)
        return {target: label[rows] for target, label in self.world.labels(quirk).items()}

    def _index(self, row: int) -> int:
        return row if self.rows is None else int(self.rows[row])


@dataclass(frozen=True)
class TargetScores:
    """What `probe_targets` found, by target.

    accuracy: mean over folds, in [0, 1], nan where undefined. majority: the share of the commonest class, what an
    answer without looking gets. undefined: target -> why its accuracy is nan.
    """

    accuracy: dict[str, float]
    majority: dict[str, float]
    undefined: dict[str, str]

    @property
    def mean(self) -> float:
        """Arithmetic mean of the targets' accuracies, the paper's score; nan if one of them is."""
        return math.fsum(self.accuracy.values()) / len(self.accuracy)

    @property
    def majority_mean(self) -> float:
        """Arithmetic mean of the targets' majority shares, to compare `mean` with."""
        return math.fsum(self.majority.values()) / len(self.majority)


def probe_targets(
    features: np.ndarray,
    labels: Mapping[str, np.ndarray],
    folds: int = 3,
    seed: int = 0,
    workers: int | None = None,
) -> TargetScores:
    """A linear probe for every target of the same clips, cross-validated.

    features: float [n, D]. labels: target -> int [n]. Standardised features and one logistic regression per target
    (scikit-learn's defaults: L2, C=1; at most 1000 steps), in float32; ``folds`` shuffled folds, stratified on the
    *first* target. Source: arXiv 2601.09040's released evaluation, whose numbers this equals. workers: fits at once,
    one thread each (default: one per core); no number depends on it.

    nan, with the reason in `TargetScores.undefined`: all targets if every feature is the same for all clips, a target
    with one class, or with a class of fewer clips than folds. Raises UserError for features that are not finite and
    for fewer clips than folds (of every class of the first target), ValueError if features and labels do not match.
    """
    features = np.asarray(features, np.float32)
    _check(features, labels, folds)
    undefined = _undefined(features, labels, folds)
    with warnings.catch_warnings():
        # what the last step predicts is what is scored
        warnings.simplefilter("ignore", ConvergenceWarning)
        # a class too small to be stratified is told as undefined
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        split = StratifiedKFold(folds, shuffle=True, random_state=seed).split(
            features, next(iter(labels.values()))
        )
        jobs = [(target, *cut) for cut in split for target in labels if target not in undefined]
        # The fits are many and small: threads within one of them would only wait for each other.
        with threadpool_limits(1), ThreadPoolExecutor(workers or cores()) as pool:
            scored = list(pool.map(lambda job: _accuracy(features, labels[job[0]], *job[1:]), jobs))
    found: dict[str, list[float]] = {target: [] for target in labels}
    for (target, _, _), accuracy in zip(jobs, scored, strict=True):
        found[target].append(accuracy)
    for target, parts in found.items():
        if any(map(math.isnan, parts)):
            undefined[target] = "all clips that a fold learns from are of one class"
    return TargetScores(
        {
            target: math.nan if target in undefined else float(np.mean(parts))
            for target, parts in found.items()
        },
        {target: float(_counts(label).max() / len(label)) for target, label in labels.items()},
        undefined,
    )


def _accuracy(features: np.ndarray, label: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Share of the test clips whose class is told; nan if there is only one class to learn."""
    if len(_counts(label[train])) < 2:
        return math.nan
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(probe.fit(features[train], label[train]).score(features[test], label[test]))


def _counts(label: np.ndarray) -> np.ndarray:
    """How many clips each class has that occurs."""
    return np.unique(label, return_counts=True)[1]


def _check(features: np.ndarray, labels: Mapping[str, np.ndarray], folds: int) -> None:
    if features.ndim != 2 or not features.shape[1]:
        raise ValueError(f"features are [clips, width], not {list(features.shape)}")
    if not labels:
        raise ValueError("there is no target to probe for")
    for target, label in labels.items():
        if np.shape(label) != (len(features),):
            raise ValueError(f"{target} has labels {list(np.shape(label))} for {len(features)} clips")
    if folds < 2:
        raise UserError(f"folds={folds}: a probe is tested on clips it has not seen; use 2 or more")
    first, label = next(iter(labels.items()))
    if len(features) < folds or _counts(label).max() < folds:
        raise UserError(
            f"{len(features)} clips are too few for {folds} folds, each with clips of every class of {first}; "
            "take more clips or fewer folds"
        )
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise UserError(
            f"features of clip {int(np.argmin(finite))} are not finite numbers in float32; the encoder's weights are "
            "damaged or its training diverged: use an earlier checkpoint"
        )


def _undefined(features: np.ndarray, labels: Mapping[str, np.ndarray], folds: int) -> dict[str, str]:
    """Targets that no probe can be asked for, and why."""
    if (features == features[0]).all():
        return dict.fromkeys(labels, "all clips have the same features")
    found = {}
    for target, label in labels.items():
        counts = _counts(label)
        if len(counts) < 2:
            found[target] = "all clips are of one class"
        elif counts.min() < folds:
            found[target] = f"a class has {counts.min()} of the {folds} clips that {folds} folds need"
    return found
