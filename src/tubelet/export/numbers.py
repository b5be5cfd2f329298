"""Values out of JSON that somebody may have changed: taken as they are, or refused by name."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

# the largest side that a tensor is given here: beyond it torch runs into errors of its own
LARGEST = 2**31 - 1


def named(value: Any, what: str, known: Iterable[str] | None = None) -> dict[str, Any]:
    """``value``, which must be names and values; of ``known`` names alone, if they are given, and all of them.

    Raises ValueError if it is not, as all of this file do: it names ``what``, or the name in it.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is {_shown(value)}, not names and values")
    if known is not None:
        known = list(known)
        if strange := [name for name in value if name not in known]:
            raise ValueError(f"{what} has {_shown(strange[0])}, which is not known")
        if absent := [name for name in known if name not in value]:
            raise ValueError(f"{what} has no {absent[0]}")
    return dict(value)


def entry(about: Mapping[str, Any], name: str) -> Any:
    """What ``about`` has under ``name``; raises ValueError if it has nothing there."""
    if name not in about:
        raise ValueError(f"there is no {name}")
    return about[name]


def whole(about: Mapping[str, Any], name: str) -> int:
    """The whole number above 0 (and at most `LARGEST`) under ``name``; raises ValueError for anything else."""
    return _whole(entry(about, name), name)


def wholes(about: Mapping[str, Any], name: str, count: int) -> tuple[int, ...]:
    """``count`` whole numbers above 0, from a list of so many; raises ValueError for anything else."""
    return tuple(_whole(value, name) for value in _several(about, name, count))


def positive(about: Mapping[str, Any], name: str) -> float:
    """The finite number above 0 under ``name``, unchanged; raises ValueError for anything else."""
    return _positive(entry(about, name), name)


def finite(about: Mapping[str, Any], name: str, count: int | None = None) -> tuple[float, ...]:
    """``count`` finite numbers of either sign, or one and more, from a list; raises ValueError for anything else."""
    return tuple(_finite(value, name) for value in _several(about, name, count))


def positives(about: Mapping[str, Any], name: str, count: int | None = None) -> tuple[float, ...]:
    """As `finite`, of numbers above 0."""
    return tuple(_positive(value, name) for value in _several(about, name, count))


def _several(about: Mapping[str, Any], name: str, count: int | None) -> list[Any]:
    values = entry(about, name)
    if not isinstance(values, list | tuple) or not values or len(values) != (count or len(values)):
        raise ValueError(f"{name} is {_shown(values)}, not a list of {f'{count} ' if count else ''}numbers")
    return list(values)


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise ValueError(f"{name} is {_shown(value)}, not a whole number from 1 to {LARGEST}")
    return value


def _positive(value: Any, name: str) -> float:
    if not (_is_finite(value) and value > 0):
        raise ValueError(f"{name} is {_shown(value)}, not a number above 0")
    return value


def _finite(value: Any, name: str) -> float:
    if not _is_finite(value):
        raise ValueError(f"{name} is {_shown(value)}, not a number")
    return value


def _is_finite(value: Any) -> bool:
    """Whether it is a number that a float can hold; JSON has NaN, Infinity and whole numbers of any length."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
