"""Other people's weights: the same numbers give the same tokens, and what does not fit is refused."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tubelet.errors import UserError
from tubelet.export.names import named_as
from tubelet.export.weights import Encoder, Geometry, load_encoder, save_encoder
from tubelet.inside.subject import read_subjects
from tubelet.nn.published import (
    VIDEOMAE,
    VJEPA1,
    VJEPA2,
    VJEPA21,
    table_grid,
)
from tubelet.nn.tokens import Rotary, ScaledRotary, SinCos, build_positions, gather, name_positions
from tubelet.nn.vit import ViT
from tubelet.types import Grid

transformers = pytest.importorskip("transformers", reason="the test extra's transformers is not installed")
CPU = torch.device("cpu")

VJEPA2_SMALL: dict[str, Any] = {
    "patch_size": 8,
    "crop_size": 32,
    "frames_per_clip": 4,
    "hidden_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "mlp_ratio": 4.0,
    "pred_hidden_size": 36,
    "pred_num_attention_heads": 2,
    "pred_num_hidden_layers": 1,
    "num_pooler_layers": 1,
}
VIDEOMAE_SMALL: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 4,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "use_mean_pooling": False,
    "layer_norm_eps": 1e-6,
    "decoder_num_attention_heads": 2,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_intermediate_size": 48,
}


def shake(model: torch.nn.Module) -> Any:
    """Weights far from initialisation, so that no bias, norm or mask token can hide."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def vjepa2(kind: str = "VJEPA2Model", **changes: Any) -> Any:
    return shake(getattr(transformers, kind)(transformers.VJEPA2Config(**{**VJEPA2_SMALL, **changes})))


def videomae(kind: str = "VideoMAEModel", **changes: Any) -> Any:
    return shake(getattr(transformers, kind)(transformers.VideoMAEConfig(**{**VIDEOMAE_SMALL, **changes})))


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


# Hugging Face folders


@pytest.fixture(scope="module")
def vjepa2_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    theirs, folder = vjepa2(), tmp_path_factory.mktemp("hub") / "vjepa2-tiny"
    theirs.save_pretrained(folder)
    return theirs, folder


@pytest.mark.parametrize("frames", [4, 8])
@torch.no_grad()
def test_a_vjepa2_folder_equals_vjepa2_model(vjepa2_folder: tuple[Any, Path], frames: int) -> None:
    theirs, folder = vjepa2_folder
    encoder = load_encoder(folder)
    clip = torch.randn(2, 3, frames, 32, 32)
    same(encoder.model(clip), theirs(clip.transpose(1, 2), skip_predictor=True).last_hidden_state)
    assert encoder.name == "vjepa2-tiny"
    assert encoder.geometry == Geometry(frames=4, fps=4.0, crop_size=32)
    assert not any(p.requires_grad for p in encoder.model.parameters())


@torch.no_grad()
def test_a_vjepa2_folder_equals_vjepa2_model_at_another_resolution(vjepa2_folder: tuple[Any, Path]) -> None:
    """transformers numbers tokens by the configured crop: another crop is another config, of the same weights."""
    theirs, folder = vjepa2_folder
    larger = vjepa2(crop_size=48)
    larger.load_state_dict(theirs.state_dict())
    clip = torch.randn(1, 3, 6, 48, 48)
    same(
        load_encoder(folder).model(clip), larger(clip.transpose(1, 2), skip_predictor=True).last_hidden_state
    )


@torch.no_grad()
def test_a_vjepa2_folder_equals_vjepa2_model_on_masked_clips(vjepa2_folder: tuple[Any, Path]) -> None:
    theirs, folder = vjepa2_folder
    clip, keep = (
        torch.randn(2, 3, 4, 32, 32),
        torch.stack([torch.randperm(32)[:9] for _ in range(2)]).sort(1).values,
    )
    tokens = gather(theirs.encoder.embeddings(clip.transpose(1, 2)), keep)
    for layer in theirs.encoder.layer:
        tokens = layer(tokens, position_mask=keep)
        tokens = tokens[0] if isinstance(tokens, tuple) else tokens
    ours = load_encoder(folder).model
    assert isinstance(ours, ViT)
    same(ours(clip, keep), theirs.encoder.layernorm(tokens))


@torch.no_grad()
def test_a_vjepa2_classifier_is_read_for_its_encoder(tmp_path: Path) -> None:
    theirs = vjepa2("VJEPA2ForVideoClassification", num_labels=5)
    theirs.save_pretrained(tmp_path)
    clip = torch.randn(1, 3, 4, 32, 32)
    expected = theirs.vjepa2(clip.transpose(1, 2), skip_predictor=True).last_hidden_state
    same(load_encoder(tmp_path).model(clip), expected)


@torch.no_grad()
def test_shards_equal_one_file(vjepa2_folder: tuple[Any, Path], tmp_path: Path) -> None:
    theirs, folder = vjepa2_folder
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert load_encoder(tmp_path).digest == load_encoder(folder).digest
    assert load_encoder(folder / "model.safetensors").digest == load_encoder(folder).digest
    lost = sorted(tmp_path.glob("*.safetensors"))[0]
    lost.unlink()
    with pytest.raises(UserError, match=f"names {lost.name}, which is not there"):
        load_encoder(tmp_path)


def test_an_index_names_no_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vjepa2"}')
    index = {"weight_map": {"a": "../other.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.ones(1)}, tmp_path.parent / "other.safetensors")
    with pytest.raises(UserError, match="which is not beside it"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("older", [False, True])
@torch.no_grad()
def test_a_videomae_folder_equals_videomae_model(tmp_path: Path, masked: bool, older: bool) -> None:
    """Also with the biases' names of files written before transformers 5, as all published ones are."""
    theirs = videomae()
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    names = {True: ("q_bias", "v_bias"), False: ("query.bias", "value.bias")}
    state = load_file(file)
    for one, other in zip(names[not older], names[older], strict=True):
        state = {name.replace(f"attention.{one}", f"attention.{other}"): t for name, t in state.items()}
    assert any(name.endswith(names[older][0]) for name in state)
    save_file(state, file)
    clip = torch.randn(2, 3, 4, 32, 32)
    keep = hidden = None
    if masked:
        keep = torch.stack([torch.randperm(32)[:7] for _ in range(2)]).sort(1).values
        hidden = torch.ones(2, 32, dtype=torch.bool).scatter(1, keep, False)
    expected = theirs(clip.transpose(1, 2), bool_masked_pos=hidden).last_hidden_state
    encoder = load_encoder(tmp_path)
    assert isinstance(encoder.model, ViT) and encoder.model.heads == 3
    same(encoder.model(clip, keep), expected)
    assert encoder.geometry == Geometry(frames=4, crop_size=32)


@pytest.mark.parametrize(("frames", "side"), [(4, 48), (6, 32), (10, 24)])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_a_videomae_folder_equals_videomae_model_at_other_sizes(
    tmp_path: Path, frames: int, side: int, masked: bool
) -> None:
    """transformers counts tokens by the configured frames and crop: others are another config, of the same weights."""
    theirs = videomae()
    theirs.save_pretrained(tmp_path)
    other = videomae(num_frames=frames, image_size=side)
    other.load_state_dict(theirs.state_dict())
    tokens = frames // 2 * (side // 8) ** 2
    clip, keep, hidden = torch.randn(2, 3, frames, side, side), None, None
    if masked:
        keep = torch.stack([torch.randperm(tokens)[:7] for _ in range(2)]).sort(1).values
        hidden = torch.ones(2, tokens, dtype=torch.bool).scatter(1, keep, False)
    ours = load_encoder(tmp_path).model
    assert isinstance(ours, ViT)
    same(ours(clip, keep), other(clip.transpose(1, 2), bool_masked_pos=hidden).last_hidden_state)


@torch.no_grad()
def test_videomae_for_pretraining_and_classification_are_read_for_their_encoder(tmp_path: Path) -> None:
    clip = torch.randn(1, 3, 4, 32, 32)
    theirs = videomae("VideoMAEForPreTraining")
    theirs.save_pretrained(tmp_path / "pretrained")
    same(
        load_encoder(tmp_path / "pretrained").model(clip),
        theirs.videomae(clip.transpose(1, 2)).last_hidden_state,
    )
    # a fine-tuned one has no norm for tokens, only one for their mean: it stands for ours, token by token
    theirs = videomae("VideoMAEForVideoClassification", use_mean_pooling=True, num_labels=5)
    theirs.save_pretrained(tmp_path / "tuned")
    tokens = theirs.videomae(clip.transpose(1, 2)).last_hidden_state
    ours = load_encoder(tmp_path / "tuned").model
    assert isinstance(ours, ViT)
    same(ours.layers(clip, [2])[2], tokens)
    same(ours(clip), F.layer_norm(tokens, (48,), theirs.fc_norm.weight, theirs.fc_norm.bias, eps=1e-6))


@torch.no_grad()
def test_a_smaller_eps_differs_by_less_than_1e_5(tmp_path: Path) -> None:
    """Published VideoMAE configs say 1e-12 of encoders that were trained with 1e-6."""
    theirs = videomae(layer_norm_eps=1e-12)
    theirs.save_pretrained(tmp_path)
    clip = torch.randn(2, 3, 4, 32, 32)
    same(load_encoder(tmp_path).model(clip), theirs(clip.transpose(1, 2)).last_hidden_state)


def test_an_encoder_without_final_norm_is_refused_or_partial(tmp_path: Path) -> None:
    theirs = videomae(use_mean_pooling=True)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"2 \(layernorm\.weight, layernorm\.bias\) missing"):
        load_encoder(tmp_path)
    encoder = load_encoder(tmp_path, allow_partial=True)
    assert encoder.provenance["partial"]["left_random"] == ["norm.weight", "norm.bias"]
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        tokens = theirs(clip.transpose(1, 2)).last_hidden_state
        same(encoder.model(clip), F.layer_norm(tokens, (48,), eps=1e-6))


def test_the_card_and_the_preprocessor_are_read(vjepa2_folder: tuple[Any, Path], tmp_path: Path) -> None:
    vjepa2_folder[0].save_pretrained(tmp_path)
    assert load_encoder(tmp_path).provenance["licence"] == "unknown"
    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags:\n- video\n---\n# A card\nlicense: other\n")
    (tmp_path / "video_preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.4, 0.3], "image_std": [1, 2, 3]}'
    )
    encoder = load_encoder(tmp_path)
    assert encoder.provenance == {
        "source": str(tmp_path),
        "kind": "V-JEPA 2, Hugging Face",
        "licence": "mit",
        "which": "encoder",
    }
    assert encoder.geometry.mean == (0.5, 0.4, 0.3) and encoder.geometry.std == (1.0, 2.0, 3.0)
    (tmp_path / "README.md").write_text("---\nlicense: mit\ndate: 2023-02-30\nbase_model: null\n---\n")
    dated = load_encoder(tmp_path).provenance
    assert dated["licence"] == "mit" and "base_model" not in dated
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert load_encoder(tmp_path).provenance["licence"] == "unknown"


# Original files, written from their documented names


def jepa_state(theirs: Any, prefix: str = "module.backbone.") -> dict[str, Tensor]:
    """transformers' V-JEPA 2 encoder under Meta's names."""
    found = theirs.state_dict()
    state = {
        f"patch_embed.proj.{part}": found[f"encoder.embeddings.patch_embeddings.proj.{part}"]
        for part in ("weight", "bias")
    }
    for part in ("weight", "bias"):
        state[f"norm.{part}"] = found[f"encoder.layernorm.{part}"]
        for i in range(theirs.config.num_hidden_layers):
            layer = f"encoder.layer.{i}"
            fused = [found[f"{layer}.attention.{name}.{part}"] for name in ("query", "key", "value")]
            state[f"blocks.{i}.attn.qkv.{part}"] = torch.cat(fused)
            state[f"blocks.{i}.attn.proj.{part}"] = found[f"{layer}.attention.proj.{part}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"blocks.{i}.{name}.{part}"] = found[f"{layer}.{name}.{part}"]
    return {prefix + name: tensor.clone() for name, tensor in state.items()}


def jepa_file(
    file: Path, encoder: dict[str, Tensor], masks: int | None = 10, main: str = "target_encoder"
) -> Path:
    """A V-JEPA file: its encoders (the online one halved), a predictor with ``masks`` mask tokens, an optimizer."""
    content: dict[str, Any] = {main: encoder, "encoder": {k: v / 2 for k, v in encoder.items()}}
    if masks is not None:
        tokens = {f"module.backbone.mask_tokens.{i}": torch.zeros(1, 1, 36) for i in range(masks)}
        content["predictor"] = {"module.backbone.predictor_embed.weight": torch.ones(36, 48), **tokens}
    content["opt"] = {"state": {0: {"exp_avg": torch.zeros(100)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({**content, "epoch": 3, "loss": 0.5, "lr": 1e-4}, file)
    return file


@torch.no_grad()
def test_a_vjepa2_file_equals_vjepa2_model(vjepa2_folder: tuple[Any, Path], tmp_path: Path) -> None:
    """The same numbers under Meta's names and in a Hugging Face folder are the same encoder, to the bit."""
    theirs, folder = vjepa2_folder
    file = jepa_file(tmp_path / "vitl.pt", jepa_state(theirs))
    encoder = load_encoder(file, heads=2)
    clip = torch.randn(1, 3, 4, 32, 32)
    same(encoder.model(clip), theirs(clip.transpose(1, 2), skip_predictor=True).last_hidden_state)
    assert encoder.digest == load_encoder(folder).digest
    assert encoder.name == "vitl" and encoder.geometry == Geometry(frames=64, fps=4.0, crop_size=256)
    assert encoder.provenance == {
        "source": str(file),
        "kind": "V-JEPA 2",
        "licence": "MIT if published by Meta; not known from the file",
        "which": "target_encoder",
    }


def test_which_jepa_encoder_is_the_users_choice(vjepa2_folder: tuple[Any, Path], tmp_path: Path) -> None:
    state = jepa_state(vjepa2_folder[0])
    file = jepa_file(tmp_path / "vitl.pt", state)
    online = load_encoder(file, heads=2, which="encoder")
    assert online.provenance["which"] == "encoder"
    halved = load_encoder(file, heads=2).model.state_dict()["norm.weight"] / 2
    assert torch.equal(online.model.state_dict()["norm.weight"], halved)
    with pytest.raises(UserError, match=r'has no "ema_encoder".* it has: target_encoder, encoder'):
        load_encoder(file, heads=2, which="ema_encoder")
    averaged = jepa_file(tmp_path / "distilled.pt", state, main="ema_encoder")
    assert load_encoder(averaged, heads=2).provenance["which"] == "ema_encoder"
    with pytest.raises(UserError, match="holds one encoder"):
        load_encoder(vjepa2_folder[1], which="teacher")


def test_files_are_mapped_and_never_run(
    vjepa2_folder: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mapped, so that optimizer state is not read; tensors alone, so that nothing in a file is executed."""
    asked: list[dict[str, Any]] = []
    load: Callable[..., Any] = torch.load

    def spy(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs)
        return load(*args, **kwargs)

    monkeypatch.setattr(torch, "load", spy)
    load_encoder(jepa_file(tmp_path / "vitl.pt", jepa_state(vjepa2_folder[0])), heads=2)
    assert [(one["mmap"], one["weights_only"]) for one in asked] == [(True, True)]


def plain_forward(
    state: dict[str, Tensor],
    clip: Tensor,
    heads: int,
    table: Tensor | None,
    places: Tensor | None,
    keep: Tensor | None = None,
) -> list[Tensor]:
    """A slow encoder on Meta's names, for one clip: tokens [N, D] after each block.

    table: added. places [N, 3]: of tokens, for (true) rotary positions, written with complex numbers. keep [K]: of the
    tokens with their positions, those that go on to the blocks; the others are never seen.
    """
    kernel = state["patch_embed.proj.weight"]
    tokens = F.conv3d(clip, kernel, state["patch_embed.proj.bias"], stride=kernel.shape[2:])[0].flatten(1).T
    tokens = tokens + state.get("video_mod_embed", torch.zeros(1))[0]
    tokens = tokens if table is None else tokens + table
    if keep is not None:
        tokens, places = tokens[keep], None if places is None else places[keep]
    dim = tokens.shape[1]
    wide = dim // heads
    layers = []
    for i in range(sum(name.endswith("norm1.weight") for name in state)):

        def linear(x: Tensor, name: str, block: str = f"blocks.{i}.") -> Tensor:
            return x @ state[f"{block}{name}.weight"].T + state[f"{block}{name}.bias"]

        def norm(x: Tensor, name: str, block: str = f"blocks.{i}.") -> Tensor:
            return F.layer_norm(
                x, (dim,), state[f"{block}{name}.weight"], state[f"{block}{name}.bias"], eps=1e-6
            )

        mixed = linear(norm(tokens, "norm1"), "attn.qkv")
        out = torch.zeros_like(tokens)
        for head in range(heads):
            q, k, v = (mixed[:, part * dim + head * wide :][:, :wide] for part in range(3))
            if places is not None:
                q, k = turned(q, places), turned(k, places)
            out[:, head * wide : (head + 1) * wide] = (q @ k.T / math.sqrt(wide)).softmax(-1) @ v
        tokens = tokens + linear(out, "attn.proj")
        tokens = tokens + linear(F.gelu(linear(norm(tokens, "norm2"), "mlp.fc1")), "mlp.fc2")
        layers.append(tokens)
    return layers


def turned(vectors: Tensor, places: Tensor) -> Tensor:
    """Rotary positions, channel pair by channel pair as complex numbers [N, d]."""
    pairs = vectors.shape[1] // 3 // 2
    result = vectors.clone()
    for axis in range(3):
        for pair in range(pairs):
            at = 2 * (axis * pairs + pair)
            angle = places[:, axis] * 10000 ** (-pair / pairs)
            spun = torch.complex(vectors[:, at], vectors[:, at + 1]) * torch.polar(
                torch.ones_like(angle), angle
            )
            result[:, at], result[:, at + 1] = spun.real, spun.imag
    return result


def places(t: int, h: int, w: int) -> Tensor:
    return torch.tensor([[a, b, c] for a in range(t) for b in range(h) for c in range(w)]).float()


def sincos_table(t: int, h: int, w: int, dim: int) -> Tensor:
    """V-JEPA's table [N, D], entry by entry: per axis all sines, then all cosines; the axes joined, then cut."""
    half = -(-dim // 6)
    rows = []
    for place in places(t, h, w).tolist():
        row: list[float] = []
        for at in place:
            angles = [at / 10000 ** (i / half) for i in range(half)]
            row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        rows.append(row[:dim])
    return torch.tensor(rows)


def random_state(dim: int = 64, depth: int = 2, hidden: int = 96) -> dict[str, Tensor]:
    """Meta's names without prefix, random."""
    torch.manual_seed(1)
    shapes = {"patch_embed.proj.weight": (dim, 3, 2, 8, 8), "patch_embed.proj.bias": (dim,)}
    for i in range(depth):
        for name, out, into in (
            ("attn.qkv", 3 * dim, dim),
            ("attn.proj", dim, dim),
            ("mlp.fc1", hidden, dim),
            ("mlp.fc2", dim, hidden),
        ):
            shapes |= {f"blocks.{i}.{name}.weight": (out, into), f"blocks.{i}.{name}.bias": (out,)}
        shapes |= {f"blocks.{i}.norm{n}.{part}": (dim,) for n in (1, 2) for part in ("weight", "bias")}
    shapes |= {"norm.weight": (dim,), "norm.bias": (dim,)}
    return {name: torch.randn(shape) * 0.1 for name, shape in shapes.items()}


def wrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.backbone.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("keep", [None, torch.tensor([0, 7, 26, 31, 48, 74])])
@torch.no_grad()
def test_a_vjepa1_file_equals_a_slow_encoder(tmp_path: Path, keep: Tensor | None) -> None:
    """64 channels: 22 for each axis, cut; the stored table tells frames and crop."""
    state = random_state()
    table = sincos_table(3, 5, 5, 64)
    file = jepa_file(
        tmp_path / "vitl16.pth.tar", wrapped({**state, "pos_embed": table.unsqueeze(0)}), masks=2
    )
    encoder = load_encoder(file, heads=4)
    assert encoder.name == "vitl16" and encoder.geometry == Geometry(frames=6, crop_size=40)
    assert encoder.provenance["kind"] == "V-JEPA 1" and encoder.provenance["licence"] == (
        "CC-BY-NC-4.0 if published by Meta; not known from the file"
    )
    assert encoder.model.positions == SinCos()  # pyright: ignore[reportAttributeAccessIssue]
    clip = torch.randn(1, 3, 6, 40, 40)
    last = plain_forward(state, clip, 4, table, None, keep)[-1]
    assert isinstance(encoder.model, ViT)
    found = encoder.model(clip, None if keep is None else keep.unsqueeze(0))[0]
    same(found, F.layer_norm(last, (64,), state["norm.weight"], state["norm.bias"], 1e-6))


def test_a_table_of_other_positions_is_refused(tmp_path: Path) -> None:
    learned = {**random_state(), "pos_embed": torch.randn(1, 75, 64)}
    file = jepa_file(tmp_path / "a.pt", wrapped(learned), masks=2)
    with pytest.raises(
        UserError, match=r"a\.pt stores a table of positions .* not the fixed one of V-JEPA 1"
    ):
        load_encoder(file, heads=4)
    # of V-JEPA 2 (ten mask tokens) the table is not read, by them or by us
    file = jepa_file(tmp_path / "b.pt", wrapped(learned), masks=10)
    encoder = load_encoder(file, heads=4)
    assert encoder.provenance["kind"] == "V-JEPA 2"
    # nor of the action-conditioned one, which has one encoder and a predictor without mask tokens
    torch.save(
        {"encoder": wrapped(learned), "predictor": {"module.action_encoder.weight": torch.ones(2)}},
        tmp_path / "ac.pt",
    )
    acting = load_encoder(tmp_path / "ac.pt", heads=4)
    assert acting.provenance["which"] == "encoder" and acting.digest == encoder.digest
    # and without the predictor nobody can tell
    file = jepa_file(tmp_path / "c.pt", wrapped(learned), masks=None)
    with pytest.raises(UserError, match=r"c\.pt .* may be V-JEPA 1, .* or V-JEPA 2"):
        load_encoder(file, heads=4)


def vjepa21_state() -> dict[str, Tensor]:
    state = random_state()
    norms = {
        f"norms_block.{i}.{part}": state[f"norm.{part}"] + i for i in range(4) for part in ("weight", "bias")
    }
    image = {
        "patch_embed_img.proj.weight": torch.randn(64, 3, 1, 8, 8),
        "patch_embed_img.proj.bias": torch.ones(64),
    }
    added = {"img_mod_embed": torch.randn(1, 1, 64), "video_mod_embed": torch.randn(1, 1, 64)}
    plain = {name: tensor for name, tensor in state.items() if not name.startswith("norm.")}
    return {**plain, **norms, **image, **added}


@pytest.mark.parametrize("side", [2, 5, 16])
@pytest.mark.parametrize("keep", [None, torch.tensor([1, 2, 5, 7])])
@torch.no_grad()
def test_a_vjepa21_file_equals_a_slow_encoder(tmp_path: Path, side: int, keep: Tensor | None) -> None:
    """Rows and columns stretched to 0..15, the video's own constant added, the last of four norms."""
    state = vjepa21_state()
    encoder = load_encoder(jepa_file(tmp_path / "a.pt", wrapped(state), main="ema_encoder"), heads=4)
    assert encoder.provenance["kind"] == "V-JEPA 2.1" and encoder.provenance["which"] == "ema_encoder"
    clip = torch.randn(1, 3, 4, 8 * side, 16)
    where = places(2, side, 2) * torch.tensor([1.0, 15 / (side - 1), 15.0])
    layers, ours = plain_forward(state, clip, 4, None, where, keep), encoder.model
    assert isinstance(ours, ViT)
    kept = None if keep is None else keep.unsqueeze(0)
    same(ours.layers(clip, [1], kept)[1][0], layers[0])
    expected = F.layer_norm(
        layers[-1], (64,), state["norms_block.3.weight"], state["norms_block.3.bias"], 1e-6
    )
    same(ours(clip, kept)[0], expected)


def test_with_16_rows_and_columns_scaled_rotary_equals_rotary() -> None:
    for one, other in zip(
        ScaledRotary().rotate(Grid(3, 16, 16), None, 64, 2, CPU)[:2],
        Rotary().rotate(Grid(3, 16, 16), None, 64, 2, CPU)[:2],
        strict=True,
    ):
        assert torch.equal(one, other)
    assert not torch.equal(
        ScaledRotary().rotate(Grid(3, 24, 24), None, 64, 2, CPU).cos,
        Rotary().rotate(Grid(3, 24, 24), None, 64, 2, CPU).cos,
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.data())
def test_scaled_rotary_of_kept_tokens_is_a_part_of_all(t: int, h: int, w: int, data: st.DataObject) -> None:
    grid = Grid(t, h, w)
    keep = torch.tensor([sorted(data.draw(st.sets(st.integers(0, grid.n - 1), min_size=1)))])
    whole, part = (ScaledRotary().rotate(grid, ids, 48, 2, CPU) for ids in (None, keep))
    assert torch.equal(part.cos[0, 0], whole.cos[0, 0, keep[0]]) and torch.isfinite(whole.cos).all()
    assert torch.equal(part.sin[0, 0], whole.sin[0, 0, keep[0]])


def test_scaled_rotary_has_a_name_that_it_is_built_from() -> None:
    for positions in (ScaledRotary(500.0), Rotary(legacy=True), SinCos(flat=True)):
        assert build_positions(*name_positions(positions)) == positions
    with pytest.raises(ValueError, match="head width of at least 6"):
        ScaledRotary().rotate(Grid(1, 2, 2), None, 8, 2, CPU)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_a_table_tells_its_grid(t: int, side: int, flat: bool) -> None:
    positions = SinCos(flat=flat)
    table = positions.add(Grid(t, side, side), 48, CPU)
    found = table_grid(positions, table)
    assert found == (Grid(1, 1, t * side * side) if flat else Grid(t, side, side))
    table[0, -1, 7] += 2e-4
    assert table_grid(positions, table) is None


def videomae_state(theirs: Any, prefix: str, norm: str = "norm") -> dict[str, Tensor]:
    """transformers' VideoMAE encoder under the original names, with two single biases."""
    found = theirs.state_dict()
    state: dict[str, Tensor] = {}
    for part in ("weight", "bias"):
        state[f"{prefix}patch_embed.proj.{part}"] = found[f"embeddings.patch_embeddings.projection.{part}"]
        state[f"{prefix}{norm}.{part}"] = found[f"layernorm.{part}"]
        for i in range(theirs.config.num_hidden_layers):
            layer, block = f"encoder.layer.{i}", f"{prefix}blocks.{i}"
            for ours, name in (
                ("attn.proj", "attention.output.dense"),
                ("norm1", "layernorm_before"),
                ("norm2", "layernorm_after"),
                ("mlp.fc1", "intermediate.dense"),
                ("mlp.fc2", "output.dense"),
            ):
                state[f"{block}.{ours}.{part}"] = found[f"{layer}.{name}.{part}"]
    for i in range(theirs.config.num_hidden_layers):
        heads, block = f"encoder.layer.{i}.attention.attention", f"{prefix}blocks.{i}"
        fused = [found[f"{heads}.{name}.weight"] for name in ("query", "key", "value")]
        state[f"{block}.attn.qkv.weight"] = torch.cat(fused)
        state[f"{block}.attn.q_bias"] = found[f"{heads}.query.bias"]
        state[f"{block}.attn.v_bias"] = found[f"{heads}.value.bias"]
    return state


@torch.no_grad()
def test_videomae_files_equal_videomae_model(tmp_path: Path) -> None:
    """Pretrained (``encoder.``, with its command line) and fine-tuned (no prefix, ``fc_norm``, a head)."""
    theirs = videomae()
    decoder = {"decoder.blocks.0.attn.q_bias": torch.ones(3), "mask_token": torch.ones(1, 1, 24)}
    pretrained = {
        **videomae_state(theirs, "encoder."),
        **decoder,
        "encoder_to_decoder.weight": torch.ones(24, 48),
    }
    tuned = {**videomae_state(theirs, "", "fc_norm"), "head.weight": torch.ones(5, 48)}
    torch.save(
        {"model": pretrained, "optimizer": {"state": {}}, "epoch": 1, "args": argparse.Namespace(lr=0.1)},
        tmp_path / "pretrained.pth",
    )
    torch.save({"module": tuned}, tmp_path / "tuned.pth", _use_new_zipfile_serialization=False)
    clip = torch.randn(2, 3, 4, 32, 32)
    keep = torch.stack([torch.randperm(32)[:7] for _ in range(2)]).sort(1).values
    hidden = torch.ones(2, 32, dtype=torch.bool).scatter(1, keep, False)
    for name in ("pretrained.pth", "tuned.pth"):
        encoder = load_encoder(tmp_path / name, heads=3)
        same(encoder.model(clip), theirs(clip.transpose(1, 2)).last_hidden_state)
        assert isinstance(encoder.model, ViT)
        masked = theirs(clip.transpose(1, 2), bool_masked_pos=hidden).last_hidden_state
        same(encoder.model(clip, keep), masked)
        assert encoder.geometry == Geometry(frames=16, frame_step=4, crop_size=224)
        assert encoder.provenance["kind"] == "VideoMAE" and encoder.provenance["licence"] == (
            "CC-BY-NC-4.0 if published by VideoMAE's authors; not known from the file"
        )
    # a stored table is dropped if it is the computed one, and refused if it was learned
    table = SinCos(flat=True).add(Grid(2, 4, 4), 48, CPU)
    torch.save({"model": {**tuned, "pos_embed": table}}, tmp_path / "fixed.pth")
    assert load_encoder(tmp_path / "fixed.pth", heads=3).digest == encoder.digest
    torch.save({"model": {**tuned, "pos_embed": table + 0.1}}, tmp_path / "learned.pth")
    with pytest.raises(UserError, match=r"learned\.pth stores a table"):
        load_encoder(tmp_path / "learned.pth", heads=3)


def test_heads_of_known_sizes_are_known_and_others_asked_for(tmp_path: Path) -> None:
    """From V-JEPA 2's model builders (giant and gigantic: heads of 64 channels) and VideoMAE's (arXiv 2303.16727)."""
    for family in (VJEPA1, VJEPA2, VJEPA21, VIDEOMAE):
        assert [family.heads[size] for size in ((768, 12), (1024, 24), (1280, 32))] == [12, 16, 16]
    assert VJEPA2.heads[1408, 40] == VJEPA21.heads[1408, 40] == 22 and VJEPA21.heads[1664, 48] == 26
    assert VIDEOMAE.heads[1408, 40] == 16 and VIDEOMAE.heads[384, 12] == 6
    file = jepa_file(tmp_path / "tiny.pt", wrapped(random_state(192, 12, 384)))
    model = load_encoder(file).model
    assert isinstance(model, ViT) and model.heads == 3 and model.hidden == 384
    file = jepa_file(tmp_path / "odd.pt", wrapped(random_state()))
    with pytest.raises(UserError, match=r"odd\.pt is 64 wide and 2 deep.* say heads=NUMBER"):
        load_encoder(file)
    with pytest.raises(UserError, match="does not divide into 5 heads"):
        load_encoder(file, heads=5)
    with pytest.raises(UserError, match="say heads=NUMBER, not 0"):
        load_encoder(file, heads=0)


def test_a_look_inside_takes_heads_and_partial_weights_through(tmp_path: Path) -> None:
    state = wrapped(random_state())
    file = jepa_file(tmp_path / "odd.pt", state)
    with pytest.raises(UserError, match=r"heads=NUMBER$"):
        read_subjects([str(file)])
    with pytest.raises(UserError, match="leave heads out"):
        read_subjects(["random:48x2x2"], heads=4)
    subject, other = read_subjects([str(file), "random:48x2x2"], heads=4)
    assert isinstance(other.encoder.model, ViT) and other.encoder.model.heads == 2
    assert subject.encoder.digest == load_encoder(file, heads=4).digest
    del state["module.backbone.norm.weight"]
    file = jepa_file(tmp_path / "short.pt", state)
    with pytest.raises(UserError, match="does not fit"):
        read_subjects([str(file)], heads=4)
    (subject,) = read_subjects([str(file)], heads=4, allow_partial=True)
    assert subject.encoder.provenance["partial"]["left_random"] == ["norm.weight"]


# What does not fit


def changed(state: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    """``state`` with tensors replaced, added or (None) left out; __ stands for a dot."""
    new = {**state, **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    return {name: tensor for name, tensor in new.items() if tensor is not None}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"blocks__1__mlp__fc1__weight": None}, r"1 \(blocks\.1\.mlp\.fc1\.weight\) missing"),
        ({"blocks__1__mlp__fc2__bias": None}, r"1 \(blocks\.1\.mlp\.fc2\.bias\) missing, 0 unexpected"),
        ({"blocks__0__gamma_1": torch.ones(64)}, r"0 missing, 1 \(blocks\.0\.gamma_1\) unexpected"),
        ({"cls_token": torch.ones(1, 1, 64)}, r"1 \(cls_token\) unexpected"),
        (
            {"blocks__1__norm1__bias": torch.ones(32)},
            r"1 \(blocks\.1\.norm1\.bias \(32,\) of torch\.float32 instead of \(64,\)\) of another shape",
        ),
        ({"blocks__1__norm1__bias": torch.ones(64, dtype=torch.int8)}, r"of torch\.int8 instead"),
    ],
)
def test_weights_that_do_not_fit_are_refused_or_partial(
    tmp_path: Path, changes: dict[str, Tensor | None], says: str
) -> None:
    file = jepa_file(tmp_path / "a.pt", wrapped(changed(random_state(), **changes)))
    with pytest.raises(UserError, match=rf"a\.pt does not fit .*{says}.*allow_partial"):
        load_encoder(file, heads=4)
    encoder = load_encoder(file, heads=4, allow_partial=True)
    ours, partial = encoder.model.state_dict(), encoder.provenance["partial"]
    name = next(iter(changes)).replace("__", ".")
    assert partial["left_random"] == ([] if name not in ours else [name])
    assert partial["matched"] == len(ours) - len(partial["left_random"])
    given_state = random_state()
    for key in ours.keys() - {"embedding.weight", "embedding.bias"} - set(partial["left_random"]):
        assert torch.equal(ours[key], given_state[key])
    # what is left random is the same draw every time
    assert load_encoder(file, heads=4, allow_partial=True).digest == encoder.digest


def test_loading_says_what_was_recognised(
    vjepa2_folder: tuple[Any, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = jepa_file(tmp_path / "a.pt", jepa_state(vjepa2_folder[0]))
    with caplog.at_level(logging.INFO, logger="tubelet"):
        load_encoder(file, heads=2)
    assert caplog.messages == [
        f"{file}: V-JEPA 2 (target_encoder), licence MIT if published by Meta; not known from the file: "
        f"40 tensors matched, 0 missing, 0 unexpected, "
        f"0 of another shape"
    ]
    caplog.clear()
    state = changed(jepa_state(vjepa2_folder[0], ""), norm__bias=None)
    with caplog.at_level(logging.INFO, logger="tubelet"):
        load_encoder(jepa_file(file, state), heads=2, allow_partial=True)
    assert "39 tensors matched, 1 (norm.bias) missing" in caplog.text
    assert "left random: 1 (norm.bias)" in caplog.text


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(trap),)

    torch.save({"target_encoder": wrapped(random_state()), "x": Evil()}, tmp_path / "zip.pt")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"model": Evil()}, protocol=2))
    for name in ("zip.pt", "bare.pth"):
        with pytest.raises(UserError, match=rf"{name} holds more than tensors \(\w+\.mkdir\)"):
            load_encoder(tmp_path / name, heads=4)
    assert not trap.exists()
    # the trap itself works
    pickle.loads((tmp_path / "bare.pth").read_bytes())
    assert trap.exists()


@pytest.mark.parametrize("kept", [0, 20, 5000])
@pytest.mark.parametrize("name", ["a.pt", "old.pth", "model.safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, kept: int) -> None:
    state, file = wrapped(random_state()), tmp_path / name
    if name == "model.safetensors":
        save_file(state, file)
    else:
        torch.save({"encoder": state}, file, _use_new_zipfile_serialization=name == "a.pt")
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UserError, match=rf"{name} cannot be read.*copy it again"):
        load_encoder(file, heads=4)


def test_image_models_are_refused(tmp_path: Path) -> None:
    image = changed(random_state(), patch_embed__proj__weight=torch.ones(64, 3, 8, 8))
    jepa = jepa_file(tmp_path / "ijepa.pth.tar", wrapped({**image, "pos_embed": torch.ones(1, 4, 64)}))
    torch.save({"model": image}, tmp_path / "mae.pth")
    biases = {f"blocks.0.attn.{name}_bias": torch.ones(64) for name in "qv"}
    torch.save({"model": {**image, **biases}}, tmp_path / "beit.pth")
    for file in (jepa, tmp_path / "mae.pth", tmp_path / "beit.pth"):
        with pytest.raises(UserError, match=rf"{file.name} .*image model"):
            load_encoder(file, heads=4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": 64}, r"hidden_size 64 instead of 48, hidden_size \* mlp_ratio 256 instead of 192"),
        ({"num_hidden_layers": 2}, "num_hidden_layers 2 instead of 3"),
        ({"num_hidden_layers": 4}, "num_hidden_layers 4 instead of 3"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000 instead of 3"),  # and nothing is built
        ({"mlp_ratio": 1e308}, "mlp_ratio 2147483647 instead of 192"),
        ({"in_chans": 1}, "in_chans 1 instead of 3"),
        ({"patch_size": 16}, r"patch_size \(16, 16\) instead of \(8, 8\)"),
        ({"patch_size": [8, 8, 8]}, r"patch_size is \[8, 8, 8\], not a list of 2 numbers"),
        ({"tubelet_size": 1}, "tubelet_size 1 instead of 2"),
        ({"hidden_act": "silu"}, 'hidden_act "silu"'),
        ({"layer_norm_eps": 1e-3}, "layer_norm_eps 0.001"),
        ({"model_type": "videomae"}, 'model_type "videomae"'),
        ({"num_attention_heads": 5}, "5 heads"),
        ({"crop_size": [32, 48]}, "32 x 48"),
        ({"hidden_size": None}, r"is not the config of V-JEPA 2"),
        ({"hidden_size": -1}, "hidden_size is -1, not a whole number"),
        ({"in_chans": -3}, "in_chans is -3, not a whole number"),
        ({"num_attention_heads": 0}, r"num_attention_heads is 0, not a whole number .* copy it again"),
        ({"crop_size": -3}, "crop_size is -3, not a whole number"),
        ({"frames_per_clip": 0}, "frames_per_clip is 0, not a whole number"),
        ({"frames_per_clip": 4.7}, "frames_per_clip is 4.7, not a whole number"),
        ({"layer_norm_eps": math.nan}, "layer_norm_eps is nan, not a number above 0"),
        ({"mlp_ratio": "x"}, "mlp_ratio is 'x', not a number above 0"),
        ({"tubelet": {"a": 1}}, 'says under "tubelet" nothing that an export of ours says'),
    ],
)
def test_a_config_that_disagrees_is_refused(
    vjepa2_folder: tuple[Any, Path], tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    vjepa2_folder[0].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    for partial in (False, True):
        with pytest.raises(UserError, match=says) as error:
            load_encoder(tmp_path, allow_partial=partial)
        assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"image_mean": ["a", 1, 2]}, "image_mean is 'a', not a number"),
        ({"image_mean": [0.5]}, r"image_mean is \[0\.5\], not a list of 3 numbers"),
        ({"image_mean": 0.5}, r"image_mean is 0\.5, not a list of 3 numbers"),
        ({"image_std": [0, 0, 0]}, "image_std is 0, not a number above 0"),
    ],
)
def test_a_preprocessor_without_sensible_numbers_is_refused(
    vjepa2_folder: tuple[Any, Path], tmp_path: Path, about: dict[str, Any], says: str
) -> None:
    vjepa2_folder[0].save_pretrained(tmp_path)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        (tmp_path / name).write_text(json.dumps(about))
        with pytest.raises(UserError, match=rf"/{name}: {says}; copy it again"):
            load_encoder(tmp_path)
        (tmp_path / name).write_text('{"image_mean": null, "image_std": null}')
        assert load_encoder(tmp_path).geometry.mean == Geometry().mean


@pytest.mark.parametrize("shards", [False, True])
def test_weights_beside_others_are_refused_but_for_their_older_form(
    vjepa2_folder: tuple[Any, Path], tmp_path: Path, shards: bool
) -> None:
    """The hub has `pytorch_model.bin` beside `model.safetensors`: the same weights twice. Nothing else is taken so."""
    theirs, folder = vjepa2_folder
    theirs.save_pretrained(tmp_path, max_shard_size="60KB" if shards else "1GB")
    main = f"model.safetensors{'.index.json' if shards else ''}"
    assert (tmp_path / main).is_file()
    for name in ("pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"):
        torch.save({"a": torch.ones(1)}, tmp_path / name)
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    assert load_encoder(tmp_path).digest == load_encoder(folder).digest
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "scheduler.pt",
        "rng_state_0.pth",
    ):  # a Trainer's, no weights
        torch.save({}, tmp_path / name)
    others = ["vitl.pt", "rng.bin", "a.safetensors", "pytorch_model.pt"]
    for name in [*others, *(["model.safetensors"] if shards else [])]:
        (tmp_path / name).write_bytes((folder / "model.safetensors").read_bytes())
        with pytest.raises(
            UserError, match=r"holds 2 files of weights \(.*; name the one that is meant"
        ) as error:
            load_encoder(tmp_path)
        assert main in str(error.value) and name in str(error.value)
        assert load_encoder(tmp_path / main).digest == load_encoder(folder).digest
        (tmp_path / name).unlink()


def test_a_stale_index_is_refused(vjepa2_folder: tuple[Any, Path], tmp_path: Path) -> None:
    vjepa2_folder[0].save_pretrained(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(UserError, match=r"2 files of weights \(model\.safetensors\.index\.json, model\.saf"):
        load_encoder(tmp_path)
    assert load_encoder(tmp_path / "model.safetensors").digest == load_encoder(vjepa2_folder[1]).digest


@pytest.mark.parametrize(
    ("mapped", "says"),
    [
        ({}, "has no weight_map of names"),
        (None, "has no weight_map of names"),
        ({"a": 3}, "has no weight_map of names"),
        ({"lost.weight": "a.safetensors"}, r"names 1 tensors that are in none of its files \(lost\.weight\)"),
        ({"a": "config.json"}, 'names "config.json", which is no file of safetensors'),
        ({"a": "model.safetensors.index.json"}, "which is no file of safetensors"),
        ({"a": ".."}, "which is no file of safetensors"),
        ({"a": "b.safetensors"}, "names b.safetensors, which is not there"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(
    vjepa2_folder: tuple[Any, Path], tmp_path: Path, mapped: Any, says: str
) -> None:
    vjepa2_folder[0].save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    names = load_file(tmp_path / "a.safetensors").keys()
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")}))
    assert load_encoder(tmp_path).digest == load_encoder(vjepa2_folder[1]).digest
    if mapped and "lost.weight" in mapped:
        mapped = {**dict.fromkeys(names, "a.safetensors"), **mapped}
    index.write_text(json.dumps({"weight_map": mapped}))
    with pytest.raises(UserError, match=says):
        load_encoder(index)


def test_folders_with_two_candidates_or_none_are_refused(
    vjepa2_folder: tuple[Any, Path], tmp_path: Path
) -> None:
    _, folder = vjepa2_folder
    with pytest.raises(UserError, match="says 2; leave heads out"):
        load_encoder(folder, heads=4)
    config = (folder / "config.json").read_text()
    weights = (folder / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"has a config\.json but no weights"):
        load_encoder(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(weights)
    assert load_encoder(tmp_path).digest == load_encoder(folder).digest
    (tmp_path / "b.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"2 files of weights \(a\.safetensors, b\.safetensors\)"):
        load_encoder(tmp_path)
    assert load_encoder(tmp_path / "b.safetensors").name == "b"
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_encoder(tmp_path / "b.safetensors")
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is not there"):
        load_encoder(tmp_path / "b.safetensors")
    (tmp_path / "two").mkdir()
    for name in ("x.pth", "y.pth"):
        torch.save({"a": 1}, tmp_path / "two" / name)
    with pytest.raises(UserError, match=r"2 files of weights \(x\.pth, y\.pth\)"):
        load_encoder(tmp_path / "two")


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    own = ViT(48, 1, 3, patch=(2, 8, 8))
    save_encoder(own, tmp_path / "run" / "encoder", Geometry(), {})
    with pytest.raises(UserError, match="one of our own"):
        (tmp_path / "stray.safetensors").write_bytes(
            (tmp_path / "run" / "encoder" / "model.safetensors").read_bytes()
        )
        load_encoder(tmp_path / "stray.safetensors")
    cases: dict[str, Any] = {
        "probe.pt": (
            {"classifiers": [{"module.linear.weight": torch.ones(2)}]},
            "holds classifiers, no encoder",
        ),
        "list.pt": ([torch.ones(2)], "holds a list"),
        "resnet.pth": (
            {"model": {"conv1.weight": torch.ones(8, 3, 7, 7)}},
            r"holds conv1\.weight, no encoder",
        ),
        "flat.pt": (random_state(), "of V-JEPA the whole file is needed"),
        "half.pth": (
            {"model": {"blocks.0.attn.q_bias": torch.ones(8)}},
            r"is no VideoMAE encoder of videos: there is no patch_embed\.proj\.weight",
        ),
        "headless.pt": (
            {"encoder": changed(random_state(), blocks__0__mlp__fc1__weight=None)},
            r"is no V-JEPA 2 encoder of videos: there is no matrix blocks\.0\.mlp\.fc1\.weight",
        ),
    }
    for name, (content, says) in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=says):
            load_encoder(tmp_path / name)


@pytest.mark.parametrize("family", ["V-JEPA 2", "V-JEPA 2.1"])
@torch.no_grad()
def test_foreign_weights_are_saved_and_loaded_as_ours(tmp_path: Path, family: str) -> None:
    state = random_state() if family == "V-JEPA 2" else vjepa21_state()
    half = {name: tensor.half() for name, tensor in wrapped(state).items()}
    encoder: Encoder = load_encoder(jepa_file(tmp_path / "a.pt", half), heads=4)
    assert encoder.provenance["kind"] == family and isinstance(encoder.model, ViT)
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}
    save_encoder(encoder.model, tmp_path / "run" / "encoder", encoder.geometry, encoder.provenance)
    again = load_encoder(tmp_path / "run")
    assert again.digest == encoder.digest and again.provenance == encoder.provenance
    clip = torch.randn(1, 3, 4, 24, 24)
    assert torch.equal(again.model(clip), encoder.model(clip))
    other = Geometry(frames=8)
    assert load_encoder(tmp_path / "a.pt", other, heads=4).geometry == other


def test_a_guessed_number_of_heads_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Only of a size that is known is it guessed at all."""
    model = ViT(192, 12, 3, patch=(2, 8, 8), positions=Rotary(legacy=True))
    file = tmp_path / "a.pt"
    torch.save({"target_encoder": named_as(model, VJEPA2)}, file)
    with caplog.at_level(logging.INFO, logger="tubelet"):
        load_encoder(file)
        load_encoder(file, heads=3)
    assert "3 heads as is usual for its size" in caplog.messages[0]
    assert "usual" not in caplog.messages[1]


@pytest.mark.parametrize("number", ["7", "99999999", "01"])
def test_blocks_are_numbered_without_gaps(tmp_path: Path, number: str) -> None:
    state = random_state()
    strange = {name.replace("blocks.1.", f"blocks.{number}."): tensor for name, tensor in state.items()}
    file = jepa_file(tmp_path / "a.pt", wrapped(strange))
    with pytest.raises(UserError, match=f"one of them has the number {number}"):
        load_encoder(file, heads=4, allow_partial=True)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_pickle_ends_in_one_line(tmp_path: Path, zipped: bool) -> None:
    """Bytes of the pickled part changed one after the other: whatever torch makes of it, it is a UserError or loads."""
    file = tmp_path / "a.pt"
    torch.save({"encoder": {"a.weight": torch.ones(2)}}, file, _use_new_zipfile_serialization=zipped)
    whole, refused = file.read_bytes(), 0
    for place in range(0, min(len(whole), 700), 5):
        for value in (0, 0x52):
            file.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            with pytest.raises(UserError):
                load_encoder(file)
            refused += 1
    assert refused > 50
