"""Nearest neighbours by cosine: no training, so nothing to tune and nothing to blame."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

KS = (5, 20)
TEMPERATURE = 0.07
CHUNK = 1024  # test clips compared at once: memory is CHUNK x train clips


def knn_scores(
    train: np.ndarray,
    label: np.ndarray,
    test: np.ndarray,
    classes: int,
    k: int,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """Class scores float64 [m, classes] of test features [m, D] from train features [n, D]; rows sum to 1.

    Each of the ``k`` nearest votes with weight exp(cosine / temperature), as in DINO and its followers.
    With fewer than k training clips all of them vote.
    """
    k = min(k, len(train))
    gallery = F.normalize(torch.as_tensor(train, dtype=torch.float32), dim=1)
    queries = F.normalize(torch.as_tensor(test, dtype=torch.float32), dim=1)
    votes = F.one_hot(torch.as_tensor(label), classes).double()
    scores = []
    for chunk in queries.split(CHUNK):
        near = (chunk @ gallery.T).topk(k, dim=1)
        weight = ((near.values - near.values[:, :1]) / temperature).double().exp()
        scores.append((weight.unsqueeze(-1) * votes[near.indices]).sum(1))
    total = torch.cat(scores)
    return (total / total.sum(1, keepdim=True)).numpy()
