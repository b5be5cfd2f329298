"""What the tokens of a layer look like: how alike they are within a clip, how long, and which stick out.

All of it is a number per clip, so that means over any number of clips need no more memory than a batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

OUTLIER = 6.0  # robust standard deviations above the median
TO_SD = 1.4826  # the median absolute deviation of a normal distribution times this is its standard deviation
ROUNDING = 1e-5  # of the median: norms nearer to it than this, as behind a LayerNorm, are the same


@torch.no_grad()
def patch_similarity(tokens: Tensor) -> Tensor:
    """Mean cosine between different tokens of a clip: tokens [B, N, D] of one layer -> float64 [B], on the CPU.

    Tokens pass through a LayerNorm without parameters first; the mean is over all ordered pairs i != j. Between
    -1 / (N - 1) and 1; from the sum of the unit vectors, so in time and memory that grow with N, not with N*N.
    nan for a clip of a single token, with a token that is not finite, or with one that is the same in all channels:
    it has no direction. Source: the released evaluation of BWSSL (arXiv 2601.09040), row 004.
    """
    tokens = tokens.float()
    # the LayerNorm's division by the standard deviation cancels in the cosine, and with it its epsilon
    unit = F.normalize(tokens - tokens.mean(dim=-1, keepdim=True), dim=-1, eps=0.0)
    total = unit.sum(dim=1).cpu().double().square().sum(dim=-1)
    own = unit.square().sum(dim=(1, 2)).cpu().double()
    n = tokens.shape[1]
    if n == 1:
        return torch.full_like(own, math.nan)
    flat = (tokens == tokens[..., :1]).all(dim=-1).any(dim=-1).cpu()
    return ((total - own) / (n * (n - 1))).masked_fill(flat, math.nan)


@torch.no_grad()
def token_norms(tokens: Tensor) -> Tensor:
    """Euclidean norms of tokens [B, N, D], float64 [B, N] on the CPU; all nan in a clip that is not finite."""
    norms = tokens.float().norm(dim=-1).cpu().double()
    return norms.masked_fill(~norms.isfinite().all(dim=1, keepdim=True), math.nan)


def token_outliers(norms: Tensor) -> Tensor:
    """Which of the norms [B, N] stick out of their clip: bool [B, N], all False where norms are nan.

    Above the median by more than 6 robust standard deviations (1.4826 times the median absolute deviation), and by
    more than rounding (1e-5 of the median). Source: ours. "Vision Transformers Need Registers" (arXiv 2309.16588)
    cuts at an absolute norm, which does not carry over to encoders of another scale.
    """
    middle = norms.quantile(0.5, dim=1, keepdim=True)
    deviation = TO_SD * (norms - middle).abs().quantile(0.5, dim=1, keepdim=True)
    return norms - middle > torch.maximum(OUTLIER * deviation, ROUNDING * middle)


def token_values(tokens: Tensor) -> dict[str, Tensor]:
    """Every measure of this file for tokens [B, N, D]: metric -> float64 [B], nan where undefined.

    patch_similarity: see there. token_norm, token_norm_sd: mean and (population) standard deviation of the norms of
    a clip's tokens. token_outliers: the share of tokens that `token_outliers` finds. The last three are nan for a
    clip with a token that is not finite.
    """
    return _values(tokens, token_norms(tokens))


def _values(tokens: Tensor, norms: Tensor) -> dict[str, Tensor]:
    share = token_outliers(norms).double().mean(dim=1)
    return {
        "patch_similarity": patch_similarity(tokens),
        "token_norm": norms.mean(dim=1),
        "token_norm_sd": norms.std(dim=1, correction=0),
        "token_outliers": share.masked_fill(norms.isnan().any(dim=1), math.nan),
    }


class TokenStatistics:
    """Means over clips of what is measured per clip, gathered batch by batch.

    Holds four numbers for each layer and metric and, for each layer, one per token of a clip, however many clips.
    places: layer -> int64 [N], in how many clips the token there stuck out (`token_outliers`).
    """

    def __init__(self) -> None:
        self.places: dict[int, Tensor] = {}
        self._gathered: dict[int, dict[str, _Gathered]] = defaultdict(lambda: defaultdict(_Gathered))

    def add(self, layer: int, tokens: Tensor) -> None:
        """Measures the tokens [B, N, D] of a layer; N is the same in every batch of a layer."""
        norms = token_norms(tokens)
        here = token_outliers(norms).sum(dim=0)
        self.places[layer] = self.places[layer] + here if layer in self.places else here
        self.add_values(layer, _values(tokens, norms))

    def add_values(self, layer: int, values: Mapping[str, Tensor]) -> None:
        """Takes in what was measured elsewhere, metric -> [B]; `AttentionStatistics.by_clip` is such a mapping."""
        for metric, value in values.items():
            self._gathered[layer][metric].add(value.double().cpu())

    def found(self) -> dict[int, dict[str, tuple[float, float]]]:
        """Layer -> metric -> mean and standard deviation (n - 1) over the clips where the metric is defined.

        The mean is nan where there is no such clip, the deviation where there are fewer than two.
        """
        return {
            layer: {metric: (one.mean, one.sd) for metric, one in metrics.items()}
            for layer, metrics in self._gathered.items()
        }

    def undefined(self) -> dict[int, dict[str, int]]:
        """Layer -> metric -> for how many clips it was nan; `found` leaves them out."""
        return {
            layer: {metric: one.undefined for metric, one in metrics.items()}
            for layer, metrics in self._gathered.items()
        }


class _Gathered:
    """Count, mean and sum of squared deviations of the numbers seen so far, merged as Chan et al. (1979) do."""

    def __init__(self) -> None:
        self.count = self.undefined = 0
        self._mean = self._squares = 0.0

    def add(self, values: Tensor) -> None:
        known = values[~values.isnan()]
        self.undefined += len(values) - len(known)
        if not len(known):
            return
        mean, count = known.mean().item(), self.count + len(known)
        off = mean - self._mean
        self._squares += (known - mean).square().sum().item() + off**2 * self.count * len(known) / count
        self._mean += off * len(known) / count
        self.count = count

    @property
    def mean(self) -> float:
        return self._mean if self.count else math.nan

    @property
    def sd(self) -> float:
        return math.sqrt(self._squares / (self.count - 1)) if self.count > 1 else math.nan
