"""How long the nearest windows of a large table take, all compared and through the index, and what the index misses.

    python benchmarks/nearest.py --out runs/nearest [--windows 200000,1000000,1100000]

Tables of that many windows of 384 numbers, in 2,000 lumps (a centre, and as much noise); twenty windows ask for their
ten nearest, one after the other, first all compared; above a million windows through the index too, which is built
before. Each in a process of its own, whose anonymous memory is polled. Result: benchmarks/nearest.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from watched import watching

from tubelet.embed.table import read_embeddings, save_embeddings
from tubelet.recipes.run import environment
from tubelet.search.index import EXACT_UP_TO, nearest_exact, nearest_indexed
from tubelet.train.parallel import World

WIDTH, LUMPS, QUERIES, TOP = 384, 2000, 20, 10


def make(folder: Path, windows: int) -> None:
    """A table of so many windows, one that is there is kept."""
    if (folder / "embeddings.json").exists():
        return
    draw = np.random.default_rng(0)
    centres = draw.standard_normal((LUMPS, WIDTH), np.float32)
    vectors = draw.standard_normal((windows, WIDTH), np.float32)
    vectors += centres[draw.integers(0, LUMPS, windows)]
    about = {"encoder": {"name": "made", "digest": "0"}, "layer": 1}
    start = np.arange(windows, dtype=np.float64)
    save_embeddings(folder, about, ["made"] * windows, start, start + 1, [None] * windows, vectors, "numpy")


def ask(folder: Path, indexed: bool) -> dict[str, Any]:
    """Seconds of the first search (which builds the index, or reads the disk), of the others, and what they found."""
    table, look = read_embeddings(folder), nearest_indexed if indexed else nearest_exact
    asking = np.random.default_rng(1).choice(len(table), QUERIES, replace=False)
    found, seconds = [], []
    with watching() as seen:
        for row in asking:
            began = time.perf_counter()
            found.append(look(table, np.asarray(table.vectors[row : row + 1]), TOP).rows.tolist())
            seconds.append(time.perf_counter() - began)
    return {
        "first_seconds": seconds[0],
        "seconds": statistics.median(seconds[1:]),
        "peak_anonymous_gib": max(seen) / 2**30,
        "found": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--windows", default="200000,1000000,1100000")
    parser.add_argument("--result", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    measured: dict[str, Any] = {}
    for windows in map(int, asked.windows.split(",")):
        folder = asked.out / str(windows)
        make(folder, windows)
        found: dict[str, dict[str, Any]] = {}
        for way in ("exact", "indexed") if windows > EXACT_UP_TO else ("exact",):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
                found[way] = alone.submit(ask, folder, way == "indexed").result()
        if "indexed" in found:
            pairs = zip(found["exact"]["found"], found["indexed"]["found"], strict=True)
            found["indexed"]["recall"] = statistics.mean(len({*a} & {*b}) / TOP for a, b in pairs)
            found["indexed"]["index_gib"] = (folder / "search.faiss").stat().st_size / 2**30
        measured[str(windows)] = {
            way: {k: v for k, v in one.items() if k != "found"} for way, one in found.items()
        }
        shutil.rmtree(folder)
    machine = {k: v for k, v in environment(World()).items() if k != "command"}
    about = {"environment": machine, "width": WIDTH, "top": TOP, "windows": measured}
    asked.result.write_text(json.dumps(about, indent=1) + "\n")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
