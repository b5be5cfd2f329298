"""Where the tokens of every block look: how far in the picture, how far in time, and at how many others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tubelet.nn.block import Attention, Block, weigh
from tubelet.nn.pixels import Pixels
from tubelet.nn.tokens import Rotation, coordinates
from tubelet.nn.vit import ViT
from tubelet.types import Grid

TABLE = 2**27  # bytes of the largest table of weights that is held


@dataclass(frozen=True)
class AttentionStatistics:
    """What the heads of one block do on B clips: float64 [B, heads] on the CPU, means over queries.

    A token's look at itself counts, at distance 0. space: expected distance between the centres of the token that
    looks and the one looked at, in the picture plane, in pixels. time: the same along time, absolute, in frames of
    the clip. entropy: of a query's weights, as a share of log N: 1 if it looks at all tokens alike, 0 if at one; nan
    if there is one token only. Source: ours; mean attention distance as in ViT (arXiv 2010.11929).
    """

    space: Tensor
    time: Tensor
    entropy: Tensor

    def by_clip(self) -> dict[str, Tensor]:
        """Metric -> float64 [B], means over heads."""
        return {name: value.mean(dim=1) for name, value in self._named()}

    def by_head(self) -> dict[str, Tensor]:
        """Metric -> float64 [heads], means over clips."""
        return {name: value.mean(dim=0) for name, value in self._named()}

    def _named(self) -> tuple[tuple[str, Tensor], ...]:
        return (
            ("attention_space", self.space),
            ("attention_time", self.time),
            ("attention_entropy", self.entropy),
        )


@torch.no_grad()
def attention_statistics(
    model: ViT | Pixels,
    clip: Tensor,
    table: int = TABLE,
    told: Callable[[int, Tensor], None] | None = None,
) -> dict[int, AttentionStatistics]:
    """Block 1 to depth -> what its attention does on clips [B, C, T, H, W]; {} for raw pixels, which have no blocks.

    clip: where the model is. table: no table of weights has more bytes, at most two exist at once: so many
    clips, or so many queries of one clip, are looked at together; the numbers do not depend on it. At least one query
    of one clip is, whatever it takes: 4 * heads * N bytes. All tokens enter, none is masked. told: is given each layer
    from 0 and its tokens [b, N, D], some of the clips at a time and in order, so that who looks at tokens too needs no
    forward of their own; the last layer's have not passed the final norm.
    """
    if isinstance(model, Pixels):
        if told is not None:
            told(0, model.embed(clip))
        return {}
    grid = model.grid(clip)
    row = 4 * model.heads * grid.n  # bytes of a query's weights, float32
    clips, queries = max(1, table // (row * grid.n)), max(1, table // row)
    parts = [_walk(model, part, grid, queries, told) for part in clip.split(clips)]
    return {
        block: AttentionStatistics(
            torch.cat([part[block].space for part in parts]),
            torch.cat([part[block].time for part in parts]),
            torch.cat([part[block].entropy for part in parts]),
        )
        for block in range(1, model.depth + 1)
    }


def _walk(
    model: ViT, clip: Tensor, grid: Grid, queries: int, told: Callable[[int, Tensor], None] | None
) -> dict[int, AttentionStatistics]:
    tokens, rotation = model.embed(clip), model.rotation(grid, None, clip.device)
    distances = _Distances(grid, model.patch, clip.device)
    found: dict[int, AttentionStatistics] = {}
    if told is not None:
        told(0, tokens)
    for number, block in enumerate(model.blocks, start=1):
        assert isinstance(block, Block)
        found[number] = _measure(block.attn, block.norm1(tokens), rotation, distances, queries)
        tokens = model.advance(tokens, rotation, number - 1, number)
        if told is not None:
            told(number, tokens)
    return found


class _Distances:
    """Between the centres of a grid's tokens: plane [hw, hw] in pixels, time [t, t] in frames; float32."""

    def __init__(self, grid: Grid, patch: tuple[int, int, int], device: torch.device) -> None:
        _, row, column = coordinates(Grid(1, grid.h, grid.w), device).float().unbind(dim=1)
        down, across = row * patch[1], column * patch[2]
        frame = torch.arange(grid.t, device=device) * patch[0]
        self.plane = torch.hypot(down[:, None] - down, across[:, None] - across)
        self.time = (frame[:, None] - frame).abs().float()


def _measure(
    attention: Attention, tokens: Tensor, rotation: Rotation | None, distances: _Distances, queries: int
) -> AttentionStatistics:
    b, n, _ = tokens.shape
    t, hw = len(distances.time), len(distances.plane)
    assert t * hw == n
    q, k, _ = attention.project(tokens, rotation)
    space, time, entropy = torch.zeros(3, b, attention.heads, dtype=torch.float64)
    for start in range(0, n, queries):
        at = torch.arange(start, min(start + queries, n), device=tokens.device)
        weights = weigh(q[:, :, start : start + queries], k).float()  # [B, heads, Q, N]
        # distances in the plane do not depend on time nor the other way round: two small tables of sums are enough
        where = weights.unflatten(-1, (t, hw))
        space += _sum(where.sum(dim=-2) * distances.plane[at % hw])
        time += _sum(where.sum(dim=-1) * distances.time[at // hw])
        entropy += _sum(torch.special.entr(weights))
    most = n * math.log(n) if n > 1 else math.nan
    return AttentionStatistics(space / n, time / n, entropy / most)


def _sum(table: Tensor) -> Tensor:
    """[B, heads, Q, ...] -> float64 [B, heads] on the CPU."""
    return table.flatten(2).sum(dim=-1).cpu().double()
