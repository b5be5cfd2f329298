"""The video encoder: a plain ViT over tubelets, and the contract that everything after pretraining uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tubelet.errors import nearest
from tubelet.nn.block import Block, init_weights, rescale_residual
from tubelet.nn.tokens import Positions, Rotary, Rotation, gather, patchify
from tubelet.types import Grid


class Embedding(nn.Linear):
    """Tubelets' pixels to tokens: the one layer whose input never needs a gradient."""


class ViT(nn.Module):
    """Plain ViT: tubelets, pre-norm blocks, a final LayerNorm; no class token, no dropout.

    dim: width D. depth: number of blocks. heads: attention heads. hidden: width of the MLP (default 4*dim).
    patch: frames, height and width of a tubelet in pixels. channels: of the clip. positions: see
    `tubelet.nn.tokens`; the rotary ones need no table, so any frame count and resolution works.
    init_std: width of the weights' first draw; the papers' .02 is for widths of 1024 and more.
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        hidden: int | None = None,
        patch: tuple[int, int, int] = (2, 16, 16),
        channels: int = 3,
        positions: Positions | None = None,
        init_std: float = 0.02,
    ):
        super().__init__()
        self.dim, self.depth, self.heads = dim, depth, heads
        self.hidden = 4 * dim if hidden is None else hidden
        self.patch, self.channels, self.init_std = patch, channels, init_std
        self.positions = Rotary() if positions is None else positions
        self.embedding = Embedding(channels * patch[0] * patch[1] * patch[2], dim)
        self.blocks = nn.ModuleList(Block(dim, heads, self.hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.init_weights()

    def init_weights(self) -> None:
        """(Re)draws every weight from torch's global generator."""
        init_weights(self, self.init_std)
        rescale_residual(self.blocks)

    def grid(self, clip: Tensor) -> Grid:
        """Tokens along t, h, w of a clip [B, C, T, H, W]."""
        _, _, t, h, w = clip.shape
        return Grid(t // self.patch[0], h // self.patch[1], w // self.patch[2])

    def embed(self, clip: Tensor, keep: Tensor | None = None) -> Tensor:
        """Embedded tokens [B, K, D] (layer 0) of clips [B, C, T, H, W]; only tokens ``keep`` [B, K] if given.

        Raises ValueError if the clip has other channels or does not divide into tubelets.
        """
        if clip.shape[1] != self.channels:
            raise ValueError(f"the encoder reads {self.channels} channels, the clip has {clip.shape[1]}")
        patches = patchify(clip, self.patch)
        added = self.positions.add(self.grid(clip), self.dim, clip.device)
        if keep is not None:
            patches = gather(patches, keep)
            added = None if added is None else gather(added, keep)
        tokens = self.embedding(patches)
        return tokens if added is None else tokens + added.to(tokens.dtype)

    def rotation(self, grid: Grid, keep: Tensor | None, device: torch.device) -> Rotation | None:
        """What the blocks need to know of positions, computed once for all of them."""
        return self.positions.rotate(grid, keep, self.dim, self.heads, device)

    def advance(self, tokens: Tensor, rotation: Rotation | None, start: int, stop: int) -> Tensor:
        """Tokens [B, K, D] of layer ``start`` -> those of layer ``stop``."""
        for block in self.blocks[start:stop]:
            tokens = block(tokens, rotation)
        return tokens

    def section(self, start: int, stop: int) -> tuple[nn.Module, ...]:
        """What leads from layer ``start`` to layer ``stop``: with the embedding from 0, the final norm to ``depth``.

        Every parameter of the encoder is in exactly one of the sections between consecutive layers.
        """
        first = (self.embedding,) if start == 0 else ()
        last = (self.norm,) if stop == self.depth else ()
        return (*first, *self.blocks[start:stop], *last)

    def forward(self, clip: Tensor, keep: Tensor | None = None) -> Tensor:
        """Final normed tokens [B, K, D] of clips [B, C, T, H, W]; only tokens ``keep`` [B, K] enter if given."""
        return self.layers(clip, [self.depth], keep, normed=True)[self.depth]

    def layers(
        self, clip: Tensor, which: Sequence[int], keep: Tensor | None = None, normed: bool = False
    ) -> dict[int, Tensor]:
        """Tokens [B, K, D] after the blocks named in ``which`` (0 = embedding, depth = last); stops at the deepest.

        normed=True passes each through the final norm, as the papers' multi-layer probes do.
        Raises ValueError for a layer that does not exist.
        """
        wrong = [k for k in which if not 0 <= k <= self.depth]
        if wrong or not which:
            raise ValueError(
                f"layers {wrong or 'none'} asked of an encoder that has layers 0 to {self.depth}"
            )
        tokens = self.embed(clip, keep)
        rotation = self.rotation(self.grid(clip), keep, clip.device)
        found = {0: tokens} if 0 in which else {}  # what nobody asks for is freed as soon as it is used
        for number, block in enumerate(self.blocks[: max(which)], start=1):
            tokens = block(tokens, rotation)
            if number in which:
                found[number] = tokens
        return {k: self.norm(found[k]) if normed else found[k] for k in which}


@dataclass(frozen=True)
class Size:
    """A named size: width, depth, heads and MLP width of an encoder."""

    dim: int
    depth: int
    heads: int
    hidden: int


# Base to gigantic as in SALT's Table 3; giant has 22 heads in V-JEPA 2's code, 16 here. Tiny, small: DeiT's.
MODELS = {
    "vit_tiny": Size(192, 12, 3, 768),
    "vit_small": Size(384, 12, 6, 1536),
    "vit_base": Size(768, 12, 12, 3072),
    "vit_large": Size(1024, 24, 16, 4096),
    "vit_huge": Size(1280, 32, 16, 5120),
    "vit_giant": Size(1408, 40, 16, 6144),
    "vit_gigantic": Size(1664, 48, 16, 8192),
}


def parse_size(model: str) -> Size:
    """A name of `MODELS`, or ``WIDTHxDEPTHxHEADS`` such as ``128x6x4`` (MLP four times as wide), or with ``xMLP``.

    Raises ValueError for anything else, naming the nearest model.
    """
    if model in MODELS:
        return MODELS[model]
    parts = model.split("x")
    if len(parts) in (3, 4) and all(part.isdigit() and int(part) > 0 for part in parts):
        dim, depth, heads, *mlp = map(int, parts)
        return Size(dim, depth, heads, *(mlp or [4 * dim]))
    known = ", ".join(MODELS)
    raise ValueError(
        f'unknown model "{model}"{nearest(model, MODELS)} (known: {known}, or WIDTHxDEPTHxHEADS[xMLP])'
    )


def build_vit(
    model: str,
    patch: tuple[int, int, int] = (2, 16, 16),
    channels: int = 3,
    positions: Positions | None = None,
    init_std: float = 0.02,
) -> ViT:
    """A randomly initialised encoder of a named size; raises ValueError for an unknown one."""
    size = parse_size(model)
    return ViT(size.dim, size.depth, size.heads, size.hidden, patch, channels, positions, init_std)
