"""A trained attentive pooler as a file, so that windows can be pooled by it."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from tubelet.errors import UserError
from tubelet.export.weights import Encoder
from tubelet.files import replace_file
from tubelet.nn.heads import AttentiveClassifier, AttentivePooler


def write_head(file: Path | str, head: AttentiveClassifier, encoder: Encoder, layer: int) -> None:
    """Writes a head that was trained on ``encoder``'s tokens at ``layer``, such as `AttentiveResult.head`.

    safetensors with the names of its ``state_dict()``; metadata: `heads` of its attention, `encoder` (its digest) and
    `layer`. Raises UserError if the disk is full.
    """
    about = {"heads": str(head.pooler.heads), "encoder": encoder.digest, "layer": str(layer)}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    with replace_file(Path(file)) as draft:
        save_file(state, draft, about)


def read_head(file: Path | str, encoder: Encoder, layer: int) -> AttentivePooler:
    """The pooler of a head that `write_head` has written, in eval mode on the CPU.

    Raises UserError if there is none, or if it was trained on another encoder's tokens or on another layer's.
    """
    path = Path(file)
    try:
        with safe_open(path, framework="pt") as stored:
            about = stored.metadata() or {}
            state = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); give a head that write_head has written"
        ) from error
    if missing := {"heads", "encoder", "layer"} - about.keys():
        raise UserError(
            f"{path} does not say its {', '.join(sorted(missing))}; give a head that write_head has written"
        )
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
