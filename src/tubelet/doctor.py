"""`tubelet doctor`: what this machine can do, shown by doing it, and the command that mends what it cannot."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table

from tubelet.data.cores import cores
from tubelet.errors import UserError
from tubelet.train.precision import has_fast_bf16

_SIGN = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "broken": "[bold red]broken[/]"}
_FRAMES, _SIDE, _BITS = 16, 64, 4  # of the self-test's clip; each frame shows its number in _BITS squares
_WANTED = (0, 7, 14)
_NEW_PYAV = "pip install --force-reinstall --only-binary av 'av>=18,<20'"


@dataclass(frozen=True)
class Check:
    """One finding. status "broken" means that tubelet cannot work here; ``cure`` is a command or a sentence."""

    name: str
    status: Literal["ok", "note", "broken"]
    told: str
    cure: str = ""


def doctor(folder: Path = Path(".")) -> list[Check]:
    """All checks, in the order in which they are told. folder: where runs would be written. Takes seconds."""
    return [
        _python(),
        _torch(),
        _device(),
        _bf16(),
        _pyav(),
        _self_test(),
        _torchcodec(),
        _memory(),
        _disk(folder),
        *_extras(),
    ]


def usable(checks: list[Check]) -> bool:
    """Whether nothing is broken."""
    return all(check.status != "broken" for check in checks)


def print_checks(checks: list[Check], console: Console | None = None) -> int:
    """Prints one line per check and a last one with the verdict; returns the exit code, 0 if usable else 1."""
    console = console or Console()
    table = Table(box=None, pad_edge=False, show_header=False)
    for style in ("bold", "", ""):
        table.add_column(style=style, overflow="fold")
    for check in checks:
        cure = f"\n[cyan]{_plain(check.cure)}[/]" if check.cure else ""
        table.add_row(check.name, _SIGN[check.status], _plain(check.told) + cure)
    console.print(table)
    broken = [check.name for check in checks if check.status == "broken"]
    console.print(f"\nbroken: {', '.join(broken)}" if broken else "\ntubelet can work here")
    return 1 if broken else 0


def _plain(text: str) -> str:
    return text.replace("[", r"\[")  # square brackets are markup to rich


def _python() -> Check:
    told = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    try:
        return Check("tubelet", "ok", f"{version('tubelet')}, {told}")
    except PackageNotFoundError:
        return Check(
            "tubelet", "note", f"run from a checkout that is not installed, {told}", "pip install -e ."
        )


def _torch() -> Check:
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    return Check("torch", "ok", f"{torch.__version__} ({built}), {torch.get_num_threads()} threads")


def _device() -> Check:
    cpu = f"{_cpu_model()}, {cores()} core{'s' if cores() > 1 else ''}"
    if torch.cuda.is_available():
        names = []
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            names.append(f"cuda:{number} {card.name}, {card.total_memory / 2**30:.0f} GiB")
        return Check("device", "ok", f"{'; '.join(names)}; {cpu}")
    if torch.backends.mps.is_available():
        return Check("device", "ok", f"mps (Apple GPU); {cpu}")
    if shutil.which("nvidia-smi"):
        told = f"{cpu}; an NVIDIA driver is here, but this torch does not see a GPU"
        return Check(
            "device", "note", told, "install the CUDA build of torch: see https://pytorch.org/get-started"
        )
    return Check("device", "ok", f"{cpu}; no GPU")


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return " ".join(line.split(":", 1)[1].split())
    return platform.processor() or platform.machine()


def _bf16() -> Check:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fast = has_fast_bf16(device)
    ratio = _seconds(torch.float32, device) / _seconds(torch.bfloat16, device)
    measured = f"a matrix product runs {ratio:.2g} times as fast in bf16 as in fp32 on {device.type}"
    hardware = "has bf16 instructions" if fast else "has no bf16 instructions"
    chosen = 'precision "auto" takes bf16' if fast else 'precision "auto" takes fp32'
    status = "ok" if fast == (ratio > 1) else "note"
    surprise = "" if status == "ok" else " (instructions and clock disagree: try both with --precision)"
    return Check("precision", status, f"{hardware}; {measured}; {chosen}{surprise}")


def _seconds(kind: torch.dtype, device: torch.device, repeats: int = 4) -> float:
    """The best of some products of the size of a small ViT's MLP layer, after one to warm up."""
    left, right = (
        torch.ones(512, 384, dtype=kind, device=device),
        torch.ones(384, 1536, dtype=kind, device=device),
    )
    best = float("inf")
    for turn in range(repeats + 1):
        began = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for the device
        if turn:
            best = min(best, time.perf_counter() - began)
    return best


def _pyav() -> Check:
    try:
        import av  # not at the top: a doctor that cannot start heals nobody
    except ImportError as error:
        return Check("decoder", "broken", f"PyAV does not import: {error}", _NEW_PYAV)
    libraries = ", ".join(
        f"{name} {'.'.join(map(str, av.library_versions[name]))}" for name in ("libavcodec", "libavformat")
    )
    wanted = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg", "gif")
    missing = [name for name in wanted if name not in av.codecs_available]
    if missing:
        told = f"PyAV {av.__version__} ({libraries}), without {', '.join(missing)}: such files will be unreadable"
        return Check("decoder", "note", told, _NEW_PYAV)
    return Check("decoder", "ok", f"PyAV {av.__version__} ({libraries}) reads {', '.join(wanted)}")


def _self_test() -> Check:
    """Writes a clip whose frames show their numbers, and reads some back the way training does."""
    name = "self-test"
    try:
        from av.error import FFmpegError

        from tubelet.data.decode import read
    except ImportError as error:
        return Check(name, "broken", f"nothing decoded: {error}", _NEW_PYAV)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "numbers.mp4"
            write_numbered(file)
            found = [read_number(frame) for frame in read(file, _WANTED)]
    except (UserError, FFmpegError, OSError) as error:
        return Check(name, "broken", f"an H.264 clip could not be written and read back: {error}", _NEW_PYAV)
    if tuple(found) != _WANTED:
        return Check(name, "broken", f"asked for frames {_listed(_WANTED)}, got {_listed(found)}", _NEW_PYAV)
    return Check(
        name, "ok", f"decoded frames {_listed(_WANTED)} of {_FRAMES} exactly, from a small H.264 file"
    )


def _listed(numbers: tuple[int, ...] | list[int]) -> str:
    return ", ".join(map(str, numbers))


def write_numbered(file: Path) -> None:
    """A clip of 16 frames, H.264 with B-frames and a key frame every 5, that shows each frame's number in bits."""
    from tubelet.data.synthetic import write_video  # not at the top: it needs PyAV

    pictures = np.full((_FRAMES, _SIDE, _SIDE, 3), 20, np.uint8)
    for number in range(_FRAMES):
        for bit in range(_BITS):
            if number >> bit & 1:
                pictures[number, :, _SIDE // _BITS * bit : _SIDE // _BITS * (bit + 1)] = 235
    write_video(file, pictures, fps=25, quality=18, more={"g": "5", "bf": "2"})


def read_number(picture: np.ndarray) -> int:
    """The number that `write_numbered` drew into a frame, uint8 [H, W, 3]."""
    bits = picture.reshape(_SIDE, _BITS, -1).mean(axis=(0, 2)) > 128
    return sum(1 << place for place, bit in enumerate(bits) if bit)


def _torchcodec() -> Check:
    """Whether torchcodec could be used; probed in a process of its own, as a bad build may crash on import."""
    name, unused = "torchcodec", "optional; PyAV is used"
    if importlib.util.find_spec("torchcodec") is None:
        return Check(name, "ok", f"not installed ({unused})")
    probe = (
        "import torchcodec.decoders as d; d.VideoDecoder; import torchcodec; print(torchcodec.__version__)"
    )
    try:
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return Check(name, "note", f"installed, but its import hangs ({unused})", "pip uninstall torchcodec")
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1][:160] if lines else f"its import ended with code {done.returncode}"
        return Check(name, "note", f"installed, but broken: {reason} ({unused})", "pip uninstall torchcodec")
    return Check(name, "ok", f"{done.stdout.strip()} imports ({unused})")


def _memory() -> Check:
    free = psutil.virtual_memory().available
    limit = _container_limit()
    if limit is not None:
        free = min(free, limit)
    told = f"{free / 2**30:.1f} GiB free{'' if limit is None else ' within the limit set for this container'}"
    if free < 2 * 2**30:
        return Check(
            "memory", "note", f"{told}; the demo needs 2 GiB", "close something, or take a smaller batch_size"
        )
    return Check("memory", "ok", told)


def _container_limit() -> int | None:
    """Bytes left under the control group's limit (version 2, then 1), or None where there is none."""
    root = Path("/sys/fs/cgroup")
    pairs = [
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ]
    for limit, used in pairs:
        if (root / limit).is_file() and (root / used).is_file():
            text = (root / limit).read_text().strip()
            unlimited = text == "max" or int(text) > psutil.virtual_memory().total
            return None if unlimited else max(0, int(text) - int((root / used).read_text()))
    return None


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    told = f"{free / 2**30:.1f} GiB free in {folder.resolve()}"
    if not os.access(folder, os.W_OK):
        return Check(
            "disk", "note", f"{folder.resolve()} may not be written to", "give another folder as out"
        )
    if free < 2 * 2**30:
        return Check(
            "disk",
            "note",
            f"{told}; checkpoints may not fit",
            "free some space, or give another folder as out",
        )
    return Check("disk", "ok", told)


def _extras() -> list[Check]:
    """Optional packages: what is missing, what that means, and the command that brings it."""
    wanted = {
        "search": ("faiss", "index for search beyond a million windows"),
        "export": ("onnxruntime", "export to ONNX (and, with transformers, to Hugging Face's format)"),
        "tensorboard": ("tensorboard", "TensorBoard curves beside metrics.jsonl"),
    }
    checks = []
    for extra, (package, use) in wanted.items():
        if importlib.util.find_spec(package) is None:
            checks.append(Check(extra, "note", f"not installed: no {use}", f"pip install 'tubelet[{extra}]'"))
        else:
            checks.append(Check(extra, "ok", f"{package}: {use}"))
    return checks
