"""Fine-tuning: layer-wise rates, dropped branches and mixed clips by their formulas, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.data.gratings import grating
from tubelet.data.manifest import Video
from tubelet.data.synthetic import write_video
from tubelet.errors import UserError
from tubelet.evaluate.attentive import AttentiveSettings, attentive_scores
from tubelet.evaluate.features import extract
from tubelet.evaluate.finetune import (
    FINETUNE,
    EncoderClassifier,
    FinetuneResult,
    FinetuneSettings,
    find_finetune,
    finetune_scores,
    layer_scales,
    mix,
    parameter_groups,
)
from tubelet.export.weights import Encoder, Geometry, digest, load_encoder
from tubelet.nn.vit import ViT

GEOMETRY = Geometry(frames=4, frame_step=1, crop_size=32)
QUICK = FinetuneSettings(epochs=2, warmup=1, batch_size=4, drop_path=0.2, head_dropout=0.1)


class World(NamedTuple):
    encoder: Encoder
    videos: list[Video]
    label: np.ndarray
    folder: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """72 noisy gratings that drift left or right: no single frame tells which, and the noise hides it."""
    folder = tmp_path_factory.mktemp("drift")
    videos = []
    for i in range(72):
        rng = np.random.default_rng(i)
        hertz = (1 if i % 2 else -1) * 6.25 / 4
        wave = grating(0, 2, hertz, phase=rng.uniform(0, 2 * np.pi), frames=4, size=32)
        noise = rng.normal(0, 40, (4, 32, 32))
        grey = (wave * 50 + noise + 128).clip(0, 255).astype(np.uint8)
        write_video(folder / f"{i}.mp4", np.repeat(grey[..., None], 3, axis=-1))
        videos.append(Video(folder / f"{i}.mp4"))
    return World(load_encoder("random:48x2x2", GEOMETRY), videos, np.arange(72) % 2, folder)


def run(world: World, settings: FinetuneSettings = QUICK, seed: int = 0, **knobs) -> FinetuneResult:
    """Learns from the first twelve clips, scores the last four."""
    train = np.arange(12)
    return finetune_scores(
        world.encoder,
        world.videos,
        train,
        world.label[train],
        np.arange(68, 72),
        2,
        settings=settings,
        seed=seed,
        workers=2,
        **knobs,
    )


# -- the recipe ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["attentive", "mean"])
def test_rates_fall_by_layer(head) -> None:
    """The explicit formula: decay ** (depth + 1 - layer), embedding 0, block i, head and last norm depth + 1."""
    depth, decay = 5, 0.75
    assert layer_scales(depth, decay) == pytest.approx([0.75**6, 0.75**5, 0.75**4, 0.75**3, 0.75**2, 0.75, 1])
    model = EncoderClassifier(ViT(24, depth, 2), 3, FinetuneSettings(head=head))
    groups = parameter_groups(model, decay)
    scale = {id(p): g["scale"] for g in groups for p in g["params"]}
    decays = {id(p): g["decays"] for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(scale) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        if name.startswith("encoder.embedding"):
            expected = decay**6
        elif name.startswith("encoder.blocks"):
            expected = decay ** (6 - 1 - int(name.split(".")[2]))
        else:
            expected = 1.0
        assert scale[id(p)] == pytest.approx(expected), name
        assert decays[id(p)] == (p.ndim > 1), name


def test_without_dropping_the_walk_equals_the_encoder() -> None:
    torch.manual_seed(0)
    encoder = ViT(24, 3, 2).eval()
    model = EncoderClassifier(encoder, 5, FinetuneSettings(drop_path=0.5, head_dropout=0.5))
    clip = torch.randn(2, 3, 4, 32, 48)
    pooler = model.pooler
    assert pooler is not None
    with torch.no_grad():
        expected = model.head(pooler(encoder(clip)))
        torch.testing.assert_close(model(clip), expected)
        none = EncoderClassifier(encoder, 5, FinetuneSettings(drop_path=0.0))
        none.load_state_dict(model.state_dict())
        torch.testing.assert_close(none(clip, torch.Generator()), expected)


def test_branches_are_dropped_by_sample_and_scaled() -> None:
    """One block whose branches give 1 and 1: a sample's tokens grow by 0, 1/(1-p) or 2/(1-p), 2 on average."""
    p = 0.4
    encoder = ViT(6, 2, 1, patch=(1, 2, 2), channels=1)
    for parameter in encoder.parameters():
        torch.nn.init.zeros_(parameter)
    block = encoder.blocks[1]
    for bias in (block.attn.proj.bias, block.mlp.fc2.bias):  # pyright: ignore
        torch.nn.init.ones_(bias)  # pyright: ignore
    model = EncoderClassifier(encoder, 2, FinetuneSettings(head="mean", drop_path=p))
    assert model.drop_paths == [0.0, p]  # rising linearly from the first block to the last
    model.encoder.norm, model.head = torch.nn.Identity(), torch.nn.Identity()  # pyright: ignore
    grown = model(torch.zeros(4000, 1, 1, 2, 2), torch.Generator().manual_seed(0)).detach()  # [B, D]
    assert torch.equal(grown.min(1).values, grown.max(1).values)  # the whole sample or nothing
    counts = (grown[:, 0] * (1 - p)).round().long().bincount(minlength=3) / 4000
    np.testing.assert_allclose(counts, [p * p, 2 * p * (1 - p), (1 - p) ** 2], atol=0.03)
    assert grown.mean() == pytest.approx(2, abs=0.06)


@given(
    st.integers(0, 2**31),
    st.integers(1, 5),
    st.sampled_from([(0.8, 0.0), (0.0, 1.0), (0.8, 1.0), (0.0, 0.0)]),
)
def test_mixed_clips_carry_the_shares_of_what_they_show(
    seed: int, batch: int, alphas: tuple[float, float]
) -> None:
    """Clip b is everywhere b, its class is b: the mean of a mixed clip is that of its mixed label."""
    number = torch.arange(batch, dtype=torch.float32)
    clip = number.reshape(-1, 1, 1, 1, 1).expand(batch, 3, 2, 6, 10).contiguous()
    kept = clip.clone()
    truth = torch.eye(batch)
    mixed, shares = mix(clip, truth, *alphas, np.random.default_rng(seed))
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3, 4)), shares @ number, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shares.sum(1), torch.ones(batch))
    assert torch.equal(clip, kept)  # the batch itself is left alone
    assert (mixed == mixed[:, :1, :1]).all()  # the same box in every frame
    if alphas == (0.0, 0.0):
        assert torch.equal(mixed, clip) and torch.equal(shares, truth)


def test_mixup_and_cutmix_take_turns() -> None:
    clip, truth = torch.arange(2.0).reshape(2, 1, 1, 1, 1).expand(2, 3, 2, 8, 8).contiguous(), torch.eye(2)
    flat = [len(mix(clip, truth, 0.8, 1.0, np.random.default_rng(s))[0][0].unique()) == 1 for s in range(400)]
    # a mixed-up picture has one value; a cut one has two, unless the box is nothing or everything
    assert 0.45 < np.mean(flat) < 0.65


@pytest.mark.parametrize(
    ("name", "lr", "epochs", "batch_size", "drop_path", "head_dropout"),
    [
        ("vjepa-k400-l", 2e-3, 35, 256, 0.1, 0.0),
        ("vjepa-k400-h", 5e-4, 25, 1024, 0.2, 0.0),
        ("vjepa-ssv2-l", 5e-4, 15, 256, 0.2, 0.5),
        ("vjepa-ssv2-h", 5e-4, 15, 256, 0.2, 0.5),
    ],
)
def test_the_published_settings(name, lr, epochs, batch_size, drop_path, head_dropout) -> None:
    found = find_finetune(name)
    assert (found.lrs, found.epochs, found.batch_size) == ((lr,), epochs, batch_size)
    assert (found.drop_path, found.head_dropout) == (drop_path, head_dropout)
    assert (found.layer_decay, found.wd, found.warmup) == (0.75, 0.05, 5)
    assert (found.mixup, found.cutmix, found.smoothing) == (0.8, 1.0, 0.1)
    assert (found.area, found.aspect) == ((0.08, 1.0), (0.75, 4 / 3))


# -- what it does -------------------------------------------------------------------------------------------


def test_fine_tuning_learns_what_the_frozen_encoder_does_not_show(world: World, tmp_path: Path) -> None:
    train, test = np.arange(48), np.arange(48, 72)
    truth = world.label[test]
    frozen = extract(world.encoder, world.videos, pool="none", cache=tmp_path, progress=False)
    cheap = AttentiveSettings(lrs=(3e-3,), wds=(0.01,))
    probe = attentive_scores(frozen.tokens, train, world.label[train], test, 2, settings=cheap)
    settings = FinetuneSettings(lrs=(3e-3,), epochs=7, warmup=1, batch_size=8, area=(0.6, 1.0))
    before = digest(world.encoder.model)
    tuned = finetune_scores(
        world.encoder,
        world.videos,
        train,
        world.label[train],
        test,
        2,
        settings=settings,
        workers=2,
        frame_cache=tmp_path,
        progress=True,
    )
    assert (tuned.scores.argmax(1) == truth).mean() >= 0.9
    assert (probe.scores.argmax(1) == truth).mean() <= 0.8
    np.testing.assert_allclose(tuned.scores.sum(1), 1, atol=1e-6)
    assert [e.epoch for e in tuned.history] == list(range(7)) and tuned.history[-1].lr == 0
    assert tuned.history[-1].loss < tuned.history[0].loss - 0.2
    assert digest(world.encoder.model) == before  # the encoder that was given is as it was
    assert not any(p.requires_grad for p in world.encoder.model.parameters())
    assert "without RandAugment" in tuned.note


@pytest.mark.parametrize("head", ["attentive", "mean"])
def test_the_seed_decides_everything(world: World, head) -> None:
    settings = replace(QUICK, head=head, mixup=0.8, cutmix=1.0)
    state = torch.get_rng_state()
    one = run(world, settings)
    torch.manual_seed(123)
    torch.rand(7)
    again = run(world, settings)
    np.testing.assert_array_equal(one.scores, again.scores)
    assert one.history == again.history
    assert not np.array_equal(one.scores, run(world, settings, seed=1).scores)
    torch.set_rng_state(state)


def test_it_leaves_no_trace_in_the_global_generator(world: World) -> None:
    state = torch.get_rng_state()
    run(world)
    assert torch.equal(torch.get_rng_state(), state)


def test_micro_batches_and_the_frame_cache_change_nothing(world: World, tmp_path: Path) -> None:
    settings = replace(QUICK, drop_path=0.0, head_dropout=0.0, mixup=0.8, cutmix=1.0)
    whole = run(world, settings)
    parts = run(world, replace(settings, micro_batch=3), frame_cache=tmp_path)
    assert any(tmp_path.iterdir())
    np.testing.assert_allclose(parts.scores, whole.scores, atol=1e-4)


def test_the_rate_is_chosen_on_validation_clips_and_a_diverging_one_never(world: World) -> None:
    settings = replace(QUICK, lrs=(1e30, 1e-3))
    group = np.array([f"g{i // 2}" for i in range(12)])
    found = run(world, settings, group=group)
    assert [(t.lr, t.diverged) for t in found.tried] == [(1e30, True), (1e-3, False)]
    assert found.tried[0].validation is None and found.tried[1].validation is not None
    assert found.lr == 1e-3
    np.testing.assert_array_equal(found.scores, run(world, replace(QUICK, lrs=(1e-3,))).scores)
    with pytest.raises(UserError, match="diverged at every learning rate"):
        run(world, replace(QUICK, lrs=(1e30,)))


def test_views_of_a_test_clip_are_averaged(world: World) -> None:
    many = run(world, replace(QUICK, segments=2, crops=3))
    assert many.scores.shape == (4, 2)
    np.testing.assert_allclose(many.scores.sum(1), 1, atol=1e-6)


def test_bfloat16_is_about_the_same(world: World) -> None:
    exact, rough = run(world), run(world, replace(QUICK, bf16=True))
    assert not np.array_equal(exact.scores, rough.scores)
    np.testing.assert_allclose(rough.scores, exact.scores, atol=0.1)


# -- refusals -----------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_said_before_training(world: World, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    videos = [*world.videos[:12], Video(tmp_path / "broken.mp4")]
    train = np.arange(12)
    with pytest.raises(UserError, match=r"1 of 13 videos cannot be read .*broken\.mp4.*tubelet scan"):
        finetune_scores(world.encoder, videos, train, world.label[train], np.array([12]), 2, settings=QUICK)


def test_encoders_that_cannot_be_tuned_are_refused(world: World) -> None:
    pixels = load_encoder("pixels", GEOMETRY)
    with pytest.raises(UserError, match="nothing to fine-tune"):
        run(world._replace(encoder=pixels))
    grey = replace(world.encoder, model=ViT(24, 1, 2, channels=1))
    with pytest.raises(UserError, match="reads 1 channels"):
        run(world._replace(encoder=grey))
    odd = replace(world.encoder, geometry=replace(GEOMETRY, crop_size=40))
    with pytest.raises(UserError, match="crop_size=40 is not a multiple of the patch's 16"):
        run(world._replace(encoder=odd))


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"head": "meen"}, 'did you mean "mean"'),
        ({"lrs": ()}, "one or more"),
        ({"lrs": (math.inf,)}, "positive"),
        ({"layer_decay": 1.5}, "layer_decay"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"mixup": -1.0}, "mixup"),
        ({"warmup": 20.0}, "less than the 20 epochs"),
        ({"micro_batch": 0}, "micro_batch=0"),
        ({"validation": 0.0}, "validation"),
    ],
)
def test_settings_that_make_no_sense_are_refused(knobs, words) -> None:
    with pytest.raises(UserError, match=words):
        FinetuneSettings(**knobs)


def test_an_unknown_preset_names_the_nearest() -> None:
    assert find_finetune("cheap") == FinetuneSettings() == FINETUNE["cheap"]
    with pytest.raises(UserError, match='did you mean "vjepa-k400-l"'):
        find_finetune("vjepa-k400l")
