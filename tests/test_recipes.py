"""Every recipe from videos to an encoder by its command, killed and resumed, over processes, from an encoder."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from toy import free_port, lines_of, start, weights_of
from video import write_video

from tubelet import cli
from tubelet.data.stream import Stream
from tubelet.export.weights import load_encoder
from tubelet.nn.vit import ViT
from tubelet.train import checkpoint
from tubelet.types import Batch

SIZE = "--model 48x2x3 --crop-size 32 --patch-size 16 --frames 4 --frame-step 1 --batch-size 2 --workers 0 --device cpu"
WRITTEN = (
    "config.yaml",
    "env.json",
    "run.json",
    "metrics.jsonl",
    "data_report.csv",
    "report.html",
    "train.log",
)


def words(command: str, **knobs: Any) -> list[str]:
    """The command line of ``command`` at a small size, for 3 steps unless told otherwise."""
    given = {"steps": 3, **knobs}
    return [*command.split(), *SIZE.split()] + [
        word for name, value in given.items() for word in ("--" + name.replace("_", "-"), str(value))
    ]


def tubelet(*argv: str) -> int:
    """The exit code of a command, run here."""
    return cli.main(argv)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos of two classes and labels.csv with a split: half of each class to learn from."""
    base = tmp_path_factory.mktemp("set") / "clips"
    rows = [["path", "label", "split"]]
    for number in range(8):
        name = f"{'ab'[number % 2]}{number}.mp4"
        write_video(base / name, range(40 * number, 40 * number + 10), size=(48, 40))
        rows.append([name, "ab"[number % 2], "test" if number > 3 else "train"])
    with (base / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return base


@pytest.fixture(scope="module")
def runs(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Finished runs by name, trained when they are first asked for."""
    base = tmp_path_factory.mktemp("runs")

    def run(name: str) -> Path:
        more: dict[str, list[str]] = {
            "salt-given": ["--teacher", str(base / "salt-teacher")],
            "salt-wide": ["--teacher-model", "96x1x3"],
        }
        out = base / name
        if not out.exists():
            if name == "salt-given":
                run("salt-teacher")
            recipe = name if name not in more else "salt"
            command = f"pretrain {recipe} --data {videos / 'labels.csv'} --out {out}"
            assert tubelet(*words(command), *more.get(name, [])) == 0
        return out

    return run


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUBELET_CACHE", str(tmp_path / "cache"))


NAMES = ("videomae", "vjepa", "vjepa2", "salt-teacher", "salt", "salt-given", "salt-wide")
ENCODERS = {
    "videomae": {"encoder"},
    "salt-teacher": {"encoder"},
    "vjepa": {"teacher", "student"},
    "vjepa2": {"teacher", "student"},
}


@pytest.mark.parametrize("name", NAMES)
def test_a_command_makes_a_whole_run_folder(name: str, runs: Callable[[str], Path], videos: Path) -> None:
    run = runs(name)
    folders = [run] if name not in ("salt", "salt-wide") else [run, run / "teacher"]
    for folder in folders:
        assert all((folder / file).stat().st_size > 0 for file in WRITTEN)
        assert not [path for path in folder.rglob(".*") if path.name != ".lock"]
        steps = json.loads((folder / "run.json").read_text())["steps"]
        assert [row["step"] for row in lines_of(folder)] == list(range(steps + 1))
        with (folder / "data_report.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 8 and sum(int(row["clips"]) for row in rows) >= 2 * steps

    config = yaml.safe_load((run / "config.yaml").read_text())
    steps = 2 if name in ("salt", "salt-wide") else 3  # of three steps, the teacher has a third
    recipe = name.removesuffix("-given").removesuffix("-wide")
    assert config["recipe"] == recipe
    assert config["knobs"]["crop_size"] == 32 and config["knobs"]["lr"] is None
    assert config["chosen"]["steps"] == steps and config["chosen"]["lr"]["peak"] > 0
    ran = json.loads((run / "run.json").read_text())
    assert ran["finished"] and ran["steps"] == steps and ran["clips"] == 2 * steps and ran["train_flops"] > 0
    assert set(ran["encoders"]) == ENCODERS.get(name, {"student", "teacher"})
    env = json.loads((run / "env.json").read_text())
    assert env["device"] == "cpu" and env["packages"]["torch"] == torch.__version__

    about = json.loads((run / "encoder" / "encoder.json").read_text())
    assert about["geometry"]["frames"] == 4 and about["geometry"]["frame_step"] == 1
    assert about["geometry"]["crop_size"] == 32 and about["geometry"]["fps"] is None
    origin = about["provenance"]
    assert origin["recipe"] == recipe and origin["step"] == steps and origin["name"] == name
    assert origin["data"] == str(videos / "labels.csv") and origin["init_from"] is None
    assert origin["data_digest"] == config["data_digest"]
    assert origin["which"] == ran["encoders"][0]
    newest = checkpoint.found(run / "checkpoints")[-1]
    whole, part, saved = (load_encoder(place) for place in (run, run / "encoder", newest))
    assert isinstance(whole.model, ViT) and (whole.model.dim, whole.model.depth) == (48, 2)
    assert whole.digest == part.digest == saved.digest == about["digest"]


def test_teachers_are_kept_beside_the_student(runs: Callable[[str], Path]) -> None:
    wide = load_encoder(runs("salt-wide"), which="teacher")
    assert wide.model.dim == 96 and wide.model.depth == 1
    assert wide.digest == load_encoder(runs("salt-wide") / "teacher").digest
    given = load_encoder(runs("salt-given"), which="teacher")
    assert given.digest == load_encoder(runs("salt-teacher")).digest
    averaged, student = load_encoder(runs("vjepa")), load_encoder(runs("vjepa"), which="student")
    assert averaged.digest == load_encoder(runs("vjepa"), which="teacher").digest != student.digest


@pytest.mark.parametrize("kind", ["linear", "knn", "attentive"])
def test_probe_of_a_run(
    kind: str, runs: Callable[[str], Path], videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs("salt")
    assert tubelet("probe", str(run), "--data", str(videos / "labels.csv"), "--kind", kind) == 0
    out = run / "eval" / f"clips-{kind}"
    results = json.loads((out / "results.json").read_text())
    assert results["kind"] == kind and results["encoder"]["digest"] == load_encoder(run).digest
    assert results["train_clips"] == results["test_clips"] == 4 and (out / "predictions.csv").is_file()
    assert str(out / "results.json") in capsys.readouterr().out


def test_probe_of_what_is_compared_with_a_run(
    runs: Callable[[str], Path], videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each result lies where the run's is or, without a run, below eval/ here, and none takes another's place."""
    run, data = runs("salt-wide"), str(videos / "labels.csv")
    monkeypatch.chdir(tmp_path)
    for spec in (f"random:{run}", f"pixels:{run}"):
        assert tubelet("probe", spec, "--data", data, "--kind", "knn") == 0
    found = {json.loads(path.read_text())["encoder"]["name"] for path in Path("eval").rglob("results.json")}
    assert found == {f"random:{run}", f"pixels:{run}"}
    newest = checkpoint.found(run / "checkpoints")[-1]
    before = sorted(newest.rglob("*"))
    assert tubelet("probe", str(run), "--which", "teacher", "--data", data, "--kind", "knn") == 0
    assert tubelet("probe", str(newest), "--data", data, "--kind", "knn") == 0
    assert sorted(newest.rglob("*")) == before
    assert {path.name for path in (run / "eval").iterdir()} == {
        "teacher-clips-knn",
        f"{newest.name}-clips-knn",
    }


def test_labels_never_reach_a_batch(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Batch] = []
    original = Stream.batches

    def watched(self: Stream, start_step: int = 0) -> Iterator[Batch]:
        for batch in original(self, start_step):
            seen.append(batch)
            yield batch

    monkeypatch.setattr(Stream, "batches", watched)
    command = f"pretrain videomae --data {videos / 'labels.csv'} --split train --out {tmp_path / 'run'}"
    assert tubelet(*words(command, steps=2)) == 0
    assert len(seen) == 2 and all(batch.label is None for batch in seen)
    with (tmp_path / "run" / "data_report.csv").open() as file:
        assert [Path(row["path"]).name for row in csv.DictReader(file)] == [
            "a0.mp4",
            "b1.mp4",
            "a2.mp4",
            "b3.mp4",
        ]


# -- resumed -----------------------------------------------------------------------------------------------


def _in_a_child(argv: list[str], log: Path) -> None:
    torch.set_num_threads(1)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.exit(cli.main(argv))


def stopped(argv: list[str], number: int, when: Callable[[], bool], log: Path) -> int:
    """The exit code of a command in another process that gets signal ``number`` once ``when()``."""
    process = start(_in_a_child, argv, log)
    for _ in range(6000):
        if when() or not process.is_alive():
            break
        time.sleep(0.005)
    assert process.is_alive() and process.pid is not None, log.read_text()
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode is not None, "it did not end"
    return process.exitcode


def steps_of(run: Path) -> int:
    """How many lines the run's metrics.jsonl has."""
    file = run / "metrics.jsonl"
    return file.read_text().count("\n") if file.is_file() else 0


def assert_equal_runs(one: Path, other: Path) -> None:
    """Bitwise: losses, last checkpoint, encoder."""
    assert lines_of(one) == lines_of(other)
    ours, theirs = (checkpoint.found(run / "checkpoints")[-1] for run in (one, other))
    assert ours.name == theirs.name and weights_of(ours) == weights_of(theirs)
    assert load_encoder(one).digest == load_encoder(other).digest


LONG = {"steps": 24, "save_every": 4, "health_every": 12}


def test_a_stopped_command_resumed_is_the_one_that_was_not(videos: Path, tmp_path: Path) -> None:
    """SIGTERM, then SIGKILL; resumed with OUT and DATA alone, or OUT alone: knobs come from config.yaml."""
    whole, run, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert tubelet(*words(f"pretrain vjepa --data {videos} --out {whole}", momentum="0.9,1", **LONG)) == 0
    first = words(f"pretrain vjepa --data {videos} --out {run}", momentum="0.9,1", **LONG)
    assert stopped(first, signal.SIGTERM, lambda: steps_of(run) >= 3, log) == 128 + signal.SIGTERM
    assert "go on with --resume" in log.read_text()
    again = ["pretrain", "vjepa", "--out", str(run), "--resume"]
    at = steps_of(run)
    assert stopped(again, signal.SIGKILL, lambda: steps_of(run) >= at + 6, log) == -signal.SIGKILL
    assert tubelet(*again, "--data", str(videos), "--workers", "1", "--save-every", "9") == 0
    assert_equal_runs(run, whole)
    with (run / "data_report.csv").open() as file:  # the sessions' counts add up, but for what the kill lost
        assert 30 <= sum(int(row["clips"]) for row in csv.DictReader(file)) <= 60
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix != ".log"}
    assert tubelet(*again) == 0
    changed = {p for p, b in before.items() if p.read_bytes() != b}
    assert changed <= {run / "run.json", run / "report.html", run / "encoder" / "encoder.json"}


@pytest.mark.parametrize("place", ["stage 1", "between", "stage 2"])
def test_salt_killed_in_any_stage(place: str, videos: Path, tmp_path: Path, whole_salt: Path) -> None:
    run = tmp_path / "run"
    wait = {
        "stage 1": lambda: steps_of(run / "teacher") >= 5,
        "between": lambda: (run / "teacher" / "run.json").is_file(),
        "stage 2": lambda: steps_of(run) >= 7,
    }[place]
    first = words(f"pretrain salt --data {videos} --out {run}", teacher_model="96x1x3", **LONG)
    assert stopped(first, signal.SIGKILL, wait, tmp_path / "log") == -signal.SIGKILL
    again = ["pretrain", "salt", "--out", str(run), "--resume"]
    assert tubelet(*again, "--predictor-depth", "3") == cli.USER_ERROR
    assert tubelet(*again) == 0
    assert_equal_runs(run / "teacher", whole_salt / "teacher")
    assert_equal_runs(run, whole_salt)


@pytest.fixture(scope="module")
def whole_salt(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert tubelet(*words(f"pretrain salt --data {videos} --out {out}", teacher_model="96x1x3", **LONG)) == 0
    return out


# -- from an encoder, over processes -----------------------------------------------------------------------


def test_another_method_goes_on_from_an_encoder(
    runs: Callable[[str], Path], videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its size, weights and positions hold; what is new is said; knobs that were open follow its size."""
    run, source = tmp_path / "run", runs("salt-wide") / "encoder-teacher"
    command = words(
        f"pretrain vjepa --data {videos} --out {run} --init-from {source}", lr=1e-30, weight_decay=0
    )
    command[command.index("--model") : command.index("--model") + 2] = []
    with caplog.at_level("INFO", "tubelet"):
        assert tubelet(*command) == 0
    said = next(m for m in caplog.messages if "init" in m or str(source) in m)
    assert (
        "rotary" in said
        and "salt-teacher, step 1" in said
        and "predictor" in said
        and "teacher" not in said.split("new")[1]
    )
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["chosen"]["model"] == "96x1x3" and config["chosen"]["reasons"]["model"] == "init_from's"
    began, ended = (
        load_encoder(source).model.state_dict(),
        load_encoder(run, which="student").model.state_dict(),
    )
    assert all(torch.allclose(ended[name], tensor, atol=1e-6) for name, tensor in began.items())
    origin = load_encoder(run).provenance
    assert origin["init_from"] == str(source) and origin["licence"] == "yours: trained from scratch"
    assert origin["began_from"] == "teacher"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "more", "stages"),
    [
        ("salt", {}, ("teacher", ".")),
        ("layerlock", {"model": "48x4x3", "pixel_steps": 1, "interval": 1, "restart": 0}, (".",)),
    ],
)
def test_torchrun_equals_micro_batches(
    recipe: str, more: dict[str, Any], stages: tuple[str, ...], videos: Path, tmp_path: Path
) -> None:
    """Two gloo processes and one with micro_batches=2, both stages of SALT, and LayerLock across its locks.

    Clips and draws are the same.
    """
    two, one = tmp_path / "two", tmp_path / "one"
    shared = {"batch_size": 4, "save_every": 2, "lr": 1e-3}
    command = words(f"pretrain {recipe} --data {videos} --out {two}", **shared, **more)
    launcher = "-m torch.distributed.run --nproc-per-node 2 --master-port"
    done = subprocess.Popen(
        [sys.executable, *launcher.split(), str(free_port()), "-m", "tubelet", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = done.communicate(timeout=120)
    finally:
        done.terminate()  # it ends its own children
    assert done.returncode == 0, said[-3000:]
    assert tubelet(*[str(one) if w == str(two) else w for w in command], "--micro-batches", "2") == 0
    for folder in stages:
        ours, theirs = (
            [row["train/loss"] for row in lines_of(run / folder) if "train/loss" in row] for run in (two, one)
        )
        assert ours == pytest.approx(theirs, abs=2e-5) and len(ours) >= 1
    assert (two / "report.html").is_file() and json.loads((two / "env.json").read_text())["processes"] == 2
    for folder in stages:
        ours, theirs = (load_file(run / folder / "encoder" / "model.safetensors") for run in (two, one))
        assert all((ours[key] - theirs[key]).abs().max() < 2e-5 for key in theirs)


def test_frames_as_images_and_stretches_train(tmp_path: Path) -> None:
    """Folders of images have no rate; stretches of one video are as long as the list says, not as the file."""
    from video import write_images

    for number in range(2):
        write_images(tmp_path / "images" / str(number), 6)
    write_video(tmp_path / "long.mp4", 200, size=(48, 40))
    rows = ["path,start,end", "long.mp4,0,0.2", "long.mp4,1,1.2", "long.mp4,2,2.2"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    for data, most in ((tmp_path / "images", 2), (tmp_path / "list.csv", 2)):
        run = tmp_path / f"run-{data.name}"
        command = words(f"pretrain videomae --data {data} --out {run}", steps=1)
        command[command.index("--batch-size") : command.index("--batch-size") + 2] = []
        assert tubelet(*command) == 0
        assert yaml.safe_load((run / "config.yaml").read_text())["chosen"]["batch_size"] == most
        shutil.rmtree(run)
