"""The knobs that every recipe has. One name everywhere: Python argument, command-line option, key in config.yaml."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_type_hints

from tubelet.errors import UserError


def knob(default: Any, about: str) -> Any:
    """A dataclass field with its one-line description."""
    return field(default=default, metadata={"about": about})


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """What the user chose; None means "follows from the data, the machine and the paper" (see `recipes.fit`)."""

    data: str = knob("", "folder of videos, list file, or a scan's manifest")
    out: str = knob("", "run folder to write")
    split: str | None = knob(None, "train on the rows of this split alone, such as train (default: on all)")
    resume: bool = knob(False, "go on with the run in OUT")
    dry_run: bool = knob(False, "say what would run and what it would cost, and stop; nothing is written")
    schedule: Literal["fit", "paper"] = knob(
        "fit", "fit: sizes and rates follow from the data and the machine; paper: the paper's, to the letter"
    )
    hours: float | None = knob(None, "fit: longest training time to plan for (1 on a CPU, 12 on a GPU)")
    model: str | None = knob(None, "vit_tiny, vit_small, vit_base, ... or WIDTHxDEPTHxHEADS[xMLP]")
    init_from: str | None = knob(None, "an encoder to start from instead of random weights")
    init_which: str | None = knob(None, "which encoder of init_from, where it has several")
    init_heads: int | None = knob(None, "attention heads of init_from, where no size that is known tells")
    init_allow_partial: bool = knob(False, "take what fits of init_from, and leave the rest random")
    branch_from: str | None = knob(
        None,
        "a checkpoint of another run to go on from exactly, optimizer and step included, with other knobs",
    )
    licence: str | None = knob(
        None, "of the weights that are trained (default: that of those they are made from, or yours)"
    )
    freeze_layers: int = knob(0, "keep the embedding and the first n blocks as they are")
    steps: int | None = knob(None, "optimizer steps")
    batch_size: int | None = knob(None, "clips per step, over all processes")
    micro_batches: int = knob(1, "parts of a process's share, one after the other, to save memory")
    frames: int = knob(16, "frames per clip")
    fps: float | None = knob(None, "sample this many frames a second (instead of frame_step)")
    frame_step: int | None = knob(None, "take every n-th frame")
    crop_size: int | None = knob(None, "height and width of a clip in pixels")
    patch_size: int = knob(16, "height and width of a token in pixels")
    tubelet_size: int = knob(2, "frames of a token")
    positions: (
        Literal["rotary", "rotary_legacy", "rotary_scaled", "rotary_tokens", "sincos", "sincos_flat"] | None
    ) = knob(
        None,
        "how tokens know where they are (default: the paper's; rotary_legacy: as published V-JEPA 2 weights, "
        "rotary_scaled: as V-JEPA 2.1's; rotary_tokens: LayerLock's)",
    )
    positions_base: float = knob(
        10000.0, "longest wave of the positions; a small grid learns sooner with less"
    )
    init_std: float | None = knob(
        None, "width of the first weights (default: .02 at 1024 wide, growing as 1/sqrt(width))"
    )
    mask: Literal["multiblock", "tube", "random"] | None = knob(None, "what is hidden (default: the paper's)")
    mask_ratio: float | None = knob(None, "share of tokens hidden by tube and random masks")
    mask_kinds: int | None = knob(None, "masks per clip for tube and random masks")
    mask_cut: Literal["constant", "minimum"] = knob(
        "constant", "multi-block: equal counts always, or as published"
    )
    context_frames: float = knob(1.0, "multi-block: share of first frames that may be seen (below 1: causal)")
    lr: float | None = knob(None, "peak learning rate")
    warmup: int | None = knob(None, "steps until the peak learning rate")
    weight_decay: float | None = knob(None, "constant weight decay (default: the paper's schedule)")
    clip: float | None = knob(None, "largest gradient norm (default: the paper's; inf for none)")
    flip: float | None = knob(
        None, "probability of a horizontal flip; 0 where left and right differ in meaning"
    )
    area: tuple[float, float] = knob((0.3, 1.0), "random crops: smallest and largest share of the picture")
    aspect: tuple[float, float] = knob((0.75, 1.35), "random crops: smallest and largest width to height")
    clips_per_video: int = knob(1, "clips cut from a video each time that it is read")
    max_replaced: float = knob(0.05, "stop when more than this share of clips cannot be read")
    workers: int | None = knob(
        None, "processes that read videos (default: one less than the cores, at most 8)"
    )
    cache_dir: str | None = knob(None, "folder for decoded frames, so that each video is decoded once")
    device: str = knob("auto", "cpu, cuda, mps, cuda:1, ...")
    precision: Literal["auto", "fp32", "bf16"] = knob("auto", "bf16 where it pays")
    seed: int = knob(0, "fixes weights, order, crops and masks")
    save_every: int | None = knob(
        None, "steps between checkpoints (default: a tenth of the run, at most 1000)"
    )
    keep: int = knob(2, "newest checkpoints that stay")
    keep_every: int = knob(0, "checkpoints at multiples of this stay too")
    log_every: int = knob(1, "steps between lines of metrics.jsonl")
    health_every: int | None = knob(
        None, "steps between looks at the features (default: a twentieth of the run)"
    )
    tensorboard: bool = knob(False, "also write TensorBoard events")

    def __post_init__(self) -> None:
        for name in ("data", "out"):
            if not getattr(self, name):
                raise UserError(f"{name} is not given; add --{name} PATH")
        if self.fps is not None and self.frame_step is not None:
            raise UserError("fps and frame_step were both given; sample by one of them")
        if self.init_from is not None and self.branch_from is not None:
            raise UserError("init_from and branch_from were both given; a run starts from one of them")
        for name in ("init_which", "init_heads", "init_allow_partial"):
            if self.init_from is None and getattr(self, name):
                raise UserError(f"{name} is about the encoder of init_from, and there is none; leave it out")
        if self.freeze_layers < 0:
            raise UserError(f"freeze_layers={self.freeze_layers}: must be 0 or more")
        if self.hours is not None and not self.hours > 0:
            raise UserError(f"hours={self.hours}: must be above 0")
        for name in (
            "micro_batches",
            "frames",
            "patch_size",
            "tubelet_size",
            "clips_per_video",
            "keep",
            "log_every",
        ):
            _at_least_one(name, getattr(self, name))
        for name in (
            "steps",
            "batch_size",
            "frame_step",
            "crop_size",
            "save_every",
            "health_every",
            "mask_kinds",
        ):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        for name in ("fps", "lr", "clip", "positions_base", "init_std"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name}={value}: must be above 0")
        for name in ("weight_decay", "warmup"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UserError(f"{name}={value}: must be 0 or more")
        for name in ("flip", "context_frames", "max_replaced", "mask_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name}={value}: must lie between 0 and 1")
        if self.frames % self.tubelet_size:
            raise UserError(
                f"frames={self.frames} does not divide into tubelets of {self.tubelet_size} frames; "
                f"use frames={max(self.tubelet_size, self.frames - self.frames % self.tubelet_size)}"
            )
        if self.crop_size is not None and self.crop_size % self.patch_size:
            lower = max(self.patch_size, self.crop_size - self.crop_size % self.patch_size)
            raise UserError(
                f"crop_size={self.crop_size} does not divide into patches of {self.patch_size} pixels; "
                f"use crop_size={lower} or {lower + self.patch_size}"
            )


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name}={value}: must be at least 1")


def about_knobs() -> dict[str, tuple[Any, Any, str]]:
    """name -> (type, default, description) of every shared knob, for the command line and the docs."""
    hints = get_type_hints(Knobs)
    return {f.name: (hints[f.name], f.default, f.metadata["about"]) for f in fields(Knobs)}
