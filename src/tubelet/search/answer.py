"""A search's answer for people: lines for a terminal, and a page of filmstrips."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tubelet.embed.table import Embeddings, read_embeddings
from tubelet.report.found import Stretch, add_stretches, between
from tubelet.report.page import Key, Page
from tubelet.report.table import Cell, Score
from tubelet.search.hits import Hit
from tubelet.search.judge import COLUMNS, ELSEWHERE, Judged, judge_search
from tubelet.search.query import Found, path_of, query_of_file, search

TOP = 10  # stretches, unless told otherwise


def answer(
    features: str | Path,
    query: str | Path,
    start: float | None = None,
    end: float | None = None,
    top: int = TOP,
    exact: bool = False,
    out: str | Path | None = None,
    device: str = "auto",
    head: str | Path | None = None,
    encoder: str | Path | None = None,
) -> Found:
    """Searches a folder of embeddings and prints what is nearest; with ``out`` also writes it.

    encoder: where the table's encoder is now, if not where it was. out: folder for results.csv, results.json and
    report.html. The rest as `query.query_of_file` and `query.search` have it, and so are the errors.
    """
    table = read_embeddings(Path(features))
    found = search(table, query_of_file(table, query, start, end, device, head, encoder), top, exact)
    for line in lines_of(found):
        print(line)
    if out is not None:
        found.save(Path(out), about(table))
        page = found_page(table, found).write(Path(out) / "report.html")
        print(f"  {Path(out) / 'results.csv'}\n  {page}")
    given = {"start": start, "end": end, "top": top if top != TOP else None, "head": head, "encoder": encoder}
    given["device"] = device if device != "auto" else None
    words = ["tubelet", "browse", str(features), "--query", str(query), *_option_words(given)]
    print(f"to play them: {shlex.join(words)}")
    return found


def evaluate(features: str | Path, out: str | Path | None = None, seed: int = 0) -> Judged:
    """Judges a folder of embeddings by its labels and prints it; errors as of `judge.judge_search`.

    out: folder for retrieval.csv, retrieval.json and report.html.
    """
    table = read_embeddings(Path(features))
    judged = judge_search(table, seed)
    for line in judged_lines(judged):
        print(line)
    if out is not None:
        judged.save(Path(out), about(table))
        page = judged_page(table, judged).write(Path(out) / "report.html")
        print(f"  {Path(out) / 'retrieval.csv'}\n  {page}")
    return judged


def about(table: Embeddings) -> dict[str, Any]:
    """What results say of the table they are from."""
    return {"features": str(table.folder), "encoder": table.about["encoder"], "layer": table.about["layer"]}


def lines_of(found: Found) -> Iterator[str]:
    """The query, a line per hit, and how it was searched."""
    query = found.query
    yield f"like {query.file}, {between(query.start, query.end)}:"
    rows = [
        [f"{rank}", f"{hit.cosine:.3f}", between(hit.start, hit.end), hit.file, hit.label or ""]
        for rank, hit in enumerate(found.hits, 1)
    ]
    yield from _aligned([["", "cosine", "time", "file", "label"], *rows])
    yield f"  {_how(found)}"


def found_page(table: Embeddings, found: Found) -> Page:
    """The query and its hits as filmstrips and as a table."""
    query = found.query
    name = Path(query.file).name
    page = Page(
        f"Like {name}, {between(query.start, query.end)}",
        f"What {table.about['encoder']['name']} finds most alike in {table.folder}.",
    )
    page.keys(
        [
            Key("windows", f"{found.windows:,}", f"in {len(set(map(str, table.file))):,} files"),
            Key("found", f"{len(found.hits)}", "stretches"),
            Key("nearest", f"{found.hits[0].cosine:.3f}" if found.hits else "–", "cosine"),
        ]
    )
    asked = Stretch(path_of(query.file), query.start, query.end, "query", _place(name, query))
    strips = [_stretch(rank, hit) for rank, hit in enumerate(found.hits, 1)]
    add_stretches(
        page,
        [[asked, *strips]],
        "The query, and what is nearest to it.",
        "Frames evenly spread over each stretch; beneath its rank the file, its time and the cosine. "
        + _how(found),
    )
    page.table(
        ["rank", "time", "cosine", "windows", "label", "file"],
        [
            [
                f"{rank}",
                between(hit.start, hit.end),
                f"{hit.cosine:.3f}",
                f"{hit.windows}",
                hit.label or "–",
                hit.file,
            ]
            for rank, hit in enumerate(found.hits, 1)
        ],
        "The same as a table.",
        "Windows: how many of the nearest overlapped and were joined.",
    )
    return page


def judged_lines(judged: Judged) -> Iterator[str]:
    """Means, then a line per class."""
    columns = _columns(judged)
    rows = [["", *columns, "windows"]]
    means = _means(judged)
    rows.append(["all", *(f"{means[name]:.3f}" for name in columns), f"{judged.windows}"])
    for name, values in judged.classes.items():
        shown = ["–" if math.isnan(values[k]) else f"{values[k]:.3f}" for k in columns]
        rows.append([name, *shown, f"{values['windows']:.0f}"])
    yield from _aligned(rows, words=0)
    yield f"  {_judged_how(judged)}"


def judged_page(table: Embeddings, judged: Judged) -> Page:
    """Means with intervals, and a row per class."""
    page = Page(
        "Do windows find their class?",
        f"{table.about['encoder']['name']} in {table.folder}, windows of the same file left out.",
    )
    columns, means, intervals = _columns(judged), _means(judged), dict(judged.overall.intervals)
    if judged.elsewhere is not None:
        intervals[ELSEWHERE] = judged.elsewhere.intervals["map"]
    every = [Cell(Score(means[k]), interval=intervals[k]) for k in columns]
    classes = [
        [
            name,
            *("–" if math.isnan(values[k]) else Cell(Score(values[k])) for k in columns),
            f"{values['windows']:.0f}",
        ]
        for name, values in judged.classes.items()
    ]
    page.table(
        ["class", *columns, "windows"],
        [["all", *every, f"{judged.windows}"], *classes],
        "Retrieval by cosine.",
        f"Means over windows that ask. {_judged_how(judged)} In brackets: 95 % intervals, "
        f"{'groups' if judged.groups else 'files'} drawn again.",
    )
    return page


def _columns(judged: Judged) -> tuple[str, ...]:
    return COLUMNS if judged.elsewhere is None else ("map", ELSEWHERE, *COLUMNS[1:])


def _means(judged: Judged) -> dict[str, float]:
    other = {} if judged.elsewhere is None else {ELSEWHERE: judged.elsewhere.map}
    return {**judged.overall.values, **other}


def _judged_how(judged: Judged) -> str:
    told = f"{judged.overall.queries} windows of {judged.files} files asked; those of their own file do not count."
    if judged.elsewhere is not None:
        told += f" In {ELSEWHERE}, those of their own group do not count either ({judged.groups} groups)."
    elif judged.groups:
        told += f" No class occurs in two of the {judged.groups} groups, so {ELSEWHERE} is undefined."
    else:
        told += " No groups are known: files that are cuts of one recording find each other."
    if judged.overall.skipped:
        told += f" {judged.overall.skipped} could not: their class is in no other file."
    if judged.left_out:
        told += f" {judged.left_out} windows have no label."
    if judged.drawn:
        told += " These are files drawn at random; there are too many windows to rank all."
    return told


def _how(found: Found) -> str:
    manner = "all compared" if found.exact else "candidates from the index; --exact compares all"
    return f"{found.windows:,} windows, {manner}; windows that overlap the query are left out."


def _stretch(rank: int, hit: Hit) -> Stretch:
    label = f" · {hit.label}" if hit.label else ""
    return Stretch(
        path_of(hit.file),
        hit.start,
        hit.end,
        f"{rank}",
        f"{_place(Path(hit.file).name, hit)} · {hit.cosine:.3f}{label}",
    )


def _place(name: str, one: Any) -> str:
    return f"{name} {between(one.start, one.end)}"


def _option_words(given: Mapping[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        if value is not None:
            # all digits of a number: at 12345.67 s another stretch begins than at 12345.7 s
            yield from (f"--{name}", repr(float(value)) if isinstance(value, float) else str(value))


def _aligned(rows: list[list[str]], words: int | None = None) -> Iterator[str]:
    """Columns of equal width; ``words``: the one that stands on the left, as all do that hold no numbers."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    left = {words} if words is not None else {2, 3, 4}
    for row in rows:
        cells = [
            cell.ljust(width) if place in left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"  {'  '.join(cells)}".rstrip()
