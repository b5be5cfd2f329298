"""The local page: nothing but the table's files leaves it, seeking works, and a real browser plays a hit."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from video import write_images, write_video

from tubelet.cli import main
from tubelet.embed.table import read_embeddings, save_embeddings
from tubelet.search.browse import PER_PAGE, Browser
from tubelet.search.query import query_of_file, search
from tubelet.search.server import Server, part_of

ABOUT = {
    "encoder": {"name": "toy", "digest": "0" * 16, "spec": "nowhere", "dim": 8},
    "layer": 2,
    "pool": "mean",
}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open the page with")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos that browsers play, one with a name that is markup; a torn one, a missing one, a folder of images."""
    root = tmp_path_factory.mktemp("browse")
    files = [write_video(root / "a & <b>.webm", 150, "libvpx"), write_video(root / "c.mp4", 150)]
    (root / "torn.avi").write_bytes(b"no video at all")
    files += [root / "torn.avi", root / "gone.mp4", write_images(root / "images")]
    (root / "secret.txt").write_text("not in the table")
    names = np.repeat([str(file) for file in files], 3)
    start = np.tile([0.0, 2.0, 4.0], 5)
    start[-3:] = np.nan
    vectors = np.random.default_rng(0).standard_normal((15, 8)).astype(np.float32)
    vectors[4] = vectors[1] + 0.01  # c.mp4 from 2 s is most like a & <b>.webm from 2 s
    label = [*["<i>", "x", None, None, None]]
    save_embeddings(
        root / "features", ABOUT, names.tolist(), start, start + 2, np.repeat(label, 3).tolist(), vectors
    )
    return root / "features"


@contextmanager
def serving(browser: Browser) -> Iterator[Server]:
    with Server(browser) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server(features: Path) -> Iterator[Server]:
    with serving(Browser(read_embeddings(features))) as server:
        yield server


def ask(
    server: Server, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body; ``path`` goes out as it is."""
    line = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    line.request(method, path, headers=headers)
    answer = line.getresponse()
    found = answer.status, answer.headers, answer.read()
    line.close()
    return found


class Page(HTMLParser):
    """Text, and the attributes of all tags."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.words, self.tags = "", list[tuple[str, dict[str, str | None]]]()
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def test_it_is_for_this_machine_alone(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1" and server.url.startswith("http://127.0.0.1:")
    for host in (
        "evil.example",
        f"evil.example:{server.server_port}",
        "127.0.0.1",
        f"0.0.0.0:{server.server_port}",
    ):
        assert ask(server, "/", Host=host)[0] == 403
        assert ask(server, "/video/0", Host=host)[0] == 403
    assert ask(server, "/", Host=f"localhost:{server.server_port}")[0] == 200


def test_pages_ask_for_nothing_from_outside(server: Server) -> None:
    for path in ("/", "/file?number=0", "/alike?row=1"):
        status, headers, html = ask(server, path)
        assert status == 200
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "http" not in policy and "unsafe" not in policy
        for _, attributes in Page(html).tags:
            for name in ("src", "href", "action", "data-source"):
                assert (attributes.get(name) or "/").startswith("/"), attributes
                assert not (attributes.get(name) or "/").startswith("//")
    for path in ("/browse.js", "/browse.css"):
        assert not re.search(rb"https?:|@import|url\((?!#)", ask(server, path)[2])


def test_names_are_text_never_markup(server: Server) -> None:
    for path in ("/", "/file?number=0", "/alike?row=4", "/?find=%3Cscript%3Ealert(1)%3C/script%3E"):
        page = Page(ask(server, path)[2])
        assert "b" not in {tag for tag, _ in page.tags} and "i" not in {tag for tag, _ in page.tags}
        assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "a & <b>.webm" in Page(ask(server, "/")[2]).words


TRAVERSAL = [
    "/secret.txt",
    "/../secret.txt",
    "/video/../secret.txt",
    "/video/..%2fsecret.txt",
    "/video/%2e%2e/%2e%2e/etc/passwd",
    "/video//etc/passwd",
    "//etc/passwd",
    "/etc/passwd",
    "/video/0/../../secret.txt",
    "/video/0%00.txt",
    "/video/-1",
    "/video/5",
    "/video/٣",
    "/video/1e0",
    "/video/",
    "/video",
    "/strip/15",
    "/strip/../../secret.txt",
    "/file?number=-1",
    "/file?number=../secret.txt",
    "/alike?row=99",
    "/alike",
    "/windows.parquet",
    "/vectors.npy",
]


@pytest.mark.parametrize("path", TRAVERSAL)
def test_only_what_is_in_the_table_is_served(server: Server, path: str) -> None:
    raw = path.encode("utf-8").decode("latin-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http.client.HTTPConnection, "_validate_path", lambda self, url: None)
        patch.setattr(
            http.client.HTTPConnection, "_encode_request", lambda self, request: request.encode("latin-1")
        )
        status, _, body = ask(server, raw)
    assert status == 404 and b"not in the table" not in body and b"root:" not in body


@settings(max_examples=60, deadline=None)
@given(st.text("abc/.%25e2f0\\", max_size=20))
def test_no_made_up_path_leads_to_a_file(server: Server, path: str) -> None:
    status, headers, _ = ask(server, f"/{path}")
    assert status == 404 or (status == 200 and headers["Content-Type"].startswith("text/html"))


def test_a_video_is_served_whole_and_in_parts(server: Server, features: Path) -> None:
    whole = (features.parent / "c.mp4").read_bytes()
    n = len(whole)
    status, headers, body = ask(server, "/video/1")
    assert (status, headers["Accept-Ranges"], headers["Content-Type"], body) == (
        200,
        "bytes",
        "video/mp4",
        whole,
    )
    for asked, first, last in (
        ("bytes=0-", 0, n - 1),
        ("bytes=0-0", 0, 0),
        (f"bytes=100-{10 * n}", 100, n - 1),
        ("bytes=-10", n - 10, n - 1),
        (f"bytes=-{10 * n}", 0, n - 1),
        (f"bytes={n - 1}-", n - 1, n - 1),
    ):
        status, headers, body = ask(server, "/video/1", Range=asked)
        assert (status, body) == (206, whole[first : last + 1])
        assert headers["Content-Range"] == f"bytes {first}-{last}/{n}"
        assert headers["Content-Length"] == str(len(body))
    status, headers, body = ask(server, "/video/1", Range=f"bytes={n}-")
    assert (status, headers["Content-Range"], body) == (416, f"bytes */{n}", b"")
    for odd in ("bytes=5-2", "bytes=a-b", "lines=1-2", "bytes=0-1,4-5", "bytes=-"):
        assert ask(server, "/video/1", Range=odd)[::2] == (200, whole)
    status, headers, body = ask(server, "/video/1", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, str(n), b"")


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(0, 60), st.integers(0, 60))
def test_parts_are_those_of_a_slice(size: int, first: int, last: int) -> None:
    every = list(range(size))
    assert list(part_of(f"bytes={first}-", size) or []) == every[first:]
    assert list(part_of(f"bytes=-{last}", size) or []) == (every[-last:] if last else [])
    between = part_of(f"bytes={first}-{last}", size)
    assert between is None if last < first else list(between or []) == every[first : last + 1]


def test_what_cannot_be_played_is_said(server: Server) -> None:
    for number, said in ((3, "not there"), (4, "cannot be played")):
        status, _, body = ask(server, f"/video/{number}")
        assert status == 404 and said in Page(body).words
    assert ask(server, "/strip/6")[0] == 404  # torn
    assert ask(server, "/strip/9")[0] == 404  # gone
    status, headers, picture = ask(server, "/strip/12")  # images
    assert (status, headers["Content-Type"], picture[:4]) == (200, "image/png", b"\x89PNG")
    assert ask(server, "/strip/4")[2] != ask(server, "/strip/5")[2]


def test_alike_is_what_search_finds(server: Server, features: Path) -> None:
    table = read_embeddings(features)
    page = Page(ask(server, "/alike?row=1")[2])
    buttons = [attributes for tag, attributes in page.tags if tag == "button"]
    assert [(one["data-source"], one["data-start"], one["data-end"]) for one in buttons[:2]] == [
        ("/video/0", "2.000", "4.000"),
        ("/video/1", "2.000", "4.000"),
    ]
    found = search(table, query_of_file(table, str(table.file[0]), 2.0), 20)
    assert len(buttons) == 1 + len(found.hits) and "1. cosine 1.000" in page.words
    assert [one["id"] for one in buttons] == [f"hit-{n}" for n in range(len(buttons))]


def test_files_are_found_by_name_and_turned_by_pages(tmp_path: Path) -> None:
    names = [f"{n:03d}.mp4" for n in range(PER_PAGE + 5)]
    times, vectors = np.zeros(len(names)), np.eye(len(names), 60, dtype=np.float32)
    save_embeddings(tmp_path / "f", ABOUT, names, times, times + 1, [None] * len(names), vectors)
    browser = Browser(read_embeddings(tmp_path / "f"))
    first, second, named = browser.index(), browser.index(page=1), browser.index("50.MP")
    assert first and "049.mp4" in first and "050.mp4" not in first
    assert second and "054.mp4" in second and 'page=0"' in second
    assert named and "050.mp4" in named and "051.mp4" not in named
    assert browser.index(page=2) is None and "0 of 55 files" in (browser.index("none") or "")
    assert browser.file(len(names)) is None and browser.alike(len(names)) is None


def test_a_files_windows_are_turned_by_pages_to_both_sides(tmp_path: Path) -> None:
    count = 2 * PER_PAGE + 1
    times, vectors = np.arange(count, dtype=float), np.ones((count, 3), np.float32)
    save_embeddings(tmp_path / "f", ABOUT, ["a.mp4"] * count, times, times + 1, [None] * count, vectors)
    with serving(Browser(read_embeddings(tmp_path / "f"))) as server:
        turns = []
        for page in range(3):
            status, _, html = ask(server, f"/file?number=0&page={page}")
            assert status == 200
            turns.append(re.findall(r'href="/file\?number=0&amp;page=(\d)">(\w+) windows<', html.decode()))
        assert turns == [
            [("1", "later")],
            [("0", "earlier"), ("2", "later")],
            [("1", "earlier")],
        ]
        for beyond in ("/file?number=0&page=3", "/?page=1"):
            status, _, html = ask(server, beyond)
            assert status == 404 and "There is nothing here." in Page(html).words


def test_it_may_begin_with_a_search(features: Path) -> None:
    table = read_embeddings(features)
    asked = search(table, query_of_file(table, str(table.file[0]), 2.0), 3)
    page = Page((Browser(table, asked).index() or "").encode())
    buttons = [attributes for tag, attributes in page.tags if tag == "button" and "data-source" in attributes]
    assert len(buttons) == 1 + 3 and "the query" in page.words
    assert [(one["id"], one["data-source"], one["data-start"]) for one in buttons[:1]] == [
        ("hit-0", "/video/0", "2.000")
    ]


def test_the_query_is_shown_where_it_is_not_in_the_table_too(features: Path, server: Server) -> None:
    """Its frames, but no way to play it: only the table's files are served."""
    table = read_embeddings(features)
    inside = query_of_file(table, str(table.file[3]), 2.0)
    outside = str(write_video(features.parent / "new & <i>.mp4", 150))
    for query, buttons in ((inside, 3), (replace(inside, file=outside, rows=np.zeros(0, np.int64)), 2)):
        with serving(Browser(table, search(table, query, 2))) as asked:
            page = Page(ask(asked, "/")[2])
            assert sum(tag == "button" and "data-source" in had for tag, had in page.tags) == buttons
            assert f"{Path(query.file).name} 0:02.0–0:04.0 the query" in page.words
            assert "i" not in {tag for tag, _ in page.tags}
            (shown,) = (had for _, had in page.tags if had.get("src") == "/strip/query")
            assert shown["alt"] == f"frames of {Path(query.file).name}"
            status, headers, picture = ask(asked, "/strip/query")
            assert (status, headers["Content-Type"], picture[:4]) == (200, "image/png", b"\x89PNG")
            assert picture == ask(asked, "/strip/4")[2]  # c.mp4 is the same video
    assert ask(server, "/strip/query")[0] == 404  # nothing was asked


# a process that was begun in the background ignores SIGINT, and so would its children
INTERRUPTIBLE = """
import signal, sys
from tubelet.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main(sys.argv[1:]))
"""


def test_the_command_serves_until_it_is_interrupted(features: Path) -> None:
    words = [sys.executable, "-c", INTERRUPTIBLE, "browse", str(features)]
    running = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert running.stdout is not None
        line = running.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:\d+/", line)
        assert found, line
        with urllib.request.urlopen(found[0], timeout=20) as answer:
            assert b"15 windows" in answer.read()
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0
    finally:
        running.kill()
        running.wait()


def test_what_is_wrong_is_said_in_one_line(
    server: Server, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = np.zeros((0, 8), np.float32)
    save_embeddings(tmp_path / "empty", ABOUT, [], np.zeros(0), np.zeros(0), [], empty)
    for words, said in (
        ([str(tmp_path / "none")], "does not exist"),
        ([str(tmp_path / "empty")], "holds no windows"),
        ([str(features), "--port", str(server.server_port)], "cannot be used"),
        ([str(features), "--port", "99999"], "cannot be used"),
        ([str(features), "--start", "1"], "--query"),
        ([str(features), "--query", "nothing.mp4"], "neither in"),
    ):
        assert main(["browse", *words]) == 2
        assert said in capsys.readouterr().err


def opened(address: str, folder: Path) -> str:
    """The page as a browser has it after its scripts have run."""
    assert CHROMIUM is not None
    words = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
    ]
    words += ["--disable-dev-shm-usage", "--mute-audio", "--no-first-run", "--disable-background-networking"]
    words += ["--virtual-time-budget=8000", "--dump-dom", address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@needs_browser
def test_a_browser_plays_a_hit_from_its_start(server: Server, tmp_path: Path) -> None:
    # behind # is the hit that the script opens, by the same function as a click
    dom = opened(f"{server.url}alike?row=4#play-1", tmp_path)
    said = re.search(r'<p id="told"[^>]*>(.*?)</p>', dom)
    assert said and re.match(r"a &amp; &lt;b&gt;\.webm at 2\.\d s|end of the stretch of a", said[1]), said
    assert re.search(
        r'<video[^>]*class="shown"[^>]*src="/video/0"|<video[^>]*src="/video/0"[^>]*class="shown"', dom
    )
    assert re.search(r'<button id="hit-1"[^>]*class="on"', dom)


@needs_browser
def test_a_browser_says_what_it_cannot_play(server: Server, tmp_path: Path) -> None:
    dom = opened(f"{server.url}file?number=2#play-1", tmp_path)
    assert "this browser cannot play torn.avi" in dom


@needs_browser
def test_a_browser_says_what_is_gone_or_cannot_be_shown(
    server: Server, features: Path, tmp_path: Path
) -> None:
    gone = features.parent / "gone.mp4"
    dom = opened(f"{server.url}file?number=3#play-1", tmp_path)
    said = re.search(r'<p id="told"[^>]*>(.*?)</p>', dom)
    assert said and said[1] == f"{gone} is not there any more."
    assert dom.count(f'<span class="missing">{gone}: the file is not there</span>') == 3 and "<img" not in dom
    dom = opened(f"{server.url}file?number=1", tmp_path)
    assert 'class="missing"' not in dom and dom.count("<img") == 3


def test_a_range_of_endless_digits_is_the_whole_file() -> None:
    """Python refuses to make a number of more than 4,300 digits, which no file has."""
    for many in ("9" * 19, "9" * 5000):
        assert part_of(f"bytes={many}-", 10) is None and part_of(f"bytes=-{many}", 10) is None
    assert list(part_of("bytes=0-" + "9" * 18, 3) or []) == [0, 1, 2]
