"""Through training: the same curves over the checkpoints of a run, and when each layer had settled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.analysis.similarity import linear_cka
from tubelet.errors import UserError
from tubelet.evaluate.features import Features
from tubelet.evaluate.metrics import top1
from tubelet.export.weights import load_encoder
from tubelet.inside.decoding import decode
from tubelet.inside.footage import Asked, Footage, Manner, Means, digest
from tubelet.inside.kept import Kept
from tubelet.inside.records import number
from tubelet.inside.subject import Subject
from tubelet.train import checkpoint

SETTLED = 0.95  # linear CKA with the end of the run from which on a layer counts as settled; ours


def checkpoints_of(subject: Subject, wanted: str) -> dict[int, Path]:
    """step -> checkpoint of the run that ``subject`` is, ascending.

    wanted: "all", or steps such as "100,200". Empty for what is no run, or kept none. Raises UserError for steps that a
    run did not keep, or words that are none.
    """
    there = {checkpoint.step_of(path): path for path in checkpoint.found(Path(subject.spec) / "checkpoints")}
    if wanted == "all":
        return dict(sorted(there.items()))
    if not all(word.strip().isdigit() for word in wanted.split(",")):
        raise UserError(f'checkpoints={wanted}: "all", or steps such as 100,200')
    if not there:
        return {}
    steps = sorted({int(word) for word in wanted.split(",")})
    if missing := [step for step in steps if step not in there]:
        raise UserError(
            f"checkpoints={wanted}: {subject.spec} has no checkpoint of step {missing[0]}; there are "
            f"{', '.join(map(str, sorted(there)))}"
        )
    return {step: there[step] for step in steps}


def through(
    subject: Subject,
    saved: Mapping[int, Path],
    footage: Footage,
    asked: Asked,
    final: Features,
    manner: Manner,
    kept: Kept,
    seed: int,
) -> dict[str, Any]:
    """Linear top-1, mAP and linear CKA with the end of the run, for every layer at every checkpoint in ``saved``.

    final: features of the encoder at the end, before the norm. The rows are lists over layers of lists over steps. A
    layer has settled at the first checkpoint from which on its CKA with the end stays at `SETTLED` or more (null: not
    before the last checkpoint).
    """
    source = footage.of(subject.encoder.geometry, manner.frame_cache)
    clips = digest(source.identity())
    series: dict[str, list[list[float | None]]] = {
        name: [[] for _ in subject.layers] for name in ("linear", "map", "cka_with_final")
    }
    for step, path in saved.items():
        encoder = load_encoder(path)
        about = {
            "encoder": encoder.digest,
            "final": subject.encoder.digest,
            "clips": clips,
            "asked": asked.digest() if asked.task is not None else asked.rows.tolist(),
            "layers": list(subject.layers),
            "seed": seed,
        }

        def measure(encoder: Any = encoder, step: int = step) -> list[list[float | None]]:
            made = manner.before_norm(encoder, source, subject.layers, f"features at step {step:,}")
            return [
                _measure(Means(made, k, asked.rows), Means(final, k, asked.rows), asked, seed)
                for k in subject.layers
            ]

        for place, values in enumerate(kept.get("checkpoint", about, measure)):
            for name, value in zip(series, values, strict=True):
                series[name][place].append(value)
    steps = list(saved)
    return {
        "encoder": subject.name,
        "steps": steps,
        "layers": list(subject.layers),
        "series": [
            {"metric": name, "values": values}
            for name, values in series.items()
            if any(value is not None for row in values for value in row)
        ],
        "settled": {
            str(layer): settled(steps, values)
            for layer, values in zip(subject.layers, series["cka_with_final"], strict=True)
        },
        "threshold": SETTLED,
    }


def settled(steps: Sequence[int], alike: Sequence[float | None]) -> int | None:
    """The first of ``steps`` from which on every value is at least `SETTLED`.

    None if that holds of the last alone, which may be the very end that it is compared with.
    """
    since = None
    for step, value in zip(reversed(steps), reversed(alike), strict=True):
        if value is None or value < SETTLED:
            break
        since = step
    return None if since == steps[-1] else since


def _measure(rows: Means, end: Means, asked: Asked, seed: int) -> list[float | None]:
    alike = number(linear_cka(rows, end))
    if asked.task is None:
        return [None, None, alike]
    features: np.ndarray = rows[:]
    found = decode(features, asked, seed)
    if found is None:
        return [None, None, alike]
    right = top1(found.answers.label, found.answers.correct)
    return [right, None if found.found is None else found.found.map, alike]
