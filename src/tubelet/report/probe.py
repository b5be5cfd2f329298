"""The page of one probe, drawn from the folder that `tubelet probe` writes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from tubelet.errors import UserError
from tubelet.evaluate.confusion import confusion, worst_pairs
from tubelet.evaluate.metrics import Predictions, RealPredictions
from tubelet.evaluate.result import CONFUSION, RESULTS
from tubelet.evaluate.saved import SavedPredictions, read_predictions
from tubelet.report.curves import Dots
from tubelet.report.page import Key, Page
from tubelet.report.table import Cell, Score

_ROWS = 40  # classes in the table; the worst of more
_COUNTED = {
    "top1": "share of clips that are right",
    "top5": "share of clips whose class is among the five highest scores",
    "macro_recall": "mean over classes of the share that is right (mean class accuracy)",
    "f1_macro": "mean over classes of F1",
    "map": "mean over classes of average precision",
    "auroc": "mean over classes of the area under the ROC curve, one class against the rest",
    "r2": "1 minus squared error over variance",
    "mae": "mean absolute error, in the label's unit",
}


def probe_report(folder: Path | str) -> Path:
    """Draws ``folder``/report.html from results.json, predictions.csv and confusion.png, and returns its path.

    Raises UserError if ``folder`` holds no result or a damaged one, or if the disk is full.
    """
    folder = Path(folder)
    about = _read(folder / RESULTS)
    saved = read_predictions(folder)
    try:
        page = _page(about, saved, folder)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / RESULTS} is damaged (no {error}); probe again") from error
    return page.write(folder / "report.html")


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file.parent} holds no {RESULTS}; name a folder that tubelet probe has written")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); probe again") from error


def _page(about: dict[str, Any], saved: SavedPredictions, folder: Path) -> Page:
    encoder, kind = about["encoder"]["name"], about["kind"]
    how = "the encoder fine-tuned" if kind == "finetune" else "frozen features"
    page = Page(f"{kind} probe: {encoder}", f"On {about['data']}, protocol {about['protocol']}, {how}.")
    metrics = about["metrics"]
    headline = next(name for name in metrics if name.startswith(("macro_recall", "r2")))
    found, guess = metrics[headline], about["guessing"][_plain(headline)]
    page.keys(
        [
            Key(headline, f"{found['value']:.3f}", f"{found['low']:.3f} to {found['high']:.3f}"),
            Key("guessing", f"{guess:.3f}", "the same of a blind guess"),
            Key("training clips", f"{about['train_clips']:,}", "per fit"),
            Key(
                "test clips",
                f"{about['test_clips']:,}",
                f"{_groups(saved)} groups" if saved.group is not None else "",
            ),
        ]
    )
    if found["low"] > guess:
        page.verdict("Better than guessing: the whole interval lies above it.", True)
    else:
        page.verdict("Not told apart from guessing: the interval reaches down to it.", False)
    page.heading("Scores")
    _scores(page, about)
    if about.get("notes"):
        page.points([note[0].upper() + note[1:] + "." for note in about["notes"]])
    suffix, answers = next(iter(saved.answers.items()))
    if isinstance(answers, Predictions):
        page.heading("What is taken for what")
        _confusions(page, answers, saved.classes, suffix, folder / CONFUSION)
    else:
        page.heading("Said and true")
        page.picture(
            _scatter(answers),
            "What the probe says of every test clip, against its label.",
            "On the line: right. A probe that knows nothing says the training clips' mean of all.",
        )
    if about.get("few_labels"):
        page.heading("Few labels")
        _few_labels(page, about)
    page.heading("How it was judged")
    shown = ("pool", "layers", "label", "folds", "labels", "draws", "seed", "unlabelled", "protocol")
    page.table(
        ["knob", "value"],
        [[name, _text(about[name])] for name in shown if name in about],
        "What was asked.",
    )
    page.fold("chosen knobs of every fit", json.dumps(about["chosen"], indent=1, ensure_ascii=False))
    if about.get("excluded"):
        left_out = "\n".join(f"{path}: {why}" for path, why in about["excluded"].items())
        page.fold(f"{len(about['excluded'])} videos that could not be read", left_out)
    return page


def _scores(page: Page, about: dict[str, Any]) -> None:
    rows: list[list[str | Cell]] = []
    for name, found in about["metrics"].items():
        guess = about["guessing"].get(_plain(name))
        rows.append(
            [
                name,
                Cell(Score(found["value"], found["sd"])),
                f"{found['low']:.3f} to {found['high']:.3f}",
                "–" if guess is None else f"{guess:.3f}",
                _COUNTED[_plain(name)],
            ]
        )
    spread = " ± is the standard deviation over label draws." if about["draws"] > 1 else ""
    page.table(
        ["metric", "value", "95 % interval", "guessing", "which is"],
        rows,
        "Every metric on the test clips.",
        f"Intervals: bootstrap over groups of test clips, the trained probes as they are.{spread}",
    )


def _confusions(
    page: Page, answers: Predictions, classes: tuple[str, ...], suffix: str, picture: Path
) -> None:
    counts = confusion(answers.label, answers.predicted, len(classes))
    if picture.is_file():
        page.picture(
            picture.read_bytes(),
            "Which class is taken for which.",
            f"Rows: the true class, in per cent of its test clips{f'; {suffix[1:]}' if suffix else ''}. "
            "Hatched: no test clip.",
        )
    if pairs := worst_pairs(counts):
        page.table(
            ["class", "taken for", "clips", "of the class"],
            [[classes[a], classes[b], f"{n:,}", f"{share:.0%}"] for a, b, n, share in pairs],
            "What is confused most often.",
            "Over all label draws together." if len(np.unique(answers.draw)) > 1 else "",
        )
    seen = counts.sum(axis=1)
    there = np.flatnonzero(seen)
    recall = counts.diagonal()[there] / seen[there]
    order = there[np.argsort(recall, kind="stable")]
    page.table(
        ["class", "test clips", "right"],
        [[classes[c], f"{seen[c]:,}", f"{counts[c, c] / seen[c]:.0%}"] for c in order[:_ROWS]],
        "Every class, the hardest first."
        if len(order) <= _ROWS
        else f"The hardest {_ROWS} of {len(order)} classes.",
    )


def _few_labels(page: Page, about: dict[str, Any]) -> None:
    series: dict[str, dict[str, tuple[float, float]]] = {}
    rows: list[list[str | Cell]] = []
    first = about["few_labels"][0]["metrics"]
    shown = [name for name in first if _plain(name) in ("macro_recall", "r2")]
    for few in about["few_labels"]:
        cells: list[str | Cell] = [few["labels"], f"{few['train_clips']:,}", f"{few['draws']}"]
        for name in shown:
            found = few["metrics"].get(name)
            if found is None:
                cells += ["–", "–"]
                continue
            cells += [Cell(Score(found["value"], found["sd"])), f"{found['low']:.3f} to {found['high']:.3f}"]
            series.setdefault(name, {})[few["labels"]] = (found["value"], found["sd"] or 0.0)
        rows.append(cells)
    page.curves(
        [Dots("Score by labels", series, about["guessing"][_plain(shown[0])])],
        "What the probe reaches with few labels.",
        "A number: labels per class; a percentage: of each class's training clips. Dots are means over draws, bars one "
        "standard deviation; the dashed line is a blind guess.",
    )
    columns = ["labels", "clips", "draws", *(word for name in shown for word in (name, "95 % interval"))]
    page.table(columns, rows, "The same numbers.", "`few_labels.csv` has every metric.")


def _scatter(answers: RealPredictions) -> bytes:
    with rc_context({"font.size": 9, "font.family": "sans-serif"}):
        figure = Figure(figsize=(4.6, 4.4), layout="constrained")
        axes = figure.add_subplot()
        ends = [float(answers.label.min()), float(answers.label.max())]
        axes.plot(ends, ends, color="#6b6b6b", linewidth=1)
        axes.scatter(answers.label, answers.predicted, s=12, color="#0072b2", alpha=0.6, linewidths=0)
        axes.set_xlabel("label")
        axes.set_ylabel("said by the probe")
        axes.spines[["top", "right"]].set_visible(False)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=160, metadata={"Software": None})
    return file.getvalue()


def _plain(name: str) -> str:
    """macro_recall@k5 -> macro_recall"""
    return name.split("@")[0]


def _groups(saved: SavedPredictions) -> int:
    assert saved.group is not None
    return len(set(saved.group))


def _text(value: Any) -> str:
    if value is None or value == []:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
