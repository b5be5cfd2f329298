"""Features out: vectors against the encoder, whole tables after any interruption, and memory that stays."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from toy import quiet, start
from video import picture, write_images, write_video

from tubelet.cli import main
from tubelet.data import decode
from tubelet.data.augment import CenterCrop
from tubelet.data.container import DecodeError
from tubelet.data.manifest import Manifest, Video
from tubelet.embed import embed as under_test
from tubelet.embed import table as tables
from tubelet.embed.embed import embed, embed_video, sentence
from tubelet.embed.stream import Ahead, Cutting
from tubelet.embed.table import Embeddings, read_embeddings, save_embeddings
from tubelet.embed.vectors import Vectors
from tubelet.embed.windows import sliding
from tubelet.errors import UserError
from tubelet.evaluate.attentive import AttentiveSettings
from tubelet.evaluate.features import extract
from tubelet.evaluate.head import HEAD, read_head, write_head
from tubelet.evaluate.probe import probe
from tubelet.evaluate.source import Views
from tubelet.export.geometry import Geometry
from tubelet.export.weights import Encoder, digest, save_encoder
from tubelet.nn.heads import AttentiveClassifier
from tubelet.nn.pixels import Pixels
from tubelet.nn.vit import ViT

GEOMETRY = Geometry(frames=4, frame_step=2, crop_size=32)
FRAMES = (30, 11, 52, 8, 3)  # of the videos of `folder`, at 25 a second
TOY = {"encoder": {"name": "toy", "digest": "0" * 16}, "layer": 2}
BYTES = ("vectors.npy", "windows.parquet", "failures.csv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate(FRAMES):
        numbers = range(100 * number, 100 * number + frames)
        write_video(place / f"{number}.mp4", numbers, options={"g": "12"})
    return place


@pytest.fixture
def videos(folder) -> list[Video]:
    return [Video(folder / f"{i}.mp4", label="ab"[i % 2]) for i in range(len(FRAMES))]


def encoder(seed: int = 0, geometry: Geometry = GEOMETRY) -> Encoder:
    torch.manual_seed(seed)
    model = ViT(24, 2, 2, patch=(2, 16, 16))
    return Encoder(model.requires_grad_(False).eval(), geometry, "small", digest(model))


def go(videos: Sequence[Video], out: Path, enc: Encoder | None = None, **knobs) -> Embeddings:
    given = {"window": "8", "stride": "4", "batch_size": 4, "workers": 2, **knobs}
    return embed(enc or encoder(), Manifest(tuple(videos), Path("list.csv")), out, progress=False, **given)


def same(one: Path, other: Path, names: Sequence[str] = BYTES) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def slowly(enc: Encoder, path: Path, frames: np.ndarray, crops: int = 1) -> torch.Tensor:
    """[crops, 3, T, S, S] of these frames, read by themselves."""
    crop = CenterCrop(enc.geometry.crop_size, crops)
    return crop([torch.from_numpy(decode.read(path, frames, crop.short_side))])[0]


def middles(frames: int) -> list[np.ndarray]:
    """Frames of the windows of 8 every 4, worked out by hand: 4 frames, every other, the second of two starts."""
    starts = [s for s in range(0, frames, 4) if s + 8 <= frames]
    tail = len(starts) * 4
    found = [s + 1 + 2 * np.arange(4) for s in starts]
    if not starts or (starts[-1] + 8 < frames and frames - tail >= 4):
        spare = max(1, frames - tail - 6) // 2
        found.append(np.minimum(tail + spare + 2 * np.arange(4), frames - 1))
    return found


@pytest.mark.parametrize("pool", ["mean", "time", "space", "none"])
def test_vectors_equal_the_encoder_on_each_window(videos, tmp_path, pool):
    enc = encoder()
    found = go(videos, tmp_path / "out", pool=pool, layer=1)
    row = 0
    for video, count in zip(videos, FRAMES, strict=True):
        for frames in middles(count):
            tokens = enc.model.layers(slowly(enc, video.path, frames), [1], normed=True)[1][0]
            kept = tokens.reshape(2, 2, 2, 24)  # t, h, w, D
            expected = {"mean": kept.mean((0, 1, 2)), "time": kept.mean((1, 2)), "space": kept.mean(0)}
            vector = found.vectors[row].reshape(found.about["shape"])
            np.testing.assert_allclose(vector, expected.get(pool, kept), atol=1e-5)
            assert (found.file[row], found.label[row]) == (str(video.path), video.label)
            row += 1
    assert row == len(found) == found.about["windows"]
    assert found.about["pool"] == pool and found.about["layer"] == 1 and found.about["failed"] == 0


def test_a_window_that_is_the_whole_video_gives_the_features_of_extract(videos, tmp_path):
    """The words of the contract: with one window per file, `evaluate.features.extract` is the oracle."""
    for geometry in (GEOMETRY, replace(GEOMETRY, fps=10.0)):
        enc = encoder(geometry=geometry)
        for views in (Views(), Views(segments=2, crops=3)):
            name = f"{geometry.fps}-{views.count}"
            for pool in ("mean", "time"):
                found = go(
                    videos,
                    tmp_path / f"{name}-{pool}",
                    enc,
                    window="10s",
                    stride=None,
                    views=views,
                    pool=pool,
                )
                known = extract(enc, videos, pool=pool, views=views, cache=tmp_path / name, progress=False)
                assert len(found) == len(videos)
                np.testing.assert_allclose(found.vectors, known.pooled(), atol=1e-5)


def test_start_and_end_are_seconds_of_the_file(videos, tmp_path):
    row = replace(videos[2], start=0.4, end=1.4)
    found = go([row], tmp_path / "out", window="0.4s", stride="0.2s")
    np.testing.assert_allclose(found.start, [0.4, 0.6, 0.8, 1.0])
    np.testing.assert_allclose(found.end, [0.8, 1.0, 1.2, 1.4])
    assert found.about["window_s"] == 0.4 and found.about["stride_s"] == 0.2
    alone = go([replace(videos[2], start=0.6, end=1.0)], tmp_path / "one", window="0.4s", stride=None)
    np.testing.assert_allclose(found.vectors[1], alone.vectors[0], atol=1e-5)


def test_every_file_is_decoded_once_however_much_windows_overlap(videos, tmp_path, monkeypatch):
    asked: list[tuple[str, list[int]]] = []
    iterate = decode.iterate

    def noted(path, wanted, side):
        asked.append((path.name, wanted.tolist()))
        return iterate(path, wanted, side)

    monkeypatch.setattr(decode, "iterate", noted)
    go(videos, tmp_path / "out", stride="1")
    assert sorted(name for name, _ in asked) == [f"{i}.mp4" for i in range(5)]
    assert all(len(set(wanted)) == len(wanted) for _, wanted in asked)


def test_batches_are_full_across_windows_and_files(videos, tmp_path, monkeypatch):
    sizes: list[int] = []
    call = Vectors.__call__
    monkeypatch.setattr(
        Vectors, "__call__", lambda v, clips, *way: sizes.append(len(clips)) or call(v, clips, *way)
    )
    found = go(videos, tmp_path / "out", batch_size=4)
    assert set(sizes[:-1]) == {4} and sum(sizes) == len(found) == 23
    sizes.clear()
    go(videos, tmp_path / "views", batch_size=4, views=Views(crops=2))
    assert set(sizes[:-1]) == {2}


def test_formats_hold_the_same(videos, tmp_path):
    both = go(videos, tmp_path / "both")
    for kept, names in (("parquet", {"windows.parquet"}), ("numpy", {"windows.parquet", "vectors.npy"})):
        found = go(videos, tmp_path / kept, kept=kept)
        assert {f.name for f in found.folder.iterdir()} == {"embeddings.json", "failures.csv"} | names
        np.testing.assert_array_equal(found.vectors, both.vectors)
        np.testing.assert_array_equal(found.file, both.file)
    assert isinstance(both.vectors, np.memmap)
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(tmp_path / "both" / "windows.parquet")
    assert table.column_names == ["file", "start", "end", "label", "group", "row", "vector"]
    assert table["row"].to_pylist() == list(range(len(both)))
    np.testing.assert_array_equal(np.array(table["vector"].to_pylist(), np.float32), both.vectors)
    assert "vector" not in pyarrow.parquet.read_schema(tmp_path / "numpy" / "windows.parquet").names


def test_half_precision_is_the_same_rounded(videos, tmp_path):
    whole = go(videos, tmp_path / "a")
    for kept in ("both", "parquet"):
        half = go(videos, tmp_path / kept, fp16=True, kept=kept)
        assert half.vectors.dtype == np.float16 and half.about["dtype"] == "float16"
        np.testing.assert_array_equal(half.vectors, whole.vectors.astype(np.float16))


def embed_slowly(clips: list[Video], out: Path, pause: float) -> None:
    """In a process of its own, with a pause before every batch."""
    quiet()
    torch.set_num_threads(1)
    under_test.COMMIT_EVERY = 0.0
    call = Vectors.__call__

    def slow(vectors, *given):
        time.sleep(pause)
        return call(vectors, *given)

    setattr(Vectors, "__call__", slow)  # noqa: B010
    go(clips, out)


def test_killed_in_the_middle_and_run_again_gives_the_same_bytes(videos, tmp_path, monkeypatch):
    clips = [*videos, Video(videos[0].path.with_name("missing.mp4")), *videos[:2]]
    process = start(embed_slowly, clips, tmp_path / "cut", 0.3)
    journal = tmp_path / "cut" / ".part" / "journal.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") >= 2):
        time.sleep(0.01)
    process.kill()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    done = journal.read_bytes().count(b"\n")
    assert 2 <= done < len(clips)
    with pytest.raises(UserError, match="unfinished; run the same tubelet embed again"):
        read_embeddings(tmp_path / "cut")
    journal.write_bytes(journal.read_bytes() + b'{"rows": 9')  # a line that was torn
    decoded: list[str] = []
    windows = Cutting.windows
    monkeypatch.setattr(Cutting, "windows", lambda c, v: decoded.append(v.path.name) or windows(c, v))
    go(clips, tmp_path / "cut")
    assert sorted(decoded) == sorted(v.path.name for v in clips[done:])  # what counts is not read again
    go(clips, tmp_path / "whole")
    assert same(tmp_path / "cut", tmp_path / "whole")
    assert not (tmp_path / "cut" / ".part").exists()


@given(st.integers(0, 22), st.sampled_from([1, 3, 4, 7]))
@settings(max_examples=12, deadline=None)
def test_stopped_at_any_window_and_run_again_gives_the_same_bytes(folder, tmp_path_factory, stop, batch_size):
    place = tmp_path_factory.mktemp("stopped")
    clips = [Video(folder / f"{i}.mp4") for i in range(5)]
    sizes: list[int] = []
    call = Vectors.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Vectors, "__call__", lambda v, shown, *way: sizes.append(len(shown)) or call(v, shown, *way)
        )
        whole = go(clips, place / "whole", batch_size=batch_size)
    add, count = under_test._Batches.add, iter(range(1000))

    def failing(batches, file, shown):
        if next(count) == stop:
            raise RuntimeError("stopped")
        add(batches, file, shown)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(under_test, "COMMIT_EVERY", 0.0)
        patch.setattr(under_test._Batches, "add", failing)
        with pytest.raises(RuntimeError):
            go(clips, place / "cut", batch_size=batch_size)
    again: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Vectors, "__call__", lambda v, shown, *way: again.append(len(shown)) or call(v, shown, *way)
        )
        assert len(go(clips, place / "cut", batch_size=batch_size)) == len(whole)
    assert again == sizes[len(sizes) - len(again) :]  # equal shapes are what makes equal bytes on any machine
    assert same(place / "cut", place / "whole")


def test_an_index_that_proves_wrong_gives_the_same_bytes(videos, tmp_path, monkeypatch):
    go(videos, tmp_path / "whole", batch_size=4)
    iterate, times = decode.iterate, {"2.mp4": 2, "0.mp4": 1}

    def wrong(path, wanted, side):
        for place, item in enumerate(iterate(path, wanted, side)):
            if place == 17 and times.get(path.name, 0):
                times[path.name] -= 1
                raise decode.IndexChanged(path, "its index was wrong")
            yield item

    monkeypatch.setattr(decode, "iterate", wrong)
    for name, batch_size in (("late", 100), ("early", 4)):
        times.update({"2.mp4": 2, "0.mp4": 1})
        go(videos, tmp_path / name, batch_size=batch_size)
        assert times == {"2.mp4": 0, "0.mp4": 0}
    assert same(tmp_path / "early", tmp_path / "whole")
    assert same(tmp_path / "late", tmp_path / "whole", ["failures.csv"])
    late, whole = read_embeddings(tmp_path / "late"), read_embeddings(tmp_path / "whole")
    np.testing.assert_allclose(late.vectors, whole.vectors, atol=1e-5)


def test_failed_files_end_in_a_table(videos, folder, tmp_path):
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(b"no video in here")
    clips = [
        videos[0],
        Video(damaged),
        Video(folder / "missing.mp4"),
        replace(videos[1], start=5.0),
        videos[2],
    ]
    found = go(clips, tmp_path / "out")
    told = list(csv.reader((tmp_path / "out" / "failures.csv").open()))
    assert told[0] == ["file", "reason", "windows"]
    assert [(row[0], row[2]) for row in told[1:]] == [(str(v.path), "0") for v in clips[1:4]]
    assert (
        "cannot be opened" in told[1][1]
        and told[2][1] == "file not found"
        and "no frame between" in told[3][1]
    )
    assert (found.about["failed"], found.about["in_part"], found.about["files"]) == (3, 0, 5)
    assert sentence(found).endswith(f"; 3 videos failed: {tmp_path / 'out' / 'failures.csv'}")
    assert sorted(set(found.file)) == [str(videos[0].path), str(videos[2].path)]
    good = go([videos[0], videos[2]], tmp_path / "good")
    np.testing.assert_allclose(found.vectors, good.vectors, atol=1e-5)


def test_a_video_that_breaks_off_keeps_its_windows(videos, tmp_path, monkeypatch):
    iterate = decode.iterate

    def breaking(path, wanted, side):
        for place, item in enumerate(iterate(path, wanted, side)):
            if path.name == "2.mp4" and place == 20:
                raise DecodeError(path, "nothing decodes any more")
            yield item[0], item[1] and not (path.name == "0.mp4" and 9 <= wanted[place] <= 11)

    monkeypatch.setattr(decode, "iterate", breaking)
    gone = Video(videos[0].path.with_name("missing.mp4"))
    found = go([*videos, gone], tmp_path / "out", stride="8")
    told = {file: rest for file, *rest in csv.reader((tmp_path / "out" / "failures.csv").open())}
    assert told[str(videos[2].path)] == ["read up to 1.6 s only: nothing decodes any more", "5"]
    assert told[str(videos[0].path)] == ["1 of 4 windows do not decode, the first at 0.32 s", "3"]
    assert told[str(gone.path)] == ["file not found", "0"] and len(told) == 4
    assert (found.about["failed"], found.about["in_part"]) == (1, 2)
    assert "; 1 videos failed and 2 videos were read in part: " in sentence(found)
    of = [found.start[found.file == str(v.path)].round(2).tolist() for v in videos]
    assert of[0] == [0, 0.64, 0.96] and of[2] == [0, 0.32, 0.64, 0.96, 1.28]


def test_if_nothing_can_be_read_the_run_says_why(tmp_path, folder):
    with pytest.raises(
        UserError, match=r"no window of its 1 videos can be read; the first: .*file not found"
    ):
        go([Video(folder / "missing.mp4")], tmp_path / "out")
    there = list(csv.reader((tmp_path / "out" / "failures.csv").open()))
    assert there[1:] == [[str(folder / "missing.mp4"), "file not found", "0"]]
    assert not list((tmp_path / "out" / ".part").iterdir())
    with pytest.raises(UserError, match=r"no video could be read, and .*failures\.csv says why"):
        read_embeddings(tmp_path / "out")
    assert (
        len(go([Video(folder / "0.mp4")], tmp_path / "out")) == 7
    )  # its own table of failures is in nobody's way
    assert {f.name for f in (tmp_path / "out").iterdir()} == {*BYTES, "embeddings.json"}


def test_if_nothing_can_be_read_a_full_disk_leaves_no_half_table(tmp_path, folder, monkeypatch):
    def full(path):
        if "failures.csv" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tubelet.files.sync", full)
    with pytest.raises(UserError, match="no room left on disk"):
        go([Video(folder / "missing.mp4")], tmp_path / "out")
    assert [f.name for f in (tmp_path / "out").iterdir()] == [".part"]


def test_an_odd_path_costs_one_row(folder, tmp_path, monkeypatch):
    """What the system has against a file, whatever it is, is that file's failure."""
    place = tmp_path / "odd"
    shutil.copytree(folder, place)
    (place / "loop.mp4").symlink_to("loop.mp4")
    write_images(place / "images", 4)
    stat, scandir = os.stat, os.scandir

    def closed(call, name):
        def asked(path=".", *given, **knobs):
            if str(path).endswith(name):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return call(path, *given, **knobs)

        return asked

    monkeypatch.setattr(os, "stat", closed(stat, "closed/1.mp4"))  # root may look into any folder
    monkeypatch.setattr(os, "scandir", closed(scandir, "odd/images"))
    rows = ["0.mp4", "0.mp4/1.mp4", "loop.mp4", "a" * 300 + ".mp4", "closed/1.mp4", "images", "1.mp4"]
    listed = place / "list.csv"
    listed.write_text("path\n" + "\n".join(rows) + "\n")
    knobs = {"window": "8", "stride": "4", "progress": False}
    found = embed(encoder(), listed, tmp_path / "out", **knobs)
    _, *failed = csv.reader((found.folder / "failures.csv").open())
    assert [file for file, _, _ in failed] == [str(place / name) for name in rows[1:-1]]
    whys = (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EACCES)
    assert [why for _, why, _ in failed] == [os.strerror(number) for number in whys]
    assert found.about["failed"] == 5 and len(set(found.file)) == 2
    plain = go([Video(place / "0.mp4"), Video(place / "1.mp4")], tmp_path / "plain", batch_size=16)
    np.testing.assert_array_equal(found.vectors, plain.vectors)
    for name, why in (("0.mp4/1.mp4", "Not a directory"), ("closed/1.mp4", "denied"), ("images", "denied")):
        with pytest.raises(DecodeError, match=why):
            embed_video(encoder(), place / name)


def test_a_name_that_no_table_can_hold_is_refused(videos, tmp_path):
    with pytest.raises(UserError, match=r"caf\\udce9\.mp4: the name is not UTF-8.*rename the file"):
        go([Video(Path("caf\udce9.mp4")), *videos], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_knobs_on_the_same_folder_are_refused(videos, tmp_path, monkeypatch):
    knobs: tuple[dict[str, Any], ...] = (
        {"stride": "8"},
        {"layer": 1},
        {"pool": "time"},
        {"fp16": True},
        {"kept": "numpy"},
        {"views": Views(crops=2)},
        {"enc": encoder(1)},
        {"enc": encoder(geometry=replace(GEOMETRY, frame_step=1))},
    )
    go(videos, tmp_path / "done")
    monkeypatch.setattr(tables.Draft, "finish", lambda *_: (_ for _ in ()).throw(RuntimeError))
    with pytest.raises(RuntimeError):
        go(videos, tmp_path / "begun")
    for place in (tmp_path / "done", tmp_path / "begun"):
        for other in knobs:
            with pytest.raises(UserError, match="begun with other knobs"):
                go(videos, place, **other)
        with pytest.raises(
            UserError,
            match=r'other knobs \(videos "5 rows, \w+", now "4 rows, \w+"; 1 files gone: .*4\.mp4\)',
        ):
            go(videos[:4], place)
        with pytest.raises(UserError, match="videos"):
            go([replace(videos[0], label="new"), *videos[1:]], place)


def test_windows_that_differ_in_the_seventh_digit_are_two(videos, tmp_path):
    go(videos[:1], tmp_path / "out", window="0.23456s", stride=None)
    with pytest.raises(UserError, match=r'window "0\.23456s", now "0\.2345604s"'):
        go(videos[:1], tmp_path / "out", window="0.2345604s", stride=None)


@pytest.mark.parametrize("name", ["vectors.npy", "windows.parquet", "failures.csv", "embeddings.json"])
def test_files_of_others_are_not_replaced(videos, tmp_path, name):
    place = tmp_path / "mine"
    place.mkdir()
    if name == "embeddings.json":
        (place / name).mkdir()  # a file of that name is read, and refused as no table
    else:
        (place / name).write_text("mine")
    with pytest.raises(UserError, match=rf"mine holds {re.escape(name)} and neither a table nor"):
        go(videos, place)
    assert [file.name for file in place.iterdir()] == [name]
    assert name == "embeddings.json" or (place / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["vectors.npy", "windows.parquet", "embeddings.json"])
@pytest.mark.parametrize("kept", ["both", "parquet"])
@pytest.mark.parametrize("state", ["nothing read", "under way", "finished", "finishing"])
def test_files_of_others_beside_a_draft_are_not_replaced(videos, tmp_path, monkeypatch, name, kept, state):
    place, write_parquet = tmp_path / "out", tables._write_parquet

    def killed(*_):
        raise RuntimeError("killed")

    def put():
        (place / name).mkdir() if name == "embeddings.json" else (place / name).write_text("mine")

    def late(*given):
        put()
        write_parquet(*given)

    if state == "nothing read":
        with pytest.raises(UserError, match="can be read"):
            go([Video(tmp_path / "missing.mp4")], place, kept=kept)
    elif state == "finishing":
        with monkeypatch.context() as patch:
            patch.setattr(tables, "_write_parquet", late)
            with pytest.raises(UserError, match=rf"holds {re.escape(name)}, which the run"):
                go(videos[:1], place, kept=kept)
    else:
        with monkeypatch.context() as patch:
            if state == "under way":
                patch.setattr(tables.Draft, "finish", killed)
            else:
                patch.setattr(tables, "settle", killed)
            with pytest.raises(RuntimeError, match="killed"):
                go(videos[:1], place, kept=kept)
    if state != "finishing":
        put()
    with pytest.raises(UserError, match=rf"holds {re.escape(name)}, which the run.*move it away, or choose"):
        go(videos[:1], place, kept=kept)
    if name == "embeddings.json":
        (place / name).rmdir()
    else:
        assert (place / name).read_text() == "mine"
        (place / name).unlink()
    assert len(go(videos[:1], place, kept=kept)) == 7


def test_a_table_that_has_lost_its_description_is_not_replaced(videos, tmp_path):
    out = go(videos, tmp_path / "out").folder
    (out / "embeddings.json").unlink()
    with pytest.raises(UserError, match=r"holds vectors.npy, windows.parquet, failures.csv and neither"):
        go(videos, out, layer=1, kept="parquet")


def test_vectors_of_another_table_are_not_read(videos, tmp_path, monkeypatch):
    other = go(videos, tmp_path / "other").folder
    with monkeypatch.context() as patch:
        patch.setattr(tables.Draft, "finish", lambda *_: (_ for _ in ()).throw(RuntimeError))
        with pytest.raises(RuntimeError):
            go(videos, tmp_path / "out", layer=1, kept="parquet")
    shutil.copy(other / "vectors.npy", tmp_path / "out")
    with pytest.raises(
        UserError, match=r"holds vectors\.npy, which the run that was begun there has not written"
    ):
        go(videos, tmp_path / "out", layer=1, kept="parquet")
    (tmp_path / "out" / "vectors.npy").unlink()
    found = go(videos, tmp_path / "out", layer=1, kept="parquet")
    expected = np.array(go(videos, tmp_path / "right", layer=1).vectors)
    shutil.copy(other / "vectors.npy", found.folder)
    np.testing.assert_array_equal(read_embeddings(found.folder).vectors, expected)
    (tmp_path / "right" / "vectors.npy").unlink()  # both were kept, so Parquet has them too
    np.testing.assert_array_equal(read_embeddings(tmp_path / "right").vectors, expected)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder in which nothing can be made")
def test_a_place_where_nothing_can_be_made_is_named(videos, tmp_path):
    with pytest.raises(UserError, match="/proc/x cannot be written: No such file or directory; choose"):
        go(videos, Path("/proc/x"))
    with pytest.raises(UserError, match="cannot be written: Not a directory; choose"):
        go(videos, videos[0].path / "out")


def test_a_finished_folder_is_left_as_it_is(videos, tmp_path, monkeypatch):
    go(videos, tmp_path / "out")
    before = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(Cutting, "windows", None)
    assert len(go(videos, tmp_path / "out")) == 23
    assert {f.name: f.stat().st_mtime_ns for f in (tmp_path / "out").iterdir()} == before


def test_two_runs_into_one_folder_do_not_mix(videos, tmp_path):
    pytest.importorskip("fcntl")
    recipe = under_test._recipe(
        under_test._Job(
            Vectors(encoder(), 2, "mean", Views()),
            Cutting(GEOMETRY, Views(), sliding("8", "4", GEOMETRY)),
            videos,
            4,
            1,
            "cpu",
        ),
        "both",
        False,
    )
    first = tables.Draft(tmp_path / "out", recipe, 24, np.dtype(np.float32))
    with pytest.raises(UserError, match="another tubelet embed is writing"):
        go(videos, tmp_path / "out")
    first.close()
    assert len(go(videos, tmp_path / "out")) == 23


@pytest.mark.parametrize("moment", range(1, 7))
def test_a_full_disk_loses_nothing(videos, tmp_path, monkeypatch, moment):
    """Every flush to disk may be the one that fails: while rows are written, and while the table is finished."""
    go(videos, tmp_path / "whole")
    monkeypatch.setattr(under_test, "COMMIT_EVERY", 0.0)
    fsync, calls = os.fsync, iter(range(1000))

    def full(handle):
        if next(calls) == 3 * moment:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="no room left on disk"):
            go(videos, tmp_path / "cut")
    go(videos, tmp_path / "cut")
    assert same(tmp_path / "cut", tmp_path / "whole")


def test_a_write_that_fails_is_told_and_lets_go_of_the_folder(tmp_path):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            self.write(b"")

    draft = tables.Draft(tmp_path, {"a": 1}, 4, np.dtype(np.float32))
    draft.append([(0, 0.0, 1.0)], np.ones((1, 4), np.float32))
    draft.count(tables.Done(1, 1.0, None))
    draft.commit()
    draft._open["vectors.npy"].close()
    draft._open["vectors.npy"] = Full()
    with pytest.raises(UserError, match="free some space and run again: what is there is kept"):
        draft.append([(1, 0.0, 1.0)], np.ones((1, 4), np.float32))
    draft.close()
    again = tables.Draft(tmp_path, {"a": 1}, 4, np.dtype(np.float32))
    assert again.done == [tables.Done(1, 1.0, None)] and again.rows == 1
    again.close()


@pytest.mark.parametrize(
    "line", [b"\0" * 40, b"3", b'{"rows": "all", "seconds": 1, "reason": null, "spent": 0}']
)
def test_a_journal_counts_up_to_where_it_is_damaged(videos, tmp_path, monkeypatch, line):
    go(videos, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(tables.Draft, "finish", lambda draft, *_: draft.commit() or {}["stop"])
        with pytest.raises(KeyError):
            go(videos, tmp_path / "cut")
    journal = tmp_path / "cut" / ".part" / "journal.jsonl"
    lines = journal.read_bytes().split(b"\n")
    assert len(lines) == 6
    journal.write_bytes(b"\n".join([*lines[:2], line, *lines[3:]]))
    decoded: list[str] = []
    windows = Cutting.windows
    monkeypatch.setattr(Cutting, "windows", lambda c, v: decoded.append(v.path.name) or windows(c, v))
    go(videos, tmp_path / "cut")
    assert sorted(decoded) == ["2.mp4", "3.mp4", "4.mp4"] and same(tmp_path / "cut", tmp_path / "whole")


def test_a_draft_whose_recipe_is_damaged_is_kept_and_named(videos, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tables.Draft, "finish", lambda draft, *_: draft.commit() or {}["stop"])
        with pytest.raises(KeyError):
            go(videos, tmp_path / "out")
    part = tmp_path / "out" / ".part"
    before = {file.name: file.stat().st_size for file in part.iterdir()}
    for text in ("", "3"):
        (part / "recipe.json").write_text(text)
        with pytest.raises(UserError, match=r"recipe\.json is damaged.*remove .*\.part to begin again"):
            go(videos, tmp_path / "out")
    after = {file.name: file.stat().st_size for file in part.iterdir()}
    assert after == before | {"recipe.json": 1}
    shutil.rmtree(part)
    assert len(go(videos, tmp_path / "out")) == 23


@pytest.mark.parametrize("text", ["\0" * 9, "3"])
def test_a_finished_draft_whose_description_is_damaged_is_finished_again(videos, tmp_path, monkeypatch, text):
    go(videos, tmp_path / "whole")
    replace_file = os.replace

    def stop(a, b):
        if Path(b) == tmp_path / "cut" / "windows.parquet":  # the vectors have taken their place
            raise RuntimeError("killed")
        replace_file(a, b)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stop)
        with pytest.raises(RuntimeError, match="killed"):
            go(videos, tmp_path / "cut")
    (tmp_path / "cut" / ".part" / "embeddings.json").write_text(text)
    with monkeypatch.context() as patch:
        patch.setattr(tables.Draft, "finish", lambda *_: (_ for _ in ()).throw(RuntimeError("again")))
        with pytest.raises(RuntimeError, match="again"):
            go(videos, tmp_path / "cut")
    assert [file.name for file in (tmp_path / "cut").iterdir()] == [
        ".part"
    ]  # the vectors are back in the draft
    go(videos, tmp_path / "cut")
    assert same(tmp_path / "cut", tmp_path / "whole") and not (tmp_path / "cut" / ".part").exists()


def test_without_pyarrow_nothing_is_begun(videos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        go(videos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kept", ["both", "parquet"])
def test_killed_while_files_take_their_places(videos, tmp_path, monkeypatch, kept):
    go(videos, tmp_path / "whole", kept=kept)
    for moved in range(4):
        replace_file, count = os.replace, iter(range(100))

        def stop(a, b, moved=moved, count=count, replace_file=replace_file):
            final = Path(a).name in (*BYTES, "embeddings.json")
            if final and next(count) == moved:
                raise RuntimeError("killed")
            replace_file(a, b)

        out = tmp_path / f"cut{moved}"
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stop)
            if moved < (4 if kept == "both" else 3):
                with pytest.raises(RuntimeError, match="killed"):
                    go(videos, out, kept=kept)
                with pytest.raises(UserError, match="unfinished"):
                    read_embeddings(out)
        go(videos, out, kept=kept)
        names = [name for name in BYTES if kept == "both" or name != "vectors.npy"]
        assert same(out, tmp_path / "whole", names)
        assert {f.name for f in out.iterdir()} == {*names, "embeddings.json"}


WATCHED = Path(__file__).parents[1] / "benchmarks"  # memory is measured there too
MEMORY = """
import sys
from pathlib import Path
import torch
from tubelet.data.manifest import Manifest, Video
from tubelet.embed.embed import embed
from tubelet.export.geometry import Geometry
from tubelet.export.weights import Encoder, digest
from tubelet.nn.pixels import Pixels
from watched import watching
torch.set_num_threads(1)

model = Pixels(cells=1)
enc = Encoder(model, Geometry(16, frame_step=2, crop_size=64), "pixels", digest(model))
def run(name):
    clips = Manifest((Video(Path(name)),), Path(name))
    out = Path(name).with_suffix(".out")
    return embed(enc, clips, out, stride="16", batch_size=4, workers=1, progress=False)
short, long = sys.argv[1:]
run(short)
with watching(every=0.005) as seen:
    found = run(long)
print(len(found), max(seen) - seen[0])
"""


def write_long(path: Path, frames: int, side: int = 64) -> None:
    """A video of eight pictures again and again, written without encoding each."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = side
        stream.pix_fmt = "yuvj420p"
        shown = [av.VideoFrame.from_ndarray(picture(n, side, side), format="rgb24") for n in range(8)]
        data = [bytes(packet) for frame in (*shown, None) for packet in stream.encode(frame)]
        for number in range(frames):
            packet = av.Packet(data[number % len(data)])
            packet.stream, packet.time_base = stream, Fraction(1, 25)
            packet.pts = packet.dts = number
            packet.is_keyframe = True
            out.mux(packet)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is known on Linux alone")
def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
    """20,000 frames after 2,000: the index may be added, up to 300 bytes a frame, and the allocator's unrest."""
    write_long(tmp_path / "short.avi", 2_000)
    write_long(tmp_path / "long.avi", 20_000)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "short.avi"), str(tmp_path / "long.avi")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(WATCHED), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    windows, grown = map(int, done.stdout.split())
    assert windows == 1249
    shown = 10_000 * 64 * 64 * 3  # bytes of the pictures that windows show
    assert grown < 20_000 * 300 + 2**25 < shown / 3, f"{grown / 2**20:.1f} MiB more"


def test_the_ring_holds_no_more_than_the_windows_that_overlap(videos, monkeypatch):
    alive: set[int] = set()
    most = 0
    monkeypatch.setattr("tubelet.embed.stream._cut", lambda crop, picture: Kept())

    class Kept(torch.Tensor):
        def __new__(cls):
            return torch.zeros(1, 3, 2, 2).as_subclass(cls)

        def __init__(self):
            alive.add(id(self))

        def __del__(self):
            alive.discard(id(self))

    cutting = Cutting(GEOMETRY, Views(), sliding("8", "1", GEOMETRY))
    for _ in cutting.windows(videos[2]):
        most = max(most, len(alive))
    assert 4 <= most <= 8  # of 52 frames, those of one window


def test_decoding_ahead_is_bounded_and_stops():
    made: list[int] = []

    def source(start: int):
        def numbers():
            for number in range(start, start + 100):
                made.append(number)
                yield number

        return numbers

    with Ahead([source(0), source(1000), source(2000)], 2, 3) as ahead:
        assert list(ahead.following()) == list(range(100))
        second = ahead.following()
        assert next(second) == 1000
        time.sleep(0.3)
        assert len(made) <= 100 + 1 + 2 * (3 + 1)  # what was taken, two queues of three, one in each hand
    before = len(made)
    time.sleep(0.15)
    assert len(made) == before


def test_what_a_source_raises_comes_after_its_items():
    def broken():
        yield 1
        raise DecodeError("a.mp4", "broken")

    with Ahead([broken], 1, 2) as ahead:
        items = ahead.following()
        assert next(items) == 1
        with pytest.raises(DecodeError, match="broken"):
            next(items)


def test_embed_video_gives_the_rows_of_the_table_in_their_shape(videos, tmp_path):
    for pool in ("mean", "none"):
        found = go(videos, tmp_path / pool, pool=pool)
        for video in videos:
            mine = found.file == str(video.path)
            vectors, times = embed_video(
                encoder(), video.path, window="8", stride="4", pool=pool, batch_size=3
            )
            assert vectors.shape == (mine.sum(), *found.about["shape"]) and vectors.dtype == np.float32
            np.testing.assert_allclose(vectors.reshape(len(vectors), -1), found.vectors[mine], atol=1e-5)
            np.testing.assert_array_equal(times, np.stack([found.start[mine], found.end[mine]], axis=1))
    part, times = embed_video(encoder(), videos[2].path, window="0.4s", start=0.4, end=1.2)
    assert part.shape == (2, 24) and times.tolist() == [[0.4, 0.8], [0.8, 1.2]]
    with pytest.raises(DecodeError, match="file not found"):
        embed_video(encoder(), tmp_path / "missing.mp4")
    with pytest.raises(UserError, match="hold no video"):
        embed_video(encoder(), videos[0].path, start=2.0, end=1.0)


def test_an_encoder_embeds_a_video(videos):
    enc = encoder()
    knobs = {"window": "8", "stride": "4", "pool": "time", "end": 1.0}
    for mine, of_module in zip(
        enc.embed_video(videos[0].path, **knobs), embed_video(enc, videos[0].path, **knobs), strict=True
    ):
        np.testing.assert_array_equal(mine, of_module)
    vectors, times = enc.embed_video(videos[0].path)
    assert vectors.shape == (4, 24) and times.shape == (4, 2)
    with pytest.raises(TypeError, match="windows"):
        enc.embed_video(videos[0].path, windows="8")


def test_the_group_of_a_file_is_that_of_the_list(folder, tmp_path):
    listed = folder / "grouped.csv"
    listed.write_text("path,group\n0.mp4,x\n1.mp4,\n2.mp4,x\n")
    found = embed(encoder(), listed, tmp_path / "out", progress=False)
    expected = {"0.mp4": "x", "1.mp4": None, "2.mp4": "x"}
    assert [expected[Path(name).name] for name in found.file] == found.group
    assert {"x", None} == set(found.group)
    listed.write_text("path,group\n0.mp4,x\n1.mp4,y\n2.mp4,x\n")
    with pytest.raises(UserError, match="begun with other knobs"):
        embed(encoder(), listed, tmp_path / "out", progress=False)


def test_images_in_a_folder_are_a_video(tmp_path):
    images = write_images(tmp_path / "images", 20)
    found = go([Video(images)], tmp_path / "out")
    assert len(found) == 4 and np.isnan(found.start).all() and found.about["video_seconds"] == 0
    rated = go([Video(images, fps=10.0)], tmp_path / "rated", window="1s", stride="1s")
    assert rated.start.tolist() == [0.0, 1.0]
    with pytest.raises(UserError, match="images have no times"):
        go([Video(images)], tmp_path / "seconds", window="1s", stride="1s")


def test_attentive_pooling_by_a_head_that_was_trained(videos, tmp_path):
    enc = encoder()
    torch.manual_seed(3)
    head = AttentiveClassifier(24, 3, 5, depth=2)
    write_head(tmp_path / "head.safetensors", head, enc.digest, 1)
    found = go(videos, tmp_path / "out", enc, pool="attentive", head=tmp_path / "head.safetensors", layer=1)
    frames = middles(FRAMES[0])[2]
    tokens = enc.model.layers(slowly(enc, videos[0].path, frames), [1], normed=True)[1]
    np.testing.assert_allclose(found.vectors[2], head.pooler(tokens)[0].detach(), atol=1e-5)
    for knobs, cure in (
        ({"layer": 2}, "trained on layer 1"),
        ({"enc": encoder(1), "layer": 1}, "give the head of this encoder and layer"),
        ({"head": None}, "tubelet probe --kind attentive"),
        ({"pool": "mean"}, "leave it out"),
        ({"head": tmp_path / "no"}, "no holds no trained head"),
        ({"head": tmp_path / "out"}, "out holds no trained head"),
    ):
        given = {"pool": "attentive", "head": tmp_path / "head.safetensors", **knobs}
        with pytest.raises(UserError, match=cure):
            go(videos, tmp_path / "other", **given)
    save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="does not say its encoder, heads, layer"):
        go(videos, tmp_path / "other", pool="attentive", head=tmp_path / "bare.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "head.safetensors").read_bytes()[:100])
    with pytest.raises(UserError, match=r"torn\.safetensors cannot be read"):
        go(videos, tmp_path / "other", pool="attentive", head=tmp_path / "torn.safetensors")


def test_the_head_that_a_probe_keeps_gives_its_predictions(folder, tmp_path):
    """The vectors that it pools, through its own linear part, are the scores in predictions.csv."""
    enc = encoder()
    rows = [f"{i}.mp4,{'ab'[i % 2]},{'test' if i > 1 else 'train'}" for i in range(5)]
    listed = folder / "labels.csv"
    listed.write_text("\n".join(["path,label,split", *rows]) + "\n")
    fast = AttentiveSettings(heads=3, lrs=(1e-2,), wds=(0.01,), epochs=2)
    place = tmp_path / "probe"
    knobs = {"settings": fast, "cache": tmp_path / "cache", "progress": False, "out": place}
    result = probe(enc, listed, "attentive", layers=[1], **knobs)
    assert result.no_head() == "" and result.scored.head is not None
    found = go(
        [Video(folder / f"{i}.mp4") for i in (2, 3, 4)],
        tmp_path / "out",
        enc,
        window="1000",
        stride=None,
        pool="attentive",
        layer=1,
        head=place,
    )
    said = result.scored.head.head(torch.from_numpy(np.array(found.vectors))).softmax(-1)
    with (place / "predictions.csv").open() as handle:
        written = np.array([[float(row["p_a"]), float(row["p_b"])] for row in csv.DictReader(handle)])
    np.testing.assert_allclose(said.numpy(), written, atol=2e-3)  # the probe's tokens are cached as float16
    with safe_open(place / HEAD, "pt") as stored:
        kept = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        assert stored.metadata() == {"format": "pt", "heads": "3", "encoder": enc.digest, "layer": "1"}
    for name, tensor in result.scored.head.state_dict().items():
        assert torch.equal(kept[name], tensor)
    assert not read_head(place, enc, 1).training
    result = probe(enc, listed, "linear", cache=tmp_path / "cache", progress=False, out=place)
    assert result.no_head() == "" and not (place / HEAD).exists()  # it was of an earlier result


def test_where_no_single_head_can_be_kept_the_probe_says_why(folder, tmp_path, capsys):
    save_encoder(ViT(24, 2, 2), tmp_path / "run" / "encoder", GEOMETRY, {"name": "mine"})
    listed = folder / "folds.csv"
    listed.write_text("path,label\n" + "".join(f"{i}.mp4,{'ab'[i % 2]}\n" for i in range(4)))
    command = ["probe", str(tmp_path / "run"), "--data", str(listed), "--kind", "attentive"]
    command += ["--cache", str(tmp_path / "cache"), "--device", "cpu", "--workers", "1"]
    out = tmp_path / "folds"
    assert main([*command, "--folds", "2", "--out", str(out)]) == 0
    assert "no head is kept for tubelet embed: 2 were trained" in capsys.readouterr().out
    assert not (out / HEAD).exists() and (out / "results.json").exists()
    listed.write_text(
        "path,label,split\n"
        + "".join(f"{i}.mp4,{'ab'[i % 2]},{'test' if i > 1 else 'train'}\n" for i in range(4))
    )
    assert main([*command, "--layers", "1,2", "--out", str(out)]) == 0
    assert "no head is kept for tubelet embed: it reads 2 layers" in capsys.readouterr().out
    assert main([*command, "--out", str(out)]) == 0
    assert f"--pool attentive --head {out}" in capsys.readouterr().out and (out / HEAD).exists()
    words = ["embed", str(tmp_path / "run"), "--data", str(folder / "0.mp4"), "--pool", "attentive"]
    words += ["--device", "cpu", "--out", str(tmp_path / "features")]
    assert main([*words, "--head", str(out)]) == 0
    assert read_embeddings(tmp_path / "features").about["recipe"]["head"]


@pytest.mark.parametrize(
    ("knobs", "cure"),
    [
        ({"pool": "means"}, 'did you mean "mean"'),
        ({"layer": 3}, "layers 0 to 2"),
        ({"kept": "parket"}, 'did you mean "parquet"'),
        ({"batch_size": 0}, "at least 1"),
        ({"pool": "none", "views": Views(crops=2)}, "use crops=1"),
        ({"window": "4 minutes"}, "seconds"),
        ({"enc": encoder(geometry=replace(GEOMETRY, crop_size=40))}, "use 32"),
        ({"enc": encoder(geometry=replace(GEOMETRY, frames=5))}, "use 4"),
    ],
)
def test_knobs_that_make_no_sense_are_refused_before_anything_is_written(videos, tmp_path, knobs, cure):
    with pytest.raises(UserError, match=re.escape(cure)):
        go(videos, tmp_path / "out", **knobs)
    assert not (tmp_path / "out").exists()


def test_vectors_that_are_not_finite_stop_the_run(videos, tmp_path):
    enc = encoder()
    enc.model.get_parameter("norm.weight").data.fill_(1e38)
    with pytest.raises(
        UserError, match=r"2.mp4 from 0 s on that are not finite numbers in float16.*leave out fp16"
    ):
        go([videos[2]], tmp_path / "out", enc, fp16=True)


def test_a_window_that_is_mostly_not_seen_is_told(videos, tmp_path, caplog):
    caplog.set_level("INFO")
    go(videos, tmp_path / "a", window="40", stride=None)
    assert "1 clip(s) that span 20 % of it" in caplog.text and "segments=5" in caplog.text
    caplog.clear()
    go(videos, tmp_path / "b", window="40", stride=None, views=Views(segments=5))
    assert "span" not in caplog.text


def test_on_the_command_line(folder, tmp_path, capsys):
    torch.manual_seed(0)
    save_encoder(ViT(24, 2, 2), tmp_path / "run" / "encoder", GEOMETRY, {"name": "mine", "licence": "MIT"})
    words = ["embed", str(tmp_path / "run"), "--data", str(folder), "--out", str(tmp_path / "out")]
    assert (
        main([*words, "--window", "8", "--stride", "4", "--fp16", "--workers", "1", "--device", "cpu"]) == 0
    )
    assert re.search(
        r"23 windows of 5 videos .* 24 numbers each, .* video-seconds a second", capsys.readouterr().out
    )
    about = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert about["encoder"] | {"digest": ""} == {
        "name": "mine",
        "digest": "",
        "spec": str(tmp_path / "run"),
        "which": None,
        "heads": None,
        "allow_partial": False,
        "dim": 24,
        "licence": "MIT",
        "source": None,
    }
    pixels = {"mean": list(GEOMETRY.mean), "std": list(GEOMETRY.std)}
    assert about["clip"] == {"frames": 4, "frame_step": 2, "crop_size": 32, **pixels}
    assert (about["window_frames"], about["stride_frames"], about["dtype"]) == (8, 4, "float16")
    assert about["video_seconds"] == pytest.approx(sum(FRAMES) / 25, abs=0.2)
    assert about["video_seconds"] / about["rate"] == pytest.approx(
        about["seconds"], abs=1e-3
    )  # they are rounded
    assert main([*words, "--window", "1s", "--stride", "4"]) == 2
    assert "both in seconds, or both in frames" in capsys.readouterr().err


@given(
    st.integers(0, 40),
    st.integers(1, 5),
    st.sampled_from(["float32", "float16"]),
    st.sampled_from(["both", "parquet", "numpy"]),
)
@settings(max_examples=25, deadline=None)
def test_a_saved_table_is_read_back_as_it_was(tmp_path_factory, count, width, dtype, kept):
    rng = np.random.default_rng(count * 7 + width)
    out = tmp_path_factory.mktemp("table") / "t"
    file = [f"é{i // 7}.mp4" for i in range(count)]
    label = [None if i % 14 < 7 else f"l{i // 7}" for i in range(count)]
    group = [None if i % 21 < 7 else f"g{i // 14}" for i in range(count)]
    start, vectors = rng.random(count), rng.standard_normal((count, width)).astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "GROUP_ROWS", 8)
        save_embeddings(
            out, TOY | {"pool": "mean", "kept": "both"}, file, start, start + 1, label, vectors, kept, group
        )
    found = read_embeddings(out)
    assert found.file.tolist() == file and found.label == label and found.about["pool"] == "mean"
    assert found.group == group and found.about["kept"] == kept
    np.testing.assert_array_equal(found.start, start)
    np.testing.assert_array_equal(found.end, start + 1)
    np.testing.assert_array_equal(found.vectors, vectors)
    assert found.vectors.dtype == np.dtype(dtype)


def test_damaged_tables_are_named(tmp_path):
    good = tmp_path / "good"
    save_embeddings(
        good, TOY, ["a"] * 9, np.arange(9.0), np.arange(9.0) + 1, [None] * 9, np.zeros((9, 4), "f4")
    )

    def broken(change) -> str:
        place = tmp_path / "broken"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(good, place)
        change(place)
        with pytest.raises(UserError) as told:
            read_embeddings(place)
        return str(told.value)

    def cut(name: str):
        return lambda place: (place / name).write_bytes((place / name).read_bytes()[:-20])

    def claims(**other):
        def change(place: Path) -> None:
            about = json.loads((place / "embeddings.json").read_text())
            (place / "embeddings.json").write_text(json.dumps(about | other))

        return change

    assert re.search(r"vectors.npy is damaged .*embed again into a new folder", broken(cut("vectors.npy")))
    assert "windows.parquet is damaged" in broken(cut("windows.parquet"))
    assert "embeddings.json is damaged" in broken(cut("embeddings.json"))
    assert "windows.parquet is missing" in broken(lambda place: (place / "windows.parquet").unlink())
    assert "holds no embeddings.json" in broken(lambda place: (place / "embeddings.json").unlink())
    assert "9 rows instead of 10" in broken(claims(windows=10))
    assert "format 2, this version reads 1" in broken(claims(format=2))
    assert "(9, 4) float32 instead of (9, 5) float32" in broken(claims(width=5))
    assert re.search(r'damaged \(it does not say "encoder"\); .*embed again', broken(claims(encoder=None)))
    assert 'it does not say "layer"' in broken(claims(layer=None))
    assert 'does not say the digest and name of its "encoder"' in broken(claims(encoder={"spec": "a"}))
    assert "embeddings.json is damaged" in broken(claims(dtype="float99"))
    assert 'embeddings.json is damaged ("recipe" is 3)' in broken(claims(recipe=3))
    assert '("window_s" is "4")' in broken(claims(window_s="4"))
    with pytest.raises(UserError, match="does not exist"):
        read_embeddings(tmp_path / "nowhere")

    def holds(*given, save=np.save):
        return lambda place: save((place / "vectors.npy").open("wb"), *given)

    assert "() float32 instead of (9, 4) float32" in broken(holds(np.float32(1)))
    assert "(8, 4) float32 instead of (9, 4) float32" in broken(holds(np.zeros((8, 4), "f4")))
    assert "it is an archive of arrays" in broken(holds(np.zeros((9, 4), "f4"), save=np.savez))
    save_embeddings(good, TOY, ["a"], np.zeros(1), np.ones(1), [None], np.zeros((1, 4), "f4"), kept="numpy")
    assert "windows.parquet is damaged (it has no column vector)" in broken(claims(kept="parquet"))
    assert "vectors.npy is missing" in broken(lambda place: (place / "vectors.npy").unlink())


def test_a_finished_table_whose_recipe_is_damaged_is_named(videos, tmp_path):
    out = go(videos, tmp_path / "out").folder
    about = json.loads((out / "embeddings.json").read_text())
    (out / "embeddings.json").write_text(json.dumps(about | {"recipe": 3}))
    with pytest.raises(UserError, match=r'damaged \("recipe" is 3\)'):
        go(videos, out)
    (out / "embeddings.json").write_text(json.dumps(about | {"recipe": about["recipe"] | {"files": 3}}))
    with pytest.raises(UserError, match=r"begun with other knobs .*5 files new"):
        go(videos, out)


def test_the_pixels_have_vectors_too(videos, tmp_path):
    model = Pixels()
    enc = Encoder(model, GEOMETRY, "pixels", digest(model))
    found = go(videos, tmp_path / "out", enc, pool="space")
    assert found.about["shape"] == [2, 2, 24] and found.about["layer"] == 0


def test_without_a_terminal_progress_is_told_in_lines(videos, tmp_path, monkeypatch, caplog, capfd):
    caplog.set_level("INFO")
    monkeypatch.setattr(under_test, "TELL_EVERY", 0.0)
    knobs = {"window": "8", "stride": "4", "batch_size": 4}
    embed(encoder(), Manifest(tuple(videos), Path("list.csv")), tmp_path / "a", **knobs)
    line = r"(\d)/5 files, \S+ video-seconds a second, .*\d s left"
    counted = [re.fullmatch(line, told) for told in caplog.messages]
    assert all(counted) and len(counted) == 23 + 5  # windows and files
    assert [m[1] for m in counted if m][:8] == ["0"] * 7 + ["1"]
    caplog.clear()
    monkeypatch.setattr(under_test, "TELL_EVERY", 60.0)
    embed(encoder(), Manifest(tuple(videos), Path("list.csv")), tmp_path / "b", **knobs)
    assert not caplog.messages and capfd.readouterr() == ("", "")
    monkeypatch.setattr(under_test, "TELL_EVERY", 0.0)
    embed(encoder(), Manifest(tuple(videos), Path("list.csv")), tmp_path / "c", **knobs, progress=False)
    assert not caplog.messages
    shown = io.StringIO()
    monkeypatch.setattr(
        under_test, "Console", lambda **_: Console(file=shown, force_terminal=True, width=120)
    )
    embed(encoder(), Manifest(tuple(videos), Path("list.csv")), tmp_path / "d", **knobs)
    assert not caplog.messages and "vectors of small" in shown.getvalue()


def test_other_videos_are_named(videos, tmp_path):
    copies = [Video(tmp_path / video.path.name) for video in videos[:3]]
    for video, copy in zip(videos, copies, strict=False):
        copy.path.write_bytes(video.path.read_bytes())
    go(copies, tmp_path / "out")
    os.utime(copies[1].path, (0, 0))
    with pytest.raises(UserError) as told:
        go([*copies[:2], videos[4]], tmp_path / "out")
    for what, name in (("new", videos[4].path), ("gone", copies[2].path), ("changed", copies[1].path)):
        assert f"1 files {what}: {name}" in str(told.value)


def test_parquet_alone_is_not_loaded_before_it_is_asked_for(videos, tmp_path, monkeypatch):
    expected = np.array(go(videos, tmp_path / "a").vectors)
    column, asked = tables._read_column, []
    monkeypatch.setattr(tables, "_read_column", lambda *given: asked.append(1) or column(*given))
    found = go(videos, tmp_path / "b", kept="parquet")
    assert len(found) == len(expected) and found.start[0] == 0 and not asked
    np.testing.assert_array_equal(found.vectors, expected)
    assert found.vectors is found.vectors and len(asked) == 1


def test_clips_and_origin_are_chosen_as_for_a_probe(folder, tmp_path, capsys):
    save_encoder(ViT(24, 2, 2), tmp_path / "run" / "encoder", GEOMETRY, {"name": "mine"})
    words = ["embed", str(tmp_path / "run"), "--data", str(folder / "0.mp4"), "--out", str(tmp_path / "out")]
    clips = ["--frames", "8", "--frame-step", "1", "--crop-size", "48", "--device", "cpu"]
    assert main([*words, *clips, "--licence", "MIT", "--source", "hf://a/b"]) == 0
    about = json.loads((tmp_path / "out" / "embeddings.json").read_text())
    assert {k: about["clip"][k] for k in ("frames", "frame_step", "crop_size")} == {
        "frames": 8,
        "frame_step": 1,
        "crop_size": 48,
    }
    assert (about["encoder"]["licence"], about["encoder"]["source"]) == ("MIT", "hf://a/b")
    capsys.readouterr()
    for wrong, said in (
        (["--fps", "2", "--frame-step", "1"], "both given"),
        (["--frames", "0"], "must be above"),
    ):
        assert main([*words, *wrong]) == 2
        assert said in capsys.readouterr().err
