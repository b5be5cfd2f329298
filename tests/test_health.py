"""Health: the measures on features whose answer is known, verdicts on histories, and on real small runs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.analysis.health import (
    HealthMonitor,
    content,
    keep,
    linear_cka,
    mean_norm,
    rankme,
    spread,
    verdict,
)
from tubelet.masks import RandomMask
from tubelet.methods.videomae import VideoMAE
from tubelet.nn.predictor import Predictor
from tubelet.nn.tokens import gather
from tubelet.nn.vit import ViT
from tubelet.types import Batch, Loss, Moment


def test_rankme_of_a_known_spectrum():
    basis, _ = torch.linalg.qr(torch.randn(40, 12, generator=torch.Generator().manual_seed(0)))
    flat = torch.zeros(12)
    flat[:5] = 3.0
    assert rankme(basis * flat) == pytest.approx(5.0, rel=1e-5)
    falling = torch.tensor([4.0, 2.0, 1.0, 1.0] + [0.0] * 8)
    share = falling[:4] / 8
    assert rankme(basis * falling) == pytest.approx(math.exp(-(share * share.log()).sum()), rel=1e-5)
    assert rankme(torch.zeros(3, 4)) == 0.0


def test_content_leaves_out_what_positions_alone_explain():
    places = torch.randn(1, 10, 6)
    blind = places.expand(4, -1, -1)  # every clip looks the same
    assert spread(blind) == pytest.approx(0, abs=1e-6) and rankme(content(blind)) < 1e-3 + rankme(blind)
    assert content(blind).abs().max() == pytest.approx(0, abs=1e-6)
    assert spread(torch.randn(64, 10, 6)) == pytest.approx(1, abs=0.05)


def test_mean_norm_is_one_for_one_vector():
    assert mean_norm(torch.ones(3, 4, 5)) == pytest.approx(1)
    assert mean_norm(torch.randn(100, 40, 5)) < 0.1


def test_cka_does_not_see_rotation_and_scale_and_equals_the_gram_computation():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 7, generator=generator), torch.randn(30, 5, generator=generator)
    x, y = x - x.mean(0), y - y.mean(0)
    rotation, _ = torch.linalg.qr(torch.randn(7, 7, generator=generator))
    assert linear_cka(x, 3 * x @ rotation) == pytest.approx(1, abs=1e-6)
    k, m = x @ x.T, y @ y.T
    assert linear_cka(x, y) == pytest.approx(((k * m).sum() / (k.norm() * m.norm())).item(), rel=1e-5)
    assert math.isnan(linear_cka(x, torch.zeros(30, 2)))


def rows(ranks, spreads=None, every=100):
    spreads = spreads or [1.0] * len(ranks)
    return [
        {"step": i * every, "repr/rankme": r, "repr/std": s}
        for i, (r, s) in enumerate(zip(ranks, spreads, strict=True))
    ]


@pytest.mark.parametrize(
    ("history", "state", "since"),
    [
        (rows([50, 40]), "too early", None),
        (rows([50, 45, 40, 30]), "healthy", None),
        (rows([50, 45, 15, 14, 13]), "partial collapse", 200),
        (rows([50, 10, 45, 44]), "healthy", None),
        (rows([50, 10, 45, 10, 9]), "partial collapse", 300),
        (rows([50, 20, 10, 1.5]), "collapse", 200),
        (rows([10, 80, 90, 15]), "partial collapse", 300),  # above step 0, far below its own best
        (rows([50, 50, 50], [1.0, 0.5, 0.05]), "collapse", 200),
        (rows([50, 50, math.nan]), "collapse", 200),
    ],
)
def test_verdicts(history, state, since):
    found = verdict([{"step": 7, "train/loss": 1.0}, *history])
    assert (found.state, found.since_step) == (state, since)
    assert found.sentence.startswith(state if state != "too early" else "too early to say")
    if since is not None:
        assert f"since step {since}" in found.sentence


def test_a_recovered_dip_is_mentioned():
    assert "recovered from a dip at steps 100 to 100" in verdict(rows([50, 10, 45, 44])).sentence


def test_keep_follows_the_loss_only_where_targets_stand_still():
    losses = [0.9, 0.7, 0.4, 0.5, 0.6]
    history = [{"step": 100 * i + s, "train/loss": v} for i, v in enumerate(losses) for s in range(100)]
    history += rows([50, 45, 44, 43, 42])
    steps = [100, 200, 300, 400, 500]
    assert keep(history, steps, loss_is_signal=True).step == 300
    chosen = keep(history, steps, loss_is_signal=False)
    assert chosen.step == 500 and "does not say" in chosen.sentence


def test_keep_passes_over_collapsing_checkpoints():
    history = rows([50, 45, 44, 10, 1.2])
    chosen = keep(history, [100, 200, 300, 400], loss_is_signal=False)
    assert chosen.step == 200 and "collapsing" in chosen.sentence
    with pytest.raises(ValueError, match="no checkpoint"):
        keep(history, [], loss_is_signal=False)


def world(count: int, seed: int) -> Tensor:
    """Drifting waves of random direction, pace and colour, [B, 3, 4, 24, 32]."""
    generator = torch.Generator().manual_seed(seed)
    t, y, x = (torch.arange(n).float() for n in (4, 24, 32))
    angle, width, pace, phase = (torch.rand(count, 1, 1, 1, 1, generator=generator) for _ in range(4))
    turned = x * (math.tau * angle).cos() + y[:, None] * (math.tau * angle).sin()
    wave = ((0.1 + 0.3 * width) * turned + (2 * pace - 1) * t[:, None, None] + math.tau * phase).sin()
    return wave + 0.5 * torch.randn(count, 3, 1, 1, 1, generator=generator)


class NoStopGradient(nn.Module):
    """V-JEPA with momentum 0 whose teacher is the encoder itself, gradients and all: it must collapse."""

    def __init__(self, encoder: ViT, predictor: Predictor, mask: RandomMask):
        super().__init__()
        self.encoder, self.predictor, self.mask = encoder, predictor, mask

    def forward(self, batch: Batch, moment: Moment):
        grid = self.encoder.grid(batch.clip)
        (mask,) = self.mask(grid, len(batch), batch.clip.device)
        target = gather(self.encoder(batch.clip), mask.target)
        predicted = self.predictor(self.encoder(batch.clip, keep=mask.context), mask, grid)
        yield Loss(F.l1_loss(predicted, target))

    def encoders(self) -> dict[str, ViT]:
        return {"teacher": self.encoder, "student": self.encoder}


def run(build, target_dim: int, steps: int = 200, every: int = 20) -> list[dict[str, float]]:
    torch.manual_seed(0)
    encoder = ViT(48, 2, 2, patch=(2, 8, 8))
    method = build(encoder, Predictor(48, 36, 1, 3, target_dim), RandomMask(0.75))
    monitor = HealthMonitor(world(24, seed=999))
    optimizer = torch.optim.AdamW(method.parameters(), weight_decay=0.04)
    history = []
    for step in range(steps + 1):
        moment = Moment(step, steps)
        if step % every == 0:
            history.append({"step": step, **monitor(moment, method)})
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 20)
        torch.manual_seed(step)
        optimizer.zero_grad()
        for loss in method(Batch(world(12, seed=step), torch.arange(12)), moment):
            loss.value.backward()
        optimizer.step()
    return history


def test_the_verdict_on_a_run_without_stop_gradient_changes():
    history = run(NoStopGradient, target_dim=48)
    states = [verdict(history[: n + 1]).state for n in range(len(history))]
    assert states[0] == "too early"
    assert states[2] == "healthy"
    assert states[-1] in ("partial collapse", "collapse"), history  # which of them depends on the seed
    since = verdict(history).since_step
    assert since is not None and 0 < since < 200


def test_a_healthy_pixel_run_stays_healthy():
    history = run(VideoMAE, target_dim=3 * 2 * 8 * 8)
    assert all(verdict(history[: n + 1]).state in ("too early", "healthy") for n in range(len(history))), (
        history
    )
    assert "repr/agreement" not in history[0]  # it has one encoder


def test_agreement_of_an_encoder_with_itself_is_one():
    encoder = ViT(48, 1, 2, patch=(2, 8, 8))
    found = HealthMonitor(world(4, 0))(
        Moment(0, 1), NoStopGradient(encoder, Predictor(48, 36, 1, 3, 48), RandomMask())
    )
    assert found["repr/agreement"] == pytest.approx(1) and found["repr/cosine"] == pytest.approx(1)


def test_one_clip_is_too_few():
    with pytest.raises(ValueError, match="at least 2"):
        HealthMonitor(world(1, 0))
