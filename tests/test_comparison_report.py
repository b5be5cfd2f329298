"""The page of a comparison: whole, honest about what is missing, readable with many arms."""

from __future__ import annotations

import io

import pytest
from contest import videos, write_comparison
from markup import assert_asks_for_nothing
from matplotlib.image import imread
from video import write_video

from tubelet.errors import UserError
from tubelet.evaluate.comparison import read_comparison
from tubelet.report import frontier as module
from tubelet.report.comparison import Claim, PaperTable, comparison_report
from tubelet.report.frontier import Frontier, Point, Track, draw_frontiers, frontier_picture
from tubelet.report.units import flops

SKILLS = {"videomae": 0.2, "salt": 0.8, "sick": 0.05}


def test_page_of_a_comparison_is_whole_and_asks_for_nothing(tmp_path):
    there = [video for video in videos(tmp_path / "clips") if int(video.path.stem) % 4]  # some are gone since
    for number, video in enumerate(there[:8]):
        write_video(video.path, range(number * 40, number * 40 + 70))
    out = write_comparison(tmp_path / "cmp", SKILLS, seeds=(0, 1), clips=videos(tmp_path / "clips"))
    text = comparison_report(read_comparison(out), out / "report.html").read_text()
    assert_asks_for_nothing(text)
    for said in (
        "videomae, salt, sick at equal compute",
        "What is best for its price",
        "Pareto front",
        "In a paragraph",
        "10 TFLOP",
        "salt is first",
        "What is noise",
        "would be so by chance",
        "Frozen evaluation on tennis",
        "sick, seed 0: collapse.",
        "Nearest neighbours",
        "query: ",
        "Could not be read: ",
        "tubelet compare --budget 1e13",
        "var(--c3)",
    ):
        assert said in text, said
    assert "to do" not in text.replace("“to do”", "")
    # 3 queries, each with a strip of its own and one for each of 3 methods and 2 baselines
    assert text.count("data:image/png") == 3 * 6
    assert {"report.html", "frontier.png", "results.csv", "pairs.csv"} <= {
        path.name for path in out.iterdir()
    }
    height, width = imread(out / "frontier.png").shape[:2]
    assert height > 500 and width > 1000


def test_page_of_a_comparison_that_has_not_begun_says_to_do(tmp_path):
    out = write_comparison(tmp_path, SKILLS, done=False)
    text = comparison_report(read_comparison(out), out / "report.html").read_text()
    assert_asks_for_nothing(text)
    assert text.count("to do") > 10 and "To do: no run has been trained" in text
    assert "0 of 9 runs are done" in text
    assert not (out / "frontier.png").exists()


def test_page_of_a_study_begins_with_its_claim_and_ends_no_page_early(tmp_path):
    """More methods than colours, one run still missing, probes with few labels, figures of the study's own."""
    names = {f"arm {number}": 0.3 for number in range(8)}
    keys = [("linear", None), ("linear-5", "5"), ("linear-10%", "10%")]
    evals = [{"key": f"tennis-{key}", "task": "tennis", "probe": "linear", "labels": n} for key, n in keys]
    out = write_comparison(
        tmp_path, names, seeds=(0,), probes=[key for key, _ in keys], plan={"kind": "study", "evals": evals}
    )
    (out / "runs/arm-3-seed0/run.json").unlink()
    claim = Claim("Does it?", "85.4 <against> 83", "no difference", "not held", "It would hold if.")
    paper = PaperTable(["method", "K400"], [["salt", "85.4"]], "SALT (arXiv 2509.24317), Table 3")
    found = read_comparison(out)
    own = [lambda page: page.text("A figure of its own.")]
    text = comparison_report(found, out / "report.html", claim, paper, own).read_text()
    assert_asks_for_nothing(text)
    for said in (
        "The claim did not hold at this scale. It would hold if.",
        "85.4 &lt;against&gt; 83",
        "SALT (arXiv 2509.24317), Table 3",
        "The same probes over amounts of labels.",
        "A figure of its own.",
        "7 of 8 runs are done",
        "arm 7",
    ):
        assert said in text, said
    assert text.index("The claim did not hold") < text.index("What is best for its price</h2>")


@pytest.mark.parametrize(
    ("held", "said"), [("held", "held at this scale"), ("undecided", "do not decide it")]
)
def test_a_claim_says_whether_it_held(tmp_path, held, said):
    out = write_comparison(tmp_path, {"a": 0.3}, seeds=(0,), probes=("linear",), done=False)
    text = comparison_report(read_comparison(out), out / "report.html", Claim("?", "a", "b", held, "c"))
    assert said in text.read_text()


def test_a_damaged_comparison_leaves_the_earlier_page(tmp_path):
    out = write_comparison(tmp_path, {"a": 0.3}, seeds=(0,), probes=("linear", "retrieval"))
    file = comparison_report(read_comparison(out), out / "report.html")
    before = file.read_text()
    (out / "runs/a-seed0/eval/tennis-linear/predictions.csv").write_text("path\n")
    with pytest.raises(UserError, match="no column"):
        comparison_report(read_comparison(out), file)
    assert file.read_text() == before


# the frontier


def frontier(methods: int = 2, sizes: int = 1, budgets: int = 2) -> Frontier:
    tracks = [
        Track(
            f"method {m}",
            f"size {s}",
            [Point(10.0 ** (12 + b), 40 + m + s + b, 35 + m, 50 + m, m == 0) for b in range(budgets)],
        )
        for m in range(methods)
        for s in range(sizes)
    ]
    return Frontier("a task", tracks, "training FLOPs", flops, {"random": 30.0, "pixels": 30.2})


def test_a_frontier_names_methods_sizes_levels_and_prices():
    html = draw_frontiers([frontier(sizes=2)])
    for said in ("method 0", "method 1", "size 0", "size 1", "random", "pixels", "1 TFLOP", "10 TFLOP"):
        assert said in html, said
    assert "size 0" not in draw_frontiers([frontier(sizes=1)])  # one size is no news
    assert "#0a0" not in html


def test_equal_prices_stand_beside_each_other():
    places = module._beside(frontier(methods=3, budgets=2).tracks)
    for budget in (0, 1):
        column = [place[budget] for place in places]
        assert sorted(set(column)) == column and column[1] == pytest.approx(10.0 ** (12 + budget))
    assert module._beside(frontier(methods=1).tracks) == [[1e12, 1e13]]


def test_a_frontier_of_more_methods_than_colours_is_drawn_in_parts():
    assert draw_frontiers([frontier(methods=9)]).count("<h3>a task</h3>") == 2
    picture = imread(
        io.BytesIO(frontier_picture([[frontier(methods=9)], [frontier(budgets=6)]])), format="png"
    )
    assert picture.shape[0] > 400
    assert "method" not in draw_frontiers([Frontier("empty", [], "cost", flops, {})])
