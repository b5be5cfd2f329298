"""Batches for training: an order that is a pure function of (seed, position), decoded by worker processes.

Because every batch follows from its step, resuming is asking for the step; nothing of a stream is saved.
"""

from __future__ import annotations

import csv
import logging
import math
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tubelet.errors import UserError
from tubelet.files import replace_file
from tubelet.types import Batch

from . import cache
from .augment import IMAGENET_MEAN, IMAGENET_STD, Augment
from .container import DecodeError
from .cores import cores
from .decode import index
from .draws import Purpose, uniforms
from .manifest import Manifest, Video
from .order import Batches, Order
from .source import ClipReader

log = logging.getLogger("tubelet")

ATTEMPTS = 20  # substitutes tried for one place before the run stops
JUDGED_AFTER = (
    100  # samples (or an epoch, if that is fewer) before the share of replaced ones means something
)
STILLS = 25.0  # pictures a second in a folder of images, where a list does not say
STILL = 900.0  # seconds without a batch after which a decoder must be stuck
REPORT = ("path", "status", "clips", "replaced", "reason")


class Stream:
    """This process's share of every training batch, cropped, flipped and normalised on ``device``.

    batch_size: clips of all ``world`` processes together. frames, and fps or frame_step: the clip's geometry
    (see `clips`). crop_size, area, aspect, flip, mean, std: see `augment.Augment`. clips_per_video: clips cut
    each time a video is read, since decoding is the bottleneck: a batch then holds batch_size /
    clips_per_video videos. repeats: times that every video counts per epoch. windows: seconds; a video counts
    once for each such stretch of it (at least once), and its clips start in that stretch, so that one long video
    is many samples. workers: decoding processes (0: decode here; default: from the cores). cache_dir: keeps
    decoded frames there (see `cache`). decode_size: pictures with a larger short side are shrunk to it when
    decoded (default: so that the smallest crop still has crop_size pixels). max_replaced: share of samples that
    may be replaced by another video's before the run stops.

    A clip that cannot be decoded is replaced by that of another video, a function of its position; rows that a
    manifest calls unreadable are left out from the start. Both are in the `report`.
    Raises UserError for knobs that do not fit each other or the data.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        seed: int,
        batch_size: int,
        frames: int,
        crop_size: int,
        fps: float | None = None,
        frame_step: int | None = None,
        area: tuple[float, float] = (0.3, 1.0),
        aspect: tuple[float, float] = (0.75, 1.35),
        flip: float = 0.5,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        clips_per_video: int = 1,
        repeats: int = 1,
        windows: float | None = None,
        workers: int | None = None,
        cache_dir: str | Path | None = None,
        decode_size: int | None = None,
        max_replaced: float = 0.05,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        prefetch: int = 2,
    ) -> None:
        for name, value in (
            ("batch_size", batch_size),
            ("clips_per_video", clips_per_video),
            ("repeats", repeats),
        ):
            if value < 1:
                raise UserError(f"{name}={value} must be at least 1")
        if windows is not None and windows <= 0:
            raise UserError(f"windows={windows} must be a positive number of seconds")
        if not 0 <= max_replaced <= 1:
            raise UserError(f"max_replaced={max_replaced} is a share of the samples, 0 to 1")
        if workers is not None and workers < 0:
            raise UserError(f"workers={workers} must be 0 (decode in this process) or more")
        if batch_size % (world * clips_per_video):
            raise UserError(
                f"batch_size={batch_size} does not divide among {world} processes with clips_per_video="
                f"{clips_per_video}; make it a multiple of {world * clips_per_video}"
            )
        assert 0 <= rank < world
        self.device = torch.device(device)
        self.workers = _default_workers(world) if workers is None else workers
        self.prefetch = prefetch
        self.max_replaced = max_replaced
        self.augment = Augment(crop_size, area, aspect, flip, mean, std)
        side = decode_size or math.ceil(crop_size / math.sqrt(area[0]))
        folder = None if cache_dir is None else Path(cache_dir).expanduser()
        self.reader = ClipReader(frames, fps, frame_step, side, folder)
        self.manifest = manifest
        _refuse_missing(manifest, max_replaced)
        self.videos = manifest.readable().videos
        if not self.videos:
            first = manifest.videos[0] if manifest.videos else None
            why = f", for instance {first.path}: {first.reason}" if first else ""
            raise UserError(f"{manifest.source}: none of its {len(manifest)} videos can be read{why}")
        self.entries = _entries(self.videos, windows, repeats)
        self.samples = len(self.entries) * clips_per_video
        if batch_size > self.samples:
            raise UserError(_too_large(manifest, batch_size, len(self.entries), clips_per_video, world))
        if folder is not None and rank == 0:
            cache.check_room(self.videos, side, folder)
        self.order = Order(seed, len(self.entries), clips_per_video, batch_size, rank, world)
        classes = {name: i for i, name in enumerate(manifest.classes())}
        self.labels = [classes.get(v.label, -1) if v.label else -1 for v in self.videos] if classes else None
        self._read = np.zeros(len(self.videos), np.int64)
        self._lost = np.zeros(len(self.videos), np.int64)
        self._reasons: dict[int, str] = {}
        self._seen = self._replaced = 0
        self._running: Iterator[Batch] | None = None

    def batches(self, start_step: int = 0) -> Iterator[Batch]:
        """Without end: the batch of ``start_step``, then of the steps after it.

        clip: float32 [B, 3, T, H, W] with B = batch_size / world, on the device; label: int64 [B], the place of
        the video's label among the sorted ones, -1 without one, or None if the manifest has no labels.
        Raises UserError when too many samples had to be replaced, when a worker dies, when a disk is full.
        """
        self.close()
        self._running = self._batches(start_step)
        return self._running

    def metrics(self) -> Mapping[str, float]:
        """`data/replaced_frac`: share of this process's samples that another video stood in for."""
        return {"data/replaced_frac": self._replaced / max(1, self._seen)}

    def report(self) -> list[dict[str, str | int]]:
        """One row per video of the manifest (columns REPORT): clips read from it, and clips that failed."""
        rows: list[dict[str, str | int]] = []
        used = {id(video): i for i, video in enumerate(self.videos)}
        for video in self.manifest.videos:
            i = used.get(id(video))
            status = "left out" if i is None else "failed" if self._lost[i] else video.status or "not scanned"
            read, lost = (0, 0) if i is None else (int(self._read[i]), int(self._lost[i]))
            reason = (video.reason if i is None else self._reasons.get(i) or video.reason) or ""
            values = (str(video.path), status, read, lost, reason)
            rows.append(dict(zip(REPORT, values, strict=True)))
        return rows

    def write_report(self, out: str | Path, go_on: bool = False) -> None:
        """Writes the `report` as CSV; with ``go_on`` it is added to the one that an earlier session left there."""
        out, rows = Path(out), self.report()
        if go_on and out.is_file():
            with out.open(newline="", encoding="utf-8") as file:
                earlier = list(csv.DictReader(file))
            if [row["path"] for row in earlier] == [row["path"] for row in rows]:
                rows = [_added(row, before) for row, before in zip(rows, earlier, strict=True)]
        with replace_file(out) as draft, draft.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(REPORT)
            table.writerows(row.values() for row in rows)

    def close(self) -> None:
        """Stops the workers; `batches` starts new ones."""
        running, self._running = self._running, None
        if running is not None:
            running.close()  # type: ignore[attr-defined]

    def _batches(self, start: int) -> Iterator[Batch]:
        many = self.workers > 0
        loader = DataLoader(
            _Clips(self.videos, self.entries, self.reader, self.order),
            batch_sampler=Batches(self.order, start),  # type: ignore[arg-type]
            collate_fn=_pack,
            num_workers=self.workers,
            prefetch_factor=self.prefetch if many else None,
            timeout=STILL if many else 0,
            # Workers touch files, numpy and FFmpeg, never the device or torch's threads, so a fork is safe, starts
            # at once, and asks no guard of the user's script.
            multiprocessing_context=_START if many else None,
            worker_init_fn=_begin,
            pin_memory=self.device.type == "cuda",
        )
        packs = iter(loader)
        while True:
            try:
                pack = next(packs)
            except RuntimeError as error:
                raise _explained(error, self.workers) from error
            self._account(pack)
            moved = pack.pixels.to(self.device, non_blocking=True)
            pieces = moved.split([math.prod(shape) for shape in pack.shapes])
            clips = [piece.view(shape) for piece, shape in zip(pieces, pack.shapes, strict=True)]
            label = None if self.labels is None else torch.tensor([self.labels[v] for v in pack.videos])
            yield Batch(
                self.augment(clips, self.order.seed, pack.positions),
                torch.tensor(pack.positions, device=self.device),
                None if label is None else label.to(self.device),
            )

    def _account(self, pack: _Pack) -> None:
        np.add.at(self._read, pack.videos, 1)
        self._seen += len(pack.positions)
        self._replaced += pack.replaced
        for video, reason in pack.failures:
            if video not in self._reasons:
                log.warning("replaced: %s: %s", self.videos[video].path, reason)
            self._lost[video] += self.order.clips_per_video
            self._reasons[video] = reason
        if pack.error:
            raise UserError(pack.error)
        enough = self._seen >= min(JUDGED_AFTER, self.samples)
        if enough and self._replaced > self.max_replaced * self._seen:
            raise UserError(
                f"{self._replaced} of {self._seen} clips could not be read and were replaced by others, more than "
                f"max_replaced={self.max_replaced:g} allows:\n{_named(self.videos, self._reasons)}\n"
                "Scan the data (tubelet scan) and train on the manifest, which leaves such files out, or raise "
                "max_replaced"
            )


@dataclass
class _Group:
    """The clips of one place in the order. videos: which each was cut from."""

    position: int
    clips: list[np.ndarray]
    video: int
    failures: list[tuple[int, str]]
    error: str = ""


@dataclass
class _Pack:
    """A batch on its way from a worker: all clips in one tensor, for one file descriptor instead of B."""

    pixels: Tensor
    shapes: list[tuple[int, ...]]
    positions: list[int]
    videos: list[int]
    failures: list[tuple[int, str]]
    replaced: int
    error: str

    def pin_memory(self) -> _Pack:
        """What a DataLoader calls so that the copy to the device can overlap."""
        self.pixels = self.pixels.pin_memory()
        return self


class _Clips(Dataset[_Group]):
    """(position, entry) -> the clips that are cut there."""

    def __init__(
        self, videos: tuple[Video, ...], entries: np.ndarray, reader: ClipReader, order: Order
    ) -> None:
        self.videos, self.entries, self.reader, self.order = videos, entries, reader, order

    def __getitem__(self, place: tuple[int, int]) -> _Group:  # type: ignore[override]
        position, entry = place
        order = self.order
        draws = [
            uniforms(order.seed, Purpose.START, position + i, 1)[0] for i in range(order.clips_per_video)
        ]
        failures: list[tuple[int, str]] = []
        for attempt in range(ATTEMPTS + 1):
            if attempt:
                entry = order.substitute(position, attempt)
            video, window, windows = self.entries[entry].tolist()
            if any(video == lost for lost, _ in failures):
                continue
            try:
                clips = self.reader.read(self.videos[video], [(window + at) / windows for at in draws])
                return _Group(position, clips, video, failures)
            except DecodeError as error:
                failures.append((video, error.reason))
            except UserError as error:
                return _Group(position, [], video, failures, str(error))
        named = _named(self.videos, dict(failures))
        error = f"no clip for position {position}: {len(failures)} videos in turn could not be read:\n{named}"
        return _Group(position, [], -1, failures, error)


def _pack(groups: list[_Group]) -> _Pack:
    clips = [torch.from_numpy(clip) for group in groups for clip in group.clips]
    return _Pack(
        pixels=torch.cat([clip.reshape(-1) for clip in clips])
        if clips
        else torch.empty(0, dtype=torch.uint8),
        shapes=[tuple(clip.shape) for clip in clips],
        positions=[group.position + i for group in groups for i in range(len(group.clips))],
        videos=[group.video for group in groups for _ in group.clips],
        failures=[failure for group in groups for failure in group.failures],
        replaced=sum(len(group.clips) for group in groups if group.failures),
        error=next((group.error for group in groups if group.error), ""),
    )


def _too_large(manifest: Manifest, batch_size: int, entries: int, clips_per_video: int, world: int) -> str:
    """What is wrong and what would fit, in knobs that every recipe has."""
    per_video = f", {clips_per_video} clips of each" if clips_per_video > 1 else ""
    fits = entries * clips_per_video // (world * clips_per_video) * (world * clips_per_video)
    enough = range(-(-batch_size // entries), batch_size + 1)
    more = [clips for clips in enough if batch_size % (world * clips) == 0]
    cures = [f"lower batch_size to {fits}"] if fits else []
    cures += [f"cut more clips from each (clips_per_video={more[0]})"] if more else []
    return (
        f"batch_size={batch_size} is more than the {entries * clips_per_video} samples in {manifest.source} "
        f"({len(manifest)} videos, a long one counted once for each clip's length{per_video}); "
        f"{' or '.join([*cures, 'add videos'])}"
    )


def _entries(videos: tuple[Video, ...], windows: float | None, repeats: int) -> np.ndarray:
    """int64 [n, 3]: video, window, number of the video's windows."""
    counts = [1 if windows is None else _window_count(video, windows) for video in videos]
    rows = [(i, w, n) for i, n in enumerate(counts) for w in range(n)]
    return np.array(rows * repeats, np.int64)


def _window_count(video: Video, seconds: float) -> int:
    duration = video.duration
    if duration is None:
        try:
            duration = index(video.path, video.fps).duration
        except DecodeError:
            return 1  # said again, and counted, when it is read
    if math.isnan(duration):  # images without a rate
        duration = len(index(video.path, video.fps)) / STILLS
    end = duration if video.end is None else min(video.end, duration)
    return max(1, int((end - (video.start or 0.0)) / seconds + 1e-6))


def _refuse_missing(manifest: Manifest, most: float) -> None:
    """Files that a list names and that do not exist count as samples lost, not as a scan's verdict."""
    missing = [v.path for v in manifest.videos if v.reason == "file not found"]
    if len(missing) > most * len(manifest):
        named = "\n".join(f"  {path}" for path in missing[:10])
        raise UserError(
            f"{manifest.source}: {len(missing)} of {len(manifest)} files do not exist, more than max_replaced={most:g} "
            f"allows:\n{named}\nMend the list, or raise max_replaced"
        )
    if missing:
        log.warning("%d of %d files do not exist and are left out", len(missing), len(manifest))


def _added(row: dict[str, str | int], before: Mapping[str, str]) -> dict[str, str | int]:
    """A row of the report and the same video's of an earlier session, as one."""
    failed = before["status"] == "failed" and row["status"] != "failed"
    known = {"status": before["status"], "reason": before["reason"]} if failed else {}
    counts = {name: int(row[name]) + int(before[name]) for name in ("clips", "replaced")}
    return {**row, **known, **counts}


def _named(videos: tuple[Video, ...], reasons: Mapping[int, str], most: int = 10) -> str:
    lines = [f"  {videos[i].path}: {why}" for i, why in list(reasons.items())[:most]]
    return "\n".join(lines + [f"  and {len(reasons) - most} more"] * (len(reasons) > most))


def _explained(error: RuntimeError, workers: int) -> RuntimeError | UserError:
    said = str(error).splitlines()[0] if str(error) else ""
    if "DataLoader timed out" in said:
        return UserError(
            f"no batch came within {STILL:g} s: a decoder stands still, or the disk does; tubelet scan finds such files"
        )
    if "DataLoader worker" in said and ("killed" in said or "exited" in said):
        return UserError(
            f"a decoding process died ({said.rstrip('. ')}). Often memory: lower workers={workers} or decode_size, "
            "in a container enlarge the shared memory (docker --shm-size). Or a file crashes the decoder: "
            "tubelet scan finds it"
        )
    return error


_START = "fork" if sys.platform == "linux" else multiprocessing.get_start_method()


def _begin(worker: int) -> None:
    # A cluster or Ctrl-C signals the whole group; only the main process decides, saves, and then ends the workers.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _default_workers(world: int) -> int:
    return max(1, min(16, cores() // (2 * world)))
