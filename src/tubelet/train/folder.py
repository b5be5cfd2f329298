"""Who may write into a run folder: one process, that starts a new run or goes on with the same one."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tubelet.errors import UserError
from tubelet.train import checkpoint

# knobs that change neither the losses nor the weights (device: only their last digits)
WRITING = {"out", "save_every", "keep", "keep_every", "log_every", "monitor_every", "tensorboard"}
MAY_CHANGE = frozenset({"resume", "workers", "device", *WRITING})


@contextmanager
def sole_owner(run: Path) -> Iterator[None]:
    """Hold ``run``, made if it is not there; the hold ends with the process, however it dies.

    Raises UserError if another process trains in it, or if it cannot be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        handle = open(run / ".lock", "a", encoding="utf-8")  # noqa: SIM115, closed below
    except OSError as error:
        raise UserError(f"{run} cannot be written: {error.strerror}; choose another out") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is training in {run}; wait for it or choose another out"
            ) from error
        yield


def enter(run: Path, resume: bool) -> dict[str, Any] | None:
    """The state to go on from, or None for a new run; what a killed process left unfinished is removed.

    Raises UserError if there is a run and ``resume`` was not asked for, or the other way round, or if the
    newest checkpoint is damaged.
    """
    refuse_entry(run, resume)
    folder = run / "checkpoints"
    there = checkpoint.found(folder)
    checkpoint.clear_drafts(folder)
    return checkpoint.read_state(there[-1]) if there else None


def read_branch(path: Path, total: int) -> dict[str, Any]:
    """The state of a checkpoint that a new run of ``total`` steps goes on from; nothing is written.

    Raises UserError if it is no whole checkpoint, or if no step would be left.
    """
    if not (path / "state.json").is_file():
        raise UserError(
            f"branch_from={path} is no checkpoint (no state.json in it); name a folder such as "
            "RUN/checkpoints/step-000500"
        )
    state = checkpoint.read_state(path)
    if state["step"] >= total:
        raise UserError(
            f"branch_from={path} was taken at step {state['step']}: nothing is left of {total} steps; raise steps"
        )
    return state


def refuse_entry(run: Path, resume: bool) -> None:
    """Raises UserError if ``run`` holds a run and ``resume`` was not asked for, or the other way round.

    It writes nothing: callers ask before they have read data or made a folder.
    """
    there = checkpoint.found(run / "checkpoints")
    if resume and not there:
        raise UserError(
            f"{run} has no checkpoint to resume from (nothing was saved there yet); start without --resume"
        )
    if there and not resume:
        raise UserError(
            f"{run} already holds a run ({there[-1].name}); add --resume to go on with it, "
            "or choose another out to start a new one"
        )


def refuse_changes(
    run: Path, saved: Mapping[str, Any], knobs: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Raises UserError naming each difference between a saved run and what it is to be resumed with."""
    # what the user chose first: settings mostly follow from it, and would say the same in other words
    changed = differences(saved["knobs"], knobs, MAY_CHANGE) or differences(
        saved["settings"], settings, MAY_CHANGE
    )
    if changed:
        raise UserError(
            f"{run} cannot be resumed with other knobs: {'; '.join(changed)}. "
            "Give what it was started with, or start a new run with another out"
        )


def differences(saved: Mapping[str, Any], given: Mapping[str, Any], allowed: Collection[str]) -> list[str]:
    """One sentence per knob that is not as it was saved, except those ``allowed`` to change."""
    saved, given = plain(saved), plain(given)
    lines = []
    for name in sorted((saved.keys() | given.keys()) - set(allowed)):
        if name not in given:
            lines.append(f"{name} was {saved[name]!r} and is not given now")
        elif name not in saved:
            lines.append(f"{name} is {given[name]!r} and was not given then")
        elif saved[name] != given[name]:
            lines.append(f"{name} was {saved[name]!r} and is {given[name]!r} now")
    return lines


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` as JSON gives them back: tuples become lists, paths strings."""
    return json.loads(json.dumps(dict(values), default=str))
