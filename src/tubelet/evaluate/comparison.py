"""A comparison read back from its folder: what each run cost and what it reached.

The folder is all there is to know: ``plan.json`` says what was to be done, every run's folder what has been. Whatever
is not there yet is None or absent here, never zero.
"""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tubelet.errors import UserError
from tubelet.evaluate.metrics import Estimate
from tubelet.files import replace_file

CORE_WATTS = (
    10.0  # a busy core of a server with its share of memory: a round figure (ours), not a measurement
)
_TAIL = 20  # the final loss is of the last twentieth of the steps that were logged
COLUMNS = (
    "arm",
    "method",
    "model",
    "budget",
    "seed",
    "steps",
    "train_flops",
    "seconds",
    "peak_memory",
    "energy_kj",
    "verdict",
    "final_loss",
    "task",
    "eval",
    "metric",
    "value",
    "low",
    "high",
)


@dataclass(frozen=True)
class Arm:
    """One way of getting an encoder, run once per seed. baseline: nobody trained it (random weights, raw pixels).

    budget: FLOPs, or None where the plan names steps. teacher: the arm whose encoder it learns from, if any.
    """

    name: str
    method: str
    model: str
    budget: float | None = None
    note: str = ""
    teacher: str | None = None
    baseline: bool = False


@dataclass(frozen=True)
class Evaluation:
    """One frozen evaluation. metric: what it is judged by.

    labels: per class ("5", "10%"), None for all. layer: read after so many blocks, None for the last.
    """

    key: str
    task: str
    probe: str
    metric: str
    labels: str | None = None
    layer: int | None = None

    @property
    def title(self) -> str:
        """Task, probe, and what is out of the ordinary, in words."""
        few = "" if self.labels is None else f", {self.labels} {'of the ' * ('%' in self.labels)}labels"
        return f"{self.task}, {self.probe}{few}" + ("" if self.layer is None else f", layer {self.layer}")


@dataclass(frozen=True)
class Cost:
    """What a run took, all its stages and its teacher's together; see `train.spent.Spent` for the units.

    flops: by part. core_seconds: None where it was not measured. gpu: whether one did the work.
    """

    steps: int
    seconds: float
    flops: Mapping[str, float]
    peak_memory: int
    core_seconds: float | None
    gpu: bool = False

    @property
    def train_flops(self) -> float:
        """FLOPs of all parts."""
        return sum(self.flops.values())

    @property
    def energy_kj(self) -> float | None:
        """A proxy: processor time times CORE_WATTS; None where that was not measured, or a GPU did the work."""
        return None if self.core_seconds is None or self.gpu else self.core_seconds * CORE_WATTS / 1000


@dataclass(frozen=True)
class Run:
    """One arm with one seed. folder: where it is.

    steps, planned_flops: what it was to take, teacher included. begun: whether anything was trained. cost: None until
    it has finished, with all its stages. verdict: its health, see `analysis.health.verdict`. final_loss: median over
    the last twentieth of the logged steps. scores: evaluation -> metric -> its estimate.
    """

    arm: str
    seed: int
    folder: Path
    steps: int = 0
    planned_flops: float | None = None
    begun: bool = False
    cost: Cost | None = None
    verdict: str | None = None
    final_loss: float | None = None
    scores: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)


@dataclass(frozen=True)
class Mean:
    """A metric over the seeds that have it: mean, standard deviation (None for one), how many."""

    value: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """All of a comparison's folder; the keys of plan.json have the same names.

    arms: those trained, then baselines. runs: likewise. environment: of the machine, as `recipes.run.environment`.
    """

    folder: Path
    kind: str
    name: str
    title: str
    question: str
    data: str
    clips: int
    headline: str
    seeds: tuple[int, ...]
    arms: tuple[Arm, ...]
    evals: tuple[Evaluation, ...]
    runs: tuple[Run, ...]
    not_equal: tuple[str, ...]
    command: str
    environment: Mapping[str, Any]

    @property
    def trained(self) -> tuple[Arm, ...]:
        """Arms without the baselines."""
        return tuple(arm for arm in self.arms if not arm.baseline)

    @property
    def baselines(self) -> tuple[Arm, ...]:
        """Arms that nobody trained."""
        return tuple(arm for arm in self.arms if arm.baseline)

    def of(self, arm: Arm) -> list[Run]:
        """The arm's runs, by seed."""
        return sorted((run for run in self.runs if run.arm == arm.name), key=lambda run: run.seed)

    def mean(self, arm: Arm, one: Evaluation, metric: str | None = None) -> Mean | None:
        """``metric`` (default: the one it is judged by) over the arm's seeds; None while no seed has it."""
        there = [run.scores[one.key] for run in self.of(arm) if one.key in run.scores]
        values = [scores[metric or one.metric].value for scores in there if (metric or one.metric) in scores]
        if not values:
            return None
        return Mean(
            statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)
        )

    def cost(self, arm: Arm, of: Callable[[Cost], float | None]) -> float | None:
        """Something of the arm's cost, mean over the runs that have finished; None while none has, or none knows."""
        found = [value for run in self.of(arm) if run.cost and (value := of(run.cost)) is not None]
        return statistics.fmean(found) if found else None

    def state(self, run: Run) -> str:
        """ "to do", "training", "2 of 3 evaluated" or "done"."""
        done = sum(one.key in run.scores for one in self.evals)
        if done == len(self.evals) and (run.cost or self._arm(run).baseline):
            return "done"
        if run.cost or done:
            return f"{done} of {len(self.evals)} evaluated"
        return "training" if run.begun else "to do"

    def finished(self, run: Run) -> bool:
        """Whether nothing is left to do of it."""
        return self.state(run) == "done"

    def _arm(self, run: Run) -> Arm:
        return next(arm for arm in self.arms if arm.name == run.arm)


def read_comparison(out: Path | str) -> Comparison:
    """What ``out`` holds of a comparison, finished or still going.

    Raises UserError if it holds none, if a file in it is damaged, or lacks the metric that arms are judged by.
    """
    out = Path(out)
    file = out / "plan.json"
    if not file.is_file():
        raise UserError(
            f"{out} holds no comparison (no plan.json in it); name the folder given to compare as out"
        )
    plan = read_record(file)
    try:
        trained = [
            Arm(a["name"], a["method"], a["model"], a["budget"], a.get("note", ""), a.get("teacher"))
            for a in plan["arms"]
        ]
        evals = tuple(
            Evaluation(
                e["key"],
                e["task"],
                e["probe"],
                _metric(e["probe"], plan["headline"]),
                e.get("labels"),
                e.get("layer"),
            )
            for e in plan["evals"]
        )
        untrained = {
            b["arm"]: Arm(b["arm"], b["arm"], b.get("model", trained[0].model), baseline=True)
            for b in plan["baselines"]
        }
        gpu = bool(plan.get("environment", {}).get("gpu"))
        places = {(r["arm"], r["seed"]): r for r in plan["runs"]}
        runs = [_read_run(out, r, _stages(out, r, places, trained), evals, gpu) for r in plan["runs"]]
        runs += [
            Run(b["arm"], b["seed"], out / b["folder"], scores=read_scores(out / b["folder"], evals))
            for b in plan["baselines"]
        ]
        return Comparison(
            folder=out,
            **{
                name: plan[name]
                for name in ("kind", "name", "title", "question", "data", "clips", "headline")
            },
            seeds=tuple(plan["seeds"]),
            arms=(*trained, *untrained.values()),
            evals=evals,
            runs=tuple(runs),
            not_equal=tuple(plan["not_equal"]),
            command=plan["command"],
            environment=plan.get("environment", {}),
        )
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{file} is no plan of this version ({error!r}); put back what was written there"
        ) from error


def write_results(found: Comparison, file: Path) -> None:
    """Every number of every run as CSV, one row per metric (columns: COLUMNS); a run without scores has one row.

    steps, train_flops, seconds and energy_kj contain all stages and the teacher; bytes of memory; what is not known
    is empty. value, low, high: of that run alone, the interval over test groups.
    """
    with replace_file(file) as draft, draft.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(COLUMNS)
        for run in found.runs:
            arm = next(arm for arm in found.arms if arm.name == run.arm)
            cost = run.cost
            about = [arm.name, arm.method, arm.model, arm.budget, run.seed]
            about += (
                [cost.steps, cost.train_flops, cost.seconds, cost.peak_memory, cost.energy_kj]
                if cost
                else [None] * 5
            )
            about += [run.verdict, run.final_loss]
            rows = [
                [one.task, one.key, metric, value.value, _finite(value.low), _finite(value.high)]
                for one in found.evals
                for metric, value in run.scores.get(one.key, {}).items()
            ]
            for row in rows or [[None] * 6]:
                writer.writerow(["" if cell is None else cell for cell in [*about, *row]])


def _metric(probe: str, headline: str) -> str:
    """What an evaluation is judged by: the headline, of nearest neighbours with k 20; what it has instead of it."""
    return {"ridge": "r2", "retrieval": "map", "knn": f"{headline}@k20"}.get(probe, headline)


def _stages(
    out: Path, run: Mapping[str, Any], places: Mapping[tuple[str, int], Any], arms: Sequence[Arm]
) -> list[tuple[str, Mapping[str, Any]]]:
    """What a run stands on: name and {"folder", and if it is a run of its own "planned_flops", "steps"}.

    Its own earlier stages, its teacher, that one's stages and teacher, and so on.
    """
    inner = sorted((out / run["folder"]).glob("*/metrics.jsonl"))
    own: list[tuple[str, Mapping[str, Any]]] = [
        (file.parent.name, {"folder": str(file.parent.relative_to(out))}) for file in inner
    ]
    teacher = next(arm.teacher for arm in arms if arm.name == run["arm"])
    if teacher is None:
        return own
    below = places[teacher, run["seed"]]
    further = [(f"{teacher}: {name}", stage) for name, stage in _stages(out, below, places, arms)]
    return [*own, (teacher, below), *further]


def _read_run(
    out: Path,
    about: Mapping[str, Any],
    stages: Sequence[tuple[str, Mapping[str, Any]]],
    evals: Sequence[Evaluation],
    gpu: bool,
) -> Run:
    folder = out / about["folder"]
    spent = read_record(folder / "run.json")
    parts = {name: read_record(out / stage["folder"] / "run.json") for name, stage in stages}
    done = bool(spent.get("finished")) and all(part.get("finished") for part in parts.values())
    losses = _losses(folder / "metrics.jsonl")
    return Run(
        arm=about["arm"],
        seed=about["seed"],
        folder=folder,
        steps=about["steps"] + sum(stage.get("steps", 0) for _, stage in stages),
        planned_flops=about["planned_flops"] + sum(stage.get("planned_flops", 0.0) for _, stage in stages),
        begun=bool(losses) or any((out / stage["folder"] / "metrics.jsonl").is_file() for _, stage in stages),
        cost=_cost(spent, parts, gpu) if done else None,
        verdict=spent.get("verdict", {}).get("state"),
        final_loss=statistics.median(losses[-max(1, len(losses) // _TAIL) :]) if losses else None,
        scores=read_scores(folder, evals),
    )


def _cost(spent: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]], gpu: bool) -> Cost:
    flops = Counter(spent["flops"])
    for name, part in parts.items():
        flops.update({f"{name}: {which}": amount for which, amount in part["flops"].items()})
    every = [spent, *parts.values()]
    cores = [one.get("core_seconds") for one in every]
    return Cost(
        steps=sum(one["steps"] for one in every),
        seconds=sum(one["seconds"] for one in every),
        flops=dict(flops),
        peak_memory=max(one["peak_memory"] for one in every),
        core_seconds=sum(core for core in cores if core) if all(cores) else None,
        gpu=gpu,
    )


def read_scores(folder: Path, evals: Sequence[Evaluation]) -> dict[str, dict[str, Estimate]]:
    """evaluation -> metric -> estimate, of those that are there."""
    found = {}
    for one in evals:
        file = folder / "eval" / one.key / "results.json"
        saved = read_record(file)
        if not saved:
            continue
        try:
            scores = (
                _retrieval(saved)
                if one.probe == "retrieval"
                else {
                    name: Estimate(value["value"], value["low"], value["high"], value.get("sd"))
                    for name, value in saved["metrics"].items()
                }
            )
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{file} is damaged ({error!r}); remove its folder and call the same command again"
            ) from error
        if one.metric not in scores:
            raise UserError(
                f'{file} has no metric "{one.metric}" to judge by; there are {", ".join(sorted(scores))}: choose '
                "one of them as headline"
            )
        found[one.key] = scores
    return found


def _retrieval(saved: Mapping[str, Any]) -> dict[str, Estimate]:
    """The means of a retrieval's results.json; nan for an interval that is not there."""
    intervals = saved.get("intervals", {})
    names = [
        name for name in saved if name.startswith(("map", "hit@", "recall@")) and saved[name] is not None
    ]
    return {name: Estimate(saved[name], *intervals.get(name, (math.nan, math.nan))) for name in names}


def _losses(file: Path) -> list[float]:
    """Finite losses in the order of their steps, without a line that is being written."""
    if not file.is_file():
        return []
    whole, _, _ = file.read_text(encoding="utf-8").rpartition("\n")
    try:
        rows = [json.loads(line) for line in whole.split("\n") if line]
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); resume its run to mend it") from error
    rows.sort(key=lambda row: row["step"])
    return [row["train/loss"] for row in rows if row.get("train/loss") is not None]


def read_record(file: Path) -> dict[str, Any]:
    """The object in a JSON file, empty while there is no file; raises UserError, with the cure, if it is damaged."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); remove it and call the same command again") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} is damaged (no object in it); remove it and call the same command again")
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
