"""The worked example of docs/add_a_method.md is executed: contract, training, a resume, and its recipe."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from tubelet.doctor import write_numbered
from tubelet.methods.method import Method
from tubelet.recipes.knobs import Knobs
from tubelet.train.report import read_metrics
from tubelet.types import Batch, Moment

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def page() -> types.ModuleType:
    """All Python blocks of the page, run one after the other as one module."""
    text = (DOCS / "add_a_method.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(blocks) == 3
    module = types.ModuleType("add_a_method")
    sys.modules["add_a_method"] = module
    for block in blocks:
        exec(compile(block, "add_a_method", "exec"), module.__dict__)
    return module


def test_the_target_is_last_frame_minus_first(page):
    clip = torch.zeros(2, 3, 4, 8, 16)
    clip[:, :, 1] = 5.0  # the last frame of the first tubelets
    ids = torch.tensor([[0, 1], [1, 2]])
    target = page.difference(clip, ids, (2, 8, 8))
    assert target.shape == (2, 2, 3 * 8 * 8)
    assert target[:, 0].unique().tolist() == [5.0]
    assert target[1, 1].unique().tolist() == [0.0]


def test_it_keeps_the_contract(page):
    method, moment = page.build(), Moment(0, 10)
    assert isinstance(method, Method)
    batch: Batch = next(page.Dawns().batches(3))
    for loss in method(batch, moment):
        loss.value.backward()
    moving = {p for module in method.trainable(moment) for p in module.parameters()}
    assert all((p.grad is not None) == (p in moving) for p in method.parameters())
    (encode, decode) = method.work(method.encoder.grid(batch.clip), moment)
    assert encode.context + decode.target == method.encoder.grid(batch.clip).n


def test_it_trains_and_a_resumed_run_is_the_same(page, tmp_path):
    whole = page.try_it(tmp_path / "whole")
    losses = [row["train/loss"] for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")]
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])

    page.try_it(tmp_path / "cut")
    checkpoints = tmp_path / "cut" / "checkpoints"
    (checkpoints / "step-000024").rename(tmp_path / "gone")  # as if it had been killed after step 16
    assert (checkpoints / "step-000016").is_dir()
    again = page.try_it(tmp_path / "cut", resume=True)
    for one, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_its_recipe_runs_on_videos(page, tmp_path):
    (tmp_path / "clips").mkdir()
    for number in range(4):
        write_numbered(tmp_path / "clips" / f"{number}.mp4")
    knobs = Knobs(
        data=str(tmp_path / "clips"),
        out=str(tmp_path / "run"),
        model="48x2x3",
        steps=2,
        batch_size=4,
        frames=4,
        crop_size=32,
        workers=0,
        device="cpu",
    )
    done = page.frame_difference(knobs, decoder_depth=1)
    assert (done.folder / "encoder" / "encoder.json").is_file()
    assert "frame-difference" in (done.folder / "report.html").read_text()


@pytest.mark.parametrize(
    "page", [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.stem
)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    links = [link for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) if "://" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_the_journey_names_what_is_there():
    text = (DOCS / "one_page.md").read_text(encoding="utf-8")
    named = re.findall(r"\[`([\w.]+)`\]\(\.\./(src/[\w/]+\.py)\)", text)
    assert len(named) > 15
    for name, file in named:
        last = name.split(".")[-1]
        source = (DOCS.parent / file).read_text(encoding="utf-8")
        assert re.search(rf"(def|class) {last}\b", source) or Path(file).stem == last, (
            f"{name} is not in {file}"
        )
