"""Encoders on disk: whole or absent, exact or refused."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from tubelet import tensors
from tubelet.errors import UserError
from tubelet.export.truncate import truncated
from tubelet.export.weights import Encoder, Geometry, digest, load_encoder, save_encoder
from tubelet.files import unread
from tubelet.nn.pixels import Pixels
from tubelet.nn.tokens import SinCos
from tubelet.nn.vit import ViT

GEOMETRY = Geometry(frames=4, fps=12.5, frame_step=1, crop_size=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    for which, folder in (("teacher", "encoder"), ("student", "encoder-student")):
        model = ViT(48, 2, 3, patch=(2, 8, 8), positions=SinCos(), init_std=0.05)
        save_encoder(model, tmp_path / "run" / folder, GEOMETRY, {"name": "run", "which": which})
    return tmp_path / "run"


def test_loaded_equals_saved(run: Path) -> None:
    torch.manual_seed(0)
    model = ViT(48, 2, 3, patch=(2, 8, 8), positions=SinCos(), init_std=0.05).eval()
    for spec in (run, run / "encoder", str(run)):
        loaded = load_encoder(spec)
        assert loaded.geometry == GEOMETRY and loaded.name == "run"
        clip = torch.randn(2, 3, 4, 32, 32)
        assert torch.equal(loaded.model(clip), model(clip))
        assert loaded.digest == digest(model)
        assert not any(p.requires_grad for p in loaded.model.parameters())


def test_weights_say_that_they_are_torchs(run: Path) -> None:
    """transformers refuses a safetensors file that does not."""
    with safe_open(run / "encoder" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_which_encoder_is_the_users_choice(run: Path) -> None:
    assert load_encoder(run, which="teacher").digest == load_encoder(run).digest
    assert load_encoder(run, which="student").digest != load_encoder(run).digest
    with pytest.raises(UserError, match='has no encoder "studnt"; did you mean "student"'):
        load_encoder(run, which="studnt")


def test_untrained_encoders_follow_a_run(run: Path) -> None:
    untrained = load_encoder(f"random:{run}@3")
    assert isinstance(untrained.model, ViT) and untrained.model.init_std == 0.05
    assert untrained.geometry == GEOMETRY and untrained.model.positions == SinCos()
    assert (
        untrained.digest == load_encoder(f"random:{run}@3").digest != load_encoder(f"random:{run}@4").digest
    )
    pixels = load_encoder(f"pixels:{run}").model
    assert isinstance(pixels, Pixels) and pixels.patch == (2, 8, 8)
    assert load_encoder("random:vit_tiny", replace(GEOMETRY, crop_size=64)).geometry.crop_size == 64


def test_digest_knows_weights_and_architecture() -> None:
    torch.manual_seed(0)
    model = ViT(48, 1, 3, patch=(2, 8, 8))
    before = digest(model)
    with torch.no_grad():
        model.norm.bias[3] += 1e-6
    assert digest(model) != before
    torch.manual_seed(0)
    assert digest(ViT(48, 1, 3, patch=(2, 8, 8), positions=SinCos())) != before


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nowhere", "nowhere does not exist"),
        ("random:vit_tinny", 'did you mean "vit_tiny"'),
        ("random:vit_tiny@x", "the seed after @ must be a whole number"),
        ("pixels:nowhere", "nowhere is no run"),
    ],
)
def test_nothing_to_load_is_said(spec: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_encoder(spec)


def test_a_run_without_encoder_is_said(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has not finished: name one of its checkpoints"):
        load_encoder(tmp_path)


def test_a_truncated_file_is_refused(run: Path) -> None:
    file = run / "encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read .* copy it again"):
        load_encoder(run)


@pytest.mark.parametrize(("key", "value"), [("dim", 96), ("depth", 3), ("hidden", 100)])
def test_an_encoder_of_another_size_is_refused(run: Path, key: str, value: int) -> None:
    file = run / "encoder" / "encoder.json"
    about = json.loads(file.read_text())
    about["architecture"][key] = value
    file.write_text(json.dumps(about))
    with pytest.raises(UserError, match="does not fit the encoder described beside it"):
        load_encoder(run)


def test_a_full_disk_leaves_the_earlier_encoder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_encoder(run).digest

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(UserError, match="no room left on disk"):
        save_encoder(ViT(48, 1, 3), run / "encoder", GEOMETRY, {})
    assert load_encoder(run).digest == before
    assert sorted(p.name for p in run.iterdir()) == ["encoder", "encoder-student"]


def deep(depth: int = 4) -> Encoder:
    torch.manual_seed(1)
    model = ViT(48, depth, 3, patch=(2, 8, 8), positions=SinCos(), init_std=0.05)
    with torch.no_grad():
        model.norm.weight.normal_()  # a norm that cannot hide
    return Encoder(model.eval(), GEOMETRY, "deep", digest(model), {"name": "deep", "recipe": "vjepa"})


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(0, 3), st.booleans())
@torch.no_grad()
def test_a_truncated_encoder_equals_the_normed_layer_exactly(layers: int, seed: int, masked: bool) -> None:
    encoder = deep()
    assert isinstance(encoder.model, ViT)
    torch.manual_seed(seed)
    clip = torch.randn(2, 3, 4, 16, 16)
    keep = torch.tensor([[0, 3, 5], [1, 2, 7]]) if masked else None
    cut = truncated(encoder, layers).model
    assert isinstance(cut, ViT) and cut.depth == layers
    assert torch.equal(cut(clip, keep), encoder.model.layers(clip, [layers], keep, normed=True)[layers])


def test_a_truncated_encoder_says_from_what_it_was_cut(tmp_path: Path) -> None:
    encoder = deep()
    cut = truncated(encoder, 3)
    assert cut.name == "deep, 3 of 4 blocks" and cut.geometry == GEOMETRY
    assert cut.provenance == {
        "name": cut.name,
        "recipe": "vjepa",
        "cut_from": encoder.digest,
        "layers": "3 of 4",
    }
    assert not any(p.requires_grad for p in cut.model.parameters()) and not cut.model.training
    assert cut.digest != encoder.digest and truncated(encoder, 4).digest == encoder.digest
    assert isinstance(cut.model, ViT)
    save_encoder(cut.model, tmp_path / "cut" / "encoder", cut.geometry, cut.provenance)
    again = load_encoder(tmp_path / "cut")
    assert (again.digest, again.name, again.provenance) == (cut.digest, cut.name, cut.provenance)
    # a copy: what happens to it does not happen to the whole
    with torch.no_grad():
        cut.model.norm.bias.add_(1)
    assert digest(encoder.model) == encoder.digest


@pytest.mark.parametrize("layers", [-1, 0, 5])
def test_there_is_no_encoder_of_other_depths(layers: int) -> None:
    with pytest.raises(UserError, match=f"{layers} blocks asked of deep, which has 1 to 4"):
        truncated(deep(), layers)


def test_raw_pixels_are_not_cut() -> None:
    with pytest.raises(UserError, match="pixels has no blocks"):
        truncated(load_encoder("pixels"), 1)


def test_a_run_stays_a_run_whatever_lies_beside_its_encoder(run: Path) -> None:
    """Weights and configs of other kinds in a run's folder do not make it somebody else's."""
    before = load_encoder(run).digest
    (run / "config.json").write_text("{}")
    torch.save({"a": 1}, run / "other.pt")
    assert load_encoder(run).digest == before and load_encoder(run / "encoder").digest == before


def test_a_flipped_byte_and_other_weights_are_seen(run: Path) -> None:
    file = run / "encoder" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(UserError, match=r"its weights are not those that encoder\.json describes"):
        load_encoder(run)
    file.write_bytes((run / "encoder-student" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"its weights are not those that encoder\.json describes"):
        load_encoder(run)
    file.write_bytes(whole)
    assert load_encoder(run).name == "run"


def test_what_cannot_be_read_says_why(run: Path) -> None:
    about = run / "encoder" / "encoder.json"
    text = about.read_text()
    about.write_text(json.dumps({**json.loads(text), "format": 2}))
    with pytest.raises(UserError, match=r"encoder\.json has format 2, this version reads 1"):
        load_encoder(run)
    about.write_bytes(b'{"format": "\xff"}')
    with pytest.raises(UserError, match=r"encoder\.json cannot be read"):
        load_encoder(run)
    about.write_text("[]")
    with pytest.raises(UserError, match="no names and values"):
        load_encoder(run)
    about.write_text(text)
    (run / "encoder" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing; copy it too"):
        load_encoder(run)
    assert "may not be read" in str(unread(about, PermissionError(errno.EACCES, "Permission denied")))


def test_others_may_read_weights_as_far_as_the_umask_has_it(run: Path) -> None:
    folder = run / "encoder"
    modes = {file.name: file.stat().st_mode for file in folder.iterdir()}
    assert modes["model.safetensors"] == modes["encoder.json"]


def test_an_encoder_knows_how_it_was_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    for spec, which in (("run", "student"), ("random:run@3", None), ("random:vit_tiny", None)):
        found = load_encoder(spec, which=which)
        with monkeypatch.context() as elsewhere:
            elsewhere.chdir("/")
            assert load_encoder(**found.named).digest == found.digest
