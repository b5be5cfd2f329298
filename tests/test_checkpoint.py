"""Checkpoints are whole or absent, and damage is named."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toy import METHODS, Locking, OneLoss, ToyStream, learn, lines_of, settings, weights_of

from tubelet import tensors
from tubelet.errors import UserError
from tubelet.train import checkpoint
from tubelet.train.folder import sole_owner
from tubelet.train.loop import train
from tubelet.train.schedule import Constant


def names(run: Path) -> list[str]:
    """Everything in the checkpoints folder."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_layout_and_what_is_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    summary = learn(OneLoss(), run, save_every=2, keep=2, keep_every=6)
    assert names(run) == ["last", "step-000006", "step-000010", "step-000012"]
    assert (run / "checkpoints/last").read_text() == "step-000012\n"
    assert summary.checkpoint == run / "checkpoints/step-000012"
    assert (summary.checkpoint / "encoder/weights").stat().st_size == 1000
    state = json.loads((summary.checkpoint / "state.json").read_text())
    assert state["step"] == 12 and state["torch"] == torch.__version__
    assert state["knobs"]["model"] == "toy"
    assert set(state["files"]) == {"method.safetensors", "optimizer.safetensors", "encoder/weights"}


def test_a_step_shorter_than_save_every_is_saved_at_the_end(tmp_path: Path) -> None:
    learn(OneLoss(), tmp_path, save_every=1000)
    assert names(tmp_path) == ["last", "step-000012"]


def test_prune_never_removes_the_newest(tmp_path: Path) -> None:
    for step in (2, 4, 9, 10):
        (tmp_path / f"step-{step:06d}").mkdir()
    (tmp_path / "step-notes").mkdir()
    checkpoint.prune(tmp_path, keep=1, keep_every=4)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["step-000004", "step-000010"]
    assert (tmp_path / "step-notes").is_dir()


def test_tied_parameters_are_saved_and_read_back(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    path = checkpoint.save(tmp_path, 3, module.state_dict(), {}, {})
    tensors, _ = checkpoint.read_tensors(path)
    assert tensors.keys() == module.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in module.state_dict().items())


def truncate(path: Path) -> None:
    """Cut in half."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Change one byte in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


WITH_CHECKSUM = ["method.safetensors", "optimizer.safetensors", "encoder/weights"]


@pytest.mark.parametrize(
    ("file", "damage"),
    [(file, damage) for file in [*WITH_CHECKSUM, "state.json"] for damage in (truncate, Path.unlink)]
    + [(file, flip) for file in WITH_CHECKSUM],
)
def test_damage_is_named_with_the_newest_whole_checkpoint(tmp_path: Path, file: str, damage: Any) -> None:
    run = tmp_path / "run"
    learn(OneLoss(), run)
    newest, whole = run / "checkpoints/step-000012", run / "checkpoints/step-000008"
    damage(newest / file)
    before = lines_of(run)
    with pytest.raises(UserError) as error:
        learn(OneLoss(), run, resume=True)
    assert str(newest / file) in str(error.value) and f"whole checkpoint is {whole}" in str(error.value)
    assert lines_of(run) == before

    shutil.rmtree(newest)  # the cure that the message names
    learn(OneLoss(), run, resume=True)
    learn(OneLoss(), tmp_path / "undisturbed")
    assert weights_of(newest) == weights_of(tmp_path / "undisturbed/checkpoints/step-000012")


def test_no_whole_checkpoint_at_all(tmp_path: Path) -> None:
    learn(OneLoss(), tmp_path)
    for path in checkpoint.found(tmp_path / "checkpoints"):
        truncate(path / "method.safetensors")
    with pytest.raises(UserError, match=r"method.safetensors is damaged.*no other whole checkpoint"):
        learn(OneLoss(), tmp_path, resume=True)


def fill_disk(monkeypatch: pytest.MonkeyPatch, what: str, after: int) -> None:
    """Call number ``after`` of ``what`` finds the disk full."""
    calls = 0
    original = {"save_file": tensors.save_file, "fsync": os.fsync, "replace": os.replace}[what]

    def full(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args, **kwargs)

    target = tensors if what == "save_file" else os
    monkeypatch.setattr(target, what, full)


@pytest.mark.parametrize(
    ("what", "after"), [("save_file", 3), ("save_file", 4), ("fsync", 12), ("replace", 5)]
)
def test_full_disk_leaves_earlier_checkpoints(
    what: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        fill_disk(patch, what, after)
        with pytest.raises(UserError, match=r"(?i)(no room|no space) left.*go on with --resume"):
            learn(OneLoss(), run)
    kept = [name for name in names(run) if name != "last"]
    assert kept and all(name.startswith("step-") for name in kept)
    learn(OneLoss(), run, resume=True)
    learn(OneLoss(), tmp_path / "undisturbed")
    assert weights_of(run / "checkpoints/step-000012") == weights_of(
        tmp_path / "undisturbed/checkpoints/step-000012"
    )
    assert lines_of(run) == lines_of(tmp_path / "undisturbed")


def test_full_disk_for_real(tmp_path: Path) -> None:
    """On a file system of 400 kB, where the second checkpoint does not fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        with pytest.raises(UserError) as error:
            learn(OneLoss(), disk / "run", steps=40, save_every=1, keep=100)
        left = checkpoint.found(disk / "run/checkpoints")
        assert left and str(left[-1]) in str(error.value) and "--resume" in str(error.value)
        checkpoint.read_state(left[-1])
        assert names(disk / "run") == ["last", *[path.name for path in left]]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_full_disk_while_logging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tubelet.train.report import Report

    original = Report.write

    def full(self: Report, step: int, metrics: Any) -> None:
        if step == 6:
            monkeypatch.setattr(self, "metrics", FileIO("/dev/full", "w"))
        original(self, step, metrics)

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    monkeypatch.setattr(Report, "write", full)
    with pytest.raises(UserError, match=r"could not be written at step 6.*--resume"):
        learn(OneLoss(), tmp_path)
    assert "step-000004" in names(tmp_path)


def test_a_new_run_never_writes_over_another(tmp_path: Path) -> None:
    learn(OneLoss(), tmp_path)
    before = lines_of(tmp_path)
    with pytest.raises(UserError, match=r"already holds a run \(step-000012\); add --resume"):
        learn(OneLoss(), tmp_path)
    assert lines_of(tmp_path) == before


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        learn(OneLoss(), tmp_path / "run", resume=True)


def test_resume_with_changed_knobs_names_each(tmp_path: Path) -> None:
    learn(OneLoss(), tmp_path)

    def again(knobs: dict[str, Any], **changes: Any) -> None:
        train(OneLoss(), ToyStream(), settings(**changes), tmp_path, knobs=knobs, resume=True)

    with pytest.raises(
        UserError, match="frames is 8 and was not given then; model was 'toy' and is 'vit' now"
    ):
        again({"model": "vit", "frames": 8, "workers": 3})
    with pytest.raises(UserError, match="model was 'toy' and is not given now"):
        again({})
    with pytest.raises(
        UserError, match=r"lr was {'schedule': 'WarmupCosine'.* and is {'schedule': 'Constant'"
    ):
        again({"model": "toy"}, lr=Constant(0.1))
    with pytest.raises(UserError, match="steps was 12 and is 20 now"):
        again({"model": "toy"}, steps=20)
    again({"model": "toy", "workers": 3, "out": "elsewhere"}, save_every=7, log_every=2, keep=9)


def test_a_model_of_another_size_is_refused_with_the_parameter(tmp_path: Path) -> None:
    learn(OneLoss(), tmp_path / "one")
    with pytest.raises(UserError, match=r'has no "heads.0.bias"|has "head.bias", unknown here'):
        learn(Locking(), tmp_path / "one", resume=True)
    narrow = OneLoss()
    narrow.head = nn.Linear(48, 5)
    with pytest.raises(UserError, match=r'"head.bias" of shape \(48,\), here it is \(5,\)'):
        learn(narrow, tmp_path / "one", resume=True)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with sole_owner(tmp_path), pytest.raises(UserError, match="another process is training in"):
        learn(OneLoss(), tmp_path)
    learn(OneLoss(), tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another out"):
        learn(OneLoss(), tmp_path / "file" / "run")


def test_what_a_kill_left_unfinished_is_cleared(tmp_path: Path) -> None:
    learn(OneLoss(), tmp_path)
    (tmp_path / "checkpoints/.step-000016.tmp-77").mkdir()
    (tmp_path / "checkpoints/.step-000004.old-77").mkdir()
    (tmp_path / "checkpoints/.last.tmp-77").write_text("")
    learn(OneLoss(), tmp_path, resume=True)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["last", "step-000008", "step-000012"]


@pytest.mark.parametrize("name", METHODS)
def test_checkpoint_keys_do_not_depend_on_the_step(name: str, tmp_path: Path) -> None:
    learn(METHODS[name](), tmp_path, save_every=4, keep=3)
    keys = [
        [set(part) for part in checkpoint.read_tensors(p)] for p in checkpoint.found(tmp_path / "checkpoints")
    ]
    assert len(keys) == 3 and keys[0] == keys[1] == keys[2]
