"""Two ways from a layer of the encoder to vectors at the tokens that are asked for; heads come after them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from tubelet.nn.predictor import Predictor
from tubelet.nn.tokens import Rotation, gather
from tubelet.nn.vit import ViT
from tubelet.types import Grid, Mask, Work


class Decoder(nn.Module, ABC):
    """Takes over at some layer of an encoder and ends with one vector, ``dim`` wide, per target token.

    spare: the encoder's last blocks that it decodes with, and that must therefore be left to learn.
    """

    dim: int
    spare: int = 0

    @abstractmethod
    def forward(
        self,
        encoder: ViT,
        tokens: Tensor,
        rotation: Rotation | None,
        start: int,
        mask: Mask,
        grid: Grid,
        kind: int = 0,
    ) -> Tensor:
        """[B, Nt, dim] from the context tokens [B, Nc, D] of layer ``start``.

        rotation: of the context tokens. kind: which learned token stands in.
        """

    @abstractmethod
    def work(self, encoder: ViT, start: int, context: int, target: int) -> list[Work]:
        """The passes of `forward`, encoder included."""


class JoinedDecoder(Decoder):
    """4DS's way: learned tokens join the encoder's and pass through its last blocks together with them.

    blocks: how many (LayerLock: 4, 4DS: 2). One learned token per kind of mask (where there are fewer, the last)
    stands at every target; where the encoder's positions are added, they are added to it too (what LayerLock's
    tokens are is open: ours). The encoder's final norm follows.
    Raises ValueError if the encoder has no more blocks than that.
    """

    def __init__(self, encoder: ViT, blocks: int = 4, kinds: int = 1):
        super().__init__()
        if not 1 <= blocks < encoder.depth:
            raise ValueError(
                f"decoding in the last {blocks} blocks leaves no block of the encoder's {encoder.depth} before "
                f"them; use 1 to {encoder.depth - 1} decoder blocks, or a separate decoder"
            )
        self.dim, self.spare = encoder.dim, blocks
        self.token = nn.Embedding(kinds, encoder.dim)
        nn.init.trunc_normal_(self.token.weight, std=encoder.init_std, a=-2.0, b=2.0)

    def forward(
        self,
        encoder: ViT,
        tokens: Tensor,
        rotation: Rotation | None,
        start: int,
        mask: Mask,
        grid: Grid,
        kind: int = 0,
    ) -> Tensor:
        """The encoder's normed outputs at the learned tokens."""
        join = encoder.depth - self.spare
        b, n_target = mask.target.shape
        tokens = encoder.advance(tokens, rotation, start, join)  # [B, Nc, D]
        kind = min(kind, self.token.num_embeddings - 1)
        kinds = torch.full((b, n_target), kind, dtype=torch.long, device=tokens.device)
        joining = self.token(kinds).to(tokens.dtype)
        added = encoder.positions.add(grid, encoder.dim, tokens.device)
        if added is not None:
            joining = joining + gather(added, mask.target).to(joining.dtype)
        ids = torch.cat((mask.context, mask.target), dim=1)
        both = torch.cat((tokens, joining), dim=1)
        both = encoder.advance(both, encoder.rotation(grid, ids, tokens.device), join, encoder.depth)
        return encoder.norm(both[:, -n_target:])

    def work(self, encoder: ViT, start: int, context: int, target: int) -> list[Work]:
        """The encoder's blocks, the last of them with both kinds of tokens."""
        join = encoder.depth - self.spare
        return [
            Work("encoder", encoder.section(start, join), context),
            Work("decoder", encoder.section(join, encoder.depth), context + target, learned_input=True),
        ]


class SeparateDecoder(Decoder):
    """The usual way: the encoder runs to its end, and a `Predictor` without a head follows."""

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.predictor, self.dim = predictor, predictor.target_dim

    def forward(
        self,
        encoder: ViT,
        tokens: Tensor,
        rotation: Rotation | None,
        start: int,
        mask: Mask,
        grid: Grid,
        kind: int = 0,
    ) -> Tensor:
        """The predictor's normed outputs at its mask tokens."""
        context = encoder.norm(encoder.advance(tokens, rotation, start, encoder.depth))
        return self.predictor(context, mask, grid, kind)

    def work(self, encoder: ViT, start: int, context: int, target: int) -> list[Work]:
        """The rest of the encoder, then the predictor."""
        return [
            Work("encoder", encoder.section(start, encoder.depth), context),
            Work("decoder", self.predictor, context, target),
        ]
