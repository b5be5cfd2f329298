"""LayerLock's Table 3: a latent loss beside the pixel loss, with and without freezing."""

from __future__ import annotations

from collections.abc import Sequence

from tubelet.compare.plan import Arm
from tubelet.compare.studies.study import Ask, Extra, Found, Study, standard
from tubelet.report.comparison import Claim, PaperTable

FREE, LOCKED, PIXELS = "no freezing", "freezing", "pixels alone"
JUDGED = ("healthy", "partial collapse", "collapse")


def arms(ask: Ask) -> list[Arm]:
    """The pixel loss with a latent one beside it, for the same FLOPs."""
    recipe = "layerlock-collapse"
    return [
        ask.arm(FREE, recipe),
        ask.arm(f"{FREE}, cosine weight", recipe, knobs={"latent_rise": "cosine"}),
        ask.arm(
            f"{FREE}, stop-gradient",
            recipe,
            knobs={"stop_gradient": True},
            note="ours: the paper does not say",
        ),
        ask.arm(LOCKED, recipe, knobs={"freeze": True}),
        ask.arm(PIXELS, recipe, knobs={"latent_weight": 0.0}),
    ]


def conclude(found: Found) -> tuple[Claim, Sequence[Extra]]:
    """Held if, by the health verdict, all runs without freezing collapse and none with it."""
    states = {
        arm.name: [run.verdict or "not known" for run in found.comparison.of(arm)]
        for arm in found.comparison.trained
    }
    told = "; ".join(f"{name}: {', '.join(verdicts)}" for name, verdicts in states.items())
    known = all(verdict in JUDGED for name in (FREE, LOCKED) for verdict in states[name])
    free = ["collapse" in verdict for verdict in states[FREE]]
    locked = ["collapse" in verdict for verdict in states[LOCKED]]
    _, words = found.compare(LOCKED, FREE)
    held = all(free) and not any(locked)
    claim = Claim(
        STUDY.question,
        "Without freezing the latent loss collapses the encoder: SSv2 50.1 with pixels alone, 3.7 with it (5.6 at a "
        "cosine weight).",
        f"{told}. {words}",
        "undecided"
        if not known
        else "held"
        if held
        else "not held"
        if any(locked) or not any(free)
        else "undecided",
        "Held where the health verdict is collapse, whole or partial, for every run without freezing "
        "and for none with it.",
    )
    return claim, ()


STUDY = Study(
    name="layerlock-collapse",
    title="What freezing is for",
    question="Does a latent loss without freezing collapse the encoder?",
    paper=PaperTable(
        ["4DS-H", "SSv2", "ScanNet AbsRel"],
        [
            ["pixels alone", "50.1", "0.19"],
            ["latent loss too, no freezing, constant weight", "3.7", "0.38"],
            ["latent loss too, no freezing, cosine weight", "5.6", "0.37"],
        ],
        "LayerLock (arXiv 2509.10156), Table 3",
    ),
    arms=arms,
    evals=standard,
    conclude=conclude,
)
