"""V-JEPA's masking ablation: multi-block, causal, tubes."""

from __future__ import annotations

from collections.abc import Sequence

from tubelet.compare.plan import Arm
from tubelet.compare.studies.study import Ask, Extra, Found, Study, all_of, standard
from tubelet.report.comparison import Claim, PaperTable

BEST = "multi-block"


def arms(ask: Ask) -> list[Arm]:
    """V-JEPA under four ways of hiding, each for the same FLOPs."""
    ways = {
        BEST: {"mask": "multiblock"},
        "causal, 3/4 of the frames": {"mask": "multiblock", "context_frames": 0.75},
        "causal, 3/8 of the frames": {"mask": "multiblock", "context_frames": 0.375},
        "tubes": {"mask": "tube", "mask_ratio": 0.9},
    }
    return [ask.arm(name, "vjepa", knobs=knobs) for name, knobs in ways.items()]


def conclude(found: Found) -> tuple[Claim, Sequence[Extra]]:
    """Held if multi-block beats both a short causal context and tubes."""
    pairs = [found.compare(BEST, other) for other in ("causal, 3/8 of the frames", "tubes")]
    claim = Claim(
        STUDY.question,
        "Multi-block masks are better than causal ones, and those than tubes: SSv2 67.4, 63.6 (12 frames of context), "
        "49.8 (6), 46.4.",
        "; ".join(words for _, words in pairs),
        all_of([verdict for verdict, _ in pairs]),
        "Held where multi-block is better beyond the noise than the short causal context and than tubes, on "
        "every task.",
    )
    return claim, ()


STUDY = Study(
    name="vjepa-masks",
    title="V-JEPA under other masks",
    question="Does it matter for V-JEPA how the hidden part is cut?",
    paper=PaperTable(
        ["masks (ViT-L, K710 + SSv2, frozen)", "K400", "SSv2", "IN1K"],
        [
            ["multi-block", "72.9", "67.4", "72.8"],
            ["causal multi-block, 12 of 16 frames of context", "71.9", "63.6", "72.2"],
            ["causal multi-block, 6 of 16", "61.3", "49.8", "66.9"],
            ["tubes .9", "51.5", "46.4", "55.6"],
        ],
        "V-JEPA (arXiv 2404.08471)",
    ),
    arms=arms,
    evals=standard,
    conclude=conclude,
    not_equal=("The paper trains for equal steps; here FLOPs are equal, so cheaper masks get more steps.",),
)
