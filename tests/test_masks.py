"""Masks: disjoint, ascending, equal counts, and the published statistics."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tubelet.masks import Aimed, BlockKind, MultiBlockMask, RandomMask, TubeMask
from tubelet.types import Grid, Mask, MaskSampler

CPU = torch.device("cpu")
SAMPLERS: list[MaskSampler] = [
    RandomMask(0.75),
    RandomMask(0.9, kinds=2),
    TubeMask(0.75),
    MultiBlockMask(),
    MultiBlockMask(cut="minimum"),
    MultiBlockMask(context_frames=0.5),
    MultiBlockMask(temporal=0.5),
]


def check(mask: Mask, grid: Grid, batch: int) -> None:
    for ids in (mask.context, mask.target):
        assert ids.dtype == torch.int64 and ids.shape[0] == batch and ids.shape[1] >= 1
        assert (ids[:, 1:] > ids[:, :-1]).all(), "ascending, none twice"
        assert ids.min() >= 0 and ids.max() < grid.n
    for row in range(batch):
        assert not set(mask.context[row].tolist()) & set(mask.target[row].tolist())


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(range(len(SAMPLERS))),
    st.integers(2, 4),
    st.integers(4, 9),
    st.integers(4, 9),
    st.integers(1, 9),
)
def test_context_and_target_never_meet(number: int, t: int, h: int, w: int, batch: int) -> None:
    grid, sampler = Grid(t, h, w), SAMPLERS[number]
    torch.manual_seed(number)
    masks = sampler(grid, batch, CPU)
    assert len(masks) == len(sampler.counts(grid))
    for mask in masks:
        check(mask, grid, batch)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if getattr(s, "cut", "constant") == "constant"])
def test_counts_never_depend_on_the_batch(sampler: MaskSampler) -> None:
    grid = Grid(4, 6, 7)
    for batch in (1, 5, 33):
        for mask, (context, target) in zip(sampler(grid, batch, CPU), sampler.counts(grid), strict=True):
            assert mask.context.shape == (batch, context) and mask.target.shape == (batch, target)


def test_masks_are_a_function_of_the_seed() -> None:
    grid = Grid(4, 7, 7)
    for sampler in SAMPLERS:
        drawn = []
        for _ in range(2):
            sampler.counts(grid)  # asking for counts must not move the generator
            torch.manual_seed(7)
            drawn.append(sampler(grid, 3, CPU)[0].context)
        assert torch.equal(*drawn)


def test_tube_counts_equal_videomae() -> None:
    grid = Grid(8, 14, 14)
    assert TubeMask(0.9).counts(grid) == [(20 * 8, 176 * 8)]
    mask = TubeMask(0.9)(grid, 2, CPU)[0]
    spatial = mask.target % 196
    assert torch.equal(spatial[:, :176], spatial[:, 176:352])


def test_random_95_percent_keeps_79_of_1568() -> None:
    assert RandomMask(0.95).counts(Grid(8, 14, 14)) == [(79, 1489)]


@pytest.mark.parametrize(
    ("side", "batch", "short", "long"),
    [
        (14, 1, (0.369, 0.631), (0.191, 0.809)),
        (14, 8, (0.269, 0.521), (0.087, 0.724)),
        (14, 24, (0.231, 0.481), (0.064, 0.704)),
        (16, 24, (0.244, 0.476), (0.066, 0.701)),
        (24, 8, (0.289, 0.507), (0.093, 0.728)),
    ],
)
def test_published_cut_has_the_published_statistics(
    side: int, batch: int, short: tuple[float, float], long: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    grid, sampler = Grid(2, side, side), MultiBlockMask(cut="minimum")  # blocks span the clip: 2 slots do
    drawn = [sampler(grid, batch, CPU) for _ in range(500)]
    for kind, expected in enumerate((short, long)):
        context = sum(masks[kind].context.shape[1] for masks in drawn) / len(drawn) / grid.n
        target = sum(masks[kind].target.shape[1] for masks in drawn) / len(drawn) / grid.n
        assert context == pytest.approx(expected[0], abs=0.01)
        assert target == pytest.approx(expected[1], abs=0.01)


def test_published_cut_starves_late_frames_and_ours_does_not() -> None:
    torch.manual_seed(0)
    grid = Grid(8, 14, 14)
    late = {}
    for cut in ("minimum", "constant"):
        masks = [MultiBlockMask(cut=cut)(grid, 24, CPU)[0] for _ in range(20)]
        context = torch.cat([mask.context.flatten() for mask in masks])
        late[cut] = (context >= grid.n * 7 // 8).float().mean().item()
    assert late["minimum"] < 0.06
    assert late["constant"] == pytest.approx(1 / 8, abs=0.01)


def test_most_clips_keep_whole_blocks_with_constant_counts() -> None:
    """Counts are those of the 10th percentile: about nine clips of ten have surplus tokens, not missing ones."""
    torch.manual_seed(0)
    grid, sampler = Grid(2, 14, 14), MultiBlockMask(kinds=(BlockKind(8, 0.15),))
    (wanted, _), *_ = sampler.counts(grid)
    seen = torch.cat([sampler._context(sampler.kinds[0], grid, 64, a).sum(1) for a in (0.8, 1.0, 1.3)])
    assert (seen >= wanted).float().mean().item() == pytest.approx(0.9, abs=0.05)


def test_causal_context_lies_in_the_first_frames() -> None:
    grid = Grid(8, 14, 14)
    for mask in MultiBlockMask(context_frames=0.5)(grid, 4, CPU):
        inside = (mask.context < grid.n // 2).float().mean().item()
        assert inside > 0.97  # a clip whose blocks leave too little takes the rest from anywhere


def test_nothing_to_see_or_to_predict_is_an_error() -> None:
    with pytest.raises(ValueError, match="use a larger crop"):
        RandomMask(0.9)(Grid(1, 1, 1), 1, CPU)
    with pytest.raises(ValueError, match="use a larger crop"):
        MultiBlockMask()(Grid(4, 1, 1), 2, CPU)
    with pytest.raises(ValueError, match='"constant" or "minimum"'):
        MultiBlockMask(cut="tail").counts(Grid(2, 7, 7))


@pytest.mark.parametrize("of", ["hidden", "visible", "all"])
@pytest.mark.parametrize("share", [1.0, 0.25])
def test_aimed_masks_ask_for_a_share_of_what_was_named(
    of: Literal["hidden", "visible", "all"], share: float
) -> None:
    """What is seen is as the sampler drew it; targets are ascending, drawn anew for each clip."""
    grid, inner = Grid(4, 6, 6), RandomMask(0.75)
    aimed = Aimed(inner, of, share)
    torch.manual_seed(3)
    (plain,) = inner(grid, 8, CPU)
    torch.manual_seed(3)
    (mask,) = aimed(grid, 8, CPU)
    assert torch.equal(mask.context, plain.context)
    named = {"hidden": plain.target, "visible": plain.context, "all": torch.arange(144).expand(8, -1)}[of]
    assert mask.target.shape[1] == round(share * named.shape[1]) == aimed.counts(grid)[0][1]
    for row, wanted in zip(mask.target, named, strict=True):
        assert set(row.tolist()) <= set(wanted.tolist()) and bool((row.diff() > 0).all())
    if share < 1:
        assert len({tuple(row.tolist()) for row in mask.target}) == 8
