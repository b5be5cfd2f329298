"""Something-Something v2 (arXiv 1706.04261; 174 classes): what is done, whatever it is done with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tubelet.errors import UserError, nearest

from ..manifest import Manifest
from .parse import items, read_json, read_lines
from .places import VIDEOS, Places, official_file, required_file
from .rows import Row, manifest_of

ROOTS = ("20bn-something-something-v2", "videos/20bn-something-something-v2", *VIDEOS)


def read_ssv2(folder: Path, variant: str) -> Manifest:
    """Train and validation rows, on which the papers report; variant "test" adds the test split and its answers.

    Files: `labels.json` ({class: "number"}), `train.json` and `validation.json` (lists of objects with id, label,
    template, placeholders), `test.json` (ids alone) and `test-answers.csv` (`id;class`), each also under its
    older name `something-something-v2-....json`. The class is the template without its brackets. Videos: `ID.webm`.
    Raises UserError for files that are absent or not of this form.
    """
    labels_file = _file(folder, "labels.json")
    classes = read_json(labels_file, dict, "an object of class names and numbers")

    def known(where: str, name: str) -> str:
        if name not in classes:
            raise UserError(
                f'{where}: the class "{name}" is not in {labels_file.name}{nearest(name, classes)}'
            )
        return name

    def rows() -> Iterator[Row]:
        for split, name in (("train", "train.json"), ("val", "validation.json")):
            file = _file(folder, name)
            values = read_json(file, list, "a list of objects with id and template")
            for where, item in items(file, values, ("id", "template")):
                label = known(where, str(item["template"]).replace("[", "").replace("]", ""))
                yield Row([str(item["id"])], label, split, where, extra=_told(item))
        if variant:
            yield from _test(folder, known)

    return manifest_of(rows(), Places(folder, ROOTS), folder, ".webm")


def _test(folder: Path, known: Callable[[str, str], str]) -> Iterator[Row]:
    file = _file(folder, "test.json")
    answers_file = official_file(folder, ["test-answers.csv", "something-something-v2-test-answers.csv"])
    answers: dict[str, str] = {}
    if answers_file is not None:
        for where, (name, label) in read_lines(answers_file, ";", 2, "id;class"):
            answers[name] = known(where, label)
    for where, item in items(file, read_json(file, list, "a list of objects with id"), ("id",)):
        yield Row([str(item["id"])], answers.get(str(item["id"])), "test", where)


def _told(item: dict[str, Any]) -> dict[str, str]:
    return {"text": str(item["label"])} if item.get("label") else {}


def _file(folder: Path, name: str) -> Path:
    return required_file(folder, [name, f"something-something-v2-{name}"], "Something-Something v2")
