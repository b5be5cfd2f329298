"""The contract between a way of learning and the loop that runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn

from tubelet.types import Batch, Grid, Loss, Moment, Work

if TYPE_CHECKING:
    from tubelet.nn.vit import ViT


class Method(nn.Module, ABC):
    """A module that says what the target is, what may move when, and the loss; nothing else says it.

    Everything it does is a function of the moment, its own parameters and buffers, and torch's global
    generators, which the loop seeds before every forward. A parameter that will never move (a teacher's)
    is built with ``requires_grad_(False)``: it then has no optimizer state at all. A fixed table is a buffer.
    """

    encoder: ViT

    @abstractmethod
    def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
        """Yield one loss, or several whose graphs share nothing.

        Each is back-propagated, and what it saved is freed, before the next is asked for. Never yield inside
        ``torch.no_grad()``: the loop's backward would run in it.
        """

    @abstractmethod
    def trainable(self, moment: Moment) -> list[nn.Module]:
        """The modules whose parameters may move now; gradients may be clipped module by module."""

    def after_step(self, moment: Moment) -> None:
        """Called without autograd once the optimizer has stepped: a moving average goes here."""

    @abstractmethod
    def encoders(self) -> dict[str, ViT]:
        """What leaves pretraining, by name, the recommended one first."""

    @abstractmethod
    def work(self, grid: Grid, moment: Moment) -> list[Work]:
        """Every pass that one clip of ``grid`` pays for at this moment."""
