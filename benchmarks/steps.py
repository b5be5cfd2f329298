"""Speed, memory and FLOPs of one training step of every recipe's method, side by side in one process.

    python benchmarks/steps.py [--model vit_small] [--crop-size 112] [--batch-size 8] [--repeats 5]

Steps are taken in turn, method after method, so that a machine whose speed drifts is the same for all; the
median is reported, and the ratio to the first method. Random clips: no decoding. Result: benchmarks/steps.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tubelet.analysis.cost import cost
from tubelet.masks import MultiBlockMask, TubeMask
from tubelet.methods.method import Method
from tubelet.methods.salt import SALT
from tubelet.methods.videomae import VideoMAE
from tubelet.methods.vjepa import VJEPA
from tubelet.nn.vit import build_vit
from tubelet.recipes.knobs import Knobs
from tubelet.recipes.sizes import decoder_for, predictor_for, tubelet_values
from tubelet.train.loop import take_step
from tubelet.train.optim import Optimizer
from tubelet.train.parallel import World, resolve_device
from tubelet.train.precision import resolve_precision
from tubelet.train.schedule import Constant
from tubelet.train.settings import TrainSettings
from tubelet.types import Batch, Grid, Moment

KNOBS = Knobs(data="none", out="none")


def videomae(model: str) -> Method:
    encoder = build_vit(model)
    return VideoMAE(encoder, decoder_for(encoder, None, None), TubeMask(0.9))


def salt_teacher(model: str) -> Method:
    encoder = build_vit(model)
    decoder = predictor_for(encoder, KNOBS, tubelet_values(encoder), 2, 24, None, None)
    return VideoMAE(encoder, decoder, MultiBlockMask(), "tubelet")


def salt(model: str) -> Method:
    encoder, teacher = build_vit(model), build_vit(model)
    return SALT(
        encoder, predictor_for(encoder, KNOBS, teacher.dim, 2, 24, None, None), teacher, MultiBlockMask()
    )


def vjepa(model: str) -> Method:
    encoder = build_vit(model)
    predictor = predictor_for(encoder, KNOBS, encoder.dim, 2, 24, None, None)
    return VJEPA(encoder, predictor, MultiBlockMask(), Constant(0.999))


METHODS: dict[str, Callable[[str], Method]] = {
    "videomae": videomae,
    "salt-teacher": salt_teacher,
    "salt": salt,
    "vjepa": vjepa,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vit_small")
    parser.add_argument("--crop-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    device = resolve_device("auto")
    settings = TrainSettings(
        steps=asked.repeats + 1,
        batch_size=asked.batch_size,
        lr=Constant(1e-4),
        precision=resolve_precision("auto", device),
    )
    torch.manual_seed(0)
    clip = torch.randn(asked.batch_size, 3, 16, asked.crop_size, asked.crop_size, device=device)
    batch = Batch(clip, torch.arange(asked.batch_size, device=device))
    grid = Grid(8, asked.crop_size // 16, asked.crop_size // 16)
    methods = {name: build(asked.model).to(device).train() for name, build in METHODS.items()}
    optimizers = {name: Optimizer(method) for name, method in methods.items()}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for step in range(asked.repeats + 1):
        for name, method in methods.items():
            began = time.perf_counter()
            take_step(
                method, optimizers[name], batch, Moment(step, settings.steps), settings, World(device=device)
            )
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if step:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    rows = []
    reference = statistics.median(seconds["videomae"])
    for name, method in methods.items():
        median = statistics.median(seconds[name])
        flops = cost(method.work(grid, Moment(0, 1))).total
        rows.append(
            {
                "recipe": name,
                "clips_per_s": asked.batch_size / median,
                "step_s": [min(seconds[name]), median, max(seconds[name])],
                "time_to_videomae": median / reference,
                "gflop_per_clip": flops / 1e9,
                "gflop_per_s": flops * asked.batch_size / median / 1e9,
            }
        )
        print(
            f"{name:14} {rows[-1]['clips_per_s']:7.2f} clips/s  {rows[-1]['time_to_videomae']:5.2f} x videomae  "
            f"{flops / 1e9:7.1f} GFLOP a clip  {rows[-1]['gflop_per_s']:7.0f} GFLOP/s"
        )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    about = {
        "command": "python benchmarks/steps.py",
        "geometry": f"{asked.model} 16x{asked.crop_size}x{asked.crop_size}, batch {asked.batch_size}",
        "precision": settings.precision,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "torch": torch.__version__,
        "commit": commit,
        "rows": rows,
    }
    asked.out.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
