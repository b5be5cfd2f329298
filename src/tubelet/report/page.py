"""The page: sections of text, key figures, tables, curves and filmstrips, written as one HTML file.

Every method takes plain text and escapes it; nothing given by a caller is ever read as HTML.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from html import escape
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from tubelet.files import write_text
from tubelet.report.curves import Dots, Panel, draw_panels
from tubelet.report.filmstrip import Strip, draw_strips
from tubelet.report.frontier import Frontier, draw_frontiers
from tubelet.report.heatmap import Heatmap, draw_heatmaps
from tubelet.report.scatter import Scatter, draw_scatters
from tubelet.report.table import Cell, draw_table


class Key(NamedTuple):
    """One key figure: a short ``label``, the ``value`` as it is to be read, and a ``note`` under it."""

    label: str
    value: str
    note: str = ""


class Page:
    """A report under construction; sections appear in the order in which they are added."""

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self.lead = lead
        self._parts: list[str] = []
        self._headings: list[tuple[str, str]] = []

    def heading(self, title: str) -> None:
        """A section; it also becomes an entry of the table of contents."""
        slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        anchor = f"{slug}-{len(self._headings) + 1}"
        self._headings.append((title, anchor))
        self._parts.append(f'<h2 id="{anchor}">{escape(title)}</h2>')

    def text(self, *paragraphs: str) -> None:
        """Plain sentences, one argument per paragraph; `backticks` set code."""
        self._parts += [f"<p>{_prose(paragraph)}</p>" for paragraph in paragraphs]

    def points(self, sentences: Sequence[str]) -> None:
        """A list of plain sentences."""
        self._parts.append(f"<ul>{''.join(f'<li>{_prose(sentence)}</li>' for sentence in sentences)}</ul>")

    def code(self, text: str) -> None:
        """A command or a configuration, as it is."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def keys(self, keys: Sequence[Key]) -> None:
        """A row of key figures."""
        cells = [
            f"<div><dt>{escape(key.label)}</dt><dd>{escape(key.value)}"
            + (f"<small>{escape(key.note)}</small>" if key.note else "")
            + "</dd></div>"
            for key in keys
        ]
        self._parts.append(f'<dl class="keys">{"".join(cells)}</dl>')

    def verdict(self, sentence: str, good: bool | None) -> None:
        """A judgement that must not be overlooked; ``good`` is None where there was nothing to judge by."""
        kind = {True: "good", False: "warning", None: "unknown"}[good]
        self._parts.append(f'<div class="verdict {kind}">{_prose(sentence)}</div>')

    def curves(
        self, panels: Sequence[Panel | Dots], shows: str, computed: str = "", names: Sequence[str] = ()
    ) -> None:
        """Small multiples with the sentence that says what they show and how it was computed.

        names: all that the page's figures have in common, so that each keeps its colour in all of them.
        """
        self._figure(draw_panels(panels, names), shows, computed)

    def heatmaps(self, maps: Sequence[Heatmap], shows: str, computed: str = "") -> None:
        """Tables of numbers as colours, each with its scale."""
        self._figure(draw_heatmaps(maps), shows, computed)

    def scatters(
        self, panels: Sequence[Scatter], shows: str, computed: str = "", names: Sequence[str] = ()
    ) -> None:
        """Points with their regression lines; names as in `curves`."""
        self._figure(draw_scatters(panels, names), shows, computed)

    def frontiers(self, panels: Sequence[Frontier], shows: str, computed: str = "") -> None:
        """Scores against what they cost."""
        self._figure(draw_frontiers(panels), shows, computed)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str | Cell]],
        shows: str,
        computed: str = "",
        groups: Sequence[tuple[str, int]] = (),
    ) -> None:
        """Rows of text or of scores; ``groups`` are headings over so many columns each, after the first."""
        self._figure(draw_table(columns, rows, groups), shows, computed)

    def filmstrips(self, groups: Sequence[Sequence[Strip]], shows: str, computed: str = "") -> None:
        """Clips as rows of frames; the strips of one group stand together."""
        drawn = "".join(draw_strips(group) for group in groups)
        wide = (
            " wide"
            if any(strip.frames > Strip._field_defaults["frames"] for g in groups for strip in g)
            else ""
        )
        self._figure(f'<div class="groups{wide}">{drawn}</div>', shows, computed)

    def picture(self, png: bytes, shows: str, computed: str = "") -> None:
        """A PNG, carried inside the page; ``shows`` is also its text for those who do not see it."""
        data = base64.b64encode(png).decode()
        image = f'<img alt="{escape(shows)}" style="max-width: 100%" src="data:image/png;base64,{data}">'
        self._figure(image, shows, computed)

    def fold(self, summary: str, text: str) -> None:
        """Something long that only a few will read, folded away."""
        self._parts.append(
            f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"
        )

    @contextmanager
    def folded(self, summary: str) -> Iterator[None]:
        """Whatever is added meanwhile is folded away under ``summary``."""
        self._parts.append(f"<details><summary>{escape(summary)}</summary>")
        yield
        self._parts.append("</details>")

    def html(self) -> str:
        """The whole page; it asks for nothing outside itself, and its policy forbids it to."""
        links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for title, anchor in self._headings)
        return "\n".join(
            [
                "<!doctype html>",
                '<html lang="en">',
                '<head><meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
                "img-src data:; style-src 'unsafe-inline'\">",
                f"<title>{escape(self.title)}</title>",
                f"<style>{files('tubelet.report').joinpath('style.css').read_text(encoding='utf-8')}</style>",
                "</head>",
                f"<body><main><header><h1>{escape(self.title)}</h1>",
                f'<p class="lead">{_prose(self.lead)}</p>' if self.lead else "",
                f"<nav>{links}</nav>" if len(self._headings) > 2 else "",
                "</header>",
                *self._parts,
                f"<footer>Written by tubelet {_version()} on "
                f"{datetime.now().astimezone():%d %B %Y, %H:%M %Z}. This file asks for nothing from outside."
                "</footer>",
                "</main></body></html>",
                "",
            ]
        )

    def write(self, path: Path | str) -> Path:
        """Writes the page whole or not at all; raises UserError if the disk is full."""
        path = Path(path)
        write_text(path, self.html())
        return path

    def _figure(self, body: str, shows: str, computed: str) -> None:
        caption = f"<b>{_prose(shows)}</b> {_prose(computed)}".rstrip()
        self._parts.append(f"<figure>{body}<figcaption>{caption}</figcaption></figure>")


def _prose(text: str) -> str:
    """Escaped text in which `backticks` have become code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _version() -> str:
    try:
        return version("tubelet")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "(not installed)"
