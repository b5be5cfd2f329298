"""LayerLock and blockwise recipes by their commands: the schedule in the run's numbers, resuming, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_recipes import own_cache, tubelet, videos, words  # noqa: F401
from toy import lines_of

from tubelet.export.weights import load_encoder
from tubelet.methods.layerlock import LOCKS_4DS_G
from tubelet.recipes.layerlock import LAYERLOCK, locks_for

DEEP = {"model": "48x4x3", "steps": 6}
SCHEDULE = {"pixel_steps": 2, "interval": 2, "restart": 0}


def command(videos: Path, out: Path, recipe: str, *more: str, **knobs: object) -> int:  # noqa: F811
    line = words(f"pretrain {recipe} --data {videos / 'labels.csv'} --out {out}", **{**DEEP, **knobs})
    return tubelet(*line, *more)


def column(run: Path, name: str) -> list[float]:
    return [row[name] for row in lines_of(run) if name in row]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "encoder" / "model.safetensors")


@pytest.mark.parametrize(
    ("recipe", "more", "frozen", "target"),
    [
        ("layerlock", [], [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]),
        ("layerlock", ["--target", "pixels", "--decoder", "separate"], [0, 0, 1, 1, 2, 2], [0] * 6),
        ("layerlock", ["--mask", "multiblock", "--crop-size", "64"], [0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]),
        ("layerlock-collapse", [], [0] * 6, [0, 0, 1, 1, 2, 2]),
        ("vjepa-layerlock", ["--teacher", "none"], [0, 0, 1, 1, 2, 2], [1, 1, 1, 1, 2, 2]),
    ],
)
def test_what_freezes_and_what_is_predicted_follow_the_schedule(
    recipe: str,
    more: list[str],
    frozen: list[int],
    target: list[int],
    videos: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    schedule = {k: v for k, v in SCHEDULE.items() if not (recipe == "layerlock-collapse" and k == "restart")}
    assert command(videos, tmp_path / "run", recipe, *more, **schedule) == 0
    assert column(tmp_path / "run", "lock/frozen") == frozen
    assert column(tmp_path / "run", "lock/target") == target
    flops = [
        b - a
        for a, b in zip(*(column(tmp_path / "run", "cost/train_flops")[i:] for i in (0, 1)), strict=False)
    ]
    if frozen[-1] and not any(target):
        assert flops[1] < flops[0] and flops[3] < flops[1]  # each lock saves a backward


@pytest.mark.parametrize(
    "more",
    [
        ["--predict", "visible", "--target-input", "visible", "--heads", "one"],
        [
            "--target-share",
            ".5",
            "--target-input",
            "sampled",
            "--target-norm",
            "none",
            "--pixel-weight",
            ".5",
        ],
        ["--predict", "all", "--latent-rise", "cosine", "--positions", "rotary", "--jump", "2"],
    ],
)
def test_what_the_paper_leaves_open_can_be_chosen(more: list[str], videos: Path, tmp_path: Path) -> None:  # noqa: F811
    assert command(videos, tmp_path / "run", "layerlock", *more, **SCHEDULE) == 0
    assert all(loss > 0 for loss in column(tmp_path / "run", "train/loss"))


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--regime", "sequential", "--blocks", "1,3"],
        ["--regime", "end_to_end"],
        ["--decoders", "shared", "--decode-share", ".5"],
        ["--targets", "previous", "--blocks", "2", "--overlap", "1"],
    ],
)
def test_blockwise_in_all_its_forms(more: list[str], videos: Path, tmp_path: Path) -> None:  # noqa: F811
    assert command(videos, tmp_path / "run", "blockwise", *more) == 0
    blocks = {key for row in lines_of(tmp_path / "run") for key in row if key.startswith("loss/block")}
    assert len(blocks) == (1 if "end_to_end" in more else 2 if "--blocks" in more else 4)


def test_salt_per_block_from_a_finished_run(videos: Path, tmp_path: Path) -> None:  # noqa: F811
    assert command(videos, tmp_path / "teacher", "layerlock", **SCHEDULE) == 0
    more = ["--targets", "teacher", "--teacher", str(tmp_path / "teacher")]
    assert command(videos, tmp_path / "run", "blockwise", *more) == 0
    kept = load_encoder(tmp_path / "run", which="teacher")
    assert kept.digest == load_encoder(tmp_path / "teacher").digest


@pytest.mark.parametrize(
    ("recipe", "more"), [("layerlock", SCHEDULE), ("blockwise", {"regime": "sequential"})]
)
def test_a_resume_lands_in_the_right_phase(
    recipe: str,
    more: dict[str, object],
    videos: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """From a checkpoint before a lock, the weights after it are those of the run that was not interrupted."""
    run, again = tmp_path / "run", tmp_path / "again"
    assert command(videos, run, recipe, save_every=3, keep=9, **more) == 0
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "step-000006")
    assert command(videos, again, recipe, "--resume", save_every=3, keep=9, **more) == 0
    before, after = weights(run), weights(again)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_resume_with_another_schedule_is_refused(
    videos: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    assert command(videos, run, "layerlock", **SCHEDULE) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert command(videos, run, "layerlock", "--resume", **{**SCHEDULE, "interval": 1}) == 2
    assert "interval was 2 and is 1 now" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "layerlock --deepest 4",
            "deepest=4 freezes too much: the encoder has 4 blocks, and the last 1 decode",
        ),
        ("layerlock --decoder separate --deepest 4", "one must be left to learn; use deepest=3"),
        ("layerlock --decoder-blocks 4", "use 1 to 3 decoder blocks"),
        ("layerlock --interval 0", "interval=0: must be at least 1"),
        ("layerlock --target-input visible", "add --predict visible"),
        ("layerlock --target-share 0", "target_share=0.0: must lie between 0 and 1"),
        ("layerlock --decoder separate --decoder-blocks 1", "decoder_blocks belongs to decoder=joined"),
        ("vjepa-layerlock --momentum 2,1", "both numbers must lie between 0 and 1"),
        ("blockwise --blocks 3", "blocks=3 does not divide the encoder's 4 layers; use one of 1, 2, 4"),
        ("blockwise --blocks 1,1", "are 2 layers, the encoder has 4"),
        ("blockwise --targets teacher", "targets=teacher and --teacher RUN belong together"),
        ("blockwise --targets teacher --teacher random:48x1x3", "give the encoder the teacher's patch"),
        ("blockwise --overlap 1", "overlap=1: must be less than the 1 layers of a block"),
        ("blockwise --targets previous --decoders shared", "leave decoders out"),
        ("layerlock --target pixels --target-share .5", "target_share is about latents"),
        ("vjepa-layerlock --teacher none --momentum .9,1", "teacher=none has none"),
        ("blockwise --regime sequential --steps 3", "steps=3 do not reach all 4 blocks"),
        ("blockwise --regime end_to_end --targets previous", "are between blocks"),
        ("blockwise --branch-from nowhere", "branch_from=nowhere is no checkpoint"),
        ("salt --freeze-layers 1", "add --teacher RUN"),
        ("blockwise --freeze-layers 5", "freeze_layers=5: the encoder has 4 blocks"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    line: str,
    said: str,
    videos: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, *more = line.split()
    patch = {"tubelet_size": 4} if "random:" in line else {}
    assert command(videos, tmp_path / "run", recipe, *more, **patch) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_as_long_and_deep_as_4ds_g_gets_its_schedule() -> None:
    assert locks_for(LAYERLOCK.steps, 48, 4, None, None, 1, None) == LOCKS_4DS_G
    small = locks_for(1000, 12, 4, None, None, 1, None)
    assert small.deepest == 8 and small.first == 328 and 955 <= small.steps()[-1] <= 970
