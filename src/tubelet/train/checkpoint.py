"""Checkpoints that are exact, and whole or absent.

``checkpoints/step-000500/`` is the state after 500 steps: ``method.safetensors``, ``optimizer.safetensors``,
whatever the caller adds (an encoder folder), and ``state.json`` with the step, the knobs, what was spent, and
size and checksum of every other file. No generator state: randomness is derived from the seed and the step.
``last`` is a text file with the newest one's name, for people and scripts; nothing here depends on it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tubelet.errors import UserError
from tubelet.files import replace_folder, write_text
from tubelet.tensors import write_tensors

FORMAT = 1
_NAME = re.compile(r"step-(\d+)")
_CHUNK = 2**20


def found(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, oldest first; whole unless the disk damaged them."""
    names = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(names, key=step_of)


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` steps lies in ``folder``."""
    return folder / f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """How many steps had been taken, from the folder's name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match, f"{checkpoint} is not named like a checkpoint"
    return int(match[1])


def save(
    folder: Path,
    step: int,
    method: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    on_save: Callable[[Path, int], None] | None = None,
) -> Path:
    """Write the checkpoint of ``step`` into ``folder``; it appears under its name only once it is on disk.

    on_save(folder, step): writes further files into the unfinished checkpoint. Raises UserError if something
    cannot be written (a full disk); nothing of it stays, and earlier checkpoints are untouched.
    """
    target = step_path(folder, step)
    assert not target.exists(), f"{target} is there already"
    earlier = found(folder)
    try:
        with replace_folder(target) as draft:
            write_tensors(draft / "method.safetensors", method)
            write_tensors(draft / "optimizer.safetensors", optimizer)
            if on_save is not None:
                on_save(draft, step)
            about = {
                "format": FORMAT,
                "step": step,
                "torch": torch.__version__,
                **state,
                "files": {
                    path.relative_to(draft).as_posix(): {"bytes": path.stat().st_size, "crc32": _crc32(path)}
                    for path in sorted(draft.rglob("*"))
                    if path.is_file()
                },
            }
            (draft / "state.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        write_text(folder / "last", target.name + "\n")
    except (OSError, SafetensorError, UserError) as error:
        last = f"the last whole checkpoint is {earlier[-1]}" if earlier else "there is no earlier checkpoint"
        raise UserError(
            f"{target} could not be saved: {error}. {last}; "
            "mend that (free some space, if the disk is full) and go on with --resume"
        ) from error
    return target


def prune(folder: Path, keep: int, keep_every: int = 0) -> None:
    """Remove all but the ``keep`` newest checkpoints and those at multiples of ``keep_every`` (0: none)."""
    assert keep >= 1, "the newest checkpoint is never removed"
    for path in found(folder)[:-keep]:
        if keep_every and step_of(path) % keep_every == 0:
            continue
        # renamed first: killed half-way through, it must not look like a checkpoint
        gone = path.with_name(f".{path.name}.old-{os.getpid()}")
        os.replace(path, gone)
        shutil.rmtree(gone)


def clear_drafts(folder: Path) -> None:
    """Remove what a killed process left unfinished in ``folder``."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path)
    for path in folder.glob(".last.tmp-*"):
        path.unlink()


def read_state(checkpoint: Path) -> dict[str, Any]:
    """``state.json`` after every file's size and checksum have been found right.

    Raises UserError naming the damaged file, and the newest checkpoint beside it that is whole.
    """
    damage = _damage(checkpoint)
    if damage:
        others = [path for path in reversed(found(checkpoint.parent)) if path != checkpoint]
        whole = next((path for path in others if not _damage(path)), None)
        cure = (
            f"the newest whole checkpoint is {whole}: remove {checkpoint} and go on from there with --resume"
            if whole
            else "there is no other whole checkpoint: start again in another folder"
        )
        raise UserError(f"{damage}; {cure}")
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def read_tensors(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Method and optimizer state of a checkpoint that `read_state` found whole, on the CPU."""
    return load_file(checkpoint / "method.safetensors"), load_file(checkpoint / "optimizer.safetensors")


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    about = checkpoint / "state.json"
    if not about.is_file():
        return f"{about} is missing"
    try:
        state = json.loads(about.read_text(encoding="utf-8"))
        files = state["files"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return f"{about} is damaged"
    if state["format"] != FORMAT:
        return f"{about} is of format {state['format']}, this version reads {FORMAT}"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{path} is damaged: it has {path.stat().st_size} bytes of {expected['bytes']}"
        if _crc32(path) != expected["crc32"]:
            return f"{path} is damaged: its checksum is wrong"
    return None


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value
