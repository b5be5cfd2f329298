"""What small encoders learn from real, unlabelled videos, and what they do not.

    python benchmarks/real_sets.py --sets FOLDER --out runs/real [--steps 1000] [--only salt]

FOLDER holds one folder per set, each with a labels.csv (path, label, split, group). All training splits together,
labels unread, pretrain one encoder per recipe at one geometry; the student, its teacher, an untrained encoder of
the same architecture and raw pixels are then probed on each set, frozen, by linear and kNN probes on the set's
own split and by group-disjoint folds. Result: OUT/results.json and a table in Markdown. Interrupted, it goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
from pathlib import Path
from typing import Any

from tubelet.evaluate.probe import probe
from tubelet.export.weights import load_encoder
from tubelet.recipes import run_recipe

COLUMNS = ("path", "label", "split", "group")
GEOMETRY: dict[str, Any] = {"model": "192x4x3", "frames": 16, "frame_step": 3, "crop_size": 80}
RECIPES: dict[str, dict[str, Any]] = {
    # flips stay off: left and right may differ in meaning, and the labels are not to be looked at to find out
    "salt": {"flip": 0.0, "predictor_dim": 96, "predictor_depth": 3},
    "videomae": {"flip": 0.0, "decoder_dim": 96, "decoder_depth": 3},
    "vjepa": {"flip": 0.0, "predictor_dim": 96, "predictor_depth": 3},
}


def join(sets: list[Path], out: Path) -> Path:
    """One list of all sets' training rows, groups made unique by the set's name, labels left out."""
    rows = []
    for folder in sets:
        with (folder / "labels.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                if row["split"] == "train":
                    rows.append([(folder / row["path"]).resolve(), "train", f"{folder.name}/{row['group']}"])
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "split", "group"])
        writer.writerows(rows)
    return out


def encoders(out: Path, done: list[str]) -> dict[str, str]:
    """What is compared: name -> how `load_encoder` calls it."""
    like = out / done[0]
    named = {"raw pixels": f"pixels:{like}", "random encoder": f"random:{like}"}
    if "salt" in done:
        named |= {"SALT teacher (pixels)": str(out / "salt" / "teacher"), "SALT student": str(out / "salt")}
    if "videomae" in done:
        named["VideoMAE"] = str(out / "videomae")
    if "vjepa" in done:
        named["V-JEPA"] = str(out / "vjepa")
    return named


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--names", default="wagon,tennis,ucf101_20")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000, help="of each recipe (SALT: both stages together)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--only", default="salt,videomae,vjepa", help="recipes to run")
    parser.add_argument("--folds", type=int, default=5)
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sets = [asked.sets / name for name in asked.names.split(",")]
    data = join(sets, asked.out / "train.csv")
    done = asked.only.split(",")
    for name in done:
        folder = asked.out / name
        knobs = {"steps": asked.steps, "batch_size": asked.batch_size, **GEOMETRY, **RECIPES[name]}
        begun = folder.exists()
        run_recipe(
            name,
            data=str(data),
            out=str(folder),
            cache_dir=str(asked.out / "frames"),
            workers=1,
            resume=begun,
            **knobs,
        )
    results: list[dict[str, Any]] = []
    for name, spec in encoders(asked.out, done).items():
        encoder = load_encoder(spec)
        for folder in sets:
            for kind, metric in (("linear", "macro_recall"), ("knn", "macro_recall@k5")):
                for pool in ("flat",) if name == "raw pixels" else ("mean", "time"):
                    for folds in (0, asked.folds):
                        found = probe(
                            encoder,
                            folder / "labels.csv",
                            kind,  # type: ignore[arg-type]
                            pool=pool,  # type: ignore[arg-type]
                            folds=folds,
                            cache=asked.out / "cache",
                        )
                        value = found.metrics[metric]
                        results.append(
                            {
                                "set": folder.name,
                                "encoder": name,
                                "kind": kind,
                                "pool": pool,
                                "folds": folds or "split",
                                "macro_recall": value.value,
                                "low": value.low,
                                "high": value.high,
                                "guessing": found.guessing["macro_recall"],
                            }
                        )
                        print(
                            f"{folder.name:12} {name:24} {kind:7} {pool:5} {folds or 'split'!s:6} {value}",
                            flush=True,
                        )
    (asked.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    print(markdown(results))


def markdown(results: list[dict[str, Any]]) -> str:
    """A table: encoders down; set, folds, probe and pooling across; macro recall with its interval."""
    columns = list(dict.fromkeys((r["set"], str(r["folds"]), r["kind"], r["pool"]) for r in results))
    names = list(dict.fromkeys(r["encoder"] for r in results))
    lines = ["| set | protocol | probe | pool | " + " | ".join(names) + " |", "|---" * (4 + len(names)) + "|"]
    for column in columns:
        cells = []
        for name in names:
            found = [
                r
                for r in results
                if (r["set"], str(r["folds"]), r["kind"], r["pool"]) == column and r["encoder"] == name
            ]
            cells.append(
                f"{found[0]['macro_recall']:.2f} [{found[0]['low']:.2f}, {found[0]['high']:.2f}]"
                if found
                else ""
            )
        where, folds, kind, pool = column
        protocol = "own split" if folds == "split" else f"{folds} folds"
        lines.append(f"| {where} | {protocol} | {kind} | {pool} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
