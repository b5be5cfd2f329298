"""A server for this machine alone: the pages of `browse`, and the videos that are in the table."""

from __future__ import annotations

import io
import mimetypes
import re
import threading
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

from matplotlib.image import imsave

from tubelet.data.container import DecodeError
from tubelet.embed.table import read_embeddings
from tubelet.errors import UserError
from tubelet.report.filmstrip import strip_picture
from tubelet.report.found import frames_between
from tubelet.search.browse import SCRIPT, Browser, style
from tubelet.search.query import path_of, query_of_file, search

HOST = "127.0.0.1"
POLICY = (
    "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_PIECE = 2**18  # bytes read and sent at once
_STRIPS = 512  # pictures kept


class Server(ThreadingHTTPServer):
    """Serves ``browser`` at 127.0.0.1; port 0 takes a free one. Raises UserError if the port is taken.

    A video is asked for by its file's number in the table, so no path ever comes from outside.
    """

    daemon_threads = True

    def __init__(self, browser: Browser, port: int = 0) -> None:
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"port {port} cannot be used ({error}); choose another one, or 0 for any"
            ) from error
        self.browser = browser
        self._decoding = threading.Lock()  # one picture at a time: they come in dozens
        self.strip = lru_cache(_STRIPS)(self._strip)

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://{HOST}:{self.server_port}/"

    def _strip(self, row: int | None) -> bytes:
        """A PNG of a window's frames, or (None) of the query's. Raises DecodeError or OSError, which are not kept."""
        table, asked = self.browser.table, self.browser.asked
        if row is not None:
            file, start, end = str(table.file[row]), float(table.start[row]), float(table.end[row])
        else:
            assert asked is not None
            file, start, end = asked.query.file, asked.query.start, asked.query.end
        with self._decoding:
            clip = frames_between(path_of(file), start, end, 5)
        file = io.BytesIO()
        imsave(file, strip_picture(clip), format="png")
        return file.getvalue()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """Any page, picture or video."""
        try:
            self._answer()
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # the browser has heard enough: it seeks, or has gone

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a terminal is no place for every request."""

    def _answer(self) -> None:
        # A foreign page that gets its name to point here would otherwise read videos in the user's browser.
        allowed = {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}
        if self.headers.get("Host") not in allowed:
            return self._page(
                self.server.browser.notice("This server is for this machine alone."), HTTPStatus.FORBIDDEN
            )
        address = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(address.query).items()}
        browser = self.server.browser
        page: str | None = None
        try:
            match address.path.split("/")[1:]:
                case [""]:
                    page = browser.index(asked.get("find", ""), _number(asked.get("page"), 0))
                case ["file"]:
                    page = browser.file(_number(asked.get("number")), _number(asked.get("page"), 0))
                case ["alike"]:
                    page = browser.alike(_number(asked.get("row")))
                case ["browse.css"]:
                    return self._send(style().encode(), "text/css; charset=utf-8")
                case ["browse.js"]:
                    return self._send(SCRIPT.encode(), "text/javascript; charset=utf-8")
                case ["strip", "query"] if browser.asked is not None:
                    return self._send(self.server.strip(None), "image/png")
                case ["strip", row] if 0 <= _number(row) < len(browser.table):
                    return self._send(self.server.strip(_number(row)), "image/png")
                case ["video", number] if 0 <= _number(number) < len(browser.files):
                    return self._video(path_of(browser.files[_number(number)]))
        except UserError as error:  # DecodeError is one
            status = HTTPStatus.NOT_FOUND if isinstance(error, DecodeError) else HTTPStatus.BAD_REQUEST
            return self._page(browser.notice(str(error)), status)
        except FileNotFoundError as error:
            page = browser.notice(f"{error.filename} is not there any more.")
            return self._page(page, HTTPStatus.NOT_FOUND)
        except (PermissionError, IsADirectoryError) as error:
            page = browser.notice(f"{error.filename} cannot be played: {error.strerror}.")
            return self._page(page, HTTPStatus.NOT_FOUND)
        if page is None:
            return self._page(browser.notice("There is nothing here."), HTTPStatus.NOT_FOUND)
        self._page(page)

    def _page(self, html: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(html.encode(), "text/html; charset=utf-8", status)

    def _send(self, body: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._head(status, kind, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: HTTPStatus, kind: str, length: int, **more: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Content-Length": str(length),
            "Content-Security-Policy": POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _video(self, path: Path) -> None:
        """The file, or the part of it that was asked for, as seeking does."""
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            part = part_of(self.headers.get("Range"), size)
            if part is None:
                self._head(HTTPStatus.OK, kind, size, Accept_Ranges="bytes")
                part = range(size)
            elif not part:
                there = f"bytes */{size}"
                return self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, kind, 0, Content_Range=there)
            else:
                there = f"bytes {part.start}-{part.stop - 1}/{size}"
                self._head(
                    HTTPStatus.PARTIAL_CONTENT, kind, len(part), Content_Range=there, Accept_Ranges="bytes"
                )
            if self.command != "HEAD":
                self._copy(file, part.start, len(part))

    def _copy(self, file: BinaryIO, first: int, length: int) -> None:
        file.seek(first)
        while length:
            piece = file.read(min(_PIECE, length))
            if not piece:  # it has become shorter
                self.close_connection = True
                return
            self.wfile.write(piece)
            length -= len(piece)


def part_of(header: str | None, size: int) -> range | None:
    """The bytes that a Range header asks for (RFC 9110, section 14), empty if a file of ``size`` has none of them.

    None, the whole file, for no header, for one that is no single range of bytes (of 18 digits at most), and for one
    whose end comes before its start.
    """
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", (header or "").strip(), re.I | re.A)
    if not found or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:  # so many from the end
        return range(max(0, size - int(last)), size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, size) if last else size)


def browse(
    features: str | Path,
    port: int = 0,
    query: str | Path | None = None,
    start: float | None = None,
    end: float | None = None,
    top: int = 10,
    device: str = "auto",
    head: str | Path | None = None,
    encoder: str | Path | None = None,
) -> None:
    """Serves a folder of embeddings until it is interrupted; with ``query``, the first page is what is like it.

    Raises UserError as `table.read_embeddings`, `query.query_of_file` and `query.search` do, for an empty table, and if
    the port is taken.
    """
    table = read_embeddings(Path(features))
    if not len(table):
        raise UserError(f"{table.folder} holds no windows: there is nothing to browse; embed some videos")
    asked = (
        None
        if query is None
        else search(table, query_of_file(table, query, start, end, device, head, encoder), top)
    )
    with Server(Browser(table, asked), port) as server:
        print(f"{len(table):,} windows: {server.url} (for this machine alone; ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _number(text: str | None, default: int = -1) -> int:
    """A whole number from an address; ``default`` for anything else."""
    return int(text) if text is not None and re.fullmatch(r"\d{1,12}", text, re.A) else default
