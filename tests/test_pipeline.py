"""Processes in a line learn what one does, and nothing ever comes back down the line."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
import torch
import torch.distributed as dist
from toy import ToyStream, free_port, lines_of, monitor, quiet, settings, start, weights_of
from video import write_video

from tubelet import cli
from tubelet.errors import UserError
from tubelet.masks import RandomMask
from tubelet.methods.blockwise import Blockwise, share_out
from tubelet.nn.predictor import Predictor
from tubelet.nn.vit import ViT
from tubelet.train.loop import take_step, train
from tubelet.train.optim import Optimizer
from tubelet.train.parallel import World
from tubelet.train.pipeline import AHEAD, Pipeline, join_pipeline
from tubelet.types import Batch, Moment

PATCH, PIXELS = (2, 8, 8), 2 * 8 * 8 * 3
QUARTERS = (1, 1, 1, 1)


class Clips(ToyStream):
    """Clips that a ViT can cut, into 2 x 2 x 3 tokens."""

    def clip(self, position: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.seed * 10**6 + position)
        return torch.randn(3, 4, 16, 24, generator=generator)


def build(
    line: Pipeline | None, layers: Sequence[int] = QUARTERS, targets: Any = "pixels", **other: Any
) -> Blockwise:
    """Four layers; every process draws the same weights."""
    torch.manual_seed(7)
    teacher = ViT(24, 1, 2, patch=PATCH) if targets == "teacher" else None
    wide = {"pixels": [PIXELS] * len(layers), "teacher": [24] * len(layers)}
    wide["previous"] = [PIXELS] + [48] * (len(layers) - 1)
    other = {"decoders": [Predictor(48, 24, 1, 2, width) for width in wide[targets]], **other}
    encoder = ViT(48, 4, 3, patch=PATCH)
    return Blockwise(
        encoder, mask=RandomMask(0.5), layers=layers, targets=targets, teacher=teacher, line=line, **other
    )


def chosen(**changes: Any) -> Any:
    return settings(
        **{"steps": 8, "batch_size": 4, "clip_per": "module", "keep": 9, "monitor_every": 3, **changes}
    )


def place(rank: int, size: int, port: int) -> None:
    """The environment that torchrun would give."""
    quiet()
    given = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": size,
        "RANK": rank,
        "LOCAL_RANK": rank,
    }
    os.environ |= {name: str(value) for name, value in given.items()}


def in_line(
    rank: int, size: int, port: int, errors: Path, target: Callable[..., None], args: Sequence[Any]
) -> None:
    """``target(line, *args)`` in process ``rank``; what it says to the user is written into ``errors``."""
    place(rank, size, port)
    try:
        with join_pipeline("cpu") as line:
            target(line, *args)
    except UserError as error:
        (errors / f"{rank}").write_text(str(error))
        sys.exit(cli.USER_ERROR)


def together(size: int, target: Callable[..., None], *args: Any) -> list[int | None]:
    """Exit codes of ``size`` processes that run ``target(rank, size, port, *args)``; None of one that hangs."""
    port = free_port()
    processes = [start(target, rank, size, port, *args) for rank in range(size)]
    for process in processes:
        process.join(60)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def learn(
    line: Pipeline | None, run: Path, how: dict[str, Any], changes: dict[str, Any], resume: bool = False
) -> None:
    world = line or World()
    method = build(line, **how)
    monitors = [monitor] if world.main else []
    train(method, Clips(4), chosen(**changes), run, world=world, monitors=monitors, resume=resume)


# processes, what the method is built with, what the loop is given
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "2 + 2 blocks": (2, {}, {}),
    "2 + 1 blocks, micro-batches": (2, {"layers": (1, 1, 2)}, {"micro_batches": 2}),
    "previous": (2, {"targets": "previous"}, {"micro_batches": 2}),
    "teacher": (2, {"targets": "teacher"}, {}),
    "1 + 1 + 1 blocks, bf16": (3, {"layers": (1, 1, 2)}, {"precision": "bf16"}),
}


def learn_cases(line: Pipeline, base: Path) -> None:
    """Every case for as many processes; two also go on with a run of one, and are asked for one that is not there."""
    for number, (size, how, changes) in enumerate(CASES.values()):
        if size == line.size:
            learn(line, base / f"line{number}", how, changes)
    if line.size == 2:
        learn(line, base / "resumed", {}, {}, resume=True)
        try:
            learn(line, base / "empty", {}, {}, resume=True)
        except UserError as error:
            (base / f"said{line.rank}").write_text(str(error))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case by one process, one0 ..., and by several, line0 ..."""
    base = tmp_path_factory.mktemp("runs")
    for number, (_, how, changes) in enumerate(CASES.values()):
        learn(None, base / f"one{number}", how, changes)
    cut(base / "one0", base / "resumed")
    for size in (2, 3):
        assert together(size, in_line, base, learn_cases, (base,)) == [0] * size
    return base


def cut(run: Path, to: Path) -> Path:
    """A copy of ``run`` as if it had been killed after four steps."""
    shutil.copytree(run, to)
    shutil.rmtree(to / "checkpoints" / "step-000008")
    return to


def assert_equal(one: Path, other: Path) -> None:
    """Bitwise, and in every checkpoint: weights, optimizer state, what was measured, what a resume compares.

    Only the norm of all gradients is a norm of two norms here and of four there, rounded to float32 in between.
    """
    names = [path.name for path in sorted((one / "checkpoints").glob("step-*"))]
    assert names and names == [path.name for path in sorted((other / "checkpoints").glob("step-*"))]
    for name in names:
        ours, theirs = one / "checkpoints" / name, other / "checkpoints" / name
        assert weights_of(ours) == weights_of(theirs)
        states = [json.loads((path / "state.json").read_text()) for path in (ours, theirs)]
        for state in states:
            state["spent"] = {k: v for k, v in state["spent"].items() if k in ("clips", "flops")}
        assert states[0] == states[1]
    for ours, theirs in zip(lines_of(one), lines_of(other), strict=True):
        assert ours.pop("train/grad_norm", 0.0) == pytest.approx(theirs.pop("train/grad_norm", 0.0), rel=1e-6)
        assert ours == theirs


@pytest.mark.parametrize("case", CASES)
def test_processes_in_a_line_equal_one_process_bit_by_bit(case: str, runs: Path) -> None:
    number = list(CASES).index(case)
    assert_equal(runs / f"line{number}", runs / f"one{number}")


def test_a_line_goes_on_with_a_run_of_one_process_and_the_other_way_round(runs: Path, tmp_path: Path) -> None:
    one, line = cut(runs / "line0", tmp_path / "one"), runs / "resumed"
    learn(None, one, {}, {}, resume=True)
    assert_equal(one, runs / "one0")
    assert_equal(line, runs / "one0")
    assert "not bit by bit" not in (one / "train.log").read_text() + (line / "train.log").read_text()


def test_a_mistake_that_only_the_last_process_sees_reaches_all(runs: Path) -> None:
    assert "no checkpoint to resume from" in (runs / "said0").read_text()
    assert (runs / "said0").read_text() == (runs / "said1").read_text()


# -- forward only ------------------------------------------------------------------------------------------


def run_ahead(line: Pipeline, mark: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _run_ahead(line, mark, patch)


def _run_ahead(line: Pipeline, mark: Path, patch: pytest.MonkeyPatch) -> None:
    """The last process does not begin before the first has taken as many steps as may be under way."""
    method = build(line)
    optimizer = Optimizer(method)
    sent: list[int] = []
    post = dist.isend

    def counted(*args: Any, **kwargs: Any) -> Any:
        sent[-1] += 1
        return post(*args, **kwargs)

    def never(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError("something came back, or was waited for together")

    patch.setattr(dist, "isend", counted)
    if line.rank == 0:
        for name in ("recv", "irecv", "all_reduce", "all_gather_object", "broadcast", "barrier"):
            patch.setattr(dist, name, never)
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    batches = Clips(4).batches(0)
    for step in range(2 * AHEAD):
        if line.rank and step == 0:
            while not mark.exists():
                time.sleep(0.01)
        if line.rank == 0 and step == AHEAD:
            mark.touch()
        sent.append(0)
        take_step(method, optimizer, next(batches), Moment(step, 99), chosen(), line)
        assert not line.any(False)
        assert sum(tokens for *_, tokens in line._under_way) <= AHEAD
    # tokens once a step; what was measured and whether to stop are a length and the words each
    assert sent == ([5] * 2 * AHEAD if line.rank == 0 else [0] * 2 * AHEAD)
    below = ("encoder.embedding", "encoder.blocks.0", "encoder.blocks.1", "decoders.0", "decoders.1")
    for name, p in method.named_parameters():
        assert torch.equal(p, before[name]) != (name.startswith(below) == (line.rank == 0)), name


def test_between_checkpoints_the_first_process_receives_nothing(tmp_path: Path) -> None:
    """It takes `AHEAD` steps before the other has begun one, keeps no more tokens under way, and each moves its own."""
    assert together(2, in_line, tmp_path, run_ahead, (tmp_path / "mark",)) == [0, 0]


# -- ends --------------------------------------------------------------------------------------------------


def fail(line: Pipeline, run: Path, where: int, how: str) -> None:
    method = build(line)

    class Bad(Clips):
        def batches(self, start_step: int) -> Iterator[Batch]:
            for step, batch in enumerate(Clips.batches(self, start_step), start_step):
                if step == 5 and line.rank == where:
                    if how == "nan":
                        with torch.no_grad():
                            next(method.trainable(Moment(0, 1))[0].parameters()).fill_(math.nan)
                    elif how == "unreadable":
                        raise UserError("no clip can be read")
                    elif how == "signal":
                        os.kill(os.getpid(), signal.SIGTERM)
                    else:
                        os.kill(os.getpid(), signal.SIGKILL)
                yield batch

    train(method, Bad(4), chosen(), run, world=line, monitors=[monitor] if line.main else [])


@pytest.mark.parametrize(
    ("where", "how", "said"),
    [
        (0, "nan", "step 5: the loss is nan"),
        (1, "nan", "step 5: the loss is nan"),
        (1, "unreadable", "no clip"),
    ],
)
def test_when_one_process_fails_all_end_with_its_error(
    where: int, how: str, said: str, tmp_path: Path
) -> None:
    assert together(2, in_line, tmp_path, fail, (tmp_path / "run", where, how)) == [cli.USER_ERROR] * 2
    assert said in (tmp_path / "0").read_text() and said in (tmp_path / "1").read_text()
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("step-*")] == ["step-000004"]


def test_when_a_process_is_killed_none_hangs(tmp_path: Path) -> None:
    """The first, which keeps the store in which others would look for a reason."""
    codes = together(2, in_line, tmp_path, fail, (tmp_path / "run", 0, "killed"))
    assert codes == [-signal.SIGKILL, cli.USER_ERROR]
    assert "the first process of the pipeline has ended" in (tmp_path / "1").read_text()


@pytest.mark.parametrize("where", [0, 1])
def test_a_signal_to_one_process_stops_all_after_the_same_step(
    where: int, runs: Path, tmp_path: Path
) -> None:
    """The first decides; of a signal to another it hears from the store, a few steps later."""
    run = tmp_path / "run"
    assert together(2, in_line, tmp_path, fail, (run, where, "signal")) == [128 + signal.SIGTERM] * 2
    stopped = len(lines_of(run))
    assert stopped >= 6 and (run / f"checkpoints/step-{stopped:06d}").is_dir()
    learn(None, run, {}, {}, resume=True)
    if stopped < 8:
        shutil.rmtree(run / f"checkpoints/step-{stopped:06d}")
    assert_equal(run, runs / "one0")


# -- refused -----------------------------------------------------------------------------------------------


def alone(rank: int = 0, size: int = 2) -> Pipeline:
    """A place in a line that nobody else is in."""
    return Pipeline(rank, size, control=None, store=cast(Any, None))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"regime": "sequential"}, 'regime="sequential" in several processes'),
        ({"regime": "end_to_end", "decoders": [Predictor(48, 24, 1, 2, PIXELS)]}, 'regime="end_to_end"'),
        ({"layers": (2, 2), "overlap": 1}, "overlap=1 in several processes"),
        ({"decoders": [Predictor(48, 24, 1, 2, PIXELS)]}, "a shared decoder in several processes"),
        ({"layers": (4,)}, "2 processes for 1 blocks"),
    ],
)
def test_what_needs_something_from_above_is_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(alone(), **how)


def test_one_norm_over_all_gradients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='use clip_per="module"'):
        train(build(alone()), Clips(4), chosen(clip_per="all"), tmp_path / "run", world=alone())
    assert not (tmp_path / "run").exists()
    alone().refuse(None, "all")


def test_blocks_are_shared_out_in_runs() -> None:
    assert share_out(4, 2) == [range(0, 2), range(2, 4)]
    assert share_out(3, 2) == [range(0, 2), range(2, 3)]
    assert share_out(5, 3) == [range(0, 2), range(2, 4), range(4, 5)]


# -- by its command ----------------------------------------------------------------------------------------


def command(rank: int, size: int, port: int, argv: list[str]) -> None:
    place(rank, size, port)
    sys.exit(cli.main(argv))


def test_the_command_and_its_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        write_video(tmp_path / f"clips/{number}.mp4", range(40 * number, 40 * number + 10), size=(48, 40))
    size = "--model 48x2x3 --crop-size 32 --frames 4 --frame-step 1 --batch-size 2 --workers 0 --device cpu"
    how = (
        f"pretrain blockwise --data {tmp_path / 'clips'} --blocks 2 --steps 8 --save-every 4 --health-every 3"
    )
    one, line = (
        [*how.split(), *size.split(), "--out", str(tmp_path / name / "run")] for name in ("one", "line")
    )
    assert cli.main([*line, "--pipeline"]) == cli.USER_ERROR
    assert "torchrun --nproc-per-node 2" in capsys.readouterr().err
    assert not (tmp_path / "line" / "run").exists()
    assert cli.main(one) == 0
    assert together(2, command, [*line, "--pipeline"]) == [0, 0]
    assert_equal(tmp_path / "line" / "run", tmp_path / "one" / "run")
    again = cut(tmp_path / "line" / "run", tmp_path / "again" / "run")
    assert cli.main(["pretrain", "blockwise", "--out", str(again), "--resume"]) == 0
    assert_equal(again, tmp_path / "one" / "run")
