"""SALT: a finished, frozen teacher is enough. Two stages are two runs and a path."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tubelet.errors import UserError
from tubelet.export.weights import load_encoder
from tubelet.methods.salt import SALT
from tubelet.nn.vit import ViT
from tubelet.recipes.fit import Paper
from tubelet.recipes.knobs import Knobs
from tubelet.recipes.run import Finished, choose_mask, pretrain
from tubelet.recipes.sizes import predictor_for
from tubelet.recipes.videomae import salt_teacher

SALT_STUDENT = Paper(
    source="SALT (arXiv 2509.24317), stage 2, ViT-L: Table 5",
    model="vit_large",
    steps=160_000,
    batch_size=3072,
    lr=(2e-4, 6.25e-4, 1e-6),
    warmup=10_000,
    weight_decay=(0.04, 0.4),
    betas=(0.9, 0.95),
    clip=0.02,
    clip_per="module",
)


def salt(
    knobs: Knobs,
    *,
    teacher: str | None = None,
    teacher_model: str | None = None,
    teacher_share: float = 1 / 3,
    normalise: bool = True,
    predictor_dim: int | None = None,
    predictor_depth: int | None = None,
) -> Finished:
    """SALT: a new student predicts the latents of a frozen teacher, under two multi-block masks.

    tubelet pretrain salt --data clips/ --out runs/salt
    tubelet pretrain salt --data clips/ --out runs/salt --teacher runs/teacher

    Without ``teacher``, stage 1 (`salt-teacher`) runs first, into OUT/teacher, and ``steps`` counts both
    stages: teacher_share of them for the teacher (the paper's main runs: 80k of 240k; 1/6 does as well).
    teacher: any encoder, of any width, with the student's patch. teacher_model: size of the stage-1 teacher
    if it is not to be the student's (the paper: a ViT-L for students up to ViT-G).

    Paper (--schedule paper): ViT-L, 160,000 steps after 80,000 of stage 1, 3072 clips 16x4x224, AdamW (.9, .95),
    lr 6.25e-4, weight decay .04 to .4, gradients clipped at .02; 1.2e21 FLOPs with stage 1, 8,263 A100 hours.
    K400 85.4, SSv2 74.9. Left open by the paper, and ours: normalise (targets pass a LayerNorm without
    parameters), one mask token per mask, clipping per module, flips, a randomly initialised student.
    """
    if not 0 < teacher_share < 1:
        raise UserError(f"teacher_share={teacher_share}: must lie between 0 and 1")
    if teacher is not None and teacher_model is not None:
        raise UserError("teacher and teacher_model were both given; the given teacher has a size already")
    source = teacher or str(_first_stage(knobs, teacher_model, teacher_share))
    loaded = load_encoder(source)
    if not isinstance(loaded.model, ViT):
        raise UserError(f"teacher={source} has no latents to predict; name a run or an encoder folder")
    frozen = loaded.model

    def build(encoder: ViT, momentum: object) -> SALT:
        predictor = predictor_for(encoder, knobs, frozen.dim, 2, 24, predictor_dim, predictor_depth)
        mask = choose_mask(knobs, "multiblock", 0.9, 2)
        try:
            return SALT(encoder, predictor, frozen, mask, normalise)
        except ValueError as error:
            raise UserError(f"teacher={source}: {error}") from error

    own: dict[str, Any] = {
        "teacher": teacher,
        "teacher_digest": loaded.digest,
        "teacher_model": teacher_model,
        "teacher_share": teacher_share,
        "normalise": normalise,
        "predictor_dim": predictor_dim,
        "predictor_depth": predictor_depth,
    }
    # A run killed between the stages has nothing of the second to resume.
    begun = any((Path(knobs.out) / "checkpoints").glob("step-*"))
    second = knobs if teacher else replace(knobs, resume=knobs.resume and begun)
    share = 1.0 if teacher else 1 - teacher_share
    return pretrain("salt", SALT_STUDENT, second, build, own, share=share, loss_is_signal=True)


def _first_stage(knobs: Knobs, model: str | None, share: float) -> Path:
    """The finished teacher's run folder, trained now unless a resumed run already has it."""
    folder = Path(knobs.out) / "teacher"
    begun, done = any((folder / "checkpoints").glob("step-*")), (folder / "run.json").is_file()
    if done and knobs.resume:
        return folder
    if knobs.resume and not folder.exists():
        raise UserError(f"{knobs.out} holds no run to resume; start without --resume")
    first = replace(knobs, out=str(folder), model=model or knobs.model, resume=knobs.resume and begun)
    return salt_teacher(first, share=share).folder
