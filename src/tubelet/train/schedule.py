"""Rates as functions of the moment: no memory, so a resumed run is on the curve by arithmetic.

``stretch`` computes a schedule over ``total * stretch`` steps, so that training stops early on the curve
(V-JEPA: 1.25). Steps are 0-based: the first step is taken at the start value, and the end value is reached
at ``step == total``, one past the last step.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass

from tubelet.types import Moment


@dataclass(frozen=True)
class Schedule(ABC):
    """A number for every moment."""

    @abstractmethod
    def __call__(self, moment: Moment) -> float:
        """The value that step ``moment.step`` of ``moment.total`` is taken with."""

    def describe(self) -> dict[str, object]:
        """Name and numbers, ready for YAML or JSON; equal schedules give equal descriptions."""
        return {"schedule": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value always."""

    value: float

    def __call__(self, moment: Moment) -> float:
        return self.value


@dataclass(frozen=True)
class Linear(Schedule):
    """A straight line from ``start`` to ``end``."""

    start: float
    end: float
    stretch: float = 1.0

    def __call__(self, moment: Moment) -> float:
        return _line(self.start, self.end, _ratio(moment.step, moment.total * self.stretch))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from ``start`` to ``end``: slow, fast, slow."""

    start: float
    end: float
    stretch: float = 1.0

    def __call__(self, moment: Moment) -> float:
        return _half_cosine(self.start, self.end, _ratio(moment.step, moment.total * self.stretch))


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """A line from ``start`` to ``peak`` in ``warmup`` steps, then half a cosine to ``end``."""

    start: float
    peak: float
    end: float
    warmup: int
    stretch: float = 1.0

    def __call__(self, moment: Moment) -> float:
        if moment.step < self.warmup:
            return _line(self.start, self.peak, moment.step / self.warmup)
        total = moment.total * self.stretch
        return _half_cosine(self.peak, self.end, _ratio(moment.step - self.warmup, total - self.warmup))


@dataclass(frozen=True)
class WarmupConstantLinear(Schedule):
    """A line from ``start`` to ``peak``, constant, and a line to ``end`` in the last ``cooldown`` steps.

    ``stretch`` moves the end, and with it the cooldown, beyond the last step. ``warmup`` and ``cooldown``
    that overlap: warm-up first, and the cooldown begins lower down its line.
    """

    start: float
    peak: float
    end: float
    warmup: int
    cooldown: int
    stretch: float = 1.0

    def __call__(self, moment: Moment) -> float:
        if moment.step < self.warmup:
            return _line(self.start, self.peak, moment.step / self.warmup)
        begin = moment.total * self.stretch - self.cooldown
        if moment.step <= begin:
            return self.peak
        return _line(self.peak, self.end, _ratio(moment.step - begin, self.cooldown))


@dataclass(frozen=True)
class Restarted(Schedule):
    """Another schedule, brought back to nothing at each step of ``at`` and up again in ``length`` steps.

    The ``length`` steps from a restart on are taken at 1/length, 2/length, ... of what ``inner`` says.
    """

    inner: Schedule
    at: tuple[int, ...]
    length: int

    def __call__(self, moment: Moment) -> float:
        since = [moment.step - step for step in self.at if step <= moment.step]
        ramp = min(1.0, (min(since) + 1) / self.length) if since and self.length else 1.0
        return ramp * self.inner(moment)

    def describe(self) -> dict[str, object]:
        """As ``inner``, and where it restarts."""
        return {**self.inner.describe(), "restart_at": list(self.at), "restart_length": self.length}


@dataclass(frozen=True)
class Staged(Schedule):
    """``stages`` equal parts of the run, each with the whole of ``inner``, warm-up and all, run through faster."""

    inner: Schedule
    stages: int

    def __call__(self, moment: Moment) -> float:
        _, begin, end = moment.stage(self.stages)
        return self.inner(Moment((moment.step - begin) * moment.total // (end - begin), moment.total))

    def describe(self) -> dict[str, object]:
        """As ``inner``, and how often it runs."""
        return {**self.inner.describe(), "stages": self.stages}


def _ratio(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0 else 1.0


def _line(start: float, end: float, at: float) -> float:
    return start + (end - start) * at


def _half_cosine(start: float, end: float, at: float) -> float:
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * at))
