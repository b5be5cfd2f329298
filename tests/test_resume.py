"""A run that is killed at any moment and resumed is bitwise the run that was not."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_methods import BUILDERS
from torch import Tensor
from toy import METHODS, ToyStream, learn, lines_of, quiet, run_child, settings, start, weights_of

from tubelet.train import checkpoint
from tubelet.train.loop import train
from tubelet.types import Batch

SHORT: dict[str, Any] = {"steps": 6, "save_every": 3, "keep": 1}
Child = Callable[[str, Path, bool, int | None], None]


def run_to_end(child: Child, name: str, run: Path, kills: list[int]) -> int:
    """Start, kill after so many lines, resume, ... until the run is through; returns how often it was killed."""
    killed = 0
    while True:
        kill_after = kills[killed] if killed < len(kills) else None
        process = start(child, name, run, bool(checkpoint.found(run / "checkpoints")), kill_after)
        process.join(120)
        if process.exitcode == 0:
            return killed
        assert process.exitcode == -signal.SIGKILL, f"exit code {process.exitcode} after {killed} kills"
        killed += 1


def assert_same(run: Path, whole: Path) -> None:
    """Same lines, each step once; same bytes of weights and optimizer; nothing left over."""
    assert [line["step"] for line in lines_of(run)] == list(range(len(lines_of(whole))))
    assert lines_of(run) == lines_of(whole)
    ours, theirs = (checkpoint.found(path / "checkpoints")[-1] for path in (run, whole))
    assert weights_of(ours) == weights_of(theirs)
    flops, clips = (
        [checkpoint.read_state(c)["spent"][key] for c in (ours, theirs)] for key in ("flops", "clips")
    )
    assert flops[0] == flops[1] and clips[0] == clips[1]
    assert not [name for name in os.listdir(run / "checkpoints") if name.startswith(".")]


@pytest.mark.parametrize("name", METHODS)
def test_killed_at_any_line_and_resumed(name: str, tmp_path: Path) -> None:
    """Chains of kills spread over a whole run: in the step, between steps, in the middle of saving."""
    whole = tmp_path / "whole"
    assert run_to_end(run_child, name, whole, []) == 0
    lines = int((whole / "lines").read_text())
    draw = random.Random(name)
    killed = 0
    for chain in range(2):
        run = tmp_path / f"run{chain}"
        killed += run_to_end(run_child, name, run, [draw.randrange(lines // 8, lines) for _ in range(5)])
        assert_same(run, whole)
    assert killed >= 2


@pytest.mark.parametrize("moment", ["replace", "fsync"])
def test_killed_at_every_file_operation_of_a_save(moment: str, tmp_path: Path) -> None:
    """Before each rename, and every fifth flush to disk, of a whole run, pruning included."""
    learn(METHODS["averaged"](), tmp_path / "whole", **SHORT)
    counter = tmp_path / "count"
    process = start(_killed_at_call, tmp_path / "counted", moment, None, counter)
    process.join(60)
    calls = int(counter.read_text())
    assert calls >= 8
    for call in range(1, calls + 1) if moment == "replace" else range(2, calls + 1, 5):
        run = tmp_path / f"run{call}"
        process = start(_killed_at_call, run, moment, call, counter)
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        learn(METHODS["averaged"](), run, **SHORT, resume=bool(checkpoint.found(run / "checkpoints")))
        assert_same(run, tmp_path / "whole")
        shutil.rmtree(run)


def _killed_at_call(run: Path, moment: str, at: int | None, counter: Path) -> None:
    quiet()
    calls = 0
    original = getattr(os, moment)

    def counting(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    setattr(os, moment, counting)
    learn(METHODS["averaged"](), run, **SHORT)
    counter.write_text(str(calls))


def test_killed_from_outside(tmp_path: Path) -> None:
    """By the clock instead of by a counter."""
    learn(METHODS["one-loss"](), tmp_path / "whole")
    run = tmp_path / "run"
    for delay in (0.3, 0.05, 0.12):
        process = start(run_child, "one-loss", run, bool(checkpoint.found(run / "checkpoints")), None)
        while not (run / "metrics.jsonl").exists() and process.is_alive():
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()
        process.join(60)
    learn(METHODS["one-loss"](), run, resume=bool(checkpoint.found(run / "checkpoints")))
    assert_same(run, tmp_path / "whole")


class RealStream(ToyStream):
    """Clips large enough for masks in blocks; stops the run, as a broken stream would, before step ``cut``."""

    cut: int | None = None

    def clip(self, position: int) -> Tensor:
        return torch.randn(3, 4, 48, 64, generator=torch.Generator().manual_seed(position))

    def batches(self, start_step: int) -> Iterator[Batch]:
        for step, batch in enumerate(ToyStream.batches(self, start_step), start_step):
            if step == self.cut:
                raise InterruptedError
            yield batch


@pytest.mark.parametrize("name", BUILDERS)
def test_every_real_method_resumes_bitwise(name: str, tmp_path: Path) -> None:
    """Built anew with other weights: all that counts comes from the checkpoint."""
    chosen = settings(steps=4, batch_size=2, save_every=2)

    def learn_real(run: Path, seed: int, cut: int | None, resume: bool) -> None:
        torch.manual_seed(seed)
        method, stream = BUILDERS[name](), RealStream(batch_size=2)
        stream.cut = cut
        train(method, stream, chosen, run, resume=resume)

    learn_real(tmp_path / "whole", 0, None, False)
    with pytest.raises(InterruptedError):
        learn_real(tmp_path / "cut", 0, 3, False)
    learn_real(tmp_path / "cut", 1, None, True)
    assert_same(tmp_path / "cut", tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    first = learn(METHODS["averaged"](), tmp_path)
    lines = lines_of(tmp_path)
    again = learn(METHODS["averaged"](), tmp_path, resume=True)
    assert lines_of(tmp_path) == lines
    assert again.checkpoint == first.checkpoint and again.spent.flops == first.spent.flops
