"""Which tokens the student sees and which it must predict.

A sampler is called as ``sampler(grid, batch, device)`` and returns one `Mask` for each kind of mask; it draws
from torch's global CPU generator, which the loop seeds from (seed, step, micro-batch, rank).
``sampler.counts(grid)`` gives (context, target) token counts of each kind: exact where counts are constant,
expected values where they are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from tubelet.types import Grid, Mask, MaskSampler


def _pick(wanted: Tensor, count: int) -> Tensor:
    """``count`` ids per row, at random among those ``wanted`` [B, N] first; ascending, int64 [B, count]."""
    score = wanted.float() + torch.rand(wanted.shape)
    return score.topk(count, dim=1).indices.sort(dim=1).values


def _split(context: Tensor, n_context: int, n_target: int) -> Mask:
    """A mask with constant counts from a boolean map [B, N] of who would be context.

    Surplus tokens are dropped at random, not from the tail, so late frames are not starved. A clip with too
    few of a kind takes the missing ones at random from the other.
    """
    kept = _pick(context, n_context)
    taken = torch.zeros_like(context).scatter(1, kept, True)
    # Tokens already seen must never be predicted: they rank below every other.
    score = (~context).float() + torch.rand(context.shape) - 2.0 * taken.float()
    target = score.topk(n_target, dim=1).indices.sort(dim=1).values
    return Mask(kept, target)


def _to(mask: Mask, device: torch.device) -> Mask:
    return Mask(mask.context.to(device), mask.target.to(device))


@dataclass(frozen=True)
class RandomMask:
    """Hides a share ``ratio`` of all tokens, uniformly; everything hidden is predicted (MAE, 4DS).

    kinds: how many independent masks a clip gets.
    """

    ratio: float = 0.75
    kinds: int = 1

    def __call__(self, grid: Grid, batch: int, device: torch.device) -> list[Mask]:
        """Constant counts: int(ratio*N) hidden."""
        (n_context, n_target), *_ = self.counts(grid)
        everything = torch.ones(batch, grid.n, dtype=torch.bool)
        return [_to(_split(everything, n_context, n_target), device) for _ in range(self.kinds)]

    def counts(self, grid: Grid) -> list[tuple[int, int]]:
        """Exact. Raises ValueError if nothing would be left to see or to predict."""
        hidden = int(self.ratio * grid.n)
        _check(grid.n - hidden, hidden, grid, f"mask ratio {self.ratio}")
        return [(grid.n - hidden, hidden)] * self.kinds


@dataclass(frozen=True)
class TubeMask:
    """Hides a share ``ratio`` of the places in a frame, the same ones in all frames (VideoMAE).

    int(ratio*h*w) places are hidden: 176 of 196 at .9, as VideoMAE's code counts.
    """

    ratio: float = 0.9
    kinds: int = 1

    def __call__(self, grid: Grid, batch: int, device: torch.device) -> list[Mask]:
        """Constant counts."""
        places = grid.h * grid.w
        hidden = self.counts(grid)[0][1] // grid.t
        masks = []
        for _ in range(self.kinds):
            spatial = _split(torch.ones(batch, places, dtype=torch.bool), places - hidden, hidden)
            offset = (torch.arange(grid.t) * places).view(1, -1, 1)
            context, target = (
                (ids.unsqueeze(1) + offset).flatten(1) for ids in (spatial.context, spatial.target)
            )
            masks.append(_to(Mask(context, target), device))
        return masks

    def counts(self, grid: Grid) -> list[tuple[int, int]]:
        """Exact. Raises ValueError if nothing would be left to see or to predict."""
        places = grid.h * grid.w
        hidden = int(self.ratio * places)
        _check(places - hidden, hidden, grid, f"tube mask ratio {self.ratio}")
        return [((places - hidden) * grid.t, hidden * grid.t)] * self.kinds


@dataclass(frozen=True)
class BlockKind:
    """One kind of multi-block mask: how many blocks, and the share of a frame that each covers."""

    blocks: int
    spatial: float


SHORT_RANGE = BlockKind(8, 0.15)
LONG_RANGE = BlockKind(2, 0.7)


@dataclass(frozen=True)
class MultiBlockMask:
    """Hides the union of a few large blocks that span the clip (V-JEPA §3, V-JEPA 2, SALT's Table 5).

    kinds: one mask per entry; the papers use 8 blocks of 15 % and 2 blocks of 70 %. temporal: share of the
    clip's length a block spans (1 in the papers). aspect: height/width of a block, drawn uniformly once a
    batch and shared by all kinds. context_frames: share of the clip's first time steps that may be context,
    everything later is hidden (the causal variant; 1 in the papers).

    cut="constant" (ours, default): every clip gets the same counts, those of the 10th percentile of block
    masks on this grid, so shapes are static and the mask does not depend on the batch size; see `_split`.
    cut="minimum" (published): all clips are cut to the smallest count in the batch, keeping the lowest token
    ids, so late frames are seen and predicted less, the more so the larger the batch.
    """

    kinds: tuple[BlockKind, ...] = (SHORT_RANGE, LONG_RANGE)
    temporal: float = 1.0
    aspect: tuple[float, float] = (0.75, 1.5)
    context_frames: float = 1.0
    cut: str = "constant"

    def __call__(self, grid: Grid, batch: int, device: torch.device) -> list[Mask]:
        """One mask per kind."""
        aspect = float(torch.empty(()).uniform_(*self.aspect))
        masks = []
        for kind, (n_context, n_target) in zip(self.kinds, self.counts(grid), strict=True):
            context = self._context(kind, grid, batch, aspect)
            if self.cut == "minimum":
                masks.append(_to(_cut_to_minimum(context), device))
            else:
                masks.append(_to(_split(context, n_context, n_target), device))
        return masks

    def counts(self, grid: Grid) -> list[tuple[int, int]]:
        """Exact for cut="constant"; for "minimum" those of a batch of 24 clips, on average.

        Raises ValueError for an unknown cut, or a grid too small for blocks.
        """
        if self.cut not in ("constant", "minimum"):
            raise ValueError(f'mask cut "{self.cut}" is unknown; use "constant" or "minimum"')
        return _block_counts(self, grid)

    def _context(self, kind: BlockKind, grid: Grid, batch: int, aspect: float) -> Tensor:
        """Boolean [B, N]: True outside every block. Clips that would see nothing are drawn again."""
        area = math.floor(grid.h * grid.w * kind.spatial)
        height = max(1, min(grid.h, round(math.sqrt(area * aspect))))
        width = max(1, min(grid.w, round(math.sqrt(area / aspect))))
        length = max(1, math.floor(grid.t * self.temporal))
        seen = torch.zeros(batch, grid.t, grid.h, grid.w, dtype=torch.bool)
        missing = torch.arange(batch)
        for _ in range(1000):
            inside = [
                _spans(len(missing), kind.blocks, span, size)
                for span, size in ((length, grid.t), (height, grid.h), (width, grid.w))
            ]
            hidden = torch.einsum("bkt,bkh,bkw->bthw", *(part.float() for part in inside)) > 0
            if self.context_frames < 1:
                hidden[:, max(1, math.floor(grid.t * self.context_frames)) :] = True
            seen[missing] = ~hidden
            missing = missing[hidden.flatten(1).all(dim=1)]
            if not len(missing):
                return seen.flatten(1)
        raise ValueError(
            f"blocks of {kind.spatial:.0%} of a frame always cover the {grid.h}x{grid.w} grid; "
            "use a larger crop, a smaller patch or smaller blocks"
        )


@dataclass(frozen=True)
class Aimed:
    """The masks of another sampler, with other targets: fewer of them, or what is seen as well.

    of: "hidden" keeps the sampler's targets; "visible" asks for the tokens that are seen, "all" for every
    token. share: of those, how many are asked for, drawn uniformly clip by clip, at least one. Sources:
    LayerLock's latent loss on 5 % of the patches (how they are drawn is open: ours), VideoMAE v2's decoder
    masking (there a running cell, here at random).
    """

    sampler: MaskSampler
    of: Literal["hidden", "visible", "all"] = "hidden"
    share: float = 1.0

    def __call__(self, grid: Grid, batch: int, device: torch.device) -> list[Mask]:
        """The sampler's masks; what is seen is as it drew it."""
        masks = []
        for mask in self.sampler(grid, batch, torch.device("cpu")):
            match self.of:
                case "hidden":
                    ids = mask.target
                case "visible":
                    ids = mask.context
                case "all":
                    ids = torch.arange(grid.n).expand(batch, -1)
            chosen = _pick(torch.ones(ids.shape), self._count(ids.shape[1])) if self.share < 1 else None
            masks.append(_to(Mask(mask.context, ids if chosen is None else ids.gather(1, chosen)), device))
        return masks

    def counts(self, grid: Grid) -> list[tuple[int, int]]:
        """As exact as the sampler's."""
        size = {"hidden": lambda pair: pair[1], "visible": lambda pair: pair[0], "all": lambda _: grid.n}
        return [(pair[0], self._count(size[self.of](pair))) for pair in self.sampler.counts(grid)]

    def _count(self, tokens: int) -> int:
        return max(1, round(self.share * tokens))


def _spans(batch: int, blocks: int, length: int, size: int) -> Tensor:
    """Random intervals of ``length`` in range(size): boolean [B, blocks, size]."""
    start = torch.randint(0, size - length + 1, (batch, blocks, 1))
    place = torch.arange(size)
    return (place >= start) & (place < start + length)


def _cut_to_minimum(context: Tensor) -> Mask:
    """The lowest ids of each row, as many as the poorest row of the batch has."""
    n_context = int(context.sum(dim=1).min())
    n_target = int((~context).sum(dim=1).min())
    ids = torch.arange(context.shape[1]).expand_as(context)
    last = context.shape[1]
    return Mask(
        torch.where(context, ids, last).sort(dim=1).values[:, :n_context],
        torch.where(context, last, ids).sort(dim=1).values[:, :n_target],
    )


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Draws inside do not move the caller's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@lru_cache(maxsize=64)
def _block_counts(sampler: MultiBlockMask, grid: Grid) -> list[tuple[int, int]]:
    """Counts from a simulation of 64 batches of 24 clips, with a seed of its own."""
    counts = []
    with _own_randomness(0):
        for kind in sampler.kinds:
            aspects = torch.empty(64).uniform_(*sampler.aspect).tolist()
            seen = torch.stack([sampler._context(kind, grid, 24, a).sum(dim=1) for a in aspects]).float()
            if sampler.cut == "minimum":
                context = seen.min(dim=1).values.mean()
                target = (grid.n - seen).min(dim=1).values.mean()
            else:
                context, target = seen.quantile(0.1), (grid.n - seen).quantile(0.1)
            n_context, n_target = max(1, int(context)), max(1, int(target))
            _check(n_context, n_target, grid, f"blocks of {kind.spatial:.0%} of a frame")
            counts.append((n_context, min(n_target, grid.n - n_context)))
    return counts


def _check(n_context: int, n_target: int, grid: Grid, what: str) -> None:
    if n_context < 1 or n_target < 1:
        raise ValueError(
            f"{what} leaves {n_context} tokens to see and {n_target} to predict on a {grid.t}x{grid.h}x{grid.w} grid; "
            "use a larger crop, more frames, or another ratio"
        )
