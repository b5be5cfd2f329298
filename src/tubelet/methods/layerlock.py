"""LayerLock: blocks freeze from the bottom up, and the newest frozen one becomes the target (arXiv 2509.10156)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from tubelet.methods.method import Method
from tubelet.methods.videomae import pixel_target
from tubelet.nn.block import init_weights
from tubelet.nn.decoding import Decoder
from tubelet.nn.tokens import gather
from tubelet.nn.vit import ViT
from tubelet.types import Batch, Grid, Loss, Mask, MaskSampler, Moment, Work


@dataclass(frozen=True)
class Locks:
    """When which blocks freeze: a pure function of the step.

    first: the step from which on blocks are frozen; before it pixels are the target. interval: steps from one
    lock to the next. jump: blocks that freeze at each. deepest: most blocks that freeze. The patch embedding
    freezes with the first block (open in the paper: ours, for a target that could still move is none).
    Raises ValueError for numbers that make no schedule.
    """

    first: int
    interval: int
    jump: int
    deepest: int

    def __post_init__(self) -> None:
        if self.first < 0:
            raise ValueError(f"pixel_steps={self.first}: must be 0 or more")
        for name in ("interval", "jump", "deepest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")

    def frozen(self, step: int) -> int:
        """How many blocks are frozen when step ``step`` is taken."""
        if step < self.first:
            return 0
        return min(self.deepest, self.jump * (1 + (step - self.first) // self.interval))

    def steps(self) -> tuple[int, ...]:
        """The steps at which blocks freeze."""
        return tuple(self.first + i * self.interval for i in range(-(-self.deepest // self.jump)))

    def phases(self, total: int) -> list[tuple[int, int, int]]:
        """(first step, step after the last, frozen blocks) of every phase that a run of ``total`` steps reaches."""
        starts = sorted({0, *(step for step in self.steps() if step < total)})
        return [
            (start, end, self.frozen(start)) for start, end in zip(starts, [*starts[1:], total], strict=True)
        ]


# 4DS-G, 48 blocks (§1.4): pixels for 160K steps, then a block every 10K, until 32 are frozen.
LOCKS_4DS_G = Locks(160_000, 10_000, 1, 32)


class LayerLock(Method):
    """Predict pixels, then the output h_k of the newest frozen block, while the blocks above learn.

    encoder, decoder: see `tubelet.nn.decoding`. mask: what is seen and predicted while pixels are the target;
    latent_mask: from the first lock on (default: the same).

    start: the first target: "pixels" (4DS), or "latents", block 1 of ``momentum``'s average (V-JEPA). latents:
    False keeps pixels as the target to the end: MAE with progressive freezing. freeze: False trains every block
    to the end while the target moves as if they froze: the paper's collapse ablation. stop_gradient: False lets the
    gradient into the targets where they can move (without freezing, and without ``momentum``), so that they can come
    to meet their predictor; a frozen block cannot.
    momentum: of an averaged teacher that gives the targets (V-JEPA + LayerLock); None: the encoder itself does.
    target_input: what the target pass reads: the "full" clip, the "visible" tokens (``latent_mask`` must ask for
    those), or only the tokens that are asked for, "sampled". target_norm: "layer" passes the targets through a
    parameter-free LayerNorm as V-JEPA does, "none" takes h_k as it is. heads: a linear layer per target ("each")
    or "one" for all latents. latent_weight, pixel_weight: of the two losses from the first lock on, functions of
    the moment; with pixel_weight None the pixel loss ends there, as in the paper. loss: "mse", the paper's squared
    L2 (here its mean over features), or "l1". normalise: of pixels, see `pixel_target`.

    Frozen blocks run without autograd. What the paper leaves open is an option; the defaults are ours: full clip,
    LayerNorm, a head per target.
    Raises ValueError if more would freeze than the encoder can spare.
    """

    def __init__(
        self,
        encoder: ViT,
        decoder: Decoder,
        mask: MaskSampler,
        locks: Locks,
        *,
        latent_mask: MaskSampler | None = None,
        start: Literal["pixels", "latents"] = "pixels",
        latents: bool = True,
        freeze: bool = True,
        stop_gradient: bool = True,
        momentum: Callable[[Moment], float] | None = None,
        target_input: Literal["full", "visible", "sampled"] = "full",
        target_norm: Literal["layer", "none"] = "layer",
        heads: Literal["each", "one"] = "each",
        latent_weight: Callable[[Moment], float] | None = None,
        pixel_weight: Callable[[Moment], float] | None = None,
        loss: Literal["mse", "l1"] = "mse",
        normalise: str = "channel",
    ):
        super().__init__()
        most = encoder.depth - max(1, decoder.spare)
        if locks.deepest > most:
            kept = f"the last {decoder.spare} decode" if decoder.spare else "one must be left to learn"
            raise ValueError(
                f"deepest={locks.deepest} freezes too much: the encoder has {encoder.depth} blocks, and {kept}; "
                f"use deepest={most} or less"
            )
        if start == "latents" and not latents:
            raise ValueError('start="latents" and latents=False leave nothing to predict')
        self.encoder, self.decoder = encoder, decoder
        self.mask, self.latent_mask, self.locks = mask, latent_mask or mask, locks
        self.start, self.latents, self.freeze, self.momentum = start, latents, freeze, momentum
        self.target_input, self.target_norm = target_input, target_norm
        self.latent_weight, self.pixel_weight = latent_weight, pixel_weight
        self.loss, self.normalise, self.one_head = loss, normalise, heads == "one"
        self.targets_learn = not (freeze or stop_gradient or momentum)
        # targets come from layers that the encoder has before the first step, so its copy is made now
        self.teacher = None if momentum is None else copy.deepcopy(encoder).requires_grad_(False)
        widths = {"pixels": encoder.embedding.in_features} if start == "pixels" else {}
        if latents:
            depths = {self.locks.frozen(step) for step in locks.steps()} | (
                {1} if start == "latents" else set()
            )
            widths |= {self._head_of(k): encoder.dim for k in sorted(depths)}
        self.heads = nn.ModuleDict({name: nn.Linear(decoder.dim, width) for name, width in widths.items()})
        init_weights(self.heads, encoder.init_std)

    def locked(self, moment: Moment) -> int:
        """How many blocks are frozen."""
        return self.locks.frozen(moment.step) if self.freeze else 0

    def target_layer(self, moment: Moment) -> int:
        """Whose output is predicted; 0: pixels."""
        if not self.latents:
            return 0
        return max(self.locks.frozen(moment.step), 1 if self.start == "latents" else 0)

    def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
        """One loss per mask; with the pixel loss kept, the weighted sum of both."""
        grid, clip = self.encoder.grid(batch.clip), batch.clip
        locked, layer = self.locked(moment), self.target_layer(moment)
        masks = self._sampler(layer)(grid, len(batch), clip.device)
        whole = None
        if layer and self.target_input == "full" and not self.targets_learn:
            whole = self._latents(clip, layer, None, grid)
        for kind, mask in enumerate(masks):
            rotation = self.encoder.rotation(grid, mask.context, clip.device)
            # a frozen prefix leaves no graph
            with torch.set_grad_enabled(locked == 0 and torch.is_grad_enabled()):
                tokens = self.encoder.embed(clip, keep=mask.context)
                tokens = self.encoder.advance(tokens, rotation, 0, locked)
            target = None
            if layer:
                found = self._target(clip, mask, layer, grid) if whole is None else whole
                target = gather(found, mask.target) if self.target_input == "full" else found
            decoded = self.decoder(self.encoder, tokens, rotation, locked, mask, grid, kind)  # [B, Nt, W]
            yield self._loss(decoded, clip, mask, target, moment, len(masks), grid, kind)

    def trainable(self, moment: Moment) -> list[nn.Module]:
        """The blocks above the frozen ones, the decoder, and the heads in use."""
        section = nn.ModuleList(self.encoder.section(self.locked(moment), self.encoder.depth))
        heads = [self.heads[name] for name in self._heads(self.target_layer(moment))]
        return [section, self.decoder, nn.ModuleList(heads)]

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """The averaged teacher, if there is one, follows."""
        if self.teacher is not None and self.momentum is not None:
            average = get_ema_multi_avg_fn(self.momentum(moment))
            average(tuple(self.teacher.parameters()), tuple(self.encoder.parameters()), None)

    def encoders(self) -> dict[str, ViT]:
        """The averaged copy where there is one, as V-JEPA; then the encoder itself."""
        if self.teacher is None:
            return {"encoder": self.encoder}
        return {"teacher": self.teacher, "student": self.encoder}

    def work(self, grid: Grid, moment: Moment) -> list[Work]:
        """Frozen blocks and target passes forward only; the rest as the decoder does it."""
        locked, layer = self.locked(moment), self.target_layer(moment)
        source, part = (self.encoder, "target") if self.teacher is None else (self.teacher, "teacher")
        passes = []
        counts = self._sampler(layer).counts(grid)
        for context, target in counts:
            if locked:
                passes.append(Work("encoder", self.encoder.section(0, locked), context, backward=False))
            passes += self.decoder.work(self.encoder, locked, context, target)
            passes += [Work("decoder", self.heads[name], target) for name in self._heads(layer)]
            read = {"full": 0, "sampled": target, "visible": context}[self.target_input]
            if layer and read:
                passes.append(Work(part, source.section(0, layer), read, backward=self.targets_learn))
        if layer and self.target_input == "full":
            times = len(counts) if self.targets_learn else 1
            passes.append(
                Work(part, source.section(0, layer), grid.n, backward=self.targets_learn, times=times)
            )
        return passes

    def _sampler(self, layer: int) -> MaskSampler:
        return self.latent_mask if layer else self.mask

    def _head_of(self, layer: int) -> str:
        if layer == 0:
            return "pixels"
        return "latents" if self.one_head else f"layer{layer}"

    def _heads(self, layer: int) -> list[str]:
        """The heads in use while ``layer`` is the target."""
        return [self._head_of(layer)] + (["pixels"] if layer and self.pixel_weight is not None else [])

    def _latents(self, clip: Tensor, layer: int, keep: Tensor | None, grid: Grid) -> Tensor:
        """Targets [B, K, D] of tokens ``keep`` (None: all), which are all that the target pass reads."""
        source = self.encoder if self.teacher is None else self.teacher
        with torch.set_grad_enabled(self.targets_learn and torch.is_grad_enabled()):
            rotation = source.rotation(grid, keep, clip.device)
            found = source.advance(source.embed(clip, keep), rotation, 0, layer).float()
        return F.layer_norm(found, found.shape[-1:]) if self.target_norm == "layer" else found

    def _target(self, clip: Tensor, mask: Mask, layer: int, grid: Grid) -> Tensor:
        """Targets of one mask: [B, N, D] where the target pass reads the whole clip, else [B, Nt, D]."""
        if self.target_input == "visible" and not torch.equal(mask.target, mask.context):
            raise ValueError(
                "a target pass over the visible tokens knows those alone: ask for them, and for all of them "
                '(predict="visible", target_share=1)'
            )
        keep = None if self.target_input == "full" else mask.target
        return self._latents(clip, layer, keep, grid)

    def _loss(
        self,
        decoded: Tensor,
        clip: Tensor,
        mask: Mask,
        target: Tensor | None,
        moment: Moment,
        masks: int,
        grid: Grid,
        kind: int,
    ) -> Loss:
        layer, value, metrics = self.target_layer(moment), torch.zeros((), device=clip.device), {}
        distance = F.mse_loss if self.loss == "mse" else F.l1_loss
        for name in self._heads(layer):
            predicted = self.heads[name](decoded).float()
            if name == "pixels":
                truth = pixel_target(clip, mask.target, self.encoder.patch, self.normalise)
                weight = self.pixel_weight(moment) if layer and self.pixel_weight else 1.0
            else:
                assert target is not None
                truth, weight = target, self.latent_weight(moment) if self.latent_weight else 1.0
                metrics["repr/cos_prediction"] = F.cosine_similarity(predicted.detach(), truth, dim=-1).mean()
            error = distance(predicted, truth)
            value = value + weight * error
            metrics["loss/pixels" if name == "pixels" else "loss/latents"] = error.detach()
        progress = {
            "lock/frozen": torch.tensor(float(self.locked(moment))),
            "lock/target": torch.tensor(float(layer)),
        }
        return Loss(value / masks, {**metrics, **progress, **mask.shares(grid, kind)})
