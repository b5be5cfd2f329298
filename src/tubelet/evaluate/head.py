"""A trained attentive head as a file, so that others can be pooled by what one probe has learned."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from tubelet.errors import UserError
from tubelet.export.weights import Encoder
from tubelet.files import replace_file
from tubelet.nn.heads import AttentiveClassifier, AttentivePooler
from tubelet.tensors import write_tensors

HEAD = "head.safetensors"
CURE = "give the folder of an attentive probe that kept its head (without folds, on one layer), or that file"


def write_head(file: Path | str, head: AttentiveClassifier, digest: str, layer: int) -> None:
    """Writes a head that was trained on tokens at ``layer`` of the encoder with that ``digest``.

    safetensors with the names of its ``state_dict()``; metadata: `heads` of its attention, `encoder` (the digest) and
    `layer`. Raises UserError if the disk is full.
    """
    about = {"heads": str(head.pooler.heads), "encoder": digest, "layer": str(layer)}
    with replace_file(Path(file)) as draft:
        write_tensors(draft, head.state_dict(), about)


def head_file(place: Path | str) -> Path:
    """The file that ``place`` is, or that a probe has left in it; raises UserError if there is none."""
    path = Path(place)
    file = path / HEAD if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path} holds no trained head; {CURE}")
    return file


def head_digest(place: Path | str) -> str:
    """16 hex digits over the bytes of the head at ``place``; raises UserError if there is none."""
    return hashlib.sha256(head_file(place).read_bytes()).hexdigest()[:16]


def read_head(place: Path | str, encoder: Encoder, layer: int) -> AttentivePooler:
    """The pooler of a head that `write_head` has written, in eval mode on the CPU. place: the file, or its folder.

    Raises UserError if there is none, or if it was trained on another encoder's tokens or on another layer's.
    """
    path = head_file(place)
    try:
        with safe_open(path, framework="pt") as stored:
            about = stored.metadata() or {}
            state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); {CURE}") from error
    if missing := {"heads", "encoder", "layer"} - about.keys():
        raise UserError(f"{path} does not say its {', '.join(sorted(missing))}; {CURE}")
    if about["encoder"] != encoder.digest or about["layer"] != str(layer):
        raise UserError(
            f"{path} was trained on layer {about['layer']} of encoder {about['encoder']}, and asked for is layer "
            f"{layer} of {encoder.digest} ({encoder.name}); give the head of this encoder and layer"
        )
    own = {name.removeprefix("pooler."): t for name, t in state.items() if name.startswith("pooler.")}
    depth = 1 + len({name.split(".")[1] for name in own if name.startswith("blocks.")})
    with torch.random.fork_rng(devices=[]):
        pooler = AttentivePooler(encoder.model.dim, int(about["heads"]), depth)
    try:
        pooler.load_state_dict(own)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit an attentive pooler: {error}") from error
    return pooler.requires_grad_(False).eval()
