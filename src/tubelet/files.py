"""Files that are whole or absent: everything is written under another name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tubelet.errors import UserError


def sync(path: Path) -> None:
    """Flushes a file or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success it takes its name, on failure nothing is left.

    Raises UserError if the disk is full, or if ``path`` is below a file or where nothing may be written.
    """
    path = Path(path)
    _make_parents(path)
    draft = path.with_name(f".{path.name}.tmp-{os.getpid()}-{threading.get_ident()}")
    try:
        yield draft
        sync(draft)
        os.replace(draft, path)
        sync(path.parent)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """As `replace_file`, for a folder of files: an earlier folder stays until the new one is complete."""
    path = Path(path)
    _make_parents(path)
    draft, old = (path.with_name(f".{path.name}.{kind}-{os.getpid()}") for kind in ("tmp", "old"))
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        yield draft
        for folder, _, names in os.walk(draft):
            for name in names:
                sync(Path(folder) / name)
            sync(Path(folder))
        if path.exists():
            os.replace(path, old)
        os.replace(draft, path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(draft, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with replace_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The names and values in a JSON file; raises UserError if it is missing, may not be read, or is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unread(path, error) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no names and values; it is damaged: copy it again")
    return content


def unread(path: Path, error: Exception) -> UserError:
    """What to say of a file that could not be read: that it is not there, not allowed, or damaged."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} is missing; copy it too")
    if isinstance(error, PermissionError):
        return UserError(f"{path} may not be read ({error.strerror or error}); ask for the right to read it")
    return UserError(f"{path} cannot be read ({error}); it is damaged or cut short: copy it again")


class Sink:
    """A file that takes bytes from a library of another language, which must not meet an exception in its midst.

    The first error is kept, and what comes after it is thrown away; `writing` raises it.
    """

    def __init__(self, handle: BinaryIO) -> None:
        self.handle = handle
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Bytes, or anything that has them; their number, always."""
        size = memoryview(data).nbytes
        if self.error is None:
            try:
                self.handle.write(data)
            except OSError as error:
                self.error = error
        return size

    def flush(self) -> None:
        """Nothing: `writing` does it."""


@contextmanager
def writing(path: Path) -> Iterator[Sink]:
    """The new file ``path`` as a `Sink`; raises its OSError, such as that of a full disk, once the library is done."""
    sink: Sink | None = None
    try:
        with path.open("wb") as handle:
            sink = Sink(handle)
            yield sink
    finally:
        if sink is not None and sink.error is not None:
            raise sink.error


def _make_parents(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        above = next(place for place in path.parents if os.path.lexists(place) and not place.is_dir())
        raise UserError(f"{path} cannot be written: {above} is no folder; choose another place") from error
    except OSError as error:
        raise _explained(error, path) from error


def _explained(error: OSError, path: Path) -> OSError | UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no room left on disk to write {path}; free some space, nothing was replaced")
    if error.errno in (errno.EACCES, errno.EROFS):
        return UserError(f"{path} cannot be written: {error.strerror}; choose a folder you may write to")
    return error
