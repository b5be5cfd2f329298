"""A query's own vectors, made exactly as those of the table were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tubelet.embed.embed import embed_video
from tubelet.embed.table import ABOUT, Embeddings
from tubelet.errors import UserError
from tubelet.evaluate.head import head_digest
from tubelet.evaluate.source import Views
from tubelet.export.weights import Encoder, load_encoder
from tubelet.train.parallel import resolve_device


def embed_query(
    table: Embeddings,
    path: Path,
    start: float | None = None,
    end: float | None = None,
    device: str = "auto",
    encoder: Encoder | str | Path | None = None,
    head: Path | str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The windows of a stretch of ``path``: [Q, width], and their times, float64 [Q, 2], s.

    By the table's encoder, layer, pool, clips, windows and views. encoder: that encoder, or where it is now.
    head: of a table pooled by one, the same file.
    Raises UserError if the table does not say how it was made, if the encoder or the head is gone or is not the one
    that made the table, and as `embed.embed_video` does.
    """
    about = table.about
    _check_told(table)
    if not isinstance(encoder, Encoder):
        encoder = _load(table, encoder)
    if encoder.digest != about["encoder"]["digest"]:
        raise UserError(
            f"{table.folder} is an index built by another encoder: {about['encoder']['name']}, digest "
            f"{about['encoder']['digest']}; {encoder.name} has {encoder.digest}. Embed the videos again with it, or "
            "put the old weights back"
        )
    _check_head(table, head)
    clip = about["clip"]
    rate = (
        {"fps": clip["fps"]}
        if clip.get("fps") is not None
        else {"fps": None, "frame_step": clip["frame_step"]}
    )
    pixels = {name: tuple(clip[name]) for name in ("mean", "std") if name in clip}
    geometry = replace(encoder.geometry, frames=clip["frames"], crop_size=clip["crop_size"], **rate, **pixels)
    vectors, times = embed_video(
        replace(encoder, geometry=geometry),
        path,
        window=_span(table, "window"),
        stride=_span(table, "stride"),
        layer=about["layer"],
        pool=about["pool"],
        head=head,
        views=Views(**about["views"]),
        start=start,
        end=end,
        device=resolve_device(device),
    )
    return vectors.reshape(len(vectors), -1), times


def _load(table: Embeddings, elsewhere: str | Path | None) -> Encoder:
    """The table's encoder, from where it was or ``elsewhere``, read as it was then or as it says itself by now."""
    named = table.about["encoder"]
    spec = named.get("spec") if elsewhere is None else elsewhere
    if spec is None:
        raise UserError(
            f"the query has to be embedded by the encoder that made {table.folder}, {named['name']} (digest "
            f"{named['digest']}), and the table does not say where that is; say encoder=SPEC (--encoder)"
        )
    knobs = {name: named[name] for name in ("which", "heads", "allow_partial") if named.get(name)}
    found: Encoder | None = None
    failed: UserError | None = None
    for way in [knobs] if elsewhere is None or not knobs else [{}, knobs]:
        try:
            found = load_encoder(spec, **way)
        except UserError as error:
            failed = error
        else:
            if found.digest == named["digest"]:
                return found
    if found is None:
        raise UserError(
            f"the query has to be embedded by the encoder that made {table.folder}, and that cannot be loaded: "
            f"{failed}; put it back at {spec}, say where it is now by encoder=SPEC (--encoder), or ask for windows "
            "that are in the table"
        ) from failed
    return found


def _check_told(table: Embeddings) -> None:
    """Raises UserError for a table that leaves out how its windows were made, as `save_embeddings` allows."""
    about = table.about
    missing = [name for name in ("clip", "pool", "views") if name not in about]
    if (clip := about.get("clip")) is not None:
        missing += [f"clip.{name}" for name in ("frames", "crop_size") if name not in clip]
        missing += ["clip.fps"] if clip.get("fps") is None and "frame_step" not in clip else []
    spans = ("window", "stride")
    missing += [f"{what}_s" for what in spans if not {f"{what}_s", f"{what}_frames"} & about.keys()]
    if about.get("pool") == "attentive" and "head" not in about.get("recipe", {}):
        missing.append("recipe.head")
    if missing:
        raise UserError(
            f"{table.folder / ABOUT} does not say {', '.join(missing)}: nothing can be embedded as its windows were; "
            "ask for windows that are in the table, or write a table that says it"
        )


def _check_head(table: Embeddings, head: Path | str | None) -> None:
    if table.about["pool"] != "attentive":
        return
    if head is None:
        raise UserError(f"{table.folder} is pooled by a trained head; give the same one as head=FOLDER")
    made = table.about["recipe"]["head"]
    if (digest := head_digest(head)) != made:
        raise UserError(f"{table.folder} was pooled by another head (digest {made}) than {head} ({digest})")


def _span(table: Embeddings, what: str) -> str | int:
    """As the table was cut: "4s", or a number of frames."""
    about = table.about
    return f"{about[f'{what}_s']}s" if f"{what}_s" in about else int(about[f"{what}_frames"])
