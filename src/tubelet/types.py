"""The values that travel between the parts of tubelet.

One alphabet everywhere: B clips, C channels, T H W pixels, t h w grid, N = t*h*w tokens, K kept
tokens, D width, P target width.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn


class Grid(NamedTuple):
    """Tokens of a clip along time, height and width; token ids run t-major (raster order)."""

    t: int
    h: int
    w: int

    @property
    def n(self) -> int:
        """Number of tokens, N = t*h*w."""
        return self.t * self.h * self.w


@dataclass(frozen=True)
class Mask:
    """What the student sees and what it must predict.

    context: int64 [B, Nc], target: int64 [B, Nt]; token ids, ascending within a row. No id is in both, unless
    a sampler was asked for what is seen or for everything (`tubelet.masks.Aimed`).
    """

    context: Tensor
    target: Tensor

    def shares(self, grid: Grid, kind: int) -> dict[str, Tensor]:
        """The shares of all tokens that this mask (number ``kind``) really shows and asks for, to be logged."""
        return {
            f"mask/context{kind}": torch.tensor(self.context.shape[1] / grid.n),
            f"mask/target{kind}": torch.tensor(self.target.shape[1] / grid.n),
        }


class MaskSampler(Protocol):
    """What a method needs of a mask policy; the policies are in `tubelet.masks`."""

    def __call__(self, grid: Grid, batch: int, device: torch.device) -> list[Mask]:
        """One mask for each kind, for ``batch`` clips of ``grid``, from torch's global CPU generator."""
        ...

    def counts(self, grid: Grid) -> list[tuple[int, int]]:
        """(context, target) tokens of each kind: exact, or expected where they vary."""
        ...


@dataclass(frozen=True)
class Batch:
    """Clips of one length, ready for the encoder.

    clip: float32 [B, C, T, H, W], normalised. position: int64 [B], each sample's place in the global
    order of samples. label: optional tensor [B] (never read by a pretraining method).
    """

    clip: Tensor
    position: Tensor
    label: Tensor | None = None

    def __len__(self) -> int:
        return self.clip.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``."""
        label = None if self.label is None else self.label.to(device)
        return replace(self, clip=self.clip.to(device), position=self.position.to(device), label=label)

    def split(self, parts: int) -> list[Batch]:
        """``parts`` micro-batches of equal size; raises ValueError if they do not divide the batch."""
        if len(self) % parts:
            raise ValueError(f"a batch of {len(self)} clips does not divide into {parts} micro-batches")
        size = len(self) // parts
        return [
            Batch(
                self.clip[i : i + size],
                self.position[i : i + size],
                None if self.label is None else self.label[i : i + size],
            )
            for i in range(0, len(self), size)
        ]


class Moment(NamedTuple):
    """A place in training: 0-based optimizer step, and how many there will be.

    Schedules, masks, augmentation and what is frozen are functions of the moment (and the seed) alone.
    """

    step: int
    total: int

    def stage(self, stages: int) -> tuple[int, int, int]:
        """Which of ``stages`` equal parts of training this is (from 0), its first step, and the next part's first."""
        number = min(stages * self.step // self.total, stages - 1)
        begin, end = (-(-self.total * k // stages) for k in (number, number + 1))
        return number, begin, end

    @property
    def fraction(self) -> float:
        """How much of training lies behind, 0 at the first step."""
        return self.step / max(1, self.total)


@dataclass(frozen=True)
class Loss:
    """A scalar whose graph is shared with no other loss, and detached numbers to log."""

    value: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """One pass of one module over one clip, as the cost formulas see it.

    part: who pays ("encoder", "teacher", "predictor", "decoder", ...). module: a ViT, a section of one
    (modules one after the other), a Predictor, a Block or a Linear. context: tokens that enter. target: mask tokens
    added (predictors only). backward: whether gradients flow back through it. times: how often per clip. learned_input:
    whether something learned enters beside what earlier modules make, so that gradients must reach it even if none
    of those moves. weights: whether gradients of its own weights are computed too.
    """

    part: str
    module: nn.Module | tuple[nn.Module, ...]
    context: int
    target: int = 0
    backward: bool = True
    times: int = 1
    learned_input: bool = False
    weights: bool = True

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules of the pass, one after the other."""
        return self.module if isinstance(self.module, tuple) else (self.module,)
