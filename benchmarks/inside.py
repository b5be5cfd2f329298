"""What small encoders know at every depth: trained here on three real sets, and looked into.

    python benchmarks/inside.py --sets FOLDER --out runs/inside [--steps 2000] [--seeds 0,1] [--figures docs/figures]

FOLDER holds one folder per set, each with a labels.csv (path, label, split, group). All training splits together,
labels unread, pretrain at one geometry (that of benchmarks/depth.py): VideoMAE end to end, the same encoder in four
blocks with losses of their own, and (first seed) a SALT student with its teacher. Then `tubelet analyze` of all of
them and of an untrained encoder, on each set by five group-disjoint folds, with the gratings on the first set; the
first seed's runs are also followed through their checkpoints. Result: benchmarks/inside.json, tables in Markdown
and the figures of the first seed. Interrupted, it goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import torch
from depth import DEPTHS, GEOMETRY, LATENTS, PIXELS, local_losses
from PIL import Image  # matplotlib, which we depend on, depends on it
from real_sets import join

from tubelet.inside.analyze import analyze
from tubelet.inside.footage import Manner
from tubelet.inside.look import Amounts
from tubelet.recipes import run_recipe
from tubelet.recipes.run import environment
from tubelet.train.parallel import World

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "end-to-end": ("blockwise", {**PIXELS, "regime": "end_to_end"}),
    "blockwise": ("blockwise", PIXELS),
    "salt": ("salt", LATENTS),
}
FIRST_SEED_ONLY = ("salt",)
LAYERS = (0, *DEPTHS)  # the boundaries of the four blocks
SHOWN = ("decodability", "retrieval", "gratings", "neighbours", "similarity", "tokens", "spectrum", "through")
KEPT = 10  # checkpoints of a run
TOLD = {
    "linear": "linear",
    "macro_recall": "macro recall",
    "map": "mAP",
    "grating": "gratings",
    "double": "double gratings",
    "occdrop": "OccDrop",
    "occdrop_grating": "OccDrop single",
    "occdrop_double": "OccDrop double",
    "patch_similarity": "token similarity",
    "effective_rank": "effective rank",
}
FORMS = {name: (100, 1) for name in ("linear", "macro_recall", "map", "grating", "double")} | {
    "effective_rank": (1, 1)
}


def train(name: str, seed: int, data: Path, out: Path, steps: int) -> Path:
    """The finished run of a method and seed, trained now unless it is there."""
    recipe, own = RUNS[name]
    folder = out / f"{name}-{seed}"
    if (folder / "run.json").is_file():
        return folder
    every = max(1, steps // KEPT)
    run_recipe(
        recipe,
        data=str(data),
        out=str(folder),
        steps=steps,
        batch_size=32,
        seed=seed,
        cache_dir=str(out / "frames"),
        workers=0,
        save_every=every,
        keep=1,
        keep_every=every,
        log_every=10,
        resume=(folder / "config.yaml").is_file(),
        **GEOMETRY,
        **own,
    )
    return folder


def encoders(seed: int, out: Path) -> dict[str, str]:
    """What is looked at: name -> how `load_encoder` calls it."""
    named = {"end to end": f"end-to-end-{seed}", "blockwise": f"blockwise-{seed}"}
    if seed == 0:
        named |= {"SALT student": "salt-0", "SALT teacher": "salt-0/teacher"}
    found = {name: str(out / folder) for name, folder in named.items()}
    return found | {"untrained": f"random:{out / 'end-to-end-0'}@{seed + 100}"}


def look(seed: int, there: Path, gratings: bool, asked: argparse.Namespace) -> dict[str, Any]:
    """The analysis of one seed's encoders on one set."""
    named = encoders(seed, asked.out)
    skip = () if gratings else ("gratings",)
    follow = "all" if gratings and seed == 0 else None
    return analyze(
        list(named.values()),
        there / "labels.csv",
        asked.out / "look" / f"{there.name}-{seed}",
        names=list(named),
        layers=LAYERS,
        folds=5,
        amounts=Amounts(skip=skip, grating_clips=asked.grating_clips, checkpoints=follow),
        manner=Manner(asked.out / "cache", asked.out / "frames-whole"),
    )


def short(found: dict[str, Any]) -> dict[str, Any]:
    """An analysis without where things lay and what can be read in the code."""
    about = {key: found["about"][key] for key in ("seed", "amounts", "notes", "seconds")}
    about["data"] = {k: v for k, v in found["about"]["data"].items() if k not in ("source", "classes")}
    saturation = [{k: v for k, v in row.items() if k != "spec"} for row in found["saturation"]]
    kept = ("layers", "transitions", "geometry_vs_gain", "through")
    rows = [{k: v for k, v in row.items() if v is not None} for row in found["layers"]]
    return {"about": about, **{key: found[key] for key in kept}, "layers": rows, "saturation": saturation}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--names", default="ucf101_20,wagon", help="sets to look at; all sets are trained on")
    parser.add_argument("--trained-on", default="ucf101_20,tennis,wagon")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--grating-clips", type=int, help="of each world (default: all)")
    parser.add_argument("--only", default=",".join(RUNS), help="runs to train")
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument(
        "--figures", type=Path, help="folder for the figures of the first seed on the first set"
    )
    parser.add_argument("--result", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    data = join([asked.sets / name for name in asked.trained_on.split(",")], asked.out / "train.csv")
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    runs: dict[str, Any] = {}
    for seed in seeds:
        for name in asked.only.split(","):
            if seed == 0 or name not in FIRST_SEED_ONLY:
                folder = train(name, seed, data, asked.out, asked.steps)
                ran = json.loads((folder / "run.json").read_text())
                runs[folder.name] = {k: ran[k] for k in ("train_flops", "seconds", "verdict")}
                runs[folder.name]["local_loss"] = local_losses(folder)
    if asked.train_only:
        return
    result: dict[str, Any] = {
        "environment": {k: v for k, v in environment(World()).items() if k != "command"},
        "steps": asked.steps,
        "geometry": GEOMETRY,
        "runs": runs,
    }
    for number, name in enumerate(asked.names.split(",")):
        for seed in seeds:
            found = look(seed, asked.sets / name, number == 0, asked)
            result[f"{name}-{seed}"] = short(found)
            if asked.figures and number == 0 and seed == 0:
                copy_figures(asked.out / "look" / f"{name}-{seed}" / "figures", asked.figures)
    asked.result.write_text(json.dumps(result, indent=None, separators=(",", ":")) + "\n")
    for key, found in result.items():
        if isinstance(found, dict) and "layers" in found:
            print(f"\n{key}\n\n{markdown(found)}")


def copy_figures(folder: Path, to: Path) -> None:
    """The page's figures, for the documents."""
    to.mkdir(parents=True, exist_ok=True)
    for name in SHOWN:
        if (folder / f"{name}.png").is_file():
            with Image.open(folder / f"{name}.png") as picture:  # few colours: a quarter of the bytes
                picture.convert("RGB").quantize(256).save(to / f"inside-{name}.png", optimize=True)


def markdown(found: dict[str, Any]) -> str:
    """A table: encoders down, each metric's values from layer to layer across."""
    rows = [row for row in found["layers"] if "target" not in row and row["metric"] in TOLD]
    names = list(dict.fromkeys(row["encoder"] for row in rows))
    lines = ["| | " + " | ".join(TOLD.values()) + " |", "|---" * (1 + len(TOLD)) + "|"]
    for name in names:
        cells = []
        for metric, (scale, digits) in {m: FORMS.get(m, (1, 2)) for m in TOLD}.items():
            values = sorted(
                (row["layer"], row.get("value"))
                for row in rows
                if (row["encoder"], row["metric"]) == (name, metric)
            )
            cells.append(" ".join("–" if v is None else f"{scale * v:.{digits}f}" for _, v in values))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
