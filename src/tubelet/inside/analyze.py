"""What each depth of encoders knows, measured and drawn: what ``tubelet analyze`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tubelet.errors import UserError
from tubelet.evaluate.features import Reading
from tubelet.evaluate.metrics import FEW_GROUPS
from tubelet.evaluate.source import Views
from tubelet.files import write_json
from tubelet.inside import definitions, measure
from tubelet.inside.footage import Asked, Manner, read_footage
from tubelet.inside.kept import Kept
from tubelet.inside.look import Amounts, Look
from tubelet.inside.subject import Subject, read_subjects
from tubelet.inside.through import checkpoints_of
from tubelet.report.depth.page import depth_report
from tubelet.report.depth.tables import write_tables

# as it is: to rich, "random:a:" holds a picture and a name in brackets a colour
_PLAIN: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False, "emoji": False}


def analyze(
    encoders: Sequence[str],
    data: Path | str,
    out: Path | str,
    *,
    names: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    label: str | None = None,
    folds: int = 0,
    unlabelled: str = "error",
    views: Views | None = None,
    amounts: Amounts | None = None,
    manner: Manner | None = None,
    seed: int = 0,
    command: str | None = None,
    allow_partial: bool = False,
    heads: int | None = None,
) -> dict[str, Any]:
    """Measures what every layer of ``encoders`` knows of ``data`` and draws it; returns what analysis.json holds.

    encoders: what `load_encoder` reads. data: what `read_manifest` reads; without labels, what needs them is left out.
    out: folder for analysis.json, CSVs, report.html, figures/ and influence/; what was found there before of tokens,
    influence, gratings and checkpoints is not computed again, nor are features; what is quick is: probes of DATA's
    labels, similarity, spectrum. names: what to call the encoders. layers: to look at (default: all). label, folds,
    unlabelled: as for `probe`. views: clips of each video; several allow LiDAR. command: what the page says was typed.
    allow_partial, heads: of published weights, as for `load_encoder`.

    One forward per clip and encoder gives all layers' features; tokens, attention and influence are of a sample;
    OccDrop, gratings and checkpoints are forwards of their own. Memory: a batch of clips with its tokens; one layer's
    mean tokens, n x D float32 (about four times that while its probe is fitted, in double precision); the probes'
    answers, a byte for each test clip and class of each layer; and what `analysis.similarity` and `analysis.spectrum`
    say of themselves, which does not grow with n. On disk, in the cache: 8 n D bytes for each layer (gratings: 4).
    Raises UserError for whatever is wrong with encoders, data or knobs, before anything is decoded where that can be
    known.
    """
    amounts, manner, out = amounts or Amounts(), manner or Manner(), Path(out)
    subjects = read_subjects(encoders, names, layers, allow_partial, heads)
    saved = {} if amounts.checkpoints is None else _checkpoints(subjects, amounts.checkpoints)
    footage = read_footage(data, label, folds, unlabelled, views, seed)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
    )
    bars = Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    )
    with bars as progress:
        look = Look(subjects, footage, amounts, manner, Kept(out / "parts"), out, seed, progress, command)
        _extract(look)
        found = _measure(look, _asked(look), saved)
    write_json(out / "analysis.json", found)
    write_tables(found, out)
    page = depth_report(out)
    _tell(found, console)
    console.print(f"{out / 'analysis.json'}, {page}", **_PLAIN)
    return found


def _checkpoints(subjects: Sequence[Subject], wanted: str) -> dict[str, dict[int, Path]]:
    found = {subject.name: checkpoints_of(subject, wanted) for subject in subjects}
    if not any(found.values()):
        raise UserError(
            f"checkpoints={wanted}: none of the encoders is a run that kept checkpoints (train with --keep-every N)"
        )
    return {name: saved for name, saved in found.items() if saved}


def _extract(look: Look) -> None:
    """Mean tokens of all videos at all layers, before the norm and, for the cuts, after it, in one forward."""
    for subject in look.subjects:
        readings = [Reading(k, False) for k in subject.layers]
        if look.amounts.has("saturation"):
            readings += [Reading(k, True) for k in subject.layers]
        with look.no_bar("features"):
            look.features[subject.name] = look.manner.extract(subject.encoder, look.source(subject), readings)


def _asked(look: Look) -> Asked:
    """The clips that every encoder could be shown, and what is asked of them."""
    rows = set(range(len(look.footage.videos)))
    reasons: dict[int, str] = {}
    for found in look.features.values():
        rows &= set(found[False].rows.tolist())
        reasons |= found[False].excluded
    if reasons:
        look.notes.append(
            f"{len(reasons)} videos cannot be read and are left out; the first: {next(iter(reasons.values()))}"
        )
    if not rows:
        raise UserError(f"{look.footage.source}: there is no video that all encoders could be shown")
    for subject in look.subjects:
        geometry = subject.encoder.geometry
        if short := look.footage.shorter(geometry):
            look.notes.append(
                f"{short} of {len(look.footage.videos)} videos are shorter than a clip of {subject.name} "
                f"({geometry.frames} frames): their last frame is repeated"
            )
    asked = look.footage.task(np.array(sorted(rows)))
    if asked.task is None:
        look.notes.append(
            "the videos have no labels: linear probes, retrieval, gains and saturation are left out"
        )
        return asked
    look.notes += asked.task.notes
    if asked.clusters is None:
        look.notes.append(
            "no group column: clips of one source may lie in train and test, and intervals are per clip"
        )
    elif (groups := len(set(asked.clusters))) < FEW_GROUPS:
        look.notes.append(f"the test clips come from {groups} groups: take the intervals as rough")
    return asked


def _measure(look: Look, asked: Asked, saved: Mapping[str, Mapping[int, Path]]) -> dict[str, Any]:
    """Everything that analysis.json holds."""
    decoded = measure.decodability(look, asked)
    maps = measure.similarity(look, asked)
    steps = measure.transitions(look, asked, decoded, maps)
    measure.spectra(look, asked)
    measure.token_statistics(look, asked)
    influence = measure.influence(look, asked)
    measure.occluded(look, asked, decoded)
    majority = measure.gratings(look)
    saturated = measure.saturated(look, asked)
    followed = measure.followed(look, asked, saved)
    return {
        "about": _about(look, asked),
        "definitions": definitions.told(),
        "encoders": [_described(subject) for subject in look.subjects],
        "layers": look.records.rows,
        "levels": _levels(asked, majority),
        "transitions": steps,
        "maps": measure.told_maps(look, maps),
        "geometry_vs_gain": measure.scatter(look, steps),
        "saturation": saturated,
        "influence": influence,
        "through": followed,
    }


def _about(look: Look, asked: Asked) -> dict[str, Any]:
    footage, task = look.footage, asked.task
    path = Path(footage.source)
    data: dict[str, Any] = {
        "name": path.parent.name if path.stem in ("labels", "manifest") else path.stem,
        "source": footage.source,
        "clips": len(asked.rows),
        "labelled": task is not None,
    }
    if task is not None:
        sizes = {len(fold.train) for fold in asked.folds}
        data |= {
            "classes": list(task.classes),
            "train": max(sizes),
            "test": len(asked.tested),
            "folds": len(asked.folds),
            "grouped": task.group is not None,
            "chance": asked.chance,
        }
    return {
        "tubelet": version("tubelet"),
        "command": look.command,
        "seed": look.seed,
        "views": asdict(footage.views),
        "amounts": asdict(look.amounts),
        "data": data,
        "seconds": look.seconds,
        "notes": list(dict.fromkeys(look.notes)),
    }


def _levels(asked: Asked, majority: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """What answers without looking get, as reference lines."""
    found: list[dict[str, Any]] = []
    if asked.task is not None:
        classes = len(np.unique(asked.task.label[asked.tested]))
        found += [
            {"metric": metric, "target": None, "name": name, "value": value}
            for metric, name, value in (
                ("linear", "commonest class", asked.chance),
                ("linear_occluded", "commonest class", asked.chance),
                ("macro_recall", "guessing", 1 / classes),
            )
        ]
    for world, shares in majority.items():
        mean = float(np.mean(list(shares.values())))
        found.append({"metric": world, "target": None, "name": "commonest value", "value": mean})
        found += [
            {"metric": world, "target": target, "name": "commonest value", "value": share}
            for target, share in shares.items()
        ]
    return found


def _described(subject: Subject) -> dict[str, Any]:
    encoder = subject.encoder
    return {
        "name": subject.name,
        "spec": subject.spec,
        "digest": encoder.digest,
        "depth": subject.depth,
        "dim": encoder.model.dim,
        "layers": list(subject.layers),
        "parameters": sum(parameter.numel() for parameter in encoder.model.parameters()),
        "geometry": asdict(encoder.geometry),
        "provenance": encoder.provenance,
    }


def _tell(found: Mapping[str, Any], console: Console) -> None:
    """What it comes down to, in words."""
    for row in found["saturation"]:
        console.print(f"{row['encoder']}: {row['sentence']}", **_PLAIN)
    for note in found["about"]["notes"]:
        console.print(f"  {note}", **_PLAIN)
