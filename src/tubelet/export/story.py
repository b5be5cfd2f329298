"""What a run folder knows of its encoder beside the weights: what it cost, and how it was evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tubelet.files import read_json

# of the many metrics of a probe, those that are quoted
QUOTED = ("top1", "macro_recall", "map", "hit@1", "r2", "mae")


@dataclass(frozen=True)
class Score:
    """One number of one evaluation. low, high: of its 95 % interval, or None."""

    task: str
    kind: str
    metric: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Story:
    """cost: steps, clips, seconds, train_flops, as far as they are known. scores: of this very encoder."""

    cost: dict[str, float] | None = None
    scores: tuple[Score, ...] = ()


def story_of(path: Path | str, digest: str) -> Story:
    """What can be found around the encoder ``path``: a run, its encoder/ folder, or one of its checkpoints.

    digest: of the encoder; evaluations of another (other blocks, another step) are not its own and are left out.
    Empty for anything that is no folder. Raises UserError if a record is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        return Story()
    place = path.parent if (path / "encoder.json").is_file() else path
    run = place.parent.parent if place.parent.name == "checkpoints" else place
    files = sorted(run.glob("eval/*/results.json"))
    scores = [score for file in files for score in _scores(read_json(file), digest)]
    return Story(_cost(place, run), tuple(scores))


def _cost(place: Path, run: Path) -> dict[str, float] | None:
    """Of a checkpoint what it had cost until then, else of the whole run."""
    if (place / "state.json").is_file():
        state = read_json(place / "state.json")
        spent = {**state.get("spent", {}), **({"steps": state["step"]} if "step" in state else {})}
    elif (run / "run.json").is_file():
        spent = read_json(run / "run.json")
    else:
        return None
    if isinstance(flops := spent.get("flops"), dict):
        spent["train_flops"] = sum(flops.values())
    return {
        name: spent[name] for name in ("steps", "clips", "seconds", "train_flops") if name in spent
    } or None


def _scores(record: dict[str, Any], digest: str) -> list[Score]:
    if record.get("encoder", {}).get("digest") != digest:
        return []
    data = PurePath(str(record.get("data", "unknown")))
    task = data.parent.name if data.stem in ("labels", "manifest") else data.stem
    kind = record.get("kind", "retrieval")
    if record.get("headline_labels"):
        kind += f", {record['headline_labels']} labels"
    if "metrics" in record:
        found = {name: (one["value"], one["low"], one["high"]) for name, one in record["metrics"].items()}
    else:
        none = [None, None]
        found = {
            name: (record[name], *record["intervals"].get(name, none)) for name in QUOTED if name in record
        }
    return [
        Score(task, kind, name, value, low, high)
        for name, (value, low, high) in found.items()
        if name.split("@k")[0] in QUOTED and value is not None and math.isfinite(value)
    ]
