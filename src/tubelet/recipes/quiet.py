"""Recipes without a word."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr

log = logging.getLogger("tubelet")


@contextmanager
def quietly() -> Iterator[None]:
    """Within it, no word of what a recipe has to say reaches the terminal; errors are raised as always."""
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)
