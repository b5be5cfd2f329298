"""AdamW over a changing set of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from tubelet.errors import UserError
from tubelet.methods.method import Method

FUSED = ("cpu", "cuda")  # device types whose fused kernel updates all parameters in one pass


class Optimizer:
    """AdamW over every parameter of ``method`` that is built to move, its state complete from the start.

    held: modules whose parameters never move, whatever the method lets move.

    Parameters of fewer than two dimensions (biases, norms) are not decayed. State is created at zero when
    this is built, so the keys of a checkpoint do not depend on what has moved by then. A parameter outside
    the trainable set has no gradient, and neither it nor its state changes by a bit, whatever the decay and
    the momentum.
    """

    def __init__(
        self,
        method: Method,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        held: Sequence[nn.Module] = (),
    ) -> None:
        self.names = {name: p for name, p in method.named_parameters() if p.requires_grad}
        parameters = list(self.names.values())
        assert parameters, "a method without a parameter that requires grad cannot be trained"
        self.held = {id(p) for module in held for p in module.parameters()}
        self.modules: list[nn.Module] = []
        self.moving: list[nn.Parameter] = []
        fused = all(p.device.type in FUSED for p in parameters)
        self.adamw = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "decays": True},
                {"params": [p for p in parameters if p.ndim < 2], "decays": False},
            ],
            lr=0.0,
            betas=betas,
            eps=eps,
            fused=fused,
            foreach=None if fused else True,
        )
        for p in parameters:
            self.adamw.state[p] = {
                "step": torch.zeros((), dtype=torch.float32, device=p.device if fused else "cpu"),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }

    def set_trainable(self, modules: Sequence[nn.Module]) -> None:
        """Let the parameters of ``modules`` move, except held ones, and no others."""
        wanted = {id(p) for module in modules for p in module.parameters()}
        unknown = wanted - {id(p) for p in self.names.values()}
        assert not unknown, f"trainable() names {len(unknown)} parameters that were built not to require grad"
        wanted -= self.held
        for p in self.names.values():
            p.requires_grad_(id(p) in wanted)
        self.modules = list(modules)
        self.moving = [p for p in self.names.values() if p.requires_grad]

    def set_rates(self, lr: float, weight_decay: float) -> None:
        """The learning rate, and the decoupled decay of what decays, of the next step."""
        for group in self.adamw.param_groups:
            group["lr"] = lr
            group["weight_decay"] = weight_decay if group["decays"] else 0.0

    def clip(self, limit: float | None, per: Literal["all", "module"] = "all") -> Tensor:
        """Scale gradients so that no norm passes ``limit``; returns the norm of all of them before that.

        per: one norm over all that moves, or one per module given to ``set_trainable`` (a parameter in two
        modules counts with the first).
        """
        norms = []
        for parameters in self._groups(per):
            norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
            if limit is not None:
                clip_grads_with_norm_(parameters, limit, norm)
            norms.append(norm)
        return torch.stack(norms).norm() if norms else torch.zeros(())

    def step(self) -> None:
        """Move what has a gradient, then drop the gradients."""
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)

    def release(self) -> None:
        """Give every parameter back as it was built: no gradient, and free to move."""
        self.adamw.zero_grad(set_to_none=True)
        for p in self.names.values():
            p.requires_grad_(True)

    def state(self) -> dict[str, Tensor]:
        """The state tensors themselves (not copies) by ``parameter name/quantity``."""
        return {
            f"{name}/{key}": value
            for name, p in self.names.items()
            for key, value in self.adamw.state[p].items()
        }

    def _groups(self, per: Literal["all", "module"]) -> list[list[nn.Parameter]]:
        if per == "all":
            return [self.moving] if self.moving else []
        groups: list[list[nn.Parameter]] = []
        seen: set[int] = set()
        for module in self.modules:
            group = [p for p in module.parameters() if p.requires_grad and id(p) not in seen]
            seen.update(id(p) for p in group)
            if group:
                groups.append(group)
        return groups


def copy_into(here: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy each of ``tensors`` into the one of the same name; raises UserError naming the first misfit."""
    for name in sorted(here.keys() | tensors.keys()):
        if name not in tensors:
            raise UserError(f'{what} of the checkpoint has no "{name}": it is of another model or method')
        if name not in here:
            raise UserError(f'{what} of the checkpoint has "{name}", unknown here: another model or method')
        if here[name].shape != tensors[name].shape:
            raise UserError(
                f'{what} of the checkpoint has "{name}" of shape {tuple(tensors[name].shape)}, '
                f"here it is {tuple(here[name].shape)}: an encoder of another size"
            )
    with torch.no_grad():
        for name, tensor in tensors.items():
            here[name].copy_(tensor)
