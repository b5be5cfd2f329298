"""Clips per second of the reader: from files, from the frame cache, and of torchcodec where it can be imported.

    python benchmarks/decode.py --out benchmarks/decode.json

Makes H.264 files (two key-frame distances, two sizes), then reads the same random clips of 16 frames, every
fourth frame, in turn by each reader, several rounds interleaved so that a busy machine is busy for all. Checks
that all readers return the same frames. One process, one thread.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import random
import subprocess
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tubelet.data.clips import by_step
from tubelet.data.decode import index, read
from tubelet.data.manifest import Video
from tubelet.data.source import ClipReader

FRAMES, STEP, LENGTH = 16, 4, 300
KINDS = {
    "340x256 gop 12": (340, 256, 12),
    "340x256 gop 250": (340, 256, 250),
    "1280x720 gop 250": (1280, 720, 250),
}
Reader = Callable[[Path, float], np.ndarray]


def make(path: Path, width: int, height: int, gop: int, seed: int) -> None:
    """300 frames of a drifting texture: enough detail to cost what film costs."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (height // 8 + 1, width // 8 + LENGTH + 1, 3), dtype=np.uint8)
    texture = np.kron(texture, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w") as out:
        stream = out.add_stream(
            "libx264", rate=25, options={"g": str(gop), "preset": "fast", "sc_threshold": "0"}
        )
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(LENGTH):
            picture = np.ascontiguousarray(texture[:height, 3 * k : 3 * k + width])
            noisy = np.clip(picture.astype(int) + rng.integers(-2, 3, (height, width, 1)), 0, 255).astype(
                np.uint8
            )
            frame = av.VideoFrame.from_ndarray(noisy, format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))


def readers(cache: Path, short_side: int) -> tuple[dict[str, Reader], str | None]:
    """Name -> reader; and why torchcodec is not among them, if it is not."""

    def ours(path: Path, at: float) -> np.ndarray:
        return read(path, by_step(len(index(path)), FRAMES, STEP, at))

    small = ClipReader(FRAMES, frame_step=STEP, short_side=short_side)
    stored = ClipReader(FRAMES, frame_step=STEP, short_side=short_side, cache_dir=cache)
    found: dict[str, Reader] = {
        "tubelet": ours,
        f"tubelet, short side {short_side}": lambda path, at: small.read(Video(path), [at])[0],
        f"tubelet, cached at short side {short_side}": lambda path, at: stored.read(Video(path), [at])[0],
    }
    try:
        from torchcodec.decoders import VideoDecoder  # type: ignore[import-not-found]
    except (ImportError, RuntimeError, OSError) as error:
        return found, f"{type(error).__name__}: {str(error).splitlines()[0]}"

    def codec(mode: str) -> Reader:
        def one(path: Path, at: float) -> np.ndarray:
            decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=mode)
            chosen = by_step(len(decoder), FRAMES, STEP, at)
            return decoder.get_frames_at(indices=chosen.tolist()).data.numpy()

        return one

    return found | {
        "torchcodec, exact": codec("exact"),
        "torchcodec, approximate": codec("approximate"),
    }, None


def measure(
    files: list[Path], found: dict[str, Reader], rounds: int, clips: int
) -> dict[str, dict[str, float]]:
    """Clips per second of wall clock and of processor time: the best round of each reader."""
    for path in files:  # what is done once per file and process: the cache, the index
        for one in found.values():
            one(path, 0.5)
    best: dict[str, dict[str, float]] = {name: {"wall": 0.0, "cpu": 0.0} for name in found}
    for number in range(rounds):
        rng = random.Random(number)
        places = [(rng.choice(files), rng.random()) for _ in range(clips)]
        for name, one in found.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for path, at in places:
                one(path, at)
            rates = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            best[name] = {what: max(best[name][what], clips / took) for what, took in rates.items()}
    return {name: {what: round(rate, 1) for what, rate in rates.items()} for name, rates in best.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/decode.json"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--short-side", type=int, default=205)
    options = parser.parse_args()
    results: dict[str, object] = {}
    absent: str | None = None
    with tempfile.TemporaryDirectory() as folder:
        for kind, (width, height, gop) in KINDS.items():
            files = [Path(folder) / f"{kind.replace(' ', '-')}-{i}.mp4" for i in range(2)]
            for i, path in enumerate(files):
                make(path, width, height, gop, i)
            found, absent = readers(Path(folder) / "cache", options.short_side)
            whole = [one(files[0], 0.37) for name, one in found.items() if "short side" not in name]
            assert all(np.abs(whole[0].astype(int) - other).mean() < 2 for other in whole), (
                "not the same frames"
            )
            results[kind] = measure(files, found, options.rounds, options.clips)
            print(kind, json.dumps(results[kind], indent=2))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    record = {
        "what": f"clips/s: {FRAMES} of {LENGTH} frames, every {STEP}th; H.264, 1 thread, best of {options.rounds}",
        "clips_per_s": results,
        "torchcodec": absent or importlib.metadata.version("torchcodec"),
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()},
        "pyav": av.__version__,
        "commit": commit.stdout.strip() or None,
        "date": time.strftime("%Y-%m-%d"),
    }
    options.out.write_text(json.dumps(record, indent=2) + "\n")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
    )


if __name__ == "__main__":
    main()
