"""V-JEPA's first ablation: pixels or latents, everything else the same."""

from __future__ import annotations

from collections.abc import Sequence

from tubelet.compare.plan import Arm
from tubelet.compare.studies.study import Ask, Extra, Found, Study, standard
from tubelet.report.comparison import Claim, PaperTable


def arms(ask: Ask) -> list[Arm]:
    """The same masks with pixels and with latents as targets, at equal FLOPs and at equal steps; and tubes."""
    steps = ask.steps("vjepa")
    return [
        ask.arm("latents", "vjepa"),
        ask.arm("pixels", "salt-teacher", note="the same two multi-block masks, normalised pixels"),
        ask.arm("pixels, as many steps", "salt-teacher", steps=steps, note="cheaper: no teacher's pass"),
        ask.arm("pixels, tubes", "videomae", note="VideoMAE"),
    ]


def conclude(found: Found) -> tuple[Claim, Sequence[Extra]]:
    """Held if latents beat pixels at equal FLOPs on every task."""
    verdict, words = found.compare("latents", "pixels")
    _, steps = found.compare("latents", "pixels, as many steps")
    claim = Claim(
        STUDY.question,
        "Latents are better than pixels: K400 73.7 against 68.6, SSv2 66.2 against 66.0 (as many steps each).",
        f"{words}. At as many steps: {steps}",
        verdict,
        "Held where latents are better beyond the noise at equal FLOPs, on every task.",
    )
    return claim, ()


STUDY = Study(
    name="pixels-vs-latents",
    title="Pixels or latents as targets",
    question="Is it better to predict latents than pixels, if all else is the same?",
    paper=PaperTable(
        ["target (ViT-L)", "K400 frozen", "SSv2 frozen", "IN1K frozen", "K400 fine-tuned"],
        [["pixels", "68.6", "66.0", "73.3", "85.4"], ["latents", "73.7", "66.2", "74.8", "85.6"]],
        "V-JEPA (arXiv 2404.08471), Table 1",
    ),
    arms=arms,
    evals=standard,
    conclude=conclude,
    not_equal=(
        "Pixels are predicted by SALT's stage 1, which has V-JEPA's masks but the rates of SALT's paper.",
    ),
)
