"""The encoder on disk, and back: `encoder/` holds weights (safetensors) and `encoder.json`, nothing else.

Everything after pretraining names an encoder by a string that `load_encoder` understands: a run folder, its
``encoder/`` folder, one of its checkpoints, a published file or folder of weights, ``hf://OWNER/NAME``,
``random:MODEL`` or ``pixels``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tubelet.errors import UserError, nearest
from tubelet.export.architecture import architecture_of
from tubelet.export.exact import empty_exactly, load_exactly
from tubelet.export.foreign import is_foreign, read_foreign
from tubelet.export.geometry import Geometry
from tubelet.export.hub import SCHEME, pull
from tubelet.export.numbers import whole
from tubelet.export.owner import owned, read_card
from tubelet.export.record import Record, read_record
from tubelet.export.stored import INDEX, SUFFIXES, weights_file
from tubelet.files import read_json, replace_folder, write_json
from tubelet.nn.pixels import Pixels
from tubelet.nn.vit import ViT, build_vit
from tubelet.tensors import write_tensors

FORMAT = 1
CONFIG = "config.json"  # of a folder for transformers
MADE = ("random", "pixels")  # what encoders are called that are made here, of no weights
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
    """16 hex digits over architecture, names, types, shapes and bytes of all weights."""
    return _digest(model, model.state_dict())


def _digest(model: ViT | Pixels, state: Mapping[str, Tensor]) -> str:
    seen = hashlib.sha256(json.dumps(architecture_of(model), sort_keys=True).encode())
    for name, tensor in sorted(state.items()):
        seen.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        seen.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()[:16]


def save_encoder(model: ViT, folder: Path, geometry: Geometry, provenance: dict[str, Any]) -> None:
    """Writes ``folder`` whole or not at all: `model.safetensors` (float32) and `encoder.json`.

    The digest in it is that of what is written, which for a model of another type is not the model's own. An earlier
    ``folder`` is replaced only once the new one is complete. Raises UserError if the disk is full.
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
        "digest": _digest(model, state),
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
    if kind in MADE:
        like, at, seed = rest.partition("@")
        return f"{kind}:{Path(like).absolute()}{at}{seed}" if colon and Path(like).is_dir() and like else text
    return text if text.startswith(SCHEME) else str(Path(spec).absolute())


def _load(
    spec: str | Path, geometry: Geometry | None, which: str | None, allow_partial: bool, heads: int | None
) -> Encoder:
    text = str(spec)
    if text.partition(":")[0] in MADE:
        _refuse(text, "is made here, and no file is read for it", which, allow_partial, heads)
        return _untrained(text, geometry)
    if text.startswith(SCHEME):
        folder, revision = pull(text)
        pulled = _load(folder, geometry, which, allow_partial, heads)
        about = {**pulled.provenance, "source": text, "revision": revision}
        return replace(pulled, name=text.removeprefix(SCHEME), provenance=about)
    ours = "is an encoder of ours: it says what it is, and must fit whole"
    if _is_resaved(Path(spec)):
        _refuse(text, ours, which, allow_partial, heads)
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
    _refuse(text, ours, None, allow_partial, heads)
    record = _recorded(folder)
    model = load_exactly(record.architecture, folder / "model.safetensors")
    if _is_ours(folder):
        record = _owned(folder, record)
    name = str(record.provenance.get("name", folder.parent.name))
    found = _finish(model, geometry or record.geometry, name, record.provenance)
    if found.digest != record.digest:
        raise UserError(
            f"{folder / 'model.safetensors'}: its weights are not those that encoder.json describes (digest "
            f"{found.digest} instead of {record.digest}); one of the two is damaged or of another encoder: copy both "
            "again"
        )
    return found


def _refuse(spec: str, why: str, which: str | None, allow_partial: bool, heads: int | None) -> None:
    """Raises UserError for a knob of published weights that was given for what has none."""
    given = {"which": which, "allow_partial": allow_partial or None, "heads": heads}
    for knob, value in given.items():
        if value is not None:
            raise UserError(f"{knob}={value}: {spec} {why}; leave {knob} out")


def _recorded(folder: Path) -> Record:
    """What `encoder.json` says; raises UserError unless it is whole and of this version."""
    file = folder / "encoder.json"
    about = read_json(file)
    if about.get("format") != FORMAT:
        raise UserError(
            f"{file} has format {about.get('format')}, this version reads {FORMAT}; load it with the version that "
            "wrote it, or update tubelet"
        )
    try:
        return read_record(about)
    except ValueError as error:
        raise UserError(f"{file} is not an encoder of this version: {error}; copy it again") from error


def _is_ours(folder: Path) -> bool:
    """Whether ``folder`` is an export of ours for transformers whose code it brings along."""
    config = folder / CONFIG
    return config.is_file() and read_json(config).get("model_type") == "tubelet"


def _owned(folder: Path, record: Record) -> Record:
    """``record`` with what the folder's owner may have changed since: licence, frames and crop, mean and std."""
    file, channels = folder / CONFIG, record.architecture.shape.channels
    config = read_json(file)
    try:
        frames, crop_size = whole(config, "frames_per_clip"), whole(config, "crop_size")
    except ValueError as error:
        raise UserError(f"{file} is not the config of an encoder: {error}; export it again") from error
    geometry = owned(folder, record.geometry, frames, crop_size, channels)
    return replace(record, geometry=geometry, provenance=read_card(folder, record.provenance))


def _is_resaved(folder: Path) -> bool:
    """Whether ``folder`` is an export of ours for transformers, saved again by it: no `encoder.json`, our own type."""
    if (folder / "encoder.json").is_file() or any(folder.glob("encoder*/encoder.json")):
        return False
    return _is_ours(folder)


def _resaved(folder: Path, geometry: Geometry | None) -> Encoder:
    """Such a folder: its weights may be others by now, so no digest is expected of them."""
    file = folder / CONFIG
    try:
        record = read_record(read_json(file).get("tubelet"))
    except ValueError as error:
        raise UserError(
            f'{file} is not the config of an export of this version ("tubelet": {error}); export it again'
        ) from error
    record = _owned(folder, record)
    model = load_exactly(record.architecture, weights_file(folder))
    provenance = {**record.provenance, "saved_again": "by transformers"}
    return _finish(model, geometry or record.geometry, str(provenance.get("name", folder.name)), provenance)


def _find(path: Path, which: str | None) -> Path:
    """The folder that holds encoder.json, below a run, a checkpoint, or itself."""
    if not path.exists():
        raise UserError(
            f"{path} does not exist; an encoder is a run folder, an encoder/ folder, a checkpoint, a "
            f'file or folder of published weights, "hf://OWNER/NAME", "random:vit_tiny" or "pixels"'
        )
    if path.is_file():
        raise UserError(
            f"{path} is no encoder: the files of weights that are read end in {', '.join(SUFFIXES)} or "
            f".safetensors{INDEX}; name one of those, or call it so if it is one"
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
    record = empty = None
    if like and Path(like).is_dir():
        folder = _find(Path(like), None)
        record = _recorded(folder)
        geometry = geometry or record.geometry
        if kind == "random":
            empty = empty_exactly(record.architecture, folder / "model.safetensors")
    if kind == "pixels":
        if like and record is None:
            raise UserError(f'"{text}": {like} is no run; write "pixels", or "pixels:" and a run folder')
        model = Pixels(record.architecture.shape.patch) if record else Pixels()
        return _finish(model, geometry or Geometry(), text, {"source": "raw pixels"})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed or 0))
        try:
            model = build_vit(like) if empty is None else empty.to_empty(device="cpu")
        except ValueError as error:
            raise UserError(str(error)) from error
        model.init_weights()
    return _finish(model, geometry or Geometry(), text, {"source": UNTRAINED})


def _finish(model: ViT | Pixels, geometry: Geometry, name: str, provenance: dict[str, Any]) -> Encoder:
    model.requires_grad_(False).eval()
    return Encoder(model, geometry, name, digest(model), provenance)
