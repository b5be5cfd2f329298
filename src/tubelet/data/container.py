"""Opening a video file and walking its packets and pictures, past whatever is broken in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from tubelet.errors import UserError

GONE = "file not found"


class DecodeError(UserError):
    """A file that cannot be read as video: ``path`` and ``reason``."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = Path(path), reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def status(path: Path) -> os.stat_result:
    """What the system says of a file or folder; raises DecodeError with the system's reason where it says nothing."""
    try:
        return path.stat()
    except FileNotFoundError:
        raise DecodeError(path, GONE) from None
    except OSError as error:
        raise DecodeError(path, error.strerror or str(error)) from error
    except ValueError as error:  # a name that no file can have
        raise DecodeError(path, str(error)) from error


@contextmanager
def opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream (cover art does not count); raises DecodeError."""
    if status(path).st_size == 0:
        raise DecodeError(path, "the file is empty")
    try:
        # "file:" and an absolute path: a colon or a per cent sign in a name means nothing special then.
        container = av.open(f"file:{os.path.abspath(path)}", metadata_errors="replace")
    except FFmpegError as error:
        raise DecodeError(path, f"cannot be opened as video ({_glance(path) or plain(error)})") from error
    with container:
        streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
        if not streams:
            raise DecodeError(path, "no video stream in it")
        stream = streams[0]
        if stream.codec_context is None:
            raise DecodeError(path, "no decoder for its codec")
        # One thread: parallelism is over files, and a clip's few frames do not fill a frame-threaded decoder.
        stream.codec_context.thread_count = 1
        yield container, stream


def packets(container: InputContainer, stream: VideoStream, errors: list[str]) -> Iterator[Packet]:
    """The stream's packets with content; a broken container ends them and adds to ``errors``."""
    demuxed = container.demux(stream)
    while True:
        try:
            packet = next(demuxed)
        except StopIteration:
            return
        except FFmpegError as error:
            errors.append(plain(error))
            return
        if packet.size:  # an empty packet would tell the decoder that the stream is over
            yield packet


def pictures(stream: VideoStream, source: Iterator[Packet], errors: list[str]) -> Iterator[VideoFrame]:
    """All pictures in the order of showing; a packet that does not decode adds to ``errors``."""
    for packet in source:
        try:
            frames = stream.decode(packet)
        except FFmpegError as error:
            errors.append(plain(error))
            continue
        yield from frames
    try:
        frames = stream.decode(None)
    except FFmpegError as error:
        errors.append(plain(error))
        return
    yield from frames


def plain(error: FFmpegError | EOFError) -> str:
    """FFmpeg's words for an error."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _glance(path: Path) -> str | None:
    """What a file is that is no video, where its first bytes are text: a web page, a Git LFS pointer, a note."""
    try:
        head = path.read_bytes()[:60] if path.stat().st_size < 1_000_000 else b""
    except OSError:  # that it cannot be read is what FFmpeg has said already
        return None
    if head.isascii() and (text := head.decode("ascii").strip()) and text.replace("\n", "").isprintable():
        return f'it is text that begins "{text.splitlines()[0]}"'
    return None
