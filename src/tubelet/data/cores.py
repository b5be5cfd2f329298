"""How many processor cores there are for us."""

from __future__ import annotations

import os


def cores() -> int:
    """Those that this process may run on, which in a container or a cluster's job is not all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
