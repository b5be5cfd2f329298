"""Learning from few labels: what an amount means, nested draws, and what one command leaves."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_features import write_video
from test_probe import blobs

from tubelet.cli import main
from tubelet.errors import UserError
from tubelet.evaluate.amount import Amount, read_amounts
from tubelet.evaluate.probe import probe
from tubelet.evaluate.score import score
from tubelet.evaluate.tasks import Task, few_labels, inner_folds
from tubelet.evaluate.values import RealTask
from tubelet.export.weights import Geometry, load_encoder

AMOUNTS = st.one_of(
    st.integers(1, 10**4).map(lambda n: Amount(count=n)),
    st.floats(0.01, 100).map(lambda p: Amount(percent=round(p, 3))),
)


@given(st.lists(AMOUNTS, min_size=1, max_size=5, unique=True))
def test_amounts_read_back_as_they_are_written(amounts):
    assert read_amounts(",".join(map(str, amounts))) == tuple(amounts)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", '"" is neither'),
        ("1,,5", '"" is neither'),
        ("five", '"five" is neither'),
        ("-1", '"-1" is neither'),
        ("1.5", '"1.5" is neither'),
        ("0", "labels=0: at least 1"),
        ("0%", "labels=0%.*above 0"),
        ("120%", "labels=120%"),
    ],
)
def test_amounts_that_make_no_sense_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        read_amounts(text)


@given(amount=AMOUNTS, clips=st.integers(1, 500))
def test_an_amount_is_at_least_one_and_at_most_all(amount, clips):
    taken = amount.of(clips)
    assert 1 <= taken <= clips
    if amount.percent is not None and taken > 1:
        assert abs(taken - clips * amount.percent / 100) <= 0.5


@given(one=AMOUNTS, other=AMOUNTS, draw=st.integers(0, 9), seed=st.integers(0, 99))
def test_draws_are_nested(one, other, draw, seed):
    """Whatever the amounts: in each class, the smaller draw lies within the larger."""
    label = np.repeat([0, 1, 2], [30, 4, 1])
    train = np.arange(0, 35, 1)
    chosen = [few_labels(label, train, amount, draw, seed) for amount in (one, other)]
    for c in range(3):
        first, second = (set(found[label[found] == c]) for found in chosen)
        assert first and second and (first <= second or second <= first)


def test_shares_are_of_each_class():
    label = np.repeat([0, 1, 2], [30, 10, 3])
    found = few_labels(label, np.arange(43), Amount(percent=10), draw=0)
    assert np.bincount(label[found]).tolist() == [3, 1, 1]


def test_drawing_all_there_is_is_done_once():
    x, task = blobs(60, 10)
    for amount in (Amount(percent=100), Amount(count=99)):
        found = score(x, task, "knn", labels=amount, draws=4)
        assert {c["draw"] for c in found.chosen} == {0} and found.metrics["top1@k5"].sd is None
        assert found.metrics == score(x, task, "knn").metrics
    assert any("fewer than 99" in note for note in found.notes)


def test_one_label_per_class_of_as_many_groups_is_learned_from():
    """No cut of the training clips can ask of a class that it has learned, so the default penalty is taken."""
    x, task = blobs(120, 20)
    found = score(x, task, "linear", labels=Amount(count=1), draws=2)
    assert found.train == 3 and any("the defaults were used" in note for note in found.notes)
    cut, note = inner_folds(np.array([0, 1, 2]), np.array(["x", "y", "z"]), 3, seed=0)
    assert not cut and "too few" in note
    cut, note = inner_folds(np.array([0, 0, 1, 1]), np.array(list("xyxy")), 3, seed=0)
    assert len(cut) == 2 and not note


def test_few_numbers_are_a_share_of_all():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 6))
    split = np.where(np.arange(100) < 60, "train", "test")
    task = RealTask(np.arange(100), x @ np.arange(6.0), split, None)
    found = score(x, task, "ridge", labels=Amount(percent=25), draws=3)
    assert found.train == 15 and found.metrics["r2"].sd is not None
    assert score(x, task, "ridge", labels=Amount(count=7), draws=1).train == 7


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Twenty-four clips of two classes in twelve groups."""
    folder = tmp_path_factory.mktemp("few")
    rows = ["path,label,split,group"]
    for i in range(24):
        write_video(folder / f"{i}.mp4", seed=i, brightness=0.6 if i % 2 else 0.8)
        rows.append(f"{i}.mp4,{'dark' if i % 2 else 'bright'},{'test' if i >= 16 else 'train'},g{i // 2}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


def test_one_command_tries_every_amount(labelled, tmp_path, capsys):
    words = [
        "probe",
        "pixels",
        "--data",
        str(labelled),
        "--frames",
        "4",
        "--crop-size",
        "32",
        "--device",
        "cpu",
    ]
    words += ["--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out"), "--draws", "3"]
    words += ["--frame-cache", str(tmp_path / "frames")]
    assert main([*words, "--labels", "1,50%,100%"]) == 0
    said = capsys.readouterr().out
    assert "1 labels (2 clips): macro_recall" in said and "with 100% labels" in said
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    few = record["few_labels"]
    assert [one["labels"] for one in few] == record["labels"] == ["1", "50%", "100%"]
    assert [one["train_clips"] for one in few] == [2, 8, 16] and [one["draws"] for one in few] == [3, 3, 1]
    assert few[0]["per_class"] == 1 and few[1]["percent"] == 50
    assert few[0]["metrics"]["macro_recall"]["sd"] is not None
    assert record["metrics"] == few[2]["metrics"] and record["headline_labels"] == "100%"
    with (tmp_path / "out" / "few_labels.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert float(rows[0]["value"]) == few[0]["metrics"][rows[0]["metric"]]["value"]
    assert len(rows) == 3 * len(record["metrics"])
    assert (tmp_path / "frames").is_dir()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "What the probe reaches with few labels" in page and "Which class is taken for which" in page
    there = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"predictions-1.csv", "predictions-50pct.csv", "predictions-100pct.csv"} <= there

    # another result in the same folder leaves nothing of this one behind
    assert main(words) == 0
    there = {file.name for file in (tmp_path / "out").iterdir()}
    assert there == {"predictions.csv", "results.json", "report.html", "confusion.png"}


def test_labels_and_per_class_are_one_knob(labelled, tmp_path):
    encoder = load_encoder("pixels", Geometry(frames=4, frame_step=2, crop_size=32))
    with pytest.raises(UserError, match="labels and per_class were both given"):
        probe(encoder, labelled, labels="5", per_class=5, cache=tmp_path)
    one = probe(encoder, labelled, "knn", labels="3", draws=2, cache=tmp_path, progress=False)
    two = probe(encoder, labelled, "knn", per_class=3, draws=2, cache=tmp_path, progress=False)
    assert one.metrics == two.metrics and one.about == two.about and one.about["per_class"] == 3
    assert isinstance(one.task, Task)
