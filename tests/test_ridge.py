"""Regression: penalties and folds against scikit-learn and groups, labels that are numbers, whole results."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from test_features import write_video

from tubelet.data.manifest import Video
from tubelet.errors import UserError
from tubelet.evaluate.probe import probe
from tubelet.evaluate.ridge import ALPHAS, DEFAULT_ALPHA, choose_alpha, ridge_values
from tubelet.evaluate.saved import read_predictions
from tubelet.evaluate.score import score
from tubelet.evaluate.tasks import read_task
from tubelet.evaluate.values import RealTask, inner_value_folds, read_values, value_folds
from tubelet.export.weights import Geometry, load_encoder


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), dim=st.sampled_from([5, 60]), alpha=st.sampled_from([0.01, 10.0, 1e4]))
def test_ridge_equals_scikit_learn(seed, dim, alpha):
    """With fewer and with more features than clips, one of them constant."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(40, dim)) * 3 + 5, rng.normal(size=40) + 100
    x[:, 2] = 7.0
    scaler = StandardScaler().fit(x[:30])
    reference = Ridge(alpha=alpha).fit(scaler.transform(x[:30]), y[:30]).predict(scaler.transform(x[30:]))
    np.testing.assert_allclose(ridge_values(x[:30], y[:30], x[30:], alpha), reference, atol=1e-7)


def readings(clips: int = 120, dim: int = 20, groups: int = 12, noise: float = 0.3, seed: int = 0):
    """Features that tell a number linearly, with a nuisance of the group."""
    rng = np.random.default_rng(seed)
    group = np.arange(clips) % groups
    x = rng.normal(size=(clips, dim)) + rng.normal(size=(groups, dim))[group]
    value = x @ rng.normal(size=dim) / np.sqrt(dim) + noise * rng.normal(size=clips) + 20
    names = np.array([f"g{g:02d}" for g in group])
    split = np.where(group < groups - 4, "train", "test")
    return x.astype(np.float32), RealTask(np.arange(clips), value, split, names)


def test_more_noise_asks_for_a_stronger_penalty():
    chosen = []
    for noise in (0.05, 4.0):
        x, task = readings(noise=noise)
        alpha, note = choose_alpha(x, task.value, task.group, seed=0)
        assert alpha in ALPHAS and not note
        chosen.append(alpha)
    assert chosen[0] < chosen[1]


def test_alpha_is_chosen_across_groups():
    rng = np.random.default_rng(0)
    group = np.arange(96) % 12
    value = rng.normal(size=12)[group] + 0.1 * rng.normal(size=96)  # knowing the group is all but enough
    x = np.concatenate([np.eye(12)[group] * 4, rng.normal(size=(96, 1))], axis=1)
    by_group, _ = choose_alpha(x, value, group.astype(str), seed=0)
    by_clip, _ = choose_alpha(x, value, None, seed=0)
    assert by_group > by_clip


def test_inner_folds_share_no_group_and_say_when_they_must():
    group = np.array([f"g{i % 4}" for i in range(20)])
    cut, note = inner_value_folds(20, group, 5, seed=0)
    assert len(cut) == 4 and not note
    assert all(not set(group[fold.train]) & set(group[fold.test]) for fold in cut)
    cut, note = inner_value_folds(20, np.array(["g"] * 20), 5, seed=0)
    assert len(cut) == 5 and "shares groups" in note
    assert choose_alpha(np.ones((1, 3)), np.ones(1), None, seed=0)[0] == DEFAULT_ALPHA


def test_folds_share_no_group_and_cover_every_clip():
    _, task = readings()
    for grouped in (task, RealTask(task.rows, task.value, None, None)):
        cut = value_folds(grouped, 4)
        assert sorted(np.concatenate([fold.test for fold in cut])) == list(range(120)) and len(cut) == 4
    assert task.group is not None
    for fold in value_folds(task, 4):
        assert not set(task.group[fold.train]) & set(task.group[fold.test])
    (given_split,) = value_folds(task)
    assert len(given_split.train) == 80


def test_scores_of_numbers():
    x, task = readings()
    found = score(x, task, "ridge")
    assert set(found.metrics) == {"r2", "mae"} and found.train == 80 and found.test == 40
    r2, mae = found.metrics["r2"], found.metrics["mae"]
    assert 0.5 < r2.low < r2.value < r2.high <= 1 and 0.2 < mae.value < 0.5
    assert found.chosen[0]["alpha"] in ALPHAS
    folded = score(x, task, "ridge", split_folds=4)
    assert folded.test == 120 and any("4 group-disjoint folds" in note for note in folded.notes)


def test_test_values_change_nothing_that_is_chosen():
    x, task = readings()
    other = RealTask(
        task.rows, np.where(task.split == "test", -task.value, task.value), task.split, task.group
    )
    one, two = score(x, task, "ridge"), score(x, other, "ridge")
    assert one.chosen == two.chosen
    np.testing.assert_array_equal(one.predictions[""].predicted, two.predictions[""].predicted)


def clips(labels, splits=None) -> list[Video]:
    return [
        Video(Path(f"clip{i}.mp4"), label, splits[i] if splits else None) for i, label in enumerate(labels)
    ]


@pytest.mark.parametrize(
    ("videos", "words"),
    [
        (
            clips(["1", "2.5", "fast", "3"]),
            r'1 of 4 labels are no finite numbers, such as "fast" of clip2\.mp4',
        ),
        (clips(["1", "nan"]), 'such as "nan"'),
        (clips(["1", "1e999"]), 'such as "1e999"'),
        (clips(["1", None, "2"]), r"1 of 3 clips have no label.*clip1\.mp4"),
        (clips(["2", "2.0", "2"]), "labels are all 2, so R² is undefined"),
        (clips(["2", "2", "1", "3"], ["train", "train", "test", "test"]), "of the training clips are all 2"),
        (clips(["1", "2", "4", "4"], ["train", "train", "test", "test"]), "of the test clips are all 4"),
        (clips(["1", "2"], ["train", "train"]), "no test clip"),
        (clips([None, None]), "2 of 2 clips have no label"),
    ],
)
def test_labels_that_are_no_regression_are_refused(videos, words):
    with pytest.raises(UserError, match=words):
        read_values(videos, "data.csv")


def test_unlabelled_clips_are_left_out_and_told():
    task = read_values(clips(["1", None, "2", "3"]), "data", unlabelled="exclude", excluded=[3])
    assert task.rows.tolist() == [0, 2] and task.value.tolist() == [1.0, 2.0] and len(task.notes) == 2


def test_one_group_cannot_be_folded():
    videos = [Video(Path(f"{i}.mp4"), str(i), group="x") for i in range(6)]
    with pytest.raises(UserError, match='all clips are of the group "x"'):
        value_folds(read_values(videos, "data"))


def test_numbers_that_are_no_classes_are_sent_to_ridge():
    labels = [str(0.5 * i) for i in range(80)]
    with pytest.raises(UserError, match=r'80 numbers, 80 of them of a single clip each.*kind="ridge"'):
        read_task(clips(labels), "data.csv")
    assert len(read_task(clips([f"year {i}" for i in range(80)]), "data").classes) == 80
    assert len(read_task(clips([str(i % 10) for i in range(80)]), "data").classes) == 10


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Sixteen clips whose brightness is a column of their list, beside a label that says nothing."""
    folder = tmp_path_factory.mktemp("measured")
    rows = ["path,label,split,group,brightness"]
    for i in range(16):
        brightness = 0.2 + 0.05 * ((i * 7) % 16)
        write_video(folder / f"{i}.mp4", seed=i % 3, brightness=brightness)
        rows.append(f"{i}.mp4,{'ab'[i % 2]},{'test' if i >= 10 else 'train'},g{i // 2},{brightness}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


def test_from_a_column_of_numbers_to_results(measured, tmp_path):
    encoder = load_encoder("pixels", Geometry(frames=4, frame_step=2, crop_size=32))
    out = tmp_path / "eval"
    result = probe(encoder, measured, "ridge", label="brightness", cache=tmp_path, out=out, progress=False)
    assert result.metrics["r2"].value > 0.8 and result.metrics["mae"].value < result.guessing["mae"] / 2
    record = json.loads((out / "results.json").read_text())
    assert record["label"] == "brightness" and record["classes"] == [] and record["guessing"]["r2"] == 0
    assert record["metrics"].keys() == {"r2", "mae"} and not (out / "confusion.png").exists()
    assert "r2" in result.sentence() and "mae" in result.sentence()
    with (out / "predictions.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 6 and abs(float(rows[0]["label"]) - float(rows[0]["predicted"])) < 0.2
    (again,) = read_predictions(out).answers.values()
    made = result.scored.predictions[""]
    np.testing.assert_array_equal(np.sort(again.label), np.sort(made.label))
    np.testing.assert_array_equal(np.sort(again.predicted), np.sort(made.predicted))


def test_columns_are_named_when_there_is_none_of_that_name(measured, tmp_path):
    encoder = load_encoder("pixels", Geometry(frames=4, frame_step=2, crop_size=32))
    with pytest.raises(UserError, match=r'no column "brightnes".*did you mean "brightness"'):
        probe(encoder, measured, "ridge", label="brightnes", cache=tmp_path)
    with pytest.raises(UserError, match=r'labels are no finite numbers, such as "a" of .*0\.mp4'):
        probe(encoder, measured, "ridge", cache=tmp_path)
    assert not list(tmp_path.iterdir())
