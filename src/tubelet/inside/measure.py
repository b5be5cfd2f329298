"""The parts of an analysis, each from features to records."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.analysis.occlusion import Occluded, occdrop
from tubelet.analysis.similarity import SimilarityMap, linear_cka, similarity_map
from tubelet.analysis.spectrum import lidar, spectrum
from tubelet.evaluate.metrics import Predictions, estimates, resample
from tubelet.evaluate.noise import Interval
from tubelet.evaluate.source import VideoSource
from tubelet.files import replace_file
from tubelet.inside import decoding, tokens, worlds
from tubelet.inside.cuts import cuts
from tubelet.inside.footage import Asked, Means
from tubelet.inside.geometry import against_gain
from tubelet.inside.look import Look
from tubelet.inside.records import number
from tubelet.inside.saturation import Gain, Transition, saturation
from tubelet.inside.subject import Subject
from tubelet.inside.through import through
from tubelet.nn.vit import ViT
from tubelet.report.heatmap import influence_picture

Decodings = dict[str, dict[int, decoding.Decoded | None]]
Maps = dict[tuple[str, str], SimilarityMap]
MAPS = {"cka_linear": "linear", "cka_debiased": "debiased", "cka_rbf": "rbf"}
UNUSED = "infinite: the clips leave directions unused (always, if they are no more than channels)"
ZERO = "some clip's features are zero, which has no direction"
UNSEEN = "on whole clips the probe is not better than guessing, so there is nothing to lose"


def decodability(look: Look, asked: Asked) -> Decodings:
    """Linear probe and retrieval at every layer of every encoder."""
    if asked.task is None or not look.amounts.has("decodability"):
        return {}
    decoded: Decodings = {}
    with look.part("linear probes and retrieval", sum(len(s.layers) for s in look.subjects)) as advance:
        for subject in look.subjects:
            found: dict[int, decoding.Decoded | None] = {}
            for k in subject.layers:
                found[k] = decoding.decode(look.means(subject, k, asked)[:], asked, look.seed)
                advance(1)
            decoding.record(found, asked, subject.name, look.records, look.seed)
            decoded[subject.name] = found
    return decoded


def similarity(look: Look, asked: Asked) -> Maps:
    """CKA of all layers with all layers, within each encoder and between any two."""
    if not look.amounts.has("similarity"):
        return {}
    pairs = [(s, s) for s in look.subjects] + list(combinations(look.subjects, 2))
    maps: Maps = {}
    with look.part("similarity of layers", len(pairs)) as advance:
        for one, other in pairs:
            mine, theirs = ([look.means(s, k, asked) for k in s.layers] for s in (one, other))
            maps[one.name, other.name] = similarity_map(
                mine, None if one is other else theirs, seed=look.seed, advance=_steps(advance)
            )
    return maps


def _steps(advance: Callable[[float], None]) -> Callable[[float], None]:
    """From a share that rises to 1 to steps that add up to it."""
    done = 0.0

    def tell(share: float) -> None:
        nonlocal done
        advance(share - done)
        done = share

    return tell


def transitions(look: Look, asked: Asked, decoded: Decodings, maps: Maps) -> list[dict[str, Any]]:
    """From each layer to the next that was looked at: how alike they are, and what is gained."""
    told: list[dict[str, Any]] = []
    with look.timed("gains"):
        for subject in look.subjects:
            own, found = maps.get((subject.name, subject.name)), decoded.get(subject.name, {})
            for place, (start, stop) in enumerate(pairwise(subject.layers)):
                row: dict[str, Any] = {"encoder": subject.name, "from": start, "to": stop}
                if own is not None:
                    row |= {
                        m: number(float(getattr(own, name)[place, place + 1])) for m, name in MAPS.items()
                    }
                gained = decoding.gain(found.get(stop), found.get(start), asked, look.seed)
                told.append(row | decoding.record_gain(gained))
    return told


def scatter(look: Look, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Geometry against gain, see `inside.geometry`."""
    by_name: dict[str, list[tuple[int, int, float, float]]] = {s.name: [] for s in look.subjects}
    for row in steps:
        gained, cka = (row["gain_map"] or {}).get("value"), row.get("cka_linear")
        if gained is not None and cka is not None:
            by_name[row["encoder"]].append((row["from"], row["to"], cka, gained))
    untrained = {s.name for s in look.subjects if s.untrained}
    return against_gain(by_name, untrained)


def told_maps(look: Look, maps: Maps) -> list[dict[str, Any]]:
    """Maps as analysis.json has them."""
    layers = {subject.name: list(subject.layers) for subject in look.subjects}
    return [
        {
            "one": one,
            "other": other,
            "metric": metric,
            "layers_one": layers[one],
            "layers_other": layers[other],
            "values": [[number(float(value)) for value in row] for row in getattr(found, name)],
        }
        for (one, other), found in maps.items()
        for metric, name in MAPS.items()
    ]


def spectra(look: Look, asked: Asked) -> None:
    """Spectrum and scale of every layer's features; LiDAR where clips have several views."""
    if not look.amounts.has("spectrum"):
        return
    with look.part("spectrum", sum(len(s.layers) for s in look.subjects)) as advance:
        for subject in look.subjects:
            for k in subject.layers:
                rows = look.means(subject, k, asked)
                values = asdict(spectrum(rows, look.seed))
                if look.footage.views.count > 1:
                    values["lidar"] = lidar(_Views(rows.table, rows.rows))
                flat = decoding.constant(rows[: decoding.PEEK])
                for metric, value in values.items():
                    why = decoding.CONSTANT if flat else UNUSED if value == math.inf else ZERO
                    look.records.add(subject.name, k, metric, value, undefined=why)
                advance(1)


class _Views:
    """Rows [n, views, D] of a table of features."""

    def __init__(self, table: np.ndarray, rows: np.ndarray):
        self.table, self.rows = table, rows

    @property
    def shape(self) -> tuple[int, ...]:
        n, d = len(self.rows), self.table.shape[-1]
        return n, self.table.shape[1] * self.table.shape[2], d

    def __getitem__(self, chosen: Any, /) -> np.ndarray:
        picked = self.table[self.rows[chosen]]
        return picked.reshape(len(picked), -1, picked.shape[-1])


def token_statistics(look: Look, asked: Asked) -> None:
    """Similarity, norms, outliers and attention of single tokens, over a sample of clips."""
    if not look.amounts.has("tokens"):
        return
    rows = tokens.sample(asked.rows, look.amounts.token_clips, look.seed)
    if len(rows) < len(asked.rows):
        look.notes.append(f"token statistics are of {len(rows)} clips drawn from {len(asked.rows)}")
    with look.part("tokens and attention", len(look.subjects) * len(rows)) as advance:
        for subject in look.subjects:
            source = look.source(subject)
            about = look.about(subject) | {"rows": rows.tolist()}

            def make(subject: Subject = subject, source: VideoSource = source) -> Any:
                return tokens.token_statistics(subject, source, rows, look.manner, advance)

            for layer, metrics in look.kept.get("tokens", about, make).items():
                for metric, (mean, _) in metrics.items():
                    look.records.add(
                        subject.name, int(layer), metric, mean, undefined="undefined in every clip"
                    )


def influence(look: Look, asked: Asked) -> list[dict[str, Any]]:
    """What taking a patch away changes, as numbers and as pictures in OUT/influence."""
    if not look.amounts.has("influence"):
        return []
    rows = tokens.sample(asked.rows, look.amounts.influence_clips, look.seed)
    told = []
    with look.part("influence of patches", len(look.subjects) * len(rows)) as advance:
        for turn, subject in enumerate(look.subjects):
            source, about = look.source(subject), look.about(subject)
            reaches: dict[str, list[list[float]]] = {}
            for place_number, row in enumerate(rows.tolist()):

                def make(subject: Subject = subject, source: VideoSource = source, row: int = row) -> Any:
                    return tokens.influence(subject, source, row, look.manner)

                found = look.kept.get("influence", about | {"row": row}, make)
                for layer, reach in found["reach"].items():
                    reaches.setdefault(layer, []).append(reach)
                file = f"influence/{turn}-{place_number}.png"
                frame = np.frombuffer(base64.b64decode(found["frame"]), np.uint8).reshape(found["shape"])
                place = (found["place"][0], found["place"][1])
                picture = influence_picture(frame, np.array(found["change"]), place, found["layers"])
                with replace_file(look.out / file) as draft:
                    draft.write_bytes(picture)
                told.append(
                    {
                        "encoder": subject.name,
                        "clip": Path(found["name"]).name,
                        "layers": found["layers"],
                        "patch": found["place"],
                        "picture": file,
                    }
                )
                advance(1)
            for layer, pairs in reaches.items():
                for metric, value in zip(
                    ("influence_elsewhere", "influence_distance"), zip(*pairs, strict=True), strict=True
                ):
                    mean = float(np.mean(value))
                    look.records.add(subject.name, int(layer), metric, mean, undefined="no token changes")
    for file in (look.out / "influence").glob("*.png"):  # of an earlier analysis of more
        if not any(entry["picture"] == f"influence/{file.name}" for entry in told):
            file.unlink()
    return told


def occluded(look: Look, asked: Asked, decoded: Decodings) -> None:
    """OccDrop on the data's labels: the probe fitted anew on clips of which one patch is left."""
    if asked.task is None or not look.amounts.has("occdrop"):
        return
    if not decoded:
        look.notes.append(
            "OccDrop of the data's labels compares with the linear probe, and decodability was skipped"
        )
        return
    for subject in look.subjects:
        source = Occluded(look.source(subject), subject.encoder.model.patch, look.seed)
        with look.no_bar("one-patch clips"):
            found = look.manner.before_norm(subject.encoder, source, subject.layers, "one-patch features")
        with look.part("probes of one-patch clips", len(subject.layers)) as advance:
            for k in subject.layers:
                one_patch = decoding.decode_linear(Means(found, k, asked.rows)[:], asked)
                _record_drop(look, asked, subject.name, k, decoded[subject.name][k], one_patch)
                advance(1)


def _record_drop(
    look: Look,
    asked: Asked,
    name: str,
    layer: int,
    whole: decoding.Decoded | None,
    one_patch: Predictions | None,
) -> None:
    """The score on one patch, and OccDrop with its paired interval."""
    assert asked.task is not None
    score = None
    if one_patch is not None:
        score = estimates(one_patch, asked.task.group, look.seed, ("top1",))["top1"]
    look.records.add(name, layer, "linear_occluded", score, undefined=decoding.CONSTANT)
    if whole is None or one_patch is None:
        look.records.add(name, layer, "occdrop", None, undefined=decoding.CONSTANT)
        return
    before, after = (
        resample(answers, asked.task.group, ["top1"], look.seed)["top1"]
        for answers in (whole.answers, one_patch)
    )
    if np.quantile(before.resamples, 0.025) <= asked.chance:
        look.records.add(name, layer, "occdrop", None, undefined=UNSEEN)
        return
    some = before.resamples > 0  # a rare draw of groups in which nothing is right has nothing to lose
    lost = (before.resamples[some] - after.resamples[some]) / before.resamples[some]
    low, high = np.quantile(lost, (0.025, 0.975))
    drop = occdrop(before.value, after.value)
    look.records.add(name, layer, "occdrop", Interval(drop, float(low), float(high)))


def gratings(look: Look) -> dict[str, dict[str, float]]:
    """Both worlds of gratings, whole and with one patch left; returns each world's majority shares by target."""
    if not look.amounts.has("gratings"):
        return {}
    levels: dict[str, dict[str, float]] = {}
    whole_world = len(worlds.WORLDS["grating"]), len(worlds.WORLDS["double"])
    if look.amounts.grating_clips is not None:
        taken = [min(look.amounts.grating_clips, count) for count in whole_world]
        look.notes.append(
            f"gratings: {taken[0]:,} of {whole_world[0]:,} single and {taken[1]:,} of {whole_world[1]:,} double ones"
        )
    if look.amounts.integer_labels:
        look.notes.append(
            "the gratings' labels were cut to integers, as the paper's released code does: contrast has two values, "
            "80 % of the clips in one"
        )
    for subject in look.subjects:
        for world in worlds.WORLDS:
            found = worlds.probe_world(look, subject, world)
            levels[world] = found.majority
            for k, scores in found.whole.items():
                why = next(iter(scores.undefined.values()), None)
                look.records.add(subject.name, k, world, scores.mean, undefined=why)
                for target, accuracy in scores.accuracy.items():
                    look.records.add(
                        subject.name, k, world, accuracy, target, undefined=scores.undefined.get(target)
                    )
                if found.occluded:
                    seen = scores.mean > scores.majority_mean
                    drop = occdrop(scores.mean, found.occluded[k].mean) if seen else math.nan
                    look.records.add(subject.name, k, f"occdrop_{world}", drop, undefined=why or UNSEEN)
    return levels


def saturated(look: Look, asked: Asked) -> list[dict[str, Any]]:
    """Which blocks change nothing measurable, and what keeping fewer layers costs and saves.

    Judged on tokens that passed the final norm at every layer, as an encoder that is cut there hands them out; else the
    last block alone would seem to turn the features by what the norm does.
    """
    if asked.task is None or not look.amounts.has("saturation"):
        return []
    told = []
    with look.part("what fewer layers cost", sum(len(s.layers) for s in look.subjects)) as advance:
        for subject in look.subjects:
            decoded: dict[int, decoding.Decoded | None] = {}
            for k in subject.layers:
                decoded[k] = decoding.decode(look.means(subject, k, asked, normed=True)[:], asked, look.seed)
                advance(1)
            judged = saturation(
                [
                    Transition(
                        start,
                        stop,
                        linear_cka(*(look.means(subject, k, asked, normed=True) for k in (start, stop))),
                        _gain(decoded[stop], decoded[start], look, asked),
                    )
                    for start, stop in pairwise(subject.layers)
                ],
                {k: _gain(found, decoded.get(subject.depth), look, asked) for k, found in decoded.items()},
                subject.depth,
            )
            rows = []
            if subject.depth not in subject.layers:
                look.notes.append(
                    f"{subject.name}: the last layer was not looked at, so what fewer layers cost cannot be said"
                )
            elif isinstance(subject.encoder.model, ViT):
                rows = cuts(
                    subject.encoder.model,
                    subject.encoder.geometry,
                    decoded,
                    asked,
                    look.seed,
                    look.manner.device,
                )
            told.append(
                {
                    "encoder": subject.name,
                    "spec": subject.spec,
                    "blocks": list(judged.blocks),
                    "keep": judged.keep,
                    "sentence": judged.sentence,
                    "cuts": rows,
                }
            )
    return told


def _gain(
    one: decoding.Decoded | None, other: decoding.Decoded | None, look: Look, asked: Asked
) -> Gain | None:
    found = decoding.gain(one, other, asked, look.seed)
    return None if found is None else Gain(*found)


def followed(
    look: Look, asked: Asked, saved: Mapping[str, Mapping[int, Path]]
) -> list[dict[str, Any]] | None:
    """Runs through training, see `inside.through`; None if that was not asked for."""
    if not saved:
        return None
    told = []
    for subject in look.subjects:
        if subject.name in saved:
            with look.no_bar("through training"):
                final = look.features[subject.name][False]
                told.append(
                    through(
                        subject,
                        saved[subject.name],
                        look.footage,
                        asked,
                        final,
                        look.manner,
                        look.kept,
                        look.seed,
                    )
                )
    return told
