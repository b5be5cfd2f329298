"""Extraction: what features are, that they are computed once, survive interruption, and never go stale."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from toy import quiet, start

from tubelet.data import decode
from tubelet.data.cache import frames_of
from tubelet.data.decode import read
from tubelet.data.manifest import Video
from tubelet.errors import UserError
from tubelet.evaluate import features as under_test
from tubelet.evaluate import source as source_under_test
from tubelet.evaluate.features import Reading, cache_folder, extract, extract_source
from tubelet.evaluate.source import VideoSource, Views, read_views
from tubelet.export.weights import Encoder, Geometry, digest
from tubelet.nn.pixels import Pixels
from tubelet.nn.vit import ViT

GEOMETRY = Geometry(frames=4, frame_step=2, crop_size=32)


def write_video(
    path: Path, frames: int = 10, height: int = 36, width: int = 48, seed: int = 0, brightness: float = 1.0
) -> Path:
    rng = np.random.default_rng(seed)
    picture = (
        rng.integers(0, 256, (height // 4, width // 4 + frames, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    )
    picture = (picture * brightness).astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(picture[:, 4 * i : 4 * i + width]), "rgb24"
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("videos")
    for i in range(7):
        write_video(place / f"{i}.mp4", seed=i)
    (place / "broken.mp4").write_bytes(b"no video in here")
    return place


@pytest.fixture
def videos(folder) -> list[Video]:
    return [Video(folder / f"{i}.mp4") for i in range(7)]


def encoder(seed: int = 0, geometry: Geometry = GEOMETRY) -> Encoder:
    torch.manual_seed(seed)
    model = ViT(48, 3, 2, patch=(2, 16, 16))
    return Encoder(model.requires_grad_(False).eval(), geometry, "small", digest(model))


def go(enc, clips, cache, **knobs):
    return extract(enc, clips, cache=cache, workers=2, batch_size=3, progress=False, **knobs)


@pytest.mark.parametrize("pool", ["mean", "time", "flat", "none"])
def test_features_equal_the_encoder_on_the_clips(videos, tmp_path, pool):
    enc = encoder()
    found = go(enc, videos, tmp_path, pool=pool, layers=[1, 3])
    clip = torch.cat([read_views(v, GEOMETRY, Views()) for v in videos])
    tokens = enc.model.layers(clip, [1, 3], normed=True)
    assert list(found.tables) == [1, 3] and found.rows.tolist() == list(range(7))
    means = {k: tokens[k].unflatten(1, (2, 4)).mean(2) for k in (1, 3)}  # over space, [B, t, D]
    for k, table in found.tables.items():
        expected = tokens[k] if pool in ("flat", "none") else means[k]
        atol = 2e-3 if pool in ("flat", "none") else 1e-5
        np.testing.assert_allclose(table[:, 0, 0], expected, atol=atol)
    if pool == "none":
        rows = np.array([5, 0, 5])
        both = torch.cat([tokens[1][rows], tokens[3][rows]], dim=1).unsqueeze(1)  # layers joined on tokens
        torch.testing.assert_close(found.tokens(rows), both, atol=2e-3, rtol=0)
    else:
        expected = {"mean": lambda k: tokens[k].mean(1), "time": lambda k: means[k].flatten(1)}.get(
            pool, lambda k: tokens[k].flatten(1)
        )
        np.testing.assert_allclose(found.pooled(), torch.cat([expected(1), expected(3)], dim=1), atol=2e-3)


def test_the_last_layer_is_normed_even_where_the_others_are_not(videos, tmp_path):
    enc = encoder()
    torch.nn.init.constant_(enc.model.get_parameter("norm.weight"), 3.0)
    found = go(enc, videos[:2], tmp_path, layers=[2, 3], normed=False)
    clip = torch.cat([read_views(v, GEOMETRY, Views()) for v in videos[:2]])
    np.testing.assert_allclose(found.tables[3][:, 0, 0].mean(1), enc.model(clip).mean(1), atol=1e-5)
    raw = enc.model.layers(clip, [2])[2].mean(1)
    np.testing.assert_allclose(found.tables[2][:, 0, 0].mean(1), raw, atol=1e-5)


def test_features_are_computed_once_and_never_stale(videos, tmp_path, monkeypatch):
    first = go(encoder(), videos, tmp_path)
    decoded = []
    monkeypatch.setattr(
        source_under_test, "read_views", lambda v, *how: decoded.append(v) or read_views(v, *how)
    )
    assert go(encoder(), videos, tmp_path).folder == first.folder and not decoded
    changed = [
        go(encoder(seed=1), videos, tmp_path),  # other weights
        go(encoder(), videos[:6], tmp_path),  # other videos
        go(encoder(), [replace(videos[0], start=0.2), *videos[1:]], tmp_path),  # another part of one
        go(encoder(), videos, tmp_path, pool="none"),
        go(encoder(), videos, tmp_path, views=Views(segments=2)),
        go(encoder(geometry=replace(GEOMETRY, frame_step=1)), videos, tmp_path),
    ]
    assert len({f.folder for f in [first, *changed]}) == 7
    shared = [go(encoder(), videos, tmp_path, pool=pool).folder for pool in ("mean", "time")]
    assert shared == [first.folder] * 2
    os.utime(videos[0].path)
    assert go(encoder(), videos, tmp_path).folder != first.folder


def test_labels_splits_and_groups_share_features_and_new_content_does_not(videos, tmp_path, monkeypatch):
    mine = tmp_path / "mine.mp4"
    shutil.copy(videos[0].path, mine)
    first = go(encoder(), [Video(mine, label="a")], tmp_path)
    computed = []
    whole = under_test._Job.run
    monkeypatch.setattr(under_test._Job, "run", lambda *given: computed.append(given) or whole(*given))
    told = Video(mine, label="b", split="train", group="g", extra={"more": "words"})
    same = go(encoder(), [told], tmp_path)
    assert not computed and same.folder == first.folder
    shutil.copy(videos[1].path, mine)
    fresh = go(encoder(), [told], tmp_path)
    assert len(computed) == 1 and not np.allclose(fresh.pooled(), first.pooled(), atol=1e-3)


def test_layers_that_are_there_are_not_computed_again(videos, tmp_path, monkeypatch):
    enc, computed = encoder(), []
    whole = under_test._Job.run
    monkeypatch.setattr(
        under_test._Job,
        "run",
        lambda job, *given: (
            computed.append([reading.layer for reading in job.readings]) or whole(job, *given)
        ),
    )
    both = go(enc, videos, tmp_path, layers=[1, 3])
    one = go(enc, videos, tmp_path, layers=[3])
    more = go(enc, videos, tmp_path, layers=[1, 2, 3])
    assert computed == [[1, 3], [2]]
    assert list(more.tables) == [1, 2, 3] and list(one.tables) == [3]
    alone = go(enc, videos, tmp_path / "other", layers=[1, 2, 3])
    np.testing.assert_array_equal(one.tables[3], both.tables[3])
    for k, table in alone.tables.items():
        np.testing.assert_allclose(more.tables[k], table, atol=1e-5)


def test_a_frame_cache_changes_no_number_and_decodes_each_video_once(folder, tmp_path, monkeypatch):
    stretches = [Video(folder / f"{i % 3}.mp4", start=0.1 * i, end=0.1 * i + 0.4) for i in range(6)]
    clips = [*stretches, Video(folder / "broken.mp4"), Video(folder / "missing.mp4")]
    decoded = []
    iterate = decode.iterate
    monkeypatch.setattr(decode, "iterate", lambda *given: decoded.append(given[0]) or iterate(*given))
    plain = go(encoder(), clips, tmp_path / "a", views=Views(2, 3))
    decoded.clear()
    frames = tmp_path / "frames"
    cached = go(encoder(), clips, tmp_path / "b", views=Views(2, 3), frame_cache=frames)
    assert cached.folder.name == plain.folder.name  # the way of reading is no part of the key
    assert sorted(path.name for path in decoded if path.name[0].isdigit()) == ["0.mp4", "1.mp4", "2.mp4"]
    np.testing.assert_array_equal(cached.tables[3], plain.tables[3])
    assert cached.excluded.keys() == plain.excluded.keys() == {6, 7}
    decoded.clear()
    go(encoder(seed=1), stretches, tmp_path / "b", views=Views(1, 3), frame_cache=frames)
    assert not decoded  # another encoder of one geometry decodes nothing


def test_threads_that_need_one_file_decode_it_once(folder, tmp_path, monkeypatch):
    decoded = []
    iterate = decode.iterate

    def slow(*given):
        decoded.append(given)
        time.sleep(0.05)
        return iterate(*given)

    monkeypatch.setattr(decode, "iterate", slow)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: frames_of(Video(folder / "0.mp4"), None, tmp_path), range(6)))
    assert len(decoded) == 1
    for cached in found:
        np.testing.assert_array_equal(cached.pictures, read(folder / "0.mp4", range(10)))


def test_a_frame_cache_without_room_is_refused_before_anything_is_read(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(UserError, match="the decoded frames of 7 videos need about"):
        go(encoder(), videos, tmp_path, frame_cache=tmp_path / "frames")
    assert not list((tmp_path / "features").glob("*/*.part"))


def extract_slowly(folder: Path, cache: Path, out: Path, pause: float) -> None:
    """In a process of its own: the seven videos one by one; each name that is read goes into ``out``.read."""
    quiet()
    under_test.COMMIT_EVERY = 0.0

    def slow(video, *how):
        with out.with_suffix(".read").open("a") as names:
            names.write(f"{video.path.name}\n")
        time.sleep(pause)
        return read_views(video, *how)

    source_under_test.read_views = slow
    clips = [Video(folder / f"{i}.mp4") for i in range(7)]
    found = extract(encoder(), clips, cache=cache, workers=1, batch_size=1, progress=False)
    np.save(out, found.pooled())


def test_killed_in_the_middle_and_run_again_gives_the_same(folder, videos, tmp_path, monkeypatch):
    process = start(extract_slowly, folder, tmp_path / "b", tmp_path / "never.npy", 0.2)
    deadline = time.monotonic() + 120
    done: list[Path] = []
    while time.monotonic() < deadline:
        done = list((tmp_path / "b" / "features").glob("*/layers-03.part/done"))
        if done and np.count_nonzero(np.fromfile(done[0], np.uint8)) >= 3:
            break
        time.sleep(0.01)
    process.kill()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL and not (tmp_path / "never.npy").exists()
    kept = set(np.flatnonzero(np.fromfile(done[0], np.uint8)).tolist())
    assert 3 <= len(kept) < 7
    decoded = []
    monkeypatch.setattr(
        source_under_test, "read_views", lambda v, *how: decoded.append(v) or read_views(v, *how)
    )
    rest = go(encoder(), videos, tmp_path / "b")
    assert {videos.index(v) for v in decoded} == set(range(7)) - kept
    whole = go(encoder(), videos, tmp_path / "a")
    np.testing.assert_allclose(rest.pooled(), whole.pooled(), atol=1e-6)
    assert [p.name for p in rest.folder.iterdir()] == ["layers-03"]  # no lock, nothing half done


def test_two_processes_that_want_one_table_compute_it_once(folder, tmp_path):
    outs = [tmp_path / "one.npy", tmp_path / "other.npy"]
    processes = [start(extract_slowly, folder, tmp_path / "c", out, 0.1) for out in outs]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    read = [out.with_suffix(".read") for out in outs if out.with_suffix(".read").exists()]
    assert len(read) == 1 and sorted(read[0].read_text().split()) == [f"{i}.mp4" for i in range(7)]
    np.testing.assert_array_equal(*(np.load(out) for out in outs))


def test_a_lock_that_was_given_up_lets_in_one_at_a_time(tmp_path):
    """Who waited for the lock's file and gets it after it lost its name must not be in together with a newcomer."""
    inside, most = 0, 0

    def enter() -> None:
        nonlocal inside, most
        for _ in range(40):
            with under_test._lock(tmp_path / "a.lock"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0002)
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and not (tmp_path / "a.lock").exists()


WATCHED = Path(__file__).parents[1] / "benchmarks"  # memory is measured there too
MEMORY = """
import numpy as np
from pathlib import Path
from watched import watching
from tubelet.data.manifest import Video
from tubelet.evaluate.features import extract
from tubelet.export.weights import Encoder, Geometry, digest
from tubelet.nn.pixels import Pixels

model = Pixels(cells=16)  # every pixel
enc = Encoder(model, Geometry(16, frame_step=1, crop_size=128), "pixels", digest(model))
videos = [Video(Path({video!r}), start=i / 1000, end=1.7 + i / 1000) for i in range({rows})]
some = dict(cache={cache!r}, frame_cache=Path({frames!r}), pool="none", batch_size=4, workers=1, progress=False)
extract(enc, videos[:8], **some).tokens(np.arange(8))  # libraries and their pools are loaded now
with watching(every=0.005) as seen:
    found = extract(enc, videos, **some)
    total = 0.0
    for rows in np.array_split(np.random.default_rng(0).permutation(len(videos)), len(videos) // 4):
        total += found.tokens(rows).mean().item()  # an epoch of an attentive probe
print(found.tables[0].nbytes, max(seen) - seen[0], total)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is known on Linux alone")
def test_memory_is_a_batch_however_large_the_table(tmp_path):
    """Anonymous memory, for mapped pages of the table are the system's to take back and no one's to pay for."""
    video = write_video(tmp_path / "v.mp4", frames=20, height=128, width=128)
    code = MEMORY.format(
        video=str(video), cache=str(tmp_path / "cache"), frames=str(tmp_path / "frames"), rows=200
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(WATCHED), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table, growth, _ = map(float, done.stdout.split())
    shutil.rmtree(tmp_path / "cache")
    assert table > 300e6 and growth < table / 2


def test_an_interrupted_extraction_goes_on_where_it_stopped(videos, tmp_path, monkeypatch):
    enc = encoder()
    whole = go(enc, videos, tmp_path / "a")
    decoded = []

    def stop_at_fifth(video, *how):
        decoded.append(video)
        if video is videos[4]:
            raise KeyboardInterrupt
        return read_views(video, *how)

    monkeypatch.setattr(under_test, "COMMIT_EVERY", 0.0)
    monkeypatch.setattr(source_under_test, "read_views", stop_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        go(enc, videos, tmp_path / "b")
    assert [p.name for p in (tmp_path / "b" / "features").glob("*/*")] == ["layers-03.part"]
    decoded.clear()
    monkeypatch.setattr(
        source_under_test, "read_views", lambda v, *how: decoded.append(v) or read_views(v, *how)
    )
    rest = go(enc, videos, tmp_path / "b")
    assert {v.path for v in decoded} == {v.path for v in videos[3:]}  # the first group of three was kept
    np.testing.assert_allclose(rest.pooled(), whole.pooled(), atol=1e-6)


def test_unreadable_videos_are_named_and_left_out(folder, videos, tmp_path):
    clips = [videos[0], Video(folder / "broken.mp4"), videos[1], Video(folder / "missing.mp4")]
    for _ in range(2):  # fresh, and from the cache
        found = go(encoder(), clips, tmp_path)
        assert found.rows.tolist() == [0, 2] and sorted(found.excluded) == [1, 3]
        assert "broken.mp4" in found.excluded[1]
        assert found.pooled().shape == (2, 48)


def test_an_odd_path_is_an_excluded_video(folder, videos, tmp_path):
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    odd = [videos[0].path / "b.mp4", tmp_path / "loop.mp4", tmp_path / ("n" * 300)]
    for knobs in ({}, {"frame_cache": tmp_path / "frames"}):
        found = go(encoder(), [videos[0], *map(Video, odd), videos[1]], tmp_path / str(len(knobs)), **knobs)
        assert found.rows.tolist() == [0, 4]
        assert [found.excluded[i].rpartition(": ")[2] for i in (1, 2, 3)] == [
            os.strerror(number) for number in (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
        ]


def test_no_readable_video_is_an_error(folder, tmp_path):
    with pytest.raises(UserError, match=r"none of the 1 videos.*broken\.mp4"):
        go(encoder(), [Video(folder / "broken.mp4")], tmp_path)
    with pytest.raises(UserError, match="no videos"):
        go(encoder(), [], tmp_path)


def test_nan_features_name_the_clip(videos, tmp_path):
    enc = encoder()
    torch.nn.init.constant_(enc.model.get_parameter("blocks.1.mlp.fc2.bias"), torch.nan)
    with pytest.raises(UserError, match=r"layer 3 of .*0\.mp4 that are not finite"):
        go(enc, videos, tmp_path)


@pytest.mark.parametrize(
    ("knobs", "geometry", "words"),
    [
        ({"layers": [4]}, GEOMETRY, "layers 0 to 3, not"),
        ({"pool": "max"}, GEOMETRY, 'pool="max"'),
        ({}, replace(GEOMETRY, crop_size=40), "crop_size=40 is not a multiple of the patch's 16; use 32"),
        ({}, replace(GEOMETRY, frames=5), "frames=5"),
    ],
)
def test_knobs_that_do_not_fit_are_refused(videos, tmp_path, knobs, geometry, words):
    with pytest.raises(UserError, match=words):
        go(encoder(geometry=geometry), videos, tmp_path, **knobs)
    assert not (tmp_path / "features").exists()


def test_an_encoder_of_other_channels_is_refused(videos, tmp_path):
    model = ViT(48, 1, 2, channels=1)
    with pytest.raises(UserError, match="1 channels"):
        go(Encoder(model, GEOMETRY, "grey", "0"), videos, tmp_path)


def test_a_full_disk_keeps_what_is_there(videos, tmp_path, monkeypatch):
    enc = encoder()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(UserError, match=r"take .* GiB"):
            go(enc, videos, tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="no room left on disk"):
            go(enc, videos, tmp_path)
    assert len(go(enc, videos, tmp_path).rows) == 7


def test_pixels_pass_through_the_same_door(videos, tmp_path):
    model = Pixels()
    found = go(Encoder(model, GEOMETRY, "pixels", digest(model)), videos, tmp_path, pool="time")
    assert list(found.tables) == [0] and found.pooled().shape == (7, 2 * model.dim)


def test_views_cover_the_long_side_and_time(videos):
    one = read_views(videos[0], GEOMETRY, Views())
    many = read_views(videos[0], GEOMETRY, Views(segments=2, crops=3))
    assert one.shape == (1, 3, 4, 32, 32) and many.shape == (6, 3, 4, 32, 32)
    assert not torch.equal(many[0], many[1]) and not torch.equal(many[0], many[2])
    with pytest.raises(UserError, match="at least 1"):
        Views(segments=0)


def test_a_video_smaller_than_the_crop_is_enlarged(tmp_path):
    clip = Video(write_video(tmp_path / "small.mp4", height=16, width=24))
    assert read_views(clip, GEOMETRY, Views()).shape == (1, 3, 4, 32, 32)
    assert read_views(clip, GEOMETRY, Views(crops=3)).shape == (3, 3, 4, 32, 32)


def test_nothing_is_scaled_that_is_larger_than_the_crop_and_smaller_than_published(tmp_path):
    """Published is a short side of 32 * 256/224 = 37 before the crop: 36 is not enlarged to it."""
    clip = Video(write_video(tmp_path / "36.mp4", height=36, width=48))
    plain = replace(GEOMETRY, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    # places(1) is the middle: 10 frames leave 4 starts for 4 frames of step 2
    pictures = torch.from_numpy(read(clip.path, [2, 4, 6, 8]))
    centre = pictures[:, 2:34, 8:40].permute(3, 0, 1, 2) / 255
    torch.testing.assert_close(read_views(clip, plain, Views())[0], centre, atol=1e-6, rtol=0)


def test_several_segments_are_decoded_in_one_pass(videos, monkeypatch):
    passes = []
    whole = decode.read
    monkeypatch.setattr(decode, "read", lambda *given: passes.append(given) or whole(*given))
    views = read_views(videos[0], GEOMETRY, Views(segments=3, crops=2))
    assert views.shape[0] == 6 and len(passes) == 1
    alone = read_views(videos[0], GEOMETRY, Views(segments=3, crops=1))
    assert alone.shape[0] == 3 and len(passes) == 2


def test_start_and_end_bound_what_is_read(videos):
    whole, part = videos[0], replace(videos[0], start=0.0, end=0.31)
    first = read_views(part, replace(GEOMETRY, frame_step=1), Views())
    assert first.shape == (1, 3, 4, 32, 32)
    assert not torch.equal(first, read_views(whole, replace(GEOMETRY, frame_step=1), Views()))
    with pytest.raises(UserError, match="no frame between 50 s and the end"):
        read_views(replace(whole, start=50.0), GEOMETRY, Views())


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("TUBELET_CACHE", str(tmp_path / "env"))
    assert cache_folder() == tmp_path / "env" and cache_folder(tmp_path) == tmp_path
    monkeypatch.delenv("TUBELET_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "tubelet"


def test_the_table_says_what_it_is(videos, tmp_path):
    found = go(encoder(), videos, tmp_path)
    about = json.loads((found.folder / "layers-03" / "about.json").read_text())
    assert about["name"] == "small" and about["tokens"] == "means over space" and len(about["videos"]) == 7
    assert about["layers"] == ["03"]


def test_both_readings_of_a_layer_come_from_one_pass_and_equal_those_made_alone(videos, tmp_path):
    enc = encoder()
    with torch.no_grad():
        for scale in enc.model.norm.parameters():
            scale.add_(torch.linspace(0.5, 2, enc.model.dim))
    passes = []
    whole = enc.model.layers
    enc.model.layers = lambda *given, **knobs: passes.append(given) or whole(*given, **knobs)
    source = VideoSource(videos, enc.geometry)
    asked = [Reading(k, normed) for k in (1, 2, 3) for normed in (False, True)]
    both = extract_source(enc, source, asked, cache=tmp_path / "both", batch_size=3, progress=False)
    assert len(passes) == 3  # seven videos, three at a time
    for normed in (False, True):
        alone = go(enc, videos, tmp_path / f"alone-{normed}", layers=[1, 2, 3], normed=normed)
        for k in (1, 2, 3):
            np.testing.assert_array_equal(both[normed].tables[k], alone.tables[k])
    assert not np.array_equal(both[True].tables[1], both[False].tables[1])
    np.testing.assert_array_equal(both[True].tables[3], both[False].tables[3])  # the last is always normed


def test_the_last_layer_is_shared_by_probes_and_by_those_who_look_before_the_norm(
    videos, tmp_path, monkeypatch
):
    enc = encoder()
    go(enc, videos, tmp_path, layers=[3])
    computed = []
    whole = under_test._Job.run
    monkeypatch.setattr(
        under_test._Job, "run", lambda job, *given: computed.append(job.readings) or whole(job, *given)
    )
    go(enc, videos, tmp_path, layers=[2, 3], normed=False)
    assert computed == [[Reading(2, False)]]


def test_the_folder_of_many_layers_has_a_name_that_file_systems_allow(videos, tmp_path):
    many = [Reading(k, normed) for k in range(48) for normed in (False, True)]
    assert len(under_test._folder_name(many)) < 100
    assert under_test._folder_name(many) != under_test._folder_name(many[1:])


def test_the_mean_of_a_clip_equals_the_mean_over_its_time_steps(videos, tmp_path):
    enc = encoder()
    small = go(enc, videos, tmp_path, layers=[1, 3], pool="clip", views=Views(segments=2))
    large = go(enc, videos, tmp_path, layers=[1, 3], pool="mean", views=Views(segments=2))
    assert small.tables[1].shape == (7, 1, 2, 1, enc.model.dim) and large.tables[1].shape[3] > 1
    np.testing.assert_allclose(small.pooled(), large.pooled(), atol=1e-6)
