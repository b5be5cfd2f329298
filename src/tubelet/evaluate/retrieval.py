"""Retrieval within a set: does the nearest clip show the same thing?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

HITS = (1, 5, 10)


@dataclass(frozen=True)
class Retrieval:
    """map: mean average precision. hits: k -> share of queries with a relevant clip among the k nearest.

    queries: how many counted. skipped: how many have no relevant clip in the set.
    """

    map: float
    hits: dict[int, float]
    queries: int
    skipped: int


def retrieval(features: np.ndarray, label: np.ndarray, group: np.ndarray | None = None) -> Retrieval:
    """Every clip asks for the others of its class, by cosine similarity.

    features: float [n, D]. label: int [n]. The query itself is left out; queries without another clip of their
    class are skipped. Source: BWSSL (arXiv 2601.09040), within the test set. group: also leaves out the clips of
    the query's own group, cuts of one recording that are found too easily (ours).
    Raises ValueError if features are not finite, or if no clip has another of its class.
    """
    if not np.isfinite(features).all():
        raise ValueError("features are not finite: retrieval is undefined")
    rows = F.normalize(torch.as_tensor(features, dtype=torch.float64), dim=1)
    labels = torch.as_tensor(label)
    groups = None if group is None else torch.as_tensor(np.unique(group, return_inverse=True)[1])
    precisions: list[float] = []
    found = dict.fromkeys(HITS, 0)
    for query in range(len(rows)):
        others = torch.arange(len(rows)) != query if groups is None else groups != groups[query]
        relevant = labels[others] == labels[query]
        if not relevant.any():
            continue
        # ties are broken by place in the set, so the result does not depend on the sorting algorithm
        order = (rows[others] @ rows[query]).argsort(descending=True, stable=True)
        ranked = relevant[order].double()
        precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)
        precisions.append(((precision * ranked).sum() / ranked.sum()).item())
        for k in HITS:
            found[k] += bool(ranked[:k].any())
    if not precisions:
        raise ValueError("no clip has another of its class to find")
    count = len(precisions)
    return Retrieval(
        float(np.mean(precisions)), {k: n / count for k, n in found.items()}, count, len(rows) - count
    )
