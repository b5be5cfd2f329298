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
Some = TypeVar("Some", bound=Tensor)
CPU = torch.device("cpu")
BUCKET = 32 * 2**20  # numbers in one message: 128 MiB of float32


@dataclass(frozen=True)
class World:
    """This process's rank among ``size``, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU

    @property
    def lead(self) -> int:
        """The rank of the process that writes the run folder."""
        return 0

    @property
    def main(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == self.lead

    @property
    def shards(self) -> int:
        """Into how many parts a step's batch is split, each for other processes to learn from."""
        return self.size

    @property
    def shard(self) -> int:
        """Which of these parts is this process's."""
        return self.rank

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
        dist.broadcast_object_list(box, src=self.lead)
        if box[1] is not None:
            raise UserError(str(box[1]))
        return box[0]  # pyright: ignore[reportReturnType]

    def broadcast_(self, tensors: Sequence[Tensor], source: int | None = None) -> None:
        """Overwrite ``tensors`` with those of process ``source`` (default: the main one)."""
        for bucket in _buckets(tensors) if self.size > 1 else ():
            # nccl moves only what lies on the GPU; some optimizer state does not
            flat = torch.cat([tensor.detach().to(self.device).flatten() for tensor in bucket])
            dist.broadcast(flat, src=self.lead if source is None else source)
            with torch.no_grad():
                for tensor, there in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
                    tensor.copy_(there.view_as(tensor))

    def refuse(self, clip: float | None, clip_per: str) -> None:
        """Raises UserError for a way of clipping that these processes cannot do; here each knows every gradient."""

    def collect_(self, tensors: Mapping[str, Tensor], moved: Sequence[str]) -> None:
        """Bring to all processes what only some of them move; here all move the same, and nothing is to be done.

        tensors: parameters by ``name`` and their optimizer state by ``name/quantity``. moved: names of the
        parameters that this process moves.
        """

    def average_gradients_(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradients of ``parameters`` by their mean over the processes, in float32.

        A parameter without a gradient in any process is left without one; without one in some, it counts as
        zero there. Nothing but ``parameters`` is communicated.
        """
        if self.shards == 1 or not parameters:
            return
        has = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        dist.all_reduce(has, op=dist.ReduceOp.MAX)
        used = [p for p, any_has in zip(parameters, has.tolist(), strict=True) if any_has]
        for bucket in _buckets(used):
            flat = torch.cat([_gradient(p).flatten() for p in bucket])
            dist.all_reduce(flat)
            flat /= self.shards
            for p, mean in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
                p.grad = mean.view_as(p).to(p.dtype)

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set in any process."""
        return flag if self.size == 1 else self.average({"flag": torch.tensor(float(flag))})["flag"] > 0

    def average(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Mean over the processes of scalars under the same names: one message, one wait for the device."""
        return {name: mean for name, (mean,) in self.pool({k: [v] for k, v in values.items()}).items()}

    def pool(self, values: Mapping[str, Sequence[Tensor]]) -> dict[str, list[float]]:
        """What all processes measured: each scalar's mean over those that share a batch, in its place.

        values: scalars by name, under the same names and as many in each of them. One message, one wait.
        """
        if not values:
            return {}
        flat = torch.cat([torch.stack(list(v)).detach().float().to(self.device) for v in values.values()])
        if self.shards > 1:
            dist.all_reduce(flat)
        means = iter((flat / self.shards).tolist())
        return {name: [next(means) for _ in several] for name, several in values.items()}


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


def _buckets(tensors: Sequence[Some]) -> Iterator[list[Some]]:
    """Runs of tensors of one dtype, of at most BUCKET numbers (or one tensor), so that the copies stay small."""
    bucket: list[Some] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.numel() > BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket
