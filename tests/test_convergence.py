"""The convergence map: cells that are the run but for what is frozen, a cost as stated, a grid that resumes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from toy import lines_of, weights_of
from video import write_video

from tubelet import cli
from tubelet.analysis.convergence import Continuation, ConvergenceMap, Schedule
from tubelet.errors import UserError
from tubelet.recipes import run_recipe
from tubelet.recipes.continuation import Base, continuation, read_base
from tubelet.recipes.convergence import Planned, convergence, plan, read_map, read_window
from tubelet.report.convergence import advice, bluntness
from tubelet.train import checkpoint, loop

STEPS, EVERY = 12, 4
SMALL: dict[str, Any] = {
    "model": "48x3x3",
    "crop_size": 32,
    "frames": 4,
    "frame_step": 1,
    "workers": 0,
    "device": "cpu",
    "steps": STEPS,
    "save_every": EVERY,
    "keep_every": EVERY,
    "keep": 1,
    "health_every": STEPS,
}
# batch size, rates and schedules are left open: what was chosen must be chosen again
RECIPES: dict[str, dict[str, Any]] = {
    "videomae": {"lr": 3e-3, "decoder_depth": 1},
    "vjepa": {"momentum": (0.9, 1.0)},
    "salt": {"teacher_model": "96x1x3", "steps": STEPS * 3 // 2, "predictor_depth": 1},
    "layerlock": {"pixel_steps": 5, "interval": 2, "deepest": 2, "decoder": "separate"},
    "blockwise": {"blocks": "1,2", "decoder_depth": 1, "regime": "sequential"},
}
Run = Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def without_pages() -> Iterator[None]:
    """No page of each small run, which takes longer than to train it; the map's own is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tubelet.recipes.run.run_report", lambda out: None)
        yield


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos of ten frames."""
    base = tmp_path_factory.mktemp("set") / "clips"
    for number in range(4):
        write_video(base / f"{number}.mp4", range(40 * number, 40 * number + 10), size=(48, 40))
    return base


@pytest.fixture(scope="module")
def runs(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Finished runs by recipe, trained when they are first asked for; no test may change them."""
    place = tmp_path_factory.mktemp("runs")

    def run(recipe: str) -> Path:
        out = place / recipe
        if not out.exists():
            run_recipe(recipe, data=str(videos), out=str(out), **{**SMALL, **RECIPES[recipe]})
        return out

    return run


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps that are taken, in order."""
    steps, take_step = [], loop.take_step

    def counted(*args: Any) -> dict[str, float]:
        steps.append(args[3].step)
        return take_step(*args)

    monkeypatch.setattr(loop, "take_step", counted)
    return steps


def losses_of(run: Path, start: int) -> list[dict[str, Any]]:
    """metrics.jsonl from step ``start`` on, without clock and features, which are looked at other times."""
    return [
        {name: value for name, value in row.items() if not name.startswith("repr/")}
        for row in lines_of(run)
        if row["step"] >= start
    ]


# -- the cells ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A run and two cells from its step 4 on: nothing frozen, two of its three blocks frozen."""

    base: Base
    out: Path
    free: Planned
    frozen: Planned


@pytest.fixture(scope="module", params=RECIPES)
def trained(request: pytest.FixtureRequest, runs: Run, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Of every recipe; no test may change them."""
    base, out = read_base(runs(request.param)), tmp_path_factory.mktemp("cells")
    free, frozen = plan(base, out, [(4, 0), (4, 2)], None, None).cells
    for cell in (free, frozen):
        run_recipe(base.recipe, **continuation(base, cell.step, cell.layers, cell.folder))
    return Trained(base, out, free, frozen)


def test_a_branch_that_freezes_nothing_equals_the_run(trained: Trained) -> None:
    """Bitwise: losses, costs, final weights and optimizer state."""
    base, cell = trained.base, trained.free
    assert base.steps == STEPS and sorted(base.kept) == [4, 8]
    assert losses_of(cell.folder, 0) == losses_of(base.folder, 4)
    ours, theirs = (checkpoint.found(folder / "checkpoints")[-1] for folder in (cell.folder, base.folder))
    assert ours.name == theirs.name and weights_of(ours) == weights_of(theirs)
    found = read_map(base, trained.out, read_window(base, 0.3), 0.01)
    assert [cell.layers for cell in found.cells] == [0, 2]
    assert found.cells[0].difference == found.cells[0].standard_error == 0 != found.cells[1].difference
    assert bool(found.cautions) == (base.recipe in ("vjepa", "layerlock"))


def test_frozen_layers_of_a_cell_stay_those_of_the_checkpoint(trained: Trained) -> None:
    """Weights and optimizer state, bit by bit; blocks above them move."""
    last = checkpoint.found(trained.frozen.folder / "checkpoints")[-1]
    for file in ("method.safetensors", "optimizer.safetensors"):
        began, ended = load_file(trained.base.kept[4] / file), load_file(last / file)
        frozen = [
            name
            for name in began
            if name.startswith(("encoder.embedding.", "encoder.blocks.0.", "encoder.blocks.1."))
        ]
        assert len(frozen) >= 26 and all(began[name].equal(ended[name]) for name in frozen)
        above = [name for name in began if name.startswith("encoder.blocks.2.")]
        assert len(above) >= 12 and not [name for name in above if began[name].equal(ended[name])]


def test_the_stated_cost_is_what_is_charged(trained: Trained) -> None:
    """Where passes change with the step, where a teacher is read, where a frozen prefix ends inside a block."""
    for cell in (trained.free, trained.frozen):
        spent = json.loads((trained.base.kept[4] / "state.json").read_text())["spent"]["flops"]
        ran = json.loads((cell.folder / "run.json").read_text())
        assert cell.flops == ran["train_flops"] - sum(spent.values()) > 0
    assert trained.frozen.flops < trained.free.flops


def test_a_run_that_began_with_an_encoder_is_taken_up_without_it(
    runs: Run, videos: Path, tmp_path: Path
) -> None:
    """Size and positions come from the run."""
    knobs = {**SMALL, **RECIPES["vjepa"], "init_from": str(runs("videomae")), "model": None}
    run_recipe("vjepa", data=str(videos), out=str(tmp_path / "run"), **knobs)
    base = read_base(tmp_path / "run")
    [cell] = plan(base, tmp_path / "out", [(8, 0)], None, None).cells
    run_recipe("vjepa", **continuation(base, cell.step, cell.layers, cell.folder))
    ours, theirs = (
        checkpoint.found(folder / "checkpoints")[-1] for folder in (cell.folder, tmp_path / "run")
    )
    assert weights_of(ours) == weights_of(theirs)


# -- the command -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(runs: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The map of the videomae run, not interrupted; no test may change it."""
    out = tmp_path_factory.mktemp("whole") / "map"
    command = f"convergence {runs('videomae')} --out {out} --depths 1,3 --window .3"
    assert cli.main(command.split()) == 0
    return out


def test_what_it_leaves(whole: Path, runs: Run) -> None:
    run = runs("videomae")
    ours = {row["step"]: row["train/loss"] for row in lines_of(run) if "train/loss" in row}
    told = json.loads((whole / "convergence.json").read_text())
    assert told["window"] == {"first_step": 8, "logged_steps": 4} and told["depth"] == 3
    assert told["base_loss"] == pytest.approx(sum(ours[step] for step in range(8, 12)) / 4)
    assert [(cell["step"], cell["layers"]) for cell in told["cells"]] == [(4, 1), (4, 3), (8, 1), (8, 3)]
    assert {name for cell in told["cells"] for name in cell} <= told["meaning"].keys()
    assert told["cautions"] == []
    with (whole / "convergence.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, cell in zip(rows, told["cells"], strict=True):
        folder = whole / "cells" / f"step-{cell['step']:06d}-layers-{cell['layers']:02d}"
        theirs = {r["step"]: r["train/loss"] for r in lines_of(folder) if "train/loss" in r}
        apart = [theirs[step] - ours[step] for step in range(8, 12)]
        mean = sum(apart) / 4
        error = (sum((value - mean) ** 2 for value in apart) / 3 / 4) ** 0.5
        assert cell["difference"] == pytest.approx(mean) and cell["difference"] != 0
        assert cell["standard_error"] == pytest.approx(error)
        assert cell["converged"] == (mean <= 0.01 * told["base_loss"])
        assert {name: str(value) for name, value in cell.items()} == row
        left = {path.name for path in folder.iterdir()}
        assert {"run.json", "metrics.jsonl", "config.yaml"} <= left and not left & {"checkpoints", "encoder"}
    page = (whole / "report.html").read_text()
    assert "data:image/png;base64," in page and 'src="http' not in page
    assert (whole / "map.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in whole.rglob(".*") if path.name != ".lock"]


def test_interrupted_it_does_only_what_is_missing(
    whole: Path, runs: Run, tmp_path: Path, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by a signal inside of the first cell, broken off inside of the second: the same map in the end."""
    run, out = runs("videomae"), tmp_path / "map"
    counted = loop.take_step

    def ending(when: int, end: Callable[[], Any]) -> None:
        def take_step(*args: Any) -> dict[str, float]:
            if len(taken) == when:
                end()
            return counted(*args)

        monkeypatch.setattr(loop, "take_step", take_step)

    def again() -> None:
        assert convergence(run, out, depths=[1, 3], window=0.3) is not None

    def fail() -> None:
        raise KeyboardInterrupt

    ending(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as stopped:
        again()
    assert stopped.value.code == 128 + signal.SIGTERM and taken == [4, 5, 6]
    assert not (out / "convergence.json").exists()
    taken.clear()
    ending(10, fail)
    with pytest.raises(KeyboardInterrupt):
        again()
    assert taken == [*range(7, 12), *range(4, 9)]  # the second cell had saved its state of step 8
    left = plan(read_base(run), out, [(4, 1), (4, 3)], None, None).cells
    assert [(cell.done, cell.begin) for cell in left] == [(True, 12), (False, 8)]
    taken.clear()
    monkeypatch.setattr(loop, "take_step", counted)
    again()
    assert taken == [*range(8, 12)] * 3
    ours, theirs = (json.loads((place / "convergence.json").read_text()) for place in (out, whole))
    for cell in (*ours["cells"], *theirs["cells"]):
        assert cell.pop("seconds") > 0
    assert ours == theirs


def test_other_arguments_only_add_cells(
    whole: Path, runs: Run, tmp_path: Path, taken: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, out := tmp_path / "map")
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*")}
    found = convergence(runs("videomae"), out, depths=[1], tolerance=0.5, window=0.2)
    assert found is not None and taken == [] and len(found.cells) == 4 and found.logged == 2
    capsys.readouterr()
    found = convergence(runs("videomae"), out, depths=[2, 3], steps=[8], window=0.3, dry_run=True)
    said = capsys.readouterr().err
    assert found is None and taken == [] and "to do: 1 of 2 cells, 4 steps" in said
    found = convergence(runs("videomae"), out, depths=[2, 3], steps=[8], window=0.3)
    assert found is not None and taken == [8, 9, 10, 11] and len(found.cells) == 5
    assert before.items() <= {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*")}.items()


def test_a_dry_run_writes_nothing(runs: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs("vjepa")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert cli.main(["convergence", str(run), "--dry-run", "--window", ".2", "--depths", "1"]) == 0
    assert "to do: 2 of 2 cells, 12 steps" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.fixture
def copied(runs: Run, tmp_path: Path) -> Path:
    """A copy of the videomae run."""
    return Path(shutil.copytree(runs("videomae"), tmp_path / "run"))


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def _unfinished(run: Path) -> None:
    (run / "run.json").unlink()


def _nothing_kept(run: Path) -> None:
    for step in (4, 8):
        shutil.rmtree(run / "checkpoints" / f"step-{step:06d}")


def _last_gone(run: Path) -> None:
    shutil.rmtree(run / "checkpoints" / "step-000012")


def _other_version(run: Path) -> None:
    edit(run / "config.yaml", "  seed: 0\n", "")


def _other_numbers(run: Path) -> None:
    edit(run / "config.yaml", "mask_ratio: null", "mask_ratio: 0.5")


def _as_it_is(run: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        (shutil.rmtree, "", ["holds no run"]),
        (_unfinished, "", ["not finished", "--resume"]),
        (_nothing_kept, "", ["kept no checkpoint", "--keep-every"]),
        (_last_gone, "", ["lacks the run's last checkpoint"]),
        (_other_version, "", ["another version", "its knobs", "differ in seed"]),
        (_other_numbers, "--window .2", ["cannot be resumed with other knobs", "mask_ratio was"]),
        (_as_it_is, "--window .2 --depths 1,4", ["depths=1,4", "blocks 1 to 3"]),
        (_as_it_is, "--window .2 --steps 4,5", ["no checkpoint", "at step 5", "there are 4,8"]),
        (_as_it_is, "--window .2 --steps 12", ["no checkpoint", "at step 12", "there are 4,8"]),
        (_as_it_is, "--window .5 --steps 8", ["from step 6 on"]),
        (_as_it_is, "--window .8", ["checkpoints 4,8", "smaller window"]),
        (_as_it_is, "", ["logged 1 of its last 1 steps", "larger window"]),
        (_as_it_is, "--window 2", ["window=2.0", "between 0 and 1"]),
        (_as_it_is, "--window .2 --tolerance -1", ["tolerance=-1.0"]),
        (_as_it_is, "--window .2 --data nowhere", ["nowhere does not exist"]),
    ],
)
def test_what_cannot_be_mapped(
    change: Callable[[Path], None],
    options: str,
    said: list[str],
    copied: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(copied)
    capsys.readouterr()
    assert cli.main(["convergence", str(copied), *options.split()]) == cli.USER_ERROR
    message = capsys.readouterr().err.partition("tubelet: ")[2]
    assert all(part in message for part in said), message
    assert not (copied / "convergence").exists()


def test_a_map_of_another_run_is_refused(whole: Path, runs: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="begun with another run"):
        convergence(runs("vjepa"), whole, window=0.3)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no convergence map"):
        convergence(runs("vjepa"), tmp_path, window=0.3)


def test_many_processes_are_refused(runs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without torchrun"):
        convergence(runs("vjepa"), window=0.3)


# -- what the map says -------------------------------------------------------------------------------------


@pytest.fixture
def made() -> Iterator[Callable[..., ConvergenceMap]]:
    """Maps of a run of 6 blocks that ended at 1.0, from (step, layers, how much higher, standard error)."""

    def build(*cells: tuple[int, int, float, float], to_gain: float = 0.5) -> ConvergenceMap:
        return ConvergenceMap(
            run="run",
            recipe="videomae",
            model="48x6x3",
            depth=6,
            steps=100,
            flops=1e9,
            seconds=1.0,
            first=95,
            logged=5,
            tolerance=0.01,
            base_loss=1.0,
            reached={step: (1.0 + to_gain, 0.001) for step, *_ in cells},
            cells=[
                Continuation(step, layers, 1 + more, more, error, 1e8, 0.1)
                for step, layers, more, error in sorted(cells)
            ],
        )

    yield build


def test_settled_means_converged_from_then_on(made: Callable[..., ConvergenceMap]) -> None:
    """A loss that is lower is not worse; a cell that passes before one that does not proves nothing."""
    found = made(
        *((step, 1, more, 0.001) for step, more in ((10, 0.2), (20, 0.01), (30, -0.3))),
        *((step, 2, more, 0.001) for step, more in ((10, 0.0), (20, 0.02), (30, 0.005))),
        *((step, 5, more, 0.001) for step, more in ((10, 0.3), (20, 0.2), (30, 0.1))),
    )
    assert found.settled() == {1: 20, 2: 30, 5: None}
    assert [found.clear(cell) for cell in found.cells if cell.layers == 1] == [True, False, True]


def test_the_schedule_freezes_no_block_before_it_had_settled(made: Callable[..., ConvergenceMap]) -> None:
    since = {1: 20, 2: 30, 4: 35, 5: 80}
    found = made(
        *(
            (step, layers, 0.0 if step >= first else 0.2, 0.001)
            for layers, first in since.items()
            for step in range(10, 90, 5)
        )
    )
    suggested = found.schedule()
    assert suggested == Schedule(pixel_steps=20, interval=15, deepest=5)
    assert suggested is not None
    assert all(suggested.pixel_steps + suggested.interval * (k - 1) >= first for k, first in since.items())
    assert advice(found)[1] == "--steps 100 --pixel-steps 20 --interval 15 --deepest 5"


def test_a_map_that_could_not_fail_suggests_nothing(made: Callable[..., ConvergenceMap]) -> None:
    """Where the run's own loss had no more to fall than the tolerance, any freezing passes."""
    cells = [(10, 1, 0.0, 0.001), (20, 1, 0.0, 0.001)]
    assert made(*cells).schedule() is not None and not bluntness(made(*cells))
    blunt = made(*cells, to_gain=0.005)
    assert blunt.blunt() == [10, 20] and blunt.schedule() is None and "any freezing" in bluntness(blunt)[0]
    noisy = replace(blunt, reached={10: (1.005, 0.1), 20: (1.005, 0.1)})
    assert noisy.blunt() == []  # nobody knows


def test_no_schedule_without_a_depth_that_settles(made: Callable[..., ConvergenceMap]) -> None:
    found = made((10, 0, 0.0, 0.0), (10, 1, 0.2, 0.001), (10, 6, 0.0, 0.001))
    assert found.schedule() is None and "later steps" in advice(found)[0]
