"""From the tokens that were seen to those that were not: the predictor of latents, and the decoder of pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tubelet.nn.block import Block, init_weights, rescale_residual
from tubelet.nn.tokens import Positions, Rotary, gather
from tubelet.types import Grid, Mask


class Predictor(nn.Module):
    """A narrow ViT over context tokens and mask tokens; only the mask tokens' outputs leave it.

    context_dim: width of the encoder. dim, depth, heads: of its own blocks. target_dim: width P of what is
    predicted (a teacher's width, or the pixels of a tubelet); None leaves the last tokens as they are, ``dim``
    wide, for heads kept elsewhere. mask_tokens: how many learned mask tokens, one
    for each kind of mask (V-JEPA) or one shared. mask_std: 0 starts them at zero (V-JEPA), else a truncated
    normal of that width (VideoMAE: .02). init_std: width of the weights' first draw. Source: V-JEPA, V-JEPA 2;
    VideoMAE's decoder has the same form.
    """

    def __init__(
        self,
        context_dim: int,
        dim: int,
        depth: int,
        heads: int,
        target_dim: int | None,
        mask_tokens: int = 1,
        mask_std: float = 0.0,
        positions: Positions | None = None,
        init_std: float = 0.02,
    ):
        super().__init__()
        self.context_dim, self.dim, self.depth, self.heads = context_dim, dim, depth, heads
        self.target_dim = dim if target_dim is None else target_dim
        self.mask_std, self.init_std = mask_std, init_std
        self.positions = Rotary() if positions is None else positions
        self.embedding = nn.Linear(context_dim, dim)
        self.mask_token = nn.Embedding(mask_tokens, dim)  # an Embedding copies: a view would break sharding
        self.blocks = nn.ModuleList(Block(dim, heads, 4 * dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Identity() if target_dim is None else nn.Linear(dim, target_dim)
        self.init_weights()

    def init_weights(self) -> None:
        """(Re)draws every weight from torch's global generator."""
        init_weights(self, self.init_std)
        rescale_residual(self.blocks)
        if self.mask_std:
            nn.init.trunc_normal_(self.mask_token.weight, std=self.mask_std, a=-2.0, b=2.0)
        else:
            nn.init.zeros_(self.mask_token.weight)

    def forward(self, context: Tensor, mask: Mask, grid: Grid, kind: int = 0) -> Tensor:
        """Predictions [B, Nt, P] for ``mask.target`` from context tokens [B, Nc, D].

        kind: which mask token stands for the missing tokens; where there are fewer, the last. Tokens keep their
        order context, then target: attention does not see order, and positions come from the ids.
        """
        b, n_target = mask.target.shape
        kind = min(kind, self.mask_token.num_embeddings - 1)
        kinds = torch.full((b, n_target), kind, dtype=torch.long, device=context.device)
        tokens = torch.cat((self.embedding(context), self.mask_token(kinds).to(context.dtype)), dim=1)
        ids = torch.cat((mask.context, mask.target), dim=1)
        added = self.positions.add(grid, self.dim, context.device)
        if added is not None:
            tokens = tokens + gather(added, ids).to(tokens.dtype)
        rotation = self.positions.rotate(grid, ids, self.dim, self.heads, context.device)
        for block in self.blocks:
            tokens = block(tokens, rotation)
        return self.head(self.norm(tokens[:, -n_target:]))
