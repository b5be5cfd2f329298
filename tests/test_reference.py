"""Our encoder and predictor equal Hugging Face's V-JEPA 2 and VideoMAE on the same random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tubelet.evaluate.finetune import EncoderClassifier, FinetuneSettings
from tubelet.nn.heads import AttentivePooler, LinearHead
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


def videomae_blocks(state: dict[str, Tensor], prefix: str, norm: str, depth: int) -> dict[str, Tensor]:
    """A whole encoder; ``prefix`` of its keys, ``norm`` the one that stands for the final norm."""
    state = {key.removeprefix(prefix): value for key, value in state.items()}
    ours = {
        "embedding.weight": state["embeddings.patch_embeddings.projection.weight"].flatten(1),
        "embedding.bias": state["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": state[f"{norm}.weight"],
        "norm.bias": state[f"{norm}.bias"],
    }
    names = {
        "attn.proj": "attention.output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for i in range(depth):
        layer = f"encoder.layer.{i}"
        attention = {k.replace(".attention.attention.", ".attention."): v for k, v in state.items()}
        # VideoMAE has no key bias; a key bias moves all of a query's scores alike, so 0 is the same.
        attention[f"{layer}.attention.key.bias"] = torch.zeros_like(
            attention[f"{layer}.attention.query.bias"]
        )
        for part in ("weight", "bias"):
            ours[f"blocks.{i}.attn.qkv.{part}"] = fused(attention, layer, part)
            for mine, theirs_name in names.items():
                ours[f"blocks.{i}.{mine}.{part}"] = state[f"{layer}.{theirs_name}.{part}"]
    return ours


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
    encoder = ViT(48, 2, 3, patch=(2, 8, 8), positions=SinCos(flat=True)).eval()
    encoder.load_state_dict(videomae_blocks(state, "", "layernorm", 2))
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


@pytest.fixture(scope="module")
def vjepa2_classifier():
    """transformers' classifier and our four-block pooler and linear head, with its weights."""
    config = transformers.VJEPA2Config(
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        tubelet_size=2,
        hidden_size=48,
        num_attention_heads=4,
        num_hidden_layers=1,
        mlp_ratio=4.0,
        num_labels=5,
    )
    theirs = transformers.VJEPA2ForVideoClassification(config)
    state = shake(theirs)
    cross = "pooler.cross_attention_layer"
    ours = {"query": state["pooler.query_tokens"].flatten(1)}
    for part in ("weight", "bias"):
        for i in range(3):
            layer, mine = f"pooler.self_attention_layers.{i}", f"blocks.{i}"
            ours[f"{mine}.attn.qkv.{part}"] = torch.cat(
                [state[f"{layer}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            )
            ours[f"{mine}.attn.proj.{part}"] = state[f"{layer}.self_attn.out_proj.{part}"]
            for one, other in (("norm1", "layer_norm1"), ("norm2", "layer_norm2")):
                ours[f"{mine}.{one}.{part}"] = state[f"{layer}.{other}.{part}"]
            for linear in ("mlp.fc1", "mlp.fc2"):
                ours[f"{mine}.{linear}.{part}"] = state[f"{layer}.{linear}.{part}"]
        ours[f"norm1.{part}"] = state[f"{cross}.layer_norm1.{part}"]
        ours[f"norm2.{part}"] = state[f"{cross}.layer_norm2.{part}"]
        ours[f"cross.q.{part}"] = state[f"{cross}.cross_attn.q_proj.{part}"]
        ours[f"cross.kv.{part}"] = torch.cat(
            [state[f"{cross}.cross_attn.{name}_proj.{part}"] for name in "kv"]
        )
        for linear in ("fc1", "fc2"):
            ours[f"mlp.{linear}.{part}"] = state[f"{cross}.mlp.{linear}.{part}"]
    # transformers' pooler takes the encoder's eps, 1e-6; the released probes were trained with 1e-5
    pooler = AttentivePooler(48, 4, depth=4, eps=config.layer_norm_eps).eval()
    pooler.load_state_dict(ours)
    head = LinearHead(48, 5)
    head.load_state_dict({f"linear.{part}": state[f"classifier.{part}"] for part in ("weight", "bias")})
    return theirs, pooler, head


def test_four_block_pooler_and_head_equal_vjepa2_for_video_classification(vjepa2_classifier) -> None:
    theirs, pooler, head = vjepa2_classifier
    tokens = torch.randn(3, 11, 48)
    with torch.no_grad():
        expected = theirs.pooler(tokens)
        torch.testing.assert_close(pooler(tokens), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(head(pooler(tokens)), theirs.classifier(expected), atol=1e-5, rtol=1e-5)
        clip = torch.randn(2, 3, 4, 32, 32)
        encoded = theirs.vjepa2(clip.transpose(1, 2), skip_predictor=True).last_hidden_state
        logits = theirs(clip.transpose(1, 2)).logits  # from pixels to classes, as they chain it
        torch.testing.assert_close(head(pooler(encoded)), logits, atol=1e-5, rtol=1e-5)


def test_vjepa2_pooler_is_three_self_attentions_and_a_cross_attention_without_output(
    vjepa2_classifier,
) -> None:
    """As V-JEPA 2's released probes are, and as ours is: no weight of theirs is left without a place."""
    theirs, pooler, _ = vjepa2_classifier
    assert len(theirs.pooler.self_attention_layers) == len(pooler.blocks) == 3
    names = {
        name.split(".")[0] for name, _ in theirs.pooler.cross_attention_layer.cross_attn.named_parameters()
    }
    assert names == {"q_proj", "k_proj", "v_proj"}
    assert sum(p.numel() for p in theirs.pooler.parameters()) == sum(p.numel() for p in pooler.parameters())


def test_mean_head_equals_videomae_for_video_classification() -> None:
    """Fine-tuning's "mean" head: the mean of the last block's tokens, a LayerNorm of its own, linear."""
    config = transformers.VideoMAEConfig(
        image_size=32,
        patch_size=8,
        num_frames=4,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=192,
        use_mean_pooling=True,
        layer_norm_eps=1e-6,
        num_labels=5,
    )
    theirs = transformers.VideoMAEForVideoClassification(config)
    theirs.fc_norm.eps = 1e-6  # transformers leaves torch's default here; the norms of ours are all 1e-6
    state = shake(theirs)
    encoder = ViT(48, 2, 3, patch=(2, 8, 8), positions=SinCos(flat=True)).eval()
    encoder.load_state_dict(videomae_blocks(state, "videomae.", "fc_norm", 2))
    ours = EncoderClassifier(encoder, 5, FinetuneSettings(head="mean"))
    ours.encoder.norm.load_state_dict({part: state[f"fc_norm.{part}"] for part in ("weight", "bias")})
    ours.head.load_state_dict({f"linear.{part}": state[f"classifier.{part}"] for part in ("weight", "bias")})
    clip = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        expected = theirs(clip.transpose(1, 2)).logits
        torch.testing.assert_close(ours(clip), expected, atol=1e-5, rtol=1e-5)
