"""Other people's files: recognised, and made into our encoder."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from tubelet.errors import UserError, nearest
from tubelet.export.architecture import Architecture
from tubelet.export.geometry import Geometry
from tubelet.export.numbers import LARGEST, entry, positive, whole, wholes
from tubelet.export.owner import owned, read_card
from tubelet.export.record import Record, read_record
from tubelet.export.stored import INDEX, READ, SUFFIXES, candidates, read, weights_file
from tubelet.files import read_json
from tubelet.nn.published import (
    VIDEOMAE_HF,
    VJEPA1,
    VJEPA2,
    VJEPA2_HF,
    VJEPA21,
    Family,
    Shape,
    fill,
    plain,
    recognise,
    shape_of,
    table_grid,
)
from tubelet.nn.tokens import SinCos
from tubelet.nn.vit import ViT

log = logging.getLogger("tubelet")

# The averaged encoder is the one that is evaluated; a distilled 2.1 calls it so, where "target" is the teacher.
JEPA_ENCODERS = ("ema_encoder", "target_encoder", "encoder")
_ENDS = re.compile(f"({'|'.join(map(re.escape, (*SUFFIXES, INDEX)))})+$")
MODEL_TYPES = {"vjepa2": VJEPA2_HF, "videomae": VIDEOMAE_HF}


@dataclass(frozen=True)
class Foreign:
    """An encoder out of somebody else's file. provenance: source, kind, licence, which, and what did not fit.

    digest: of the weights that the file says were exported into it; None where it says nothing, or may have changed.
    """

    model: ViT
    geometry: Geometry
    name: str
    provenance: dict[str, Any]
    digest: str | None = None


@dataclass(frozen=True)
class _Tensors:
    """A file's encoder before it is ours: its family, its tensors under the family's names, and what to call it.

    said: what an export of ours says of itself (`tubelet.export.about.about`), None for all others.
    """

    file: Path
    family: Family
    state: dict[str, Tensor]
    which: str
    said: Record | None = None


def is_foreign(path: Path) -> bool:
    """Whether ``path`` is a file of weights, or a folder that holds one or a `config.json`, and no encoder of ours."""
    if path.is_file():
        return path.name.endswith((*SUFFIXES, INDEX))
    if not path.is_dir() or (path / "encoder.json").is_file() or any(path.glob("encoder*/encoder.json")):
        return False
    return (path / "config.json").is_file() or bool(candidates(path))


def read_foreign(
    path: Path, which: str | None = None, allow_partial: bool = False, heads: int | None = None
) -> Foreign:
    """The encoder of a published file or folder, of the kind that its tensors' names tell.

    which: of a V-JEPA file, "target_encoder", "encoder" or "ema_encoder" (default: the averaged one). heads: attention
    heads, for sizes whose number is not known. allow_partial: what does not fit stays at its first draw (seed 0).
    A file that says whose it is, as our exports do, keeps its own licence, source, clips and heads; else they are the
    family's, or the model card's. Says in one line what was recognised and how it fitted. Raises UserError if nothing
    in ``path`` is known, if it is damaged or would have to be run to be read, or if anything that the encoder needs is
    missing or different.
    """
    file = weights_file(path)
    found = _recognised(file, which)
    family = found.family
    try:
        shape = shape_of(family, found.state)
    except ValueError as error:
        raise UserError(f"{file} is no {family.name} encoder of videos: {error}; {READ}") from error
    geometry, said, teller = _geometry(found, shape), found.said, file
    known = None if said is None else said.architecture.heads
    configured = family in (VJEPA2_HF, VIDEOMAE_HF)
    if configured:
        teller = file.parent / "config.json"
        known, geometry, said = _configured(file, family, shape)
    if known is not None and heads not in (None, known):
        raise UserError(f"heads={heads}, but {teller} says {known}; leave heads out")
    usual = family.heads.get((shape.dim, shape.depth))
    guessed = known is None and heads is None
    heads = next((one for one in (known, heads, usual) if one is not None), None)
    if heads is None:
        raise UserError(
            f"{file} is {shape.dim} wide and {shape.depth} deep, no size of {family.name} that is known, and its "
            f"tensors do not tell the number of attention heads; say heads=NUMBER"
        )
    if heads < 1:
        raise UserError(
            f"heads={heads}: {file} has one attention head or more; say heads=NUMBER, not {heads}"
        )
    drawn = {} if said is None else {"init_std": said.architecture.init_std}
    model = _empty(file, Architecture(shape, heads, family.positions, **drawn), allow_partial)
    fit = fill(model, family, found.state)
    about = {
        "source": str(path),
        "kind": family.name,
        "licence": family.licence,
        "which": found.which,
        **({} if said is None else said.provenance),
    }
    if configured:
        about = read_card(file.parent, about)
    told = (
        f"{fit.matched} tensors matched, {_some(fit.missing)} missing, {_some(fit.unexpected)} unexpected, "
        f"{_some(fit.reshaped)} of another shape"
    )
    partial = {} if fit.whole else {"partial": asdict(fit)}
    if partial and not allow_partial:
        raise UserError(
            f"{file} does not fit the encoder that it should hold ({family.name}, {shape.dim} wide, {shape.depth} "
            f"deep): {told}; it is incomplete, altered or of a kind that cannot be read: {READ}. To load what fits and "
            f"leave the rest random: allow_partial"
        )
    left = f"; left random: {_some(fit.left_random)}" if fit.left_random else ""
    assumed = f", {heads} heads as is usual for its size (say heads=NUMBER if not)" if guessed else ""
    log.info(f"{path}: {family.name} ({found.which}){assumed}, licence {about['licence']}: {told}{left}")
    stem = path.name if path.is_dir() else _ENDS.sub("", path.name)
    # a folder for transformers may have been trained further there, which keeps our words in its config
    exported = None if partial or configured or said is None else said.digest
    return Foreign(model, geometry, str(about.get("name", stem)), {**about, **partial}, exported)


def _recognised(file: Path, which: str | None) -> _Tensors:
    content = read(file)
    jepa = [name for name in JEPA_ENCODERS if _is_state(content.get(name))]
    if jepa:
        return _jepa(file, content, jepa, which)
    if which is not None:
        raise UserError(f'{file} holds one encoder, no choice of them; leave which="{which}" out')
    nested = [content[name] for name in ("model", "module", "state_dict") if _is_state(content.get(name))]
    state = nested[0] if nested else content
    if not _is_state(state):
        raise UserError(f"{file} holds {_keys(content)}, no encoder that is known; {READ}")
    state = plain(state)
    found = recognise(state)
    if found is None:
        if "embedding.weight" in state and "blocks.0.attn.qkv.weight" in state:
            raise UserError(f"{file} is one of our own, without the encoder.json beside it; name its folder")
        kernels = [name for name, tensor in state.items() if "patch_embed" in name and tensor.ndim == 4]
        why = f": an image model ({kernels[0]} has 4 dimensions)" if kernels else ""
        whole = (
            "; of V-JEPA the whole file is needed, since its predictor tells the version"
            if "blocks.0.attn.qkv.bias" in state and not kernels
            else ""
        )
        raise UserError(f"{file} holds {_keys(state)}, no encoder that is known{why}; {READ}{whole}")
    family, prefix = found
    return _Tensors(file, family, plain(state, prefix), "encoder")


def _jepa(file: Path, content: Mapping[str, Any], jepa: list[str], which: str | None) -> _Tensors:
    """V-JEPA 1, 2 or 2.1: all keep several encoders, of the same names, and a predictor that tells which it is."""
    chosen = which or jepa[0]
    if chosen not in jepa:
        raise UserError(f'{file} has no "{which}"{nearest(str(which), jepa)}; it has: {", ".join(jepa)}')
    state = plain(content[chosen])
    predictor = content.get("predictor")
    masks = (
        sum(name.startswith("mask_tokens.") for name in plain(predictor)) if _is_state(predictor) else None
    )
    if any(name.startswith("norms_block.") for name in state):
        family = VJEPA21
    elif VJEPA2.table not in state:
        family = VJEPA2
    elif masks is None:
        raise UserError(
            f"{file} stores a table of positions but no predictor, so it may be V-JEPA 1, which reads the table, or "
            f"V-JEPA 2, which does not; keep the predictor in the file, as it was published"
        )
    else:
        # released V-JEPA 2 files keep a table that their rotary encoder never reads; they have ten mask tokens (or, in
        # the action-conditioned one, none), V-JEPA 1 has one for each of its two masks
        family = VJEPA1 if masks in (1, 2) else VJEPA2
    return _Tensors(file, family, state, chosen, _said(file, content.get("tubelet")))


def _said(file: Path, about: Any) -> Record | None:
    """What ``about``, of a file or its config, says as an export of ours does; None if it is not there.

    Raises UserError if it is there and makes no sense: without it, clips would be sampled at another rate.
    """
    if about is None:
        return None
    try:
        return read_record(about)
    except ValueError as error:
        raise UserError(
            f'{file} says under "tubelet" nothing that an export of ours says ({error}); export it again'
        ) from error


def _geometry(found: _Tensors, shape: Shape) -> Geometry:
    """The clips of a file without config: what it says, or the family's, with frames and crop of a table if they show.

    Raises UserError if positions were added that differ from those that are computed.
    """
    family = found.family
    if found.said is not None:
        return found.said.geometry
    geometry = Geometry(family.frames, family.fps, family.frame_step, family.crop_size)
    if not isinstance(family.positions, SinCos):
        return geometry
    table = found.state.get(family.table)
    if table is None:
        return geometry
    grid = table_grid(family.positions, table)
    if grid is None:
        raise UserError(
            f"{found.file} stores a table of positions ({family.table}, {tuple(table.shape)}) that is not the fixed "
            f"one of {family.name}: learned, or made otherwise; our encoder computes its positions and cannot take it"
        )
    if family.positions.flat:
        return geometry
    time, side, _ = grid
    return Geometry(time * shape.patch[0], family.fps, family.frame_step, side * shape.patch[1])


def _configured(weights: Path, family: Family, shape: Shape) -> tuple[int, Geometry, Record | None]:
    """Heads and clips that a Hugging Face config.json and its preprocessor's config tell; `_said` of it.

    shape: of the tensors in ``weights``. Frames and crop are the config's own, which its owner may have changed; the
    rate of frames is in ours alone. Raises UserError for a config that is not of these tensors: nothing is built that
    is only in the config, such as a million blocks.
    """
    file = weights.parent / "config.json"
    config = read_json(file) if file.is_file() else {}
    if MODEL_TYPES.get(str(config.get("model_type"))) is not family:
        what = f'says model_type "{config.get("model_type")}"' if config else "is not there"
        raise UserError(
            f"the tensors are those of {family.name}, but {file} {what}; keep weights and config.json as they were "
            f"published, in one folder"
        )
    jepa = family is VJEPA2_HF
    try:
        eps, act = positive(config, "layer_norm_eps"), entry(config, "hidden_act")
        dim, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
        sizes = {
            "hidden_size": (dim, shape.dim),
            "num_hidden_layers": (whole(config, "num_hidden_layers"), shape.depth),
            "tubelet_size": (whole(config, "tubelet_size"), shape.patch[0]),
            "patch_size": (_pair(config, "patch_size"), shape.patch[1:]),
        }
        channels = "in_chans" if jepa else "num_channels"
        sizes[channels] = (whole(config, channels), shape.channels)
        if jepa:
            hidden = int(min(dim * positive(config, "mlp_ratio"), LARGEST))  # the ratio may be any number
            sizes["hidden_size * mlp_ratio"] = (hidden, shape.hidden)
        else:
            sizes["intermediate_size"] = (whole(config, "intermediate_size"), shape.hidden)
        crop, other = _pair(config, "crop_size" if jepa else "image_size")
        frames = whole(config, "frames_per_clip" if jepa else "num_frames")
    except ValueError as error:
        raise UserError(f"{file} is not the config of {family.name}: {error}; copy it again") from error
    if wrong := [f"{name} {says} instead of {has}" for name, (says, has) in sizes.items() if says != has]:
        raise UserError(
            f"{weights} does not fit the encoder that {file} describes: {', '.join(wrong)}; keep weights and "
            f"config.json as they were published, in one folder"
        )
    if act != "gelu":
        raise UserError(f'{file} asks for hidden_act "{act}"; our encoder has gelu')
    # published VideoMAE configs say 1e-12 of encoders trained with 1e-6; the outputs differ by less than 1e-5
    if eps > 1e-6:
        raise UserError(f"{file} asks for layer_norm_eps {eps:g}; our encoder has 1e-6")
    if crop != other:
        raise UserError(f"{file} says image_size {crop} x {other}; clips are square here")
    said = _said(file, config.get("tubelet"))
    geometry = Geometry(fps=family.fps, frame_step=family.frame_step) if said is None else said.geometry
    return heads, owned(file.parent, geometry, frames, crop, shape.channels), said


def _pair(config: Mapping[str, Any], name: str) -> tuple[int, ...]:
    return wholes(config, name, 2) if isinstance(config.get(name), list) else (whole(config, name),) * 2


def _empty(file: Path, architecture: Architecture, drawn: bool) -> ViT:
    """A ViT without values, or with those of a first draw."""
    try:
        model = architecture.empty().to_empty(device="cpu")
    except ValueError as error:
        raise UserError(f"{file}: {error}") from error
    if drawn:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model.init_weights()
    return model


def _is_state(value: Any) -> TypeGuard[Mapping[str, Tensor]]:
    """Whether ``value`` is a dictionary of tensors, one at least."""
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _keys(content: Mapping[str, Any]) -> str:
    return ", ".join(map(str, list(content)[:3])) + (", ..." if len(content) > 3 else "")


def _some(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "0"
