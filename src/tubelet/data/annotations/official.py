"""The data sets known by name, as `NAME:FOLDER` or `NAME@VARIANT:FOLDER`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tubelet.errors import UserError, nearest

from ..manifest import Manifest
from .coin import read_coin
from .diving48 import read_diving48
from .epic import read_epic
from .hmdb51 import read_hmdb51
from .imagenet import read_imagenet
from .jester import read_jester
from .kinetics import read_kinetics, read_kinetics710
from .ssv2 import read_ssv2
from .ucf101 import read_ucf101

# Two characters at least before the colon: one is a drive. An address (https://...) is no data set.
_SPEC = re.compile(r"([A-Za-z][A-Za-z0-9_-]+)(?:@([A-Za-z0-9_-]+))?:(?!//)(.*)", re.S)


@dataclass(frozen=True)
class Official:
    """read(folder, variant): variant is "" or one of ``variants``."""

    read: Callable[[Path, str], Manifest]
    variants: tuple[str, ...] = ()


_KINETICS = Official(read_kinetics, ("test",))
SETS: dict[str, Official] = {
    "k400": _KINETICS,
    "k600": _KINETICS,
    "k700": _KINETICS,
    "k710": Official(read_kinetics710),
    "ssv2": Official(read_ssv2, ("test",)),
    "coin": Official(read_coin),
    "diving48": Official(read_diving48),
    "jester": Official(read_jester, ("test",)),
    "ucf101": Official(read_ucf101, ("1", "2", "3")),
    "hmdb51": Official(read_hmdb51, ("1", "2", "3")),
    "epic": Official(read_epic, ("verb", "noun", "action")),
    "imagenet": Official(read_imagenet),
}


def is_official(data: str) -> bool:
    """Whether ``data`` is written as `NAME:FOLDER`; a drive (`C:\\videos`) and an address are not."""
    return _SPEC.fullmatch(data) is not None


def read_official(data: str) -> Manifest:
    """The manifest of `NAME:FOLDER`, such as `ssv2:data/ssv2`, or of one of its variants, `ucf101@2:data/ucf101`.

    Which files each data set needs, and where videos are looked for, its reader's docstring says. No file is decoded.
    Raises UserError for a name, variant or folder that does not exist, and as the readers do.
    """
    match = _SPEC.fullmatch(data)
    assert match is not None, data
    name, variant, place = match.groups()
    if (known := SETS.get(name.lower())) is None:
        raise UserError(
            f'data={data}: "{name}" is no data set that tubelet reads by name{nearest(name.lower(), SETS)} '
            f"(known: {', '.join(SETS)}), and no file of that name exists"
        )
    if variant is not None and variant not in known.variants:
        some = ", ".join(f"{name}@{one}" for one in known.variants) or "none"
        raise UserError(f'data={data}: {name} has no variant "{variant}"; there are: {some}')
    folder = Path(os.path.expanduser(place))
    if not place or not folder.is_dir():
        raise UserError(
            f'data={data}: "{place}" is not a folder; write {name}:FOLDER, where FOLDER holds the official '
            "annotation files and the videos"
        )
    return known.read(folder, variant or "")
