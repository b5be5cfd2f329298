"""Golden losses: ten steps of every method give the numbers they gave when they were captured.

Capture again (only when numbers are meant to change, and say so in CHANGELOG.md):
    OMP_NUM_THREADS=1 python tests/test_golden.py
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
import torch
from test_methods import BUILDERS

from tubelet.train.loop import seed_from, take_step
from tubelet.train.optim import Optimizer
from tubelet.train.parallel import World
from tubelet.train.schedule import Constant
from tubelet.train.settings import TrainSettings
from tubelet.types import Batch, Moment

FILE = Path(__file__).parent / "golden" / "losses.json"
STEPS = 10
SETTINGS = TrainSettings(
    steps=STEPS, batch_size=4, lr=Constant(1e-3), weight_decay=Constant(0.05), clip=1.0, precision="fp32"
)


def batch_of(step: int) -> Batch:
    """Smooth noise, so that there is something to predict."""
    torch.manual_seed(seed_from(99, step))
    coarse = torch.randn(4, 3, 3, 6, 8)
    clip = torch.nn.functional.interpolate(coarse, (4, 48, 64), mode="trilinear")
    return Batch(clip, torch.arange(4) + 4 * step)


def losses(name: str) -> list[float]:
    torch.manual_seed(0)
    method = BUILDERS[name]()
    optimizer = Optimizer(method, (0.9, 0.95), 1e-8)
    found = []
    for step in range(STEPS):
        measured = take_step(method, optimizer, batch_of(step), Moment(step, STEPS), SETTINGS, World())
        found.append(measured["train/loss"])
    return found


@pytest.mark.parametrize("name", BUILDERS)
def test_losses_equal_the_golden_ones(name: str) -> None:
    golden = json.loads(FILE.read_text())["losses"][name]
    assert losses(name) == pytest.approx(golden, rel=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(
        json.dumps(
            {
                "captured": datetime.date.today().isoformat(),
                "torch": torch.__version__,
                "command": "OMP_NUM_THREADS=1 python tests/test_golden.py",
                "losses": {name: losses(name) for name in BUILDERS},
            },
            indent=2,
        )
        + "\n"
    )
