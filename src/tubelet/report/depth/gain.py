"""The section on what each layer gains on the one before it, and whether its geometry tells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from tubelet.report.curves import draw_png
from tubelet.report.depth.analysis import Analysis, number
from tubelet.report.depth.charts import add_panels, places, transition_panel
from tubelet.report.page import Page
from tubelet.report.scatter import Scatter, dot_signs, scatter_drawer

_OPEN = 6  # charts of single transitions; more are folded away
_FITTED = 3  # points that a transition needs for a chart of its own


def add_gain(page: Page, found: Analysis, figures: dict[str, bytes]) -> None:
    """Gain against geometry, then gain alone; the picture for print goes into ``figures``."""
    gains = [panel for metric in ("gain_linear", "gain_map") if (panel := transition_panel(found, metric))]
    about = found.all["geometry_vs_gain"]
    points = [
        (entry, number(entry.get("cka")), number(entry.get("gain")))
        for entry in about["points"]
        if math.isfinite(number(entry.get("cka"))) and math.isfinite(number(entry.get("gain")))
    ]
    if not gains and not points:
        return
    page.heading("Geometry against gain")
    if points:
        fits = {fit["transition"]: fit for fit in about["fits"]}
        chosen = [("all", points)]
        for transition in fits:
            some = [point for point in points if _transition(point[0]) == transition]
            if len(some) >= _FITTED:
                chosen.append((transition, some))
        charts = [_scatter(found, transition, some, fits.get(transition)) for transition, some in chosen]
        page.scatters(
            charts[:1],
            "Does a block that changes the geometry more also gain more? One point per encoder and transition.",
            " ".join(
                [
                    *found.how(["geometry_vs_gain"]),
                    "Across: CKA of a layer with the next; up: the score of the next minus that of the first.",
                    *([_fit_told(fits["all"])] if "all" in fits else []),
                ]
            ),
            found.names,
        )
        signs = dot_signs([n for n in found.names if any(n in c.points for c in charts)], places(found))
        figures["geometry"] = draw_png([scatter_drawer(chart, places(found)) for chart in charts], signs)
        if charts[1:]:
            told = [_fit_told(fits[transition]) for transition, _ in chosen[1:]]
            with page.folded("Each transition by itself") if len(told) > _OPEN else nullcontext():
                page.scatters(
                    charts[1:], "The same for each transition by itself.", " ".join(told), found.names
                )
        if fits:
            with page.folded("Every regression line in numbers"):
                page.table(
                    ["transition", "slope", "intercept", "r", "n"],
                    [
                        [name, *(_plain(fit.get(key)) for key in ("slope", "intercept", "r", "n"))]
                        for name, fit in fits.items()
                    ],
                    "Slope and intercept of gain on CKA, correlation r, number of points n.",
                    "A line through two points always fits.",
                )
    if gains:
        add_panels(
            page,
            found,
            gains,
            ("gain_linear", "gain_map"),
            "What each layer gains on the one before it, as a share (0.01 is one percent point).",
        )


def _scatter(
    found: Analysis, transition: str, points: Sequence[tuple[dict[str, Any], float, float]], fit: Any
) -> Scatter:
    pairs: dict[str, list[tuple[float, float]]] = {}
    for entry, cka, gain in points:
        pairs.setdefault(entry["encoder"], []).append((cka, gain))
    slope, intercept = (number((fit or {}).get(key)) for key in ("slope", "intercept"))
    line = (slope, intercept) if math.isfinite(slope) and math.isfinite(intercept) else None
    title = "All transitions" if transition == "all" else f"Layers {_arrow(transition)}"
    return Scatter(title, pairs, "CKA of neighbours", "gain", line, 0.0)


def _fit_told(fit: Mapping[str, Any]) -> str:
    name = "All transitions" if fit["transition"] == "all" else f"Layers {_arrow(fit['transition'])}"
    return f"{name}: slope {_plain(fit.get('slope'))}, r {_plain(fit.get('r'))}, n {_plain(fit.get('n'))}."


def _transition(entry: Mapping[str, Any]) -> str:
    return f"{entry['from']} -> {entry['to']}"


def _arrow(transition: str) -> str:
    return transition.replace("->", "→")


def _plain(value: Any) -> str:
    shown = number(value)
    return f"{shown:.3g}".replace("-", "−") if math.isfinite(shown) else "–"
