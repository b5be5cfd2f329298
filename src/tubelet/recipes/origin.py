"""Whose weights new ones are made of, and under which licence that leaves them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tubelet.export.weights import UNTRAINED, load_encoder
from tubelet.files import read_json
from tubelet.recipes.beginning import taken_up
from tubelet.recipes.knobs import Knobs

OWN = "yours: trained from scratch"
UNKNOWN = "unknown"
AND = " and "
SAID = ("licence", "licence_link", "began_from", "taught_by")

log = logging.getLogger("tubelet")


def origin(
    knobs: Knobs, source: Mapping[str, Any] | None, teacher: Mapping[str, Any] | None
) -> dict[str, str]:
    """What provenance says of weights to be trained: names of `SAID`, "licence" always.

    began_from: whose weights they began as. taught_by: whose latents they learn to predict, if somebody else's. A
    licence binds what is made from the weights, so it goes from run to run, to whatever is exported in the end; where
    weights and teacher have two, both are named. What the user says goes before all that, and a run that is resumed
    stays what it was. (Ours.)

    source, teacher: provenance of the encoder of ``init_from``, and of a finished one whose latents are predicted.
    """
    given = {} if knobs.licence is None else {"licence": knobs.licence}
    if (kept := taken_up(knobs)) is not None:
        about = read_json(kept / "encoder" / "encoder.json")["provenance"]
        return {**{name: about[name] for name in SAID if name in about}, **given}
    began = _somebodys(source if knobs.branch_from is None else _branched(Path(knobs.branch_from)))
    teacher = _somebodys(teacher)
    made = [about for about in (began, teacher) if about is not None]
    licences = [str(about.get("licence") or UNKNOWN) for about in made]
    said = {"licence": _joined([licence for licence in licences if licence != OWN]) or OWN, **given}
    if not given and (links := [about["licence_link"] for about in made if "licence_link" in about]):
        said["licence_link"] = links[0]
    taught = []
    if began is not None:
        said["began_from"] = _whose(began)
        taught += [began["taught_by"]] if "taught_by" in began else []
    if teacher is not None and teacher.get("licence") != OWN:
        taught.append(_whose(teacher))
    return {**said, "taught_by": _joined(taught)} if taught else said


def _joined(words: list[str]) -> str:
    """Each once; one that another has joined to more is not said again."""
    once = dict.fromkeys(words)
    return AND.join(
        word for word in once if not any(word in other.split(AND) for other in once if other != word)
    )


def _somebodys(about: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """``about``, but for random weights, which are nobody's."""
    return None if about is None or about.get("source") == UNTRAINED else about


def _branched(checkpoint: Path) -> dict[str, Any]:
    """What the encoder beside a checkpoint says; one that was taken away is no reason to stop."""
    if not (checkpoint / "encoder" / "encoder.json").is_file():
        log.warning(
            f"{checkpoint} has no encoder beside it, so the licence of its weights is unknown; --licence says it"
        )
        return {}
    return load_encoder(checkpoint).provenance


def _whose(about: Mapping[str, Any]) -> str:
    return str(about.get("began_from") or about.get("source") or about.get("name") or UNKNOWN)
