"""The attentive probe on cached tokens: a grid of heads trained at once, the best chosen on a validation cut."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from tubelet.evaluate.metrics import macro_recall
from tubelet.evaluate.tasks import inner_folds
from tubelet.nn.heads import AttentiveClassifier, grid_loss

Tokens = Callable[[np.ndarray], Tensor]  # indices of clips -> float32 [b, crops, N, D]


@dataclass(frozen=True)
class AttentiveSettings:
    """How the heads are trained. The defaults are ours, and cheap: one block, six heads, 20 epochs.

    depth: blocks of the pooler, 1 (V-JEPA) or 4 (V-JEPA 2). heads: of its attention (the largest common divisor
    with the width is used). lrs x wds: the grid; all parameters decay, as in V-JEPA 2. AdamW, cosine to 0.
    validation: share of training clips to choose the head on, about.
    """

    depth: int = 1
    heads: int = 16
    lrs: tuple[float, ...] = (3e-3, 1e-3, 3e-4)
    wds: tuple[float, ...] = (0.4, 0.01)
    epochs: int = 20
    batch_size: int = 32
    validation: float = 0.25

    @property
    def grid(self) -> list[tuple[float, float]]:
        """(learning rate, weight decay) of every head."""
        return list(product(self.lrs, self.wds))


@dataclass(frozen=True)
class AttentiveResult:
    """scores: float64 [m, classes] of the test clips; lr, wd: of the chosen head; note: see `inner_folds`."""

    scores: np.ndarray
    lr: float
    wd: float
    note: str


def attentive_scores(
    tokens: Tokens,
    train: np.ndarray,
    label: np.ndarray,
    test: np.ndarray,
    classes: int,
    group: np.ndarray | None = None,
    settings: AttentiveSettings | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> AttentiveResult:
    """Trains on clips ``train`` (their labels: ``label`` [n], their groups: ``group`` [n]), scores clips ``test``.

    All heads of the grid learn from the same batches of one part of the training clips; the head with the best
    macro recall on the rest, which shares no group with it, is trained again on all of them. Test clips are
    scored once, by that head; the softmax is averaged over a clip's crops.
    """
    settings = settings or AttentiveSettings()
    folds, note = inner_folds(label, group, max(2, round(1 / settings.validation)), seed)
    lr, wd = settings.grid[0]
    if folds and len(settings.grid) > 1:
        fit, held = folds[0].train, folds[0].test
        heads = _train(tokens, train[fit], label[fit], classes, settings.grid, settings, seed, device)
        scores = _predict(heads, tokens, train[held], settings, device)  # [heads, held, classes]
        quality = [macro_recall(label[held], s.argmax(1) == label[held]) for s in scores]
        sureness = [float(np.log(s[np.arange(len(held)), label[held]].clip(1e-12)).mean()) for s in scores]
        lr, wd = settings.grid[max(range(len(quality)), key=lambda i: (round(quality[i], 9), sureness[i]))]
    final = _train(tokens, train, label, classes, [(lr, wd)], settings, seed, device)
    return AttentiveResult(_predict(final, tokens, test, settings, device)[0], lr, wd, note)


def _train(
    tokens: Tokens,
    clips: np.ndarray,
    label: np.ndarray,
    classes: int,
    grid: list[tuple[float, float]],
    settings: AttentiveSettings,
    seed: int,
    device: torch.device | str,
) -> nn.ModuleList:
    dim = tokens(clips[:1]).shape[-1]
    with torch.random.fork_rng(devices=[]):
        heads = nn.ModuleList()
        for _ in grid:
            torch.manual_seed(seed)  # the heads of a grid differ in nothing but their rates
            heads.append(AttentiveClassifier(dim, math.gcd(dim, settings.heads), classes, settings.depth))
    heads.to(device)
    # AdamW works parameter by parameter: one optimizer with a group per head is one optimizer per head.
    groups = [
        {"params": list(head.parameters()), "lr": lr, "weight_decay": wd}
        for head, (lr, wd) in zip(heads, grid, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)
    batches = math.ceil(len(clips) / settings.batch_size)
    total = settings.epochs * batches
    for epoch in range(settings.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(clips))
        for i, chosen in enumerate(np.array_split(order, batches)):
            rate = 0.5 * (1 + math.cos(math.pi * (epoch * batches + i) / total))
            for group, (lr, _) in zip(optimizer.param_groups, grid, strict=True):
                group["lr"] = lr * rate
            batch = tokens(clips[chosen]).to(device)  # [b, crops, N, D]
            truth = torch.as_tensor(label[chosen], device=device).repeat_interleave(batch.shape[1])
            loss, _ = grid_loss(heads, batch.flatten(0, 1), truth)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return heads.eval()


@torch.no_grad()
def _predict(
    heads: nn.ModuleList,
    tokens: Tokens,
    clips: np.ndarray,
    settings: AttentiveSettings,
    device: torch.device | str,
) -> np.ndarray:
    """Class probabilities float64 [heads, clips, classes], averaged over crops."""
    found = []
    for start in range(0, len(clips), settings.batch_size):
        batch = tokens(clips[start : start + settings.batch_size]).to(device)  # [b, crops, N, D]
        flat = batch.flatten(0, 1)
        scores = torch.stack([head(flat).double().softmax(-1) for head in heads])
        found.append(scores.unflatten(1, batch.shape[:2]).mean(dim=2).cpu())
    return torch.cat(found, dim=1).numpy()
