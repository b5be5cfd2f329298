"""An analysis of encoders layer by layer: analysis.json read, checked and looked up."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tubelet.errors import UserError

SCORES = (  # shares that are shown in percent
    "linear",
    "macro_recall",
    "map",
    "hit@1",
    "hit@5",
    "hit@10",
    "grating",
    "double",
    "linear_occluded",
)
CKA = ("cka_linear", "cka_debiased", "cka_rbf")
_CHANCE = ("linear", "linear_occluded")  # the metrics that about.data.chance is the level of
# Every entry of a list in analysis.json has these; what else it has is looked up where it is used.
_ENTRIES: dict[str, dict[str, type | tuple[type, ...]]] = {
    "encoders": {"name": str, "depth": int},
    "layers": {"encoder": str, "layer": int, "metric": str},
    "transitions": {"encoder": str, "from": int, "to": int},
    "maps": {
        "one": str,
        "other": str,
        "metric": str,
        "layers_one": list,
        "layers_other": list,
        "values": list,
    },
    "saturation": {"encoder": str, "sentence": str, "cuts": list},
    "influence": {"encoder": str, "clip": str, "picture": str},
    "through": {"encoder": str, "steps": list, "layers": list, "series": list},
    "levels": {"metric": str, "name": str, "value": (int, float)},
    "geometry_vs_gain.points": {"encoder": str, "from": int, "to": int},
    "geometry_vs_gain.fits": {"transition": str},
}
_NUMBERS = ("value", "low", "high", *CKA)


class Reading(NamedTuple):
    """A metric at one layer: its value and interval, nan for null, and why it is undefined if it is."""

    layer: int
    value: float
    low: float
    high: float
    undefined: str


class Analysis:
    """An analysis, looked up by encoder, metric and target; ``checked`` is what `check_analysis` returns.

    all: the analysis. about, data: its parts about and about.data. names: of the encoders, in their order.
    depths: name -> number of blocks. depth: the depth that all encoders with blocks share, None if they differ.
    """

    def __init__(self, checked: dict[str, Any]) -> None:
        self.all = checked
        self.about: dict[str, Any] = checked["about"]
        self.data: dict[str, Any] = self.about.get("data") or {}
        self.names = [entry["name"] for entry in checked["encoders"]]
        self.depths = {entry["name"]: entry["depth"] for entry in checked["encoders"]}
        # pixels have no blocks: they fit on any axis
        deep = {depth for depth in self.depths.values() if depth}
        self.depth = deep.pop() if len(deep) == 1 else None
        self._readings: dict[tuple[str, str, str | None], list[Reading]] = {}
        for entry in checked["layers"]:
            reading = Reading(
                entry["layer"],
                number(entry.get("value")),
                number(entry.get("low")),
                number(entry.get("high")),
                entry.get("undefined") or "",
            )
            key = entry["encoder"], entry["metric"], entry.get("target")
            self._readings.setdefault(key, []).append(reading)
        for readings in self._readings.values():
            readings.sort(key=lambda reading: reading.layer)

    def measures(self, encoder: str | None = None) -> list[tuple[str, str | None]]:
        """Metrics with their targets, as they come; of one encoder, or of all."""
        there = [(m, target) for name, m, target in self._readings if encoder in (None, name)]
        return list(dict.fromkeys(there))

    def targets(self, metric: str) -> list[str]:
        """What a metric is measured for beside as a whole, as it comes."""
        return [target for name, target in self.measures() if name == metric and target is not None]

    def readings(self, encoder: str, metric: str, target: str | None = None) -> list[Reading]:
        """A metric at every layer where it was measured, by layer."""
        return self._readings.get((encoder, metric, target), [])

    def name(self, metric: str) -> str:
        """What a metric is called, with its unit."""
        about = self.all["definitions"].get(metric, {})
        unit = "%" if metric in SCORES else about.get("unit", "")
        return f"{about.get('name', metric.replace('_', ' '))}{unit and f' ({unit})'}"

    def how(self, metrics: Iterable[str]) -> list[str]:
        """A sentence for each metric on what it is and where it comes from."""
        there = [(m, self.all["definitions"][m]) for m in metrics if m in self.all["definitions"]]
        return [
            f"{about.get('name', m)}: {about['text']}"
            + (f" Source: {about['source']}." if about.get("source") else "")
            for m, about in there
            if about.get("text")
        ]

    def level(self, metric: str, target: str | None) -> tuple[str, float] | None:
        """Name and height of a metric's reference line, in percent for scores; None if it has none."""
        scale = scale_of(metric)
        for entry in self.all["levels"]:
            if (entry["metric"], entry.get("target")) == (metric, target):
                return entry["name"], scale * entry["value"]
        chance = number(self.data.get("chance"))
        return ("chance", scale * chance) if metric in _CHANCE and math.isfinite(chance) else None

    def map_order(self, metric: str) -> list[dict[str, Any]]:
        """The maps of a metric, within encoders first."""
        mine = [entry for entry in self.all["maps"] if entry["metric"] == metric]
        return sorted(mine, key=lambda entry: entry["one"] != entry["other"])


def read_analysis(file: Path) -> Analysis:
    """Reads and checks an analysis.json; raises UserError if it is missing, damaged or of another shape."""
    again = f"run `tubelet analyze ENCODER --data DATA --out {file.parent}` again"
    try:
        analysis = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{file} is not there, so there is nothing to draw; {again}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged ({error}); {again}") from error
    return Analysis(check_analysis(analysis, str(file)))


def check_analysis(analysis: Any, where: str) -> dict[str, Any]:
    """The analysis with an empty list for every part that it lacks; ``where`` is what messages call it.

    Raises UserError if it has another shape.
    """

    def need(right: bool, what: str) -> None:
        if not right:
            raise UserError(
                f"{where} is not an analysis that this tubelet reads: {what}; run the analysis again"
            )

    need(isinstance(analysis, dict), "it is no object")
    for key in ("about", "encoders", "layers"):
        need(key in analysis, f'"{key}" is missing')
    found = analysis | {key: analysis.get(key) or [] for key in _ENTRIES if "." not in key}
    found["definitions"] = analysis.get("definitions") or {}
    for key in ("about", "definitions"):
        need(isinstance(found[key], dict), f'"{key}" is no object')
    about = analysis.get("geometry_vs_gain") or {}
    need(isinstance(about, dict), '"geometry_vs_gain" is no object')
    found["geometry_vs_gain"] = {key: about.get(key) or [] for key in ("points", "fits")}
    nested = {f"geometry_vs_gain.{key}": entries for key, entries in found["geometry_vs_gain"].items()}
    for key, fields in _ENTRIES.items():
        entries = nested.get(key, found.get(key))
        need(isinstance(entries, list), f'"{key}" is no list')
        for place, entry in enumerate(entries):
            which = f"{key}[{place}]"
            need(isinstance(entry, dict), f"{which} is no object")
            for field, kind in fields.items():
                need(isinstance(entry.get(field), kind), f'{which} has no proper "{field}"')
            for field in _NUMBERS:
                need(isinstance(entry.get(field), int | float | None), f'"{field}" of {which} is no number')
    names = {entry["name"] for entry in found["encoders"]}
    need(bool(names), "there are no encoders")
    need(len(names) == len(found["encoders"]), "two encoders have one name")
    for key in ("layers", "transitions", "saturation", "influence"):
        for place, entry in enumerate(found[key]):
            need(entry["encoder"] in names, f"{key}[{place}] is of an unknown encoder {entry['encoder']!r}")
    for place, entry in enumerate(found["maps"]):
        size = len(entry["layers_one"]), len(entry["layers_other"])
        need(_is_table(entry["values"], *size), f"maps[{place}] has no {size[0]} x {size[1]} values")
    for place, entry in enumerate(found["through"]):
        size = len(entry["layers"]), len(entry["steps"])
        for series in entry["series"]:
            right = isinstance(series, dict) and isinstance(series.get("metric"), str)
            need(
                right and _is_table(series.get("values"), *size),
                f"through[{place}] has no {size[0]} x {size[1]} values",
            )
    for place, entry in enumerate(found["saturation"]):
        right = all(isinstance(cut, dict) and isinstance(cut.get("layers"), int) for cut in entry["cuts"])
        need(right, f'saturation[{place}] has cuts without "layers"')
    return found


def scale_of(metric: str) -> int:
    """What a metric is multiplied by where it is shown: 100 for scores, else 1."""
    return 100 if metric in SCORES else 1


def number(value: Any) -> float:
    """The value as a float, nan for null and for what is no number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def interval(value: Any) -> tuple[float, float, float]:
    """Value, low and high of an entry that has them, or of a bare number without an interval."""
    if isinstance(value, dict):
        return number(value.get("value")), number(value.get("low")), number(value.get("high"))
    return number(value), math.nan, math.nan


def _is_table(values: Any, rows: int, columns: int) -> bool:
    right = isinstance(values, list) and len(values) == rows
    return right and all(isinstance(row, list) and len(row) == columns for row in values)
