"""Blockwise learning: the encoder is cut into blocks, and each learns from a loss of its own (arXiv 2601.09040)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.methods.method import Method
from tubelet.methods.salt import refuse_other_grid
from tubelet.methods.videomae import pixel_target
from tubelet.nn.predictor import Predictor
from tubelet.nn.tokens import Rotation, gather
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


class Line(Protocol):
    """What a block needs of other processes, when those below it or above it are there (`tubelet.train.pipeline`)."""

    @property
    def rank(self) -> int:
        """This process's place, 0 at the bottom."""
        ...

    @property
    def size(self) -> int:
        """How many processes."""
        ...

    def receive(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The next tokens from the process below."""
        ...

    def send(self, tokens: Tensor) -> None:
        """Tokens to the process above, which needs no answer."""
        ...


def share_out(blocks: int, processes: int) -> list[range]:
    """The blocks (from 0) of each process: consecutive, equally many, one more in the first where that must be.

    Raises ValueError if there are more processes than blocks.
    """
    if processes > blocks:
        raise ValueError(
            f"{processes} processes for {blocks} blocks: start at most {blocks}, or cut more blocks"
        )
    each, more = divmod(blocks, processes)
    starts = [rank * each + min(rank, more) for rank in range(processes + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


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
    line: other processes that learn the other blocks; this one runs and moves only its own (see `share_out`) and
    passes tokens on. Needs the simultaneous regime, a decoder for each block, and no overlap.
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
        line: Line | None = None,
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
        self.line, self.here = line, range(len(self.spans))
        if line is not None:
            _refuse_line(regime, overlap, len(decoders), len(layers))
            self.here = share_out(len(self.spans), line.size)[line.rank]
        self.encoder, self.decoders, self.mask = encoder, nn.ModuleList(decoders), mask
        self.shared = len(decoders) == 1 and len(self.spans) > 1
        self.regime, self.targets, self.normalise = regime, targets, normalise
        self.teacher = None if teacher is None else teacher.requires_grad_(False)
        if teacher is not None:
            refuse_other_grid(encoder, teacher, "encoder")
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
        found = self.decoders[0 if self.shared else number]
        assert isinstance(found, Predictor)
        return found

    def learning(self, moment: Moment) -> range:
        """The blocks (from 0) that learn now, in this process or another."""
        if self.regime != "sequential":
            return range(len(self.spans))
        stage, _, _ = moment.stage(len(self.spans))
        return range(stage, stage + 1)

    def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
        """One loss per block that learns here (and per mask)."""
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
        """Each block that learns here with its decoder, as one module: gradients clipped per module stay local.

        A shared decoder is a module of its own.
        """
        blocks: list[nn.Module] = []
        for number in (number for number in self.learning(moment) if number in self.here):
            block = nn.ModuleList(self.encoder.section(*self.spans[number]))
            if not self.shared:
                block.append(self.decoder(number))
            blocks.append(block)
        return [*blocks, self.decoder(0)] if self.shared else blocks

    def encoders(self) -> dict[str, ViT]:
        """The encoder; decoders are thrown away."""
        found = {"encoder": self.encoder}
        return found if self.teacher is None else {**found, "teacher": self.teacher}

    def work(self, grid: Grid, moment: Moment) -> list[Work]:
        """Blocks below those that learn forward only; layers that two blocks train, twice. Of all processes."""
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
        everywhere = encoder.rotation(grid, None, clip.device) if self.targets == "previous" else None
        if self.here.start:
            handed = self._receive(clip, mask.context.shape[1])
        for number in range(self.here.start, min(self.here.stop, learning.stop)):
            start, stop = self.spans[number]
            with torch.set_grad_enabled(number in learning and torch.is_grad_enabled()):
                tokens = encoder.embed(clip, keep=mask.context) if handed is None else handed
                tokens = encoder.advance(tokens, rotation, start, self._handed(number))
                handed = tokens.detach()
                if number + 1 == self.here.stop:
                    self._send(handed)  # before its own loss: the process above need not wait for that
                if number not in learning:
                    continue
                tokens = encoder.advance(tokens, rotation, self._handed(number), stop)
                context = encoder.norm(tokens) if stop == encoder.depth else tokens
                predicted = self.decoder(number)(context, mask, grid, kind).float()
            if self.targets == "previous" and number:
                below = self.spans[number - 1][1]
                if number == self.here.start:
                    seen, depth = self._receive(clip, grid.n), below
                seen, depth = self._further(clip, everywhere, seen, depth, below)
                latents = _normed(seen)
            if latents is None:
                pixels = self._pixels(clip, mask) if pixels is None else pixels  # the same for every block
                error = F.mse_loss(predicted, pixels)
            else:
                error = F.l1_loss(predicted, gather(latents, mask.target))
            del tokens, context, predicted
            yield number, error
            del error
        if self.targets == "previous" and self.here.stop < len(self.spans):
            self._send(self._further(clip, everywhere, seen, depth, self.spans[self.here.stop - 1][1])[0])

    def _receive(self, clip: Tensor, count: int) -> Tensor:
        """``count`` tokens of each clip, from the process below."""
        assert self.line is not None, "blocks that are not here have no process"
        return self.line.receive((len(clip), count, self.encoder.dim), _dtype(self.encoder, clip.device))

    def _send(self, tokens: Tensor) -> None:
        """``tokens`` to the process above, if there is one."""
        if self.line is not None and self.here.stop < len(self.spans):
            assert tokens.dtype == _dtype(self.encoder, tokens.device), (
                "the process above expects another dtype"
            )
            self.line.send(tokens)

    def _pixels(self, clip: Tensor, mask: Mask) -> Tensor:
        return pixel_target(clip, mask.target, self.encoder.patch, self.normalise)

    @torch.no_grad()
    def _further(
        self, clip: Tensor, rotation: Rotation | None, seen: Tensor | None, depth: int, layer: int
    ) -> tuple[Tensor, int]:
        """The whole clip's tokens, from layer ``depth`` on to ``layer``."""
        seen = self.encoder.embed(clip) if seen is None else seen
        return self.encoder.advance(seen, rotation, depth, layer), layer


def _refuse_line(regime: str, overlap: int, decoders: int, blocks: int) -> None:
    """Raises ValueError for what would need something from a process above."""
    if regime != "simultaneous":
        raise ValueError(
            f'regime="{regime}" in several processes: only blocks that learn at the same time, each from its own loss, '
            'keep all of them busy; use regime="simultaneous", or one process'
        )
    if overlap:
        raise ValueError(
            f"overlap={overlap} in several processes: the gradient of a block would come back to the one below it, "
            "and nothing does; use overlap=0, or one process"
        )
    if decoders != blocks:
        raise ValueError(
            "a shared decoder in several processes would need the gradients of all of them; give each block its own, "
            "or use one process"
        )


def _dtype(encoder: ViT, device: torch.device) -> torch.dtype:
    """Of an encoder's tokens: autocast's where it is on, else the weights'."""
    on = torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if on else encoder.embedding.weight.dtype


def _normed(latents: Tensor) -> Tensor:
    return F.layer_norm(latents.float(), latents.shape[-1:])
