"""The curves of training runs and the judgement of their health, for any page that shows them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from tubelet.analysis.health import verdict
from tubelet.report.curves import Line, Panel
from tubelet.report.page import Page
from tubelet.train.report import read_metrics

Rows = Sequence[Mapping[str, float]]

# key in metrics.jsonl -> title of its panel; drawn where a run has them
_TRAINING = {
    "train/loss": "Loss",
    "train/lr": "Learning rate",
    "train/grad_norm": "Gradient norm",
    "lock/frozen": "Frozen blocks",
    "lock/target": "Layer that is predicted (0: pixels)",
}
_PER_BLOCK = "loss/block"
_HEALTH = {
    "repr/rankme": "Effective rank (RankMe)",
    "repr/std": "Spread over clips",
    "repr/mean_norm": "Norm of the mean token",
    "repr/agreement": "Two encoders agree (CKA)",
    "repr/cosine": "Two encoders agree (cosine)",
}
_SPEED = {
    "throughput/clips_per_s": "Clips per second",
    "time/data_frac": "Time waiting for data",
    "data/replaced_frac": "Share of clips replaced",
}


def load_metrics(file: Path) -> list[dict[str, float]]:
    """The rows of a metrics.jsonl, in the order of their steps; what was not finite (null) is nan."""
    rows = read_metrics(file)
    clean = [{key: math.nan if value is None else float(value) for key, value in row.items()} for row in rows]
    return sorted(clean, key=lambda row: row["step"])


def add_curves(page: Page, runs: Mapping[str, Rows]) -> None:
    """Loss, learning rate and gradient norm of one run or of several over each other."""
    panels = [*_panels(_TRAINING, runs), *_block_panels(runs)]
    if not panels:
        page.text("No step was logged.")
        return
    page.curves(
        panels,
        "Loss and learning rate over the optimizer's steps.",
        "As logged in `metrics.jsonl`; of more than 300 rows, each point is the mean of neighbours. "
        "A lower loss is a better encoder only while the target stands still.",
    )


def add_health(page: Page, runs: Mapping[str, Rows]) -> None:
    """One verdict per run and the curves it rests on."""
    for name, rows in runs.items():
        found = verdict(rows)
        good = {"healthy": True, "too early": None}.get(found.state, False)
        page.verdict(
            f"{name}: {found.sentence}." if len(runs) > 1 else f"{found.sentence.capitalize()}.", good
        )
    add_health_curves(page, runs)


def add_health_curves(page: Page, runs: Mapping[str, Rows]) -> None:
    """The curves that a verdict on health rests on."""
    panels = _panels(_HEALTH, runs)
    if panels:
        page.curves(
            panels,
            "What the encoder's tokens keep of the clips, on the same few clips every time.",
            "Effective rank: exp of the entropy of the tokens' singular values, each place's mean over clips "
            "taken away first. Spread: standard deviation over clips as a share of their size. Both are "
            "judged against the same encoder at step 0; a collapse pulls both towards nothing.",
        )


def add_speed(page: Page, runs: Mapping[str, Rows]) -> None:
    """Throughput, and whether decoding kept up."""
    panels = _panels(_SPEED, runs)
    if panels:
        page.curves(
            panels,
            "Speed, and what held it up.",
            "Measured by the loop. A share of waiting near 1 means that decoding is the bottleneck.",
        )


def last(rows: Rows, key: str) -> float:
    """The last finite value of ``key``, nan if there is none."""
    values = (row[key] for row in reversed(rows) if math.isfinite(row.get(key, math.nan)))
    return next(values, math.nan)


def _panels(wanted: Mapping[str, str], runs: Mapping[str, Rows]) -> list[Panel]:
    panels = []
    for key, title in wanted.items():
        lines = []
        for name, rows in runs.items():
            there = [row for row in rows if key in row]
            if there:
                lines.append(Line(name, [row["step"] for row in there], [row[key] for row in there]))
        if lines:
            panels.append(Panel(title, lines, log=_steep(key, lines)))
    return panels


def _block_panels(runs: Mapping[str, Rows]) -> list[Panel]:
    """The local losses of a run over each other, where it has them."""
    panels = []
    for name, rows in runs.items():
        keys = sorted({key for row in rows for key in row if key.startswith(_PER_BLOCK)}, key=_number)
        lines = []
        for key in keys:
            there = [row for row in rows if key in row]
            title = f"block {_number(key)}"
            lines.append(Line(title, [row["step"] for row in there], [row[key] for row in there]))
        if len(lines) > 1:
            panels.append(Panel("Loss of each block" if len(runs) == 1 else f"{name}: blocks", lines))
    return panels


def _number(key: str) -> int:
    return int(key.removeprefix(_PER_BLOCK))


def _steep(key: str, lines: Sequence[Line]) -> bool:
    """Whether a gradient norm spans so much that only a logarithmic axis shows it."""
    values = [y for line in lines for y in line.y if math.isfinite(y) and y > 0]
    return key == "train/grad_norm" and bool(values) and max(values) > 30 * min(values)
