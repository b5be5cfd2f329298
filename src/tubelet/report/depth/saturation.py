"""The section on how many layers are worth keeping."""

from __future__ import annotations

import math
from typing import Any

from tubelet.report.depth.analysis import Analysis, interval, number
from tubelet.report.depth.charts import depth_panel, place_of, print_panels
from tubelet.report.page import Page
from tubelet.report.table import Cell, Score


def add_saturation(page: Page, found: Analysis, figures: dict[str, bytes]) -> None:
    """Every cut as curves and as a table; the picture for print goes into ``figures``."""
    there = [entry for entry in found.all["saturation"] if entry["cuts"]]
    if not there:
        return
    page.heading("How many layers are worth keeping")
    panels = []
    for key, title, level in (
        ("score", "Score (%)", None),
        ("difference", "Difference (points)", ("none", 0.0)),
    ):
        rows = {
            entry["encoder"]: [
                (
                    place_of(found, entry["encoder"], cut["layers"]),
                    *_percent(cut.get(key)),
                )
                for cut in sorted(entry["cuts"], key=lambda cut: cut["layers"])
            ]
            for entry in there
        }
        if panel := depth_panel(
            found, title, rows, level, x_label="layers kept" if found.depth else "share of depth kept"
        ):
            panels.append(panel)
    if panels:
        page.curves(
            panels,
            "What an encoder reaches when it is cut, and the difference to the whole one.",
            " ".join(["Shaded: the interval of each value.", *found.how(["saturation"])]),
            found.names,
        )
        figures["saturation"] = print_panels(found, panels)
    rows_told: list[list[str | Cell]] = []
    for entry in there:
        for cut in entry["cuts"]:
            shares = [number(cut.get(key)) for key in ("flops_share", "time_share", "parameters_share")]
            rows_told.append(
                [
                    entry["encoder"],
                    str(cut["layers"]),
                    _cell(cut.get("score"), best=cut["layers"] == entry.get("keep")),
                    _cell(cut.get("difference"), signed=True),
                    *(f"{100 * share:.0f} %" if math.isfinite(share) else "–" for share in shares),
                ]
            )
    page.table(
        ["encoder", "layers kept", "score (%)", "difference (points)", "FLOPs", "time", "parameters"],
        rows_told,
        "Every cut: its score, the difference to the whole encoder, and what is left of the price.",
        "In brackets: intervals; the difference is paired. Marked: the fewest layers that are enough.",
    )
    kept = [entry for entry in there if entry.get("keep") is not None]
    if kept:
        page.text("To keep only those layers:")
        page.code(
            "\n".join(
                f"tubelet export ENCODER --layers {entry['keep']} --out DIR   # {entry['encoder']}"
                for entry in kept
            )
        )


def _percent(value: Any) -> tuple[float, float, float]:
    middle, low, high = interval(value)
    return 100 * middle, 100 * low, 100 * high


def _cell(value: Any, best: bool = False, signed: bool = False) -> str | Cell:
    """A score in percent with its interval."""
    mean, low, high = _percent(value)
    if not math.isfinite(mean):
        return "–"
    ends = (low, high) if math.isfinite(low) and math.isfinite(high) else None
    return Cell(Score(mean), best, 1, ends, signed)
