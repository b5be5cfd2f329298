"""Folders of comparisons that nobody ran: what the runner leaves, with scores that the test decides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.data.manifest import Video
from tubelet.evaluate.metrics import Predictions, estimates
from tubelet.evaluate.retrieval import judge_retrieval
from tubelet.evaluate.saved import write_predictions
from tubelet.evaluate.tasks import read_task
from tubelet.files import write_json

CLASSES = ("back", "fore", "serve")
CLIPS = 60  # of ten groups


def videos(folder: Path = Path("clips")) -> list[Video]:
    """Labelled test clips."""
    return [Video(folder / f"{i:02d}.mp4", label=CLASSES[i % 3], group=f"g{i // 6}") for i in range(CLIPS)]


def write_eval(
    folder: Path, kind: str, skill: float, seed: int, clips: Sequence[Video] | None = None
) -> dict[str, Any]:
    """results.json and predictions.csv of a probe that is right more often the higher ``skill``; its metrics."""
    clips = videos() if clips is None else clips
    task = read_task(clips, "test")
    random = np.random.default_rng(seed)
    suffixes = ("@k5", "@k20") if kind == "knn" else ("",)
    answers, metrics = {}, {}
    for suffix in suffixes:
        scores = random.random((len(task), 3))
        scores[np.arange(len(task)), task.label] += skill
        scores /= scores.sum(axis=1, keepdims=True)
        made = Predictions(np.arange(len(task)), np.zeros(len(task), np.int64), task.label, scores)
        answers[suffix] = made
        metrics |= {name + suffix: asdict(value) for name, value in estimates(made, task.group).items()}
    write_predictions(folder / "predictions.csv", kind, clips, task.group, task.classes, answers)
    write_json(folder / "results.json", {"metrics": metrics})
    return metrics


def write_retrieval(folder: Path, skill: float, seed: int, clips: Sequence[Video] | None = None) -> None:
    """results.json of retrieval with features that know the class better the higher ``skill``."""
    clips = videos() if clips is None else clips
    task = read_task(clips, "test")
    random = np.random.default_rng(seed)
    features = random.normal(size=(len(task), 8)) + 3 * skill * np.eye(8)[task.label]
    judge_retrieval(features, task, clips).save(folder)


def write_run(folder: Path, flops: float, seed: int = 0, sick: bool = False, steps: int = 60) -> None:
    """What pretraining leaves in a run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    rows = []
    for step in range(steps):
        loss = 1 / (1 + step / 20) + 0.02 * random.random()
        rows.append({"step": step, "train/loss": loss, "train/lr": 1e-3, "train/grad_norm": 1.0})
        if step % 10 == 0:
            rows[-1] |= {"repr/rankme": 2.0 if sick and step else 40.0 + step, "repr/std": 0.5}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    state = "collapse" if sick else "healthy"
    spent = {
        "finished": True,
        "steps": steps,
        "seconds": 100.0 + seed,
        "core_seconds": 150.0,
        "flops": {"encoder": 0.75 * flops, "predictor": 0.25 * flops},
        "train_flops": flops,
        "peak_memory": 2**30,
        "verdict": {
            "state": state,
            "since_step": 10 if sick else None,
            "sentence": f"{state}: as the test says",
        },
    }
    write_json(folder / "run.json", spent)


def write_comparison(
    out: Path,
    skills: Mapping[str, float],
    budgets: Sequence[float] = (1e13,),
    seeds: Sequence[int] = (0, 1, 2),
    probes: Sequence[str] = ("linear", "knn", "retrieval"),
    clips: Sequence[Video] | None = None,
    done: bool = True,
    plan: Mapping[str, Any] | None = None,
) -> Path:
    """A comparison of methods, each as good as ``skills`` says; "salt" has a teacher's stage inside its run.

    done: whether anything was trained. plan: keys of plan.json to have otherwise.
    """
    arms, runs, baselines = [], [], []
    for budget in budgets:
        for method, skill in skills.items():
            name = method if len(budgets) == 1 else f"{method} {budget:.3g}"
            arms.append(
                {"name": name, "method": method, "recipe": method, "model": "96x6x3", "budget": budget}
            )
            for seed in seeds:
                place = f"runs/{name.replace(' ', '-')}-seed{seed}"
                runs.append(
                    {
                        **{key: arms[-1][key] for key in ("method", "model", "budget")},
                        "arm": name,
                        "seed": seed,
                        "folder": place,
                        "steps": 60,
                        "planned_flops": budget,
                    }
                )
                if not done:
                    continue
                sick = method == "sick"
                own = budget / 2 if method == "salt" else budget
                write_run(out / place, own, seed, sick)
                if method == "salt":
                    write_run(out / place / "teacher", budget / 2, seed)
                gain = skill + 0.05 * np.log10(budget / 1e13)
                _evaluate(out / place, probes, gain, hash_of(method, seed), clips)
    for name, skill, count in (("random", 0.1, len(seeds)), ("pixels", 0.15, 1)):
        for seed in range(count):
            place = f"baselines/{name}-seed{seed}"
            baselines.append({"arm": name, "model": "96x6x3", "seed": seed, "folder": place})
            if done:
                _evaluate(out / place, probes, skill, hash_of(name, seed), clips)
    written = {
        "kind": "compare",
        "name": "compare",
        "title": f"{', '.join(skills)} at equal compute",
        "question": "Which method is best for its price?",
        "data": "clips/labels.csv",
        "clips": 412,
        "tasks": [{"name": "tennis", "data": "clips/labels.csv", "folds": 0}],
        "evals": [{"key": f"tennis-{p}", "task": "tennis", "probe": p, "labels": None} for p in probes],
        "headline": "macro_recall",
        "seeds": list(seeds),
        "arms": arms,
        "runs": runs,
        "baselines": baselines,
        "not_equal": ["Equal are the FLOPs.", "Not equal is wall clock."],
        "command": "tubelet compare --budget 1e13",
        "environment": {"cores": 2, "gpu": None},
    }
    write_json(out / "plan.json", written | dict(plan or {}))
    return out


def hash_of(name: str, seed: int) -> int:
    """A seed of its own for each arm and seed."""
    return sum(map(ord, name)) * 100 + seed


def _evaluate(
    folder: Path, probes: Sequence[str], skill: float, seed: int, clips: Sequence[Video] | None
) -> None:
    for probe in probes:
        place = folder / "eval" / f"tennis-{probe}"
        if probe == "retrieval":
            write_retrieval(place, skill, seed, clips)
        else:
            write_eval(place, probe, skill, seed, clips)
