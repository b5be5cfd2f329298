"""What a study is: arms, evaluations, what the papers found, and what to conclude from the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tubelet.compare.length import length
from tubelet.compare.plan import RETRIEVAL, Arm, Eval, Task
from tubelet.evaluate.comparison import Arm as CompetingArm
from tubelet.evaluate.comparison import Comparison, Evaluation
from tubelet.evaluate.noise import Interval
from tubelet.evaluate.standings import Standings
from tubelet.report.comparison import Claim, PaperTable
from tubelet.report.page import Page

Verdict = Literal["held", "not held", "undecided"]
Extra = Callable[[Page], None]  # draws figures of a study's own onto its page


@dataclass(frozen=True)
class Ask:
    """What a user gives a study.

    budget: FLOPs; what they pay for is each study's to say. knobs: shared by all runs. own: recipe -> knobs that this
    recipe gets in every arm. sizes, sources: of further teachers, where a study has such.
    """

    data: str
    tasks: tuple[Task, ...]
    budget: float
    model: str
    knobs: Mapping[str, Any]
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sizes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def arm(
        self,
        name: str,
        recipe: str,
        *,
        steps: int | None = None,
        model: str | None = None,
        teacher: str | None = None,
        data: str | None = None,
        note: str = "",
        knobs: Mapping[str, Any] | None = None,
    ) -> Arm:
        """An arm at the study's budget, or of so many ``steps``; ``knobs`` over those of its recipe."""
        given = {**self.own.get(recipe, {}), **(knobs or {}), **({} if steps is None else {"steps": steps})}
        if teacher is not None:  # knobs of a stage that is not run
            given = {
                name: value for name, value in given.items() if name not in ("teacher_share", "teacher_model")
            }
        budget = self.budget if steps is None else None
        return Arm(name, name, recipe, model or self.model, budget, given, teacher, data, note)

    def steps(self, recipe: str, knobs: Mapping[str, Any] | None = None) -> int:
        """How many steps of a recipe the budget pays."""
        shared = {**self.knobs, "data": self.data, "model": self.model}
        return length(recipe, {**shared, **self.own.get(recipe, {}), **(knobs or {})}, self.budget).steps


@dataclass(frozen=True)
class Found:
    """What a study concludes from: a comparison, and what of it is more than chance."""

    comparison: Comparison
    standings: Standings

    def evals(self, probe: str = "linear") -> list[Evaluation]:
        """The evaluations by that probe, with all labels, of the last layer: one of each task."""
        return [
            one
            for one in self.comparison.evals
            if one.probe == probe and one.labels is None and one.layer is None
        ]

    def score(self, arm: str, one: Evaluation) -> float | None:
        """The arm's mean over seeds."""
        mean = self.comparison.mean(self._arm(arm), one)
        return None if mean is None else mean.value

    def difference(self, arm: str, other: str, one: Evaluation) -> Interval | None:
        """Score of ``arm`` minus that of ``other``, with its interval; None while it is not known."""
        return self.standings.pair(self._arm(arm), self._arm(other), one)

    def compare(self, arm: str, other: str, probe: str = "linear") -> tuple[Verdict, str]:
        """Whether ``arm`` is better than ``other`` on every task beyond the noise, and the differences in words.

        "not held" where it is worse beyond the noise on some task and better on none.
        """
        better = worse = 0
        told = []
        tasks = self.evals(probe)
        for one in tasks:
            interval = self.difference(arm, other, one)
            if interval is None:
                told.append(f"{one.task} not known yet")
                continue
            better, worse = better + (interval.low > 0), worse + (interval.high < 0)
            low, high = 100 * interval.low, 100 * interval.high
            told.append(f"{one.task} {100 * interval.value:+.1f} [{low:+.1f}, {high:+.1f}]")
        words = f"{arm} minus {other}, points by the {probe} probe: {', '.join(told)}"
        if tasks and better == len(tasks):
            return "held", words
        return ("not held" if worse and not better else "undecided"), words

    def worse(self, arm: str, other: str, probe: str = "linear") -> bool | None:
        """Whether ``arm`` is worse than ``other`` beyond the noise on any task; None while a task is not known."""
        intervals = [self.difference(arm, other, one) for one in self.evals(probe)]
        if any(interval is not None and interval.high < 0 for interval in intervals):
            return True
        return None if None in intervals else False

    def _arm(self, name: str) -> CompetingArm:
        return next(arm for arm in self.comparison.arms if arm.name == name)


@dataclass(frozen=True)
class Study:
    """An experiment that a paper is known for.

    paper: its numbers. arms, evals: what is run for an `Ask`. conclude: what our numbers say, and figures of its own.
    checkpoints: evaluate every kept one. teachers: whether an `Ask`'s sizes and sources count. not_equal: what a
    reader must know.
    """

    name: str
    title: str
    question: str
    paper: PaperTable
    arms: Callable[[Ask], Sequence[Arm]]
    conclude: Callable[[Found], tuple[Claim, Sequence[Extra]]]
    evals: Callable[[Ask], Sequence[Eval]]
    checkpoints: bool = False
    teachers: bool = False
    not_equal: tuple[str, ...] = ()


def standard(ask: Ask) -> list[Eval]:
    """Linear probe, nearest neighbours and retrieval on every task."""
    return [
        Eval(f"{task.name}-{probe}", task.name, probe)
        for task in ask.tasks
        for probe in ("linear", "knn", RETRIEVAL)
    ]


def all_of(verdicts: Sequence[Verdict]) -> Verdict:
    """Held if all are, not held if one is not, else undecided."""
    if verdicts and all(verdict == "held" for verdict in verdicts):
        return "held"
    return "not held" if "not held" in verdicts else "undecided"
