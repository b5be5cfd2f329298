"""An encoder as a folder that transformers opens: as V-JEPA 2 or VideoMAE, or with the code that computes it."""

from __future__ import annotations

import importlib
import math
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.errors import UserError
from tubelet.export.about import about
from tubelet.export.card import write_card
from tubelet.export.check import Written
from tubelet.export.hub import EXTRA
from tubelet.export.names import named_as
from tubelet.export.story import Story
from tubelet.export.weights import Encoder, write_encoder
from tubelet.files import write_json
from tubelet.nn.published import VIDEOMAE_HF, VJEPA2_HF
from tubelet.nn.tokens import Rotary, SinCos, name_positions
from tubelet.nn.vit import ViT
from tubelet.tensors import write_tensors

CODE = "tubelet.export.modeling"
MODULES = "transformers_modules"  # the package that transformers makes of code that folders bring
_IMPORT = re.compile(r"^from (tubelet\.[\w.]+) import ", re.M)


def write_hf(encoder: Encoder, model: ViT, draft: Path, story: Story) -> Written:
    """config.json, model.safetensors, the preprocessor's config and a model card; opened again by `AutoModel`.

    Rotary positions as V-JEPA 2 was published with ("rotary_legacy") become a VJEPA2Model, the flat sines and cosines
    of VideoMAE ("sincos_flat") a VideoMAEModel, all others a model whose code is in the folder (trust_remote_code):
    transformers has none that computes the same. Raises UserError if transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"to=hf is checked by opening it with transformers, which is not installed: {EXTRA}"
        ) from error
    leaving = about(encoder)["provenance"]
    encoder = replace(encoder, name=leaving["name"], provenance=leaving)
    kind = kind_of(model)
    named, write = {
        "vjepa2": ("VJEPA2Model", _write_vjepa2),
        "videomae": ("VideoMAEModel", _write_videomae),
        "tubelet": ("TubeletModel", _write_own),
    }[kind]
    told = write(encoder, model, draft)
    write_card(encoder, model, draft, named, told, story)
    with _by_itself(transformers):
        opened = transformers.AutoModel.from_pretrained(draft, trust_remote_code=kind == "tubelet").eval()
    assert type(opened).__name__ == named, f"transformers opens the export as {type(opened).__name__}"
    # V-JEPA 2 would go on to its predictor
    options: dict[str, Any] = {"skip_predictor": True} if kind == "vjepa2" else {}

    def run(clip: Tensor) -> Tensor:
        return opened(clip.transpose(1, 2), **options).last_hidden_state

    return Written(run, any_length=kind != "videomae", told=told)


@contextmanager
def _by_itself(transformers: Any) -> Iterator[None]:
    """Code that a folder brings goes into a folder that is gone afterwards, not into the user's; no bars are drawn."""
    modules, log = transformers.dynamic_module_utils, transformers.utils.logging
    cache, path, bars = modules.HF_MODULES_CACHE, list(sys.path), log.is_progress_bar_enabled()
    known = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == MODULES}
    log.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as folder:
            modules.HF_MODULES_CACHE = folder
            sys.path.insert(0, folder)  # before the user's own, which may hold a package of this name
            importlib.invalidate_caches()
            yield
    finally:
        modules.HF_MODULES_CACHE = cache
        sys.path[:] = path
        for name in [name for name in sys.modules if name.split(".")[0] == MODULES]:
            del sys.modules[name]
        sys.modules.update(known)
        if bars:
            log.enable_progress_bar()


def kind_of(model: ViT) -> str:
    """The model_type that computes what ``model`` does: "vjepa2", "videomae", or "tubelet", our own code."""
    square = model.patch[1] == model.patch[2]
    # with one frequency for each axis there is nothing to tile, and both forms are the same
    single = model.dim // model.heads // 3 // 2 == 1
    if square and (model.positions == Rotary(legacy=True) or (single and model.positions == Rotary())):
        return "vjepa2"
    return "videomae" if square and model.positions == SinCos(flat=True) else "tubelet"


def mlp_ratio(dim: int, hidden: int) -> float:
    """The ratio for which int(dim * ratio), which is how transformers computes it, is exactly ``hidden``."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def _common(model: ViT) -> dict[str, Any]:
    """What both classes' config.json call by the same names."""
    return {
        "hidden_size": model.dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "tubelet_size": model.patch[0],
        "patch_size": model.patch[1],
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "qkv_bias": True,
    }


def _write_vjepa2(encoder: Encoder, model: ViT, draft: Path) -> tuple[str, ...]:
    dim, geometry = model.dim, encoder.geometry
    config = {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        **_common(model),
        "mlp_ratio": mlp_ratio(dim, model.hidden),
        "in_chans": model.channels,
        "frames_per_clip": geometry.frames,
        "crop_size": geometry.crop_size,
        # the class has a predictor whether there is one or not: this is the smallest that it can have
        "pred_hidden_size": _PREDICTOR,
        "pred_num_hidden_layers": 0,
        "pred_num_attention_heads": 1,
        "pred_num_mask_tokens": 1,
    }
    _write(draft, named_as(model, VJEPA2_HF) | _no_predictor(dim), config, encoder)
    write_json(draft / "video_preprocessor_config.json", _video_processor(encoder))
    return (
        "no predictor is exported: call it with skip_predictor=True; without, predictor_output is zeros",
        f"VJEPA2Model numbers tokens by crop_size in config.json: for another crop than {geometry.crop_size} change it "
        f"there too; frames are free",
    )


_PREDICTOR = 6  # its width


def _no_predictor(dim: int) -> dict[str, Tensor]:
    shapes = {
        "embeddings.mask_tokens": (1, 1, 1, _PREDICTOR),
        "embeddings.predictor_embeddings.weight": (_PREDICTOR, dim),
        "embeddings.predictor_embeddings.bias": (_PREDICTOR,),
        "layernorm.weight": (_PREDICTOR,),
        "layernorm.bias": (_PREDICTOR,),
        "proj.weight": (dim, _PREDICTOR),
        "proj.bias": (dim,),
    }
    return {f"predictor.{name}": torch.zeros(shape) for name, shape in shapes.items()}


def _write_videomae(encoder: Encoder, model: ViT, draft: Path) -> tuple[str, ...]:
    geometry = encoder.geometry
    config = {
        "architectures": ["VideoMAEModel"],
        "model_type": "videomae",
        **_common(model),
        "intermediate_size": model.hidden,
        "num_channels": model.channels,
        "num_frames": geometry.frames,
        "image_size": geometry.crop_size,
        "use_mean_pooling": False,
    }
    _write(draft, named_as(model, VIDEOMAE_HF), config, encoder)
    write_json(draft / "preprocessor_config.json", _image_processor(encoder))
    told = f"VideoMAEModel takes {geometry.frames} frames of {geometry.crop_size} pixels and nothing else"
    fused = [t for name, t in model.named_parameters() if name.endswith("attn.qkv.bias")]
    if not any(bool(bias[model.dim : 2 * model.dim].any()) for bias in fused):
        return (told,)
    return (
        told,
        "VideoMAE's keys have no bias, so those of this encoder are left out: each moves all of a query's scores "
        "alike, which the softmax takes out again, so outputs differ by rounding alone",
    )


def _write_own(encoder: Encoder, model: ViT, draft: Path) -> tuple[str, ...]:
    geometry = encoder.geometry
    positions, base = name_positions(model.positions)
    config = {
        "architectures": ["TubeletModel"],
        "model_type": "tubelet",
        "auto_map": {"AutoConfig": "modeling.TubeletConfig", "AutoModel": "modeling.TubeletModel"},
        "hidden_size": model.dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "intermediate_size": model.hidden,
        "num_channels": model.channels,
        "tubelet_size": model.patch[0],
        "patch_size": list(model.patch[1:]),
        "positions": positions,
        "positions_base": base,
        "frames_per_clip": geometry.frames,
        "crop_size": geometry.crop_size,
    }
    write_encoder(model, draft, geometry, encoder.provenance)
    write_json(draft / "config.json", config | {"dtype": "float32", "tubelet": about(encoder)})
    write_json(draft / "video_preprocessor_config.json", _video_processor(encoder))
    for name, text in shipped_code().items():
        (draft / name).write_text(text, encoding="utf-8")
    why = (
        "VJEPA2Model turns the two channels of a pair by different angles, as its weights were trained, and no change "
        "of query and key weights makes up for that (docs/export.md)"
        if isinstance(model.positions, Rotary) and not model.positions.legacy
        else "no class of transformers computes these positions"
    )
    return (
        f"{why} (positions={positions}), so the folder brings the code that does: open it with trust_remote_code=True",
        "the folder is also an encoder of tubelet's: load_encoder opens it and runs none of that code",
    )


def _write(draft: Path, state: dict[str, Tensor], config: dict[str, Any], encoder: Encoder) -> None:
    write_tensors(draft / "model.safetensors", state)
    write_json(draft / "config.json", config | {"dtype": "float32", "tubelet": about(encoder)})


def _image_processor(encoder: Encoder) -> dict[str, Any]:
    """The evaluation transform in their words: the short side to 256/224 of the crop, its centre, mean and std."""
    crop = encoder.geometry.crop_size
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": int(crop * 256 / 224)},
        "resample": 2,
        "do_center_crop": True,
        "crop_size": {"height": crop, "width": crop},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(encoder.geometry.mean),
        "image_std": list(encoder.geometry.std),
    }


def _video_processor(encoder: Encoder) -> dict[str, Any]:
    image = _image_processor(encoder)
    del image["image_processor_type"]
    return {"video_processor_type": "VJEPA2VideoProcessor", **image}


def shipped_code() -> dict[str, str]:
    """The source of `modeling.py` and of all modules of ours that it needs, by file name, importing one another.

    Taken from what is installed, so that it is the code that trained the encoder. Nothing in it needs tubelet.
    """
    found: dict[str, str] = {}
    wanted: list[str] = [CODE]
    while wanted:
        module = wanted.pop()
        package, _, name = module.rpartition(".")
        if f"{name}.py" in found:
            continue
        source = resources.files(package).joinpath(f"{name}.py").read_text(encoding="utf-8")
        wanted += _IMPORT.findall(source)
        found[f"{name}.py"] = f"# tubelet {version('tubelet')}, Apache-2.0: {module}\n" + _IMPORT.sub(
            _beside, source
        )
    return found


def _beside(found: re.Match[str]) -> str:
    return f"from .{found[1].rpartition('.')[2]} import "
