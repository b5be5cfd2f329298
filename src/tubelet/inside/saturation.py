"""Which blocks change nothing measurable, so that a user can cut them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from scipy.special import ndtri  # scikit-learn, which we depend on, depends on scipy

from tubelet.evaluate.noise import Interval


@dataclass(frozen=True)
class Gain:
    """What one layer has on another: top-1 of the linear probe and mAP of retrieval, with paired 95 % intervals."""

    linear: Interval
    map: Interval

    @property
    def clear(self) -> bool:
        """Whether either can be told from zero."""
        return self.linear.clear or self.map.clear


@dataclass(frozen=True)
class Transition:
    """From one layer that was looked at to the next. cka: linear CKA of the two. gain: None where it is undefined."""

    start: int
    stop: int
    cka: float
    gain: Gain | None

    @property
    def blocks(self) -> str:
        """Which blocks lie between."""
        return str(self.stop) if self.stop == self.start + 1 else f"{self.start + 1}-{self.stop}"

    @property
    def within_noise(self) -> bool:
        """Whether nothing is gained or lost that can be told from zero; False where that is undefined."""
        return self.gain is not None and not self.gain.clear


@dataclass(frozen=True)
class Saturation:
    """blocks: those that change nothing measurable, by their number (several between two layers: all of them).

    keep: how many layers can be kept alone; None if nothing can be cut. sentence: that in words.
    """

    blocks: tuple[int, ...]
    keep: int | None
    sentence: str


def saturation(
    transitions: Sequence[Transition], below_whole: Mapping[int, Gain | None], depth: int
) -> Saturation:
    """Judges the transitions of one encoder of ``depth`` blocks, in order of depth.

    below_whole: layers -> what the first so many layers have on the whole encoder. A block changes nothing measurable
    if its gains, in linear probe and in retrieval, are within the noise (zero lies in both paired 95 % intervals) and
    its CKA is above the neighbours': those of the nearest transitions on either side whose gain is not within the noise
    (of the one there is, at either end). Blocks next to each other that all are within the noise are judged by the same
    neighbours. After BWSSL's late saturation (arXiv 2601.09040: a gain near zero and a high CKA); what exactly a
    neighbour is, is ours.

    Small losses add up, so ``keep`` layers are suggested only if nothing that lies above them changes anything
    measurable *and* they cannot be told from the whole encoder. Nothing is concluded where no gain is beyond the noise
    even if as many intervals as there are transitions are to hold at once (Bonferroni): among many true zeros, one in
    twenty looks clear by chance.
    """
    if not transitions:
        return Saturation((), None, "There is one layer only, so there are no blocks to judge.")
    judged = [t for t in transitions if t.gain is not None]
    if not judged:
        return Saturation((), None, "Gains are undefined here, so nothing can be said of single blocks.")
    hidden = f"±{100 * _widest(judged):.1f} points of top-1"
    if not any(_beyond(t.gain, len(judged)) for t in judged):
        return Saturation(
            (),
            None,
            "No block changes anything measurable on these clips: every gain is within the noise, which is up to "
            f"{hidden}. That is as likely the set's size as the encoder; no block should be cut on this evidence.",
        )
    flat = _flat(transitions)
    blocks = tuple(block for t in flat for block in range(t.start + 1, t.stop + 1))
    keep = _keep(transitions, flat, below_whole, depth)
    return Saturation(blocks, keep, _sentence(transitions, flat, keep, below_whole, depth, hidden))


def _beyond(gain: Gain | None, tests: int) -> bool:
    """Whether a gain is clear if ``tests`` times as few false alarms are allowed, two measures counted as two."""
    if gain is None:
        return False
    wider = float(ndtri(1 - 0.025 / (2 * tests)) / ndtri(0.975))
    return any(
        one.value + wider * (one.low - one.value) > 0 or one.value + wider * (one.high - one.value) < 0
        for one in (gain.linear, gain.map)
    )


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


def _keep(
    transitions: Sequence[Transition],
    flat: Sequence[Transition],
    below_whole: Mapping[int, Gain | None],
    depth: int,
) -> int | None:
    """The fewest layers above which all is flat and which are as good as the whole; None if there are none."""
    keep = None
    if transitions[-1].stop != depth:
        return None
    for t in reversed(transitions):
        if t not in flat:
            break
        gain = below_whole.get(t.start)
        if t.start and gain is not None and not gain.clear:
            keep = t.start
    return keep


def _widest(transitions: Sequence[Transition]) -> float:
    """Half the width of the widest interval of a linear gain: what could hide in the noise."""
    return max((t.gain.linear.high - t.gain.linear.low) / 2 for t in transitions if t.gain is not None)


def _sentence(
    transitions: Sequence[Transition],
    flat: Sequence[Transition],
    keep: int | None,
    below_whole: Mapping[int, Gain | None],
    depth: int,
    hidden: str,
) -> str:
    if not any(t.within_noise for t in transitions):
        return "Every block changes something beyond the noise."
    if not flat:
        return (
            "Every block whose gain is within the noise turns the features as much as its neighbours do (gains below "
            f"{hidden} cannot be seen on these clips)."
        )
    names = ", ".join(t.blocks for t in flat)
    several = len(flat) > 1 or "-" in names
    first = (
        f"Block{'s' if several else ''} {names} change{'' if several else 's'} nothing measurable: the gain is within "
        f"the noise and the features stay more alike than at the neighbours (gains below {hidden} cannot be seen on "
        "these clips)."
    )
    if transitions[-1].stop != depth:
        return f"{first} The last layer was not looked at, so nothing is said of cutting from the top."
    if transitions[-1] not in flat:
        return f"{first} The last block is not among them, so there is nothing to cut from the top."
    if keep is None:
        return (
            f"{first} But what is lost adds up: without them the encoder is measurably another, so none should be "
            "cut."
        )
    gain = below_whole[keep]
    assert gain is not None
    apart = gain.linear
    return (
        f"{first} The first {keep} of {depth} blocks can be kept alone: {100 * apart.value:+.1f} points of top-1 "
        f"[{100 * apart.low:+.1f}, {100 * apart.high:+.1f}] against the whole encoder."
    )
