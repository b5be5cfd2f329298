"""The tables of an analysis by layers, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tubelet.files import write_text
from tubelet.report.depth.analysis import CKA, check_analysis


def write_tables(analysis: Mapping[str, Any], folder: Path) -> None:
    """layers.csv, transitions.csv, similarity.csv (one row per cell of a map), saturation.csv and through.csv.

    A null is an empty field, numbers are written so that they read back as they were. Each file is whole or absent;
    what ``analysis`` has no rows of has no file, and an earlier one is removed.
    Raises UserError if the analysis is not of the shape that `depth_report` reads, or if the disk is full.
    """
    checked = check_analysis(dict(analysis), "the analysis")
    rows: dict[str, list[dict[str, Any]]] = {
        "layers": [
            {
                key: entry.get(key)
                for key in ("encoder", "layer", "metric", "target", "value", "low", "high", "undefined")
            }
            for entry in checked["layers"]
        ],
        "transitions": [
            {
                **{key: entry.get(key) for key in ("encoder", "from", "to", *CKA)},
                **_flat("gain_linear", entry.get("gain_linear")),
                **_flat("gain_map", entry.get("gain_map")),
            }
            for entry in checked["transitions"]
        ],
        "similarity": [
            {
                "one": entry["one"],
                "other": entry["other"],
                "metric": entry["metric"],
                "layer_one": one,
                "layer_other": other,
                "value": value,
            }
            for entry in checked["maps"]
            for one, row in zip(entry["layers_one"], entry["values"], strict=True)
            for other, value in zip(entry["layers_other"], row, strict=True)
        ],
        "saturation": [
            {
                "encoder": entry["encoder"],
                "layers": cut["layers"],
                "kept": cut["layers"] == entry.get("keep"),
                **_flat("score", cut.get("score")),
                **_flat("difference", cut.get("difference")),
                **{key: cut.get(key) for key in ("flops_share", "time_share", "parameters_share")},
            }
            for entry in checked["saturation"]
            for cut in entry["cuts"]
        ],
        "through": [
            {
                "encoder": entry["encoder"],
                "metric": series["metric"],
                "layer": layer,
                "step": step,
                "value": value,
            }
            for entry in checked["through"]
            for series in entry["series"]
            for layer, row in zip(entry["layers"], series["values"], strict=True)
            for step, value in zip(entry["steps"], row, strict=True)
        ],
    }
    for name, lines in rows.items():
        file = Path(folder) / f"{name}.csv"
        if not lines:
            file.unlink(missing_ok=True)
            continue
        text = io.StringIO()
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        write_text(file, text.getvalue())


def _flat(name: str, value: Any) -> dict[str, Any]:
    entry = value or {}
    return {name: entry.get("value"), f"{name}_low": entry.get("low"), f"{name}_high": entry.get("high")}
