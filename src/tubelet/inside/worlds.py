"""What each layer knows of worlds whose every property is known: drifting gratings, whole and through one patch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tubelet.analysis.occlusion import Occluded
from tubelet.data.gratings import DoubleGratings, Gratings, SingleGratings
from tubelet.evaluate.source import Source
from tubelet.evaluate.targets import GratingSource, TargetScores, probe_targets
from tubelet.inside.footage import Means, digest
from tubelet.inside.look import Look
from tubelet.inside.subject import Subject

WORLDS: dict[str, Gratings] = {"grating": SingleGratings(), "double": DoubleGratings()}


@dataclass(frozen=True)
class WorldScores:
    """Layer -> scores of every target, on whole clips and, if that was measured, through one patch.

    majority: target -> the share of its commonest value.
    """

    whole: dict[int, TargetScores]
    occluded: dict[int, TargetScores]
    majority: dict[str, float]


def probe_world(look: Look, subject: Subject, name: str) -> WorldScores:
    """Probes every target of a world at every layer of an encoder; what was probed before is not probed again.

    OccDrop's clips keep one patch, of the double gratings one in each half.
    """
    world = WORLDS[name]
    count = look.amounts.grating_clips
    rows = None if count is None or count >= len(world) else world.subset(count, look.seed).tolist()
    source = GratingSource(world, subject.encoder.geometry, rows)
    whole = _probe(look, subject, source, source, f"{name} clips")
    occluded = {}
    if look.amounts.has("occdrop"):
        hidden = Occluded(source, subject.encoder.model.patch, look.seed, halves=name == "double")
        occluded = _probe(look, subject, hidden, source, f"one-patch {name} clips")
    return WorldScores(whole, occluded, next(iter(whole.values())).majority)


def _probe(
    look: Look, subject: Subject, source: Source, world: GratingSource, what: str
) -> dict[int, TargetScores]:
    quirk, layers = look.amounts.integer_labels, subject.layers
    about = {"encoder": subject.encoder.digest, "clips": digest(source.identity()), "quirk": quirk}
    labels = world.labels(quirk)

    def make(layer: int) -> Any:
        with look.no_bar(what):
            found = look.manner.before_norm(subject.encoder, source, layers, f"features of {what}")
        return asdict(probe_targets(Means(found, layer, found.rows)[:], labels, workers=look.manner.workers))

    scores = {}
    with look.part(f"probes of {what}, {subject.name}", len(layers)) as advance:
        for layer in layers:
            scores[layer] = TargetScores(
                **look.kept.get("gratings", about | {"layer": layer}, lambda k=layer: make(k))
            )
            advance(1)
    return scores
