"""Small methods and a stream for the tests of the loop: each method stresses one clause of the contract."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tubelet.files
from tubelet.methods.method import Method
from tubelet.nn.vit import ViT
from tubelet.train.loop import train
from tubelet.train.parallel import join
from tubelet.train.report import read_metrics
from tubelet.train.schedule import Cosine, WarmupCosine
from tubelet.train.settings import TrainSettings
from tubelet.train.spent import Summary
from tubelet.types import Batch, Grid, Loss, Moment, Work

WIDTH = 3 * 2 * 4 * 2  # numbers in a toy clip [C=3, T=2, H=4, W=2]


def block(width: int = WIDTH) -> nn.Sequential:
    """LayerNorm, Linear, GELU: parameters that decay and parameters that do not."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())


def noisy(x: Tensor) -> Tensor:
    """Half of the numbers dropped at random: the loop must have seeded the draw."""
    return x * (torch.rand(x.shape) < 0.5)


class Toy(Method):
    """What the toys have in common: an encoder of blocks on flattened clips, and nothing to account for."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.encoder = cast(ViT, nn.Sequential(*[block() for _ in range(depth)]))
        self.head = nn.Linear(WIDTH, WIDTH)

    @property
    def stack(self) -> nn.Sequential:
        """The encoder as what it is."""
        return cast(nn.Sequential, self.encoder)

    def encoders(self) -> dict[str, ViT]:
        return {"encoder": self.encoder}

    def work(self, grid: Grid, moment: Moment) -> list[Work]:
        return []


class OneLoss(Toy):
    """Denoising; with ``noise`` False it draws nothing."""

    def __init__(self, noise: bool = True) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
        clip = batch.clip.flatten(1)
        error = F.mse_loss(self.head(self.encoder(noisy(clip) if self.noise else clip)), clip)
        yield Loss(error, {"repr/std": clip.std().detach()})

    def trainable(self, moment: Moment) -> list[nn.Module]:
        return [self.encoder, self.head]


class SeveralLosses(Toy):
    """A local loss per block, isolated by detach."""

    def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
        clip = batch.clip.flatten(1)
        tokens = noisy(clip)
        for i, stage in enumerate(self.stack):
            tokens = stage(tokens.detach())
            error = F.mse_loss(tokens, clip)
            yield Loss(error, {f"loss/stage{i}": error.detach()})

    def trainable(self, moment: Moment) -> list[nn.Module]:
        return list(self.stack)


class Locking(Toy):
    """Blocks freeze from the bottom up and the head is exchanged, both by the step."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        del self.head

    def phase(self, moment: Moment) -> int:
        """0, 1, 2: how many blocks are frozen."""
        return min(2, 3 * moment.step // moment.total)

    def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
        clip, phase = batch.clip.flatten(1), self.phase(moment)
        yield Loss(F.mse_loss(self.heads[phase](self.encoder(noisy(clip))), clip))

    def trainable(self, moment: Moment) -> list[nn.Module]:
        phase = self.phase(moment)
        return [*list(self.stack)[phase:], self.heads[phase]]


class Averaged(Toy):
    """The target is a moving average of the encoder, updated after the step; a buffer counts the steps."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.stack).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
        clip = batch.clip.flatten(1)
        with torch.no_grad():
            target = self.teacher(clip)
        yield Loss(F.l1_loss(self.head(self.encoder(noisy(clip))), target))

    def trainable(self, moment: Moment) -> list[nn.Module]:
        return [self.encoder, self.head]

    def after_step(self, moment: Moment) -> None:
        assert not torch.is_grad_enabled()
        self.steps += 1
        for theirs, ours in zip(self.teacher.parameters(), self.stack.parameters(), strict=True):
            theirs.lerp_(ours, 0.1)

    def encoders(self) -> dict[str, ViT]:
        return {"teacher": cast(ViT, self.teacher)}


METHODS: dict[str, Callable[[], Method]] = {
    "one-loss": OneLoss,
    "several-losses": SeveralLosses,
    "locking": Locking,
    "averaged": Averaged,
}


class ToyStream:
    """Clip at position p is a function of (seed, p); a step's clips are split over ranks in runs."""

    def __init__(self, batch_size: int = 8, rank: int = 0, world: int = 1, seed: int = 3) -> None:
        self.batch_size, self.rank, self.world, self.seed = batch_size, rank, world, seed
        self.closed = 0

    def clip(self, position: int) -> Tensor:
        """float32 [3, 2, 4, 2]."""
        return torch.randn(3, 2, 4, 2, generator=torch.Generator().manual_seed(self.seed * 10**6 + position))

    def batches(self, start_step: int) -> Iterator[Batch]:
        share = self.batch_size // self.world
        step = start_step
        while True:
            first = step * self.batch_size + self.rank * share
            yield Batch(
                torch.stack([self.clip(p) for p in range(first, first + share)]),
                torch.arange(first, first + share),
            )
            step += 1

    def metrics(self) -> Mapping[str, float]:
        return {"data/replaced_frac": 0.0}

    def close(self) -> None:
        self.closed += 1


def settings(**changes: Any) -> TrainSettings:
    """Twelve quick steps with decay, momentum and clipping on."""
    given: dict[str, Any] = {
        "steps": 12,
        "batch_size": 8,
        "lr": WarmupCosine(1e-3, 1e-2, 1e-4, warmup=3),
        "weight_decay": Cosine(0.04, 0.4),
        "clip": 1.0,
        "precision": "fp32",
        "save_every": 4,
        "monitor_every": 5,
    }
    return TrainSettings(**{**given, **changes})


def monitor(moment: Moment, method: Method) -> Mapping[str, float]:
    """Draws numbers and reads the weights: neither may leave a trace in the run."""
    assert not method.training and not torch.is_grad_enabled()
    return {"repr/probe": float(next(method.parameters()).sum() + torch.rand(()))}


def note_encoder(folder: Path, step: int) -> None:
    """Stands for an encoder that is saved with the checkpoint."""
    (folder / "encoder").mkdir()
    (folder / "encoder" / "weights").write_bytes(b"x" * 1000)


def learn(method: Method, run: Path, *, resume: bool = False, **changes: Any) -> Summary:
    """A whole toy run in this process."""
    return train(
        method,
        ToyStream(),
        settings(**changes),
        run,
        knobs={"model": "toy", "out": str(run)},
        flops=lambda moment: {"encoder": 10.0 * (1 + moment.step), "teacher": 1.0},
        monitors=[monitor],
        on_save=note_encoder,
        resume=resume,
    )


def weights_of(checkpoint: Path) -> dict[str, bytes]:
    """The exact bytes of a checkpoint's tensors, by file."""
    return {name: (checkpoint / f"{name}.safetensors").read_bytes() for name in ("method", "optimizer")}


def lines_of(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    return [
        {k: v for k, v in line.items() if not k.startswith(("time/", "throughput/"))}
        for line in read_metrics(run / "metrics.jsonl")
    ]


# -- child processes ---------------------------------------------------------------------------------------

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch._dynamo", "torch.distributed", "tubelet.recipes"])


def start(target: Callable[..., None], *args: Any) -> BaseProcess:
    """``target(*args)`` in a new process, forked from a server that has imported torch and tubelet and nothing more."""
    process = _context.Process(target=target, args=args)
    process.start()
    return process


def run_child(name: str, run: Path, resume: bool, kill_after: int | None = None) -> None:
    """Train toy ``name``; SIGKILL this process once ``kill_after`` lines of tubelet have been run.

    Prints nothing; the number of lines of an unkilled run is written to ``run/lines``.
    """
    quiet()
    count = 0
    package = str(Path(tubelet.files.__file__).parent)

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(package):
            return None
        count += 1
        if kill_after is not None and count > kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    method = METHODS[name]()
    sys.settrace(trace)
    learn(method, run, resume=resume)
    sys.settrace(None)
    (run / "lines").write_text(str(count))


def quiet() -> None:
    """One thread and no output in a child."""
    torch.set_num_threads(1)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, until the child ends


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_world(rank: int, size: int, port: int, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    """``target(world, *args)`` as rank ``rank``, with the environment that torchrun would give."""
    quiet()
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with join("cpu") as world:
        target(world, *args)
