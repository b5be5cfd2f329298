"""Features of a frozen encoder, computed once and kept in memory-mapped tables.

A table's folder is named by a hash of everything its numbers depend on: the encoder's weights, the videos (path,
size, time of change, start, end), the clip geometry, the views, the pooling. A changed encoder or video has another
name, so nothing stale is ever read; labels, splits and groups are no part of it, so every task shares the tables.
Below it lies one folder for each set of layers that was extracted together, and a layer that any of them holds is
not computed again. Rows are written as they come and the folder is renamed when all are there; an interrupted
extraction goes on where it stopped. Memory holds one batch, never the table.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from tubelet.data.container import DecodeError
from tubelet.data.cores import cores
from tubelet.data.manifest import Video
from tubelet.errors import UserError
from tubelet.evaluate.source import Source, VideoSource, Views
from tubelet.export.weights import Encoder
from tubelet.files import sync, write_json
from tubelet.types import Grid

Pool = Literal["mean", "time", "flat", "none", "clip"]
POOLS: tuple[Pool, ...] = ("mean", "time", "flat", "none", "clip")
# what the tables of a pool hold; pools that hold the same share them
KEPT: dict[Pool, str] = {
    "mean": "means over space",
    "time": "means over space",
    "flat": "all",
    "none": "all",
    "clip": "means over the clip",
}
VERSION = 3  # part of every key; raise it when numbers change for the same inputs
TODO, DONE, UNREADABLE = 0, 1, 2
COMMIT_EVERY = 2.0  # seconds between flushes to disk: what an interruption can cost


class Reading(NamedTuple):
    """A layer, and whether its tokens passed the final norm before they were averaged."""

    layer: int
    normed: bool

    @property
    def name(self) -> str:
        """Of its table's file."""
        return f"{self.layer:02d}" if self.normed else f"{self.layer:02d}raw"


@dataclass(frozen=True)
class Features:
    """One table per layer, a row per video of the manifest (of the source, where the clips are no videos).

    rows: int64 [n], the videos that could be read. tables: layer -> [videos, crops, segments, t, D] float32,
    means over space (for pool "mean" and "time"; for "clip" t is 1, the mean over all tokens), or [videos, crops,
    segments, N, D] float16, all tokens (for "flat" and "none"); memory-mapped. excluded: manifest row -> reason, for
    videos that could not be read (their table rows are zero). folder: where the tables of this encoder and these
    videos lie.
    """

    rows: np.ndarray
    tables: dict[int, np.ndarray]
    excluded: dict[int, str]
    folder: Path
    pool: Pool

    def pooled(self) -> np.ndarray:
        """float32 [n, layers * width]: views averaged, layers joined. Width: D (mean, clip), t*D (time), N*D (flat)."""
        if self.pool == "none":
            raise ValueError('pool "none" has no pooled form; extract with "mean", "time" or "flat"')
        parts = []
        for table in self.tables.values():
            wide = np.stack([table[row].mean(axis=(0, 1), dtype=np.float32) for row in self.rows])
            parts.append(wide.mean(axis=1) if self.pool in ("mean", "clip") else wide.reshape(len(wide), -1))
        return np.concatenate(parts, axis=1)

    def tokens(self, rows: np.ndarray) -> Tensor:
        """float32 [len(rows), crops, layers * segments * N, D]: all tokens of the manifest rows ``rows``."""
        if self.pool != "none":
            raise ValueError('only pool "none" keeps tokens')
        order = np.argsort(rows, kind="stable")  # ascending reads of the file, then back
        parts = []
        for table in self.tables.values():
            block = np.empty((len(rows), *table.shape[1:]), np.float32)
            block[order] = table[rows[order]]
            parts.append(block.reshape(len(rows), table.shape[1], -1, table.shape[-1]))
        return torch.from_numpy(np.concatenate(parts, axis=2))


def cache_folder(cache: Path | str | None = None) -> Path:
    """Where features are kept: ``cache``, else $TUBELET_CACHE, else the user's cache folder."""
    if cache is not None:
        return Path(cache).expanduser()
    if named := os.environ.get("TUBELET_CACHE"):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tubelet"


def extract(
    encoder: Encoder,
    videos: Sequence[Video],
    *,
    layers: Sequence[int] | None = None,
    pool: Pool = "mean",
    views: Views | None = None,
    normed: bool = True,
    cache: Path | str | None = None,
    frame_cache: Path | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Features:
    """Features of ``videos`` at ``layers`` (default: the last), from the cache where it has them.

    pool: "mean" of all tokens; "time": mean over space, time steps joined, which keeps the order of events;
    "flat": all tokens joined, which keeps places too; "none": all tokens, apart; "clip": as "mean", in tables that
    hold nothing else. "mean" and "time" share a table in float32, "flat" and "none" one in float16. normed: pass
    earlier layers through the final norm too, as the papers' probes do (the last layer always is). frame_cache:
    folder of decoded frames (`data.cache`), so that many encoders of one crop size decode each video once; the
    features equal those without it. batch_size: clips through the encoder at once. workers: decoding threads
    (default: all cores).
    Raises UserError if no video can be read, if features are not finite (naming the clip), if a layer does not
    exist, if the encoder does not fit RGB clips of its geometry, or if the disk cannot hold the table.
    """
    wanted = [Reading(k, normed) for k in ([encoder.model.depth] if layers is None else layers)]
    return extract_source(
        encoder,
        VideoSource(videos, encoder.geometry, views or Views(), frame_cache),
        wanted,
        pool=pool,
        cache=cache,
        batch_size=batch_size,
        workers=workers,
        device=device,
        progress=progress,
    )[normed]


def extract_source(
    encoder: Encoder,
    source: Source,
    readings: Sequence[Reading],
    *,
    pool: Pool = "mean",
    cache: Path | str | None = None,
    batch_size: int = 16,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
    what: str = "features",
) -> dict[bool, Features]:
    """Features of all that ``source`` reads, in one pass; by whether the tokens were normed first.

    The last layer is always normed, and stands under both. what: what the progress bar says is made. The other
    arguments and errors are those of `extract`.
    """
    model = encoder.model
    _check(encoder, [reading.layer for reading in readings], pool, len(source))
    # the last layer is what the final norm makes of it: there is no other reading of it
    wanted = sorted({Reading(k, normed or k == model.depth) for k, normed in readings})
    recipe = _recipe(encoder, source, pool)
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:20]
    home = cache_folder(cache) / "features" / key
    missing = [reading for reading in wanted if _holder(home, reading) is None]
    if missing:
        final = home / _folder_name(missing)
        with _lock(final.with_suffix(".lock")):
            if not final.exists():  # while this process waited, another may have made it
                source.prepare()
                part = final.with_suffix(".part")
                job = _Job(encoder, source, missing, pool, batch_size, workers, device, what)
                job.run(part, {"layers": [reading.name for reading in missing], **recipe}, progress)
                os.replace(part, final)
                sync(home)
    return {
        normed: _open(
            home, sorted({Reading(k, True) if k == model.depth else Reading(k, normed) for k in own}), pool
        )
        for normed in (True, False)
        if (own := [reading.layer for reading in readings if reading.normed == normed])
    }


def _dense(pool: Pool) -> bool:
    """Whether all tokens are kept, or means of them."""
    return KEPT[pool] == "all"


def _folder_name(readings: Sequence[Reading]) -> str:
    """Of the folder of what was extracted together; many layers would make it longer than a file system allows."""
    name = "-".join(["layers", *(reading.name for reading in readings)])
    return name if len(name) < 100 else f"layers-{hashlib.sha256(name.encode()).hexdigest()[:20]}"


def _check(encoder: Encoder, layers: Sequence[int], pool: str, count: int) -> None:
    model = encoder.model
    if pool not in POOLS:
        raise UserError(f'pool="{pool}" is unknown; use "mean", "time", "flat", "none" or "clip"')
    if not count:
        raise UserError("there are no videos to compute features of")
    if wrong := [k for k in layers if not 0 <= k <= model.depth]:
        raise UserError(f"{encoder.name} has layers 0 to {model.depth}, not {wrong}")
    check_clips(encoder)


def check_clips(encoder: Encoder) -> None:
    """Raises UserError unless the encoder reads RGB, and its patches tile its clips."""
    model, geometry = encoder.model, encoder.geometry
    if model.channels != 3:
        raise UserError(f"{encoder.name} reads {model.channels} channels; videos decode to 3 (RGB)")
    for what, side, patch in zip(
        ("frames", "crop_size", "crop_size"),
        (geometry.frames, geometry.crop_size, geometry.crop_size),
        model.patch,
        strict=True,
    ):
        if side % patch:
            raise UserError(
                f"{what}={side} is not a multiple of the patch's {patch}; use {side - side % patch}"
            )


def _recipe(encoder: Encoder, source: Source, pool: Pool) -> dict[str, Any]:
    """Everything that a layer's numbers depend on, as JSON; also a record for whoever finds the folder."""
    return {
        "version": VERSION,
        "encoder": encoder.digest,
        "tokens": KEPT[pool],
        **source.identity(),
    }


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One extraction of a table at a time, across processes; a killed one leaves no lock behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: two extractions of one table at once are then the user's to avoid
        yield
        return
    while True:
        handle = path.open("w")
        fcntl.flock(handle, fcntl.LOCK_EX)
        # Who held the lock before has removed the file: a lock on what has no name any more keeps nobody out.
        with suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(handle.fileno()).st_ino:
                break
        handle.close()
    with handle:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _holder(home: Path, reading: Reading) -> Path | None:
    """The finished folder below ``home`` that has the table of ``reading``."""
    found = sorted(home.glob(f"layers-*/layer{reading.name}.npy"))
    return next((file.parent for file in found if not file.parent.suffix), None)


def _open(home: Path, readings: Sequence[Reading], pool: Pool) -> Features:
    done: list[np.ndarray] = []
    tables: dict[int, np.ndarray] = {}
    reasons: dict[int, str] = {}
    for reading in readings:
        folder = _holder(home, reading)
        assert folder is not None, f"{reading} is not in {home}"
        tables[reading.layer] = np.load(folder / f"layer{reading.name}.npy", mmap_mode="r")
        done.append(np.fromfile(folder / "done", dtype=np.uint8) == DONE)
        told = json.loads((folder / "unreadable.json").read_text())
        reasons |= {int(row): why for row, why in told.items()}
    return Features(np.flatnonzero(np.logical_and.reduce(done)), tables, reasons, home, pool)


@dataclass
class _Job:
    """One extraction, from decoding to the table on disk."""

    encoder: Encoder
    source: Source
    readings: list[Reading]
    pool: Pool
    batch_size: int
    workers: int | None
    device: torch.device | str
    what: str

    def run(self, folder: Path, recipe: dict[str, Any], progress: bool) -> None:
        """Fills ``folder``; what an interrupted run has put there is kept."""
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._fill(folder, recipe, progress)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(
                f"no room left on disk for the features in {folder}; free some space or name another cache "
                "(TUBELET_CACHE), then run again: what is there is kept"
            ) from error

    def _fill(self, folder: Path, recipe: dict[str, Any], progress: bool) -> None:
        shape = self._shape()
        dtype = np.dtype(np.float16 if _dense(self.pool) else np.float32)
        self._check_room(folder, shape, dtype)
        state = self._resume(folder, recipe)
        reasons_file = folder / "unreadable.json"
        reasons = json.loads(reasons_file.read_text()) if reasons_file.exists() else {}
        todo = np.flatnonzero(state == TODO)
        bar = Progress(
            TextColumn(f"{self.what} of {self.encoder.name}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=(console := Console(stderr=True)),
            transient=True,
            disable=not progress or not len(todo) or not console.is_terminal,
        )
        files = {
            reading: _create(folder / f"layer{reading.name}.npy", (len(state), *shape), dtype)
            for reading in self.readings
        }
        pending: list[tuple[int, int]] = []
        told = time.monotonic()

        def commit() -> None:
            """Rows count as done only once their numbers are on disk."""
            for handle, _ in files.values():
                handle.flush()
                os.fsync(handle.fileno())
            if reasons:
                write_json(reasons_file, reasons)
            for row, value in pending:
                done.seek(row)
                done.write(bytes([value]))
            done.flush()
            pending.clear()

        try:
            with bar, (folder / "done").open("r+b") as done:
                task = bar.add_task("", total=len(state), completed=len(state) - len(todo))
                for rows, batch in self._batches(todo, reasons):
                    if rows:
                        self._write(files, rows, batch, shape, dtype)
                    failed = [int(row) for row in reasons if state[int(row)] == TODO]
                    marks = [(row, DONE) for row in rows] + [(row, UNREADABLE) for row in failed]
                    for row, value in marks:
                        state[row] = value
                    pending += marks
                    if time.monotonic() - told > COMMIT_EVERY:
                        commit()
                        told = time.monotonic()
                    bar.advance(task, len(marks))
                commit()
        finally:
            for handle, _ in files.values():
                handle.close()
        write_json(reasons_file, reasons)
        if not (state == DONE).any():
            why = next(iter(reasons.values()))
            shutil.rmtree(folder)
            raise UserError(f"none of the {len(state)} videos can be read; the first: {why}")
        for file in folder.iterdir():
            sync(file)

    def _shape(self) -> tuple[int, ...]:
        """Shape of a video's row in every table: [crops, segments, ...]."""
        (pt, ph, pw), geometry = self.encoder.model.patch, self.encoder.geometry
        grid = Grid(geometry.frames // pt, geometry.crop_size // ph, geometry.crop_size // pw)
        dim = self.encoder.model.dim
        views = self.source.views
        return (
            views.crops,
            views.segments,
            {"all": grid.n, "means over space": grid.t}.get(KEPT[self.pool], 1),
            dim,
        )

    def _check_room(self, folder: Path, shape: tuple[int, ...], dtype: np.dtype) -> None:
        need = len(self.readings) * math.prod(shape) * len(self.source) * dtype.itemsize
        have = sum(f.stat().st_blocks * 512 for f in folder.glob("layer*.npy"))
        free = shutil.disk_usage(folder).free
        if need - have > free:
            raise UserError(
                f"features of {len(self.source)} videos take {need / 2**30:.1f} GiB, {folder} has "
                f"{free / 2**30:.1f} GiB left; free some space, or name another cache (TUBELET_CACHE)"
            )

    def _resume(self, folder: Path, recipe: dict[str, Any]) -> np.ndarray:
        """uint8 [videos]: what an earlier, interrupted extraction has done."""
        done = folder / "done"
        if done.exists() and done.stat().st_size == len(self.source):
            return np.fromfile(done, dtype=np.uint8)
        shutil.rmtree(folder)
        folder.mkdir()
        write_json(folder / "about.json", {"name": self.encoder.name, **recipe})
        done.write_bytes(bytes(len(self.source)))
        return np.zeros(len(self.source), np.uint8)

    def _batches(self, todo: np.ndarray, reasons: dict[str, str]) -> Iterator[tuple[list[int], list[Tensor]]]:
        """Readable videos in groups of about ``batch_size`` clips, decoded ahead in threads, in order.

        Fills ``reasons`` with the videos that cannot be read; the last group may be empty.
        """
        group = max(1, self.batch_size // self.source.views.count)
        workers = self.workers or cores()
        waiting: deque[tuple[int, Future[Tensor]]] = deque()
        rows: list[int] = []
        batch: list[Tensor] = []
        with ThreadPoolExecutor(workers) as pool:
            ahead = iter(todo.tolist())
            try:
                while True:
                    while len(waiting) < group + workers and (row := next(ahead, None)) is not None:
                        waiting.append((row, pool.submit(self.source.read, row)))
                    if not waiting:
                        break
                    row, read = waiting.popleft()
                    try:
                        batch.append(read.result())
                        rows.append(row)
                    except DecodeError as error:
                        reasons[str(row)] = str(error)
                    if len(rows) == group:
                        yield rows, batch
                        rows, batch = [], []
            finally:
                pool.shutdown(cancel_futures=True)
        yield rows, batch

    @torch.no_grad()
    def _write(
        self,
        files: dict[Reading, tuple[BinaryIO, int]],
        rows: list[int],
        batch: list[Tensor],
        shape: tuple[int, ...],
        dtype: np.dtype,
    ) -> None:
        model = self.encoder.model
        model.eval().to(self.device)
        clip = torch.cat(batch).to(self.device)
        found: dict[Reading, list[Tensor]] = {reading: [] for reading in self.readings}
        for part in clip.split(self.batch_size):  # one video with many views is more than a batch
            tokens = model.layers(
                part, sorted({reading.layer for reading in self.readings})
            )  # [b, N, D] each
            for reading, parts in found.items():
                read = model.norm(tokens[reading.layer]) if reading.normed else tokens[reading.layer]
                parts.append(read if _dense(self.pool) else read.unflatten(1, (shape[2], -1)).mean(dim=2))
        for reading, parts in found.items():
            values = torch.cat(parts).cpu().numpy().astype(dtype).reshape(len(rows), *shape)
            finite = np.isfinite(values.reshape(len(rows), -1)).all(axis=1)
            if not finite.all():
                bad = self.source.name(rows[int(np.flatnonzero(~finite)[0])])
                raise UserError(
                    f"{self.encoder.name} gives features at layer {reading.layer} of {bad} that are not finite "
                    f"numbers in {dtype}; its weights are damaged or its training diverged: use an earlier checkpoint"
                )
            handle, start = files[reading]
            size = math.prod(shape) * dtype.itemsize
            for row, value in zip(rows, values, strict=True):
                handle.seek(start + row * size)
                handle.write(value.tobytes())


def _create(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> tuple[BinaryIO, int]:
    """An open .npy file of that shape and where its numbers start; one that is there is kept.

    Rows are written with plain writes, not through a memory map: on a full disk a write raises an error, a map
    kills the process.
    """
    if not path.exists():
        with path.open("wb") as handle:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(handle, header)
            handle.truncate(handle.tell() + math.prod(shape) * dtype.itemsize)
    handle = path.open("r+b")
    np.lib.format.read_magic(handle)
    np.lib.format.read_array_header_1_0(handle)
    return handle, handle.tell()
