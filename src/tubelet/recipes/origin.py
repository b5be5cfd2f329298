"""Whose weights new ones are made of, and under which licence that leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tubelet.export.weights import load_encoder
from tubelet.recipes.knobs import Knobs

OWN = "yours: trained from scratch"
UNKNOWN = "unknown"
AND = " and "


def origin(
    knobs: Knobs, source: Mapping[str, Any] | None, teacher: Mapping[str, Any] | None
) -> dict[str, str]:
    """ "licence" of the weights to be trained, "began_from" and "taught_by": whose weights they are made of, if any.

    A licence binds what is made from the weights, so it goes from run to run, to whatever is exported in the end;
    where weights and teacher have two, both are named. What the user says goes before all that. (Ours.)

    source, teacher: provenance of the encoder of ``init_from``, and of a finished one whose latents are predicted.
    """
    began = _branched(knobs) if knobs.branch_from is not None else source
    found = {"began_from": began, "taught_by": teacher}
    made = {name: about for name, about in found.items() if about is not None}
    # what weights or a teacher were made from may have had two already
    licences = [part for about in made.values() for part in str(about.get("licence") or UNKNOWN).split(AND)]
    bound = dict.fromkeys(licence for licence in licences if licence != OWN)
    return {
        "licence": knobs.licence or AND.join(bound) or OWN,
        **{name: _whose(about) for name, about in made.items()},
    }


def _branched(knobs: Knobs) -> dict[str, Any]:
    """What the encoder beside the checkpoint ``branch_from`` says; one that was taken away is no reason to stop."""
    folder = Path(str(knobs.branch_from))
    return load_encoder(folder).provenance if (folder / "encoder" / "encoder.json").is_file() else {}


def _whose(about: Mapping[str, Any]) -> str:
    return str(about.get("began_from") or about.get("source") or about.get("name") or UNKNOWN)
