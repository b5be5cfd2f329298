"""From clips to vectors: one layer of an encoder, pooled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tubelet.data.augment import normalise
from tubelet.errors import UserError, nearest
from tubelet.evaluate.features import check_clips
from tubelet.evaluate.head import head_digest, read_head
from tubelet.evaluate.source import Views
from tubelet.export.weights import Encoder
from tubelet.nn.heads import AttentivePooler
from tubelet.types import Grid

Pool = Literal["mean", "attentive", "none", "time", "space"]
POOLS: tuple[Pool, ...] = ("mean", "attentive", "none", "time", "space")
ACROSS: tuple[Pool, ...] = ("none", "space")  # these keep places apart, and crops show different places


@dataclass(frozen=True)
class Vectors:
    """What is kept of a window.

    layer: tokens after that many blocks, passed through the final norm. pool: "mean" of all tokens; "attentive":
    one vector by ``pooler``; "time": mean over space, times joined; "space": mean over time, places joined; "none":
    all tokens. The vectors of a window's clips are averaged over its views.
    """

    encoder: Encoder
    layer: int
    pool: Pool
    views: Views
    pooler: AttentivePooler | None = None
    head: str | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one window: [D], [t, D] (time), [h, w, D] (space) or [t, h, w, D] (none)."""
        (pt, ph, pw), geometry = self.encoder.model.patch, self.encoder.geometry
        grid = Grid(geometry.frames // pt, geometry.crop_size // ph, geometry.crop_size // pw)
        kept = {"time": (grid.t,), "space": (grid.h, grid.w), "none": tuple(grid)}
        return (*kept.get(self.pool, ()), self.encoder.model.dim)

    @torch.no_grad()
    def __call__(self, clips: Tensor, batch_size: int, device: torch.device | str) -> Tensor:
        """float32 [b, width] on the CPU, of uint8 [b, views, 3, T, S, S]; ``batch_size`` clips at once.

        Always computed in float32.
        """
        model, geometry = self.encoder.model.eval().to(device), self.encoder.geometry
        found = []
        for part in clips.flatten(0, 1).split(batch_size):
            clip = normalise(part.to(device), geometry.mean, geometry.std)
            tokens = model.layers(clip, [self.layer], normed=True)[self.layer]
            found.append(self._pooled(tokens, model.grid(clip)))
        return torch.cat(found).unflatten(0, clips.shape[:2]).mean(dim=1).cpu()

    def _pooled(self, tokens: Tensor, grid: Grid) -> Tensor:
        """[b, N, D] -> [b, width]."""
        if self.pool == "mean":
            return tokens.mean(dim=1)
        if self.pool == "none":
            return tokens.flatten(1)
        if self.pool == "attentive":
            assert self.pooler is not None
            return self.pooler.to(tokens.device)(tokens)
        apart = tokens.unflatten(1, (grid.t, grid.h * grid.w))
        return apart.mean(dim=2 if self.pool == "time" else 1).flatten(1)


def choose_vectors(
    encoder: Encoder,
    layer: int | None,
    pool: str,
    head: Path | str | None,
    views: Views | None,
) -> Vectors:
    """What `Vectors` is asked for, checked; ``layer`` is the last by default.

    Raises UserError for what does not exist, does not fit, or is missing.
    """
    model, views = encoder.model, views or Views()
    layer = model.depth if layer is None else layer
    known: Pool | None = next((name for name in POOLS if name == pool), None)
    if known is None:
        raise UserError(f'pool="{pool}" is unknown{nearest(pool, POOLS)} (known: {", ".join(POOLS)})')
    if not 0 <= layer <= model.depth:
        raise UserError(f"{encoder.name} has layers 0 to {model.depth}, not {layer}")
    check_clips(encoder)
    if views.crops > 1 and known in ACROSS:
        raise UserError(
            f'pool="{pool}" keeps places apart, and {views.crops} crops show different places; use crops=1, or pool '
            '"mean" or "time"'
        )
    if known != "attentive":
        if head is not None:
            raise UserError(f'head={head} is for pool="attentive", not "{pool}"; leave it out')
        return Vectors(encoder, layer, known, views)
    if head is None:
        raise UserError(
            'pool="attentive" pools by a trained head; give head=FOLDER, the result of tubelet probe --kind attentive '
            "on this layer, or use another pool"
        )
    pooler = read_head(head, encoder, layer)
    return Vectors(encoder, layer, known, views, pooler, head_digest(head))
