"""From what official files say of each video to a manifest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tubelet.errors import UserError

from ..manifest import Manifest, Video
from .places import Places


@dataclass(frozen=True)
class Row:
    """One line of an annotation file.

    names: of the video, without extension and relative to the folders searched; the first that exists is taken.
    where: file and line, for errors. start, end: seconds. fps: of a folder of images. extra: further columns.
    """

    names: Sequence[str]
    label: str | None
    split: str
    where: str
    group: str | None = None
    start: float | None = None
    end: float | None = None
    fps: float | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


def manifest_of(
    rows: Iterable[Row], places: Places, source: Path, suffix: str = ".mp4", notes: Iterable[str] = ()
) -> Manifest:
    """The manifest of ``rows``; ``suffix``: of the official videos, to name one that is missing.

    Missing videos become `unreadable` rows and are counted in a note. A stretch that is listed twice is taken
    once, with its first label, and counted. Groups that are on two sides of the official split are left out,
    all of them: a probe would refuse them; a note says so.
    Raises UserError if there is no row, if a stretch holds no video, or if no video exists.
    """
    videos: dict[tuple[Path, float | None, float | None], Video] = {}
    missing = repeated = 0
    for row in rows:
        if row.start is not None and row.end is not None and not 0 <= row.start < row.end:
            raise UserError(
                f"{row.where}: from {row.start:g} s to {row.end:g} s holds no video; seconds, end after start"
            )
        path = places.find(*row.names)
        lost = path is None
        path = places.expected(row.names[0], suffix) if path is None else path
        key = (path, row.start, row.end)
        if key in videos:
            repeated += 1
            continue
        missing += lost
        videos[key] = Video(
            path=path,
            label=row.label,
            split=row.split,
            group=row.group,
            start=row.start,
            end=row.end,
            status="unreadable" if lost else None,
            reason="file not found" if lost else None,
            fps=row.fps,
            extra=row.extra,
        )
    if not videos:
        raise UserError(f"{source}: its annotation files list no videos")
    if missing == len(videos):
        first = next(iter(videos.values())).path
        raise UserError(
            f"{source}: none of its {missing} videos exists, for instance {first}; looked in {places.tried()}. "
            "Put the videos there, or link one of these folders to them"
        )
    told = [*notes]
    if repeated:
        told.append(f"{repeated} rows repeat a stretch of an earlier one and are left out")
    if missing:
        told.append(
            f"{missing} of {len(videos)} rows name videos that are not on disk; they count as unreadable"
        )
    found = list(videos.values())
    if shared := _shared_groups(found):
        count, example = shared
        found = [_without_group(video) for video in found]
        told.append(
            f"the official split has {count} groups on both sides (such as {example}), so groups are left out: "
            "intervals are over clips, and scores may reward recognising the group"
        )
    bare = sum(video.label is None for video in found)
    if bare:
        told.append(f"{bare} of {len(found)} rows have no label")
    return Manifest(tuple(found), source, tuple(told))


def _shared_groups(videos: Sequence[Video]) -> tuple[int, str] | None:
    """How many groups are in two splits, and one of them."""
    splits: dict[str, set[str | None]] = defaultdict(set)
    for video in videos:
        if video.group is not None:
            splits[video.group].add(video.split)
    shared = sorted(group for group, sides in splits.items() if len(sides) > 1)
    return (len(shared), shared[0]) if shared else None


def _without_group(video: Video) -> Video:
    return replace(video, group=None, extra={**video.extra, "source_group": video.group or ""})
