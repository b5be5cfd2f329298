"""What reads a frozen encoder: attentive pooling (V-JEPA's one block, V-JEPA 2's four) and linear heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tubelet.nn.block import Block, Mlp, init_weights, rescale_residual


class CrossAttention(nn.Module):
    """One learned query looks at all tokens; queries, keys and values have biases, no output projection.

    The published form projects every token to a key and a value. With a single query the two projections can
    be moved to the query's side, which is the same function for dim/heads times less work: a head's score of a
    token is token . (Wk' q) (the key's bias shifts all scores alike, so the softmax drops it), and what it reads
    is Wv (sum of weighted tokens) + bv (the weights sum to 1).
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"width {dim} does not divide into {heads} heads")
        self.dim, self.heads = dim, heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """query [1, D], tokens [B, N, D] -> [B, D]."""
        head_dim = self.dim // self.heads
        key, value = self.kv.weight.reshape(2, self.heads, head_dim, self.dim)
        q = self.q(query).reshape(self.heads, 1, head_dim) * head_dim**-0.5
        wanted = (q @ key).squeeze(1)  # [heads, D]
        weights = (tokens @ wanted.T).transpose(1, 2).softmax(dim=-1)  # [B, heads, N]
        read = weights @ tokens  # [B, heads, D]
        out = torch.einsum("bhi,hoi->bho", read, value).flatten(1)  # [B, D]
        return out + self.kv.bias[self.dim :]


class AttentivePooler(nn.Module):
    """Tokens [B, N, D] -> one vector [B, D] per clip.

    depth 1 is V-JEPA's pooler (arXiv 2404.08471): the learned query, not normed, attends to the normed tokens;
    residual to the query; then norm, MLP (x4, GELU), residual; no final norm, no positions. depth 4 is
    V-JEPA 2's (arXiv 2506.09985): depth - 1 self-attention blocks on the tokens first, their residual branches
    divided by sqrt(2l); it equals the pooler of transformers' VJEPA2ForVideoClassification, whose eps is 1e-6.
    eps: of every LayerNorm here; 1e-5 in both papers' code, unlike the encoders' 1e-6.
    """

    def __init__(self, dim: int, heads: int, depth: int = 1, eps: float = 1e-5):
        super().__init__()
        if depth < 1:
            raise ValueError(f"an attentive pooler has at least 1 block, not {depth}")
        self.dim, self.heads, self.depth = dim, heads, depth
        self.query = nn.Parameter(torch.zeros(1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, 4 * dim) for _ in range(depth - 1))
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.cross = CrossAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, 4 * dim)
        for module in self.blocks.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = eps
        self.init_weights()

    def init_weights(self) -> None:
        """(Re)draws every weight from torch's global generator."""
        init_weights(self)
        rescale_residual(self.blocks)
        nn.init.trunc_normal_(self.query, std=0.02, a=-2.0, b=2.0)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, D]."""
        for block in self.blocks:
            tokens = block(tokens)
        pooled = self.query + self.cross(self.query, self.norm1(tokens))
        return pooled + self.mlp(self.norm2(pooled))


class LinearHead(nn.Module):
    """Pooled features [..., D] -> class scores [..., classes]; normal .02 weights, zero bias."""

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.linear = nn.Linear(dim, classes)
        init_weights(self)

    def forward(self, pooled: Tensor) -> Tensor:
        """[..., D] -> [..., classes]."""
        return self.linear(pooled)


class AttentiveClassifier(nn.Module):
    """An attentive pooler and a linear head: tokens [B, N, D] -> class scores [B, classes]."""

    def __init__(self, dim: int, heads: int, classes: int, depth: int = 1):
        super().__init__()
        self.pooler = AttentivePooler(dim, heads, depth)
        self.head = LinearHead(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, classes]."""
        return self.head(self.pooler(tokens))
