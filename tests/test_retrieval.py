"""Retrieval against scikit-learn's average precision, and where it is undefined."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from tubelet.evaluate.retrieval import retrieval


def test_map_equals_scikit_learns_average_precision() -> None:
    random = np.random.default_rng(0)
    features, label = random.normal(size=(40, 5)), random.integers(0, 4, 40)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    expected = [
        average_precision_score(np.delete(label, i) == label[i], np.delete(unit @ unit[i], i))
        for i in range(40)
    ]
    found = retrieval(features, label)
    assert found.map == pytest.approx(np.mean(expected), abs=1e-9)
    assert (found.queries, found.skipped) == (40, 0)


def test_a_clip_never_finds_itself_nor_its_group() -> None:
    features = np.array([[1.0, 0], [1, 0.01], [0, 1], [0.5, 0.5]])
    label = np.array([0, 0, 0, 1])
    assert retrieval(features, label).hits[1] == pytest.approx(2 / 3)  # the third's nearest is the fourth
    grouped = retrieval(features, label, np.array(["a", "a", "b", "c"]))
    assert grouped.hits[1] == 0.0 and grouped.queries == 3


def test_queries_without_a_relevant_clip_are_skipped() -> None:
    found = retrieval(np.eye(3), np.array([0, 0, 1]))
    assert (found.queries, found.skipped) == (2, 1)
    with pytest.raises(ValueError, match="no clip has another of its class"):
        retrieval(np.eye(3), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="not finite"):
        retrieval(np.array([[np.nan], [1.0]]), np.array([0, 0]))
