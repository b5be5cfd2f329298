"""A finished run taken up again at one of its checkpoints: knobs that decide all as it did, and what that costs."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tubelet.analysis.cost import cost, with_held
from tubelet.errors import UserError
from tubelet.export.weights import load_encoder
from tubelet.files import read_json
from tubelet.methods.method import Method
from tubelet.nn.tokens import name_positions
from tubelet.nn.vit import ViT
from tubelet.quiet import quietly
from tubelet.recipes import own_knobs, run_recipe
from tubelet.recipes.fit import Fit
from tubelet.recipes.knobs import Knobs
from tubelet.recipes.run import saved_config, write_config
from tubelet.train import checkpoint
from tubelet.types import Grid, Moment


@dataclass(frozen=True)
class Base:
    """A finished run that can be taken up again at ``kept`` (step -> checkpoint; its last step is not among them)."""

    folder: Path
    recipe: str
    knobs: dict[str, Any]
    chosen: dict[str, Any]
    data_digest: str
    ran: dict[str, Any]
    encoder: ViT
    digest: str
    kept: dict[int, Path]

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.ran["steps"]


def read_base(run: Path) -> Base:
    """The finished run in ``run``; raises UserError if there is none, or none that can be taken up again."""
    if not (run / "config.yaml").is_file():
        raise UserError(
            f"{run} holds no run (no config.yaml in it); name the folder given to pretrain as out"
        )
    ran = read_json(run / "run.json") if (run / "run.json").is_file() else {}
    if not ran.get("finished"):
        raise UserError(
            f"{run} is not finished; go on with it (tubelet pretrain RECIPE --out {run} --resume)"
        )
    loaded = load_encoder(run)
    assert isinstance(loaded.model, ViT)
    recipe = loaded.provenance["recipe"]
    config = saved_config(run, recipe)
    assert config is not None
    _refuse_other_version(run, config)
    if config["knobs"]["freeze_layers"]:
        raise UserError(
            f"{run} froze its first {config['knobs']['freeze_layers']} blocks from the start; the map wants a run that "
            "trains them all"
        )
    there = {checkpoint.step_of(path): path for path in checkpoint.found(run / "checkpoints")}
    if ran["steps"] not in there:
        raise UserError(
            f"{run / 'checkpoints'} lacks the run's last checkpoint; train it again, or copy it back"
        )
    kept = {step: path for step, path in there.items() if step < ran["steps"]}
    if not kept:
        raise UserError(
            f"{run} kept no checkpoint but its last, so there is no step to freeze from; train with --keep-every N (a "
            "multiple of --save-every)"
        )
    text = (run / "config.yaml").read_bytes() + loaded.digest.encode()
    digest = hashlib.blake2b(text, digest_size=8).hexdigest()
    numbers = config["knobs"], config["chosen"], config["data_digest"]
    return Base(run, recipe, *numbers, ran, loaded.model, digest, kept)


def continuation(base: Base, step: int, layers: int, out: Path) -> dict[str, Any]:
    """Knobs of a run in ``out`` that goes on from ``step`` with the first ``layers`` blocks frozen, all else as it was.

    They are the run's own, with every number that it had chosen given. With no layers frozen it equals the run.
    """
    known = {field.name for field in fields(Knobs)} | set(own_knobs(base.recipe))
    knobs = {name: value for name, value in {**base.knobs, **_numbers(base.chosen)}.items() if name in known}
    if base.knobs["init_from"] is not None:
        # only one of the two may be given; what the encoder brought along is in the checkpoint but for its positions
        name, wave = name_positions(base.encoder.positions)
        knobs |= {"init_from": None, "init_which": None, "init_heads": None, "init_allow_partial": False}
        knobs |= {"positions": name, "positions_base": wave}
    if base.knobs.get("teacher_digest"):
        # the run's own copy: of stages, only the last is taken up again, and no other folder is needed
        knobs["teacher"] = str(base.folder / "encoder-teacher")
        knobs |= {"teacher_model": None} if "teacher_model" in knobs else {}
    processes = read_json(base.kept[step] / "state.json")["processes"]
    return {
        **{name: tuple(value) if isinstance(value, list) else value for name, value in knobs.items()},
        "out": str(out),
        "branch_from": str(base.kept[step]),
        "freeze_layers": layers,
        "micro_batches": base.knobs["micro_batches"] * processes,
        "precision": base.ran["precision"],
        "keep": 1,
        "keep_every": 0,
        "health_every": base.steps,
        "tensorboard": False,
    }


def prices(base: Base, depths: set[int], data: str | None, device: str | None) -> Callable[[int, int], float]:
    """(frozen layers, one of ``depths``; step) -> FLOPs of a continuation from that step on, as it will be charged.

    data, device: where they are not the run's. Raises UserError for whatever keeps the run from being resumed.
    """
    method = _method(base, data, device)
    t, h, w = method.encoder.patch
    crop = base.chosen["crop_size"]
    grid = Grid(base.knobs["frames"] // t, crop // h, crop // w)
    works = [tuple(method.work(grid, Moment(step, base.steps))) for step in range(base.steps)]
    each = {
        (layers, work): cost(with_held(work, method.encoder.section(0, layers) if layers else ())).total
        for layers in depths
        for work in set(works)
    }

    def price(layers: int, begin: int) -> float:
        counts = Counter(works[begin:])
        return base.chosen["batch_size"] * sum(each[layers, work] * n for work, n in counts.items())

    return price


def _method(base: Base, data: str | None, device: str | None) -> Method:
    """The run's method, from resuming the run where there is nothing left to do, in a folder of links to it.

    Nothing is trained, and nothing is written into the run's folder. What it is good for besides: a run whose data,
    knobs or version are not what they were is refused here, before hours are spent.
    """
    knobs = {**base.knobs, **_numbers(base.chosen)}
    if base.knobs.get("teacher_digest") and base.knobs["teacher"] is None:
        knobs["steps"] = base.knobs["steps"]  # of both stages
    with TemporaryDirectory() as place:
        twin = Path(place) / base.folder.resolve().name
        newest = checkpoint.step_path(base.folder / "checkpoints", base.steps)
        for path in (newest, base.folder / "teacher"):
            link = twin / path.relative_to(base.folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                link.symlink_to(path.resolve(), target_is_directory=True)
        write_config(twin, base.recipe, knobs, base.chosen, base.data_digest)
        shutil.copy(base.folder / "metrics.jsonl", twin)
        try:
            with quietly():
                done = run_recipe(base.recipe, out=str(twin), resume=True, **where(data, device))
        except UserError as error:
            raise UserError(str(error).replace(str(twin), str(base.folder))) from error
        return done.method


def _numbers(chosen: dict[str, Any]) -> dict[str, Any]:
    """What a run had chosen, as the knobs that choose it again."""
    same = ("model", "steps", "batch_size", "crop_size", "fps", "frame_step", "warmup")
    return {**{name: chosen[name] for name in same}, "lr": chosen["lr"]["peak"]}


def where(data: str | None, device: str | None) -> dict[str, Any]:
    """What was given of the two knobs that change no number."""
    return {name: value for name, value in (("data", data), ("device", device)) if value is not None}


def resolved(chosen: dict[str, Any] | None) -> dict[str, Any] | None:
    """What was chosen, without why, and without what follows from the data."""
    return chosen and {name: value for name, value in chosen.items() if name not in ("reasons", "windows")}


def _refuse_other_version(run: Path, config: dict[str, Any]) -> None:
    """Raises UserError if the knobs that all runs have are others now. A recipe's own are compared when it resumes."""
    names = {
        "knobs": {field.name for field in fields(Knobs)} - set(config["knobs"]),
        "chosen": {field.name for field in fields(Fit)} ^ set(config["chosen"]),
    }
    for part, other in names.items():
        if other:
            raise UserError(
                f"{run} was trained by another version of tubelet: its {part} and this version's differ in "
                f"{', '.join(sorted(other))}; train it again with this one"
            )
