"""What studies conclude: signs, what decides, and that missing numbers decide nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tubelet.compare.studies import (
    STUDIES,
    blockwise_depth,
    find_study,
    layerlock_collapse,
    loss_signal,
    salt_teacher,
)
from tubelet.compare.studies.study import Found, all_of
from tubelet.errors import UserError
from tubelet.evaluate.comparison import Arm, Comparison, Evaluation, Run
from tubelet.evaluate.metrics import Estimate
from tubelet.evaluate.noise import Interval
from tubelet.evaluate.standings import Pair, Standings

LINEAR = tuple(Evaluation(f"{task}-linear", task, "linear", "macro_recall") for task in ("x", "y"))


def scored(value: float) -> dict[str, Estimate]:
    return {"macro_recall": Estimate(value, value - 0.02, value + 0.02)}


def comparison(scores: dict[str, list[float]], folder: Path = Path("none")) -> Comparison:
    """Arms with a score per seed, the same on both tasks."""
    arms = tuple(Arm(name, name, "48x4x3") for name in scores)
    runs = tuple(
        Run(name, seed, folder / f"{name}-{seed}", scores={one.key: scored(value) for one in LINEAR})
        for name, values in scores.items()
        for seed, value in enumerate(values)
    )
    about = {"kind": "study", "name": "s", "title": "t", "question": "q", "data": "d", "clips": 1}
    return Comparison(
        folder=folder,
        **about,
        headline="macro_recall",
        seeds=(0, 1),
        arms=arms,
        evals=LINEAR,
        runs=runs,
        not_equal=(),
        command="",
        environment={},
    )


def found(scores: dict[str, list[float]], pairs: dict[tuple[str, str], list[Interval | None]]) -> Found:
    """With the intervals of differences on the tasks x and y; None: not known."""
    whole = comparison(scores)
    named = {arm.name: arm for arm in whole.arms}
    known = tuple(
        Pair(named[one], named[other], evaluation, interval)
        for (one, other), intervals in pairs.items()
        for evaluation, interval in zip(LINEAR, intervals, strict=True)
        if interval is not None
    )
    return Found(whole, Standings({}, known))


BETTER, WORSE, NOISE = Interval(0.1, 0.05, 0.15), Interval(-0.1, -0.15, -0.05), Interval(0.01, -0.1, 0.1)


@pytest.mark.parametrize(
    ("intervals", "verdict"),
    [
        ([BETTER, BETTER], "held"),
        ([BETTER, NOISE], "undecided"),
        ([BETTER, None], "undecided"),
        ([None, None], "undecided"),
        ([WORSE, NOISE], "not held"),
        ([WORSE, BETTER], "undecided"),
    ],
)
def test_better_means_beyond_the_noise_on_every_task(intervals: list[Interval | None], verdict: str) -> None:
    told = found({"a": [0.5], "b": [0.4]}, {("a", "b"): intervals})
    assert told.compare("a", "b")[0] == verdict
    if verdict == "held":
        assert told.compare("b", "a")[0] == "not held", "the other way round it is worse"
        assert "+10.0" in told.compare("a", "b")[1] and "-10.0" in told.compare("b", "a")[1]


def test_one_verdict_of_several() -> None:
    assert all_of(["held", "held"]) == "held"
    assert all_of(["held", "undecided"]) == "undecided"
    assert all_of(["undecided", "not held"]) == "not held"
    assert all_of([]) == "undecided"


@pytest.mark.parametrize(
    ("sim", "seq", "verdict"),
    [
        ([NOISE, NOISE], [BETTER, NOISE], "held"),
        ([NOISE, NOISE], [BETTER, WORSE], "not held"),
        ([NOISE, None], [NOISE, NOISE], "undecided"),
    ],
)
def test_blockwise_is_close_only_where_it_is_worse_nowhere(
    sim: list[Interval | None], seq: list[Interval | None], verdict: str
) -> None:
    names = (blockwise_depth.E2E, blockwise_depth.SIM, blockwise_depth.SEQ)
    told = found(
        {name: [0.5] for name in names},
        {(blockwise_depth.SIM, blockwise_depth.E2E): sim, (blockwise_depth.SEQ, blockwise_depth.E2E): seq},
    )
    claim, _ = STUDIES["blockwise-depth"].conclude(told)
    assert claim.held == verdict


@pytest.mark.parametrize(
    ("free", "locked", "verdict"),
    [
        ("collapse", "healthy", "held"),
        ("partial collapse", "healthy", "held"),
        ("healthy", "healthy", "not held"),
        ("collapse", "collapse", "not held"),
        ("collapse", None, "undecided"),
        ("too early", "healthy", "undecided"),
        (None, None, "undecided"),
    ],
)
def test_collapse_is_judged_only_where_all_runs_are(
    free: str | None, locked: str | None, verdict: str
) -> None:
    names = {
        layerlock_collapse.FREE: free,
        layerlock_collapse.LOCKED: locked,
        layerlock_collapse.PIXELS: "healthy",
    }
    whole = comparison({name: [0.1, 0.1] for name in names})
    whole = replace(whole, runs=tuple(replace(run, verdict=names[run.arm]) for run in whole.runs))
    claim, _ = STUDIES["layerlock-collapse"].conclude(Found(whole, Standings({}, ())))
    assert claim.held == verdict


@pytest.mark.parametrize(
    ("students", "clear", "verdict"),
    [
        ([0.50, 0.52, 0.54], True, "held"),  # .2 points a point of the teacher
        ([0.30, 0.50, 0.70], True, "not held"),  # one for one
        ([0.50, 0.52, 0.54], False, "undecided"),  # the teachers do not differ
    ],
)
def test_weak_teachers_do_if_students_rise_slowly(students: list[float], clear: bool, verdict: str) -> None:
    scores = {}
    for name, teacher, student in zip("abc", (0.3, 0.4, 0.5), students, strict=True):
        scores[f"{salt_teacher.TEACHER}{name}"] = [teacher, teacher + 0.001, teacher - 0.001]
        scores[f"{salt_teacher.STUDENT}{name}"] = [student] * 3
    pair = (f"{salt_teacher.TEACHER}a", f"{salt_teacher.TEACHER}c")
    told = found(scores, {pair: [WORSE, WORSE] if clear else [NOISE, NOISE]})
    claim, extra = STUDIES["salt-teacher"].conclude(told)
    assert claim.held == verdict
    assert len(extra) == 1


def test_few_labels_needs_three_seeds_and_the_right_sign() -> None:
    evals = [
        Evaluation(f"x-linear-{amount}", "x", "linear", "macro_recall", labels=amount)
        for amount in ("10%", "50%")
    ]

    def conclude(vjepa: float, videomae: float, seeds: int) -> str:
        whole = comparison({"vjepa": [0.0] * seeds, "salt": [0.0] * seeds, "videomae": [0.0] * seeds})
        drops = {"vjepa": vjepa, "videomae": videomae, "salt": 0.0}
        runs = tuple(
            replace(run, scores={evals[0].key: scored(0.5 - drops[run.arm]), evals[1].key: scored(0.5)})
            for run in whole.runs
        )
        claim, _ = STUDIES["few-labels"].conclude(
            Found(replace(whole, runs=runs, evals=tuple(evals)), Standings({}, ()))
        )
        return claim.held

    assert conclude(0.05, 0.10, 3) == "held"
    assert conclude(0.10, 0.05, 3) == "not held"
    assert conclude(0.05, 0.10, 1) == "undecided"
    assert conclude(0.05, 0.05, 3) == "undecided"


def checkpoints(folder: Path, losses: list[float], scores: list[float]) -> None:
    """A run of 10 steps per checkpoint with these losses, and the score of each checkpoint."""
    folder.mkdir(parents=True)
    rows = [{"step": step, "train/loss": losses[step // 10]} for step in range(10 * len(losses))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, score in enumerate(scores, start=1):
        for one in LINEAR:
            place = folder / "at" / f"step-{10 * number:06d}" / "eval" / one.key
            place.mkdir(parents=True)
            metrics = {
                "macro_recall": {"value": score, "low": score - 0.02, "high": score + 0.02, "sd": None}
            }
            (place / "results.json").write_text(json.dumps({"metrics": metrics}))


@pytest.mark.parametrize(
    ("salt", "vjepa", "verdict"),
    [
        ([0.1, 0.2, 0.3, 0.4], [0.4, 0.1, 0.3, 0.2], "held"),
        ([0.4, 0.3, 0.2, 0.1], [0.4, 0.1, 0.3, 0.2], "not held"),  # a lower loss, a lower score
        ([0.2, 0.201, 0.2, 0.201], [0.2, 0.2, 0.201, 0.2], "undecided"),  # nothing moves
        ([0.1, 0.2], [0.2, 0.1], "undecided"),  # too few to correlate
    ],
)
def test_the_loss_is_a_signal_if_it_falls_where_the_score_rises(
    salt: list[float], vjepa: list[float], verdict: str, tmp_path: Path
) -> None:
    whole = comparison({"salt": [salt[-1]], "vjepa": [vjepa[-1]]}, tmp_path)
    for name, scores in (("salt", salt), ("vjepa", vjepa)):
        checkpoints(tmp_path / f"{name}-0", [1.0, 0.9, 0.8, 0.7][: len(scores)], scores)
    runs = tuple(replace(run, steps=40) for run in whole.runs)
    claim, extra = STUDIES["loss-as-signal"].conclude(Found(replace(whole, runs=runs), Standings({}, ())))
    assert claim.held == verdict
    assert len(extra) == 1


def test_the_loss_before_a_checkpoint_counts() -> None:
    assert loss_signal.WINDOW * 100 < 10, "short runs average over ten steps at least"


@pytest.mark.parametrize("name", STUDIES)
def test_no_study_decides_before_there_are_numbers(name: str) -> None:
    """As soon as the plan is written, and also if every run was refused."""
    study = STUDIES[name]
    from test_compare import SHARED

    from tubelet.compare.plan import Task
    from tubelet.compare.studies.study import Ask

    ask = Ask("unused", (Task("x", "x.csv"),), 1e9, "48x4x3", SHARED)
    object.__setattr__(ask, "steps", lambda recipe, knobs=None: 12)
    arms = tuple(Arm(a.name, a.method, a.model, a.budget, a.note, a.teacher) for a in study.arms(ask))
    evals = tuple(
        Evaluation(
            e.key, e.task, e.probe, "map" if e.probe == "retrieval" else "macro_recall", e.labels, e.layer
        )
        for e in study.evals(ask)
    )
    runs = tuple(Run(arm.name, 0, Path("none")) for arm in arms)
    whole = replace(comparison({}), arms=arms, evals=evals, runs=runs)
    claim, _ = study.conclude(Found(whole, Standings({}, ())))
    assert claim.held == "undecided"
    assert claim.papers and claim.why


def test_an_unknown_study_names_the_nearest() -> None:
    with pytest.raises(UserError, match='did you mean "salt-teacher"'):
        find_study("salt-techer")
