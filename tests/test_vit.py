"""The encoder, the predictor and positions: counts to the digit, and every claim of their docstrings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tubelet.nn.block import Attention, Block
from tubelet.nn.pixels import Pixels
from tubelet.nn.predictor import Predictor
from tubelet.nn.tokens import Rotary, SinCos, TokenRotary, coordinates, gather, patchify, turn, unpatchify
from tubelet.nn.vit import MODELS, ViT, build_vit, parse_size
from tubelet.types import Grid, Mask

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("vit_base", 86_236_416),
        ("vit_large", 303_885_312),
        ("vit_huge", 631_648_000),
        ("vit_giant", 1_012_173_952),
        ("vit_gigantic", 1_843_923_840),
    ],
)
def test_parameter_counts_equal_the_papers(model: str, parameters: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in build_vit(model).parameters()) == parameters


@pytest.mark.parametrize(("mask_tokens", "parameters"), [(2, 22_082_944), (10, 22_086_016)])
def test_predictor_parameter_counts_equal_the_papers(mask_tokens: int, parameters: int) -> None:
    with torch.device("meta"):
        predictor = Predictor(1024, 384, 12, 16, 1024, mask_tokens)
    assert sum(p.numel() for p in predictor.parameters()) == parameters


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ValueError, match='did you mean "vit_tiny"'):
        build_vit("vit_tinny")
    assert parse_size("96x5x3").hidden == 384
    assert set(MODELS) == {
        f"vit_{s}" for s in ("tiny", "small", "base", "large", "huge", "giant", "gigantic")
    }


def test_every_weight_is_initialised() -> None:
    """Built without memory, filled with NaN: whatever init_weights forgets stays NaN."""
    for build in (
        lambda: ViT(48, 3, 3, patch=(2, 8, 8)),
        lambda: Predictor(48, 24, 2, 2, 40, mask_tokens=2, mask_std=0.02),
    ):
        with torch.device("meta"):
            model = build()
        model.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
        model.init_weights()
        assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_residual_branches_are_rescaled_by_depth() -> None:
    torch.manual_seed(0)
    encoder = build_vit("192x6x3")
    for number, block in enumerate(encoder.blocks, start=1):
        assert isinstance(block, Block)
        assert block.mlp.fc2.weight.std().item() == pytest.approx(0.02 / (2 * number) ** 0.5, rel=0.02)
        assert block.mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_patchify_equals_a_convolution() -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv3d(3, 10, kernel_size=(2, 8, 4), stride=(2, 8, 4))
    clip = torch.randn(2, 3, 4, 24, 32)
    ours = torch.nn.functional.linear(patchify(clip, (2, 8, 4)), conv.weight.flatten(1), conv.bias)
    torch.testing.assert_close(ours, conv(clip).flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    grid = Grid(2, 3, 8)
    assert torch.equal(unpatchify(patchify(clip, (2, 8, 4)), grid, (2, 8, 4)), clip)


def test_clip_that_does_not_divide_is_refused() -> None:
    encoder = ViT(48, 1, 3, patch=(2, 8, 8))
    with pytest.raises(ValueError, match="height 30 is not a multiple of the patch's 8; use 24"):
        encoder(torch.zeros(1, 3, 4, 30, 32))
    with pytest.raises(ValueError, match="reads 3 channels, the clip has 1"):
        encoder(torch.zeros(1, 1, 4, 32, 32))


def test_unmasked_equals_all_tokens_kept() -> None:
    torch.manual_seed(0)
    for positions in (Rotary(), Rotary(legacy=True), SinCos(), SinCos(flat=True)):
        encoder = ViT(48, 2, 3, patch=(2, 8, 8), positions=positions).eval()
        clip = torch.randn(2, 3, 4, 24, 32)
        everyone = torch.arange(24).expand(2, -1)
        torch.testing.assert_close(encoder(clip), encoder(clip, everyone), atol=1e-6, rtol=1e-5)


def test_order_of_kept_tokens_never_matters() -> None:
    """Positions come from the ids, so a permuted subset gives the permuted output."""
    torch.manual_seed(0)
    encoder = ViT(48, 2, 3, patch=(2, 8, 8)).eval()
    clip = torch.randn(1, 3, 4, 24, 32)
    keep = torch.tensor([[1, 5, 8, 20, 23]])
    order = torch.tensor([4, 2, 0, 1, 3])
    torch.testing.assert_close(
        encoder(clip, keep)[:, order], encoder(clip, keep[:, order]), atol=1e-6, rtol=1e-5
    )


def test_layers_equal_a_walk_over_the_blocks() -> None:
    torch.manual_seed(0)
    encoder = ViT(48, 4, 3, patch=(2, 8, 8)).eval()
    clip = torch.randn(2, 3, 4, 24, 32)
    found = encoder.layers(clip, [0, 2, 4])
    tokens = encoder.embed(clip)
    assert torch.equal(found[0], tokens)
    rotation = encoder.rotation(encoder.grid(clip), None, CPU)
    for number, block in enumerate(encoder.blocks, start=1):
        tokens = block(tokens, rotation)
        if number in found:
            assert torch.equal(found[number], tokens)
    assert torch.equal(encoder(clip), encoder.norm(tokens))
    assert torch.equal(encoder.layers(clip, [2], normed=True)[2], encoder.norm(found[2]))
    with pytest.raises(ValueError, match=r"layers \[5\] asked of an encoder that has layers 0 to 4"):
        encoder.layers(clip, [2, 5])


@pytest.mark.parametrize(
    ("head_dim", "turned", "still"),
    [(24, 8, 0), (32, 10, 2), (64, 20, 4), (80, 26, 2), (88, 28, 4), (104, 34, 2)],
)
def test_rotary_segments_equal_the_papers(head_dim: int, turned: int, still: int) -> None:
    cos, sin, _ = Rotary().rotate(Grid(3, 4, 5), None, head_dim, 1, CPU)
    assert cos.shape == (1, 1, 60, head_dim)
    moving = (sin != 0).any(dim=2)[0, 0]
    assert int(moving.sum()) == 3 * turned
    assert not moving[head_dim - still :].any()


def attention_score(positions: Rotary, first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    torch.manual_seed(0)
    grid = Grid(8, 8, 8)
    q, k = torch.randn(2, 1, 1, 1, 24)

    def place(at: tuple[int, int, int]) -> torch.Tensor:
        return torch.tensor([[at[0] * 64 + at[1] * 8 + at[2]]])

    rotations = [positions.rotate(grid, place(at), 24, 1, CPU) for at in (first, second)]
    return float((turn(q, rotations[0]) * turn(k, rotations[1])).sum())


def test_rotary_scores_depend_only_on_differences_and_legacy_ones_do_not() -> None:
    near = ((1, 2, 3), (2, 0, 3))
    far = ((4, 6, 5), (5, 4, 5))  # the same difference elsewhere
    assert attention_score(Rotary(), *near) == pytest.approx(attention_score(Rotary(), *far), abs=1e-4)
    legacy = Rotary(legacy=True)
    assert attention_score(legacy, *near) != pytest.approx(attention_score(legacy, *far), abs=1e-2)


def test_token_rotary_turns_the_papers_shares_of_the_features() -> None:
    """10 % by t, 25 % by h, 25 % by w; the rest knows no place, and the length of a token does not change."""
    grid = Grid(4, 5, 6)
    rotation = TokenRotary().rotate(grid, None, 200, 4, CPU)
    assert rotation.on_tokens and rotation.cos.shape == (1, 120, 200)
    where = coordinates(grid, CPU)
    for axis, (start, stop) in enumerate(((0, 20), (20, 70), (70, 120))):
        still = where[:, axis] == 0
        assert bool((rotation.sin[0, still, start:stop] == 0).all())
        assert bool((rotation.sin[0, ~still, start:stop] != 0).all())
    assert bool((rotation.sin[0, :, 120:] == 0).all())
    tokens = torch.randn(2, 120, 200)
    assert torch.allclose(turn(tokens, rotation).norm(dim=-1), tokens.norm(dim=-1), rtol=1e-5)
    with pytest.raises(ValueError, match="less than a pair"):
        TokenRotary().rotate(grid, None, 6, 1, CPU)


def test_token_rotary_turns_what_queries_keys_and_values_are_made_of() -> None:
    torch.manual_seed(0)
    attention = Attention(60, 3)
    tokens = torch.randn(1, 24, 60)
    rotation = TokenRotary().rotate(Grid(2, 3, 4), None, 60, 3, CPU)
    assert torch.allclose(attention(tokens, rotation), attention(turn(tokens, rotation)), atol=1e-6)
    assert not torch.allclose(attention(tokens, rotation), attention(tokens), atol=1e-3)


def test_sincos_begins_with_zeros_then_ones_in_three_equal_parts() -> None:
    table = SinCos().add(Grid(2, 3, 4), 384, CPU)
    assert table.shape == (1, 24, 384)
    expected = torch.cat((torch.zeros(64), torch.ones(64))).repeat(3)
    assert torch.equal(table[0, 0], expected)
    assert SinCos().add(Grid(2, 3, 4), 1024, CPU).shape[-1] == 1024


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_coordinates_are_t_major(t: int, h: int, w: int) -> None:
    grid = Grid(t, h, w)
    where = coordinates(grid, CPU)
    assert where.shape == (grid.n, 3)
    assert (where[:, 0] * h * w + where[:, 1] * w + where[:, 2]).tolist() == list(range(grid.n))


def test_predictor_asks_only_for_the_target() -> None:
    torch.manual_seed(0)
    predictor = Predictor(48, 24, 2, 2, 40, mask_tokens=2, mask_std=0.02).eval()
    grid = Grid(2, 3, 4)
    mask = Mask(torch.tensor([[0, 3, 9, 17]]), torch.tensor([[1, 2, 20]]))
    context = torch.randn(1, 4, 48)
    out = predictor(context, mask, grid)
    assert out.shape == (1, 3, 40)
    assert not torch.equal(out, predictor(context, mask, grid, kind=1))
    assert torch.equal(predictor(context, mask, grid, kind=1), predictor(context, mask, grid, kind=7))
    # Another hidden token asked for: the others' predictions move (they attend), its own position decides its own.
    moved = predictor(context, Mask(mask.context, torch.tensor([[1, 2, 21]])), grid)
    assert not torch.allclose(out[:, 2], moved[:, 2])


def test_pixels_average_each_cell() -> None:
    clip = torch.arange(2 * 3 * 4 * 32 * 32, dtype=torch.float32).reshape(2, 3, 4, 32, 32)
    pixels = Pixels(patch=(2, 16, 16))
    tokens = pixels(clip)
    assert tokens.shape == (2, 2 * 2 * 2, pixels.dim)
    assert tokens[0, 0, 0] == clip[0, 0, 0, :8, :8].mean()
    with pytest.raises(ValueError, match="layer 0 alone"):
        pixels.layers(clip, [1])


def test_gather_takes_rows_per_clip() -> None:
    tokens = torch.arange(12.0).reshape(2, 3, 2)
    assert gather(tokens, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
