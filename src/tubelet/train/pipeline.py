"""Several processes in a line: each learns some of the layers, and what it computes only ever travels forward.

For methods whose layers need nothing from those above them. Every process reads the whole batch, draws what the
others draw, and moves its own parameters. Tokens, then what was measured, then whether to stop go to the next
process; nothing comes back, so the first may be steps ahead of the last, which has heard everything and is the one
that writes. They wait for each other only before something looks at the whole: a checkpoint or a monitor.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store, TCPStore, Work  # pyright: ignore[reportPrivateImportUsage]

from tubelet.errors import UserError
from tubelet.train.parallel import World, join

AHEAD = 4  # tokens of so many micro-batches may be under way to the next process: memory, and how far it runs ahead
STOP, FAILED = "stop", "failed"  # keys in the store


@dataclass
class Waited:
    """Seconds that a process has stood idle: until something came from below, until the next could take more."""

    below: float = 0.0
    above: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Pipeline(World):
    """This process's place in the line, as a world of which it is the only one to see a batch.

    control: a gloo group, for messages that the processor reads. store: where a process leaves word for all: that
    it was asked to stop, or why it failed. waited: what has been stood idle so far (on a GPU tokens wait on the
    device instead, which this does not see).
    """

    control: Any
    store: Store
    waited: Waited = field(default_factory=Waited)
    _under_way: deque[tuple[Work, Tensor, bool]] = field(default_factory=deque)

    @property
    def lead(self) -> int:
        """The last: it alone has heard of everything."""
        return self.size - 1

    @property
    def shards(self) -> int:
        """One: each process sees the whole batch."""
        return 1

    @property
    def shard(self) -> int:
        """The whole."""
        return 0

    def receive(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The next tokens from the process below; waits for them."""
        tokens = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        began = time.perf_counter()
        dist.recv(tokens, src=self.rank - 1)
        self.waited.below += time.perf_counter() - began
        return tokens

    def send(self, tokens: Tensor) -> None:
        """Pass ``tokens`` to the process above, and go on; waits only while `AHEAD` others are still under way.

        They must not be changed afterwards.
        """
        began = time.perf_counter()
        while sum(is_tokens for _, _, is_tokens in self._under_way) >= AHEAD:
            self._under_way.popleft()[0].wait()
        self.waited.above += time.perf_counter() - began
        self._post(tokens.contiguous(), None)

    def refuse(self, clip: float | None, clip_per: str) -> None:
        """Raises UserError for clipping by the norm of all gradients, which no process knows."""
        if clip is not None and clip_per == "all":
            raise UserError(
                f'clip={clip} with clip_per="all" needs the gradients of all layers in one place, a pipeline has them '
                'in several; use clip_per="module", or no clip'
            )

    def pool(self, values: Mapping[str, Sequence[Tensor]]) -> dict[str, list[float]]:
        """What the processes below measured, then what this one did; the last knows it all."""
        mine = super().pool(values)
        below = {} if self.rank == 0 else self._hear()
        known = {name: below.get(name, []) + mine.get(name, []) for name in {**below, **mine}}
        self._tell(known)
        return known

    def any(self, flag: bool) -> bool:
        """Whether to stop after this step, which the first process says for all.

        Others that are asked to leave word in the store, and it stops after one of the next steps.
        """
        if self.rank:
            if flag:
                self.store.set(STOP, "")
            stop = self._hear()
        else:
            stop = flag or self.store.check([STOP])
        self._tell(stop)
        return stop

    def collect_(self, tensors: Mapping[str, Tensor], moved: Sequence[str]) -> None:
        """Each process's parameters and their state to all others: here the line comes to rest."""
        movers: list[Any] = [None] * self.size
        dist.all_gather_object(movers, list(moved), group=self.control)
        for rank, names in enumerate(movers):
            wanted = set(names)
            self.broadcast_([t for key, t in tensors.items() if key.partition("/")[0] in wanted], rank)

    def drain(self) -> None:
        """Wait until all that was sent has been taken."""
        while self._under_way:
            self._under_way.popleft()[0].wait()

    def _tell(self, value: Any) -> None:
        """Something of a few bytes to the process above."""
        if self.rank + 1 < self.size:
            words = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
            self._post(torch.tensor([len(words)]), self.control)
            self._post(words, self.control)

    def _hear(self) -> Any:
        """What the process below told; waits for it."""
        began = time.perf_counter()
        size = torch.empty(1, dtype=torch.int64)
        dist.recv(size, src=self.rank - 1, group=self.control)
        words = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(words, src=self.rank - 1, group=self.control)
        self.waited.below += time.perf_counter() - began
        return json.loads(bytes(words.tolist()))

    def _post(self, tensor: Tensor, group: Any) -> None:
        work = dist.isend(tensor, dst=self.rank + 1, group=group)
        assert work is not None, "this process is in no group"
        self._under_way.append((work, tensor, group is None))  # held until it has been taken


@contextmanager
def join_pipeline(device: str = "auto") -> Iterator[Pipeline]:
    """This process's place in a line of those that ``torchrun`` started; ``device`` as for `join`.

    If one fails, all end with its error: those above hear of it from below, those below find the connection
    closed and the reason in the store. Raises UserError for a single process.
    """
    with join(device) as world:
        if world.size == 1:
            raise UserError(
                "pipeline needs two or more processes; start it with torchrun: "
                "torchrun --nproc-per-node 2 -m tubelet pretrain ..."
            )
        line = Pipeline(
            world.rank, world.size, world.device, control=dist.new_group(backend="gloo"), store=_open(world)
        )
        try:
            yield line
            line.drain()
        except UserError as error:
            with suppress(RuntimeError):  # nobody may be left to be told
                line.store.compare_set(FAILED, "", f"process {line.rank + 1} of {line.size}: {error}")
                line.drain()
            raise
        except RuntimeError as error:  # what gloo and nccl raise when another process has left
            if reason := _reason(line.store):
                raise UserError(reason) from error
            raise


def _open(world: World) -> Store:
    """A store that the first process keeps and all read."""
    host, port = os.environ["MASTER_ADDR"], [0]
    kept = None
    if world.rank == 0:
        kept = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        port = [kept.port]
    dist.broadcast_object_list(port, src=0)
    return kept or TCPStore(host, port[0], is_master=False)


def _reason(store: Store) -> str | None:
    """Why another process failed, or None if it could not say so."""
    try:
        return store.get(FAILED).decode() if store.check([FAILED]) else None
    except RuntimeError:  # who kept the store has left
        return "the first process of the pipeline has ended: what it said last says why"
