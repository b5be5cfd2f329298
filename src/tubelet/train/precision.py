"""Which floating-point format the forward passes run in; parameters and gradients are always float32."""

from __future__ import annotations

from typing import Literal

import torch

from tubelet.errors import UserError, nearest

Precision = Literal["fp32", "bf16", "auto"]


def has_fast_bf16(device: torch.device) -> bool:
    """Whether ``device`` multiplies bfloat16 in hardware; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def resolve_precision(precision: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """ "auto" becomes "bf16" where the hardware has it, else "fp32"; raises UserError on another word."""
    if precision == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    if precision == "bf16":
        return "bf16"
    if precision == "fp32":
        return "fp32"
    known = ("fp32", "bf16", "auto")
    raise UserError(f'precision="{precision}" is not one of {", ".join(known)}{nearest(precision, known)}')
