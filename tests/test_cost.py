"""FLOP formulas against torch's counter (on the meta device: on CPU it says 0 for attention) and the papers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tubelet.analysis.cost import Cost, PartCost, backward_flops, cost, forward_flops, salt_paper_flops
from tubelet.nn.heads import AttentiveClassifier
from tubelet.nn.predictor import Predictor
from tubelet.nn.vit import ViT
from tubelet.types import Grid, Mask, Work

GRID = Grid(2, 3, 4)


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def small_vit() -> ViT:
    with torch.device("meta"):
        return ViT(dim=48, depth=3, heads=2, hidden=100, patch=(2, 8, 8))


def clip() -> Tensor:
    return torch.empty(1, 3, 4, 24, 32, device="meta")


def ids(start: int, stop: int) -> Tensor:
    return torch.arange(start, stop, device="meta").unsqueeze(0)


def test_vit_forward_and_backward_equal_torchs_counter():
    vit = small_vit()
    assert counted(lambda: vit(clip())) == forward_flops(vit, GRID.n)
    both = counted(lambda: vit(clip()).sum().backward())
    assert both == forward_flops(vit, GRID.n) + backward_flops(vit, GRID.n)


def test_a_jepa_step_equals_torchs_counter_part_by_part():
    student, teacher = small_vit(), small_vit()
    with torch.device("meta"):
        predictor = Predictor(context_dim=48, dim=36, depth=2, heads=3, target_dim=60)
    mask = Mask(ids(0, 7), ids(7, 20))

    def step() -> None:
        with torch.no_grad():
            teacher(clip())
        predictor(student(clip(), mask.context), mask, GRID).sum().backward()

    works = [
        Work("encoder", student, 7),
        Work("predictor", predictor, 7, 13),
        Work("teacher", teacher, GRID.n, backward=False),
    ]
    total = cost(works)
    assert counted(step) == total.total
    assert total.parts["teacher"].backward == 0
    assert total.parts["teacher"].forward == forward_flops(teacher, GRID.n)
    assert set(total.parts) == {"encoder", "predictor", "teacher"}


@pytest.mark.parametrize("depth", [1, 4])
def test_attentive_classifier_equals_torchs_counter(depth):
    with torch.device("meta"):
        head = AttentiveClassifier(dim=48, heads=4, classes=5, depth=depth)
    tokens = torch.empty(1, 24, 48, device="meta")
    assert counted(lambda: head(tokens)) == forward_flops(head, 24)
    assert counted(lambda: head(tokens).sum().backward()) == forward_flops(head, 24) + backward_flops(
        head, 24
    )


def test_costs_add_by_part_and_scale():
    one = Cost({"encoder": PartCost(1, 2)})
    both = one + Cost({"encoder": PartCost(10, 20), "teacher": PartCost(5, 0)})
    assert both.parts == {"encoder": PartCost(11, 22), "teacher": PartCost(5, 0)}
    assert both.times(2).total == 2 * (both.forward + both.backward) == 76


def test_a_module_without_a_formula_is_refused():
    with pytest.raises(TypeError, match="Conv3d"):
        forward_flops(nn.Conv3d(3, 4, 2), 8)


@pytest.mark.parametrize(
    ("student", "printed"), [("vit_large", 1.2), ("vit_huge", 1.5), ("vit_gigantic", 2.6)]
)
def test_salts_table_is_reproduced_by_the_papers_accounting(student, printed):
    flops = salt_paper_flops(student)
    assert round(flops.total / 1e21, 1) == printed
    assert round(flops.teacher / 1e21, 2) == 0.24


@pytest.mark.parametrize(
    ("student_steps", "printed"), [(40_000, 0.238), (80_000, 0.476), (120_000, 0.714), (160_000, 0.951)]
)
def test_salts_split_table_is_reproduced(student_steps, printed):
    assert salt_paper_flops("vit_large", student_steps=student_steps).student / 1e21 == pytest.approx(
        printed, abs=0.004
    )
