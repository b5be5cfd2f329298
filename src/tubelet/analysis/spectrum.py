"""How many directions do features use, and how evenly? Spectrum, scale and LiDAR of a table of any length."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from tubelet.analysis.health import entropy_rank
from tubelet.analysis.similarity import CHUNK, Rows, Table

PAIRS = 20_000  # of rows, drawn for distances and cosines
DELTA = 1e-4  # added to the within-clip scatter of LiDAR


@dataclass(frozen=True)
class Spectrum:
    """What the rows of a table [n, D] look like from far away. nan: undefined, see `spectrum`.

    Of the eigenvalues l of the centred covariance: effective_rank, exp of the entropy of l / sum l, 1 to D;
    participation_ratio, (sum l)^2 / sum l^2, 1 to D; isotropy, the largest over the mean, 1 (all alike) to D;
    components_90, the fewest whose sum is 90 % of all; condition_number, largest over smallest, inf if a direction is
    unused (always, if n <= D).
    rankme: as effective_rank of the singular values of the rows as they are, uncentred, 1 to D.
    Of pairs of different rows: uniformity, log mean exp(-2 d^2) with d the distance on the unit sphere, 0 (all the
    same direction) down to -8; cosine_mean, cosine_sd; euclid_mean, euclid_sd, in units of the features.
    Of the norms of rows: norm_mean, norm_sd, norm_min, norm_max. All standard deviations divide by the count.
    """

    effective_rank: float
    participation_ratio: float
    isotropy: float
    components_90: float
    condition_number: float
    uniformity: float
    rankme: float
    norm_mean: float
    norm_sd: float
    norm_min: float
    norm_max: float
    cosine_mean: float
    cosine_sd: float
    euclid_mean: float
    euclid_sd: float


def spectrum(rows: Rows, seed: int = 0, chunk: int = CHUNK) -> Spectrum:
    """Spectrum and scale of a table [n, D], read ``chunk`` rows at a time, in float64.

    Source: the released evaluation of BWSSL (arXiv 2601.09040); rankme: arXiv 2210.02885, without its epsilon. Pairs:
    20,000 drawn by ``seed``, with replacement; if there are no more than that, each once (ours). Eigenvalues below D
    times the float64 rounding of the largest count as zero (ours). nan: of a constant table what needs a spread (the
    covariance's; its cosines are 1 and its distances 0), what needs a direction where a row is zero (cosines and
    uniformity, if such a row is drawn; rankme, if all are), and what needs a pair, for n = 1.
    Memory does not grow with n: about 5 D^2 + 4 * ``chunk`` * D numbers of 8 bytes, and 2 MB for the pairs. Raises
    ValueError if there are no rows, or a row is not finite (which).
    """
    table = Table(rows, "the table", chunk)
    scatter, norms = np.zeros((table.width, table.width)), _Norms()
    for part in table.parts():
        read = table.read(part)
        norms.add(np.linalg.norm(read, axis=1))
        centred = table.centre_(read)
        scatter += centred.T @ centred
    covariance = scatter / len(table)
    about_zero = covariance + np.outer(table.mean, table.mean)
    pairs = _pairs(table, seed)
    return Spectrum(
        **_shape(_eigenvalues(covariance)),
        rankme=_rank(np.sqrt(_eigenvalues(about_zero))),
        uniformity=pairs.uniformity,
        norm_mean=norms.mean,
        norm_sd=norms.sd,
        norm_min=norms.least,
        norm_max=norms.most,
        cosine_mean=float(pairs.cosine.mean()),
        cosine_sd=float(pairs.cosine.std()),
        euclid_mean=float(pairs.euclid.mean()),
        euclid_sd=float(pairs.euclid.std()),
    )


def lidar(views: Rows, delta: float = DELTA, chunk: int = CHUNK) -> float:
    """LiDAR of n clips seen in q ways each, [n, q, D]: how many directions tell clips apart rather than views.

    exp of the entropy of the normalised eigenvalues of S_w^-1/2 S_b S_w^-1/2, 1 to D. Source: arXiv 2312.04000. S_b:
    scatter of the clips' means (of their q views) about the mean of all, over n. S_w: scatter of views about their
    clip's mean, over n q, plus ``delta`` I. The two denominators matter only beside delta, which is absolute: features
    that vary less than sqrt(delta) between views are judged by it, so compare encoders of like scale. The paper gives
    no value; 1e-4 is common. Its epsilon within the entropy is left out. Compare at equal q and D, with n above D.
    nan with fewer than 2 clips or 2 views, or if all clips have the same mean. Memory does not grow with n: about
    6 D^2 + 4 * max(``chunk``, q) * D numbers of 8 bytes. Raises ValueError if delta is not positive, there are no
    clips, or one is not finite (which).
    """
    if not delta > 0:
        raise ValueError(f"delta is {delta}: it must be positive, or the scatter of views cannot be inverted")
    table = Table(views, "the views", max(1, chunk // max(1, math.prod(views.shape[1:-1]))), dimensions=3)
    n, q, width = views.shape
    if n < 2 or q < 2:
        return math.nan
    within, between = np.zeros((width, width)), np.zeros((width, width))
    for part in table.parts():
        centred = table.centred(part)
        mean = centred.mean(1)  # [clips, D]
        between += mean.T @ mean
        around = (centred - mean[:, None]).reshape(-1, width)
        within += around.T @ around
    value, vector = np.linalg.eigh(within / (n * q))
    whiten = vector / np.sqrt(
        value.clip(min=0) + delta
    )  # S_w^-1/2, but for a rotation that eigenvalues do not see
    return _rank(_eigenvalues(whiten.T @ (between / n) @ whiten))


def _eigenvalues(matrix: np.ndarray) -> np.ndarray:
    """Of a symmetric matrix without negative ones: ascending, what is rounding set to zero. float64 [D]"""
    found = np.linalg.eigvalsh(matrix)
    found[found <= found[-1] * len(found) * np.finfo(np.float64).eps] = 0
    return found


def _rank(values: np.ndarray) -> float:
    """`entropy_rank`, nan if all are zero."""
    return entropy_rank(torch.from_numpy(values)) if values[-1] > 0 else math.nan


def _shape(values: np.ndarray) -> dict[str, float]:
    """What `Spectrum` has of the covariance's eigenvalues, ascending."""
    names = ("effective_rank", "participation_ratio", "isotropy", "components_90", "condition_number")
    if not values[-1] > 0:
        return dict.fromkeys(names, math.nan)
    total = values.sum()
    # a share of exactly 90 % must not miss it by rounding
    reached = values[::-1].cumsum() >= 0.9 * total * (1 - 1e-12)
    found = (
        _rank(values),
        total**2 / np.square(values).sum(),
        values[-1] / values.mean(),
        reached.argmax() + 1,
        values[-1] / values[0] if values[0] > 0 else math.inf,
    )
    return dict(zip(names, map(float, found), strict=True))


class _Norms:
    """Mean, standard deviation and range of numbers that come in parts."""

    def __init__(self) -> None:
        self.count, self.start, self.sum, self.squares = 0, 0.0, 0.0, 0.0
        self.least, self.most = math.inf, -math.inf

    def add(self, part: np.ndarray) -> None:
        if not self.count:
            self.start = float(part[0])  # sums are about it: squares of large norms would lose a small spread
        self.count += len(part)
        self.sum += float((part - self.start).sum())
        self.squares += float(np.square(part - self.start).sum())
        self.least, self.most = min(self.least, float(part.min())), max(self.most, float(part.max()))

    @property
    def mean(self) -> float:
        return self.start + self.sum / self.count

    @property
    def sd(self) -> float:
        return math.sqrt(max(0.0, self.squares / self.count - (self.sum / self.count) ** 2))


@dataclass(frozen=True)
class _Pairs:
    """cosine, euclid: float64 [pairs], nan where undefined (one nan, if there is no pair)."""

    cosine: np.ndarray
    euclid: np.ndarray

    @property
    def uniformity(self) -> float:
        # on the unit sphere the squared distance is 2 - 2 cos
        return float(np.log(np.exp(-2 * (2 - 2 * self.cosine)).mean()))


def _pairs(table: Table, seed: int) -> _Pairs:
    n = len(table)
    if n < 2:
        return _Pairs(np.array([math.nan]), np.array([math.nan]))
    if n * (n - 1) // 2 <= PAIRS:
        one, other = np.triu_indices(n, 1)
    else:
        random = np.random.default_rng(seed)
        one = random.integers(n, size=PAIRS)
        other = (one + random.integers(1, n, size=PAIRS)) % n
    cosine, euclid = np.empty(len(one)), np.empty(len(one))
    for i in range(0, len(one), table.chunk):
        part = slice(i, i + table.chunk)
        a, b = table.read(one[part]), table.read(other[part])
        euclid[part] = np.linalg.norm(a - b, axis=1)
        scale = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        inner = np.einsum("rd,rd->r", a, b)
        cosine[part] = np.divide(inner, scale, out=np.full(len(a), math.nan), where=scale > 0).clip(-1, 1)
    return _Pairs(cosine, euclid)
