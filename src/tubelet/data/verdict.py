"""What a complete decode of one file says about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from . import images
from .container import DecodeError, opened, packets, pictures, plain
from .index import times_of
from .pictures import Converter, turn_of

# Less than this share of the declared frames is more than the last few of a careless muxer missing.
COMPLETE = 0.9


@dataclass(frozen=True)
class Verdict:
    """The measured columns of a manifest; see `manifest.Video`."""

    status: str
    codec: str | None = None
    duration: float | None = None
    frames: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    rotation: int | None = None
    reason: str | None = None


def inspect(path: str | Path, beat: Callable[[], None] = lambda: None) -> Verdict:
    """Decodes every frame of ``path`` and says how that went; does not raise for a bad file.

    status is `ok`; `damaged` (frames decode, but with errors, or more than a tenth of the declared ones is
    missing); or `unreadable` (not one frame). width and height are as shown, after rotation (degrees
    counter-clockwise, as ffprobe prints them; 0 where the file asks for nonsense). ``beat`` is called for
    every packet, so that who waits can tell slow from stuck.
    """
    path = Path(path)
    try:
        return _images(path, beat) if os.path.isdir(path) else _video(path, beat)
    except DecodeError as error:
        return Verdict("unreadable", reason=error.reason)
    except FFmpegError as error:
        return Verdict("unreadable", reason=plain(error))


def _video(path: Path, beat: Callable[[], None]) -> Verdict:
    errors: list[str] = []
    stamps: list[int | None] = []
    first: VideoFrame | None = None
    dropped = step = 0

    def counted(source: Iterator[Packet]) -> Iterator[Packet]:
        nonlocal dropped, step
        for packet in source:
            beat()
            dropped += packet.is_discard
            step = packet.duration or step
            yield packet

    with opened(path) as (container, stream):
        codec, declared = stream.codec.canonical_name, stream.frames
        base, rate = float(stream.time_base or 0), float(stream.average_rate or 0)
        promised = _promised_seconds(container, stream)
        for frame in pictures(stream, counted(packets(container, stream, errors)), errors):
            if first is None:
                Converter(64)(frame)  # a pixel format that cannot become RGB shows here
                first = frame
            stamps.append(frame.pts)
    if first is None:
        because = f": {errors[0]}" if errors else ""
        return Verdict("unreadable", codec, frames=0, reason=f"opens, but no frame decodes{because}")
    n = len(stamps)
    times, duration = times_of(stamps, base, rate, step * base)
    fps = (n - 1) / float(times[-1]) if n > 1 else rate or None
    turn = turn_of(first)
    reason = None
    if errors:
        of = f" of {declared} declared" if declared else ""
        reason = f"{len(errors)} decoding errors ({errors[0]}); {n} frames{of} come out"
    elif n < COMPLETE * (declared - dropped):
        reason = f"ends early: {n} frames of {declared} declared come out"
    elif promised and duration < COMPLETE * promised - 1:
        reason = f"ends early: {duration:.1f} s of {promised:.1f} s declared come out"
    return Verdict(
        status="damaged" if reason else "ok",
        codec=codec,
        duration=round(duration, 6),
        frames=n,
        fps=None if fps is None else round(fps, 6),
        width=first.height if turn.swaps else first.width,
        height=first.width if turn.swaps else first.height,
        rotation=turn.degrees,
        reason=reason,
    )


def _images(folder: Path, beat: Callable[[], None]) -> Verdict:
    files = images.frame_files(folder)
    size: tuple[int, int] | None = None
    bad: list[str] = []
    for file in files:
        beat()
        try:
            frame = images.picture(file)
        except (FFmpegError, EOFError) as error:
            bad.append(f"{file.name}: {plain(error)}")
            continue
        size = size or (frame.width, frame.height)
    if size is None:
        return Verdict("unreadable", "images", frames=0, reason=f"no image decodes ({bad[0]})")
    reason = f"{len(bad)} of {len(files)} images do not decode ({bad[0]})" if bad else None
    return Verdict(
        status="damaged" if bad else "ok",
        codec="images",
        frames=len(files),
        width=size[0],
        height=size[1],
        rotation=0,
        reason=reason,
    )


def _promised_seconds(container: InputContainer, stream: VideoStream) -> float | None:
    """Seconds of picture that the file declares, where that is not some other stream's length."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return None
