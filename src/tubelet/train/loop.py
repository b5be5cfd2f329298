"""The loop that every method is trained by. It knows the contract, and no method."""

from __future__ import annotations

import hashlib
import logging
import math
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tubelet.errors import UserError
from tubelet.files import write_json
from tubelet.methods.method import Method
from tubelet.train import checkpoint
from tubelet.train.folder import enter, plain, read_branch, refuse_changes, sole_owner
from tubelet.train.optim import Optimizer, copy_into
from tubelet.train.parallel import World
from tubelet.train.precision import resolve_precision
from tubelet.train.report import duration, open_report
from tubelet.train.settings import TrainSettings
from tubelet.train.signals import Stopped, catch_signals
from tubelet.train.spent import Spent, Summary, core_seconds, peak_memory
from tubelet.types import Batch, Loss, Moment

log = logging.getLogger("tubelet")

# What is measured while training: called in the main process, in eval mode and without autograd.
Monitor = Callable[[Moment, Method], Mapping[str, float]]
# FLOPs of one clip at a moment, by part ("encoder", "teacher", ...).
Flops = Callable[[Moment], Mapping[str, float]]


class Stream(Protocol):
    """Where batches come from: this process's share of every step's, in an order fixed by the seed."""

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Without end: the batch of ``start_step``, then of the steps after it."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """Numbers to log with every step."""
        ...

    def close(self) -> None:
        """Stop workers; called once, when training ends for whatever reason."""
        ...


def train(
    method: Method,
    stream: Stream,
    settings: TrainSettings,
    run: Path,
    *,
    world: World | None = None,
    knobs: Mapping[str, Any] | None = None,
    flops: Flops | None = None,
    monitors: Sequence[Monitor] = (),
    on_save: Callable[[Path, int], None] | None = None,
    on_start: Callable[[], None] | None = None,
    held: Sequence[nn.Module] = (),
    branch: Path | None = None,
    resume: bool = False,
) -> Summary:
    """Train ``method`` for ``settings.steps`` steps in the folder ``run``, or go on where it stopped.

    method: already on ``world.device`` (default: one process, CPU). knobs: what the user chose; a resume with
    others is refused. monitors: called before step 0, every ``settings.monitor_every`` steps, and after the
    last, whose line has the number ``settings.steps``. on_save(folder, step): writes further files (an
    encoder) into a checkpoint before it is complete. on_start: called in the main process once ``run`` is held
    and nothing speaks against writing into it. held: modules whose parameters never move. branch: the checkpoint
    of another run that a new one starts from, at its step, with its weights, optimizer state and costs; its knobs
    may differ. ``stream`` is closed in the end.

    On CPU, a run that was stopped or killed at any moment and resumed gives bitwise the losses and weights of
    one that was not. Raises UserError: ``run`` holds a run (without ``resume``) or none (with it), other
    knobs, a damaged checkpoint, a full disk, a loss or gradient that is not finite (nothing is saved then).
    Raises Stopped after SIGTERM or SIGINT, when the step is done and saved.
    """
    world, knobs = world or World(), plain(knobs or {})
    began, worked = time.perf_counter(), core_seconds()
    folder, total = run / "checkpoints", settings.steps
    micro_batch_size = settings.micro_batch_size(world.shards)
    world.refuse(settings.clip, settings.clip_per)
    with ExitStack() as stack:
        stack.callback(stream.close)
        stop = stack.enter_context(catch_signals())
        origin = None
        if branch is not None and not resume:
            origin = world.on_main(lambda: read_branch(branch, total))
        world.on_main(lambda: stack.enter_context(sole_owner(run)))
        saved = world.on_main(lambda: enter(run, resume))
        settings = _resolved(settings, saved, world)
        if saved:
            refuse_changes(run, saved, knobs, settings.describe())
        before = saved or origin
        start, spent = (before["step"], Spent(**before["spent"])) if before else (0, Spent())
        spent.sessions += 1

        optimizer = Optimizer(method, settings.betas, settings.eps, held)
        stack.callback(optimizer.release)
        if before:
            source = checkpoint.found(folder)[-1] if saved else branch
            assert source is not None
            world.on_main(lambda: _load(source, method, optimizer))
        if on_start is not None:
            world.on_main(on_start)
        world.broadcast_([*method.state_dict().values(), *optimizer.state().values()])
        report = None
        if world.main:
            report = stack.enter_context(open_report(run, start, total, settings.tensorboard))
        how = "resumed at" if saved else "training from" if branch is None else "branching off at"
        log.info(
            f"{how} step {start} of {total}: {world.shards} x "
            f"{settings.micro_batches} x {micro_batch_size} clips, {settings.precision}, {world.device}"
        )
        if saved and saved["processes"] != world.shards:
            log.warning(
                f"saved with {saved['processes']} processes, going on with {world.shards}: "
                "equal in expectation, not bit by bit"
            )

        def collect() -> None:
            moving = {id(p) for p in optimizer.moving}
            moved = [name for name, p in optimizer.names.items() if id(p) in moving]
            world.collect_({**optimizer.names, **optimizer.state()}, moved)

        def save(step: int) -> Path:
            nonlocal began, worked
            collect()
            now, work = time.perf_counter(), core_seconds()
            spent.seconds, began = spent.seconds + now - began, now
            spent.core_seconds, worked = spent.core_seconds + max(0.0, work - worked), work
            spent.peak_memory = max(spent.peak_memory, peak_memory(world.device))
            state = {
                "processes": world.shards,
                "knobs": knobs,
                "settings": settings.describe(),
                "spent": asdict(spent),
            }

            def write() -> Path:
                if report:
                    report.sync()
                path = checkpoint.save(folder, step, method.state_dict(), optimizer.state(), state, on_save)
                checkpoint.prune(folder, settings.keep, settings.keep_every)
                write_json(
                    run / "summary.json", {"steps": step, "precision": settings.precision, **asdict(spent)}
                )
                return path

            return world.on_main(write)

        def watch(moment: Moment) -> dict[str, float]:
            collect()
            if not world.main:
                return {}
            torch.manual_seed(seed_from(settings.seed, moment.step, -1))
            method.eval()
            with torch.no_grad():
                found = {
                    name: value for monitor in monitors for name, value in monitor(moment, method).items()
                }
            method.train()
            return found

        method.train()
        batches = stream.batches(start)
        for step in range(start, total):
            moment = Moment(step, total)
            watched = watch(moment) if step % settings.monitor_every == 0 else {}
            clock = time.perf_counter()
            batch = next(batches).to(world.device)
            waited = time.perf_counter() - clock
            assert len(batch) * world.shards == settings.batch_size, "the stream has another batch size"
            try:
                learned = take_step(method, optimizer, batch, moment, settings, world)
            except FloatingPointError as error:
                raise UserError(f"{error}. {_last_good(folder)}") from error
            seconds = time.perf_counter() - clock

            spent.add_clips(settings.batch_size, flops(moment) if flops else {})
            if report:
                speed = settings.batch_size / seconds
                if step % settings.log_every == 0 or watched or step + 1 == total:
                    report.write(
                        step,
                        {
                            **learned,
                            "train/lr": settings.lr(moment),
                            "train/wd": settings.weight_decay(moment),
                            **watched,
                            **stream.metrics(),
                            "time/step_s": seconds,
                            "time/data_frac": waited / seconds,
                            "throughput/clips_per_s": speed,
                            "cost/train_flops": spent.total_flops,
                        },
                    )
                report.advance(step + 1, learned["train/loss"], speed)
            if world.any(stop.number is not None) and step + 1 < total:
                path, number = save(step + 1), stop.number or 15
                log.warning(f"signal {number}: saved {path} after step {step}; go on with --resume")
                raise Stopped(128 + number)
            if (step + 1) % settings.save_every == 0 and step + 1 < total:
                save(step + 1)

        watched = watch(Moment(total, total))
        if report and monitors:
            report.write(total, {**watched, "cost/train_flops": spent.total_flops})
        newest = save(total) if start < total else checkpoint.step_path(folder, total)
        log.info(
            f"{total} steps done: {duration(spent.seconds)}, {spent.clips} clips, "
            f"{spent.total_flops:.3g} FLOPs, {spent.peak_memory / 2**30:.2f} GiB at most; {newest}"
        )
        return Summary(total, settings.precision, spent, newest)


def take_step(
    method: Method, optimizer: Optimizer, batch: Batch, moment: Moment, settings: TrainSettings, world: World
) -> dict[str, float]:
    """One optimizer step: this process's share of a batch in, what all processes measured out.

    Raises FloatingPointError, in every process and before anything moves, if the loss or the gradient is not
    finite.
    """
    optimizer.set_trainable(method.trainable(moment))
    optimizer.set_rates(settings.lr(moment), settings.weight_decay(moment))
    seen = Measured()
    for micro, part in enumerate(batch.split(settings.micro_batches)):
        # micro-batches are numbered over all processes: two processes draw what one with twice as many draws
        torch.manual_seed(seed_from(settings.seed, moment.step, world.shard * settings.micro_batches + micro))
        for loss in _autocast(method(part, moment), settings.precision, world.device):
            (loss.value / settings.micro_batches).backward()
            seen.add(loss)
    world.average_gradients_(optimizer.moving)
    norm = optimizer.clip(settings.clip if moment.step >= settings.clip_from else None, settings.clip_per)
    assert seen.values, "the method yielded no loss"
    measured = summed_up(world.pool({**seen.values, "train/grad_norm": [norm]}), settings.micro_batches)
    if not math.isfinite(measured["train/loss"]) or not math.isfinite(measured["train/grad_norm"]):
        raise FloatingPointError(
            f"step {moment.step}: the loss is {measured['train/loss']} and the gradient norm "
            f"{measured['train/grad_norm']}, at lr {settings.lr(moment):.3g}"
        )
    optimizer.step()
    with torch.no_grad():
        method.after_step(moment)
    return measured


class Measured:
    """Losses and what came with them, by name, each number by itself and left on the device."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}

    def add(self, loss: Loss) -> None:
        """Keep one loss's numbers; its graph is let go."""
        for name, value in {"train/loss": loss.value, **loss.metrics}.items():
            self.values.setdefault(name, []).append(value.detach())


def summed_up(numbers: Mapping[str, Sequence[float]], micro_batches: int) -> dict[str, float]:
    """train/loss: the losses of a micro-batch summed, micro-batches averaged; metrics: averaged.

    train/grad_norm: of the parts' norms, the norm of the whole.
    """
    means = {name: _sum(several) / len(several) for name, several in numbers.items()}
    means["train/loss"] = _sum(numbers["train/loss"]) / micro_batches
    means["train/grad_norm"] = math.sqrt(_sum([norm * norm for norm in numbers["train/grad_norm"]]))
    return means


def _sum(numbers: Sequence[float]) -> float:
    """Rounded once: in whichever order processes add up, they find the same."""
    return math.fsum(numbers) if all(map(math.isfinite, numbers)) else sum(numbers)


def seed_from(*numbers: int) -> int:
    """63 bits that are a function of the numbers: what is drawn from it needs no state to be resumed."""
    packed = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


def _autocast(losses: Iterator[Loss], precision: str, device: torch.device) -> Iterator[Loss]:
    """The losses, each computed under autocast and handed over outside of it, where backward belongs."""
    while True:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = next(losses, None)
        if loss is None:
            return
        yield loss


def _resolved(settings: TrainSettings, saved: Mapping[str, Any] | None, world: World) -> TrainSettings:
    """With "auto" replaced: by what the run began with, or by what this machine has."""
    if saved and settings.precision == "auto":
        return replace(settings, precision=saved["settings"]["precision"])
    return replace(settings, precision=resolve_precision(settings.precision, world.device))


def _load(path: Path, method: Method, optimizer: Optimizer) -> None:
    weights, moments = checkpoint.read_tensors(path)
    copy_into(method.state_dict(), weights, f"{path / 'method.safetensors'}: the method")
    copy_into(optimizer.state(), moments, f"{path / 'optimizer.safetensors'}: the optimizer")


def _last_good(folder: Path) -> str:
    there = checkpoint.found(folder)
    last = f"the last good checkpoint is {there[-1]}" if there else "no checkpoint had been saved"
    return (
        f"Nothing was changed or saved by that step; {last}. Try a lower lr, a longer warm-up, clip=1, "
        "or precision=fp32, in a new run"
    )
