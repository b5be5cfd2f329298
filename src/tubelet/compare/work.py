"""One run of a comparison, trained and evaluated in a process of its own.

Of its own, so that its peak memory and its processor time are its own too, and so that a run that dies takes nothing
with it. What it would have said on a terminal is in OUT/log.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from tubelet.compare.judge import judge_encoder, left
from tubelet.compare.plan import Plan, Run, knobs_of
from tubelet.compare.state import trained
from tubelet.recipes import run_recipe
from tubelet.train.checkpoint import found

log = logging.getLogger("tubelet")
WATCH = 1.0  # seconds


def encoders(plan: Plan, run: Run, out: Path) -> dict[Path, Path]:
    """Where evaluations of a finished run go -> the encoder evaluated: its last, and every kept one if asked."""
    folder = out / run.folder
    kept = found(folder / "checkpoints") if plan.checkpoints else []
    return {folder: folder, **{folder / "at" / path.name: path for path in kept}}


def complete(plan: Plan, run: Run, out: Path) -> bool:
    """Whether nothing is left to do of the run."""
    return trained(out, run) and not any(left(plan, folder) for folder in encoders(plan, run, out))


def do_run(plan: Plan, run: Run, out: Path, threads: int | None) -> None:
    """Trains the run, from its newest checkpoint if it has one, and evaluates its encoder.

    Raises UserError for whatever the recipe or the evaluation refuses.
    """
    _begin(threads)
    with _logged(out / "log" / f"{Path(run.folder).name}.txt"):
        if not trained(out, run):
            folder = out / run.folder
            knobs = {**knobs_of(plan, run.arm, run.seed, out), "steps": run.planned.steps}
            run_recipe(run.arm.recipe, **knobs, out=str(folder), resume=_begun(folder))
        for folder, spec in encoders(plan, run, out).items():
            judge_encoder(plan, folder, str(spec), out)


def do_baseline(plan: Plan, spec: str, folder: Path, out: Path, threads: int | None) -> None:
    """Evaluates an encoder that nobody trained."""
    _begin(threads)
    with _logged(out / "log" / f"{folder.name}.txt"):
        judge_encoder(plan, folder, spec, out)


def _begin(threads: int | None) -> None:
    """Sets this process up, and sees that it ends with the one that started it, however that dies.

    A run that went on alone would still be writing when the same comparison is started again.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH)
        os.kill(os.getpid(), signal.SIGTERM)  # training saves and stops; anything else just ends

    threading.Thread(target=watch, daemon=True).start()


def _begun(folder: Path) -> bool:
    """Whether there is something to go on from, in this stage or an earlier one."""
    return any(folder.glob("checkpoints/step-*")) or any(folder.glob("*/checkpoints/step-*"))


@contextlib.contextmanager
def _logged(file: Path) -> Iterator[None]:
    """Within it, all that this process prints goes to the end of ``file``."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as handle:
        os.dup2(handle.fileno(), sys.stdout.fileno())
        os.dup2(handle.fileno(), sys.stderr.fileno())
        handler = logging.StreamHandler(handle)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        try:
            yield
        except BaseException:  # whatever it was, the log is where people look for it
            log.exception("stopped")
            raise
        finally:
            log.removeHandler(handler)
