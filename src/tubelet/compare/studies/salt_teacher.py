"""SALT's tables on the teacher's size, length and data: does a weak teacher do?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tubelet.compare.plan import Arm, task_name
from tubelet.compare.studies.study import Ask, Extra, Found, Study, Verdict, all_of, standard
from tubelet.evaluate.comparison import Evaluation
from tubelet.nn.vit import MODELS, parse_size
from tubelet.report.comparison import Claim, PaperTable
from tubelet.report.curves import Line, Panel
from tubelet.report.page import Page

TEACHER, STUDENT = "teacher: ", "student of: "
SHORTER = 4  # how much shorter the short teacher is trained
UNTRAINED = "untrained"  # a control of ours
RESAMPLES = 2000


def arms(ask: Ask) -> list[Arm]:
    """Teachers that differ in size, length and data, and for each a student that differs in nothing else.

    The budget pays the reference: teacher and student of one size, as many steps each (the paper's ablations: 80k
    and 80k). Every student has those steps.
    """
    steps = max(2, ask.steps("salt", {"teacher_share": 0.5}) // 2)
    teachers = [
        ask.arm(f"{TEACHER}same size", "salt-teacher", steps=steps),
        *(
            ask.arm(f"{TEACHER}{size}", "salt-teacher", steps=steps, model=size)
            for size in ask.sizes or (narrower(ask.model),)
        ),
        ask.arm(f"{TEACHER}1/{SHORTER} of the steps", "salt-teacher", steps=max(1, steps // SHORTER)),
        ask.arm(
            f"{TEACHER}{UNTRAINED}",
            "salt-teacher",
            steps=1,
            note="a control of ours: one step at a rate near 0",
        ),
        *(
            ask.arm(f"{TEACHER}trained on {task_name(source)}", "salt-teacher", steps=steps, data=source)
            for source in ask.sources
        ),
    ]
    students = [
        ask.arm(teacher.name.replace(TEACHER, STUDENT), "salt", steps=steps, teacher=teacher.name)
        for teacher in teachers
    ]
    return [*teachers, *students]


def conclude(found: Found) -> tuple[Claim, Sequence[Extra]]:
    """By the slope of the students' scores over their teachers': the paper's tables have about .2."""
    verdicts: list[Verdict] = []
    told = []
    for one in found.evals():
        points = _points(found, one)
        if len(points) < 3:
            continue
        clear = any(
            pair.interval.clear
            for pair in found.standings.pairs
            if pair.evaluation.key == one.key
            and pair.one.name.startswith(TEACHER)
            and pair.other.name.startswith(TEACHER)
        )
        x, y = np.array([[a, b] for _, a, b in points]).T
        slope, low, high = _slope(x, y)
        told.append(
            f"{one.task}: teachers {100 * x.min():.1f} to {100 * x.max():.1f}, students {100 * y.min():.1f} to "
            f"{100 * y.max():.1f}, slope {slope:.2f} [{low:.2f}, {high:.2f}]"
            + ("" if clear else " (no two teachers differ beyond the noise)")
        )
        verdicts.append(
            "undecided" if not clear else "held" if high < 0.5 else "not held" if low > 0.5 else "undecided"
        )
    claim = Claim(
        STUDY.question,
        "A teacher ten points worse costs its student about two: slopes of about .2 over teachers of other sizes "
        "and data.",
        "; ".join(told) or "not known yet",
        all_of(verdicts),
        "Held where teachers differ beyond the noise and the students' scores rise by less than half a point per "
        "point of the teacher (95 % bootstrap over runs), on every task.",
    )

    def draw(page: Page) -> None:
        panels = []
        for one in found.evals():
            lines = [Line(name, [x], [y]) for name, x, y in _means(found, one)]
            if lines:
                panels.append(Panel(one.title, lines[:7], x_label="teacher's score"))
        if panels:
            page.curves(
                panels,
                "Student against teacher.",
                "A mark per teacher, mean over seeds; the student's score upwards.",
            )

    return claim, (draw,)


def narrower(model: str) -> str:
    """An encoder of half the width and the same depth, with about half of the heads."""
    size = parse_size(model)
    named = {other.dim: name for name, other in MODELS.items() if other.depth == size.depth}
    dim, heads = size.dim // 2, max(1, size.heads // 2)
    while dim % heads:
        heads -= 1
    return named.get(dim, f"{dim}x{size.depth}x{heads}")


def _points(found: Found, one: Evaluation) -> list[tuple[str, float, float]]:
    """(name, teacher's score, student's score) of every variant and seed."""
    scores = {
        (run.arm, run.seed): run.scores.get(one.key, {}).get(one.metric) for run in found.comparison.runs
    }
    points = []
    for (arm, seed), teacher in scores.items():
        student = scores.get((arm.replace(TEACHER, STUDENT), seed))
        if arm.startswith(TEACHER) and teacher is not None and student is not None:
            points.append((arm.removeprefix(TEACHER), teacher.value, student.value))
    return points


def _means(found: Found, one: Evaluation) -> list[tuple[str, float, float]]:
    points = _points(found, one)
    names = dict.fromkeys(name for name, _, _ in points)
    return [
        (
            name,
            float(np.mean([x for n, x, _ in points if n == name])),
            float(np.mean([y for n, _, y in points if n == name])),
        )
        for name in names
    ]


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Least squares, and its 95 % bootstrap interval over points."""
    draws = np.random.default_rng(0).integers(len(x), size=(RESAMPLES, len(x)))
    a, b = x[draws] - x[draws].mean(1, keepdims=True), y[draws] - y[draws].mean(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        slopes = (a * b).sum(1) / (a * a).sum(1)
    a, b = x - x.mean(), y - y.mean()
    low, high = np.nanquantile(slopes, (0.025, 0.975))
    return float((a * b).sum() / max((a * a).sum(), 1e-12)), float(low), float(high)


STUDY = Study(
    name="salt-teacher",
    title="Students of weak and strong teachers",
    question="How good must a frozen teacher be?",
    paper=PaperTable(
        ["teacher (student ViT-L, 80k + 80k steps)", "teacher's mean", "student's mean"],
        [
            ["ViT-B", "67.4", "76.5"],
            ["ViT-L", "72.5", "77.4"],
            ["ViT-H", "74.2", "77.3"],
            ["ViT-G", "75.2", "77.6"],
            ["ViT-L, on K710", "72.3", "77.4"],
            ["ViT-L, on SSv2 (169k clips)", "62.8", "75.5"],
            ["ViT-L, on ImageNet-1K", "59.8", "74.9"],
        ],
        "SALT (arXiv 2509.24317): mean of K400, SSv2, IN1K and COIN, frozen",
    ),
    arms=arms,
    evals=standard,
    conclude=conclude,
    teachers=True,
    not_equal=(
        "Students have equal steps, not equal FLOPs in all: teachers differ in cost, which is what is varied.",
    ),
)
