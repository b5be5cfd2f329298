"""Files of weights: found, and read without running anything in them."""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from tubelet.errors import UserError
from tubelet.files import read_json, unread

SUFFIXES = (".pt", ".pth", ".tar", ".bin", ".ckpt", ".safetensors")
INDEX = ".index.json"
# what transformers' Trainer keeps beside weights
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state(_\d+)?)\.(bin|pt|pth)")
_OLDER = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
READ = (
    "read are V-JEPA, V-JEPA 2 and 2.1 and VideoMAE files as published, and Hugging Face folders of "
    "VJEPA2Model and VideoMAEModel"
)
# what reading a pickle of tensors raises when bytes of it are wrong: all that its parts never expected
DAMAGED = (
    OSError,
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    AssertionError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    zipfile.BadZipFile,
)


def weights_file(path: Path) -> Path:
    """The one file of weights that ``path`` is or holds; of a sharded set, its index.

    Of a folder that holds `pytorch_model.bin` beside `model.safetensors`, as the hub's do, the latter. Raises UserError
    if there is no file, or any other that could be meant too.
    """
    if path.is_file():
        return path
    found = [file for file in candidates(path) if not _NO_WEIGHTS.fullmatch(file.name)]
    index = path / f"model.safetensors{INDEX}"
    if index.is_file():
        shards = set(_weight_map(index).values())
        found = [index, *(file for file in found if file.name not in shards)]
    if any(file.name in ("model.safetensors", index.name) for file in found):
        # the hub keeps the same weights in their older form beside the newer one
        found = [file for file in found if not _OLDER.fullmatch(file.name)]
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:4])
        raise UserError(f"{path} holds {len(found)} files of weights ({names}); name the one that is meant")
    if found:
        return found[0]
    raise UserError(f"{path} has a config.json but no weights beside it (model.safetensors); {READ}")


def candidates(folder: Path) -> list[Path]:
    """The files in ``folder`` whose names end in one of `SUFFIXES`, in the order of their names."""
    return sorted(file for file in folder.iterdir() if file.is_file() and file.name.endswith(SUFFIXES))


def read(file: Path) -> dict[str, Any]:
    """The tensors of a file, or the dictionaries of tensors of one; nothing in it is run."""
    if file.name.endswith((".safetensors", INDEX)):
        return dict(read_tensors(file))
    damaged = f"{file} cannot be read; it is damaged, cut short or no file of weights: copy it again"
    zipped = zipfile.is_zipfile(file)
    try:
        # VideoMAE's files keep their command line's arguments: a class with attributes and nothing else
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that is no file of weights torch says more than that
            content = torch.load(file, map_location="cpu", mmap=zipped, weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is None:
            raise UserError(damaged) from error
        raise UserError(
            f"{file} holds more than tensors ({wanted[1]}): to read it would run code that it brings along, which is "
            f"not done; ask for safetensors, or save its tensors alone where you trust it"
        ) from error
    except (FileNotFoundError, PermissionError) as error:
        raise unread(file, error) from error
    except DAMAGED as error:
        raise UserError(damaged) from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, not named tensors; {READ}")
    return content


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of all that the index of a sharded set names, on the CPU.

    Raises UserError if one is missing, not allowed, or damaged.
    """
    if file.name.endswith(INDEX):
        return _read_shards(file)
    try:
        with file.open("rb"):  # whose errors tell these apart; the library's do not
            pass
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise unread(file, error) from error


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a safetensors file, of which only the head is read.

    Raises UserError if it is missing, not allowed, or damaged.
    """
    try:
        with file.open("rb"), safe_open(file, "pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.offset_keys()}
    except (OSError, SafetensorError) as error:
        raise unread(file, error) from error


def _read_shards(index: Path) -> dict[str, Tensor]:
    shards = _weight_map(index)
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(shards.values())):
        # an index from elsewhere names files beside it, and no others
        if Path(name).name != name:
            raise UserError(f'{index} names "{name}", which is not beside it; it is not read')
        if not name.endswith(".safetensors"):
            raise UserError(f'{index} names "{name}", which is no file of safetensors; it is not read')
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names {name}, which is not there; copy it too")
        tensors |= read_tensors(index.parent / name)
    if absent := sorted(shards.keys() - tensors.keys()):
        raise UserError(
            f"{index} names {len(absent)} tensors that are in none of its files ({', '.join(absent[:3])}); copy index "
            f"and files again"
        )
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """Tensors' names -> their files'."""
    shards = read_json(index).get("weight_map")
    if (
        not isinstance(shards, dict)
        or not shards
        or not all(isinstance(name, str) for name in shards.values())
    ):
        raise UserError(f"{index} has no weight_map of names; copy it again")
    return shards
