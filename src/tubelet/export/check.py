"""What was written, run beside the encoder it was written from: the same clips must give the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tubelet.errors import UserError
from tubelet.export.geometry import Geometry
from tubelet.nn.vit import ViT

TOLERANCE = 1e-4  # of the largest output; other kernels add in another order


@dataclass(frozen=True)
class Written:
    """A file or folder that can be run. run: clips [B, C, T, H, W] -> normed tokens [B, N, D], from what is on disk.

    exact: its outputs must be the same numbers. any_length: it takes other numbers of frames. told: sentences about
    it that its user must know.
    """

    run: Callable[[Tensor], Tensor]
    exact: bool = False
    any_length: bool = True
    told: tuple[str, ...] = ()


@torch.no_grad()
def compare(model: ViT, geometry: Geometry, written: Written) -> float:
    """The largest difference of outputs, on random clips: one of full length, then two, shorter where they may be.

    Raises UserError if it is above `TOLERANCE` of the largest output, or above 0 for what must be exact, or not
    finite.
    """
    short = min(geometry.frames, 2 * model.patch[0]) if written.any_length else geometry.frames
    draw, side, worst = torch.Generator().manual_seed(0), geometry.crop_size, 0.0
    for clips, frames in ((1, geometry.frames), (2, short)):
        clip = torch.randn(clips, model.channels, frames, side, side, generator=draw)
        ours, theirs = model(clip), written.run(clip)
        if ours.shape != theirs.shape:
            raise UserError(_differ(f"of shape {tuple(theirs.shape)} instead of {tuple(ours.shape)}"))
        difference = float((ours - theirs).abs().max())
        # written so that a difference that is no number is none that is allowed
        if not difference <= (0.0 if written.exact else TOLERANCE * float(ours.abs().max())):
            raise UserError(_differ(f"that differ by up to {difference:.2g}"))
        worst = max(worst, difference)
    return worst


def _differ(how: str) -> str:
    return (
        f"what was written gives outputs {how}, so nothing was kept; the encoder has weights that are not finite, or "
        f"the versions of the libraries that wrote it do not fit each other (tubelet doctor lists them)"
    )
