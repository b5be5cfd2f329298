"""Blockwise learning by one process and by several in a line: speed, and how long each stands idle.

    python benchmarks/pipeline.py [--model vit_tiny] [--blocks 4] [--batch-size 8] [--processes 2] [--repeats 3]

One thread each, random clips, no decoding; the two kinds of run take turns, so that a machine whose speed drifts
is the same for both. Idle: seconds spent waiting for the process below, or for the one above to take what is under
way, after a warm-up in which the line has filled. Needs as many free cores as processes: the share of its time that
a process was really running, when it did not wait, is printed to show whether it had them. Result:
benchmarks/pipeline.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from tubelet.analysis.cost import cost
from tubelet.masks import TubeMask
from tubelet.methods.blockwise import Blockwise, cut, share_out
from tubelet.nn.vit import build_vit
from tubelet.recipes.sizes import decoder_for
from tubelet.train.loop import take_step
from tubelet.train.optim import Optimizer
from tubelet.train.parallel import World
from tubelet.train.pipeline import AHEAD, Pipeline, join_pipeline
from tubelet.train.precision import resolve_precision
from tubelet.train.schedule import Constant
from tubelet.train.settings import TrainSettings
from tubelet.types import Batch, Grid, Moment

RUN = "TUBELET_BENCHMARK_RANK"  # set in the processes that are measured


def build(asked: argparse.Namespace, line: Pipeline | None) -> Blockwise:
    encoder = build_vit(asked.model)
    layers = cut(encoder.depth, asked.blocks)
    return Blockwise(
        encoder, [decoder_for(encoder, None, None) for _ in layers], TubeMask(0.9), layers, line=line
    )


def measure(asked: argparse.Namespace, line: Pipeline | None) -> dict[str, float]:
    """Of this process, after the warm-up: seconds in all, idle by cause, and running on a processor."""
    torch.manual_seed(0)
    method = build(asked, line).train()
    optimizer = Optimizer(method)
    total = asked.warmup + asked.steps
    settings = TrainSettings(
        steps=total,
        batch_size=asked.batch_size,
        lr=Constant(1e-4),
        clip=1.0,
        clip_per="module",
        precision=resolve_precision("auto", torch.device("cpu")),
    )
    batch = Batch(
        torch.randn(asked.batch_size, 3, 16, asked.crop_size, asked.crop_size), torch.arange(asked.batch_size)
    )
    world = line or World()
    began, running, below, above = 0.0, 0.0, 0.0, 0.0
    for step in range(total):
        if step == asked.warmup:
            began, running = time.perf_counter(), time.process_time()
            if line is not None:
                below, above = line.waited.below, line.waited.above
        take_step(method, optimizer, batch, Moment(step, total), settings, world)
        world.any(False)
    seconds, running = time.perf_counter() - began, time.process_time() - running
    if line is not None:
        below, above = line.waited.below - below, line.waited.above - above
    return {"seconds": seconds, "below": below, "above": above, "running": running}


def launch(size: int) -> list[dict[str, float]]:
    """What each of ``size`` processes measured."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    children = []
    for rank in range(size):
        own = {**place, "RANK": rank, "LOCAL_RANK": rank, RUN: rank}
        env = {**os.environ, **{name: str(value) for name, value in own.items()}}
        children.append(
            subprocess.Popen([sys.executable, *sys.argv], env=env, stdout=subprocess.PIPE, text=True)
        )
    said = [child.communicate()[0] for child in children]
    assert not any(child.returncode for child in children), "a process failed: see above"
    return [json.loads(words.splitlines()[-1]) for words in said]


def spread(values: list[float]) -> list[float]:
    """Least, median, most."""
    return [round(x, 4) for x in (min(values), statistics.median(values), max(values))]


def share_of_work(asked: argparse.Namespace) -> list[float]:
    """Of all FLOPs, those of each process, by formula."""
    method = build(asked, None)
    grid = Grid(8, asked.crop_size // 16, asked.crop_size // 16)
    work = [w for w in method.work(grid, Moment(0, 1))]  # encoder, decoder of each block in turn
    flops = [cost(work[2 * k : 2 * k + 2]).total for k in range(len(work) // 2)]
    return [sum(flops[k] for k in here) / sum(flops) for here in share_out(len(flops), asked.processes)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_tiny")
    parser.add_argument("--blocks", default="4")
    parser.add_argument("--crop-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=AHEAD + 1)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    if RUN in os.environ:
        torch.set_num_threads(1)
        with join_pipeline("cpu") if os.environ["WORLD_SIZE"] != "1" else nullcontext() as line:
            found = measure(asked, line)
        print(json.dumps(found))
        return
    ones, lines = [], []
    for _ in range(asked.repeats):
        ones.append(launch(1)[0])
        lines.append(launch(asked.processes))
    rates = [asked.steps / one["seconds"] for one in ones]
    line_rates = [asked.steps / line[-1]["seconds"] for line in lines]
    ratios = [there / here for there, here in zip(line_rates, rates, strict=True)]
    print(
        f"one process:  {spread(rates)} steps/s, running {spread([o['running'] / o['seconds'] for o in ones])}"
    )
    print(f"{asked.processes} in a line:  {spread(line_rates)} steps/s: {spread(ratios)} times as fast")
    processes: list[dict[str, Any]] = []
    for rank, share in enumerate(share_of_work(asked)):
        mine = [line[rank] for line in lines]
        busy = [m["seconds"] - m["below"] - m["above"] for m in mine]
        processes.append(
            {
                "flops_share": round(share, 4),
                "idle_share": spread([(m["below"] + m["above"]) / m["seconds"] for m in mine]),
                "idle_below_share": spread([m["below"] / m["seconds"] for m in mine]),
                "idle_above_share": spread([m["above"] / m["seconds"] for m in mine]),
                "busy_s_per_step": spread([b / asked.steps for b in busy]),
                "running_of_busy": spread([m["running"] / b for m, b in zip(mine, busy, strict=True)]),
            }
        )
        print(f"process {rank + 1}: " + ", ".join(f"{name} {value}" for name, value in processes[-1].items()))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {
        "command": "python benchmarks/pipeline.py",
        "geometry": f"{asked.model} in blocks of {asked.blocks}, 16x{asked.crop_size}x{asked.crop_size}, "
        f"batch {asked.batch_size}, 90 % tubes, decoders of the recipe",
        "precision": resolve_precision("auto", torch.device("cpu")),
        "steps": [asked.warmup, asked.steps],
        "repeats": asked.repeats,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads_per_process": 1,
        "device": "cpu, gloo",
        "torch": torch.__version__,
        "commit": commit,
        "spread": "least, median, most of the repeats",
        "one": {"steps_per_s": spread(rates), "running": spread([o["running"] / o["seconds"] for o in ones])},
        "line": {"steps_per_s": spread(line_rates), "times_as_fast": spread(ratios), "processes": processes},
    }
    asked.out.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
