"""What the command says when something is wrong: file or knob, reason, cure, exit code 2, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from test_recipes import words
from video import write_video

from tubelet import cli
from tubelet.train import checkpoint
from tubelet.train.folder import sole_owner

Say = Callable[..., str]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of ten frames."""
    base = tmp_path_factory.mktemp("set") / "clips"
    for number in range(6):
        write_video(base / f"{number}.mp4", range(40 * number, 40 * number + 10), size=(48, 40))
    return base


@pytest.fixture(scope="module")
def run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of salt-teacher; no test may change it."""
    out = tmp_path_factory.mktemp("run") / "r"
    assert cli.main(words(f"pretrain salt-teacher --data {videos} --out {out}")) == 0
    return out


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Say:
    """Runs a command that must end with exit code 2 and one message, which it returns."""

    def say(argv: list[str]) -> str:
        capsys.readouterr()
        code = cli.main(argv)
        said = capsys.readouterr().err
        assert code == cli.USER_ERROR, said
        assert said.count("tubelet: ") == 1 and "Traceback" not in said
        return said.partition("tubelet: ")[2]

    return say


def files(folder: Path) -> Mapping[Path, tuple[int, bytes]]:
    """Time and bytes of all files below ``folder``."""
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


# -- data --------------------------------------------------------------------------------------------------


def _empty(base: Path) -> None:
    (base / "data").mkdir()


def _texts(base: Path) -> None:
    _empty(base)
    for name in ("a.txt", "b.txt", "notes.md"):
        (base / "data" / name).write_text("words\n")


def _broken(base: Path) -> None:
    _empty(base)
    for name in ("a.mp4", "b.mp4"):
        (base / "data" / name).write_bytes(b"no video")


def _nothing(base: Path) -> None:
    pass


def _a_file(base: Path) -> None:
    (base / "data").write_text("words\n")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (_empty, ["holds no video", "it is empty", "Data must be"]),
        (_texts, ["holds no video", "2 .txt files", "Data must be"]),
        (_broken, ["data", "readable"]),
        (_nothing, ["data does not exist", "a folder of videos"]),
        (_a_file, ["neither a video nor a list", "lists end in"]),
    ],
)
@pytest.mark.parametrize("recipe", ["videomae", "salt"])
def test_data_without_videos(
    make: Callable[[Path], None], said: list[str], recipe: str, tmp_path: Path, refused: Say
) -> None:
    make(tmp_path)
    message = refused(words(f"pretrain {recipe} --data {tmp_path / 'data'} --out {tmp_path / 'out' / 'run'}"))
    assert all(part in message for part in said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("frames", [1, 60])
def test_one_video_is_enough(frames: int, tmp_path: Path) -> None:
    """Long: many windows. A single frame: it is repeated, as V-JEPA 2 does, and every step runs."""
    video = write_video(tmp_path / "one.mp4", frames, size=(48, 40))
    command = words(f"pretrain vjepa2 --data {video} --out {tmp_path / 'run'}")
    if frames == 1:
        command[command.index("--batch-size") + 1] = "1"
    assert cli.main(command) == 0
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_batch_larger_than_the_data(tmp_path: Path, refused: Say) -> None:
    """The cures it names work, and are knobs of the command."""
    video = write_video(tmp_path / "data" / "one.mp4", 9, size=(48, 40))
    command = words(f"pretrain videomae --data {video} --out {tmp_path / 'run'}", steps=1)
    command[command.index("--batch-size") + 1] = "6"
    message = refused(command)
    assert "batch_size=6 is more than the 2 samples" in message and not (tmp_path / "run").exists()
    assert "lower batch_size to 2" in message and "clips_per_video=3" in message
    assert cli.main([*command, "--clips-per-video", "3"]) == 0


def test_a_manifest_of_unreadable_files(tmp_path: Path, refused: Say) -> None:
    _broken(tmp_path)
    assert cli.main(["scan", str(tmp_path / "data"), "--out", str(tmp_path / "m.csv"), "--workers", "1"]) == 0
    message = refused(words(f"pretrain videomae --data {tmp_path / 'm.csv'} --out {tmp_path / 'run'}"))
    assert "none of its 2 videos can be read" in message and "a.mp4" in message
    assert not (tmp_path / "run").exists()


def test_files_that_a_list_names_and_that_are_gone(videos: Path, tmp_path: Path, refused: Say) -> None:
    rows = ["path", *map(str, sorted(videos.glob("*.mp4"))), str(tmp_path / "gone.mp4")]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    command = words(f"pretrain videomae --data {tmp_path / 'list.csv'} --out {tmp_path / 'run'}")
    assert "gone.mp4" in refused(command) and not (tmp_path / "run").exists()


# -- knobs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "knobs", "said"),
    [
        ("videomae", {"crop_sise": 32}, ["--crop-sise", '"--crop-size"']),
        ("videomae", {"teacher": "x"}, ["unknown option --teacher"]),
        ("vidoemae", {}, ['unknown recipe "vidoemae"', '"videomae"']),
        ("videomae", {"crop_size": 40}, ["crop_size=40", "patches of 16", "crop_size=32 or 48"]),
        ("videomae", {"frames": 5}, ["frames=5", "use frames=4"]),
        ("videomae", {"model": "vit_tin"}, ["vit_tin", '"vit_tiny"']),
        ("videomae", {"model": "50x2x3"}, ["50", "3 heads"]),
        ("vjepa2", {"model": "48x2x12"}, ["head width of at least 6", "fewer heads"]),
        ("vjepa2", {"predictor_dim": 4}, ["4 wide", "multiple of 48"]),
        ("videomae", {"decoder_dim": 7}, ["7 wide"]),
        ("videomae", {"decoder_depth": 0}, ["decoder_depth=0"]),
        ("videomae", {"crop_size": 16, "frames": 2}, ["larger crop"]),
        ("vjepa", {"crop_size": 16}, ["larger crop"]),
        ("videomae", {"mask_ratio": 1}, ["leaves 0 tokens to see"]),
        ("videomae", {"lr": "nan"}, ["lr=nan"]),
        ("videomae", {"lr": "fast"}, ["--lr", "fast"]),
        ("videomae", {"weight_decay": "nan"}, ["weight_decay=nan"]),
        ("videomae", {"weight_decay": -1}, ["weight_decay=-1"]),
        ("videomae", {"warmup": -1}, ["warmup=-1"]),
        ("videomae", {"steps": 0}, ["steps=0"]),
        ("videomae", {"micro_batches": 0}, ["micro_batches=0"]),
        ("videomae", {"micro_batches": 3}, ["batch_size=2", "micro_batches=3"]),
        ("videomae", {"clips_per_video": 3}, ["batch_size=2", "multiple of 3"]),
        ("videomae", {"keep_every": -1}, ["keep_every=-1"]),
        ("videomae", {"workers": -1}, ["workers=-1"]),
        ("videomae", {"area": "0,2"}, ["area"]),
        ("videomae", {"area": "0.3"}, ["area", "two numbers"]),
        ("videomae", {"flip": 2}, ["flip=2"]),
        ("videomae", {"fps": 2}, ["fps and frame_step"]),
        ("videomae", {"split": "train"}, ["train"]),
        ("videomae", {"device": "toaster"}, ["toaster", "use auto, cpu"]),
        ("videomae", {"init_from": "nowhere"}, ["nowhere does not exist"]),
        ("videomae", {"init_from": "pixels"}, ["init_from=pixels"]),
        ("vjepa", {"momentum": "0.9,2"}, ["momentum", "between 0 and 1"]),
        ("salt", {"teacher_share": 1}, ["teacher_share=1"]),
        ("salt", {"teacher": "pixels"}, ["teacher=pixels"]),
        ("salt", {"teacher": "nowhere"}, ["nowhere does not exist"]),
        ("salt", {"teacher": "random:vit_tiny", "teacher_model": "48x1x3"}, ["both given"]),
        ("salt", {"predictor_dim": 7}, ["7 wide"]),
        ("salt", {"teacher_model": "vit_tin"}, ['"vit_tiny"']),
    ],
)
def test_knobs_that_make_no_sense(
    recipe: str, knobs: dict[str, Any], said: list[str], videos: Path, tmp_path: Path, refused: Say
) -> None:
    message = refused(words(f"pretrain {recipe} --data {videos} --out {tmp_path / 'out' / 'run'}", **knobs))
    assert all(part in message for part in said), message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "knobs", "said"),
    [
        ("videomae", {"init_from": "{run}", "model": "96x2x3"}, ["48 wide and 2 deep", "leave model out"]),
        ("videomae", {"init_from": "{run}", "patch_size": 8}, ["patch_size=16"]),
        (
            "videomae",
            {"init_from": "{run}", "positions": "sincos"},
            ["positions=rotary", "positions=sincos", "leave them out"],
        ),
        ("videomae", {"init_from": "{run}", "positions": "rotary", "positions_base": 100}, ["positions"]),
        ("videomae", {"init_from": "{run}", "positions_base": 100}, ["positions_base=100"]),
        ("salt", {"teacher": "{run}", "patch_size": 8}, ["teacher={run}", "(2, 16, 16)", "(2, 8, 8)"]),
        ("salt", {"teacher": "{run}", "tubelet_size": 1}, ["teacher={run}", "(2, 16, 16)", "(1, 16, 16)"]),
    ],
)
def test_encoders_that_do_not_fit(
    recipe: str, knobs: dict[str, str], said: list[str], run: Path, videos: Path, tmp_path: Path, refused: Say
) -> None:
    given = {name: str(value).format(run=run) for name, value in knobs.items()}
    message = refused(words(f"pretrain {recipe} --data {videos} --out {tmp_path / 'run'}", **given))
    assert all(part.format(run=run) in message for part in said), message
    assert not (tmp_path / "run").exists()


def test_another_process_trains_there(videos: Path, tmp_path: Path, refused: Say) -> None:
    """Before the first checkpoint too: what it has written so far stays."""
    out = tmp_path / "run"
    with sole_owner(out):
        (out / "config.yaml").write_text("its own")
        before = files(out)
        assert "another process is training" in refused(
            words(f"pretrain videomae --data {videos} --out {out}")
        )
    assert files(out) == before


def test_out_that_cannot_be_written(videos: Path, tmp_path: Path, refused: Say) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert "choose another out" in refused(words(f"pretrain videomae --data {videos} --out {out}"))
    assert (tmp_path / "file").read_text() == "in the way"


# -- runs that are there already ---------------------------------------------------------------------------


def test_a_run_is_not_started_over(run: Path, videos: Path, refused: Say) -> None:
    before = files(run)
    for recipe in ("salt-teacher", "videomae", "salt"):
        assert "add --resume" in refused(words(f"pretrain {recipe} --data {videos} --out {run}", seed=1))
    assert files(run) == before and not (run / "teacher").exists()


@pytest.mark.parametrize("recipe", ["videomae", "salt"])
def test_nothing_to_resume(recipe: str, videos: Path, tmp_path: Path, refused: Say) -> None:
    message = refused([*words(f"pretrain {recipe} --data {videos} --out {tmp_path / 'run'}"), "--resume"])
    assert "resume" in message and "start without --resume" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        (["--seed", "1"], "seed was 0 and is 1 now"),
        (["--steps", "4"], "steps was 3 and is 4 now"),
        (["--batch-size", "4"], "batch_size was 2 and is 4 now"),
        (["--frame-step", "2"], "frame_step was 1 and is 2 now"),
        (["--loss", "l1"], "loss was 'mse' and is 'l1' now"),
        (["--lr", "1e-3"], "lr was None and is 0.001 now"),
    ],
)
def test_resume_with_another_knob(knobs: list[str], said: str, run: Path, refused: Say) -> None:
    before = files(run)
    message = refused(["pretrain", "salt-teacher", "--out", str(run), "--resume", *knobs])
    assert said in message and "another out" in message
    assert files(run) == before


def test_resume_with_other_data_or_as_another_recipe(
    run: Path, videos: Path, tmp_path: Path, refused: Say
) -> None:
    before = files(run)
    (tmp_path / "list.csv").write_text("\n".join(["path", *map(str, sorted(videos.glob("*.mp4"))[1:])]))
    resume = ["--out", str(run), "--resume"]
    message = refused(["pretrain", "salt-teacher", *resume, "--data", str(tmp_path / "list.csv")])
    assert "list.csv has changed since the run began" in message
    assert 'run of "salt-teacher"' in refused(["pretrain", "salt", *resume])
    assert files(run) == before


def test_resume_from_a_damaged_checkpoint(run: Path, tmp_path: Path, refused: Say) -> None:
    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", run, copy], check=True)
    newest = checkpoint.found(copy / "checkpoints")[-1]
    weights = newest / "method.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    before = files(copy)
    resume = ["pretrain", "salt-teacher", "--out", str(copy), "--resume"]
    message = refused(resume)
    assert str(weights) in message and "is damaged" in message and "remove" in message
    assert files(copy) == before
    for file in newest.rglob("*"):
        if file.is_file():
            file.unlink()
    (newest / "encoder").rmdir()
    newest.rmdir()
    assert cli.main(resume) == 0  # the cure it named
    (copy / "config.yaml").write_text("recipe: [salt")
    assert "config.yaml is damaged" in refused(resume)


# -- while it trains ---------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite(videos: Path, tmp_path: Path, refused: Say) -> None:
    out = tmp_path / "run"
    message = refused(
        words(f"pretrain videomae --data {videos} --out {out}", lr=1e30, steps=20, save_every=1)
    )
    last = checkpoint.found(out / "checkpoints")[-1]
    assert (
        "the loss is" in message
        and f"the last good checkpoint is {last}" in message
        and "lower lr" in message
    )
    assert (out / "data_report.csv").is_file() and not (out / "encoder").exists()


def test_a_last_step_that_breaks_the_weights(videos: Path, tmp_path: Path) -> None:
    """No loss comes after it, so the features tell: the verdict is in words and the report is made."""
    out = tmp_path / "run"
    command = words(f"pretrain videomae --data {videos} --out {out}", lr=1e30, warmup=0, health_every=1)
    assert cli.main([*command, "--steps", "1"]) == 0
    assert json.loads((out / "run.json").read_text())["keep"]["step"] == 1
    assert (out / "report.html").is_file()


def test_a_disk_that_fills_up(
    videos: Path, tmp_path: Path, refused: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second checkpoint on nothing can be written: the first one is whole, and the run goes on from it."""
    out, whole = tmp_path / "run", tmp_path / "whole"
    command = words(f"pretrain videomae --data {videos} --out {out}", save_every=1)
    original, full = os.replace, {"now": False}

    def replace(one: Path, other: Path) -> None:
        full["now"] |= Path(other).name == "step-000002"
        if full["now"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(one, other)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        message = refused(command)
    first = checkpoint.found(out / "checkpoints")
    assert [path.name for path in first] == ["step-000001"]
    assert "no room left on disk" in message and str(first[0]) in message and "--resume" in message
    assert not [path for path in out.rglob("*.tmp-*")]
    assert cli.main(["pretrain", "videomae", "--out", str(out), "--resume"]) == 0
    assert cli.main(words(f"pretrain videomae --data {videos} --out {whole}", save_every=1)) == 0
    ends = [checkpoint.found(r / "checkpoints")[-1] / "method.safetensors" for r in (out, whole)]
    assert ends[0].read_bytes() == ends[1].read_bytes()


def test_a_real_disk_that_is_full(videos: Path, tmp_path: Path) -> None:
    """On a file system of one megabyte: said in words, whatever it was that no longer fitted."""
    inside = f"mount -t tmpfs -o size=1m tmpfs {tmp_path} && exec"
    if subprocess.run(["unshare", "-rm", "sh", "-c", f"{inside} true"], capture_output=True).returncode:
        pytest.skip("this machine lets no one mount a small file system")
    command = words(f"pretrain videomae --data {videos} --out {tmp_path / 'run'}")
    line = " ".join([inside, sys.executable, "-m", "tubelet", *command])
    done = subprocess.run(["unshare", "-rm", "sh", "-c", line], capture_output=True, text=True, timeout=120)
    assert done.returncode == cli.USER_ERROR, done.stderr[-2000:]
    assert "Traceback" not in done.stderr and "free some space" in done.stderr


# -- the command itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["--help"], ["pretrain", "--help"], ["pretrain", "salt", "--help"]])
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(argv)
    except SystemExit as ended:  # argparse's own way
        code = ended.code
    assert code == 0 and "usage: tubelet" in capsys.readouterr().out


def test_every_knob_has_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["pretrain", "salt", "--help"])
    said = capsys.readouterr().out
    for option in ("--batch-size", "--init-from", "--teacher-share", "--no-normalise", "--resume"):
        assert option in said
    assert "A,B" in said and "see above" in said


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["pretran"], ["pretran", "pretrain"]),
        (["pretrain", "videomae"], ["data is not given", "--data PATH"]),
        (["pretrain", "videomae", "--data", "x"], ["out is not given"]),
        (["pretrain", "videomae", "--data"], ["--data"]),
        (["pretrain", "videomae", "stray"], ["stray"]),
        (["probe", "nowhere", "--data", "x"], ["nowhere does not exist", "random:vit_tiny"]),
        (["probe", "random:vit_tin", "--data", "x"], ["vit_tin", '"vit_tiny"']),
        (["probe", "pixels", "--data", "nowhere"], ["nowhere does not exist"]),
        (["probe", "pixels", "--data", "x", "--layer", "1"], ["--layer", '"--layers"']),
        (["probe", "pixels", "--data", "x", "--layers", "a"], ["such as 6,12"]),
        (["probe", "pixels", "--data", "x", "--fps", "1", "--frame-step", "1"], ["fps and frame_step"]),
        (["scan", "nowhere"], ["nowhere does not exist"]),
        (["scan"], ["data"]),
    ],
)
def test_commands_that_make_no_sense(argv: list[str], said: list[str], refused: Say) -> None:
    message = refused(argv)
    assert all(part.lower() in message.lower() for part in said), message


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        (["--which", "teachr"], ["teachr"]),
        (["--crop-size", "40"], ["40"]),
        (["--crop-size", "0"], ["crop_size=0"]),
        (["--frames", "3"], ["3"]),
        (["--layers", "9"], ["layers 0 to 2, not [9]"]),
        (["--kind", "attentive", "--pool", "mean"], ["pool", "attentive"]),
        (["--segments", "0"], ["1 segment"]),
        (["--folds", "1"], ["folds"]),
        (["--draws", "0", "--per-class", "1"], ["draws"]),
        (["--workers", "-1"], ["workers"]),
        ([], ["label"]),
    ],
)
def test_probes_that_make_no_sense(
    knobs: list[str], said: list[str], run: Path, videos: Path, tmp_path: Path, refused: Say
) -> None:
    rows = [
        f"{path},{'ab'[i % 2]},{'train' if i < 4 else 'test'}" for i, path in enumerate(videos.glob("*.mp4"))
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    data = tmp_path / "labels.csv" if knobs else videos
    out = tmp_path / "out"
    message = refused(
        ["probe", str(run), "--data", str(data), "--out", str(out), "--cache", str(tmp_path / "c"), *knobs]
    )
    assert all(part in message for part in said), message
    assert not out.exists()


def test_a_module_and_a_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tubelet", "scan", "nowhere"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == cli.USER_ERROR and done.stderr.startswith("tubelet: nowhere does not exist")
    assert done.stdout == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "goes_on"),
    [("embed", "run the same command again and it goes on"), ("pretrain", "with --resume"), ("export", "")],
)
def test_ctrl_c_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, goes_on: str
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    if command in cli.OF_RECIPES:
        monkeypatch.setitem(cli.OF_RECIPES, command, interrupted)
    else:
        monkeypatch.setitem(cli.COMMANDS, command, (cli.COMMANDS[command][0], interrupted))
    given = {
        "embed": ["pixels", "--data", "a", "--out", "b"],
        "export": ["pixels", "--out", "b"],
        "pretrain": [],
    }
    assert cli.main([command, *given[command]]) == 130
    said = capsys.readouterr().err
    assert said.startswith("tubelet: stopped") and said.count("\n") == 1
    assert goes_on in said if goes_on else said == "tubelet: stopped\n"
