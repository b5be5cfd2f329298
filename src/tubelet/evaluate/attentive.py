"""The attentive probe on cached tokens: a grid of heads trained at once, the best chosen on a validation cut."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from tubelet.errors import UserError, nearest
from tubelet.evaluate.metrics import macro_recall
from tubelet.evaluate.tasks import inner_folds
from tubelet.nn.heads import AttentiveClassifier

Tokens = Callable[[np.ndarray], Tensor]  # indices of clips -> float32 [b, crops, N, D]
BestOn = Literal["validation", "test"]

ACTIVATIONS = {"cpu": 2**30}  # bytes that one pass through one head may keep for its backward pass
ACTIVATIONS_ELSEWHERE = 2**33
KEPT_PER_BLOCK = 20  # numbers that a self-attention block keeps per number of its input, about


@dataclass(frozen=True)
class Rates:
    """What one head is trained with; the only thing in which the heads of a grid differ.

    lr: peak learning rate, reached from ``start_lr`` in ``warmup`` epochs along a line, then half a cosine to 0.
    wd: weight decay of all parameters; half a cosine to ``wd_end``, or constant (None).
    """

    lr: float
    wd: float
    warmup: float = 0.0
    start_lr: float = 0.0
    wd_end: float | None = None

    def at(self, epoch: float, epochs: int) -> tuple[float, float]:
        """Learning rate and weight decay, ``epoch`` in [0, epochs]."""
        if epoch < self.warmup:
            lr = self.start_lr + (self.lr - self.start_lr) * epoch / self.warmup
        else:
            lr = self.lr * _falling((epoch - self.warmup) / (epochs - self.warmup))
        end = self.wd if self.wd_end is None else self.wd_end
        return lr, end + (self.wd - end) * _falling(epoch / epochs)

    def __str__(self) -> str:
        return f"lr {self.lr:g}, wd {self.wd:g}"


@dataclass(frozen=True)
class AttentiveSettings:
    """How the heads are trained. The defaults are ours, and cheap: one block, six heads, 20 epochs.

    depth: blocks of the pooler, 1 (V-JEPA) or 4 (V-JEPA 2). heads: of its attention (the largest common divisor
    with the width is used). lrs x wds: the grid, all with ``warmup``, ``start_lr`` and ``wd_end`` (see `Rates`);
    extra: further heads. AdamW (.9, .999), all parameters decayed, no class weights. clip: largest gradient norm
    of a head. batch_size: clips; each spatial view of a clip is a sample of its own. validation: share of
    training clips to choose the head on, about. refit: train the chosen rates again on all training clips, or
    use the head itself, which has not seen the validation clips. best_on="test" is the published protocol of
    V-JEPA 2: all heads learn from all training clips and the one with the best test accuracy is reported, which
    flatters; `AttentiveResult.note` then says so.
    Always in float32; the papers' probes ran in float16.
    Raises UserError for numbers that make no sense.
    """

    depth: int = 1
    heads: int = 16
    lrs: tuple[float, ...] = (3e-3, 1e-3, 3e-4)
    wds: tuple[float, ...] = (0.4, 0.01)
    epochs: int = 20
    batch_size: int = 32
    validation: float = 0.25
    warmup: float = 0.0
    start_lr: float = 0.0
    wd_end: float | None = None
    extra: tuple[Rates, ...] = ()
    clip: float | None = None
    refit: bool = True
    best_on: BestOn = "validation"

    def __post_init__(self) -> None:
        for name in ("depth", "heads", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} of the attentive probe must be at least 1")
        if not self.grid:
            raise UserError("the attentive probe has no head: give at least one lr and one wd")
        for rates in self.grid:
            if not (0 < rates.lr < math.inf and 0 <= rates.start_lr < math.inf and 0 <= rates.wd < math.inf):
                raise UserError(f"{rates}: a learning rate must be positive, a weight decay not negative")
            if not 0 <= rates.warmup < self.epochs:
                raise UserError(f"warmup={rates.warmup:g} must be less than the {self.epochs} epochs, or 0")
        if not 0 < self.validation <= 0.5:
            raise UserError(f"validation={self.validation:g} is a share of the training clips, up to 0.5")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"clip={self.clip:g} must be positive, or None for no clipping")
        if self.best_on not in ("validation", "test"):
            near = nearest(self.best_on, ("validation", "test"))
            raise UserError(f'best_on="{self.best_on}" is unknown{near} (known: validation, test)')

    @property
    def grid(self) -> tuple[Rates, ...]:
        """The rates of every head: lrs x wds, then the extra ones."""
        product_of = product(self.lrs, self.wds)
        return (
            *(Rates(lr, wd, self.warmup, self.start_lr, self.wd_end) for lr, wd in product_of),
            *self.extra,
        )


@dataclass(frozen=True)
class HeadScore:
    """One head of the grid: its macro recall on the validation clips, or its top1 on the test clips.

    Both None: it was not asked, or ``diverged`` (its loss was not finite at some step).
    """

    rates: Rates
    validation: float | None = None
    test: float | None = None
    diverged: bool = False


@dataclass(frozen=True)
class AttentiveResult:
    """What the probe reached.

    scores: float64 [m, classes] of the test clips. lr, wd: of the chosen head. heads: all heads of the grid, in
    its order. head: the trained head that gave the scores, on the CPU; its ``state_dict()`` is what there is to
    save. note: what a reader must know, empty if nothing (see also `inner_folds`).
    """

    scores: np.ndarray
    lr: float
    wd: float
    note: str
    heads: tuple[HeadScore, ...]
    head: AttentiveClassifier


def time_left(what: str, shown: bool) -> Progress:
    """A bar over steps with the time that is left, gone when done; nothing at all unless ``shown``."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, transient=True, disable=not shown)


def attentive_scores(
    tokens: Tokens,
    train: np.ndarray,
    label: np.ndarray,
    test: np.ndarray,
    classes: int,
    group: np.ndarray | None = None,
    settings: AttentiveSettings | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    *,
    test_label: np.ndarray | None = None,
    progress: bool = False,
) -> AttentiveResult:
    """Trains on clips ``train`` (their labels: ``label`` [n], their groups: ``group`` [n]), scores clips ``test``.

    All heads of the grid learn from the same batches, in one pass over the tokens, of one part of the training
    clips; the head with the best macro recall on the rest, which shares no group with it, is chosen, and trained
    again on all of them (`AttentiveSettings.refit`). With too few clips to choose, the rates in the middle of
    the grid are taken, or lower ones if those diverge (ours). Test clips are scored once, by that head; the
    softmax is averaged over a clip's crops. Only with ``best_on="test"`` is ``test_label`` [m] read.
    A head whose loss is not finite is left alone from then on and never chosen.
    Memory: a batch of tokens, all heads with AdamW's state, and the activations of one head for as many clips as
    fit `ACTIVATIONS`; never the table.
    Raises UserError if all heads diverge, or if best_on="test" comes without ``test_label``.
    """
    settings = settings or AttentiveSettings()
    grid = settings.grid

    def fit(clips: np.ndarray, truth: np.ndarray, rates: Sequence[Rates]) -> _Heads:
        heads = _Heads(tokens(clips[:1]), classes, rates, settings, seed, device)
        heads.train(tokens, clips, truth, progress)
        return heads

    if settings.best_on == "test":
        if test_label is None:
            raise UserError('best_on="test" chooses the head by the test labels: give test_label')
        heads = fit(train, label, grid)
        said = heads.predict(tokens, test)
        accuracy = [float((s.argmax(1) == test_label).mean()) for s in said]
        chosen = _ranked(accuracy, _surenesses(said, test_label), heads.alive, grid)[0]
        note = (
            f"CHOSEN ON TEST: the best of {len(grid)} heads by test accuracy, V-JEPA 2's protocol; the score "
            "is optimistic and must not be compared with scores chosen on validation clips"
        )
        told = tuple(
            HeadScore(rates, test=score if ok else None, diverged=not ok)
            for rates, score, ok in zip(grid, accuracy, heads.alive, strict=True)
        )
        return AttentiveResult(said[chosen], grid[chosen].lr, grid[chosen].wd, note, told, heads.one(chosen))

    folds, note = inner_folds(label, group, max(2, round(1 / settings.validation)), seed)
    told = tuple(HeadScore(rates) for rates in grid)
    if not folds or len(grid) == 1:
        middle = grid[len(grid) // 2]
        order = [len(grid) // 2, *(i for i, rates in enumerate(grid) if rates.lr < middle.lr)]
    else:
        learn, held = folds[0].train, folds[0].test
        heads = fit(train[learn], label[learn], grid)
        said = heads.predict(tokens, train[held])
        quality = [macro_recall(label[held], s.argmax(1) == label[held]) for s in said]
        told = tuple(
            HeadScore(rates, validation=score if ok else None, diverged=not ok)
            for rates, score, ok in zip(grid, quality, heads.alive, strict=True)
        )
        order = _ranked(quality, _surenesses(said, label[held]), heads.alive, grid)
        if not settings.refit:
            best = order[0]
            scores = heads.predict(tokens, test, only=best)[best]
            if np.isfinite(scores).all():
                return AttentiveResult(scores, grid[best].lr, grid[best].wd, note, told, heads.one(best))
            raise _diverged([grid[best]])
    for best in order:  # the chosen rates may diverge on other clips: then the next best
        final = fit(train, label, [grid[best]])
        scores = final.predict(tokens, test)[0]
        if final.alive[0]:
            return AttentiveResult(scores, grid[best].lr, grid[best].wd, note, told, final.one(0))
    raise _diverged([grid[i] for i in order])


class _Heads:
    """Heads that start alike, one optimizer each, and which of them are still finite."""

    def __init__(
        self,
        clip: Tensor,
        classes: int,
        rates: Sequence[Rates],
        settings: AttentiveSettings,
        seed: int,
        device: torch.device | str,
    ) -> None:
        """clip: the tokens of any one clip [1, crops, N, D]."""
        self.rates, self.settings, self.seed = rates, settings, seed
        self.device, self.classes = torch.device(device), classes
        kept = clip.numel() * clip.element_size() * (2 + KEPT_PER_BLOCK * (settings.depth - 1))
        self.at_once = max(1, ACTIVATIONS.get(self.device.type, ACTIVATIONS_ELSEWHERE) // kept)
        dim = clip.shape[-1]
        self.heads: list[AttentiveClassifier] = []
        with torch.random.fork_rng(devices=[]):
            for _ in rates:
                torch.manual_seed(seed)  # the heads of a grid differ in nothing but their rates
                head = AttentiveClassifier(dim, math.gcd(dim, settings.heads), classes, settings.depth)
                self.heads.append(head.to(self.device))
        self.alive = [True] * len(rates)

    def one(self, number: int) -> AttentiveClassifier:
        """Head ``number`` as it is handed out."""
        return self.heads[number].cpu().requires_grad_(False).eval()

    def train(self, tokens: Tokens, clips: np.ndarray, label: np.ndarray, progress: bool) -> None:
        """Every batch is read once and shown to each head in turn; a head's graph is freed before the next's."""
        settings = self.settings
        optimizers = [
            torch.optim.AdamW(head.parameters(), fused=self.device.type in ("cpu", "cuda"))
            for head in self.heads
        ]
        batches = math.ceil(len(clips) / settings.batch_size)
        bar = time_left(f"attentive probe, {len(self.heads)} head{'s' * (len(self.heads) > 1)}", progress)
        with bar:
            task = bar.add_task("", total=settings.epochs * batches)
            for epoch in range(settings.epochs):
                order = np.random.default_rng([self.seed, epoch]).permutation(len(clips))
                for number, chosen in enumerate(np.array_split(order, batches)):
                    moment = epoch + number / batches
                    losses = self._backward(tokens, clips[chosen], label[chosen])
                    for i, finite in enumerate(losses.isfinite().tolist()):
                        self.alive[i] = self.alive[i] and finite
                        if self.alive[i]:
                            self._step(
                                optimizers[i], self.heads[i], *self.rates[i].at(moment, settings.epochs)
                            )
                    bar.advance(task)

    def _backward(self, tokens: Tokens, clips: np.ndarray, label: np.ndarray) -> Tensor:
        """Gradients of each live head's mean cross-entropy over ``clips``, and these losses [heads]."""
        losses = torch.zeros(len(self.heads), device=self.device)
        for part, batch in self._parts(tokens, clips):
            truth = torch.as_tensor(label[part], device=self.device).repeat_interleave(batch.shape[1])
            flat = batch.flatten(0, 1)  # [b * crops, N, D]
            for i, head in enumerate(self.heads):
                if self.alive[i]:
                    loss = F.cross_entropy(head(flat), truth) * (len(batch) / len(clips))
                    loss.backward()
                    losses[i] += loss.detach()
        return losses

    def _step(self, optimizer: torch.optim.AdamW, head: AttentiveClassifier, lr: float, wd: float) -> None:
        if self.settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(head.parameters(), self.settings.clip)
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr, wd
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def predict(self, tokens: Tokens, clips: np.ndarray, only: int | None = None) -> np.ndarray:
        """Class probabilities float64 [heads, clips, classes], averaged over crops; NaN for heads not asked.

        A head whose probabilities are not finite is no longer alive: its last step was its worst.
        """
        scores = np.full((len(self.heads), len(clips), self.classes), np.nan)
        asked = [i for i in range(len(self.heads)) if self.alive[i] and only in (None, i)]
        for start in range(0, len(clips), self.settings.batch_size):
            for part, batch in self._parts(tokens, clips[start : start + self.settings.batch_size]):
                flat = batch.flatten(0, 1)
                for i in asked:
                    said = self.heads[i](flat).double().softmax(-1).unflatten(0, batch.shape[:2]).mean(dim=1)
                    scores[i, start + part] = said.cpu().numpy()
        for i in asked:
            self.alive[i] = bool(np.isfinite(scores[i]).all())
        return scores

    def _parts(self, tokens: Tokens, clips: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """``clips`` in runs that fit in memory: their places in ``clips``, and [b, crops, N, D] on the device."""
        for start in range(0, len(clips), self.at_once):
            part = np.arange(start, min(start + self.at_once, len(clips)))
            yield part, tokens(clips[part]).to(self.device)


def _falling(at: float) -> float:
    """Half a cosine from 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * at))


def _surenesses(scores: np.ndarray, label: np.ndarray) -> list[float]:
    """Mean log probability of the truth for each head: few clips leave heads that make the same mistakes."""
    return [float(np.log(s[np.arange(len(label)), label].clip(1e-12)).mean()) for s in scores]


def _ranked(
    quality: Sequence[float], sureness: Sequence[float], alive: Sequence[bool], grid: Sequence[Rates]
) -> list[int]:
    """Heads that did not diverge, best first; ties in quality go to the surer one."""
    order = [i for i in range(len(grid)) if alive[i]]
    if not order:
        raise _diverged(grid)
    return sorted(order, key=lambda i: (-round(quality[i], 9), -sureness[i]))


def _diverged(grid: Sequence[Rates]) -> UserError:
    lowest = min(rates.lr for rates in grid)
    return UserError(
        f"all {len(grid)} heads of the attentive probe diverged (the lowest learning rate was {lowest:g}): "
        "give lower lrs, a warmup, or clip=1.0"
    )
