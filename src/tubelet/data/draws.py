"""Random numbers as a function of where they are used, never of what was drawn before.

Counter-based (Philox), so a draw costs the same at position 0 and at position 10**12, and only raw bits
are used, which numpy guarantees to be the same in every version.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What a draw is for; two purposes never share numbers."""

    ORDER = 1
    START = 2
    CROP = 3
    REPLACE = 4


def raw(seed: int, purpose: Purpose, place: int, count: int, attempt: int = 0) -> np.ndarray:
    """uint64 [count]: a pure function of the arguments (place and attempt >= 0)."""
    bits = np.random.Philox(
        key=np.array([seed % 2**64, purpose], np.uint64), counter=np.array([0, attempt, place, 0], np.uint64)
    )
    return bits.random_raw(count)


def uniforms(seed: int, purpose: Purpose, place: int, count: int, attempt: int = 0) -> np.ndarray:
    """float64 [count], uniform in [0, 1)."""
    return (raw(seed, purpose, place, count, attempt) >> np.uint64(11)) * 2.0**-53


def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """int64 [n]: the order of ``n`` entries in ``epoch``."""
    return np.argsort(raw(seed, Purpose.ORDER, epoch, n), kind="stable")
