"""Training goes on from other people's weights, by every recipe: they arrive whole, and their licence stays on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from video import write_video

from tubelet.cli import main
from tubelet.export.names import named_as
from tubelet.export.save import export
from tubelet.export.weights import Encoder, Geometry, digest, load_encoder, save_encoder
from tubelet.nn.published import VIDEOMAE, VIDEOMAE_HF, VJEPA1, VJEPA2, VJEPA2_HF, VJEPA21, Family
from tubelet.nn.tokens import Positions, Rotary, SinCos, name_positions
from tubelet.nn.vit import MODELS, ViT
from tubelet.recipes import RECIPES
from tubelet.recipes.knobs import Knobs
from tubelet.recipes.origin import origin
from tubelet.types import Grid

# more frames and a larger crop than any of the sources has
CLIPS = "--frames 8 --frame-step 1 --crop-size 48 --patch-size 8 --batch-size 2 --workers 0 --device cpu"
STILL = "--steps 3 --lr 1e-30 --weight-decay 0"
LOCKING = "--pixel-steps 1 --interval 1 --restart 0"
MORE = {
    "layerlock": LOCKING,
    "layerlock-collapse": LOCKING.removesuffix(" --restart 0"),
    "vjepa-layerlock": LOCKING,
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("set")
    for number in range(4):
        write_video(base / f"{number}.mp4", range(40 * number, 40 * number + 12), size=(64, 56))
    return base


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUBELET_CACHE", str(tmp_path / "cache"))


def numbers(positions: Positions, size: tuple[int, int, int] = (48, 4, 2)) -> ViT:
    """Weights that are no first draw; biases of keys are 0, for VideoMAE has none."""
    torch.manual_seed(5)
    dim, depth, heads = size
    model = ViT(dim, depth, heads, patch=(2, 8, 8), positions=positions)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.05)
        if name.endswith("attn.qkv.bias"):
            parameter.data[dim : 2 * dim] = 0
    return model


def folder_of(place: Path, family: Family) -> Path:
    """As Hugging Face has it: config.json, safetensors and a card."""
    jepa, model = family is VJEPA2_HF, numbers(family.positions)
    config: dict[str, Any] = {
        "model_type": "vjepa2" if jepa else "videomae",
        "hidden_size": model.dim,
        "num_hidden_layers": model.depth,
        "num_attention_heads": model.heads,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "tubelet_size": 2,
        "patch_size": 8,
    }
    if jepa:
        config |= {"mlp_ratio": 4, "in_chans": 3, "crop_size": 32, "frames_per_clip": 4}
    else:
        config |= {"intermediate_size": model.hidden, "num_channels": 3, "image_size": 32, "num_frames": 4}
    place.mkdir()
    save_file(
        {name: t.contiguous() for name, t in named_as(model, family).items()}, place / "model.safetensors"
    )
    (place / "config.json").write_text(json.dumps(config))
    (place / "README.md").write_text(f"---\nlicense: {'mit' if jepa else 'cc-by-nc-4.0'}\n---\n")
    return place


def file_of(place: Path, family: Family) -> Path:
    """As its authors have it: no config, so a known size; with a predictor or decoder that goes unused."""
    size = MODELS["vit_tiny"]
    state: dict[str, Tensor] = named_as(numbers(family.positions, (size.dim, size.depth, size.heads)), family)
    file = place.with_suffix(".pt")
    if family is VIDEOMAE:
        torch.save({"model": {**state, "decoder.norm.weight": torch.zeros(9)}}, file)
        return file
    if family is VJEPA1:
        state["pos_embed"] = SinCos().add(Grid(2, 4, 4), size.dim, torch.device("cpu"))
    if family is VJEPA21:
        state |= {"norms_block.0.weight": torch.zeros(9), "video_mod_embed": torch.zeros(1, 1, size.dim)}
    wrapped = {f"module.backbone.{name}": tensor for name, tensor in state.items()}
    unused = {"module.mask_tokens.0": torch.zeros(1, 1, 9), "module.norm.weight": torch.zeros(9)}
    torch.save({"target_encoder": wrapped, "predictor": unused, "opt": {"state": {}}, "epoch": 3}, file)
    return file


def exported(place: Path, _: Family) -> Path:
    """In Meta's layout, by us: of no known size, and under a licence that is not the family's."""
    model = numbers(VJEPA2.positions)
    about = {"name": "mine", "licence": "CC-BY-NC-4.0", "source": "hf://them/theirs"}
    one = Encoder(model.requires_grad_(False).eval(), Geometry(4, None, 2, 32), "mine", digest(model), about)
    export(one, place, "vjepa2")
    return place / "encoder.pt"


def tubelet(command: str) -> int:
    """The exit code of a command of `pretrain`, at the size of the tests."""
    return main([*f"pretrain {command} {CLIPS}".split()])


@pytest.mark.parametrize(
    ("recipe", "make", "family", "licence"),
    [
        *((recipe, folder_of, VJEPA2_HF, "mit") for recipe in RECIPES),
        ("layerlock", folder_of, VIDEOMAE_HF, "cc-by-nc-4.0"),
        ("salt", folder_of, VIDEOMAE_HF, "cc-by-nc-4.0"),
        ("vjepa", file_of, VJEPA1, "CC-BY-NC-4.0 if published by Meta; not known from the file"),
        ("videomae", file_of, VJEPA21, "MIT if published by Meta; not known from the file"),
        ("vjepa2", file_of, VIDEOMAE, VIDEOMAE.licence),
        ("vjepa", exported, VJEPA2, "CC-BY-NC-4.0"),
    ],
)
def test_training_goes_on_from_published_weights_by_any_method(
    videos: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recipe: str,
    make: Callable[[Path, Family], Path],
    family: Family,
    licence: str,
) -> None:
    """With a rate of nearly 0 every encoder of the run is the one it began with."""
    source, run = make(tmp_path / "theirs", family), tmp_path / "run"
    with caplog.at_level("INFO", "tubelet"):
        assert (
            tubelet(
                f"{recipe} --data {videos} --out {run} --init-from {source} {STILL} {MORE.get(recipe, '')}"
            )
            == 0
        )
    began = load_encoder(source)
    assert any("tensors matched" in line for line in caplog.messages)
    said = next(line for line in caplog.messages if "new, with random weights" in line)
    new = said.split("new, with random weights: ")[1].split(";")[0]
    assert new and "encoder" not in new.replace("decoder", "")
    assert (
        str(source) in said and f"licence: {licence}" in said and name_positions(family.positions)[0] in said
    )
    assert "goes on with 8 and 48" in said
    ran = json.loads((run / "run.json").read_text())
    assert ran["licence"] == licence and ran["init_from"] == str(source)
    for which in ran["encoders"]:
        ended = load_encoder(run, which=which if len(ran["encoders"]) > 1 else None)
        for name, tensor in began.model.state_dict().items():
            torch.testing.assert_close(ended.model.state_dict()[name], tensor, atol=1e-6, rtol=0)
        assert isinstance(ended.model, ViT) and ended.model.positions == family.positions
        assert ended.geometry.frames == 8 and ended.geometry.crop_size == 48
        about = ended.provenance
        assert about["licence"] == licence and about["init_from"] == str(source)
        assert about["began_from"] == began.provenance["source"] == ran["began_from"]


def test_the_licence_goes_from_run_to_run_and_into_what_is_exported(videos: Path, tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "theirs", VIDEOMAE_HF)
    first, second, branch = (tmp_path / name for name in ("first", "second", "branch"))
    knobs = f"--data {videos} --steps 2 --save-every 1"
    like = "--model 48x4x2 --positions sincos_flat --lr 1e-5"
    assert tubelet(f"videomae {knobs} --out {first} --init-from {theirs}") == 0
    assert tubelet(f"vjepa {knobs} --out {second} --init-from {first}") == 0
    step = sorted((first / "checkpoints").glob("step-*"))[0]
    assert tubelet(f"videomae {knobs} --out {branch} --branch-from {step} {like}") == 0
    assert main(["export", str(second), "--out", str(tmp_path / "out")]) == 0
    for place in (second, branch, tmp_path / "out"):
        about = load_encoder(place).provenance
        assert (about["licence"], about["began_from"]) == ("cc-by-nc-4.0", str(theirs))
    assert json.loads((branch / "run.json").read_text())["licence"] == "cc-by-nc-4.0"


def test_what_no_file_tells_can_be_said(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = named_as(numbers(VJEPA2.positions), VJEPA2)
    both = {
        name: {k: factor * v for k, v in state.items()}
        for name, factor in (("target_encoder", 1), ("encoder", 2))
    }
    lacking = {k: v for k, v in both["encoder"].items() if k != "norm.bias"}
    torch.save({**both, "predictor": {"norm.weight": torch.zeros(9)}}, tmp_path / "odd.pt")
    torch.save(
        {**both, "encoder": lacking, "predictor": {"norm.weight": torch.zeros(9)}}, tmp_path / "less.pt"
    )
    knobs = f"--data {videos} {STILL}"
    assert tubelet(f"videomae {knobs} --out {tmp_path / 'a'} --init-from {tmp_path / 'odd.pt'}") == 2
    told = f"--init-from {tmp_path / 'odd.pt'} --init-heads 2 --init-which encoder"
    assert tubelet(f"videomae {knobs} --out {tmp_path / 'a'} {told}") == 0
    ended = load_encoder(tmp_path / "a").model
    assert isinstance(ended, ViT) and ended.heads == 2
    torch.testing.assert_close(ended.norm.weight, 2 * state["norm.weight"], atol=1e-6, rtol=0)
    told = f"--init-from {tmp_path / 'less.pt'} --init-heads 2 --init-which encoder"
    assert tubelet(f"videomae {knobs} --out {tmp_path / 'b'} {told}") == 2
    assert tubelet(f"videomae {knobs} --out {tmp_path / 'b'} {told} --init-allow-partial") == 0
    capsys.readouterr()
    assert tubelet(f"videomae {knobs} --out {tmp_path / 'c'} --model 48x2x2 --init-heads 2") == 2
    assert "init_heads is about the encoder of init_from, and there is none" in capsys.readouterr().err


def test_a_narrow_mlp_stays_narrow_in_what_branches_off(videos: Path, tmp_path: Path) -> None:
    """Of published sizes, V-JEPA 2's giant has an MLP that is not four times as wide."""
    torch.manual_seed(0)
    narrow = ViT(48, 4, 2, hidden=96, patch=(2, 8, 8))
    save_encoder(narrow, tmp_path / "narrow", Geometry(4, None, 1, 32), {"licence": "mit"})
    knobs = f"--data {videos} --steps 2 --save-every 1"
    first, branch = tmp_path / "first", tmp_path / "branch"
    assert tubelet(f"videomae {knobs} --out {first} --init-from {tmp_path / 'narrow'}") == 0
    step = sorted((first / "checkpoints").glob("step-*"))[0]
    name, base = name_positions(narrow.positions)
    like = f"--model 48x4x2x96 --positions {name} --positions-base {base:g} --lr 1e-5"
    assert tubelet(f"videomae {knobs} --out {branch} --branch-from {step} {like}") == 0
    ended = load_encoder(branch).model
    assert isinstance(ended, ViT) and ended.hidden == 96
    assert yaml.safe_load((first / "config.yaml").read_text())["chosen"]["model"] == "48x4x2x96"


def test_a_resumed_run_does_not_need_the_weights_again(videos: Path, tmp_path: Path) -> None:
    theirs, out = folder_of(tmp_path / "theirs", VIDEOMAE_HF), tmp_path / "run"
    knobs = f"--data {videos} --steps 4 --save-every 1 --keep-every 1 --init-from {theirs}"
    assert tubelet(f"vjepa {knobs} --out {out}") == 0
    whole = load_encoder(out)
    for step in sorted((out / "checkpoints").glob("step-*"))[2:]:
        shutil.rmtree(step)
    (out / "run.json").unlink()
    shutil.rmtree(out / "encoder")
    shutil.rmtree(theirs)
    assert tubelet(f"vjepa {knobs} --out {out} --resume") == 0
    again = load_encoder(out)
    assert again.digest == whole.digest and again.provenance == whole.provenance


def test_another_rate_is_said(videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = folder_of(tmp_path / "theirs", VJEPA2_HF)
    caplog.set_level("INFO")
    assert tubelet(f"videomae --data {videos} --steps 1 --out {tmp_path / 'run'} --init-from {theirs}") == 0
    assert "it knows 4 frames a second, and goes on with one frame in 1" in caplog.text


def test_a_teachers_licence_binds_its_student(videos: Path, tmp_path: Path) -> None:
    theirs, own = folder_of(tmp_path / "theirs", VIDEOMAE_HF), folder_of(tmp_path / "own", VJEPA2_HF)
    knobs = f"--data {videos} --steps 1 --teacher {theirs}"
    for number, (name, more, licence) in enumerate(
        (
            ("salt", "--model 48x2x2", "cc-by-nc-4.0"),
            ("blockwise", "--model 48x2x2 --blocks 2 --targets teacher", "cc-by-nc-4.0"),
            ("salt", f"--init-from {own}", "mit and cc-by-nc-4.0"),
            ("salt", "--model 48x2x2 --licence cc-by-4.0", "cc-by-4.0"),
        )
    ):
        out = tmp_path / f"{name}-{number}"
        assert tubelet(f"{name} {knobs} --out {out} {more}") == 0
        about, ran = load_encoder(out).provenance, json.loads((out / "run.json").read_text())
        assert (about["licence"], about["taught_by"]) == (licence, str(theirs))
        assert (ran["licence"], ran["taught_by"]) == (licence, str(theirs))
        assert about.get("began_from") == (str(own) if "init" in more else None)
        # the copy beside it is still theirs, whatever the student is
        copy, original = load_encoder(out, which="teacher"), load_encoder(theirs)
        assert (copy.digest, copy.provenance) == (original.digest, original.provenance)
    # whoever goes on from the student was taught by the same
    assert (
        tubelet(
            f"videomae --data {videos} --steps 1 --out {tmp_path / 'on'} --init-from {tmp_path / 'salt-0'}"
        )
        == 0
    )
    about = load_encoder(tmp_path / "on").provenance
    assert (about["licence"], about["taught_by"]) == ("cc-by-nc-4.0", str(theirs))


def test_a_teacher_of_ones_own_binds_nothing(videos: Path, tmp_path: Path) -> None:
    assert tubelet(f"salt --data {videos} --out {tmp_path / 'run'} --steps 3 --model 48x2x2") == 0
    about = load_encoder(tmp_path / "run").provenance
    assert about["licence"] == "yours: trained from scratch" and "taught_by" not in about
    assert load_encoder(tmp_path / "run", which="teacher").provenance["recipe"] == "salt-teacher"


def test_random_weights_are_nobodys(videos: Path, tmp_path: Path) -> None:
    knobs = f"--data {videos} --steps 1"
    source = load_encoder("random:48x2x2@1")
    patched = ViT(48, 2, 2, patch=(2, 8, 8))
    save_encoder(patched, tmp_path / "random", Geometry(4, None, 1, 32), source.provenance)
    assert tubelet(f"salt {knobs} --out {tmp_path / 'a'} --teacher {tmp_path / 'random'} --model 48x2x2") == 0
    assert tubelet(f"videomae {knobs} --out {tmp_path / 'b'} --init-from {tmp_path / 'random'}") == 0
    for name in "ab":
        about = load_encoder(tmp_path / name).provenance
        assert about["licence"] == "yours: trained from scratch"
        assert not {"taught_by", "began_from"} & about.keys()


def test_a_branch_that_is_resumed_keeps_its_licence(videos: Path, tmp_path: Path) -> None:
    theirs, base, branch = folder_of(tmp_path / "theirs", VIDEOMAE_HF), tmp_path / "base", tmp_path / "branch"
    knobs = f"--data {videos} --steps 4 --save-every 1 --keep-every 1"
    like = "--model 48x4x2 --positions sincos_flat --lr 1e-5"
    assert tubelet(f"videomae {knobs} --out {base} --init-from {theirs}") == 0
    step = sorted((base / "checkpoints").glob("step-*"))[0]
    assert tubelet(f"videomae {knobs} --out {branch} --branch-from {step} {like}") == 0
    before = load_encoder(branch).provenance
    for done in sorted((branch / "checkpoints").glob("step-*"))[1:]:
        shutil.rmtree(done)
    (branch / "run.json").unlink()
    shutil.rmtree(base)
    assert tubelet(f"videomae {knobs} --out {branch} --branch-from {step} {like} --resume") == 0
    assert load_encoder(branch).provenance == before and before["licence"] == "cc-by-nc-4.0"


@pytest.mark.parametrize(
    ("began", "teacher", "licence"),
    [
        ("for research and evaluation only", "for teaching and evaluation only", None),
        ("mit and cc-by-4.0", "mit", "mit and cc-by-4.0"),
        ("mit", "cc-by-4.0 and mit", "cc-by-4.0 and mit"),
        ("mit", "mit", "mit"),
        (None, "mit", "unknown and mit"),
    ],
)
def test_licences_are_joined_whole(began: str | None, teacher: str, licence: str | None) -> None:
    source: dict[str, Any] = {"name": "a", "licence_link": "LICENSE"} | ({"licence": began} if began else {})
    found = origin(Knobs(data="a", out="b"), source, {"name": "b", "licence": teacher})
    assert found["licence"] == (licence or f"{began} and {teacher}")
    assert found["licence_link"] == "LICENSE" and (found["began_from"], found["taught_by"]) == ("a", "b")


def test_an_unknown_licence_stays_unknown_and_ones_own_is_ones_own(videos: Path, tmp_path: Path) -> None:
    theirs = folder_of(tmp_path / "theirs", VJEPA2_HF)
    (theirs / "README.md").unlink()
    knobs = f"--data {videos} --steps 1"
    assert tubelet(f"videomae {knobs} --out {tmp_path / 'a'} --init-from {theirs}") == 0
    assert load_encoder(tmp_path / "a").provenance["licence"] == "unknown"
    assert tubelet(f"videomae {knobs} --out {tmp_path / 'b'} --model 48x2x2") == 0
    about, ran = (
        load_encoder(tmp_path / "b").provenance,
        json.loads((tmp_path / "b" / "run.json").read_text()),
    )
    assert about["licence"] == ran["licence"] == "yours: trained from scratch"
    assert "began_from" not in about and "began_from" not in ran


def test_other_means_of_pixels_are_said(
    videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = folder_of(tmp_path / "theirs", VJEPA2_HF)
    (theirs / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5]}')
    with caplog.at_level("INFO", "tubelet"):
        assert (
            tubelet(f"videomae --data {videos} --steps 1 --out {tmp_path / 'run'} --init-from {theirs}") == 0
        )
    assert any("pixels were normalised by (0.5, 0.5, 0.5)" in line for line in caplog.messages)


def test_weights_that_do_not_fit_start_no_run(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = folder_of(tmp_path / "theirs", VJEPA2_HF)
    model = numbers(Rotary(legacy=True))
    state = {name: tensor for name, tensor in named_as(model, VJEPA2_HF).items() if "layer.3" not in name}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, theirs / "model.safetensors")
    assert tubelet(f"vjepa --data {videos} --steps 1 --out {tmp_path / 'run'} --init-from {theirs}") == 2
    assert "does not fit the encoder" in capsys.readouterr().err and not (tmp_path / "run").exists()
