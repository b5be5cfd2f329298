"""The anonymous memory of a process, polled while something runs in it; Linux alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def anonymous(process: int | str = "self") -> int:
    """Bytes that a process has to itself now; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@contextmanager
def watching(process: int | str = "self", every: float = 0.1) -> Iterator[list[int]]:
    """`anonymous` at the beginning, and then every so many seconds, in the list that it yields."""
    seen, ended = [anonymous(process)], threading.Event()

    def watch() -> None:
        while not ended.wait(every):
            seen.append(anonymous(process))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
