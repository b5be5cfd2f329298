"""An encoder in the layout of Meta's V-JEPA 2 files."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from tubelet.errors import UserError
from tubelet.export.about import NOTE, about, note
from tubelet.export.check import Written
from tubelet.export.names import named_as
from tubelet.export.story import Story
from tubelet.export.weights import Encoder
from tubelet.nn.published import VJEPA2, fill, plain
from tubelet.nn.tokens import Rotary, name_positions
from tubelet.nn.vit import ViT

FILE = "encoder.pt"


def write_vjepa2(encoder: Encoder, model: ViT, draft: Path, story: Story) -> Written:
    """`encoder.pt`: the encoder both as "encoder" and as "target_encoder", stored once, and "tubelet", what it is.

    There is no predictor and no optimizer state. Raises UserError for positions that Meta's code does not compute:
    it would load such weights without a word, and give other features.
    """
    if model.positions != Rotary(legacy=True):
        name, base = name_positions(model.positions)
        raise UserError(
            f"{encoder.name} has positions={name} positions_base={base:g}, and the code that reads V-JEPA 2 files "
            f"computes rotary_legacy with 10000 alone: its features would be others; choose to=hf or to=safetensors"
        )
    # some of Meta's code reads one name and some the other; they share their memory, so the file holds it once
    state = {f"module.backbone.{name}": tensor for name, tensor in named_as(model, VJEPA2).items()}
    own = {**about(encoder), "heads": model.heads}  # which no file of this kind tells otherwise
    torch.save({"encoder": state, "target_encoder": state, "tubelet": own}, draft / FILE)
    (draft / NOTE).write_text(note(encoder), encoding="utf-8")
    told = [f'"encoder" and "target_encoder" in {FILE} are both this encoder; there is no predictor']
    if VJEPA2.heads.get((model.dim, model.depth)) != model.heads:
        told.append(f"other programs have to be told that it has {model.heads} heads: no tensor shows it")
    return Written(_read(draft / FILE, model), exact=True, told=tuple(told))


def _read(file: Path, model: ViT) -> ViT:
    """The encoder in ``file``; what it lacks is not a number."""
    again = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.fill_(torch.nan)
    content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    fill(again, VJEPA2, plain(content["target_encoder"]))
    return again
