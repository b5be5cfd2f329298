"""Jester v1 (ICCVW 2019): 27 hand gestures before a camera."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tubelet.errors import UserError, nearest

from ..manifest import Manifest
from .parse import read_lines
from .places import VIDEOS, Places, official_file, required_file
from .rows import Row, manifest_of

ROOTS = ("20bn-jester-v1", "rawframes", *VIDEOS)
FPS = 12.0  # of the frames, as the data set's page says


def read_jester(folder: Path, variant: str) -> Manifest:
    """Train and validation rows; variant "test" adds the test split, whose labels were published later, if at all.

    Files: `jester-v1-labels.csv` (one class per line), `jester-v1-train.csv` and `jester-v1-validation.csv`
    (`id;class`), `jester-v1-test.csv` (ids) and `jester-v1-test-answers.csv` (`id;class`), each also without
    `jester-v1-` (in labels/, as later releases have it). Videos: folders ID/00001.jpg ... of frames at 12 a second.
    Raises UserError for files that are absent or not of this form.
    """
    labels = _file(folder, "labels.csv")
    classes = {name for _, (name,) in read_lines(labels, "\n", 1, "class")}

    def known(where: str, name: str) -> str:
        if name not in classes:
            raise UserError(f'{where}: the class "{name}" is not in {labels.name}{nearest(name, classes)}')
        return name

    def rows() -> Iterator[Row]:
        for split, file in (("train", "train.csv"), ("val", "validation.csv")):
            for where, (name, label) in read_lines(_file(folder, file), ";", 2, "id;class"):
                yield Row([name], known(where, label), split, where, fps=FPS)
        if variant:
            answers: dict[str, str] = {}
            answered = official_file(folder, ["jester-v1-test-answers.csv", "test-answers.csv"])
            if answered is not None:
                for where, (name, label) in read_lines(answered, ";", 2, "id;class"):
                    answers[name] = known(where, label)
            for where, (line,) in read_lines(_file(folder, "test.csv"), "\n", 1, "id"):
                name = line.partition(";")[0].strip()
                yield Row([name], answers.get(name), "test", where, fps=FPS)

    return manifest_of(rows(), Places(folder, ROOTS), folder, "")


def _file(folder: Path, name: str) -> Path:
    return required_file(folder, [f"jester-v1-{name}", name], "Jester", ("", "labels", "annotations"))
