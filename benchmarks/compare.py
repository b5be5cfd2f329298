"""Five methods at equal compute on real, unlabelled videos, and three of the papers' studies, at two cores' size.

    python benchmarks/compare.py --sets FOLDER --out runs/compare [--only compare,salt-teacher,...] [--jobs 2]

FOLDER holds the sets `ucf101_20`, `tennis` and `wagon`, each with a labels.csv (path, label, split, group). All
training rows together, labels unread, are pretrained on; `tennis` (motion) and `ucf101_20` (appearance) are evaluated
on, over five group-disjoint folds (few-labels on their own split: it fits 21 probes as it is). Interrupted, it goes on.
Result: benchmarks/compare/NAME-*.{csv,png,json}.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

from real_sets import join

SETS = ("ucf101_20", "tennis", "wagon")
TASKS = ("tennis", "ucf101_20")
CLIPS = (
    "--frames 16 --frame-step 3 --crop-size 48 --patch-size 8 --tubelet-size 4 --flip 0 --batch-size 32 "
    "--precision fp32 --workers 0 --keep 1 --log-every 10 --threads 1"
)
SMALL = (
    "videomae.decoder_dim=48 videomae.decoder_depth=2 blockwise.decoder_dim=48 blockwise.decoder_depth=2 "
    "blockwise.blocks=3 layerlock.decoder=separate layerlock.decoder_dim=48 layerlock.decoder_depth=2 "
    "vjepa.predictor_dim=48 vjepa.predictor_depth=2 salt.predictor_dim=48 salt.predictor_depth=2 "
    "vjepa.save_every=40 vjepa.keep_every=40 salt.save_every=40 salt.keep_every=40"
)
SIZE = "96x6x3"
LONG = "6e12"  # FLOPs of the runs whose checkpoints are compared: enough steps for several
KEPT = ("results.csv", "pairs.csv", "frontier.png", "claim.json")


def commands(out: Path, budgets: str, seeds: int, taken: Path | None) -> dict[str, str]:
    """name -> what comes after `tubelet`, without what all share. taken: a comparison to take runs over from."""
    dear = budgets.split(",")[-1]
    reuse = "" if taken is None else f" --reuse {taken}"
    teacher = "--set salt-teacher.decoder_dim=48 --set salt-teacher.decoder_depth=2"
    return {
        "compare": f"compare --methods videomae,vjepa,salt,layerlock,blockwise --budget {budgets} --sizes {SIZE} "
        f"--probes linear,knn,retrieval --seeds {seeds} --folds 5{reuse}",
        "salt-teacher": f"study salt-teacher --budget {dear} --model {SIZE} --seeds {seeds} "
        f"--sources {out / 'tennis.csv'} --folds 5 {teacher}",
        "loss-as-signal": f"study loss-as-signal --budget {LONG} --model {SIZE} --seeds {seeds} --folds 5{reuse}",
        "few-labels": f"study few-labels --budget {dear} --model {SIZE} --seeds {seeds} --reuse {out / 'compare'}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="compare,salt-teacher,loss-as-signal,few-labels")
    parser.add_argument("--budgets", default="1e12,3e12")
    parser.add_argument("--reuse", type=Path, help="another comparison to take runs over from")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    data = join([asked.sets / name for name in SETS], asked.out / "train.csv")
    join([asked.sets / "tennis"], asked.out / "tennis.csv")
    tasks = ",".join(str(asked.sets / name / "labels.csv") for name in TASKS)
    settings = [word for setting in SMALL.split() for word in ("--set", setting)]
    result = Path(__file__).parent / "compare"
    for name, command in commands(asked.out, asked.budgets, asked.seeds, asked.reuse).items():
        if name not in asked.only.split(","):
            continue
        folder = asked.out / name
        words = [
            *command.split(),
            "--data",
            str(data),
            "--tasks",
            tasks,
            "--out",
            str(folder),
            *CLIPS.split(),
            *settings,
        ]
        words += ["--cache-dir", str(asked.out / "frames"), "--jobs", str(asked.jobs)]
        subprocess.run(
            [sys.executable, "-m", "tubelet", *words], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        result.mkdir(exist_ok=True)
        for file in KEPT:
            if (folder / file).is_file():
                shutil.copy(folder / file, result / f"{name}-{file}")
        print(summary(folder / "results.csv"))


def summary(file: Path) -> str:
    """The headline of every arm as Markdown: mean over seeds, in percent."""
    with file.open(newline="") as handle:
        rows = [
            row
            for row in csv.DictReader(handle)
            if row["metric"] in ("macro_recall", "map", "macro_recall@k20")
        ]
    columns = list(dict.fromkeys((row["eval"], row["metric"]) for row in rows))
    lines = [
        "| arm | " + " | ".join(f"{one} {metric}" for one, metric in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for arm in dict.fromkeys(row["arm"] for row in rows):
        cells = []
        for column in columns:
            values = [
                100 * float(r["value"])
                for r in rows
                if r["arm"] == arm and (r["eval"], r["metric"]) == column
            ]
            cells.append(f"{sum(values) / len(values):.1f}" if values else "")
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
