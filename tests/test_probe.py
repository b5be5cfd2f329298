"""Probes: poolers against the published formula, penalties and heads chosen without test clips, whole results."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from test_features import write_video

from tubelet.errors import UserError
from tubelet.evaluate.attentive import AttentiveSettings, attentive_scores
from tubelet.evaluate.features import _Job
from tubelet.evaluate.linear import CS, choose_c, linear_scores
from tubelet.evaluate.metrics import Predictions
from tubelet.evaluate.probe import probe, retrieve
from tubelet.evaluate.score import score
from tubelet.evaluate.tasks import Task
from tubelet.export.weights import Geometry, load_encoder
from tubelet.nn.block import Block
from tubelet.nn.heads import AttentivePooler

FAST = AttentiveSettings(lrs=(1e-2, 1e-5), wds=(0.01,), epochs=12, batch_size=8)


def published_pooler(pooler: AttentivePooler, tokens: torch.Tensor) -> torch.Tensor:
    """V-JEPA's pooler as its description reads: every token becomes a key and a value."""
    for block in pooler.blocks:
        assert isinstance(block, Block)
        n1, n2 = block.norm1, block.norm2
        tokens = tokens + block.attn(F.layer_norm(tokens, (pooler.dim,), n1.weight, n1.bias, 1e-5))
        tokens = tokens + block.mlp(F.layer_norm(tokens, (pooler.dim,), n2.weight, n2.bias, 1e-5))
    b, n, d = tokens.shape
    normed = F.layer_norm(tokens, (d,), pooler.norm1.weight, pooler.norm1.bias, 1e-5)
    query = pooler.query.expand(b, 1, d)
    q = pooler.cross.q(query).reshape(b, 1, pooler.heads, -1).transpose(1, 2)
    k, v = pooler.cross.kv(normed).reshape(b, n, 2, pooler.heads, -1).permute(2, 0, 3, 1, 4)
    out = query + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, 1, d)
    out = out + pooler.mlp(F.layer_norm(out, (d,), pooler.norm2.weight, pooler.norm2.bias, 1e-5))
    return out.squeeze(1)


@pytest.mark.parametrize("depth", [1, 4])
def test_the_pooler_equals_the_published_formula(depth):
    torch.manual_seed(0)
    pooler = AttentivePooler(dim=48, heads=4, depth=depth)
    for parameter in pooler.parameters():  # away from zero biases and unit scales
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randn(2, 11, 48, requires_grad=True)
    torch.testing.assert_close(pooler(tokens), published_pooler(pooler, tokens), atol=1e-4, rtol=1e-4)
    ours, theirs = (
        torch.autograd.grad(f.square().sum(), tokens)[0]
        for f in (pooler(tokens), published_pooler(pooler, tokens))
    )
    torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-3)


def test_the_poolers_start_is_the_papers():
    torch.manual_seed(0)
    pooler = AttentivePooler(dim=192, heads=4, depth=4)
    assert all(m.eps == 1e-5 for m in pooler.modules() if isinstance(m, torch.nn.LayerNorm))
    assert pooler.query.std().item() == pytest.approx(0.02, rel=0.2)
    for number, block in enumerate(pooler.blocks, start=1):
        assert isinstance(block, Block)
        assert block.attn.proj.weight.std().item() == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.05)
    assert not any("proj" in name for name, _ in pooler.cross.named_parameters())
    with pytest.raises(ValueError, match="5 heads"):
        AttentivePooler(dim=48, heads=5)


def blobs(clips: int, dim: int, classes: int = 3, groups: int = 8, seed: int = 0, signal: float = 1.5):
    """Features with a class signal and a group nuisance, and their task with a group-disjoint split."""
    rng = np.random.default_rng(seed)
    label, group = np.arange(clips) % classes, (np.arange(clips) // classes) % groups
    centres, shifts = rng.normal(size=(classes, dim)), rng.normal(size=(groups, dim))
    x = signal * centres[label] + shifts[group] + rng.normal(size=(clips, dim))
    task = Task(
        tuple("abcdefgh"[:classes]),
        np.arange(clips),
        label,
        np.where(group < groups - 3, "train", "test"),
        np.array([f"g{g}" for g in group]),
    )
    return x.astype(np.float32), task


@pytest.mark.parametrize("dim", [6, 80])  # fewer and more features than clips
def test_the_linear_probe_equals_scikit_learn(dim):
    x, task = blobs(60, dim)
    scaler = StandardScaler().fit(x[:40].astype(np.float64))
    reference = LogisticRegression(C=0.1, max_iter=5000, tol=1e-8).fit(
        scaler.transform(x[:40].astype(np.float64)), task.label[:40]
    )
    expected = reference.predict_proba(scaler.transform(x[40:].astype(np.float64)))
    found = linear_scores(x[:40], task.label[:40], x[40:], 3, c=0.1)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_class_without_training_clips_gets_no_score():
    x, task = blobs(30, 5)
    known = task.label[:20] < 2
    found = linear_scores(x[:20][known], task.label[:20][known], x[20:], 3, c=1.0)
    assert found.shape == (10, 3) and (found[:, 2] == 0).all()


def test_c_is_chosen_across_groups():
    rng = np.random.default_rng(0)
    n, groups = 96, 12
    group = np.arange(n) % groups
    label = rng.integers(0, 2, groups)[group]  # every group is of one class: knowing the group is enough
    tag = np.eye(groups)[group] * 4
    hint = (label[:, None] * 2 - 1) * 0.5 + rng.normal(size=(n, 1))
    x = np.concatenate([tag, hint], axis=1).astype(np.float32)
    by_group, note = choose_c(x, label, group, seed=0)
    by_clip, _ = choose_c(x, label, None, seed=0)
    assert by_group in CS and not note
    assert by_group <= by_clip


def test_scores_are_reproducible_and_beat_guessing():
    x, task = blobs(120, 20)
    one, two = score(x, task, "linear"), score(x, task, "linear")
    assert one.metrics == two.metrics
    found = one.metrics["macro_recall"]
    assert found.low > 1 / 3 and found.low <= found.value <= found.high and found.sd is None
    assert one.train == 75 and one.test == 45


def test_test_labels_change_nothing_that_is_chosen():
    x, task = blobs(120, 20)
    shuffled = task.label.copy()
    test = task.split == "test"
    shuffled[test] = np.random.default_rng(1).permutation(shuffled[test])
    other = Task(task.classes, task.rows, shuffled, task.split, task.group)
    one, two = score(x, task, "linear"), score(x, other, "linear")
    assert one.chosen == two.chosen
    left, right = one.predictions[""], two.predictions[""]
    assert isinstance(left, Predictions) and isinstance(right, Predictions)
    np.testing.assert_array_equal(left.scores, right.scores)


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_few_labels_come_with_a_spread(kind):
    x, task = blobs(120, 20)
    few = score(x, task, kind, per_class=3, draws=4)
    name = "macro_recall" + ("@k5" if kind == "knn" else "")
    assert few.train == 9 and few.metrics[name].sd is not None
    assert few.metrics[name].value < score(x, task, kind).metrics[name].value
    assert {c["draw"] for c in few.chosen} == {0, 1, 2, 3}


def test_folds_test_every_clip_once_and_say_so():
    x, task = blobs(120, 20)
    found = score(x, task, "knn", split_folds=4)
    assert found.test == 120 and any("4 group-disjoint folds" in note for note in found.notes)
    assert sorted(found.predictions["@k5"].clip) == list(range(120))


def test_without_groups_the_reader_is_warned():
    x, task = blobs(60, 10)
    found = score(x, Task(task.classes, task.rows, task.label, None, None), "knn")
    assert any("no group column" in note for note in found.notes)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [({"kind": "svm"}, 'kind="svm"'), ({"kind": "knn", "per_class": 0}, "at least 1")],
)
def test_unknown_probes_are_refused(knobs, words):
    x, task = blobs(60, 10)
    with pytest.raises(UserError, match=words):
        score(x, task, **knobs)


def hidden_tokens(clips: int = 72, n: int = 10, dim: int = 16):
    """One token of ten carries the class, elsewhere the same mark means nothing: the mean hardly tells."""
    rng = np.random.default_rng(0)
    _, task = blobs(clips, dim, classes=3)
    x = rng.normal(size=(clips, 1, n, dim)).astype(np.float32)
    x[np.arange(clips), 0, rng.integers(0, n, clips), 0] += 6
    marked = x[:, 0, :, 0].argmax(1)
    x[np.arange(clips), 0, marked, 1 + task.label] += 4
    x[:, 0, :, 1:4] -= x[:, 0, :, 1:4].mean(1, keepdims=True)  # nothing is left of it in the mean
    return x, task


def test_the_attentive_probe_reads_what_the_mean_has_lost():
    x, task = hidden_tokens(144)
    found = score(lambda clips: torch.from_numpy(x[clips]), task, "attentive", settings=FAST)
    mean = score(x[:, 0].mean(1), task, "linear")
    assert found.metrics["macro_recall"].value > mean.metrics["macro_recall"].value + 0.2
    assert found.chosen[0]["lr"] == 1e-2  # the head that learns, not the one that stands still


def test_the_attentive_probe_is_reproducible_and_averages_crops():
    x, task = hidden_tokens(48)
    x = np.concatenate([x, x], axis=1)  # two crops
    train, test = np.flatnonzero(task.split == "train"), np.flatnonzero(task.split == "test")

    def run():
        settings = AttentiveSettings(lrs=(1e-3,), wds=(0.01,), epochs=2, batch_size=8)
        return attentive_scores(
            lambda c: torch.from_numpy(x[c]), train, task.label[train], test, 3, settings=settings
        )

    state = torch.get_rng_state()
    one, two = run(), run()
    np.testing.assert_array_equal(one.scores, two.scores)
    np.testing.assert_allclose(one.scores.sum(1), 1, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), state)  # a probe leaves no trace in the global generator


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Twelve clips of two classes that differ in brightness, one broken file, groups and a split."""
    folder = tmp_path_factory.mktemp("labelled")
    rows = ["path,label,split,group"]
    for i in range(12):
        dark = i % 2
        write_video(folder / f"{i}.mp4", seed=i, brightness=0.2 if dark else 1.0)
        rows.append(f"{i}.mp4,{'dark' if dark else 'bright'},{'test' if i >= 8 else 'train'},g{i // 2}")
    (folder / "broken.mp4").write_bytes(b"nothing")
    rows.append("broken.mp4,dark,train,g0")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


@pytest.mark.parametrize("kind", ["linear", "knn", "attentive"])
def test_from_videos_to_results(labelled, tmp_path, kind):
    encoder = load_encoder("random:48x2x2", Geometry(frames=4, frame_step=2, crop_size=32))
    result = probe(
        encoder, labelled, kind, cache=tmp_path, out=tmp_path / "eval", settings=FAST, progress=False
    )
    name = "macro_recall@k5" if kind == "knn" else "macro_recall"
    assert result.metrics[name].value == 1.0
    assert result.guessing == {"macro_recall": 0.5, "top1": 0.5}
    record = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert record["metrics"][name]["value"] == 1.0 and record["protocol"] == "4x1x1"
    assert record["train_clips"] == 8 and record["test_clips"] == 4
    assert [Path(path).name for path in record["excluded"]] == ["broken.mp4"]
    assert "1 unreadable videos are left out" in record["notes"]
    with (tmp_path / "eval" / "predictions.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == (8 if kind == "knn" else 4) and rows[0]["label"] == rows[0]["predicted"]
    assert "macro_recall" in result.sentence() and "guessing 0.500" in result.sentence()


def test_raw_pixels_are_probed_with_their_places(labelled, tmp_path):
    encoder = load_encoder("pixels", Geometry(frames=4, frame_step=2, crop_size=32))
    result = probe(encoder, labelled, cache=tmp_path, progress=False)
    assert result.about["pool"] == "flat" and result.metrics["top1"].value == 1.0


def test_mistakes_are_found_before_anything_is_decoded(labelled, tmp_path):
    encoder = load_encoder("random:48x2x2", Geometry(frames=4, frame_step=2, crop_size=32))
    with pytest.raises(UserError, match='pool="mean" does not go with kind="attentive"'):
        probe(encoder, labelled, "attentive", pool="mean", cache=tmp_path)
    with pytest.raises(UserError, match=r'kind="liner" is unknown; did you mean "linear"'):
        probe(encoder, labelled, "liner", cache=tmp_path)  # type: ignore[arg-type]
    bad = labelled.with_name("bad.csv")
    bad.write_text(labelled.read_text().replace("2.mp4,bright", "2.mp4,", 1))
    with pytest.raises(UserError, match=r"clips have no label.*2\.mp4"):
        probe(encoder, bad, cache=tmp_path)
    alone = labelled.with_name("alone.csv")  # one class is of one group, and there is no split to follow
    rows = [f"{i}.mp4,{'dark' if i < 2 else 'bright'},g{i // 2}" for i in range(8)]
    alone.write_text("\n".join(["path,label,group", *rows]) + "\n")
    with pytest.raises(UserError, match='class "dark" has clips of one group only'):
        probe(encoder, alone, cache=tmp_path)
    for knob in ({"folds": 1}, {"draws": 0}, {"workers": -1}, {"per_class": 0}, {"pool": "none"}):
        with pytest.raises(UserError, match=next(iter(knob))):
            probe(encoder, labelled, cache=tmp_path, **knob)  # type: ignore[arg-type]
    for knob in ({"workers": -1}, {"pool": "none"}):
        with pytest.raises(UserError, match=next(iter(knob))):
            retrieve(encoder, labelled, cache=tmp_path, **knob)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_probes_of_one_vector_a_video_share_their_features(labelled, tmp_path, monkeypatch):
    encoder = load_encoder("random:48x2x2", Geometry(frames=4, frame_step=2, crop_size=32))
    ran: list[str] = []
    run = _Job.run

    def counted(self, *args):
        ran.append(self.pool)
        return run(self, *args)

    monkeypatch.setattr(_Job, "run", counted)
    for kind in ("linear", "knn"):
        probe(encoder, labelled, kind, cache=tmp_path / "cache", progress=False)
    retrieve(encoder, labelled, cache=tmp_path / "cache", progress=False)
    assert ran == ["mean"]


def test_features_that_are_not_finite_are_refused():
    x, task = blobs(60, 10)
    x[7, 3] = np.nan
    with pytest.raises(UserError, match=r"1 of 60 clips are not finite \(the first: clip 7\)"):
        score(x, task, "linear")


def test_retrieval_by_its_command(labelled, tmp_path, capsys):
    from tubelet import cli

    words = f"probe random:48x2x3 --data {labelled} --kind retrieval --crop-size 32 --frames 4 --device cpu"
    line = [*words.split(), "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out")]
    assert cli.main(line) == 0
    about = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0 < about["map"] <= 1 and "recall@5" in about
    assert f"map {about['map']:.3f}" in capsys.readouterr().out
    assert cli.main([*line, "--labels", "5"]) == 2
