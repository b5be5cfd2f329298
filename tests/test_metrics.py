"""Every metric against scikit-learn, its weighted form against a set with repeated clips, and the intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    mean_absolute_error,
    r2_score,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from tubelet.evaluate import metrics
from tubelet.evaluate.metrics import (
    Predictions,
    RealPredictions,
    difference,
    estimates,
    interval,
    join,
    resample,
)

ONE = np.ones((1, 1))


def guesses(
    clips: int, classes: int, seed: int = 0, digits: int | None = None, signal: float = 0.5
) -> Predictions:
    """Scores that know something; rounded, many are equal. Every class occurs."""
    rng = np.random.default_rng(seed)
    label = np.concatenate([np.arange(classes), rng.integers(0, classes, clips - classes)])
    scores = rng.random((clips, classes))
    scores[np.arange(clips), label] += signal
    scores /= scores.sum(1, keepdims=True)
    if digits is not None:
        scores = scores.round(digits)
    return Predictions(np.arange(clips), np.zeros(clips, int), label, scores)


@pytest.fixture(autouse=True)
def fewer_resamples(monkeypatch):
    monkeypatch.setattr(metrics, "RESAMPLES", 600)


def references(label: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """What scikit-learn says, over the classes that occur."""
    classes = scores.shape[1]
    predicted = scores.argmax(1)
    there = np.unique(label)
    found = {
        "top1": float((predicted == label).mean()),
        "macro_recall": float(recall_score(label, predicted, labels=there, average="macro")),
        "f1_macro": float(f1_score(label, predicted, average="macro")),
        "map": float(np.mean([average_precision_score(label == c, scores[:, c]) for c in there])),
        "auroc": float(np.mean([roc_auc_score(label == c, scores[:, c]) for c in there])),
    }
    if classes > 5:
        found["top5"] = float(top_k_accuracy_score(label, scores, k=5, labels=np.arange(classes)))
    return found


def values(answers: metrics.Answers, weight: np.ndarray) -> dict[str, float]:
    return {name: float(answers.measure(name, weight[None].astype(float))[0]) for name in answers.metrics}


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_every_metric_equals_scikit_learns(classes):
    made = guesses(61, classes)
    expected = references(made.label, made.scores)
    found = {name: estimate.value for name, estimate in estimates(made, None).items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_of_all_classes_auroc_is_one_against_the_rest():
    made = guesses(80, 4)
    expected = roc_auc_score(made.label, made.scores, multi_class="ovr", average="macro")
    assert estimates(made, None)["auroc"].value == pytest.approx(expected, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 7), digits=st.sampled_from([1, 2, None]))
def test_a_weight_equals_repeating_the_clip(seed, classes, digits):
    """Also where scores are equal, where a clip is left out, and where a class is."""
    made = guesses(30, classes, seed, digits)
    weight = np.random.default_rng(seed).integers(0, 3, 30)
    if not weight.any() or len(np.unique(made.label[weight > 0])) < 2:
        return
    again = np.repeat(np.arange(30), weight)
    one = Predictions(again, np.zeros(len(again), int), made.label[again], made.scores[again])
    found, repeated = values(made, weight), values(one, np.ones(len(again)))
    for name, value in repeated.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name
    for name, value in references(one.label, one.scores).items():
        if digits is None or name != "top5":  # of equal scores scikit-learn takes the last class
            assert found[name] == pytest.approx(value, abs=1e-12), name


def test_a_class_without_test_clips_is_left_out():
    made = guesses(40, 4)
    kept = np.flatnonzero(made.label != 2)
    part = Predictions(kept, made.draw[kept], made.label[kept], made.scores[kept])
    found = estimates(part, None)
    expected = references(part.label, part.scores)
    for name in ("macro_recall", "map", "auroc"):
        assert found[name].value == pytest.approx(expected[name], abs=1e-12)


def test_of_one_class_there_is_no_auroc():
    made = guesses(20, 3)
    part = Predictions(np.arange(20), np.zeros(20, int), np.ones(20, int), made.scores)
    assert "auroc" not in estimates(part, None) and "top1" in estimates(part, None)


def test_top5_never_credits_a_class_without_a_score():
    scores = np.zeros((4, 8))
    scores[:, 7] = 1.0  # as of neighbours that all agree
    made = Predictions(np.arange(4), np.zeros(4, int), np.array([0, 1, 7, 3]), scores)
    assert estimates(made, None)["top5"].value == 0.25
    assert "top5" not in guesses(10, 5).metrics


def test_top1_never_exceeds_top5():
    made = guesses(50, 9, digits=1)
    found = values(made, np.ones(50))
    assert found["top5"] >= found["top1"]


def test_intervals_hold_their_value_also_where_scores_are_noise():
    """Repeated clips raise average precision: without the shift the value fell below its own interval."""
    for name, found in estimates(guesses(120, 12, signal=0.0), None).items():
        assert found.low <= found.value <= found.high, name
        assert found.low >= 0 and found.high <= 1


def test_intervals_of_shares_stay_where_shares_are():
    """The shift and what seeds add lead out of [0, 1]; R² and the error may really be there."""
    spread = np.linspace(-3, 3, 101)
    for metric in (*metrics.COUNTS, *metrics.RANKS):
        assert interval(0.5, spread, metric, lowest=0.0) == (0, 1), metric
        assert interval(0.5, np.full(101, 0.5), metric, lowest=-1.0, around=spread) == (-1, 1), metric
    for metric in metrics.ERRORS:
        assert interval(0.5, spread, metric, lowest=0.0) == pytest.approx((-2.85, 2.85)), metric


def test_every_way_to_resample_sees_the_same_groups():
    """Metrics that are asked for together, or alone; as many as there are of each."""
    made, group = guesses(60, 7), np.array([f"g{i // 5}" for i in range(60)])
    together = resample(made, group, made.metrics, seed=4)
    weight = np.random.default_rng(4).multinomial(12, np.full(12, 1 / 12), size=600)
    place = np.unique(group, return_inverse=True)[1]
    for name, found in together.items():
        alone = resample(made, group, [name], seed=4)[name]
        assert (found.metric, found.value) == (name, alone.value)
        np.testing.assert_allclose(found.resamples, alone.resamples, atol=1e-12)
        expected = made.measure(name, weight[:, place].astype(float))
        np.testing.assert_allclose(found.resamples, expected, atol=1e-12)


def test_what_is_always_right_has_no_spread():
    label = np.arange(24) % 6
    made = Predictions(np.arange(24), np.zeros(24, int), label, np.eye(6)[label])
    assert {(e.value, e.low, e.high) for e in estimates(made, None).values()} == {(1.0, 1.0, 1.0)}


def test_rank_intervals_follow_groups():
    made = guesses(120, 3, signal=0.2)
    group = np.array([f"g{i // 20}" for i in range(120)])
    good = np.isin(group, ["g0", "g1", "g2"])
    scores = np.where(good[:, None], np.eye(3)[made.label], made.scores)
    mixed = Predictions(made.clip, made.draw, made.label, scores)
    by_group, by_clip = estimates(mixed, group)["auroc"], estimates(mixed, None)["auroc"]
    assert by_group.value == by_clip.value
    assert by_group.high - by_group.low > 1.3 * (by_clip.high - by_clip.low)


def test_chunks_change_nothing(monkeypatch):
    made, group = guesses(60, 4), np.array([f"g{i % 7}" for i in range(60)])
    whole = estimates(made, group)
    monkeypatch.setattr(metrics, "_CHUNK", 60 * 137)
    for name, found in estimates(made, group).items():
        assert (found.value, found.sd) == (whole[name].value, whole[name].sd)
        assert (found.low, found.high) == pytest.approx((whole[name].low, whole[name].high), abs=1e-12)


def test_large_test_sets_rank_fewer_resamples_but_never_too_few():
    assert metrics._resamples("map", guesses(60, 4)) == metrics.RESAMPLES
    huge = Predictions(ONE, ONE, ONE, np.broadcast_to(0.0, (10**5, 500)))
    assert metrics._resamples("map", huge) == metrics.FEW_RESAMPLES
    assert metrics._resamples("top1", huge) == metrics.RESAMPLES


def test_several_draws_are_averaged():
    parts = [guesses(40, 3, seed) for seed in range(3)]
    label = parts[0].label
    parts = [Predictions(p.clip, np.full(40, d), label, p.scores) for d, p in enumerate(parts)]
    found = estimates(join(parts), None)
    for name in ("macro_recall", "map"):
        alone = [estimates(part, None)[name].value for part in parts]
        assert found[name].value == pytest.approx(np.mean(alone))
        assert found[name].sd == pytest.approx(np.std(alone, ddof=1))


@pytest.mark.parametrize("metric", ["top1", "macro_recall", "f1_macro", "map", "auroc"])
def test_paired_differences_of_every_metric(metric):
    worse = guesses(150, 3, signal=0.2)
    scores = worse.scores.copy()
    better_at = np.arange(150) % 4 == 0
    scores[better_at] = np.eye(3)[worse.label[better_at]]
    better = Predictions(worse.clip, worse.draw, worse.label, scores)
    gain = difference(better, worse, None, metric)
    one, other = (estimates(p, None)[metric] for p in (better, worse))
    assert gain.value == pytest.approx(one.value - other.value)
    assert 0 < gain.low < gain.value < gain.high
    assert gain.high - gain.low < (one.high - one.low) + (other.high - other.low)
    back = difference(worse, better, None, metric)
    assert (back.low, back.high) == pytest.approx((-gain.high, -gain.low))


@pytest.mark.parametrize("what", ["clip", "draw", "label"])
def test_what_was_tested_differently_is_not_paired(what):
    one = guesses(30, 3)
    other = {name: getattr(one, name).copy() for name in ("clip", "draw", "label")}
    other[what][4] += 1 if other[what][4] < 2 or what != "label" else -1
    with pytest.raises(ValueError, match=f"different {what}s"):
        difference(one, Predictions(scores=one.scores, **other), None)


def test_the_order_of_rows_does_not_matter():
    one, other = guesses(50, 3), guesses(50, 3, signal=1.0)
    other = Predictions(one.clip, one.draw, one.label, other.scores)
    order = np.random.default_rng(0).permutation(50)
    mixed = Predictions(*(column[order] for column in (other.clip, other.draw, other.label, other.scores)))
    for metric in ("macro_recall", "map"):
        straight, shuffled = difference(one, other, None, metric), difference(one, mixed, None, metric)
        assert (straight.value, straight.low) == pytest.approx((shuffled.value, shuffled.low))


def test_unknown_metrics_are_refused():
    with pytest.raises(ValueError, match='metric="r2" is unknown; there are top1'):
        difference(guesses(20, 3), guesses(20, 3), None, "r2")
    with pytest.raises(ValueError, match='metric="top1" is unknown; there are r2, mae'):
        resample(numbers(), None, ["mae", "top1"])


def numbers(clips: int = 50, offset: float = 0.0, seed: int = 0) -> RealPredictions:
    rng = np.random.default_rng(seed)
    label = rng.normal(size=clips) + offset
    return RealPredictions(
        np.arange(clips), np.zeros(clips, int), label, label + 0.5 * rng.normal(size=clips)
    )


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_metrics_of_numbers_equal_scikit_learns(offset):
    made = numbers(offset=offset)
    found = estimates(made, None)
    assert found["r2"].value == pytest.approx(r2_score(made.label, made.predicted), abs=1e-9)
    assert found["mae"].value == pytest.approx(mean_absolute_error(made.label, made.predicted), abs=1e-9)
    weight = np.random.default_rng(1).integers(0, 4, 50)
    expected = r2_score(made.label, made.predicted, sample_weight=weight)
    assert values(made, weight)["r2"] == pytest.approx(expected, abs=1e-7)
    assert all(e.low < e.value < e.high for e in found.values())


def test_of_equal_numbers_there_is_no_r2():
    made = RealPredictions(np.arange(5), np.zeros(5, int), np.full(5, 0.1), np.arange(5.0))
    assert set(estimates(made, None)) == {"mae"}


def test_differences_of_numbers():
    one, other = numbers(), numbers(seed=0)
    worse = RealPredictions(one.clip, one.draw, one.label, one.label + 2 * (other.predicted - one.label))
    gain, error = (difference(one, worse, None, name) for name in ("r2", "mae"))
    assert gain.low > 0 and error.high < 0
