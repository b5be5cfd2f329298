"""Two gloo processes train what one does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from toy import (
    METHODS,
    Locking,
    OneLoss,
    ToyStream,
    free_port,
    in_world,
    lines_of,
    monitor,
    settings,
    start,
    weights_of,
)

from tubelet.errors import UserError
from tubelet.train import checkpoint
from tubelet.train.loop import take_step, train
from tubelet.train.optim import Optimizer
from tubelet.train.parallel import World
from tubelet.types import Moment


def together(target: Callable[..., None], *args: Any) -> list[int | None]:
    """Exit codes of two processes that run ``target(world, *args)``."""
    port = free_port()
    processes = [start(in_world, rank, 2, port, target, args) for rank in range(2)]
    for process in processes:
        process.join(60)
        if process.is_alive():
            process.kill()
    return [process.exitcode for process in processes]


def learn_together(world: World, name: str, run: Path, changes: dict[str, Any], resume: bool = False) -> None:
    method = METHODS[name]()
    if not world.main and not resume:
        with torch.no_grad():  # only the main process's start counts
            next(method.parameters()).add_(1.0)
    stream = ToyStream(rank=world.rank, world=world.size)
    train(method, stream, settings(**changes), run, world=world, monitors=[monitor], resume=resume)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one_with_as_many_micro_batches(name: str, tmp_path: Path) -> None:
    """Draws included: micro-batches are numbered over all processes."""
    assert together(learn_together, name, tmp_path / "two", {}) == [0, 0]
    one = METHODS[name]()
    train(one, ToyStream(), settings(micro_batches=2), tmp_path / "one", monitors=[monitor])
    theirs, _ = checkpoint.read_tensors(tmp_path / "two/checkpoints/step-000012")
    for key, value in one.state_dict().items():
        torch.testing.assert_close(theirs[key], value, rtol=0, atol=2e-5)
    for a, b in zip(lines_of(tmp_path / "two"), lines_of(tmp_path / "one"), strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)


def learn_whole_batch(world: World, run: Path) -> None:
    method = OneLoss(noise=False)
    stream = ToyStream(rank=world.rank, world=world.size)
    train(method, stream, settings(clip_per="module"), run, world=world)


def test_two_processes_equal_one_with_the_double_batch(tmp_path: Path) -> None:
    assert together(learn_whole_batch, tmp_path / "two") == [0, 0]
    learn_whole_batch(World(), tmp_path / "one")
    two, one = (checkpoint.read_tensors(tmp_path / n / "checkpoints/step-000012")[0] for n in ("two", "one"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=2e-5)


def test_resume_in_two_processes_is_bitwise(tmp_path: Path) -> None:
    assert together(learn_together, "locking", tmp_path / "whole", {}) == [0, 0]
    assert together(stop_second_rank, "locking", tmp_path / "cut") == [143, 143]
    assert together(learn_together, "locking", tmp_path / "cut", {}, True) == [0, 0]
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    cut, whole = (tmp_path / name / "checkpoints/step-000012" for name in ("cut", "whole"))
    assert weights_of(cut) == weights_of(whole)


def stop_second_rank(world: World, name: str, run: Path) -> None:
    """SIGTERM reaches one process only: both must stop after the same step."""

    class Signal(ToyStream):
        def metrics(self) -> dict[str, float]:
            return {"data/replaced_frac": 0.0}

        def batches(self, start_step: int) -> Any:
            for step, batch in enumerate(ToyStream.batches(self, start_step), start_step):
                if step == 5 and self.rank == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield batch

    stream = Signal(rank=world.rank, world=world.size)
    train(METHODS[name](), stream, settings(), run, world=world, monitors=[monitor])


def count_traffic(world: World, out: Path) -> None:
    """Numbers that each step sends, with and without frozen blocks."""
    sent: list[int] = []
    original = dist.all_reduce

    def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent[-1] += (
            tensor.numel() if tensor.numel() > 100 else 0
        )  # gradients, not the few numbers beside them
        return original(tensor, *args, **kwargs)

    dist.all_reduce = counting
    method = Locking()
    optimizer = Optimizer(method)
    moving = []
    for step in (0, 5, 11):
        sent.append(0)
        chosen = settings()
        batch = next(ToyStream(rank=world.rank, world=world.size).batches(step))
        take_step(method, optimizer, batch, Moment(step, chosen.steps), chosen, world)
        moving.append(sum(p.numel() for p in optimizer.moving))
    if world.main:
        out.write_text(f"{sent == moving} {sent}")


def test_frozen_parts_are_not_communicated(tmp_path: Path) -> None:
    assert together(count_traffic, tmp_path / "sent") == [0, 0]
    assert (tmp_path / "sent").read_text().startswith("True")


def uneven_gradients(world: World) -> None:
    """A parameter used in one process only counts as zero in the other; one used in none stays without."""
    a, b = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))
    if world.main:
        a.grad = torch.full((3,), 4.0)
    world.average_gradients_([a, b])
    assert a.grad is not None and a.grad.tolist() == [2.0] * 3 and b.grad is None
    assert world.any(world.rank == 1) and not world.any(False)
    assert world.average({"x": torch.tensor(float(world.rank))}) == {"x": 0.5}


def test_uneven_gradients() -> None:
    assert together(uneven_gradients) == [0, 0]


def refused(world: World, run: Path, out: Path) -> None:
    """A mistake that only the main process can see is raised in all."""
    try:
        learn_together(world, "one-loss", run, {}, resume=True)
    except UserError as error:
        (out / f"{world.rank}").write_text(str(error))


def test_a_mistake_reaches_every_process(tmp_path: Path) -> None:
    assert together(refused, tmp_path / "empty", tmp_path) == [0, 0]
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()
    assert "no checkpoint to resume from" in (tmp_path / "0").read_text()


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="does not divide into 3 processes"):
        settings().micro_batch_size(3)
