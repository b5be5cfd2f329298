"""Recipes that predict pixels: VideoMAE, and SALT's first stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from tubelet.methods.videomae import VideoMAE
from tubelet.nn.vit import ViT
from tubelet.recipes.fit import Paper
from tubelet.recipes.knobs import Knobs
from tubelet.recipes.run import Finished, choose_mask, pretrain
from tubelet.recipes.sizes import decoder_for, predictor_for, tubelet_values

VIDEOMAE = Paper(
    source="VideoMAE (arXiv 2203.12602), ViT-B on Kinetics-400: 800 epochs of about 240,000 clips",
    model="vit_base",
    steps=93_750,
    batch_size=2048,
    lr=(8e-6, 1.2e-3, 8e-5),
    warmup=4_690,
    weight_decay=(0.05, 0.05),
    betas=(0.9, 0.95),
    positions="sincos_flat",
)

SALT_TEACHER = Paper(
    source="SALT (arXiv 2509.24317), stage 1, ViT-L: Table 5",
    model="vit_large",
    steps=80_000,
    batch_size=3072,
    lr=(2e-4, 6.25e-4, 1e-6),
    warmup=10_000,
    weight_decay=(0.04, 0.4),
    betas=(0.9, 0.95),
    clip=0.02,
    clip_per="module",
)


def videomae(
    knobs: Knobs,
    *,
    decoder_dim: int | None = None,
    decoder_depth: int | None = None,
    normalise: Literal["channel", "tubelet", "none"] = "channel",
    loss: Literal["mse", "l1"] = "mse",
) -> Finished:
    """VideoMAE: pixels of hidden tubes, 90 % of the places in a frame.

    tubelet pretrain videomae --data clips/ --out runs/mae

    Paper (--schedule paper): ViT-B, 93,750 steps of 2048 clips 16x4x224, AdamW (.9, .95), lr 1.2e-3, weight
    decay .05; 27 hours on 64 V100 by the authors' count. Linear probe on SSv2 38.9, fine-tuned 69.6.
    Steps are our arithmetic (800 epochs); the learning rate is the script's 1.5e-4 x batch/256. Ours: random
    resized crops in place of its multi-scale crops, and flips.
    """

    def build(encoder: ViT, plan: object) -> VideoMAE:
        decoder = decoder_for(encoder, decoder_dim, decoder_depth)
        return VideoMAE(encoder, decoder, choose_mask(knobs, "tube", 0.9, 1), normalise, loss)

    own: dict[str, Any] = {
        "decoder_dim": decoder_dim,
        "decoder_depth": decoder_depth,
        "normalise": normalise,
        "loss": loss,
    }
    return pretrain("videomae", VIDEOMAE, knobs, build, own)


def salt_teacher(
    knobs: Knobs,
    *,
    decoder_dim: int | None = None,
    decoder_depth: int | None = None,
    normalise: Literal["channel", "tubelet", "none"] = "tubelet",
    loss: Literal["mse", "l1"] = "mse",
) -> Finished:
    """SALT's first stage, "V-Pixel": pixels under V-JEPA's two multi-block masks.

    tubelet pretrain salt-teacher --data clips/ --out runs/teacher

    Paper (--schedule paper): ViT-L, 80,000 steps of 3072 clips 16x4x224, AdamW (.9, .95), lr 6.25e-4, weight
    decay .04 to .4, gradients clipped at .02; .24e21 FLOPs. SSv2 16x1x1 66.2.
    Left open by the paper, and ours: a decoder of the predictor's form (12x384), MSE on pixels normalised per
    tubelet, one mask token per mask, clipping per module.
    """
    return first_stage(knobs, decoder_dim, decoder_depth, normalise, loss)


def first_stage(
    knobs: Knobs,
    decoder_dim: int | None = None,
    decoder_depth: int | None = None,
    normalise: Literal["channel", "tubelet", "none"] = "tubelet",
    loss: Literal["mse", "l1"] = "mse",
    share: float = 1.0,
    on_start: Callable[[], None] | None = None,
) -> Finished:
    """`salt_teacher`, alone or as a part of `salt`: then with its share of the steps. on_start: see `pretrain`."""

    def build(encoder: ViT, plan: object) -> VideoMAE:
        mask = choose_mask(knobs, "multiblock", 0.9, 2)
        decoder = predictor_for(encoder, knobs, tubelet_values(encoder), 2, 24, decoder_dim, decoder_depth)
        return VideoMAE(encoder, decoder, mask, normalise, loss)

    own: dict[str, Any] = {
        "decoder_dim": decoder_dim,
        "decoder_depth": decoder_depth,
        "normalise": normalise,
        "loss": loss,
    }
    return pretrain("salt-teacher", SALT_TEACHER, knobs, build, own, share=share, on_start=on_start)
