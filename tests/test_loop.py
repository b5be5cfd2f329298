"""The loop does what the contract says, clause by clause."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy import (
    METHODS,
    Averaged,
    Locking,
    OneLoss,
    SeveralLosses,
    Toy,
    ToyStream,
    learn,
    lines_of,
    quiet,
    settings,
    start,
)

from tubelet.errors import UserError
from tubelet.methods.method import Method
from tubelet.train.loop import seed_from, take_step, train
from tubelet.train.optim import Optimizer
from tubelet.train.parallel import World, resolve_device
from tubelet.train.precision import has_fast_bf16, resolve_precision
from tubelet.train.report import read_metrics
from tubelet.train.schedule import Constant
from tubelet.types import Batch, Loss, Moment


def take(method: Method, optimizer: Optimizer, step: int, **changes: Any) -> dict[str, float]:
    chosen = settings(**changes)
    batch = next(ToyStream(chosen.batch_size).batches(step))
    return take_step(method, optimizer, batch, Moment(step, chosen.steps), chosen, World())


@pytest.mark.parametrize("name", METHODS)
def test_every_toy_learns(name: str, tmp_path: Path) -> None:
    summary = learn(METHODS[name](), tmp_path / "run", steps=60, monitor_every=30, save_every=60)
    losses = [line["train/loss"] for line in lines_of(tmp_path / "run")[:-1]]
    assert len(losses) == summary.steps == 60
    if name != "locking":  # a new head starts anew
        assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_frozen_means_bit_identical_in_weights_and_state() -> None:
    """Although weight decay is .4 and the momentum of earlier steps is not zero."""
    method = Locking()
    optimizer = Optimizer(method)
    for step in range(4):
        take(method, optimizer, step)
    frozen = [name for name in optimizer.names if name.startswith(("encoder.0", "heads.0"))]
    assert len(frozen) == 6
    before = {name: optimizer.names[name].detach().clone() for name in frozen}
    state = {name: t.clone() for name, t in optimizer.state().items() if name.rpartition("/")[0] in frozen}
    assert all(t.abs().max() > 0 for t in state.values())
    for step in range(4, 8):
        take(method, optimizer, step, weight_decay=Constant(0.4))
        assert all(optimizer.names[name].grad is None for name in frozen)
    assert all(torch.equal(optimizer.names[name], before[name]) for name in frozen)
    assert all(torch.equal(optimizer.state()[name], state[name]) for name in state)
    assert optimizer.state()["encoder.1.1.weight/step"] == 8


def test_frozen_parts_have_no_gradient_while_the_method_runs() -> None:
    seen: list[tuple[int, list[bool]]] = []

    class Spy(Locking):
        def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
            seen.append((moment.step, [next(b.parameters()).requires_grad for b in self.stack]))
            yield from Locking.forward(self, batch, moment)

    method = Spy()
    optimizer = Optimizer(method)
    for step in (0, 5, 11, 0):
        take(method, optimizer, step)
    assert seen == [
        (0, [True, True, True]),
        (5, [False, True, True]),
        (11, [False, False, True]),
        (0, [True] * 3),
    ]
    optimizer.release()
    assert all(p.requires_grad for p in method.parameters())


def test_optimizer_state_is_complete_before_the_first_step() -> None:
    method = Averaged()
    optimizer = Optimizer(method)
    names = set(optimizer.state())
    assert names == {
        f"{name}/{key}"
        for name, p in method.named_parameters()
        if not name.startswith("teacher")
        for key in ("step", "exp_avg", "exp_avg_sq")
    }
    assert all(not t.any() for t in optimizer.state().values())
    take(method, optimizer, 0)
    assert set(optimizer.state()) == names


def test_eager_state_gives_the_same_steps_as_torchs_lazy_state() -> None:
    ours, theirs = OneLoss(), OneLoss()
    optimizer = Optimizer(ours)
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-2,
        eps=1e-8,
    )
    for step in range(3):
        take(ours, optimizer, step, lr=Constant(1e-2), weight_decay=Constant(0.1), clip=None)
        torch.manual_seed(seed_from(0, step, 0))
        (loss,) = theirs(next(ToyStream().batches(step)), Moment(step, 12))
        adamw.zero_grad()
        loss.value.backward()
        adamw.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_biases_and_norms_do_not_decay() -> None:
    method = OneLoss()
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    optimizer = Optimizer(method)
    optimizer.set_trainable([method.encoder])
    optimizer.set_rates(lr=0.1, weight_decay=0.5)
    for p in method.encoder.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in method.named_parameters():
        decays = name.startswith("encoder") and p.ndim >= 2
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if decays else 1.0))


def test_a_frozen_teacher_among_the_trainable_is_our_mistake() -> None:
    method = Averaged()
    with pytest.raises(AssertionError, match="built not to require grad"):
        Optimizer(method).set_trainable([method.teacher])


def test_micro_batches_of_half_the_size_equal_the_whole() -> None:
    whole, halves = OneLoss(noise=False), OneLoss(noise=False)
    results = [
        take(method, Optimizer(method), 0, micro_batches=parts) for method, parts in ((whole, 1), (halves, 2))
    ]
    assert results[0]["train/loss"] == pytest.approx(results[1]["train/loss"], abs=1e-6)
    assert results[0]["train/grad_norm"] == pytest.approx(results[1]["train/grad_norm"], abs=1e-6)
    for p, q in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=2e-5)


def test_yielded_losses_give_the_gradients_of_their_sum() -> None:
    class Summed(SeveralLosses):
        def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
            yield Loss(
                sum((loss.value for loss in SeveralLosses.forward(self, batch, moment)), torch.zeros(()))
            )

    streamed, summed = SeveralLosses(), Summed()
    a, b = (take(m, Optimizer(m), 0) for m in (streamed, summed))
    assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-6)
    assert a["train/loss"] == pytest.approx(sum(a[f"loss/stage{i}"] for i in range(3)), rel=1e-6)
    for p, q in zip(streamed.parameters(), summed.parameters(), strict=True):
        assert torch.equal(p, q)


def test_what_a_loss_saved_is_freed_before_the_next_is_built() -> None:
    live = 0
    at_yield: list[int] = []

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal live
            self.tensor, live = tensor, live + 1

        def __del__(self) -> None:
            nonlocal live
            live -= 1

    class Spy(SeveralLosses):
        def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
            at_yield.append(live)
            for loss in SeveralLosses.forward(self, batch, moment):
                yield loss
                at_yield.append(live)

    method = Spy()
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        take(method, Optimizer(method), 0, micro_batches=2)
    assert at_yield == [0] * 8


def test_what_is_drawn_depends_on_seed_step_and_micro_batch_alone() -> None:
    drawn: dict[tuple[int, int], list[float]] = {}

    class Spy(OneLoss):
        def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
            drawn.setdefault((self.seed, moment.step), []).append(float(torch.rand(())))
            yield from OneLoss.forward(self, batch, moment)

        seed = 0

    for seed, step in [(0, 0), (0, 1), (1, 0)]:
        for _ in range(2):
            method = Spy()
            method.seed = seed
            torch.rand(3)
            take(method, Optimizer(method), step, seed=seed, micro_batches=2)
    assert all(values[:2] == values[2:] for values in drawn.values())
    assert len({v for values in drawn.values() for v in values}) == 6


@pytest.mark.parametrize("per", ["all", "module"])
def test_clipping(per: Any) -> None:
    method = OneLoss()
    optimizer = Optimizer(method)
    optimizer.set_trainable([method.encoder, method.head, method.head])
    grads = {p: torch.randn_like(p) for p in method.parameters()}
    for p, grad in grads.items():
        p.grad = grad.clone()
    parts = [list(method.encoder.parameters()), list(method.head.parameters())]
    norms = [torch.cat([grads[p].flatten() for p in part]).norm() for part in parts]
    total = torch.stack(norms).norm()
    torch.testing.assert_close(optimizer.clip(None, per), total)
    assert all(torch.equal(p.grad, grads[p]) for p in grads if p.grad is not None)
    torch.testing.assert_close(optimizer.clip(0.1, per), total)
    for part, norm in zip(parts, norms, strict=True):
        scale = 0.1 / (total if per == "all" else norm)
        for p in part:
            torch.testing.assert_close(p.grad, grads[p] * scale, rtol=1e-4, atol=1e-6)


def test_clipping_can_begin_after_the_warm_up() -> None:
    moved = []
    for clip_from in (0, 1):
        method = OneLoss()
        take(method, Optimizer(method), 0, clip=1e-9, clip_from=clip_from, weight_decay=Constant(0.0))
        moved.append(float((method.head.weight - OneLoss().head.weight).detach().abs().max()))
    assert moved[0] < 0.5 * moved[1]  # AdamW forgets the scale, but not beside eps


class Exploding(OneLoss):
    """Not finite from ``at`` on: in the loss, or only in the gradient."""

    def __init__(self, at: int, where: str) -> None:
        super().__init__()
        self.at, self.where = at, where

    def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
        for loss in OneLoss.forward(self, batch, moment):
            if moment.step < self.at:
                yield loss
            elif self.where == "loss":
                yield Loss(loss.value * float("inf"))
            else:
                first = next(self.stack.parameters())
                yield Loss(loss.value + torch.sqrt((first * 0.0).abs().sum()))


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_finite_stops_before_anything_moves(where: str, tmp_path: Path) -> None:
    method = Exploding(6, where)
    with pytest.raises(UserError, match=r"step 6: .*(inf|nan).*the last good checkpoint is .*step-000004"):
        learn(method, tmp_path / "run")
    assert [path.name for path in sorted((tmp_path / "run/checkpoints").glob("step-*"))] == ["step-000004"]
    assert all(p.isfinite().all() for p in method.parameters())
    assert [line["step"] for line in lines_of(tmp_path / "run")] == list(range(6))
    with pytest.raises(UserError, match="no checkpoint had been saved"):
        learn(Exploding(0, where), tmp_path / "other")


def test_forward_runs_under_autocast_and_backward_outside() -> None:
    seen = []

    class Spy(OneLoss):
        def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
            for loss in OneLoss.forward(self, batch, moment):
                seen.append((torch.is_autocast_enabled("cpu"), self.head(batch.clip.flatten(1)).dtype))
                loss.value.register_hook(lambda grad: seen.append(torch.is_autocast_enabled("cpu")))
                yield loss
                seen.append(torch.is_autocast_enabled("cpu"))

    method = Spy()
    take(method, Optimizer(method), 0, precision="bf16")
    assert seen == [(True, torch.bfloat16), False, True]
    assert all(p.dtype == torch.float32 for p in method.parameters())


def test_precision_is_resolved_once_and_kept_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) == ("bf16" if has_fast_bf16(cpu) else "fp32")
    with pytest.raises(UserError, match='did you mean "bf16"'):
        resolve_precision("bf6", cpu)
    monkeypatch.setattr("tubelet.train.precision.has_fast_bf16", lambda device: True)
    assert learn(OneLoss(), tmp_path / "run", precision="auto").precision == "bf16"
    monkeypatch.setattr("tubelet.train.precision.has_fast_bf16", lambda device: False)
    assert learn(OneLoss(), tmp_path / "run", precision="auto", resume=True).precision == "bf16"
    with pytest.raises(UserError, match="precision was 'bf16' and is 'fp32' now"):
        learn(OneLoss(), tmp_path / "run", precision="fp32", resume=True)


def test_metrics_lines(tmp_path: Path) -> None:
    summary = learn(OneLoss(), tmp_path / "run")
    lines = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(13))
    assert {
        "train/loss",
        "train/lr",
        "train/wd",
        "train/grad_norm",
        "time/step_s",
        "time/data_frac",
        "throughput/clips_per_s",
        "cost/train_flops",
        "data/replaced_frac",
        "repr/std",
    } <= lines[3].keys()
    assert [line["step"] for line in lines if "repr/probe" in line] == [0, 5, 10, 12]
    assert [line["cost/train_flops"] for line in lines[:3]] == [8 * 11, 8 * (11 + 21), 8 * (11 + 21 + 31)]
    assert summary.spent.flops == {"encoder": 8 * 10 * 78, "teacher": 8 * 12}
    assert (summary.spent.clips, summary.spent.sessions) == (96, 1)
    assert summary.spent.peak_memory > 2**20
    saved = json.loads((tmp_path / "run/summary.json").read_text())
    assert saved["flops"] == summary.spent.flops and saved["steps"] == 12
    assert "12 steps done" in (tmp_path / "run/train.log").read_text()


def test_log_every_thins_the_lines_but_keeps_the_measured_ones(tmp_path: Path) -> None:
    learn(OneLoss(), tmp_path / "run", log_every=4)
    assert [line["step"] for line in lines_of(tmp_path / "run")] == [0, 4, 5, 8, 10, 11, 12]


def test_what_is_not_a_number_becomes_null(tmp_path: Path) -> None:
    train(
        OneLoss(), ToyStream(), settings(), tmp_path / "run", monitors=[lambda m, method: {"a": float("nan")}]
    )
    text = (tmp_path / "run/metrics.jsonl").read_text()
    assert "NaN" not in text and lines_of(tmp_path / "run")[0]["a"] is None


def test_monitors_leave_no_trace(tmp_path: Path) -> None:
    learn(OneLoss(), tmp_path / "often", monitor_every=1)
    learn(OneLoss(), tmp_path / "rarely", monitor_every=100)
    often, rarely = ([line.get("train/loss") for line in lines_of(tmp_path / n)] for n in ("often", "rarely"))
    assert often == rarely


def test_the_stream_is_closed_and_the_method_given_back(tmp_path: Path) -> None:
    stream, method = ToyStream(), Locking()
    train(method, stream, settings(), tmp_path / "run")
    assert stream.closed == 1
    assert all(p.requires_grad and p.grad is None for p in method.parameters())
    broken = ToyStream()
    with pytest.raises(UserError):
        train(Locking(), broken, settings(), tmp_path / "run")
    assert broken.closed == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"clip": 0.0}, "clip=0.0"),
        ({"clip_per": "layer"}, "clip_per"),
        ({"keep": 0}, "keep=0"),
        ({"micro_batches": 3}, "make it a multiple of 3"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        learn(OneLoss(), tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_devices_that_are_not_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match='device="gpu" is not a device'):
        resolve_device("gpu")
    with pytest.raises(UserError, match="cuda:99"):
        resolve_device("cuda:99")


def test_tensorboard_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=r"pip install 'tubelet\[tensorboard\]'"):
        learn(OneLoss(), tmp_path / "run", tensorboard=True)


def _signalled(run: Path, number: int) -> None:
    quiet()

    class Signal(OneLoss):
        def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
            if moment.step == 5:
                os.kill(os.getpid(), number)
            yield from OneLoss.forward(self, batch, moment)

    learn(Signal(), run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_finish_the_step_save_and_leave(number: int, code: int, tmp_path: Path) -> None:
    child = start(_signalled, tmp_path / "run", number)
    child.join(60)
    assert child.exitcode == code
    assert (tmp_path / "run/checkpoints/last").read_text() == "step-000006\n"
    assert [line["step"] for line in lines_of(tmp_path / "run")] == list(range(6))
    assert "go on with --resume" in (tmp_path / "run/train.log").read_text()
    learn(OneLoss(), tmp_path / "run", resume=True)
    learn(OneLoss(), tmp_path / "whole")
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "whole")


def test_the_loop_names_no_method() -> None:
    folder = Path(sys.modules["tubelet.train.loop"].__file__ or "").parent
    source = "".join(path.read_text() for path in folder.glob("*.py")).lower()
    for word in ("videomae", "salt", "layerlock", "blockwise", "isinstance", "ema_", "momentum_"):
        assert word not in source


def test_a_method_that_is_not_whole_cannot_be_built() -> None:
    class Half(Toy):
        def trainable(self, moment: Moment) -> list[nn.Module]:
            return []

    with pytest.raises(TypeError, match="forward"):
        Half()  # pyright: ignore[reportAbstractUsage]


def test_a_method_without_a_loss_is_our_mistake() -> None:
    class Silent(OneLoss):
        def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
            yield from ()

    method = Silent()
    with pytest.raises(AssertionError, match="yielded no loss"):
        take(method, Optimizer(method), 0)


def test_several_values_under_one_name_are_averaged() -> None:
    class Twice(OneLoss):
        def forward(self, batch: Batch, moment: Moment) -> Iterator[Loss]:
            for value in (1.0, 3.0):
                clip = batch.clip.flatten(1)
                yield Loss(F.mse_loss(self.head(clip), clip), {"a": torch.tensor(value)})

    method = Twice()
    assert take(method, Optimizer(method), 0, micro_batches=2)["a"] == 2.0
