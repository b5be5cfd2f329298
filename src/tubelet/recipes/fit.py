"""From a paper's recipe to one for the videos and the machine at hand, with a reason for every number.

Papers train on millions of clips and a hundred GPUs. What carries over to 500 clips and one machine is not
their numbers but their proportions. Ours, and where each comes from:

* a window is a stretch of video one clip long; a set has as many as fit (at least one a video);
* frame_step: the paper's, or less where half of the videos would be shorter than a clip;
* crop_size: the paper's, but not larger than the typical video's short side, and at most 112 on a CPU;
* model: vit_tiny on a CPU, vit_small on a GPU: larger ones do not pay on small sets;
* batch_size: the largest power of two up to 64 (CPU) or 256 (GPU) that the set can fill;
* steps: as many as show every window 400 times (the papers: 140 times two million clips, 3,200 times UCF101's
  nine thousand), at least 500, at most the paper's, and no more than ``hours`` allow on this machine;
* lr: the paper's times sqrt(batch/paper's batch), the rule for Adam, times paper's width/width;
* warm-up, cooldown and the averaging horizon 1/(1-momentum): the paper's share of the run, but the horizon no
  less than 100 steps: a teacher that runs closer after its student collapses with it (docs/log.md).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from tubelet.nn.vit import MODELS, parse_size
from tubelet.recipes.knobs import Knobs
from tubelet.train.schedule import Constant, Cosine, Schedule, WarmupConstantLinear, WarmupCosine

PASSES = 400
SHORTEST = 100  # steps that a teacher averages over, unless the paper's averages over fewer
HOURS = {"cpu": 1.0, "cuda": 12.0, "mps": 12.0}


@dataclass(frozen=True)
class Paper:
    """The numbers of a published recipe.

    lr: at the first step, at the peak, at the end. weight_decay: at the start and the end. cooldown: steps of
    a linear fall after a constant plateau; 0 for a cosine. stretch: schedules are computed over that many
    times the steps. clip_from: first step with clipped gradients.
    """

    source: str
    model: str
    steps: int
    batch_size: int
    lr: tuple[float, float, float]
    warmup: int
    weight_decay: tuple[float, float]
    betas: tuple[float, float]
    crop_size: int = 224
    frame_step: int = 4
    fps: float | None = None
    cooldown: int = 0
    stretch: float = 1.0
    clip: float | None = None
    clip_per: Literal["all", "module"] = "all"
    clip_from: int = 0
    momentum: tuple[float, float] | None = None
    positions: str = "rotary"


@dataclass(frozen=True)
class Footage:
    """What is known of the videos: frames, frames per second and short side of each, in pixels."""

    videos: int
    frames: list[int]
    fps: list[float]
    short_side: list[int]

    def windows(self, seconds: float) -> int:
        """How many stretches of that many seconds there are, at least one a video."""
        return sum(max(1, int(n / rate / seconds)) for n, rate in zip(self.frames, self.fps, strict=True))

    def seconds(self, frames: int, fps: float | None, frame_step: int | None) -> float:
        """How long a clip lasts, at the videos' median rate."""
        return frames / (fps or statistics.median(self.fps) / (frame_step or 1))


@dataclass(frozen=True)
class Fit:
    """Everything that was open, decided, and why."""

    model: str
    steps: int
    batch_size: int
    crop_size: int
    frame_step: int | None
    fps: float | None
    lr: Schedule
    weight_decay: Schedule
    warmup: int
    betas: tuple[float, float]
    clip: float | None
    clip_per: Literal["all", "module"]
    clip_from: int
    windows: int
    window: float
    momentum: tuple[float, float] | None
    reasons: dict[str, str]


def fit(
    paper: Paper,
    knobs: Knobs,
    footage: Footage,
    device: torch.device,
    step_flops: Callable[[str, int], float],
    flops_per_s: Callable[[], float] | None = None,
    share: float = 1.0,
    known_steps: int | None = None,
    unit: int = 1,
) -> Fit:
    """Resolves every knob that was left open.

    step_flops(model, crop_size): FLOPs of one clip in training. flops_per_s: what the machine sustains
    (measured if not given); asked for only if steps are open. share: of the steps, for one stage of several.
    known_steps: of a run that is resumed, already shared out. unit: what a batch must be a multiple of.
    """
    if knobs.schedule == "paper":
        return _to_the_letter(paper, knobs, footage, share)
    why: dict[str, str] = {}
    on_cpu = device.type == "cpu"

    fps, frame_step = _sampling(paper, knobs, footage, why)
    model = knobs.model or ("vit_tiny" if on_cpu else "vit_small")
    why["model"] = _given(knobs.model) or (
        "small enough for a CPU" if on_cpu else "small enough for small sets"
    )
    crop = knobs.crop_size or _crop(paper, knobs, footage, on_cpu)
    why["crop_size"] = _given(knobs.crop_size) or (
        f"the paper's {paper.crop_size}, at most the videos' short side"
        + (", at most 112 on a CPU" if on_cpu else "")
    )

    window = footage.seconds(knobs.frames, fps, frame_step)
    windows = footage.windows(window)
    cap = 64 if on_cpu else 256
    units = max(1, min(cap, windows * knobs.clips_per_video) // unit)
    batch = knobs.batch_size or unit * 2 ** int(math.log2(units))
    why["batch_size"] = (
        _given(knobs.batch_size) or f"largest power of two up to {cap} that {windows} windows fill"
    )

    if knobs.steps is not None:
        steps, why["steps"] = max(1, round(knobs.steps * share)), "given"
    elif known_steps is not None:
        steps, why["steps"] = known_steps, "as the run began"
    else:
        flops = step_flops(model, crop)
        steps = max(1, round(share * _steps(paper, knobs, windows, batch, device, flops, flops_per_s, why)))
    if share != 1 and known_steps is None:
        why["steps"] += f"; {share:.0%} of them for this stage"

    width = parse_size(model).dim
    scale = math.sqrt(batch / paper.batch_size) * MODELS[paper.model].dim / width
    peak = knobs.lr or paper.lr[1] * scale
    why["lr"] = _given(knobs.lr) or (
        f"the paper's {paper.lr[1]:g} x sqrt({batch}/{paper.batch_size}) x {MODELS[paper.model].dim}/{width}"
    )
    warmup = round(steps * paper.warmup / paper.steps) if knobs.warmup is None else knobs.warmup
    why["warmup"] = _given(knobs.warmup) or f"{paper.warmup / paper.steps:.0%} of the run, as in the paper"
    momentum = paper.momentum
    if momentum is not None:
        first, last = momentum
        momentum = _horizon(first, steps / paper.steps), _horizon(last, steps / paper.steps)
        why["momentum"] = "averages over the same share of the run as the paper, and over 100 steps at least"
    return Fit(
        model=model,
        steps=steps,
        batch_size=batch,
        crop_size=crop,
        frame_step=frame_step,
        fps=fps,
        lr=_rate(paper, peak, warmup, round(steps * paper.cooldown / paper.steps)),
        weight_decay=_decay(paper, knobs),
        warmup=warmup,
        betas=paper.betas,
        clip=_clip(paper, knobs),
        clip_per=paper.clip_per,
        clip_from=round(steps * paper.clip_from / paper.steps),
        windows=windows,
        window=window,
        momentum=momentum,
        reasons=why,
    )


def init_std(knobs: Knobs, model: str) -> float:
    """The paper's .02, which belongs to widths of 1024 and more; narrower encoders start larger, as 1/sqrt(width).

    With .02 a narrow encoder sits on a plateau for its first thousand steps (ours; docs/log.md has the trials).
    """
    if knobs.init_std is not None:
        return knobs.init_std
    if knobs.schedule == "paper":
        return 0.02
    return 0.02 * max(1.0, math.sqrt(1024 / parse_size(model).dim))


def measure_flops_per_s(device: torch.device) -> float:
    """Multiply-adds (counted as 2) that this machine sustains in a transformer's matrices, fp32 on CPU.

    Half of what plain products of a typical shape reach in about half a second: a training step also
    normalises, moves and waits (ours).
    """
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    a = torch.randn(1024, 384, device=device, dtype=dtype)
    b = torch.randn(384, 1536, device=device, dtype=dtype)
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < 0.5:
        for _ in range(10):
            (a @ b).sum().item()
        done += 10
    return 0.5 * done * 2 * 1024 * 384 * 1536 / elapsed


def _to_the_letter(paper: Paper, knobs: Knobs, footage: Footage, share: float) -> Fit:
    model = knobs.model or paper.model
    steps = max(1, round(knobs.steps * share)) if knobs.steps else paper.steps
    fps = knobs.fps if knobs.fps is not None or knobs.frame_step is not None else paper.fps
    frame_step = None if fps else knobs.frame_step or paper.frame_step
    warmup = paper.warmup if knobs.warmup is None else knobs.warmup
    window = footage.seconds(knobs.frames, fps, frame_step)
    return Fit(
        model=model,
        steps=steps,
        batch_size=knobs.batch_size or paper.batch_size,
        crop_size=knobs.crop_size or paper.crop_size,
        frame_step=frame_step,
        fps=fps,
        lr=_rate(paper, knobs.lr or paper.lr[1], warmup, paper.cooldown),
        weight_decay=_decay(paper, knobs),
        warmup=warmup,
        betas=paper.betas,
        clip=_clip(paper, knobs),
        clip_per=paper.clip_per,
        clip_from=paper.clip_from,
        windows=footage.windows(window),
        window=window,
        momentum=paper.momentum,
        reasons={"schedule": f"to the letter: {paper.source}"},
    )


def _rate(paper: Paper, peak: float, warmup: int, cooldown: int) -> Schedule:
    start, end = (paper.lr[i] / paper.lr[1] * peak for i in (0, 2))
    if paper.cooldown:
        return WarmupConstantLinear(start, peak, end, warmup, cooldown, paper.stretch)
    return WarmupCosine(start, peak, end, warmup, paper.stretch)


def _decay(paper: Paper, knobs: Knobs) -> Schedule:
    if knobs.weight_decay is not None:
        return Constant(knobs.weight_decay)
    start, end = paper.weight_decay
    return Constant(start) if start == end else Cosine(start, end, paper.stretch)


def _clip(paper: Paper, knobs: Knobs) -> float | None:
    if knobs.clip is None:
        return paper.clip
    return None if math.isinf(knobs.clip) else knobs.clip


def _sampling(
    paper: Paper, knobs: Knobs, footage: Footage, why: dict[str, str]
) -> tuple[float | None, int | None]:
    if knobs.fps is not None:
        why["fps"] = "given"
        return knobs.fps, None
    if knobs.frame_step is not None:
        why["frame_step"] = "given"
        return None, knobs.frame_step
    step = paper.frame_step
    if paper.fps is not None:
        step = max(1, round(statistics.median(footage.fps or [30.0]) / paper.fps))
    longest = statistics.median(footage.frames) if footage.frames else knobs.frames * step
    fitting = max(1, min(step, int(longest // knobs.frames)))
    why["frame_step"] = (
        "the paper's spacing" if fitting == step else "half of the videos are too short for more"
    )
    return None, fitting


def _crop(paper: Paper, knobs: Knobs, footage: Footage, on_cpu: bool) -> int:
    side = min(paper.crop_size, int(statistics.median(footage.short_side)) if footage.short_side else 224)
    side = min(side, 112) if on_cpu else side
    return max(knobs.patch_size, side - side % knobs.patch_size)


def _steps(
    paper: Paper,
    knobs: Knobs,
    windows: int,
    batch: int,
    device: torch.device,
    clip_flops: float,
    flops_per_s: Callable[[], float] | None,
    why: dict[str, str],
) -> int:
    wanted = max(500, math.ceil(PASSES * windows / batch))
    reason = f"{windows} windows shown {PASSES} times" if wanted > 500 else "the least that teaches anything"
    if wanted > paper.steps:
        wanted, reason = paper.steps, "the paper's"
    hours = knobs.hours or HOURS.get(device.type, 12.0)
    rate = flops_per_s() if flops_per_s else measure_flops_per_s(device)
    possible = max(100, int(hours * 3600 * rate / (clip_flops * batch)))
    if possible < wanted:
        wanted, reason = (
            possible,
            f"what {hours:g} h allow at about {rate / 1e9:.0f} GFLOP/s (more with --hours)",
        )
    why["steps"] = reason
    return wanted


def _horizon(momentum: float, share: float) -> float:
    """The momentum whose averaging horizon 1/(1-m) is ``share`` times as long, at least `SHORTEST`; 1 stays 1."""
    if momentum == 1:
        return momentum
    return max(min(momentum, 1 - 1 / SHORTEST), 1 - min(1.0, (1 - momentum) / share))


def _given(value: object) -> str:
    return "given" if value is not None else ""
