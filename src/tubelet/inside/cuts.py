"""What it costs, and saves, to keep the first layers of an encoder alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from tubelet.analysis.cost import forward_flops
from tubelet.evaluate.metrics import Predictions, difference, estimates
from tubelet.evaluate.noise import Interval
from tubelet.export.weights import Geometry
from tubelet.inside.decoding import constant, linear
from tubelet.inside.footage import Asked
from tubelet.inside.records import interval
from tubelet.nn.vit import ViT
from tubelet.types import Grid

ROUNDS = 5  # passes of each depth that are timed
CLIPS = 4  # in each of them


def candidates(depth: int, keep: int | None, layers: Sequence[int]) -> list[int]:
    """Numbers of layers to keep that are worth a row: what the evidence suggests, and the quarters; those looked at."""
    quarters = {round(depth * part / 4) for part in (1, 2, 3)}
    return sorted(k for k in quarters | ({keep} if keep else set()) if 0 < k < depth and k in layers)


def cuts(
    model: ViT,
    geometry: Geometry,
    tables: Mapping[int, Callable[[], np.ndarray]],
    asked: Asked,
    seed: int,
    device: torch.device | str,
) -> list[dict[str, Any]]:
    """A row for each number of layers in ``tables``, the whole encoder's (its depth) among them.

    tables: layers -> reads features [n, D] that passed the final norm, as `export.truncate` hands them out. Each row:
    "layers", "score" (top-1 of the linear probe with its interval), "difference" from the whole encoder (paired
    interval), and the shares of its FLOPs, time (median of alternating passes on this machine) and parameters.
    """
    task = asked.task
    assert task is not None
    answers: dict[int, Predictions] = {}
    for k, read in tables.items():
        if not constant(features := read()):
            answers[k] = linear(features, task, asked.folds)
    whole = answers.get(model.depth)
    seconds = _seconds(model, geometry, sorted(tables), device)
    flops = {k: _flops(model, geometry, k) for k in tables}
    weights = {k: _parameters(model, k) for k in tables}
    rows = []
    for k in sorted(tables):
        made = answers.get(k)
        score = None if made is None else estimates(made, task.group, seed)["top1"]
        apart = None
        if made is not None and whole is not None and k < model.depth:
            found = difference(made, whole, task.group, "top1", seed)
            apart = Interval(found.value, found.low, found.high)
        rows.append(
            {
                "layers": k,
                "score": interval(score),
                "difference": interval(apart),
                "flops_share": flops[k] / flops[model.depth],
                "time_share": seconds[k] / seconds[model.depth],
                "parameters_share": weights[k] / weights[model.depth],
            }
        )
    return rows


@torch.no_grad()
def _seconds(
    model: ViT, geometry: Geometry, depths: Sequence[int], device: torch.device | str
) -> dict[int, float]:
    """Median time of a pass through the first k blocks and the norm, the depths taking turns."""
    side = geometry.crop_size
    clip = torch.randn(CLIPS, model.channels, geometry.frames, side, side).to(device)
    model.to(device)
    taken: dict[int, list[float]] = {k: [] for k in depths}
    for turn in range(ROUNDS + 1):
        for k in depths:
            began = time.perf_counter()
            out = model.layers(clip, [k], normed=True)[k]
            out.sum().item()  # waits for a GPU
            if turn:  # the first warms up
                taken[k].append(time.perf_counter() - began)
    return {k: statistics.median(times) for k, times in taken.items()}


def _flops(model: ViT, geometry: Geometry, layers: int) -> int:
    (pt, ph, pw), side = model.patch, geometry.crop_size
    grid = Grid(geometry.frames // pt, side // ph, side // pw)
    return forward_flops((model.embedding, *model.blocks[:layers]), grid.n)


def _parameters(model: ViT, layers: int) -> int:
    kept = (model.embedding, *model.blocks[:layers], model.norm)
    return sum(parameter.numel() for part in kept for parameter in part.parameters())
