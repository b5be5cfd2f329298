"""The section on how alike layers are: neighbours as curves, all pairs as maps."""

from __future__ import annotations

import math

from tubelet.report.curves import draw_png
from tubelet.report.depth.analysis import CKA, Analysis, number
from tubelet.report.depth.charts import add_panels, has_gap, print_panels, transition_panel
from tubelet.report.heatmap import Heatmap, heatmap_drawer
from tubelet.report.page import Page


def add_similarity(page: Page, found: Analysis, figures: dict[str, bytes]) -> None:
    """Neighbours and all pairs by each kind of CKA; the pictures for print go into ``figures``."""
    panels = [panel for metric in CKA if (panel := transition_panel(found, metric))]
    maps = {metric: _heatmaps(found, metric) for metric in CKA}
    if not panels and not any(maps.values()):
        return
    page.heading("How alike layers are")
    if panels:
        add_panels(
            page,
            found,
            panels,
            CKA,
            "How alike each layer is to the one before it.",
            "High: the block changes little; low: it rearranges the clips.",
        )
        figures["neighbours"] = print_panels(found, panels)
    for metric, drawn in maps.items():
        if not drawn:
            continue
        shows = (
            f"{found.name(metric)} of every layer with every other, within each encoder and between encoders."
        )
        computed = " ".join(
            [
                "Yellow: alike, blue: different; all these maps have the same scale.",
                *(["×: undefined."] if has_gap(drawn) else []),
                *found.how([metric]),
            ]
        )
        if metric == "cka_linear":
            page.heatmaps(drawn, shows, computed)
            figures["similarity"] = draw_png([heatmap_drawer(one) for one in drawn])
        else:
            with page.folded(f"The same by {found.name(metric)}"):
                page.heatmaps(drawn, shows, computed)


def _heatmaps(found: Analysis, metric: str) -> list[Heatmap]:
    mine = found.map_order(metric)
    every = [value for entry in mine for row in entry["values"] for value in map(number, row)]
    finite = [value for value in every if math.isfinite(value)]
    if not finite:
        return []
    low, high = math.floor(10 * min(finite)) / 10, max(1.0, *finite)
    return [
        Heatmap(
            entry["one"] if entry["one"] == entry["other"] else f"{entry['one']} and {entry['other']}",
            [str(layer) for layer in entry["layers_one"]],
            [str(layer) for layer in entry["layers_other"]],
            [[number(value) for value in row] for row in entry["values"]],
            min(low, high - 0.1),
            high,
            "layer" if entry["one"] == entry["other"] else f"layer of {_short(entry['other'])}",
            "layer" if entry["one"] == entry["other"] else f"layer of {_short(entry['one'])}",
        )
        for entry in mine
    ]


def _short(name: str, length: int = 22) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
