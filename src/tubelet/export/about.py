"""What every exported file says of its weights: whose they are, where they come from, which clips they expect."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

from tubelet.export.architecture import architecture_of
from tubelet.export.weights import Encoder

NOTE = "export.json"
# as in "random:/home/RUN@1" and "ssv2:/home/ssv2"; in "hf://OWNER/NAME" a host follows, no folder
_WORDS = re.compile(r"(\w[\w.+-]*:(?!//[^/]))+")


def with_origin(encoder: Encoder) -> dict[str, Any]:
    """provenance with the encoder's name, and "licence" and "source": "unknown" where nobody said."""
    known = encoder.provenance
    return {
        **known,
        "name": encoder.name,
        "licence": known.get("licence") or "unknown",
        "source": known.get("source") or known.get("name") or "unknown",
    }


def about(encoder: Encoder) -> dict[str, Any]:
    """What goes beside or into a file of another format, ready for JSON; of paths the last part alone.

    Such a file leaves the machine, and the folders of that machine are nobody's business.
    """
    return {
        "tubelet": version("tubelet"),
        "digest": encoder.digest,
        "architecture": architecture_of(encoder.model),
        "geometry": asdict(encoder.geometry),
        "provenance": {name: _last(value) for name, value in encoder.provenance.items()},
    }


def note(encoder: Encoder) -> str:
    """`about` as JSON."""
    return json.dumps(about(encoder), indent=2, ensure_ascii=False) + "\n"


def _last(value: Any) -> Any:
    """Of an absolute path its last part, also after words with a colon; all else as it is."""
    if not isinstance(value, str):
        return value
    found = None if PurePath(value).is_absolute() else _WORDS.match(value)
    words = "" if found is None else found[0]
    path = PurePath(value.removeprefix(words))
    return f"{words}{path.name}" if path.is_absolute() else value
