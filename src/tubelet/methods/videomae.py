"""VideoMAE: predict the pixels of what is hidden (arXiv 2203.12602); also SALT's first stage, "V-Pixel"."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.methods.method import Method
from tubelet.nn.predictor import Predictor
from tubelet.nn.tokens import gather, patchify
from tubelet.nn.vit import ViT
from tubelet.types import Batch, Grid, Loss, Mask, MaskSampler, Moment, Work


def pixel_target(clip: Tensor, ids: Tensor, patch: tuple[int, int, int], normalise: str) -> Tensor:
    """Pixels of tubelets ``ids`` [B, K] of clips [B, C, T, H, W], as they are to be predicted: [B, K, C*pt*ph*pw].

    normalise: "channel" subtracts each tubelet's mean and divides by its (unbiased) standard deviation + 1e-6,
    colour by colour, as VideoMAE's code does (there after undoing the clip's normalisation, which changes
    nothing but the weight of that 1e-6); "tubelet" does so over all colours together (SALT leaves it open:
    ours); "none" leaves the pixels as they are in the clip.
    """
    pixels = gather(patchify(clip, patch), ids)
    if normalise == "none":
        return pixels
    if normalise == "channel":
        pixels = pixels.unflatten(-1, (clip.shape[1], -1))
    elif normalise != "tubelet":
        raise ValueError(f'target normalisation "{normalise}" is unknown; use "channel", "tubelet" or "none"')
    pixels = (pixels - pixels.mean(-1, keepdim=True)) / (pixels.std(-1, keepdim=True) + 1e-6)
    return pixels.flatten(2)


class VideoMAE(Method):
    """Masked pixels from visible tokens.

    encoder: sees only the context tokens. decoder: a `Predictor` whose target width is a tubelet's pixels;
    as many mask tokens as kinds of masks, or one that is shared. mask: VideoMAE hides tubes (.9); SALT's
    first stage uses V-JEPA's two multi-block masks, one loss each. normalise: see `pixel_target`.
    loss: "mse" (VideoMAE) or "l1", the mean over hidden tokens and pixels, averaged over masks.

    Choices that SALT leaves open, and ours: a decoder of the predictor's form, MSE, tubelet normalisation,
    one zero-initialised mask token per mask.
    """

    def __init__(
        self,
        encoder: ViT,
        decoder: Predictor,
        mask: MaskSampler,
        normalise: str = "channel",
        loss: str = "mse",
    ):
        super().__init__()
        if loss not in ("mse", "l1"):
            raise ValueError(f'pixel loss "{loss}" is unknown; use "mse" or "l1"')
        self.encoder, self.decoder, self.mask = encoder, decoder, mask
        self.normalise, self.loss = normalise, loss

    def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
        """One loss per mask, so that only one mask's activations are alive at a time."""
        grid = self.encoder.grid(batch.clip)
        masks = self.mask(grid, len(batch), batch.clip.device)
        for kind, mask in enumerate(masks):
            target = pixel_target(batch.clip, mask.target, self.encoder.patch, self.normalise)
            predicted = self.predict(batch.clip, mask, kind).float()
            error = F.mse_loss(predicted, target) if self.loss == "mse" else F.l1_loss(predicted, target)
            yield Loss(
                error / len(masks),
                {f"loss/mask{kind}": error.detach(), **mask.shares(grid, kind)},
            )

    def predict(self, clip: Tensor, mask: Mask, kind: int = 0) -> Tensor:
        """Predicted (normalised) pixels [B, Nt, C*pt*ph*pw] of the hidden tubelets."""
        context = self.encoder(clip, keep=mask.context)  # [B, Nc, D]
        return self.decoder(context, mask, self.encoder.grid(clip), kind)

    def trainable(self, moment: Moment) -> list[nn.Module]:
        """Everything, always."""
        return [self.encoder, self.decoder]

    def after_step(self, moment: Moment) -> None:
        """Nothing moves but by the optimizer."""

    def encoders(self) -> dict[str, ViT]:
        """The encoder; the decoder is thrown away."""
        return {"encoder": self.encoder}

    def work(self, grid: Grid, moment: Moment) -> list[Work]:
        """Encoder on visible tokens, decoder on all tokens of the mask, once per mask."""
        return [
            entry
            for context, target in self.mask.counts(grid)
            for entry in (
                Work("encoder", self.encoder, context),
                Work("decoder", self.decoder, context, target),
            )
        ]
