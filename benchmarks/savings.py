"""What LayerLock and blockwise learning save, each as a ratio to end-to-end MAE of the same geometry.

    python benchmarks/savings.py [--models vit_small,vit_base] [--batch-size 8] [--rounds 5] [--device auto]

FLOPs by formula (`analysis/cost.py`); time of `take_step`, optimizer included; memory as autograd's saved tensors
on the CPU (`analysis/memory.py`), as the allocator's peak on a GPU, beside what counting tensors predicts.

Cases are run in groups, each with the baseline beside it: in turn, case after case and round after round, so that
a machine whose speed drifts is the same for all. Times are medians; with one CPU thread they are the process's own
(what other programs take is not charged), else the clock's. Random clips: no decoding. float32.
Memory is that of a step whose gradients are there already (micro-batches): activations + gradients + optimizer
state. With one micro-batch gradients come as activations go, and the true peak is lower, for every case.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tubelet.analysis.cost import cost
from tubelet.analysis.memory import SavedTensors, gradient_bytes, optimizer_bytes, saved_bytes
from tubelet.files import write_json
from tubelet.masks import Aimed, TubeMask
from tubelet.methods.blockwise import Blockwise, cut
from tubelet.methods.layerlock import LayerLock, Locks
from tubelet.methods.method import Method
from tubelet.methods.videomae import VideoMAE
from tubelet.nn.decoding import SeparateDecoder
from tubelet.nn.predictor import Predictor
from tubelet.nn.vit import ViT, build_vit
from tubelet.recipes.sizes import decoder_for
from tubelet.train.loop import take_step
from tubelet.train.optim import Optimizer
from tubelet.train.parallel import World, resolve_device
from tubelet.train.schedule import Constant
from tubelet.train.settings import TrainSettings
from tubelet.types import Batch, Grid, Loss, Moment, Work

MASK = TubeMask(0.9)
MOMENT = Moment(0, 10)
NEVER = 10**9  # a first lock that no step reaches
BASELINE = "end to end"


class Summed(Method):
    """The same losses with all their graphs alive, and one backward pass for their sum: what streaming avoids."""

    def __init__(self, inner: Method):
        super().__init__()
        self.inner, self.encoder = inner, inner.encoder

    def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
        losses = [loss.value for loss in self.inner(batch, moment)]
        yield Loss(torch.stack(losses).sum())

    def trainable(self, moment: Moment) -> list[nn.Module]:
        return self.inner.trainable(moment)

    def encoders(self) -> dict[str, ViT]:
        return self.inner.encoders()

    def work(self, grid: Grid, moment: Moment) -> list[Work]:
        return self.inner.work(grid, moment)


def end_to_end(encoder: ViT) -> Method:
    return VideoMAE(encoder, decoder_for(encoder, None, None), MASK)


def locked(encoder: ViT, quarters: int, **options: Any) -> Method:
    """LayerLock with so many quarters of the encoder frozen."""
    frozen = encoder.depth * quarters // 4
    locks = Locks(0, 1, frozen, frozen) if frozen else Locks(NEVER, 1, 1, 1)
    decoder = SeparateDecoder(decoder_for(encoder, None, None, heads=False))
    return LayerLock(encoder, decoder, MASK, locks, **options)


def layerlock_pixels(encoder: ViT) -> dict[str, Method]:
    return {f"pixels, {q}/4 frozen": locked(encoder, q, latents=False) for q in range(4)}


def layerlock_latents(encoder: ViT) -> dict[str, Method]:
    cases = {
        f"latents of 2/4, {share:.0%} of the hidden, {read} target pass": locked(
            encoder, 2, target_input=read, latent_mask=Aimed(MASK, share=share)
        )
        for read in ("full", "sampled")
        for share in (0.05, 1.0)
    }
    visible = locked(encoder, 2, target_input="visible", latent_mask=Aimed(MASK, "visible"))
    return {**cases, "latents of 2/4, 100% of the visible, visible target pass": visible}


def blockwise(
    encoder: ViT,
    count: int,
    *,
    shared: bool = False,
    narrower: int = 1,
    depth: int | None = None,
    share: float = 1.0,
    **options: Any,
) -> Method:
    """narrower: divides the width of the decoders; depth: theirs; share: of the hidden tokens that are decoded."""
    width = decoder_for(encoder, None, None).dim // narrower
    teacher = options.get("teacher")
    decoders = []
    for number in range(1 if shared else count):
        latent = teacher or (options.get("targets") == "previous" and number)
        decoders.append(decoder_for(encoder, width, depth, encoder.dim if latent else None))
    mask = MASK if share == 1 else Aimed(MASK, share=share)
    return Blockwise(encoder, decoders, mask, cut(encoder.depth, str(count)), **options)


def blocks(count: int) -> Callable[[ViT], dict[str, Method]]:
    def by_blocks(encoder: ViT) -> dict[str, Method]:
        streamed = blockwise(encoder, count)
        return {f"K={count} streamed": streamed, f"K={count} summed": Summed(streamed)}

    return by_blocks


def decoder_remedies(encoder: ViT) -> dict[str, Method]:
    return {
        "K=4, one decoder for all": blockwise(encoder, 4, shared=True),
        "K=4, decoders half as wide": blockwise(encoder, 4, narrower=2),
        "K=4, decoders a quarter as deep": blockwise(encoder, 4, depth=1),
        "K=4, 25% decoded": blockwise(encoder, 4, share=0.25),
    }


def target_remedies(encoder: ViT) -> dict[str, Method]:
    teacher = ViT(
        encoder.dim, encoder.depth, encoder.heads, encoder.hidden, encoder.patch, positions=encoder.positions
    )
    return {
        "K=4, latents of a frozen teacher": blockwise(encoder, 4, targets="teacher", teacher=teacher),
        "K=4, latents of the previous block": blockwise(encoder, 4, targets="previous"),
        "K=4, one layer of overlap": blockwise(encoder, 4, overlap=1),
        "K=4, decoders half as wide, 25% decoded": blockwise(encoder, 4, narrower=2, share=0.25),
        "K=4, decoders half as wide, 50% decoded": blockwise(encoder, 4, narrower=2, share=0.5),
    }


# few cases at a time: each has its own optimizer state
GROUPS: dict[str, Callable[[ViT], dict[str, Method]]] = {
    "LayerLock, pixel targets": layerlock_pixels,
    "LayerLock, latent targets": layerlock_latents,
    "blockwise, K=4": blocks(4),
    "blockwise, K=6": blocks(6),
    "blockwise, K=12": blocks(12),
    "remedies: decoders": decoder_remedies,
    "remedies: targets, and both": target_remedies,
}


def hold(method: Method, optimizer: Optimizer, batch: Batch) -> dict[str, int]:
    """Bytes held by one step of the method, measured; nothing moves."""
    optimizer.set_trainable(method.trainable(MOMENT))
    saved = SavedTensors([*method.parameters(), *method.buffers()])
    entered = []  # bytes held as a decoder begins: the encoder's share, if what came before is gone
    hooks = [
        module.register_forward_pre_hook(lambda *_: entered.append(saved.now))
        for module in method.modules()
        if isinstance(module, Predictor)
    ]
    with saved:
        backward(method, batch)
    for hook in hooks:
        hook.remove()
    gradients = sum(p.grad.nbytes for p in optimizer.moving if p.grad is not None)
    activations = saved.peak
    if batch.clip.device.type == "cuda":  # gradients are there by now: a second pass adds to them
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        backward(method, batch)
        activations = torch.cuda.max_memory_allocated() - before
    optimizer.adamw.zero_grad(set_to_none=True)
    state = sum(tensor.nbytes for tensor in optimizer.state().values())
    return {
        "encoder_activations": max(entered),
        "activations": activations,
        "gradients": gradients,
        "optimizer": state,
        "total": activations + gradients + state,
    }


def backward(method: Method, batch: Batch) -> None:
    torch.manual_seed(0)
    for loss in method(batch, MOMENT):
        loss.value.backward()


def predict(method: Method, optimizer: Optimizer, grid: Grid, batch_size: int) -> dict[str, float]:
    """FLOPs of a step and bytes held by it, counted."""
    works = method.work(grid, MOMENT)
    encoder = [work for work in works if work.part == "encoder"]
    positions, streamed = method.encoder.positions, not isinstance(method, Summed)
    optimizer.release()
    found = {
        "encoder_activations": saved_bytes(encoder, batch_size, positions),
        "activations": saved_bytes(works, batch_size, positions, streamed=streamed),
        "gradients": gradient_bytes(method.trainable(MOMENT)),
        "optimizer": optimizer_bytes(method),
    }
    found["total"] = found["activations"] + found["gradients"] + found["optimizer"]
    return {**found, "flops": cost(works).total * batch_size}


def keep_memory() -> None:
    """Freed memory stays with the process, where libc can be told so, as a GPU's allocator keeps it.

    Otherwise a large case pays, page by page, for what was handed back while the small case before it ran.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no tensor gets pages of its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing is handed back


def alone(device: torch.device) -> bool:
    """Whether all work is done by one thread, whose own time can be taken."""
    return device.type == "cpu" and torch.get_num_threads() == 1


def run_group(
    methods: dict[str, Method], batch: Batch, grid: Grid, settings: TrainSettings, rounds: int
) -> list[dict[str, Any]]:
    """One row per method, the baseline among them; ratios are to it."""
    device = batch.clip.device
    optimizers = {name: Optimizer(method) for name, method in methods.items()}
    counted = {name: predict(method, optimizers[name], grid, len(batch)) for name, method in methods.items()}
    held = {name: hold(method, optimizers[name], batch) for name, method in methods.items()}  # warms up, too
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    clock = time.process_time if alone(device) else time.perf_counter
    for _ in range(rounds):
        for name, method in methods.items():
            began = clock()
            take_step(method, optimizers[name], batch, MOMENT, settings, World(device=device))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(clock() - began)
    base, basis, reference = held[BASELINE], counted[BASELINE], statistics.median(seconds[BASELINE])
    rows = []
    for name, method in methods.items():
        low, median, high = min(seconds[name]), statistics.median(seconds[name]), max(seconds[name])
        row: dict[str, Any] = {
            "case": name,
            "flops": counted[name]["flops"] / basis["flops"],
            "time": median / reference,
            "step_s": [low, median, high],
            "gflop_per_s": counted[name]["flops"] / median / 1e9,
        }
        for what in ("encoder_activations", "activations", "total"):
            if what == "encoder_activations" and isinstance(method, Summed):
                continue  # held beside the decoders of the blocks before
            row[what] = held[name][what] / base[what]
            row[f"{what}_predicted"] = counted[name][what] / basis[what]
        row["held_bytes"], row["predicted_bytes"] = held[name], counted[name]
        rows.append({**row, "bars": bars(row)})
    for optimizer in optimizers.values():
        optimizer.release()
    return rows


def bars(row: dict[str, Any]) -> dict[str, str]:
    """The bars of every case: "pass", or on which side it is missed.

    time: within 10 points of the FLOPs' ratio; where that is above 1, so that nothing is saved, within 10 % of it.
    memory: what is saved within 10 % of what is predicted, or within a hundredth of the baseline's.
    """
    tolerance = {"time": 0.1 * max(1.0, row["flops"])}
    found = {"time": row["time"] - row["flops"]}
    for what in ("activations", "total"):
        found[what] = row[what] - row[f"{what}_predicted"]
        tolerance[what] = max(0.1 * abs(1 - row[f"{what}_predicted"]), 0.01)
    return {
        name: "pass" if abs(off) <= tolerance[name] else "more" if off > 0 else "less"
        for name, off in found.items()
    }


def blockwise_bars(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The two bars of blockwise learning, with the figures that they were decided on."""
    four = next(row for row in rows if row["case"] == "K=4 streamed")
    remedies = [row for row in rows if row["case"].startswith("K=4,")]
    good = [row for row in remedies if row["activations"] <= 0.5 and row["flops"] <= 1.1]
    best = min(good or remedies, key=lambda row: (row["flops"] > 1.1, row["activations"]))
    return {
        "K=4 streamed: at most 1/4 + 10 % of the encoder's activations": {
            "encoder_activations": four["encoder_activations"],
            "passed": four["encoder_activations"] <= 0.25 * 1.1,
        },
        "a remedy: at most half of all activations at 1.1 x the FLOPs": {
            "case": best["case"],
            "all_that_pass": [row["case"] for row in good],
            "activations": best["activations"],
            "flops": best["flops"],
            "passed": bool(good),
        },
    }


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}: ratios to end-to-end MAE (measured/predicted memory)")
    columns = ("FLOPs", "time", "activations", "+grad+opt", "GFLOP/s")
    print(f"{'':60}" + "".join(f"{column:>14}" for column in columns) + "  missed bars")
    for row in rows:
        memory = [f"{row[what]:.3f}/{row[f'{what}_predicted']:.3f}" for what in ("activations", "total")]
        cells = (f"{row['flops']:.3f}", f"{row['time']:.3f}", *memory, f"{row['gflop_per_s']:.0f}")
        failed = ", ".join(f"{name}: {how}" for name, how in row["bars"].items() if how != "pass") or "-"
        print(f"{row['case']:60}" + "".join(f"{cell:>14}" for cell in cells) + f"  {failed}", flush=True)


def benchmark(model: str, asked: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    torch.manual_seed(0)
    size, count = asked.crop_size, asked.batch_size
    settings = TrainSettings(steps=MOMENT.total, batch_size=count, lr=Constant(1e-4), precision="fp32")
    clip = torch.randn(count, 3, asked.frames, size, size, device=device)
    batch, rows = Batch(clip, torch.arange(count, device=device)), []
    for title, group in GROUPS.items():
        encoder = build_vit(model)
        grid = encoder.grid(clip)
        methods = {BASELINE: end_to_end(encoder), **group(encoder)}
        for method in methods.values():
            method.to(device).train()
        found = run_group(methods, batch, grid, settings, asked.rounds)
        show(f"{model}, {title}", found)
        rows += [{"group": title, **row} for row in found]
        del encoder, methods, method
        gc.collect()
    extra = blockwise_bars(rows)
    for name, bar in extra.items():
        print(f"{'PASS' if bar['passed'] else 'FAIL'}  {name}: {bar}")
    for bar in ("time", "activations", "total"):
        missed = [f"{row['case']} ({row['bars'][bar]})" for row in rows if row["bars"][bar] != "pass"]
        print(
            f"{'FAIL' if missed else 'PASS'}  {bar} in {len(rows)} cases"
            + "".join(f"\n      {m}" for m in missed)
        )
    geometry = f"{asked.frames}x{size}x{size}, tubelet 2x16x16, tubes {MASK.ratio}, batch {count}, fp32"
    return {"model": model, "geometry": geometry, "rows": rows, "blockwise_bars": extra}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default="vit_small,vit_base")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--crop-size", type=int, default=112)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    device = resolve_device(asked.device)
    keep_memory()
    results = [benchmark(model, asked, device) for model in asked.models.split(",")]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    write_json(
        asked.out,
        {
            "command": f"python benchmarks/savings.py --models {asked.models} --batch-size {asked.batch_size} "
            f"--rounds {asked.rounds}",
            "machine": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "clock": "process" if alone(device) else "wall",
            "device": str(device),
            "torch": torch.__version__,
            "commit": commit,
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
