"""Tables of words and of scores with their spread."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

_LEFT = ' class="words"'


class Score(NamedTuple):
    """A mean over ``n`` repetitions and their standard deviation; sd is None where n is 1."""

    mean: float
    sd: float | None = None
    n: int = 1


class Cell(NamedTuple):
    """A score in a table; ``best`` highlights it. ``digits`` behind the decimal point.

    interval: low and high, shown behind it. signed: a difference, with its sign in front.
    """

    score: Score
    best: bool = False
    digits: int = 3
    interval: tuple[float, float] | None = None
    signed: bool = False


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
    words = [any(_is_word(row[place]) for row in rows) for place in range(len(columns))]
    head = "".join(
        f'<th scope="col"{_LEFT if left else ""}>{escape(name)}</th>'
        for name, left in zip(columns, words, strict=True)
    )
    body = "".join(f"<tr>{_first(row[0])}{''.join(map(_cell, row[1:], words[1:]))}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead>{over}<tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _is_word(cell: str | Cell) -> bool:
    """Columns of numbers stand on the right, digits under digits; any word in a column puts it on the left."""
    return isinstance(cell, str) and not re.match(r"[-–−+]?\d|–$", cell)


def _first(cell: str | Cell) -> str:
    return f'<th scope="row">{escape(cell)}</th>' if isinstance(cell, str) else _cell(cell, False)


def _cell(cell: str | Cell, left: bool) -> str:
    if isinstance(cell, str):
        return f"<td{_LEFT if left else ''}>{escape(cell)}</td>"
    score, best, digits, interval, signed = cell
    form = f"{'+' if signed else ''}.{digits}f"
    spread = "" if score.sd is None else f' <span class="sd">± {score.sd:.{digits}f}</span>'
    if interval is not None:
        low, high = (_minus(f"{end:{form}}") for end in interval)
        spread += f' <span class="sd">[{low}, {high}]</span>'
    kind = ' class="best"' if best else ""
    return f"<td{kind}>{_minus(f'{score.mean:{form}}')}{spread}</td>"


def _minus(number: str) -> str:
    """With a minus sign as long as a plus."""
    return number.replace("-", "−")
