"""Token statistics against slow computations, on tokens whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tubelet.analysis.tokens import (
    TokenStatistics,
    patch_similarity,
    token_norms,
    token_outliers,
    token_values,
)

METRICS = {"patch_similarity", "token_norm", "token_norm_sd", "token_outliers"}
seeds = st.integers(0, 10_000)


def draw(seed: int, clips: int = 3, n: int = 7, dim: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clips, n, dim, generator=generator) + torch.randn(dim, generator=generator)


def pairwise(tokens: Tensor) -> np.ndarray:
    """Every ordered pair of different tokens, one after the other, LayerNorm and all."""
    found = []
    for clip in tokens.double():
        normed = torch.nn.functional.layer_norm(clip, clip.shape[-1:])
        cosines = [
            torch.dot(a, b) / (a.norm() * b.norm())
            for i, a in enumerate(normed)
            for j, b in enumerate(normed)
            if i != j
        ]
        found.append(float(sum(cosines)) / len(cosines))
    return np.array(found)


def test_patch_similarity_equals_the_mean_over_all_ordered_pairs() -> None:
    tokens = draw(0)
    np.testing.assert_allclose(patch_similarity(tokens), pairwise(tokens), atol=1e-6)
    assert patch_similarity(tokens).dtype == torch.float64


def test_patch_similarity_of_known_tokens() -> None:
    one = torch.tensor([3.0, -1.0, -2.0])
    other = torch.tensor([0.0, 1.0, -1.0])
    across = float(torch.nn.functional.cosine_similarity(one, other, dim=0))
    tokens = torch.stack(
        [
            torch.stack([one, one, one]),
            torch.stack([one, -one, one]),  # of six ordered pairs two agree
            torch.stack([one, one, other]),
        ]
    )
    expected = [1, -1 / 3, (1 + 2 * across) / 3]
    np.testing.assert_allclose(patch_similarity(tokens), expected, atol=1e-6)


def test_patch_similarity_lies_between_its_bounds() -> None:
    corners = torch.eye(5).unsqueeze(0)  # centred, they point as far apart as five vectors can
    assert patch_similarity(corners).item() == pytest.approx(-1 / 4, abs=1e-6)
    assert patch_similarity(corners[:, :1].expand(-1, 6, -1)).item() == pytest.approx(1, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_patch_similarity_does_not_change_with_scale_shift_or_order_of_tokens(seed: int) -> None:
    tokens = draw(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    scale = 0.1 + 10 * torch.rand(3, 7, 1, generator=generator)  # of every token for itself
    shift = torch.randn(3, 7, 1, generator=generator)  # of all its channels
    channels, order = torch.randperm(12, generator=generator), torch.randperm(7, generator=generator)
    changed = (scale * tokens + shift)[:, order][..., channels]
    np.testing.assert_allclose(patch_similarity(changed), patch_similarity(tokens), atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_patch_similarity_survives_rotations_that_keep_the_mean(seed: int) -> None:
    """LayerNorm takes out the mean over channels: only orthogonal maps that fix (1, ..., 1) leave cosines alone."""
    generator = torch.Generator().manual_seed(seed)
    free = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    free[:, 0] = 1.0
    basis = torch.linalg.qr(free).Q  # its first column is (1, ..., 1) up to sign and length
    inner = torch.linalg.qr(torch.randn(11, 11, generator=generator, dtype=torch.float64)).Q
    turning = basis @ torch.block_diag(torch.ones(1, 1, dtype=torch.float64), inner) @ basis.T
    tokens = draw(seed)
    turned = (tokens.double() @ turning).float()
    np.testing.assert_allclose(patch_similarity(turned), patch_similarity(tokens), atol=1e-5)


def test_patch_similarity_is_nan_where_it_is_undefined() -> None:
    tokens = draw(0, clips=4)
    tokens[1, 2] = 5.3  # the same in all channels: no direction
    tokens[2, 3, 4] = math.inf
    tokens[3, 0, 0] = math.nan
    found = patch_similarity(tokens)
    assert found.isnan().tolist() == [False, True, True, True]
    assert found[0] == patch_similarity(tokens[:1])
    assert patch_similarity(draw(0, n=1)).isnan().all()


def test_patch_similarity_holds_no_table_of_pairs() -> None:
    tokens = draw(0, clips=1, n=60_000, dim=4)  # the table would have 14 GB
    assert -1 <= patch_similarity(tokens).item() <= 1


def test_norms_and_their_mean_and_sd_equal_numpy() -> None:
    tokens = draw(3)
    norms = np.linalg.norm(tokens.numpy().astype(np.float64), axis=-1)
    np.testing.assert_allclose(token_norms(tokens), norms, rtol=1e-6)
    values = token_values(tokens)
    assert values.keys() == METRICS
    np.testing.assert_allclose(values["token_norm"], norms.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(values["token_norm_sd"], norms.std(axis=1), rtol=1e-5)


def test_outliers_equal_an_explicit_median_and_mad() -> None:
    norms = 10 + torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norms[1, 3], norms[1, 17], norms[2, 5] = 60.0, 40.0, 0.1  # short ones do not stick out
    expected = np.zeros((5, 40), bool)
    for i, row in enumerate(norms.numpy()):
        middle = np.median(row)
        expected[i] = row > middle + 6 * 1.4826 * np.median(np.abs(row - middle))
    assert np.array_equal(token_outliers(norms), expected)
    assert np.argwhere(expected).tolist() == [[1, 3], [1, 17]]


@settings(max_examples=25, deadline=None)
@given(seed=seeds, scale=st.floats(0.01, 100))
def test_outliers_do_not_depend_on_the_scale(seed: int, scale: float) -> None:
    tokens = draw(seed, n=20)
    tokens[0, 3] *= 30
    assert torch.equal(token_outliers(token_norms(tokens)), token_outliers(token_norms(scale * tokens)))


def test_norms_that_differ_by_rounding_have_no_outliers() -> None:
    """Behind a LayerNorm all tokens are equally long, but for the last bit of some."""
    norms = torch.full((1, 50), 8.0, dtype=torch.float64)
    norms[0, 4] += 1e-6
    assert not token_outliers(norms).any()  # though its deviation is infinitely many times the median one
    norms[0, 4] += 1.0
    assert token_outliers(norms).nonzero().tolist() == [[0, 4]]


def test_the_norms_of_a_clip_that_is_not_finite_are_nan_not_zero() -> None:
    tokens = draw(0)
    tokens[1, 2, 3] = math.inf
    for metric, value in token_values(tokens).items():
        assert value.isnan().tolist() == [False, True, False], metric


def test_statistics_over_batches_equal_those_of_all_clips_at_once() -> None:
    tokens = draw(5, clips=11)
    tokens[2, 4] *= 40
    tokens[9, 4] *= 40
    tokens[6] = 1.0  # similarity undefined
    gathered = TokenStatistics()
    for part in tokens.split([4, 1, 6]):
        gathered.add(3, part)
        gathered.add(0, 2 * part)
    found = gathered.found()
    assert found.keys() == {0, 3} and found[3].keys() == METRICS
    for metric, values in token_values(tokens).items():
        known = values[~values.isnan()].numpy()
        np.testing.assert_allclose(found[3][metric], (known.mean(), known.std(ddof=1)), rtol=1e-12)
        assert gathered.undefined()[3][metric] == (metric == "patch_similarity")
    assert found[0]["token_norm"][0] == pytest.approx(2 * found[3]["token_norm"][0])
    assert gathered.places[3].tolist() == [0, 0, 0, 0, 2, 0, 0]


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12),
    cut=st.integers(0, 12),
)
def test_means_do_not_depend_on_how_clips_are_batched(values: list[float], cut: int) -> None:
    whole = torch.tensor(values, dtype=torch.float64)
    gathered = TokenStatistics()
    for part in (whole[:cut], whole[cut:]):
        gathered.add_values(1, {"x": part})
    found = gathered.found()[1]["x"]
    np.testing.assert_allclose(found, (whole.mean(), whole.std()), rtol=1e-9, atol=1e-9)


def test_the_mean_of_nothing_is_nan() -> None:
    gathered = TokenStatistics()
    gathered.add(2, draw(0, n=1))
    mean, sd = gathered.found()[2]["patch_similarity"]
    assert math.isnan(mean) and math.isnan(sd)
    assert gathered.undefined()[2]["patch_similarity"] == 3
    gathered = TokenStatistics()
    gathered.add(2, draw(0, clips=1))
    mean, sd = gathered.found()[2]["patch_similarity"]
    assert math.isfinite(mean) and math.isnan(sd)  # one clip has no spread
