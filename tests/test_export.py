"""What is exported is what was there: every format is run beside the encoder, and nothing is replaced."""

from __future__ import annotations

import ast
import itertools
import json
import logging
import math
import site
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tubelet.cli import main
from tubelet.data.augment import CenterCrop
from tubelet.errors import UserError
from tubelet.export import check, meta, save
from tubelet.export.card import licence_id
from tubelet.export.hub import pull, push
from tubelet.export.huggingface import kind_of, mlp_ratio, shipped_code
from tubelet.export.names import named_as
from tubelet.export.save import export
from tubelet.export.story import Story, story_of
from tubelet.export.weights import Encoder, Geometry, digest, load_encoder, save_encoder
from tubelet.nn.published import VIDEOMAE_HF, VJEPA1, VJEPA2, VJEPA2_HF, Family, fill, plain
from tubelet.nn.tokens import Positions, Rotary, ScaledRotary, SinCos, TokenRotary, turn
from tubelet.nn.vit import ViT
from tubelet.types import Grid

GEOMETRY = Geometry(frames=8, fps=5.0, crop_size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
LICENCE, SOURCE = "CC-BY-NC-4.0", "somewhere/vitl.pt"


def onnx_runs() -> Any:
    """onnxruntime; the test is skipped where it, or what torch writes ONNX with, is not installed."""
    pytest.importorskip("onnxscript", reason="the export extra is not installed")
    return pytest.importorskip("onnxruntime", reason="the export extra is not installed")


def encoder(positions: Positions | None = None, heads: int = 2, **changes: Any) -> Encoder:
    """Three blocks of 48 channels, weights far from initialisation: no bias or norm can hide."""
    torch.manual_seed(0)
    model = ViT(48, 3, heads, patch=(2, 8, 8), positions=positions)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    about = {"name": "small", "recipe": "vjepa", "licence": LICENCE, "source": SOURCE, **changes}
    return Encoder(model.requires_grad_(False).eval(), GEOMETRY, "small", digest(model), about)


def vit(one: Encoder) -> ViT:
    assert isinstance(one.model, ViT)
    return one.model


def clips(number: int = 2, frames: int = 8, side: int = 16) -> Tensor:
    return torch.randn(number, 3, frames, side, side, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with one encoder."""
    one = encoder(SinCos())
    save_encoder(vit(one), tmp_path / "run" / "encoder", GEOMETRY, one.provenance)
    return tmp_path / "run"


# Our own folder, and blocks left out


def test_safetensors_is_an_encoder_of_ours_with_its_licence(tmp_path: Path) -> None:
    one = encoder()
    done = export(one, tmp_path / "out")
    again = load_encoder(tmp_path / "out")
    assert again.digest == one.digest and again.geometry == GEOMETRY and again.name == "small"
    assert again.provenance == one.provenance and done.difference == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["encoder.json", "model.safetensors"]


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_layers_keeps_the_first_blocks(run: Path, layers: int, capsys: pytest.CaptureFixture[str]) -> None:
    out = run.parent / "cut"
    assert main(["export", str(run), "--layers", str(layers), "--out", str(out)]) == 0
    cut, whole = load_encoder(out), load_encoder(run)
    assert vit(cut).depth == layers
    expected = vit(whole).layers(clips(), [layers], normed=True)[layers]
    assert torch.equal(vit(cut)(clips()), expected)
    assert cut.provenance["cut_from"] == whole.digest and cut.provenance["layers"] == f"{layers} of 3"
    said = capsys.readouterr().out
    assert f"{out}, safetensors; run on random clips: its outputs are the same" in said
    assert f"licence of the weights: {LICENCE}; source: {SOURCE}" in said


@pytest.mark.parametrize("layers", [0, 4, -1])
def test_layers_that_are_not_there_are_refused(
    run: Path, layers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run.parent / "cut"
    assert main(["export", str(run), f"--layers={layers}", "--out", str(out)]) == 2
    assert f"{layers} blocks asked of small, which has 1 to 3 to keep" in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_licence_is_unknown(tmp_path: Path) -> None:
    export(encoder(licence=None, source=None), tmp_path / "out")
    about = load_encoder(tmp_path / "out").provenance
    assert about["licence"] == "unknown" and about["source"] == "small"


def test_nothing_is_replaced(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run.parent / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    assert main(["export", str(run), "--out", str(out)]) == 2
    assert "exists and is not empty; choose another out, or remove it first" in capsys.readouterr().err
    with pytest.raises(UserError, match="exists and is not empty"):
        export(encoder(), out / "precious")
    assert [file.name for file in out.iterdir()] == ["precious"]
    (out / "precious").unlink()
    export(encoder(), out)  # an empty folder is as good as none
    assert load_encoder(out).digest == encoder().digest


def test_an_unknown_format_and_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'to="safetensor"; did you mean "safetensors"\? \(there are: '):
        export(encoder(), tmp_path / "out", "safetensor")
    with pytest.raises(UserError, match="pixels has no weights to export"):
        export(load_encoder("pixels"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


# What was written is run before it counts


@pytest.mark.parametrize("error", [0.01, float("nan")])
def test_what_gives_other_outputs_gets_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    one = encoder()

    def careless(one: Encoder, model: ViT, draft: Path, story: Story) -> check.Written:
        (draft / "model").write_bytes(b"x")
        return check.Written(
            lambda clip: model(clip) + error * (clip.shape[0] == 2)
        )  # right for one clip alone

    monkeypatch.setitem(save.WRITERS, "careless", careless)
    with pytest.raises(UserError, match="outputs that differ by up to"):
        export(one, tmp_path / "out", "careless")
    assert not list(tmp_path.iterdir())


def test_clips_of_both_lengths_are_compared() -> None:
    one, seen = encoder(), []

    def spy(clip: Tensor) -> Tensor:
        seen.append(tuple(clip.shape))
        return vit(one)(clip)

    assert check.compare(vit(one), GEOMETRY, check.Written(spy, exact=True)) == 0
    assert check.compare(vit(one), GEOMETRY, check.Written(spy, any_length=False)) == 0
    assert [shape[0] for shape in seen] == [1, 2, 1, 2] and [shape[2] for shape in seen] == [8, 4, 8, 8]
    with pytest.raises(UserError, match=r"of shape \(1, 15, 48\) instead of \(1, 16, 48\)"):
        check.compare(vit(one), GEOMETRY, check.Written(lambda clip: vit(one)(clip)[:, 1:]))
    nudged = check.Written(lambda clip: vit(one)(clip) + 1e-6, exact=True)
    with pytest.raises(UserError, match=r"differ by up to \d"):
        check.compare(vit(one), GEOMETRY, nudged)


# Other people's names


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([VJEPA1, VJEPA2, VJEPA2_HF, VIDEOMAE_HF]),
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 40),
    st.sampled_from([(2, 8, 8), (1, 4, 4), (3, 2, 4)]),
)
def test_what_fill_reads_equals_what_was_named_to_the_bit(
    family: Family, depth: int, heads: int, hidden: int, patch: tuple[int, int, int]
) -> None:
    model = ViT(24, depth, heads, hidden, patch)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    if None in family.qkv_bias:  # no bias for keys
        for name, parameter in model.named_parameters():
            if name.endswith("attn.qkv.bias"):
                parameter.data[24:48] = 0
    again = ViT(24, depth, heads, hidden, patch)
    fit = fill(again, family, plain(named_as(model, family), family.prefixes[0]))
    assert fit.whole and fit.matched == len(model.state_dict())
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in model.state_dict().items())


# Meta's layout


@torch.no_grad()
def test_ours_to_metas_layout_to_ours_is_the_same_to_the_bit(tmp_path: Path) -> None:
    one = encoder(Rotary(legacy=True))
    done = export(one, tmp_path / "out", "vjepa2")
    assert done.difference == 0
    file = tmp_path / "out" / "encoder.pt"
    for which in ("target_encoder", "encoder"):
        again = load_encoder(file, which=which)
        assert again.digest == one.digest and again.geometry == one.geometry
        assert torch.equal(vit(again)(clips()), vit(one)(clips()))
    content = torch.load(file, weights_only=True)
    assert content["tubelet"]["provenance"]["licence"] == LICENCE
    assert content["tubelet"]["geometry"]["fps"] == 5.0
    weights = sum(tensor.nbytes for tensor in vit(one).state_dict().values())
    assert file.stat().st_size < 1.2 * weights  # two names, one copy
    note = json.loads((tmp_path / "out" / "export.json").read_text())
    assert note["provenance"]["source"] == SOURCE and note["digest"] == one.digest
    assert any("2 heads" in line for line in done.told)
    with pytest.raises(UserError, match=r"heads=3, but .*encoder\.pt says 2; leave heads out"):
        load_encoder(file, heads=3)


def test_an_exported_file_reads_back_with_its_own_licence_source_and_geometry(
    tmp_path: Path, transformers: Any
) -> None:
    """A non-commercial licence stays one in the layout of a family that is MIT; an unknown one is not made known."""
    for name, to, positions in (
        ("meta", "vjepa2", Rotary(legacy=True)),
        ("jepa", "hf", Rotary(legacy=True)),
        ("mae", "hf", SinCos(flat=True)),
    ):
        for licence in (LICENCE, None, "yours: trained from scratch", "that of somebody"):
            one = encoder(positions)
            one = replace(one, provenance={**one.provenance, "licence": licence, "which": "teacher"})
            out = tmp_path / f"{name}-{licence}"
            export(one, out, to)
            again = load_encoder(out)
            assert again.provenance["licence"] == (licence or "unknown"), name
            assert again.provenance["source"] == SOURCE and again.provenance["which"] == "teacher"
            assert again.geometry == one.geometry and again.name == one.name
    assert again.geometry.fps == 5.0


@pytest.mark.parametrize("resaved", [False, True])
@pytest.mark.parametrize(
    ("positions", "frames"),
    [
        (Rotary(legacy=True), "frames_per_clip"),
        (SinCos(flat=True), "num_frames"),
        (Rotary(), "frames_per_clip"),
    ],
)
def test_what_an_owner_changes_in_an_exported_folder_holds(
    tmp_path: Path, transformers: Any, positions: Positions, frames: str, resaved: bool
) -> None:
    one, out = encoder(positions), tmp_path / "out"
    export(one, out, "hf")
    crop = "image_size" if frames == "num_frames" else "crop_size"
    if resaved:
        theirs = transformers.AutoModel.from_pretrained(out, trust_remote_code=positions == Rotary())
        theirs.save_pretrained(out := tmp_path / "again")
    assert load_encoder(out).geometry == GEOMETRY or resaved  # the preprocessor's config is not saved again
    assert load_encoder(out).provenance["licence"] == LICENCE
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {frames: 4, crop: 32}))
    (out / "video_preprocessor_config.json").write_text('{"image_mean": [0, 1, 2], "image_std": [3, 4, 5]}')
    (out / "preprocessor_config.json").unlink(missing_ok=True)
    (out / "README.md").write_text("---\nlicense: mit\n---\n")
    again = load_encoder(out)
    assert again.geometry == replace(GEOMETRY, frames=4, crop_size=32, mean=(0, 1, 2), std=(3, 4, 5))
    assert again.provenance["licence"] == "mit"
    (out / "README.md").write_text("---\nlicense: other\nlicense_name: for friends\n---\n")
    assert load_encoder(out).provenance["licence"] == "for friends"
    (out / "config.json").write_text(json.dumps(config | {frames: 0}))
    with pytest.raises(UserError, match=rf"config\.json is not the config of .*{frames} is 0, not a whole"):
        load_encoder(out)


@pytest.mark.parametrize(
    "broken",
    [
        "ours",
        {"geometry": {}, "provenance": {}},
        {"provenance": {"licence": torch.zeros(1)}},
        {"geometry": {"fps": -1.0}},
        {"geometry": {"frames": "many"}},
        {"geometry": {"fps": "4"}},
        {"geometry": {"fps": math.inf}},
        {"geometry": {"frame_step": True}},
        {"geometry": {"crop_size": 2**40}},
        {"geometry": {"mean": [0.5, math.nan, 0.5]}},
        {"geometry": {"std": [0.5, 0.5]}},
        {"geometry": {"std": [0, 0, 0]}},
        {"geometry": {"colour": 3}},
        {"architecture": {"heads": 0}},
        {"architecture": {"init_std": "small"}},
    ],
)
def test_what_a_file_says_of_itself_must_make_sense(tmp_path: Path, broken: Any) -> None:
    export(encoder(Rotary(legacy=True)), tmp_path / "out", "vjepa2")
    file = tmp_path / "out" / "encoder.pt"
    content = torch.load(file, weights_only=True)
    said = content["tubelet"]
    for name in broken if isinstance(broken, dict) else ():
        said = {**said, name: {**said[name], **broken[name]} if broken[name] else {}}
    torch.save({**content, "tubelet": said if isinstance(broken, dict) else broken}, file)
    with pytest.raises(UserError, match=r'encoder\.pt says under "tubelet" nothing'):
        load_encoder(file)


@torch.no_grad()
def test_metas_layout_equals_vjepa2_model(tmp_path: Path, transformers: Any) -> None:
    """The file's tensors, put under transformers' names by hand, in its own V-JEPA 2."""
    one = encoder(Rotary(legacy=True))
    export(one, tmp_path / "out", "vjepa2")
    found = torch.load(tmp_path / "out" / "encoder.pt", weights_only=True)["target_encoder"]
    found = {name.removeprefix("module.backbone."): tensor for name, tensor in found.items()}
    state = {}
    for name, tensor in found.items():
        name = name.replace("patch_embed.", "embeddings.patch_embeddings.").replace("blocks.", "layer.")
        if "attn.qkv" in name:
            for part, share in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                state[name.replace("attn.qkv", f"attention.{part}")] = share
        else:
            state[
                "layernorm" + name[4:] if name.startswith("norm.") else name.replace("attn.", "attention.")
            ] = tensor
    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "patch_size": 8,
        "crop_size": 16,
    }
    config = transformers.VJEPA2Config(frames_per_clip=8, pred_num_hidden_layers=0, **sizes)
    theirs = transformers.VJEPA2Model(config).eval()
    theirs.encoder.load_state_dict(state)
    expected = theirs(clips().transpose(1, 2), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(vit(one)(clips()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", [Rotary(), SinCos(), TokenRotary(), Rotary(legacy=True, base=100.0)])
def test_metas_layout_refuses_positions_that_its_code_does_not_compute(
    tmp_path: Path, positions: Positions
) -> None:
    with pytest.raises(UserError, match=r"computes rotary_legacy with 10000 alone.* choose to=hf"):
        export(encoder(positions), tmp_path / "out", "vjepa2")
    assert not list(tmp_path.iterdir())


# Hugging Face


@pytest.fixture(scope="module")
def transformers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """transformers, with code of folders copied into a place of the tests'."""
    found = pytest.importorskip("transformers", reason="the test extra's transformers is not installed")
    import transformers.dynamic_module_utils as modules

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modules, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield found


KINDS = [
    (Rotary(legacy=True), "VJEPA2Model"),
    (SinCos(flat=True), "VideoMAEModel"),
    (Rotary(), "TubeletModel"),
    (Rotary(legacy=True, base=100.0), "TubeletModel"),
    (SinCos(), "TubeletModel"),
    (ScaledRotary(), "TubeletModel"),
    (TokenRotary(), "TubeletModel"),
]


@pytest.mark.parametrize(("positions", "named"), KINDS)
@torch.no_grad()
def test_hf_opens_with_equal_outputs_and_comes_back(
    tmp_path: Path, transformers: Any, positions: Positions, named: str
) -> None:
    one, out = encoder(positions), tmp_path / "out"
    export(one, out, "hf")
    opened, report = transformers.AutoModel.from_pretrained(
        out, trust_remote_code=named == "TubeletModel", output_loading_info=True
    )
    assert type(opened).__name__ == named
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    for clip in [clips(3), clips(1, 12)][: 1 if named == "VideoMAEModel" else 2]:
        theirs = opened.eval()(clip.transpose(1, 2)).last_hidden_state
        torch.testing.assert_close(theirs, vit(one)(clip), atol=1e-5, rtol=1e-5)
    again = load_encoder(out)
    assert again.provenance["licence"].lower() == LICENCE.lower()
    assert again.geometry.mean == GEOMETRY.mean and again.geometry.frames == 8
    if named != "VideoMAEModel":
        assert again.digest == one.digest
        assert torch.equal(vit(again)(clips()), vit(one)(clips()))


@torch.no_grad()
def test_videomae_comes_back_to_the_bit_but_for_biases_of_keys(tmp_path: Path, transformers: Any) -> None:
    one = encoder(SinCos(flat=True))
    done = export(one, tmp_path / "biased", "hf")
    assert any("keys have no bias" in line for line in done.told)
    for name, parameter in vit(one).named_parameters():
        if name.endswith("attn.qkv.bias"):
            parameter[48:96] = 0
    one = replace(one, digest=digest(one.model))
    assert load_encoder(tmp_path / "biased").digest == one.digest
    done = export(one, tmp_path / "unbiased", "hf")
    assert not any("keys have no bias" in line for line in done.told)
    again = load_encoder(tmp_path / "unbiased")
    assert again.digest == one.digest and torch.equal(vit(again)(clips()), vit(one)(clips()))


@torch.no_grad()
def test_the_folders_own_code_runs_without_tubelet(tmp_path: Path, transformers: Any) -> None:
    one, out = encoder(TokenRotary()), tmp_path / "out"
    export(one, out, "hf")
    opened = transformers.AutoModel.from_pretrained(out, trust_remote_code=True).eval()
    parts = {type(part).__module__.partition(".")[0] for part in opened.modules()}
    assert parts == {"transformers_modules", "torch"}
    states = opened(clips().transpose(1, 2), output_hidden_states=True).hidden_states
    expected = vit(one).layers(clips(), [0, 1, 2, 3])
    assert len(states) == 4 and all(torch.equal(states[k], expected[k]) for k in expected)
    code = shipped_code()
    assert set(code) == {"modeling.py", "block.py", "tokens.py", "types.py", "errors.py"}
    # of files that others need, transformers 4.57 and 5.0 copy only what this one names
    assert all(
        f"from .{name.removesuffix('.py')} import " in code["modeling.py"]
        for name in set(code) - {"modeling.py"}
    )
    assert "PreTrainedConfig" not in code["modeling.py"]  # transformers 4 does not know it by this name
    allowed = sys.stdlib_module_names | {"torch", "transformers"}
    for name, text in code.items():
        assert (out / name).read_text() == text
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                assert f"{node.module}.py" in code, name
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = (
                    [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                )
                assert {each.partition(".")[0] for each in names} <= allowed, name


def test_positions_without_a_class_of_their_own_are_said(tmp_path: Path, transformers: Any) -> None:
    done = export(encoder(Rotary()), tmp_path / "out", "hf")
    assert "VJEPA2Model turns the two channels of a pair by different angles" in done.told[0]
    assert "trust_remote_code=True" in done.told[0]
    assert "trust_remote_code=True).eval()" in (tmp_path / "out" / "README.md").read_text()


@torch.no_grad()
def test_with_one_frequency_both_rotary_forms_are_the_same(tmp_path: Path, transformers: Any) -> None:
    one = encoder(Rotary(), heads=6)  # heads of 8 channels: a pair for each axis
    tables = [
        Rotary(legacy).rotate(Grid(3, 4, 5), None, 48, 6, torch.device("cpu")) for legacy in (True, False)
    ]
    assert torch.equal(tables[0].cos, tables[1].cos) and torch.equal(tables[0].sin, tables[1].sin)
    assert kind_of(vit(one)) == "vjepa2" and kind_of(vit(encoder(Rotary()))) == "tubelet"
    export(one, tmp_path / "out", "hf")
    opened = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    theirs = opened(clips().transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(theirs, vit(one)(clips()), atol=1e-5, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4096), st.integers(1, 16384))
def test_the_mlp_ratio_gives_exactly_the_width(dim: int, hidden: int) -> None:
    assert int(dim * mlp_ratio(dim, hidden)) == hidden


def test_the_preprocessor_equals_our_evaluation_transform(tmp_path: Path, transformers: Any) -> None:
    export(encoder(SinCos(flat=True)), tmp_path / "out", "hf")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    video = np.random.default_rng(0).integers(0, 256, (8, 18, 18, 3), dtype=np.uint8)
    theirs = processor(list(video), return_tensors="pt")["pixel_values"]  # [1, T, C, H, W]
    ours = CenterCrop(16, mean=GEOMETRY.mean, std=GEOMETRY.std)([torch.from_numpy(video)])[:, 0]
    torch.testing.assert_close(theirs.transpose(1, 2), ours, atol=1e-5, rtol=1e-5)


# The released rotary form is no rotation, and nothing in front of it makes it one


def matrices(legacy: bool, head_dim: int, grid: Grid) -> Tensor:
    """What is done to a head's queries and keys at each place, [N, head_dim, head_dim], float64."""
    rotation = Rotary(legacy).rotate(grid, None, head_dim, 1, torch.device("cpu"))
    columns = torch.eye(head_dim).expand(1, grid.n, -1, -1).transpose(1, 2)  # a head for each unit vector
    return turn(columns, rotation)[0].permute(1, 2, 0).double()


@pytest.mark.parametrize("head_dim", [12, 24, 32, 64, 80, 88, 104])
@pytest.mark.parametrize("grid", [Grid(2, 1, 1), Grid(1, 2, 1), Grid(1, 1, 2)])
def test_no_linear_map_of_queries_and_keys_makes_the_released_form_a_rotation(
    head_dim: int, grid: Grid
) -> None:
    """Were there A and B with (A q)' L(p)' L(s) (B k) = q' R(p)' R(s) k for all q, k, p, s: L(0) = 1 gives A'B = 1, so

    B A' = 1, and p = s gives L(p)'L(p) = 1 for every p. It is not, already for two places along any axis.
    """
    ours, theirs, one = (
        matrices(False, head_dim, grid),
        matrices(True, head_dim, grid),
        torch.eye(head_dim).double(),
    )
    assert torch.allclose(theirs[0], one)
    for place in range(grid.n):
        assert torch.allclose(ours[place].T @ ours[place], one, atol=1e-6)
    assert (theirs[1].T @ theirs[1] - one).abs().max() > 0.1


def test_no_permutation_of_query_and_key_rows_makes_the_released_form_a_rotation() -> None:
    """All 24 x 24 orders of the four channels that turn with time in a head of 12."""
    ours, theirs = (matrices(legacy, 12, Grid(2, 1, 1))[:, :4, :4] for legacy in (False, True))
    wanted = torch.einsum("pji,sjk->psik", ours, ours)
    orders = [torch.eye(4).double()[list(order)] for order in itertools.permutations(range(4))]
    closest = min(
        float((torch.einsum("ji,pkj,skl,lm->psim", a, theirs, theirs, b) - wanted).abs().max())
        for a, b in itertools.product(orders, orders)
    )
    assert closest > 0.1
    assert (
        torch.einsum("pji,sjk->psik", ours, ours).sub(wanted).abs().max() == 0
    )  # the measure finds what is there


# The card


@pytest.fixture
def told_run(tmp_path: Path) -> Path:
    """A run with a cost, a checkpoint and evaluations, one of them of another encoder."""
    where = "/somebody/private/videos/labels.csv"
    one = encoder(
        Rotary(),
        data=where,
        data_digest="abc",
        which="teacher",
        step=500,
        init_from="runs/b",
        began_from="hf://them/base",
        taught_by="them/large",
    )
    run = tmp_path / "told"
    save_encoder(vit(one), run / "encoder", GEOMETRY, one.provenance)
    save_encoder(vit(one), run / "checkpoints" / "step-000100" / "encoder", GEOMETRY, one.provenance)
    spent = {"flops": {"encoder": 2e15, "teacher": 1e15}, "clips": 6400, "seconds": 7200.0}
    (run / "run.json").write_text(json.dumps({"steps": 500, **spent}))
    state = {"step": 100, "spent": {**spent, "flops": {"encoder": 1e14}}}
    (run / "checkpoints" / "step-000100" / "state.json").write_text(json.dumps(state))
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "sd": None}
    probe = {"encoder": {"digest": one.digest}, "data": where, "kind": "linear", "headline_labels": None}
    probe["metrics"] = {"top1": score, "auroc": score, "macro_recall": {**score, "low": None, "value": 0.25}}
    retrieval = {
        "encoder": {"digest": one.digest},
        "data": "/x/ucf.csv",
        "map": 0.125,
        "intervals": {"map": [0.1, 0.2]},
    }
    other = {**probe, "encoder": {"digest": "another"}, "kind": "attentive"}
    for name, record in {"a": probe, "b": retrieval, "c": other}.items():
        (run / "eval" / name).mkdir(parents=True)
        (run / "eval" / name / "results.json").write_text(json.dumps(record))
    return run


def test_the_card_tells_what_is_known(told_run: Path, tmp_path: Path, transformers: Any) -> None:
    out = tmp_path / "out"
    assert main(["export", str(told_run), "--to", "hf", "--out", str(out)]) == 0
    from huggingface_hub import ModelCard

    card = ModelCard.load(out / "README.md")
    data: Any = card.data
    assert data.license == "cc-by-nc-4.0" and data.library_name == "transformers"
    assert data.base_model == "them/base" and "vjepa" in (data.tags or [])
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results or []}
    assert found == {("videos", "top1"): 0.5, ("videos", "macro_recall"): 0.25, ("ucf", "map"): 0.125}
    for line in (
        "| method | vjepa |",
        "| which encoder | teacher, step 500 |",
        f"| licence of the weights | {LICENCE} |",
        "| base model | hf://them/base |",
        "| teacher | them/large |",
        "Trained on `labels.csv` (digest abc), without labels.",
        "8 frames, 5 frames a second, 16 x 16 pixels",
        "500 steps, 6,400 clips, 3e+15 FLOPs, 2.00 hours",
        "| videos | linear | top1 | 0.500 | 0.400 to 0.600 |",
        "| videos | linear | macro_recall | 0.250 | unknown |",
        "| ucf | retrieval | map | 0.125 | 0.100 to 0.200 |",
    ):
        assert line in card.text, line
    assert "attentive" not in card.text
    texts = [file.read_text() for file in out.iterdir() if file.suffix in (".json", ".md")]
    assert len(texts) == 4 and not any("/somebody" in text for text in texts)


def test_a_checkpoint_has_its_own_cost_and_a_cut_one_no_scores(told_run: Path) -> None:
    whole = load_encoder(told_run).digest
    found = story_of(told_run / "checkpoints" / "step-000100", whole).cost
    assert found == {"steps": 100, "clips": 6400, "seconds": 7200.0, "train_flops": 1e14}
    for place in (told_run, told_run / "encoder"):
        assert (story_of(place, whole).cost or {})["train_flops"] == 3e15 and len(
            story_of(place, whole).scores
        ) == 3
    assert story_of(told_run, "cut").scores == ()
    assert story_of("vitl.pt", whole) == Story()
    (told_run / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json cannot be read"):
        story_of(told_run, whole)


def test_an_unknown_licence_is_said_on_the_card(tmp_path: Path, transformers: Any) -> None:
    one = encoder(licence=None, partial={"left_random": ["norm.weight", "norm.bias"]})
    export(one, tmp_path / "out", "hf")
    text = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["license"] == "unknown"
    assert "| left random | 2 tensors: norm.weight, norm.bias |" in text
    assert "| licence of the weights | unknown (whoever publishes this says here under which licence" in text
    assert "Unknown: there was no run folder" in text and "None was found for exactly these weights" in text


@pytest.mark.parametrize(
    ("licence", "known"),
    [
        ("CC-BY-NC-4.0", "cc-by-nc-4.0"),
        ("MIT", "mit"),
        ("unknown", "unknown"),
        ("yours: trained from scratch", "unknown"),
        ("MIT if published by Meta; not known from the file", "unknown"),
        ("for-friends", "other"),
        ("for research and evaluation only", "other"),
        ("mit, apache-2.0", "other"),
        ("MIT and CC-BY-NC-4.0", "other"),
        ("MIT and mit", "mit"),
        ("for-friends and for-others", "other"),
        ("mit and unknown", "unknown"),
        ("for-friends and yours: trained from scratch", "unknown"),
    ],
)
def test_licences_get_the_hubs_words(licence: str, known: str) -> None:
    assert licence_id(licence) == known


@pytest.mark.parametrize("divider", [" and ", ", "])
@pytest.mark.parametrize("other", ["mit", "unknown", "MIT if published by Meta; not known from the file"])
def test_the_order_of_joined_licences_does_not_matter(other: str, divider: str) -> None:
    for one in ("CC-BY-NC-4.0", "for-friends", "yours: trained from scratch"):
        assert licence_id(divider.join((one, other))) == licence_id(divider.join((other, one)))


# Programs


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, Path]:
    """The same encoder as torch's program and, where its libraries are there, as ONNX."""
    one, folder = encoder(Rotary()), tmp_path_factory.mktemp("programs")
    export(one, folder / "pt2", "pt2")
    return one, folder


SHAPES = [(1, 8), (2, 4), (5, 14)]


@torch.no_grad()
def test_pt2_takes_any_batch_and_length(programs: tuple[Encoder, Path]) -> None:
    one, folder = programs
    said = {"export.json": ""}
    program = torch.export.load(folder / "pt2" / "model.pt2", extra_files=said).module()
    for number, frames in SHAPES:
        clip = clips(number, frames)
        torch.testing.assert_close(program(clip), vit(one)(clip), atol=1e-5, rtol=1e-5)
    provenance = json.loads(said["export.json"])["provenance"]
    assert provenance["licence"] == LICENCE and provenance["source"] == SOURCE
    assert (folder / "pt2" / "export.json").read_text() == said["export.json"]


@torch.no_grad()
def test_onnx_takes_any_batch_and_length(programs: tuple[Encoder, Path]) -> None:
    onnxruntime = onnx_runs()
    one, folder = programs
    done = export(one, folder / "onnx", "onnx")
    assert 0 < done.difference < 1e-4
    session = onnxruntime.InferenceSession(folder / "onnx" / "model.onnx")
    for number, frames in SHAPES:
        clip = clips(number, frames)
        theirs = torch.from_numpy(session.run(None, {"clip": clip.numpy()})[0])
        torch.testing.assert_close(theirs, vit(one)(clip), atol=1e-5, rtol=1e-5)
    said = session.get_modelmeta().custom_metadata_map
    assert said["licence"] == LICENCE and said["source"] == SOURCE
    assert json.loads(said["export.json"])["geometry"]["fps"] == 5.0


@pytest.mark.parametrize(("to", "library"), [("hf", "transformers"), ("onnx", "onnxruntime")])
def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        UserError, match=rf'{library}, which is not installed: pip install "tubelet\[export\]"'
    ):
        export(encoder(), tmp_path / "out", to)
    assert not list(tmp_path.iterdir())


# The hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """huggingface_hub, offline and with an empty cache."""
    found = pytest.importorskip("huggingface_hub", reason="the export extra is not installed")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return found


def test_a_hub_name_is_pulled_and_named(
    tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch, transformers: Any
) -> None:
    one, asked = encoder(), []
    export(one, tmp_path / "snapshots" / "0123abc", "hf")

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path / "snapshots" / "0123abc")

    monkeypatch.setattr(hub, "snapshot_download", download)
    pulled = load_encoder("hf://them/theirs")
    assert pulled.digest == one.digest and pulled.name == "them/theirs"
    about = pulled.provenance
    assert (about["source"], about["revision"], about["licence"]) == ("hf://them/theirs", "0123abc", LICENCE)
    # neither code nor pickles
    assert asked == [("them/theirs", {"allow_patterns": ["*.safetensors", "*.json", "README.md"]})]


def test_without_network_the_hub_says_so(
    tmp_path: Path, hub: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        UserError, match=r"hf://a/b could not be fetched \(OfflineModeIsEnabled: .*not in the cache"
    ):
        load_encoder("hf://a/b")
    assert main(["export", "hf://a/b", "--out", str(tmp_path / "out")]) == 2
    assert "check the name, the network" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"a/b could not be pushed \(OfflineModeIsEnabled: .*is whole"):
        push(tmp_path, "a/b")
    for wrong in ("hf://a", "hf://a/b/c", "hf://a//b", "hf:///b"):
        with pytest.raises(UserError, match="no repository of the hub; write OWNER/NAME"):
            pull(wrong)


def test_push_makes_a_private_repository_and_uploads(
    run: Path,
    hub: Any,
    monkeypatch: pytest.MonkeyPatch,
    transformers: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[tuple[str, Any]] = []

    class Api:
        def create_repo(self, name: str, **options: Any) -> None:
            calls.append((name, options))

        def upload_folder(self, repo_id: str, folder_path: Path, **options: Any) -> None:
            calls.append((repo_id, sorted(file.name for file in folder_path.iterdir())))

    monkeypatch.setattr(hub, "HfApi", Api)
    out = run.parent / "out"
    assert main(["export", str(run), "--to", "hf", "--out", str(out), "--push", "me/mine"]) == 0
    assert calls[0] == ("me/mine", {"private": True, "exist_ok": True})
    assert calls[1][0] == "me/mine" and {"README.md", "config.json", "model.safetensors"} <= set(calls[1][1])
    assert "https://huggingface.co/me/mine" in capsys.readouterr().out
    assert main(["export", str(run), "--out", str(run.parent / "other"), "--push", "me/mine"]) == 2
    assert "add --to hf" in capsys.readouterr().err and not (run.parent / "other").exists()


def test_without_its_library_the_hub_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="hf://a/b needs huggingface_hub, which is not installed"):
        load_encoder("hf://a/b")


# What the review found


def test_changed_weights_in_metas_layout_are_seen(tmp_path: Path) -> None:
    one = encoder(Rotary(legacy=True))
    vit(one).init_std = 0.05  # is no tensor, and part of the digest
    one = replace(one, digest=digest(one.model))
    export(one, tmp_path / "out", "vjepa2")
    file = tmp_path / "out" / "encoder.pt"
    assert load_encoder(file).digest == one.digest
    content = torch.load(file, weights_only=True)
    content["target_encoder"]["module.backbone.norm.bias"] += 1e-3
    torch.save(content, file)
    with pytest.raises(UserError, match="its weights are not those that were exported into it"):
        load_encoder(file)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("to", "file"),
    [
        ("vjepa2", meta.FILE),
        ("pt2", "model.pt2"),
        ("pt2", "export.json"),
        ("onnx", "model.onnx"),
    ],
)
def test_a_full_disk_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, file: str
) -> None:
    """The file lies on a disk that is full: whichever library writes it meets what it would meet there."""
    if to == "onnx":
        onnx_runs()
    write = save.WRITERS[to]

    def full(one: Encoder, model: ViT, draft: Path, story: Story) -> check.Written:
        (draft / file).symlink_to("/dev/full")
        return write(one, model, draft, story)

    monkeypatch.setitem(save.WRITERS, to, full)
    with pytest.raises(UserError, match="no room left on disk"):
        export(encoder(Rotary(legacy=True)), tmp_path / "out", to)
    assert not any(tmp_path.iterdir())


def test_this_folder_can_be_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(encoder(), ".")
    assert load_encoder(tmp_path / "here").digest == encoder().digest


def test_a_program_needs_two_tubelets(tmp_path: Path) -> None:
    one = encoder()
    with pytest.raises(UserError, match=r"one tubelet.*--frames 4"):
        export(replace(one, geometry=replace(one.geometry, frames=2)), tmp_path / "out", "pt2")


def test_a_record_with_less_in_it_tells_what_it_has(told_run: Path, tmp_path: Path) -> None:
    (told_run / "run.json").write_text('{"steps": 500}')
    (told_run / "eval" / "c" / "results.json").write_text("{}")
    found = story_of(told_run, load_encoder(told_run).digest)
    assert found.cost == {"steps": 500} and len(found.scores) == 3
    # only the card needs it
    (told_run / "run.json").write_text("{")
    export(load_encoder(told_run), tmp_path / "out", run=told_run)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_model_that_transformers_saved_again_is_read(
    tmp_path: Path, transformers: Any, shards: int
) -> None:
    one = encoder(Rotary())
    export(one, tmp_path / "out", "hf")
    theirs = transformers.AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True)
    size = {} if shards == 1 else {"max_shard_size": "20KB"}
    theirs.save_pretrained(tmp_path / "again", **size)
    assert not (tmp_path / "again" / "encoder.json").exists()
    assert (len(list((tmp_path / "again").glob("*.safetensors"))) > 1) == (shards > 1)
    again = load_encoder(tmp_path / "again")
    assert again.digest == one.digest and again.geometry == one.geometry
    assert again.provenance["licence"] == LICENCE and again.provenance["saved_again"] == "by transformers"
    knobs: list[dict[str, Any]] = [{"which": "teacher"}, {"heads": 2}, {"allow_partial": True}]
    for knob in knobs:
        with pytest.raises(UserError, match=rf"{next(iter(knob))}=.* is an encoder of ours: .*; leave"):
            load_encoder(tmp_path / "again", **knob)
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    config["tubelet"]["architecture"]["depth"] = 0
    (tmp_path / "again" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r'of this version \("tubelet": depth is 0, not a whole number.*export it'
    ):
        load_encoder(tmp_path / "again")


def test_checking_leaves_nothing_in_transformers_cache(
    tmp_path: Path, transformers: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    before = list(sys.path)
    export(encoder(Rotary()), tmp_path / "out", "hf")
    assert not (tmp_path / "cache").exists() and sys.path == before
    assert capfd.readouterr().err == ""


def test_whose_weights_they_are_can_be_said(run: Path, tmp_path: Path, transformers: Any) -> None:
    words = ["export", str(run), "--to", "hf", "--licence", "Apache-2.0", "--source", "hf://them/theirs"]
    assert main([*words, "--out", str(tmp_path / "out"), "--frames", "4", "--fps", "2"]) == 0
    again = load_encoder(tmp_path / "out")
    assert (again.provenance["licence"], again.provenance["source"]) == ("Apache-2.0", "hf://them/theirs")
    assert (again.geometry.frames, again.geometry.fps) == (4, 2.0)
    assert (
        yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---")[1])["license"]
        == "apache-2.0"
    )


def test_custom_licences_keep_name_and_link_and_lists_all_of_them(tmp_path: Path, transformers: Any) -> None:
    place, out = tmp_path / "theirs", tmp_path / "out"
    export(replace(encoder(Rotary(legacy=True)), provenance={}), place, "hf")
    head = {"license": "other", "license_name": "for friends", "license_link": "LICENSE", "base_model": "a/b"}
    (place / "README.md").write_text(f"---\n{yaml.safe_dump(head)}---\n")
    one = load_encoder(place)
    export(replace(one, provenance={**one.provenance, "source": "theirs"}), out, "hf")
    again = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert {name: again.get(name) for name in head} == head
    (place / "README.md").write_text("---\nlicense:\n- mit\n- apache-2.0\n---\n")
    assert load_encoder(place).provenance["licence"] == "mit, apache-2.0"
    (place / "README.md").write_text("---\nbase_model:\n- a/b\n- c/d\n---\n")
    several = load_encoder(place)
    assert several.provenance["base_model"] == ["a/b", "c/d"]
    export(replace(several, provenance={**several.provenance, "source": "theirs"}), tmp_path / "both", "hf")
    text = (tmp_path / "both" / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["base_model"] == ["a/b", "c/d"]
    assert "| base model | hf://a/b, hf://c/d |" in text


def test_random_weights_have_no_base(tmp_path: Path, transformers: Any) -> None:
    one = encoder(recipe=None, source="random initialisation")
    about = {name: value for name, value in one.provenance.items() if name != "recipe"}
    export(replace(one, provenance=about), tmp_path / "out", "hf")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "base_model" not in text and "| base model | none, not trained |" in text


@pytest.mark.parametrize(
    ("to", "positions"),
    [
        ("safetensors", Rotary()),
        ("hf", Rotary()),
        ("hf", Rotary(legacy=True)),
        ("hf", SinCos(flat=True)),
        ("onnx", Rotary()),
        ("pt2", Rotary()),
        ("vjepa2", Rotary(legacy=True)),
    ],
)
def test_no_path_of_this_machine_leaves_it(
    tmp_path: Path, request: pytest.FixtureRequest, to: str, positions: Positions
) -> None:
    """Neither what the provenance has of them, which our own folder keeps, nor what libraries note of the code's."""
    if to == "onnx":
        onnx_runs()
    elif to == "hf":
        request.getfixturevalue("transformers")
    one, source = encoder(positions), Path(save.__file__).parents[2]
    if to != "safetensors":
        said = {
            "source": f"{tmp_path}/vitl.pt",
            "init_from": f"random:{tmp_path}/run@1",
            "data": f"ssv2:{tmp_path}/v",
            "homepage": "https://example.org/a/b",
        }
        about = {**one.provenance, **said, "taught_by": f"pixels:{tmp_path}/run"}
        one = replace(one, name=f"random:{tmp_path}/run@3", provenance=about)
    export(one, tmp_path / "out", to)
    places = [
        source,
        source.parent,
        tmp_path,
        Path.home(),
        Path(sys.prefix),
        *map(Path, site.getsitepackages()),
    ]
    kept = {str(place).encode() for place in places if len(place.parts) > 2} | {
        str(Path.home()).encode() + b"/"
    }
    written = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert written
    for file in written:
        text = file.read_bytes()
        found = [place for place in kept if place in text]
        if file.suffix in (".onnx", ".pt2"):
            found += [name for name in (b"vit.py", b"tokens.py", b"block.py") if name in text]
        assert not found, file
    if to in ("hf", "vjepa2"):
        again = load_encoder(tmp_path / "out")
        assert again.name == "random:run@3" and again.provenance["init_from"] == "random:run@1"
        assert again.provenance["source"] == "vitl.pt" and again.provenance["taught_by"] == "pixels:run"
        assert again.provenance["data"] == "ssv2:v"
        assert again.provenance["homepage"] == "https://example.org/a/b"


def test_nothing_is_printed_of_torchs_own_workings(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    export(encoder(Rotary()), tmp_path / "out", "pt2")
    said = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert capfd.readouterr() == ("", "") and not said


@pytest.mark.parametrize("to", sorted(save.WRITERS))
@pytest.mark.parametrize(
    ("clips", "cure"),
    [
        ({"crop_size": 50}, "crop_size=48 (--crop-size 48)"),
        ({"crop_size": 3}, "crop_size=8 (--crop-size 8)"),
        ({"frames": 7}, "frames=8 (--frames 8)"),
        ({"frames": 0}, "frames=2 (--frames 2)"),
        ({"frames": -4}, "frames=2 (--frames 2)"),
    ],
)
def test_clips_that_do_not_divide_are_refused_with_the_nearest_that_do(
    tmp_path: Path, to: str, clips: dict[str, int], cure: str
) -> None:
    one = encoder(Rotary(legacy=True))
    ((knob, value),) = clips.items()
    with pytest.raises(UserError) as error:
        export(replace(one, geometry=replace(one.geometry, **clips)), tmp_path / "out", to)
    assert str(error.value).startswith(
        f"{knob}={value} does not divide into the tubelets of small (2 x 8 x 8"
    )
    assert str(error.value).endswith(f"load it with {cure}")
    assert not list(tmp_path.iterdir())


def test_a_crop_divides_along_both_sides(tmp_path: Path) -> None:
    model = ViT(48, 1, 2, patch=(2, 4, 6)).eval()
    one = Encoder(model, replace(GEOMETRY, crop_size=16), "oblong", digest(model))
    with pytest.raises(UserError, match=r"crop_size=16 .* \(2 x 4 x 6 .* load it with crop_size=12"):
        export(one, tmp_path / "out")
    export(replace(one, geometry=replace(GEOMETRY, crop_size=12)), tmp_path / "out")


def test_only_float32_is_exported(tmp_path: Path) -> None:
    one = encoder()
    half = Encoder(vit(one).bfloat16(), GEOMETRY, "half", "no matter")
    with pytest.raises(
        UserError, match=r"half has weights of torch\.bfloat16, and what is exported is float32"
    ):
        export(half, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_place_below_a_file_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "file").write_text("mine")
    for out in ("file/out", "file/deeper/out"):
        assert main(["export", str(run), "--out", str(run.parent / out)]) == 2
        assert f"{run.parent / 'file'} is no folder; choose another place" in capsys.readouterr().err
    assert (run.parent / "file").read_text() == "mine"
