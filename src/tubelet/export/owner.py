"""What the owner of a folder for transformers says beside its weights, and may change: licence, clips, pixels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tubelet.errors import UserError
from tubelet.export.geometry import Geometry
from tubelet.export.numbers import finite, positives
from tubelet.files import read_json

PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")


def owned(folder: Path, geometry: Geometry, frames: int, crop_size: int, channels: int) -> Geometry:
    """``geometry`` with frames and crop of `config.json`, and mean and std of the preprocessor's config if it is there.

    Raises UserError if that one is damaged or has no number for each channel.
    """
    pixels: dict[str, tuple[float, ...]] = {}
    for file in (folder / name for name in PREPROCESSORS):
        about = read_json(file) if file.is_file() else {}
        try:
            if about.get("image_mean") is not None:
                pixels["mean"] = finite(about, "image_mean", channels)
            if about.get("image_std") is not None:
                pixels["std"] = positives(about, "image_std", channels)
        except ValueError as error:
            raise UserError(f"{file}: {error}; copy it again") from error
    return replace(geometry, frames=frames, crop_size=crop_size, **pixels)


def read_card(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """``about`` with what a model card, README.md, names in its head: "licence", "licence_link", "base_model".

    The card is where the owner of a repository says it, so it goes first; but where it only has the hub's word for
    the "licence" that ``about`` spells out, that stays. Of several licences all are kept, in one text; "base_model" is
    a text, or a list of several.
    """
    found = dict(about)
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        head = re.match(r"---\s*\n(.*?)\n---", text, re.S)
        # all of it as text: a date that is none must not cost the licence beside it
        card = yaml.load(head[1], yaml.BaseLoader) if head else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return found
    if not isinstance(card, dict):
        return found
    words = _texts(card.get("license"))
    if words == ["other"]:
        words = _texts(card.get("license_name")) or words
    licence = ", ".join(words)
    if licence and licence not in ("unknown", str(found.get("licence")).lower()):
        found["licence"] = licence
    if link := _texts(card.get("license_link")):
        found["licence_link"] = link[0]
    if base := _texts(card.get("base_model")):
        found["base_model"] = base if len(base) > 1 else base[0]
    return found


def _texts(value: Any) -> list[str]:
    """The texts that ``value``, one or a list of them, has; YAML's words for nothing are none."""
    several = value if isinstance(value, list) else [value]
    return [one for one in several if isinstance(one, str) and one.lower() not in ("", "~", "null")]
