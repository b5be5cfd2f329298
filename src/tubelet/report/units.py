"""Quantities as people read them."""

from __future__ import annotations


def flops(amount: float) -> str:
    """1.24e15 becomes "1.24 PFLOP"."""
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if amount >= size:
            return f"{amount / size:.3g} {prefix}FLOP" if amount < 1e3 * size else f"{amount:.2e} FLOP"
    return f"{amount:,.0f} FLOP"


def memory(size: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
