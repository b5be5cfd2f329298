"""What each depth knows: end-to-end, frozen bottom up, and blockwise encoders on real, unlabelled videos.

    python benchmarks/depth.py --sets FOLDER --out runs/depth [--steps 400] [--seeds 0,1,2] [--only NAMES]

FOLDER holds one folder per set, each with a labels.csv (path, label, split, group). All training splits together,
labels unread, pretrain one encoder per method and seed at one geometry; sequential blockwise learning runs for as
many steps per block as the others in all, as in its paper. Then at every block boundary, on each set: a linear
probe (mean token, standardised, logistic regression, C = 1) over group-disjoint folds, retrieval within the set,
with and without the query's own group, linear CKA with the boundary below; and each block's local loss at the end.
Result: benchmarks/depth.json and tables in Markdown. Interrupted, it goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from real_sets import join
from torch import Tensor

from tubelet.analysis.health import linear_cka
from tubelet.data.decode import DecodeError
from tubelet.data.manifest import read_manifest
from tubelet.evaluate.linear import LinearProbe
from tubelet.evaluate.metrics import macro_recall
from tubelet.evaluate.retrieval import retrieval
from tubelet.evaluate.source import Views, read_views
from tubelet.evaluate.tasks import Task, folds, read_task
from tubelet.export.weights import Geometry, load_encoder
from tubelet.nn.vit import ViT
from tubelet.recipes import run_recipe
from tubelet.recipes.run import environment
from tubelet.report.history import load_metrics
from tubelet.train.parallel import World

DEPTHS = (3, 6, 9, 12)
GEOMETRY: dict[str, Any] = {
    "model": "96x12x3",
    "frames": 16,
    "frame_step": 3,
    "crop_size": 48,
    "patch_size": 8,
    "tubelet_size": 4,
    "positions": "sincos",
    "precision": "fp32",
    "flip": 0.0,  # left and right may differ in meaning
}
PIXELS: dict[str, Any] = {
    "mask": "tube",
    "mask_ratio": 0.9,
    "lr": 1e-3,
    "decoder_dim": 48,
    "decoder_depth": 2,
}
LATENTS: dict[str, Any] = {"predictor_dim": 48, "predictor_depth": 2}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "E2E MAE": ("blockwise", {**PIXELS, "regime": "end_to_end"}),
    "MAE + freezing": ("layerlock", {**PIXELS, "decoder": "separate", "target": "pixels"}),
    "LayerLock": ("layerlock", {**PIXELS, "decoder": "separate"}),
    "V-JEPA": ("vjepa", LATENTS),
    "V-JEPA + LayerLock": ("vjepa-layerlock", LATENTS),
    "blockwise simultaneous": ("blockwise", PIXELS),
    "blockwise sequential": ("blockwise", {**PIXELS, "regime": "sequential"}),
}


def slug(name: str) -> str:
    """A folder name."""
    return name.lower().replace(" + ", "-").replace(" ", "-")


class Clips:
    """All readable clips of one set, decoded once, with its task."""

    def __init__(self, folder: Path, geometry: Geometry) -> None:
        self.name = folder.name
        manifest = read_manifest(folder / "labels.csv").readable()
        read, unreadable = [], []
        for row, video in enumerate(manifest.videos):
            try:
                read.append(read_views(video, geometry, Views())[0])
            except DecodeError as error:
                logging.warning("%s", error)
                unreadable.append(row)
        self.task: Task = read_task(manifest.videos, folder.name, excluded=unreadable)
        self.clips: Tensor = torch.stack(read)

    def means(self, model: ViT) -> dict[int, np.ndarray]:
        """depth -> mean token [n, D] of every clip."""
        found: dict[int, list[Tensor]] = {depth: [] for depth in DEPTHS}
        with torch.no_grad():
            for part in self.clips.split(64):
                for depth, tokens in model.layers(part, DEPTHS).items():
                    found[depth].append((model.norm(tokens) if depth == model.depth else tokens).mean(1))
        return {depth: torch.cat(parts).numpy() for depth, parts in found.items()}

    def judge(self, features: np.ndarray, seed: int) -> dict[str, float]:
        """Linear probe over folds, and retrieval."""
        label, right = self.task.label, np.zeros(len(self.task.label), bool)
        for fold in folds(self.task, 5, seed):
            probe = LinearProbe(features[fold.train], label[fold.train], len(self.task.classes)).fit(1.0)
            right[fold.test] = probe.scores(features[fold.test]).argmax(1) == label[fold.test]
        within = retrieval(features, label)
        across = retrieval(features, label, self.task.group)
        return {
            "top1": float(right.mean()),
            "macro_recall": macro_recall(label, right),
            "map": within.map,
            "map_other_groups": across.map,
            "hit@1": within.hits[1],
        }


def alike(one: np.ndarray, other: np.ndarray) -> float:
    """Linear CKA of two sets of features of the same clips."""
    return linear_cka(*(torch.from_numpy(rows - rows.mean(0)) for rows in (one, other)))


def local_losses(run: Path) -> dict[int, float]:
    """depth -> the mean of the last ten logged losses of the block that ends there."""
    rows = load_metrics(run / "metrics.jsonl")
    blocks = sorted(key for key in {key for row in rows for key in row} if key.startswith("loss/block"))
    ends = DEPTHS if len(blocks) > 1 else DEPTHS[-1:]
    return {
        depth: statistics.mean([row[key] for row in rows if key in row][-10:])
        for depth, key in zip(ends, blocks, strict=False)
    }


def train(name: str, seed: int, asked: argparse.Namespace, data: Path) -> Path:
    """The finished run of a method and seed, trained now unless it is there."""
    recipe, own = METHODS[name]
    folder = asked.out / f"{slug(name)}-{seed}"
    if (folder / "run.json").is_file():
        return folder
    run_recipe(
        recipe,
        data=str(data),
        out=str(folder),
        steps=asked.steps * (len(DEPTHS) if own.get("regime") == "sequential" else 1),
        batch_size=asked.batch_size,
        seed=seed,
        cache_dir=str(asked.out / "frames"),
        workers=0,
        keep=1,
        log_every=10,
        resume=any((folder / "checkpoints").glob("step-*")),
        **GEOMETRY,
        **own,
    )
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--names", default="ucf101_20,tennis,wagon")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default=",".join(METHODS), help="methods to run")
    parser.add_argument("--result", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    sets = [asked.sets / name for name in asked.names.split(",")]
    data = join(sets, asked.out / "train.csv")
    geometry = Geometry(GEOMETRY["frames"], None, GEOMETRY["frame_step"], GEOMETRY["crop_size"])
    clips = [Clips(folder, geometry) for folder in sets]
    machine = {name: value for name, value in environment(World()).items() if name != "command"}
    results: list[dict[str, Any]] = []
    for seed in map(int, asked.seeds.split(",")):
        for name in ["random", *asked.only.split(",")]:
            if name == "random":
                some = train(next(iter(METHODS)), seed, asked, data)
                spec, cost, local = f"random:{some}@{seed + 100}", {}, {}
            else:
                folder = train(name, seed, asked, data)
                about = json.loads((folder / "run.json").read_text())
                spec, cost = str(folder), {k: about[k] for k in ("train_flops", "seconds")}
                cost["health"] = about["verdict"]["state"]
                local = local_losses(folder)
            model = load_encoder(spec).model
            assert isinstance(model, ViT)
            for there in clips:
                means = there.means(model)
                for below, depth in zip((None, *DEPTHS), DEPTHS, strict=False):
                    found = {"method": name, "seed": seed, "set": there.name, "depth": depth}
                    found |= {**there.judge(means[depth], 0), **cost}
                    found |= {"cka_with_below": alike(means[below], means[depth])} if below else {}
                    results.append(found | ({"local_loss": local[depth]} if depth in local else {}))
            last = [
                r for r in results if r["method"] == name and r["seed"] == seed and r["depth"] == DEPTHS[-1]
            ]
            logging.info("%s", {r["set"]: (round(r["top1"], 3), round(r["map"], 3)) for r in last})
        asked.result.write_text(
            json.dumps({"environment": machine, "geometry": GEOMETRY, "results": results}, indent=1) + "\n"
        )
    for metric in ("top1", "macro_recall", "map", "map_other_groups", "cka_with_below", "local_loss"):
        print(f"\n{metric}\n{markdown(results, metric)}")


def markdown(results: list[dict[str, Any]], metric: str) -> str:
    """A table: methods down, depths of each set across; mean and standard deviation over seeds, in hundredths."""
    results = [r for r in results if metric in r]
    columns = list(dict.fromkeys((r["set"], r["depth"]) for r in results))
    lines = [
        "| method | " + " | ".join(f"{where} {depth}" for where, depth in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for name in dict.fromkeys(r["method"] for r in results):
        cells = []
        for column in columns:
            values = [
                100 * r[metric] for r in results if r["method"] == name and (r["set"], r["depth"]) == column
            ]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ± {spread:.1f}" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
