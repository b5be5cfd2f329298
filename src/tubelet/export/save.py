"""Our encoder as a file that others open; nothing counts as written before it has been run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tubelet.errors import UserError, nearest
from tubelet.export.about import with_origin
from tubelet.export.check import Written, compare
from tubelet.export.huggingface import write_hf
from tubelet.export.meta import write_vjepa2
from tubelet.export.program import write_onnx, write_pt2
from tubelet.export.story import Story, story_of
from tubelet.export.truncate import truncated
from tubelet.export.weights import Encoder, load_encoder, write_encoder
from tubelet.files import replace_folder
from tubelet.nn.vit import ViT


@dataclass(frozen=True)
class Exported:
    """What `export` wrote. difference: the largest between its outputs and the encoder's. told: what to know of it."""

    folder: Path
    encoder: Encoder
    difference: float
    told: tuple[str, ...]

    def checked(self) -> str:
        """What running it has shown, in a few words."""
        same = "are the same" if self.difference == 0 else f"differ by at most {self.difference:.1g}"
        return f"run on random clips: its outputs {same}"


def export(
    encoder: Encoder,
    out: Path | str,
    to: str = "safetensors",
    layers: int | None = None,
    run: Path | str | None = None,
) -> Exported:
    """Writes ``encoder`` into the new folder ``out``, in the format ``to`` (docs/export.md), and runs it there.

    layers: keep the first so many blocks and the final norm (`tubelet.export.truncate`). run: where the encoder comes
    from, for cost and evaluations on the model card of "hf" (`tubelet.export.story`). The folder gets its name only
    once its outputs on random clips, one and two at a time, are those of the encoder: bit by bit for "safetensors" and
    "vjepa2", within 1e-4 of the largest output for what other code computes. Raises UserError for an ``out`` that
    holds anything, for an encoder that the format cannot express, that is not float32 or whose clips do not divide
    into its tubelets, and if a library is missing.
    """
    out = Path(out).resolve()  # "." has no name that a draft could take
    if to not in WRITERS:
        raise UserError(f'unknown format to="{to}"{nearest(to, WRITERS)} (there are: {", ".join(WRITERS)})')
    refuse_filled(out)
    encoder = encoder if layers is None else truncated(encoder, layers)
    model = encoder.model
    if not isinstance(model, ViT):
        raise UserError(f"{encoder.name} has no weights to export; name a run or a file of weights")
    _refuse_misfit(encoder, model)
    encoder = replace(encoder, provenance=with_origin(encoder))
    story = Story() if run is None or to != "hf" else story_of(run, encoder.digest)
    with replace_folder(out) as draft:
        written = WRITERS[to](encoder, model, draft, story)
        difference = compare(model, encoder.geometry, written)
    return Exported(out, encoder, difference, written.told)


def _refuse_misfit(encoder: Encoder, model: ViT) -> None:
    """What could not be run, or would be another encoder once it is written."""
    if others := {tensor.dtype for tensor in model.state_dict().values()} - {torch.float32}:
        raise UserError(
            f"{encoder.name} has weights of {', '.join(sorted(map(str, others)))}, and what is exported is float32; "
            f"load it again, which makes it that"
        )
    clips, tubelet = encoder.geometry, " x ".join(map(str, model.patch))
    for knob, value, part in (
        ("frames", clips.frames, model.patch[0]),
        ("crop_size", clips.crop_size, math.lcm(*model.patch[1:])),
    ):
        if value < 1 or value % part:
            fits = max(1, round(value / part)) * part
            raise UserError(
                f"{knob}={value} does not divide into the tubelets of {encoder.name} ({tubelet} frames, height, "
                f"width); load it with {knob}={fits} (--{knob.replace('_', '-')} {fits})"
            )


def refuse_filled(out: Path) -> None:
    """Raises UserError if ``out`` is a file, or a folder that holds anything: an export replaces nothing."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} exists and is not empty; choose another out, or remove it first")


def _write_safetensors(encoder: Encoder, model: ViT, draft: Path, story: Story) -> Written:
    """Our own folder: `encoder.json` and `model.safetensors`."""
    write_encoder(model, draft, encoder.geometry, encoder.provenance)
    return Written(load_encoder(draft).model, exact=True)


WRITERS: dict[str, Callable[[Encoder, ViT, Path, Story], Written]] = {
    "safetensors": _write_safetensors,
    "hf": write_hf,
    "onnx": write_onnx,
    "pt2": write_pt2,
    "vjepa2": write_vjepa2,
}
