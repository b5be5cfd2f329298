"""An encoder as a program that runs without our code: torch.export's, and ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from tubelet.errors import UserError
from tubelet.export.about import NOTE, about, note
from tubelet.export.check import Written
from tubelet.export.hub import EXTRA
from tubelet.export.story import Story
from tubelet.export.weights import Encoder
from tubelet.files import writing
from tubelet.nn.vit import ViT
from tubelet.quiet import muted

INPUT, OUTPUT = "clip", "tokens"


def write_pt2(encoder: Encoder, model: ViT, draft: Path, story: Story) -> Written:
    """`model.pt2`, for `torch.export.load(file).module()`: clips of any number and length to normed tokens.

    Lengths are multiples of the tubelet's, two of them or more: one would be another program. Licence and source are
    in it, as its extra file `export.json`, and beside it.
    """
    file = draft / "model.pt2"
    with _quiet():
        program = _traced(encoder, model)
        with writing(file) as sink:
            torch.export.save(program, cast(Any, sink), extra_files={NOTE: note(encoder)})
        program = torch.export.load(file)
    (draft / NOTE).write_text(note(encoder), encoding="utf-8")
    return Written(program.module(), told=_shapes(encoder, model))


def write_onnx(encoder: Encoder, model: ViT, draft: Path, story: Story) -> Written:
    """`model.onnx`: "clip" [batch, C, frames, H, W] to "tokens" [batch, N, D]; batch and frames are free.

    Run by onnxruntime on the CPU. Licence and source are in its metadata, and beside it. Above 2 GB the weights are in
    a file of their own. Raises UserError if onnx, onnxscript or onnxruntime is not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401, what torch.onnx writes with
    except ImportError as error:
        raise UserError(f"to=onnx needs {error.name}, which is not installed: {EXTRA}") from error
    file = draft / "model.onnx"
    with _quiet():
        program = torch.onnx.export(
            _traced(encoder, model), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
        )
    assert program is not None, "dynamo=True returns what it has made"
    leaving = about(encoder)["provenance"]
    said = {"licence": str(leaving["licence"]), "source": str(leaving["source"]), NOTE: note(encoder)}
    program.model.metadata_props.update(said)
    program.save(file)
    (draft / NOTE).write_text(note(encoder), encoding="utf-8")
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(clip: Tensor) -> Tensor:
        return torch.from_numpy(session.run([OUTPUT], {INPUT: clip.numpy()})[0])

    return Written(run, told=_shapes(encoder, model))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries say of their own workings: pages of it, and nothing for whoever exports."""
    talkers = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    with muted(*talkers, level=logging.ERROR), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _traced(encoder: Encoder, model: ViT) -> ExportedProgram:
    """The encoder's program, with the number of clips and of tubelets along time left open."""
    side, depth = encoder.geometry.crop_size, model.patch[0]
    if encoder.geometry.frames < 2 * depth:
        raise UserError(
            f"{encoder.name} reads {encoder.geometry.frames} frames, one tubelet, and a program for any length takes "
            f"two or more; load it with frames={2 * depth} (--frames {2 * depth}), or choose another format"
        )
    clip = torch.zeros(2, model.channels, 4 * depth, side, side)
    shapes = {INPUT: {0: Dim("batch"), 2: depth * Dim("tubelets", min=2)}}
    with torch.no_grad():
        program = torch.export.export(model, (clip,), dynamic_shapes=shapes)
    # every node knows from which lines of which files it came, and both formats would write that down
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _shapes(encoder: Encoder, model: ViT) -> tuple[str, ...]:
    side, (depth, _, _) = encoder.geometry.crop_size, model.patch
    return (
        f"it takes clips [any, {model.channels}, frames, {side}, {side}], float32, normalised as {NOTE} says; frames "
        f"are a multiple of {depth}, {2 * depth} or more, height and width are fixed",
    )
