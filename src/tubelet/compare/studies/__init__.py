"""Experiments that the papers are known for, each one command and one page. A new study is one new file."""

from __future__ import annotations

from tubelet.compare.studies import (
    blockwise_depth,
    few_labels,
    layerlock_collapse,
    loss_signal,
    pixels_latents,
    salt_split,
    salt_teacher,
    vjepa_masks,
)
from tubelet.compare.studies.study import Study
from tubelet.errors import UserError, nearest

STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (
        salt_teacher,
        salt_split,
        vjepa_masks,
        pixels_latents,
        few_labels,
        loss_signal,
        layerlock_collapse,
        blockwise_depth,
    )
}


def find_study(name: str) -> Study:
    """The study of that name; raises UserError naming the nearest."""
    if name not in STUDIES:
        raise UserError(f'unknown study "{name}"{nearest(name, STUDIES)} (there are: {", ".join(STUDIES)})')
    return STUDIES[name]
