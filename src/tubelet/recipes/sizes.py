"""How large a predictor or a decoder is, beside an encoder that need not be the paper's."""

from __future__ import annotations

from tubelet.errors import UserError
from tubelet.nn.predictor import Predictor
from tubelet.nn.vit import ViT
from tubelet.recipes.knobs import Knobs


def predictor_for(
    encoder: ViT,
    knobs: Knobs,
    target_dim: int | None,
    mask_tokens: int,
    head_dim: int,
    dim: int | None,
    depth: int | None,
) -> Predictor:
    """V-JEPA's predictor: 384 wide and 12 deep beside a ViT-L; elsewhere in the same proportions (ours).

    That is .375 of the encoder's width, in multiples of 48, at least 96, at most 384; and half its depth, at
    most 12. head_dim: 24 (V-JEPA, SALT) or 32 (V-JEPA 2). dim, depth: override.
    """
    if knobs.schedule == "paper":
        width, blocks = dim or 384, depth or 12
    else:
        width = dim or min(384, max(96, round(0.375 * encoder.dim / 48) * 48))
        blocks = depth or min(12, max(2, encoder.depth // 2))
    return Predictor(
        encoder.dim,
        width,
        blocks,
        heads_for(width, head_dim),
        target_dim,
        mask_tokens,
        positions=encoder.positions,
        init_std=encoder.init_std,
    )


def decoder_for(
    encoder: ViT, dim: int | None, depth: int | None, target_dim: int | None = None, heads: bool = True
) -> Predictor:
    """VideoMAE's decoder: 4 blocks, half the encoder's width (at least 96), heads 64 wide or less.

    target_dim: width of what it predicts, if not a tubelet's pixels. heads: False leaves its last layer out.
    Source: the authors' scripts (192/384/512/640 wide beside S/B/L/H; 12 deep beside L and H).
    """
    width = dim or max(96, encoder.dim // 2)
    blocks = depth or (12 if encoder.dim >= 1024 else 4)
    return Predictor(
        encoder.dim,
        width,
        blocks,
        heads_for(width, 64),
        (target_dim or tubelet_values(encoder)) if heads else None,
        mask_std=encoder.init_std,
        positions=encoder.positions,
        init_std=encoder.init_std,
    )


def tubelet_values(encoder: ViT) -> int:
    """Pixel values of one tubelet."""
    return encoder.channels * encoder.patch[0] * encoder.patch[1] * encoder.patch[2]


def heads_for(width: int, head_dim: int) -> int:
    """As many heads as divide the width, each ``head_dim`` wide or a little more."""
    for heads in range(max(1, width // head_dim), 0, -1):
        if width % heads == 0 and width // heads % 2 == 0 and width // heads >= 6:
            return heads
    raise UserError(
        f"a predictor {width} wide cannot be cut into heads of an even width of 6 or more; "
        "choose a multiple of 48"
    )
