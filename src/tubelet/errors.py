"""The one exception that is meant for people: a mistake that the user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Names the file or knob, the reason and the cure; the command line prints it without a traceback."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?` for the known word closest to ``word``, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""


@contextmanager
def mendable() -> Iterator[None]:
    """Within it, what methods, masks and models say of numbers that do not fit is the user's to mend."""
    try:
        yield
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(str(error)) from error
