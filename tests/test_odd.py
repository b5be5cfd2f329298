"""Every file of the collection of odd videos gets the right verdict, and what decodes is read exactly."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import psutil
import pytest

from tubelet.data.container import opened, packets, pictures
from tubelet.data.decode import DecodeError, index, read
from tubelet.data.manifest import Manifest, read_manifest
from tubelet.data.pictures import Converter
from tubelet.data.scan import scan
from tubelet.data.source import ClipReader

SHARED = Path(os.environ.get("TUBELET_SHARED") or Path(__file__).parents[2] / "shared")
ODD = SHARED / "data" / "odd"
pytestmark = pytest.mark.skipif(not (ODD / "table.csv").is_file(), reason=f"the odd videos are not at {ODD}")
STATUS = {"ok": "ok", "decodes with errors": "damaged"}
HUGE = {"media3__8k24fps_300ms.mp4", "media3__long_180p_av1.mp4"}
SLOW = HUGE | {"imageio__cockatoo.mp4", "media3__hdr10-av1.mp4"}
# Decoded from another key frame, damaged pictures look different; that is no other frame.
DAMAGED = {"bad__bitflips_in_mdat.mp4", "mp4parse__no_timescale.mp4", "fate__demo.mp4"}


def table() -> list[dict[str, str]]:
    if not (ODD / "table.csv").is_file():
        return []
    with (ODD / "table.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    out = tmp_path_factory.mktemp("odd") / "odd.csv"
    files = psutil.Process().num_fds()
    manifest = scan(ODD, out, workers=2, progress=False)
    assert psutil.Process().num_fds() <= files + 1
    assert scan(ODD, out, workers=1, progress=False).videos == manifest.videos  # and nothing is read again
    assert read_manifest(out).digest() == manifest.digest()
    return manifest


def test_every_verdict(scanned: Manifest) -> None:
    found = {video.path.name: video for video in scanned.videos}
    rows = {row["file"]: row for row in table()}
    assert found.keys() == rows.keys() and len(rows) == 177
    wrong = []
    for name, row in rows.items():
        video = found[name]
        if video.status != STATUS.get(row["status"], "unreadable"):
            wrong.append(f"{name}: {video.status}, not {row['status']}")
        if (video.frames or 0) != int(row["frames_decoded"] or 0):
            wrong.append(f"{name}: {video.frames} frames, not {row['frames_decoded']}")
        if video.status != "ok" and not video.reason:
            wrong.append(f"{name}: no reason given")
        if video.status == "unreadable":
            continue
        angle = int(row["rotation"] or 0)
        angle = angle if angle % 90 == 0 and abs(angle) <= 360 else 0  # one asks for -2147483648 degrees
        if video.rotation is None or (video.rotation - angle) % 360:
            wrong.append(f"{name}: turned by {video.rotation}, not {angle}")
        size = [int(side) for side in row["size"].split("x")]
        if [video.width, video.height] != (size[::-1] if angle % 180 else size):
            wrong.append(f"{name}: {video.width}x{video.height}, not {row['size']} turned by {angle}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [row["file"] for row in table() if row["status"] in STATUS])
def test_frames_read_alone_are_those_of_a_whole_decode(name: str) -> None:
    if name in HUGE:
        pytest.skip("decoding all of it takes too long; read in test_huge_files")
    path = ODD / name
    errors: list[str] = []
    stamps: list[int | None] = []
    shown: list[np.ndarray] = []
    with opened(path) as (container, stream):
        for frame in pictures(stream, packets(container, stream, errors), errors):
            stamps.append(frame.pts)
            shown.append(Converter(24)(frame))
    for part in (0.97, 0.4):
        entry = index(path)
        k = int(part * len(entry))
        try:
            got = read(path, [k], 24)[0]
        except DecodeError:
            assert errors or name in DAMAGED, "only where something does not decode may a frame be missing"
            continue
        place = k if entry.pts is None or index(path).pts is None else stamps.index(int(entry.pts[k]))
        if name not in DAMAGED:
            assert np.array_equal(got, shown[place]), k
    assert errors or name in DAMAGED or len(index(path)) == len(shown)


def test_clips_of_everything_readable(scanned: Manifest) -> None:
    """No crash and no exception but DecodeError, by rate and by stride, and memory does not grow."""
    process = psutil.Process()
    failed: dict[str, str] = {}
    readers = ClipReader(4, fps=4.0, short_side=32), ClipReader(4, frame_step=2, short_side=32)
    for i, video in enumerate(scanned.readable().videos):
        if video.path.name in SLOW:
            continue
        try:
            (clip,) = readers[i % 2].read(video, [0.3])
        except DecodeError as error:
            failed[video.path.name] = error.reason
            continue
        assert clip.shape[0] == 4 and clip.shape[3] == 3 and min(clip.shape[1:3]) <= 32
    assert all(row["status"] != "ok" for row in table() if row["file"] in failed), failed
    assert process.memory_info().rss < 2 << 30


def test_huge_files() -> None:
    assert read(ODD / "media3__8k24fps_300ms.mp4", [5], 64).shape == (1, 64, 114, 3)
    long = ODD / "media3__long_180p_av1.mp4"
    assert len(index(long)) == 21766 and len(index(long).keys) > 50
    assert read(long, [21000, 5000], 64).shape == (2, 64, 114, 3)
