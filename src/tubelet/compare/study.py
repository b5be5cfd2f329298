"""``tubelet study``: an experiment that a paper is known for, on one's own videos."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tubelet.compare.compare import (
    read_seeds,
    read_settings,
    read_tasks,
    same_for_all,
    side_by_side,
    told,
)
from tubelet.compare.execute import Manner, carry_out
from tubelet.compare.plan import Plan, check_knobs, readable
from tubelet.compare.studies import find_study
from tubelet.compare.studies.study import Ask, Found
from tubelet.data.manifest import read_manifest
from tubelet.errors import UserError
from tubelet.evaluate.comparison import read_comparison
from tubelet.evaluate.standings import weigh
from tubelet.files import write_json
from tubelet.recipes import RECIPES
from tubelet.report.comparison import comparison_report


def study(
    name: str,
    data: str,
    out: str | Path,
    budget: float,
    *,
    model: str | None = None,
    sizes: Sequence[str] = (),
    sources: Sequence[str] = (),
    seeds: int = 1,
    tasks: Sequence[str] = (),
    folds: int = 0,
    headline: str = "macro_recall",
    settings: Sequence[str] = (),
    unlabelled: str = "error",
    manner: Manner | None = None,
    knobs: Mapping[str, Any] | None = None,
) -> None:
    """Runs the study ``name`` and writes its page: the paper's numbers beside ours, and whether the claim held.

    Beside report.html and the files of a comparison there is claim.json, the claim and the verdict for machines.

    budget: FLOPs; each study's page says what they pay for. model: the encoder's size. sizes, sources: of further
    teachers, for salt-teacher. The rest as for `compare.compare`. Raises UserError as that does.
    """
    chosen = find_study(name)
    manner = manner or Manner()
    recipes = list(RECIPES)
    own = read_settings(settings, recipes)
    shared = dict(knobs or {})
    check_knobs(shared, recipes)
    manifest = read_manifest(data)
    labelled = read_tasks(data, tasks, folds, unlabelled, ("linear",), headline)
    if (sizes or sources) and not chosen.teachers:
        raise UserError(f"sizes and sources are of further teachers, which {name} has not; leave them out")
    model, shared = same_for_all(data, "videomae", manifest, shared, {}, () if model is None else (model,))
    ask = Ask(data, labelled, budget, model, shared, own, tuple(sizes), tuple(sources))
    arms = tuple(chosen.arms(ask))
    used = [word for word in settings if word.partition(".")[0] in {arm.recipe for arm in arms}]
    plan = Plan(
        kind="study",
        name=name,
        title=chosen.title,
        question=chosen.question,
        data=data,
        digest=manifest.digest(),
        clips=readable(manifest, shared),
        tasks=labelled,
        evals=tuple(chosen.evals(ask)),
        headline=headline,
        seeds=read_seeds(seeds),
        arms=arms,
        knobs=shared,
        unlabelled=unlabelled,
        checkpoints=chosen.checkpoints,
        not_equal=(*chosen.not_equal, *told(used, manifest, shared), *side_by_side(manner)),
        command=f"tubelet {shlex.join(sys.argv[1:])}",
    )

    def draw(folder: Path) -> None:
        found = read_comparison(folder)
        standings = weigh(found)
        claim, extra = chosen.conclude(Found(found, standings))
        write_json(folder / "claim.json", asdict(claim))
        comparison_report(found, folder / "report.html", claim, chosen.paper, extra, standings)

    carry_out(plan, Path(out), manner, draw)
