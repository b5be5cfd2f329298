"""An encoder in the layout of Meta's V-JEPA 2 files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from tubelet.errors import UserError
from tubelet.export.about import NOTE, about, note
from tubelet.export.check import Written
from tubelet.export.names import named_as
from tubelet.export.story import Story
from tubelet.export.weights import Encoder, load_encoder
from tubelet.files import writing
from tubelet.nn.published import VJEPA2
from tubelet.nn.tokens import Rotary, name_positions
from tubelet.nn.vit import ViT
from tubelet.quiet import muted

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
    with writing(draft / FILE) as file:
        torch.save({"encoder": state, "target_encoder": state, "tubelet": about(encoder)}, cast(Any, file))
    (draft / NOTE).write_text(note(encoder), encoding="utf-8")
    told = [f'"encoder" and "target_encoder" in {FILE} are both this encoder; there is no predictor']
    if VJEPA2.heads.get((model.dim, model.depth)) != model.heads:
        told.append(f"other programs have to be told that it has {model.heads} heads: no tensor shows it")
    with muted("tubelet"):  # of a draft that gets another name there is nothing to say
        again = load_encoder(draft / FILE)
    return Written(again.model, exact=True, told=tuple(told))
