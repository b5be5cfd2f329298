"""The order of samples, exact resume, ranks and workers, replacement, the cache, augmentation."""

from __future__ import annotations

import csv
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.video import numbers_in, write_images, write_video
from tubelet.data import cache, decode, draws
from tubelet.data.augment import IMAGENET_MEAN, IMAGENET_STD, Augment, CenterCrop
from tubelet.data.manifest import Manifest, read_manifest
from tubelet.data.order import Order
from tubelet.data.source import ClipReader
from tubelet.data.stream import Stream
from tubelet.errors import UserError
from tubelet.types import Batch

KNOBS: dict[str, Any] = {
    "seed": 7,
    "batch_size": 4,
    "frames": 4,
    "frame_step": 2,
    "crop_size": 24,
    "workers": 0,
}
LENGTHS = [30, 8, 1, 25, 40, 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("set")
    for i, n in enumerate(LENGTHS):
        write_video(
            base / "ab"[i % 2] / f"{i}.mp4", n, size=(96, 72) if i else (128, 64), options={"g": "12"}
        )
    return base


@pytest.fixture(scope="module")
def manifest(folder: Path) -> Manifest:
    return read_manifest(folder)


def stream_of(manifest: Manifest, **knobs: Any) -> Stream:
    chosen: dict[str, Any] = KNOBS | knobs
    return Stream(manifest, **chosen)


def take(manifest: Manifest, count: int = 4, start: int = 0, **knobs: Any) -> list[Batch]:
    stream = stream_of(manifest, **knobs)
    batches = list(islice(stream.batches(start), count))
    stream.close()
    return batches


def same(a: Batch, b: Batch) -> bool:
    assert a.label is not None and b.label is not None
    return (
        torch.equal(a.clip, b.clip) and torch.equal(a.position, b.position) and torch.equal(a.label, b.label)
    )


def all_same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


# Order

FROZEN_RAW = [14323720939946869941, 2046394256548530644]
FROZEN_ORDER = [0, 1, 3, 6, 7, 4, 2, 5]


def test_draws_are_frozen() -> None:
    """Numbers that a saved run depends on; if they change, no run resumes exactly."""
    assert draws.raw(3, draws.Purpose.ORDER, 5, 2).tolist() == FROZEN_RAW
    assert draws.permutation(3, 1, 8).tolist() == FROZEN_ORDER
    assert 0 <= draws.uniforms(3, draws.Purpose.CROP, 10**15, 1)[0] < 1


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_order_is_arithmetic(entries: int, clips: int, share: int, world: int, seed: int) -> None:
    """Every epoch shows every entry once; ranks together are the whole batch; any step can be asked for."""
    size = clips * share * world
    whole = Order(seed, entries, clips, size)
    steps = 3 * entries * clips // size + 2
    line = [entry for step in range(steps) for _, entry in whole.batch(step)]
    for epoch in range(len(line) // entries):
        assert sorted(line[epoch * entries : (epoch + 1) * entries]) == list(range(entries))
    for step in (0, steps - 1):
        parts = [Order(seed, entries, clips, size, rank, world).batch(step) for rank in range(world)]
        assert [place for part in parts for place in part] == whole.batch(step)
        assert [p for p, _ in whole.batch(step)] == list(range(step * size, (step + 1) * size, clips))


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = {tuple(draws.permutation(seed, epoch, 20)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


# Batches


def test_batches_are_as_promised(manifest: Manifest) -> None:
    batches = take(manifest)
    for step, batch in enumerate(batches):
        assert batch.clip.shape == (4, 3, 4, 24, 24) and batch.clip.dtype == torch.float32
        assert batch.clip.is_contiguous() and batch.clip.isfinite().all()
        assert batch.position.tolist() == list(range(4 * step, 4 * step + 4))
    labels = Counter(torch.cat([b.label for b in batches[:3] if b.label is not None]).tolist())
    assert labels == {0: 6, 1: 6}  # two epochs of six videos


def test_no_labels_where_there_are_none(folder: Path) -> None:
    assert take(read_manifest(folder / "a"), 1, batch_size=2)[0].label is None


@pytest.mark.parametrize("start", [1, 3])
def test_resume_at_any_step_is_exact(manifest: Manifest, start: int) -> None:
    assert all_same(take(manifest, 5)[start:], take(manifest, 5 - start, start))


def test_workers_do_not_change_batches(manifest: Manifest) -> None:
    assert all_same(take(manifest, 5), take(manifest, 5, workers=2))


def test_ranks_together_are_one_process(manifest: Manifest) -> None:
    whole = take(manifest, 3)
    halves = [take(manifest, 3, rank=rank, world=2) for rank in range(2)]
    for step, batch in enumerate(whole):
        assert torch.equal(batch.clip, torch.cat([half[step].clip for half in halves]))


def test_seed_changes_everything(manifest: Manifest) -> None:
    assert not torch.equal(take(manifest, 1)[0].clip, take(manifest, 1, seed=8)[0].clip)


def test_clips_per_video(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch is batch_size / k videos of k clips, each clip from its own place and each file read once."""
    read: list[int] = []
    decode_read = decode.read

    def counted(path: Path, frames: np.ndarray, short_side: int | None) -> np.ndarray:
        read.append(len(frames))
        return decode_read(path, frames, short_side)

    monkeypatch.setattr(decode, "read", counted)
    batches = take(manifest, 3, clips_per_video=4, batch_size=8)
    assert read == [16] * 6
    for batch in batches:
        assert batch.label is not None and len(set(batch.label[:4].tolist())) == 1
        assert not torch.equal(batch.clip[0], batch.clip[1]) or not torch.equal(batch.clip[4], batch.clip[5])
    assert all_same(batches[2:], take(manifest, 1, 2, clips_per_video=4, batch_size=8))


def test_windows_and_repeats(folder: Path) -> None:
    """A long video counts once per stretch, and each entry's clips start in its own."""
    one = read_manifest(folder / "a" / "4.mp4")  # 40 frames, 1.6 s
    stream = stream_of(one, windows=0.4, batch_size=4)
    assert stream.samples == 4
    assert [tuple(entry) for entry in stream.entries] == [(0, w, 4) for w in range(4)]
    assert stream_of(one, repeats=8).samples == 8
    assert next(stream.batches()).clip.shape[0] == 4
    half = Manifest((replace(one.videos[0], start=0.8),), one.source)
    assert stream_of(half, windows=0.4, batch_size=2).samples == 2


def test_sampling_by_rate_matches_sampling_by_step(manifest: Manifest, folder: Path) -> None:
    video = read_manifest(folder / "b" / "3.mp4").videos[0]
    by_rate = ClipReader(4, fps=12.5).read(video, [0.0, 0.4])
    assert [numbers_in(clip) for clip in by_rate] == [[0, 2, 4, 6], [7, 9, 11, 13]]
    (clip,) = ClipReader(4, frame_step=2).read(replace(video, start=0.4, end=0.6), [0.0])
    assert numbers_in(clip) == [10, 12, 14, 14]


def test_one_frame_and_one_video(folder: Path) -> None:
    batch = take(read_manifest(folder / "a" / "2.mp4"), 1, batch_size=2, repeats=2)[0]
    assert batch.clip.shape == (2, 3, 4, 24, 24)
    assert torch.allclose(batch.clip[0, :, 0], batch.clip[0, :, 3])


def test_images_by_step_only(tmp_path: Path) -> None:
    data = read_manifest(write_images(tmp_path / "frames", 9))
    assert take(data, 1, batch_size=1)[0].clip.shape == (1, 3, 4, 24, 24)
    with pytest.raises(UserError, match="fps column"):
        take(data, 1, batch_size=1, frame_step=None, fps=5.0, max_replaced=1.0)
    (tmp_path / "list.csv").write_text("path,fps\nframes,10\n")
    data = read_manifest(tmp_path / "list.csv")
    (clip,) = ClipReader(3, fps=5.0).read(data.videos[0], [0.0])
    assert numbers_in(clip) == [0, 2, 4]


# What goes wrong


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"batch_size": 8}, "more than the 6 samples in"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"clips_per_video": 3}, "multiple of 3"),
        ({"world": 3, "rank": 0}, "multiple of 3"),
        ({"fps": 3.0}, "exactly one"),
        ({"frame_step": None}, "exactly one"),
        ({"frame_step": -1}, "must be positive"),
        ({"workers": -1}, "workers=-1"),
        ({"max_replaced": 2.0}, "max_replaced=2.0"),
        ({"windows": 0.0}, "windows=0.0"),
        ({"repeats": 0}, "repeats=0"),
        ({"crop_size": 0}, "crop_size=0"),
        ({"area": (0.0, 1.0)}, "area"),
        ({"flip": 1.5}, "flip"),
    ],
)
def test_knobs_that_do_not_fit(manifest: Manifest, knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        stream_of(manifest, **knobs)


@pytest.fixture
def partly_bad(folder: Path, tmp_path: Path) -> Path:
    base = tmp_path / "bad"
    shutil.copytree(folder, base)
    for name in ("a/0.mp4", "b/5.mp4"):
        (base / name).write_bytes(b"no video here")
    return base


def test_replacement_is_counted_named_and_exact(partly_bad: Path, tmp_path: Path) -> None:
    data = read_manifest(partly_bad)
    stream = stream_of(data, max_replaced=1.0)
    batches = list(islice(stream.batches(), 3))  # two epochs
    assert stream.metrics() == {"data/replaced_frac": 4 / 12}
    rows = {Path(str(row["path"])).name: row for row in stream.report()}
    for name in ("0.mp4", "5.mp4"):
        assert rows[name]["status"] == "failed" and rows[name]["clips"] == 0 and rows[name]["replaced"]
        assert "no video here" in str(rows[name]["reason"])
    assert rows["1.mp4"]["replaced"] == 0 and rows["1.mp4"]["clips"]
    assert sum(int(row["clips"]) for row in rows.values()) == 12
    stream.write_report(tmp_path / "data_report.csv")
    with (tmp_path / "data_report.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 6
    assert all_same(batches[1:], take(data, 2, 1, max_replaced=1.0, workers=1))


def test_too_many_replaced_stops_the_run(partly_bad: Path) -> None:
    with pytest.raises(UserError, match=r"max_replaced=0\.05") as caught:
        take(read_manifest(partly_bad), 9)
    assert "0.mp4" in str(caught.value) or "5.mp4" in str(caught.value)
    assert "tubelet scan" in str(caught.value)


def test_nothing_readable_stops_the_run(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.mp4").write_text("text")
    with pytest.raises(UserError, match="could not be read"):
        take(read_manifest(tmp_path), 1)


def test_known_unreadable_rows_are_left_out(manifest: Manifest) -> None:
    bad = [replace(v, status="unreadable", reason="no frame decodes") for v in manifest.videos[:2]]
    data = replace(manifest, videos=(*bad, *manifest.videos[2:]))
    stream = stream_of(data)
    list(islice(stream.batches(), 2))
    assert stream.samples == 4 and stream.metrics() == {"data/replaced_frac": 0.0}
    assert [row["status"] for row in stream.report()][:3] == ["left out", "left out", "not scanned"]
    with pytest.raises(UserError, match=r"none of its 2 videos can be read, for instance .*no frame decodes"):
        stream_of(replace(data, videos=tuple(bad)))


def test_missing_files_stop_the_run(folder: Path, tmp_path: Path) -> None:
    lines = [str(path) for path in sorted(folder.rglob("*.mp4"))] + ["gone.mp4"]
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(lines) + "\n")
    with pytest.raises(UserError, match="1 of 7 files do not exist"):
        stream_of(read_manifest(tmp_path / "list.csv"))
    assert stream_of(read_manifest(tmp_path / "list.csv"), max_replaced=0.2).samples == 6


def test_a_killed_worker_is_explained(manifest: Manifest) -> None:
    stream = stream_of(manifest, workers=1)
    batches = stream.batches()
    next(batches)
    for child in active_children():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGTERM)  # a cluster's signal to the whole group: workers go on
    next(batches)
    for child in active_children():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"a decoding process died .*memory"):
        list(islice(batches, 50))
    stream.close()
    assert not active_children()


# Cache


def test_cache_gives_the_same_batches_and_decodes_once(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = take(manifest, 4)
    assert all_same(plain, take(manifest, 4, cache_dir=tmp_path / "cache"))
    assert all_same(plain, take(manifest, 4, cache_dir=tmp_path / "cache", workers=2))
    assert not [path for path in (tmp_path / "cache").rglob("*") if "tmp" in path.name]

    def never(*_: object) -> Iterator[None]:
        raise AssertionError("decoded again")

    monkeypatch.setattr(decode, "iterate", never)
    assert all_same(plain, take(manifest, 4, cache_dir=tmp_path / "cache"))


def test_cache_follows_the_file_and_the_size(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 10)
    video = read_manifest(path).videos[0]
    assert len(cache.frames_of(video, None, tmp_path / "c").pictures) == 10
    assert cache.frames_of(video, 36, tmp_path / "c").pictures.shape == (10, 36, 48, 3)
    write_video(path, 20)
    assert len(cache.frames_of(video, None, tmp_path / "c").pictures) == 20


def test_cache_needs_room(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"cache_dir=.*decoded frames of 6 videos need about 0\.0 GB"):
        stream_of(manifest, cache_dir=tmp_path / "cache")


def test_cache_on_a_full_disk(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")

    def full(out: Any, head: Any) -> None:
        with open("/dev/full", "wb") as nowhere:
            nowhere.write(b"0" * 100_000)

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(UserError, match="no room left on disk"):
        take(manifest, 1, cache_dir=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


# Augmentation


def test_boxes_are_as_published() -> None:
    augment = Augment(24)
    areas, shapes, flips = [], [], 0
    for position in range(3000):
        top, left, height, width, flip = augment.box(240, 320, 5, position)
        assert 0 <= top <= 240 - height and 0 <= left <= 320 - width
        areas.append(height * width / (240 * 320))
        shapes.append(width / height)
        flips += flip
    assert 0.29 < min(areas) < 0.32 and max(areas) <= 1 and min(shapes) > 0.73 and max(shapes) < 1.38
    assert 1400 < flips < 1600
    assert augment.box(240, 320, 5, 17) == augment.box(240, 320, 5, 17) != augment.box(240, 320, 6, 17)


@pytest.mark.parametrize("size", [(16, 240), (240, 16), (1, 1), (8, 10), (3, 500)])
def test_boxes_of_odd_shapes_stay_inside(size: tuple[int, int]) -> None:
    for position in range(50):
        top, left, height, width, _ = Augment(24).box(*size, 0, position)
        assert height >= 1 and width >= 1 and 0 <= top <= size[0] - height and 0 <= left <= size[1] - width


def test_augment_resamples_flips_and_normalises() -> None:
    """Against the box cut out and resized by hand; every frame of a clip gets the same box."""
    picture = torch.randint(
        0, 256, (1, 40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    clip = picture.repeat(3, 1, 1, 1)
    augment = Augment(24)
    got = augment([clip, clip.flip(2)], 3, [10, 11])
    assert got.shape == (2, 3, 3, 24, 24) and torch.equal(got[:, :, 0], got[:, :, 2])
    top, left, height, width, flip = augment.box(40, 60, 3, 10)
    part = picture[0, top : top + height, left : left + width].permute(2, 0, 1)[None].float()
    want = torch.nn.functional.interpolate(part, (24, 24), mode="bilinear")[0]
    want = want.flip(-1) if flip else want
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    assert torch.allclose(
        got[0, :, 0] * std * 255 + mean * 255, want, atol=1.01
    )  # the CPU rounds to bytes, twice
    alone = augment([clip.flip(2)], 3, [11])
    assert torch.equal(alone[0], got[1])  # a sample does not feel its neighbours


def test_centre_crop() -> None:
    clip = torch.zeros(2, 64, 128, 3, dtype=torch.uint8)
    clip[:, :, :64] = 255  # the left half is white
    views = CenterCrop(16, views=3)([clip])
    assert views.shape == (1, 3, 3, 2, 16, 16)
    white = [bool((views[0, i, 0, 0] > 0).all()) for i in range(3)]
    black = [bool((views[0, i, 0, 0] < 0).all()) for i in range(3)]
    assert (white, black) == ([True, False, False], [False, False, True])
    assert CenterCrop(16).boxes(224, 300)[0][:4] == (14, 52, 196, 196)
    assert CenterCrop(32).short_side == 37 and CenterCrop(32, views=3).short_side == 32
    # below the published short side the centre is cut as it is, and a picture below the crop is shown whole
    assert CenterCrop(32).boxes(37, 48)[0][:4] == (2, 8, 32, 32)
    assert CenterCrop(32).boxes(33, 48)[0][:4] == (0, 8, 32, 32)
    assert CenterCrop(32).boxes(20, 24)[0][:4] == (0, 2, 20, 20)
    assert CenterCrop(16, enlarge=1.0).boxes(64, 128)[0][:4] == (0, 32, 64, 64)
