"""A comparison read from its folder: costs add up, what is missing is missing, and noise is told from news."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from contest import CLIPS, videos, write_comparison, write_eval, write_run

from tubelet.errors import UserError
from tubelet.evaluate.comparison import COLUMNS, CORE_WATTS, read_comparison, write_results
from tubelet.evaluate.noise import Interval
from tubelet.evaluate.standings import ALL_PAIRS, weigh, write_pairs
from tubelet.report.conclusion import listed, paragraph, unit, words
from tubelet.report.overview import comparison_table, health, states

SKILLS = {"videomae": 0.15, "salt": 0.9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_comparison(tmp_path_factory.mktemp("compare"), SKILLS)


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def change(file: Path, **keys: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


# reading


def test_a_runs_cost_contains_its_stages(folder: Path) -> None:
    found = read_comparison(folder)
    salt = next(run for run in found.runs if run.arm == "salt" and run.seed == 1)
    assert salt.cost is not None
    assert salt.cost.train_flops == pytest.approx(1e13)  # half of it the teacher's
    assert salt.cost.flops["teacher: encoder"] == pytest.approx(0.75 * 5e12)
    assert (salt.cost.steps, salt.cost.seconds) == (120, 202.0)
    assert salt.cost.energy_kj == pytest.approx(2 * 150 * CORE_WATTS / 1000)
    assert salt.verdict == "healthy" and salt.final_loss == pytest.approx(0.25, abs=0.03)


def test_a_student_pays_for_the_arm_that_taught_it(tmp_path: Path) -> None:
    out = write_comparison(tmp_path, {"weak": 0.2, "student": 0.5}, seeds=(0,))
    plan = json.loads((out / "plan.json").read_text())
    plan["arms"][1]["teacher"] = "weak"
    change(out / "plan.json", arms=plan["arms"])
    student = next(run for run in read_comparison(out).runs if run.arm == "student")
    assert student.cost is not None and student.cost.train_flops == pytest.approx(2e13)
    assert student.planned_flops == pytest.approx(2e13) and student.steps == 120
    (out / "runs/weak-seed0/run.json").unlink()
    student = next(run for run in read_comparison(out).runs if run.arm == "student")
    assert student.cost is None  # never its own half alone


def test_what_was_not_measured_is_not_zero(tmp_path: Path) -> None:
    out = write_comparison(tmp_path, {"a": 0.3}, seeds=(0,))
    change(out / "runs/a-seed0/run.json", core_seconds=0.0)
    cost = read_comparison(out).runs[0].cost
    assert cost is not None and cost.energy_kj is None
    change(out / "runs/a-seed0/run.json", core_seconds=9.0)
    change(out / "plan.json", environment={"gpu": "a GPU"})
    cost = read_comparison(out).runs[0].cost
    assert cost is not None and cost.core_seconds == 9.0 and cost.energy_kj is None


def test_nothing_done_yet_is_to_do(tmp_path: Path) -> None:
    found = read_comparison(write_comparison(tmp_path, SKILLS, done=False))
    assert {found.state(run) for run in found.runs} == {"to do"}
    assert all(found.mean(arm, one) is None for arm in found.arms for one in found.evals)
    assert found.cost(found.arms[0], lambda cost: cost.seconds) is None
    standings = weigh(found)
    assert not standings.intervals and not standings.pairs
    assert "0 of 6 runs are done" in paragraph(found, standings)
    write_results(found, tmp_path / "results.csv")
    rows = read(tmp_path / "results.csv")
    assert len(rows) == len(found.runs) and {row["value"] + row["train_flops"] for row in rows} == {""}


def test_a_run_is_followed_from_to_do_to_done(tmp_path: Path) -> None:
    out = write_comparison(tmp_path, {"a": 0.3}, seeds=(0,), probes=("linear", "knn"), done=False)
    run = out / "runs/a-seed0"

    def state() -> str:
        found = read_comparison(out)
        return found.state(found.runs[0])

    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text('{"step": 0, "train/loss": 1.5}\n{"step": 1, "trai')
    assert state() == "training" and read_comparison(out).runs[0].final_loss == 1.5
    write_run(run, 1e13)
    assert state() == "0 of 2 evaluated"
    write_eval(run / "eval/tennis-linear", "linear", 0.3, 0)
    assert state() == "1 of 2 evaluated"
    write_eval(run / "eval/tennis-knn", "knn", 0.3, 0)
    assert state() == "done"
    found = read_comparison(out)
    assert states(found, found.arms[0]) == "done" and health(found, found.arms[0]) == "healthy"


def test_means_over_seeds_are_plain(folder: Path) -> None:
    found = read_comparison(folder)
    arm, (linear, knn, retrieval) = found.arms[1], found.evals
    values = [
        json.loads((folder / f"runs/salt-seed{s}/eval/tennis-linear/results.json").read_text())["metrics"]
        for s in range(3)
    ]
    mean = found.mean(arm, linear)
    assert mean is not None and mean.n == 3
    assert mean.value == pytest.approx(sum(v["macro_recall"]["value"] for v in values) / 3)
    assert (linear.metric, knn.metric, retrieval.metric) == ("macro_recall", "macro_recall@k20", "map")
    top = found.mean(arm, linear, "top1")
    assert top is not None and top.value == pytest.approx(sum(v["top1"]["value"] for v in values) / 3)
    pixels = found.mean(found.baselines[1], linear)
    assert pixels is not None and pixels.sd is None


@pytest.mark.parametrize(
    ("place", "text", "said"),
    [
        ("plan.json", "{", "plan.json is damaged"),
        ("plan.json", "[]", "no object in it"),
        ("plan.json", '{"arms": []}', "is no plan of this version"),
        ("runs/a-seed0/run.json", "{", "run.json is damaged"),
        ("runs/a-seed0/metrics.jsonl", "x\n", "metrics.jsonl is damaged"),
        ("runs/a-seed0/eval/tennis-linear/results.json", '{"metrics": {"x": 1}}', "results.json is damaged"),
        ("runs/a-seed0/eval/tennis-linear/results.json", '{"metrics": {}}', 'no metric "macro_recall"'),
    ],
)
def test_what_is_damaged_is_named(tmp_path: Path, place: str, text: str, said: str) -> None:
    out = write_comparison(tmp_path, {"a": 0.3}, seeds=(0,), probes=("linear",))
    (out / place).write_text(text)
    with pytest.raises(UserError, match=said):
        read_comparison(out)


def test_a_folder_without_a_plan_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no comparison"):
        read_comparison(tmp_path)


# noise


def test_differences_are_those_of_the_means_and_turn_round(folder: Path) -> None:
    found = read_comparison(folder)
    standings = weigh(found)
    videomae, salt = found.trained
    for one in found.evals[:2]:
        gap = standings.pair(salt, videomae, one)
        ours, theirs = found.mean(salt, one), found.mean(videomae, one)
        assert gap is not None and ours is not None and theirs is not None
        assert gap.value == pytest.approx(ours.value - theirs.value)
        assert gap.clear and gap.low > 0  # 0.9 against 0.15 of skill
        assert standings.pair(videomae, salt, one) == Interval(-gap.value, -gap.high, -gap.low)
        own = standings.intervals["salt", one.key]
        assert own.value == pytest.approx(ours.value) and own.low < own.value < own.high
    assert standings.pair(salt, videomae, found.evals[2]) is None  # retrieval leaves no predictions
    # 1 pair of methods, 2 baselines for each of 2 arms, 2 evaluations
    assert len(standings.pairs) == (1 + 4) * 2


def test_equal_arms_are_inside_the_noise(tmp_path: Path) -> None:
    found = read_comparison(write_comparison(tmp_path, {"one": 0.3, "other": 0.3}, probes=("linear",)))
    one, other = found.trained
    gap = weigh(found).pair(one, other, found.evals[0])
    assert gap is not None and not gap.clear
    assert "within the noise of" in paragraph(found, weigh(found))


def test_many_arms_are_compared_at_their_own_price(tmp_path: Path) -> None:
    skills = {name: 0.3 for name in ("a", "b", "c")}
    out = write_comparison(tmp_path, skills, budgets=(1e12, 1e13, 1e14), seeds=(0,), probes=("linear",))
    found = read_comparison(out)
    assert len(found.trained) == 9 > ALL_PAIRS
    trained = [pair for pair in weigh(found).pairs if not pair.other.baseline]
    assert len(trained) == 3 * 3 and all(pair.one.budget == pair.other.budget for pair in trained)


def test_runs_on_other_clips_are_refused(tmp_path: Path) -> None:
    out = write_comparison(tmp_path, SKILLS, probes=("linear",))
    write_eval(out / "runs/salt-seed1/eval/tennis-linear", "linear", 0.5, 0, videos()[: CLIPS - 6])
    with pytest.raises(UserError, match=r"salt-seed1.*different clips"):
        weigh(read_comparison(out))


# files


def test_the_csv_has_every_number_of_every_run(folder: Path, tmp_path: Path) -> None:
    found = read_comparison(folder)
    write_results(found, tmp_path / "results.csv")
    rows = read(tmp_path / "results.csv")
    assert tuple(rows[0]) == COLUMNS
    row = next(
        row
        for row in rows
        if (row["arm"], row["seed"], row["eval"], row["metric"])
        == ("salt", "2", "tennis-linear", "macro_recall")
    )
    run = next(run for run in found.runs if run.arm == "salt" and run.seed == 2)
    score = run.scores["tennis-linear"]["macro_recall"]
    assert (float(row["value"]), float(row["low"]), float(row["high"])) == (
        score.value,
        score.low,
        score.high,
    )
    assert (float(row["budget"]), float(row["train_flops"]), row["task"]) == (1e13, 1e13, "tennis")
    assert (float(row["seconds"]), row["verdict"], float(row["energy_kj"])) == (204.0, "healthy", 3.0)
    retrieved = {row["metric"] for row in rows if row["eval"] == "tennis-retrieval"}
    assert {"map", "hit@1", "recall@5", "map_other_groups"} <= retrieved
    base = next(row for row in rows if row["arm"] == "pixels")
    assert base["train_flops"] == base["budget"] == "" and base["value"]


def test_pairs_say_what_is_beyond_the_noise(folder: Path, tmp_path: Path) -> None:
    standings = weigh(read_comparison(folder))
    write_pairs(standings, tmp_path / "pairs.csv")
    rows = read(tmp_path / "pairs.csv")
    assert len(rows) == len(standings.pairs)
    for row in rows:
        zero_outside = float(row["low"]) > 0 or float(row["high"]) < 0
        assert row["outside_the_noise"] == ("yes" if zero_outside else "no")


# words


def test_the_paragraph_says_what_the_numbers_say(folder: Path) -> None:
    found = read_comparison(folder)
    standings = weigh(found)
    said = paragraph(found, standings)
    own = standings.intervals["salt", "tennis-linear"]
    for part in (
        "videomae and salt pretrained a 96x6x3 encoder on clips/labels.csv (412 videos) for 10 TFLOP each",
        "3 seeds",
        f"On tennis, linear, salt is first, macro recall {100 * own.value:.1f} % ({100 * own.low:.1f} %",
        "beyond the noise ahead of videomae",
        "Against an untrained encoder",
        "Against raw pixels",
        "were all arms equal, about 1 would be so by chance",
        "Not equal is wall clock.",
    ):
        assert part in said, part
    assert "not finished" not in said and "Collapse" not in said


def test_the_paragraph_owns_up(tmp_path: Path) -> None:
    out = write_comparison(tmp_path, {"sick": 0.0, "well": 0.6}, seeds=(0,), probes=("linear",))
    (out / "runs/well-seed0/eval/tennis-linear/results.json").unlink()
    found = read_comparison(out)
    said = paragraph(found, weigh(found))
    assert "1 of 2 runs are done" in said
    assert "Collapse of the features: sick (1 of 1 seeds)." in said
    assert "One seed says nothing of other seeds" in said
    assert "none is better beyond the noise" in said


def test_words_and_units() -> None:
    assert words("macro_recall@k20") == "macro recall, k 20" and words("map") == "mAP"
    assert unit("macro_recall").tell(0.4123) == "41.2 %" and unit("r2").tell(-0.5) == "−0.500"
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


def test_the_terminals_table_has_arms_and_baselines(folder: Path) -> None:
    table = comparison_table(read_comparison(folder))
    columns = {str(column.header): list(column.cells) for column in table.columns}
    assert columns["arm"] == ["videomae", "salt", "random", "pixels"]
    assert columns["FLOPs"] == ["10 TFLOP", "10 TFLOP", "", ""]
    assert columns["state"] == ["done"] * 4 and columns["health"][:2] == ["healthy"] * 2
    assert all(" ± " in str(cell) for cell in columns["tennis\nlinear"][:3])
    assert "±" not in str(columns["tennis\nlinear"][3])  # one seed of pixels
