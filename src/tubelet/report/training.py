"""The page of one pretraining run, drawn from its folder: finished, stopped or still going."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from tubelet.analysis.health import keep
from tubelet.errors import UserError
from tubelet.report.history import Rows, add_curves, add_health, add_speed, last, load_metrics
from tubelet.report.page import Key, Page
from tubelet.report.table import Cell
from tubelet.report.units import flops, memory
from tubelet.train import checkpoint
from tubelet.train.report import duration

_SHOWN = 30  # rows of the data report on the page; the file has them all


def run_report(folder: Path | str) -> Path:
    """Draws ``folder``/report.html from what the run has written there, and returns its path.

    Of a run that was stopped there is less, and the page says so. Raises UserError if ``folder`` holds no run,
    if one of its files is damaged, or if the disk is full.
    """
    folder = Path(folder)
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(
            f"{folder} holds no run (no metrics.jsonl in it); name the folder given to pretrain as out"
        )
    rows = load_metrics(metrics)
    config, env = _yaml(folder / "config.yaml"), _json(folder / "env.json")
    spent = _json(folder / "run.json") or _json(folder / "summary.json")
    page = Page(f"{config.get('recipe', 'run')}: {folder.resolve().name}", _lead(config, spent, rows))
    page.keys(_keys(config, env, spent, rows))
    runs = {"run": rows}
    page.heading("Health")
    add_health(page, runs)
    page.heading("Training")
    add_curves(page, runs)
    page.heading("Cost")
    _cost(page, spent, rows)
    add_speed(page, runs)
    page.heading("Data")
    _data(page, folder / "data_report.csv")
    page.heading("Checkpoints")
    _checkpoints(page, folder, spent, rows)
    _evaluations(page, folder)
    page.heading("How it was run")
    _setup(page, config, env)
    return page.write(folder / "report.html")


def _lead(config: dict[str, Any], spent: dict[str, Any], rows: Rows) -> str:
    knobs, chosen = config.get("knobs", {}), config.get("chosen", {})
    steps, done = chosen.get("steps"), int(spent.get("steps", 0))
    state = "finished" if spent.get("finished") else "not finished"
    if not spent and rows:
        done = int(rows[-1]["step"]) + 1
    model, data = chosen.get("model", "an encoder"), knobs.get("data", "unnamed videos")
    return f"{model} on {data}: {done:,} of {steps or 'an unknown number of'} steps, {state}."


def _keys(config: dict[str, Any], env: dict[str, Any], spent: dict[str, Any], rows: Rows) -> list[Key]:
    chosen = config.get("chosen", {})
    loss, rank = last(rows, "train/loss"), last(rows, "repr/rankme")
    where = env.get("gpu") or f"{env.get('cores', '?')} cores, {spent.get('precision', '?')}"
    keys = [
        Key("last loss", f"{loss:.4g}"),
        Key("effective rank", f"{rank:.3g}" if math.isfinite(rank) else "not measured"),
    ]
    if spent:
        keys += [
            Key("training time", duration(spent["seconds"]), where),
            Key("arithmetic", flops(sum(spent["flops"].values())), "by formula"),
            Key("clips seen", f"{spent['clips']:,}", f"{chosen.get('batch_size', '?')} a step"),
            Key("peak memory", memory(spent["peak_memory"])),
        ]
    return keys


def _cost(page: Page, spent: dict[str, Any], rows: Rows) -> None:
    if not spent:
        page.text("Nothing was saved yet, so the cost is not known.")
        return
    parts, clips = spent["flops"], max(1, spent["clips"])
    total = sum(parts.values()) or 1.0
    page.table(
        ["part", "in all", "a clip", "share"],
        [[part, flops(work), flops(work / clips), f"{work / total:.0%}"] for part, work in parts.items()],
        "Arithmetic by part, up to the last checkpoint.",
        "By formula: matrix products, two FLOPs per multiply-add, backward twice forward, frozen parts forward only.",
    )
    timed = [row for row in rows if math.isfinite(row.get("time/step_s", math.nan))]
    if timed:
        step = sum(row["time/step_s"] for row in timed) / len(timed)
        wait = sum(row["time/step_s"] * row["time/data_frac"] for row in timed) / len(timed)
        steps = int(spent["steps"])
        other = max(0.0, spent["seconds"] - step * steps)
        page.table(
            ["what", "a step", "in all", "share"],
            [
                _time_row("computing", step - wait, steps, spent["seconds"]),
                _time_row("waiting for data", wait, steps, spent["seconds"]),
                [
                    "health, saving, starting",
                    "–",
                    duration(other),
                    f"{other / max(spent['seconds'], 1e-9):.0%}",
                ],
            ],
            "Time by what it went to.",
            "By the clock, from the logged steps.",
        )


def _time_row(what: str, each: float, steps: int, total: float) -> list[str | Cell]:
    return [what, f"{1000 * each:.0f} ms", duration(each * steps), f"{each * steps / max(total, 1e-9):.0%}"]


def _data(page: Page, file: Path) -> None:
    if not file.is_file():
        page.text("There is no data report: the run has not ended in an orderly way.")
        return
    with file.open(newline="", encoding="utf-8") as handle:
        found = list(csv.DictReader(handle))
    if not found:
        page.text("Every video was read without trouble.")
        return
    columns = list(found[0])
    if "status" in columns:
        counts = Counter(row["status"] for row in found)
        page.text(
            "Videos by status: " + ", ".join(f"{count} {status}" for status, count in counts.items()) + "."
        )
        found = [row for row in found if row["status"] not in ("ok", "not scanned")]
    if not found:
        return
    page.table(
        columns,
        [[row[column] or "" for column in columns] for row in found[:_SHOWN]],
        "Videos that made trouble, and why.",
        f"The first {_SHOWN} of {len(found)}; `data_report.csv` has all." if len(found) > _SHOWN else "",
    )


def _checkpoints(page: Page, folder: Path, spent: dict[str, Any], rows: Rows) -> None:
    there = [checkpoint.step_of(path) for path in checkpoint.found(folder / "checkpoints")]
    if not there:
        page.text("No checkpoint was saved.")
        return
    page.text(f"Saved after steps {', '.join(f'{step:,}' for step in there)}.")
    chosen = spent.get("keep") or {"sentence": keep(rows, there, loss_is_signal=False).sentence}
    page.text(f"{chosen['sentence'].capitalize()}.")
    if spent.get("encoders"):
        first, *others = spent["encoders"]
        rest = f", and beside it: {', '.join(others)}" if others else ""
        page.text(f"`encoder/` holds the {first}, the one that the method recommends{rest}.")


def _evaluations(page: Page, folder: Path) -> None:
    results = sorted(folder.glob("eval/*/results.json"))
    if not results:
        return
    page.heading("Evaluation")
    table: list[list[str | Cell]] = []
    for file in results:
        about = _json(file)
        for name, found in about.get("metrics", {}).items():
            table.append(
                [
                    file.parent.name,
                    name,
                    f"{found['value']:.3f}",
                    f"{found['low']:.3f} to {found['high']:.3f}",
                ]
            )
    page.table(["task", "metric", "value", "interval"], table, "Probes on the frozen encoder.")


def _setup(page: Page, config: dict[str, Any], env: dict[str, Any]) -> None:
    reasons = config.get("chosen", {}).get("reasons", {})
    if reasons:
        chosen = config["chosen"]
        page.table(
            ["knob", "value", "because"],
            [[name, _value(chosen.get(name)), reason] for name, reason in reasons.items()],
            "What was chosen, and why.",
        )
    if env.get("command"):
        page.code(" ".join(env["command"]))
    page.fold("all knobs", yaml.safe_dump(config.get("knobs", {}), sort_keys=False, allow_unicode=True))
    page.fold("environment", json.dumps(env, indent=2, ensure_ascii=False))


def _value(value: Any) -> str:
    """A knob's value as people read it; a schedule by its name and numbers."""
    match value:
        case None:
            return "–"
        case float():
            return f"{value:.4g}"
        case {"schedule": name, **numbers}:
            return f"{name}: " + ", ".join(f"{key} {_value(number)}" for key, number in numbers.items())
        case list():
            return ", ".join(map(_value, value))
    return str(value)


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}); remove it to draw the report without it") from error


def _yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{file} is damaged ({error}); remove it to draw the report without it") from error
