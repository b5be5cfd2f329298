"""How the words of a command line become values of knobs."""

from __future__ import annotations

import argparse
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

from tubelet.errors import UserError, nearest


def reader_of(kind: Any) -> tuple[Callable[[str], Any], dict[str, Any]]:
    """How a knob's type reads a word, and what argparse is to know: int, float, str, a choice, or a pair (0.9,1)."""
    kind = _only(kind)
    if get_origin(kind) is Literal:
        return str, {"choices": get_args(kind)}
    if get_origin(kind) is tuple:
        return _pair, {"metavar": "A,B"}
    assert kind in (int, float, str), f"a knob of type {kind} has no reader"
    return kind, {"metavar": kind.__name__.upper()}


def read_word(kind: Any, text: str, where: str) -> Any:
    """The value that ``text`` means for a knob of type ``kind``; raises UserError naming ``where`` if it means none."""
    kind = _only(kind)
    if kind is bool:
        known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if text.lower() not in known:
            raise UserError(f'"{where}": "{text}" is neither true nor false')
        return known[text.lower()]
    reader, settings = reader_of(kind)
    try:
        value = reader(text)
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(f'"{where}": {error}') from error
    if value not in settings.get("choices", (value,)):
        raise UserError(
            f'"{where}": "{text}" is none of {", ".join(settings["choices"])}{nearest(text, settings["choices"])}'
        )
    return value


def _only(kind: Any) -> Any:
    """The type without its None."""
    if get_origin(kind) in (Union, types.UnionType):
        return next(k for k in get_args(kind) if k is not type(None))
    return kind


def _pair(word: str) -> tuple[float, ...]:
    numbers = tuple(float(part) for part in word.split(","))
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f'"{word}" is not two numbers with a comma between')
    return numbers
