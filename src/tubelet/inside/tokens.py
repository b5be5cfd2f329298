"""What single tokens carry: statistics over a sample of clips, and what happens when a patch is taken away."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tubelet.analysis.attention import attention_statistics
from tubelet.analysis.occlusion import influence_reach, patch_influence
from tubelet.analysis.tokens import TokenStatistics
from tubelet.data.augment import to_pictures
from tubelet.evaluate.source import Source
from tubelet.inside.footage import Manner
from tubelet.inside.subject import Subject

TOGETHER = 4  # clips that are looked at at once
PLACES = 3  # patches taken away, along each side of the picture
SHOWN = 4  # layers of an influence picture


def sample(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most ``count`` of ``rows``, drawn by ``seed``, ascending."""
    if count >= len(rows):
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, count, replace=False))


@torch.no_grad()
def token_statistics(
    subject: Subject, source: Source, rows: np.ndarray, manner: Manner, advance: Callable[[float], None]
) -> dict[str, dict[str, list[float]]]:
    """layer -> metric -> [mean, sd over clips] of the first view of ``rows``; tokens as the probes see them.

    Tokens leave their block as they are, the last layer's pass the final norm. Attention is of block k for layer k, so
    the embedding has none. nan where a metric is undefined in every clip.
    """
    model = subject.encoder.model.to(manner.device)
    gathered = TokenStatistics()

    def add(layer: int, tokens: Tensor) -> None:
        if layer in subject.layers:
            gathered.add(layer, model.norm(tokens) if layer == model.depth else tokens)

    for start in range(0, len(rows), TOGETHER):
        part = rows[start : start + TOGETHER].tolist()
        clip = torch.cat([source.read(row)[:1] for row in part]).to(manner.device)
        for block, found in attention_statistics(model, clip, told=add).items():
            if block in subject.layers:
                gathered.add_values(block, found.by_clip())
        advance(len(part))
    return {
        str(layer): {metric: list(pair) for metric, pair in metrics.items()}
        for layer, metrics in gathered.found().items()
    }


def places(height: int, width: int) -> list[tuple[int, int]]:
    """Patches to take away: evenly spread over a picture of height x width patches, its middle among them."""
    rows, columns = (
        sorted({int((i + 0.5) / PLACES * side) for i in range(PLACES)}) for side in (height, width)
    )
    return [(row, column) for row in rows for column in columns]


def influence(subject: Subject, source: Source, row: int, manner: Manner) -> dict[str, Any]:
    """How far the loss of a patch is felt in the first view of ``row``, by layer; and what a picture of it needs.

    "reach": layer -> [share felt elsewhere, mean distance in patches]. "frame": uint8 [H, W, 3], the clip's middle one,
    as base64, with its "shape". "change": [layers, t, h, w] of the place in the middle, with its "place" and "layers".
    """
    encoder = subject.encoder
    model = encoder.model.to(manner.device)
    clip = source.read(row)[:1].to(manner.device)
    grid = model.grid(clip)
    spread = places(grid.h, grid.w)
    felt = patch_influence(model, clip, spread, subject.layers)
    middle = len(spread) // 2
    shown = [subject.layers[i] for i in np.linspace(0, len(subject.layers) - 1, SHOWN).round().astype(int)]
    shown = list(dict.fromkeys(shown))
    geometry = encoder.geometry
    frame = to_pictures(clip.cpu(), geometry.mean, geometry.std)[0, geometry.frames // 2]
    return {
        "reach": {
            str(k): [reach.elsewhere, reach.distance] for k, reach in influence_reach(felt, spread).items()
        },
        "name": source.name(row),
        "frame": base64.b64encode(np.ascontiguousarray(frame).tobytes()).decode(),
        "shape": list(frame.shape),
        "place": list(spread[middle]),
        "layers": shown,
        "change": [felt[k][middle].tolist() for k in shown],
    }
