"""Every number of the probing presets against a table written from the papers, and protocols as strings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tubelet.errors import UserError
from tubelet.evaluate.attentive import AttentiveSettings, Rates
from tubelet.evaluate.presets import PRESETS, Protocol, find_preset, paper_layers, read_protocol
from tubelet.export.weights import Geometry

GRID = {(lr, wd) for lr in (5e-3, 3e-3, 1e-3, 3e-4, 1e-4) for wd in (0.8, 0.4, 0.1, 0.01)}
THREE = {(1e-3, 0.8), (3e-4, 0.8), (1e-4, 0.8)}
IMAGES = {(lr, wd) for lr in (5e-4, 1e-3, 1.5e-3, 2e-3) for wd in (8e-3, 4e-3, 2e-3, 1e-3, 5e-4)}
ONE = {(1e-3, 0.01)}

# protocol, frame step, crop size, layers, pooler blocks, heads (lr, wd), epochs, batch size
PUBLISHED = {
    "vjepa-ssv2": ("16x2x3", 4, 224, "last", 1, ONE, 20, 256),
    "vjepa-k400": ("16x8x3", 4, 224, "last", 1, ONE, 20, 256),
    "vjepa2-ssv2": ("16x2x3", 4, 256, "last", 4, GRID, 20, 256),
    "vjepa2-k400": ("16x8x3", 4, 256, "last", 4, GRID, 20, 256),
    "vjepa2-coin": ("16x8x3", 4, 256, "last", 4, GRID, 20, 128),
    "vjepa2-diving48": ("32x4x3", 2, 256, "four", 4, THREE, 100, 128),
    "vjepa2-jester": ("32x4x3", 2, 256, "four", 4, THREE, 100, 128),
    "vjepa2-in1k": ("16x1x1", 1, 256, "last", 4, IMAGES | {(1e-3, 1e-3)}, 20, 1024),
    "salt-ssv2": ("16x2x3", 4, 224, "last", 4, GRID, 20, 256),
    "salt-k400": ("16x8x3", 4, 224, "last", 4, GRID, 20, 256),
    "salt-coin": ("16x8x3", 4, 224, "last", 4, GRID, 20, 256),
    "salt-diving48": ("16x4x3", 2, 224, "last", 4, ONE, 20, 128),
    "salt-jester": ("16x4x3", 2, 224, "last", 4, ONE, 20, 128),
    "salt-in1k": ("16x1x3", 1, 224, "last", 4, ONE, 20, 1024),
    "salt-fast-ssv2": ("16x1x1", 4, 224, "last", 4, ONE, 20, 256),
    "salt-fast-k400": ("16x1x1", 4, 224, "last", 4, ONE, 20, 256),
}
OWN = Geometry(frames=8, fps=5.0, frame_step=3, crop_size=64)


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_are_the_papers(name: str) -> None:
    protocol, step, size, layers, depth, heads, epochs, batch_size = PUBLISHED[name]
    preset = find_preset(name)
    settings = preset.settings
    assert preset.name == name
    assert str(preset.protocol(OWN)) == protocol
    assert (preset.frame_step, preset.crop_size, preset.layers) == (step, size, layers)
    assert (settings.depth, settings.heads) == (depth, 16)
    assert (settings.epochs, settings.batch_size) == (epochs, batch_size)
    assert {(r.lr, r.wd) for r in settings.grid} == heads
    assert settings.clip == (1.0 if name.startswith("vjepa-") else None)
    if name != "vjepa2-in1k":
        assert len(settings.grid) == len(heads) and not any(r.warmup or r.start_lr for r in settings.grid)
        assert all((r.wd_end == 1e-6) == name.startswith("vjepa-") for r in settings.grid)


def test_the_image_preset_has_a_head_of_its_own_kind() -> None:
    grid = find_preset("vjepa2-in1k").settings.grid
    assert len(grid) == 21
    assert grid[-1] == Rates(lr=1e-3, wd=1e-3, warmup=0, wd_end=0.0)
    assert all((r.warmup, r.start_lr, r.wd_end) == (5, 2e-4, None) for r in grid[:-1])


def test_no_preset_is_untold() -> None:
    assert set(PRESETS) == {*PUBLISHED, "cheap"}
    for preset in PRESETS.values():
        assert "learn from cached features of unchanged clips" in preset.note  # none augments, the papers do
        published = preset.source.startswith(
            ("V-JEPA, arXiv 2404.08471", "V-JEPA 2, arXiv 2506.09985", "SALT")
        )
        assert published == (preset.name != "cheap")
        assert preset.settings.best_on == "validation"
        if published and len(preset.settings.grid) > 1:
            assert "best head on test" in preset.note


def test_a_preset_says_what_to_show_the_encoder() -> None:
    shown = find_preset("vjepa2-jester").geometry(OWN)
    assert shown == Geometry(frames=32, fps=None, frame_step=2, crop_size=256)
    cheap = find_preset("cheap")
    assert cheap.geometry(OWN) == OWN and str(cheap.protocol(OWN)) == "8x1x1"
    assert cheap.settings == AttentiveSettings() and cheap.layers_of(12) == (12,)
    assert find_preset("vjepa2-diving48").layers_of(24) == (18, 20, 22, 24)


@pytest.mark.parametrize(
    ("depth", "layers"),
    [
        (24, (18, 20, 22, 24)),  # L, H and g as published, where layers are counted from 0
        (32, (26, 28, 30, 32)),
        (40, (25, 30, 35, 40)),
        (12, (6, 8, 10, 12)),
        (7, (1, 3, 5, 7)),
        (3, (1, 3)),
        (1, (1,)),
        (0, (0,)),
    ],
)
def test_paper_layers(depth: int, layers: tuple[int, ...]) -> None:
    assert paper_layers(depth) == layers


@given(*(st.integers(1, 10**6),) * 3)
def test_protocols_round_trip(frames: int, segments: int, crops: int) -> None:
    protocol = Protocol(frames, segments, crops)
    assert read_protocol(str(protocol)) == protocol
    assert (protocol.views.segments, protocol.views.crops) == (segments, crops)


@given(st.text(max_size=12))
def test_any_text_is_a_protocol_or_a_clear_error(text: str) -> None:
    try:
        protocol = read_protocol(text)
    except UserError as error:
        assert "protocol" in str(error)
    else:
        assert min(protocol.frames, protocol.segments, protocol.crops) >= 1


def test_protocols_as_the_papers_print_them() -> None:
    assert read_protocol("16×2×3") == read_protocol(" 16X2x3 ") == Protocol(16, 2, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("16x2", '"16x2" has 2 of 3 parts'),
        ("16x2x3x1", "has 4 of 3 parts"),
        ("", "has 1 of 3 parts"),
        ("ax2x3", 'frames is "a", not a whole number'),
        ("16xx3", 'segments is "", not a whole number'),
        ("16x2x-3", 'crops is "-3", not a whole number'),
        ("16x2x3.0", 'crops is "3.0"'),
        ("16x²x3", 'segments is "²"'),
        ("0x1x1", "must be at least 1"),
    ],
)
def test_wrong_protocols_name_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        read_protocol(text)
    assert words in str(error.value)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UserError, match='did you mean "vjepa2-ssv2"'):
        find_preset("vjepa2-ssv")
