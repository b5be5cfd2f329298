"""Is the representation alive? Effective rank, spread and agreement while training, and a verdict in words.

A pretraining loss cannot tell: JEPA losses fall while features collapse, and rise while they improve. So a
fixed batch of clips passes through the encoder now and then, and what is measured is the *content* of its
tokens: each token minus the mean, over clips, of the tokens at its place. Without that subtraction positions
alone would keep up the rank and spread of an encoder that ignores its input.

Measurements mean little in themselves (a narrow domain has a low rank); everything is judged against the same
encoder at step 0.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.nn.vit import ViT
from tubelet.types import Moment

PARTIAL = 1 / 3  # below this share of step 0, rank or spread says "partial collapse"
COLLAPSE = 0.1  # below this, "collapse"
FALLEN = 1 / 4  # also partial: below this share of the run's own best, wherever step 0 was
FEW = 3  # measurements, step 0 included, before anything is said


class HasEncoders(Protocol):
    """What the monitor needs of a method."""

    def encoders(self) -> dict[str, ViT]:
        """Encoders by name, the recommended one first."""
        ...


def content(tokens: Tensor) -> Tensor:
    """Tokens [B, N, D] of B clips minus each place's mean over the clips, float32."""
    tokens = tokens.float()
    return tokens - tokens.mean(dim=0, keepdim=True)


def rankme(rows: Tensor) -> float:
    """Effective rank of ``rows`` [..., D]: exp of the entropy of their normalised singular values.

    Source: RankMe (arXiv 2210.02885), there of uncentred embeddings; pass `content` to leave out what is
    constant. Between 1 and D; 0.0 for rows that are all zero, nan for rows that are not finite.
    """
    rows = rows.flatten(0, -2).double()
    if not rows.isfinite().all():
        return math.nan
    singular = torch.linalg.eigvalsh(rows.T @ rows).clamp(min=0).sqrt()
    return entropy_rank(singular) if singular.sum() > 0 else 0.0


def entropy_rank(weights: Tensor) -> float:
    """exp of the entropy of ``weights`` [D] as shares of their sum, from 1 (one counts) to D (all alike).

    At least 0, one of them more. The effective rank of Roy & Vetterli (2007), if they are singular values.
    """
    share = weights / weights.sum()
    return math.exp(-torch.special.xlogy(share, share).sum().item())


def spread(tokens: Tensor) -> float:
    """Standard deviation over clips of the features of tokens [B, N, D], as a share of their RMS value.

    0: all clips look alike to the encoder. The share, because the final norm fixes the scale of a token but
    weight decay may move it.
    """
    scale = tokens.float().square().mean().sqrt()
    return (content(tokens).square().mean().sqrt() / scale).item() if scale > 0 else 0.0


def mean_norm(tokens: Tensor) -> float:
    """Norm of the mean token of [B, N, D] as a share of the tokens' RMS norm: 1 if all are the same vector."""
    scale = tokens.float().square().sum(-1).mean().sqrt()
    return (tokens.float().mean(dim=(0, 1)).norm() / scale).item() if scale > 0 else 0.0


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Linear centred kernel alignment of centred rows [..., D] and [..., E]: 1 if equal up to rotation and scale.

    Of tensors in memory that the caller has centred, by `content` for one; for tables of features, which may be longer
    than memory, and for other estimators: `analysis.similarity`. Source: arXiv 1905.00414 (the biased estimator). nan
    where a side is constant: undefined, not zero.
    """
    one, other = one.flatten(0, -2).double(), other.flatten(0, -2).double()
    scale = (one.T @ one).norm() * (other.T @ other).norm()
    return ((one.T @ other).square().sum() / scale).item() if scale > 0 else math.nan


class HealthMonitor:
    """Measures a method's encoders on fixed clips; the loop calls it and logs what it returns.

    clips: float [B, C, T, H, W], B >= 2 (16 or more give steady numbers), normalised as in training.
    chunk: clips that pass through the encoder at once.
    """

    def __init__(self, clips: Tensor, chunk: int = 16):
        if len(clips) < 2:
            raise ValueError(f"health is measured across clips: at least 2 are needed, not {len(clips)}")
        self.clips, self.chunk = clips, chunk

    def __call__(self, moment: Moment, method: HasEncoders) -> dict[str, float]:
        """Numbers to log, none of which depends on the moment.

        repr/rankme, repr/std, repr/mean_norm: of the recommended encoder (`rankme` of `content`, `spread`,
        `mean_norm`). With a second encoder, a teacher or a student: repr/agreement, `linear_cka` of their
        contents, and repr/cosine, the mean cosine of their tokens, where they are equally wide.
        """
        first, *others = method.encoders().values()
        tokens = self.tokens(first)
        inner = content(tokens)
        found = {
            "repr/rankme": rankme(inner),
            "repr/std": spread(tokens),
            "repr/mean_norm": mean_norm(tokens),
        }
        if others:
            theirs = self.tokens(others[0])
            found["repr/agreement"] = linear_cka(inner, content(theirs))
            if theirs.shape[-1] == tokens.shape[-1]:
                found["repr/cosine"] = F.cosine_similarity(tokens, theirs, dim=-1).mean().item()
        return found

    @torch.no_grad()
    def tokens(self, encoder: ViT) -> Tensor:
        """Final normed tokens [B, N, D] of all clips, float32."""
        device = next(encoder.parameters()).device
        return torch.cat([encoder(part.to(device)).float() for part in self.clips.split(self.chunk)])


@dataclass(frozen=True)
class Verdict:
    """state: "healthy", "partial collapse", "collapse" or "too early"; since_step: where it began, if bad."""

    state: str
    since_step: int | None
    sentence: str


def verdict(history: Iterable[Mapping[str, float]]) -> Verdict:
    """Judges the rows of metrics.jsonl that carry repr/rankme and repr/std; other rows are passed over.

    Against the first such row (step 0), rank counted above 1, the least there is:
    * collapse: rank or spread below a tenth of it, or not a finite number;
    * partial collapse: rank or spread below a third of it, or below a quarter of the run's own best;
    * too early: fewer than three measurements;
    * healthy otherwise, saying so if an earlier dip was recovered from.
    ``since_step`` is the first of the bad measurements that lead, unbroken, to the last. The thresholds are
    ours: in small trials on a world of few factors, pixels and averaged teachers end between .5 and .8 of the
    starting rank, a V-JEPA without stop-gradient at .05.
    """
    rows = sorted((r for r in history if "repr/rankme" in r and "repr/std" in r), key=lambda r: r["step"])
    if len(rows) < FEW:
        return Verdict(
            "too early", None, f"too early to say: {len(rows)} of {FEW} measurements of the features so far"
        )
    levels = [_level(rows, i) for i in range(len(rows))]
    first, last = rows[0], rows[-1]
    now = (
        f"effective rank {_fmt(first['repr/rankme'])} -> {_fmt(last['repr/rankme'])}, "
        f"spread {_fmt(first['repr/std'])} -> {_fmt(last['repr/std'])} "
        f"from step {int(first['step'])} to step {int(last['step'])}"
    )
    if levels[-1] == 0:
        dips = [int(row["step"]) for row, level in zip(rows, levels, strict=True) if level]
        past = f"; it recovered from a dip at steps {dips[0]} to {dips[-1]}" if dips else ""
        return Verdict("healthy", None, f"healthy: {now}{past}")
    start = len(levels) - next((i for i, level in enumerate(reversed(levels)) if level == 0), len(levels))
    since = int(rows[start]["step"])
    if levels[-1] == 1:
        advice = "lower the learning rate or raise the momentum, and keep a checkpoint from before"
        return Verdict("partial collapse", since, f"partial collapse since step {since}: {now}; {advice}")
    advice = (
        "different clips now give nearly the same features; stop, and start again from a checkpoint before it"
    )
    return Verdict("collapse", since, f"collapse since step {since}: {now}; {advice}")


def _level(rows: Sequence[Mapping[str, float]], i: int) -> int:
    """0 healthy, 1 partial collapse, 2 collapse, for measurement ``i`` given those up to it."""
    worst = 0
    for key, least in (("repr/rankme", 1.0), ("repr/std", 0.0)):
        values = [row[key] - least for row in rows[: i + 1]]
        value, start, best = values[-1], values[0], max(values)
        if not math.isfinite(value) or value < COLLAPSE * start:
            worst = 2
        elif value < PARTIAL * start or value < FALLEN * best:
            worst = max(worst, 1)
    return worst


@dataclass(frozen=True)
class Keep:
    """The checkpoint to keep, by step, and why."""

    step: int
    sentence: str


def keep(history: Sequence[Mapping[str, float]], checkpoints: Sequence[int], loss_is_signal: bool) -> Keep:
    """Which of ``checkpoints`` (steps) to keep, from the rows of metrics.jsonl.

    loss_is_signal: the recipe's promise that targets do not move, so a lower training loss is a better encoder
    (SALT's second stage: R2 of .95 to .98 between the two, arXiv 2509.24317; only among students of one teacher).
    Then the checkpoint with the lowest loss, each the median of the rows before it (a twentieth of the run).
    Otherwise the loss is only a proxy (a moving target moves its scale) and the last checkpoint that was not
    collapsing is kept. Raises ValueError without checkpoints.
    """
    if not checkpoints:
        raise ValueError("there is no checkpoint to choose from")
    steps = sorted(checkpoints)
    if loss_is_signal:
        losses = {step: loss for step in steps if (loss := _loss_at(history, step)) is not None}
        if losses:
            best = min(losses, key=lambda step: (losses[step], -step))
            why = f"its student loss, {losses[best]:.4f}, is the lowest of {len(losses)} checkpoints"
            return Keep(
                best, f"keep step {best}: {why}; with a frozen teacher a lower loss is a better encoder"
            )
    for step in reversed(steps):
        state = verdict([row for row in history if row["step"] <= step]).state
        if state in ("healthy", "too early"):
            later = "" if step == steps[-1] else "; those after it were collapsing"
            proxy = "the loss does not say which is best, so the last healthy one"
            return Keep(step, f"keep step {step}: {proxy}{later}")
    return Keep(steps[0], f"keep step {steps[0]}, the earliest: features were collapsing at every checkpoint")


def _loss_at(history: Sequence[Mapping[str, float]], step: int) -> float | None:
    """Median of the finite losses logged just before ``step``; a checkpoint at step s holds the steps below s."""
    rows = [
        (row["step"], row["train/loss"]) for row in history if math.isfinite(row.get("train/loss", math.nan))
    ]
    window = max(1, len(rows) // 20)
    before = [loss for at, loss in sorted(rows) if at < step][-window:]
    return statistics.median(before) if before else None


def _fmt(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "not a number"
