"""What is said of an encoder beside its weights: by its `encoder.json`, and under "tubelet" in exports of ours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tubelet.export.architecture import Architecture, read_architecture
from tubelet.export.geometry import Geometry, read_geometry
from tubelet.export.numbers import entry, named


@dataclass(frozen=True)
class Record:
    """The encoder's sizes, its clips, where it comes from, and the digest of the weights that it was written with."""

    architecture: Architecture
    geometry: Geometry
    provenance: dict[str, Any]
    digest: str


def read_record(about: Any) -> Record:
    """The record in ``about``; raises ValueError, which names what is missing or wrong."""
    about = named(about, "it")
    architecture = read_architecture(entry(about, "architecture"))
    provenance = named(entry(about, "provenance"), "provenance")
    try:
        json.dumps(provenance)  # what is no text or number could not be written with the encoder
    except TypeError as error:
        raise ValueError(f"provenance: {error}") from error
    if not isinstance(digest := entry(about, "digest"), str):
        raise ValueError("digest is no text")
    return Record(architecture, read_geometry(entry(about, "geometry")), provenance, digest)
