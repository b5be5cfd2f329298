"""Raw pixels behind the encoder contract: the baseline that every learned feature must beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.nn.tokens import gather, patchify
from tubelet.types import Grid


class Pixels(nn.Module):
    """Each token is its tubelet, averaged to ``cells`` x ``cells`` pixels a frame; nothing is learned (ours)."""

    depth = 0

    def __init__(self, patch: tuple[int, int, int] = (2, 16, 16), channels: int = 3, cells: int = 2):
        super().__init__()
        self.patch, self.channels, self.cells = patch, channels, cells
        self.dim = channels * patch[0] * cells * cells
        self.blocks, self.norm = nn.ModuleList(), nn.Identity()

    def grid(self, clip: Tensor) -> Grid:
        """Tokens along t, h, w of a clip [B, C, T, H, W]."""
        _, _, t, h, w = clip.shape
        return Grid(t // self.patch[0], h // self.patch[1], w // self.patch[2])

    def embed(self, clip: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens [B, K, D] of clips [B, C, T, H, W], values as in the clip."""
        b, c, t, h, w = clip.shape
        grid = self.grid(clip)
        small = F.adaptive_avg_pool2d(
            clip.transpose(1, 2).reshape(b * t, c, h, w), (grid.h * self.cells, grid.w * self.cells)
        )
        small = small.reshape(b, t, c, *small.shape[-2:]).transpose(1, 2)
        tokens = patchify(small, (self.patch[0], self.cells, self.cells))
        return tokens if keep is None else gather(tokens, keep)

    def forward(self, clip: Tensor, keep: Tensor | None = None) -> Tensor:
        """The same as `embed`: there are no blocks."""
        return self.embed(clip, keep)

    def layers(
        self, clip: Tensor, which: Sequence[int], keep: Tensor | None = None, normed: bool = False
    ) -> dict[int, Tensor]:
        """Layer 0 alone; raises ValueError for any other."""
        if list(which) != [0]:
            raise ValueError(f"raw pixels have layer 0 alone, not {list(which)}")
        return {0: self.embed(clip, keep)}
