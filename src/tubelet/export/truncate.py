"""An encoder cut short: its first blocks, and the final norm."""

from __future__ import annotations

from tubelet.errors import UserError
from tubelet.export.weights import Encoder, digest
from tubelet.nn.vit import ViT


def truncated(encoder: Encoder, layers: int) -> Encoder:
    """The first ``layers`` blocks of ``encoder`` and its final norm, an encoder of its own (a copy).

    Its output equals ``encoder.model.layers(clip, [layers], normed=True)[layers]`` exactly. provenance gains
    "cut_from", the whole encoder's digest, and "layers", how many of how many. Raises UserError unless
    1 <= layers <= depth, and for raw pixels, which have no blocks.
    """
    model = encoder.model
    if not isinstance(model, ViT):
        raise UserError(f"{encoder.name} has no blocks to keep or cut; name a run or a file of weights")
    if not 1 <= layers <= model.depth:
        raise UserError(f"{layers} blocks asked of {encoder.name}, which has 1 to {model.depth} to keep")
    cut = ViT(
        model.dim,
        layers,
        model.heads,
        model.hidden,
        model.patch,
        model.channels,
        model.positions,
        model.init_std,
    )
    whole = model.state_dict()
    cut.load_state_dict({name: whole[name] for name in cut.state_dict()})
    cut.requires_grad_(False).eval()
    name = f"{encoder.name}, {layers} of {model.depth} blocks"
    provenance = {
        **encoder.provenance,
        "name": name,
        "cut_from": encoder.digest,
        "layers": f"{layers} of {model.depth}",
    }
    return Encoder(cut, encoder.geometry, name, digest(cut), provenance)
