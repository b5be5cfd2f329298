"""What builds an encoder, without its weights: as JSON, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tubelet.export.numbers import named, positive, whole, wholes
from tubelet.nn.pixels import Pixels
from tubelet.nn.published import Shape
from tubelet.nn.tokens import Positions, build_positions, name_positions
from tubelet.nn.vit import ViT

_NAMES = ("dim", "depth", "heads", "hidden", "patch", "channels", "positions", "positions_base", "init_std")


@dataclass(frozen=True)
class Architecture:
    """Sizes of an encoder, and its positions. init_std: width of its first draw (`tubelet.nn.vit.ViT`)."""

    shape: Shape
    heads: int
    positions: Positions
    init_std: float = 0.02

    def empty(self) -> ViT:
        """An encoder of it that holds no numbers and no memory; raises ValueError if the heads do not divide it."""
        shape = self.shape
        with torch.device("meta"):
            return ViT(
                shape.dim,
                shape.depth,
                self.heads,
                shape.hidden,
                shape.patch,
                shape.channels,
                self.positions,
                self.init_std,
            )


def architecture_of(model: ViT | Pixels) -> dict[str, Any]:
    """What builds the model again, without its weights: JSON."""
    if isinstance(model, Pixels):
        return {"kind": "pixels", "patch": model.patch, "channels": model.channels, "cells": model.cells}
    positions, base = name_positions(model.positions)
    return {
        "kind": "vit",
        "dim": model.dim,
        "depth": model.depth,
        "heads": model.heads,
        "hidden": model.hidden,
        "patch": list(model.patch),
        "channels": model.channels,
        "positions": positions,
        "positions_base": base,
        "init_std": model.init_std,
    }


def read_architecture(stored: Any) -> Architecture:
    """What `architecture_of` made ``stored`` of, for an encoder with weights; raises ValueError for anything else."""
    stored = named(stored, "architecture", ("kind", *_NAMES))
    if stored["kind"] != "vit":
        raise ValueError(f'kind is {stored["kind"]!r}, and only "vit" is stored')
    if not isinstance(stored["positions"], str):
        raise ValueError("positions is no text")
    frames, height, width = wholes(stored, "patch", 3)
    shape = Shape(
        whole(stored, "dim"),
        whole(stored, "depth"),
        whole(stored, "hidden"),
        (frames, height, width),
        whole(stored, "channels"),
    )
    return Architecture(
        shape,
        whole(stored, "heads"),
        build_positions(stored["positions"], positive(stored, "positions_base")),
        positive(stored, "init_std"),
    )
