"""Retrieval against scikit-learn's average precision and plain counting, and where it is undefined."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors

from tubelet.data.manifest import Video
from tubelet.evaluate import retrieval as module
from tubelet.evaluate.retrieval import ask, judge_retrieval, map_difference, neighbours, retrieval
from tubelet.evaluate.tasks import Task, read_task


def unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_map_equals_scikit_learns_average_precision() -> None:
    random = np.random.default_rng(0)
    features, label = random.normal(size=(40, 5)), random.integers(0, 4, 40)
    expected = [
        average_precision_score(
            np.delete(label, i) == label[i], np.delete(unit(features) @ unit(features)[i], i)
        )
        for i in range(40)
    ]
    found = retrieval(features, label)
    assert found.map == pytest.approx(np.mean(expected), abs=1e-9)
    assert (found.queries, found.skipped) == (40, 0)


def test_hits_and_recall_equal_counting_scikit_learns_neighbours() -> None:
    random = np.random.default_rng(1)
    features, label = random.normal(size=(60, 6)), random.integers(0, 5, 60)
    _, near = NearestNeighbors(n_neighbors=11, metric="cosine").fit(features).kneighbors(features)
    found = retrieval(features, label)
    for k in (1, 5, 10):
        same = label[near[:, 1 : k + 1]] == label[:, None]  # the first is the query itself
        relevant = np.bincount(label)[label] - 1
        assert found.hits[k] == pytest.approx(np.mean(same.any(1)))
        assert found.recall[k] == pytest.approx(np.mean(same.sum(1) / relevant))
    assert set(found.intervals) == set(found.values)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(4, 30), st.integers(1, 64), st.booleans())
def test_the_chunks_change_nothing(seed: int, clips: int, chunk: int, grouped: bool) -> None:
    random = np.random.default_rng(seed)
    features = random.normal(size=(clips, 3))
    label = np.arange(clips) % 2
    group = random.integers(0, 3, clips) if grouped else None
    if group is not None and not module._somewhere_else(label, group):
        return
    whole = retrieval(features, label, group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        assert retrieval(features, label, group).values == pytest.approx(whole.values)


def test_a_clip_never_finds_itself_nor_its_group() -> None:
    features = np.array([[1.0, 0], [1, 0.01], [0, 1], [0.5, 0.5]])
    label = np.array([0, 0, 0, 1])
    assert retrieval(features, label).hits[1] == pytest.approx(2 / 3)  # the third's nearest is the fourth
    grouped = retrieval(features, label, np.array(["a", "a", "b", "c"]))
    assert grouped.hits[1] == 0.0 and grouped.queries == 3
    assert grouped.recall[5] == 1.0  # there are only three others


def test_queries_without_a_relevant_clip_are_skipped() -> None:
    found = retrieval(np.eye(3), np.array([0, 0, 1]))
    assert (found.queries, found.skipped) == (2, 1)
    with pytest.raises(ValueError, match="no clip has another of its class"):
        retrieval(np.eye(3), np.array([0, 1, 2]))
    with pytest.raises(ValueError, match="not finite"):
        retrieval(np.array([[np.nan], [1.0]]), np.array([0, 0]))


def test_intervals_are_over_groups_not_over_clips() -> None:
    # twenty copies of each of six recordings know no more than six
    random = np.random.default_rng(2)
    features, label = np.repeat(random.normal(size=(6, 4)), 20, 0), np.repeat(np.arange(6) % 2, 20)
    features = features + 1e-6 * random.normal(size=features.shape)
    label = np.where(random.random(120) < 0.2, 1 - label, label)
    clips = retrieval(features, label).intervals["map"]
    groups = retrieval(features, label, resampled=np.repeat(np.arange(6), 20)).intervals["map"]
    assert groups[1] - groups[0] > 2 * (clips[1] - clips[0])


def test_nearest_clips_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(3)
    features = random.normal(size=(30, 4))
    distance, near = (
        NearestNeighbors(n_neighbors=6, metric="cosine").fit(features).kneighbors(features[[4, 9]])
    )
    for row, found in enumerate(neighbours(features, [4, 9])):
        assert found.found.tolist() == near[row, 1:].tolist()
        assert found.cosine == pytest.approx(1 - distance[row, 1:])
    (few,) = neighbours(features[:5], [0], k=10, group=np.array([0, 0, 1, 1, 2]))
    assert sorted(few.found.tolist()) == [2, 3, 4]


def task(split: bool) -> tuple[Task, list[Video]]:
    videos = [
        Video(
            Path(f"{i}.mp4"),
            label="ab"[i % 2],
            group=f"g{i // 3}",
            split=["train", "test"][i // 12] if split else None,
            start=float(i) if i == 13 else None,
        )
        for i in range(24)
    ]
    return read_task(videos, "here"), videos


@pytest.mark.parametrize("split", [True, False])
def test_what_is_saved(tmp_path: Path, split: bool) -> None:
    made, videos = task(split)
    features = np.random.default_rng(4).normal(size=(24, 3))
    result = judge_retrieval(features, made, videos, {"encoder": "x"}, examples=9)
    result.save(tmp_path)
    saved = json.loads((tmp_path / "results.json").read_text())
    own = features[12:] if split else features
    label = made.label[12:] if split else made.label
    assert saved["map"] == pytest.approx(retrieval(own, label).map)
    assert result.elsewhere is not None
    group = made.group[12:] if split and made.group is not None else made.group
    assert saved["map_other_groups"] == pytest.approx(retrieval(own, label, group).map)
    low, high = saved["intervals"]["map_other_groups"]
    assert low <= saved["map_other_groups"] <= high
    assert (saved["asked"], saved["skipped"], saved["encoder"]) == (len(own), 0, "x")
    assert [query["label"] for query in saved["queries"]] in (["a", "b"], ["b", "a"])
    for query in saved["queries"]:
        assert len(query["found"]) == 5 and query["query"] not in [one["path"] for one in query["found"]]
        cosine = [one["cosine"] for one in query["found"]]
        assert cosine == sorted(cosine, reverse=True)
        for one in query["found"]:
            place = int(Path(one["path"]).stem)
            assert one["label"] == "ab"[place % 2] and not (split and place < 12)
            assert one.get("start") == (13.0 if place == 13 else None)


def test_two_encoders_are_shown_on_the_same_queries() -> None:
    made, videos = task(split=True)
    random = np.random.default_rng(5)
    one, other = (judge_retrieval(random.normal(size=(24, 3)), made, videos) for _ in range(2))
    assert [q["query"] for q in one.examples] == [q["query"] for q in other.examples]
    assert one.examples != other.examples


def test_a_class_in_one_group_each_is_found_nowhere_else() -> None:
    videos = [Video(Path(f"{i}.mp4"), label="ab"[i // 4], group="gh"[i // 4]) for i in range(8)]
    found = judge_retrieval(np.random.default_rng(6).normal(size=(8, 3)), read_task(videos, "here"), videos)
    assert found.elsewhere is None


def test_thousands_of_queries_take_seconds() -> None:
    random = np.random.default_rng(7)
    found = retrieval(random.normal(size=(3000, 16)), random.integers(0, 20, 3000))
    assert found.map == pytest.approx(0.05, abs=0.01)


def test_the_difference_of_two_maps_is_that_of_their_means_and_narrower_than_they_are_apart():
    rng = np.random.default_rng(0)
    label, group = np.repeat(np.arange(4), 10), np.arange(40) // 2
    one = rng.standard_normal((40, 8)) + 2 * np.eye(4, 8)[label]
    other = one + 0.1 * rng.standard_normal((40, 8))
    asked = [ask(rows.astype(np.float32), label) for rows in (one, other)]
    whole = [retrieval(rows.astype(np.float32), label, resampled=group) for rows in (one, other)]
    found = map_difference(asked[0], asked[1], group)
    assert found.value == pytest.approx(whole[0].map - whole[1].map)
    assert found.low < found.value < found.high
    wide = whole[0].intervals["map"]
    assert found.high - found.low < (wide[1] - wide[0]) / 2
    same = map_difference(asked[0], asked[0], group)
    assert (same.value, same.low, same.high) == (0, 0, 0)
