"""SIGTERM and SIGINT as a request: finish the step, save, leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


class Stopped(SystemExit):
    """A signal ended training after a whole step, and the state was saved; ``code`` is 128 + the signal."""


@dataclass
class StopRequest:
    """number: the signal that came, None before."""

    number: int | None = None


@contextmanager
def catch_signals() -> Iterator[StopRequest]:
    """Within it, a first SIGTERM or SIGINT is noted; a second does what it did before.

    In another thread than the main one Python cannot catch signals, and nothing is changed.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        request.number = number
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
