"""Extraction: what features are, that they are computed once, survive interruption, and never go stale."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tubelet.data import decode
from tubelet.data.decode import read
from tubelet.data.manifest import Video
from tubelet.errors import UserError
from tubelet.evaluate import features as under_test
from tubelet.evaluate.features import Views, cache_folder, extract, read_views
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
    monkeypatch.setattr(under_test, "read_views", lambda v, g, w: decoded.append(v) or read_views(v, g, w))
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


def test_an_interrupted_extraction_goes_on_where_it_stopped(videos, tmp_path, monkeypatch):
    enc = encoder()
    whole = go(enc, videos, tmp_path / "a")
    decoded = []

    def stop_at_fifth(video, geometry, views):
        decoded.append(video)
        if video is videos[4]:
            raise KeyboardInterrupt
        return read_views(video, geometry, views)

    monkeypatch.setattr(under_test, "COMMIT_EVERY", 0.0)
    monkeypatch.setattr(under_test, "read_views", stop_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        go(enc, videos, tmp_path / "b")
    assert not [p for p in (tmp_path / "b" / "features").iterdir() if len(p.name) == 20]
    decoded.clear()
    monkeypatch.setattr(under_test, "read_views", lambda v, g, w: decoded.append(v) or read_views(v, g, w))
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
    about = json.loads((found.folder / "about.json").read_text())
    assert about["name"] == "small" and about["tokens"] == "means over space" and len(about["videos"]) == 7
