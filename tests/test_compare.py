"""Comparisons: equal FLOPs by plan and by what was charged, resumed run by run, nothing mixed; and the studies."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from test_recipes import tubelet
from video import write_video

from tubelet.compare import execute
from tubelet.compare.compare import read_settings
from tubelet.compare.length import length, with_runs
from tubelet.compare.plan import Arm, Eval, Plan, Run, Task, task_name
from tubelet.compare.saved import grown, load_plan, named, save_plan
from tubelet.compare.studies import STUDIES
from tubelet.compare.studies.salt_teacher import narrower
from tubelet.compare.studies.study import Ask
from tubelet.errors import UserError
from tubelet.quiet import quietly
from tubelet.recipes import run_recipe
from tubelet.recipes.run import Planned

SMALL = "--frames 4 --frame-step 1 --crop-size 32 --patch-size 16 --batch-size 2 --workers 0 --device cpu --threads 1"
SHARED: dict[str, Any] = {
    "frames": 4,
    "frame_step": 1,
    "crop_size": 32,
    "patch_size": 16,
    "batch_size": 2,
    "workers": 0,
    "device": "cpu",
    "positions": "sincos",
}
METHODS = ("videomae", "vjepa", "salt", "layerlock", "blockwise", "vjepa-layerlock")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos of two classes in six groups, four of them to learn from; labels.csv."""
    base = tmp_path_factory.mktemp("set") / "clips"
    rows = [["path", "label", "split", "group"]]
    for number in range(12):
        name = f"{number:02d}.mp4"
        write_video(base / name, range(40 * number, 40 * number + 10), size=(48, 40))
        rows.append([name, "ab"[number % 2], "test" if number >= 8 else "train", f"g{number // 2}"])
    with (base / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return base


def plan_of(folder: Path, **more: Any) -> Plan:
    arms = (Arm("videomae", "videomae", "videomae", "48x4x3", 1e9),)
    task = Task("clips", str(folder / "labels.csv"))
    given = {
        "kind": "compare",
        "name": "compare",
        "title": "t",
        "question": "q",
        "data": str(folder / "labels.csv"),
        "digest": "d",
        "clips": 8,
        "tasks": (task,),
        "evals": (Eval("clips-linear", "clips", "linear"),),
        "headline": "macro_recall",
        "seeds": (0,),
        "arms": arms,
        "knobs": SHARED,
        **more,
    }
    return Plan(**given)


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_comes_within_a_step_of_its_budget_and_never_above(method: str, videos: Path) -> None:
    knobs = {**SHARED, "data": str(videos / "labels.csv"), "model": "48x4x3"}
    budget = 3e8
    found = length(method, knobs, budget)
    assert found.total_flops <= budget
    assert budget - found.total_flops < max(0.002 * budget, 2 * found.total_flops / found.steps)


@pytest.mark.parametrize("method", ["salt", "layerlock"])
def test_what_is_planned_equals_what_is_charged(method: str, videos: Path, tmp_path: Path) -> None:
    """By part, with SALT's teacher and LayerLock's changing phases."""
    knobs = {
        **SHARED,
        "data": str(videos / "labels.csv"),
        "model": "48x4x3",
        "steps": 12,
        "out": str(tmp_path / "run"),
    }
    with quietly():
        planned = run_recipe(method, **knobs, dry_run=True).planned
        assert not (tmp_path / "run").exists(), "a dry run writes nothing"
        run_recipe(method, **knobs)
    charged: dict[str, float] = {}
    steps = 0
    for file in [tmp_path / "run/run.json", *(tmp_path / "run").glob("*/run.json")]:
        about = json.loads(file.read_text())
        steps += about["steps"]
        for part, flops in about["flops"].items():
            charged[part] = charged.get(part, 0.0) + flops
    assert planned.steps == steps
    assert planned.flops == pytest.approx(charged, rel=1e-12)


def test_a_budget_below_one_step_is_refused(videos: Path) -> None:
    knobs = {**SHARED, "data": str(videos / "labels.csv"), "model": "48x4x3"}
    with pytest.raises(UserError, match="does not pay one step"):
        length("videomae", knobs, 10.0)
    with pytest.raises(UserError, match="above 0"):
        length("videomae", knobs, -1.0)


def test_plans_come_back_as_they_were_saved_and_may_only_grow(videos: Path, tmp_path: Path) -> None:
    arms = (Arm("videomae", "videomae", "videomae", "48x4x3", 1e9, {"area": (0.5, 1.0)}),)
    plan = with_runs(plan_of(videos, seeds=(0, 1), arms=arms))
    save_plan(plan, tmp_path)
    assert load_plan(tmp_path) == plan
    more = grown(
        plan, plan_of(videos, arms=(Arm("vjepa", "vjepa", "vjepa", "48x4x3", 1e9),), seeds=(0,)), tmp_path
    )
    assert [arm.method for arm in more.arms] == ["videomae", "vjepa"]
    assert more.seeds == (0, 1)
    assert all(run in with_runs(more).runs for run in plan.runs), "what was planned stays as it is"
    for changed, word in (
        ({"knobs": {**SHARED, "batch_size": 4}}, "batch_size"),
        ({"data": "other.csv"}, "data"),
        ({"arms": (replace(plan.arms[0], knobs={"decoder_dim": 48}),)}, "arm videomae"),
    ):
        with pytest.raises(UserError, match=word):
            grown(plan, plan_of(videos, **changed), tmp_path)


def test_budgets_and_sizes_that_come_later_have_names_and_runs_of_their_own(
    videos: Path, tmp_path: Path
) -> None:
    first = Arm("vjepa", "vjepa", "vjepa", "48x4x3", 1e9)
    earlier = with_runs(plan_of(videos, arms=tuple(named([first]))))
    save_plan(earlier, tmp_path)
    later = plan_of(videos, arms=tuple(named([replace(first, budget=2e9)])))
    whole = with_runs(grown(earlier, later, tmp_path))
    save_plan(whole, tmp_path)
    assert load_plan(tmp_path) == whole
    assert [run.arm.name for run in whole.runs] == ["vjepa 1e09", "vjepa 2e09"]
    assert whole.runs[0].folder == earlier.runs[0].folder != whole.runs[1].folder
    with pytest.raises(UserError, match="same names"):
        grown(replace(earlier, kind="study"), replace(later, kind="study"), tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"digest": "other"},
        {"tasks": (Task("clips", "elsewhere.csv"),)},
        {"tasks": (Task("clips", "labels.csv", 5),)},
        {"unlabelled": "exclude"},
        {"draws": 3},
        {"evals": (Eval("clips-linear", "clips", "linear", "5"),)},
    ],
)
def test_other_videos_labels_folds_and_evaluations_are_refused(
    changed: dict[str, Any], tmp_path: Path
) -> None:
    plan = plan_of(Path("set"), tasks=(Task("clips", "labels.csv"),))
    with pytest.raises(UserError, match="holds another comparison"):
        grown(plan, replace(plan, **changed), tmp_path)


def test_a_page_may_be_drawn_by_another_headline(tmp_path: Path) -> None:
    plan = plan_of(Path("set"))
    assert grown(plan, replace(plan, headline="top1"), tmp_path).headline == "top1"


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"arms": [')
    with pytest.raises(UserError, match=r"plan\.json cannot be read"):
        load_plan(tmp_path)


def test_cheap_runs_come_first_and_teachers_before_their_students() -> None:
    arms = (
        Arm("s", "s", "salt", "48x2x3", None, {"steps": 2}, teacher="t"),
        Arm("dear", "videomae", "videomae", "48x2x3", 2e9),
        Arm("cheap", "videomae", "videomae", "48x2x3", 1e9),
        Arm("t", "t", "salt-teacher", "48x2x3", None, {"steps": 2}),
    )
    known = {arm.key: Planned(2, {"encoder": 1.0}) for arm in arms}
    base = plan_of(Path("unused"), arms=arms, seeds=(0, 1))
    runs = tuple(Run(arm, 0, f"runs/{arm.key}-seed0", known[arm.key]) for arm in arms)
    order = [run.arm.name for run in with_runs(replace(base, runs=runs)).runs]
    assert order.index("t") < order.index("s")
    assert order.index("cheap") < order.index("dear")
    assert order.count("dear") == 2


def test_settings_are_read_as_the_recipes_options() -> None:
    words = ["salt.teacher_share=0.25", "salt.predictor-dim=48", "vjepa.momentum=.99,1", "vjepa.mask=tube"]
    assert read_settings(words, ["salt", "vjepa"]) == {
        "salt": {"teacher_share": 0.25, "predictor_dim": 48},
        "vjepa": {"momentum": (0.99, 1.0), "mask": "tube"},
    }


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("salt", "METHOD.KNOB=VALUE"),
        ("videomae.lr=1", "not among the methods"),
        ("salt.colour=1", 'no knob "colour"'),
        ("salt.batch_size=2", "the same for all"),
        ("salt.teacher=runs/x", "would not be charged"),
        ("salt.seed=1", "leave it out"),
        ("salt.mask=cube", "none of"),
        ("salt.predictor_dim=wide", "wide"),
    ],
)
def test_settings_that_make_no_sense_are_refused(word: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_settings([word], ["salt"])


def test_tasks_are_named_after_their_list_or_folder(tmp_path: Path) -> None:
    assert task_name(str(tmp_path / "tennis" / "labels.csv")) == "tennis"
    assert task_name("some/strokes.csv") == "strokes"


def compare(videos: Path, out: Path, *more: str, methods: str = "videomae,salt") -> int:
    words = (
        f"compare --methods {methods} --data {videos / 'labels.csv'} --budget 2e8 --sizes 48x2x3 --out {out}"
    )
    return tubelet(*words.split(), *SMALL.split(), *more)


@pytest.mark.slow
def test_from_videos_to_a_page(videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cmp"
    assert compare(videos, out, "--probes", "linear,retrieval", "--dry-run") == 0
    assert not out.exists(), "a dry run writes nothing"
    assert compare(videos, out, "--probes", "linear,retrieval") == 0
    plan = load_plan(out)
    assert plan is not None
    assert plan.knobs["split"] == "train", "test clips are not trained on"
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["arm"] for row in rows} == {"videomae", "salt", "random", "pixels"}
    for run in plan.runs:
        spent = [float(row["train_flops"]) for row in rows if row["arm"] == run.arm.name]
        assert spent == pytest.approx([run.planned.total_flops] * len(spent)) and spent
    assert "macro_recall" in {row["metric"] for row in rows}
    assert (
        (out / "report.html").is_file() and (out / "frontier.png").is_file() and (out / "pairs.csv").is_file()
    )

    before = {file: file.stat().st_mtime_ns for file in out.rglob("run.json")}
    (out / plan.runs[0].folder / "eval" / "clips-linear" / "results.json").unlink()
    assert compare(videos, out, "--probes", "linear,retrieval,knn") == 0, "another probe is added"
    assert before == {file: file.stat().st_mtime_ns for file in out.rglob("run.json")}, (
        "nothing is trained again"
    )
    assert (out / plan.runs[0].folder / "eval" / "clips-linear" / "results.json").is_file()
    assert len(list(out.glob("runs/*/eval/clips-knn/results.json"))) == 2

    capsys.readouterr()
    assert compare(videos, out, "--set", "videomae.decoder_dim=48") == 2
    assert "the arm videomae" in capsys.readouterr().err


@pytest.mark.slow
def test_a_study_takes_over_runs_and_says_whether_the_claim_held(videos: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "cmp", tmp_path / "few"
    assert compare(videos, first, "--probes", "linear", methods="videomae,vjepa,salt") == 0
    words = f"study few-labels --data {videos / 'labels.csv'} --budget 2e8 --model 48x2x3 --out {second}"
    trained = {file.name: file.stat().st_size for file in first.glob("runs/*/metrics.jsonl")}
    assert tubelet(*words.split(), "--reuse", str(first), *SMALL.split()) == 0
    assert trained == {file.name: file.stat().st_size for file in second.glob("runs/*/metrics.jsonl")}
    for run in first.glob("runs/*"):
        assert (second / "runs" / run.name / "run.json").read_bytes() == (run / "run.json").read_bytes()
    page = (second / "report.html").read_text()
    assert "80.2" in page, "the paper's numbers"
    assert any(said in page for said in ("These numbers do not decide it", "The claim held", "did not hold"))
    assert (second / "results.csv").is_file()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_costs_its_own_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [
        execute.Job("dies", lambda: True, die, lambda: ()),
        execute.Job("lives", lambda: True, Path.touch, lambda: (tmp_path / "lives",)),
        execute.Job("waits", lambda: False, die, lambda: ()),
        execute.Job("is late", lambda: True, Path.touch, lambda: (tmp_path / "late",)),
    ]
    monkeypatch.setattr(execute, "_baseline_jobs", lambda *_: jobs)
    monkeypatch.setattr(execute, "_shown", lambda *_: "")
    failed = execute._execute(
        plan_of(tmp_path), tmp_path, execute.Manner(jobs=2), Console(file=io.StringIO())
    )
    assert set(failed) == {"dies", "waits"}
    assert "waits for a run" in str(failed["waits"])
    assert (tmp_path / "lives").exists() and (tmp_path / "late").exists()


def test_a_folder_of_something_else_is_left_alone(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert compare(videos, tmp_path) == 2
    assert "holds no comparison" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_two_comparisons_never_write_to_one_folder(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tubelet.train.folder import sole_owner

    with sole_owner(tmp_path / "cmp"):
        assert compare(videos, tmp_path / "cmp") == 2
    assert "another process" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "cmp").iterdir()] == [".lock"]


def test_mistakes_in_labels_come_before_training(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(csv.reader((videos / "labels.csv").open(newline="")))
    broken = [
        [videos / path, "" if i == 3 else label, group] for i, (path, label, _, group) in enumerate(rows[1:])
    ]
    with (tmp_path / "gaps.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "group"], *broken])
    words = f"compare --data {tmp_path / 'gaps.csv'} --budget 2e8 --sizes 48x2x3 --out {tmp_path / 'cmp'}"
    assert tubelet(*words.split(), *SMALL.split()) == 2
    assert "1 of 12 clips have no label" in capsys.readouterr().err
    assert not (tmp_path / "cmp").exists()


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_can_be_planned(name: str, videos: Path) -> None:
    study = STUDIES[name]
    task = Task("clips", str(videos / "labels.csv"))
    ask = Ask(str(videos / "labels.csv"), (task,), 2e9, "48x4x3", {**SHARED, "split": "train"})
    arms = tuple(study.arms(ask))
    assert len({arm.key for arm in arms}) == len(arms), "every arm has a folder of its own"
    whole = with_runs(plan_of(videos, name=name, arms=arms, evals=tuple(study.evals(ask)), knobs=ask.knobs))
    assert all(run.planned.steps >= 1 for run in whole.runs)
    assert study.paper.rows and all(len(row) == len(study.paper.columns) for row in study.paper.rows)


def test_half_as_wide_is_an_encoder_that_can_be_built() -> None:
    assert narrower("vit_small") == "vit_tiny"
    assert narrower("96x6x3") == "48x6x1"
