"""The encoder on disk, and back: `encoder/` holds weights (safetensors) and `encoder.json`, nothing else.

Everything after pretraining names an encoder by a string that `load_encoder` understands: a run folder, its
``encoder/`` folder, one of its checkpoints, a published file or folder of weights, ``hf://OWNER/NAME``,
``random:MODEL`` or ``pixels``.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tubelet.errors import UserError, nearest
from tubelet.export.foreign import is_foreign, read_foreign
from tubelet.export.geometry import Geometry
from tubelet.export.hub import SCHEME, pull
from tubelet.export.stored import read_tensors, weights_file
from tubelet.files import read_json, replace_folder, write_json
from tubelet.nn.pixels import Pixels
from tubelet.nn.tokens import build_positions, name_positions
from tubelet.nn.vit import ViT, build_vit
from tubelet.tensors import write_tensors

FORMAT = 1
UNTRAINED = "random initialisation"  # the source of such weights


@dataclass(frozen=True)
class Encoder:
    """A loaded encoder: the model, the clips it expects, what it is called and where it came from.

    digest: a hash of weights and architecture; features cached under it can never be another encoder's. named: what
    `load_encoder` was asked for ("spec", paths absolute, "which", "heads", "allow_partial"), so that it can be asked
    again; empty for a model that was not loaded.
    """

    model: ViT | Pixels
    geometry: Geometry
    name: str
    digest: str
    provenance: dict[str, Any] = field(default_factory=dict)
    named: dict[str, Any] = field(default_factory=dict)

    def embed_video(self, path: Path | str, **knobs: Any) -> tuple[np.ndarray, np.ndarray]:
        """The windows of one video: their vectors, float32 [N, ...], and times, float64 [N, 2], from and to, s.

        knobs: window, stride, layer, pool, head, views, start, end, batch_size and device, of
        `tubelet.embed.embed.embed_video`, which this is, errors included.
        """
        # What is above may be asked for from here because a loaded encoder is what people hold in their hands; nothing
        # of it is loaded, and nothing here depends on it, until somebody asks.
        from tubelet.embed.embed import embed_video

        return embed_video(self, path, **knobs)


def digest(model: ViT | Pixels) -> str:
    """16 hex digits over architecture, names, shapes and bytes of all weights."""
    seen = hashlib.sha256(json.dumps(architecture_of(model), sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        seen.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        seen.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()[:16]


def save_encoder(model: ViT, folder: Path, geometry: Geometry, provenance: dict[str, Any]) -> None:
    """Writes ``folder`` whole or not at all: `model.safetensors` (float32) and `encoder.json`.

    An earlier ``folder`` is replaced only once the new one is complete. Raises UserError if the disk is full.
    """
    with replace_folder(folder) as new:
        write_encoder(model, new, geometry, provenance)


def write_encoder(model: ViT, folder: Path, geometry: Geometry, provenance: dict[str, Any]) -> None:
    """As `save_encoder`, into a folder that is there: for whoever writes more into it, or looks before it counts.

    Raises OSError if the disk is full.
    """
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}
    write_tensors(folder / "model.safetensors", state)
    about = {
        "format": FORMAT,
        "architecture": architecture_of(model),
        "geometry": asdict(geometry),
        "digest": digest(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "provenance": provenance,
    }
    write_json(folder / "encoder.json", about)


def load_encoder(
    spec: str | Path,
    geometry: Geometry | None = None,
    which: str | None = None,
    allow_partial: bool = False,
    heads: int | None = None,
) -> Encoder:
    """The encoder that ``spec`` names, in eval mode on the CPU.

    spec: a run folder, an ``encoder/`` folder, a checkpoint folder; a published file or folder of weights
    (docs/weights.md); ``hf://OWNER/NAME``, such a folder on the Hugging Face hub; ``random:MODEL[@SEED]`` for
    untrained weights; ``random:RUN[@SEED]`` for untrained weights of that run's architecture and geometry; ``pixels``
    or ``pixels:RUN`` for the raw-pixel baseline. geometry: overrides what is stored. which: of a run with several
    encoders, the one to load, such as "teacher" or "student" (default: the one its method recommends); of a V-JEPA
    file, "target_encoder", "encoder" or "ema_encoder".
    allow_partial, heads: for published weights alone, see `tubelet.export.foreign.read_foreign`.
    Raises UserError if there is nothing to load, if a file is damaged, or if weights do not fit exactly.
    """
    found = _load(spec, geometry, which, allow_partial, heads)
    named = {"spec": _lasting(spec), "which": which, "heads": heads, "allow_partial": allow_partial}
    return replace(found, named=named)


def _lasting(spec: str | Path) -> str:
    """``spec`` so that it is understood in any folder."""
    text = str(spec)
    kind, colon, rest = text.partition(":")
    if kind in ("random", "pixels"):
        like, at, seed = rest.partition("@")
        return f"{kind}:{Path(like).absolute()}{at}{seed}" if colon and Path(like).is_dir() and like else text
    return text if text.startswith(SCHEME) else str(Path(spec).absolute())


def _load(
    spec: str | Path, geometry: Geometry | None, which: str | None, allow_partial: bool, heads: int | None
) -> Encoder:
    text = str(spec)
    if text.partition(":")[0] in ("random", "pixels"):
        return _untrained(text, geometry)
    if text.startswith(SCHEME):
        folder, revision = pull(text)
        pulled = _load(folder, geometry, which, allow_partial, heads)
        about = {**pulled.provenance, "source": text, "revision": revision}
        return replace(pulled, name=text.removeprefix(SCHEME), provenance=about)
    if _is_resaved(Path(spec)):
        return _resaved(Path(spec), geometry)
    if is_foreign(Path(spec)):
        foreign = read_foreign(Path(spec), which, allow_partial, heads)
        found = _finish(foreign.model, geometry or foreign.geometry, foreign.name, foreign.provenance)
        if foreign.digest not in (None, found.digest):
            raise UserError(
                f"{spec}: its weights are not those that were exported into it (digest {found.digest} instead of "
                f"{foreign.digest}); it is damaged or was changed: export it again"
            )
        return found
    folder = _find(Path(spec), which)
    about = read_json(folder / "encoder.json")
    if about.get("format") != FORMAT:
        raise UserError(
            f"{folder / 'encoder.json'} has format {about.get('format')}, this version reads {FORMAT}; load it with "
            "the version that wrote it, or update tubelet"
        )
    try:
        model = _build(about["architecture"])
        stored = _stored_geometry(about)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'encoder.json'} is not an encoder of this version: {error!r}") from error
    _load_exactly(model, folder / "model.safetensors")
    name = about.get("provenance", {}).get("name", folder.parent.name)
    found = _finish(model, geometry or stored, name, about.get("provenance", {}))
    if found.digest != about.get("digest"):
        raise UserError(
            f"{folder / 'model.safetensors'}: its weights are not those that encoder.json describes (digest "
            f"{found.digest} instead of {about.get('digest')}); one of the two is damaged or of another encoder: copy "
            "both again"
        )
    return found


def _is_resaved(folder: Path) -> bool:
    """Whether ``folder`` is an export of ours for transformers, saved again by it: no `encoder.json`, our own type."""
    config = folder / "config.json"
    if (folder / "encoder.json").is_file() or not config.is_file():
        return False
    return read_json(config).get("model_type") == "tubelet" and not any(folder.glob("encoder*/encoder.json"))


def _resaved(folder: Path, geometry: Geometry | None) -> Encoder:
    """Such a folder: its weights may be others by now, so no digest is expected of them."""
    file = folder / "config.json"
    about = read_json(file)
    try:
        said = about["tubelet"]
        model, stored = _build(said["architecture"]), _stored_geometry(said)
        provenance = {**said["provenance"], "saved_again": "by transformers"}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is not the config of an export of this version: {error!r}") from error
    _load_exactly(model, weights_file(folder))
    return _finish(model, geometry or stored, str(provenance.get("name", folder.name)), provenance)


def _find(path: Path, which: str | None) -> Path:
    """The folder that holds encoder.json, below a run, a checkpoint, or itself."""
    if not path.exists():
        raise UserError(
            f"{path} does not exist; an encoder is a run folder, an encoder/ folder, a checkpoint, a "
            f'file or folder of published weights, "hf://OWNER/NAME", "random:vit_tiny" or "pixels"'
        )
    if (path / "encoder.json").is_file() and which is None:
        return path
    root = path.parent if (path / "encoder.json").is_file() else path
    found = sorted(p.parent.name for p in root.glob("encoder*/encoder.json"))
    if not found:
        cure = (
            "; the run has not finished: name one of its checkpoints"
            if (path / "checkpoints").is_dir()
            else ""
        )
        raise UserError(f"{path} holds no encoder (no encoder/encoder.json below it){cure}")
    wanted = "encoder" if which is None else f"encoder-{which}"
    if wanted not in found:
        names = [name.removeprefix("encoder-") for name in found if name != "encoder"]
        main: str | None = None
        if "encoder" in found:
            main = read_json(root / "encoder" / "encoder.json")["provenance"].get("which")
        if which is not None and which == main:
            return root / "encoder"
        known = sorted({*names, main} if main else names)
        raise UserError(
            f'{path} has no encoder "{which}"{nearest(str(which), known)}; it has: {", ".join(known)}'
        )
    return root / wanted


def _untrained(text: str, geometry: Geometry | None) -> Encoder:
    """random:MODEL[@SEED], random:RUN[@SEED], pixels, pixels:RUN."""
    kind, _, rest = text.partition(":")
    like, _, seed = rest.partition("@")
    if seed and not seed.isdigit():
        raise UserError(f'"{text}": the seed after @ must be a whole number, not "{seed}"')
    about = None
    if like and Path(like).is_dir():
        about = read_json(_find(Path(like), None) / "encoder.json")
        geometry = geometry or _stored_geometry(about)
    if kind == "pixels":
        if like and about is None:
            raise UserError(f'"{text}": {like} is no run; write "pixels", or "pixels:" and a run folder')
        model = Pixels(tuple(about["architecture"]["patch"])) if about else Pixels()
        return _finish(model, geometry or Geometry(), text, {"source": "raw pixels"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed or 0))
        try:
            model = _build(about["architecture"]) if about else build_vit(like)
        except ValueError as error:
            raise UserError(str(error)) from error
        model.init_weights()
    return _finish(model, geometry or Geometry(), text, {"source": UNTRAINED})


def _stored_geometry(about: dict[str, Any]) -> Geometry:
    stored: dict[str, Any] = about["geometry"]
    return Geometry(**{**stored, "mean": tuple(stored["mean"]), "std": tuple(stored["std"])})


def _finish(model: ViT | Pixels, geometry: Geometry, name: str, provenance: dict[str, Any]) -> Encoder:
    model.requires_grad_(False).eval()
    return Encoder(model, geometry, name, digest(model), provenance)


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


def _build(about: dict[str, Any]) -> ViT:
    about = dict(about)
    if about.pop("kind") != "vit":
        raise ValueError("only ViT encoders are stored")
    positions = build_positions(about.pop("positions"), about.pop("positions_base"))
    patch = tuple(about.pop("patch"))
    with torch.device("meta"):
        model = ViT(**about, patch=patch, positions=positions)
    return model.to_empty(device="cpu")


def _load_exactly(model: ViT, file: Path) -> None:
    """Every tensor of the model from the file, every tensor of the file into the model, or an error."""
    state = read_tensors(file)
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
            f"{file} does not fit the encoder described beside it: {len(missing)} tensors missing {missing[:3]}, "
            f"{len(surplus)} unexpected {surplus[:3]}, {len(shapes)} of another shape {shapes[:3]}"
        )
    model.load_state_dict(state)
