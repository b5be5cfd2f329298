"""A folder of embeddings: a row per window, written as they come, whole or absent, and read back."""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from tubelet.errors import UserError
from tubelet.files import replace_file, replace_folder, sync, write_json

FORMAT = 1
ABOUT, WINDOWS, VECTORS, FAILURES = "embeddings.json", "windows.parquet", "vectors.npy", "failures.csv"
# what every reader of a table needs to know of it, and how it is written
NEEDED = {"encoder": dict, "layer": int, "windows": int, "width": int, "dtype": str}
# what tubelet embed says beside it; other tables may leave it out
SAID = {"clip": dict, "pool": str, "views": dict, "shape": list, "recipe": dict, "kept": str}
SAID |= {f"{what}_s": (int, float) for what in ("window", "stride")}
SAID |= {f"{what}_frames": int for what in ("window", "stride")}
PART = ".part"
Kept = Literal["parquet", "numpy", "both"]
KEPT: tuple[Kept, ...] = ("parquet", "numpy", "both")
GROUP_BYTES = 2**23  # of vectors in a row group of Parquet: what writing and reading hold in memory
GROUP_ROWS = 4096
NAMES = ("file", "label", "group")
_ROW = np.dtype([("file", "<i8"), ("start", "<f8"), ("end", "<f8")])


@dataclass(frozen=True)
class Embeddings:
    """A table of embeddings, a row per window, in the order of the files and of time.

    about: what `embeddings.json` says. file: [N] of str (objects, each path once in memory). start, end: float64
    [N], seconds after the file's first frame; NaN for images without a rate. label, group: of the file, None without
    one; files of one group are cuts of one recording, or otherwise no strangers. kept: the vectors, or what reads them
    when `vectors` is first asked for.
    For pools that keep more than one vector, ``vectors.reshape(-1, *about["shape"])`` tells them apart.
    """

    folder: Path
    about: dict[str, Any]
    file: np.ndarray
    start: np.ndarray
    end: np.ndarray
    label: list[str | None]
    kept: np.ndarray | Callable[[], np.ndarray]
    group: list[str | None]

    def __len__(self) -> int:
        return len(self.file)

    @cached_property
    def vectors(self) -> np.ndarray:
        """[N, width], float32 or float16: memory-mapped, or all read from Parquet where there is no `vectors.npy`."""
        return self.kept() if callable(self.kept) else self.kept


class Done(NamedTuple):
    """A file that has been dealt with. rows: of the table when it was. seconds: of video. reason: if it failed."""

    rows: int
    seconds: float
    reason: str | None


class Failed(NamedTuple):
    """A file that was not read, or not to its end. windows: how many of it are in the table."""

    number: int
    reason: str
    windows: int


class Told(NamedTuple):
    """What the list says of a file, or of a stretch of one."""

    file: str
    label: str | None
    group: str | None


def read_embeddings(folder: Path | str) -> Embeddings:
    """The table in ``folder``; raises UserError if it is missing, unfinished or damaged, naming file and cure."""
    folder = Path(folder)
    about = read_about(folder)
    count, width, dtype = about["windows"], about["width"], np.dtype(about["dtype"])
    file, start, end, label, group = _read_windows(folder / WINDOWS)
    if len(file) != count:
        raise _damaged(folder / WINDOWS, f"{len(file)} rows instead of {count}")
    kept = about.get("kept")
    if kept == "parquet" or not (folder / VECTORS).is_file():  # what else is called vectors.npy is none of it
        _check_column(folder / WINDOWS, kept)
        column = partial(_read_column, folder / WINDOWS, count, width, dtype)
        return Embeddings(folder, about, file, start, end, label, column, group)
    vectors = _read_npy(folder / VECTORS, (count, width))
    if vectors.shape != (count, width) or vectors.dtype != dtype:
        raise _damaged(
            folder / VECTORS, f"{vectors.shape} {vectors.dtype} instead of {(count, width)} {dtype}"
        )
    return Embeddings(folder, about, file, start, end, label, vectors, group)


def read_about(folder: Path) -> dict[str, Any]:
    """What `embeddings.json` says; raises UserError if it is missing, unfinished or damaged."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; name a folder that tubelet embed has written")
    path = folder / ABOUT
    if not path.is_file():
        if (folder / PART).is_dir():
            if (folder / FAILURES).is_file() and not any((folder / PART).iterdir()):
                raise UserError(
                    f"{folder} holds no vectors: no video could be read, and {folder / FAILURES} says why; mend those "
                    "files or name others, and run tubelet embed again"
                )
            raise UserError(f"{folder} is unfinished; run the same tubelet embed again, and it goes on")
        raise UserError(f"{folder} holds no {ABOUT}; name a folder that tubelet embed has written")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        made = about["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, repr(error)) from error
    if made != FORMAT:
        raise UserError(f"{path} has format {made}, this version reads {FORMAT}; embed again")
    for name, kind in NEEDED.items():
        if not isinstance(about.get(name), kind):
            raise _damaged(path, f'it does not say "{name}"')
    for name, kind in SAID.items():
        if name in about and not isinstance(about[name], kind):
            raise _damaged(path, f'"{name}" is {_short(about[name])}')
    if missing := {"name", "digest"} - about["encoder"].keys():
        raise _damaged(path, f'it does not say the {" and ".join(sorted(missing))} of its "encoder"')
    try:
        np.dtype(about["dtype"])
    except TypeError as error:
        raise _damaged(path, repr(error)) from error
    return about


def save_embeddings(
    folder: Path | str,
    about: Mapping[str, Any],
    file: Sequence[str],
    start: np.ndarray,
    end: np.ndarray,
    label: Sequence[str | None],
    vectors: np.ndarray,
    kept: Kept = "both",
    group: Sequence[str | None] | None = None,
) -> None:
    """Writes a table that is in memory, whole or not at all; an earlier ``folder`` is replaced.

    file, label, group (default: none known): [N]. start, end: float64 [N]. vectors: float32 or float16 [N, width].
    about: goes into `embeddings.json`, with what follows from the table; "encoder" and "layer" must be in it. With
    "clip", "pool", "views" and the windows as `embed.embed` writes them, videos outside of the table can be looked for
    too. Raises UserError if the disk is full.
    """
    assert len(file) == len(start) == len(end) == len(label) == len(vectors) and vectors.ndim == 2
    told = [Told(*one) for one in zip(file, label, group or [None] * len(file), strict=True)]
    names = list(dict.fromkeys(told))
    place = {name: number for number, name in enumerate(names)}
    rows = np.empty(len(vectors), _ROW)
    rows["file"] = [place[one] for one in told]
    rows["start"], rows["end"] = start, end
    counted = {
        "format": FORMAT,
        "width": vectors.shape[1],
        "dtype": str(vectors.dtype),
        "windows": len(vectors),
        "kept": kept,
    }
    with replace_folder(Path(folder)) as new:
        if kept != "parquet":
            np.save(new / VECTORS, np.ascontiguousarray(vectors))
        _write_parquet(new / WINDOWS, rows, names, vectors, kept)
        _write_failures(new / FAILURES, [])
        write_json(new / ABOUT, {"files": len(names), "failed": 0, "in_part": 0, **about, **counted})


class Draft:
    """A table that is being written into ``folder``/.part, and goes on where an earlier one stopped.

    A file counts once all of its rows are on disk; what is beyond the last file that counts is written again.
    recipe: everything that the numbers depend on, as JSON; another one on the same folder is refused. rows: of the
    table now. done: the files that count, in order. spent: seconds of work on it before now.
    Raises UserError for another recipe, one that cannot be read, a folder that another process writes into or that
    cannot be written, and a full disk. A journal that is damaged counts up to there.
    """

    def __init__(self, folder: Path, recipe: dict[str, Any], width: int, dtype: np.dtype) -> None:
        self.folder, self.part, self.width, self.dtype = folder, folder / PART, width, dtype
        self.done: list[Done] = []
        self.spent, self._saved = 0.0, 0
        self._open: dict[str, BinaryIO] = {}
        _pyarrow()  # at the end it would be too late to miss it
        try:
            with _room(self.folder):
                self.part.mkdir(parents=True, exist_ok=True)
                self._lock()
                self._resume(recipe)
        except BaseException:
            self.close()
            raise

    def _resume(self, recipe: dict[str, Any]) -> None:
        known = self.part / "recipe.json"
        if known.exists():
            refuse_other(self.folder, self._begun(known), recipe)
        else:
            write_json(known, recipe)
        for name in (VECTORS, "windows.bin", "journal.jsonl"):
            self._open[name] = (self.part / name).open("r+b" if (self.part / name).exists() else "w+b")
        self.head = _write_head(self._open[VECTORS], 0, self.width, self.dtype)
        lines = self._open["journal.jsonl"].read().split(b"\n")
        there = self._there()
        for line in lines[:-1]:  # after the last newline is nothing, or a torn line
            try:
                told = json.loads(line)
                file, spent = Done(told["rows"], told["seconds"], told["reason"]), told["spent"]
                beyond = file.rows > there
            except (ValueError, KeyError, TypeError):  # damaged: what comes after it is done again
                break
            if beyond:
                break
            self.done.append(file)
            self.spent = spent
        self._saved = len(self.done)
        self._open["journal.jsonl"].seek(sum(len(line) + 1 for line in lines[: self._saved]))
        self._open["journal.jsonl"].truncate()
        self._began = time.monotonic()
        self.rewind(self.done[-1].rows if self.done else 0)

    def _begun(self, known: Path) -> dict[str, Any]:
        """The recipe that the draft was begun with."""
        try:
            recipe = json.loads(known.read_text(encoding="utf-8"))
        except ValueError:
            recipe = None
        if not isinstance(recipe, dict):
            raise UserError(
                f"{known} is damaged, so nothing tells what the windows in {self.part} were made with; choose another "
                f"folder, or remove {self.part} to begin again"
            )
        return recipe

    def _there(self) -> int:
        """Rows that both files hold."""
        vectors = os.fstat(self._open[VECTORS].fileno()).st_size - self.head
        windows = os.fstat(self._open["windows.bin"].fileno()).st_size
        return min(vectors // (self.width * self.dtype.itemsize), windows // _ROW.itemsize)

    def rewind(self, rows: int) -> None:
        """Forgets all rows from ``rows`` on, which no file that counts may have."""
        assert not self.done or rows >= self.done[-1].rows
        self.rows = rows
        for name, at in (
            (VECTORS, self.head + rows * self.width * self.dtype.itemsize),
            ("windows.bin", rows * _ROW.itemsize),
        ):
            self._open[name].seek(at)
            self._open[name].truncate()

    def append(self, windows: Sequence[tuple[int, float, float]], vectors: np.ndarray) -> None:
        """windows: number of the file, start and end. vectors: [n, width] of the draft's dtype."""
        assert vectors.shape == (len(windows), self.width) and vectors.dtype == self.dtype
        rows = np.array(windows, _ROW)
        with _room(self.folder):
            self._open[VECTORS].write(np.ascontiguousarray(vectors).tobytes())
            self._open["windows.bin"].write(rows.tobytes())
        self.rows += len(windows)

    def count(self, file: Done) -> None:
        """The next file is complete. It counts from the next `commit` on."""
        assert file.rows <= self.rows
        self.done.append(file)

    def commit(self) -> None:
        """What has been counted is on disk when this returns."""
        with _room(self.folder):
            for name in (VECTORS, "windows.bin"):
                self._open[name].flush()
                os.fsync(self._open[name].fileno())
            spent = self.elapsed()
            journal = self._open["journal.jsonl"]
            for line in self.done[self._saved :]:
                journal.write(json.dumps({**line._asdict(), "spent": spent}).encode() + b"\n")
            journal.flush()
            os.fsync(journal.fileno())
        self._saved = len(self.done)

    def elapsed(self) -> float:
        """Seconds of work, those of interrupted runs included."""
        return self.spent + time.monotonic() - self._began

    def finish(
        self,
        about: Callable[[], dict[str, Any]],
        files: Sequence[Told],
        kept: Kept,
    ) -> None:
        """Makes the drafts a table. about: what to say of it. files: all of them, in order.

        Raises UserError if by now other files lie in its place; the drafts stay, and the next run moves them there.
        """
        with _room(self.folder):
            self.commit()
            _write_head(self._open[VECTORS], self.rows, self.width, self.dtype)
            self.close(unlock=False)
            vectors = _read_npy(self.part / VECTORS, (self.rows, self.width))
            rows = np.fromfile(self.part / "windows.bin", _ROW)
            _write_parquet(self.part / WINDOWS, rows, files, vectors, kept)
            del vectors
            _write_failures(self.part / FAILURES, self._told(files))
            write_json(self.part / ABOUT, {**about(), "windows": self.rows, "kept": kept})
            for path in self.part.iterdir():
                sync(path)
            refuse_strangers(self.folder)
            settle(self.folder)
        self.close()

    def failed(self) -> list[Failed]:
        """What was not read, or not to its end."""
        found, first = [], 0
        for number, one in enumerate(self.done):
            if one.reason:
                found.append(Failed(number, one.reason, one.rows - first))
            first = one.rows
        return found

    def _told(self, files: Sequence[Told]) -> list[tuple[str, str, int]]:
        return [(files[one.number].file, one.reason, one.windows) for one in self.failed()]

    def give_up(self, files: Sequence[Told]) -> Path:
        """Throws the drafts away, and leaves the table of what failed; its path.

        The folder of drafts stays, empty: by it that table is known as ours, and the next run may replace it.
        """
        with _room(self.folder):
            with replace_file(self.folder / FAILURES) as new:
                _write_failures(new, self._told(files))
            self.close()
            for path in self.part.iterdir():
                path.unlink()
        return self.folder / FAILURES

    def close(self, unlock: bool = True) -> None:
        """Lets go of the files; what is not committed is lost."""
        for name in [name for name in self._open if unlock or name != "lock"]:
            with suppress(OSError):  # on a full disk, closing tries once more to write what is lost
                self._open.pop(name).close()

    def _lock(self) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: two runs into one folder are then the user's to avoid
            return
        self._open["lock"] = (self.part / "lock").open("wb")
        try:
            fcntl.flock(self._open["lock"], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another tubelet embed is writing into {self.folder}; wait for it, or choose another folder"
            ) from None


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Says in plain words that the disk is full, or cannot be written to."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no room left on disk for {folder}; free some space and run again: what is there is kept"
            ) from error
        raise UserError(
            f"{folder} cannot be written: {error.strerror or error}; choose a folder you may write to"
        ) from error


def refuse_strangers(folder: Path) -> None:
    """Raises UserError if a table in ``folder`` would replace files that belong to no table and no draft of one.

    A draft that is not finished has put nothing in its place but the table of what failed (`Draft.give_up`), and of
    one that is, what lies in its place is no longer in the draft.
    """
    part = folder / PART
    with _room(folder):
        finished, begun = (part / ABOUT).is_file(), part.is_dir()
        if (folder / ABOUT).is_file() and not finished:
            return
        there = [name for name in (VECTORS, WINDOWS, FAILURES, ABOUT) if os.path.lexists(folder / name)]
        if begun:
            there = [
                name for name in there if name != FAILURES and (not finished or os.path.lexists(part / name))
            ]
    if there and begun:
        raise UserError(
            f"{folder} holds {', '.join(there)}, which the run that was begun there has not written, so going on "
            "would replace what may be somebody else's; move it away, or choose another folder"
        )
    if there:
        raise UserError(
            f"{folder} holds {', '.join(there)} and neither a table nor the beginnings of one, so embedding would "
            "replace what may be somebody else's; choose another folder, or move it away"
        )


def settle(folder: Path) -> None:
    """Moves finished drafts to their places, if there are any; what a killed run has begun is completed."""
    part = folder / PART
    with _room(folder):
        if not (part / ABOUT).is_file():
            if (folder / ABOUT).is_file():
                shutil.rmtree(part, ignore_errors=True)  # all was moved already
            return
        try:
            kept = json.loads((part / ABOUT).read_text(encoding="utf-8"))["kept"]
        except (ValueError, KeyError, TypeError):  # damaged; the draft is still there, and writes it again
            for name in (VECTORS, WINDOWS, FAILURES):  # what was moved is the draft's, and goes back
                if (folder / name).exists() and not (part / name).exists():
                    os.replace(folder / name, part / name)
            (part / ABOUT).unlink()
            return
        for name in (VECTORS, WINDOWS, FAILURES, ABOUT):  # the last one makes it a table
            if (part / name).exists() and (name != VECTORS or kept != "parquet"):
                os.replace(part / name, folder / name)
        sync(folder)
        shutil.rmtree(part)


def refuse_other(folder: Path, there: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError, naming what differs, unless the two recipes are the same."""
    differ = [name for name in wanted if there.get(name) != wanted[name]]
    if differ:
        told = "; ".join(
            _which_files(there.get("files"), wanted["files"])
            if name == "files"
            else f"{name} {_short(there.get(name))}, now {_short(wanted[name])}"
            for name in differ
        )
        raise UserError(
            f"{folder} was begun with other knobs ({told}); give the same ones, choose another folder, or remove it"
        )


def _which_files(known: Any, wanted: Mapping[str, str]) -> str:
    """Which files are new, gone, or not what they were (or listed otherwise)."""
    there = known if isinstance(known, Mapping) else {}
    found = {
        "new": [name for name in wanted if name not in there],
        "gone": [name for name in there if name not in wanted],
        "changed": [name for name in wanted if name in there and there[name] != wanted[name]],
    }
    return "; ".join(
        f"{len(names)} files {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in found.items()
        if names
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def _write_head(handle: BinaryIO, rows: int, width: int, dtype: np.dtype) -> int:
    """Writes the header of an .npy at the beginning of ``handle``; its length, the same for any number of rows."""
    handle.seek(0)
    shape = (rows, width)
    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(handle, head)  # pads for as many rows as there can be
    handle.flush()
    return handle.tell()


def _write_failures(path: Path, failed: Sequence[tuple[str, str, int]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([("file", "reason", "windows"), *failed])


def _write_parquet(
    path: Path,
    rows: np.ndarray,
    files: Sequence[Told],
    vectors: np.ndarray,
    kept: Kept,
) -> None:
    """A row per window, in groups, so that memory holds a group and never the table."""
    pa, parquet = _pyarrow()
    width = vectors.shape[1]
    columns = [("file", pa.string()), ("start", pa.float64()), ("end", pa.float64())]
    columns += [("label", pa.string()), ("group", pa.string()), ("row", pa.int64())]
    if kept != "numpy":
        kind = pa.float16() if vectors.dtype == np.float16 else pa.float32()
        columns.append(("vector", pa.list_(kind, width)))
    schema = pa.schema(columns)
    step = max(1, min(GROUP_ROWS, GROUP_BYTES // max(1, width * vectors.itemsize)))
    # through a handle of ours: what goes wrong is then an OSError with its number
    with (
        path.open("wb") as handle,
        parquet.ParquetWriter(handle, schema, use_dictionary=list(NAMES)) as writer,
    ):
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            file, label, group = (
                pa.array([getattr(files[i], name) for i in part["file"]], pa.string()) for name in NAMES
            )
            values: list[Any] = [
                file,
                pa.array(part["start"]),
                pa.array(part["end"]),
                label,
                group,
                pa.array(np.arange(first, first + len(part))),
            ]
            if kept != "numpy":
                flat = pa.array(np.ascontiguousarray(vectors[first : first + step]).reshape(-1))
                values.append(pa.FixedSizeListArray.from_arrays(flat, width))
            writer.write_table(pa.Table.from_arrays(values, schema=schema), row_group_size=step)


def _read_windows(
    path: Path,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str | None], list[str | None]]:
    pa, parquet = _pyarrow()
    try:
        # memory mapping would keep pages of the vectors; paths, labels and groups repeat, so each is kept once
        table = parquet.read_table(path, columns=[*NAMES, "start", "end"], read_dictionary=list(NAMES))
        file, label, group = (_named(table.column(name)) for name in NAMES)
        start, end = (table.column(name).to_numpy().astype(np.float64) for name in ("start", "end"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; embed again into a new folder") from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise _damaged(path, str(error)) from error
    return file, start, end, label.tolist(), group.tolist()


def _named(column: Any) -> np.ndarray:
    """Objects [N] of a column of dictionaries; rows that are the same share one object."""
    parts = [np.zeros(0, object)]
    for chunk in column.chunks:
        names = np.array([*chunk.dictionary.to_pylist(), None], object)
        parts.append(names[chunk.indices.fill_null(len(names) - 1).to_numpy()])
    return np.concatenate(parts)


def _read_npy(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """Memory-mapped, but for nothing at all, which cannot be mapped."""
    try:
        found = np.load(path, mmap_mode="r" if 0 not in shape else None)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(found, np.ndarray):
        raise _damaged(path, "it is an archive of arrays")
    return found


def _check_column(path: Path, kept: str | None) -> None:
    """Raises UserError unless there are vectors in the table."""
    _, parquet = _pyarrow()
    if "vector" not in parquet.read_schema(path).names:
        if kept == "parquet":
            raise _damaged(path, "it has no column vector")
        raise UserError(f"{path.with_name(VECTORS)} is missing; embed again into a new folder")


def _read_column(path: Path, count: int, width: int, dtype: np.dtype) -> np.ndarray:
    pa, parquet = _pyarrow()
    at = 0
    try:
        vectors = np.empty((count, width), dtype)
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(columns=["vector"]):
                block = batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
                vectors[at : at + len(block)] = block
                at += len(block)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if at != count:
        raise _damaged(path, f"{at} vectors instead of {count}")
    return vectors


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path} is damaged ({why}); copy it again, or embed again into a new folder")


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise UserError("tables of embeddings need pyarrow; pip install pyarrow") from None
    return pyarrow, pyarrow.parquet
