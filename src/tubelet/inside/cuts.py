"""What it costs, and saves, to keep the first layers of an encoder alone."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tubelet.analysis.cost import forward_flops
from tubelet.evaluate.metrics import difference, estimates
from tubelet.export.weights import Geometry
from tubelet.inside.decoding import Decoded
from tubelet.inside.footage import Asked
from tubelet.inside.records import interval
from tubelet.nn.vit import ViT
from tubelet.types import Grid

ROUNDS = 5  # in which every depth has its turn; the fastest counts, as other work on the machine only adds
CLIPS = 2
LEAST = 0.05  # seconds of a turn of the whole encoder: small ones pass several times


def cuts(
    model: ViT,
    geometry: Geometry,
    decoded: Mapping[int, Decoded | None],
    asked: Asked,
    seed: int,
    device: torch.device | str,
) -> list[dict[str, Any]]:
    """A row for each number of layers in ``decoded``, from 1 to the whole encoder's, its depth.

    decoded: layers -> what was read off features that passed the final norm, as `export.truncate` hands them out; None
    if they are constant. Each row: "layers", "score" (top-1 of the linear probe with its interval), "difference" from
    the whole encoder (paired interval), and the shares of its FLOPs, time (the fastest of alternating turns on
    this machine) and parameters.
    """
    task = asked.task
    assert task is not None
    kept = sorted(k for k in decoded if k)
    whole = decoded[model.depth]
    seconds = _seconds(model, geometry, kept, device)
    flops = {k: _flops(model, geometry, k) for k in kept}
    weights = {k: _parameters(model, k) for k in kept}
    rows = []
    for k in kept:
        made = decoded[k]
        score = None if made is None else estimates(made.answers, task.group, seed, ("top1",))["top1"]
        apart = None
        if made is not None and whole is not None and k < model.depth:
            apart = difference(made.answers, whole.answers, task.group, "top1", seed)
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
    """The fastest turn of the first k blocks and the norm, the depths taking turns."""
    side = geometry.crop_size
    clip = torch.randn(CLIPS, model.channels, geometry.frames, side, side).to(device)
    model.to(device)

    def turn(k: int, times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            model.layers(clip, [k], normed=True)[k].sum().item()  # waits for a GPU
        return time.perf_counter() - began

    times = max(1, math.ceil(LEAST / turn(model.depth, 1)))
    taken = {k: math.inf for k in depths}
    for _ in range(ROUNDS):
        for k in depths:
            taken[k] = min(taken[k], turn(k, times))
    return taken


def _flops(model: ViT, geometry: Geometry, layers: int) -> int:
    (pt, ph, pw), side = model.patch, geometry.crop_size
    grid = Grid(geometry.frames // pt, side // ph, side // pw)
    return forward_flops((model.embedding, *model.blocks[:layers]), grid.n)


def _parameters(model: ViT, layers: int) -> int:
    kept = (model.embedding, *model.blocks[:layers], model.norm)
    return sum(parameter.numel() for part in kept for parameter in part.parameters())
