"""What search finds on labelled video, with encoders of ours, and how fast a ViT-L goes over the same files.

    python benchmarks/search.py [NAME=]ENCODER ... --data LABELS --out runs/search [--window 10]
        [--large] [--against NAME]

Every window is embedded by each encoder, in a process of its own whose anonymous memory is polled, and `tubelet search
--evaluate` judges the table. Of each file as many clips are averaged as it takes to see the whole window. --large
first writes a file as Meta publishes V-JEPA 2's ViT-L (both encoders, predictor, optimizer state; 3.6 GB), its weights
random, and embeds with it too: 16 frames of 112 pixels, spread over the window. --against: the encoder whose mAP in
other groups is taken from that of the others, query by query. Result: benchmarks/search.json, and the table in
Markdown. Whole tables are kept, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from embed import embed

from tubelet.embed.table import read_embeddings
from tubelet.evaluate.retrieval import ask, map_difference
from tubelet.export.names import named_as
from tubelet.export.weights import load_encoder
from tubelet.files import read_json, replace_file, write_json
from tubelet.nn.published import VJEPA2
from tubelet.nn.vit import build_vit
from tubelet.recipes.run import environment
from tubelet.train.parallel import World

LARGE = "ViT-L, V-JEPA 2's layout"
FRAMES, CROP = 16, 112
ASIDE = ("encoder", "digest", "provenance", "name", "features", "table")  # of a judgement: where things lay


def write_large(file: Path) -> Path:
    """A file with everything that Meta's have, under their names; weights as initialised, the averaged ones first."""
    if file.exists():
        return file
    states: list[dict[str, torch.Tensor]] = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build_vit("vit_large")
        model.init_weights()
        states.append({f"module.backbone.{n}": t.clone() for n, t in named_as(model, VJEPA2).items()})
    target, online = states
    predictor = {f"module.backbone.mask_tokens.{i}": torch.zeros(1, 1, 384) for i in range(10)}
    predictor |= {"module.backbone.predictor_embed.weight": torch.zeros(384, 1024)}
    moments = {
        i: {"step": torch.tensor(1.0), "exp_avg": t, "exp_avg_sq": t * t}
        for i, t in enumerate(online.values())
    }
    with replace_file(file) as draft:
        torch.save(
            {
                "encoder": online,
                "predictor": predictor,
                "opt": {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]},
                "scaler": None,
                "target_encoder": target,
                "epoch": 10,
                "loss": 0.5,
                "batch_size": 12,
                "world_size": 256,
                "lr": 1e-4,
            },
            draft,
        )
    return file


def segments(spec: str, seconds: float) -> int:
    """How many clips of the encoder show a window of that many seconds, at 25 frames a second."""
    geometry = load_encoder(spec).geometry
    rate = geometry.fps if geometry.fps is not None else 25 / geometry.frame_step
    return max(1, math.ceil(seconds * rate / geometry.frames))


def judge(features: Path, out: Path) -> dict[str, Any]:
    """What `tubelet search --evaluate` finds."""
    if not (out / "retrieval.json").exists():
        command = [sys.executable, "-m", "tubelet", "search", str(features), "--evaluate", "--out", str(out)]
        subprocess.run(command, check=True)
    return {k: v for k, v in read_json(out / "retrieval.json").items() if k not in ASIDE}


def place_of(label: str, out: Path) -> Path:
    """Where an encoder's table and judgement are."""
    return out / label.replace(" ", "-").replace("/", "-").replace(",", "").replace("'", "")


def measure(spec: str, label: str, asked: argparse.Namespace, knobs: list[str]) -> dict[str, Any]:
    """Cost of the table and how well it is searched."""
    place = place_of(label, asked.out)
    cost = place / "cost.json"
    if not cost.exists():
        windows = ["--window", f"{asked.window:g}s", "--stride", f"{asked.window:g}s"]
        write_json(cost, embed(spec, asked.data, place / "features", [*windows, *knobs]))
    return {**read_json(cost), "knobs": knobs, "found": judge(place / "features", place / "judged")}


def difference(place: Path, other: Path) -> dict[str, float]:
    """mAP in other groups minus the other encoder's on the same windows, with its paired interval over groups."""
    one, two = (read_embeddings(folder / "features") for folder in (place, other))
    label, group = (
        np.unique(np.array(column, str), return_inverse=True)[1] for column in (one.label, one.group)
    )
    asked = [ask(np.asarray(table.vectors, np.float64), label, group) for table in (one, two)]
    found = map_difference(asked[0], asked[1], group)
    return {"value": found.value, "low": found.low, "high": found.high}


def table(measured: dict[str, dict[str, Any]]) -> str:
    """A row per encoder; points of 100."""
    classes = [row["class"] for row in next(iter(measured.values()))["found"]["classes"]]
    head = [
        "encoder",
        "mAP",
        "other groups",
        "difference",
        "hit@1",
        "recall@10",
        *classes,
        "video-s/s",
        "GiB",
    ]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, one in measured.items():
        found = one["found"]
        scores = [found[key] for key in ("map", "map_other_groups", "hit@1", "recall@10")]
        scores += [row["map_other_groups"] for row in found["classes"]]
        told = ["-" if score is None else f"{100 * score:.1f}" for score in scores]
        apart = one.get("difference")
        points = [f"{100 * apart[key]:+.1f}" for key in ("value", "low", "high")] if apart else []
        told.insert(2, f"{points[0]} [{points[1]}, {points[2]}]" if points else "")
        told += [f"{one['rate']:.3g}", f"{one['peak_anonymous_gib']:.2f}"]
        rows.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoders", nargs="+", metavar="[NAME=]ENCODER")
    parser.add_argument("--data", type=Path, required=True, help="list with path, label, group")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--window", type=float, default=10.0, help="seconds")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--against", metavar="NAME", help="an encoder that the others are compared with")
    parser.add_argument("--result", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    measured = {}
    for word in asked.encoders:
        name, _, spec = word.rpartition("=")
        knobs = ["--segments", str(segments(spec, asked.window))]
        measured[name or spec] = measure(spec, name or spec, asked, knobs)
    if asked.large:
        file = write_large(asked.out / "vitl.pt")
        knobs = ["--frames", str(FRAMES), "--fps", f"{FRAMES / asked.window:g}", "--crop-size", str(CROP)]
        measured[LARGE] = measure(str(file), LARGE, asked, knobs)
    if asked.against:
        for name, one in measured.items():
            if name != asked.against:
                places = (place_of(each, asked.out) for each in (name, asked.against))
                one["difference"] = {"from": asked.against, **difference(*places)}
    machine = {k: v for k, v in environment(World()).items() if k != "command"}
    about = {"environment": machine, "window": asked.window, "encoders": measured}
    asked.result.write_text(json.dumps(about, indent=1) + "\n")
    print(table(measured))


if __name__ == "__main__":
    main()
