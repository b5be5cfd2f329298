"""From an encoder and videos of any length to a folder of vectors: what ``tubelet embed`` does."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from tubelet.data.container import DecodeError
from tubelet.data.cores import cores
from tubelet.data.decode import IndexChanged
from tubelet.data.manifest import Manifest, Video, read_manifest
from tubelet.data.stamp import stamp
from tubelet.embed.stream import Ahead, Cutting, Shown
from tubelet.embed.table import (
    ABOUT,
    FAILURES,
    FORMAT,
    KEPT,
    Done,
    Draft,
    Embeddings,
    Kept,
    Told,
    read_about,
    read_embeddings,
    refuse_other,
    refuse_strangers,
    settle,
)
from tubelet.embed.vectors import Vectors, choose_vectors
from tubelet.embed.windows import Plan, Sliding, sliding
from tubelet.errors import UserError, nearest
from tubelet.evaluate.source import Views
from tubelet.export.geometry import Geometry
from tubelet.export.weights import Encoder
from tubelet.train.report import duration

COMMIT_EVERY = 2.0  # seconds between flushes to disk
TELL_EVERY = 60.0  # seconds between lines of progress, where no bar can be drawn

log = logging.getLogger(__name__)


def embed(
    encoder: Encoder,
    data: Manifest | Path | str,
    out: Path | str,
    *,
    window: str | int | None = None,
    stride: str | int | None = None,
    layer: int | None = None,
    pool: str = "mean",
    head: Path | str | None = None,
    views: Views | None = None,
    kept: Kept = "both",
    fp16: bool = False,
    batch_size: int = 16,
    workers: int | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Embeddings:
    """The vectors of every window of ``data``'s videos, in the folder ``out`` (see `table`).

    window, stride: "4s" is seconds, "64" or 64 is frames of the file; by default the length of the encoder's clip,
    and the window. Which windows there are, and which frames a window shows: `windows`. layer, pool, views: what is
    kept of a window (`vectors.Vectors`); head: for pool "attentive" (`evaluate.head`). kept: "parquet", "numpy" or
    "both". fp16: vectors are stored in half precision; they are computed in float32. batch_size: clips through the
    encoder at once, full batches across windows and files. workers: files that are decoded at once (default: all
    cores).
    How the encoder was named when it was loaded (`Encoder.named`) is kept, for those who load it again.

    Memory does not grow with the length or number of the videos, but for their index (up to 300 bytes a frame of
    the files being decoded: 65 MB for two hours at 30 a second), 24 bytes a window, and the list of files. Beside
    the encoder it holds a batch of clips as floats and three as bytes; for each worker the pictures of one window, at
    the size of the crop, and two windows of clips; and, when the table is finished, a few times 8 MiB of vectors.
    (The index of the files read last is remembered too, up to 64 MB.)

    A video that cannot be read, for whatever reason, goes into `failures.csv`; one that stops half-way too, and its
    windows up to there are kept. An interrupted run goes on where it stopped when it is started again, file by file;
    the vectors then equal those of an uninterrupted one, byte for byte, on the same machine and with the same
    batch_size. A finished folder is left as it is. progress: a bar, or, where there is no terminal, a line a minute to
    the log.
    Raises UserError for knobs that make no sense, a folder that was begun with other
    knobs or from other data, that holds somebody else's files under the names of a table's, or that cannot be written,
    features that are not finite, a full disk (what is there is kept), and if no window of any video can be read.
    """
    out = Path(out)
    if kept not in KEPT:
        raise UserError(f'format "{kept}" is unknown{nearest(kept, KEPT)} (known: {", ".join(KEPT)})')
    if batch_size < 1 or (workers is not None and workers < 1):
        raise UserError(f"batch_size={batch_size}, workers={workers}: must be at least 1")
    vectors = choose_vectors(encoder, layer, pool, head, views)
    cutting = Cutting(encoder.geometry, vectors.views, sliding(window, stride, encoder.geometry))
    manifest = read_manifest(data)
    if not len(manifest):
        raise UserError(f"{manifest.source} lists no videos")
    job = _Job(vectors, cutting, manifest.videos, batch_size, workers or cores(), device)
    recipe = _recipe(job, kept, fp16)
    refuse_strangers(out)
    settle(out)
    if (out / ABOUT).is_file():
        refuse_other(out, read_about(out).get("recipe", {}), recipe)
        log.info(f"{out} is complete already")
        return read_embeddings(out)
    draft = Draft(out, recipe, math.prod(vectors.shape), np.dtype(recipe["dtype"]))
    try:
        job.fill(draft, progress)
        files = [Told(str(video.path), video.label, video.group) for video in manifest.videos]
        if not draft.rows:
            table = draft.give_up(files)
            raise UserError(
                f"{manifest.source}: no window of its {len(files)} videos can be read; the first: {files[0].file}: "
                f"{draft.done[0].reason} (all of them: {table})"
            )
        about = partial(_about, job, draft, recipe, str(manifest.source))
        draft.finish(about, files, kept)
    finally:
        draft.close()
    return read_embeddings(out)


def embed_video(
    encoder: Encoder,
    path: Path | str | Video,
    *,
    window: str | int | None = None,
    stride: str | int | None = None,
    layer: int | None = None,
    pool: str = "mean",
    head: Path | str | None = None,
    views: Views | None = None,
    start: float | None = None,
    end: float | None = None,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """The windows of one video: their vectors, float32 [N, ...], and their times, float64 [N, 2], from and to.

    path: a video, a folder of images, or a row of a manifest. start, end: seconds of it, if not all. The other knobs
    are those of `embed`, whose vectors these are, to rounding; here they keep their shape (`Vectors.shape`).
    Raises DecodeError if the video cannot be read to its end, and UserError as `embed` does.
    """
    video = path if isinstance(path, Video) else Video(Path(path), start=start, end=end)
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1")
    if not 0 <= (video.start or 0.0) < (math.inf if video.end is None else video.end):
        raise UserError(
            f"start={video.start} and end={video.end} hold no video; they are seconds, end after start"
        )
    vectors = choose_vectors(encoder, layer, pool, head, views)
    cutting = Cutting(encoder.geometry, vectors.views, sliding(window, stride, encoder.geometry))
    size = max(1, batch_size // vectors.views.count)
    while True:
        times: list[tuple[float, float]] = []
        parts: list[np.ndarray] = []
        batch: list[Tensor] = []
        try:
            for shown in cutting.windows(video):
                if shown.clips is None:
                    raise DecodeError(video.path, f"the frames from {shown.start:g} s on do not decode")
                times.append((shown.start, shown.end))
                batch.append(shown.clips)
                if len(batch) == size:
                    parts.append(vectors(torch.stack(batch), batch_size, device).numpy())
                    batch = []
        except IndexChanged:
            continue
        if batch:
            parts.append(vectors(torch.stack(batch), batch_size, device).numpy())
        found = np.concatenate(parts)
        if not np.isfinite(found).all():
            raise _not_finite(vectors, str(video.path), found.dtype)
        return found.reshape(-1, *vectors.shape), np.array(times)


def sentence(done: Embeddings) -> str:
    """What there is, how fast it came, and what failed."""
    about = done.about
    told = (
        f"{about['windows']} windows of {about['files']} videos ({about['video_seconds'] / 60:.1f} minutes) as "
        f"{about['width']} numbers each, {about['rate']:.3g} video-seconds a second"
    )
    counts = {"failed": about["failed"], "were read in part": about.get("in_part", 0)}
    wrong = " and ".join(f"{count} videos {what}" for what, count in counts.items() if count)
    return told + (f"; {wrong}: {done.folder / FAILURES}" if wrong else "")


class _Waiting(NamedTuple):
    """A window that waits for its batch to be full."""

    file: int
    start: float
    end: float
    clips: Tensor


@dataclass
class _Batches:
    """Windows in full batches, of which the k-th holds the rows from k * size on, however often a run is resumed.

    So a resumed run multiplies matrices of the same shapes, with the same rows in the same places, and gives the
    same bytes. The places before the row where it goes on are filled with black: rows do not see each other.
    """

    draft: Draft
    job: _Job
    size: int
    waiting: list[_Waiting | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.waiting = [None] * (self.draft.rows % self.size)

    @property
    def rows(self) -> int:
        """Of the table, with those that wait."""
        return self.draft.rows + sum(one is not None for one in self.waiting)

    def add(self, file: int, shown: Shown) -> None:
        """One more window; a full batch goes through the encoder."""
        assert shown.clips is not None
        self.waiting.append(_Waiting(file, shown.start, shown.end, shown.clips))
        if len(self.waiting) == self.size:
            self.flush()

    def rewind(self, rows: int) -> None:
        """Forgets all rows from ``rows`` on."""
        if rows >= self.draft.rows:
            del self.waiting[len(self.waiting) - (self.rows - rows) :]
        else:
            self.draft.rewind(rows)
            self.waiting = [None] * (rows % self.size)

    def flush(self) -> None:
        """What waits goes through the encoder and into the draft."""
        taken = [one for one in self.waiting if one is not None]
        if taken:
            black = torch.zeros_like(taken[0].clips)
            clips = torch.stack([black if one is None else one.clips for one in self.waiting])
            found = self.job.vectors(clips, self.job.batch_size, self.job.device)[-len(taken) :].numpy()
            with np.errstate(over="ignore"):  # what is too large for float16 is told below
                values = found.astype(self.draft.dtype)
            finite = np.isfinite(values).all(axis=1)
            if not finite.all():
                bad = taken[int(np.flatnonzero(~finite)[0])]
                name = f"{self.job.videos[bad.file].path} from {bad.start:g} s on"
                raise _not_finite(self.job.vectors, name, values.dtype)
            self.draft.append([(one.file, one.start, one.end) for one in taken], values)
        self.waiting = []


@dataclass
class _Job:
    """One run, from decoding to the draft on disk."""

    vectors: Vectors
    cutting: Cutting
    videos: Sequence[Video]
    batch_size: int
    workers: int
    device: torch.device | str
    told: bool = False

    def _tell(self, plan: Plan) -> None:
        """Says once if most of every window is not looked at."""
        if not self.told and plan.seen < 0.5:
            log.info(
                f"a window of {self.cutting.sliding.window} is looked at in {plan.segments} clip(s) that span "
                f"{100 * plan.seen:.0f} % of it, around its middle; segments={math.ceil(plan.segments / plan.seen)} "
                "shows all of it"
            )
        self.told = True

    def fill(self, draft: Draft, progress: bool) -> None:
        """Deals with every file that ``draft`` does not count yet."""
        size = max(1, self.batch_size // self.cutting.views.count)
        batches, ended = _Batches(draft, self, size), deque[Done]()
        todo = range(len(draft.done), len(self.videos))
        sources = [partial(self.cutting.windows, self.videos[number]) for number in todo]
        threads = min(self.workers, max(1, len(sources)))
        told = time.monotonic()

        def settle_up() -> None:
            """A file counts once its last window is in the draft, which may be batches later."""
            nonlocal told
            while ended and ended[0].rows <= draft.rows:
                draft.count(ended.popleft())
            if time.monotonic() - told > COMMIT_EVERY:
                draft.commit()
                told = time.monotonic()

        with (
            _Bar(self.videos, draft, self.vectors.encoder.name, progress) as bar,
            Ahead(sources, threads, max(2, -(-size // threads))) as ahead,
        ):
            for number in todo:
                first, source = batches.rows, ahead.following()
                while True:
                    try:
                        seconds, reason = self._take(number, source, batches, bar)
                        break
                    except IndexChanged:  # its frames were not where it was thought; what was taken is wrong
                        batches.rewind(first)
                        source = self.cutting.windows(self.videos[number])
                ended.append(Done(batches.rows, seconds, reason))
                settle_up()
                bar.file_done(number, seconds)
            batches.flush()
            settle_up()

    def _take(
        self, number: int, source: Iterator[Shown], batches: _Batches, bar: _Bar
    ) -> tuple[float, str | None]:
        """All windows of one file; how many seconds of video they are, and what was wrong with it.

        Raises IndexChanged.
        """
        holes: list[float] = []
        shown: Shown | None = None
        reason = None
        try:
            for place, shown in enumerate(source, 1):
                self._tell(shown.plan)
                if shown.clips is None:
                    holes.append(shown.start)
                else:
                    batches.add(number, shown)
                bar.window_done(number, place / len(shown.plan), _seconds(shown))
        except IndexChanged:
            raise
        except DecodeError as error:
            reason = error.reason if shown is None else f"read up to {shown.end:g} s only: {error.reason}"
        if shown is None:
            return 0.0, reason
        if holes and reason is None:
            reason = f"{len(holes)} of {len(shown.plan)} windows do not decode, the first at {holes[0]:g} s"
        return _seconds(shown), reason


def _seconds(shown: Shown) -> float:
    """Of video up to the end of a window; 0 for images without a rate."""
    seconds = shown.end - shown.plan.begin
    return 0.0 if math.isnan(seconds) else seconds


class _Bar:
    """How far the run is, by the size of files, with the time left and the rate; lines where there is no terminal."""

    def __init__(self, videos: Sequence[Video], draft: Draft, name: str, shown: bool) -> None:
        self.sizes = [_size(video) for video in videos]
        self.files, self.base = len(draft.done), float(sum(self.sizes[: len(draft.done)]))
        self.first, self.seconds = self.base, 0.0
        self.began = self.told = time.monotonic()
        console = Console(stderr=True)
        self.in_lines = shown and not (console.is_terminal or console.is_jupyter)
        self.bar = Progress(
            TextColumn(f"vectors of {name}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[told]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not shown or self.in_lines,
        )
        self.task = self.bar.add_task("", total=sum(self.sizes), told="")
        self.bar.update(self.task, completed=self.base)

    def window_done(self, number: int, share: float, seconds: float) -> None:
        """``share`` of a file is done, ``seconds`` of video."""
        self._tell(self.base + share * self.sizes[number], self.seconds + seconds)

    def file_done(self, number: int, seconds: float) -> None:
        """A file is done, ``seconds`` of video."""
        self.base += self.sizes[number]
        self.files, self.seconds = self.files + 1, self.seconds + seconds
        self._tell(self.base, self.seconds)

    def _tell(self, completed: float, seconds: float) -> None:
        now = time.monotonic()
        rate = seconds / max(now - self.began, 1e-9)
        told = f"{self.files}/{len(self.sizes)} files, {rate:.3g} video-seconds a second"
        self.bar.update(self.task, completed=completed, told=told)
        if self.in_lines and now - self.told > TELL_EVERY:
            self.told = now
            if completed > self.first:
                left = (now - self.began) * (sum(self.sizes) - completed) / (completed - self.first)
                told += f", {duration(left)} left"
            log.info(told)

    def __enter__(self) -> _Bar:
        self.bar.start()
        return self

    def __exit__(self, *given: object) -> None:
        self.bar.stop()


def _size(video: Video) -> int:
    try:
        return stamp(video.path).size
    except DecodeError:
        return 0


def _not_finite(vectors: Vectors, where: str, dtype: np.dtype) -> UserError:
    return UserError(
        f"{vectors.encoder.name} gives vectors at layer {vectors.layer} of {where} that are not finite numbers in "
        f"{dtype}; its weights are damaged or its training diverged: use an earlier checkpoint"
        + (", or leave out fp16" if dtype == np.float16 else "")
    )


def _clip(geometry: Geometry) -> dict[str, Any]:
    rate = {"frame_step": geometry.frame_step} if geometry.fps is None else {"fps": geometry.fps}
    pixels = {"mean": list(geometry.mean), "std": list(geometry.std)}
    return {"frames": geometry.frames, **rate, "crop_size": geometry.crop_size, **pixels}


def _recipe(job: _Job, kept: str, fp16: bool) -> dict[str, Any]:
    """Everything that the table depends on, as JSON."""
    vectors, geometry = job.vectors, job.cutting.geometry
    rows = [
        [str(v.path), _state(v), v.label, v.group, v.start, v.end, v.fps if os.path.isdir(v.path) else None]
        for v in job.videos
    ]
    digest = _hashed(rows)
    own: dict[str, list[Any]] = {}
    for path, *others in rows:
        own.setdefault(path, []).append(others)
    files = {path: _hashed(others)[:8] for path, others in own.items()}
    return {
        "encoder": vectors.encoder.digest,
        "layer": vectors.layer,
        "pool": vectors.pool,
        "head": vectors.head,
        "window": str(job.cutting.sliding.window),
        "stride": str(job.cutting.sliding.stride),
        "clip": _clip(geometry),
        "views": asdict(vectors.views),
        "dtype": "float16" if fp16 else "float32",
        "format": kept,
        "videos": f"{len(rows)} rows, {digest}",
        "files": files,
    }


def _hashed(rows: list[Any]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def _state(video: Video) -> list[int] | None:
    try:
        return list(stamp(video.path))
    except DecodeError:
        return None


def _spans(cut: Sliding) -> dict[str, float]:
    unit = cut.window.unit
    return {f"window_{unit}": cut.window.amount, f"stride_{unit}": cut.stride.amount}


def _about(job: _Job, draft: Draft, recipe: dict[str, Any], data: str) -> dict[str, Any]:
    """What `embeddings.json` says."""
    vectors, encoder = job.vectors, job.vectors.encoder
    video_seconds, seconds = sum(one.seconds for one in draft.done), draft.elapsed()
    failed = draft.failed()
    return {
        "format": FORMAT,
        "encoder": {
            "name": encoder.name,
            "digest": encoder.digest,
            **encoder.named,
            "dim": encoder.model.dim,
            "licence": encoder.provenance.get("licence", "unknown"),
            "source": encoder.provenance.get("source"),
        },
        "layer": vectors.layer,
        "pool": vectors.pool,
        "normed": True,
        "width": draft.width,
        "shape": list(vectors.shape),
        "dtype": str(draft.dtype),
        "clip": _clip(job.cutting.geometry),
        **_spans(job.cutting.sliding),
        "views": asdict(vectors.views),
        "files": len(job.videos),
        "failed": sum(one.windows == 0 for one in failed),
        "in_part": sum(one.windows > 0 for one in failed),
        "video_seconds": round(video_seconds, 3),
        "seconds": round(seconds, 3),
        "rate": round(video_seconds / seconds, 3),
        "data": data,
        "recipe": recipe,
    }
