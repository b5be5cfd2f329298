"""Frame-exactness on real files: the number drawn into each frame is read back."""

from __future__ import annotations

import errno
import os
import random
import shutil
import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from tests.video import number_in, numbers_in, picture, write_images, write_video
from tubelet.data.container import opened, status
from tubelet.data.decode import DecodeError, index, read
from tubelet.data.index import _identity, _memory
from tubelet.data.stamp import stamp
from tubelet.data.verdict import inspect

X264 = {"preset": "ultrafast", "tune": "zerolatency"}
# file name -> codec, pixel format, options. Together: B-frames, long and open groups, hidden frames, no
# presentation times, intra only, palettes, lossless, 10 bit, 4:4:4, alpha, grey.
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264_gop250.mp4": ("libx264", "yuv420p", {"g": "250", "bf": "3", "b_strategy": "0"}),
    "h264_open_gop.mkv": (
        "libx264",
        "yuv420p",
        {"x264-params": "keyint=12:min-keyint=12:bframes=3:open-gop=1:scenecut=0"},
    ),
    "h264_gop12.mp4": ("libx264", "yuv420p", {"g": "12", "bf": "2", "sc_threshold": "0"}),
    "h264.ts": ("libx264", "yuv420p", {"g": "15", "bf": "2", "sc_threshold": "0"}),
    "h264_ultrafast.mov": ("libx264", "yuv420p", {"g": "10", **X264}),
    "h264.avi": ("libx264", "yuv420p", {"g": "20", "bf": "2"}),
    "h264.flv": ("libx264", "yuv420p", {"g": "20", "bf": "2"}),
    "h264_10bit.mp4": ("libx264", "yuv420p10le", {"g": "20", "bf": "2"}),
    "h264_444.mp4": ("libx264", "yuv444p", {"g": "20", "bf": "2"}),
    "hevc.mp4": (
        "libx265",
        "yuv420p",
        {"x265-params": "keyint=20:bframes=3:log-level=none:pools=1", "preset": "ultrafast"},
    ),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"g": "20", "cpu-used": "8", "deadline": "realtime"}),
    "vp8_altref.webm": (
        "libvpx",
        "yuv420p",
        {"g": "30", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "4"},
    ),
    "vp9_altref.webm": (
        "libvpx-vp9",
        "yuv420p",
        {"g": "30", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"},
    ),
    "av1.mp4": ("libsvtav1", "yuv420p", {"preset": "8", "g": "20", "crf": "5"}),
    "av1.mkv": ("libsvtav1", "yuv420p10le", {"preset": "8", "g": "20", "crf": "5"}),
    "xvid.avi": ("mpeg4", "yuv420p", {"g": "12"}),
    "xvid_b.avi": ("mpeg4", "yuv420p", {"g": "12", "bf": "2"}),
    "mpeg4_b.mp4": ("mpeg4", "yuv420p", {"g": "12", "bf": "2"}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {}),
    "mpeg2_b.mpg": ("mpeg2video", "yuv420p", {"g": "12", "bf": "2"}),
    "mpeg1.mpg": ("mpeg1video", "yuv420p", {"g": "12", "bf": "2"}),
    "wmv2.asf": ("wmv2", "yuv420p", {"g": "12"}),
    "gif.gif": ("gif", "rgb8", {}),
    "ffv1_grey.mkv": ("ffv1", "gray", {}),
    "ffv1_grey16.mkv": ("ffv1", "gray16le", {}),
    "png_alpha.mov": ("png", "rgba", {}),
    "prores.mov": ("prores", "yuv422p10le", {}),
    "raw.avi": ("rawvideo", "yuv420p", {}),
    "h264_bare.h264": ("libx264", "yuv420p", {"g": "20", "bf": "2"}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    return {
        name: write_video(folder / name, 60, codec, pix_fmt=pix_fmt, options=options)
        for name, (codec, pix_fmt, options) in KINDS.items()
    }


@pytest.mark.parametrize("name", KINDS)
def test_every_frame_is_the_one_asked_for(made: dict[str, Path], name: str) -> None:
    path = made[name]
    assert len(index(path)) == 60
    assert numbers_in(read(path, range(60))) == list(range(60))
    order = random.Random(name).sample(range(60), 60)
    assert [number_in(read(path, [k])[0]) for k in order[:12]] == order[:12]
    for _ in range(4):
        wanted = random.Random(name).choices(range(60), k=9)
        assert numbers_in(read(path, wanted)) == wanted


@pytest.mark.parametrize("name", KINDS)
def test_inspect_calls_it_ok(made: dict[str, Path], name: str) -> None:
    found = inspect(made[name])
    assert (found.status, found.frames, found.width, found.height) == ("ok", 60, 96, 72)
    assert found.rotation == 0 and found.reason is None
    if "gif" not in name:
        assert found.fps == pytest.approx(25, rel=0.03) and found.duration == pytest.approx(2.4, rel=0.03)


def test_seeking_is_used_where_it_can_be(made: dict[str, Path]) -> None:
    for name in (
        "h264_gop12.mp4",
        "h264_open_gop.mkv",
        "h264_gop250.mp4",
        "hevc.mp4",
        "vp9.webm",
        "av1.mp4",
        "mjpeg.avi",
        "xvid.avi",
        "h264.ts",
    ):
        read(made[name], [55])
        assert len(index(made[name]).keys) > (0 if "250" in name else 1), name


def test_variable_rate(tmp_path: Path) -> None:
    gaps = random.Random(0).choices(range(8, 250), k=59)
    stamps = [500 + sum(gaps[:k]) for k in range(60)]  # and the first frame is not at 0
    for name in ("vfr.mp4", "vfr.mkv"):
        path = write_video(
            tmp_path / name, 60, options={"bf": "2"}, stamps=stamps, time_base=Fraction(1, 1000)
        )
        times = index(path).times
        assert np.allclose(times, (np.array(stamps) - 500) / 1000, atol=0.0006)
        assert numbers_in(read(path, [59, 3, 30, 3])) == [59, 3, 30, 3]


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation(tmp_path: Path, degrees: int) -> None:
    one = 65536
    matrix = {90: (0, -one, 0, one, 0), 180: (-one, 0, 0, 0, -one), -90: (0, one, 0, -one, 0)}[degrees]
    path = _with_matrix(write_video(tmp_path / "turned.mp4", 12), (*matrix, 0, 0, 0, 1 << 30))
    clip = read(path, [5, 11])
    assert clip.shape[1:3] == ((96, 72) if abs(degrees) == 90 else (72, 96))
    assert numbers_in(np.rot90(clip, -degrees // 90, axes=(1, 2))) == [5, 11]
    found = inspect(path)
    assert (found.rotation, found.width, found.height) == (degrees, clip.shape[2], clip.shape[1])


@pytest.mark.parametrize(
    "matrix", [(0,) * 9, (46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30), (-(2**31),) * 9]
)
def test_nonsense_rotation_is_ignored(tmp_path: Path, matrix: tuple[int, ...]) -> None:
    path = _with_matrix(write_video(tmp_path / "nonsense.mp4", 12), matrix)
    assert numbers_in(read(path, [7])) == [7]
    assert inspect(path).rotation == 0


def test_mirrored(tmp_path: Path) -> None:
    path = _with_matrix(write_video(tmp_path / "mirror.mp4", 12), (-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30))
    assert numbers_in(read(path, [7, 9])[:, :, ::-1]) == [7, 9]


def test_size_changes_and_no_container(tmp_path: Path) -> None:
    """Two bare streams after each other: no index, no time stamps, and another size from frame 10 on."""
    parts = [
        write_video(tmp_path / f"{i}.h264", range(i * 10, i * 10 + 10), size=size)
        for i, size in enumerate([(96, 72), (64, 128)])
    ]
    path = tmp_path / "both.h264"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert len(index(path)) == 20
    clip = read(path, range(4, 16))
    assert clip.shape == (12, 72, 96, 3)
    assert numbers_in(clip) == list(range(4, 16))
    assert read(path, [15, 12]).shape == (2, 128, 64, 3)


def test_false_seek_table(tmp_path: Path) -> None:
    """A table of key frames that names frame 20, which is none, instead of 40, which is one."""
    path = write_video(tmp_path / "false.mp4", 60, options={"g": "40", "bf": "0", "sc_threshold": "0"})
    data = bytearray(path.read_bytes())
    at = data.index(b"stss")
    assert struct.unpack(">3I", data[at + 8 : at + 20]) == (2, 1, 41)
    data[at + 16 : at + 20] = struct.pack(">I", 21)
    path.write_bytes(data)
    for k in (30, 15, 50, 39, 40, 59, 20):
        assert numbers_in(read(path, [k])) == [k]


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx-vp9"])
def test_false_key_frames(tmp_path: Path, codec: str) -> None:
    """Packets marked as key frames that are none: noticed when seeking to them, and never sought again."""
    path = write_video(tmp_path / "false.mkv", 60, codec, options={"g": "60", "bf": "0"})
    entry = index(path)
    assert entry.pts is not None
    marked = np.arange(0, 60, 10)
    lying = replace(entry, keys=marked, key_dts=entry.pts[marked])
    _memory.put(_identity(path), lying)
    assert numbers_in(read(path, [35, 58])) == [35, 58]
    assert len(index(path).keys) == 0
    assert numbers_in(read(path, [44])) == [44]


def test_lost_time_stamps(tmp_path: Path) -> None:
    """Packets that promise pictures at other times than come out: noticed, and counted from the start then."""
    path = write_video(tmp_path / "shifted.mkv", 30)
    entry = index(path)
    assert entry.pts is not None
    _memory.put(_identity(path), replace(entry, pts=entry.pts + 7))
    assert numbers_in(read(path, [12, 29])) == [12, 29]
    assert index(path).pts is None


def test_colours_follow_the_file_s_matrix(tmp_path: Path) -> None:
    """A saturated picture comes back the same from full-range and limited-range files."""
    colour = np.full((72, 96, 3), (200, 60, 30), np.uint8)
    for codec, pix_fmt in (
        ("libx264", "yuv420p"),
        ("mjpeg", "yuvj420p"),
        ("ffv1", "bgr0"),
        ("libx264", "yuv444p"),
    ):
        path = tmp_path / f"{codec}-{pix_fmt}.mkv"
        with av.open(str(path), "w") as out:
            stream = out.add_stream(codec, rate=25)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = 96, 72, pix_fmt
            out.mux(stream.encode(av.VideoFrame.from_ndarray(colour, format="rgb24")))
            out.mux(stream.encode(None))
        assert np.abs(read(path, [0])[0, 36, 48].astype(int) - (200, 60, 30)).max() <= 6


def test_short_side(tmp_path: Path) -> None:
    path = write_video(tmp_path / "wide.mp4", 12, size=(320, 160))
    assert read(path, [3], short_side=80).shape == (1, 80, 160, 3)
    assert read(path, [3], short_side=500).shape == (1, 160, 320, 3)
    assert numbers_in(read(path, [3, 8], short_side=60)) == [3, 8]


def test_cut_file_stands_in_then_refuses(tmp_path: Path) -> None:
    path = write_video(
        tmp_path / "whole.mp4",
        60,
        options={"g": "250", "crf": "5"},
        size=(320, 240),
        muxer={"movflags": "faststart"},
    )
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    found = inspect(cut)
    assert found.status == "damaged" and found.frames is not None and 10 < found.frames < 59
    assert found.reason and "of 60 declared" in found.reason
    n = found.frames
    assert numbers_in(read(cut, range(n - 8, n))) == list(range(n - 8, n))
    with pytest.raises(DecodeError, match=r"cut\.mp4"):
        read(cut, [len(index(cut)) - 1] * 8)


def test_damage_stands_in_for_few(tmp_path: Path) -> None:
    path = write_video(tmp_path / "hole.mp4", 40, options={"g": "1", "crf": "10"})
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][20]
        at, size = packet.pos, packet.size
    data = bytearray(path.read_bytes())
    assert at is not None
    data[at : at + size] = b"\xff" * size
    path.write_bytes(data)
    assert inspect(path).status == "damaged"
    got = numbers_in(read(path, range(16, 24)))
    assert got == [16, 17, 18, 19, 19, 21, 22, 23]
    with pytest.raises(DecodeError, match="do not decode"):
        read(path, [20])


def test_folder_of_images(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "a video", 12, "img{:d}.png")  # img2 before img10
    assert numbers_in(read(folder, [11, 0, 5])) == [11, 0, 5]
    assert len(index(folder, fps=4)) == 12 and index(folder, fps=4).times[4] == 1.0
    found = inspect(folder)
    assert (found.status, found.codec, found.frames, found.width) == ("ok", "images", 12, 96)
    (folder / "img3.png").write_bytes(b"gone")
    found = inspect(folder)
    assert found.status == "damaged" and "img3.png" in (found.reason or "")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"<html>404</html>", 'begins "<html>404'), (os.urandom(3000), "cannot be opened")],
)
def test_files_that_are_no_video(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "not.mp4"
    path.write_bytes(content)
    for act in (lambda: read(path, [0]), lambda: index(path)):
        with pytest.raises(DecodeError, match=reason) as caught:
            act()
        assert "not.mp4" in str(caught.value)
    assert inspect(path).status == "unreadable"
    with pytest.raises(DecodeError, match="not found"):
        read(tmp_path / "nowhere.mp4", [0])


def test_what_the_system_has_against_a_file_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "a.mp4", 4)
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    for odd, number in (
        (path / "b.mp4", errno.ENOTDIR),
        (tmp_path / "loop.mp4", errno.ELOOP),
        (tmp_path / ("n" * 300), errno.ENAMETOOLONG),
    ):
        for act in (stamp, status, index, lambda path: opened(path).__enter__()):
            with pytest.raises(DecodeError) as caught:
                act(odd)
            assert caught.value.reason == os.strerror(number) and caught.value.path == odd
    with pytest.raises(DecodeError, match="null byte"):
        stamp(tmp_path / "nul\0.mp4")
    images = write_images(tmp_path / "images", 4)
    assert stamp(images).files == 4

    def closed(*given: object) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DecodeError, match="images: Permission denied"):
        stamp(images)
    assert inspect(images).reason == "Permission denied"
    path.write_text("a note")
    monkeypatch.setattr(Path, "read_bytes", closed)  # root may read any file
    with pytest.raises(DecodeError, match=r"cannot be opened as video \(Invalid data"):
        read(path, [0])


def test_names_mean_nothing_special(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", 4)
    for name in ("http:x.mp4", "50%d off.mp4", "ü – é; ,'\".mp4", "-i.mp4", "*.mp4", "no_extension"):
        path = Path(shutil.copy(source, tmp_path / name))
        assert numbers_in(read(path, [2])) == [2]


def test_index_follows_the_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "grows.mp4", 10)
    assert len(index(path)) == 10
    write_video(path, 20)
    assert len(index(path)) == 20


def test_known_count_overrules_packets(made: dict[str, Path]) -> None:
    entry = index(made["mjpeg.avi"], frames=59)
    assert entry.pts is None and len(entry) == 60


def test_no_leak(made: dict[str, Path]) -> None:
    process = psutil.Process()
    path = made["h264_gop12.mp4"]

    def work(times: int) -> int:
        for k in range(times):
            read(path, [k % 60, (k * 7) % 60])
            with pytest.raises(DecodeError):
                read(Path(__file__), [0])
        return process.memory_info().rss

    before, files = work(60), process.num_fds()
    after = work(300)
    assert process.num_fds() <= files
    assert after - before < 12 << 20


def _with_matrix(path: Path, matrix: tuple[int, ...]) -> Path:
    """Writes a display matrix (16.16 fixed point) into an MP4's track header."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)
    return path


def test_the_helper_reads_what_it_draws() -> None:
    assert [number_in(picture(k)) for k in (0, 1, 2047, 4095)] == [0, 1, 2047, 4095]
