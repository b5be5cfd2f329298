"""What a pass costs in FLOPs, from formulas per module; and the papers' own accounting.

Two FLOPs per multiply-add; matrix products only (norms, softmax, GELU and the optimizer are a percent or less,
and torch's counter leaves them out too). Attention's quadratic part is counted. Backward costs twice forward:
one product for the inputs' gradient, one for the weights'; the embedding of pixels needs no inputs' gradient.
Frozen parts pay forward alone. What a fused attention kernel computes again in its backward is not counted: it
is a matter of the kernel, not of the method.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import nn

from tubelet.nn.block import Attention, Block, Mlp
from tubelet.nn.heads import AttentiveClassifier, AttentivePooler, LinearHead
from tubelet.nn.pixels import Pixels
from tubelet.nn.predictor import Predictor
from tubelet.nn.vit import Embedding, ViT, build_vit
from tubelet.types import Work


@dataclass(frozen=True)
class PartCost:
    """FLOPs of one part."""

    forward: float = 0
    backward: float = 0

    @property
    def total(self) -> float:
        """Forward and backward together."""
        return self.forward + self.backward


@dataclass(frozen=True)
class Cost:
    """FLOPs by part ("encoder", "teacher", ...), of one clip unless `times` was applied."""

    parts: dict[str, PartCost]

    @property
    def forward(self) -> float:
        """Forward FLOPs of all parts."""
        return sum(part.forward for part in self.parts.values())

    @property
    def backward(self) -> float:
        """Backward FLOPs of all parts."""
        return sum(part.backward for part in self.parts.values())

    @property
    def total(self) -> float:
        """All FLOPs."""
        return self.forward + self.backward

    def times(self, count: float) -> Cost:
        """The cost of ``count`` clips."""
        return Cost({name: PartCost(p.forward * count, p.backward * count) for name, p in self.parts.items()})

    def __add__(self, other: Cost) -> Cost:
        parts = dict(self.parts)
        for name, part in other.parts.items():
            mine = parts.get(name, PartCost())
            parts[name] = PartCost(mine.forward + part.forward, mine.backward + part.backward)
        return Cost(parts)


def cost(works: Iterable[Work]) -> Cost:
    """FLOPs of one clip, by part, for the passes that `Method.work` lists.

    Raises TypeError for a module that has no formula here.
    """
    total = Cost({})
    for work in works:
        forward = forward_flops(work.module, work.context, work.target) * work.times
        backward = _backward(work) * work.times if work.backward else 0
        total += Cost({work.part: PartCost(forward, backward)})
    return total


def _backward(work: Work) -> int:
    full = backward_flops(work.module, work.context, work.target)
    if work.weights:
        return full
    linear = [part for module in work.modules for part in module.modules() if isinstance(part, nn.Linear)]
    # a linear layer's backward is as much for its weights as for its input
    return full - sum(forward_flops(part, work.context + work.target) for part in linear)


def with_held(works: Iterable[Work], held: Iterable[nn.Module]) -> list[Work]:
    """The same passes where ``held`` modules never move: those that lead a pass then get no backward.

    Where something learned enters there, they get one, but none for their own weights.
    """
    frozen = {id(module) for module in held}
    passes: list[Work] = []
    for work in works:
        vit = work.module
        parts = vit.section(0, vit.depth) if isinstance(vit, ViT) else work.modules
        lead = next((i for i, part in enumerate(parts) if id(part) not in frozen), len(parts))
        if not work.backward or not lead:
            passes.append(work)
            continue
        passes.append(replace(work, module=parts[:lead], backward=work.learned_input, weights=False))
        if parts[lead:]:
            passes.append(replace(work, module=parts[lead:]))
    return passes


def forward_flops(module: nn.Module | tuple[nn.Module, ...], context: int, target: int = 0) -> int:
    """FLOPs of one sample's forward pass through a module, or several one after the other.

    context: tokens that enter (for a Linear, its rows; for a LinearHead, vectors). target: mask tokens that a
    Predictor adds. Raises TypeError for a module without a formula: a wrong cost is worse than none.
    """
    n = context
    match module:
        case tuple():
            return sum(forward_flops(part, n, target) for part in module)
        case nn.Linear():
            return 2 * n * module.in_features * module.out_features
        case nn.LayerNorm() | nn.Identity() | nn.Embedding() | Pixels():
            return 0
        case Attention():
            width = module.proj.in_features
            return forward_flops(module.qkv, n) + 4 * n * n * width + forward_flops(module.proj, n)
        case Mlp():
            return forward_flops(module.fc1, n) + forward_flops(module.fc2, n)
        case Block():
            return forward_flops(module.attn, n) + forward_flops(module.mlp, n)
        case nn.ModuleList() | nn.Sequential():
            return sum(forward_flops(part, n) for part in module)
        case ViT():
            return forward_flops(module.embedding, n) + forward_flops(module.blocks, n)
        case Predictor():
            inner = forward_flops(module.embedding, n) + forward_flops(module.blocks, n + target)
            return inner + forward_flops(module.head, target)
        case AttentivePooler():
            read = 4 * n * module.dim * module.heads  # one query: scores of tokens, weighted sum of tokens
            projections = 3 * 2 * module.dim * module.dim  # q, q to token space, values
            return forward_flops(module.blocks, n) + read + projections + forward_flops(module.mlp, 1)
        case LinearHead():
            return forward_flops(module.linear, n)
        case AttentiveClassifier():
            return forward_flops(module.pooler, n) + forward_flops(module.head, 1)
        case _:
            raise TypeError(f"no FLOP formula for {type(module).__name__}; add one to analysis/cost.py")


def backward_flops(module: nn.Module | tuple[nn.Module, ...], context: int, target: int = 0) -> int:
    """FLOPs of one sample's backward pass where weights and inputs both need gradients, pixels excepted."""
    if isinstance(module, tuple):
        return sum(backward_flops(part, context, target) for part in module)
    spared = sum(forward_flops(part, context) for part in module.modules() if isinstance(part, Embedding))
    return 2 * forward_flops(module, context, target) - spared


def paper_flops(works: Iterable[Work]) -> float:
    """FLOPs of one clip as the SALT paper counts (arXiv 2509.24317).

    6 N D for trained networks, 2 N D for frozen ones: N parameters, embeddings included, D tokens; attention's
    quadratic part is left out.
    """
    total = 0.0
    for work in works:
        parameters = sum(p.numel() for module in work.modules for p in module.parameters())
        total += (6 if work.backward else 2) * parameters * (work.context + work.target) * work.times
    return total


@dataclass(frozen=True)
class SaltFlops:
    """A SALT run by the paper's accounting: FLOPs of the teacher's own training and of the student's."""

    teacher: float
    student: float

    @property
    def total(self) -> float:
        """Both stages, as the paper's table prints."""
        return self.teacher + self.student


def salt_paper_flops(
    student: str,
    teacher: str = "vit_large",
    teacher_steps: int = 80_000,
    student_steps: int = 160_000,
    batch_size: int = 3072,
    tokens: int = 1568,
    visible: float = 0.1,
    masks: int = 2,
) -> SaltFlops:
    """SALT's cost as its paper counts it; the defaults are the paper's main runs (16 frames of 224x224 pixels).

    The paper charges each mask with ``visible`` of the tokens in the encoder and all of them in the predictor.
    The stage-1 decoder is not printed there: a predictor of the same size (12 blocks of width 384) that puts out
    the pixels of a tubelet gives the paper's 0.24e21.
    """
    seen = round(tokens * visible)
    with torch.device("meta"):
        large, small = build_vit(teacher), build_vit(student)
        pixels = large.embedding.in_features
        decoder = Predictor(large.dim, 384, 12, 16, pixels)
        predictor = Predictor(small.dim, 384, 12, 16, large.dim, mask_tokens=masks)
    first = [
        Work("encoder", large, seen, times=masks),
        Work("decoder", decoder, seen, tokens - seen, times=masks),
    ]
    second = [
        Work("encoder", small, seen, times=masks),
        Work("predictor", predictor, seen, tokens - seen, times=masks),
        Work("teacher", large, tokens, backward=False),
    ]
    return SaltFlops(
        paper_flops(first) * teacher_steps * batch_size, paper_flops(second) * student_steps * batch_size
    )
