"""tubelet: pretrain video encoders on unlabelled video, see what they learned, take them where you need them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tubelet.errors import UserError

if TYPE_CHECKING:
    from tubelet.data.manifest import read_manifest
    from tubelet.data.scan import scan
    from tubelet.evaluate.probe import probe
    from tubelet.export.weights import load_encoder, save_encoder
    from tubelet.inside.analyze import analyze
    from tubelet.recipes import run_recipe as pretrain

__all__ = [
    "UserError",
    "analyze",
    "load_encoder",
    "pretrain",
    "probe",
    "read_manifest",
    "save_encoder",
    "scan",
]

_HOME = {
    "analyze": ("tubelet.inside.analyze", "analyze"),
    "load_encoder": ("tubelet.export.weights", "load_encoder"),
    "pretrain": ("tubelet.recipes", "run_recipe"),
    "probe": ("tubelet.evaluate.probe", "probe"),
    "read_manifest": ("tubelet.data.manifest", "read_manifest"),
    "save_encoder": ("tubelet.export.weights", "save_encoder"),
    "scan": ("tubelet.data.scan", "scan"),
}


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first asked for, so that ``tubelet --help`` need not load torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'tubelet' has no attribute {name!r}")
    module, attribute = _HOME[name]
    return getattr(import_module(module), attribute)
