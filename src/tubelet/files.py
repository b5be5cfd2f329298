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
from typing import Any

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

    Raises UserError if the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
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
    path.parent.mkdir(parents=True, exist_ok=True)
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


def _explained(error: OSError, path: Path) -> OSError | UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no room left on disk to write {path}; free some space, nothing was replaced")
    if error.errno in (errno.EACCES, errno.EROFS):
        return UserError(f"{path} cannot be written: {error.strerror}; choose a folder you may write to")
    return error
