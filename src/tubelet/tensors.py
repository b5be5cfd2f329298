"""Named tensors to one safetensors file."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

FORMAT = {
    "format": "pt"
}  # whose tensors these are: readers such as transformers refuse a file that does not say


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Writes ``tensors``, of any dtypes and devices, into the new file ``path``; tied ones are written twice.

    about: words of metadata, beside whose tensors these are.

    Raises OSError if the disk is full, SafetensorError for whatever else the library has to say.
    """
    flat: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu().contiguous()
        # tied parameters: safetensors refuses two names for one memory
        flat[name] = here.clone() if here.untyped_storage().data_ptr() in seen else here
        seen.add(here.untyped_storage().data_ptr())
    try:
        path.touch()
        mode = (
            path.stat().st_mode
        )  # as the user's umask has it; the library lets nobody else read what it writes
        save_file(flat, path, {**FORMAT, **(about or {})})
        path.chmod(mode)
    except SafetensorError as error:
        if f"os error {errno.ENOSPC}" in str(error):  # the library hides which error of the system it met
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise
