"""What a patch tells, and whom: clips of which one patch is left, and tokens that change when one is taken away."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from tubelet.types import Grid

CHUNK = 4  # clips that pass through the encoder at once

V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)


class Clips(Protocol[V_co]):
    """Rows of clips to be looked at; `tubelet.evaluate.source.Source` says what each of these is."""

    @property
    def views(self) -> V_co:
        """How many clips a row has."""
        ...

    def __len__(self) -> int:
        """How many rows there are."""
        ...

    def read(self, row: int) -> Tensor:
        """Float32 [views, C, T, H, W]."""
        ...

    def name(self, row: int) -> str:
        """What a message calls the row."""
        ...

    def identity(self) -> dict[str, Any]:
        """Everything that the clips depend on, as JSON."""
        ...

    def prepare(self) -> None:
        """Called once before rows are read."""
        ...


class HasLayers(Protocol):
    """What patch influence needs of an encoder: a ViT, or raw pixels."""

    @property
    def patch(self) -> tuple[int, int, int]:
        """Frames, height and width of a tubelet in pixels."""
        ...

    def grid(self, clip: Tensor) -> Grid:
        """Tokens along t, h, w of a clip [B, C, T, H, W]."""
        ...

    def layers(self, clip: Tensor, which: Sequence[int]) -> dict[int, Tensor]:
        """Tokens [B, N, D] of the layers ``which``."""
        ...


def keep_one_patch(clip: Tensor, patch: tuple[int, int, int], places: Tensor) -> Tensor:
    """Clips [B, C, T, H, W] of which nothing is left but the patches at ``places``; all else is 0.

    patch: the encoder's, frames, height and width of a tubelet; what stays is a cell of the token grid, in all frames.
    places: int64 [B, K, 2], row and column of the K patches that each clip keeps. 0 is the mean colour of normalised
    clips. Source: BWSSL (arXiv 2601.09040), 16 x 16 pixels; that they lie on the token grid is ours.
    Raises ValueError if the picture does not divide into patches or a place lies outside it.
    """
    kept = torch.zeros(len(clip), *_cells(clip, patch), dtype=torch.bool, device=clip.device)
    for i, rows in enumerate(places.tolist()):
        for h, w in _inside(rows, kept.shape[1:]):
            kept[i, h, w] = True
    return clip.where(_to_pixels(kept, patch), 0.0)


def draw_places(cells: tuple[int, int], seed: int, row: int, halves: bool = False) -> Tensor:
    """Which patches of a picture of ``cells`` (h, w) a row keeps: int64 [1, 2], or [2, 2] with ``halves``.

    A pure function of the arguments; every cell is equally likely. halves: one in the left half and one in the right,
    drawn apart; of an odd number of columns the middle one, which lies in both, is never kept.
    Raises ValueError if there are too few columns for that.
    """
    height, width = cells
    half = width // 2
    if halves and not half:
        raise ValueError("halves=True keeps a patch on either side, and the picture is one patch wide")
    lefts = [(0, half), (width - half, half)] if halves else [(0, width)]  # first column and how many
    random = np.random.default_rng([seed, row])
    draws = [int(random.random() * height * columns) for _, columns in lefts]
    return torch.tensor(
        [(at // columns, left + at % columns) for at, (left, columns) in zip(draws, lefts, strict=True)]
    )


@dataclass(frozen=True)
class Occluded(Generic[V]):
    """The clips of another source, of which one patch is left: `keep_one_patch` at `draw_places` (seed, row).

    patch: the encoder's. halves: one patch in each half of the picture, for worlds that tell something by how their
    halves are related. A row keeps the same place in all its views. It is a source itself.
    """

    source: Clips[V]
    patch: tuple[int, int, int]
    seed: int = 0
    halves: bool = False

    @property
    def views(self) -> V:
        """Those of the source."""
        return self.source.views

    def __len__(self) -> int:
        return len(self.source)

    def read(self, row: int) -> Tensor:
        """The row's clips, [views, C, T, H, W] as the source gives them, 0 but for what is kept."""
        clip = self.source.read(row)
        places = draw_places(_cells(clip, self.patch), self.seed, row, self.halves)
        return keep_one_patch(clip, self.patch, places.expand(len(clip), -1, -1))

    def name(self, row: int) -> str:
        """That of the source."""
        return self.source.name(row)

    def identity(self) -> dict[str, Any]:
        """That of the source, and what is kept of its clips."""
        kept = {"patch": list(self.patch), "seed": self.seed, "halves": self.halves}
        return {"one_patch": kept, "source": self.source.identity()}

    def prepare(self) -> None:
        """What the source prepares."""
        self.source.prepare()


def occdrop(all_score: float, occluded_score: float) -> float:
    """(all - occluded) / all: the share of an accuracy that is lost where one patch is all there is to see.

    The probe is fitted anew on occluded clips. Chance is not taken off, so with k balanced classes and a perfect
    ``all_score`` nothing left to see is 1 - 1/k; below 0 if the occluded score is the better. nan if ``all_score`` is 0
    or either is nan. Source: BWSSL (arXiv 2601.09040), rows 005 and 006.
    """
    return (all_score - occluded_score) / all_score if all_score else math.nan


@torch.no_grad()
def patch_influence(
    model: HasLayers,
    clip: Tensor,
    places: Sequence[tuple[int, int]],
    layers: Sequence[int],
    chunk: int = CHUNK,
) -> dict[int, np.ndarray]:
    """How much each token changes when one patch of the picture is taken away, in all frames.

    clip: [1, C, T, H, W], where the model is. places: (row, column) in the token grid of the patches, taken away
    (set to 0) one at a time. Layer -> float32 [len(places), t, h, w]: ||z' - z|| / ||z|| of the token before (z) and
    after (z'), as it leaves the block, without the final norm; nan for a token that is zero before. Exactly 0 for a
    token that does not depend on the patch: z and z' are computed in batches of the same size, ``chunk`` clips at
    most. Source: ours. Raises ValueError for more than one clip, no place, or a place or layer that does not exist.
    """
    if len(clip) != 1:
        raise ValueError(f"patch influence is of one clip, not of {len(clip)}")
    grid, cells = model.grid(clip), _cells(clip, model.patch)
    if not places:
        raise ValueError("patch influence needs at least one place to take away")
    places = _inside(places, cells)
    size = min(chunk, len(places))
    before = model.layers(clip.expand(size, -1, -1, -1, -1), layers)
    parts: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for start in range(0, len(places), size):
        # a short last batch is filled up with clips from which nothing is taken
        taken = torch.zeros(size, *cells, dtype=torch.bool, device=clip.device)
        for i, (h, w) in enumerate(places[start : start + size]):
            taken[i, h, w] = True
        after = model.layers(clip.where(~_to_pixels(taken, model.patch), 0.0), layers)
        for layer in parts:
            parts[layer].append(_change(before[layer], after[layer]).cpu())
    return {
        layer: torch.cat(found)[: len(places)].reshape(len(places), *grid).numpy()
        for layer, found in parts.items()
    }


def _change(before: Tensor, after: Tensor) -> Tensor:
    """Tokens [B, N, D] -> relative change, float32 [B, N], nan where there was nothing."""
    before, after = before.float(), after.float()
    norm = before.norm(dim=-1)
    return ((after - before).norm(dim=-1) / norm).masked_fill(norm == 0, math.nan)


@dataclass(frozen=True)
class Reach:
    """How far the loss of a patch is felt.

    elsewhere: share of the change, over all tokens and patches taken away, that falls on other places of the picture
    than the one taken away, 0 to 1. distance: mean distance in patches between the two, weighted by change.
    """

    elsewhere: float
    distance: float


def influence_reach(
    influence: Mapping[int, np.ndarray], places: Sequence[tuple[int, int]]
) -> dict[int, Reach]:
    """Layer -> how far the loss of a patch is felt there, from what `patch_influence` found for ``places``.

    Tokens whose change is nan are left out; both numbers are nan where nothing changes. Even where every token changes
    alike they are not 1 and not the width of the picture: on h x w places, (hw - 1) / hw and the mean distance of all
    places from the one taken away. Source: ours.
    """
    found: dict[int, Reach] = {}
    for layer, change in influence.items():
        assert len(change) == len(places), f"{len(places)} places, but {len(change)} were taken away"
        _, _, h, w = change.shape
        down, across = np.arange(h)[:, None], np.arange(w)
        away = np.stack([np.hypot(down - row, across - column) for row, column in places])  # [places, h, w]
        felt = np.where(np.isnan(change), 0.0, change).sum(axis=1, dtype=np.float64)  # [places, h, w]
        total = float(felt.sum())
        if total > 0:
            found[layer] = Reach(float(felt[away > 0].sum()) / total, float((felt * away).sum()) / total)
        else:
            found[layer] = Reach(math.nan, math.nan)
    return found


def _cells(clip: Tensor, patch: tuple[int, int, int]) -> tuple[int, int]:
    """Patches down and across the picture of clips [B, C, T, H, W]."""
    for name, side, p in zip(("height", "width"), clip.shape[-2:], patch[1:], strict=True):
        if side % p:
            raise ValueError(
                f"clip {name} {side} is not a multiple of the patch's {p}; use {side - side % p}"
            )
    return clip.shape[-2] // patch[1], clip.shape[-1] // patch[2]


def _inside(places: Sequence[Sequence[int]], cells: tuple[int, int] | torch.Size) -> list[tuple[int, int]]:
    """The places, if all lie in the picture."""
    height, width = cells
    for h, w in places:
        if not (0 <= h < height and 0 <= w < width):
            raise ValueError(f"place ({h}, {w}) lies outside a picture of {height} x {width} patches")
    return [(int(h), int(w)) for h, w in places]


def _to_pixels(cells: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """bool [B, h, w] -> [B, 1, 1, H, W]."""
    whole = cells.repeat_interleave(patch[1], dim=1).repeat_interleave(patch[2], dim=2)
    return whole[:, None, None]
