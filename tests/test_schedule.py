"""Schedules against the numbers that the papers print."""

from __future__ import annotations

import json

import pytest

from tubelet.train.schedule import Constant, Cosine, Linear, Schedule, WarmupConstantLinear, WarmupCosine
from tubelet.types import Moment

VJEPA_LR = WarmupCosine(2e-4, 6.25e-4, 1e-6, warmup=12_000, stretch=1.25)
SALT_LR = WarmupCosine(2e-4, 6.25e-4, 1e-6, warmup=10_000)
VJEPA2_LR = WarmupConstantLinear(1e-4, 5.25e-4, 1e-6, warmup=12_000, cooldown=12_000)


def test_vjepa_stops_early_on_the_stretched_curve() -> None:
    end = Moment(90_000, 90_000)
    assert VJEPA_LR(end) == pytest.approx(7.5e-5, rel=0.01)
    assert Cosine(0.04, 0.4, stretch=1.25)(end) == pytest.approx(0.366, abs=5e-4)
    assert Linear(0.998, 1.0, stretch=1.25)(end) == pytest.approx(0.9996, abs=1e-9)
    assert VJEPA_LR(Moment(0, 90_000)) == 2e-4
    assert VJEPA_LR(Moment(12_000, 90_000)) == 6.25e-4


@pytest.mark.parametrize("total", [80_000, 160_000])
def test_salt(total: int) -> None:
    assert SALT_LR(Moment(10_000, total)) == pytest.approx(6.25e-4)
    assert SALT_LR(Moment(total, total)) == pytest.approx(1e-6)
    assert SALT_LR(Moment(total - 1, total)) == pytest.approx(1e-6, abs=1e-9)
    assert Cosine(0.04, 0.4)(Moment(total, total)) == pytest.approx(0.4)
    assert Cosine(0.04, 0.4)(Moment(total // 2, total)) == pytest.approx(0.22)


def test_vjepa2_warms_up_stays_and_cools_down() -> None:
    at = [VJEPA2_LR(Moment(step, 252_000)) for step in (0, 6_000, 12_000, 240_000, 246_000, 252_000)]
    assert at == pytest.approx([1e-4, 3.125e-4, 5.25e-4, 5.25e-4, 2.63e-4, 1e-6])
    # their cooldown as it runs: 12,000 steps of a line over 15,000 ends at 1.06e-4, not 1e-6
    line = Linear(5.25e-4, 1e-6, stretch=1.25)
    assert line(Moment(12_000, 12_000)) == pytest.approx(1.06e-4, rel=0.01)


@pytest.mark.parametrize(
    "schedule",
    [Constant(0.3), Linear(0.1, 0.9), Cosine(0.1, 0.9, 1.25), VJEPA_LR, VJEPA2_LR, WarmupCosine(0, 1, 0, 50)],
)
def test_descriptions_are_plain_and_tell_schedules_apart(schedule: Schedule) -> None:
    described = schedule.describe()
    assert json.loads(json.dumps(described)) == described
    assert described["schedule"] == type(schedule).__name__
    assert described != Constant(0.4).describe()


@pytest.mark.parametrize("total", [1, 7, 50])
def test_runs_shorter_than_the_warm_up_stay_on_its_line(total: int) -> None:
    values = [WarmupCosine(0.0, 1.0, 0.0, warmup=50)(Moment(s, total)) for s in range(total)]
    assert values == pytest.approx([s / 50 for s in range(total)])
    cooled = WarmupConstantLinear(0.0, 1.0, 0.1, warmup=50, cooldown=100)(Moment(total, total))
    assert 0.0 <= cooled <= 1.0
