"""Every clause of the method contract, on every method."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import tubelet.methods
from tubelet.masks import Aimed, MultiBlockMask, RandomMask, TubeMask
from tubelet.methods.blockwise import Blockwise
from tubelet.methods.layerlock import LayerLock, Locks
from tubelet.methods.method import Method
from tubelet.methods.salt import SALT
from tubelet.methods.videomae import VideoMAE, pixel_target
from tubelet.methods.vjepa import VJEPA
from tubelet.nn.block import Block
from tubelet.nn.decoding import JoinedDecoder, SeparateDecoder
from tubelet.nn.predictor import Predictor
from tubelet.nn.tokens import gather, patchify, unpatchify
from tubelet.nn.vit import ViT
from tubelet.types import Batch, Grid, Mask, Moment

PATCH = (2, 8, 8)
MOMENT = Moment(3, 10)


def encoder(dim: int = 48) -> ViT:
    return ViT(dim, 3, 3, patch=PATCH)


def videomae() -> VideoMAE:
    return VideoMAE(encoder(), Predictor(48, 24, 2, 2, 2 * 8 * 8 * 3), TubeMask(0.75))


def salt_teacher() -> VideoMAE:
    decoder = Predictor(48, 24, 2, 2, 2 * 8 * 8 * 3, mask_tokens=2)
    return VideoMAE(encoder(), decoder, MultiBlockMask(), normalise="tubelet", loss="l1")


def vjepa() -> VJEPA:
    predictor = Predictor(48, 24, 2, 2, 48, mask_tokens=2)
    return VJEPA(encoder(), predictor, MultiBlockMask(), momentum=lambda moment: 0.9)


def salt() -> SALT:
    predictor = Predictor(48, 24, 2, 2, 60, mask_tokens=2)
    return SALT(encoder(), predictor, encoder(60), MultiBlockMask())


def layerlock_pixels() -> LayerLock:
    """Pixels to the end; block 1 is frozen at MOMENT."""
    decoder = SeparateDecoder(Predictor(48, 24, 2, 2, None))
    return LayerLock(encoder(), decoder, TubeMask(0.75), Locks(2, 4, 1, 2), latents=False)


def layerlock() -> LayerLock:
    """Latents of block 1 on half of the hidden tokens, decoded by the last block; the pixel loss kept."""
    model = encoder()
    return LayerLock(
        model,
        JoinedDecoder(model, 1),
        RandomMask(0.8),
        Locks(2, 4, 1, 2),
        latent_mask=Aimed(RandomMask(0.8), share=0.5),
        pixel_weight=lambda moment: 0.5,
    )


def vjepa_layerlock() -> LayerLock:
    decoder = SeparateDecoder(Predictor(48, 24, 2, 2, None, mask_tokens=2))
    return LayerLock(
        encoder(),
        decoder,
        MultiBlockMask(),
        Locks(2, 4, 1, 2),
        start="latents",
        momentum=lambda moment: 0.9,
        loss="l1",
    )


def blockwise() -> Blockwise:
    decoders = [Predictor(48, 24, 1, 2, 2 * 8 * 8 * 3) for _ in range(3)]
    return Blockwise(encoder(), decoders, TubeMask(0.75), (1, 1, 1))


def blockwise_sequential() -> Blockwise:
    """Latent targets of the block below; the first of two blocks learns at MOMENT."""
    decoders = [Predictor(48, 24, 1, 2, 2 * 8 * 8 * 3), Predictor(48, 24, 1, 2, 48)]
    return Blockwise(encoder(), decoders, TubeMask(0.75), (1, 2), regime="sequential", targets="previous")


BUILDERS: dict[str, Callable[[], Method]] = {
    "videomae": videomae,
    "salt_teacher": salt_teacher,
    "vjepa": vjepa,
    "salt": salt,
    "layerlock_pixels": layerlock_pixels,
    "layerlock": layerlock,
    "vjepa_layerlock": vjepa_layerlock,
    "blockwise": blockwise,
    "blockwise_sequential": blockwise_sequential,
}
every = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS.keys())


@pytest.fixture
def batch() -> Batch:
    torch.manual_seed(1)
    return Batch(torch.randn(3, 3, 4, 48, 64), torch.arange(3))


def test_every_method_has_contract_tests() -> None:
    found = set()
    for module in pkgutil.iter_modules(tubelet.methods.__path__):
        for _, member in inspect.getmembers(importlib.import_module(f"tubelet.methods.{module.name}")):
            if inspect.isclass(member) and issubclass(member, Method) and member is not Method:
                found.add(member)
    assert found == {type(build()) for build in BUILDERS.values()}


@every
def test_losses_share_no_graph(build: Callable[[], Method], batch: Batch) -> None:
    """Each loss can be back-propagated, freeing what it saved, before the next is asked for."""
    method = build()
    values = []
    for loss in method(batch, MOMENT):
        assert loss.value.ndim == 0 and loss.value.requires_grad
        assert all(not number.requires_grad for number in loss.metrics.values())
        loss.value.backward()
        values.append(loss.value.item())
    assert all(value > 0 for value in values)


@every
def test_gradients_reach_what_may_move_and_nothing_else(build: Callable[[], Method], batch: Batch) -> None:
    method = build()
    for loss in method(batch, MOMENT):
        loss.value.backward()
    moving = {id(p) for module in method.trainable(MOMENT) for p in module.parameters()}
    for name, parameter in method.named_parameters():
        if id(parameter) in moving:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


@every
def test_losses_are_a_function_of_seed_and_batch(build: Callable[[], Method], batch: Batch) -> None:
    method = build()
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append([loss.value.item() for loss in method(batch, MOMENT)])
    assert runs[0] == runs[1]


@every
def test_encoders_leave_with_the_contract(build: Callable[[], Method], batch: Batch) -> None:
    for model in build().encoders().values():
        assert model(batch.clip).shape == (3, model.grid(batch.clip).n, model.dim)


@every
def test_work_lists_every_module_that_runs(build: Callable[[], Method], batch: Batch) -> None:
    """The token counts that the cost formulas charge are those that really pass the blocks."""
    method, grid = build(), Grid(2, 6, 8)
    seen: list[tuple[int, int]] = []
    for block in (module for module in method.modules() if isinstance(module, Block)):
        block.register_forward_hook(
            lambda module, inputs, output: seen.append((id(module), inputs[0].shape[1]))
        )
    for _ in method(batch, MOMENT):
        pass
    charged = [
        (id(part), work.context + work.target)
        for work in method.work(grid, MOMENT)
        for module in work.modules
        for part in module.modules()
        if isinstance(part, Block)
        for _ in range(work.times)
    ]
    assert sorted(seen) == sorted(charged)


def test_vjepa_teacher_is_the_moving_average() -> None:
    method = vjepa()
    before = [p.clone() for p in method.teacher.parameters()]
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1.0)
    method.after_step(MOMENT)
    for old, new, ours in zip(before, method.teacher.parameters(), method.encoder.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * ours)


def test_vjepa_loss_equals_its_formula(batch: Batch) -> None:
    method = vjepa()
    torch.manual_seed(5)
    total = sum(loss.value.item() for loss in method(batch, MOMENT))
    torch.manual_seed(5)
    masks = method.mask(method.encoder.grid(batch.clip), 3, torch.device("cpu"))
    with torch.no_grad():
        whole = F.layer_norm(method.teacher(batch.clip), (48,))
        by_hand = 0.0
        for kind, mask in enumerate(masks):
            context = method.encoder(batch.clip, mask.context)
            predicted = method.predictor(context, mask, method.encoder.grid(batch.clip), kind)
            by_hand += (predicted - gather(whole, mask.target)).abs().mean().item() / 2
    assert total == pytest.approx(by_hand, rel=1e-5)


def test_salt_teacher_never_moves(batch: Batch) -> None:
    method = salt()
    before = copy.deepcopy(method.teacher.state_dict())
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(3):
        for loss in method(batch, MOMENT):
            loss.value.backward()
        optimizer.step()
        method.after_step(MOMENT)
    for name, tensor in method.teacher.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_salt_refuses_a_teacher_on_another_grid() -> None:
    with pytest.raises(ValueError, match="give the student the teacher's patch"):
        SALT(encoder(), Predictor(48, 24, 1, 2, 48), ViT(48, 1, 3, patch=(2, 16, 16)), RandomMask())
    with pytest.raises(ValueError, match="predictor ends 48 wide, the teacher is 60 wide"):
        SALT(encoder(), Predictor(48, 24, 1, 2, 48), encoder(60), RandomMask())


def test_pixel_target_has_mean_0_and_deviation_1() -> None:
    clip = torch.rand(2, 3, 4, 16, 24) * 5
    ids = torch.tensor([[0, 3, 5], [1, 2, 11]])
    channel = pixel_target(clip, ids, PATCH, "channel").unflatten(-1, (3, -1))
    assert channel.mean(-1).abs().max() < 1e-5 and (channel.std(-1) - 1).abs().max() < 1e-4
    tubelet = pixel_target(clip, ids, PATCH, "tubelet")
    assert tubelet.mean(-1).abs().max() < 1e-5 and (tubelet.std(-1) - 1).abs().max() < 1e-4
    assert torch.equal(pixel_target(clip, ids, PATCH, "none"), gather(patchify(clip, PATCH), ids))
    with pytest.raises(ValueError, match='"channel", "tubelet" or "none"'):
        pixel_target(clip, ids, PATCH, "pixel")


def test_hidden_pixels_never_reach_the_prediction(batch: Batch) -> None:
    method = videomae()
    mask = method.mask(method.encoder.grid(batch.clip), 3, torch.device("cpu"))[0]
    spoiled = patchify(batch.clip, PATCH).scatter(
        1, mask.target.unsqueeze(-1).expand(-1, -1, 2 * 8 * 8 * 3), 99.0
    )
    other = unpatchify(spoiled, method.encoder.grid(batch.clip), PATCH)
    assert torch.equal(method.predict(batch.clip, mask), method.predict(other, mask))
    shown = Mask(mask.target, mask.context)
    assert not torch.equal(method.predict(batch.clip, shown), method.predict(other, shown))
