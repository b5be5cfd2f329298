"""How many labels a probe may learn from: so many per class, or a share of what each class has."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tubelet.errors import UserError


@dataclass(frozen=True)
class Amount:
    """``count`` labels per class, or the share ``percent`` of each class's training clips: one of the two is None.

    Raises UserError for a count below 1 or a percentage outside (0, 100].
    """

    count: int | None = None
    percent: float | None = None

    def __post_init__(self) -> None:
        assert (self.count is None) != (self.percent is None)
        if self.count is not None and self.count < 1:
            raise UserError(f"labels={self.count}: at least 1 label per class is needed")
        if self.percent is not None and not 0 < self.percent <= 100:
            raise UserError(f"labels={self}: a percentage lies above 0 and up to 100")

    def __str__(self) -> str:
        return str(self.count) if self.percent is None else f"{self.percent:.12g}%"

    def of(self, clips: int) -> int:
        """How many of a class's ``clips``: at least 1, at most all."""
        wanted = self.count if self.percent is None else round(clips * self.percent / 100)
        assert wanted is not None
        return min(clips, max(1, wanted))


def read_amounts(text: str) -> tuple[Amount, ...]:
    """What a list such as ``1,5,10%,100%`` means; repeated entries count once.

    Raises UserError if an entry is neither a whole number nor a percentage.
    """
    found: list[Amount] = []
    for word in (part.strip() for part in text.split(",")):
        if re.fullmatch(r"\d+", word):
            amount = Amount(count=int(word))
        elif re.fullmatch(r"\d+(\.\d+)?\s*%", word):
            amount = Amount(percent=float(word.rstrip("% ")))
        else:
            raise UserError(
                f'labels="{text}": "{word}" is neither a number of labels per class nor a percentage; '
                "write a list such as 1,5,10%,100%"
            )
        if amount not in found:
            found.append(amount)
    return tuple(found)
