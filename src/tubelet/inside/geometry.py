"""Geometry against gain: do layers that keep the geometry add less? (BWSSL, arXiv 2601.09040, figure 4c)"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

FEW = 3  # points that a line needs


def against_gain(
    transitions: Mapping[str, Sequence[tuple[int, int, float, float]]], untrained: Collection[str] = ()
) -> dict[str, Any] | None:
    """The scatter and its regressions; None without a point.

    transitions: encoder -> (from, to, linear CKA, gain in mAP) of each transition. Returns "points", those where both
    are finite, and "fits": a least-squares line for all points, and for each transition that at least three encoders
    have, as in the paper; "r" is Pearson's, null where a side is constant. The lines leave out the step from the
    embedding and the encoders ``untrained``, which the paper does not have.
    """
    points = [
        {"encoder": name, "from": start, "to": stop, "cka": cka, "gain": gain}
        for name, found in transitions.items()
        for start, stop, cka, gain in found
        if math.isfinite(cka) and math.isfinite(gain)
    ]
    if not points:
        return None
    fitted = [point for point in points if point["from"] and point["encoder"] not in untrained]
    groups = {"all": fitted}
    for point in fitted:
        groups.setdefault(f"{point['from']} -> {point['to']}", []).append(point)
    fits = [fit for name, group in groups.items() if (fit := _fit(name, group)) is not None]
    return {"points": points, "fits": fits}


def _fit(name: str, points: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    x, y = (np.array([point[key] for point in points], float) for key in ("cka", "gain"))
    if len(points) < FEW or np.ptp(x) == 0:
        return None
    slope, intercept = np.polyfit(x, y, 1)
    r = None if np.ptp(y) == 0 else float(np.corrcoef(x, y)[0, 1])
    return {
        "transition": name,
        "slope": float(slope),
        "intercept": float(intercept),
        "r": r,
        "n": len(points),
    }
