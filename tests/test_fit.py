"""How knobs follow from data, machine and paper, and what a wrong knob says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tubelet.errors import UserError
from tubelet.recipes import find_recipe, own_knobs, run_recipe
from tubelet.recipes.fit import Fit, Footage, Paper, fit, init_std
from tubelet.recipes.knobs import Knobs
from tubelet.recipes.salt import SALT_STUDENT
from tubelet.recipes.videomae import SALT_TEACHER, VIDEOMAE
from tubelet.recipes.vjepa import VJEPA_1, VJEPA_2
from tubelet.types import Moment

KNOBS = Knobs(data="clips", out="runs/a")
CPU = torch.device("cpu")
CLIPS = Footage(500, [250] * 500, [25.0] * 500, [128] * 500)


def fitted(
    paper: Paper, knobs: Knobs = KNOBS, footage: Footage = CLIPS, device: torch.device = CPU, **more
) -> Fit:
    return fit(paper, knobs, footage, device, lambda model, crop: 1e9, lambda: 1e12, **more)


def test_fit_keeps_the_papers_proportions() -> None:
    found = fitted(VJEPA_1)
    assert (found.model, found.crop_size, found.frame_step, found.batch_size) == ("vit_tiny", 112, 4, 64)
    assert found.windows == 500 * 3  # 250 frames hold three clips of 16 x 4
    assert found.steps == -(-400 * 1500 // 64)
    assert found.warmup == round(found.steps * 12_000 / 90_000)
    peak = found.lr(Moment(found.warmup, found.steps))
    assert peak == pytest.approx(6.25e-4 * (64 / 3072) ** 0.5 * 1024 / 192)


@pytest.mark.parametrize(("steps", "horizon"), [(90_000, 500), (45_000, 250), (9_000, 100), (400, 100)])
def test_an_average_keeps_the_papers_share_of_the_run_and_never_spans_less_than_100_steps(
    steps: int, horizon: int
) -> None:
    momentum = fitted(VJEPA_1, replace(KNOBS, steps=steps)).momentum
    assert momentum is not None and 1 / (1 - momentum[0]) == pytest.approx(horizon)
    assert momentum[1] == 1.0


def test_a_slow_machine_gets_fewer_steps_and_hours_buy_more() -> None:
    def steps(hours: float | None) -> int:
        knobs = replace(KNOBS, hours=hours)
        return fit(VJEPA_1, knobs, CLIPS, CPU, lambda model, crop: 1e10, lambda: 1e11).steps

    assert steps(None) == 3600 * 1e11 // (1e10 * 64)
    assert steps(2.0) == pytest.approx(2 * steps(1.0), abs=1)


def test_an_open_batch_divides_among_processes_and_clips_of_a_video() -> None:
    knobs = replace(KNOBS, clips_per_video=3)
    assert [fitted(VIDEOMAE, knobs, unit=unit).batch_size for unit in (1, 2, 3, 6)] == [64, 64, 48, 48]
    one = Footage(1, [50], [30.0], [90])
    assert fitted(VIDEOMAE, knobs, one, unit=3).batch_size == 3


def test_short_and_small_videos_are_sampled_more_closely() -> None:
    short = Footage(100, [50] * 100, [30.0] * 100, [90] * 100)
    found = fitted(VIDEOMAE, footage=short)
    assert (found.frame_step, found.crop_size) == (3, 80)
    assert fitted(VIDEOMAE, footage=Footage(1, [50], [30.0], [90])).batch_size == 1
    assert fitted(VIDEOMAE, footage=Footage(1, [5000], [30.0], [90])).batch_size == 64


def test_v_jepa_2_spaces_frames_by_the_videos_own_rate() -> None:
    assert fitted(VJEPA_2).frame_step == 6  # 25 frames a second, 4 wanted
    assert fitted(VJEPA_2, replace(KNOBS, fps=5.0)).fps == 5.0


def test_given_knobs_are_never_overruled() -> None:
    knobs = replace(
        KNOBS, steps=77, batch_size=6, model="vit_small", crop_size=64, frame_step=2, lr=1e-2, warmup=5
    )
    found = fitted(SALT_STUDENT, knobs)
    assert (found.steps, found.batch_size, found.model, found.crop_size) == (77, 6, "vit_small", 64)
    assert (found.frame_step, found.warmup) == (2, 5)
    assert found.lr(Moment(5, 77)) == pytest.approx(1e-2)
    assert fitted(SALT_TEACHER, knobs, share=1 / 3).steps == 26
    assert fitted(SALT_TEACHER, knobs, share=1 / 3, known_steps=40).steps == 26
    assert fitted(SALT_TEACHER, KNOBS, share=1 / 3, known_steps=40).steps == 40


@pytest.mark.parametrize(
    ("paper", "step", "lr", "decay"),
    [
        (SALT_TEACHER, 10_000, 6.25e-4, None),
        (SALT_TEACHER, 80_000, 1e-6, 0.4),
        (SALT_STUDENT, 10_000, 6.25e-4, None),
        (SALT_STUDENT, 160_000, 1e-6, 0.4),
        (VJEPA_1, 12_000, 6.25e-4, None),
        (VJEPA_1, 90_000, 7.5e-5, 0.366),
        (VJEPA_2, 12_000, 5.25e-4, 0.04),
        (VJEPA_2, 240_000, 5.25e-4, 0.04),
        (VJEPA_2, 252_000, 1e-6, 0.04),
        (VIDEOMAE, 4_690, 1.2e-3, 0.05),
        (VIDEOMAE, 93_750, 8e-5, 0.05),
    ],
)
def test_to_the_letter_equals_the_papers_schedules(
    paper: Paper, step: int, lr: float, decay: float | None
) -> None:
    found = fitted(paper, replace(KNOBS, schedule="paper"))
    assert (found.steps, found.batch_size, found.model) == (paper.steps, paper.batch_size, paper.model)
    moment = Moment(step, found.steps)
    assert found.lr(moment) == pytest.approx(lr, rel=0.02)
    if decay is not None:
        assert found.weight_decay(moment) == pytest.approx(decay, rel=0.01)


def test_first_weights_are_the_papers_at_its_width() -> None:
    assert init_std(KNOBS, "vit_large") == 0.02
    assert init_std(KNOBS, "256x4x4") == pytest.approx(0.04)
    assert init_std(replace(KNOBS, schedule="paper"), "vit_tiny") == 0.02


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        (
            {"crop_size": 100},
            "crop_size=100 does not divide into patches of 16 pixels; use crop_size=96 or 112",
        ),
        ({"frames": 15}, "frames=15 does not divide into tubelets of 2 frames; use frames=14"),
        ({"fps": 5.0, "frame_step": 2}, "fps and frame_step were both given"),
        ({"steps": 0}, "steps=0: must be at least 1"),
        ({"lr": -1.0}, "lr=-1.0: must be above 0"),
        ({"flip": 2.0}, "flip=2.0: must lie between 0 and 1"),
        ({"data": ""}, "data is not given; add --data PATH"),
    ],
)
def test_impossible_knobs_name_themselves_and_the_cure(knobs: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Knobs(**{"data": "clips", "out": "runs/a", **knobs})  # type: ignore[arg-type]


def test_unknown_recipes_and_knobs_name_the_nearest() -> None:
    with pytest.raises(UserError, match='unknown recipe "vjeppa"; did you mean "vjepa"'):
        find_recipe("vjeppa")
    with pytest.raises(UserError, match='no knob "batchsize"; did you mean "batch_size"'):
        run_recipe("vjepa", data="clips", out="runs/a", batchsize=3)
    assert "teacher" in own_knobs("salt") and "momentum" in own_knobs("vjepa")
