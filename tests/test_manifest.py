"""What counts as data: folders, lists of every kind, and scans of them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tests.video import write_images, write_video
from tubelet.data import scan as scanning
from tubelet.data.manifest import Manifest, read_manifest, write_manifest
from tubelet.data.scan import scan
from tubelet.errors import UserError

AWKWARD = ["plain.mp4", "with space.MP4", "ünïcode – é.mp4", "semi;colon,comma.mp4", 'quote"d.mp4']


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", 8)


def lay(clip: Path, folder: Path, *names: str) -> Path:
    """Copies of one small video under ``names``."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder / name)
    return folder


def names(manifest: Manifest) -> list[str]:
    return [video.path.name for video in manifest.videos]


def labels(manifest: Manifest) -> dict[str, str | None]:
    return {video.path.name: video.label for video in manifest.videos}


# Folders


def test_folder_is_searched_and_everything_else_counted(tmp_path: Path, clip: Path) -> None:
    lay(
        clip,
        tmp_path,
        "a.mp4",
        "deep/er/b.MKV",
        "deep/no_extension",
        "deep/odd.extension",
        ".hidden/c.mp4",
        ".d.mp4",
    )
    for name in ("notes.txt", "table.csv", "deep/song.wav", "single.jpg", "unknown.dat"):
        (tmp_path / name).write_bytes(b"nothing")
    manifest = read_manifest(tmp_path)
    assert names(manifest) == ["a.mp4", "b.MKV", "no_extension", "odd.extension"]
    assert "5 files are no videos" in manifest.notes[0]
    for told in ("1 .txt files", "1 .wav files", "1 single images", "1 .dat files"):
        assert told in manifest.notes[0]
    assert all(video.label is None and video.status is None for video in manifest.videos)


def test_a_name_that_no_list_can_hold_is_refused(tmp_path: Path, clip: Path) -> None:
    """By every command, before anything is read: manifests, tables and reports are UTF-8."""
    folder = lay(clip, tmp_path / "videos", "fine.mp4", os.fsdecode(b"caf\xe9.mp4"))
    with pytest.raises(UserError, match=r"caf\\udce9\.mp4: the name is not UTF-8.*rename the file"):
        scan(folder, tmp_path / "manifest.csv")
    assert not (tmp_path / "manifest.csv").exists()


@pytest.mark.parametrize(
    ("layout", "label", "split"),
    [
        (["cat/1.mp4", "dog/2.mp4"], ["cat", "dog"], [None, None]),
        (["only/1.mp4", "only/2.mp4"], [None, None], [None, None]),
        (["cat/1.mp4", "2.mp4"], [None, None], [None, None]),
        (["cat/1.mp4", "dog/deeper/2.mp4"], [None, None], [None, None]),
        (["test/1.mp4", "train/2.mp4"], [None, None], ["test", "train"]),
        (["Train/cat/1.mp4", "validation/dog/2.mp4"], ["cat", "dog"], ["train", "val"]),
        (["x/cat/1.mp4", "y/dog/2.mp4"], [None, None], [None, None]),
    ],
)
def test_what_folders_say(
    tmp_path: Path, clip: Path, layout: list[str], label: list[str | None], split: list[str | None]
) -> None:
    found = sorted(read_manifest(lay(clip, tmp_path, *layout)).videos, key=lambda v: v.path.name)
    assert [v.label for v in found] == label and [v.split for v in found] == split


def test_folders_of_images_are_videos(tmp_path: Path, clip: Path) -> None:
    write_images(tmp_path / "cat" / "one", 3)
    write_images(tmp_path / "dog" / "two", 3, "{}.png")
    lay(clip, tmp_path, "dog/three.mp4")
    assert labels(read_manifest(tmp_path)) == {"one": "cat", "two": "dog", "three.mp4": "dog"}
    assert names(read_manifest(tmp_path / "cat" / "one")) == ["one"]


def test_loops_of_links_end(tmp_path: Path, clip: Path) -> None:
    lay(clip, tmp_path, "a/1.mp4")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    outside = lay(clip, tmp_path.with_name(f"{tmp_path.name}-outside"), "2.mp4")
    (tmp_path / "linked").symlink_to(outside)
    assert names(read_manifest(tmp_path)) == ["1.mp4", "2.mp4"]


def test_a_list_beside_the_videos_is_pointed_at(tmp_path: Path, clip: Path) -> None:
    lay(clip, tmp_path, "clips/a/1.mp4", "clips/b/2.mp4")
    (tmp_path / "labels.csv").write_text("path,label\n")
    assert any("labels.csv was not read" in note for note in read_manifest(tmp_path).notes)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_manifest(tmp_path / "nowhere")
    with pytest.raises(UserError, match="it is empty"):
        read_manifest(tmp_path)
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text("text")
    with pytest.raises(UserError, match=r"holds no video; what lies there: 3 \.txt files"):
        read_manifest(tmp_path)
    (tmp_path / "data.bin").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match="neither a video nor a list"):
        read_manifest(tmp_path / "data.bin")
    with pytest.raises(UserError, match="no data given"):
        read_manifest("")


def test_one_video(clip: Path) -> None:
    assert names(read_manifest(clip)) == ["clip.mp4"]


# Lists


def _csv(rows: list[dict[str, str]]) -> str:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"') else text

    return "\n".join(",".join(map(cell, row)) for row in ([*rows[0]], *(row.values() for row in rows)))


@pytest.mark.parametrize("kind", ["csv", "csv-bom", "jsonl", "parquet"])
def test_headed_lists(tmp_path: Path, clip: Path, kind: str) -> None:
    lay(clip, tmp_path, *(f"v/{name}" for name in AWKWARD))
    same = {"split": "train", "group": "g", "start": "0.1", "end": "", "frames": "mine"}
    rows = [{"path": f"v/{name}", "label": f"l{i}", **same} for i, name in enumerate(AWKWARD)]
    rows[0]["path"] = str(tmp_path / "v" / AWKWARD[0])  # absolute ones are taken as they are
    path = tmp_path / f"list.{kind.split('-')[0]}"
    if kind == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(("\ufeff" if "bom" in kind else "") + _csv(rows) + "\n\n", encoding="utf-8")
    manifest = read_manifest(path)
    assert labels(manifest) == {name: f"l{i}" for i, name in enumerate(AWKWARD)}
    first = manifest.videos[1]
    assert (first.split, first.group, first.start, first.end, first.frames) == ("train", "g", 0.1, None, None)
    assert first.extra == {"frames": "mine"}
    assert manifest.with_split("train").videos == manifest.videos
    assert manifest.classes() == ["l0", "l1", "l2", "l3", "l4"]
    with pytest.raises(UserError, match="no video has the split test"):
        manifest.with_split("test")


def test_other_names_and_separators(tmp_path: Path, clip: Path) -> None:
    lay(clip, tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "hf.csv").write_text("file_name,Label\na.mp4,x\nb.mp4,\n")
    manifest = read_manifest(tmp_path / "hf.csv")
    assert labels(manifest) == {"a.mp4": "x", "b.mp4": None} and "1 of 2 rows have no label" in manifest.notes
    (tmp_path / "tab.tsv").write_text("label\tpath\nx\ta.mp4\ny\tb.mp4\n")
    assert labels(read_manifest(tmp_path / "tab.tsv")) == {"a.mp4": "x", "b.mp4": "y"}


@pytest.mark.parametrize(
    ("line", "label", "told"),
    [
        ("{} {}", True, "path label"),
        ("{},{}", True, "path,label"),
        ("{}::{}", True, "path::label"),
        ('"{}" {}', True, "path label"),
        ("{} 0 -1", False, "path 0 -1"),
        ("{}", False, "paths only"),
    ],
)
def test_legacy_lists(tmp_path: Path, clip: Path, line: str, label: bool, told: str) -> None:
    files = ["a.mp4", "with space.mp4", "c,omma.mp4"]
    lay(clip, tmp_path, *files)
    path = tmp_path / "train.csv"
    path.write_text("".join(line.format(name, i) + "\n" for i, name in enumerate(files)))
    manifest = read_manifest(path)
    assert labels(manifest) == {name: str(i) if label else None for i, name in enumerate(files)}
    assert len(manifest.notes) == 1 and told in manifest.notes[0] and "no header" in manifest.notes[0]


def test_legacy_list_of_image_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "one", 3)
    (tmp_path / "train.txt").write_text("one 3 17\n")
    assert labels(read_manifest(tmp_path / "train.txt")) == {"one": "17"}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "is empty"),
        ("path,label\n", "lists no videos"),
        ("a.mp4,x\nhello\n", "line 2"),
        ("what is this\n", "names no file"),
        ("a.mp4 3 9\n", "neither"),
        ("path,label\n,x\n", "line 2: the path is empty"),
        ("path,start\na.mp4,soon\n", 'start must be a number, not "soon"'),
        ("path,start,end\na.mp4,2,1\n", "end comes after start"),
        ("path,label\na.mp4,x,y\n", "3 values under 2 columns"),
        ("path,path\na.mp4,x\n", "same name"),
        ("path,label\na.mp4,x\na.mp4,y\n", 'the label "y", and "x" in an earlier row'),
        ("path,label\nb.mp4,x\n", "none of its 1 files exists"),
    ],
)
def test_lists_that_make_no_sense(tmp_path: Path, clip: Path, text: str, wrong: str) -> None:
    lay(clip, tmp_path, "a.mp4")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=r"list\.csv") as caught:
        read_manifest(tmp_path / "list.csv")
    assert wrong in str(caught.value)


def test_lists_of_the_wrong_kind(tmp_path: Path) -> None:
    for name, content in {
        "a.jsonl": b"{oops",
        "b.jsonl": b"[1]",
        "c.parquet": b"no",
        "d.csv": b"\xff\xfe\x00",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            read_manifest(tmp_path / name)
    (tmp_path / "e.jsonl").write_text('{"label": "x"}\n')
    with pytest.raises(UserError, match="no path column, only label"):
        read_manifest(tmp_path / "e.jsonl")


def test_repeats_stretches_and_missing_files(tmp_path: Path, clip: Path) -> None:
    lay(clip, tmp_path, "a.mp4")
    (tmp_path / "list.csv").write_text(
        "path,label,start,end\na.mp4,x,0,0.1\na.mp4,y,0.1,\na.mp4,x,0,0.1\ngone.mp4,x,,\n"
    )
    manifest = read_manifest(tmp_path / "list.csv")
    assert [(v.label, v.start, v.status) for v in manifest.videos] == [
        ("x", 0.0, None),
        ("y", 0.1, None),
        ("x", None, "unreadable"),
    ]
    assert manifest.videos[2].reason == "file not found" and len(manifest.readable()) == 2
    assert any("1 rows repeat" in note for note in manifest.notes)
    assert any("1 of 3 files do not exist" in note for note in manifest.notes)


def refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Nobody may look at what ends in ``name``, not even root."""
    stat = os.stat

    def asked(path: str | Path, *given: Any, **knobs: Any) -> os.stat_result:
        if str(path).endswith(name):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, *given, **knobs)

    monkeypatch.setattr(os, "stat", asked)


def test_an_odd_path_is_one_unreadable_row(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(clip, tmp_path, "a.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    refused(monkeypatch, "closed/b.mp4")
    odd = {
        "a.mp4/b.mp4": os.strerror(errno.ENOTDIR),
        "loop.mp4": os.strerror(errno.ELOOP),
        "n" * 300 + ".mp4": os.strerror(errno.ENAMETOOLONG),
        "closed/b.mp4": os.strerror(errno.EACCES),
        "nul\0.mp4": "embedded null byte",
        "~nobody-of-this-name/b.mp4": "file not found",
        "gone.mp4": "file not found",
    }
    rows = [json.dumps({"path": name, "fps": 10}) for name in ("a.mp4", *odd)]
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    manifest = read_manifest(tmp_path / "list.jsonl")
    assert [v.status for v in manifest.videos] == [None, *["unreadable"] * len(odd)]
    assert [v.reason for v in manifest.videos[1:]] == list(odd.values())
    assert any("2 of 8 files do not exist" in note for note in manifest.notes)
    assert any("5 of 8 files cannot be read, for instance" in note for note in manifest.notes)
    (tmp_path / "list.jsonl").write_text("\n".join(rows[1:]))
    with pytest.raises(UserError, match=r"none of its 7 files can be read, for instance .*b.mp4: Not a dir"):
        read_manifest(tmp_path / "list.jsonl")


def test_data_that_may_not_be_read_is_named(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused(monkeypatch, "closed/b.mp4")
    with pytest.raises(
        UserError, match=r"b\.mp4 cannot be read \(Permission denied\); data must be a folder"
    ):
        read_manifest(tmp_path / "closed" / "b.mp4")
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)"):
        read_manifest("n" * 300)
    (tmp_path / "list.csv").write_text("path\na.mp4\n")

    def read_text(path: Path, *given: Any, **knobs: Any) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", read_text)
    with pytest.raises(UserError, match=r"list\.csv may not be read \(Permission denied\)"):
        read_manifest(tmp_path / "list.csv")


# Scans


def test_scan_keeps_labels_and_is_data_again(tmp_path: Path, clip: Path) -> None:
    folder = lay(clip, tmp_path / "videos", *AWKWARD)
    write_images(folder / "frames", 4)
    (folder / "bad.mp4").write_text("no video")
    rows = [
        {"path": n, "label": "x", "start": "", "mine": "kept, too"} for n in (*AWKWARD, "bad.mp4", "frames")
    ]
    (folder / "list.csv").write_text(_csv(rows), encoding="utf-8")
    out = tmp_path / "scan" / "manifest.csv"
    manifest = scan(folder / "list.csv", out, workers=2, progress=False)
    assert [v.status for v in manifest.videos] == ["ok"] * 5 + ["unreadable", "ok"]
    again = read_manifest(out)
    assert again.videos == manifest.videos and again.digest() == manifest.digest()
    assert not list(out.parent.glob(".*"))
    first = again.videos[0]
    assert (first.label, first.codec, first.frames, first.width, first.height) == ("x", "h264", 8, 96, 72)
    assert first.extra == {"mine": "kept, too"} and first.fps == pytest.approx(25)
    assert again.videos[5].reason and "no video" in again.videos[5].reason
    assert again.videos[6].codec == "images"
    # A manifest beside its videos names them relative to itself, so the folder can be moved.
    scan(folder, folder / "m.csv", workers=1, progress=False)
    moved = folder.rename(tmp_path / "moved")
    assert all(
        v.path.is_relative_to(moved) and v.path.exists() for v in read_manifest(moved / "m.csv").videos
    )


def test_second_scan_reads_only_what_changed(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = lay(clip, tmp_path / "v", "a.mp4", "b.mp4", "c.mp4"), tmp_path / "m.csv"
    read: list[str] = []
    inspect_all = scanning.inspect_all

    def counted(paths: list[Path], workers: int, timeout: float):
        read.extend(path.name for path in paths)
        return inspect_all(paths, workers, timeout)

    monkeypatch.setattr(scanning, "inspect_all", counted)
    first = scan(folder, out, workers=1, progress=False)
    assert sorted(read) == ["a.mp4", "b.mp4", "c.mp4"]
    assert scan(folder, out, workers=1, progress=False).videos == first.videos and len(read) == 3
    os.utime(folder / "b.mp4", ns=(1, 1))
    (folder / "c.mp4").unlink()
    lay(clip, folder, "d.mp4")
    assert names(scan(folder, out, workers=1, progress=False)) == ["a.mp4", "b.mp4", "d.mp4"]
    assert sorted(read[3:]) == ["b.mp4", "d.mp4"]
    scan(folder, out, workers=1, rescan=True, progress=False)
    assert len(read) == 8


def test_an_odd_path_costs_a_scan_one_row(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(clip, tmp_path, "a.mp4")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    refused(monkeypatch, "closed/b.mp4")
    odd = ["a.mp4/b.mp4", "loop.mp4", "n" * 300 + ".mp4", "closed/b.mp4", "gone.mp4"]
    (tmp_path / "list.csv").write_text("\n".join(["path", "a.mp4", *odd]))
    found = scan(tmp_path / "list.csv", tmp_path / "m.csv", workers=1, progress=False)
    whys = [os.strerror(n) for n in (errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES)]
    assert [v.status for v in found.videos] == ["ok", *["unreadable"] * 5]
    assert [v.reason for v in found.videos] == [None, *whys, "file not found"]


def test_crash_and_hang_cost_one_file_each(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lay(
        clip, tmp_path, "1.mp4", "2crash.mp4", "3.mp4", "4hang.mp4", "5exit.mp4", "6.mp4", "7slow.mp4"
    )
    child = """
import os, sys, time
from tubelet.data.scan import serve
from tubelet.data.verdict import inspect
def look(path, beat):
    if "crash" in path.name: os.abort()
    if "hang" in path.name: time.sleep(600)
    if "exit" in path.name: os._exit(3)
    if "slow" in path.name:
        for _ in range(30): time.sleep(0.1); beat()
    print("a library that prints")
    return inspect(path)
serve(look)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", child],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    monkeypatch.setattr(scanning, "_start", start)
    out = tmp_path / "m.csv"
    found = {v.path.name: v for v in scan(folder, out, workers=2, timeout=6.0, progress=False).videos}
    assert {name: v.status for name, v in found.items()} == {
        name: "unreadable" if any(what in name for what in ("crash", "hang", "exit")) else "ok"
        for name in found
    }
    assert found["2crash.mp4"].reason == "the decoder crashed (signal 6)"
    assert found["4hang.mp4"].reason == "the decoder stood still for 6 s and was stopped"
    assert found["5exit.mp4"].reason == "the decoder crashed (exit code 3)"
    monkeypatch.undo()
    assert all(v.status == "ok" for v in scan(folder, out, workers=1, progress=False).videos)  # tried again


def test_interrupted_scan_keeps_what_it_read(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = lay(clip, tmp_path / "v", "a.mp4", "b.mp4", "c.mp4"), tmp_path / "m.csv"
    inspect_all = scanning.inspect_all

    def interrupted(paths: list[Path], workers: int, timeout: float):
        yield next(inspect_all(paths, workers, timeout))
        raise KeyboardInterrupt

    monkeypatch.setattr(scanning, "inspect_all", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scan(folder, out, workers=1, progress=False)
    assert not out.exists()
    seen: list[Path] = []

    def counted(paths: list[Path], workers: int, timeout: float):
        seen.extend(paths)
        return inspect_all(paths, workers, timeout)

    monkeypatch.setattr(scanning, "inspect_all", counted)
    assert len(scan(folder, out, workers=1, progress=False)) == 3
    assert len(seen) == 2
    assert sorted(tmp_path.iterdir()) == [out, folder]


def test_scan_refuses(tmp_path: Path, clip: Path) -> None:
    for out, match in ((tmp_path / "m.parquet", "ends in .csv"), (tmp_path, "csv")):
        with pytest.raises(UserError, match=match):
            scan(clip, out, progress=False)
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        scan(clip, tmp_path / "d.csv", progress=False)
    with pytest.raises(UserError, match="workers=0"):
        scan(clip, tmp_path / "m.csv", workers=0, progress=False)


def test_digest_follows_content(tmp_path: Path, clip: Path) -> None:
    lay(clip, tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "l.csv").write_text("path,label\na.mp4,x\nb.mp4,y\n")
    one = read_manifest(tmp_path / "l.csv").digest()
    (tmp_path / "l.csv").write_text("path,label\na.mp4,x\nb.mp4,z\n")
    assert read_manifest(tmp_path / "l.csv").digest() != one
    write_manifest(read_manifest(tmp_path / "l.csv"), tmp_path / "w.csv")
    assert read_manifest(tmp_path / "w.csv").digest() == read_manifest(tmp_path / "l.csv").digest()
