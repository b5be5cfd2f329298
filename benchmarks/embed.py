"""How fast a long video is embedded, and that its length does not matter for memory.

    python benchmarks/embed.py ENCODER --out runs/embed [--hours 0.5,2]
    python benchmarks/embed.py random:vit_base --activations 1x224,4x224

Makes videos of these lengths (160x120, 25 frames a second, a texture that drifts), embeds each in a process of its own,
and polls the anonymous memory of that process five times a second. Result: benchmarks/embed.json.
--activations, instead: how much anonymous memory one forward pass of so many clips x pixels adds, against the formula
of docs/embed.md, each in a process of its own; printed.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from rich.progress import track

from tubelet.files import replace_file
from tubelet.recipes.run import environment
from tubelet.train.parallel import World

RATE, WIDTH, HEIGHT = 25, 160, 120
FORWARD = """
import sys, threading, time
from pathlib import Path
import torch
from tubelet.export.weights import load_encoder

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) * 1024

peak, over = 0, False
def watch():
    global peak
    while not over:
        peak = max(peak, anonymous())
        time.sleep(0.001)

encoder = load_encoder(sys.argv[1])
model, frames, (pt, ph, pw) = encoder.model.eval(), encoder.geometry.frames, encoder.model.patch
count, side = map(int, sys.argv[2].split("x"))
clips = torch.zeros(count, 3, frames, side, side)
with torch.no_grad():
    model.layers(clips[:1, :, :pt, : 2 * ph, : 2 * pw], [model.depth], normed=True)  # what is set up once
    before = anonymous()
    watching = threading.Thread(target=watch)
    watching.start()
    tokens = model.layers(clips, [model.depth], normed=True)[model.depth]
    over = True
    watching.join()
hidden = model.blocks[0].mlp.fc1.out_features
print(tokens.numel() // model.dim, model.dim, hidden, peak - before)
"""


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
    began, peak = time.perf_counter(), 0
    with subprocess.Popen(command) as running:
        while running.poll() is None:
            try:
                status = Path(f"/proc/{running.pid}/status").read_text()
            except OSError:  # it has just ended
                break
            peak = max(
                [peak, *(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))]
            )
            time.sleep(0.2)
    if running.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {running.returncode}")
    about = json.loads((out / "embeddings.json").read_text())
    told = {key: about[key] for key in ("windows", "video_seconds", "rate")}
    return {**told, "seconds": time.perf_counter() - began, "peak_anonymous_gib": peak / 2**20}


def activations(encoder: str, clips: str) -> dict[str, Any]:
    """Bytes that a forward pass of ``clips``, such as 4x224, adds, and how often they are those of the formula."""
    done = subprocess.run(
        [sys.executable, "-c", FORWARD, encoder, clips], capture_output=True, text=True, check=True
    )
    tokens, dim, hidden, grown = map(int, done.stdout.split())
    said = 4 * tokens * (3 * dim + max(4 * dim, 2 * hidden))
    return {"tokens": tokens, "bytes": grown, "formula": said, "ratio": round(grown / said, 2)}


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
        print(
            json.dumps(
                {word: activations(asked.encoder, word) for word in asked.activations.split(",")}, indent=1
            )
        )
        return
    if asked.out is None:
        parser.error("--out: where videos and tables go")
    found: dict[str, Any] = {}
    for word in asked.hours.split(","):
        video = asked.out / f"{word}h" / "video.mp4"
        make(video, float(word))
        found[f"{word} hours"] = embed(asked.encoder, video.parent, asked.out / f"features-{word}h")
    machine = {k: v for k, v in environment(World()).items() if k != "command"}
    asked.result.write_text(json.dumps({"environment": machine, "videos": found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
