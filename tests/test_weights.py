"""Encoders on disk: whole or absent, exact or refused."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from tubelet import tensors
from tubelet.errors import UserError
from tubelet.export.truncate import truncated
from tubelet.export.weights import Encoder, Geometry, digest, load_encoder, save_encoder
from tubelet.files import replace_file, replace_folder, unread
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
    for spec in (run, f"random:{run}"):
        with pytest.raises(UserError, match=r"model\.safetensors cannot be read .* copy it again"):
            load_encoder(spec)


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


def altered(file: Path, place: str, value: object) -> None:
    """``file`` with another value at ``place``, names joined by dots; without it for "absent"."""
    about = json.loads(file.read_text())
    *folders, name = place.split(".")
    inner = about
    for folder in folders:
        inner = inner[folder]
    if value == "absent":
        del inner[name]
    else:
        inner[name] = value
    file.write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("provenance", None, "provenance is None, not names and values"),
        ("provenance", "x", "provenance is 'x', not names and values"),
        ("provenance", "absent", "there is no provenance"),
        ("digest", "absent", "there is no digest"),
        ("geometry", [1], r"geometry is \[1\], not names and values"),
        ("geometry.frames", "x", "frames is 'x', not a whole number from 1"),
        ("geometry.frames", -1, "frames is -1, not a whole number from 1"),
        ("geometry.frames", 4.5, "frames is 4.5, not a whole number from 1"),
        ("geometry.frames", 2**31, "frames is 2147483648, not a whole number from 1 to 2147483647"),
        ("geometry.fps", "4", "fps is '4', not a number above 0"),
        ("geometry.fps", 10**400, r"fps is 10+\.\.\., not a number above 0"),
        ("geometry.crop_size", True, "crop_size is True, not a whole number"),
        ("geometry.mean", ["a", "b", "c"], "mean is 'a', not a number"),
        ("geometry.mean", 3, "mean is 3, not a list of numbers"),
        ("geometry.std", [0.2, 0.2], r"std is \[0.2, 0.2\], not a list of 3 numbers"),
        ("geometry.std", [0.2, 0.0, 0.2], "std is 0.0, not a number above 0"),
        ("geometry.extra", 3, "geometry has 'extra', which is not known"),
        ("geometry.frame_step", "absent", "geometry has no frame_step"),
        ("architecture", "x", "architecture is 'x', not names and values"),
        ("architecture.kind", "pixels", "kind is 'pixels'"),
        ("architecture.dim", -4, "dim is -4, not a whole number"),
        ("architecture.depth", "2", "depth is '2', not a whole number"),
        ("architecture.heads", 0, "heads is 0, not a whole number"),
        ("architecture.patch", [2, 8], r"patch is \[2, 8\], not a list of 3 numbers"),
        ("architecture.patch", [2, 8, 0], "patch is 0, not a whole number"),
        ("architecture.positions", "bogus", 'unknown positions "bogus"'),
        ("architecture.positions", 3, "positions is no text"),
        ("architecture.positions_base", 0, "positions_base is 0, not a number above 0"),
        ("architecture.init_std", float("nan"), "init_std is nan, not a number above 0"),
    ],
)
def test_a_wrong_number_is_named_and_refused(run: Path, place: str, value: object, says: str) -> None:
    altered(run / "encoder" / "encoder.json", place, value)
    for spec in (run, f"random:{run}", f"pixels:{run}"):
        with pytest.raises(UserError, match=rf"encoder\.json is not an encoder of this version: .*{says}"):
            load_encoder(spec)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("depth", 10**9, "2 blocks, .* instead of 1000000000"),
        (
            "dim",
            10**9,
            r"embedding\.weight \(48, 384\).* instead of 2, embedding\.weight \(1000000000, 384\)",
        ),
        ("hidden", 10**9, r"fc1\.weight \(192, 48\), instead of 2, .*fc1\.weight \(1000000000, 48\)"),
        ("patch", [10**9, 10**9, 10**9], "instead of"),
        ("dim", 2**31 - 2, "instead of"),
        ("heads", 5, "5 heads"),
    ],
)
def test_no_number_alone_makes_an_encoder_of_a_billion_blocks(
    run: Path, place: str, value: object, says: str
) -> None:
    altered(run / "encoder" / "encoder.json", f"architecture.{place}", value)
    for spec in (run, f"random:{run}"):
        with pytest.raises(UserError, match=f"does not fit the encoder described beside it: .*{says}"):
            load_encoder(spec)


@pytest.mark.parametrize("knob", [{"heads": 3}, {"heads": 0}, {"allow_partial": True}, {"which": "teacher"}])
@pytest.mark.parametrize("kind", ["run", "folder", "random:48x2x3", "random:", "pixels", "pixels:"])
def test_a_knob_that_means_nothing_is_refused(run: Path, knob: dict[str, Any], kind: str) -> None:
    spec = (
        f"{kind}{run}"
        if kind.endswith(":")
        else {"run": str(run), "folder": str(run / "encoder")}.get(kind, kind)
    )
    ((name, value),) = knob.items()
    if name == "which" and spec.startswith(str(run)):
        assert load_encoder(spec, which="teacher").digest == load_encoder(spec).digest
        return
    with pytest.raises(UserError, match=rf"^{name}={value}: .*; leave {name} out$"):
        load_encoder(spec, **knob)
    load_encoder(spec, allow_partial=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_of_another_type_is_written_as_float32_and_read_back(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Its digest is that of what was written: float32, whose outputs are not those of the other type."""
    torch.manual_seed(0)
    model = ViT(48, 2, 3, patch=(2, 8, 8)).to(dtype)
    save_encoder(model, tmp_path / "encoder", GEOMETRY, {})
    again = load_encoder(tmp_path / "encoder")
    assert {tensor.dtype for tensor in again.model.state_dict().values()} == {torch.float32}
    assert again.digest == digest(model.float()) and again.digest != digest(model.to(dtype))


@pytest.mark.parametrize("name", ["up.PT", "model.pkl", "0.mp4", "readme"])
def test_a_file_of_another_name_is_told_which_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        UserError, match=rf"{name} is no encoder: .* end in \.pt, .*\.safetensors or \.safetensors\.index"
    ):
        load_encoder(tmp_path / name)


def test_nothing_is_written_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for above in ("file", "link"):
        for write in (replace_file, replace_folder):
            for place in (tmp_path / above / "new", tmp_path / above / "deeper" / "new"):
                with (
                    pytest.raises(UserError, match=rf"new cannot be written: .*{above} is no folder; choose"),
                    write(place),
                ):
                    raise AssertionError("it is said before anything is made")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "link"]
