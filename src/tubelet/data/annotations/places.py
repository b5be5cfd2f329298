"""Where the files of a data set lie below the folder that a user names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tubelet.errors import UserError

from .. import images
from ..folders import VIDEO

# Folders in which videos are looked for, below the data set's own; "" is that folder itself.
VIDEOS = ("videos", "clips", "")
ANNOTATIONS = ("", "annotations", "labels")


class Places:
    """Finds videos by their names without extension; each folder is listed once, and no file is opened.

    folder: of the data set. roots: folders below it, searched in this order. images: look for single images
    instead of videos. A folder of the right name counts as a video: it may hold numbered images.
    """

    def __init__(self, folder: Path, roots: Sequence[str] = VIDEOS, pictures: bool = False) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.roots = list(dict.fromkeys(roots))
        self.suffixes = images.EXTENSIONS if pictures else VIDEO
        self._listed: dict[str, dict[str, str]] = {}
        self._last: tuple[str, int] | None = None  # root and number of the name that was found last

    def find(self, *names: str) -> Path | None:
        """The first that exists of ``names`` ("class/name", no extension), in the first root that has one."""
        tries = [(root, number) for root in self.roots for number in range(len(names))]
        if self._last in tries:  # most often all videos lie in one place
            tries.insert(0, self._last)
        for root, number in tries:
            parent, _, stem = names[number].rpartition("/")
            below = "/".join(part for part in (root, parent) if part)
            if (file := self._list(below).get(stem)) is not None:
                self._last = root, number
                return self.folder / below / file
        return None

    def expected(self, name: str, suffix: str) -> Path:
        """What a video that is nowhere would be called."""
        return self.folder / self.roots[0] / f"{name}{suffix}"

    def tried(self) -> str:
        """The folders searched, for people."""
        return ", ".join(str(self.folder / root) for root in self.roots)

    def _list(self, below: str) -> dict[str, str]:
        """The files (and folders) of a folder, by name without extension."""
        if below not in self._listed:
            self._listed[below] = found = {}
            try:
                with os.scandir(self.folder / below) as entries:
                    for entry in entries:
                        stem, suffix = os.path.splitext(entry.name)
                        if suffix.lower() in self.suffixes:
                            found[stem] = entry.name
                        elif not suffix and entry.is_dir():
                            found.setdefault(stem, entry.name)
            except (FileNotFoundError, NotADirectoryError):
                pass
        return self._listed[below]


def official_file(folder: Path, names: Iterable[str], below: Iterable[str] = ANNOTATIONS) -> Path | None:
    """The first of ``names`` that exists in ``folder`` or one of the folders ``below`` it."""
    places = [folder / place / name for place in below for name in names]
    return next((place for place in places if place.is_file()), None)


def required_file(folder: Path, names: Sequence[str], what: str, below: Iterable[str] = ANNOTATIONS) -> Path:
    """As `official_file`; raises UserError that says what was looked for and where."""
    below = list(below)
    if (found := official_file(folder, names, below)) is None:
        places = ", ".join(str(folder / place) for place in below)
        raise UserError(f"{what}: {' or '.join(names)} is in none of {places}; put the official file there")
    return found
