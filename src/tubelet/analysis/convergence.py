"""What final losses say about depth: LayerLock's convergence map (arXiv 2509.10156, Figure 1) as numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_CLEAR = 2.0  # a loss is clearly on one side of the limit beyond so many standard errors


@dataclass(frozen=True)
class Continuation:
    """A run taken up at ``step`` with the embedding and blocks 1 to ``layers`` frozen, and trained to its end.

    final_loss: mean training loss over the map's last steps. difference: that minus the run's own, step by step
    on the same clips and masks. standard_error: of its mean, the steps taken as independent. flops, seconds: what
    it took from ``step`` on.
    """

    step: int
    layers: int
    final_loss: float
    difference: float
    standard_error: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class Schedule:
    """The fastest LayerLock schedule of jump 1 that freezes no block before it had settled on the map."""

    pixel_steps: int
    interval: int
    deepest: int


@dataclass(frozen=True)
class ConvergenceMap:
    """Final losses over a grid of (step, layers), and the run that they are compared with.

    run, recipe, model, depth (blocks), steps, flops, seconds: the run's. first: the step from which on losses are
    averaged; logged: how many of the steps since then were logged. tolerance: how much higher than ``base_loss``,
    the run's own final loss, a final loss may be, as a share of it. reached: step -> the run's own loss just
    before it, and the standard error of its difference from base_loss, unpaired. cells: in order of step, then
    layers. cautions: sentences on what the numbers do not say.
    """

    run: str
    recipe: str
    model: str
    depth: int
    steps: int
    flops: float
    seconds: float
    first: int
    logged: int
    tolerance: float
    base_loss: float
    reached: Mapping[int, tuple[float, float]]
    cells: Sequence[Continuation]
    cautions: Sequence[str] = ()

    @property
    def columns(self) -> list[int]:
        """Steps of the grid, ascending."""
        return sorted({cell.step for cell in self.cells})

    @property
    def rows(self) -> list[int]:
        """Depths of the grid, ascending."""
        return sorted({cell.layers for cell in self.cells})

    def relative(self, cell: Continuation) -> float:
        """How much higher the final loss is, as a share of the run's."""
        return cell.difference / abs(self.base_loss)

    def converged(self, cell: Continuation) -> bool:
        """Whether blocks 1 to ``layers`` had settled: the final loss is not higher by more than the tolerance."""
        return self.relative(cell) <= self.tolerance

    def clear(self, cell: Continuation) -> bool:
        """Whether that judgement is more than two standard errors from being the other one."""
        margin = abs(cell.difference - self.tolerance * abs(self.base_loss))
        return margin > _CLEAR * cell.standard_error

    def to_gain(self, step: int) -> float:
        """How much higher the run's own loss was at ``step`` than in the end, as a share of the latter."""
        return (self.reached[step][0] - self.base_loss) / abs(self.base_loss)

    def blunt(self) -> list[int]:
        """Steps at which any freezing would pass: the run had clearly no more to gain than the tolerance."""
        return [
            step
            for step in self.columns
            if self.to_gain(step) + _CLEAR * self.reached[step][1] / abs(self.base_loss) <= self.tolerance
        ]

    def settled(self) -> dict[int, int | None]:
        """layers -> the first step from which on it is converged at every step of the grid; None if at none."""
        found: dict[int, int | None] = {}
        for layers in self.rows:
            since = None
            for cell in reversed([cell for cell in self.cells if cell.layers == layers]):
                if not self.converged(cell):
                    break
                since = cell.step
            found[layers] = since
        return found

    def schedule(self) -> Schedule | None:
        """What the map suggests for LayerLock, whose last block learns; None if no depth settles or none can fail."""
        if len(self.blunt()) == len(self.columns):
            return None
        settled = {
            layers: step
            for layers, step in self.settled().items()
            if step is not None and 0 < layers < self.depth
        }
        if not settled:
            return None
        first = settled[min(settled)]
        slopes = [(step - first) / (layers - 1) for layers, step in settled.items() if layers > 1]
        return Schedule(first, max(1, math.ceil(max(slopes, default=1))), max(settled))

    def percent(self, share: float, sign: str = "+") -> str:
        """``share`` in as many digits as tell hundredths of the tolerance: +0.31 %. sign: "" leaves out the plus."""
        digits = 2 - math.floor(math.log10(100 * self.tolerance)) if self.tolerance else 3
        digits = max(0, digits)
        number = round(100 * share, digits) + 0.0  # no minus before a zero
        return f"{number:{sign}.{digits}f} %".replace("-", "−")

    def how(self) -> str:
        """What is shown and how it was computed, in one sentence."""
        return (
            f"Each cell is the run taken up at the step below it with its patch embedding and blocks 1 to the depth "
            f"on the left frozen, trained to step {self.steps} with data order, masks and rates as they were, and "
            f"shows how much higher its training loss is than the run's own, as the mean over the {self.logged} "
            f"steps logged from step {self.first} on, which both took on the same clips and masks"
        )
