"""What every page must keep to, read from its HTML."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Tags(HTMLParser):
    """Collects tags, and fails on one that is closed without having been opened."""

    VOID = frozenset({"meta", "img", "br", "path", "use", "line", "rect", "!doctype"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> without <{tag}>"


def assert_asks_for_nothing(text: str) -> None:
    """No script, no link, and every address either inside the page or data."""
    for tag, attrs in Tags(text).seen:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert (attrs.get(name) or "#").startswith(("#", "data:image/png;base64,")), (tag, attrs)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
