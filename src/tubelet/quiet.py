"""Work without a word."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr


@contextmanager
def muted(*names: str, level: int = logging.WARNING) -> Iterator[None]:
    """Within it, the loggers of these names say nothing below ``level``."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, own in zip(loggers, before, strict=True):
            logger.setLevel(own)


@contextmanager
def quietly() -> Iterator[None]:
    """Within it, no word of what a recipe has to say reaches the terminal; errors are raised as always."""
    with muted("tubelet"), redirect_stderr(io.StringIO()):
        yield
