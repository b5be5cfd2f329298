"""Blockwise learning: a loss for every block of layers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

from rich.table import Table

from tubelet.errors import UserError
from tubelet.masks import Aimed
from tubelet.methods.blockwise import Blockwise, cut, share_out
from tubelet.nn.predictor import Predictor
from tubelet.nn.vit import ViT, parse_size
from tubelet.recipes.fit import Paper
from tubelet.recipes.knobs import Knobs
from tubelet.recipes.run import Finished, Plan, choose_mask, pretrain
from tubelet.recipes.salt import load_teacher
from tubelet.recipes.sizes import decoder_for
from tubelet.recipes.videomae import VIDEOMAE
from tubelet.train.pipeline import join_pipeline
from tubelet.train.schedule import Schedule, Staged
from tubelet.types import Moment

BLOCKWISE = Paper(
    source="BWSSL (arXiv 2601.09040), DeiT-Tiny on UCF101: 150 epochs; batch 64 and warm-up are ours",
    model="vit_tiny",
    steps=22_350,
    batch_size=64,
    lr=(1e-6, 1e-4, 1e-6),
    warmup=1_120,
    weight_decay=(0.05, 0.05),
    betas=(0.9, 0.95),
    crop_size=128,
    clip_per="module",
    positions="sincos_flat",
)
# The small form takes VideoMAE's rates, which the paper says it follows, and keeps clipping local.
SMALL = replace(VIDEOMAE, clip_per="module")


def blockwise(
    knobs: Knobs,
    *,
    blocks: str = "4",
    regime: Literal["simultaneous", "sequential", "end_to_end"] = "simultaneous",
    targets: Literal["pixels", "teacher", "previous"] = "pixels",
    teacher: str | None = None,
    decoders: Literal["each", "shared"] = "each",
    decoder_dim: int | None = None,
    decoder_depth: int | None = None,
    decode_share: float = 1.0,
    overlap: int = 0,
    normalise: Literal["channel", "tubelet", "none"] = "channel",
    pipeline: bool = False,
) -> Finished:
    """Blockwise: the encoder in blocks of layers, each with its own loss and decoder; no gradient between them.

    tubelet pretrain blockwise --data clips/ --out runs/blocks
    tubelet pretrain blockwise --data clips/ --out runs/matched --regime end_to_end
    torchrun --nproc-per-node 2 -m tubelet pretrain blockwise --data clips/ --out runs/blocks --pipeline

    blocks: how many equal ones, or the layers of each such as 2,4,6. regime: all at once, one after the other
    (``steps`` are shared out equally: 4 blocks want 4 times as many), or not at all: the matched baseline.
    Each block's memory is freed before the next runs: see docs/decisions/depth.md for what that saves and where it
    does not. Remedies for the decoders' cost: decoders=shared, decoder_dim, decoder_depth, decode_share (of the
    hidden tokens); targets=teacher (latents of a finished encoder, --teacher RUN: SALT per block) or previous (what
    the block below makes of the whole clip); overlap: layers that also learn from the next block's loss.
    pipeline: the processes of torchrun hold some of the blocks each, in place of some of the batch, and pass tokens
    forward only: the weights of one process, faster (docs/decisions/pipeline.md). A run may change between the two.

    Paper (--schedule paper --tubelet-size 8): ViT-Ti on UCF101, 150 epochs of 16x4x128 clips, 90 % tubes, AdamW, lr
    1e-4, weight decay .05, decoders 192x4: linear probe 32.8 simultaneous, 33.1 sequential, 33.4 end to end. Not
    found there, and ours: batch, warm-up, betas. The small form has VideoMAE's rates.
    """
    own: dict[str, Any] = {
        name: value for name, value in locals().items() if name not in ("knobs", "pipeline")
    }
    if not 0 < decode_share <= 1:
        raise UserError(f"decode_share={decode_share}: must lie between 0 and 1")
    if (targets == "teacher") != (teacher is not None):
        raise UserError("targets=teacher and --teacher RUN belong together; give both or neither")
    if decoders == "shared" and targets == "previous":
        raise UserError(
            "targets=previous asks the first block for pixels and the others for latents, which no one decoder "
            "predicts; leave decoders out"
        )
    if regime == "end_to_end" and (overlap or targets == "previous"):
        raise UserError("overlap and targets=previous are between blocks; regime=end_to_end has one")
    if targets == "teacher" and normalise != "channel":
        raise UserError("normalise is about pixels, targets=teacher predicts none; leave it out")
    guide = None if teacher is None else load_teacher(teacher)
    own |= {"teacher_digest": None if guide is None else guide.digest}
    frozen = None if guide is None else guide.model

    def build(encoder: ViT, plan: Plan) -> Blockwise:
        layers = cut(encoder.depth, blocks)
        if regime == "sequential" and plan.steps < len(layers):
            raise UserError(
                f"steps={plan.steps} do not reach all {len(layers)} blocks one after the other; give at least "
                f"steps={len(layers)}"
            )
        count = 1 if regime == "end_to_end" or decoders == "shared" else len(layers)
        mask = choose_mask(knobs, "tube", 0.9, 1)
        return Blockwise(
            encoder,
            [_decoder(encoder, number) for number in range(count)],
            mask if decode_share == 1 else Aimed(mask, share=decode_share),
            layers,
            regime=regime,
            targets=targets,
            teacher=frozen,
            overlap=overlap,
            normalise=normalise,
            line=line,
        )

    def _decoder(encoder: ViT, number: int) -> Predictor:
        target_dim = (
            frozen.dim if frozen is not None else encoder.dim if targets == "previous" and number else None
        )
        return decoder_for(encoder, decoder_dim, decoder_depth, target_dim)

    def rate(lr: Schedule, plan: Plan) -> Schedule:
        stages = len(cut(parse_size(plan.model).depth, blocks))
        return Staged(lr, stages) if regime == "sequential" else lr

    def phases(plan: Plan) -> Table:
        layers = cut(parse_size(plan.model).depth, blocks)
        table = Table(title=f"blocks, {regime.replace('_', ' ')}", title_justify="left")
        processes = [] if line is None else share_out(len(layers), line.size)
        for column in ("block", "layers", "learns in steps", *(["process"] if processes else [])):
            table.add_column(column)
        begin, end = 0, 0 if regime == "sequential" else plan.steps
        for number in range(len(layers)):
            if regime == "sequential":
                _, begin, end = Moment(end, plan.steps).stage(len(layers))
            first = sum(layers[:number])
            where = [str(rank + 1) for rank, here in enumerate(processes) if number in here]
            table.add_row(
                str(number + 1), f"{first + 1} to {first + layers[number]}", f"{begin} to {end - 1}", *where
            )
        return table

    paper = BLOCKWISE if knobs.schedule == "paper" else SMALL
    with join_pipeline(knobs.device) if pipeline else nullcontext() as line:
        return pretrain(
            "blockwise",
            paper,
            knobs,
            build,
            own,
            rate=rate,
            phases=phases,
            joined=line,
            taught_by=None if guide is None else guide.provenance,
        )
