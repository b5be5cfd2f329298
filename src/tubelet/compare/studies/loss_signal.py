"""SALT's figure: does the loss tell which checkpoint is better?"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from tubelet.compare.plan import Arm, Eval
from tubelet.compare.studies.study import Ask, Extra, Found, Study
from tubelet.evaluate.comparison import Evaluation, Run, read_scores
from tubelet.evaluate.noise import Correlation, correlation
from tubelet.report.comparison import Claim, PaperTable
from tubelet.report.curves import Line, Panel
from tubelet.report.history import load_metrics
from tubelet.report.page import Page
from tubelet.train.checkpoint import step_of

CHECKPOINTS = 10
FEWEST = 3  # checkpoints that a correlation needs
ARMS = ("salt", "vjepa")
SIGNALS = {"train/loss": "loss", "repr/rankme": "RankMe"}
Checkpoint = dict[str, float]  # "score", and each signal that is known
WINDOW = 0.05  # of the run before a checkpoint, over which its loss is averaged


def arms(ask: Ask) -> list[Arm]:
    """A student of a frozen teacher and V-JEPA, for the same FLOPs, with ten checkpoints each."""
    found = []
    for recipe in ARMS:
        own = ask.own.get(recipe, {})
        last = (
            1 - own.get("teacher_share", 1 / 3) if recipe == "salt" else 1.0
        )  # of the steps, for the last stage
        every = own.get("keep_every") or max(1, int(last * ask.steps(recipe)) // CHECKPOINTS)
        found.append(
            ask.arm(recipe, recipe, knobs={"save_every": every, "keep_every": every, "keep": 1, **own})
        )
    return found


def evals(ask: Ask) -> list[Eval]:
    """The linear probe alone: every checkpoint is evaluated."""
    return [Eval(f"{task.name}-linear", task.name, "linear") for task in ask.tasks]


def conclude(found: Found) -> tuple[Claim, Sequence[Extra]]:
    """Held if the student's loss goes with its score within every run, and V-JEPA's less so."""
    told, rows = [], []
    read = {(arm, one.key): _checkpoints(found, arm, one) for arm in ARMS for one in found.evals()}
    medians: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for one in found.evals():
        for arm in ARMS:
            for key, name in SIGNALS.items():
                each = [_correlate(points, key) for _, points in read[arm, one.key]]
                known = [c for c in each if c is not None and not math.isnan(c.r2)]
                if not known:
                    continue
                signed = [c.r2 * c.slope for c in known]
                rows.append(
                    [one.task, arm, name, " ".join(f"{value:+.2f}" for value in signed), str(known[0].n)]
                )
                if key == "train/loss":
                    # a falling loss that goes with a falling score is no signal
                    medians[arm].append(statistics.median(-value for value in signed))
        if rows:
            told.append(
                f"{one.task}: "
                + ", ".join(
                    f"{arm} {name} {values}" for task, arm, name, values, _ in rows if task == one.task
                )
            )
    salt, vjepa = medians["salt"], medians["vjepa"]
    moved = any(_moves(*run, one) for one in found.evals() for arm in ARMS for run in read[arm, one.key])
    if not (salt and vjepa and moved):
        verdict = "undecided"
    elif min(salt) >= 0.9 and max(vjepa) < min(salt):
        verdict = "held"
    else:
        verdict = "not held" if max(salt) < 0.5 else "undecided"
    claim = Claim(
        STUDY.question,
        "Over a student's checkpoints the loss tells the accuracy: R² .951, .972, .984 for three teachers. V-JEPA's "
        "does not; nor do the teacher's own loss and RankMe.",
        "R² with the sign of the slope (minus: a lower loss goes with a higher score), one per seed. "
        + "; ".join(told),
        verdict,
        (
            ""
            if moved
            else "No run's checkpoints differ by more than the noise of one score, so nothing can be told. "
        )
        + "Held where the median R² of the student's loss is .9 or more with the right sign on every task, "
        "and V-JEPA's lower.",
    )

    def draw(page: Page) -> None:
        panels = []
        for one in found.evals():
            for arm in ARMS:
                lines = []
                for seed, (_, points) in enumerate(read[arm, one.key]):
                    ordered = sorted((p["train/loss"], p["score"]) for p in points if "train/loss" in p)
                    lines.append(Line(f"seed {seed}", [x for x, _ in ordered], [y for _, y in ordered]))
                panels.append(Panel(f"{arm}: {one.task}", lines[:7], x_label="loss"))
        page.curves(
            panels,
            "Score of every checkpoint over its loss.",
            "A line per seed joins its checkpoints in the order of their loss; only one run's losses can be compared.",
        )
        page.table(
            ["task", "method", "signal", "R² with the slope's sign, per seed", "checkpoints"],
            rows,
            "How well each signal tells the score over a run's checkpoints.",
            "Squared correlation of the linear probe's score with the mean loss of the twentieth of the run before the "
            "checkpoint, or with the RankMe that was measured last.",
        )

    return claim, (draw,)


def _moves(run: Run, points: Sequence[Checkpoint], one: Evaluation) -> bool:
    """Whether the scores of the run's checkpoints differ by more than half the interval of its last score."""
    last = run.scores.get(one.key, {}).get(one.metric)
    scores = [point["score"] for point in points]
    return last is not None and len(scores) > 1 and max(scores) - min(scores) > (last.high - last.low) / 2


def _checkpoints(found: Found, arm: str, one: Evaluation) -> list[tuple[Run, list[Checkpoint]]]:
    """Every run of the arm with its evaluated checkpoints."""
    runs = []
    for run in found.comparison.runs:
        if run.arm == arm and (run.folder / "metrics.jsonl").is_file():
            rows = load_metrics(run.folder / "metrics.jsonl")
            places = sorted((run.folder / "at").glob("step-*"))
            points = [point for place in places if (point := _point(place, rows, run.steps, one))]
            runs.append((run, points))
    return runs


def _point(place: Path, rows: Sequence[dict[str, float]], steps: int, one: Evaluation) -> Checkpoint | None:
    scores = read_scores(place, [one]).get(one.key)
    if scores is None:
        return None
    step = step_of(place)
    point = {"score": scores[one.metric].value}
    losses = [
        row["train/loss"]
        for row in rows
        if step - max(10, WINDOW * steps) <= row["step"] < step
        and math.isfinite(row.get("train/loss", math.nan))
    ]
    ranks = [row["repr/rankme"] for row in rows if row["step"] <= step and "repr/rankme" in row]
    if losses:
        point["train/loss"] = statistics.fmean(losses)
    if ranks:
        point["repr/rankme"] = ranks[-1]
    return point


def _correlate(points: Sequence[Checkpoint], key: str) -> Correlation | None:
    """Of a run's checkpoints; None if fewer than three have the signal."""
    known = [(point[key], point["score"]) for point in points if math.isfinite(point.get(key, math.nan))]
    if len(known) < FEWEST:
        return None
    return correlation([x for x, _ in known], [y for _, y in known])


STUDY = Study(
    name="loss-as-signal",
    title="The loss as a signal",
    question="Does the training loss tell which checkpoint is better?",
    paper=PaperTable(
        ["R² of loss and accuracy over a student's checkpoints", "teacher 80k", "40k", "20k"],
        [["SALT", "0.951", "0.972", "0.984"]],
        "SALT (arXiv 2509.24317); V-JEPA 2's loss does not track quality by the authors' and users' account",
    ),
    arms=arms,
    evals=evals,
    conclude=conclude,
    checkpoints=True,
)
