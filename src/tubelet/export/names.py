"""Our tensors under other people's names: `tubelet.nn.published` read backwards."""

from __future__ import annotations

from torch import Tensor

from tubelet.nn.block import Block
from tubelet.nn.published import Family
from tubelet.nn.vit import ViT


def named_as(model: ViT, family: Family) -> dict[str, Tensor]:
    """The tensors of ``model``, float32, under the names of ``family``, whose first prefix they get.

    What `tubelet.nn.published.fill` reads from them equals the model to the bit, but for biases that the family does
    not have (VideoMAE's keys): those are left out.
    """
    kernel = model.embedding.weight.view(model.dim, model.channels, *model.patch)
    state = {f"{family.embedding}.weight": kernel, f"{family.embedding}.bias": model.embedding.bias}
    state |= {f"{family.norm[0]}.weight": model.norm.weight, f"{family.norm[0]}.bias": model.norm.bias}
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        place = family.block.format(number)
        for ours, theirs in family.parts.items():
            part = block.get_submodule(ours)
            state |= {f"{place}.{theirs}.{name}": tensor for name, tensor in part.named_parameters()}
        fused = ((family.qkv_weight, block.attn.qkv.weight), (family.qkv_bias, block.attn.qkv.bias))
        for names, tensor in fused:
            shares = zip(names, tensor.chunk(len(names)), strict=True)
            state |= {f"{place}.{name}": share for name, share in shares if name is not None}
    return {family.prefixes[0] + name: tensor.detach().float() for name, tensor in state.items()}
