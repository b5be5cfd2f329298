"""What a probe leaves to be looked at and read again: the confusion picture, the page, the predictions."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from sklearn.metrics import confusion_matrix
from test_probe import blobs

from tubelet.data.manifest import Video
from tubelet.errors import UserError
from tubelet.evaluate.confusion import confusion, draw_confusion, worst_pairs
from tubelet.evaluate.metrics import Answers, Predictions, RealPredictions, difference, estimates
from tubelet.evaluate.result import ProbeResult
from tubelet.evaluate.saved import read_predictions, write_predictions
from tubelet.evaluate.score import Kind, score
from tubelet.report.probe import probe_report


def read_png(picture: bytes) -> np.ndarray:
    """float32 [H, W, 4] in [0, 1]."""
    return np.asarray(imread(io.BytesIO(picture)))


def test_confusion_equals_scikit_learns():
    rng = np.random.default_rng(0)
    label, predicted = rng.integers(0, 5, 60), rng.integers(0, 7, 60)
    np.testing.assert_array_equal(
        confusion(label, predicted, 7), confusion_matrix(label, predicted, labels=range(7))
    )


def test_the_worst_pairs_are_the_commonest_mistakes():
    counts = np.array([[5, 3, 0], [1, 9, 0], [3, 0, 1]])
    assert worst_pairs(counts, 2) == [(2, 0, 3, 0.75), (0, 1, 3, 0.375)]
    assert worst_pairs(np.diag([1, 2])) == []


@pytest.mark.parametrize("classes", [2, 30, 101])
def test_the_picture_grows_with_the_classes_but_stays_a_picture(classes):
    counts = confusion(np.arange(classes), np.arange(classes)[::-1], classes)
    picture = read_png(draw_confusion(counts, [f"class {c}" for c in range(classes)], "a title"))
    assert 400 < picture.shape[0] < 2400 and 400 < picture.shape[1] < 2400
    assert picture[..., 3].min() == 1  # on white, whatever the page's colour
    assert np.ptp(picture[..., :3], axis=-1).max() > 0.2  # and in colour


def test_a_clean_matrix_is_dark_on_its_diagonal_alone():
    picture = read_png(draw_confusion(np.diag([4] * 30), [""] * 30, ""))
    dark = np.argwhere((picture[..., 2] > picture[..., 0] + 0.2) & (picture[..., 0] < 0.1))
    inside = dark[dark[:, 1] < np.quantile(dark[:, 1], 0.9)]  # without the colour scale on the right
    assert np.corrcoef(inside.T).min() > 0.99


@pytest.mark.parametrize("name", ["$x$ {", "a" * 200, "类别", "", "<b>&", "tab\tname"])
def test_any_class_name_can_be_drawn(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_confusion(np.array([[1, 0], [0, 0]]), [name, "other"], name).startswith(b"\x89PNG")


def answers(kind: type, seed: int, clips: int = 9, draws: int = 2) -> dict[str, Answers]:
    """Predictions of two probes with awkward numbers; every clip once per draw."""
    rng = np.random.default_rng(seed)
    found: dict[str, Answers] = {}
    for suffix in ("@k5", "@k20"):
        clip = np.concatenate([rng.permutation(clips) for _ in range(draws)])
        draw = np.repeat(np.arange(draws), clips)
        if kind is Predictions:
            label = (np.arange(clips) % 3)[clip]
            scores = rng.dirichlet(np.ones(3), len(clip)) * rng.choice([1.0, 1e-300], (len(clip), 1))
            found[suffix] = Predictions(clip, draw, label, scores)
        else:
            label = (np.arange(clips) / 7)[clip]
            found[suffix] = RealPredictions(clip, draw, label, rng.normal(size=len(clip)) * 1e9)
    return found


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from([Predictions, RealPredictions]), grouped=st.booleans(), seed=st.integers(0, 10**6)
)
def test_predictions_read_back_equal_those_that_were_written(kind, grouped, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    made = answers(kind, seed)
    videos = [Video(Path(f"{i}, 'quoted' \"ä\".mp4")) for i in range(9)]
    group = np.array([f"g,{i // 2}" for i in range(9)]) if grouped else None
    classes = ("a,b", "p_c", "ü") if kind is Predictions else ()
    write_predictions(folder / "predictions.csv", "knn", videos, group, classes, made)
    found = read_predictions(folder)
    assert found.clips == tuple(str(video.path) for video in videos) and found.classes == classes
    assert (found.group is None) if group is None else (found.group == group).all()  # type: ignore[union-attr]
    assert list(found.answers) == ["@k5", "@k20"]
    for suffix, one in made.items():
        for name in ("clip", "draw", "label", "predicted"):
            np.testing.assert_array_equal(getattr(found.answers[suffix], name), getattr(one, name))
        assert estimates(found.answers[suffix], found.group) == estimates(one, group)


def test_stretches_of_one_video_and_repeated_rows_stay_apart(tmp_path):
    made = {"": replace(answers(Predictions, 0)["@k5"])}
    videos = [Video(Path("film.mp4"), start=2.0 * i, end=2.0 * i + 1) for i in range(8)]
    videos.append(videos[0])
    write_predictions(tmp_path / "predictions.csv", "linear", videos, None, "abc", made)
    found = read_predictions(tmp_path)
    assert len(found.clips) == 9 and "film.mp4 [4.0, 5.0]" in found.clips and found.clips[1].endswith(" #2")


def test_saved_results_are_paired_by_clip(tmp_path):
    """Whatever the order of the rows and of the list that each encoder was probed on."""
    one = answers(Predictions, 0, draws=1)["@k5"]
    assert isinstance(one, Predictions)
    videos = [Video(Path(f"{i}.mp4")) for i in range(9)]
    write_predictions(tmp_path / "one" / "predictions.csv", "linear", videos, None, "abc", {"": one})
    turned = Predictions(8 - one.clip, one.draw, one.label, one.scores)
    write_predictions(tmp_path / "two" / "predictions.csv", "linear", videos[::-1], None, "abc", {"": turned})
    first = read_predictions(tmp_path / "one")
    second = read_predictions(tmp_path / "two", first.clips)
    found = difference(first.answers[""], second.answers[""], None)
    assert (found.value, found.low, found.high) == (0, 0, 0)
    with pytest.raises(UserError, match=r"\d\.mp4, which the other result does not have"):
        read_predictions(tmp_path / "two", [f"{i}.avi" for i in range(9)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "holds no predictions.csv"),
        ("path,label\n", "has no column group, probe, draw, predicted"),
        ("path,group,probe,draw,label,predicted,p_a\n", "holds no prediction"),
        ("path,group,probe,draw,label,predicted,p_a\nx,,linear,0,b,a,1\n", r"predictions\.csv is damaged"),
        ("path,group,probe,draw,label,predicted,p_a\nx,,linear,0,a\n", r"predictions\.csv is damaged"),
        ("path,group,probe,draw,label,predicted\nx,,ridge,0,a,1\n", 'damaged .*"a" is not a number'),
    ],
)
def test_damaged_predictions_are_named(tmp_path, text, words):
    if text is not None:
        (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        read_predictions(tmp_path)


def result(kind: Kind = "knn") -> ProbeResult:
    x, task = blobs(90, 12)
    about = {
        "encoder": {"name": "<b>vit", "digest": "0"},
        "data": "clips.csv",
        "kind": kind,
        "protocol": "8x1x1",
        "draws": 1,
        "headline_labels": None,
        "layers": [3],
    }
    videos = [Video(Path(f"{row}.mp4")) for row in task.rows]
    return ProbeResult(about, task, score(x, task, kind), videos, {"broken.mp4": "no frames"})


def test_the_page_shows_the_scores_and_what_is_confused(tmp_path):
    made = result()
    made.save(tmp_path)
    page = probe_report(tmp_path).read_text()
    for name, found in made.metrics.items():
        assert name in page and f"{found.low:.3f} to {found.high:.3f}" in page
    assert "data:image/png;base64" in page and "&lt;b&gt;vit" in page and "<b>vit" not in page
    assert "Better than guessing" in page and "broken.mp4: no frames" in page
    first = (tmp_path / "confusion.png").read_bytes()
    made.save(tmp_path)
    assert (tmp_path / "confusion.png").read_bytes() == first


def test_a_page_needs_a_whole_result(tmp_path):
    with pytest.raises(UserError, match=r"holds no results\.json"):
        probe_report(tmp_path)
    result("linear").save(tmp_path)
    record = json.loads((tmp_path / "results.json").read_text())
    del record["metrics"]
    (tmp_path / "results.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"results\.json is damaged \(no 'metrics'\)"):
        probe_report(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json is damaged"):
        probe_report(tmp_path)
