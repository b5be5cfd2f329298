"""Which blocks change nothing measurable, so that a user can cut them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from tubelet.evaluate.noise import Interval


@dataclass(frozen=True)
class Transition:
    """From one layer that was looked at to the next.

    cka: linear CKA of the two. gain_linear, gain_map: of the linear probe's top-1 and of retrieval's mAP, with paired
    intervals; None where they are undefined.
    """

    start: int
    stop: int
    cka: float
    gain_linear: Interval | None
    gain_map: Interval | None

    @property
    def blocks(self) -> str:
        """Which blocks lie between."""
        return str(self.stop) if self.stop == self.start + 1 else f"{self.start + 1}-{self.stop}"

    @property
    def within_noise(self) -> bool:
        """Whether neither gain can be told from zero; False where one is undefined."""
        gains = (self.gain_linear, self.gain_map)
        return all(gain is not None and not gain.clear for gain in gains)


@dataclass(frozen=True)
class Saturation:
    """blocks: those that change nothing measurable, by their number (several between two layers: all of them).

    keep: how many layers can be kept without what lies above; None if the last block changes something. sentence: that
    in words.
    """

    blocks: tuple[int, ...]
    keep: int | None
    sentence: str


def saturation(transitions: Sequence[Transition]) -> Saturation:
    """Judges the transitions of one encoder, in order of depth.

    A block changes nothing measurable if its gains, in linear probe and in retrieval, are within the noise (zero lies
    in both paired 95 % intervals) and its CKA is above the neighbours': those of the nearest transitions on either
    side whose gain is not within the noise (of the one there is, at either end). Blocks next to each other that all are
    within the noise are judged by the same neighbours. After BWSSL's late saturation (arXiv 2601.09040: a gain near
    zero and a high CKA); what exactly a neighbour is, is ours. Where no transition has a gain beyond the noise there is
    nothing to compare with, and nothing is concluded.
    """
    if not transitions:
        return Saturation((), None, "There is one layer only, so there are no blocks to judge.")
    judged = [t for t in transitions if t.gain_linear is not None and t.gain_map is not None]
    if not judged:
        return Saturation((), None, "Gains are undefined here, so nothing can be said of single blocks.")
    if all(t.within_noise for t in judged):
        return Saturation(
            (),
            None,
            f"No block changes anything measurable on these clips: every gain is within the noise, which is up to "
            f"±{100 * _widest(judged):.1f} points of top-1. That is as likely the set's size as the encoder; no block "
            "should be cut on this evidence.",
        )
    flat = _flat(transitions)
    blocks = tuple(block for t in flat for block in range(t.start + 1, t.stop + 1))
    keep = None
    for t in reversed(transitions):
        if t not in flat:
            break
        keep = t.start
    return Saturation(blocks, keep, _sentence(flat, keep, transitions[-1].stop, _widest(judged)))


def _flat(transitions: Sequence[Transition]) -> list[Transition]:
    """Those within the noise whose CKA is above the neighbours'."""
    found: list[Transition] = []
    place = 0
    for within, run in groupby(transitions, key=lambda t: t.within_noise):
        members = list(run)
        if within:
            beside = [
                transitions[i].cka for i in (place - 1, place + len(members)) if 0 <= i < len(transitions)
            ]
            limit = max((cka for cka in beside if math.isfinite(cka)), default=math.inf)
            found += [t for t in members if t.cka > limit]
        place += len(members)
    return found


def _widest(transitions: Sequence[Transition]) -> float:
    """Half the width of the widest interval of a linear gain: what could hide in the noise."""
    return max((t.gain_linear.high - t.gain_linear.low) / 2 for t in transitions if t.gain_linear is not None)


def _sentence(flat: Sequence[Transition], keep: int | None, depth: int, noise: float) -> str:
    hidden = f"gains below ±{100 * noise:.1f} points of top-1 cannot be seen on these clips"
    if not flat:
        return f"Every block whose gain is within the noise turns the features as much as its neighbours do: {hidden}."
    names = ", ".join(t.blocks for t in flat)
    several = len(flat) > 1 or "-" in names
    first = (
        f"Block{'s' if several else ''} {names} change{'' if several else 's'} nothing measurable: the gain is within "
        f"the noise and the features stay more alike than at the neighbours ({hidden})."
    )
    if keep is None:
        return f"{first} The last block is not among them, so there is nothing to cut from the top."
    return f"{first} The first {keep} of {depth} layers can be kept alone."
