"""How far the runs of a comparison are, by what they have left on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tubelet.compare.plan import Run
from tubelet.evaluate.comparison import read_record

TAIL = 4096  # bytes at the end of metrics.jsonl that its last line is in


def trained(out: Path, run: Run) -> bool:
    """Whether the run has finished, with all its stages."""
    return bool(about(out / run.folder).get("finished"))


def done_share(out: Path, run: Run) -> float:
    """How much of a run's steps is done, in all its stages."""
    folder = out / run.folder
    if trained(out, run):
        return 1.0
    steps = 0
    for stage in (folder, *folder.glob("*/")):
        row = last_row(stage) if (stage / "metrics.jsonl").is_file() else None
        steps += int(row["step"]) + 1 if row else 0
    return min(steps / run.planned.steps, 0.999)


def last_row(folder: Path) -> dict[str, float] | None:
    """The last whole line of a run's metrics.jsonl that has a loss, or None."""
    try:
        with (folder / "metrics.jsonl").open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # half a line: being written, or cut by the window
        if isinstance(row, dict) and row.get("train/loss") is not None:
            return row
    return None


def about(folder: Path) -> dict[str, Any]:
    """A run's run.json; empty while there is none. Raises UserError if it is damaged."""
    return read_record(folder / "run.json")
