"""SALT: a finished, frozen teacher is enough. Two stages are two runs and a path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tubelet.errors import UserError, mendable
from tubelet.export.weights import load_encoder
from tubelet.methods.salt import SALT
from tubelet.nn.vit import ViT
from tubelet.recipes.knobs import Knobs
from tubelet.recipes.run import (
    Finished,
    choose_mask,
    new_encoder,
    pretrain,
    read_videos,
    refuse_other_knobs,
    saved_config,
    write_config,
)
from tubelet.recipes.sizes import predictor_for
from tubelet.recipes.videomae import SALT_TEACHER, first_stage
from tubelet.train.checkpoint import found
from tubelet.train.folder import refuse_entry
from tubelet.train.parallel import join
from tubelet.types import Grid

SALT_STUDENT = replace(SALT_TEACHER, source="SALT (arXiv 2509.24317), stage 2, ViT-L: Table 5", steps=160_000)


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
    if it is not to be the student's (the paper: a ViT-L for students up to ViT-G). predictor_dim, predictor_depth:
    of stage 1's decoder too, which has the predictor's form.

    Paper (--schedule paper): ViT-L, 160,000 steps after 80,000 of stage 1, 3072 clips 16x4x224, AdamW (.9, .95),
    lr 6.25e-4, weight decay .04 to .4, gradients clipped at .02; 1.2e21 FLOPs with stage 1, 8,263 A100 hours.
    K400 85.4, SSv2 74.9. Left open by the paper, and ours: normalise (targets pass a LayerNorm without
    parameters), one mask token per mask, clipping per module, flips, a randomly initialised student.
    """
    if not 0 < teacher_share < 1:
        raise UserError(f"teacher_share={teacher_share}: must lie between 0 and 1")
    if teacher is not None and teacher_model is not None:
        raise UserError("teacher and teacher_model were both given; the given teacher has a size already")
    if teacher is None and (knobs.branch_from or knobs.freeze_layers):
        raise UserError(
            "branch_from and freeze_layers are about one stage, and here are two; add --teacher RUN"
        )
    own: dict[str, Any] = {
        "teacher": teacher,
        "teacher_model": teacher_model,
        "teacher_share": teacher_share,
        "normalise": normalise,
        "predictor_dim": predictor_dim,
        "predictor_depth": predictor_depth,
    }
    with join(knobs.device):
        if teacher is not None:
            return _second_stage(knobs, own, teacher, load_teacher(teacher))
        if knobs.dry_run:
            first = first_stage(
                replace(knobs, model=teacher_model or knobs.model),
                predictor_dim,
                predictor_depth,
                share=teacher_share,
            )
            frozen = first.method.encoder.requires_grad_(False)
            second = _second_stage(knobs, own, "stage 1", Teacher(frozen, "not trained"))
            return replace(second, planned=first.planned + second.planned)
        trained = str(_first_stage(knobs, own))
        return _second_stage(knobs, own, trained, load_teacher(trained))


@dataclass(frozen=True)
class Teacher:
    """A finished encoder whose latents are predicted."""

    model: ViT
    digest: str
    provenance: Mapping[str, Any] = field(default_factory=dict)


def load_teacher(spec: str) -> Teacher:
    """The encoder that a recipe's ``teacher`` names; raises UserError if it has no latents to predict."""
    loaded = load_encoder(spec)
    if not isinstance(loaded.model, ViT):
        raise UserError(f"teacher={spec} has no latents to predict; name a run or an encoder folder")
    return Teacher(loaded.model, loaded.digest, loaded.provenance)


def _second_stage(knobs: Knobs, own: dict[str, Any], source: str, teacher: Teacher) -> Finished:
    """The student of ``teacher``, which ``source`` names."""

    def build(encoder: ViT, plan: object) -> SALT:
        predictor = predictor_for(
            encoder, knobs, teacher.model.dim, 2, 24, own["predictor_dim"], own["predictor_depth"]
        )
        mask = choose_mask(knobs, "multiblock", 0.9, 2)
        try:
            return SALT(encoder, predictor, teacher.model, mask, own["normalise"])
        except ValueError as error:
            raise UserError(f"teacher={source}: {error}") from error

    # A run killed between the stages has nothing of the second to resume.
    alone = own["teacher"] is not None
    second = knobs if alone else replace(knobs, resume=knobs.resume and _begun(Path(knobs.out)))
    return pretrain(
        "salt",
        SALT_STUDENT,
        second,
        build,
        {**own, "teacher_digest": teacher.digest},
        share=1.0 if alone else 1 - own["teacher_share"],
        loss_is_signal=True,
        taught_by=teacher.provenance,
    )


def _first_stage(knobs: Knobs, own: dict[str, Any]) -> Path:
    """The finished teacher's run folder, trained now unless a resumed run already has it.

    config.yaml of the whole run is written as it starts: a session that resumes it anywhere reads its knobs there.
    Raises UserError if OUT holds another run, or this one with other knobs or data.
    """
    out, given = Path(knobs.out), {**asdict(knobs), **own}
    folder = out / "teacher"
    if not knobs.resume:
        refuse_entry(out, resume=False)
        _refuse_student(knobs, own)
    else:
        earlier = saved_config(out, "salt")
        if earlier is None:
            raise UserError(f"{out} holds no run to resume; start without --resume")
        known = {
            name: earlier["knobs"].get(name) for name in given
        }  # the second stage adds its teacher's digest
        refuse_other_knobs(out, {"knobs": known}, given)
        if (folder / "run.json").is_file():
            return folder
    _, data_digest = read_videos(knobs)
    model = own["teacher_model"] or knobs.model
    first = replace(knobs, out=str(folder), model=model, resume=knobs.resume and _begun(folder))
    start = partial(write_config, out, "salt", given, None, data_digest)
    return first_stage(
        first,
        own["predictor_dim"],
        own["predictor_depth"],
        share=own["teacher_share"],
        on_start=None if knobs.resume else start,
    ).folder


def _refuse_student(knobs: Knobs, own: dict[str, Any]) -> None:
    """Raises UserError for a student that cannot be built, before its teacher is trained."""
    with mendable(), torch.device("meta"):
        encoder = new_encoder(knobs, SALT_STUDENT, knobs.model or "vit_tiny")
        encoder.rotation(Grid(1, 1, 1), None, torch.device("meta"))
        predictor_for(encoder, knobs, encoder.dim, 2, 24, own["predictor_dim"], own["predictor_depth"])


def _begun(run: Path) -> bool:
    return bool(found(run / "checkpoints"))
