"""Nearest neighbours, labels, splits and scores: everything about a probe that involves no training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tubelet.data.manifest import Video
from tubelet.errors import UserError
from tubelet.evaluate.amount import Amount
from tubelet.evaluate.knn import knn_scores
from tubelet.evaluate.metrics import Predictions, difference, estimates, macro_recall, top1
from tubelet.evaluate.tasks import few_labels, folds, inner_folds, read_task


def clips(labels, splits=None, groups=None) -> list[Video]:
    n = len(labels)
    return [
        Video(Path(f"clip{i}.mp4"), labels[i], (splits or [None] * n)[i], (groups or [None] * n)[i])
        for i in range(n)
    ]


def test_knn_equals_a_plain_computation():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(23, 7)), rng.normal(size=(5, 7))
    label = rng.integers(0, 3, 23)
    found = knn_scores(train, label, test, classes=3, k=4)
    for x, row in zip(test, found, strict=True):
        cosine = train @ x / np.linalg.norm(train, axis=1) / np.linalg.norm(x)
        near = np.argsort(-cosine)[:4]
        votes = np.array([np.exp(cosine[near] / 0.07)[label[near] == c].sum() for c in range(3)])
        np.testing.assert_allclose(row, votes / votes.sum(), atol=1e-5)


def test_knn_with_fewer_clips_than_k_lets_all_vote():
    found = knn_scores(np.eye(2), np.array([0, 1]), np.array([[1.0, 0.1]]), classes=2, k=20)
    assert found.argmax() == 0 and found.sum() == pytest.approx(1)


def test_a_group_in_both_splits_is_named():
    videos = clips(["a", "b", "a", "b"], ["train", "train", "test", "test"], ["x", "y", "z", "y"])
    with pytest.raises(UserError, match='group "y" is in the splits test and train'):
        read_task(videos, "data.csv")


@pytest.mark.parametrize(
    ("videos", "words"),
    [
        (clips(["a", None, "b", "a"]), "1 of 4 clips have no label.*clip1.mp4.*unlabelled"),
        (clips(["a", "a"]), 'only the class "a"'),
        (clips(["a", "b"], ["train", "tset"]), 'unknown split "tset".*did you mean "test"'),
        (clips(["a", "b"], ["train", "train"]), "no test clip"),
        (clips(["a", "b"], ["train", "test"]), 'no training clip has the class "b"'),
        (clips(["a", "b"], ["train", None]), '1 of 2 clips have no "split"'),
        (clips(["a", "b"], None, ["x", None]), '1 of 2 clips have no "group"'),
    ],
)
def test_bad_labels_and_splits_are_refused_with_the_cure(videos, words):
    with pytest.raises(UserError, match=words):
        read_task(videos, "data.csv")


def test_unlabelled_and_unreadable_clips_are_left_out_and_told():
    task = read_task(clips(["a", None, "b", "a", "b"]), "data", unlabelled="exclude", excluded=[3])
    assert task.rows.tolist() == [0, 2, 4] and task.classes == ("a", "b")
    assert len(task.notes) == 2


def test_folds_are_group_disjoint_and_cover_every_clip():
    labels = ["a", "b"] * 20
    groups = [f"g{i // 4}" for i in range(40)]
    task = read_task(clips(labels, None, groups), "data")
    cut = folds(task)
    assert sorted(np.concatenate([fold.test for fold in cut])) == list(range(40))
    assert task.group is not None
    for fold in cut:
        assert not set(task.group[fold.train]) & set(task.group[fold.test])


def test_the_split_column_is_taken_as_it_is():
    videos = clips(["a", "b", "a", "b"], ["train", "Training", "test", "val"])
    (fold,) = folds(read_task(videos, "data"))
    assert fold.train.tolist() == [0, 1] and fold.test.tolist() == [2]


def test_a_class_of_one_group_cannot_be_folded():
    task = read_task(clips(["a", "a", "b", "b"], None, ["x", "y", "z", "z"]), "data")
    with pytest.raises(UserError, match='class "b" has clips of one group only'):
        folds(task)


def test_inner_folds_never_share_a_group_and_say_when_they_must():
    label = np.arange(24) % 3
    group = np.array([f"g{i // 6}" for i in range(24)])
    cut, note = inner_folds(label, group, 3, seed=0)
    assert len(cut) == 3 and not note
    assert all(not set(group[fold.train]) & set(group[fold.test]) for fold in cut)
    cut, note = inner_folds(label, np.array(["g"] * 24), 3, seed=0)
    assert len(cut) == 3 and "shares groups" in note
    cut, note = inner_folds(np.array([0, 1]), None, 3, seed=0)
    assert not cut and "too few" in note


def test_few_labels_are_nested_and_a_function_of_the_draw():
    label = np.repeat([0, 1, 2], 10)
    train = np.arange(0, 30, 2)
    three = few_labels(label, train, Amount(3), draw=1)
    assert np.bincount(label[three]).tolist() == [3, 3, 3] and set(three) <= set(train)
    assert set(few_labels(label, train, Amount(2), draw=1)) < set(three)
    assert set(few_labels(label, train, Amount(3), draw=2)) != set(three)
    assert len(few_labels(label, train, Amount(99), draw=0)) == len(train)


def predictions(label, predicted, classes=3, draw=0) -> Predictions:
    label = np.array(label)
    return Predictions(np.arange(len(label)), np.full(len(label), draw), label, np.eye(classes)[predicted])


def test_macro_recall_weighs_classes_alike():
    label, correct = np.array([0] * 8 + [1] * 2), np.array([True] * 8 + [False] * 2)
    assert top1(label, correct) == 0.8 and macro_recall(label, correct) == 0.5


def test_intervals_follow_groups_not_clips():
    label = np.arange(120) % 3
    group = np.array([f"g{i // 20}" for i in range(120)])
    wrong = np.isin(group, ["g0", "g1"])  # whole groups fail together
    made = predictions(label, np.where(wrong, (label + 1) % 3, label))
    by_group, by_clip = estimates(made, group)["top1"], estimates(made, None)["top1"]
    assert by_group.value == by_clip.value == pytest.approx(2 / 3)
    assert by_group.high - by_group.low > 2 * (by_clip.high - by_clip.low)
    error = np.sqrt(2 / 3 / 3 / 120)  # binomial, of independent clips
    assert by_clip.high - by_clip.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_paired_differences_are_tighter_than_two_intervals():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 200)
    hard = rng.random(200) < 0.4
    worse = predictions(label, np.where(hard, (label + 1) % 3, label))
    better = predictions(label, np.where(hard & (np.arange(200) % 5 > 0), (label + 1) % 3, label))
    gain, alone = difference(better, worse, None), estimates(better, None)["macro_recall"]
    assert gain.low > 0 and gain.high - gain.low < alone.high - alone.low
    with pytest.raises(ValueError, match="different clips"):
        difference(better, predictions([0, 1, 2], [0, 1, 2]), None)
