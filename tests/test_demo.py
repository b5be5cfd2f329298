"""The demo, small: interrupted and gone on with, its numbers, its page, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tubelet import demo
from tubelet.data.manifest import read_manifest
from tubelet.errors import UserError
from tubelet.recipes import run
from tubelet.train import loop

STEPS = 4
LABELLED = 40


@dataclass(frozen=True)
class Done:
    """A demo that was interrupted before its probes, and then run again."""

    out: Path
    page: Path
    before: dict[str, bytes]  # what the first session had trained
    seconds: dict[str, float]  # and what it took


def trained(out: Path) -> dict[str, bytes]:
    """The logs and weights of both stages."""
    files = [file for stage in ("teacher", "student") for file in (out / stage).rglob("*.safetensors")]
    files += [out / stage / "metrics.jsonl" for stage in ("teacher", "student")]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """The demo with a hundredth of its steps and few clips."""
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"TRAINING": 40, "LABELLED": LABELLED, "PER_CLASS": 3, "DRAWS": 2}
        for name, value in sizes.items():
            patch.setattr(demo, name, value)
        patch.setattr(demo, "SAME", {**demo.SAME, "batch_size": 8, "warmup": 1})
        stages = {stage: {**knobs, "steps": STEPS} for stage, knobs in demo.STAGES.items()}
        patch.setattr(demo, "STAGES", stages)
        # the pages of the two stages have tests of their own, and drawing them takes longer than training here
        patch.setattr(run, "run_report", lambda folder: folder / "report.html")
        yield


@pytest.fixture(scope="module")
def done(small: None, tmp_path_factory: pytest.TempPathFactory) -> Done:
    out = tmp_path_factory.mktemp("demo") / "out"

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "extract", interrupted)
        with pytest.raises(KeyboardInterrupt):
            demo.demo(out)
    assert not (out / "report.html").exists() and not (out / "demo.json").exists()
    before, seconds = trained(out), json.loads((out / "demo-parts.json").read_text())

    def trains_again(*_: object, **__: object) -> None:
        raise AssertionError("a stage that was finished is trained again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "take_step", trains_again)
        page = demo.demo(out)
    return Done(out, page, before, seconds)


@pytest.fixture(scope="module")
def told(done: Done) -> dict[str, Any]:
    return json.loads((done.out / "demo.json").read_text())


def test_a_demo_that_is_run_again_trains_nothing_twice(done: Done, told: dict[str, Any]) -> None:
    assert trained(done.out) == done.before
    for stage in ("teacher", "student"):
        lines = (done.out / stage / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(STEPS + 1))  # the last: health
    # what the first session took is not forgotten
    assert all(told["seconds_by_part"][part] > spent for part, spent in done.seconds.items())
    assert "probing features" in told["seconds_by_part"].keys() - done.seconds.keys()


def test_the_numbers(told: dict[str, Any]) -> None:
    assert {"table", "seconds", "peak_memory_bytes", "flops"} <= told.keys()
    encoders = {"student", "teacher", "random encoder", "raw pixels"}
    assert set(told["table"]) == {"motion", "appearance"}
    for rows in told["table"].values():
        assert set(rows) == encoders
        for scores in rows.values():
            assert set(scores) == {"linear", "kNN"}
            assert all(0 <= score["mean"] <= 1 and score["sd"] >= 0 for score in scores.values())
    assert told["chance"] == {"motion": 0.2, "appearance": 0.25}
    assert told["seconds"] == pytest.approx(sum(told["seconds_by_part"].values()))
    assert told["flops"] == sum(flops or 0 for flops in told["flops_by_part"].values()) > 0
    assert told["peak_memory_bytes"] > 2**27
    assert {part: verdict["state"] != "" for part, verdict in told["verdict"].items()} == {
        "teacher": True,
        "student": True,
    }


def test_the_page_stands_alone(done: Done) -> None:
    page = done.page.read_text(encoding="utf-8")
    assert done.page == done.out / "report.html"
    linked = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert [link[:30] for link in linked if not link.startswith(("data:", "#"))] == []
    assert not re.search(r"url\(\s*['\"]?http|@import|<script[^>]+src|<link", page)
    for words in ("student", "raw pixels", "motion", "appearance"):
        assert words in page


def test_labels_are_for_the_probes_alone(done: Done) -> None:
    """The list that is trained on has no labels; the labelled clips are other files, half of them the test."""
    unlabelled = read_manifest(done.out / "manifest.csv")
    assert all(video.label is None and not video.extra for video in unlabelled.videos)
    labelled = read_manifest(done.out / "labelled.csv")
    assert len(unlabelled) == 40 and len(labelled) == LABELLED
    assert not {v.path for v in unlabelled.videos} & {v.path for v in labelled.videos}
    for split in ("train", "test"):
        half = [video for video in labelled.videos if video.split == split]
        motions = [video.extra["motion"] for video in half]
        assert len(half) == LABELLED // 2 and {motions.count(name) for name in motions} == {LABELLED // 10}
    motion = demo.relabelled(labelled, "motion")
    assert [v.label for v in motion.videos] == [v.extra["motion"] for v in labelled.videos]
    with pytest.raises(UserError, match=r'no column "colour".*appearance.*motion'):
        demo.relabelled(labelled, "colour")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"not empty and holds no demo.*--out"):
        demo.demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
