"""What four small encoders know at every depth, trained here on three real sets and looked into.

    python benchmarks/inside.py --sets FOLDER --out runs/inside [--steps 2000] [--only NAMES] [--seeds 0]

FOLDER holds one folder per set, each with a labels.csv (path, label, split, group). All training splits together,
labels unread, pretrain at one geometry (that of benchmarks/depth.py): VideoMAE end to end, the same encoder in four
blocks with losses of their own, all at once and one after the other, and a SALT student with its teacher. Interrupted,
it goes on.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import torch
from depth import GEOMETRY, LATENTS, PIXELS
from real_sets import join

from tubelet.recipes import run_recipe

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "end-to-end": ("blockwise", {**PIXELS, "regime": "end_to_end"}),
    "blockwise": ("blockwise", PIXELS),
    "salt": ("salt", LATENTS),
    "sequential": ("blockwise", {**PIXELS, "regime": "sequential"}),
}
BLOCKS = 4  # of the blockwise encoders; one after the other, each learns for as many steps as the others in all
KEPT = 10  # checkpoints of a run


def train(name: str, seed: int, data: Path, out: Path, steps: int) -> Path:
    """The finished run of a method and seed, trained now unless it is there."""
    recipe, own = RUNS[name]
    folder = out / f"{name}-{seed}"
    if (folder / "run.json").is_file():
        return folder
    steps *= BLOCKS if own.get("regime") == "sequential" else 1
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--names", default="ucf101_20,tennis,wagon")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", default=",".join(RUNS), help="runs to train")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    data = join([asked.sets / name for name in asked.names.split(",")], asked.out / "train.csv")
    for seed in map(int, asked.seeds.split(",")):
        for name in asked.only.split(","):
            train(name, seed, data, asked.out, asked.steps)


if __name__ == "__main__":
    main()
