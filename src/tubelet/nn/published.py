"""Published encoders: how other people's files name what ours needs, and how their tensors become ours."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tubelet.nn.tokens import Positions, Rotary, ScaledRotary, SinCos
from tubelet.nn.vit import MODELS, ViT
from tubelet.types import Grid


@dataclass(frozen=True)
class Family:
    """Files of one origin: what their tensors are called and what is known of the encoders in them.

    name, licence: as they are told; names of tensors cannot prove whose they are, so the licence says whose it would
    be. embedding, block, norm: the names of patch embedding, block ("{}" is its
    number, from 0) and final norm, the first of ``norm`` that a file has; all after one of ``prefixes``.
    qkv_weight, qkv_bias: what of a block makes up our fused weight and bias, in this order; None stands for zeros.
    parts: our other names within a block, and theirs.
    constant: what is added to every token, and so belongs into the embedding's bias. table: a stored table of
    positions. unneeded: beginnings of names that an encoder can do without. positions: of the tokens.
    heads: by width and depth, which no tensor's shape tells. frames, fps, frame_step, crop_size: the clips.
    """

    name: str
    licence: str
    embedding: str
    block: str
    norm: tuple[str, ...]
    qkv_weight: tuple[str, ...]
    qkv_bias: tuple[str | None, ...]
    parts: Mapping[str, str]
    positions: Positions
    prefixes: tuple[str, ...] = ("",)
    constant: str | None = None
    table: str = "pos_embed"
    unneeded: tuple[str, ...] = ()
    heads: Mapping[tuple[int, int], int] = field(default_factory=dict)
    frames: int = 16
    fps: float | None = None
    frame_step: int = 4
    crop_size: int = 224


_SAME = {name: name for name in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")}
_HEADS = {(size.dim, size.depth): size.heads for size in MODELS.values()}
# V-JEPA 2 trained its giant with 22 heads, 2.1 its gigantic with 26: heads of 64 channels
_HEADS_JEPA2 = _HEADS | {(1408, 40): 22, (1664, 48): 26}
UNPROVEN = "not known from the file"

VJEPA1 = Family(
    name="V-JEPA 1",
    licence=f"CC-BY-NC-4.0 if published by Meta; {UNPROVEN}",
    embedding="patch_embed.proj",
    block="blocks.{}",
    norm=("norm",),
    qkv_weight=("attn.qkv.weight",),
    qkv_bias=("attn.qkv.bias",),
    parts=_SAME,
    positions=SinCos(),
    heads=_HEADS,
)
VJEPA2 = replace(
    VJEPA1,
    name="V-JEPA 2",
    licence=f"MIT if published by Meta; {UNPROVEN}",
    positions=Rotary(legacy=True),
    heads=_HEADS_JEPA2,
    frames=64,
    fps=4.0,
    crop_size=256,
)
VJEPA21 = replace(
    VJEPA2,
    name="V-JEPA 2.1",
    # one norm for each of the four layers that it was trained on; the last is the output's
    norm=("norms_block.3",),
    positions=ScaledRotary(),
    constant="video_mod_embed",
    unneeded=("patch_embed_img.", "img_mod_embed", "norms_block.0.", "norms_block.1.", "norms_block.2."),
    crop_size=384,
)
VIDEOMAE = Family(
    name="VideoMAE",
    licence=f"CC-BY-NC-4.0 if published by VideoMAE's authors; {UNPROVEN}",
    embedding="patch_embed.proj",
    block="blocks.{}",
    # fine-tuned ones norm the mean token; per token it is the nearest thing to a final norm that they have
    norm=("norm", "fc_norm"),
    qkv_weight=("attn.qkv.weight",),
    # no bias on keys: it would move all of a query's scores alike, so zeros are the same
    qkv_bias=("attn.q_bias", None, "attn.v_bias"),
    parts=_SAME,
    positions=SinCos(flat=True),
    prefixes=("", "encoder."),
    unneeded=("decoder.", "encoder_to_decoder.", "mask_token", "head."),
    heads=_HEADS,
)
VJEPA2_HF = Family(
    name="V-JEPA 2, Hugging Face",
    licence="unknown",
    embedding="embeddings.patch_embeddings.proj",
    block="layer.{}",
    norm=("layernorm",),
    qkv_weight=tuple(f"attention.{part}.weight" for part in ("query", "key", "value")),
    qkv_bias=tuple(f"attention.{part}.bias" for part in ("query", "key", "value")),
    parts={**_SAME, "attn.proj": "attention.proj"},
    positions=Rotary(legacy=True),
    prefixes=("encoder.", "vjepa2.encoder."),
    unneeded=("predictor.", "vjepa2.predictor.", "pooler.", "classifier."),
    fps=4.0,
)
VIDEOMAE_HF = Family(
    name="VideoMAE, Hugging Face",
    licence="unknown",
    embedding="embeddings.patch_embeddings.projection",
    block="encoder.layer.{}",
    norm=("layernorm", "fc_norm"),
    qkv_weight=tuple(f"attention.attention.{part}.weight" for part in ("query", "key", "value")),
    qkv_bias=("attention.attention.q_bias", None, "attention.attention.v_bias"),
    parts={
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    },
    positions=SinCos(flat=True),
    prefixes=("", "videomae."),
    table="embeddings.position_embeddings",
    unneeded=("decoder.", "encoder_to_decoder.", "mask_token", "classifier."),
)


@dataclass(frozen=True)
class Shape:
    """What the shapes of a file's tensors say of its encoder."""

    dim: int
    depth: int
    hidden: int
    patch: tuple[int, int, int]
    channels: int


@dataclass(frozen=True)
class Fit:
    """How a file's tensors fitted: how many of ours matched, and names (theirs) of those that did not.

    unexpected: tensors of the encoder that ours has no place for, so that its output would be another.
    reshaped: tensors of another shape, with both. left_random: our tensors that nothing was copied into.
    """

    matched: int
    missing: list[str]
    unexpected: list[str]
    reshaped: list[str]
    left_random: list[str]

    @property
    def whole(self) -> bool:
        """Whether every tensor of ours was filled and none of theirs was left over."""
        return not (self.missing or self.unexpected or self.reshaped)


def recognise(names: Collection[str]) -> tuple[Family, str] | None:
    """Family and prefix of a flat file (VideoMAE, or one of Hugging Face's), from its names; None: neither."""
    for family in (VJEPA2_HF, VIDEOMAE_HF, VIDEOMAE):
        # the original VideoMAE's weights are called as every ViT's; its single biases are its own
        telling = family.qkv_bias[0] if family is VIDEOMAE else family.qkv_weight[0]
        for prefix in family.prefixes:
            if f"{prefix}{family.block.format(0)}.{telling}" in names:
                return family, prefix
    return None


def plain(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """``state`` without wrappers' prefixes and ``prefix``, VideoMAE's biases under their older names."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"^((module|backbone|_orig_mod)\.)+", "", name).removeprefix(prefix)
        name = re.sub(r"attention\.attention\.(query|value)\.bias$", _single_bias, name)
        renamed[name] = tensor
    return renamed


def _single_bias(found: re.Match[str]) -> str:
    return f"attention.attention.{found[1][0]}_bias"


def shape_of(family: Family, state: Mapping[str, Tensor]) -> Shape:
    """Width, depth, MLP width and patch of the encoder in ``state``.

    Raises ValueError if it has no patch embedding, or one that reads images (4 instead of 5 dimensions), and unless
    all blocks up to the last are there: a number alone must not make an encoder of a billion blocks.
    """
    kernel = state.get(f"{family.embedding}.weight")
    if kernel is None:
        raise ValueError(f"there is no {family.embedding}.weight")
    if kernel.ndim != 5:
        what = "it is an image model's" if kernel.ndim == 4 else "a video's has 5 dimensions"
        raise ValueError(f"the patch embedding {family.embedding}.weight is {tuple(kernel.shape)}; {what}")
    dim, channels, *patch = kernel.shape
    pattern = re.compile(re.escape(family.block).replace(r"\{\}", r"(\d+)") + r"\.")
    numbers = {found[1] for name in state if (found := pattern.match(name))}
    depth = len(numbers)
    if strange := sorted(numbers - {str(number) for number in range(depth)}):
        raise ValueError(f"it has {depth} blocks, but one of them has the number {strange[0][:20]}")
    first = f"{family.block.format(0)}.{family.parts['mlp.fc1']}.weight"
    if first not in state or state[first].ndim != 2:
        raise ValueError(f"there is no matrix {first}")
    return Shape(dim, depth, state[first].shape[0], (patch[0], patch[1], patch[2]), channels)


@torch.no_grad()
def fill(model: ViT, family: Family, state: Mapping[str, Tensor]) -> Fit:
    """Copies what fits of ``state`` (as `plain` gives it) into ``model``, in float32.

    A Conv3d's kernel becomes a Linear's rows, separate queries, keys and values one fused weight. The table of
    positions and what the family calls unneeded are passed over.
    """
    used: set[str] = set()
    missing, reshaped, left = [], [], []
    ours = model.state_dict()
    for name, target in ours.items():
        parts = _sources(family, name, state)
        used.update(part for part in parts if part is not None)
        absent = [part for part in parts if part is not None and part not in state]
        if absent:
            missing += absent
            left.append(name)
            continue
        tensors = [
            state[part] if part is not None else torch.zeros(target.shape[0] // len(parts)) for part in parts
        ]
        # equal parts, each checked, so that a wrong query and a wrong key cannot make up for each other
        share = (target.shape[0] // len(parts), *target.shape[1:])
        if name == "embedding.weight":
            share = (model.dim, model.channels, *model.patch)
        wrong = [
            f"{part} {tuple(tensor.shape)} of {tensor.dtype} instead of {share}"
            for part, tensor in zip(parts, tensors, strict=True)
            if tensor.shape != share or not tensor.is_floating_point()
        ]
        if wrong:
            reshaped += wrong
            left.append(name)
            continue
        filled = torch.cat([tensor.float() for tensor in tensors]).view_as(target)
        if name == "embedding.bias" and family.constant is not None:
            used.add(family.constant)
            added = state.get(family.constant)
            if added is None or added.numel() != model.dim:
                missing.append(family.constant)
            else:
                filled = filled + added.float().flatten()
        target.copy_(filled)
    over = sorted(
        name for name in state.keys() - used if name != family.table and not name.startswith(family.unneeded)
    )
    return Fit(len(ours) - len(left), missing, over, reshaped, left)


def _sources(family: Family, name: str, state: Mapping[str, Tensor]) -> tuple[str | None, ...]:
    """Their names for our tensor ``name``."""
    where, _, part = name.rpartition(".")
    if where == "embedding":
        return (f"{family.embedding}.{part}",)
    if where == "norm":
        found = [norm for norm in family.norm if f"{norm}.{part}" in state]
        return (f"{(found or family.norm)[0]}.{part}",)
    _, number, inner = where.split(".", 2)
    block = family.block.format(number)
    if inner == "attn.qkv":
        names = family.qkv_weight if part == "weight" else family.qkv_bias
        return tuple(None if theirs is None else f"{block}.{theirs}" for theirs in names)
    return (f"{block}.{family.parts[inner]}.{part}",)


def table_grid(positions: SinCos, table: Tensor, tolerance: float = 1e-4) -> Grid | None:
    """The grid, square in space, whose computed table equals a stored one [1, N, D]; None: no grid's does.

    For the flat table, which knows no sides, the grid is one row of N tokens.
    """
    if table.ndim != 3 or table.shape[0] != 1:
        return None
    n, dim = table.shape[1:]
    for grid in [Grid(1, 1, n)] if positions.flat else _square_grids(n):
        if (positions.add(grid, dim, table.device) - table.float()).abs().max() <= tolerance:
            return grid
    return None


def _square_grids(n: int) -> Iterator[Grid]:
    for side in range(1, int(n**0.5) + 1):
        if n % (side * side) == 0:
            yield Grid(n // (side * side), side, side)
