"""The model that a Hugging Face folder brings along where transformers has none that computes the same.

`tubelet.export.huggingface` copies this file, and those of ours that it needs, beside the weights. Nothing else of
tubelet imports it. Its tensors have our names, so that the folder is also one of ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

# not used here: of files that those below need, transformers 4.57 and 5.0 copy only what this one names
from tubelet.errors import nearest  # noqa: F401
from tubelet.nn.block import Block
from tubelet.nn.tokens import build_positions, patchify
from tubelet.types import Grid


class TubeletConfig(PretrainedConfig):
    """Size and positions of an encoder, as its `encoder.json` has them, and the clips that it was trained on."""

    model_type = "tubelet"

    def __init__(
        self,
        hidden_size: int = 192,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 3,
        intermediate_size: int = 768,
        tubelet_size: int = 2,
        patch_size: tuple[int, int] = (16, 16),
        num_channels: int = 3,
        positions: str = "rotary",
        positions_base: float = 10000.0,
        frames_per_clip: int = 16,
        crop_size: int = 224,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.tubelet_size = tubelet_size
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.positions = positions
        self.positions_base = positions_base
        self.frames_per_clip = frames_per_clip
        self.crop_size = crop_size


class TubeletModel(PreTrainedModel):
    """A plain ViT over tubelets: patches, pre-norm blocks, a final norm. Any number of frames, any crop."""

    config_class = TubeletConfig
    main_input_name = "pixel_values_videos"

    def __init__(self, config: TubeletConfig) -> None:
        super().__init__(config)
        dim, self.patch = config.hidden_size, (config.tubelet_size, *config.patch_size)
        self.positions = build_positions(config.positions, config.positions_base)
        width = config.num_channels * self.patch[0] * self.patch[1] * self.patch[2]
        self.embedding = nn.Linear(width, dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.num_attention_heads, config.intermediate_size)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.post_init()

    def forward(
        self, pixel_values_videos: torch.Tensor, output_hidden_states: bool = False, **others: Any
    ) -> BaseModelOutput:
        """Normed tokens [B, N, D] of clips [B, T, C, H, W]; hidden_states: of layers 0 to depth, before the norm."""
        clip = pixel_values_videos.transpose(1, 2)
        grid = Grid(*(side // part for side, part in zip(clip.shape[2:], self.patch, strict=True)))
        dim, heads = self.config.hidden_size, self.config.num_attention_heads
        tokens = self.embedding(patchify(clip, self.patch))
        added = self.positions.add(grid, dim, clip.device)
        if added is not None:
            tokens = tokens + added.to(tokens.dtype)
        rotation = self.positions.rotate(grid, None, dim, heads, clip.device)
        states = [tokens]
        for block in self.blocks:
            tokens = block(tokens, rotation)
            states.append(tokens)
        return BaseModelOutput(
            last_hidden_state=self.norm(tokens), hidden_states=tuple(states) if output_hidden_states else None
        )
