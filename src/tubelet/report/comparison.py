"""The page of a comparison or a study, drawn from its folder: what is best for its price, and what is only noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tubelet.evaluate.comparison import CORE_WATTS, Arm, Comparison, Cost, Evaluation, Run, write_results
from tubelet.evaluate.noise import Interval, front
from tubelet.evaluate.standings import ALL_PAIRS, Standings, weigh, write_pairs
from tubelet.files import replace_file
from tubelet.report.conclusion import headlines, paragraph, unit, words
from tubelet.report.curves import Line, Panel
from tubelet.report.frontier import Frontier, Point, Track, frontier_picture
from tubelet.report.history import add_curves, add_health_curves, load_metrics
from tubelet.report.overview import health, states
from tubelet.report.page import Key, Page
from tubelet.report.retrieved import add_retrieved
from tubelet.report.table import Cell, Score, best_of
from tubelet.report.units import flops, memory
from tubelet.train.report import duration

_CURVES = 7  # arms whose training is drawn: as many as one figure can tell apart
_PICTURED = 4  # evaluations beside each other in frontier.png
_INTERVALS = (
    "Intervals are 95 %: test groups are drawn again with replacement, the same for all arms, and so are an arm's "
    "pretraining seeds, their spread widened as so few ask for (sqrt(n/(n-1)) and Student's t; ours)."
)


@dataclass(frozen=True)
class Claim:
    """What a paper says, what our numbers say, whether the one holds in the other, and by which rule that is judged."""

    question: str
    papers: str
    ours: str
    held: Literal["held", "not held", "undecided"]
    why: str


@dataclass(frozen=True)
class PaperTable:
    """A paper's numbers. source: where they stand, such as "arXiv ..., Table n"."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    source: str


def comparison_report(
    found: Comparison,
    file: Path | str,
    claim: Claim | None = None,
    paper: PaperTable | None = None,
    extra: Sequence[Callable[[Page], None]] = (),
    standings: Standings | None = None,
) -> Path:
    """Draws the page into ``file``, and beside it frontier.png, results.csv and pairs.csv, each whole or not at all.

    extra: draw figures of a study's own, after the scores. standings: of `weigh`, if they are known already.
    Of a comparison that is still going there is less, and the page says so.
    Raises UserError if a run's files are damaged or runs were tested on different clips, or if the disk is full.
    """
    file = Path(file)
    standings = weigh(found) if standings is None else standings
    page = Page(found.title, found.question)
    page.keys(_keys(found))
    if claim is not None:
        _claim(page, claim)
    if paper is not None:
        page.table(paper.columns, paper.rows, "The paper's numbers.", f"{paper.source}. Ours are below.")
    page.heading("What is best for its price")
    by_flops, by_time = _frontiers(found, standings)
    if by_flops:
        _figures(page, by_flops, by_time)
        with replace_file(file.parent / "frontier.png") as draft:
            draft.write_bytes(frontier_picture([by_flops[:_PICTURED], by_time[:_PICTURED]]))
    else:
        page.text("To do: no run has been trained and evaluated yet.")
    page.heading("In a paragraph")
    page.text(paragraph(found, standings))
    page.heading("Scores")
    _scores(page, found, standings)
    _series(page, found)
    for draw in extra:
        draw(page)
    page.heading("What is noise")
    _pairs(page, found, standings)
    page.heading("Cost")
    _costs(page, found)
    page.heading("Training and health")
    _training(page, found)
    _retrieval(page, found)
    page.heading("What was not equal")
    page.points(found.not_equal or ["Nothing that we know of."])
    page.heading("How it was run")
    _how(page, found)
    write_results(found, file.parent / "results.csv")
    write_pairs(standings, file.parent / "pairs.csv")
    return page.write(file)


def _keys(found: Comparison) -> list[Key]:
    runs = [run for arm in found.trained for run in found.of(arm)]
    done = [run for run in runs if found.finished(run)]
    spent = [run.cost for run in runs if run.cost]
    budgets = sorted({arm.budget for arm in found.trained if arm.budget is not None})
    keys = [
        Key("runs", f"{len(done)} of {len(runs)}", f"{len(found.trained)} arms, seeds: {len(found.seeds)}"),
        Key("pretrained on", f"{found.clips:,} videos", found.data),
    ]
    if budgets:
        more = "" if len(budgets) == 1 else f"to {flops(budgets[-1])}, "
        keys.append(Key("budget", flops(budgets[0]), f"{more}for each run, by formula"))
    if spent:
        keys.append(Key("spent so far", flops(sum(cost.train_flops for cost in spent)), "all runs together"))
        where = found.environment.get("gpu") or f"{found.environment.get('cores', '?')} cores"
        keys.append(Key("training time", duration(sum(cost.seconds for cost in spent)), str(where)))
    return keys


def _claim(page: Page, claim: Claim) -> None:
    page.heading("The claim")
    page.text(claim.question)
    sentence = {
        "held": "The claim held at this scale.",
        "not held": "The claim did not hold at this scale.",
        "undecided": "These numbers do not decide it.",
    }
    good = {"held": True, "not held": False, "undecided": None}
    page.verdict(f"{sentence[claim.held]} {claim.why}", good[claim.held])
    page.points([f"The paper: {claim.papers}", f"Here: {claim.ours}"])


def _frontiers(found: Comparison, standings: Standings) -> tuple[list[Frontier], list[Frontier]]:
    """Each headline evaluation against FLOPs and against the clock; those that no finished run has are left out."""
    by_flops, by_time = [], []
    for one in headlines(found):
        if any(found.mean(arm, one) and any(run.cost for run in found.of(arm)) for arm in found.trained):
            by_flops.append(
                _frontier(found, standings, one, lambda cost: cost.train_flops, "training FLOPs", flops)
            )
            by_time.append(
                _frontier(found, standings, one, lambda cost: cost.seconds, "wall clock", duration)
            )
    return by_flops, by_time


def _frontier(
    found: Comparison,
    standings: Standings,
    one: Evaluation,
    price: Callable[[Cost], float],
    x_label: str,
    tell: Callable[[float], str],
) -> Frontier:
    scale = unit(one.metric).scale
    there: list[tuple[Arm, float, float]] = []
    for arm in found.trained:
        cost, mean = found.cost(arm, price), found.mean(arm, one)
        if cost is not None and mean is not None:
            there.append((arm, cost, mean.value))
    best = dict(zip((arm.name for arm, _, _ in there), front([(c, s) for _, c, s in there]), strict=True))
    # several arms of one method, size and budget: a line would mean nothing, names tell them apart
    alike = [(arm.method, arm.model, arm.budget) for arm in found.trained]
    tracks: dict[tuple[str, str], list[Point]] = {}
    for arm, cost, score in there:
        interval = standings.intervals.get((arm.name, one.key))
        named = alike.count((arm.method, arm.model, arm.budget)) > 1
        point = Point(
            cost,
            scale * score,
            None if interval is None else scale * interval.low,
            None if interval is None else scale * interval.high,
            best[arm.name],
            arm.name if named else "",
        )
        tracks.setdefault((arm.method, arm.model), []).append(point)
    levels = {base.name: scale * mean.value for base in found.baselines if (mean := found.mean(base, one))}
    sign = unit(one.metric).sign
    return Frontier(
        f"{one.title}: {words(one.metric)}{' (%)' if sign else ''}",
        [Track(method, size, points) for (method, size), points in tracks.items()],
        x_label,
        tell,
        levels,
    )


def _figures(page: Page, by_flops: Sequence[Frontier], by_time: Sequence[Frontier]) -> None:
    page.frontiers(
        by_flops,
        "What frozen probes reach, against the FLOPs of pretraining.",
        "Filled: nothing as cheap is as good (the Pareto front); hollow: something is. A line joins a method's "
        "budgets; marks tell several sizes of encoder apart; dashed levels were trained by nobody. FLOPs by formula, "
        "a teacher's own training and its passes included; arms of equal cost are drawn side by side. Means over "
        f"seeds. {_INTERVALS}",
    )
    page.frontiers(
        by_time,
        "The same against wall clock, for equal FLOPs are not equal time.",
        "Seconds of training, all stages, mean over seeds, on the machine named below; decoding and health checks "
        "included, evaluation not.",
    )


def _scores(page: Page, found: Comparison, standings: Standings) -> None:
    """A table for each task: arms by probes."""
    for task in dict.fromkeys(one.task for one in headlines(found)):
        columns = [one for one in headlines(found) if one.task == task]
        marks = [_best(found, one) for one in columns]
        rows: list[list[str | Cell]] = []
        for place, arm in enumerate(found.arms):
            cells = [
                _cell(found, standings, arm, one, place == mark)
                for one, mark in zip(columns, marks, strict=True)
            ]
            rows.append([arm.name, *cells])
        heads = [f"{one.probe}: {words(one.metric)}{unit(one.metric).sign and ' (%)'}" for one in columns]
        page.table(
            ["arm", *heads],
            rows,
            f"Frozen evaluation on {task}.",
            "Mean ± standard deviation over seeds [interval]; the highest trained mean of a column is marked, whether "
            f"it is beyond the noise is told below. “to do”: no result yet. {_INTERVALS} For retrieval none is drawn.",
        )


def _best(found: Comparison, one: Evaluation) -> int | None:
    scores = [found.mean(arm, one) for arm in found.trained]
    return best_of([None if mean is None else Score(mean.value) for mean in scores])


def _cell(found: Comparison, standings: Standings, arm: Arm, one: Evaluation, best: bool) -> str | Cell:
    mean, shown = found.mean(arm, one), unit(one.metric)
    if mean is None:
        return "to do"
    interval = standings.intervals.get((arm.name, one.key))
    score = Score(shown.scale * mean.value, None if mean.sd is None else shown.scale * mean.sd, mean.n)
    ends = None if interval is None else (shown.scale * interval.low, shown.scale * interval.high)
    return Cell(score, best, shown.digits, ends)


def _series(page: Page, found: Comparison) -> None:
    """Scores over amounts of labels and over layers, where a task and probe have several."""
    for what, name in (("labels", "amounts of labels"), ("layer", "layers")):
        panels = []
        other = "layer" if what == "labels" else "labels"
        kinds = dict.fromkeys((one.task, one.probe) for one in found.evals)
        for task, probe in kinds:
            mine = [one for one in found.evals if (one.task, one.probe) == (task, probe)]
            mine = [one for one in mine if getattr(one, other) is None]
            if len(mine) > 1 and (panel := _over(found, mine, what, f"{task}, {probe}")):
                panels.append(panel)
        if panels:
            draws = (
                " Few labels are drawn several times; a run's score is the mean." if what == "labels" else ""
            )
            page.curves(
                panels,
                f"The same probes over {name}.",
                f"Means over seeds, shaded one standard deviation over them.{draws}",
            )


def _over(found: Comparison, evals: Sequence[Evaluation], what: str, title: str) -> Panel | None:
    ordered = sorted(evals, key=lambda one: _amount(getattr(one, what)))
    names = [str(getattr(one, what) or ("all" if what == "labels" else "last")) for one in ordered]
    shown = unit(ordered[0].metric)
    lines = []
    for arm in found.arms:
        means = [(x, mean) for x, one in enumerate(ordered) if (mean := found.mean(arm, one))]
        if means:
            spread = [shown.scale * mean.sd for _, mean in means if mean.sd is not None]
            xs, ys = [x for x, _ in means], [shown.scale * mean.value for _, mean in means]
            lines.append(Line(arm.name, xs, ys, spread if len(spread) == len(ys) else None))
    if not lines:
        return None
    label = (
        f"{'labels per class' if what == 'labels' else 'after block'}; {words(ordered[0].metric)}{shown.sign}"
    )
    return Panel(title, lines, label, ticks=list(enumerate(names)))


def _amount(value: str | int | None) -> tuple[int, float]:
    """Counts, then shares, then all."""
    if value is None:
        return (2, 0.0)
    text = str(value)
    return (1, float(text.rstrip("%"))) if text.endswith("%") else (0, float(text))


def _pairs(page: Page, found: Comparison, standings: Standings) -> None:
    """A matrix for each evaluation, or where there are many arms for each of those that were compared."""
    if not standings.pairs:
        page.text("To do: nothing to compare yet.")
        return
    count, clear = len(standings.pairs), sum(pair.interval.clear for pair in standings.pairs)
    page.text(
        f"{count} differences, each with its 95 % interval: {clear} are beyond the noise. If all arms were equal, "
        f"about 5 % ({max(1, round(0.05 * count))}) would be so by chance; nothing is corrected for that."
    )
    for one in found.evals:
        pairs = [pair for pair in standings.pairs if pair.evaluation.key == one.key]
        if not pairs:
            continue
        for title, arms in _cells(found):
            rows = [arm for arm in arms if any(arm in (pair.one, pair.other) for pair in pairs)]
            columns = [
                *rows,
                *(b for b in found.baselines if any(b == p.other and p.one in rows for p in pairs)),
            ]
            if len(columns) < 2:
                continue
            shown = unit(one.metric)
            page.table(
                ["row minus column", *(arm.name for arm in columns)],
                [
                    [
                        row.name,
                        *(
                            _gap(standings.pair(row, column, one), shown.scale, shown.digits)
                            for column in columns
                        ),
                    ]
                    for row in rows
                ],
                f"{one.title}: differences in {words(one.metric)}{title}.",
                f"{'In percent points. ' if shown.sign else ''}Marked: beyond the noise, zero lies outside the "
                "interval; all others are inside the noise. Paired over test groups.",
            )


def _cells(found: Comparison) -> list[tuple[str, list[Arm]]]:
    """The arms that were compared with each other."""
    if len(found.trained) <= ALL_PAIRS:
        return [("", list(found.trained))]
    cells: dict[tuple[str, float | None], list[Arm]] = {}
    for arm in found.trained:
        cells.setdefault((arm.model, arm.budget), []).append(arm)
    return [
        (f", {model}{'' if budget is None else f', {flops(budget)}'}", arms)
        for (model, budget), arms in cells.items()
    ]


def _gap(interval: Interval | None, scale: float, digits: int) -> str | Cell:
    if interval is None:
        return "–"
    ends = (scale * interval.low, scale * interval.high)
    return Cell(Score(scale * interval.value), interval.clear, digits, ends, signed=True)


def _costs(page: Page, found: Comparison) -> None:
    rows: list[list[str | Cell]] = []
    for arm in found.trained:
        runs = found.of(arm)
        planned = next((run.planned_flops for run in runs if run.planned_flops is not None), None)
        steps = next((run.steps for run in runs), None)
        rows.append(
            [
                arm.name,
                _said(planned, flops),
                _said(found.cost(arm, lambda cost: cost.train_flops), flops),
                f"{steps:,}" if steps else "–",
                _said(found.cost(arm, lambda cost: cost.seconds), duration),
                _said(found.cost(arm, lambda cost: cost.peak_memory), memory),
                _said(found.cost(arm, lambda cost: cost.energy_kj), lambda energy: f"{energy:.3g} kJ"),
                _loss(runs),
                health(found, arm) or "–",
                states(found, arm),
            ]
        )
    page.table(
        [
            "arm",
            "planned",
            "spent",
            "steps",
            "wall clock",
            "peak memory",
            "energy",
            "last loss",
            "health",
            "state",
        ],
        rows,
        "What pretraining took.",
        "Means over the seeds that have finished, all stages and a teacher's training included. FLOPs by formula: "
        "matrix products, two per multiply-add, backward twice forward, frozen parts forward only. Memory: the most "
        f"that the process held. Energy: a proxy, processor time times {CORE_WATTS:g} W a core (ours); unknown for a "
        "GPU. Losses of different methods cannot be compared.",
    )
    notes = [f"{arm.name}: {arm.note}." for arm in found.trained if arm.note]
    if notes:
        page.points(notes)


def _said(value: float | None, tell: Callable[[float], str]) -> str:
    return "–" if value is None else tell(value)


def _loss(runs: Sequence[Run]) -> str:
    losses = [run.final_loss for run in runs if run.cost and run.final_loss is not None]
    return f"{sum(losses) / len(losses):.4g}" if losses else "–"


def _training(page: Page, found: Comparison) -> None:
    """One verdict on all runs, those of the sick, and the curves of one seed of some arms."""
    told = [(run, run.verdict) for arm in found.trained for run in found.of(arm) if run.verdict]
    sick = [(run, state) for run, state in told if state not in ("healthy", "too early")]
    for run, state in sick:
        sentence = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))["verdict"]["sentence"]
        page.verdict(f"{run.arm}, seed {run.seed}: {state}. {sentence}.", False)
    if told and not sick:
        young = sum(state == "too early" for _, state in told)
        some = f"; of {young} it is too early to say" if young else ""
        page.verdict(
            f"No sign of collapse in {len(told)} finished runs{some}.", None if young == len(told) else True
        )
    drawn = {}
    for arm in _shown(found):
        run = next((run for run in found.of(arm) if (run.folder / "metrics.jsonl").is_file()), None)
        if run is not None:
            rows = load_metrics(run.folder / "metrics.jsonl")
            # a block's own loss is on the run's own page; here methods stand beside each other
            drawn[arm.name] = [
                {key: value for key, value in row.items() if not key.startswith("loss/")} for row in rows
            ]
    if not drawn:
        page.text("To do: nothing was trained yet.")
        return
    page.text("One seed of each arm; of SALT the student, its teacher's curves are in its own folder.")
    add_curves(page, drawn)
    add_health_curves(page, drawn)


def _shown(found: Comparison) -> list[Arm]:
    """All arms, or of many the dearest of each method."""
    arms = list(found.trained)
    if len(arms) <= _CURVES:
        return arms
    last = {arm.method: arm for arm in sorted(arms, key=lambda arm: arm.budget or 0.0)}
    return [arm for arm in arms if arm in last.values()]


def _retrieval(page: Page, found: Comparison) -> None:
    asked = [one for one in found.evals if one.probe == "retrieval" and one.layer is None]
    folders = {arm.name: runs[0].folder for arm in _shown(found) if (runs := found.of(arm))}
    folders |= {base.name: runs[0].folder for base in found.baselines if (runs := found.of(base))}
    if any(
        (folder / "eval" / one.key / "results.json").is_file() for one in asked for folder in folders.values()
    ):
        page.heading("Nearest neighbours")
        for one in asked:
            add_retrieved(page, folders, one.task, one.key)


def _how(page: Page, found: Comparison) -> None:
    page.code(found.command)
    page.text(
        "The same command goes on where it stopped. `results.csv` has every number of every run, `pairs.csv` every "
        "difference, and each run's folder its own page."
    )
    page.fold("environment", json.dumps(dict(found.environment), indent=2, ensure_ascii=False))
