"""Tables of words and of scores with their spread."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple


class Score(NamedTuple):
    """A mean over ``n`` repetitions and their standard deviation; sd is None where n is 1."""

    mean: float
    sd: float | None = None
    n: int = 1


class Cell(NamedTuple):
    """A score in a table; ``best`` highlights it. ``digits`` behind the decimal point."""

    score: Score
    best: bool = False
    digits: int = 3


def best_of(scores: Sequence[Score | None]) -> int | None:
    """The place of the highest mean among those that are there, or None if fewer than two are."""
    there = [(score.mean, place) for place, score in enumerate(scores) if score is not None]
    return max(there)[1] if len(there) > 1 else None


def draw_table(
    columns: Sequence[str], rows: Sequence[Sequence[str | Cell]], groups: Sequence[tuple[str, int]] = ()
) -> str:
    """An HTML table; raises ValueError if a row has another length than ``columns``."""
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} cells in a table of {len(columns)} columns: {row}")
    over = ""
    if groups:
        cells = "".join(f'<th colspan="{span}">{escape(name)}</th>' for name, span in groups)
        over = f'<tr class="group"><th></th>{cells}</tr>'
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(f"<tr>{_first(row[0])}{''.join(_cell(cell) for cell in row[1:])}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead>{over}<tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _first(cell: str | Cell) -> str:
    return f'<th scope="row">{escape(cell)}</th>' if isinstance(cell, str) else _cell(cell)


def _cell(cell: str | Cell) -> str:
    if isinstance(cell, str):
        words = ' class="words"' if len(cell) > 24 else ""
        return f"<td{words}>{escape(cell)}</td>"
    score, best, digits = cell
    spread = "" if score.sd is None else f' <span class="sd">± {score.sd:.{digits}f}</span>'
    kind = ' class="best"' if best else ""
    return f"<td{kind}>{score.mean:.{digits}f}{spread}</td>"
