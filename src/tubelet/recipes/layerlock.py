"""LayerLock on masked pixels and on V-JEPA, and the ablation that collapses."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

from rich.table import Table

from tubelet.errors import UserError
from tubelet.masks import Aimed
from tubelet.methods.layerlock import LOCKS_4DS_G, LayerLock, Locks
from tubelet.nn.decoding import Decoder, JoinedDecoder, SeparateDecoder
from tubelet.nn.vit import ViT, parse_size
from tubelet.recipes.fit import Paper
from tubelet.recipes.knobs import Knobs
from tubelet.recipes.run import Build, Finished, Plan, choose_mask, pretrain
from tubelet.recipes.sizes import decoder_for, predictor_for
from tubelet.recipes.vjepa import VJEPA_1, check_momentum
from tubelet.train.schedule import Constant, Cosine, Linear, Restarted, Schedule

LAYERLOCK = Paper(
    source="LayerLock (arXiv 2509.10156) on 4DS-G: 1B clips; rates of VideoMAE v2's giant, for the paper names none",
    model="vit_gigantic",
    steps=488_000,
    batch_size=2048,
    lr=(1e-6, 6e-4, 1e-6),
    warmup=24_400,
    weight_decay=(0.05, 0.05),
    betas=(0.9, 0.95),
    positions="rotary_tokens",
)
# Knobs of `layerlock` that say how latents are predicted.
LATENT_KNOBS = (
    "target_input",
    "target_share",
    "predict",
    "target_norm",
    "heads",
    "pixel_weight",
    "latent_weight",
    "latent_rise",
)
LAST_LOCK = 470_000  # of 4DS-G: the step at which its 32nd block freezes
RESTART = 0.1  # of the interval, where the paper does not say how long its mini warm-up is: ours


def layerlock(
    knobs: Knobs,
    *,
    pixel_steps: int | None = None,
    interval: int | None = None,
    jump: int = 1,
    deepest: int | None = None,
    restart: int | None = None,
    target: Literal["latents", "pixels"] = "latents",
    target_input: Literal["full", "visible", "sampled"] = "full",
    target_share: float = 1.0,
    predict: Literal["hidden", "visible", "all"] = "hidden",
    target_norm: Literal["layer", "none"] = "layer",
    heads: Literal["each", "one"] = "each",
    pixel_weight: float = 0.0,
    latent_weight: float = 1.0,
    latent_rise: Literal["constant", "cosine"] = "constant",
    decoder: Literal["joined", "separate"] = "joined",
    decoder_blocks: int | None = None,
    decoder_dim: int | None = None,
    decoder_depth: int | None = None,
    normalise: Literal["channel", "tubelet", "none"] = "channel",
    loss: Literal["mse", "l1"] = "mse",
) -> Finished:
    """LayerLock: blocks freeze from the bottom up, the newest frozen one becomes the target, pixels before that.

    tubelet pretrain layerlock --data clips/ --out runs/lock
    tubelet pretrain layerlock --data clips/ --out runs/frozen-mae --target pixels

    The schedule, printed as a table before the run: pixel_steps steps of pixels, then ``jump`` more blocks frozen
    every ``interval`` steps until ``deepest`` are; the learning rate climbs anew from nothing within ``restart``
    steps of each lock (0: no restart). Left out, they follow 4DS-G's proportions: locks from 33 % to 96 % of the
    run, two thirds of the blocks. target=pixels: progressive freezing alone.
    target_input: what the target pass reads; target_share: of the tokens that predict names, how many are
    predicted in the latent phase (the paper: .05 and 1); target_norm, heads: see `LayerLock`. pixel_weight: the pixel
    loss's weight once latents are the target (0: dropped, as in the paper); latent_weight, latent_rise: the latent
    loss's, constant or rising from 0 over the run as half a cosine.
    decoder=joined: learned tokens pass through the last decoder_blocks blocks (4, or a third of them) with the
    encoder's own; separate: VideoMAE's decoder of decoder_dim x decoder_depth.

    Paper (--schedule paper): 4DS-G, ViT 1664x48, 1B clips 16x224 at 95 % random masking on 256 TPU v6; 160,000
    steps of pixels, then a block every 10,000 until 32 are frozen. SSv2 66.1, K700 56.3, ScanNet .100 (MAE: 63.1,
    52.1, .102). Not found in the paper, and ours: optimizer, rates, batch (VideoMAE v2's giant, 2048), the length of
    the rate's restart, input and normalisation of targets, one head per target.
    """
    own: dict[str, Any] = {name: value for name, value in locals().items() if name != "knobs"}
    return _masked_pixels("layerlock", knobs, freeze=True, stop_gradient=True, **own)


def layerlock_collapse(
    knobs: Knobs,
    *,
    freeze: bool = False,
    stop_gradient: bool = False,
    pixel_steps: int | None = None,
    interval: int | None = None,
    deepest: int | None = None,
    latent_weight: float = 1.0,
    latent_rise: Literal["constant", "cosine"] = "constant",
    target_norm: Literal["layer", "none"] = "layer",
    decoder: Literal["joined", "separate"] = "joined",
    decoder_blocks: int | None = None,
) -> Finished:
    """LayerLock's collapse ablation: a latent loss on top of the pixel loss, without freezing (or --freeze).

    tubelet pretrain layerlock-collapse --data clips/ --out runs/unlocked
    tubelet pretrain layerlock-collapse --data clips/ --out runs/locked --freeze

    Both predict pixels and, with latent_weight, the latents of the layer that LayerLock's schedule names; only with
    --freeze do the blocks below it stop moving. Without it the gradient reaches the target too, which can then move to
    meet its predictor (--stop-gradient keeps it out: the target still moves, but not towards the prediction; whether
    the paper's ablation had it is not known). Paper, Table 3 (4DS-H): SSv2 50.1 with pixels alone, 3.7 with the
    latent loss at constant weight, 5.6 at a cosine weight. Weights and layers are not named there: ours.
    """
    given: dict[str, Any] = {name: value for name, value in locals().items() if name != "knobs"}
    return _masked_pixels(
        "layerlock-collapse", knobs, **{**_defaults(), "restart": 0, "pixel_weight": 1.0, **given}
    )


def vjepa_layerlock(
    knobs: Knobs,
    *,
    pixel_steps: int | None = None,
    interval: int | None = None,
    jump: int = 1,
    deepest: int | None = None,
    restart: int | None = None,
    teacher: Literal["average", "none"] = "average",
    momentum: tuple[float, float] | None = None,
    target_norm: Literal["layer", "none"] = "layer",
    heads: Literal["each", "one"] = "each",
    predictor_dim: int | None = None,
    predictor_depth: int | None = None,
) -> Finished:
    """V-JEPA + LayerLock: latents of the averaged teacher's block 1 first, then of the newest frozen block.

    tubelet pretrain vjepa-layerlock --data clips/ --out runs/vjepa-lock
    tubelet pretrain vjepa-layerlock --data clips/ --out runs/vjepa-lock --teacher none

    Masks, loss and predictor are V-JEPA's. pixel_steps: steps before the first lock (no pixels are predicted here:
    the first target is block 1); the other numbers of the schedule as in `layerlock`. teacher=none takes the targets
    from the encoder itself: fixed once frozen, but moving until the first lock.

    Paper (--schedule paper): V-JEPA ViT-L (90,000 steps of 3072 clips) with its average kept: SSv2 57.0, K700 43.5
    (V-JEPA: 52.1, 42.5). Without the average it does not collapse, but is worse. Its schedule was not found: 4DS-G's
    proportions, ours.
    """
    own: dict[str, Any] = {name: value for name, value in locals().items() if name != "knobs"}
    if teacher == "none" and momentum is not None:
        raise UserError("momentum is the average's, and teacher=none has none; leave one of them out")
    check_momentum(momentum)

    def locks(plan: Plan, depth: int) -> Locks:
        return locks_for(plan.steps, depth, 0, pixel_steps, interval, jump, deepest)

    def build(encoder: ViT, plan: Plan) -> LayerLock:
        average = momentum or plan.momentum
        assert average is not None
        predictor = predictor_for(encoder, knobs, None, 2, 24, predictor_dim, predictor_depth)
        return LayerLock(
            encoder,
            SeparateDecoder(predictor),
            choose_mask(knobs, "multiblock", 0.9, 2),
            locks(plan, encoder.depth),
            start="latents",
            momentum=Linear(*average, stretch=VJEPA_1.stretch) if teacher == "average" else None,
            target_norm=target_norm,
            heads=heads,
            loss="l1",
        )

    return _run("vjepa-layerlock", VJEPA_1, knobs, build, own, locks, restart, "block 1")


def _defaults() -> dict[str, Any]:
    """name -> default of the own knobs of `layerlock`."""
    parameters = inspect.signature(layerlock).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _masked_pixels(
    name: str,
    knobs: Knobs,
    *,
    freeze: bool,
    stop_gradient: bool,
    pixel_steps: int | None,
    interval: int | None,
    jump: int,
    deepest: int | None,
    restart: int | None,
    target: Literal["latents", "pixels"],
    target_input: Literal["full", "visible", "sampled"],
    target_share: float,
    predict: Literal["hidden", "visible", "all"],
    target_norm: Literal["layer", "none"],
    heads: Literal["each", "one"],
    pixel_weight: float,
    latent_weight: float,
    latent_rise: Literal["constant", "cosine"],
    decoder: Literal["joined", "separate"],
    decoder_blocks: int | None,
    decoder_dim: int | None,
    decoder_depth: int | None,
    normalise: Literal["channel", "tubelet", "none"],
    loss: Literal["mse", "l1"],
) -> Finished:
    """`layerlock` and `layerlock_collapse`; own knobs are the parameters."""
    own: dict[str, Any] = {key: value for key, value in locals().items() if key not in ("name", "knobs")}
    if not 0 < target_share <= 1:
        raise UserError(f"target_share={target_share}: must lie between 0 and 1")
    for knob, weight in (("pixel_weight", pixel_weight), ("latent_weight", latent_weight)):
        if not 0 <= weight < math.inf:
            raise UserError(f"{knob}={weight}: must be 0 or more")
    if target == "pixels":
        given = [knob for knob in LATENT_KNOBS if own[knob] != _defaults()[knob]]
        if given:
            raise UserError(f"{given[0]} is about latents, and target=pixels has none; leave it out")
    if target_input == "visible" and (predict != "visible" or target_share < 1):
        raise UserError(
            "target_input=visible knows the visible tokens alone; add --predict visible and leave target_share out"
        )
    if decoder == "separate" and decoder_blocks is not None:
        raise UserError("decoder_blocks belongs to decoder=joined; a separate decoder has a decoder_depth")
    if decoder == "joined" and (decoder_dim or decoder_depth):
        raise UserError(
            "decoder_dim and decoder_depth belong to decoder=separate; joined decodes in decoder_blocks"
        )

    def spare(depth: int) -> int:
        return (decoder_blocks or min(4, max(1, depth // 3))) if decoder == "joined" else 0

    def locks(plan: Plan, depth: int) -> Locks:
        return locks_for(plan.steps, depth, spare(depth), pixel_steps, interval, jump, deepest)

    def build(encoder: ViT, plan: Plan) -> LayerLock:
        weight = Cosine(0.0, latent_weight) if latent_rise == "cosine" else Constant(latent_weight)
        mask = choose_mask(knobs, "random", 0.95, 1)
        kinds = 2 if knobs.mask == "multiblock" else knobs.mask_kinds or 1
        decodes: Decoder
        if decoder == "joined":
            decodes = JoinedDecoder(encoder, spare(encoder.depth), kinds)
        else:
            decodes = SeparateDecoder(decoder_for(encoder, decoder_dim, decoder_depth, heads=False))
        aimed = mask if predict == "hidden" and target_share == 1 else Aimed(mask, predict, target_share)
        return LayerLock(
            encoder,
            decodes,
            mask,
            locks(plan, encoder.depth),
            latent_mask=aimed,
            latents=target == "latents",
            freeze=freeze,
            stop_gradient=stop_gradient,
            target_input=target_input,
            target_norm=target_norm,
            heads=heads,
            latent_weight=weight,
            pixel_weight=Constant(pixel_weight) if pixel_weight else None,
            loss=loss,
            normalise=normalise,
        )

    first = "pixels" if target == "latents" else None
    return _run(name, LAYERLOCK, knobs, build, own, locks, restart, first, freeze)


def _run(
    name: str,
    paper: Paper,
    knobs: Knobs,
    build: Build,
    own: dict[str, Any],
    locks: Callable[[Plan, int], Locks],
    restart: int | None,
    first: str | None,
    freeze: bool = True,
) -> Finished:
    """With the rate restarted at each lock and the schedule shown. first: the target before any lock."""

    def depth(plan: Plan) -> int:
        return parse_size(plan.model).depth

    def length(chosen: Locks) -> int:
        return round(RESTART * chosen.interval) if restart is None else restart

    def rate(lr: Schedule, plan: Plan) -> Schedule:
        chosen = locks(plan, depth(plan))
        at = tuple(step for step in chosen.steps() if 0 < step < plan.steps)
        return Restarted(lr, at, length(chosen)) if length(chosen) else lr

    def phases(plan: Plan) -> Table:
        chosen = locks(plan, depth(plan))
        return schedule_table(chosen, plan.steps, length(chosen), first, freeze)

    return pretrain(name, paper, knobs, build, own, rate=rate, phases=phases)


def locks_for(
    steps: int,
    depth: int,
    spare: int,
    pixel_steps: int | None,
    interval: int | None,
    jump: int,
    deepest: int | None,
) -> Locks:
    """What was given of the schedule, the rest in 4DS-G's proportions for a run of ``steps`` steps.

    deepest: two thirds of ``depth`` (32 of 48), and no block of the ``spare`` last ones. pixel_steps: 33 % of the
    run. interval: such that the last lock comes at 96 % of it. A run as long and deep as 4DS-G's gets its schedule.
    """
    if depth < 2:
        raise UserError(f"an encoder of {depth} block has none to freeze; use a deeper model")
    deepest = deepest or max(1, min(depth * 2 // 3, depth - max(1, spare)))
    first = round(steps * LOCKS_4DS_G.first / LAYERLOCK.steps) if pixel_steps is None else pixel_steps
    count = -(-deepest // jump)
    span = steps * LAST_LOCK / LAYERLOCK.steps - first
    return Locks(first, interval or max(1, round(span / max(1, count - 1))), jump, deepest)


def schedule_table(locks: Locks, steps: int, restart: int, first: str | None, freeze: bool) -> Table:
    """Steps, frozen blocks, target, and how the rate begins, of every phase that a run of ``steps`` steps reaches."""
    phases = locks.phases(steps)
    reached = phases[-1][2]
    title = "what freezes when" if freeze else "what becomes the target when (nothing freezes)"
    if reached < locks.deepest:
        title += f"; the run ends before block {reached + 1} of {locks.deepest} is reached"
    table = Table(title=title, title_justify="left")
    for column in ("steps", "frozen blocks", "target", "learning rate"):
        table.add_column(column, justify="right" if column == "steps" else "left")
    for begin, end, frozen in phases:
        goal = "pixels" if first is None else first if frozen == 0 else f"output of block {frozen}"
        shown = ("none" if not frozen else f"1 to {frozen}") if freeze else "none"
        climbs = f"climbs anew in {restart} steps" if begin and restart > 1 else "goes on" if begin else ""
        table.add_row(f"{begin} to {end - 1}", shown, goal, climbs)
    return table
