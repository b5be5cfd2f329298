"""What autograd holds, counted as it happens, and the formulas that predict it, byte by byte."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tubelet.analysis.memory import SavedTensors, by_loss, gradient_bytes, optimizer_bytes, saved_bytes
from tubelet.masks import Aimed, RandomMask, TubeMask
from tubelet.methods.blockwise import Blockwise
from tubelet.methods.layerlock import LayerLock, Locks
from tubelet.methods.method import Method
from tubelet.methods.videomae import VideoMAE
from tubelet.nn.decoding import JoinedDecoder, SeparateDecoder
from tubelet.nn.predictor import Predictor
from tubelet.nn.tokens import build_positions
from tubelet.nn.vit import ViT
from tubelet.train.optim import Optimizer
from tubelet.types import Batch, Grid, Mask, Moment, Work

GRID, PATCH, BATCH = Grid(2, 3, 4), (2, 8, 8), 2
MOMENT = Moment(0, 10)
MASK = TubeMask(0.75)
PIXELS = 3 * 2 * 8 * 8
every_position = pytest.mark.parametrize("positions", ["rotary", "rotary_tokens", "sincos"])


def vit(positions: str = "rotary", depth: int = 4) -> ViT:
    return ViT(48, depth, 4, hidden=112, patch=PATCH, positions=build_positions(positions))


def decoder(target_dim: int | None = PIXELS, positions: str = "rotary") -> Predictor:
    return Predictor(48, 36, 2, 3, target_dim, positions=build_positions(positions))


def clip() -> Tensor:
    return torch.randn(BATCH, 3, 4, 24, 32)


def drawn() -> Mask:
    return RandomMask(0.75)(GRID, BATCH, torch.device("cpu"))[0]  # 6 tokens seen, 18 hidden


def held_by(method: Method, summed: bool = False) -> int:
    """Most bytes that autograd holds in one step."""
    batch = Batch(clip(), torch.arange(BATCH))
    with SavedTensors([*method.parameters(), *method.buffers()]) as saved:
        if summed:
            torch.stack([loss.value for loss in method(batch, MOMENT)]).sum().backward()
        else:
            for loss in method(batch, MOMENT):
                loss.value.backward()
    assert saved.now == 0
    return saved.peak


def predicted(method: Method, streamed: bool = True) -> int:
    works = method.work(GRID, MOMENT)
    return saved_bytes(works, BATCH, method.encoder.positions, streamed=streamed)


def test_a_storage_counts_once_until_the_last_that_saved_it_lets_go():
    weight = torch.randn(5, 3, requires_grad=True)
    shared = torch.randn(7, 5)
    with SavedTensors([weight]) as saved:
        first = shared @ weight
        assert saved.now == shared.nbytes
        second = (shared.T.T @ weight).sum()  # a view of the same storage
        assert saved.now == shared.nbytes
        del first
        assert saved.now == shared.nbytes
        second.backward()
        assert (saved.now, saved.peak) == (0, shared.nbytes)


def test_parameters_and_what_needs_no_gradient_count_nothing():
    encoder, seen = vit(), torch.ones(48)
    with SavedTensors(encoder.parameters()) as saved:
        with torch.no_grad():
            encoder(clip())
        product = seen * encoder.norm.weight * encoder.norm.bias
        assert (
            saved.peak == 2 * seen.nbytes
        )  # the factors that are no parameters: ones, and the first product
        del product


def test_a_graph_that_is_dropped_without_a_backward_is_let_go():
    encoder = vit()
    with SavedTensors(encoder.parameters()) as saved:
        tokens = encoder(clip())
        assert saved.now > 0
        del tokens
        assert saved.now == 0


@every_position
def test_a_blocks_bytes_equal_what_autograd_holds(positions):
    encoder, keep = vit(positions), drawn().context
    rotation = encoder.rotation(GRID, keep, torch.device("cpu"))
    tokens = torch.randn(BATCH, keep.shape[1], 48)
    with SavedTensors(encoder.parameters()) as saved:
        after = encoder.advance(tokens, rotation, 1, 2)
        assert saved.now == saved_bytes(
            [Work("encoder", encoder.section(1, 2), keep.shape[1])], BATCH, encoder.positions
        )
        del after


@every_position
def test_an_encoders_bytes_equal_what_autograd_holds(positions):
    encoder, keep = vit(positions), drawn().context
    with SavedTensors(encoder.parameters()) as saved:
        tokens = encoder(clip(), keep)
    whole = saved_bytes([Work("encoder", encoder, keep.shape[1])], BATCH, encoder.positions)
    section = saved_bytes([Work("encoder", encoder.section(0, 4), keep.shape[1])], BATCH, encoder.positions)
    assert saved.now == whole == section
    del tokens


@every_position
@pytest.mark.parametrize("target_dim", [60, None])
def test_a_predictors_bytes_equal_what_autograd_holds_with_its_loss(positions, target_dim):
    predictor, mask = decoder(target_dim, positions), drawn()
    context = torch.randn(BATCH, 6, 48)
    with SavedTensors(predictor.parameters()) as saved:
        found = predictor(context, mask, GRID)
        loss = nn.functional.mse_loss(found, torch.randn_like(found))
    assert saved.now == saved_bytes([Work("decoder", predictor, 6, 18)], BATCH, predictor.positions)
    del found, loss


def locked(frozen: int, joined: bool = False, share: float = 1.0, latents: bool = True) -> LayerLock:
    encoder = vit()
    decodes = JoinedDecoder(encoder, 2) if joined else SeparateDecoder(decoder(None))
    locks = Locks(0, 1, frozen, frozen) if frozen else Locks(100, 1, 1, 1)
    aimed = Aimed(MASK, share=share)
    return LayerLock(encoder, decodes, MASK, locks, latent_mask=aimed, latents=latents)


def blocks(**options) -> Blockwise:
    encoder = vit()
    return Blockwise(encoder, [decoder() for _ in range(4)], MASK, [1, 1, 1, 1], **options)


METHODS = {
    "mae": lambda: VideoMAE(vit(), decoder(), MASK),
    "pixels, none frozen": lambda: locked(0, latents=False),
    "pixels, 2 frozen": lambda: locked(2, latents=False),
    "latents of 2": lambda: locked(2),
    "latents of 3, a fifth": lambda: locked(3, share=0.2),
    "blocks": blocks,
    "overlap": lambda: Blockwise(vit(), [decoder(), decoder()], MASK, [2, 2], overlap=1),
    "end to end": lambda: Blockwise(vit(), [decoder()], MASK, [2, 2], regime="end_to_end"),
    "sequential": lambda: blocks(regime="sequential"),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_peak_of_a_streamed_step_equals_the_prediction(name):
    method = METHODS[name]()
    assert held_by(method) == predicted(method)


def test_learned_tokens_in_the_encoders_last_blocks_are_predicted_to_a_percent():
    assert held_by(locked(2, joined=True)) == pytest.approx(predicted(locked(2, joined=True)), rel=0.01)


def test_an_l1_loss_holds_one_tensor_where_two_are_predicted():
    teacher = vit()
    decoders = [decoder(teacher.dim) for _ in range(4)]
    method = Blockwise(vit(), decoders, MASK, [1, 1, 1, 1], targets="teacher", teacher=teacher)
    difference = BATCH * MASK.counts(GRID)[0][1] * teacher.dim * 4
    assert predicted(method) - difference == held_by(method)


def test_summed_losses_hold_all_their_graphs_and_at_most_what_is_predicted():
    streamed, summed = held_by(blocks()), held_by(blocks(), summed=True)
    assert 3 * streamed < summed <= predicted(blocks(), streamed=False)
    assert summed == pytest.approx(predicted(blocks(), streamed=False), rel=0.15)


def test_streaming_makes_the_peak_that_of_the_largest_block():
    works = blocks().work(GRID, MOMENT)
    positions = vit().positions
    each = [saved_bytes(graph, BATCH, positions) for graph in by_loss(works)]
    assert len(each) == 4
    assert saved_bytes(works, BATCH, positions) == max(each)
    assert saved_bytes(works, BATCH, positions, streamed=False) == sum(each)


def test_passes_without_a_backward_keep_nothing():
    assert saved_bytes([Work("teacher", vit(), 24, backward=False)], BATCH, vit().positions) == 0


def test_a_module_without_a_memory_formula_is_refused():
    with pytest.raises(TypeError, match="Conv3d"):
        saved_bytes([Work("encoder", nn.Conv3d(3, 4, 2), 8)], 1, vit().positions)


def test_gradients_and_optimizer_state_equal_what_a_step_holds():
    method = locked(2)
    state = optimizer_bytes(method)
    optimizer = Optimizer(method)
    optimizer.set_trainable(method.trainable(MOMENT))
    for loss in method(Batch(clip(), torch.arange(BATCH)), MOMENT):
        loss.value.backward()
    gradients = [p.grad for p in method.parameters() if p.grad is not None]
    assert sum(gradient.nbytes for gradient in gradients) == gradient_bytes(method.trainable(MOMENT))
    assert sum(tensor.nbytes for tensor in optimizer.state().values()) == state


def test_freezing_spares_gradients_and_no_optimizer_state():
    free, frozen = locked(0), locked(3)
    assert gradient_bytes(frozen.trainable(MOMENT)) < gradient_bytes(free.trainable(MOMENT))
    encoders = [optimizer_bytes(method.encoder) for method in (free, frozen)]
    assert encoders[0] == encoders[1]
