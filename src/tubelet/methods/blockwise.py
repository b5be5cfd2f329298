"""Blockwise learning: the encoder is cut into blocks, and each learns from a loss of its own (arXiv 2601.09040)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.methods.method import Method
from tubelet.methods.videomae import pixel_target
from tubelet.nn.predictor import Predictor
from tubelet.nn.tokens import gather
from tubelet.nn.vit import ViT
from tubelet.types import Batch, Grid, Loss, Mask, MaskSampler, Moment, Work


def cut(depth: int, blocks: str) -> tuple[int, ...]:
    """Layers in each block: "4" gives four equal ones, "2,4,6" is a list. Raises ValueError if they do not fit."""
    words = [word.strip() for word in str(blocks).split(",")]
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise ValueError(f'blocks="{blocks}" is neither a number such as 4 nor a list such as 3,3,6')
    if len(words) > 1:
        layers = tuple(map(int, words))
        if sum(layers) != depth:
            raise ValueError(f'blocks="{blocks}" are {sum(layers)} layers, the encoder has {depth}')
        return layers
    count = int(words[0])
    if depth % count:
        fitting = ", ".join(str(k) for k in range(1, depth + 1) if depth % k == 0)
        raise ValueError(
            f"blocks={count} does not divide the encoder's {depth} layers; use one of {fitting}, "
            f"or list the layers of each, such as {depth // 2},{depth - depth // 2}"
        )
    return (depth // count,) * count


class Blockwise(Method):
    """Local losses on the outputs of consecutive blocks of layers; no gradient crosses a block's edge.

    layers: in each block (see `cut`); the first block owns the patch embedding, the last the final norm. decoders:
    one per block, or one that they share. mask: drawn once a step and shared by all blocks.

    regime: "simultaneous" trains all blocks in every step; "sequential" one after the other, each for an equal
    share of the steps, those below it frozen; "end_to_end" is the matched baseline: one loss after the last layer,
    one decoder.
    targets: "pixels" (the paper); "teacher": ``teacher``'s final latents (SALT per block); "previous": what the
    block below makes of the whole clip, pixels for the first (ours). Latents pass a parameter-free LayerNorm.
    overlap: the last so many layers of a block also learn from the loss of the next one (ours, after overlapping
    local losses in the literature on local learning).
    Each loss is yielded as soon as its block has run, so that what it saved is gone before the next block runs.
    Normalised pixels, MSE; L1 to latents, as SALT. Raises ValueError if parts do not fit each other.
    """

    def __init__(
        self,
        encoder: ViT,
        decoders: Sequence[Predictor],
        mask: MaskSampler,
        layers: Sequence[int],
        *,
        regime: Literal["simultaneous", "sequential", "end_to_end"] = "simultaneous",
        targets: Literal["pixels", "teacher", "previous"] = "pixels",
        teacher: ViT | None = None,
        overlap: int = 0,
        normalise: str = "channel",
    ):
        super().__init__()
        if sum(layers) != encoder.depth or min(layers) < 1:
            raise ValueError(f"blocks of {list(layers)} layers do not make up an encoder of {encoder.depth}")
        if not 0 <= overlap < min(layers):
            raise ValueError(f"overlap={overlap}: must be less than the {min(layers)} layers of a block")
        if (targets == "teacher") != (teacher is not None):
            raise ValueError('targets="teacher" and a teacher belong together')
        ends = [sum(layers[: k + 1]) for k in range(len(layers))]
        spans = [(max(0, end - size - overlap), end) for end, size in zip(ends, layers, strict=True)]
        self.spans = [(0, encoder.depth)] if regime == "end_to_end" else spans
        if len(decoders) not in (1, len(self.spans)):
            raise ValueError(f"{len(decoders)} decoders for {len(self.spans)} blocks; give one each, or one")
        self.encoder, self.decoders, self.mask = encoder, nn.ModuleList(decoders), mask
        self.regime, self.targets, self.normalise = regime, targets, normalise
        self.teacher = None if teacher is None else teacher.requires_grad_(False)
        if teacher is not None and (teacher.patch, teacher.channels) != (encoder.patch, encoder.channels):
            raise ValueError(
                f"the teacher cuts {teacher.channels}-channel clips into {teacher.patch} tubelets, the encoder "
                f"{encoder.channels}-channel clips into {encoder.patch}; give the encoder the teacher's patch"
            )
        for number in range(len(self.spans)):
            if self.decoder(number).target_dim != self.target_dim(number):
                raise ValueError(
                    f"the decoder of block {number + 1} ends {self.decoder(number).target_dim} wide, its target "
                    f"is {self.target_dim(number)} wide"
                )

    def target_dim(self, number: int) -> int:
        """Width of what block ``number`` (from 0) predicts."""
        if self.teacher is not None:
            return self.teacher.dim
        return (
            self.encoder.dim if self.targets == "previous" and number else self.encoder.embedding.in_features
        )

    def decoder(self, number: int) -> Predictor:
        """The decoder of block ``number`` (from 0)."""
        found = self.decoders[number if len(self.decoders) > 1 else 0]
        assert isinstance(found, Predictor)
        return found

    def learning(self, moment: Moment) -> range:
        """The blocks (from 0) that learn now."""
        if self.regime != "sequential":
            return range(len(self.spans))
        stage = min(len(self.spans) * moment.step // moment.total, len(self.spans) - 1)
        return range(stage, stage + 1)

    def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
        """One loss per block that learns (and per mask)."""
        grid, clip = self.encoder.grid(batch.clip), batch.clip
        masks = self.mask(grid, len(batch), clip.device)
        latents = None
        if self.teacher is not None:
            with torch.no_grad():
                latents = _normed(self.teacher(clip))
        for kind, mask in enumerate(masks):
            for number, error in self._errors(clip, mask, grid, kind, latents, self.learning(moment)):
                name = f"loss/block{number + 1}"
                yield Loss(error / len(masks), {name: error.detach(), **mask.shares(grid, kind)})

    def trainable(self, moment: Moment) -> list[nn.Module]:
        """Each block that learns with its decoder, as one module: gradients clipped per module stay local.

        A shared decoder is a module of its own.
        """
        blocks: list[nn.Module] = []
        for number in self.learning(moment):
            block = nn.ModuleList(self.encoder.section(*self.spans[number]))
            if len(self.decoders) > 1 or len(self.spans) == 1:
                block.append(self.decoder(number))
            blocks.append(block)
        shared = [] if len(self.decoders) > 1 or len(self.spans) == 1 else [self.decoder(0)]
        return [*blocks, *shared]

    def encoders(self) -> dict[str, ViT]:
        """The encoder; decoders are thrown away."""
        found = {"encoder": self.encoder}
        return found if self.teacher is None else {**found, "teacher": self.teacher}

    def work(self, grid: Grid, moment: Moment) -> list[Work]:
        """Blocks below those that learn forward only; layers that two blocks train, twice."""
        learning = self.learning(moment)
        passes = []
        if self.teacher is not None:
            passes.append(Work("teacher", self.teacher, grid.n, backward=False))
        counts = self.mask.counts(grid)
        for context, target in counts:
            for number in range(learning.stop):
                start, stop = self.spans[number]
                if number in learning:
                    passes.append(Work("encoder", self.encoder.section(start, stop), context))
                    passes.append(Work("decoder", self.decoder(number), context, target))
                else:
                    passes.append(
                        Work(
                            "encoder",
                            self.encoder.section(start, self._handed(number)),
                            context,
                            backward=False,
                        )
                    )
        if self.targets == "previous" and learning.stop > 1:
            seen = self.encoder.section(0, self.spans[learning.stop - 2][1])
            passes.append(Work("target", seen, grid.n, backward=False, times=len(counts)))
        return passes

    def _handed(self, number: int) -> int:
        """The layer at which block ``number`` hands its tokens on."""
        return self.spans[number + 1][0] if number + 1 < len(self.spans) else self.spans[number][1]

    def _errors(
        self, clip: Tensor, mask: Mask, grid: Grid, kind: int, latents: Tensor | None, learning: range
    ) -> Iterator[tuple[int, Tensor]]:
        """(block, error) one by one. Nothing of a block's graph is kept here while the next one runs."""
        encoder = self.encoder
        rotation = encoder.rotation(grid, mask.context, clip.device)
        handed, seen, depth, pixels = None, None, 0, None
        for number in range(learning.stop):
            start, stop = self.spans[number]
            with torch.set_grad_enabled(number in learning):
                tokens = encoder.embed(clip, keep=mask.context) if handed is None else handed
                tokens = encoder.advance(tokens, rotation, start, self._handed(number))
                handed = tokens.detach()
                if number not in learning:
                    continue
                tokens = encoder.advance(tokens, rotation, self._handed(number), stop)
                context = encoder.norm(tokens) if stop == encoder.depth else tokens
                predicted = self.decoder(number)(context, mask, grid, kind).float()
            if self.targets == "previous" and number:
                seen, depth = self._further(clip, grid, seen, depth, self.spans[number - 1][1])
                latents = _normed(seen)
            if latents is None:
                pixels = self._pixels(clip, mask) if pixels is None else pixels  # the same for every block
                error = F.mse_loss(predicted, pixels)
            else:
                error = F.l1_loss(predicted, gather(latents, mask.target))
            del tokens, context, predicted
            yield number, error
            del error

    def _pixels(self, clip: Tensor, mask: Mask) -> Tensor:
        return pixel_target(clip, mask.target, self.encoder.patch, self.normalise)

    @torch.no_grad()
    def _further(
        self, clip: Tensor, grid: Grid, seen: Tensor | None, depth: int, layer: int
    ) -> tuple[Tensor, int]:
        """The whole clip's tokens, from layer ``depth`` on to ``layer``."""
        seen = self.encoder.embed(clip) if seen is None else seen
        rotation = self.encoder.rotation(grid, None, clip.device)
        return self.encoder.advance(seen, rotation, depth, layer), layer


def _normed(latents: Tensor) -> Tensor:
    return F.layer_norm(latents.float(), latents.shape[-1:])
