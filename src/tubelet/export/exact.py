"""Weights of ours into the encoder that they are said to be: all of them, or none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from tubelet.errors import UserError
from tubelet.export.architecture import Architecture
from tubelet.export.stored import read_tensors
from tubelet.nn.vit import ViT


def load_exactly(architecture: Architecture, file: Path) -> ViT:
    """The encoder of all tensors in ``file``; raises UserError if one is missing, left over or of another shape.

    Before it is built the file's tensors are asked how large it is: a number alone must not make an encoder of a
    billion blocks.
    """
    state, shape = read_tensors(file), architecture.shape
    blocks = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    telling = {
        "embedding.weight": (shape.dim, shape.channels * math.prod(shape.patch)),
        "blocks.0.mlp.fc1.weight": (shape.hidden, shape.dim),
    }
    found = {name: tuple(state[name].shape) if name in state else None for name in telling}
    misfit = f"{file} does not fit the encoder described beside it"
    if blocks != shape.depth or found != telling:
        raise UserError(
            f"{misfit}: {blocks} blocks, {_sizes(found)}, instead of {shape.depth}, {_sizes(telling)}; one of the two "
            "is damaged or of another encoder: copy both again"
        )
    try:
        model = architecture.empty()
    except ValueError as error:
        raise UserError(f"{misfit}: {error}; copy both again") from error
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys())
    surplus = sorted(state.keys() - expected.keys())
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & state.keys())
        if state[name].shape != expected[name].shape
    ]
    if missing or surplus or shapes:
        raise UserError(
            f"{misfit}: {len(missing)} tensors missing {missing[:3]}, {len(surplus)} unexpected {surplus[:3]}, "
            f"{len(shapes)} of another shape {shapes[:3]}; one of the two is damaged or of another encoder: copy both "
            "again"
        )
    model = model.to_empty(device="cpu")
    model.load_state_dict(state)
    return model


def _sizes(found: Mapping[str, tuple[int, ...] | None]) -> str:
    return ", ".join(f"{name} {'missing' if size is None else size}" for name, size in found.items())
