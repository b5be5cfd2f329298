"""Official files as Python values; what is not of the official form is an error that names file and place."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tubelet.errors import UserError


def read_text(file: Path) -> str:
    """The text of ``file``; raises UserError if it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def read_json(file: Path, kind: type, expected: str) -> Any:
    """The JSON value in ``file``, of type ``kind``; raises UserError, saying what was ``expected``."""
    try:
        value = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: not JSON ({error.msg}); expected {expected}") from None
    if not isinstance(value, kind):
        raise UserError(f"{file} holds a JSON {_json_name(value)}; expected {expected}")
    return value


def items(file: Path, values: list[Any], keys: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each object of a JSON list stands, and the object; raises UserError if one lacks any of ``keys``."""
    for number, value in enumerate(values, 1):
        where = f"{file}, entry {number}"
        check(where, value, keys)
        yield where, value


def check(where: str, value: Any, keys: Sequence[str]) -> None:
    """Raises UserError unless ``value`` is a JSON object with all of ``keys``."""
    if not isinstance(value, dict):
        raise UserError(f"{where} is a JSON {_json_name(value)}; expected an object with {', '.join(keys)}")
    if absent := [key for key in keys if key not in value]:
        has = ", ".join(map(str, value)) or "nothing"
        raise UserError(f'{where} has no "{absent[0]}"; expected {", ".join(keys)}, found {has}')


def read_table(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row of a headed CSV stands, and the row; raises UserError if a column or a value is absent."""
    reader = csv.DictReader(read_text(file).splitlines(keepends=True))
    found = reader.fieldnames or []
    if absent := [name for name in columns if name not in found]:
        raise UserError(
            f'{file} has no column "{absent[0]}", only {", ".join(found) or "nothing"}; expected '
            f"{','.join(columns)}"
        )
    for row in reader:
        where = f"{file}, line {reader.line_num}"
        if empty := [name for name in columns if not row[name]]:
            raise UserError(f'{where}: "{empty[0]}" is empty; expected {",".join(columns)}')
        yield where, row


def read_lines(file: Path, separator: str | None, count: int, form: str) -> Iterator[tuple[str, list[str]]]:
    """Where each line stands, and its ``count`` words, cut from the left; raises UserError, saying the ``form``."""
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        words = [word.strip() for word in line.strip().split(separator, count - 1)]
        where = f"{file}, line {number}"
        if len(words) < count or not all(words):
            raise UserError(f'{where}: "{line.strip()[:80]}" is not of the form {form}')
        yield where, words


def number(where: str, name: str, value: Any) -> float:
    """A finite number; raises UserError for anything else."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"{where}: {name} must be a number, not {value!r}")
    return found


def _json_name(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
