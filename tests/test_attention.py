"""Attention's weights against its output, and what is said of them against explicit sums over pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tubelet.analysis.attention import TABLE, AttentionStatistics, attention_statistics
from tubelet.analysis.tokens import TokenStatistics
from tubelet.nn.block import Attention, Block
from tubelet.nn.pixels import Pixels
from tubelet.nn.tokens import POSITIONS, build_positions, turn
from tubelet.nn.vit import ViT
from tubelet.types import Grid

PATCH = (2, 8, 4)
GRID = Grid(2, 3, 8)  # of clips [B, 3, 4, 24, 32]
METRICS = ("attention_space", "attention_time", "attention_entropy")


def build(positions: str = "rotary", depth: int = 2) -> ViT:
    """An encoder whose attention is far from uniform."""
    torch.manual_seed(0)
    model = ViT(48, depth, 3, patch=PATCH, positions=build_positions(positions), init_std=0.3)
    return model.eval()


def clips(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 4, 24, 32, generator=torch.Generator().manual_seed(1))


def attention_of(model: ViT, number: int) -> Attention:
    block = model.blocks[number]
    assert isinstance(block, Block)
    return block.attn


@torch.no_grad()
def all_weights(model: ViT, clip: Tensor) -> list[Tensor]:
    """Every block's [B, heads, N, N], by `Attention.weights` on the tokens that enter it."""
    rotation = model.rotation(model.grid(clip), None, clip.device)
    found = []
    for number, tokens in model.layers(clip, range(model.depth)).items():
        block = model.blocks[number]
        assert isinstance(block, Block)
        found.append(block.attn.weights(block.norm1(tokens), rotation))
    return found


@pytest.mark.parametrize("name", POSITIONS)
@torch.no_grad()
def test_weights_times_values_equal_the_forward_pass(name: str) -> None:
    torch.manual_seed(0)
    attention = Attention(60, 3)
    torch.nn.init.normal_(attention.qkv.weight, std=0.3)
    tokens = torch.randn(2, GRID.n, 60)
    rotation = build_positions(name).rotate(GRID, None, 60, 3, tokens.device)
    weights = attention.weights(tokens, rotation)
    assert weights.shape == (2, 3, GRID.n, GRID.n)
    assert weights.std() > 0.5 / GRID.n  # far from uniform
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, GRID.n))
    read = turn(tokens, rotation) if rotation is not None and rotation.on_tokens else tokens
    values = (read @ attention.qkv.weight[120:].T + attention.qkv.bias[120:]).reshape(2, GRID.n, 3, 20)
    out = torch.einsum("bhqn,bnhd->bqhd", weights, values).flatten(2)
    torch.testing.assert_close(attention.proj(out), attention(tokens, rotation), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", POSITIONS)
@torch.no_grad()
def test_weights_are_the_softmax_of_scaled_scores(name: str) -> None:
    torch.manual_seed(0)
    attention, grid = Attention(60, 3), Grid(1, 2, 3)
    torch.nn.init.normal_(attention.qkv.weight, std=0.3)
    tokens = torch.randn(1, 6, 60)
    rotation = build_positions(name).rotate(grid, None, 60, 3, tokens.device)
    read = turn(tokens, rotation) if rotation is not None and rotation.on_tokens else tokens
    q, k, _ = attention.qkv(read).reshape(1, 6, 3, 3, 20).permute(2, 0, 3, 1, 4)  # each [1, heads, N, d]
    if rotation is not None and not rotation.on_tokens:
        q, k = turn(q, rotation), turn(k, rotation)
    found = attention.weights(tokens, rotation)
    for head in range(3):
        for i in range(6):
            scores = [float(q[0, head, i] @ k[0, head, j]) / math.sqrt(20) for j in range(6)]
            expected = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose(found[0, head, i], expected, rtol=1e-4, atol=1e-7)


def centres(grid: Grid) -> list[tuple[float, float, float]]:
    """Frame, row and column of the middle of every token, in frames and pixels, t-major."""
    (t, h, w), (pt, ph, pw) = grid, PATCH
    return [
        (pt * (i + 0.5), ph * (j + 0.5), pw * (k + 0.5)) for i in range(t) for j in range(h) for k in range(w)
    ]


def by_hand(weights: Tensor) -> dict[str, np.ndarray]:
    """Metric -> [B, heads] from weights [B, heads, N, N], pair by pair."""
    table, at = weights.double().numpy(), centres(GRID)
    n = len(at)
    found = {metric: np.zeros(table.shape[:2]) for metric in METRICS}
    for i, one in enumerate(at):
        for j, other in enumerate(at):
            weight = table[:, :, i, j]
            found["attention_space"] += weight * math.dist(one[1:], other[1:]) / n
            found["attention_time"] += weight * abs(one[0] - other[0]) / n
            found["attention_entropy"] -= weight * np.log(weight) / n / math.log(n)
    return found


def arrays(found: AttentionStatistics) -> dict[str, Tensor]:
    return dict(zip(METRICS, (found.space, found.time, found.entropy), strict=True))


@pytest.mark.parametrize("name", ["rotary", "rotary_tokens", "sincos"])
def test_statistics_equal_explicit_sums_over_pairs(name: str) -> None:
    model, clip = build(name), clips()
    found = attention_statistics(model, clip)
    assert list(found) == [1, 2]
    for number, weights in enumerate(all_weights(model, clip), start=1):
        expected = by_hand(weights)
        for metric, value in arrays(found[number]).items():
            assert value.dtype == torch.float64 and value.shape == (2, 3)
            np.testing.assert_allclose(value, expected[metric], rtol=1e-5)
            np.testing.assert_allclose(
                found[number].by_clip()[metric], expected[metric].mean(axis=1), rtol=1e-5
            )
            np.testing.assert_allclose(
                found[number].by_head()[metric], expected[metric].mean(axis=0), rtol=1e-5
            )


def test_uniform_attention_has_entropy_one_and_the_mean_distance_of_the_grid() -> None:
    model = build()
    for number in range(model.depth):
        torch.nn.init.zeros_(attention_of(model, number).qkv.weight)
    at = centres(GRID)
    space = np.mean([math.dist(one[1:], other[1:]) for one in at for other in at])
    time = np.mean([abs(one[0] - other[0]) for one in at for other in at])
    assert time == 1  # of two times, two frames apart
    for found in attention_statistics(model, clips()).values():
        np.testing.assert_allclose(found.space, space, rtol=1e-5)
        np.testing.assert_allclose(found.time, time, rtol=1e-5)
        np.testing.assert_allclose(found.entropy, 1, rtol=1e-6)


def test_a_token_that_looks_only_at_itself_looks_nowhere() -> None:
    """Queries and keys of one head are the normed tokens, all of one length: each fits itself best."""
    torch.manual_seed(0)
    model = ViT(48, 1, 1, patch=PATCH, positions=build_positions("sincos"))
    with torch.no_grad():
        attention_of(model, 0).qkv.weight[:96] = 30 * torch.eye(48).repeat(2, 1)
    (found,) = attention_statistics(model, clips()).values()
    for value in arrays(found).values():
        assert value.max() < 1e-3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), std=st.floats(0.01, 2.0))
def test_statistics_never_leave_their_range(seed: int, std: float) -> None:
    torch.manual_seed(seed)
    model = ViT(24, 1, 2, patch=PATCH, init_std=std)
    (found,) = attention_statistics(model, torch.randn(1, 3, 4, 24, 32)).values()
    assert found.entropy.min() >= 0 and found.entropy.max() <= 1 + 1e-6
    assert found.time.min() >= 0 and found.time.max() <= 2  # frames from the first token to the last
    assert found.space.min() >= 0 and found.space.max() <= math.hypot(16, 28)


class Largest(TorchDispatchMode):
    """Remembers the size, in bytes, of the largest tensor that is made while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.bytes = max(self.bytes, out.numel() * out.element_size())
        return out


@pytest.mark.parametrize("table", [2**26, 3 * 4 * GRID.n**2, 3 * 4 * GRID.n * 7, 1])
def test_statistics_do_not_depend_on_how_many_are_looked_at_together(table: int) -> None:
    model, clip = build(), clips(3)
    for number, found in attention_statistics(model, clip, table).items():
        for metric, value in arrays(attention_statistics(model, clip)[number]).items():
            np.testing.assert_allclose(arrays(found)[metric], value, rtol=1e-5)


def test_no_table_of_weights_has_more_bytes_than_allowed() -> None:
    torch.manual_seed(0)
    model = ViT(12, 1, 2, patch=(2, 4, 4))  # narrow: tokens are small beside 384 * 384 weights
    clip = torch.randn(3, 3, 4, 48, 64)
    whole = 4 * 2 * 384**2
    for table, least in ((3 * whole, 3 * whole), (whole, whole), (whole // 4, whole // 5)):
        with Largest() as largest:
            attention_statistics(model, clip, table)
        assert least <= largest.bytes <= table


def test_statistics_gather_over_batches() -> None:
    model, clip = build(), clips(3)
    gathered = TokenStatistics()
    for part in clip.split(2):
        for number, found in attention_statistics(model, part).items():
            gathered.add_values(number, found.by_clip())
    whole = attention_statistics(model, clip)
    for number, metrics in gathered.found().items():
        assert tuple(metrics) == METRICS
        for metric, (mean, _) in metrics.items():
            assert mean == pytest.approx(whole[number].by_clip()[metric].mean().item(), rel=1e-6)


def test_pixels_have_no_attention_and_one_token_no_entropy() -> None:
    assert attention_statistics(Pixels(PATCH), clips()) == {}
    (found,) = attention_statistics(build(depth=1), torch.randn(2, 3, 2, 8, 4)).values()
    assert found.entropy.isnan().all()
    assert (found.space == 0).all() and (found.time == 0).all()


@pytest.mark.parametrize("table", [TABLE, 1])
def test_who_looks_at_tokens_too_is_told_every_layer_of_the_same_pass(table):
    torch.manual_seed(0)
    model = ViT(48, 3, 2, patch=PATCH, positions=build_positions("rotary"), init_std=0.3).eval()
    clip = torch.randn(3, 3, 4, 16, 16)
    told: dict[int, list[torch.Tensor]] = {}
    attention_statistics(model, clip, table, lambda layer, tokens: told.setdefault(layer, []).append(tokens))
    for layer, tokens in model.layers(clip, range(4)).items():
        torch.testing.assert_close(torch.cat(told[layer]), tokens, atol=1e-5, rtol=1e-5)
    heard = []
    assert attention_statistics(
        Pixels(PATCH), clip, told=lambda layer, _: heard.append(layer)
    ) == {} and heard == [0]
