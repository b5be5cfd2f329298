"""The papers' probing protocols by name: which clips, which layers, which heads.

Every number is from the papers or their released configurations; what they leave open is said in a preset's note
and in the docstrings here. None of them changes what a probe may see: heads are chosen on validation clips cut
from the training clips unless `AttentiveSettings.best_on` says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from tubelet.errors import UserError, nearest
from tubelet.evaluate.attentive import AttentiveSettings, Rates
from tubelet.evaluate.source import Views
from tubelet.export.weights import Geometry

LAYERS = 4  # that the papers' probes of several layers read
GIANT = {40: (25, 30, 35, 40)}  # by depth; the one published choice that `paper_layers`' rule does not give


@dataclass(frozen=True)
class Protocol:
    """How much of a video a probe sees, written ``frames x segments x crops`` as the papers do: ``16x2x3``.

    frames: per clip. segments: clips evenly spaced in time, whose tokens are joined. crops: spatial views, each
    classified alone; their softmax is averaged.
    """

    frames: int
    segments: int
    crops: int

    def __post_init__(self) -> None:
        if min(self.frames, self.segments, self.crops) < 1:
            raise UserError(f'protocol "{self}": frames, segments and crops must be at least 1')

    def __str__(self) -> str:
        return f"{self.frames}x{self.segments}x{self.crops}"

    @property
    def views(self) -> Views:
        """Segments and crops as `features.extract` takes them."""
        return Views(self.segments, self.crops)


def read_protocol(text: str) -> Protocol:
    """The protocol that ``16x2x3`` (or ``16×2×3``) stands for; raises UserError for anything else."""
    parts = text.strip().lower().replace("×", "x").split("x")
    if len(parts) != 3:
        raise UserError(
            f'protocol "{text}" has {len(parts)} of 3 parts; write frames x segments x crops, such as 16x2x3'
        )
    for name, part in zip(("frames", "segments", "crops"), parts, strict=True):
        if not (part.isascii() and part.isdigit()):
            raise UserError(
                f'protocol "{text}": {name} is "{part}", not a whole number; write one such as 16x2x3'
            )
    frames, segments, crops = map(int, parts)
    return Protocol(frames, segments, crops)


def paper_layers(depth: int) -> tuple[int, ...]:
    """The four layers (1 to ``depth``, ascending) that the papers' probes of several layers read.

    Depth 24: 18, 20, 22, 24. 32: 26, 28, 30, 32. 40: 25, 30, 35, 40 (V-JEPA 2's configurations, which count from
    0). Other depths, ours: every second layer down from the last, as in the first two, as far as there are four.
    """
    if depth in GIANT:
        return GIANT[depth]
    return tuple(range(depth, 0, -2))[:LAYERS][::-1] or (0,)


@dataclass(frozen=True)
class Preset:
    """A published way to probe one data set.

    source: paper, and where the numbers are. frames, frame_step, crop_size: None takes the encoder's own.
    segments, crops: see `Protocol`. layers: "last", or "four" (`paper_layers`), joined on the token axis.
    settings: of the heads. note: where this differs from what was published.
    """

    name: str
    source: str
    frames: int | None
    segments: int
    crops: int
    frame_step: int | None
    crop_size: int | None
    layers: Literal["last", "four"]
    settings: AttentiveSettings
    note: str

    def geometry(self, own: Geometry) -> Geometry:
        """The clips to show an encoder that was trained on ``own``; a frame step replaces a rate in fps."""
        found = replace(own, frames=self.frames or own.frames, crop_size=self.crop_size or own.crop_size)
        return found if self.frame_step is None else replace(found, fps=None, frame_step=self.frame_step)

    def protocol(self, own: Geometry) -> Protocol:
        """Frames, segments and crops for an encoder that was trained on ``own``."""
        return Protocol(self.frames or own.frames, self.segments, self.crops)

    def layers_of(self, depth: int) -> tuple[int, ...]:
        """The layers to read of an encoder of ``depth`` blocks."""
        return paper_layers(depth) if self.layers == "four" else (depth,)


def find_preset(name: str) -> Preset:
    """The preset of that name; raises UserError for an unknown one, naming the nearest."""
    if name in PRESETS:
        return PRESETS[name]
    raise UserError(f'unknown preset "{name}"{nearest(name, PRESETS)} (known: {", ".join(PRESETS)})')


NOT_AUGMENTED = (
    "published probes learn from augmented clips (RandAugment, erasing, random crops); here they learn from cached "
    "features of unchanged clips"
)
BEST_ON_TEST = (
    "published scores are of the best head on test; here it is chosen on validation clips unless "
    'best_on="test"'
)
FLOAT32 = "published in float16, here in float32"

VJEPA = "V-JEPA, arXiv 2404.08471, and its released configurations"
VJEPA2 = "V-JEPA 2, arXiv 2506.09985, and its released configurations"
SALT = "SALT, arXiv 2509.24317, appendix"

# One block, one head; the decay falls with a cosine in the released code, which the paper does not mention.
ONE_BLOCK = AttentiveSettings(
    depth=1, lrs=(1e-3,), wds=(0.01,), wd_end=1e-6, epochs=20, batch_size=256, clip=1.0
)
TWENTY_HEADS = AttentiveSettings(
    depth=4,
    lrs=(5e-3, 3e-3, 1e-3, 3e-4, 1e-4),
    wds=(0.8, 0.4, 0.1, 0.01),
    epochs=20,
    batch_size=256,
)
THREE_HEADS = AttentiveSettings(depth=4, lrs=(1e-3, 3e-4, 1e-4), wds=(0.8,), epochs=100, batch_size=128)
IMAGE_HEADS = AttentiveSettings(
    depth=4,
    lrs=(5e-4, 1e-3, 1.5e-3, 2e-3),
    wds=(0.008, 0.004, 0.002, 0.001, 0.0005),
    warmup=5,
    start_lr=2e-4,
    extra=(Rates(lr=1e-3, wd=0.001, wd_end=0.0),),
    epochs=20,
    batch_size=1024,
)
ONE_HEAD = AttentiveSettings(depth=4, lrs=(1e-3,), wds=(0.01,), epochs=20, batch_size=256)


def _vjepa(task: str, segments: int, more: str = "") -> Preset:
    note = _note(
        "pooler of 16 attention heads as released (the paper says 12)",
        "the decay falls to 1e-6 as in the released code",
        more,
        FLOAT32,
        NOT_AUGMENTED,
    )
    return Preset(f"vjepa-{task}", VJEPA, 16, segments, 3, 4, 224, "last", ONE_BLOCK, note)


def _vjepa2(
    task: str,
    protocol: str,
    step: int,
    settings: AttentiveSettings,
    layers: Literal["last", "four"] = "last",
    more: str = "",
) -> Preset:
    note = _note(more, BEST_ON_TEST, FLOAT32, NOT_AUGMENTED)
    p = read_protocol(protocol)
    return Preset(f"vjepa2-{task}", VJEPA2, p.frames, p.segments, p.crops, step, 256, layers, settings, note)


def _salt(task: str, protocol: str, step: int, settings: AttentiveSettings, more: str = "") -> Preset:
    best = BEST_ON_TEST if len(settings.grid) > 1 else ""
    note = _note(more, "the pooler's attention heads are not stated: 16", best, NOT_AUGMENTED)
    p = read_protocol(protocol)
    return Preset(f"salt-{task}", SALT, p.frames, p.segments, p.crops, step, 224, "last", settings, note)


def _note(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


_STEP = "the frame step is not stated for this set: 4, as in pretraining"
_LAST = "the layers are not stated for this set: the last"
_ONE_VIEW = "segments and views are not stated: one of each"
_STILLS = "every image is a video of 16 equal frames"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "cheap",
            "ours",
            None,
            1,
            1,
            None,
            None,
            "last",
            AttentiveSettings(),
            _note("the encoder's own clips, one block, six heads", NOT_AUGMENTED),
        ),
        _vjepa("ssv2", 2),
        _vjepa("k400", 8, _STEP),
        _vjepa2("ssv2", "16x2x3", 4, TWENTY_HEADS, more="the giant at 384 pixels: 64x2x3, step 2"),
        _vjepa2("k400", "16x8x3", 4, TWENTY_HEADS, more=_STEP),
        _vjepa2(
            "coin",
            "16x8x3",
            4,
            replace(TWENTY_HEADS, batch_size=128),
            more=_note(_STEP, "16 frames as in the released configuration (the paper says 32)"),
        ),
        _vjepa2("diving48", "32x4x3", 2, THREE_HEADS, "four"),
        _vjepa2("jester", "32x4x3", 2, THREE_HEADS, "four"),
        _vjepa2(
            "in1k",
            "16x1x1",
            1,
            IMAGE_HEADS,
            more=_note(_STILLS, _ONE_VIEW, "21 heads as in the released configuration"),
        ),
        _salt("ssv2", "16x2x3", 4, TWENTY_HEADS, _STEP),
        _salt("k400", "16x8x3", 4, TWENTY_HEADS, _STEP),
        _salt("coin", "16x8x3", 4, TWENTY_HEADS, _STEP),
        _salt("diving48", "16x4x3", 2, replace(ONE_HEAD, batch_size=128), _LAST),
        _salt("jester", "16x4x3", 2, replace(ONE_HEAD, batch_size=128), _LAST),
        _salt("in1k", "16x1x3", 1, replace(ONE_HEAD, batch_size=1024), _STILLS),
        _salt("fast-ssv2", "16x1x1", 4, ONE_HEAD, _STEP),
        _salt("fast-k400", "16x1x1", 4, ONE_HEAD, _STEP),
    )
}
