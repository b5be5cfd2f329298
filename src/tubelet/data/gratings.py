"""Drifting gratings as worlds with known labels: one over the whole picture, or one in each half.

Source: arXiv 2601.09040 and the values in its released evaluation code (JosRor/BWSSL-for-Video-ViTs; written anew
here). The clips are the released ones but for three things, each of them ours:
* phases are drawn for every clip and half, where the code has 0 for all: no pixel, and no seam between two halves that
  match, then says by its brightness what the label is. ``phase=0.0`` fixes them;
* a grating drifts along its orientation, there against it: the same clips, the twelve names in another order;
* a spatial frequency of f is f cycles in 128 pixels, there in 127, and keeps its cycles per *pixel* in pictures of
  another size: 24 cycles are 9 in a picture of 48 pixels, and as wide for the encoder's patches.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tubelet.errors import UserError

FPS = 6.25  # of every clip; above 3.125 Hz temporal frequencies alias
PIXELS = 128  # the side of the picture in which spatial frequencies are counted
COLOURS = {
    "grey": (1.0, 1.0, 1.0),
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "orange": (1.0, 0.5, 0.0),
}
DIRECTIONS = tuple(30.0 * step for step in range(12))
Levels = tuple[float, ...] | tuple[str, ...]


def grating(
    orientation: float,
    spatial_frequency: float,
    temporal_frequency: float,
    fps: float = FPS,
    contrast: float = 1.0,
    phase: float = 0.0,
    frames: int = 16,
    size: int = PIXELS,
) -> np.ndarray:
    """A drifting grating, float32 [T, H, W] in [-contrast, contrast] (arXiv 2601.09040: 16 frames of 128 pixels).

    sin(2 pi (spatial_frequency (x cos o + y sin o) - temporal_frequency t) + phase): orientation o in degrees is
    the direction of the wave (x right, y down), and of the drift for positive temporal frequencies;
    spatial_frequency in cycles per picture; temporal_frequency in Hz at ``fps``. Multiply by a colour, each
    channel in [-1, 1], for a clip with values in [-1, 1].
    """
    angle = np.deg2rad(orientation)
    place = (np.arange(size) + 0.5) / size - 0.5
    across = place[None, :] * np.cos(angle) + place[:, None] * np.sin(angle)  # [H, W], in pictures
    wave = 2 * np.pi * spatial_frequency * across + phase
    time = 2 * np.pi * temporal_frequency * np.arange(frames) / fps
    # sin(wave - time) by its addition theorem: exact sines of a picture and of a clip, not of every pixel
    sines, cosines = (
        (contrast * np.sin(wave)).astype(np.float32),
        (contrast * np.cos(wave)).astype(np.float32),
    )
    drift = np.multiply.outer(np.cos(time).astype(np.float32), sines)
    drift -= np.multiply.outer(np.sin(time).astype(np.float32), cosines)
    return drift


@dataclass(frozen=True)
class Gratings(ABC):
    """A world of gratings: every combination of its factors is one clip, the last factor changing fastest.

    seed: of the phases. phase: radians, the same in all clips; None draws it for every clip (and half) from
    (seed, index). The labels depend on neither.

    At 6.25 frames a second 4, 5, 6 and 8 Hz look like -2.25, -1.25, -0.25 and 1.75 Hz, a negative one drifting
    backwards. No two temporal frequencies of a world look alike, nor is one the other's reverse, so a clip has one
    orientation and one temporal frequency all the same.
    """

    seed: int = 0
    phase: float | None = None

    kind: ClassVar[str]
    factors: ClassVar[Mapping[str, Levels]]
    # factors that a target joins: `subset` balances these together
    joined: ClassVar[Sequence[Sequence[str]]]

    def __len__(self) -> int:
        return math.prod(map(len, self.factors.values()))

    def levels(self, index: int) -> dict[str, float | str]:
        """The factors of clip ``index``. Raises ValueError if there is no such clip."""
        places = np.unravel_index(index, self._shape())
        return {name: self.factors[name][int(i)] for name, i in zip(self.factors, places, strict=True)}

    def name(self, index: int) -> str:
        """What a message calls clip ``index``."""
        told = ", ".join(f"{name.replace('_', ' ')} {level}" for name, level in self.levels(index).items())
        return f"{self.kind} grating {index} ({told})"

    def render(self, index: int, frames: int = 16, size: int = PIXELS) -> np.ndarray:
        """Clip ``index``: float32 [3, T, H, W] in [-1, 1], of ``frames`` frames and ``size`` x ``size`` pixels.

        A pure function of the seed, the index and the size. For an encoder as it is, without a mean and a standard
        deviation. Raises ValueError if there is no such clip.
        """
        levels = self.levels(index)
        phases = np.random.default_rng([self.seed, index]).uniform(0, 2 * np.pi, 2)
        if self.phase is not None:
            phases[:] = self.phase
        wave = self._wave(levels, phases, frames, size)
        return np.multiply.outer(np.array(COLOURS[str(levels["colour"])], np.float32), wave)

    @abstractmethod
    def values(self) -> dict[str, np.ndarray]:
        """What each target is in every clip, [n] each: float64, or text; in the order of the released code."""

    def labels(self, quirk: bool = False) -> dict[str, np.ndarray]:
        """Class ids of each target in every clip, int64 [n] each: 0 for the lowest value, and so on.

        quirk: as the released code has them, numbers cut to integers first. Of all targets only the single gratings'
        contrast suffers: 0.2 to 0.8 all become 0, which leaves two classes with 80 % in one. (0.5 Hz becomes 0 and
        stays alone; every other value is whole.)
        """
        found = {}
        for target, values in self.values().items():
            cut = quirk and values.dtype.kind == "f"
            found[target] = np.unique(values.astype(np.int64) if cut else values, return_inverse=True)[1]
        return found

    def subset(self, count: int, seed: int = 0) -> np.ndarray:
        """``count`` different clips, int64, ascending: a random choice in which all factors stay balanced.

        Every level of every factor, and every combination of factors that a target joins, occurs count / levels
        times, rounded up or down. So each target keeps the proportions that it has among all clips.
        Raises UserError if there are not so many clips.
        """
        if not 1 <= count <= len(self):
            raise UserError(f"clips={count}: the {self.kind} gratings are 1 to {len(self)} clips")
        axes = [[len(self.factors[name]) for name in names] for names in self.joined]
        order = [name for names in self.joined for name in names]
        assert sorted(order) == sorted(self.factors), "each factor belongs to one group"
        found = _balanced(axes, count, np.random.default_rng(seed))
        places = np.unravel_index(found, [len(self.factors[name]) for name in order])
        by_name = dict(zip(order, places, strict=True))
        return np.sort(np.ravel_multi_index([by_name[name] for name in self.factors], self._shape()))

    @abstractmethod
    def _wave(
        self, levels: Mapping[str, float | str], phases: np.ndarray, frames: int, size: int
    ) -> np.ndarray:
        """float32 [T, H, W], before colour."""

    def _shape(self) -> tuple[int, ...]:
        return tuple(map(len, self.factors.values()))

    def _columns(self) -> dict[str, np.ndarray]:
        """The factors of all clips, [n] each."""
        places = np.unravel_index(np.arange(len(self)), self._shape())
        return {name: np.array(self.factors[name])[at] for name, at in zip(self.factors, places, strict=True)}


class SingleGratings(Gratings):
    """10,800 clips of one grating: the paper's "low" features, five targets, each of them a factor."""

    kind = "single"
    factors: ClassVar[Mapping[str, Levels]] = {
        "spatial_frequency": (4.0, 8.0, 12.0, 16.0, 20.0, 24.0),  # cycles in 128 pixels
        "orientation": DIRECTIONS,  # degrees
        "temporal_frequency": (0.5, 1.0, 2.0, 4.0, 6.0, 8.0),  # Hz
        "contrast": (0.2, 0.4, 0.6, 0.8, 1.0),
        "colour": ("grey", "red", "green", "blue", "orange"),
    }
    joined: ClassVar[Sequence[Sequence[str]]] = tuple((name,) for name in factors)

    def values(self) -> dict[str, np.ndarray]:
        """The five factors: cycles in 128 pixels, degrees, Hz, amplitude, name of the colour."""
        return self._columns()

    def _wave(
        self, levels: Mapping[str, float | str], phases: np.ndarray, frames: int, size: int
    ) -> np.ndarray:
        return _whole(levels, "spatial_frequency", float(levels["orientation"]), phases[0], frames, size)


class DoubleGratings(Gratings):
    """15,552 clips of two gratings, left and right half: the paper's "relational" features, nine targets.

    Both halves share temporal frequency, contrast and colour. The right orientation is the left one plus a delta.
    """

    kind = "double"
    factors: ClassVar[Mapping[str, Levels]] = {
        "left_spatial_frequency": (4.0, 10.0, 16.0),  # cycles in 128 pixels
        "right_spatial_frequency": (4.0, 10.0, 16.0),
        "left_orientation": DIRECTIONS,  # degrees
        "orientation_delta": (0.0, 45.0, 90.0, 135.0),
        "temporal_frequency": (2.0, 5.0, 8.0),  # Hz
        "contrast": (0.33, 0.67, 1.0),
        "colour": ("grey", "red", "green", "blue"),
    }
    joined: ClassVar[Sequence[Sequence[str]]] = (
        ("left_spatial_frequency", "right_spatial_frequency"),
        ("left_orientation", "orientation_delta"),
        ("temporal_frequency",),
        ("contrast",),
        ("colour",),
    )

    def values(self) -> dict[str, np.ndarray]:
        """Nine targets: both spatial frequencies, right minus left, which side is higher, whether they match (0 or 1);
        both orientations in [0, 360), right minus left, whether they match. Chance is not even: of the frequencies a
        third match, of the orientations a quarter.
        """
        has = self._columns()
        left, right = has["left_spatial_frequency"], has["right_spatial_frequency"]
        turned = (has["left_orientation"] + has["orientation_delta"]) % 360
        return {
            "left_spatial_frequency": left,
            "right_spatial_frequency": right,
            "spatial_frequency_difference": right - left,
            "higher_side": np.where(left > right, "left", np.where(right > left, "right", "equal")),
            "spatial_frequency_match": (left == right).astype(np.float64),
            "left_orientation": has["left_orientation"],
            "right_orientation": turned,
            "orientation_delta": has["orientation_delta"],
            "orientation_match": (has["orientation_delta"] == 0).astype(np.float64),
        }

    def _wave(
        self, levels: Mapping[str, float | str], phases: np.ndarray, frames: int, size: int
    ) -> np.ndarray:
        left = float(levels["left_orientation"])
        right = left + float(levels["orientation_delta"])
        wave = _whole(levels, "left_spatial_frequency", left, phases[0], frames, size)
        other = _whole(levels, "right_spatial_frequency", right, phases[1], frames, size)
        wave[..., size // 2 :] = other[..., size // 2 :]
        return wave


def _whole(
    levels: Mapping[str, float | str],
    frequency: str,
    orientation: float,
    phase: float,
    frames: int,
    size: int,
) -> np.ndarray:
    """float32 [T, H, W]: a grating over the whole picture. frequency: which factor is its spatial frequency."""
    return grating(
        orientation,
        float(levels[frequency]) * size / PIXELS,
        float(levels["temporal_frequency"]),
        contrast=float(levels["contrast"]),
        phase=phase,
        frames=frames,
        size=size,
    )


def _balanced(axes: Sequence[Sequence[int]], count: int, random: np.random.Generator) -> np.ndarray:
    """``count`` different rows, int64, of the product of all ``axes``, each a product of sizes itself.

    Every level of every axis, and of every size within it, occurs as often as any other, give or take one.
    """
    sizes = [math.prod(axis) for axis in axes]
    total = math.prod(sizes)
    if count > total // 2:
        # what a balanced choice leaves over is balanced too, and few clips are easier to keep distinct
        rest = _balanced(axes, total - count, random)
        return np.setdiff1d(np.arange(total), rest, assume_unique=True)
    columns = np.stack([_even(axis, count, random) for axis in axes])
    _part(columns, random)
    return np.asarray(np.ravel_multi_index(tuple(columns), sizes))


def _even(axis: Sequence[int], count: int, random: np.random.Generator) -> np.ndarray:
    """``count`` levels of one axis in random order, each as often as any other, give or take one."""
    size = math.prod(axis)
    times, more = divmod(count, size)
    # what does not go round is balanced within the axis in turn
    rest = random.permutation(size)[:more] if len(axis) == 1 else _balanced([[s] for s in axis], more, random)
    return random.permutation(np.concatenate([np.tile(np.arange(size), times), rest]))


def _part(columns: np.ndarray, random: np.random.Generator) -> None:
    """Makes all columns of [axes, count] different by swapping levels within a row, which keeps every balance."""
    count = columns.shape[1]
    met = Counter(map(tuple, columns.T.tolist()))
    for one in range(count):
        while met[tuple(columns[:, one].tolist())] > 1:
            axis, other = random.integers(len(columns)), random.integers(count)
            before = [tuple(columns[:, at].tolist()) for at in (one, other)]
            columns[axis, [one, other]] = columns[axis, [other, one]]
            after = [tuple(columns[:, at].tolist()) for at in (one, other)]
            met.subtract(before)
            met.update(after)
            if any(met[row] > 1 for row in after):
                columns[axis, [one, other]] = columns[axis, [other, one]]
                met.subtract(after)
                met.update(before)
