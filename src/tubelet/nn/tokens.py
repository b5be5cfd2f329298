"""From pixels to tokens: patches, gathering, and where a token lies (rotary and sin-cos positions)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.errors import nearest
from tubelet.types import Grid


class Rotation(NamedTuple):
    """Cosines and sines, each [1 or B, 1, K, head_dim] for queries and keys.

    on_tokens: they turn the normed tokens that enter attention instead, [1 or B, K, D], and with them queries,
    keys and values.
    """

    cos: Tensor
    sin: Tensor
    on_tokens: bool = False


def patchify(clip: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Cuts clips [B, C, T, H, W] into tubelets [B, N, C*pt*ph*pw], tokens t-major, channels outermost.

    The order within a tubelet is that of a flattened Conv3d kernel, so a convolution with
    kernel = stride = patch is a Linear on these rows. Raises ValueError where a side does not divide.
    """
    b, c, *sides = clip.shape
    for name, side, p in zip(("frames", "height", "width"), sides, patch, strict=True):
        if side % p:
            raise ValueError(
                f"clip {name} {side} is not a multiple of the patch's {p}; use {side - side % p}"
            )
    (t, h, w), (pt, ph, pw) = (s // p for s, p in zip(sides, patch, strict=True)), patch
    clip = clip.reshape(b, c, t, pt, h, ph, w, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return clip.reshape(b, t * h * w, c * pt * ph * pw)


def unpatchify(patches: Tensor, grid: Grid, patch: tuple[int, int, int]) -> Tensor:
    """The inverse of `patchify`: [B, N, C*pt*ph*pw] -> [B, C, T, H, W]."""
    (t, h, w), (pt, ph, pw) = grid, patch
    b, c = patches.shape[0], patches.shape[-1] // (pt * ph * pw)
    patches = patches.reshape(b, t, h, w, c, pt, ph, pw).permute(0, 4, 1, 5, 2, 6, 3, 7)
    return patches.reshape(b, c, t * pt, h * ph, w * pw)


def gather(tokens: Tensor, ids: Tensor) -> Tensor:
    """Rows ``ids`` [B, K] of ``tokens`` [B or 1, N, D] -> [B, K, D]."""
    index = ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    return tokens.expand(ids.shape[0], -1, -1).gather(1, index)


def coordinates(grid: Grid, device: torch.device) -> Tensor:
    """Integer (t, h, w) of every token, int64 [N, 3]."""
    ids = torch.arange(grid.n, device=device)
    return torch.stack((ids // (grid.h * grid.w), ids // grid.w % grid.h, ids % grid.w), dim=-1)


class Positions(Protocol):
    """How tokens learn where they are: something added to them, something turned in every block, or both."""

    def add(self, grid: Grid, dim: int, device: torch.device) -> Tensor | None:
        """What is added to the embedded tokens, float32 [1, N, D], or None."""
        ...

    def rotate(
        self, grid: Grid, keep: Tensor | None, dim: int, heads: int, device: torch.device
    ) -> Rotation | None:
        """Cosines and sines for tokens ``keep`` [B, K] (None: all) of width ``dim``, or None."""
        ...


@dataclass(frozen=True)
class Rotary:
    """3-D rotary positions on queries and keys (V-JEPA 2, arXiv 2506.09985).

    Of head_dim d each axis, in the order t, h, w, turns 2*(d//3//2) channels; the rest stays unturned. Pairs are
    adjacent channels, frequencies base**(-i/(s/2)) for a segment of s channels, angles integer token
    coordinates times frequency, never rescaled.

    legacy=True reproduces the published V-JEPA 2 weights, whose cosines and sines are tiled while pairs are
    adjacent, so the two members of a pair turn by different frequencies: not a rotation, and q.k no longer
    depends on position differences alone.
    """

    legacy: bool = False
    base: float = 10000.0

    def add(self, grid: Grid, dim: int, device: torch.device) -> Tensor | None:
        """Nothing is added."""
        return None

    def rotate(self, grid: Grid, keep: Tensor | None, dim: int, heads: int, device: torch.device) -> Rotation:
        """Cosines and sines [1 or B, 1, K, head_dim], float32; unturned channels have cosine 1, sine 0."""
        head_dim = dim // heads
        segment = 2 * (head_dim // 3 // 2)
        if segment < 2:
            raise ValueError(
                f"rotary positions need a head width of at least 6, not {head_dim}; use fewer heads"
            )
        half = segment // 2
        frequency = self.base ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
        angle = coordinates(grid, device).unsqueeze(-1) * frequency  # [N, 3, s/2]
        angle = angle.repeat(1, 1, 2) if self.legacy else angle.repeat_interleave(2, dim=-1)
        angle = torch.nn.functional.pad(angle.flatten(1), (0, head_dim - 3 * segment)).unsqueeze(
            0
        )  # [1, N, d]
        if keep is not None:
            angle = gather(angle, keep)
        return Rotation(angle.cos().unsqueeze(1), angle.sin().unsqueeze(1))


def turn(vectors: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys [B, heads, K, d], or tokens [B, K, D], turned by their positions, in their dtype."""
    cos, sin = rotation.cos.to(vectors.dtype), rotation.sin.to(vectors.dtype)
    first, second = vectors.unflatten(-1, (-1, 2)).unbind(-1)
    partner = torch.stack((-second, first), dim=-1).flatten(-2)
    return vectors * cos + partner * sin


@dataclass(frozen=True)
class TokenRotary:
    """LayerLock's rotary positions (arXiv 2509.10156): the normed tokens are turned, not queries and keys.

    Of all D channels, in this order, 10 % turn with t, 25 % with h, 25 % with w; the others carry no position.
    Each part, an even number of channels, is an ordinary rotary embedding as in `Rotary`. The tokens are turned
    after the first norm of every block, so queries, keys and values all see it. Open in the paper, and ours:
    every block (not the first alone), the base, adjacent pairs, no rescaling of coordinates.
    """

    shares: tuple[float, float, float] = (0.10, 0.25, 0.25)
    base: float = 10000.0

    def add(self, grid: Grid, dim: int, device: torch.device) -> Tensor | None:
        """Nothing is added."""
        return None

    def rotate(self, grid: Grid, keep: Tensor | None, dim: int, heads: int, device: torch.device) -> Rotation:
        """Cosines and sines [1 or B, K, D], float32; unturned channels have cosine 1, sine 0."""
        place = coordinates(grid, device).float()  # [N, 3]
        angles = []
        for axis, share in enumerate(self.shares):
            half = round(share * dim / 2)
            if half < 1:
                raise ValueError(f"{share:.0%} of a width of {dim} is less than a pair; use a wider encoder")
            frequency = self.base ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
            angles.append((place[:, axis, None] * frequency).repeat_interleave(2, dim=-1))
        angle = torch.cat(angles, dim=-1)
        angle = torch.nn.functional.pad(angle, (0, dim - angle.shape[-1])).unsqueeze(0)  # [1, N, D]
        if keep is not None:
            angle = gather(angle, keep)
        return Rotation(angle.cos(), angle.sin(), on_tokens=True)


@dataclass(frozen=True)
class SinCos:
    """Fixed sines and cosines added to the tokens.

    3-D (V-JEPA, arXiv 2404.08471): each axis, in the order t, h, w, gets 2*ceil(D/6) channels, all sines
    first, then all cosines; the three are joined and cut to D. flat=True is VideoMAE's table over the
    flattened token id, sines on even channels, cosines on odd ones. Any frame count and resolution: the
    table is computed for the grid at hand, indices are never rescaled (ours; V-JEPA interpolates instead).
    """

    flat: bool = False
    base: float = 10000.0

    def add(self, grid: Grid, dim: int, device: torch.device) -> Tensor:
        """The table, float32 [1, N, D]."""
        if self.flat:
            channel = torch.arange(dim, device=device) // 2
            ids = torch.arange(grid.n, device=device, dtype=torch.float64).unsqueeze(-1)
            angle = ids / self.base ** (2 * channel / dim).double()
            table = torch.where(torch.arange(dim, device=device) % 2 == 0, angle.sin(), angle.cos())
            return table.float().unsqueeze(0)
        width = 2 * -(-dim // 6)
        frequency = self.base ** (-torch.arange(width // 2, device=device, dtype=torch.float64) / (width / 2))
        angle = coordinates(grid, device).double().unsqueeze(-1) * frequency  # [N, 3, width/2]
        return torch.cat((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :dim].float().unsqueeze(0)

    def rotate(
        self, grid: Grid, keep: Tensor | None, dim: int, heads: int, device: torch.device
    ) -> Rotation | None:
        """Nothing is turned."""
        return None


@dataclass(frozen=True)
class ScaledRotary:
    """V-JEPA 2.1's rotary positions: those of `Rotary`, with rows and columns stretched to a grid of 16.

    Row r of h rows counts as r * 15 / (h - 1), columns alike, frames as they are: at any resolution a crop spans
    the 0..15 of 256 pixels in patches of 16. With 16 rows and columns it equals `Rotary`. A side of one patch
    stays at 0 (ours: theirs divides by zero).
    """

    base: float = 10000.0

    def add(self, grid: Grid, dim: int, device: torch.device) -> Tensor | None:
        """Nothing is added."""
        return None

    def rotate(self, grid: Grid, keep: Tensor | None, dim: int, heads: int, device: torch.device) -> Rotation:
        """Cosines and sines [1 or B, 1, K, head_dim], float32; unturned channels have cosine 1, sine 0."""
        head_dim = dim // heads
        half = head_dim // 3 // 2
        if half < 1:
            raise ValueError(
                f"rotary positions need a head width of at least 6, not {head_dim}; use fewer heads"
            )
        stretch = [1.0] + [15 / (side - 1) if side > 1 else 1.0 for side in (grid.h, grid.w)]
        place = coordinates(grid, device) * torch.tensor(stretch, device=device)
        frequency = self.base ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
        angle = (place.unsqueeze(-1) * frequency).repeat_interleave(2, dim=-1).flatten(1)
        angle = F.pad(angle, (0, head_dim - 6 * half)).unsqueeze(0)  # [1, N, d]
        if keep is not None:
            angle = gather(angle, keep)
        return Rotation(angle.cos().unsqueeze(1), angle.sin().unsqueeze(1))


POSITIONS = ("rotary", "rotary_legacy", "rotary_scaled", "rotary_tokens", "sincos", "sincos_flat")


def build_positions(name: str, base: float = 10000.0) -> Positions:
    """The positions of that name (one of `POSITIONS`); raises ValueError for another."""
    match name:
        case "rotary" | "rotary_legacy":
            return Rotary(legacy=name == "rotary_legacy", base=base)
        case "rotary_scaled":
            return ScaledRotary(base)
        case "rotary_tokens":
            return TokenRotary(base=base)
        case "sincos" | "sincos_flat":
            return SinCos(flat=name == "sincos_flat", base=base)
    raise ValueError(
        f'unknown positions "{name}"{nearest(name, POSITIONS)} (there are: {", ".join(POSITIONS)})'
    )


def name_positions(positions: Positions) -> tuple[str, float]:
    """Name and base that `build_positions` makes these from."""
    match positions:
        case Rotary():
            return "rotary_legacy" if positions.legacy else "rotary", positions.base
        case ScaledRotary():
            return "rotary_scaled", positions.base
        case TokenRotary():
            return "rotary_tokens", positions.base
        case SinCos():
            return "sincos_flat" if positions.flat else "sincos", positions.base
    raise AssertionError(f"{positions} has no name")
