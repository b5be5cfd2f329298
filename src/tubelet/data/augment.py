"""Crop, flip, normalise: on the device, per clip, and a function of (seed, position) alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.errors import UserError

from .draws import Purpose, uniforms

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TRIES = 10


class Box(NamedTuple):
    """A part of the picture, in pixels, and whether it is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    flip: bool = False


@dataclass(frozen=True)
class Augment:
    """V-JEPA's training transform: one random resized crop for the whole clip, a flip, mean and deviation.

    area: share of the picture, uniform. aspect: width to height, log-uniform. Ten tries, then the largest
    centre crop of an allowed aspect. Bilinear without antialiasing, as the released code does it. flip:
    probability. Source: the fact sheet's §1.6 (jepa and vjepa2 configs).
    """

    crop_size: int
    area: tuple[float, float] = (0.3, 1.0)
    aspect: tuple[float, float] = (0.75, 1.35)
    flip: float = 0.5
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.crop_size < 1:
            raise UserError(f"crop_size={self.crop_size} must be positive")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise UserError(f"area={self.area}: shares of the picture, 0 < smallest <= largest <= 1")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise UserError(f"aspect={self.aspect}: width to height, 0 < smallest <= largest")
        if not 0 <= self.flip <= 1:
            raise UserError(f"flip={self.flip} is a probability, 0 to 1")

    def __call__(self, clips: Sequence[Tensor], seed: int, positions: Sequence[int]) -> Tensor:
        """float32 [B, 3, T, crop_size, crop_size], normalised, from B uint8 clips [T, H, W, 3] of any sizes."""
        boxes = [
            self.box(clip.shape[1], clip.shape[2], seed, p) for clip, p in zip(clips, positions, strict=True)
        ]
        cut = [resample(clip, box, self.crop_size) for clip, box in zip(clips, boxes, strict=True)]
        return normalise(torch.stack(cut), self.mean, self.std)

    def box(self, height: int, width: int, seed: int, position: int) -> Box:
        """The part of a ``height`` x ``width`` picture that the sample at ``position`` shows."""
        draws = uniforms(seed, Purpose.CROP, position, 4 * TRIES + 1).tolist()
        flip = draws.pop() < self.flip
        low, high = math.log(self.aspect[0]), math.log(self.aspect[1])
        for share, shape, down, right in zip(*(draws[i::4] for i in range(4)), strict=True):
            pixels = height * width * (self.area[0] + share * (self.area[1] - self.area[0]))
            ratio = math.exp(low + shape * (high - low))
            w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
            if 0 < w <= width and 0 < h <= height:
                return Box(int(down * (height - h + 1)), int(right * (width - w + 1)), h, w, flip)
        ratio = min(max(width / height, self.aspect[0]), self.aspect[1])
        w = min(width, max(1, round(height * ratio)))
        h = min(height, max(1, round(width / ratio)))
        return Box((height - h) // 2, (width - w) // 2, h, w, flip)


@dataclass(frozen=True)
class CenterCrop:
    """The evaluation transform, the same for every frame of a clip.

    One view: the short side to ``crop_size * enlarge`` (256/224 as published; 1 for the whole short side),
    then the centre. Several: the short side to ``crop_size``, crops evenly from one end of the long side to
    the other. As published, but for small pictures: nothing is enlarged beyond ``crop_size``, so that one view of
    a picture whose short side lies between the two is its centre, pixel by pixel. Bilinear, without antialiasing:
    what is read at `short_side` is cut and not scaled again.
    """

    crop_size: int
    views: int = 1
    enlarge: float = 256 / 224
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def short_side(self) -> int:
        """To which larger videos are best shrunk when they are read."""
        return self.crop_size if self.views > 1 else round(self.crop_size * self.enlarge)

    def __call__(self, clips: Sequence[Tensor]) -> Tensor:
        """float32 [B, views, 3, T, crop_size, crop_size], normalised, from B uint8 clips [T, H, W, 3]."""
        cut = [
            resample(clip, box, self.crop_size)
            for clip in clips
            for box in self.boxes(clip.shape[1], clip.shape[2])
        ]
        return normalise(torch.stack(cut), self.mean, self.std).unflatten(0, (len(clips), self.views))

    def boxes(self, height: int, width: int) -> list[Box]:
        """The squares that the views show."""
        short = min(height, width)
        side = short if self.views > 1 else min(short, max(self.crop_size, round(short / self.enlarge)))
        if self.views == 1:
            return [Box((height - side) // 2, (width - side) // 2, side, side)]
        places = [i / (self.views - 1) for i in range(self.views)]
        return [Box(round((height - side) * p), round((width - side) * p), side, side) for p in places]


def resample(clip: Tensor, box: Box, size: int) -> Tensor:
    """[3, T, size, size], 0 to 255, uint8 on the CPU and float32 elsewhere: a ``box`` of uint8 [T, H, W, 3]."""
    part = clip[:, box.top : box.top + box.height, box.left : box.left + box.width].permute(0, 3, 1, 2)
    # The CPU is three times as fast on bytes, and within one grey level; other devices cannot do bytes.
    part = part if clip.device.type == "cpu" else part.float()
    shown = F.interpolate(part, (size, size), mode="bilinear", align_corners=False)
    return (shown.flip(-1) if box.flip else shown).transpose(0, 1)


def normalise(clips: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """float32: pixels 0 to 255 of [B, 3, T, H, W] to deviations from ``mean``, in units of ``std``."""
    shape = (1, -1, 1, 1, 1)
    m = torch.tensor(mean, device=clips.device).reshape(shape) * 255
    s = torch.tensor(std, device=clips.device).reshape(shape) * 255
    return clips.to(torch.float32, copy=True).sub_(m).div_(s)


def to_pictures(clips: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised clips [B, 3, T, H, W] as what they show: uint8 [B, T, H, W, 3]."""
    offset, scale = (torch.tensor(values).reshape(3, 1, 1, 1) for values in (mean, std))
    pixels = ((clips * scale + offset) * 255).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 4, 1).numpy()
