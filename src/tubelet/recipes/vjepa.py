"""Recipes that predict an averaged teacher's latents: V-JEPA and V-JEPA 2."""

from __future__ import annotations

from typing import Any

from tubelet.errors import UserError
from tubelet.methods.vjepa import VJEPA
from tubelet.nn.vit import ViT
from tubelet.recipes.fit import Paper
from tubelet.recipes.knobs import Knobs
from tubelet.recipes.run import Finished, Plan, choose_mask, pretrain
from tubelet.recipes.sizes import predictor_for
from tubelet.train.schedule import Linear

VJEPA_1 = Paper(
    source="V-JEPA (arXiv 2404.08471), ViT-L",
    model="vit_large",
    steps=90_000,
    batch_size=3072,
    lr=(2e-4, 6.25e-4, 1e-6),
    warmup=12_000,
    weight_decay=(0.04, 0.4),
    betas=(0.9, 0.999),
    stretch=1.25,
    clip=10.0,
    clip_per="module",
    clip_from=12_000,
    momentum=(0.998, 1.0),
    positions="sincos",
)

VJEPA_2 = Paper(
    source="V-JEPA 2 (arXiv 2506.09985), ViT-L at 256 pixels: pretraining and cooldown, at one clip length",
    model="vit_large",
    steps=252_000,
    batch_size=3072,
    lr=(1e-4, 5.25e-4, 1e-6),
    warmup=12_000,
    cooldown=12_000,
    weight_decay=(0.04, 0.04),
    betas=(0.9, 0.999),
    crop_size=256,
    fps=4.0,
    momentum=(0.99925, 0.99925),
)


def vjepa(
    knobs: Knobs,
    *,
    momentum: tuple[float, float] | None = None,
    predictor_dim: int | None = None,
    predictor_depth: int | None = None,
) -> Finished:
    """V-JEPA: latents of an averaged teacher, under two multi-block masks; fixed sin-cos positions.

    tubelet pretrain vjepa --data clips/ --out runs/vjepa

    Paper (--schedule paper): ViT-L, 90,000 steps of 3072 clips 16x4x224 on 128 A100, AdamW (.9, .999),
    lr 6.25e-4, weight decay .04 to .4, momentum .998 to 1; all schedules over 1.25 times the steps. Attentive
    probe: K400 80.8, SSv2 69.5. momentum: of the average, at the first step and at the end (fit: the same share
    of the run as the paper's).
    """
    return _vjepa("vjepa", VJEPA_1, 24, knobs, momentum, predictor_dim, predictor_depth)


def vjepa2(
    knobs: Knobs,
    *,
    momentum: tuple[float, float] | None = None,
    predictor_dim: int | None = None,
    predictor_depth: int | None = None,
) -> Finished:
    """V-JEPA 2: as V-JEPA, with rotary positions, a constant rate with a cooldown, and a fixed momentum.

    tubelet pretrain vjepa2 --data clips/ --out runs/vjepa2

    Paper (--schedule paper): ViT-L, 240,000 steps of 3072 clips (16 frames at 4 a second, 256 pixels) and a
    cooldown of 12,000, AdamW (.9, .999), lr 5.25e-4, weight decay .04, no clipping, momentum .99925. 9,800
    A100 hours. Attentive probe: K400 85.1, SSv2 73.7. Ours: the cooldown keeps clip length and resolution
    (the paper's grows to 64 frames: start another run from this one with --init-from), and the rate ends at
    1e-6, as the paper writes; its code stops early on that line. Rotary positions are the correct ones;
    --positions rotary_legacy gives the published code's.
    """
    return _vjepa("vjepa2", VJEPA_2, 32, knobs, momentum, predictor_dim, predictor_depth)


def check_momentum(momentum: tuple[float, float] | None) -> None:
    """Raises UserError for numbers that are no momentum."""
    if momentum is not None and not all(0 <= m <= 1 for m in momentum):
        raise UserError(f"momentum={momentum}: both numbers must lie between 0 and 1")


def _vjepa(
    name: str,
    paper: Paper,
    head_dim: int,
    knobs: Knobs,
    momentum: tuple[float, float] | None,
    predictor_dim: int | None,
    predictor_depth: int | None,
) -> Finished:
    check_momentum(momentum)

    def build(encoder: ViT, plan: Plan) -> VJEPA:
        average = momentum or plan.momentum
        assert average is not None, f"{name} has no momentum"
        predictor = predictor_for(encoder, knobs, encoder.dim, 2, head_dim, predictor_dim, predictor_depth)
        mask = choose_mask(knobs, "multiblock", 0.9, 2)
        return VJEPA(encoder, predictor, mask, Linear(*average, stretch=paper.stretch))

    own: dict[str, Any] = {
        "momentum": momentum,
        "predictor_dim": predictor_dim,
        "predictor_depth": predictor_depth,
    }
    return pretrain(name, paper, knobs, build, own)
