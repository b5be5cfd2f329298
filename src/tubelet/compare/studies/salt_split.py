"""SALT's split of a budget between teacher and student, with V-JEPA beside it."""

from __future__ import annotations

from collections.abc import Sequence

from tubelet.compare.plan import Arm
from tubelet.compare.studies.study import Ask, Extra, Found, Study, standard
from tubelet.report.comparison import Claim, PaperTable
from tubelet.report.curves import Line, Panel
from tubelet.report.page import Page

SHARES = {"1/2": 1 / 2, "1/3": 1 / 3, "1/6": 1 / 6, "1/12": 1 / 12}


def arms(ask: Ask) -> list[Arm]:
    """SALT with four shares of the steps for the teacher, and V-JEPA, for the same FLOPs; and a student's student."""
    third = max(1, ask.steps("salt", {"teacher_share": 1 / 3}) // 3)
    return [
        *(
            ask.arm(f"teacher {name}", "salt", knobs={"teacher_share": share})
            for name, share in SHARES.items()
        ),
        ask.arm("stage 1 of 3", "salt-teacher", steps=third),
        ask.arm("stage 2 of 3", "salt", steps=third, teacher="stage 1 of 3"),
        ask.arm("three stages", "salt", steps=third, teacher="stage 2 of 3", note="a student's student"),
        ask.arm("V-JEPA", "vjepa"),
    ]


def conclude(found: Found) -> tuple[Claim, Sequence[Extra]]:
    """Held if SALT with the paper's own split beats V-JEPA; the best share is told, not tested."""
    best = []
    for one in found.evals():
        scores = {name: found.score(f"teacher {name}", one) for name in SHARES}
        known = {name: score for name, score in scores.items() if score is not None}
        if known:
            winner = max(known, key=lambda name: known[name])
            best.append(f"{one.task}: {winner} ({100 * known[winner]:.1f})")
    verdict, words = found.compare("teacher 1/3", "V-JEPA")
    claim = Claim(
        STUDY.question,
        "From a sixth to a third of the steps for the teacher is best, and every split beats V-JEPA at the same number "
        "of steps.",
        f"Best share of the teacher: {', '.join(best)}. {words}",
        verdict,
        "Held where SALT with a third of the steps for its teacher beats V-JEPA of the same FLOPs beyond the noise, on "
        "every task. Which share is best is stated, not tested: neighbouring shares differ by less than the noise.",
    )

    def draw(page: Page) -> None:
        panels = []
        for one in found.evals():
            points = [(share, found.score(f"teacher {name}", one)) for name, share in SHARES.items()]
            known = [(share, score) for share, score in sorted(points) if score is not None]
            if known:
                level = found.score("V-JEPA", one)
                panels.append(
                    Panel(
                        one.title,
                        [Line("SALT", [x for x, _ in known], [y for _, y in known])],
                        x_label="teacher's share of the steps",
                        level=None if level is None else ("V-JEPA", level),
                    )
                )
        if panels:
            page.curves(
                panels, "Score over the teacher's share.", "Mean over seeds; the dashed line is V-JEPA."
            )

    return claim, (draw,)


STUDY = Study(
    name="salt-split",
    title="How to split a budget between teacher and student",
    question="How much of SALT's steps should the teacher get?",
    paper=PaperTable(
        ["240k steps (ViT-L)", "FLOPs, 1e21", "K400", "SSv2", "IN1K", "COIN", "mean"],
        [
            ["V-JEPA 2", "1.900", "73.3", "68.4", "73.7", "83.1", "74.6"],
            ["80k + 160k (1/3)", "1.192", "76.0", "71.3", "79.0", "85.3", "77.9"],
            ["40k + 200k (1/6)", "1.311", "76.3", "71.7", "79.1", "85.6", "78.2"],
            ["20k + 220k (1/12)", "1.370", "75.8", "71.2", "78.7", "84.9", "77.7"],
            ["80k + 80k + 80k", "1.193", "76.5", "71.8", "79.0", "86.8", "78.5"],
        ],
        "SALT (arXiv 2509.24317); V-JEPA 2's FLOPs are of 256 pixels there",
    ),
    arms=arms,
    evals=standard,
    conclude=conclude,
    not_equal=(
        "The paper compares at equal steps, where a longer teacher is cheaper; here FLOPs are equal for all but the "
        "three stages, which are a third of the steps of the 1/3 split each.",
    ),
)
