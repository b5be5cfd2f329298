"""What a look inside costs beside the plain forward of the same clips: time and memory, side by side.

    python benchmarks/analyze.py --out runs/analyze [--clips 2000] [--model vit_small]

Renders labelled videos (once), decodes them into a frame cache (once), and then takes turns: one half of the clips
through the encoder for its last layer alone, the analysis of all clips at all layers with no feature cached, the other
half of the plain forward, the analysis again with all features cached. The analysis is of everything that looks at
whole clips (decodability, retrieval, similarity, tokens, influence, spectrum, saturation); OccDrop and gratings look at
other clips, in forwards of their own, and are left out. The probes' time, reported apart, is taken off, as the
comparison is with a forward *plus the probes*. Memory: anonymous peak of a process of its own for a quarter of the
clips and for all of them. Result: benchmarks/analyze.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tubelet.data.synthetic import write_world
from tubelet.evaluate.features import Reading
from tubelet.evaluate.source import VideoSource
from tubelet.export.weights import Geometry, load_encoder
from tubelet.inside.analyze import analyze
from tubelet.inside.footage import Manner, read_footage
from tubelet.inside.look import Amounts
from tubelet.recipes.run import environment
from tubelet.train.parallel import World

PROBES = ("linear probes and retrieval", "gains", "what fewer layers cost")
SKIP = ("gratings", "occdrop")


def render(folder: Path, count: int, size: int) -> Path:
    """labels.csv of ``count`` rendered videos."""
    rows = write_world(folder / "videos", count, seed=7, size=size)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        for number, row in enumerate(rows):
            writer.writerow(
                [Path(row["path"]).resolve(), row["appearance"], "test" if number % 4 == 0 else "train"]
            )
    return folder / "labels.csv"


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def look(spec: str, data: Path, out: Path, manner: Manner) -> tuple[float, dict[str, float]]:
    """Seconds of an analysis, and of its parts."""
    began = time.perf_counter()
    found = analyze([spec], data, out, amounts=Amounts(skip=SKIP), manner=manner)
    return time.perf_counter() - began, found["about"]["seconds"]


def plain(spec: str, data: Path, manner: Manner, part: slice) -> float:
    """Seconds of the last layer's features of some of the videos."""
    encoder = load_encoder(spec)
    source = VideoSource(read_footage(data).videos[part], encoder.geometry, frame_cache=manner.frame_cache)
    began = time.perf_counter()
    manner.extract(encoder, source, [Reading(encoder.model.depth, True)])
    return time.perf_counter() - began


def memory(asked: argparse.Namespace, clips: int) -> float:
    """GiB that an analysis of so many clips, in a process of its own, has at most in anonymous memory."""
    command = [
        sys.executable,
        __file__,
        "--out",
        str(asked.out),
        "--model",
        asked.model,
        "--only-memory",
        str(clips),
    ]
    told = subprocess.run(
        [*command, "--size", str(asked.size)], capture_output=True, text=True, check=True
    ).stdout
    return json.loads(told.splitlines()[-1])["peak_gib"]


def only_memory(asked: argparse.Namespace) -> None:
    """Prints the anonymous peak of an analysis, polled ten times a second."""
    import threading

    peak, stop = [0], threading.Event()

    def poll() -> None:
        while not stop.wait(0.1):
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    peak[0] = max(peak[0], int(line.split()[1]))

    watcher = threading.Thread(target=poll)
    watcher.start()
    folder = asked.out / f"memory-{asked.only_memory}"
    data = render_some(asked, folder)
    look(spec_of(asked), data, fresh(folder / "look"), Manner(fresh(folder / "cache"), asked.out / "frames"))
    stop.set()
    watcher.join()
    print(json.dumps({"peak_gib": peak[0] / 2**20}))


def render_some(asked: argparse.Namespace, folder: Path) -> Path:
    """The first of the rendered videos."""
    lines = (asked.out / "labels.csv").read_text().splitlines()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "labels.csv").write_text("\n".join(lines[: asked.only_memory + 1]) + "\n")
    return folder / "labels.csv"


def spec_of(asked: argparse.Namespace) -> str:
    """An encoder folder with the geometry that is asked for."""
    from tubelet.export.weights import save_encoder

    folder = asked.out / "encoder"
    if not folder.exists():
        encoder = load_encoder(f"random:{asked.model}")
        geometry = Geometry(frames=asked.frames, frame_step=1, crop_size=asked.size)
        save_encoder(encoder.model, folder, geometry, {"name": asked.model})  # type: ignore[arg-type]
    return str(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--model", default="vit_small")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--only-memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    if asked.only_memory:
        only_memory(asked)
        return
    data = render(asked.out, asked.clips, asked.size)
    spec = spec_of(asked)
    frames = asked.out / "frames"
    encoder = load_encoder(spec)
    for video in range(len(videos := read_footage(data).videos)):  # decodes into the frame cache
        VideoSource(videos, encoder.geometry, frame_cache=frames).read(video)
    middle = asked.clips // 2
    before = plain(spec, data, Manner(fresh(asked.out / "cache-a"), frames), slice(0, middle))
    cache = fresh(asked.out / "cache-b")
    whole, parts = look(spec, data, fresh(asked.out / "look"), Manner(cache, frames))
    after = plain(spec, data, Manner(fresh(asked.out / "cache-c"), frames), slice(middle, None))
    cached, cached_parts = look(spec, data, fresh(asked.out / "look"), Manner(cache, frames))
    probes, cached_probes = (sum(found[name] for name in PROBES) for found in (parts, cached_parts))
    result: dict[str, Any] = {
        "environment": {k: v for k, v in environment(World()).items() if k != "command"},
        "processor": platform.processor(),
        "threads": torch.get_num_threads(),
        "clips": asked.clips,
        "model": asked.model,
        "clip": f"{asked.frames}x{asked.size}x{asked.size}",
        "plain_forward_s": before + after,
        "plain_halves_s": [before, after],
        "analysis_s": whole,
        "probes_s": probes,
        "parts_s": parts,
        "ratio": (whole - probes) / (before + after),
        "cached_s": cached,
        "cached_probes_s": cached_probes,
        "cached_ratio": (cached - cached_probes) / (before + after),
    }
    result["peak_anonymous_gib"] = {str(n): memory(asked, n) for n in (asked.clips // 4, asked.clips)}
    asked.result.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
