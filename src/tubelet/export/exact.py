"""Weights of ours into the encoder that they are said to be: all of them, or none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from tubelet.errors import UserError
from tubelet.export.architecture import Architecture
from tubelet.export.stored import read_shapes, read_tensors
from tubelet.nn.vit import ViT


def load_exactly(architecture: Architecture, file: Path) -> ViT:
    """The encoder of all tensors in ``file``; raises UserError if one is missing, left over or of another shape."""
    state = read_tensors(file)
    model = _empty(architecture, file, {name: tuple(tensor.shape) for name, tensor in state.items()})
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
            f"{_misfit(file)}: {len(missing)} tensors missing {missing[:3]}, {len(surplus)} unexpected {surplus[:3]}, "
            f"{len(shapes)} of another shape {shapes[:3]}; one of the two is damaged or of another encoder: copy both "
            "again"
        )
    model = model.to_empty(device="cpu")
    model.load_state_dict(state)
    return model


def empty_exactly(architecture: Architecture, file: Path) -> ViT:
    """An encoder as large as that in ``file``, without numbers and memory; raises UserError for other sizes."""
    return _empty(architecture, file, read_shapes(file))


def _empty(architecture: Architecture, file: Path, shapes: Mapping[str, tuple[int, ...]]) -> ViT:
    """Before it is built the ``shapes`` of the tensors in ``file`` are asked how large it is.

    A number alone must not make an encoder of a billion blocks.
    """
    shape = architecture.shape
    blocks = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
    telling = {
        "embedding.weight": (shape.dim, shape.channels * math.prod(shape.patch)),
        "blocks.0.mlp.fc1.weight": (shape.hidden, shape.dim),
    }
    found = {name: shapes.get(name) for name in telling}
    if blocks != shape.depth or found != telling:
        raise UserError(
            f"{_misfit(file)}: {blocks} blocks, {_sizes(found)}, instead of {shape.depth}, {_sizes(telling)}; one of "
            "the two is damaged or of another encoder: copy both again"
        )
    try:
        return architecture.empty()
    except ValueError as error:
        raise UserError(f"{_misfit(file)}: {error}; copy both again") from error


def _misfit(file: Path) -> str:
    return f"{file} does not fit the encoder described beside it"


def _sizes(found: Mapping[str, tuple[int, ...] | None]) -> str:
    return ", ".join(f"{name} {'missing' if size is None else size}" for name, size in found.items())
