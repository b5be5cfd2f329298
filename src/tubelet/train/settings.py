"""The knobs of the loop, all of them, and none of any method."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from tubelet.errors import UserError
from tubelet.train.precision import Precision
from tubelet.train.schedule import Constant, Schedule

NO_DECAY = Constant(0.0)


@dataclass(frozen=True)
class TrainSettings:
    """How long, how large, how fast; what is saved and shown.

    steps: optimizer steps. batch_size: clips per step over all processes and micro-batches. micro_batches:
    parts of each process's share that are run one after the other. clip: largest gradient norm, None for no
    clipping; clip_per: one norm over everything that moves ("all") or one per module of
    ``method.trainable`` ("module"); clip_from: first step that is clipped. save_every, log_every,
    monitor_every: in steps; the first and the last step are always logged and monitored, and the last saved.
    keep: newest checkpoints that stay; keep_every: those at multiples of it stay too (0: none).
    Raises UserError for numbers that make no sense.
    """

    steps: int
    batch_size: int
    lr: Schedule
    weight_decay: Schedule = NO_DECAY
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = None
    clip_per: Literal["all", "module"] = "all"
    clip_from: int = 0
    micro_batches: int = 1
    precision: Precision = "auto"
    seed: int = 0
    save_every: int = 500
    keep: int = 2
    keep_every: int = 0
    log_every: int = 1
    monitor_every: int = 100
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_size",
            "micro_batches",
            "save_every",
            "keep",
            "log_every",
            "monitor_every",
        ):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.keep_every < 0:
            raise UserError(f"keep_every={self.keep_every}: must be 0 (keep none) or a number of steps")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"clip={self.clip}: must be above 0, or None for no clipping")
        if self.clip_per not in ("all", "module"):
            raise UserError(f'clip_per="{self.clip_per}" is not one of all, module')

    def micro_batch_size(self, world: int) -> int:
        """Clips per forward on each of ``world`` processes; raises UserError if the batch does not divide."""
        if self.batch_size % (world * self.micro_batches):
            raise UserError(
                f"batch_size={self.batch_size} does not divide into {world} processes x "
                f"micro_batches={self.micro_batches}; make it a multiple of {world * self.micro_batches}"
            )
        return self.batch_size // (world * self.micro_batches)

    def describe(self) -> dict[str, object]:
        """All knobs as plain values, ready for YAML or JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**values, "lr": self.lr.describe(), "weight_decay": self.weight_decay.describe()}
