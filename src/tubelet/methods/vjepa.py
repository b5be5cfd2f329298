"""V-JEPA: predict what an averaged copy of the encoder makes of the hidden tokens (arXiv 2404.08471, 2506.09985)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tubelet.methods.method import Method
from tubelet.nn.predictor import Predictor
from tubelet.nn.tokens import gather
from tubelet.nn.vit import ViT
from tubelet.types import Batch, Grid, Loss, MaskSampler, Moment, Work


class VJEPA(Method):
    """Latents of an exponential moving average of the encoder.

    encoder: the student, sees the context tokens of one mask at a time. predictor: target width = the
    encoder's. mask: V-JEPA's two multi-block masks. momentum: of the average, as a function of the moment
    (.998 -> 1 linear in V-JEPA, .99925 in V-JEPA 2). The teacher sees the whole clip; its last layer, after
    the final norm, passes a parameter-free LayerNorm (eps 1e-5) and is gathered at the hidden tokens. Loss:
    mean |prediction - target|, averaged over masks.
    """

    def __init__(
        self, encoder: ViT, predictor: Predictor, mask: MaskSampler, momentum: Callable[[Moment], float]
    ):
        super().__init__()
        self.encoder, self.predictor, self.mask, self.momentum = encoder, predictor, mask, momentum
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)

    def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
        """One loss per mask; the teacher runs once for all of them."""
        grid = self.encoder.grid(batch.clip)
        with torch.no_grad():
            whole = self.teacher(batch.clip).float()
            whole = F.layer_norm(whole, whole.shape[-1:])  # [B, N, D]
        masks = self.mask(grid, len(batch), batch.clip.device)
        for kind, mask in enumerate(masks):
            context = self.encoder(batch.clip, keep=mask.context)  # [B, Nc, D]
            predicted = self.predictor(context, mask, grid, kind).float()  # [B, Nt, D]
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
        """The student and the predictor; the teacher only follows."""
        return [self.encoder, self.predictor]

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """teacher <- m * teacher + (1 - m) * student."""
        average = get_ema_multi_avg_fn(self.momentum(moment))
        average(tuple(self.teacher.parameters()), tuple(self.encoder.parameters()), None)

    def encoders(self) -> dict[str, ViT]:
        """The averaged copy is the one that the papers evaluate."""
        return {"teacher": self.teacher, "student": self.encoder}

    def work(self, grid: Grid, moment: Moment) -> list[Work]:
        """The teacher on the whole clip, forward only; encoder and predictor once per mask."""
        passes = [Work("teacher", self.teacher, grid.n, backward=False)]
        for context, target in self.mask.counts(grid):
            passes.append(Work("encoder", self.encoder, context))
            passes.append(Work("predictor", self.predictor, context, target))
        return passes
