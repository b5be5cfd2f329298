"""What encoders find alike, as filmstrips: a query, and beneath it each encoder's five nearest clips."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.data.container import DecodeError
from tubelet.data.manifest import Video
from tubelet.data.source import ClipReader
from tubelet.errors import UserError
from tubelet.report.filmstrip import Strip
from tubelet.report.page import Page

SIDE, FRAMES, PLACES = 56, 3, 5  # pixels of a frame; frames of each clip; clips found
_SAME, _OTHER = (
    (0, 114, 178),
    (213, 94, 0),
)  # of the query's class, of another: blue and orange differ in any eye


def add_retrieved(page: Page, folders: Mapping[str, Path], task: str, key: str, queries: int = 3) -> None:
    """Strips of ``queries`` queries of a task. folders: arm -> one of its run folders; those without are left out.

    Raises UserError if a results.json is damaged.
    """
    found = {arm: _examples(folder / "eval" / key / "results.json") for arm, folder in folders.items()}
    found = {arm: examples for arm, examples in found.items() if examples}
    if not found:
        return
    reader = _reader(list(folders.values()))
    gone: set[str] = set()
    groups = []
    for number, query in enumerate(next(iter(found.values()))[:queries]):
        strips = [_query(query, reader, gone)]
        for arm, examples in found.items():
            # all were asked the same, but a list that grew in between would have other queries
            if number < len(examples) and examples[number]["query"] == query["query"]:
                strips.append(_row(arm, query["label"], examples[number]["found"], reader, gone))
        groups.append(strips)
    page.filmstrips(
        groups,
        f"What each encoder finds most alike on {task}.",
        "Above, a clip of the test set; below it, for each encoder, the five nearest others by cosine of mean-pooled "
        "features, the nearest first, three frames of each. A blue bar: of the same class; orange: of another. The "
        "same queries for all, drawn at random, one of a class; encoders of the first seed."
        + (f" Could not be read: {', '.join(sorted(gone))}." if gone else ""),
    )


def _examples(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        return []
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("queries", [])
    except ValueError as error:
        raise UserError(
            f"{file} is damaged ({error}); remove its folder and call the same command again"
        ) from error


def _reader(folders: Sequence[Path]) -> ClipReader:
    """Reads the clips that the first of the encoders has seen."""
    for folder in folders:
        file = folder / "encoder" / "encoder.json"
        if file.is_file():
            geometry = json.loads(file.read_text(encoding="utf-8"))["geometry"]
            fps = geometry["fps"]
            return ClipReader(
                geometry["frames"], fps, None if fps else geometry["frame_step"], short_side=SIDE
            )
    return ClipReader(16, frame_step=4, short_side=SIDE)


def _query(query: Mapping[str, Any], reader: ClipReader, gone: set[str]) -> Strip:
    """As many frames as the rows beneath have, so that all are drawn at one size."""
    count = FRAMES * PLACES
    frames = _frames(query["query"], query, reader, count, gone)
    return Strip(f"query: {query['label']}", frames, Path(query["query"]).name, count, FRAMES)


def _row(
    arm: str, label: str, found: Sequence[Mapping[str, Any]], reader: ClipReader, gone: set[str]
) -> Strip:
    parts, right = [], 0
    for one in found[:PLACES]:
        frames = _frames(one["path"], one, reader, FRAMES, gone).copy()
        same = one["label"] == label
        right += same
        frames[:, -4:] = _SAME if same else _OTHER
        parts.append(frames)
    blank = np.full((FRAMES, SIDE, SIDE, 3), 255, np.uint8)
    parts += [blank] * (PLACES - len(parts))
    return Strip(arm, np.concatenate(parts), f"{right} of {len(found[:PLACES])}", FRAMES * PLACES, FRAMES)


def _frames(
    path: str, about: Mapping[str, Any], reader: ClipReader, count: int, gone: set[str]
) -> np.ndarray:
    """uint8 [count, SIDE, SIDE, 3], evenly spread over the clip; grey if the video cannot be read."""
    video = Video(Path(path), start=about.get("start"), end=about.get("end"))
    try:
        (clip,) = reader.read(video, [0.5])
    except (DecodeError, OSError):
        gone.add(Path(path).name)
        return np.full((count, SIDE, SIDE, 3), 160, np.uint8)
    chosen = clip[np.linspace(0, len(clip) - 1, count).round().astype(int)]
    height, width = chosen.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = chosen[:, top : top + side, left : left + side]
    places = ((np.arange(SIDE) + 0.5) * side / SIDE).astype(int)
    return square[:, places][:, :, places]
