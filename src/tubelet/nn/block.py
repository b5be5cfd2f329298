"""The transformer block: the unit of compiling, checkpointing, sharding and freezing."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.nn.tokens import Rotation, turn


class Attention(nn.Module):
    """Joint space-time self-attention: fused qkv with bias, scale 1/sqrt(head width), tokens [B, N, D]."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} does not divide into {heads} heads")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, rotation: Rotation | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D]; ``rotation`` turns queries and keys, or ``tokens`` themselves."""
        q, k, v = self.project(tokens, rotation)
        out = F.scaled_dot_product_attention(q, k, v)  # [B, heads, N, d]
        return self.proj(out.transpose(1, 2).flatten(2))

    def project(self, tokens: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of tokens [B, N, D], each [B, heads, N, D / heads], turned by ``rotation``."""
        b, n, d = tokens.shape
        if rotation is not None and rotation.on_tokens:
            tokens, rotation = turn(tokens, rotation), None
        q, k, v = self.qkv(tokens).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if rotation is None:
            return q, k, v
        # as a view v would keep q and k, which nothing needs any more, in memory until the backward pass
        return turn(q, rotation), turn(k, rotation), v.clone()

    def weights(self, tokens: Tensor, rotation: Rotation | None = None) -> Tensor:
        """How much each token takes from each other, [B, heads, N, N]: rows are queries and sum to 1.

        What `forward` never writes out: N*N numbers per head and clip.
        """
        q, k, _ = self.project(tokens, rotation)
        return weigh(q, k)


def weigh(queries: Tensor, keys: Tensor) -> Tensor:
    """softmax(queries keys^T / sqrt(d)): [B, heads, Q, d] and [B, heads, N, d] -> [B, heads, Q, N]."""
    return (queries * queries.shape[-1] ** -0.5 @ keys.transpose(-2, -1)).softmax(dim=-1)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm: tokens + attention(norm), then + mlp(norm); LayerNorm eps 1e-6."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, hidden)

    def forward(self, tokens: Tensor, rotation: Rotation | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        tokens = tokens + self.attn(self.norm1(tokens), rotation)
        return tokens + self.mlp(self.norm2(tokens))


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """Fills every Linear and LayerNorm below ``module``: weights truncated normal (cut at +-2), biases 0.

    std: .02 in V-JEPA and V-JEPA 2, at widths of 1024 and more.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std, a=-2.0, b=2.0)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm) and part.elementwise_affine:
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


@torch.no_grad()
def rescale_residual(blocks: nn.ModuleList) -> None:
    """Divides the residual branches' last weights of block l (from 1) by sqrt(2l), as V-JEPA 2 does."""
    for number, block in enumerate(blocks, start=1):
        assert isinstance(block, Block)
        block.attn.proj.weight.div_(math.sqrt(2 * number))
        block.mlp.fc2.weight.div_(math.sqrt(2 * number))
