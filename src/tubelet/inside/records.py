"""Numbers on their way into analysis.json: undefined ones keep the reason why they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol


class HasInterval(Protocol):
    """A number and what chance could make of it."""

    @property
    def value(self) -> float:
        """The number."""
        ...

    @property
    def low(self) -> float:
        """Where 95 % begin."""
        ...

    @property
    def high(self) -> float:
        """Where 95 % end."""
        ...


def number(value: float | None) -> float | None:
    """``value`` as JSON can hold it: None for what is not a finite number."""
    return None if value is None or not math.isfinite(value) else float(value)


def interval(found: HasInterval | None) -> dict[str, float | None] | None:
    """value, low and high, or None."""
    return (
        None if found is None else {name: number(getattr(found, name)) for name in ("value", "low", "high")}
    )


@dataclass
class Records:
    """One row per encoder, layer, metric and target."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        encoder: str,
        layer: int,
        metric: str,
        value: float | HasInterval | None,
        target: str | None = None,
        undefined: str | None = None,
    ) -> None:
        """A number, with its interval if it has one. undefined: why it is none, if it is not finite."""
        low = high = None
        if value is not None and not isinstance(value, float | int):
            value, low, high = value.value, value.low, value.high
        told = number(value)
        self.rows.append(
            {
                "encoder": encoder,
                "layer": layer,
                "metric": metric,
                "target": target,
                "value": told,
                "low": None if told is None else number(low),
                "high": None if told is None else number(high),
                "undefined": None if told is not None else undefined or "not a finite number",
            }
        )
