"""What is kept and what is taken away, on clips and encoders whose answer is known."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from tubelet.analysis.occlusion import (
    Occluded,
    draw_places,
    influence_reach,
    keep_one_patch,
    occdrop,
    patch_influence,
)
from tubelet.evaluate.source import Source, Views
from tubelet.nn.block import Block
from tubelet.nn.pixels import Pixels
from tubelet.nn.vit import ViT
from tubelet.types import Grid

PATCH = (2, 8, 4)
CELLS = (3, 8)  # of pictures of 24 x 32 pixels
EVERY = [(h, w) for h in range(3) for w in range(8)]


def clips(count: int = 2, seed: int = 0) -> Tensor:
    """Nowhere 0."""
    return 1 + torch.rand(count, 3, 4, 24, 32, generator=torch.Generator().manual_seed(seed))


def test_all_but_one_patch_is_zero_in_all_frames() -> None:
    clip = clips()
    kept = keep_one_patch(clip, PATCH, torch.tensor([[[1, 6]], [[2, 0]]]))
    expected = torch.zeros_like(clip)
    expected[0, :, :, 8:16, 24:28] = clip[0, :, :, 8:16, 24:28]
    expected[1, :, :, 16:24, 0:4] = clip[1, :, :, 16:24, 0:4]
    assert torch.equal(kept, expected)
    both = keep_one_patch(clip[:1], PATCH, torch.tensor([[[1, 6], [2, 0]]]))
    expected[0, :, :, 16:24, 0:4] = clip[0, :, :, 16:24, 0:4]
    assert torch.equal(both, expected[:1])


def test_what_is_hidden_leaves_no_trace() -> None:
    """Not even where it is no number."""
    clip = clips(1)
    clip[..., :8, :] = math.nan
    clip[..., 16:, :] = -math.inf
    kept = keep_one_patch(clip, PATCH, torch.tensor([[[1, 2]]]))
    assert kept.isfinite().all() and int((kept != 0).sum()) == 3 * 4 * 8 * 4


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2), st.integers(0, 7))
def test_a_kept_patch_is_a_token_of_the_grid(h: int, w: int) -> None:
    """Aligned with it: one token per time sees all that is left, every other token nothing."""
    kept = keep_one_patch(clips(1), PATCH, torch.tensor([[[h, w]]]))
    seen = Pixels(PATCH)(kept).reshape(2, 3, 8, -1).ne(0)
    assert seen[:, h, w].all() and int(seen.any(dim=-1).sum()) == 2


def test_pictures_and_places_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="height 20 is not a multiple of the patch's 8; use 16"):
        keep_one_patch(torch.zeros(1, 3, 4, 20, 32), PATCH, torch.tensor([[[0, 0]]]))
    for place in ([3, 0], [0, 8], [-1, 0]):
        with pytest.raises(ValueError, match="outside a picture of 3 x 8 patches"):
            keep_one_patch(clips(1), PATCH, torch.tensor([[place]]))
    with pytest.raises(ValueError, match="one patch wide"):
        draw_places((3, 1), 0, 0, halves=True)


def test_every_place_is_equally_likely() -> None:
    drawn = Counter(tuple(draw_places(CELLS, 0, row)[0].tolist()) for row in range(4800))
    assert set(drawn) == set(EVERY)
    spread = sum((count - 200) ** 2 / 200 for count in drawn.values())
    assert spread < 49.7  # chi-squared of 23 degrees of freedom: one draw in a thousand is above


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(2, 9), st.integers(0, 1000), st.integers(0, 10**6))
def test_halves_keep_one_patch_on_either_side(h: int, w: int, seed: int, row: int) -> None:
    places = draw_places((h, w), seed, row, halves=True)
    (down, left), (also_down, right) = places.tolist()
    assert 2 * (left + 1) <= w and 2 * right >= w  # neither reaches over the middle
    assert 0 <= down < h and 0 <= also_down < h and right < w
    assert torch.equal(places, draw_places((h, w), seed, row, halves=True))


def test_halves_draw_every_pair_apart() -> None:
    pairs = {tuple(draw_places((2, 5), 0, row, halves=True).flatten().tolist()) for row in range(600)}
    assert pairs == {(a, b, c, d) for a in (0, 1) for b in (0, 1) for c in (0, 1) for d in (3, 4)}


@dataclass(frozen=True)
class World:
    """A source of given clips [n, views, C, T, H, W]."""

    clips: Tensor
    views: Views = field(default_factory=Views)
    prepared: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, row: int) -> Tensor:
        return self.clips[row]

    def name(self, row: int) -> str:
        return f"clip {row}"

    def identity(self) -> dict[str, Any]:
        return {"world": "given"}

    def prepare(self) -> None:
        self.prepared.append(True)


def test_an_occluded_source_is_a_source() -> None:
    world = World(clips(6).unflatten(0, (3, 2)), Views(segments=2))
    occluded: Source = Occluded(world, PATCH, seed=4)
    assert len(occluded) == 3 and occluded.name(2) == "clip 2" and occluded.views is world.views
    occluded.prepare()
    assert world.prepared == [True]
    for row in range(3):
        (place,) = draw_places(CELLS, 4, row).tolist()
        expected = keep_one_patch(world.clips[row], PATCH, torch.tensor([[place], [place]]))
        assert torch.equal(occluded.read(row), expected)  # both views at the same place


def test_the_place_is_a_function_of_seed_and_row() -> None:
    world = World(clips(1).expand(40, -1, -1, -1, -1).unsqueeze(1))
    forward = Occluded(world, PATCH, seed=1)
    backward = Occluded(world, PATCH, seed=1)
    theirs = {row: backward.read(row) for row in reversed(range(40))}
    assert all(torch.equal(forward.read(row), theirs[row]) for row in range(40))
    other = Occluded(world, PATCH, seed=2)
    assert sum(torch.equal(forward.read(row), other.read(row)) for row in range(40)) < 10
    assert len({tuple(forward.read(row).flatten().tolist()) for row in range(40)}) > 10


def test_the_identity_tells_all_that_is_kept() -> None:
    world = World(clips(1).unsqueeze(1))
    sources = [
        Occluded(world, PATCH),
        Occluded(world, PATCH, seed=1),
        Occluded(world, (2, 8, 8)),
        Occluded(world, PATCH, halves=True),
    ]
    told = {json.dumps(source.identity(), sort_keys=True) for source in [world, *sources]}
    assert len(told) == 5
    assert sources[0].identity() == Occluded(world, PATCH).identity()
    assert sources[0].identity()["source"] == world.identity()


@pytest.mark.parametrize(
    ("whole", "occluded", "drop"), [(0.8, 0.8, 0), (0.8, 0.2, 0.75), (0.5, 0.0, 1), (0.5, 0.6, -0.2)]
)
def test_occdrop_is_the_relative_loss(whole: float, occluded: float, drop: float) -> None:
    assert occdrop(whole, occluded) == pytest.approx(drop)


@pytest.mark.parametrize(("whole", "occluded"), [(0.0, 0.0), (math.nan, 0.5), (0.5, math.nan)])
def test_occdrop_is_nan_where_it_is_undefined(whole: float, occluded: float) -> None:
    assert math.isnan(occdrop(whole, occluded))


def halves_of(clip: Tensor) -> Tensor:
    """A feature that only the two halves together have: the product of their sums, [views, 1]."""
    left, right = (half.sum(dim=(1, 2, 3, 4)) for half in clip.chunk(2, dim=-1))
    return (left * right)[:, None]


def colour_of(clip: Tensor) -> Tensor:
    """What every patch shows: the mean colour, [views, 3]."""
    return clip.mean(dim=(2, 3, 4))


def accuracy(source: Source, features: Any, label: np.ndarray) -> float:
    """Of a probe fitted on the even rows, on the odd ones."""
    table = np.concatenate([features(source.read(row)).numpy() for row in range(len(source))])
    table = table / max(np.abs(table).max(), 1e-9)
    probe = LogisticRegression(C=100.0).fit(table[::2], label[::2])
    return float(probe.score(table[1::2], label[1::2]))


def signs(count: int) -> tuple[World, np.ndarray, np.ndarray]:
    """Clips whose halves are bright or dark; whether the left is bright, and whether the halves are alike."""
    left = torch.arange(count) // 2 % 2 * 2.0 - 1
    right = torch.arange(count) // 4 % 2 * 2.0 - 1
    picture = torch.cat([left[:, None].expand(-1, 16), right[:, None].expand(-1, 16)], dim=1)  # [n, W]
    clip = picture[:, None, None, None, None].expand(-1, 1, 3, 4, 24, -1)
    return World(clip), left.gt(0).long().numpy(), (left * right).gt(0).long().numpy()


def test_nothing_drops_where_every_patch_carries_the_label() -> None:
    world, left, _ = signs(64)
    world = World(world.clips[..., :16].repeat(1, 1, 1, 1, 1, 2))
    whole, one = (accuracy(s, colour_of, left) for s in (world, Occluded(world, PATCH)))
    assert whole == 1 and occdrop(whole, one) == 0


def test_a_relation_drops_to_chance_and_survives_a_patch_in_each_half() -> None:
    world, _, alike = signs(64)
    assert alike[::2].mean() == alike[1::2].mean() == 0.5
    whole = accuracy(world, halves_of, alike)
    one = accuracy(Occluded(world, PATCH), halves_of, alike)
    both = accuracy(Occluded(world, PATCH, halves=True), halves_of, alike)
    assert whole == 1
    assert occdrop(whole, one) == 0.5  # 1 - 1/k of two classes: all there is to lose
    assert occdrop(whole, both) == 0


def build(depth: int = 3) -> ViT:
    torch.manual_seed(0)
    return ViT(48, depth, 3, patch=PATCH, init_std=0.3).eval()


def without_mixing() -> ViT:
    model = build()
    for block in model.blocks:
        assert isinstance(block, Block)
        torch.nn.init.zeros_(block.attn.proj.weight)
    return model


def elsewhere(places: Sequence[tuple[int, int]]) -> np.ndarray:
    """bool [places, t, h, w]: tokens at other places than the one taken away."""
    mask = np.ones((len(places), 2, 3, 8), bool)
    for i, (h, w) in enumerate(places):
        mask[i, :, h, w] = False
    return mask


@pytest.mark.parametrize("chunk", [1, 4, 24])
def test_influence_is_exactly_zero_elsewhere_where_tokens_never_mix(chunk: int) -> None:
    places = EVERY[:10]  # not a multiple of 4
    found = patch_influence(without_mixing(), clips(1), places, [0, 2, 3], chunk)
    assert list(found) == [0, 2, 3]
    for change in found.values():
        assert change.shape == (10, 2, 3, 8) and change.dtype == np.float32
        away = elsewhere(places)
        assert (change[away] == 0).all() and (change[~away] > 1e-2).all()
    for reach in influence_reach(found, places).values():
        assert reach.elsewhere == 0 and reach.distance == 0


def test_influence_is_everywhere_where_tokens_mix() -> None:
    places = EVERY[::5]
    found = patch_influence(build(), clips(1), places, [0, 1, 3])
    away = elsewhere(places)
    assert (found[0][away] == 0).all()  # the embedding is local
    assert (found[1] > 0).all() and (found[3] > 0).all()
    reach = influence_reach(found, places)
    assert reach[0].elsewhere == 0 < reach[1].elsewhere < 1
    assert reach[0].distance == 0 < reach[1].distance


def test_influence_equals_an_encoder_run_twice() -> None:
    model, clip, places = build(), clips(1), [(0, 3), (2, 7), (1, 0), (1, 1), (2, 2)]
    found = patch_influence(model, clip, places, [1, 3], chunk=2)
    with torch.no_grad():
        before = model.layers(clip, [1, 3])
        for i, (h, w) in enumerate(places):
            without = clip.clone()
            without[..., 8 * h : 8 * h + 8, 4 * w : 4 * w + 4] = 0
            after = model.layers(without, [1, 3])
            for layer in (1, 3):
                change = (after[layer] - before[layer]).norm(dim=-1) / before[layer].norm(dim=-1)
                np.testing.assert_allclose(found[layer][i].ravel(), change[0], rtol=1e-3, atol=1e-6)


class Means:
    """A stub with one layer above the pixels, in which every token is the mean of all; records its batches."""

    patch = PATCH

    def __init__(self) -> None:
        self.batches: list[int] = []

    def grid(self, clip: Tensor) -> Grid:
        return Pixels(PATCH).grid(clip)

    def layers(self, clip: Tensor, which: Sequence[int]) -> dict[int, Tensor]:
        self.batches.append(len(clip))
        tokens = Pixels(PATCH)(clip)
        both = {0: tokens, 1: tokens.mean(dim=1, keepdim=True).expand_as(tokens)}
        return {layer: both[layer] for layer in which}


def test_global_mixing_is_felt_at_the_mean_distance_of_the_grid() -> None:
    model, clip = Means(), torch.ones(1, 3, 4, 24, 32)
    found = patch_influence(model, clip, EVERY, [0, 1], chunk=5)
    assert model.batches == [5] * 6  # the clip as it is, and 24 places
    np.testing.assert_allclose(found[1], 1 / 24, rtol=1e-5)  # one patch of 24 is gone from every mean
    np.testing.assert_allclose(found[0][~elsewhere(EVERY)], 1)  # all of the token is gone
    reach = influence_reach(found, EVERY)[1]
    assert reach.elsewhere == pytest.approx(23 / 24)
    assert reach.distance == pytest.approx(np.mean([math.dist(a, b) for a in EVERY for b in EVERY]))


def test_reach_weighs_places_by_change() -> None:
    change = np.zeros((2, 2, 3, 8), np.float32)
    change[0, 0, 1, 2] = 3.0  # at the place itself
    change[0, 1, 1, 5] = 1.0  # three patches away
    change[1, 1, 2, 3] = 4.0  # away by (2, 3)
    change[1, 0, 0, 7] = np.nan
    reach = influence_reach({2: change}, [(1, 2), (0, 0)])[2]
    assert reach.elsewhere == pytest.approx(5 / 8)
    assert reach.distance == pytest.approx((3 + 4 * math.hypot(2, 3)) / 8)


def test_reach_is_nan_where_nothing_changes() -> None:
    reach = influence_reach({0: np.zeros((1, 2, 3, 8), np.float32)}, [(0, 0)])[0]
    assert math.isnan(reach.elsewhere) and math.isnan(reach.distance)


def test_influence_on_a_token_that_is_zero_is_nan() -> None:
    clip = clips(1)
    clip[..., :8, :4] = 0
    found = patch_influence(Pixels(PATCH), clip, [(0, 0), (1, 1)], [0])[0]
    assert np.isnan(found[:, :, 0, 0]).all() and np.isfinite(found[:, :, 1:, 1:]).all()


def test_influence_refuses_what_it_cannot_answer() -> None:
    model = build()
    with pytest.raises(ValueError, match="of one clip, not of 2"):
        patch_influence(model, clips(2), [(0, 0)], [0])
    with pytest.raises(ValueError, match="at least one place"):
        patch_influence(model, clips(1), [], [0])
    with pytest.raises(ValueError, match="outside a picture"):
        patch_influence(model, clips(1), [(0, 8)], [0])
    with pytest.raises(ValueError, match="layers 0 to 3"):
        patch_influence(model, clips(1), [(0, 0)], [4])
