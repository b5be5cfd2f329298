"""The page of `tubelet demo`, drawn from plain data: what was learned, how it looks, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tubelet.report.curves import Dots
from tubelet.report.filmstrip import Strip
from tubelet.report.history import Rows, add_curves, add_health
from tubelet.report.page import Key, Page
from tubelet.report.table import Cell, Score, best_of
from tubelet.report.units import flops, memory
from tubelet.train.report import duration

# task -> encoder -> probe -> score, in the order in which they are shown
Table = Mapping[str, Mapping[str, Mapping[str, Score]]]
_CLEAR = 2.0  # a difference is called clear beyond so many times the spread of its two sides


@dataclass(frozen=True)
class Reconstruction:
    """A clip, what the encoder saw of it, and what the decoder made of the rest. All uint8 [T, H, W, 3]."""

    label: str
    original: np.ndarray
    masked: np.ndarray
    predicted: np.ndarray


@dataclass(frozen=True)
class CostRow:
    """What one part of the demo cost; flops is None for parts that multiply no matrices worth counting."""

    part: str
    seconds: float
    flops: float | None = None


@dataclass(frozen=True)
class DemoResult:
    """All that the page shows.

    table: task -> encoder -> probe -> Score. baselines: encoders of the table that have learned nothing.
    chance: task -> accuracy of guessing. tasks: task -> a sentence on what must be told apart.
    protocol: how the probes were fitted, in one or two sentences. runs: name -> rows of metrics.jsonl.
    true_scale: whether each patch's true mean and variance were re-applied to the reconstructions.
    neighbours: groups of strips, the query first. seconds, peak_memory (bytes): of the whole demo.
    machine: one line. longer: a command that shows more, in case this was too short. command: what was run.
    """

    table: Table
    baselines: Sequence[str]
    chance: Mapping[str, float]
    tasks: Mapping[str, str]
    protocol: str
    runs: Mapping[str, Rows]
    reconstructions: Sequence[Reconstruction]
    true_scale: bool
    neighbours: Sequence[Sequence[Strip]]
    costs: Sequence[CostRow]
    seconds: float
    peak_memory: float
    machine: str
    world: str
    command: str = "tubelet demo"
    longer: str = ""
    notes: Sequence[str] = field(default=())


def findings(table: Table, baselines: Sequence[str]) -> list[str]:
    """One sentence per task and probe: whether the best learned encoder beats the best of the baselines.

    "Clearly" means by more than twice the spread, the root of the sum of both variances; a score without a
    spread counts as exact. Baselines: a random encoder and raw pixels, say.
    """
    sentences = []
    for task, encoders in table.items():
        for probe in _probes(encoders):
            scores = {name: row[probe] for name, row in encoders.items() if probe in row}
            learned = {name: score for name, score in scores.items() if name not in baselines}
            plain = {name: score for name, score in scores.items() if name in baselines}
            if not learned or not plain:
                continue
            ours, theirs = (max(side, key=lambda name: side[name].mean) for side in (learned, plain))
            one, other = learned[ours], plain[theirs]
            gain, noise = one.mean - other.mean, math.hypot(one.sd or 0, other.sd or 0)
            if gain > _CLEAR * noise:
                word = "clearly beats"
            elif gain > 0:
                word = "is ahead of, but within the noise of,"
            else:
                word = "does not beat"
            left, right = f"{ours} ({_score(one)})", f"{theirs} ({_score(other)})"
            sentences.append(f"{task.capitalize()}, {probe}: {left} {word} {right}.")
    return sentences


def demo_report(result: DemoResult, file: Path | str) -> Path:
    """Writes the demo's page to ``file``, whole or not at all; raises UserError if the disk is full."""
    page = Page(
        "What a video encoder learned without labels",
        f"{result.world} Small probes on its frozen features then say what it learned.",
    )
    page.keys(_keys(result))
    page.heading("What it learned")
    page.text(*(f"{task.capitalize()}: {meaning}" for task, meaning in result.tasks.items()))
    page.points(findings(result.table, result.baselines))
    _scores(page, result)
    if result.longer:
        page.text("This was a short run. The longer one that shows more:")
        page.code(result.longer)
    page.heading("Training")
    add_curves(page, result.runs)
    page.heading("Health")
    add_health(page, result.runs)
    if result.reconstructions:
        page.heading("Reconstructions")
        _reconstructions(page, result)
    if result.neighbours:
        page.heading("Nearest neighbours")
        page.filmstrips(
            result.neighbours,
            "Clips that the encoder finds alike.",
            "First the query, then its nearest clips by cosine of mean-pooled features, the nearest first. "
            "Labels are shown for the reader; training never saw them.",
        )
    page.heading("Cost")
    _costs(page, result)
    if result.notes:
        page.heading("Notes")
        page.text(*result.notes)
    page.heading("Run it again")
    page.code(result.command)
    return page.write(file)


def _keys(result: DemoResult) -> list[Key]:
    keys = []
    for task, encoders in result.table.items():
        every = [
            (s.mean, e, p, s)
            for e, row in encoders.items()
            for p, s in row.items()
            if e not in result.baselines
        ]
        if every:
            _, encoder, probe, score = max(every, key=lambda found: found[0])
            chance = f"; chance {result.chance[task]:.2f}" if task in result.chance else ""
            keys.append(Key(task, _score(score), f"{encoder}, {probe}{chance}"))
    work = sum(row.flops or 0 for row in result.costs)
    return [
        *keys,
        Key("the whole demo", duration(result.seconds), result.machine),
        Key("peak memory", memory(result.peak_memory)),
        Key("arithmetic", flops(work), "by formula, see Cost"),
    ]


def _scores(page: Page, result: DemoResult) -> None:
    panels = []
    for task, encoders in result.table.items():
        series: dict[str, dict[str, tuple[float, float]]] = {}
        for encoder, row in encoders.items():
            for probe, score in row.items():
                series.setdefault(probe, {})[encoder] = (score.mean, score.sd or 0)
        panels.append(Dots(task.capitalize(), series, result.chance.get(task)))
    page.curves(
        panels,
        "Accuracy of probes on frozen features, on clips that no probe was fitted on.",
        f"Dots are means, bars one standard deviation. {result.protocol}",
    )
    columns, groups = ["encoder"], []
    for task, encoders in result.table.items():
        probes = _probes(encoders)
        columns += probes
        groups.append((task, len(probes)))
    names = list(dict.fromkeys(encoder for encoders in result.table.values() for encoder in encoders))
    rows: list[list[str | Cell]] = [[name] for name in names]
    for encoders in result.table.values():
        for probe in _probes(encoders):
            scores = [encoders.get(name, {}).get(probe) for name in names]
            best = best_of(scores)
            for place, score in enumerate(scores):
                rows[place].append("–" if score is None else Cell(score, place == best))
    draws = sorted(
        {s.n for encoders in result.table.values() for row in encoders.values() for s in row.values()}
    )
    page.table(
        columns,
        rows,
        "The same numbers.",
        f"Mean ± standard deviation over {' or '.join(map(str, draws))} draws of the labelled clips; "
        "the highest of each column is marked.",
        groups,
    )


def _reconstructions(page: Page, result: DemoResult) -> None:
    scale = (
        "The decoder predicts patches normalised to mean 0 and variance 1; each patch was then given "
        "its true mean and variance: brightness and contrast are not the decoder's doing, the pattern is."
        if result.true_scale
        else "Nothing of the truth was put into the predicted patches; visible patches are the decoder's too."
    )
    page.filmstrips(
        [
            [
                Strip("original", one.original, one.label),
                Strip("input", one.masked),
                Strip("filled in", one.predicted),
            ]
            for one in result.reconstructions
        ],
        "What the pixel-predicting teacher makes of what it cannot see.",
        f"Grey patches of the input were hidden. {scale}",
    )


def _costs(page: Page, result: DemoResult) -> None:
    total = sum(row.seconds for row in result.costs)
    rows: list[list[str | Cell]] = [
        [
            row.part,
            "–" if row.flops is None else flops(row.flops),
            duration(row.seconds),
            f"{row.seconds / total:.0%}",
        ]
        for row in result.costs
    ]
    work = sum(row.flops or 0 for row in result.costs)
    rows.append(["together", flops(work), duration(total), "100%"])
    page.table(
        ["part", "arithmetic", "time", "share of time"],
        rows,
        "Where compute and time went.",
        "FLOPs by formula (matrix products, two per multiply-add, backward twice forward); time by clock.",
    )


def _probes(encoders: Mapping[str, Mapping[str, Score]]) -> list[str]:
    return list(dict.fromkeys(probe for row in encoders.values() for probe in row))


def _score(score: Score) -> str:
    return f"{score.mean:.2f}" if score.sd is None else f"{score.mean:.2f} ± {score.sd:.2f}"
