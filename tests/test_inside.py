"""The analysis as a whole: on small encoders whose answers are known, its files, and everything that can be wrong."""

from __future__ import annotations

import csv
import json
import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.progress import Progress
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tubelet import cli
from tubelet.data.synthetic import render, write_video
from tubelet.errors import UserError
from tubelet.evaluate import features
from tubelet.evaluate.features import Features
from tubelet.evaluate.noise import Interval
from tubelet.evaluate.source import Views, read_views
from tubelet.evaluate.targets import TargetScores
from tubelet.export.truncate import truncated
from tubelet.export.weights import Geometry, load_encoder, save_encoder
from tubelet.inside import worlds
from tubelet.inside.analyze import analyze
from tubelet.inside.decoding import cautious
from tubelet.inside.definitions import DEFINITIONS
from tubelet.inside.footage import Manner, Means, read_footage
from tubelet.inside.geometry import against_gain
from tubelet.inside.kept import Kept
from tubelet.inside.look import Amounts, Look
from tubelet.inside.records import Records
from tubelet.inside.saturation import Gain, Saturation, Transition, saturation
from tubelet.inside.subject import read_subjects
from tubelet.inside.through import settled
from tubelet.inside.tokens import places, sample
from tubelet.nn.vit import ViT
from tubelet.report.depth.page import depth_report

GEOMETRY = Geometry(frames=4, frame_step=2, crop_size=32)
CLASSES = ("fine", "coarse")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """labels.csv of 24 clips of two textures, in twelve groups, half of them to learn from."""
    folder = tmp_path_factory.mktemp("set")
    rows = [["path", "label", "split", "group", "half"]]
    for number in range(24):
        # 20 indices go through all motions of four appearances; 0-4 are "fine", 5-9 "coarse"
        clip = render(20 * (number // 2) + 5 * (number % 2), seed=1, frames=10, size=48)
        assert clip.appearance == CLASSES[number % 2]
        write_video(folder / f"{number}.mp4", clip.frames)
        split = "train" if number < 12 else "test"
        rows.append([f"{number}.mp4", clip.appearance, split, f"g{number // 2}", f"h{number // 2 % 2}"])
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "labels.csv"


def model(seed: int = 0, depth: int = 3) -> ViT:
    torch.manual_seed(seed)
    return ViT(48, depth, 2, patch=(2, 16, 16), init_std=0.1)


def saved(made: ViT, folder: Path, name: str = "small", geometry: Geometry = GEOMETRY) -> str:
    save_encoder(made, folder / name, geometry, {"name": name, "recipe": "videomae"})
    return str(folder / name)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained encoder of three blocks."""
    return saved(model(), tmp_path_factory.mktemp("encoder"))


Go = Callable[..., dict[str, Any]]


@pytest.fixture
def go(data: Path, tmp_path: Path) -> Go:
    """Analyses into tmp_path/out, without gratings unless they are asked for."""

    def run(*encoders: str, skip: tuple[str, ...] = ("gratings",), **knobs: Any) -> dict[str, Any]:
        few = {name: knobs.pop(name) for name in ("grating_clips", "checkpoints") if name in knobs}
        amounts = Amounts(skip=skip, token_clips=4, influence_clips=1, **few)
        manner = Manner(cache=tmp_path / "cache", batch_size=8, workers=2)
        given = {"data": data, "out": tmp_path / "out", **knobs}
        return analyze(encoders, amounts=amounts, manner=manner, **given)

    return run


def values(
    found: dict[str, Any], metric: str, encoder: str = "small", target: str | None = None
) -> list[Any]:
    """A metric layer by layer."""
    rows = [
        r for r in found["layers"] if (r["encoder"], r["metric"], r["target"]) == (encoder, metric, target)
    ]
    return [row["value"] for row in sorted(rows, key=lambda row: row["layer"])]


def test_all_parts_are_measured_at_every_layer_and_written(go, small, tmp_path) -> None:
    found = go(small, skip=(), grating_clips=96)
    whole = ("linear", "macro_recall", "map", "hit@1", "hit@5", "hit@10", "linear_occluded")
    whole += ("grating", "double", "patch_similarity", "token_norm")
    whole += ("effective_rank", "participation_ratio", "uniformity", "rankme", "influence_elsewhere")
    for metric in whole:
        assert len(values(found, metric)) == 4 and None not in values(found, metric), metric
        assert metric in DEFINITIONS
    assert len(values(found, "attention_space")) == 3  # the embedding has none
    assert len(values(found, "grating", target="orientation")) == 4
    assert {row["metric"] for row in found["layers"]} <= DEFINITIONS.keys()
    out = tmp_path / "out"
    assert json.loads((out / "analysis.json").read_text(), parse_constant=pytest.fail) == json.loads(
        json.dumps(found)
    )
    assert {"layers.csv", "transitions.csv", "similarity.csv", "report.html"} <= {
        p.name for p in out.iterdir()
    }
    assert all((out / entry["picture"]).is_file() for entry in found["influence"])
    assert [(row["from"], row["to"]) for row in found["transitions"]] == [(0, 1), (1, 2), (2, 3)]


def test_linear_equals_scikit_learn_on_the_mean_tokens_of_each_layer(go, small, data) -> None:
    found = go(small, skip=("gratings", "occdrop", "tokens", "influence"))
    videos = read_footage(data).videos
    clips = torch.cat([read_views(video, GEOMETRY, Views()) for video in videos])
    encoder = load_encoder(small).model
    label = np.array([CLASSES.index(str(video.label)) for video in videos])
    for layer, tokens in encoder.layers(clips, range(4)).items():
        z = (encoder.norm(tokens) if layer == 3 else tokens).mean(1).numpy()
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(z[:12], label[:12])
        assert values(found, "linear")[layer] == accuracy_score(label[12:], probe.predict(z[12:]))


def test_blocks_that_do_nothing_have_cka_one_and_gain_nothing(go, tmp_path) -> None:
    still = model(depth=4)
    with torch.no_grad():
        for block in (still.blocks[1], still.blocks[2]):
            for part in (block.attn.proj, block.mlp.fc2):  # type: ignore[union-attr]
                part.weight.zero_()  # type: ignore[union-attr]
                part.bias.zero_()  # type: ignore[union-attr]
    found = go(saved(still, tmp_path))
    assert [row["cka_linear"] for row in found["transitions"]][1:3] == [pytest.approx(1)] * 2
    for row in found["transitions"][1:3]:
        assert row["gain_linear"] == {"value": 0, "low": -3 / 12, "high": 3 / 12}
        assert row["gain_map"] == {"value": 0, "low": 0, "high": 0}
    assert values(found, "linear")[1] == values(found, "linear")[2] == values(found, "linear")[3]


def test_occdrop_is_zero_where_every_patch_tells_and_undefined_where_the_clip_does_not(
    go, small, data, tmp_path
) -> None:
    rows = ["path,label,split"]
    for number in range(24):  # two colours that a single patch shows
        level = 40 if number % 2 else 200
        frames = np.full((10, 48, 48, 3), level, np.uint8) + np.random.default_rng(number).integers(
            0, 20, (3,), np.uint8
        )
        write_video(tmp_path / f"{number}.mp4", frames)
        rows.append(
            f"{tmp_path}/{number}.mp4,{'dark' if number % 2 else 'bright'},{'train' if number < 12 else 'test'}"
        )
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    skip = ("gratings", "tokens", "influence", "spectrum", "saturation")
    easy = go(small, data=tmp_path / "list.csv", skip=skip)
    assert values(easy, "linear") == [1.0] * 4 and values(easy, "linear_occluded") == [1.0] * 4
    drops = [row for row in easy["layers"] if row["metric"] == "occdrop"]
    assert [(row["value"], row["low"], row["high"]) for row in drops] == [(0.0, 0.0, 0.0)] * 4
    hard = go(small, skip=skip)  # twelve test clips of textures: not better than guessing
    assert values(hard, "occdrop") == [None] * 4
    assert all("guessing" in row["undefined"] for row in hard["layers"] if row["metric"] == "occdrop")


def test_a_second_look_reads_no_clip_again_and_says_the_same(go, small, monkeypatch) -> None:
    first = go(small, skip=(), grating_clips=96)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("this was measured before")

    monkeypatch.setattr(features._Job, "run", never)
    monkeypatch.setattr(worlds, "probe_targets", never)
    monkeypatch.setattr("tubelet.inside.tokens.token_statistics", never)
    monkeypatch.setattr("tubelet.inside.tokens.influence", never)
    again = go(small, skip=(), grating_clips=96)
    for key in ("layers", "transitions", "maps", "influence"):
        assert again[key] == first[key]


def test_an_encoder_with_constant_features_is_undefined_and_not_zero(go, tmp_path) -> None:
    dead = model()
    with torch.no_grad():
        for parameter in dead.parameters():
            parameter.zero_()
        dead.norm.bias.fill_(1.0)
    found = go(saved(dead, tmp_path))
    for metric in ("linear", "map", "effective_rank", "occdrop", "influence_elsewhere"):
        assert values(found, metric) == [None] * 4, metric
    reasons = {row["metric"]: row["undefined"] for row in found["layers"] if row["value"] is None}
    assert "same for all clips" in reasons["linear"] and reasons["influence_elsewhere"]
    assert {row["cka_linear"] for row in found["transitions"]} == {None}
    assert found["saturation"][0]["blocks"] == [] and "undefined" in found["saturation"][0]["sentence"]


def test_weights_that_are_not_numbers_are_an_error_that_names_the_clip(go, tmp_path) -> None:
    broken = model()
    with torch.no_grad():
        broken.blocks[1].mlp.fc1.weight[0, 0] = math.nan  # type: ignore[union-attr,index]
    with pytest.raises(UserError, match=r"layer 2 of .*\.mp4 that are not finite"):
        go(saved(broken, tmp_path))


def test_encoders_of_another_depth_and_geometry_are_compared_on_the_same_clips(go, small, tmp_path) -> None:
    other = saved(model(depth=2), tmp_path, "other", replace(GEOMETRY, frames=2, crop_size=48))
    found = go(small, other, skip=("gratings", "tokens", "influence", "occdrop"))
    between = [
        m for m in found["maps"] if (m["one"], m["other"], m["metric"]) == ("small", "other", "cka_linear")
    ]
    assert np.array(between[0]["values"]).shape == (4, 3)
    assert len(values(found, "linear", "other")) == 3


def test_without_labels_what_needs_none_is_measured(go, small, data, tmp_path) -> None:
    found = go(small, data=sorted(data.parent.glob("*.mp4"))[0].parent, skip=("gratings", "influence"))
    assert found["about"]["data"]["labelled"] is False and any(
        "no labels" in n for n in found["about"]["notes"]
    )
    assert (
        not values(found, "linear")
        and found["saturation"] == []
        and None not in values(found, "effective_rank")
    )


def test_views_give_lidar_and_labels_may_come_from_another_column(go, small) -> None:
    found = go(
        small,
        views=Views(segments=2),
        label="half",
        folds=2,
        skip=("gratings", "tokens", "influence", "occdrop"),
    )
    assert all(1 <= value <= 48 for value in values(found, "lidar"))
    assert found["about"]["data"]["classes"] == ["h0", "h1"]


def test_short_and_broken_videos_are_told(go, small, data, tmp_path) -> None:
    rows = data.read_text().splitlines()
    folder = data.parent
    write_video(tmp_path / "short.mp4", render(0, seed=2, frames=3, size=48).frames)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    listed = [rows[0], *(f"{folder}/{row}" for row in rows[1:])]
    listed += [f"{tmp_path}/short.mp4,fine,train,s,h0", f"{tmp_path}/broken.mp4,coarse,train,b,h0"]
    (tmp_path / "list.csv").write_text("\n".join(listed) + "\n")
    found = go(small, data=tmp_path / "list.csv", skip=("gratings", "tokens", "influence", "occdrop"))
    notes = " ".join(found["about"]["notes"])
    assert "1 of 26 videos are shorter than a clip of small" in notes
    assert "1 videos cannot be read" in notes and "broken.mp4" in notes
    assert found["about"]["data"]["clips"] == 25


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"layers": [1, 4]}, r"small has layers 0 \(embedding\) to 3, not \[4\]"),
        ({"names": ["a", "b"]}, "2 names for 1 encoders"),
        ({"skip": ("spectra",)}, 'skip="spectra" is unknown'),
        ({"folds": 1}, "folds=1"),
        ({"checkpoints": "all"}, "none of the encoders is a run that kept checkpoints"),
        ({"skip": (), "grating_clips": 40}, "grating_clips=40: must be at least 96.*skip=gratings"),
        ({"label": "colour"}, 'no column "colour"'),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_decoded(go, small, knobs, said, monkeypatch) -> None:
    monkeypatch.setattr(features._Job, "run", lambda *_: pytest.fail("something was decoded"))
    with pytest.raises(UserError, match=said):
        go(small, **knobs)


def test_a_set_with_fewer_clips_than_classes_need_is_refused(go, small, data, tmp_path) -> None:
    rows = [f"{data.parent}/{number}.mp4,class{number}" for number in range(6)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    with pytest.raises(UserError, match="class"):
        go(small, data=tmp_path / "list.csv")


def test_two_encoders_of_one_name_are_told_apart_by_where_they_lie(tmp_path) -> None:
    one, other = (saved(model(seed), tmp_path / f"run{seed}", "encoder") for seed in (1, 2))
    assert [s.name for s in read_subjects([one, other])] == ["run1/encoder", "run2/encoder"]
    assert [s.name for s in read_subjects([f"random:{one}@3", "random:48x2x2"])] == [
        "random:encoder@3",
        "random:48x2x2",
    ]
    with pytest.raises(UserError, match='two encoders are called "same"'):
        read_subjects([one, other], ["same", "same"])


def test_the_command_says_what_it_found(small, data, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    given = (
        f"--data {data} --out {out} --names [red]ours,random:a: --cache {tmp_path / 'cache'} --layers 0,2,3"
    )
    skip = "--skip gratings,occdrop,tokens,influence"
    code = cli.main(["analyze", small, f"random:{small}@3", *given.split(), *skip.split()])
    assert code == 0
    told = capsys.readouterr().err
    assert "[red]ours: " in told and "random:a:: " in told and "report.html" in told
    assert {row["layer"] for row in json.loads((out / "analysis.json").read_text())["layers"]} == {0, 2, 3}


def test_a_run_is_followed_through_its_checkpoints(go, data, tmp_path) -> None:
    run = tmp_path / "run"
    small = "--model 48x2x2 --crop-size 32 --frames 4 --frame-step 2 --batch-size 4 --workers 0 --device cpu --steps 4"
    kept = "--save-every 2 --keep 1 --keep-every 2 --lr 1e-2"
    assert (
        cli.main(
            ["pretrain", "videomae", "--data", str(data), "--out", str(run), *small.split(), *kept.split()]
        )
        == 0
    )
    found = go(str(run), checkpoints="all", skip=("gratings", "tokens", "influence", "occdrop", "spectrum"))
    (followed,) = found["through"]
    assert followed["steps"] == [2, 4] and followed["layers"] == [0, 1, 2]
    series = {entry["metric"]: np.array(entry["values"]) for entry in followed["series"]}
    assert series["cka_with_final"][:, -1] == pytest.approx(1) and (series["cka_with_final"][:, 0] < 1).all()
    assert series["linear"][:, -1].tolist() == values(found, "linear", "run")
    assert series["map"][:, -1].tolist() == values(found, "map", "run")
    with pytest.raises(UserError, match="has no checkpoint of step 3; there are 2, 4"):
        go(str(run), checkpoints="2,3")


def gain(value: float = 0.0, noise: float = 0.05) -> Gain:
    found = Interval(value, value - noise, value + noise)
    return Gain(found, found)


def flat(start: int, cka: float, value: float = 0.0, noise: float = 0.05) -> Transition:
    return Transition(start, start + 1, cka, gain(value, noise))


def judged(rows: list[Transition], lost: float = 0.0) -> Saturation:
    """With ``lost`` between every layer and the whole encoder."""
    return saturation(rows, {row.start: gain(lost) for row in rows}, rows[-1].stop)


def test_saturation_flags_blocks_within_the_noise_that_turn_less_than_their_neighbours() -> None:
    # gains: +, +, 0, 0 (alike), 0 (but turning), + ; then nothing
    rows = [
        flat(0, 0.8, 0.2),
        flat(1, 0.9, 0.2),
        flat(2, 0.95),
        flat(3, 0.97),
        flat(4, 0.7),
        flat(5, 0.9, 0.2),
    ]
    found = judged(rows)
    assert (
        found.blocks == (3, 4) and found.keep is None and "The last block is not among them" in found.sentence
    )
    found = judged(rows[:4])
    assert found.blocks == (3, 4) and found.keep == 2
    assert "The first 2 of 4 blocks can be kept alone: +0.0 points of top-1 [-5.0, +5.0]" in found.sentence
    # within the noise, but less alike than the neighbour: it changes something
    assert judged([flat(0, 0.8, 0.2), flat(1, 0.6)]).blocks == ()


def test_small_losses_that_add_up_are_not_cut() -> None:
    rows = [flat(0, 0.5, 0.3), *(flat(k, 0.9, 0.015, 0.02) for k in range(1, 7))]
    lost = {row.start: gain(-0.015 * (7 - row.start), 0.03) for row in rows}
    found = saturation(rows, lost, 7)
    assert found.blocks == (2, 3, 4, 5, 6, 7) and found.keep == 5  # 1 and 2 lose more than the noise
    found = saturation(rows, {row.start: gain(-0.1, 0.03) for row in rows}, 7)
    assert found.keep is None and "what is lost adds up" in found.sentence


def test_saturation_concludes_nothing_where_every_gain_is_within_the_noise() -> None:
    found = judged([flat(0, 0.9), flat(1, 0.99)])
    assert found.blocks == () and found.keep is None and "no block should be cut" in found.sentence
    assert "±5.0 points" in found.sentence


def test_one_gain_of_many_that_is_barely_clear_is_no_ground_to_conclude_from() -> None:
    barely = flat(0, 0.8, 0.052)  # [.002, .102]: one in twenty looks like that by chance
    assert judged([barely, *(flat(k, 0.99) for k in range(1, 12))]).blocks == ()
    clearly = flat(0, 0.8, 0.1)
    assert judged([clearly, *(flat(k, 0.99) for k in range(1, 12))]).blocks == tuple(range(2, 13))


def test_saturation_never_flags_a_block_that_makes_things_clearly_worse() -> None:
    found = judged([flat(0, 0.8, 0.2), flat(1, 0.99, -0.2)])
    assert found.blocks == () and found.sentence == "Every block changes something beyond the noise."


def test_saturation_where_gains_are_undefined_or_there_is_one_layer() -> None:
    assert "undefined" in saturation([Transition(0, 1, math.nan, None)], {}, 1).sentence
    assert "one layer only" in saturation([], {}, 0).sentence


def test_several_blocks_between_two_layers_are_flagged_together() -> None:
    rows = [flat(0, 0.8, 0.2), Transition(1, 4, 0.95, gain(0, 0.1))]
    assert judged(rows).blocks == (2, 3, 4) and judged(rows).keep == 1


def test_nothing_is_cut_from_the_top_if_the_top_was_not_looked_at() -> None:
    rows = [flat(0, 0.8, 0.2), flat(1, 0.95)]
    found = saturation(rows, {}, 12)
    assert (
        found.blocks == (2,) and found.keep is None and "The last layer was not looked at" in found.sentence
    )


def test_intervals_of_few_clips_are_not_narrower_than_a_sign_test_allows() -> None:
    # four clips of forty that only one of the two gets right: p = .125
    found = cautious(Interval(0.1, 0.025, 0.2), 4, 0, 40)
    assert not found.clear and found.high == 0.2
    assert cautious(Interval(0.25, 0.12, 0.38), 10, 0, 40).clear
    # the same answers everywhere: 3 / n may still hide
    assert cautious(Interval(0.0, 0.0, 0.0), 0, 0, 60) == Interval(0.0, -0.05, 0.05)


def test_what_cuts_cost_is_measured_on_what_the_cut_encoder_hands_out(go, small, data, tmp_path) -> None:
    found = go(small, skip=("gratings", "occdrop", "tokens", "influence", "similarity", "decodability"))
    (row,) = found["saturation"]
    rows = {cut["layers"]: cut for cut in row["cuts"]}
    assert list(rows) == [1, 2, 3] and rows[3]["difference"] is None
    assert rows[3]["flops_share"] == rows[3]["time_share"] == rows[3]["parameters_share"] == 1
    assert 0 < rows[1]["flops_share"] < rows[2]["flops_share"] < 1
    cut = truncated(load_encoder(small), 2)
    save_encoder(cut.model, tmp_path / "cut", GEOMETRY, {"name": "cut"})  # type: ignore[arg-type]
    again = go(
        str(tmp_path / "cut"), skip=("gratings", "occdrop", "tokens", "influence", "similarity", "saturation")
    )
    assert values(again, "linear", "cut")[-1] == rows[2]["score"]["value"]


def test_a_layer_has_settled_once_it_stays_alike() -> None:
    steps = [100, 200, 300, 400]
    assert settled(steps, [0.5, 0.96, 0.99, 1.0]) == 200
    assert settled(steps, [0.99, 0.5, 0.99, 1.0]) == 300
    assert settled(steps, [0.99, 0.99, 0.99, None]) is None
    assert settled(steps, [0.5, 0.5, 0.5, 1.0]) is None  # the last is compared with itself


def test_geometry_against_gain_fits_the_line_it_was_given() -> None:
    made = {f"e{i}": [(1, 2, 0.8 + 0.05 * i, 0.3 - 0.2 * (0.8 + 0.05 * i))] for i in range(3)}
    found = against_gain(made)
    assert found is not None
    assert {fit["transition"] for fit in found["fits"]} == {"all", "1 -> 2"}
    for fit in found["fits"]:
        assert fit["slope"] == pytest.approx(-0.2) and fit["intercept"] == pytest.approx(0.3)
        assert fit["r"] == pytest.approx(-1) and fit["n"] == 3
    assert against_gain({"e": [(0, 1, math.nan, 0.1)]}) is None
    beside = against_gain({**made, "random": [(1, 2, 0.9, 9.0)], "e3": [(0, 1, 0.1, 9.0)]}, {"random"})
    assert beside is not None and len(beside["points"]) == 5 and beside["fits"] == found["fits"]
    two = against_gain({"e": [(1, 2, 0.5, 0.1), (2, 3, 0.6, 0.1)]})
    assert two is not None and two["fits"] == []  # two points are no evidence of a line


def test_what_was_kept_is_made_again_only_if_something_changed_or_is_damaged(tmp_path) -> None:
    kept, made = Kept(tmp_path), []

    def make() -> dict[str, int]:
        made.append(1)
        return {"n": len(made)}

    assert kept.get("a", {"x": 1}, make) == kept.get("a", {"x": 1}, make) == {"n": 1}
    assert kept.get("a", {"x": 2}, make) == {"n": 2}
    for damage in (lambda text: text[:20], lambda _: "[1]", lambda text: text.replace('"found"', '"lost"')):
        for file in tmp_path.iterdir():
            file.write_text(damage(file.read_text()))
        before = len(made)
        assert kept.get("a", {"x": 1}, make) == {"n": before + 1}
    for file in tmp_path.iterdir():
        file.write_bytes(b"\xff\xfe\x00")
    assert kept.get("a", {"x": 1}, make) == {"n": len(made)}


def test_another_version_of_the_features_is_measured_again(tmp_path, monkeypatch) -> None:
    kept = Kept(tmp_path)
    assert kept.get("a", {}, lambda: 1) == kept.get("a", {}, lambda: 2) == 1
    monkeypatch.setattr(features, "VERSION", features.VERSION + 1)
    assert kept.get("a", {}, lambda: 2) == 2


def test_undefined_numbers_keep_their_reason_and_lose_their_interval() -> None:
    records = Records()
    records.add("e", 1, "m", Interval(math.nan, 0.0, 1.0), undefined="why")
    records.add("e", 2, "m", math.inf)
    records.add("e", 3, "m", Interval(0.5, 0.25, 0.75), "t")
    assert [(r["value"], r["low"], r["undefined"]) for r in records.rows] == [
        (None, None, "why"),
        (None, None, "not a finite number"),
        (0.5, 0.25, None),
    ]


def test_samples_and_places_are_evenly_drawn_and_never_more_than_there_are() -> None:
    rows = np.array([2, 3, 5, 8])
    assert sample(rows, 9, 0).tolist() == rows.tolist()
    assert len(set(sample(np.arange(100), 10, 0).tolist())) == 10
    assert places(6, 6) == [(r, c) for r in (1, 3, 5) for c in (1, 3, 5)]
    assert places(1, 2) == [(0, 0), (0, 1)]


def test_published_encoders_are_looked_at_like_ours(go, tmp_path) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="the test extra's transformers is not installed"
    )
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(
        image_size=32,
        patch_size=16,
        num_frames=4,
        tubelet_size=2,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=96,
        use_mean_pooling=False,
    )
    transformers.VideoMAEModel(config).save_pretrained(tmp_path / "theirs")
    found = go(str(tmp_path / "theirs"), skip=("gratings", "occdrop"), names=["theirs"])
    for metric in ("linear", "map", "effective_rank", "patch_similarity", "influence_elsewhere"):
        assert len(values(found, metric, "theirs")) == 3 and None not in values(found, metric, "theirs")
    assert len(values(found, "attention_entropy", "theirs")) == 2


def test_clips_that_can_no_longer_be_read_are_an_error_and_not_rows_of_zeros() -> None:
    table = np.ones((4, 1, 1, 1, 2), np.float32)
    found = Features(np.array([0, 1, 3]), {0: table}, {2: "gone.mp4: no such file"}, Path("x"), "clip")
    assert Means(found, 0, np.array([0, 3]))[:].shape == (2, 2)
    with pytest.raises(UserError, match=r"1 of 3 clips could be read before .* gone\.mp4"):
        Means(found, 0, np.array([0, 2, 3]))


def test_means_of_any_slice_equal_those_of_the_whole(monkeypatch) -> None:
    table = np.random.default_rng(0).standard_normal((9, 2, 3, 1, 4)).astype(np.float32)
    found = Features(np.arange(9), {0: table}, {}, Path("x"), "clip")
    rows = np.array([8, 1, 3, 4])
    whole = table[rows].mean(axis=(1, 2, 3))
    monkeypatch.setattr("tubelet.inside.footage._AT_ONCE", 3)
    means = Means(found, 0, rows)
    np.testing.assert_allclose(means[:], whole, rtol=1e-6)
    np.testing.assert_allclose(means[1:3], whole[1:3], rtol=1e-6)
    np.testing.assert_allclose(means[np.array([3, 0])], whole[[3, 0]], rtol=1e-6)


def test_time_within_a_part_is_counted_once(tmp_path) -> None:
    look = Look([], None, Amounts(), Manner(), Kept(tmp_path), tmp_path, 0, Progress())  # type: ignore[arg-type]
    with look.timed("outer"):
        time.sleep(0.02)
        with look.timed("inner"):
            time.sleep(0.1)
    assert look.seconds["inner"] >= 0.1 and 0.02 <= look.seconds["outer"] < 0.1


def test_every_definition_that_the_page_asks_for_exists() -> None:
    report = Path(depth_report.__code__.co_filename).parent
    asked = {
        name for file in report.glob("*.py") for name in re.findall(r'how\(\["(\w+)"\]\)', file.read_text())
    }
    assert asked == {"geometry_vs_gain", "influence", "saturation"} and asked <= DEFINITIONS.keys()


def test_names_that_differ_in_signs_alone_keep_their_own_pictures(go, small, tmp_path) -> None:
    other = saved(model(7), tmp_path, "other")
    found = go(
        small, other, names=["end to end", "end-to-end"], skip=("gratings", "occdrop", "tokens", "saturation")
    )
    pictures = [tmp_path / "out" / entry["picture"] for entry in found["influence"]]
    assert len({file.read_bytes() for file in pictures}) == 2
    go(small, names=["end to end"], skip=("gratings", "occdrop", "tokens", "saturation"))
    assert len(list((tmp_path / "out" / "influence").iterdir())) == 1  # the other's is gone


def test_what_cannot_be_concluded_is_said(go, small, data) -> None:
    skip = ("gratings", "tokens", "influence", "spectrum")
    found = go(small, skip=(*skip, "decodability"), layers=[0, 1])
    notes = " ".join(found["about"]["notes"])
    assert "the test clips come from 6 groups" in notes
    assert "the last layer was not looked at" in notes and "decodability was skipped" in notes


def test_an_infinite_condition_number_is_told_apart_from_a_direction_that_is_missing(go, small) -> None:
    found = go(small, skip=("gratings", "occdrop", "tokens", "influence", "saturation"))
    reasons = {row["metric"]: row["undefined"] for row in found["layers"] if row["undefined"]}
    assert reasons.keys() == {"condition_number"}  # 24 clips in 48 channels
    assert reasons["condition_number"].startswith("infinite")


def test_occdrop_of_gratings_is_undefined_where_whole_ones_are_not_read_better_than_by_guessing(
    go, small, monkeypatch
) -> None:
    def scores(accuracy: float) -> TargetScores:
        return TargetScores({"colour": accuracy}, {"colour": 0.2}, {})

    def probed(look: Look, subject: Any, name: str) -> worlds.WorldScores:
        whole = {0: scores(0.2), 1: scores(0.4), 2: scores(0.4), 3: scores(0.5)}
        return worlds.WorldScores(whole, dict.fromkeys(whole, scores(0.3)), {"colour": 0.2})

    monkeypatch.setattr(worlds, "probe_world", probed)
    found = go(small, skip=("tokens", "influence", "spectrum", "saturation"))
    for world in worlds.WORLDS:
        assert values(found, f"occdrop_{world}") == [None, *map(pytest.approx, (0.25, 0.25, 0.4))]
    undefined = [row for row in found["layers"] if row["metric"] == "occdrop_grating" and row["undefined"]]
    assert [row["layer"] for row in undefined] == [0] and "guessing" in undefined[0]["undefined"]
