"""Pages are whole, ask for nothing outside, escape what they are given, and say what the numbers say."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from markup import Tags, assert_asks_for_nothing
from matplotlib.image import imread

from tubelet.errors import UserError
from tubelet.report.curves import Dots, Line, Panel, draw_panels, split, thin
from tubelet.report.demo import CostRow, DemoResult, Reconstruction, demo_report, findings
from tubelet.report.filmstrip import Strip, draw_strips, strip_picture
from tubelet.report.frontier import Frontier, Point, Track
from tubelet.report.history import last, load_metrics
from tubelet.report.page import Key, Page
from tubelet.report.table import Cell, Score, best_of, draw_table
from tubelet.report.training import run_report
from tubelet.report.units import flops, memory


def metrics(steps: int = 40) -> list[dict[str, float]]:
    rows = [
        {"step": s, "train/loss": 1.0 / (s + 1), "train/lr": 1e-3, "train/grad_norm": 1.0}
        for s in range(steps)
    ]
    for row in rows[::10]:
        row |= {"repr/rankme": 20.0 + row["step"], "repr/std": 0.3}
    return rows


def clip(value: int = 100, frames: int = 5) -> np.ndarray:
    return np.full((frames, 12, 16, 3), value, np.uint8)


def demo_result(true_scale: bool = True) -> DemoResult:
    table = {
        "appearance": {
            "student": {"linear": Score(0.79, 0.02, 5), "kNN": Score(0.64, 0.02, 5)},
            "random": {"linear": Score(0.38, 0.03, 5), "kNN": Score(0.62, 0.03, 5)},
        },
        "motion": {"student": {"linear": Score(0.14, 0.01, 5)}, "random": {"linear": Score(0.15, 0.01, 5)}},
    }
    return DemoResult(
        table=table,
        baselines=["random"],
        chance={"appearance": 0.25, "motion": 0.125},
        tasks={"appearance": "which texture.", "motion": "which way."},
        protocol="Ten labels per class.",
        runs={"teacher": metrics(), "student": metrics()},
        reconstructions=[Reconstruction("<one>", clip(), clip(0), clip(200))],
        true_scale=true_scale,
        neighbours=[[Strip("query", clip()), Strip("1st", clip(3), "same")]],
        costs=[CostRow("teacher", 30.0, 2e14), CostRow("decode", 10.0)],
        seconds=41.0,
        peak_memory=1.5 * 2**30,
        machine="2 cores",
        world="A world.",
        longer="tubelet demo --steps 9000",
    )


# the demo's page


def test_demo_page_is_whole_and_asks_for_nothing(tmp_path):
    text = demo_report(demo_result(), tmp_path / "report.html").read_text()
    assert_asks_for_nothing(text)
    for said in (
        "What it learned",
        "Reconstructions",
        "Nearest neighbours",
        "Health",
        "200 TFLOP",
        "75%",
        "41 s",
    ):
        assert said in text
    assert "&lt;one&gt;" in text
    assert "tubelet demo --steps 9000" in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("true_scale", "said"), [(True, "its true mean and variance"), (False, "Nothing of the truth")]
)
def test_demo_page_says_whether_the_truth_was_reapplied(tmp_path, true_scale, said):
    assert said in demo_report(demo_result(true_scale), tmp_path / "report.html").read_text()


def test_findings_say_beaten_within_noise_and_not_beaten():
    said = findings(demo_result().table, ["random"])
    assert said == [
        "Appearance, linear: student (0.79 ± 0.02) clearly beats random (0.38 ± 0.03).",
        "Appearance, kNN: student (0.64 ± 0.02) is ahead of, but within the noise of, random (0.62 ± 0.03).",
        "Motion, linear: student (0.14 ± 0.01) does not beat random (0.15 ± 0.01).",
    ]


# sections


def test_whatever_is_given_is_escaped_everywhere():
    evil = "<script>alert('&')</script>"
    page = Page(evil, evil)
    page.heading(evil)
    page.text(evil)
    page.code(evil)
    page.points([evil])
    page.keys([Key(evil, evil, evil)])
    page.verdict(evil, None)
    page.fold(evil, evil)
    page.table([evil, evil], [[evil, evil]], evil, evil, [(evil, 1)])
    page.curves([Panel(evil, [Line(evil, [0, 1], [0, 1])], level=(evil, 0.5))], evil, evil)
    page.curves([Dots(evil, {evil: {evil: (0.5, 0.1)}})], evil, evil)
    page.filmstrips([[Strip(evil, clip(), evil)]], evil, evil)
    point = Point(1e12, 0.5, name=evil)
    page.frontiers([Frontier(evil, [Track(evil, evil, [point])], evil, flops, {evil: 0.3})], evil, evil)
    page.picture(b"", evil, evil)
    assert "<script" not in page.html()
    assert_asks_for_nothing(page.html())


def test_a_page_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = Page("first").write(tmp_path / "report.html")
    before = file.read_text()
    page = Page("second")
    monkeypatch.setattr("tubelet.files.os.replace", lambda *_: (_ for _ in ()).throw(OSError(5, "gone")))
    with pytest.raises(OSError):
        page.write(file)
    assert file.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_contents_link_to_their_headings():
    page = Page("title")
    for title in ("One", "Two", "Two"):
        page.heading(title)
    seen = Tags(page.html()).seen
    ids = [attrs["id"] for tag, attrs in seen if tag == "h2"]
    links = [attrs["href"] for tag, attrs in seen if tag == "a"]
    assert len(set(ids)) == 3
    assert links == [f"#{anchor}" for anchor in ids]


# pictures


def test_a_strip_holds_evenly_spread_frames_in_order():
    frames = np.stack([np.full((4, 6, 3), 10 * number, np.uint8) for number in range(9)])
    picture = strip_picture(frames, frames=3, gap=1)
    assert picture.shape == (4, 3 * 6 + 2, 4)
    assert picture[0, [0, 7, 14], 0].tolist() == [0, 40, 80]
    assert picture[0, [6, 13], 3].tolist() == [0, 0]


def test_a_strip_becomes_a_png_with_the_same_pixels():
    html = draw_strips([Strip("a", clip(77, frames=2))])
    (data,) = re.findall(r"base64,([^\"]+)", html)
    picture = imread(io.BytesIO(base64.b64decode(data)), format="png")
    assert (picture[:, :16, :3] * 255).round().astype(int).tolist() == np.full((12, 16, 3), 77).tolist()


@pytest.mark.parametrize("bad", [np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8)])
def test_a_strip_refuses_what_is_no_clip(bad):
    with pytest.raises(ValueError, match="uint8"):
        strip_picture(bad)


def test_joined_clips_stand_apart():
    frames = np.full((6, 4, 6, 3), 200, np.uint8)
    picture = strip_picture(frames, frames=6, gap=1, apart=3)
    assert picture.shape == (4, 6 * 6 + 4 * 1 + 5, 4)
    gaps = np.flatnonzero(picture[0, :, 3] == 0)
    assert gaps.tolist() == [6, 13, 20, 21, 22, 23, 24, 31, 38]


# curves


def test_colours_follow_the_page_and_each_name_keeps_its_own():
    html = draw_panels(
        [
            Panel("a", [Line("x", [0, 1], [0, 1]), Line("y", [0, 1], [1, 0])]),
            Panel("b", [Line("y", [0, 1], [0, 1])]),
        ]
    )
    assert "#0a0" not in html
    first, second = html.split("<h3>b</h3>")
    assert "stroke: var(--c1)" in first and "stroke: var(--c2)" in first
    assert "stroke: var(--c2)" in second and "stroke: var(--c1)" not in second


def test_drawing_is_deterministic():
    panels = [Panel("a", [Line("x", [0, 1, 2], [3, 1, 2], sd=[0.1, 0.1, 0.1])])]
    assert draw_panels(panels) == draw_panels(panels)


def test_more_lines_than_colours_are_drawn_in_parts():
    names = [f"line {number}" for number in range(9)]
    html = draw_panels([Panel("a", [Line(name, [0, 1], [0, 1]) for name in names])])
    assert html.count("<h3>a</h3>") == 2
    assert [name in html for name in names] == [True] * 9
    assert [len(part) for part in split(names)] == [4, 5]
    assert [name for part in split(names * 3) for name in part] == names * 3


def test_places_that_are_no_numbers_have_names():
    html = draw_panels([Panel("a", [Line("x", [0, 1], [1, 2])], ticks=[(0, "one"), (1, "<all>")])])
    assert ">one<" in html and "&lt;all&gt;" in html


def test_long_lines_are_thinned_by_means_and_gaps_are_left_out():
    line = thin(Line("x", range(1000), [float(i) for i in range(1000)]), points=10)
    assert len(line.y) == 10
    assert line.y[0] == pytest.approx(49.5)
    gappy = thin(Line("x", [0, 1, 2], [1.0, float("nan"), 3.0]))
    assert list(gappy.x) == [0, 2]


# tables, units, metrics


def test_a_table_marks_the_best_and_refuses_ragged_rows():
    html = draw_table(
        ["name", "score"], [["a", Cell(Score(0.5, 0.01, 3), best=True)], ["b", Cell(Score(0.25))]]
    )
    assert html.count('class="best"') == 1
    assert '0.500 <span class="sd">± 0.010</span>' in html
    assert "<td>0.250</td>" in html
    with pytest.raises(ValueError, match="a row of 1 cells"):
        draw_table(["name", "score"], [["a"]])


def test_a_score_shows_its_interval_and_a_difference_its_sign():
    row: list[str | Cell] = ["a", Cell(Score(-2.5), True, 1, (-4.04, 0.5), signed=True)]
    html = draw_table(["name", "gap"], [row])
    assert '<td class="best">−2.5 <span class="sd">[−4.0, +0.5]</span></td>' in html


def test_best_of_needs_two_to_compare():
    assert best_of([Score(0.1), None, Score(0.3)]) == 2
    assert best_of([None, Score(0.3)]) is None


@pytest.mark.parametrize(
    ("amount", "said"), [(1.239e15, "1.24 PFLOP"), (2e18, "2 EFLOP"), (3.4e9, "3.4 GFLOP"), (12, "12 FLOP")]
)
def test_flops_read_well(amount, said):
    assert flops(amount) == said


def test_memory_reads_well():
    assert memory(1.5 * 2**30) == "1.50 GiB"
    assert memory(300 * 2**20) == "300 MiB"


def test_metrics_that_were_not_finite_are_gaps_not_zeros(tmp_path):
    file = tmp_path / "metrics.jsonl"
    rows = [{"step": 0, "train/loss": 1.0}, {"step": 1, "train/loss": None}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 2, "tra')
    found = load_metrics(file)
    assert [row["step"] for row in found] == [0, 1]
    assert np.isnan(found[1]["train/loss"])
    assert last(found, "train/loss") == 1.0


# the page of a run


def write_run(folder: Path, finished: bool = True) -> Path:
    folder.mkdir()
    rows = [
        row | {"time/step_s": 0.2, "time/data_frac": 0.25, "throughput/clips_per_s": 40.0}
        for row in metrics()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = {
        "steps": 40,
        "model": "vit_tiny",
        "batch_size": 8,
        "lr": {"schedule": "WarmupCosine", "peak": 0.00123456},
        "reasons": {"batch_size": "what 9 videos fill", "lr": "scaled"},
    }
    config = {"recipe": "vjepa", "knobs": {"data": "clips", "seed": 3}, "chosen": chosen}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "env.json").write_text(
        json.dumps({"cores": 2, "gpu": None, "command": ["tubelet", "pretrain"]})
    )
    if not finished:
        return folder
    spent = {"seconds": 10.0, "clips": 320, "flops": {"encoder": 3e12, "teacher": 1e12}, "peak_memory": 2**30}
    keep = {"step": 40, "sentence": "keep step 40: it is the last"}
    run = {
        "finished": True,
        "steps": 40,
        "precision": "fp32",
        "encoders": ["teacher", "student"],
        "keep": keep,
    }
    (folder / "run.json").write_text(json.dumps(spent | run))
    (folder / "data_report.csv").write_text(
        "path,status,reason\na.mp4,ok,\n<b>.mp4,unreadable,no video stream\n"
    )
    (folder / "checkpoints" / "step-000040").mkdir(parents=True)
    (folder / "eval" / "motion").mkdir(parents=True)
    score = {"top1": {"value": 0.5, "low": 0.4, "high": 0.6, "sd": None}}
    (folder / "eval" / "motion" / "results.json").write_text(json.dumps({"metrics": score}))
    return folder


def test_page_of_a_finished_run_tells_all(tmp_path):
    text = run_report(write_run(tmp_path / "a")).read_text()
    assert_asks_for_nothing(text)
    for said in (
        "vit_tiny on clips: 40 of 40 steps, finished.",
        "Healthy: effective rank",
        "4 TFLOP",
        "75%",  # the encoder's share of the arithmetic
        "50 ms",  # waiting: a quarter of 0.2 s
        "Videos by status: 1 ok, 1 unreadable.",
        "&lt;b&gt;.mp4",
        "Keep step 40: it is the last.",
        "<code>encoder/</code> holds the teacher",
        "0.400 to 0.600",
        "what 9 videos fill",
        "WarmupCosine: peak 0.001235",
    ):
        assert said in text, said


def test_page_of_an_unfinished_run_says_so(tmp_path):
    text = run_report(write_run(tmp_path / "a", finished=False)).read_text()
    assert_asks_for_nothing(text)
    for said in (
        "40 of 40 steps, not finished",
        "cost is not known",
        "no data report",
        "No checkpoint was saved",
    ):
        assert said in text, said


def test_page_of_no_run_or_a_damaged_one_is_a_clear_error(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        run_report(tmp_path)
    folder = write_run(tmp_path / "a")
    (folder / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        run_report(folder)
    assert not (folder / "report.html").exists()


def test_what_freezes_and_each_blocks_loss_are_drawn(tmp_path):
    rows = [{**row, "lock/frozen": row["step"] // 20, "lock/target": 1.0} for row in metrics()]
    (write_run(tmp_path / "lock") / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = run_report(tmp_path / "lock").read_text()
    assert "Frozen blocks" in text and "Layer that is predicted" in text and "Loss of each block" not in text
    blocks = [{**row, **{f"loss/block{k}": 1.0 / k for k in (1, 2, 10)}} for row in metrics()]
    (write_run(tmp_path / "blocks") / "metrics.jsonl").write_text("\n".join(map(json.dumps, blocks)))
    text = run_report(tmp_path / "blocks").read_text()
    assert "Loss of each block" in text and text.index("block 2") < text.index("block 10")
