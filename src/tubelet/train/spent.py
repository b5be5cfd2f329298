"""What a run has cost."""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch


@dataclass
class Spent:
    """Up to a checkpoint, over all sessions of a run (without what a kill threw away).

    seconds: wall clock. core_seconds: see `core_seconds`. flops: by part. peak_memory: bytes, see `peak_memory`.
    sessions: how often it was started or resumed.
    """

    seconds: float = 0.0
    core_seconds: float = 0.0
    clips: int = 0
    flops: dict[str, float] = field(default_factory=dict)
    peak_memory: int = 0
    sessions: int = 0

    @property
    def total_flops(self) -> float:
        """FLOPs of all parts."""
        return sum(self.flops.values())

    def add_clips(self, clips: int, flops: Mapping[str, float]) -> None:
        """Charge ``clips`` at ``flops`` each, by part."""
        self.clips += clips
        for part, each in flops.items():
            self.flops[part] = self.flops.get(part, 0.0) + each * clips


@dataclass(frozen=True)
class Summary:
    """A finished run; checkpoint: its newest."""

    steps: int
    precision: str
    spent: Spent
    checkpoint: Path


def core_seconds() -> float:
    """Processor time of this process and of those that it started, ended or not: what work has cost, if not waiting."""
    me = psutil.Process()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for process in (me, *me.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # ended just now
        total += times.user + times.system
    return total


def peak_memory(device: torch.device) -> int:
    """Most bytes held so far: by torch's allocator on a GPU, else resident in this process alone."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # where it exists: rusage of a child begins at what its parent held
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))
        if match:
            return int(match[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
