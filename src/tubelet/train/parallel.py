"""Several processes that train one model: each its share of every batch, gradients averaged after backward.

No wrapper, no hooks and no renamed parameters, so what may move can change from step to step. Processes are
those of ``torchrun``; the communication is gloo on CPUs and nccl on GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tubelet.errors import UserError

T = TypeVar("T")
CPU = torch.device("cpu")
BUCKET = 32 * 2**20  # numbers that are averaged in one message: 128 MiB of float32


@dataclass(frozen=True)
class World:
    """This process's rank among ``size``, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def on_main(self, action: Callable[[], T]) -> T:
        """Run ``action`` in the main process only; all get its result, or raise its UserError."""
        if self.size == 1:
            return action()
        box: list[object] = [None, None]
        if self.main:
            try:
                box[0] = action()
            except UserError as error:
                box[1] = str(error)
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise UserError(str(box[1]))
        return box[0]  # pyright: ignore[reportReturnType]

    def broadcast_(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite ``tensors`` with the main process's."""
        if self.size > 1:
            for tensor in tensors:
                # nccl moves only what lies on the GPU; some optimizer state does not
                there = tensor.detach().to(self.device).contiguous()
                dist.broadcast(there, src=0)
                with torch.no_grad():
                    tensor.copy_(there)

    def average_gradients_(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradients of ``parameters`` by their mean over the processes, in float32.

        A parameter without a gradient in any process is left without one; without one in some, it counts as
        zero there. Nothing but ``parameters`` is communicated.
        """
        if self.size == 1 or not parameters:
            return
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        dist.all_reduce(has, op=dist.ReduceOp.MAX)
        used = [p for p, any_has in zip(parameters, has.tolist(), strict=True) if any_has]
        for bucket in _buckets(used):
            flat = torch.cat([_gradient(p).flatten() for p in bucket])
            dist.all_reduce(flat)
            flat /= self.size
            for p, mean in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad = mean.view_as(p).to(p.dtype)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process."""
        return flag if self.size == 1 else self.average({"flag": torch.tensor(float(flag))})["flag"] > 0

    def average(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean over the processes of scalars under the same names: one message, one wait for the device."""
        if not values:
            return {}
        flat = torch.stack([value.detach().float().to(self.device) for value in values.values()])
        if self.size > 1:
            dist.all_reduce(flat)
        return dict(zip(values, (flat / self.size).tolist(), strict=True))


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """The world of this process: alone, or among those that ``torchrun`` started.

    device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps". With several processes "cuda"
    means one GPU each. Within another `join` it is the same world: what runs in stages must not connect twice,
    since the second time processes would find each other's old addresses. Raises UserError for a device that is
    not there.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    place = resolve_device(device, local if size > 1 else 0)
    if size == 1:
        yield World(device=place)
        return
    if dist.is_initialized():
        yield World(rank, size, place)
        dist.barrier()  # what the main process wrote last is there for all
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(rank, size, place)
        # a process that leaves early takes the connections of those still talking with it
        dist.barrier()
    finally:
        dist.destroy_process_group()


def resolve_device(device: str, local_rank: int = 0) -> torch.device:
    """ "auto" becomes a GPU if there is one, else the CPU; raises UserError for one that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UserError(f'device="{device}" is not a device; use auto, cpu, cuda, cuda:1 or mps') from error
    if place.type == "cuda":
        place = torch.device("cuda", local_rank if place.index is None else place.index)
        if place.index >= torch.cuda.device_count():
            raise UserError(
                f'device="{place}" is not there: torch sees {torch.cuda.device_count()} GPUs; '
                "use device=cpu, or as many processes as GPUs"
            )
    if place.type == "mps" and not torch.backends.mps.is_available():
        raise UserError('device="mps" is not there; use device=cpu')
    return place


def _gradient(parameter: nn.Parameter) -> Tensor:
    grad = parameter.grad
    return torch.zeros_like(parameter, dtype=torch.float32) if grad is None else grad.float()


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Runs of parameters of at most BUCKET numbers (or one parameter), so that the copies stay small."""
    bucket: list[nn.Parameter] = []
    size = 0
    for p in parameters:
        if bucket and size + p.numel() > BUCKET:
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += p.numel()
    if bucket:
        yield bucket
