"""Our encoder and predictor equal Hugging Face's V-JEPA 2 and VideoMAE on the same random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tubelet.nn.predictor import Predictor
from tubelet.nn.tokens import Rotary, SinCos, gather
from tubelet.nn.vit import ViT
from tubelet.types import Mask

transformers = pytest.importorskip("transformers", reason="the test extra's transformers is not installed")


def fused(state: dict[str, Tensor], layer: str, part: str) -> Tensor:
    return torch.cat([state[f"{layer}.attention.{name}.{part}"] for name in ("query", "key", "value")])


def vjepa2_blocks(state: dict[str, Tensor], prefix: str, depth: int) -> dict[str, Tensor]:
    ours = {}
    for i in range(depth):
        theirs, mine = f"{prefix}.layer.{i}", f"blocks.{i}"
        for part in ("weight", "bias"):
            ours[f"{mine}.attn.qkv.{part}"] = fused(state, theirs, part)
            ours[f"{mine}.attn.proj.{part}"] = state[f"{theirs}.attention.proj.{part}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                ours[f"{mine}.{name}.{part}"] = state[f"{theirs}.{name}.{part}"]
    return ours


def shake(model: torch.nn.Module) -> dict[str, Tensor]:
    """Weights far from initialisation, so that no bias, norm or mask token can hide."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().state_dict()


@pytest.fixture(scope="module")
def vjepa2():
    config = transformers.VJEPA2Config(
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        tubelet_size=2,
        hidden_size=48,
        num_attention_heads=2,
        num_hidden_layers=3,
        mlp_ratio=4.0,
        pred_hidden_size=36,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=2,
        pred_num_mask_tokens=2,
    )
    theirs = transformers.VJEPA2Model(config)
    state = shake(theirs)
    encoder = ViT(48, 3, 2, patch=(2, 8, 8), positions=Rotary(legacy=True)).eval()
    encoder.load_state_dict(
        {
            "embedding.weight": state["encoder.embeddings.patch_embeddings.proj.weight"].flatten(1),
            "embedding.bias": state["encoder.embeddings.patch_embeddings.proj.bias"],
            "norm.weight": state["encoder.layernorm.weight"],
            "norm.bias": state["encoder.layernorm.bias"],
            **vjepa2_blocks(state, "encoder", 3),
        }
    )
    predictor = Predictor(48, 36, 2, 2, 48, mask_tokens=2, positions=Rotary(legacy=True)).eval()
    predictor.load_state_dict(
        {
            "embedding.weight": state["predictor.embeddings.predictor_embeddings.weight"],
            "embedding.bias": state["predictor.embeddings.predictor_embeddings.bias"],
            "mask_token.weight": state["predictor.embeddings.mask_tokens"].flatten(1),
            "norm.weight": state["predictor.layernorm.weight"],
            "norm.bias": state["predictor.layernorm.bias"],
            "head.weight": state["predictor.proj.weight"],
            "head.bias": state["predictor.proj.bias"],
            **vjepa2_blocks(state, "predictor", 2),
        }
    )
    return theirs, encoder, predictor


@pytest.mark.parametrize("frames", [4, 8])
def test_encoder_equals_vjepa2_model(vjepa2, frames: int) -> None:
    """Full clips; V-JEPA 2 in transformers numbers tokens by its configured square crop."""
    theirs, encoder, _ = vjepa2
    clip = torch.randn(2, 3, frames, 32, 32)
    with torch.no_grad():
        expected = theirs(clip.transpose(1, 2), skip_predictor=True).last_hidden_state
        torch.testing.assert_close(encoder(clip), expected, atol=1e-5, rtol=1e-5)


def test_predictor_equals_vjepa2_model(vjepa2) -> None:
    theirs, encoder, predictor = vjepa2
    clip = torch.randn(2, 3, 4, 32, 32)
    order = torch.stack([torch.randperm(32) for _ in range(2)])
    mask = Mask(order[:, :11].sort(1).values, order[:, 11:24].sort(1).values)
    with torch.no_grad():
        expected = theirs(clip.transpose(1, 2), context_mask=[mask.context], target_mask=[mask.target])
        context = gather(encoder(clip), mask.context)
        found = predictor(context, mask, encoder.grid(clip), kind=1)
        # transformers always takes the mask token given by its mask_index, 1 by default
        torch.testing.assert_close(found, expected.predictor_output.last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def videomae():
    config = transformers.VideoMAEConfig(
        image_size=32,
        patch_size=8,
        num_frames=4,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=192,
        use_mean_pooling=False,
        layer_norm_eps=1e-6,
    )
    theirs = transformers.VideoMAEModel(config)
    state = shake(theirs)
    ours = {
        "embedding.weight": state["embeddings.patch_embeddings.projection.weight"].flatten(1),
        "embedding.bias": state["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    names = {
        "attn.proj": "attention.output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for i in range(2):
        layer = f"encoder.layer.{i}"
        attention = {k.replace(".attention.attention.", ".attention."): v for k, v in state.items()}
        # VideoMAE has no key bias; a key bias moves all of a query's scores alike, so 0 is the same.
        attention[f"{layer}.attention.key.bias"] = torch.zeros(48)
        for part in ("weight", "bias"):
            ours[f"blocks.{i}.attn.qkv.{part}"] = fused(attention, layer, part)
            for mine, theirs_name in names.items():
                ours[f"blocks.{i}.{mine}.{part}"] = state[f"{layer}.{theirs_name}.{part}"]
    encoder = ViT(48, 2, 3, patch=(2, 8, 8), positions=SinCos(flat=True)).eval()
    encoder.load_state_dict(ours)
    return theirs, encoder


@pytest.mark.parametrize("masked", [False, True])
def test_encoder_equals_videomae_model(videomae, masked: bool) -> None:
    theirs, encoder = videomae
    clip = torch.randn(2, 3, 4, 32, 32)
    keep, hidden = None, None
    if masked:
        keep = torch.stack([torch.randperm(32)[:7] for _ in range(2)]).sort(1).values
        hidden = torch.ones(2, 32, dtype=torch.bool).scatter(1, keep, False)
    with torch.no_grad():
        expected = theirs(clip.transpose(1, 2), bool_masked_pos=hidden).last_hidden_state
        torch.testing.assert_close(encoder(clip, keep), expected, atol=1e-5, rtol=1e-5)
