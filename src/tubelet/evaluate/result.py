"""A probe's result and the files it leaves."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tubelet.data.manifest import Video
from tubelet.evaluate.amount import Amount
from tubelet.evaluate.confusion import confusion, draw_confusion
from tubelet.evaluate.head import HEAD, write_head
from tubelet.evaluate.metrics import Estimate, Predictions
from tubelet.evaluate.saved import PREDICTIONS, write_predictions
from tubelet.evaluate.score import Scored
from tubelet.evaluate.tasks import Task
from tubelet.evaluate.values import RealTask
from tubelet.files import replace_file, write_json, write_text

CONFUSION, FEW_LABELS, RESULTS = "confusion.png", "few_labels.csv", "results.json"


class FewLabels(NamedTuple):
    """What a probe reached with so many labels."""

    amount: Amount
    scored: Scored


@dataclass(frozen=True)
class ProbeResult:
    """A probe's scores and all that is needed to quote them.

    scored: metrics, predictions, chosen knobs, notes; of the most labels, where several amounts were asked.
    clips: of the task. excluded: unreadable videos and why. about: encoder, data, protocol and knobs, as they go
    into results.json. few_labels: every amount of labels that was asked, in that order.
    """

    about: dict[str, Any]
    task: Task | RealTask
    scored: Scored
    clips: Sequence[Video]
    excluded: dict[str, str]
    few_labels: tuple[FewLabels, ...] = ()

    @property
    def metrics(self) -> dict[str, Estimate]:
        """See `score.Scored`: "top1", "macro_recall" and so on, for knn one of each per k, "top1@k5"."""
        return self.scored.metrics

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the numbers must know."""
        return self.scored.notes

    @property
    def guessing(self) -> dict[str, float]:
        """What a blind guess reaches: macro recall of any, top1 of always the commonest test class.

        For numbers: R² of always the test clips' mean, mean absolute error of always their median.
        """
        made = next(iter(self.scored.predictions.values()))
        if not isinstance(made, Predictions):
            return {"r2": 0.0, "mae": float(np.abs(made.label - np.median(made.label)).mean())}
        tested = np.bincount(made.label)
        return {"macro_recall": 1 / int((tested > 0).sum()), "top1": float(tested.max() / tested.sum())}

    def sentence(self) -> str:
        """The result in a line: macro recall (R² and error of numbers) with its interval, and what guessing reaches."""
        few = f" with {self.about['headline_labels']} labels" if self.few_labels else ""
        guess = ", ".join(f"{self.guessing[name]:.3f}" for name in self._headlines)
        return (
            f"{self.about['encoder']['name']}, {self.about['kind']} probe on {self.about['data']}{few}: "
            f"{self._headline(self.scored)} (guessing {guess}; {self.scored.train} training and "
            f"{self.scored.test} test clips)"
        )

    def few_sentences(self) -> list[str]:
        """A line for each amount of labels, if several were asked."""
        if len(self.few_labels) < 2:
            return []
        return [
            f"{few.amount} labels ({few.scored.train} clips): {self._headline(few.scored)}"
            for few in self.few_labels
        ]

    def no_head(self) -> str:
        """Why there is no attentive head to keep, in a clause; empty if there is one, and for other probes."""
        if self.about["kind"] != "attentive":
            return ""
        if self.scored.head is None:
            return f"{len(self.scored.chosen)} were trained, one for each fold or draw of labels"
        layers = self.about["layers"]
        return (
            "" if len(layers) == 1 else f"it reads {len(layers)} layers at once, and tubelet embed reads one"
        )

    def save(self, folder: Path | str) -> None:
        """Writes the result into ``folder``, each file whole or not at all, results.json last.

        predictions.csv, results.json; confusion.png (of classes; for knn with the fewest neighbours);
        head.safetensors, the attentive head that gave the predictions, for `tubelet embed`, unless `no_head`;
        few_labels.csv and predictions-5.csv, predictions-10pct.csv and so on, where several amounts of labels were
        asked. Files of an earlier result that this one does not have are removed.
        """
        folder = Path(folder)
        written = {PREDICTIONS, RESULTS}
        if self.scored.head is not None and not self.no_head():
            written.add(HEAD)
            (layer,) = self.about["layers"]
            write_head(folder / HEAD, self.scored.head, self.about["encoder"]["digest"], layer)
        self._write_predictions(folder / PREDICTIONS, self.scored)
        if self.few_labels:
            written.add(FEW_LABELS)
            write_text(folder / FEW_LABELS, self._few_table())
        for few in self.few_labels if len(self.few_labels) > 1 else ():
            name = f"predictions-{str(few.amount).replace('%', 'pct')}.csv"
            written.add(name)
            self._write_predictions(folder / name, few.scored)
        if (picture := self.confusion_picture()) is not None:
            written.add(CONFUSION)
            with replace_file(folder / CONFUSION) as draft:
                draft.write_bytes(picture)
        write_json(folder / RESULTS, self._record())
        for stale in (CONFUSION, FEW_LABELS, HEAD, *(file.name for file in folder.glob("predictions-*.csv"))):
            if stale not in written:
                (folder / stale).unlink(missing_ok=True)

    def confusion_picture(self) -> bytes | None:
        """The confusion matrix as a PNG, or None for labels that are numbers."""
        suffix, made = next(iter(self.scored.predictions.items()))
        if not isinstance(self.task, Task) or not isinstance(made, Predictions):
            return None
        counts = confusion(made.label, made.predicted, len(self.task.classes))
        about = self.about
        title = f"{about['encoder']['name']}, {about['kind']}{suffix}\non {about['data']}"
        return draw_confusion(counts, self.task.classes, title)

    def _record(self) -> dict[str, Any]:
        return {
            **self.about,
            "metrics": _as_json(self.metrics),
            "guessing": self.guessing,
            "train_clips": self.scored.train,
            "test_clips": self.scored.test,
            "classes": list(self._classes),
            "chosen": self.scored.chosen,
            "excluded": self.excluded,
            "few_labels": [
                {
                    "labels": str(few.amount),
                    "per_class": few.amount.count,
                    "percent": few.amount.percent,
                    "train_clips": few.scored.train,
                    "draws": count_draws(few.scored),
                    "metrics": _as_json(few.scored.metrics),
                    "notes": list(few.scored.notes),
                }
                for few in self.few_labels
            ],
            "notes": list(self.notes),
        }

    def _few_table(self) -> str:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(["labels", "train_clips", "draws", "metric", "value", "sd", "low", "high"])
        for few in self.few_labels:
            start = [str(few.amount), few.scored.train, count_draws(few.scored)]
            for name, found in few.scored.metrics.items():
                sd = "" if found.sd is None else found.sd
                writer.writerow([*start, name, found.value, sd, found.low, found.high])
        return table.getvalue()

    def _write_predictions(self, file: Path, scored: Scored) -> None:
        kind, group = self.about["kind"], self.task.group
        write_predictions(file, kind, self.clips, group, self._classes, scored.predictions)

    @property
    def _headlines(self) -> tuple[str, ...]:
        return ("macro_recall",) if isinstance(self.task, Task) else ("r2", "mae")

    def _headline(self, scored: Scored) -> str:
        shown = [item for item in scored.metrics.items() if item[0].split("@")[0] in self._headlines]
        return ", ".join(f"{name} {value}" for name, value in shown)

    @property
    def _classes(self) -> Sequence[str]:
        return self.task.classes if isinstance(self.task, Task) else ()


def _as_json(metrics: dict[str, Estimate]) -> dict[str, dict[str, Any]]:
    return {name: asdict(value) for name, value in metrics.items()}


def count_draws(scored: Scored) -> int:
    """How often labels were drawn: 1 if all there were were learned from."""
    return len({choice["draw"] for choice in scored.chosen})
