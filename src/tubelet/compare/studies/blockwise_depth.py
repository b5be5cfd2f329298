"""BWSSL: what blockwise learning does to each depth."""

from __future__ import annotations

from collections.abc import Sequence

from tubelet.compare.plan import RETRIEVAL, Arm, Eval
from tubelet.compare.studies.study import Ask, Extra, Found, Study
from tubelet.nn.vit import parse_size
from tubelet.report.comparison import Claim, PaperTable

E2E, SIM, SEQ, MORE = "end to end", "simultaneous", "sequential", "simultaneous, more blocks"


def cuts(depth: int) -> list[int]:
    """Numbers of blocks that divide the depth: four (or the nearest), and the next more, as the paper's 4 and 6."""
    divisors = [k for k in range(2, depth + 1) if depth % k == 0]
    four = min(divisors, key=lambda k: abs(k - 4)) if divisors else 1
    return [four, *[k for k in divisors if k > four][:1]]


def arms(ask: Ask) -> list[Arm]:
    """End to end, all blocks at once, one after the other, and more blocks, for the same FLOPs."""
    first, *more = cuts(parse_size(ask.model).depth)
    blocks = {"blocks": str(first)}
    return [
        ask.arm(E2E, "blockwise", knobs={**blocks, "regime": "end_to_end"}),
        ask.arm(SIM, "blockwise", knobs=blocks),
        ask.arm(SEQ, "blockwise", knobs={**blocks, "regime": "sequential"}),
        *(ask.arm(MORE, "blockwise", knobs={"blocks": str(count)}) for count in more),
    ]


def evals(ask: Ask) -> list[Eval]:
    """Linear probe and retrieval at every boundary of blocks."""
    depth = parse_size(ask.model).depth
    first = cuts(depth)[0]
    layers = [depth * number // first for number in range(1, first)]
    found = []
    for task in ask.tasks:
        for probe in ("linear", RETRIEVAL):
            found += [Eval(f"{task.name}-{probe}-layer{k}", task.name, probe, None, k) for k in layers]
            found.append(Eval(f"{task.name}-{probe}", task.name, probe))
    return found


def conclude(found: Found) -> tuple[Claim, Sequence[Extra]]:
    """Held if no blockwise regime is worse than end to end beyond the noise at the last layer."""
    pairs = {name: found.compare(name, E2E) for name in (SIM, SEQ)}
    worse = [found.worse(name, E2E) for name in pairs]
    claim = Claim(
        STUDY.question,
        "Blockwise learning ends close to end to end (UCF101, Tiny: 32.8 simultaneous, 33.1 sequential, 33.4 end to "
        "end), "
        "is ahead at the first block and saturates in the last ones.",
        "; ".join(words for _, words in pairs.values()),
        "not held" if True in worse else "undecided" if None in worse else "held",
        "Held where neither regime is worse than end to end beyond the noise on any task; how "
        "wide the noise is, is in the intervals: a wide one holds easily.",
    )

    return claim, ()


STUDY = Study(
    name="blockwise-depth",
    title="Blockwise learning along the depth",
    question="What does it cost to learn without a gradient between blocks?",
    paper=PaperTable(
        ["UCF101 linear probe after blocks 1, 2, 3, 4", "Small", "Tiny"],
        [
            ["end to end", "34.3 40.0 43.0 43.2", "26.5 31.7 33.4 32.8"],
            ["simultaneous", "38.7 40.5 40.8 40.4", "30.6 32.7 33.4 32.9"],
            ["sequential", "38.4 40.8 40.8 40.2", "30.5 32.5 33.7 33.2"],
        ],
        "BWSSL (arXiv 2601.09040), read from its figures' notebook",
    ),
    arms=arms,
    evals=evals,
    conclude=conclude,
    not_equal=(
        "The paper gives sequential learning as many steps per block as the others have in all; here FLOPs are equal.",
    ),
)
