"""What a training step must hold in memory: measured from what autograd saves, and predicted by counting tensors.

What autograd keeps from the forward to the backward pass is exact and the same on every machine; what a kernel
needs for a moment, and what runs without autograd (a target pass, a frozen prefix), is gone before the next
kernel and is not counted. Formulas are for float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from types import TracebackType

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from tubelet.nn.block import Block
from tubelet.nn.predictor import Predictor
from tubelet.nn.tokens import Positions, Rotary, TokenRotary
from tubelet.nn.vit import ViT
from tubelet.types import Work

FLOAT = 4  # bytes of a float32
INDEX = 8  # bytes of an int64


class SavedTensors:
    """Counts, while it is entered, the bytes that autograd holds for a backward pass.

        with SavedTensors(method.parameters()) as saved:
            for loss in method(batch, moment):
                loss.value.backward()
        saved.peak  # bytes

    A storage counts once, and whole, however many tensors or views of it are saved; it stops counting when the
    last of them is let go, by a backward pass or with its graph. owned: tensors whose storages do not count,
    such as parameters: they are there anyway. A method's clip is not in question: what is saved of it are the
    tubelets that `ViT.embed` cuts out, a copy, and they count.

    now, peak: bytes held at this moment, and most so far.
    """

    def __init__(self, owned: Iterable[Tensor] = ()) -> None:
        self.now = self.peak = 0
        self._owned = {tensor.untyped_storage().data_ptr() for tensor in owned}
        self._holders: Counter[int] = Counter()  # by the address of a storage
        self._hooks = saved_tensors_hooks(lambda tensor: _Saved(tensor, self), lambda saved: saved.tensor)

    def __enter__(self) -> SavedTensors:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._owned:
            return
        if not self._holders[storage.data_ptr()]:
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
        self._holders[storage.data_ptr()] += 1

    def _let_go(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._owned:
            return
        self._holders[storage.data_ptr()] -= 1
        if not self._holders[storage.data_ptr()]:
            del self._holders[storage.data_ptr()]
            self.now -= storage.nbytes()


class _Saved:
    """What autograd holds in place of a saved tensor; its end is the end of the saving."""

    def __init__(self, tensor: Tensor, account: SavedTensors) -> None:
        # detached: a saved output that knew its graph would be a circle, which only a backward pass would end
        self.tensor, self.account = tensor.detach(), account
        account._hold(self.tensor)

    def __del__(self) -> None:
        self.account._let_go(self.tensor)


def saved_bytes(
    works: Iterable[Work], batch_size: int, positions: Positions, *, streamed: bool = True
) -> int:
    """Most bytes that autograd holds at a time while ``batch_size`` clips take the passes of `Method.work`.

    positions: of the encoder. streamed: each loss is back-propagated before the next is built, as the loop does;
    False: their graphs stand side by side, and one backward pass ends them all. Passes without backward keep
    nothing. Every loss keeps its prediction and its target (an L1 loss only their difference: counted as both).
    Where graphs stand side by side, what several of them save together (a target, or a block's output that the
    next one starts from) is counted for each: 3 to 8 % too much for a ViT-S or ViT-B in 4 to 12 blocks.
    Raises TypeError for a module that has no formula here.
    """
    graphs = [
        (sum(_pass_bytes(w, positions) for w in graph) + _loss_bytes(graph), graph[0].times)
        for graph in by_loss(works)
    ]
    if streamed:
        return batch_size * max((size for size, _ in graphs), default=0)
    return batch_size * sum(size * times for size, times in graphs)


def by_loss(works: Iterable[Work]) -> list[list[Work]]:
    """The passes with a backward, split into those of each loss: a graph begins where the encoder's pass does."""
    moving = [work for work in works if work.backward]
    starts = [i for i, work in enumerate(moving) if i == 0 or work.part == "encoder"]
    return [moving[start:stop] for start, stop in pairwise([*starts, len(moving)])]


def gradient_bytes(trainable: Iterable[nn.Module]) -> int:
    """One gradient for every parameter of the modules that `Method.trainable` names."""
    moving = {id(p): p.numel() for module in trainable for p in module.parameters()}
    return FLOAT * sum(moving.values())


def optimizer_bytes(method: nn.Module) -> int:
    """AdamW's two moments and its step count for every parameter that is built to require a gradient.

    `train.optim.Optimizer` creates all state at the start and keeps that of a frozen parameter bit by bit, so
    freezing saves gradients, and no state. Count before a step: one that freezes changes ``requires_grad``.
    """
    return FLOAT * sum(2 * p.numel() + 1 for p in method.parameters() if p.requires_grad)


def _loss_bytes(graph: list[Work]) -> int:
    """Prediction and target, as wide as what ends the graph: a Predictor, or the linear heads after it."""
    last, total = graph[-1], 0
    for work in graph:
        match work.module:
            case nn.Linear() as head:
                total += 2 * work.context * head.out_features * FLOAT
            case Predictor() as predictor if work is last:
                total += 2 * work.target * predictor.target_dim * FLOAT
    return total


def _pass_bytes(work: Work, positions: Positions) -> int:
    """Bytes kept by one pass over one clip."""
    n, target = work.context, work.target
    match work.module:
        case Predictor() as predictor:
            both = n + target
            ids = INDEX * target  # which mask token stands at each target
            context = FLOAT * n * predictor.context_dim  # input of the embedding
            blocks = _blocks_bytes(list(predictor.blocks), both, predictor.positions)
            # the norm reads the targets, a view of all last tokens; it keeps a mean and a deviation for each
            norm = FLOAT * (both * predictor.dim + 2 * target)
            head = FLOAT * target * predictor.dim if isinstance(predictor.head, nn.Linear) else 0
            return ids + context + blocks + norm + head
        case ViT() as vit:
            return _section_bytes(vit.section(0, vit.depth), n, vit.positions)
        case tuple() as section:
            return _section_bytes(section, n, positions)
        case module:
            return _section_bytes((module,), n, positions)


def _section_bytes(section: tuple[nn.Module, ...], n: int, positions: Positions) -> int:
    total = 0
    for module in section:
        match module:
            case nn.Linear():
                total += FLOAT * n * module.in_features  # its input
            case nn.LayerNorm():
                total += FLOAT * n * (module.normalized_shape[0] + 2)  # its input; mean and deviation
            case Block():
                pass
            case _:
                raise TypeError(
                    f"no memory formula for {type(module).__name__}; add one to analysis/memory.py"
                )
    return total + _blocks_bytes([m for m in section if isinstance(m, Block)], n, positions)


def _blocks_bytes(blocks: list[nn.Module], n: int, positions: Positions) -> int:
    """Blocks one after the other, and the cosines and sines that they share."""
    if not blocks:
        return 0
    first = blocks[0]
    assert isinstance(first, Block)
    match positions:
        case Rotary():
            tables = 2 * n * (first.attn.proj.in_features // first.attn.heads)
        case TokenRotary():
            tables = 2 * n * first.attn.proj.in_features
        case _:
            tables = 0
    return FLOAT * tables + sum(_block_bytes(block, n) for block in blocks)


def _block_bytes(block: nn.Module, n: int) -> int:
    """One `Block` on n tokens; each line names what the backward of one operation needs."""
    assert isinstance(block, Block)
    dim, heads, hidden = block.attn.proj.in_features, block.attn.heads, block.mlp.fc1.out_features
    per_token = (
        dim + 2  # norm1: its input, mean and deviation
        + dim  # qkv: its input, which is the norm's output, turned where positions turn tokens
        + 3 * dim  # attention: queries, keys and values
        + dim  # attention's output, which is the input of proj
        + heads  # attention: log-sum-exp of the scores
        + dim + 2  # norm2: its input, mean and deviation
        + dim  # fc1: its input
        + hidden  # GELU: its input
        + hidden  # fc2: its input
    )  # fmt: skip
    return FLOAT * n * per_token
