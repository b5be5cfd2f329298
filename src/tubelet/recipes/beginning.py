"""What a run begins with instead of random weights: the encoder that ``init_from`` names."""

from __future__ import annotations

from pathlib import Path

from tubelet.errors import UserError, mendable
from tubelet.export.weights import Encoder, Geometry, load_encoder
from tubelet.methods.method import Method
from tubelet.nn.tokens import build_positions, name_positions
from tubelet.nn.vit import MODELS, Size, ViT, parse_size
from tubelet.recipes.knobs import Knobs
from tubelet.train.checkpoint import found, read_state


def taken_up(knobs: Knobs) -> Path | None:
    """The checkpoint that a resumed run goes on from; None for a run that starts now."""
    kept = found(Path(knobs.out) / "checkpoints") if knobs.resume else []
    return kept[-1] if kept else None


def read_source(knobs: Knobs) -> Encoder:
    """The encoder ``init_from``: its own architecture holds, and knobs that contradict it are refused.

    A run that is resumed has it in its checkpoints, where all that is needed of it is said; the weights themselves are
    in the checkpoint. Raises UserError for one without weights, and for knobs that ask for another architecture.
    """
    assert knobs.init_from is not None
    patch = (knobs.tubelet_size, knobs.patch_size, knobs.patch_size)
    if (kept := taken_up(knobs)) is not None:
        try:
            encoder = load_encoder(kept / "encoder")
        except UserError:
            read_state(kept)  # of a damaged checkpoint it knows the cure
            raise
    else:
        encoder = load_encoder(
            knobs.init_from, None, knobs.init_which, knobs.init_allow_partial, knobs.init_heads
        )
    loaded = encoder.model
    if not isinstance(loaded, ViT):
        raise UserError(f"init_from={knobs.init_from} has no weights; name a run or an encoder folder")
    if loaded.patch != patch:
        raise UserError(
            f"init_from={knobs.init_from} cuts clips into {loaded.patch} tubelets, the knobs ask for {patch}; "
            f"set tubelet_size={loaded.patch[0]} patch_size={loaded.patch[1]}"
        )
    if knobs.model is not None:
        with mendable():
            size = parse_size(knobs.model)
        if (size.dim, size.depth) != (loaded.dim, loaded.depth):
            raise UserError(
                f"init_from={knobs.init_from} is {loaded.dim} wide and {loaded.depth} deep, model={knobs.model} "
                f"{size.dim} and {size.depth}; leave model out"
            )
    name, base = name_positions(loaded.positions)
    other = build_positions(knobs.positions or name, knobs.positions_base)
    if (knobs.positions or knobs.positions_base != Knobs.positions_base) and loaded.positions != other:
        raise UserError(
            f"init_from={knobs.init_from} was trained with positions={name} positions_base={base:g}, not with "
            f"positions={knobs.positions or name} positions_base={knobs.positions_base:g}; leave them out"
        )
    if knobs.init_std is not None:
        raise UserError(
            f"init_std={knobs.init_std} is for new weights, init_from brings its own; leave it out"
        )
    return encoder


def begins_with(source: Encoder) -> ViT:
    """The weights of ``source``, to be trained."""
    assert isinstance(source.model, ViT)
    return source.model.requires_grad_(True).train()


def size_of(encoder: ViT) -> str:
    """What `nn.vit.parse_size` reads as the encoder's size: its model's name, or its numbers."""
    size = Size(encoder.dim, encoder.depth, encoder.heads, encoder.hidden)
    named = [name for name, known in MODELS.items() if known == size]
    mlp = "" if size.hidden == 4 * size.dim else f"x{size.hidden}"
    return named[0] if named else f"{size.dim}x{size.depth}x{size.heads}{mlp}"


def continues(knobs: Knobs, method: Method, source: Encoder, clips: Geometry) -> str:
    """What comes from ``init_from`` and what does not, and what it has not seen. clips: those of the run."""
    about, before = source.provenance, source.geometry
    new = [
        name
        for name, part in method.named_children()
        if part is not method.encoder and any(p.requires_grad for p in part.parameters())
    ]
    trained = about.get("source", "unknown")
    if "recipe" in about:
        trained = f"{about['recipe']}, step {about.get('step', 'unknown')}"
    told = (
        f"encoder and its positions ({name_positions(method.encoder.positions)[0]}) from {knobs.init_from} "
        f"({trained}); new, with random weights: {', '.join(new)}; licence: {about.get('licence') or 'unknown'}"
    )
    if (before.frames, before.crop_size) != (clips.frames, clips.crop_size):
        told += (
            f"; it knows clips of {before.frames} frames and {before.crop_size} pixels, and goes on with "
            f"{clips.frames} and {clips.crop_size}"
        )
    if _rate(before) != _rate(clips):
        told += f"; it knows {_rate(before)}, and goes on with {_rate(clips)}"
    if (before.mean, before.std) != (clips.mean, clips.std):
        told += (
            f"; pixels were normalised by {before.mean} and {before.std}, now by {clips.mean} and {clips.std}"
        )
    return told


def _rate(clips: Geometry) -> str:
    return f"one frame in {clips.frame_step}" if clips.fps is None else f"{clips.fps:g} frames a second"
