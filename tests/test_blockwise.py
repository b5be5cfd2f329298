"""Blockwise learning: isolation, streaming, one optimizer or several, regimes and remedies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_golden import batch_of
from test_methods import PATCH, encoder, videomae
from torch.utils.flop_counter import FlopCounterMode

from tubelet.analysis.cost import cost
from tubelet.masks import Aimed, TubeMask
from tubelet.methods.blockwise import Blockwise, cut
from tubelet.methods.videomae import pixel_target
from tubelet.nn.predictor import Predictor
from tubelet.nn.tokens import gather
from tubelet.nn.vit import ViT
from tubelet.train.loop import take_step
from tubelet.train.optim import Optimizer
from tubelet.train.parallel import World
from tubelet.train.schedule import Constant, Staged, WarmupCosine
from tubelet.train.settings import TrainSettings
from tubelet.types import Batch, Grid, Moment

PIXELS = 3 * 2 * 8 * 8
MOMENT = Moment(0, 12)


def decoder(width: int = PIXELS) -> Predictor:
    return Predictor(48, 24, 1, 2, width)


def built(depth: int = 4, blocks: str = "4", count: int | None = None, **options: Any) -> Blockwise:
    torch.manual_seed(3)
    layers = cut(depth, blocks)
    decoders = [decoder() for _ in range(len(layers) if count is None else count)]
    return Blockwise(ViT(48, depth, 3, patch=PATCH), decoders, TubeMask(0.75), layers, **options)


@pytest.fixture
def batch() -> Batch:
    return batch_of(0)


def gradients(method: Blockwise, batch: Batch, summed: bool = False) -> dict[str, torch.Tensor | None]:
    method.zero_grad()
    torch.manual_seed(5)
    if summed:
        torch.stack([loss.value for loss in method(batch, MOMENT)]).sum().backward()
    else:
        for loss in method(batch, MOMENT):
            loss.value.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in method.named_parameters()}


def test_cuts() -> None:
    assert cut(12, "4") == (3, 3, 3, 3) and cut(12, "2,4,6") == (2, 4, 6) and cut(5, "1") == (5,)
    for wrong, said in (("5", "use one of 1, 2, 3, 4, 6, 12"), ("3,3", "are 6 layers"), ("a", "neither")):
        with pytest.raises(ValueError, match=said):
            cut(12, wrong)


def test_no_gradient_crosses_a_blocks_edge(batch: Batch) -> None:
    """d L_j / d theta_k = 0 for j != k."""
    method = built()
    for j in range(4):
        method.zero_grad()
        torch.manual_seed(5)
        for number, loss in enumerate(method(batch, MOMENT)):
            if number == j:
                loss.value.backward()
        for k in range(4):
            own = [*method.encoder.section(k, k + 1), method.decoder(k)]
            moved = [p.grad is not None and bool(p.grad.abs().sum() > 0) for m in own for p in m.parameters()]
            assert all(moved) if k == j else not any(moved), (j, k)


def test_forward_values_equal_those_without_isolation(batch: Batch) -> None:
    """The last block's loss is that of the whole encoder with the last decoder."""
    method = built()
    torch.manual_seed(5)
    *_, last = method(batch, MOMENT)
    torch.manual_seed(5)
    grid = method.encoder.grid(batch.clip)
    (mask,) = method.mask(grid, 4, torch.device("cpu"))
    predicted = method.decoder(3)(method.encoder(batch.clip, mask.context), mask, grid)
    assert (
        last.value.item()
        == F.mse_loss(predicted, pixel_target(batch.clip, mask.target, PATCH, "channel")).item()
    )


@pytest.mark.parametrize("options", [{}, {"overlap": 0, "count": 1}])
def test_streamed_gradients_equal_summed_ones(batch: Batch, options: dict[str, Any]) -> None:
    method = built(**options)
    streamed, summed = gradients(method, batch), gradients(method, batch, summed=True)
    for name, gradient in streamed.items():
        torch.testing.assert_close(gradient, summed[name], rtol=1e-5, atol=1e-8, msg=name)


def test_overlapping_blocks_learn_from_both_losses(batch: Batch) -> None:
    plain, overlapping = built(6, "3"), built(6, "3", overlap=1)
    assert overlapping.spans == [(0, 2), (1, 4), (3, 6)]
    one, both = gradients(plain, batch), gradients(overlapping, batch)
    for layer, shared in enumerate([False, True, False, True, False, False]):
        name = f"encoder.blocks.{layer}.mlp.fc1.weight"
        assert torch.allclose(one[name], both[name], atol=1e-7) is not shared, layer  # type: ignore[arg-type]
    torch.manual_seed(5)
    values = [loss.value.item() for loss in plain(batch, MOMENT)]
    torch.manual_seed(5)
    assert values == pytest.approx([loss.value.item() for loss in overlapping(batch, MOMENT)], rel=1e-6)


def test_one_optimizer_equals_one_per_block() -> None:
    """Bit for bit, as long as nothing couples them: no gradient norm over all blocks."""
    together, apart = built(), built()
    optimizer = Optimizer(together, (0.9, 0.95))
    settings = TrainSettings(
        steps=5, batch_size=4, lr=Constant(1e-2), weight_decay=Constant(0.1), precision="fp32", clip=0.1,
        clip_per="module",
    )  # fmt: skip
    several = []
    for k in range(4):
        own = torch.nn.ModuleList([*apart.encoder.section(k, k + 1), apart.decoder(k)])
        decayed = [p for p in own.parameters() if p.ndim >= 2]
        others = [p for p in own.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        several.append((own, torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), fused=True)))
    from tubelet.train.loop import seed_from

    for step in range(5):
        batch = batch_of(step)
        take_step(together, optimizer, batch, Moment(step, 5), settings, World())
        torch.manual_seed(seed_from(settings.seed, step, 0))
        for loss, (own, adamw) in zip(apart(batch, Moment(step, 5)), several, strict=True):
            loss.value.backward()
            torch.nn.utils.clip_grad_norm_(own.parameters(), 0.1)
            adamw.step()
            adamw.zero_grad()
    for (name, ours), theirs in zip(together.named_parameters(), apart.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_end_to_end_equals_videomae(batch: Batch) -> None:
    plain = videomae()
    matched = Blockwise(
        encoder(), [Predictor(48, 24, 2, 2, PIXELS)], TubeMask(0.75), (1, 1, 1), regime="end_to_end"
    )
    matched.encoder.load_state_dict(plain.encoder.state_dict())
    matched.decoder(0).load_state_dict(plain.decoder.state_dict())
    for method in (plain, matched):
        torch.manual_seed(5)
        for loss in method(batch, MOMENT):
            loss.value.backward()
    for (name, ours), theirs in zip(
        matched.encoder.named_parameters(), plain.encoder.parameters(), strict=True
    ):
        assert torch.equal(ours.grad, theirs.grad), name  # type: ignore[arg-type]


def test_sequential_trains_one_block_at_a_time(batch: Batch) -> None:
    method = built(regime="sequential")
    assert [method.learning(Moment(step, 10))[0] for step in range(10)] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    optimizer = Optimizer(method, (0.9, 0.95))
    settings = TrainSettings(
        steps=8, batch_size=4, lr=Constant(1e-2), weight_decay=Constant(0.5), precision="fp32"
    )
    for step in range(8):
        before = copy.deepcopy(method.state_dict())
        state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
        take_step(method, optimizer, batch_of(step), Moment(step, 8), settings, World())
        own = (f"encoder.blocks.{step // 2}.", f"decoders.{step // 2}.")
        own += ("encoder.embedding.",) if step < 2 else ("encoder.norm.",) if step > 5 else ()
        for name, tensor in {**method.state_dict(), **optimizer.state()}.items():
            was = before[name] if name in before else state[name]
            assert torch.equal(tensor, was) is not name.startswith(own), (step, name)


def test_each_stage_has_the_whole_schedule_to_itself() -> None:
    inner = WarmupCosine(0.0, 1.0, 0.1, warmup=6)
    staged = Staged(inner, 3)
    values = [staged(Moment(step, 60)) for step in range(60)]
    assert values[:20] == values[20:40] == values[40:]
    assert values[0] == inner(Moment(0, 60)) and values[19] == inner(Moment(57, 60))
    assert staged.describe() == {**inner.describe(), "stages": 3}


def test_parameters_are_those_of_the_papers_formula() -> None:
    """(K-1) P_dec more than end to end."""
    method, matched = built(), built(count=1, regime="end_to_end")
    count = [sum(p.numel() for p in m.parameters()) for m in (method, matched, method.decoder(0))]
    assert count[0] - count[1] == 3 * count[2]


def test_latents_of_the_block_below_are_the_targets(batch: Batch) -> None:
    method = Blockwise(
        encoder(), [decoder(), decoder(48), decoder(48)], TubeMask(0.75), (1, 1, 1), targets="previous"
    )
    torch.manual_seed(5)
    values = [loss.value.item() for loss in method(batch, MOMENT)]
    torch.manual_seed(5)
    grid = method.encoder.grid(batch.clip)
    (mask,) = method.mask(grid, 4, torch.device("cpu"))
    seen, whole = (
        method.encoder.layers(batch.clip, [1, 2], mask.context),
        method.encoder.layers(batch.clip, [1, 2]),
    )
    predicted = method.decoder(1)(seen[2], mask, grid)
    target = gather(F.layer_norm(whole[1], (48,)), mask.target)
    assert values[1] == pytest.approx(F.l1_loss(predicted, target).item(), rel=1e-5)


def test_a_teachers_latents_are_the_targets_of_every_block(batch: Batch) -> None:
    teacher = encoder(60)
    method = Blockwise(
        encoder(),
        [decoder(60) for _ in range(3)],
        TubeMask(0.75),
        (1, 1, 1),
        targets="teacher",
        teacher=teacher,
    )
    before = copy.deepcopy(teacher.state_dict())
    assert all(
        value is None for name, value in gradients(method, batch).items() if name.startswith("teacher")
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    torch.manual_seed(5)
    grid = method.encoder.grid(batch.clip)
    (mask,) = method.mask(grid, 4, torch.device("cpu"))
    target = gather(F.layer_norm(teacher(batch.clip), (60,)), mask.target)
    predicted = method.decoder(0)(method.encoder.layers(batch.clip, [1], mask.context)[1], mask, grid)
    torch.manual_seed(5)
    assert next(method(batch, MOMENT)).value.item() == pytest.approx(
        F.l1_loss(predicted, target).item(), rel=1e-5
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"count": 1},
        {"regime": "sequential"},
        {"regime": "end_to_end", "count": 1},
        {"overlap": 1, "depth": 6, "blocks": "3"},
    ],
)
@pytest.mark.parametrize("step", [0, 11])
def test_flops_by_formula_equal_torchs_counter(options: dict[str, Any], step: int) -> None:
    with torch.device("meta"):
        method = built(**options)
    for parameter in method.parameters():
        parameter.requires_grad_(False)
    for module in method.trainable(Moment(step, 12)):
        module.requires_grad_(True)
    batch = Batch(torch.empty(1, 3, 4, 48, 64, device="meta"), torch.zeros(1))
    with FlopCounterMode(display=False) as counter:
        for loss in method(batch, Moment(step, 12)):
            loss.value.backward()
    assert counter.get_total_flops() == cost(method.work(Grid(2, 6, 8), Moment(step, 12))).total


def test_a_share_of_the_hidden_tokens_is_decoded(batch: Batch) -> None:
    method = Blockwise(encoder(), [decoder() for _ in range(3)], Aimed(TubeMask(0.75), share=0.25), (1, 1, 1))
    loss = next(method(batch, MOMENT))
    assert loss.metrics["mask/target0"].item() == pytest.approx(0.75 / 4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="do not make up an encoder of 3"):
        Blockwise(encoder(), [decoder()] * 2, TubeMask(), (1, 1))
    with pytest.raises(ValueError, match="2 decoders for 3 blocks"):
        Blockwise(encoder(), [decoder(), decoder()], TubeMask(), (1, 1, 1))
    with pytest.raises(ValueError, match="overlap=1: must be less than the 1 layers"):
        Blockwise(encoder(), [decoder()] * 3, TubeMask(), (1, 1, 1), overlap=1)
    with pytest.raises(ValueError, match="belong together"):
        Blockwise(encoder(), [decoder()] * 3, TubeMask(), (1, 1, 1), targets="teacher")
    other = ViT(48, 1, 3, patch=(2, 16, 16))
    with pytest.raises(ValueError, match="give the encoder the teacher's patch"):
        Blockwise(encoder(), [decoder(48)] * 3, TubeMask(), (1, 1, 1), targets="teacher", teacher=other)
    with pytest.raises(ValueError, match="block 2 ends 384 wide, its target is 48 wide"):
        Blockwise(encoder(), [decoder()] * 3, TubeMask(), (1, 1, 1), targets="previous")
