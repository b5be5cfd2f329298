"""LayerLock: the schedule, what is frozen, what is predicted, and what is left open."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_golden import batch_of
from test_methods import PATCH, encoder, videomae
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tubelet.analysis.cost import cost, with_held
from tubelet.analysis.health import HealthMonitor, verdict
from tubelet.masks import Aimed, MultiBlockMask, RandomMask, TubeMask
from tubelet.methods.layerlock import LOCKS_4DS_G, LayerLock, Locks
from tubelet.methods.method import Method
from tubelet.nn.decoding import JoinedDecoder, SeparateDecoder
from tubelet.nn.predictor import Predictor
from tubelet.nn.tokens import SinCos, TokenRotary, gather
from tubelet.nn.vit import ViT
from tubelet.train.loop import take_step
from tubelet.train.optim import Optimizer
from tubelet.train.parallel import World
from tubelet.train.schedule import Constant, Restarted, WarmupCosine
from tubelet.train.settings import TrainSettings
from tubelet.types import Batch, Grid, MaskSampler, Moment

PIXELS = 3 * 2 * 8 * 8
LOCKS = Locks(2, 3, 1, 2)


def separate(**options: Any) -> LayerLock:
    return LayerLock(
        encoder(), SeparateDecoder(Predictor(48, 24, 2, 2, None)), TubeMask(0.75), LOCKS, **options
    )


def joined(depth: int = 4, **options: Any) -> LayerLock:
    model = ViT(48, depth, 3, patch=PATCH)
    return LayerLock(model, JoinedDecoder(model, 2), RandomMask(0.8), LOCKS, **options)


@pytest.fixture
def batch() -> Batch:
    return batch_of(0)


def losses(method: Method, batch: Batch, step: int) -> list[float]:
    torch.manual_seed(5)
    return [loss.value.item() for loss in method(batch, Moment(step, 10))]


def train(method: Method, steps: range) -> Optimizer:
    optimizer = Optimizer(method, (0.9, 0.95))
    settings = TrainSettings(
        steps=10, batch_size=4, lr=Constant(1e-2), weight_decay=Constant(0.5), precision="fp32"
    )
    for step in steps:
        take_step(method, optimizer, batch_of(step), Moment(step, 10), settings, World())
    return optimizer


def test_the_4ds_g_schedule_locks_where_the_paper_says() -> None:
    at = [0, 159_999, 160_000, 169_999, 170_000, 469_999, 470_000, 10_000_000]
    assert [LOCKS_4DS_G.frozen(step) for step in at] == [0, 0, 1, 1, 2, 31, 32, 32]
    assert LOCKS_4DS_G.steps()[-1] == 470_000 and len(LOCKS_4DS_G.steps()) == 32


def test_phases_cover_the_run_without_gaps() -> None:
    assert Locks(4, 2, 3, 7).phases(20) == [(0, 4, 0), (4, 6, 3), (6, 8, 6), (8, 20, 7)]
    assert Locks(0, 5, 1, 3).phases(7) == [(0, 5, 1), (5, 7, 2)]
    assert Locks(9, 5, 1, 3).phases(7) == [(0, 7, 0)]


def test_rate_restarts_at_each_lock() -> None:
    inner = WarmupCosine(0.0, 1.0, 0.0, warmup=2)
    rate = Restarted(inner, (10, 20), 4)
    for step in range(40):
        moment = Moment(step, 40)
        since = step % 10 if 10 <= step < 30 else 99
        assert rate(moment) == pytest.approx(min(1.0, (since + 1) / 4) * inner(moment))
    assert rate.describe() == {**inner.describe(), "restart_at": [10, 20], "restart_length": 4}


@pytest.mark.parametrize("build", [separate, joined])
def test_frozen_weights_and_their_optimizer_state_never_change(build: Callable[[], LayerLock]) -> None:
    """With weight decay, momentum, and a history of moving."""
    method = build()
    optimizer = train(method, range(5))
    frozen = [f"encoder.{part}" for part in ("embedding.", "blocks.0.")]
    before = {
        name: tensor.clone()
        for name, tensor in {**method.state_dict(), **optimizer.state()}.items()
        if name.startswith(tuple(frozen))
    }
    moving = {name: tensor.clone() for name, tensor in method.state_dict().items() if name not in before}
    settings = TrainSettings(
        steps=10, batch_size=4, lr=Constant(1e-2), weight_decay=Constant(0.5), precision="fp32"
    )
    assert method.locked(Moment(4, 10)) == 1
    for step in (5, 6, 7):
        take_step(method, optimizer, batch_of(step), Moment(step, 10), settings, World())
    assert method.locked(Moment(7, 10)) == 2
    after = {**method.state_dict(), **optimizer.state()}
    assert len(before) > 40
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert sum(not torch.equal(tensor, after[name]) for name, tensor in moving.items()) > 25


@pytest.mark.parametrize("build", [separate, joined])
def test_the_frozen_prefix_leaves_no_graph(build: Callable[[], LayerLock], batch: Batch) -> None:
    method = build()
    graphs: list[bool] = []
    for block in method.encoder.blocks:
        block.register_forward_hook(lambda module, inputs, output: graphs.append(output.requires_grad))
    for loss in method(batch, Moment(5, 10)):  # two blocks frozen
        loss.value.backward()
    targets = 2  # the target pass runs first, through both
    assert graphs == [False] * targets + [False, False] + [True] * (method.encoder.depth - 2)
    assert all(p.grad is None for part in method.encoder.section(0, 2) for p in part.parameters())


def test_before_the_first_lock_it_equals_videomae(batch: Batch) -> None:
    plain = videomae()
    locking = separate()
    locking.encoder.load_state_dict(plain.encoder.state_dict())
    trunk = {k: v for k, v in plain.decoder.state_dict().items() if not k.startswith("head")}
    decoder = locking.decoder
    assert isinstance(decoder, SeparateDecoder)
    decoder.predictor.load_state_dict(trunk)
    locking.heads["pixels"].load_state_dict(plain.decoder.head.state_dict())
    assert losses(locking, batch, 0) == losses(plain, batch, 0)
    assert losses(separate(latents=False), batch, 9) != losses(plain, batch, 9)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_the_latent_loss_equals_its_formula(batch: Batch, norm: str) -> None:
    method = separate(target_norm=norm)
    found = losses(method, batch, 5)
    torch.manual_seed(5)
    grid = method.encoder.grid(batch.clip)
    (mask,) = method.mask(grid, 4, torch.device("cpu"))
    with torch.no_grad():
        latents = method.encoder.layers(batch.clip, [2])[2]
        latents = F.layer_norm(latents, (48,)) if norm == "layer" else latents
        context = method.encoder(batch.clip, mask.context)
        decoder = method.decoder
        assert isinstance(decoder, SeparateDecoder)
        predicted = method.heads["layer2"](decoder.predictor(context, mask, grid))
        by_hand = (predicted - gather(latents, mask.target)).square().mean().item()
    assert found == pytest.approx([by_hand], rel=1e-5)


@pytest.mark.parametrize("positions", [None, SinCos(), TokenRotary()])
def test_the_joined_decoder_equals_the_blocks_by_hand(batch: Batch, positions: Any) -> None:
    model = ViT(60, 4, 3, patch=PATCH, positions=positions)
    decoder = JoinedDecoder(model, 2)
    grid = model.grid(batch.clip)
    (mask,) = RandomMask(0.8)(grid, 4, torch.device("cpu"))
    rotation = model.rotation(grid, mask.context, batch.clip.device)
    found = decoder(model, model.embed(batch.clip, mask.context), rotation, 0, mask, grid)
    ids = torch.cat((mask.context, mask.target), 1)
    tokens = model.embed(batch.clip, mask.context)
    for block in model.blocks[:2]:
        tokens = block(tokens, model.rotation(grid, mask.context, tokens.device))
    learned = decoder.token.weight[0].expand(4, mask.target.shape[1], -1)
    if isinstance(positions, SinCos):
        learned = learned + gather(positions.add(grid, 60, tokens.device), mask.target)
    tokens = torch.cat((tokens, learned), 1)
    for block in model.blocks[2:]:
        tokens = block(tokens, model.rotation(grid, ids, tokens.device))
    assert torch.allclose(found, model.norm(tokens)[:, mask.context.shape[1] :], atol=1e-6)
    other = decoder(model, model.embed(batch.clip, mask.context), rotation, 0, mask, grid)
    assert not torch.allclose(other[:, 0], other[:, 1])  # the learned tokens know their places


def test_what_the_target_pass_reads(batch: Batch) -> None:
    """full: every token; sampled and visible: those that are asked for and no others."""
    for target_input, aimed in (
        ("full", Aimed(TubeMask(0.75), "hidden", 0.5)),
        ("sampled", Aimed(TubeMask(0.75), "hidden", 0.5)),
        ("visible", Aimed(TubeMask(0.75), "visible")),
    ):
        method = separate(target_input=target_input, latent_mask=aimed)
        seen: list[int] = []
        method.encoder.blocks[0].register_forward_hook(lambda m, i, o, seen=seen: seen.append(i[0].shape[1]))
        assert losses(method, batch, 5)[0] > 0
        (context, target) = method.latent_mask.counts(Grid(2, 6, 8))[0]
        assert sorted(seen) == sorted(
            [context, {"full": 96, "sampled": target, "visible": context}[target_input]]
        )
    with pytest.raises(ValueError, match="knows those alone"):
        losses(separate(target_input="visible"), batch, 5)


def test_one_head_or_one_per_target(batch: Batch) -> None:
    assert set(separate().heads) == {"pixels", "layer1", "layer2"}
    assert set(separate(heads="one").heads) == {"pixels", "latents"}
    assert set(separate(latents=False).heads) == {"pixels"}
    assert set(separate(start="latents").heads) == {"layer1", "layer2"}
    method = separate(heads="one")
    assert [method.trainable(Moment(s, 10))[-1][0] is method.heads["latents"] for s in (0, 2, 5)] == [  # type: ignore[index]
        False,
        True,
        True,
    ]


def test_a_kept_pixel_loss_is_added_with_its_weight(batch: Batch) -> None:
    torch.manual_seed(0)
    method = separate(pixel_weight=lambda moment: 0.5, latent_weight=lambda moment: 2.0)
    torch.manual_seed(5)
    (loss,) = method(batch, Moment(3, 10))
    parts = loss.metrics
    assert loss.value.item() == pytest.approx(
        2.0 * parts["loss/latents"].item() + 0.5 * parts["loss/pixels"].item(), rel=1e-6
    )


def test_without_freezing_everything_moves_and_the_target_moves_on() -> None:
    method = separate(freeze=False)
    assert [method.locked(Moment(s, 10)) for s in (0, 9)] == [0, 0]
    assert [method.target_layer(Moment(s, 10)) for s in (0, 2, 9)] == [0, 1, 2]
    before = copy.deepcopy(method.encoder.state_dict())
    train(method, range(6, 7))
    assert not torch.equal(
        before["blocks.0.mlp.fc1.weight"], method.encoder.state_dict()["blocks.0.mlp.fc1.weight"]
    )


def test_the_averaged_teacher_gives_the_targets(batch: Batch) -> None:
    method = separate(start="latents", momentum=lambda moment: 0.5)
    assert list(method.encoders()) == ["teacher", "student"] and method.target_layer(Moment(0, 10)) == 1
    first = losses(method, batch, 0)
    with torch.no_grad():
        for parameter in method.teacher.blocks[0].parameters():  # type: ignore[union-attr]
            parameter.add_(torch.randn_like(parameter))
    changed = losses(method, batch, 0)
    assert changed != first
    with torch.no_grad():
        for parameter in method.teacher.blocks[1].parameters():  # type: ignore[union-attr]
            parameter.add_(torch.randn_like(parameter))
    assert losses(method, batch, 0) == changed  # deeper than the target: not read


def test_a_gradient_reaches_the_target_only_where_it_is_let(batch: Batch) -> None:
    """Without freezing and stop-gradient, the target pass learns too; with freezing it never does."""
    graphs: dict[str, list[bool]] = {"open": [], "stopped": [], "frozen": []}
    options: dict[str, dict[str, Any]] = {
        "open": {"freeze": False, "stop_gradient": False},
        "stopped": {"freeze": False},
        "frozen": {"stop_gradient": False},
    }
    for name, given in options.items():
        method = separate(**given)

        def look(module: nn.Module, inputs: tuple[torch.Tensor], out: torch.Tensor, name: str = name) -> None:
            if inputs[0].shape[1] == 96:  # the whole clip: the target pass
                graphs[name].append(out.requires_grad)

        method.encoder.blocks[0].register_forward_hook(look)
        for loss in method(batch, Moment(5, 10)):
            loss.value.backward()
    assert graphs == {"open": [True], "stopped": [False], "frozen": [False]}


def test_a_target_that_learns_collapses_and_a_frozen_one_does_not() -> None:
    """Latents alone: with the gradient let into the target, different clips end alike; the verdict sees it."""
    states = {}
    for freeze in (False, True):
        torch.manual_seed(0)
        method = separate(freeze=freeze, stop_gradient=freeze, start="latents")
        optimizer = Optimizer(method, (0.9, 0.95))
        settings = TrainSettings(steps=60, batch_size=4, lr=Constant(3e-3), precision="fp32")
        monitor = HealthMonitor(torch.cat([batch_of(100 + i).clip for i in range(4)]))
        rows = []
        for step in range(61):
            if step % 20 == 0:
                with torch.no_grad():
                    rows.append({"step": float(step), **monitor(Moment(step, 60), method)})
            if step < 60:
                take_step(method, optimizer, batch_of(step), Moment(step, 60), settings, World())
        states[freeze] = verdict(rows).state
    assert states == {False: "collapse", True: "healthy"}


@pytest.mark.parametrize("step", [0, 3, 5])
@pytest.mark.parametrize("kind", ["separate", "joined", "learning"])
def test_flops_by_formula_equal_torchs_counter(kind: str, step: int) -> None:
    with torch.device("meta"):
        learning = {"freeze": False, "stop_gradient": False} if kind == "learning" else {}
        method = joined() if kind == "joined" else separate(**learning)
    for parameter in method.parameters():
        parameter.requires_grad_(False)
    for module in method.trainable(Moment(step, 10)):
        module.requires_grad_(True)
    batch = Batch(torch.empty(1, 3, 4, 48, 64, device="meta"), torch.zeros(1))
    with FlopCounterMode(display=False) as counter:
        for loss in method(batch, Moment(step, 10)):
            loss.value.backward()
    assert counter.get_total_flops() == cost(method.work(Grid(2, 6, 8), Moment(step, 10))).total


def test_a_schedule_that_freezes_more_than_there_is_is_refused() -> None:
    model = encoder()
    decoder = SeparateDecoder(Predictor(48, 24, 1, 2, None))
    with pytest.raises(
        ValueError, match="the encoder has 3 blocks, and one must be left to learn; use deepest=2"
    ):
        LayerLock(model, decoder, RandomMask(), Locks(1, 1, 1, 3))
    with pytest.raises(ValueError, match="the last 2 decode; use deepest=1 or less"):
        LayerLock(model, JoinedDecoder(model, 2), RandomMask(), Locks(1, 1, 1, 2))
    with pytest.raises(ValueError, match="leaves no block"):
        JoinedDecoder(model, 3)
    with pytest.raises(ValueError, match="interval=0: must be at least 1"):
        Locks(1, 0, 1, 1)
    with pytest.raises(ValueError, match="pixel_steps=-1"):
        Locks(-1, 1, 1, 1)
    with pytest.raises(ValueError, match="nothing to predict"):
        LayerLock(model, decoder, RandomMask(), Locks(1, 1, 1, 1), start="latents", latents=False)


@pytest.mark.parametrize("held", [1, 2, 3, 4])
@pytest.mark.parametrize("step", [0, 5])
@pytest.mark.parametrize("kind", ["separate", "joined"])
def test_flops_with_held_blocks_equal_torchs_counter(kind: str, step: int, held: int) -> None:
    """Learned tokens that join above held blocks send gradients through held ones: charged, but for no weights."""
    with torch.device("meta"):
        method = joined()
        if kind == "separate":
            decoder = SeparateDecoder(Predictor(48, 24, 2, 2, None))
            method = LayerLock(method.encoder, decoder, TubeMask(0.75), LOCKS)
    parts = method.encoder.section(0, held)
    moving = {p for m in method.trainable(Moment(step, 10)) for p in m.parameters()}
    still = {p for part in parts for p in part.parameters()}
    for parameter in method.parameters():
        parameter.requires_grad_(parameter in moving - still)
    batch = Batch(torch.empty(1, 3, 4, 48, 64, device="meta"), torch.zeros(1))
    with FlopCounterMode(display=False) as counter:
        for loss in method(batch, Moment(step, 10)):
            loss.value.backward()
    formula = cost(with_held(method.work(Grid(2, 6, 8), Moment(step, 10)), parts)).total
    # where all of the encoder is held, a separate decoder's first layer needs no gradient of its input
    assert formula == pytest.approx(
        counter.get_total_flops(), rel=0.005 if (kind, held) == ("separate", 4) else 0
    )


@pytest.mark.parametrize("mask", [MultiBlockMask(), RandomMask(0.8, kinds=3)])
def test_the_joined_decoder_takes_masks_of_several_kinds(mask: MaskSampler, batch: Batch) -> None:
    model = ViT(48, 3, 3, patch=PATCH)
    for kinds in (1, 2):
        method = LayerLock(model, JoinedDecoder(model, 1, kinds), mask, Locks(2, 3, 1, 1))
        assert all(value > 0 for step in (0, 5) for value in losses(method, batch, step))
