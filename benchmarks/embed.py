"""How fast a long video is embedded, and that its length does not matter for memory.

    python benchmarks/embed.py ENCODER --out runs/embed [--hours 0.5,2]
    python benchmarks/embed.py random:vit_base --activations 1x224,4x224

Makes videos of these lengths (160x120, 25 frames a second, a texture that drifts), embeds each in a process of its own,
and polls the anonymous memory of that process ten times a second. Result: benchmarks/embed.json.
--activations, instead: how much anonymous memory one forward pass of so many clips x pixels adds, against the formula
of docs/embed.md, each in a process of its own; printed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from rich.progress import track
from watched import watching

from tubelet.export.weights import load_encoder
from tubelet.files import replace_file
from tubelet.nn.vit import ViT
from tubelet.recipes.run import environment
from tubelet.train.parallel import World

RATE, WIDTH, HEIGHT = 25, 160, 120


def make(path: Path, hours: float) -> None:
    """A video of that length, frame by frame; one that is there is kept."""
    if path.exists():
        return
    texture = np.random.default_rng(0).integers(0, 256, (HEIGHT, 3 * WIDTH, 3), dtype=np.uint8)
    with replace_file(path) as draft, av.open(str(draft), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "crf": "35"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in track(range(round(hours * 3600 * RATE)), f"{hours:g} hours"):
            left = number // 2 % (2 * WIDTH)
            picture = np.ascontiguousarray(texture[:, left : left + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def embed(encoder: str, data: Path, out: Path, knobs: Sequence[str] = ()) -> dict[str, Any]:
    """Seconds and peak anonymous memory of `tubelet embed` with these knobs, and what it says of itself.

    What an interrupted run has left in ``out`` is removed: the rest of a table has another cost than the whole.
    """
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "tubelet",
        "embed",
        encoder,
        "--data",
        str(data),
        "--out",
        str(out),
        *knobs,
    ]
    began = time.perf_counter()
    with subprocess.Popen(command) as running, watching(running.pid) as seen:
        running.wait()
    if running.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {running.returncode}")
    about = json.loads((out / "embeddings.json").read_text())
    told = {key: about[key] for key in ("windows", "video_seconds", "rate")}
    return {**told, "seconds": time.perf_counter() - began, "peak_anonymous_gib": max(seen) / 2**30}


@torch.no_grad()
def forward(spec: str, clips: str) -> dict[str, Any]:
    """Bytes that a forward pass of ``clips``, such as 4x224, adds, and how often they are those of the formula."""
    encoder = load_encoder(spec)
    model, (frames, height, width) = encoder.model, encoder.model.patch
    count, side = map(int, clips.split("x"))
    clip = torch.zeros(count, 3, encoder.geometry.frames, side, side)
    model(clip[:1, :, :frames, : 2 * height, : 2 * width])  # what is set up once
    with watching(every=0.001) as seen:
        tokens = model(clip)
    grown, dim = max(seen) - seen[0], model.dim
    assert isinstance(model, ViT)
    formula = 4 * tokens[..., 0].numel() * (3 * dim + max(4 * dim, 2 * model.hidden))
    return {"bytes": grown, "formula": formula, "ratio": round(grown / formula, 2)}


def activations(spec: str, clips: str) -> dict[str, Any]:
    """`forward` in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        return alone.submit(forward, spec, clips).result()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("encoder")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--hours", default="0.5,2")
    parser.add_argument("--result", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--activations", help="such as 1x224,4x224: clips x pixels")
    asked = parser.parse_args()
    if asked.activations:
        found = {word: activations(asked.encoder, word) for word in asked.activations.split(",")}
        print(json.dumps(found, indent=1))
        return
    if asked.out is None:
        parser.error("--out: where videos and tables go")
    found = {}
    for word in asked.hours.split(","):
        video = asked.out / f"{word}h" / "video.mp4"
        make(video, float(word))
        found[f"{word} hours"] = embed(asked.encoder, video.parent, asked.out / f"features-{word}h")
    machine = {k: v for k, v in environment(World()).items() if k != "command"}
    asked.result.write_text(json.dumps({"environment": machine, "videos": found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
