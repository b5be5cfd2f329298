"""Encoders to and from the Hugging Face hub; whatever a repository brings as code stays where it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tubelet.errors import UserError

SCHEME = "hf://"
EXTRA = 'pip install "tubelet[export]"'
# no code, and no pickles: what is pulled is read as tensors, JSON and a card
PULLED = ["*.safetensors", "*.json", "README.md"]


def check_name(name: str) -> None:
    """Raises UserError unless ``name`` is OWNER/NAME."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f'"{name}" is no repository of the hub; write OWNER/NAME')


def pull(spec: str) -> tuple[Path, str]:
    """The folder of ``hf://OWNER/NAME``, downloaded or from the hub's cache, and the revision that it is.

    Safetensors, JSON and the card alone are fetched, from the main branch. Raises UserError if huggingface_hub is not
    installed, if there is no network and nothing in the cache, or if there is no such repository.
    """
    name = spec.removeprefix(SCHEME)
    check_name(name)
    hub, failures = _hub(spec)
    try:
        folder = Path(hub.snapshot_download(name, allow_patterns=PULLED))
    except failures as error:
        raise UserError(
            f"{spec} could not be fetched ({_reason(error)}), and it is not in the cache; check the name, the network "
            f'and, for a private one, "hf auth login", or download it elsewhere and name its folder'
        ) from error
    return folder, folder.name


def push(folder: Path, name: str) -> str:
    """Uploads an export into the repository ``name``, made (private) if it is not there; gives back its address.

    Raises UserError if huggingface_hub is not installed, or for whatever speaks against it: network, token, rights.
    """
    check_name(name)
    hub, failures = _hub(name)
    try:
        api = hub.HfApi()
        api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="tubelet export")
    except failures as error:
        raise UserError(
            f'{name} could not be pushed ({_reason(error)}); check the network and "hf auth login". {folder} is whole: '
            f'"hf upload {name} {folder}" pushes it later'
        ) from error
    return f"https://huggingface.co/{name}"


def _hub(name: str) -> tuple[Any, tuple[type[Exception], ...]]:
    """The hub's library, and what it raises for reasons that are not ours."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    except ImportError as error:
        raise UserError(f"{name} needs huggingface_hub, which is not installed: {EXTRA}") from error
    # the errors of whichever library it talks through share a base with its own, and so need no import
    talk = next(base for base in HfHubHTTPError.__mro__ if base.__name__ in ("HTTPError", "RequestException"))
    return huggingface_hub, (OSError, HFValidationError, talk)


def _reason(error: Exception) -> str:
    """The innermost cause, in one line."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
