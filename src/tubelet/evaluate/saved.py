"""What a probe said of every clip, as a CSV: written by whoever probes, read again by whoever compares."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.data.manifest import Video
from tubelet.errors import UserError
from tubelet.evaluate.metrics import Answers, Predictions, RealPredictions
from tubelet.evaluate.tasks import read_number
from tubelet.files import replace_file

PREDICTIONS = "predictions.csv"
_COLUMNS = ("path", "group", "probe", "draw", "label", "predicted")


@dataclass(frozen=True)
class SavedPredictions:
    """Predictions as they were written, with all that scoring them again needs.

    clips: names of the clips, sorted; the ``clip`` of every prediction is a place in it. group: [clips] of names,
    or None. classes: names; empty for labels that are numbers. answers: by suffix, "" or "@k5".
    """

    clips: tuple[str, ...]
    group: np.ndarray | None
    classes: tuple[str, ...]
    answers: dict[str, Answers]


def write_predictions(
    file: Path,
    kind: str,
    clips: Sequence[Video],
    group: np.ndarray | None,
    classes: Sequence[str],
    answers: dict[str, Answers],
) -> None:
    """Writes a row per prediction: path, group, probe, draw, label, predicted, and p_CLASS for every class.

    clips, group: of the task. Stretches of videos have their start and end too. Numbers are written so that
    reading gives back the same, bit by bit. The file is whole or absent.
    """
    stretches = any(clip.start is not None or clip.end is not None for clip in clips)
    ends = ("start", "end") if stretches else ()
    with replace_file(file) as draft, draft.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow([*_COLUMNS, *ends, *(f"p_{name}" for name in classes)])
        for suffix, made in answers.items():
            for place, clip in enumerate(made.clip):
                video, own = clips[clip], "" if group is None else group[clip]
                said = _said(made, place, classes)
                bounds = ["" if getattr(video, end) is None else repr(getattr(video, end)) for end in ends]
                scores = made.scores[place].tolist() if isinstance(made, Predictions) else []
                row = [str(video.path), own, kind + suffix, int(made.draw[place]), *said, *bounds]
                writer.writerow([*row, *map(repr, scores)])


def read_predictions(
    folder: Path | str, clips: Sequence[str] | None = None, name: str = PREDICTIONS
) -> SavedPredictions:
    """The predictions that a probe has written into ``folder``; they equal those that were written.

    clips: of another result, so that predictions of both can be paired (`metrics.difference`).
    Raises UserError if the file is missing, damaged, or has a clip that is not among ``clips``.
    """
    file = Path(folder) / name
    if not file.is_file():
        raise UserError(f"{folder} holds no {name}; name a folder that tubelet probe has written")
    with file.open(newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        if missing := [column for column in _COLUMNS if column not in (reader.fieldnames or ())]:
            raise UserError(f"{file} has no column {', '.join(missing)}; it was not written by tubelet probe")
        rows = list(reader)
        classes = tuple(c.removeprefix("p_") for c in reader.fieldnames or () if c.startswith("p_"))
    if not rows:
        raise UserError(f"{file} holds no prediction; probe again")
    names = _names(rows)
    places = {clip: place for place, clip in enumerate(sorted(set(names)) if clips is None else clips)}
    if strangers := [clip for clip in names if clip not in places]:
        raise UserError(
            f"{file} is about {strangers[0]}, which the other result does not have: they are not of the same data"
        )
    groups = np.array([""] * len(places), dtype=object)
    for row, clip in zip(rows, names, strict=True):
        groups[places[clip]] = row["group"]
    clip = np.array([places[clip] for clip in names])
    try:
        answers = _answers(rows, clip, classes)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); remove it and probe again") from error
    group = groups.astype(str) if any(groups) else None
    return SavedPredictions(tuple(places), group, classes, answers)


def _said(made: Answers, place: int, classes: Sequence[str]) -> list[str]:
    if isinstance(made, RealPredictions):
        return [repr(float(made.label[place])), repr(float(made.predicted[place]))]
    return [classes[int(made.label[place])], classes[int(made.scores[place].argmax())]]


def _names(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Each row's clip: its path, the stretch of it, and a number where a list has the very same clip twice."""
    seen: Counter[tuple[str, str, str]] = Counter()
    names: list[str] = []
    for row in rows:
        name = str(row["path"])
        if row.get("start") or row.get("end"):
            name += f" [{row['start']}, {row['end']}]"
        key = (name, row["probe"], row["draw"])
        seen[key] += 1
        names.append(name if seen[key] == 1 else f"{name} #{seen[key]}")
    return names


def _answers(rows: Sequence[dict[str, Any]], clip: np.ndarray, classes: Sequence[str]) -> dict[str, Answers]:
    probes = np.array([row["probe"] for row in rows])
    draw = np.array([int(row["draw"]) for row in rows])
    if not classes:
        label, predicted = (np.array([_number(row[name]) for row in rows]) for name in ("label", "predicted"))
        return {
            _suffix(probe): RealPredictions(clip[mine], draw[mine], label[mine], predicted[mine])
            for probe, mine in _parts(probes)
        }
    known = {name: place for place, name in enumerate(classes)}
    label = np.array([known[row["label"]] for row in rows])
    scores = np.array([[float(row[f"p_{name}"]) for name in classes] for row in rows])
    return {
        _suffix(probe): Predictions(clip[mine], draw[mine], label[mine], scores[mine])
        for probe, mine in _parts(probes)
    }


def _parts(probes: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [(str(probe), probes == probe) for probe in dict.fromkeys(probes)]


def _suffix(probe: str) -> str:
    """knn@k5 -> @k5"""
    return probe[probe.index("@") :] if "@" in probe else ""


def _number(text: str) -> float:
    value = read_number(text)
    if value is None:
        raise ValueError(f'"{text}" is not a number')
    return value
