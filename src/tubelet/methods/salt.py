"""SALT's second stage: predict the latents of a finished, frozen teacher (arXiv 2509.24317)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from tubelet.methods.method import Method
from tubelet.nn.predictor import Predictor
from tubelet.nn.tokens import gather
from tubelet.nn.vit import ViT
from tubelet.types import Batch, Grid, Loss, MaskSampler, Moment, Work


def refuse_other_grid(encoder: ViT, teacher: ViT, who: str) -> None:
    """Raises ValueError if a teacher's tokens do not lie on the grid of the encoder, called ``who``."""
    if encoder.patch != teacher.patch or encoder.channels != teacher.channels:
        raise ValueError(
            f"the teacher cuts {teacher.channels}-channel clips into {teacher.patch} tubelets, the {who} "
            f"{encoder.channels}-channel clips into {encoder.patch}; give the {who} the teacher's patch"
        )


class SALT(Method):
    """Latents of a teacher that never moves.

    encoder: a new student. predictor: target width = the teacher's, which may be another than the student's.
    teacher: any encoder with the student's patch, so that their tokens lie on one grid. mask: V-JEPA's two
    multi-block masks. normalise: pass the targets through a parameter-free LayerNorm, as V-JEPA does (the
    paper's equation shows none: ours). Loss: mean |prediction - target| on hidden tokens, averaged over masks.

    The first stage, "V-Pixel", is `VideoMAE` with these masks; two stages are two runs.
    Raises ValueError if teacher and student cut clips differently.
    """

    def __init__(
        self, encoder: ViT, predictor: Predictor, teacher: ViT, mask: MaskSampler, normalise: bool = True
    ):
        super().__init__()
        refuse_other_grid(encoder, teacher, "student")
        if predictor.target_dim != teacher.dim:
            raise ValueError(
                f"the predictor ends {predictor.target_dim} wide, the teacher is {teacher.dim} wide"
            )
        self.encoder, self.predictor, self.mask, self.normalise = encoder, predictor, mask, normalise
        self.teacher = teacher.requires_grad_(False)

    def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
        """One loss per mask; the teacher runs once for all of them."""
        grid = self.encoder.grid(batch.clip)
        with torch.no_grad():
            whole = self.teacher(batch.clip).float()  # [B, N, P]
            if self.normalise:
                whole = F.layer_norm(whole, whole.shape[-1:])
        masks = self.mask(grid, len(batch), batch.clip.device)
        for kind, mask in enumerate(masks):
            context = self.encoder(batch.clip, keep=mask.context)  # [B, Nc, D]
            predicted = self.predictor(context, mask, grid, kind).float()  # [B, Nt, P]
            target = gather(whole, mask.target)
            error = F.l1_loss(predicted, target)
            agreement = F.cosine_similarity(predicted.detach(), target, dim=-1).mean()
            yield Loss(
                error / len(masks),
                {
                    f"loss/mask{kind}": error.detach(),
                    "repr/cos_prediction": agreement,
                    **mask.shares(grid, kind),
                },
            )

    def trainable(self, moment: Moment) -> list[nn.Module]:
        """The student and the predictor."""
        return [self.encoder, self.predictor]

    def after_step(self, moment: Moment) -> None:
        """Nothing moves but by the optimizer."""

    def encoders(self) -> dict[str, ViT]:
        """The student leaves; its teacher is kept beside it for comparison."""
        return {"student": self.encoder, "teacher": self.teacher}

    def work(self, grid: Grid, moment: Moment) -> list[Work]:
        """The teacher on the whole clip, forward only; encoder and predictor once per mask."""
        passes = [Work("teacher", self.teacher, grid.n, backward=False)]
        for context, target in self.mask.counts(grid):
            passes.append(Work("encoder", self.encoder, context))
            passes.append(Work("predictor", self.predictor, context, target))
        return passes
