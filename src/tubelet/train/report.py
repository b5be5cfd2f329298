"""What a run says while it trains: metrics.jsonl for machines, train.log and a progress bar for people."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tubelet.errors import UserError
from tubelet.files import write_text

log = logging.getLogger("tubelet")
_progress_log = logging.getLogger("tubelet.progress")  # lines that a progress bar makes superfluous


class Report:
    """Writes one line per step and shows how far training is.

    Use `open_report`, which also closes it.
    """

    def __init__(self, metrics: FileIO, progress: Progress, board: Any, start: int, total: int) -> None:
        self.metrics, self.progress, self.board, self.total = metrics, progress, board, total
        self.bar = progress.add_task("train", completed=start, total=total, loss="", speed="")
        self.start, self.shown, self.began = start, 0.0, time.monotonic()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the line of ``step``; what is not finite becomes null. Raises UserError on a full disk."""
        line = {"step": step, **{k: v if math.isfinite(v) else None for k, v in metrics.items()}}
        try:
            _write_all(self.metrics, json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(
                f"{self.metrics.name} could not be written at step {step}: {error.strerror}; "
                "checkpoints are untouched: free some space and go on with --resume"
            ) from error
        if self.board is not None:
            for name, value in metrics.items():
                self.board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Flush the lines to disk, so that no checkpoint is ever ahead of them."""
        os.fsync(self.metrics.fileno())

    def advance(self, done: int, loss: float, clips_per_s: float) -> None:
        """``done`` steps lie behind: move the bar, or where there is none print a line now and then."""
        self.progress.update(
            self.bar, completed=done, loss=f"loss {loss:.4f}", speed=f"{clips_per_s:.1f} clips/s"
        )
        spent = time.monotonic() - self.began
        # every 10 s at first, then every twentieth of the time so far: a week gives 150 lines
        if spent - self.shown < max(10.0, spent / 20) and done < self.total:
            return
        self.shown = spent
        left = spent / max(1, done - self.start) * (self.total - done)
        _progress_log.info(
            f"step {done}/{self.total}  loss {loss:.4f}  {clips_per_s:.1f} clips/s  {duration(left)} left"
        )


class _ToFile(logging.Handler):
    """Messages with their time; one that the disk has no room for is lost, it is on the terminal too."""

    def __init__(self, file: FileIO) -> None:
        super().__init__()
        self.file = file
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            _write_all(self.file, self.format(record) + "\n")


class _ToConsole(logging.Handler):
    """Messages above the progress bar, as they are."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def open_report(run: Path, start: int, total: int, tensorboard: bool = False) -> Iterator[Report]:
    """A `Report` that goes on at step ``start``; lines of later steps, of a run that was killed, are dropped.

    Within it, messages of the logger "tubelet" go to ``run/train.log`` and to the terminal.
    Raises UserError if ``tensorboard`` is asked for and not installed.
    """
    board = _open_board(run, start) if tensorboard else None
    _drop_from(run / "metrics.jsonl", start)
    console = Console(stderr=True)
    to_terminal = _ToConsole(console)
    if console.is_terminal:
        to_terminal.addFilter(lambda record: record.name != _progress_log.name)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    level, propagate = log.level, log.propagate
    # unbuffered: a full disk shows when a line is written, not again when the file is closed
    with FileIO(run / "metrics.jsonl", "a") as metrics, FileIO(run / "train.log", "a") as train_log:
        handlers = [_ToFile(train_log), to_terminal]
        log.setLevel(logging.INFO)
        log.propagate = False  # a handler above would print every message again
        for handler in handlers:
            log.addHandler(handler)
        try:
            with progress:
                yield Report(metrics, progress, board, start, total)
        finally:
            for handler in handlers:
                log.removeHandler(handler)
            log.setLevel(level)
            log.propagate = propagate
            if board is not None:
                board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, without a last one that was cut off by a kill; [] if there is no file."""
    if not path.is_file():
        return []
    whole, _, _cut = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.split("\n") if line]


def duration(seconds: float) -> str:
    """1 h 02 min, 3 min 20 s, 12 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _write_all(file: FileIO, text: str) -> None:
    data = text.encode()
    while data:
        data = data[file.write(data) :]


def _drop_from(path: Path, step: int) -> None:
    kept = [line for line in read_metrics(path) if line["step"] < step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in kept))


def _open_board(run: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter  # imports a package that is an extra
    except ModuleNotFoundError as error:
        raise UserError(
            "tensorboard=True needs TensorBoard, which is not installed: pip install 'tubelet[tensorboard]'"
        ) from error
    return SummaryWriter(str(run / "tensorboard"), purge_step=start)
