"""Which differences between the arms of a comparison are more than chance."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from tubelet.errors import UserError
from tubelet.evaluate.comparison import Arm, Comparison, Evaluation
from tubelet.evaluate.metrics import Answers, Resampled, resample
from tubelet.evaluate.noise import Interval, difference_interval, mean_interval
from tubelet.evaluate.saved import PREDICTIONS, read_predictions
from tubelet.files import replace_file

ALL_PAIRS = 8  # up to so many arms, each is compared with each; of more, those of one size and budget


class Pair(NamedTuple):
    """Score of ``one`` minus that of ``other`` in one evaluation, and what chance could make of it."""

    one: Arm
    other: Arm
    evaluation: Evaluation
    interval: Interval


@dataclass(frozen=True)
class Standings:
    """What is known beyond the means: intervals that contain other test groups and other seeds.

    intervals: (arm, evaluation) -> of the mean over seeds. pairs: differences, also against the baselines. Neither
    has what cannot be drawn again: retrieval, and what has no predictions on disk.
    """

    intervals: Mapping[tuple[str, str], Interval]
    pairs: tuple[Pair, ...]

    def pair(self, one: Arm, other: Arm, evaluation: Evaluation) -> Interval | None:
        """One minus the other, whichever way round it is known; None if it is not."""
        for pair in self.pairs:
            if pair.evaluation.key == evaluation.key:
                if (pair.one.name, pair.other.name) == (one.name, other.name):
                    return pair.interval
                if (pair.one.name, pair.other.name) == (other.name, one.name):
                    turned = pair.interval
                    return Interval(-turned.value, -turned.high, -turned.low)
        return None


def weigh(found: Comparison, seed: int = 0) -> Standings:
    """Intervals of every arm in every evaluation, and of differences between arms.

    Compared are all arms with each other, of more than ALL_PAIRS those of one size and budget, and each with the
    baselines of its size; a difference is paired over test groups. Over the seeds that are there.
    Raises UserError if the runs were tested on different clips.
    """
    intervals: dict[tuple[str, str], Interval] = {}
    pairs: list[Pair] = []
    for one in found.evals:
        tables = _resampled(found, one, seed)
        for arm, runs in tables.items():
            intervals[arm, one.key] = mean_interval(runs, seed)
        for left, right in _couples(found):
            if left.name in tables and right.name in tables:
                interval = difference_interval(tables[left.name], tables[right.name], seed)
                pairs.append(Pair(left, right, one, interval))
    return Standings(intervals, tuple(pairs))


def write_pairs(standings: Standings, file: Path) -> None:
    """The differences between arms as CSV: one minus other, its interval, and whether zero lies outside."""
    with replace_file(file) as draft, draft.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(["eval", "metric", "one", "other", "difference", "low", "high", "outside_the_noise"])
        for one, other, evaluation, interval in standings.pairs:
            said = [interval.value, interval.low, interval.high, "yes" if interval.clear else "no"]
            writer.writerow([evaluation.key, evaluation.metric, one.name, other.name, *said])


def _couples(found: Comparison) -> list[tuple[Arm, Arm]]:
    everyone = len(found.trained) <= ALL_PAIRS
    couples = [
        (one, other)
        for one, other in combinations(found.trained, 2)
        if everyone or (one.model, one.budget) == (other.model, other.budget)
    ]
    random = [base for base in found.baselines if base.name != "pixels"]
    for arm in found.trained:
        own = [base for base in random if base.model == arm.model]
        couples += [(arm, base) for base in found.baselines if base in own or base not in random]
    return couples


def _resampled(found: Comparison, one: Evaluation, seed: int) -> dict[str, list[Resampled]]:
    """arm -> its seeds' metric on the same draws of test groups; arms without predictions are left out."""
    metric, _, k = one.metric.partition("@")
    tables: dict[str, list[Resampled]] = {}
    first: tuple[Path, set[tuple[str, int, float]]] | None = None
    for arm in found.arms:
        for run in found.of(arm):
            folder = run.folder / "eval" / one.key
            if one.key not in run.scores or not (folder / PREDICTIONS).is_file():
                continue
            saved = read_predictions(folder)
            answers = saved.answers[f"@{k}" if k else ""]
            asked = _asked(saved.clips, answers)
            first = first or (folder, asked)
            if asked != first[1]:
                raise UserError(
                    f"{folder} and {first[0]} are about different clips or labels, so the two cannot be compared; "
                    "remove the older of the two and call the same command again"
                )
            tables.setdefault(arm.name, []).append(resample(answers, saved.group, [metric], seed)[metric])
    return tables


def _asked(clips: Sequence[str], answers: Answers) -> set[tuple[str, int, float]]:
    """Which clips were tested, in which draws of labels, and what was true of them."""
    return {
        (str(clips[clip]), int(draw), float(label))
        for clip, draw, label in zip(answers.clip, answers.draw, answers.label, strict=True)
    }
