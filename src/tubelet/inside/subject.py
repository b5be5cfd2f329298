"""The encoders that are looked at: their names, and which of their layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tubelet.errors import UserError
from tubelet.export.foreign import is_foreign
from tubelet.export.hub import SCHEME
from tubelet.export.weights import Encoder, load_encoder


@dataclass(frozen=True)
class Subject:
    """An encoder under the name that it has in the report. spec: how the user called it. layers: ascending."""

    name: str
    spec: str
    encoder: Encoder
    layers: tuple[int, ...]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.encoder.model.depth

    @property
    def untrained(self) -> bool:
        """Whether it is there to be compared with: random weights, or raw pixels."""
        return self.spec.partition(":")[0] in ("random", "pixels")


def read_subjects(
    specs: Sequence[str],
    names: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    allow_partial: bool = False,
    heads: int | None = None,
) -> list[Subject]:
    """Loads the encoders ``specs`` names.

    names: what to call them (default: their own names, or how they were called where two would be the same). layers: to
    be looked at (default: all, the embedding too). allow_partial, heads: as for `load_encoder`, of those that are
    published weights. Raises UserError for a number of names that is not that of encoders, for an encoder that is named
    twice, and for a layer that one of them has not.
    """
    if names is not None and len(names) != len(specs):
        raise UserError(f"names={','.join(names)}: {len(names)} names for {len(specs)} encoders")
    # beside published weights may stand encoders of ours and untrained ones, which have no such knobs
    knobs = {"allow_partial": allow_partial, "heads": heads}
    published = [spec for spec in specs if spec.startswith(SCHEME) or is_foreign(Path(spec))] or specs
    loaded = [load_encoder(spec, **(knobs if spec in published else {})) for spec in specs]
    called = list(names) if names is not None else _names(specs, loaded)
    if twice := [name for name, count in Counter(called).items() if count > 1]:
        raise UserError(f'two encoders are called "{twice[0]}"; tell them apart with names=')
    subjects = []
    for name, spec, encoder in zip(called, specs, loaded, strict=True):
        depth = encoder.model.depth
        wanted = tuple(range(depth + 1)) if layers is None else tuple(sorted(set(layers)))
        if wrong := [k for k in wanted if not 0 <= k <= depth]:
            raise UserError(
                f"layers={','.join(map(str, layers or ()))}: {name} has layers 0 (embedding) to {depth}, not {wrong}; "
                "leave them out"
            )
        subjects.append(Subject(name, spec, encoder, wanted))
    return subjects


def _names(specs: Sequence[str], loaded: Sequence[Encoder]) -> list[str]:
    own = [_short(encoder.name, 1) for encoder in loaded]
    alike = {name for name, count in Counter(own).items() if count > 1}
    return [_short(spec, 2) if name in alike else name for name, spec in zip(own, specs, strict=True)]


def _short(spec: str, most: int) -> str:
    """The last parts of a path, of at most ``most`` folders that tell which run it is of; with "random:" before it."""
    kind, colon, path = spec.rpartition(":")
    parts = [part for part in Path(path).parts if part not in ("checkpoints", "/")]
    return f"{kind}{colon}{'/'.join(parts[-most:])}"
