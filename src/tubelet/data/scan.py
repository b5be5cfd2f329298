"""Reading every frame of a data set once, and writing down what each file is worth.

Files are decoded in processes of their own, so that a decoder that crashes or hangs costs one file, not the
scan. They are started as plain commands: nothing of the calling program is imported or forked.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tubelet.errors import UserError

from .container import GONE, DecodeError, status
from .cores import cores
from .manifest import MEASURED, STATUSES, Manifest, Video, read_manifest, write_manifest
from .stamp import stamp
from .verdict import Verdict, inspect

log = logging.getLogger("tubelet")

SAVE_EVERY = 30.0  # seconds of scanning that an interruption may cost
BEAT_EVERY = 1.0
# What a stuck or crashed process says is no property of the file alone, so the next scan tries again.
AGAIN = ("the decoder crashed", "the decoder stood still")


def scan(
    data: str | Path | Manifest,
    out: str | Path,
    workers: int | None = None,
    *,
    timeout: float = 60.0,
    rescan: bool = False,
    progress: bool = True,
) -> Manifest:
    """Decodes every video that ``data`` names, writes the manifest ``out`` (CSV) and returns it.

    workers: processes (default: all cores). timeout: seconds in which a file must make some progress; one that
    does not is `unreadable`. rescan: read files again that have not changed since ``out`` was written; without
    it, only new files and those of another size or time of change are read. An interrupted scan goes on where
    it stopped. Raises UserError as `read_manifest` does, and if ``out`` cannot be written.
    """
    out = Path(out)
    if out.suffix.lower() != ".csv":
        raise UserError(f"{out}: a manifest is a CSV file; give it a name that ends in .csv")
    if out.is_dir():
        raise UserError(f"{out} is a folder; name the manifest to write, such as {out / 'manifest.csv'}")
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers}: a scan needs at least one process")
    given = read_manifest(data)
    partial = out.with_name(f".{out.name}.partial.csv")
    known: dict[Path, Video] = {}
    if not rescan:
        for earlier in (out, partial):
            known |= _already(earlier)
    stamps = {path: _stamp(path) for path in dict.fromkeys(v.path for v in given.videos)}
    found: dict[Path, Video] = {}
    for path, (size, mtime) in stamps.items():
        old = known.get(path)
        if (
            old is not None
            and (old.size, old.mtime_ns) == (size, mtime)
            and not (old.reason or "").startswith(AGAIN)
        ):
            found[path] = old
    todo = [path for path, (size, _) in stamps.items() if path not in found and size is not None]
    log.info("%d of %d files are unchanged since the last scan", len(found), len(stamps))

    def result() -> Manifest:
        rows = tuple(_measured(v, found.get(v.path), *stamps[v.path]) for v in given.videos)
        return replace(given, videos=rows, source=out)

    saved = time.monotonic()
    with _bar(progress) as bar:
        task = bar.add_task("reading videos", total=len(todo))
        try:
            for path, verdict in inspect_all(todo, workers or cores(), timeout):
                size, mtime = stamps[path]
                found[path] = Video(path, **asdict(verdict), size=size, mtime_ns=mtime)
                bar.advance(task)
                if time.monotonic() - saved > SAVE_EVERY:
                    write_manifest(result(), partial)
                    saved = time.monotonic()
        except BaseException:
            # An interruption, most often: what was read so far is kept, the manifest itself stays as it was.
            write_manifest(result(), partial)
            raise
    manifest = result()
    write_manifest(manifest, out)
    partial.unlink(missing_ok=True)
    return manifest


def summary(manifest: Manifest, named: int = 20) -> list[str]:
    """What a scan found, for people: counts, hours, shapes, the files that are not fine, and what to do next."""
    videos = manifest.videos
    counts = {status: [v for v in videos if v.status == status] for status in STATUSES}
    lines = [
        *manifest.notes,
        f"{len(videos)} videos: " + ", ".join(f"{len(found)} {status}" for status, found in counts.items()),
    ]
    usable = counts["ok"] + counts["damaged"]
    if usable:
        hours = sum(v.duration or 0 for v in usable) / 3600
        frames = sorted(v.frames or 0 for v in usable)
        sides = sorted(min(v.width or 0, v.height or 0) for v in usable)
        lines.append(
            f"{hours:.2f} hours of footage; {frames[0]} to {frames[-1]} frames (median {frames[len(frames) // 2]}), "
            f"short side {sides[0]} to {sides[-1]} pixels (median {sides[len(sides) // 2]})"
        )
    bad = counts["unreadable"] + counts["damaged"]
    lines += [f"  {v.status}: {v.path} ({v.reason})" for v in bad[:named]]
    if len(bad) > named:
        lines.append(f"  and {len(bad) - named} more, see the column reason")
    lines.append(f"{manifest.source} can now be given as data; training leaves unreadable files out")
    return lines


def inspect_all(paths: Sequence[Path], workers: int, timeout: float) -> Iterator[tuple[Path, Verdict]]:
    """Each path and what a complete decode of it found, in the order in which they finish."""
    if not paths:
        return
    todo: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Path, Verdict] | BaseException] = queue.SimpleQueue()
    for path in paths:
        todo.put(path)
    readers = [_Reader(todo, done) for _ in range(min(workers, len(paths)))]
    try:
        for reader in readers:
            todo.put(None)
            reader.start()
        left = len(paths)
        while left:
            try:
                item = done.get(timeout=min(BEAT_EVERY, timeout / 4))
            except queue.Empty:
                item = None
            if isinstance(item, BaseException):
                raise item
            if item is not None:
                left -= 1
                yield item
            for reader in readers:
                reader.kill_if_silent(timeout)
    finally:
        for reader in readers:
            reader.stop()


class _Reader(threading.Thread):
    """One child process, fed with paths; replaced when it dies."""

    def __init__(self, todo: queue.SimpleQueue[Path | None], done: queue.SimpleQueue) -> None:
        super().__init__(daemon=True)
        self.todo, self.done = todo, done
        self.child: subprocess.Popen[str] | None = None
        self.heard: float | None = None  # when the child last gave a sign of life; None while it has no work
        self.silent_for: float | None = None
        self.stopped = False

    def run(self) -> None:
        try:
            while not self.stopped and (path := self.todo.get()) is not None:
                self.done.put((path, self._inspect(path)))
        except OSError as error:  # no process can be started
            self.done.put(error)
        finally:
            self._end()

    def kill_if_silent(self, timeout: float) -> None:
        heard, child = self.heard, self.child
        if heard is not None and child is not None and time.monotonic() - heard > timeout:
            self.silent_for = timeout
            child.kill()

    def stop(self) -> None:
        self.stopped = True
        if self.child is not None:
            self.child.kill()
        self.join()

    def _inspect(self, path: Path) -> Verdict:
        if self.child is None:
            self.child = _start()
        child = self.child
        assert child.stdin is not None and child.stdout is not None
        self.silent_for = None
        try:
            self.heard = time.monotonic()
            child.stdin.write(json.dumps(str(path)) + "\n")
            child.stdin.flush()
            for line in child.stdout:
                self.heard = time.monotonic()
                if line != "\n":
                    return Verdict(**json.loads(line))
        except BrokenPipeError:
            pass  # the child died; why is found out below
        finally:
            self.heard = None
        code = self._end()
        if self.silent_for is not None:
            return Verdict(
                "unreadable", reason=f"the decoder stood still for {self.silent_for:g} s and was stopped"
            )
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Verdict("unreadable", reason=f"the decoder crashed ({how})")

    def _end(self) -> int:
        child, self.child = self.child, None
        if child is None:
            return 0
        assert child.stdin is not None and child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()
        return child.wait()


def _start() -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
        encoding="utf-8",
    )


def serve(look: Callable[[Path, Callable[[], None]], Verdict] = inspect) -> None:
    """The child's side: paths as JSON lines on standard input, verdicts as JSON lines on standard output.

    Empty lines in between are signs of life.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # whatever a library prints does not get between the answers
    spoken = 0.0

    def beat() -> None:
        nonlocal spoken
        if time.monotonic() - spoken > BEAT_EVERY:
            spoken = time.monotonic()
            answers.write("\n")

    for line in sys.stdin:
        answers.write(json.dumps(asdict(look(Path(json.loads(line)), beat))) + "\n")


def _already(manifest: Path) -> dict[Path, Video]:
    """What an earlier scan found, by path; nothing if there was none."""
    if not manifest.is_file():
        return {}
    try:
        earlier = read_manifest(manifest)
    except UserError as error:
        log.warning("everything is read anew, for the earlier manifest cannot be: %s", error)
        return {}
    return {v.path: v for v in earlier.videos if v.status is not None and v.size is not None}


def _measured(video: Video, found: Video | None, size: int | None, mtime: int | None) -> Video:
    if size is None:
        return replace(video, status="unreadable", reason=_reason(video.path))
    if found is None:
        return replace(video, **dict.fromkeys(MEASURED))
    measured = {name: getattr(found, name) for name in MEASURED}
    if found.codec == "images":  # their rate is known from the list alone
        measured |= {
            "fps": video.fps,
            "duration": found.frames / video.fps if found.frames and video.fps else None,
        }
    return replace(video, **measured | {"size": size, "mtime_ns": mtime})


def _stamp(path: Path) -> tuple[int | None, int | None]:
    """Size and time of change, for a manifest's columns; of a folder without images, its own."""
    try:
        found = stamp(path)
    except DecodeError:
        return (0, path.stat().st_mtime_ns) if os.path.exists(path) else (None, None)
    return found.size, found.mtime_ns


def _reason(path: Path) -> str:
    """Why a file had no stamp."""
    try:
        status(path)
    except DecodeError as error:
        return error.reason
    return GONE  # it has come meanwhile


def _bar(shown: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, disable=not shown, transient=True)
