"""From knobs to a finished run folder: what every recipe does around its method."""

from __future__ import annotations

import functools
import logging
import math
import os
import platform
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch import nn

from tubelet.analysis.cost import cost, with_held
from tubelet.analysis.health import HealthMonitor, Verdict, keep, verdict
from tubelet.data.manifest import Manifest, read_manifest
from tubelet.data.stream import Stream
from tubelet.errors import UserError, mendable
from tubelet.export.weights import Encoder, Geometry, save_encoder
from tubelet.files import write_json, write_text
from tubelet.masks import MultiBlockMask, RandomMask, TubeMask
from tubelet.methods.method import Method
from tubelet.nn.tokens import build_positions
from tubelet.nn.vit import ViT, build_vit
from tubelet.recipes.beginning import begins_with, continues, read_source, size_of
from tubelet.recipes.fit import Fit, Paper, fit, init_std
from tubelet.recipes.footage import look_at, probe_clips
from tubelet.recipes.knobs import Knobs
from tubelet.recipes.origin import SAID, origin
from tubelet.report.training import load_metrics, run_report
from tubelet.train import checkpoint
from tubelet.train.folder import differences, plain, refuse_entry
from tubelet.train.loop import train
from tubelet.train.parallel import World, join
from tubelet.train.schedule import Schedule
from tubelet.train.settings import TrainSettings
from tubelet.train.spent import Spent, Summary
from tubelet.types import Batch, Grid, MaskSampler, Moment, Work

log = logging.getLogger("tubelet")
PROBE_CLIPS = 32
FLIP = 0.5
LOOKS = 64  # moments of a run that its mean cost is taken from
SLOW_DATA = 0.2  # share of the time spent waiting from which something is worth changing


@dataclass(frozen=True)
class Finished:
    """What a recipe leaves: the run folder, the method with its last weights, its cost and its health.

    chosen: every number that was open. planned: steps and FLOPs by part of the whole run, by formula, all its stages
    together; what a dry run is for (its summary has spent nothing).
    """

    folder: Path
    method: Method
    summary: Summary
    verdict: Verdict
    chosen: Fit
    planned: Planned


@dataclass(frozen=True)
class Planned:
    """What a whole run takes. steps: of the optimizer. flops: by part ("encoder", "teacher", ...)."""

    steps: int
    flops: dict[str, float]

    @property
    def total_flops(self) -> float:
        """FLOPs of all parts."""
        return sum(self.flops.values())

    def __add__(self, other: Planned) -> Planned:
        both = Counter(self.flops)
        both.update(other.flops)
        return Planned(self.steps + other.steps, dict(both))


class Plan(Protocol):
    """What a recipe may know of the run before its method is built."""

    @property
    def model(self) -> str:
        """Name or size of the encoder."""
        ...

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        ...

    @property
    def momentum(self) -> tuple[float, float] | None:
        """Of an averaged teacher, at the first step and at the end."""
        ...


Build = Callable[[ViT, Plan], Method]


@dataclass(frozen=True)
class Prepared:
    """Everything decided, nothing written. source: the encoder that the run begins with, of a resumed one its own."""

    method: Method
    chosen: Fit
    settings: TrainSettings
    geometry: Geometry
    readable: Manifest
    data_digest: str
    stream: Stream
    held: tuple[nn.Module, ...]
    source: Encoder | None


def pretrain(
    recipe: str,
    paper: Paper,
    knobs: Knobs,
    build: Build,
    own: Mapping[str, Any],
    *,
    share: float = 1.0,
    rate: Callable[[Schedule, Plan], Schedule] | None = None,
    phases: Callable[[Plan], Table] | None = None,
    loss_is_signal: bool = False,
    on_start: Callable[[], None] | None = None,
    joined: World | None = None,
    taught_by: Mapping[str, Any] | None = None,
) -> Finished:
    """Trains what ``build(encoder, plan)`` makes, in the run folder ``knobs.out``.

    own: the recipe's own knobs, for config.yaml. share: of the steps, where a recipe has stages. rate: what
    becomes of the learning rate's schedule. phases: a table to show before the run. loss_is_signal: the targets
    never move, so a lower loss is a better encoder. on_start: called in the main process when the folder is held
    and nothing speaks against the run. joined: the processes, if the recipe has joined them in a way of its own.
    taught_by: provenance of a finished encoder whose latents are the targets, the method's "teacher".
    Raises UserError for whatever is wrong with the data, a knob or the folder, before anything is written.
    """
    out = Path(knobs.out)
    with join(knobs.device) if joined is None else nullcontext(joined) as world:
        if not knobs.dry_run:
            world.on_main(lambda: refuse_entry(out, knobs.resume))
        ready = _prepare(recipe, paper, knobs, build, own, share, rate, world)
        method, chosen = ready.method, ready.chosen
        history = {
            "name": out.name,
            "recipe": recipe,
            "data": str(knobs.data),
            "split": knobs.split,
            "data_digest": ready.data_digest,
            "init_from": knobs.init_from,
            "branch_from": knobs.branch_from,
            **origin(knobs, None if ready.source is None else ready.source.provenance, taught_by),
        }

        def save_encoders(folder: Path, step: int) -> None:
            for number, (which, model) in enumerate(method.encoders().items()):
                name = "encoder" if number == 0 else f"encoder-{which}"
                about = {**history, "which": which, "step": step}
                if taught_by is not None and which == "teacher":
                    about = dict(taught_by)  # a finished teacher stays whose it was
                save_encoder(model, folder / name, ready.geometry, about)

        @functools.cache  # asked for at every step, and nearly always of the same work
        def price(work: tuple[Work, ...]) -> dict[str, float]:
            return _price(tuple(with_held(work, ready.held)))

        def work_at(moment: Moment) -> tuple[Work, ...]:
            return _work(method, chosen.crop_size, knobs, moment)

        planned = _planned(work_at, chosen, price)
        monitors = []
        if world.main:
            announce(recipe, chosen, method, planned, len(ready.readable), phases and phases(chosen))
            if ready.source is not None and not knobs.resume:
                log.info(continues(knobs, method, ready.source, ready.geometry))
        if knobs.dry_run:
            nothing = Summary(0, knobs.precision, Spent(), out)
            return Finished(out, method, nothing, Verdict("too early", None, "not started"), chosen, planned)
        if world.main:
            monitors.append(HealthMonitor(probe_clips(ready.readable, ready.geometry, PROBE_CLIPS)))
        started = False

        def start() -> None:
            nonlocal started
            started = True
            if not knobs.resume:
                given = {**asdict(knobs), **own}
                write_config(out, recipe, given, describe(chosen), ready.data_digest)
                write_json(out / "env.json", environment(world))
            if on_start is not None:
                on_start()

        try:
            summary = train(
                method,
                ready.stream,
                ready.settings,
                out,
                world=world,
                knobs=_identity(recipe, knobs, own, chosen, ready.data_digest),
                flops=lambda moment: price(work_at(moment)),
                monitors=monitors,
                on_save=save_encoders,
                on_start=start,
                held=ready.held,
                branch=None if knobs.branch_from is None else Path(knobs.branch_from),
                resume=knobs.resume,
            )
        finally:
            if started:
                _report_data(ready.stream, out, knobs.resume)
        if not world.main:
            return Finished(out, method, summary, Verdict("too early", None, ""), chosen, planned)
        save_encoders(out, summary.steps)
        health = _conclude(out, method, summary, chosen, loss_is_signal, history)
        return Finished(out, method, summary, health, chosen, planned)


def _prepare(
    recipe: str,
    paper: Paper,
    knobs: Knobs,
    build: Build,
    own: Mapping[str, Any],
    share: float,
    rate: Callable[[Schedule, Plan], Schedule] | None,
    world: World,
) -> Prepared:
    """Reads the data, decides what was left open, builds the method and tries it out."""
    out = Path(knobs.out)
    earlier = saved_config(out, recipe) if knobs.resume else None
    if earlier:
        refuse_other_knobs(out, earlier, {**asdict(knobs), **own})
    manifest, data_digest = read_videos(knobs)
    if earlier and earlier["data_digest"] != data_digest:
        raise UserError(
            f"{out} cannot be resumed: data={knobs.data} has changed since the run began (other files, "
            "stretches, labels, splits or verdicts). Give the data it was started with, or start a new run "
            "with another out"
        )
    manifest = manifest.without_labels()
    readable = manifest.readable()
    footage = look_at(readable)
    source = None if knobs.init_from is None else read_source(knobs)
    begun = None if source is None else begins_with(source)
    sized = knobs if begun is None else replace(knobs, model=size_of(begun))

    def step_flops(model: str, crop: int) -> float:
        method = _meta(knobs, paper, build, model)
        mean = _mean_price(lambda moment: _work(method, crop, knobs, moment), paper.steps, _price)
        return sum(mean.values())

    def choose() -> Fit:
        with mendable():
            return fit(
                paper,
                sized,
                footage,
                world.device,
                step_flops,
                share=share,
                known_steps=earlier["chosen"]["steps"] if earlier else None,
                unit=world.shards * math.lcm(knobs.clips_per_video, knobs.micro_batches),
            )

    chosen = world.on_main(choose)
    if source is not None:
        chosen.reasons["model"] = "init_from's"
    geometry = Geometry(knobs.frames, chosen.fps, chosen.frame_step or 1, chosen.crop_size)
    torch.manual_seed(knobs.seed)
    with mendable():
        if rate is not None:
            chosen = replace(chosen, lr=rate(chosen.lr, chosen))
        encoder = begun or new_encoder(knobs, paper, chosen.model)
        method = build(encoder, chosen).to(world.device)
        _try_out(method, knobs, chosen)
    if knobs.freeze_layers > encoder.depth:
        raise UserError(f"freeze_layers={knobs.freeze_layers}: the encoder has {encoder.depth} blocks")
    held = encoder.section(0, knobs.freeze_layers) if knobs.freeze_layers else ()
    settings = _settings(knobs, chosen)
    settings.micro_batch_size(world.shards)  # refused before anything is written
    stream = Stream(
        manifest,
        seed=knobs.seed,
        batch_size=chosen.batch_size,
        frames=knobs.frames,
        fps=chosen.fps,
        frame_step=chosen.frame_step,
        crop_size=chosen.crop_size,
        area=knobs.area,
        aspect=knobs.aspect,
        flip=FLIP if knobs.flip is None else knobs.flip,
        clips_per_video=knobs.clips_per_video,
        windows=chosen.window,
        workers=knobs.workers,
        cache_dir=knobs.cache_dir,
        max_replaced=knobs.max_replaced,
        rank=world.shard,
        world=world.shards,
        device=world.device,
    )
    return Prepared(method, chosen, settings, geometry, readable, data_digest, stream, held, source)


def choose_mask(knobs: Knobs, default: str, ratio: float, kinds: int) -> MaskSampler:
    """The mask policy that the knobs ask for; ``default``, ``ratio`` and ``kinds`` are the paper's."""
    kind = knobs.mask or default
    if kind == "multiblock":
        return MultiBlockMask(context_frames=knobs.context_frames, cut=knobs.mask_cut)
    chosen = RandomMask if kind == "random" else TubeMask
    return chosen(ratio if knobs.mask_ratio is None else knobs.mask_ratio, knobs.mask_kinds or kinds)


def describe(chosen: Fit) -> dict[str, Any]:
    """What was chosen, ready for YAML; schedules by name and numbers."""
    return {
        **{name: value for name, value in vars(chosen).items()},
        "lr": chosen.lr.describe(),
        "weight_decay": chosen.weight_decay.describe(),
    }


def announce(
    recipe: str,
    chosen: Fit,
    method: Method,
    planned: Planned,
    videos: int,
    phases: Table | None = None,
) -> None:
    """Prints what will run, why each number was chosen, what happens when, and what it will cost."""
    table = Table(
        title=f"{recipe}: {videos} videos, {chosen.windows} clips' length of footage", title_justify="left"
    )
    for column in ("knob", "value", "because"):
        table.add_column(column)
    values = describe(chosen)
    for name, reason in chosen.reasons.items():
        shown = f"{values['lr']['peak']:.3g} at its peak" if name == "lr" else str(values.get(name))
        table.add_row(name, shown, reason)
    console = Console(stderr=True)
    console.print(table)
    if phases is not None:
        console.print(phases)
    total = planned.total_flops
    parts = ", ".join(f"{part} {share / total:.0%}" for part, share in planned.flops.items())
    parameters = sum(p.numel() for p in method.encoder.parameters())
    console.print(
        f"encoder {parameters / 1e6:.1f} M parameters; {total / (chosen.batch_size * chosen.steps) / 1e9:.2f} GFLOP a "
        f"clip ({parts}); {total:.3g} FLOP in all"
    )


def environment(world: World) -> dict[str, Any]:
    """Versions, machine and commit, for env.json."""
    commit = None
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10
        )
        commit = found.stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        pass  # no git, or not a checkout: the versions below still tell
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("tubelet", "torch", "numpy", "av")},
        "commit": commit,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(world.device),
        "gpu": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None,
        "processes": world.size,
        "command": sys.argv,
    }


def _conclude(
    out: Path,
    method: Method,
    summary: Summary,
    chosen: Fit,
    loss_is_signal: bool,
    history: Mapping[str, Any],
) -> Verdict:
    """run.json, the verdict in words, and the report."""
    rows = load_metrics(out / "metrics.jsonl")
    health = verdict(rows)
    steps = [checkpoint.step_of(path) for path in checkpoint.found(out / "checkpoints")]
    best = keep(rows, steps, loss_is_signal)
    write_json(
        out / "run.json",
        {
            "finished": True,
            "steps": summary.steps,
            "precision": summary.precision,
            **asdict(summary.spent),
            "train_flops": summary.spent.total_flops,
            "verdict": asdict(health),
            "keep": asdict(best),
            "encoders": list(method.encoders()),
            "windows": chosen.windows,
            **{name: history[name] for name in ("init_from", *SAID) if name in history},
        },
    )
    waited = [row["time/data_frac"] for row in rows if "time/data_frac" in row]
    if waited and statistics.median(waited) > SLOW_DATA:
        log.info(
            f"training waited for videos {statistics.median(waited):.0%} of the time: --cache-dir keeps decoded "
            "frames, --clips-per-video cuts several clips from each read, --workers reads with more processes"
        )
    log.info(health.sentence)
    log.info(best.sentence)
    run_report(out)
    log.info(f"encoder: {out / 'encoder'}; report: {out / 'report.html'}")
    return health


def write_config(
    out: Path, recipe: str, knobs: Mapping[str, Any], chosen: Mapping[str, Any] | None, data_digest: str
) -> None:
    """config.yaml: what the user gave, what was chosen from it (None: not yet), and which data it was."""
    config = {"recipe": recipe, "knobs": knobs, "chosen": chosen, "data_digest": data_digest}
    write_text(out / "config.yaml", yaml.safe_dump(plain(config), sort_keys=False))


def saved_config(out: Path, recipe: str) -> dict[str, Any] | None:
    """The config.yaml in ``out``, or None; raises UserError if it is of another recipe, or cannot be read."""
    file = out / "config.yaml"
    if not file.is_file():
        return None
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged ({error}); put back what the run wrote there") from error
    if not isinstance(config, dict) or not config.keys() >= {"recipe", "knobs", "chosen", "data_digest"}:
        raise UserError(f"{file} is damaged (keys are missing); put back what the run wrote there")
    if config["recipe"] != recipe:
        raise UserError(f'{out} is a run of "{config["recipe"]}", not of "{recipe}"; resume it by that name')
    return config


def read_videos(knobs: Knobs) -> tuple[Manifest, str]:
    """The videos of ``knobs.data``, of the splits that were asked for, and a digest of the readable ones."""
    manifest = read_manifest(knobs.data)
    if knobs.split is not None:
        manifest = manifest.with_split(*knobs.split.split(","))
    readable = manifest.readable()
    if not len(readable):
        first = manifest.videos[0]
        raise UserError(
            f"{knobs.data}: none of its {len(manifest)} videos can be read, for instance {first.path}: {first.reason}"
        )
    return manifest, readable.digest()


def refuse_other_knobs(out: Path, earlier: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises UserError naming the knobs that are not as config.yaml in ``out`` has them."""
    if changed := differences(earlier["knobs"], given, NO_MATTER | WRITING):
        raise UserError(
            f"{out} cannot be resumed with other knobs: {'; '.join(changed)}. "
            "Give what it was started with, or start a new run with another out"
        )


def _report_data(stream: Stream, out: Path, resumed: bool) -> None:
    """data_report.csv; a disk that is full must not hide why training ended."""
    try:
        stream.write_report(out / "data_report.csv", go_on=resumed)
    except UserError as error:
        log.warning(str(error))


def new_encoder(knobs: Knobs, paper: Paper, model: str) -> ViT:
    """An untrained encoder of the size ``model``, cut and positioned as the knobs say; ValueError if it cannot be."""
    patch = (knobs.tubelet_size, knobs.patch_size, knobs.patch_size)
    positions = build_positions(knobs.positions or paper.positions, knobs.positions_base)
    return build_vit(model, patch, positions=positions, init_std=init_std(knobs, model))


def _try_out(method: Method, knobs: Knobs, chosen: Fit) -> None:
    """One clip through the method as it begins and as it ends: what does not fit shows now, not in a later phase."""
    crop = chosen.crop_size
    clip = torch.zeros(1, method.encoder.channels, knobs.frames, crop, crop)
    batch = Batch(clip, torch.zeros(1, dtype=torch.int64)).to(next(method.parameters()).device)
    for step in (0, chosen.steps - 1):
        for _ in method(batch, Moment(step, chosen.steps)):
            pass


def _meta(knobs: Knobs, paper: Paper, build: Build, model: str) -> Method:
    """The method without memory, to count with."""
    with torch.device("meta"):
        positions = build_positions(knobs.positions or paper.positions, knobs.positions_base)
        patch = (knobs.tubelet_size, knobs.patch_size, knobs.patch_size)
        return build(build_vit(model, patch, positions=positions), paper)


def _work(method: Method, crop: int, knobs: Knobs, moment: Moment) -> tuple[Work, ...]:
    """Every pass that one clip pays for in training."""
    t, h, w = method.encoder.patch
    return tuple(method.work(Grid(knobs.frames // t, crop // h, crop // w), moment))


def _planned(
    work: Callable[[Moment], tuple[Work, ...]],
    chosen: Fit,
    price: Callable[[tuple[Work, ...]], Mapping[str, float]],
) -> Planned:
    """What the run will be charged with: the same sum, step by step, as while it trains."""
    total: Counter[str] = Counter()
    for works, steps in Counter(work(Moment(step, chosen.steps)) for step in range(chosen.steps)).items():
        total.update({part: flops * steps * chosen.batch_size for part, flops in price(works).items()})
    return Planned(chosen.steps, dict(total))


def _mean_price(
    work: Callable[[Moment], tuple[Work, ...]],
    steps: int,
    price: Callable[[tuple[Work, ...]], Mapping[str, float]],
) -> dict[str, float]:
    """FLOPs of a clip by part, on average over a run of ``steps`` steps (`LOOKS` moments of it)."""
    total: dict[str, float] = {}
    moments = sorted({int((i + 0.5) * steps / LOOKS) for i in range(LOOKS)})
    for step in moments:
        for part, flops in price(work(Moment(step, steps))).items():
            total[part] = total.get(part, 0.0) + flops / len(moments)
    return total


def _price(work: tuple[Work, ...]) -> dict[str, float]:
    """FLOPs by part."""
    return {name: part.total for name, part in cost(work).parts.items()}


def _settings(knobs: Knobs, chosen: Fit) -> TrainSettings:
    return TrainSettings(
        steps=chosen.steps,
        batch_size=chosen.batch_size,
        lr=chosen.lr,
        weight_decay=chosen.weight_decay,
        betas=chosen.betas,
        clip=chosen.clip,
        clip_per=chosen.clip_per,
        clip_from=chosen.clip_from,
        micro_batches=knobs.micro_batches,
        precision=knobs.precision,
        seed=knobs.seed,
        save_every=knobs.save_every or min(1000, max(1, chosen.steps // 10)),
        keep=knobs.keep,
        keep_every=knobs.keep_every,
        log_every=knobs.log_every,
        monitor_every=knobs.health_every or max(1, chosen.steps // 20),
        tensorboard=knobs.tensorboard,
    )


# Where things lie, how the work is shared out and whose the weights are change no number.
# Data is compared by its digest.
NO_MATTER = {
    "data",
    "out",
    "resume",
    "dry_run",
    "workers",
    "cache_dir",
    "device",
    "hours",
    "max_replaced",
    "licence",
}
WRITING = {"save_every", "keep", "keep_every", "log_every", "health_every", "tensorboard"}


def _identity(
    recipe: str, knobs: Knobs, own: Mapping[str, Any], chosen: Fit, data_digest: str
) -> dict[str, Any]:
    """What must be the same for a resume to be the same run: every open knob resolved."""
    resolved = {name: value for name, value in describe(chosen).items() if name not in ("reasons", "windows")}
    asked = {k: v for k, v in asdict(knobs).items() if k not in NO_MATTER | WRITING}
    return {"recipe": recipe, "data_digest": data_digest, **asked, **own, **resolved}
