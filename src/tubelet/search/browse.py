"""The pages of `tubelet browse`: files, their windows, what is like one of them, and a player."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlencode

import numpy as np

from tubelet.embed.table import Embeddings
from tubelet.report.found import between, clock
from tubelet.search.query import Found, Query, query_of_row, search

TOP, PER_PAGE = 20, 50

STYLE = """
main { max-width: 76rem; padding-top: 2rem; }
#player { display: none; position: sticky; top: 0; width: 100%; max-height: 45vh; background: #000; }
#player.shown { display: block; }
#told { min-height: 1.6em; color: var(--soft); }
form { margin: 1rem 0; } input, button { font: inherit; }
.hits { list-style: none; margin: 1rem 0; padding: 0; max-width: none; display: grid; gap: 1rem 1.4rem;
  grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); }
.hit button { display: block; width: 100%; padding: .4rem; text-align: left; cursor: pointer; color: inherit;
  background: var(--tint); border: 1px solid var(--line); border-radius: 6px; overflow-wrap: anywhere; }
.hit button.on { border-color: var(--c1); outline: 2px solid var(--c1); }
.hit img, .hit .missing { display: block; width: 100%; min-height: 2rem; border-radius: 3px; }
.hit .missing { padding: .4rem; background: #a0a0a0; color: #000000; }
.hit small { color: var(--soft); }
a { color: var(--c1); }
"""

# A hit is opened by a click, or by #play-NUMBER in the address, so that a link can lead to one.
# A player or a picture that fails says not why: the server does, where its address is asked for once more.
SCRIPT = """
"use strict";
const player = document.getElementById("player"), told = document.getElementById("told");
let until = Infinity, name = "";
const say = (words) => { told.textContent = words; };
async function reason(address) {
  try {
    const answer = await fetch(address, { headers: { Range: "bytes=0-0" } });
    if (answer.ok) return "";
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    return page.getElementById("notice")?.textContent ?? "";
  } catch {
    return "The server does not answer; is tubelet browse still running?";
  }
}
async function replaced(picture) {
  const why = await reason(picture.src);
  if (!why) return;
  const strip = document.createElement("span");
  strip.className = "missing";
  strip.textContent = why;
  picture.replaceWith(strip);
}
for (const picture of document.querySelectorAll(".hit img")) {
  picture.addEventListener("error", () => replaced(picture));
  if (picture.complete && !picture.naturalWidth) replaced(picture);  // it failed before this script was there
}
function open(button) {
  for (const other of document.querySelectorAll("button.on")) other.classList.remove("on");
  button.classList.add("on");
  player.classList.add("shown");
  const start = Number(button.dataset.start);
  until = Number(button.dataset.end);
  name = button.dataset.name;
  say("opening " + name);
  player.onloadedmetadata = () => { player.currentTime = start; };
  player.onseeked = () => {
    player.onseeked = null;
    say(name + " at " + player.currentTime.toFixed(1) + " s");
    player.play().catch(() => say(name + " at " + player.currentTime.toFixed(1) + " s; press play"));
  };
  player.onerror = async () => {
    const why = await reason(button.dataset.source);
    if (button.classList.contains("on")) say(why || "this browser cannot play " + button.dataset.name);
  };
  player.src = button.dataset.source;
}
player.ontimeupdate = () => {
  if (player.currentTime >= until) { until = Infinity; player.pause(); say("end of the stretch of " + name); }
};
for (const button of document.querySelectorAll(".hit button")) {
  button.addEventListener("click", () => {
    history.replaceState(null, "", "#" + button.id.replace("hit", "play"));
    open(button);
  });
}
const linked = () => {
  const button = document.getElementById(location.hash.replace("#play", "hit"));
  if (button) open(button);
};
addEventListener("hashchange", linked);
linked();
"""


def style() -> str:
    """The reports' style sheet, and what only these pages have."""
    return files("tubelet.report").joinpath("style.css").read_text(encoding="utf-8") + STYLE


class Browser:
    """The pages over a table; every address in them is relative to the root of the server.

    files: the names of the table's files, in the order of its rows; a file is asked for by its number here.
    asked: a search to begin with.
    """

    def __init__(self, table: Embeddings, asked: Found | None = None) -> None:
        self.table, self.asked = table, asked
        self.files = list(dict.fromkeys(map(str, table.file)))
        number = {name: place for place, name in enumerate(self.files)}
        self._file_of = np.array([number[str(name)] for name in table.file], np.int64)

    def index(self, wanted: str = "", page: int = 0) -> str | None:
        """The search to begin with, and the files whose names hold ``wanted``, `PER_PAGE` at a time.

        None beyond the last page.
        """
        named = [(n, file) for n, file in enumerate(self.files) if wanted.lower() in file.lower()]
        if page and page * PER_PAGE >= len(named):
            return None
        shown = named[page * PER_PAGE : (page + 1) * PER_PAGE]
        rows = "".join(self._file(number, file) for number, file in shown)
        turn = [(step, word) for step, word in ((page - 1, "earlier"), (page + 1, "more")) if step >= 0]
        links = " ".join(
            f'<a href="/?{escape(urlencode({"find": wanted, "page": step}))}">{word}</a>'
            for step, word in turn
            if step * PER_PAGE < len(named)
        )
        begin = ""
        if self.asked is not None and not wanted and not page:
            query = self.asked.query
            begin = (
                f"<h2>Like {escape(query.file)}, {between(query.start, query.end)}</h2>"
                f"{_list([self._query(query)])}{self._hits(self.asked)}"
            )
        return self._page(
            f"{begin}<h2>Files</h2>"
            '<form><label>Name holds <input name="find" type="search" value="'
            f'{escape(wanted)}"></label> <button>Find</button></form>'
            f"<p>{len(named):,} of {len(self.files):,} files, {len(self.table):,} windows in all.</p>"
            '<div class="scroll"><table><thead><tr><th>file</th><th>label</th><th>windows</th><th>until</th></tr>'
            f"</thead><tbody>{rows}</tbody></table></div><p>{links}</p>"
        )

    def file(self, number: int, page: int = 0) -> str | None:
        """A file's windows, `PER_PAGE` at a time; None if there is no such file, and beyond its last page."""
        rows = np.flatnonzero(self._file_of == number)
        if page * PER_PAGE >= len(rows):
            return None
        shown = rows[page * PER_PAGE : (page + 1) * PER_PAGE].tolist()
        hits = [
            self._hit(row, float(self.table.start[row]), float(self.table.end[row]), "", place)
            for place, row in enumerate(shown, 1)
        ]
        turn = [(page - 1, "earlier windows")] if page else []
        turn += [(page + 1, "later windows")] if len(rows) > (page + 1) * PER_PAGE else []
        links = " ".join(f'<a href="/file?number={number}&amp;page={step}">{word}</a>' for step, word in turn)
        return self._page(f"<h2>{escape(self.files[number])}</h2>{_list(hits)}<p>{links}</p>")

    def alike(self, row: int, top: int = TOP) -> str | None:
        """What is nearest to a window; None if there is no such row. Raises UserError as `query.search` does."""
        if not 0 <= row < len(self.table):
            return None
        found = search(self.table, query_of_row(self.table, row), top)
        start, end = float(self.table.start[row]), float(self.table.end[row])
        query = _list([self._hit(row, start, end, "the query", 0)])
        return self._page(
            f"<h2>Like {escape(str(self.table.file[row]))}, {between(start, end)}</h2>{query}{self._hits(found)}"
        )

    def notice(self, words: str) -> str:
        """A page that says one sentence."""
        return self._page(f'<p id="notice">{escape(words)}</p>')

    def _hits(self, found: Found) -> str:
        return _list(
            self._hit(hit.row, hit.start, hit.end, f"{rank}. cosine {hit.cosine:.3f}", rank)
            for rank, hit in enumerate(found.hits, 1)
        )

    def _query(self, query: Query) -> str:
        """What was asked, as a strip; it can be played where it is of the table, whose files alone are served."""
        if len(query.rows):
            return self._hit(int(query.rows[0]), query.start, query.end, "the query", 0, "query")
        name = escape(Path(query.file).name)
        return (
            f'<li class="hit"><img src="/strip/query" alt="frames of {name}">'
            f"{name} {between(query.start, query.end)} <small>the query</small></li>"
        )

    def _hit(self, row: int, start: float, end: float, note: str, place: int, strip: str = "") -> str:
        """A button that plays, with the frames of its best window (or ``strip``), and a link to what is like it."""
        name = Path(str(self.table.file[row])).name
        label = self.table.label[row]
        about = " · ".join(part for part in (note, label or "") if part)
        data = {
            "source": f"/video/{self._file_of[row]}",
            "start": f"{0.0 if np.isnan(start) else start:.3f}",
            "end": "Infinity" if np.isnan(end) else f"{end:.3f}",
            "name": name,
        }
        attributes = " ".join(f'data-{key}="{escape(value)}"' for key, value in data.items())
        return (
            f'<li class="hit"><button id="hit-{place}" {attributes}>'
            f'<img loading="lazy" src="/strip/{strip or row}" alt="frames of {escape(name)}">'
            f"{escape(name)} {between(start, end)} <small>{escape(about)}</small></button>"
            f'<a href="/alike?row={row}">find alike</a></li>'
        )

    def _file(self, number: int, file: str) -> str:
        rows = np.flatnonzero(self._file_of == number)
        end = float(self.table.end[rows].max())
        return (
            f'<tr><th scope="row"><a href="/file?number={number}">{escape(file)}</a></th>'
            f'<td class="words">{escape(self.table.label[rows[0]] or "–")}</td><td>{len(rows):,}</td>'
            f"<td>{'–' if np.isnan(end) else clock(end)}</td></tr>"
        )

    def _page(self, body: str) -> str:
        title = f"{self.table.folder.name}: {len(self.table):,} windows"
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<title>{escape(title)}</title><link rel="stylesheet" href="/browse.css"></head><body><main>'
            f'<header><h1><a href="/">{escape(title)}</a></h1></header>'
            '<video id="player" controls></video><p id="told" role="status"></p>'
            f'{body}</main><script src="/browse.js"></script></body></html>'
        )


def _list(hits: Iterable[str]) -> str:
    return f'<ul class="hits">{"".join(hits)}</ul>'
