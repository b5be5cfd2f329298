"""``tubelet demo``: a rendered world, SALT's two stages, frozen probes, and a page to look at. Five minutes."""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tubelet.analysis.cost import forward_flops
from tubelet.data.augment import to_pictures
from tubelet.data.manifest import Manifest, Video, read_manifest
from tubelet.data.scan import scan
from tubelet.data.synthetic import APPEARANCES, MOTIONS, write_world
from tubelet.errors import UserError
from tubelet.evaluate.features import Features, extract
from tubelet.evaluate.score import score
from tubelet.evaluate.source import Views, read_views
from tubelet.evaluate.tasks import Task, read_task
from tubelet.export.weights import Encoder, Geometry, load_encoder
from tubelet.files import write_json, write_text
from tubelet.masks import RandomMask
from tubelet.methods.videomae import VideoMAE
from tubelet.nn.tokens import gather, patchify, unpatchify
from tubelet.recipes import run_recipe
from tubelet.recipes.run import Finished
from tubelet.report.demo import CostRow, DemoResult, Reconstruction, demo_report
from tubelet.report.filmstrip import Strip
from tubelet.report.history import load_metrics
from tubelet.report.table import Score
from tubelet.train.checkpoint import found
from tubelet.train.spent import peak_memory

TRAINING, LABELLED = 1200, 600  # clips; half of the labelled ones are drawn from, half are tested on
TRAINING_SEED, LABELLED_SEED = 1000, 3000
LABELLED_SIZE = 36  # pixels: evaluation then cuts its 32 from the centre without rescaling
PER_CLASS, DRAWS = 10, 5
SAME: dict[str, Any] = {
    "model": "96x4x3",
    "batch_size": 32,
    "frames": 8,
    "frame_step": 1,
    "crop_size": 32,
    "patch_size": 8,
    "area": (
        4 / 9,
        4 / 9,
    ),  # 32 of 48 pixels: crops move, they never rescale, which would change speed and texture
    "aspect": (1.0, 1.0),
    "flip": 0.0,  # a mirror turns left into right
    "mask": "random",
    "mask_kinds": 1,
    "init_std": 0.08,
    "weight_decay": 0.05,
    "warmup": 60,
    "clip": 1.0,
    "workers": 1,
    "keep": 1,
    "seed": 0,
}
STAGES: dict[str, dict[str, Any]] = {
    "teacher": {"steps": 1000, "lr": 3e-3, "mask_ratio": 0.5, "decoder_dim": 96, "decoder_depth": 1},
    "student": {"steps": 600, "lr": 2e-3, "mask_ratio": 0.7, "predictor_dim": 96, "predictor_depth": 1},
}
TASKS = {
    "motion": "five classes that no single frame tells apart: still, or drifting right, left, down or up.",
    "appearance": "four classes of texture, the same in every frame: fine, coarse, tall or wide grain.",
}
BASELINES = ("random encoder", "raw pixels")
WORLD = (
    f"{TRAINING:,} rendered H.264 videos without labels: two-tone textures that stand still or drift. A small encoder "
    "learned from them twice (SALT): first to fill in hidden pixels, then a new one to predict what the first one, "
    "frozen, makes of hidden patches."
)
PROTOCOL = (
    f"Tokens of the last layer are averaged over the whole clip; {PER_CLASS} labelled clips per class are drawn "
    f"{DRAWS} times from {LABELLED // 2}, and {LABELLED // 2} others are the test. Linear: logistic regression on "
    "standardised features, its penalty chosen among the labelled clips. kNN: 5 nearest by cosine. Raw pixels are "
    "not averaged but laid end to end, each tubelet as 2x2 averages: the better form for them."
)


@dataclass
class Clock:
    """Seconds by part, kept in a file so that a demo that is run again still knows what its parts took."""

    file: Path
    seconds: dict[str, float]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds what happens inside to ``name``."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
        write_json(self.file, self.seconds)


def demo(out: Path) -> Path:
    """Runs the demo in ``out`` and returns its page, ``out/report.html``; ``out/demo.json`` has the numbers.

    Parts that an earlier, interrupted demo finished there are not done again.
    Raises UserError if ``out`` holds something else.
    """
    began = out / "demo-parts.json"
    if out.exists() and any(out.iterdir()) and not began.exists():
        raise UserError(f"{out} is not empty and holds no demo; choose another folder with --out")
    out.mkdir(parents=True, exist_ok=True)
    clock = Clock(began, _read_seconds(began))
    torch.set_num_threads(min(2, torch.get_num_threads()))  # matrices this small gain nothing from more
    with clock.part("rendering videos"):
        _render(out / "videos", out / "unlabelled.csv", out / "labelled.csv")
    with clock.part("scanning them"):
        unlabelled = scan(out / "unlabelled.csv", out / "manifest.csv")
        labelled = read_manifest(out / "labelled.csv")
    shared = {**SAME, "data": str(out / "manifest.csv"), "cache_dir": str(out / "frames")}
    with clock.part("stage 1: pixels"):
        teacher = _stage("salt-teacher", out / "teacher", {**shared, **STAGES["teacher"]})
    with clock.part("stage 2: latents"):
        stage2 = {**shared, **STAGES["student"], "teacher": str(out / "teacher")}
        student = _stage("salt", out / "student", stage2)
    with clock.part("probing features"):
        encoders = {
            "student": load_encoder(out / "student"),
            "teacher": load_encoder(out / "teacher"),
            "random encoder": load_encoder(f"random:{out / 'student'}@1"),
            "raw pixels": load_encoder(f"pixels:{out / 'student'}"),
        }
        features = {
            name: extract(
                e, labelled.videos, pool="flat" if name == "raw pixels" else "mean", cache=out / "cache"
            )
            for name, e in encoders.items()
        }
        table = {task: _probe(features, relabelled(labelled, task)) for task in TASKS}
    costs = _costs(clock.seconds, {"stage 1: pixels": teacher, "stage 2: latents": student}, encoders)
    memory = peak_memory(torch.device("cpu")) + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    result = DemoResult(
        table=table,
        baselines=BASELINES,
        chance={"motion": 1 / len(MOTIONS), "appearance": 1 / len(APPEARANCES)},
        tasks=TASKS,
        protocol=PROTOCOL,
        runs={
            "teacher (pixels)": load_metrics(out / "teacher" / "metrics.jsonl"),
            "student (latents)": load_metrics(out / "student" / "metrics.jsonl"),
        },
        reconstructions=_reconstructions(teacher, labelled, encoders["teacher"].geometry),
        true_scale=True,
        neighbours=_neighbours(features["student"], labelled),
        costs=costs,
        seconds=sum(clock.seconds.values()),
        peak_memory=memory,
        machine=f"{os.cpu_count()} cores, {platform.machine()}, {torch.get_num_threads()} threads",
        world=WORLD,
        command=f"tubelet demo --out {out}",
        notes=(f"{len(unlabelled)} videos were trained on; labels were read by the probes alone.",),
    )
    page = demo_report(result, out / "report.html")
    write_json(
        out / "demo.json",
        {
            "table": {
                task: {e: {p: s._asdict() for p, s in row.items()} for e, row in rows.items()}
                for task, rows in table.items()
            },
            "chance": result.chance,
            "seconds": result.seconds,
            "seconds_by_part": clock.seconds,
            "peak_memory_bytes": memory,
            "flops": sum(row.flops or 0 for row in costs),
            "flops_by_part": {row.part: row.flops for row in costs},
            "verdict": {"teacher": asdict(teacher.verdict), "student": asdict(student.verdict)},
            "machine": result.machine,
        },
    )
    _tell(result, page)
    return page


def relabelled(manifest: Manifest, column: str) -> Manifest:
    """The same videos, labelled by another column of their list; raises UserError if there is none."""
    known = sorted({name for video in manifest.videos for name in video.extra})
    if column not in known:
        raise UserError(f'{manifest.source} has no column "{column}"; besides the usual ones it has {known}')
    return replace(manifest, videos=tuple(replace(v, label=v.extra.get(column)) for v in manifest.videos))


def _render(folder: Path, unlabelled: Path, labelled: Path) -> None:
    """Two sets that share nothing; only the labelled one's list has labels, and says who may be learned from."""
    train = write_world(folder / "unlabelled", TRAINING, TRAINING_SEED)
    _write_list(unlabelled, [{"path": row["path"]} for row in train])
    known = write_world(folder / "labelled", LABELLED, LABELLED_SEED, LABELLED_SIZE)
    halves = ["train"] * (LABELLED // 2) + ["test"] * (LABELLED // 2)
    _write_list(labelled, [{**row, "split": split} for row, split in zip(known, halves, strict=True)])


def _write_list(file: Path, rows: list[dict[str, str]]) -> None:
    lines = [",".join(rows[0])]
    for row in rows:
        path = os.path.relpath(row["path"], file.parent)
        lines.append(",".join([path, *(value for name, value in row.items() if name != "path")]))
    write_text(file, "\n".join(lines) + "\n")


def _stage(recipe: str, folder: Path, knobs: dict[str, Any]) -> Finished:
    return run_recipe(recipe, out=str(folder), resume=bool(found(folder / "checkpoints")), **knobs)


def _probe(features: dict[str, Features], manifest: Manifest) -> dict[str, dict[str, Score]]:
    """encoder -> probe -> accuracy over label draws; classes are balanced, so macro recall is accuracy."""
    rows = {}
    for name, table in features.items():
        task = read_task(manifest.videos, str(manifest.source), "error", list(table.excluded))
        x = table.pooled()
        rows[name] = {
            "linear": _score(x, task, "linear", "macro_recall"),
            "kNN": _score(x, task, "knn", "macro_recall@k5"),
        }
    return rows


def _score(x: np.ndarray, task: Task, kind: Any, metric: str) -> Score:
    reached = score(x, task, kind, per_class=PER_CLASS, draws=DRAWS).metrics[metric]
    return Score(reached.value, reached.sd, DRAWS)


def _reconstructions(teacher: Finished, manifest: Manifest, geometry: Geometry) -> list[Reconstruction]:
    """Three clips, one of each kind of motion, with half of their tokens hidden."""
    method = teacher.method
    assert isinstance(method, VideoMAE)
    method.eval()
    videos = [_first(manifest, "motion", motion) for motion in ("right", "up", "still")]
    clips = torch.cat([read_views(video, geometry, Views()) for video in videos])
    patch, grid = method.encoder.patch, method.encoder.grid(clips)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        mask = RandomMask(STAGES["teacher"]["mask_ratio"])(grid, len(clips), torch.device("cpu"))[0]
        predicted = method.predict(clips, mask)
    pixels = patchify(clips, patch)
    hidden = gather(pixels, mask.target)
    place = mask.target.unsqueeze(-1).expand_as(hidden)
    assert method.normalise == "tubelet"
    restored = predicted * hidden.std(-1, keepdim=True) + hidden.mean(-1, keepdim=True)
    grey = torch.zeros_like(hidden)
    shown = [
        to_pictures(unpatchify(patches, grid, patch), geometry.mean, geometry.std)
        for patches in (pixels, pixels.scatter(1, place, grey), pixels.scatter(1, place, restored))
    ]
    return [
        Reconstruction(f"{video.extra['appearance']}, {video.extra['motion']}", *(part[i] for part in shown))
        for i, video in enumerate(videos)
    ]


def _neighbours(features: Features, manifest: Manifest) -> list[list[Strip]]:
    """Four queries of different motion and appearance, each with its four nearest clips."""
    x = torch.nn.functional.normalize(torch.from_numpy(features.pooled()), dim=1)
    rows = features.rows
    wanted = [("right", "fine"), ("up", "tall"), ("still", "coarse"), ("down", "wide")]
    groups = []
    for motion, appearance in wanted:
        query = next(
            i
            for i, row in enumerate(rows)
            if (manifest.videos[row].extra["motion"], manifest.videos[row].extra["appearance"])
            == (motion, appearance)
        )
        likeness = x @ x[query]
        near = likeness.topk(5).indices.tolist()
        assert near[0] == query
        groups.append([_strip(manifest.videos[rows[i]], float(likeness[i]), i == query) for i in near])
    return groups


def _strip(video: Video, likeness: float, query: bool) -> Strip:
    geometry = Geometry(8, None, 1, 48, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    clip = to_pictures(read_views(video, geometry, Views()), geometry.mean, geometry.std)[0]
    label = f"{video.extra['appearance']}, {video.extra['motion']}"
    return Strip("query" if query else f"cosine {likeness:.2f}", clip, label)


def _first(manifest: Manifest, column: str, value: str) -> Video:
    return next(video for video in manifest.videos if video.extra[column] == value)


def _costs(
    seconds: dict[str, float], stages: dict[str, Finished], encoders: dict[str, Encoder]
) -> list[CostRow]:
    flops: dict[str, float] = {part: stage.summary.spent.total_flops for part, stage in stages.items()}
    each = encoders["student"].model
    tokens = (SAME["frames"] // 2) * (SAME["crop_size"] // SAME["patch_size"]) ** 2
    flops["probing features"] = 3.0 * LABELLED * forward_flops(each, tokens)
    return [CostRow(part, spent, flops.get(part)) for part, spent in seconds.items()]


def _read_seconds(file: Path) -> dict[str, float]:
    return json.loads(file.read_text()) if file.exists() else {}


def _tell(result: DemoResult, page: Path) -> None:
    for task, rows in result.table.items():
        table = Table(
            "encoder", *next(iter(rows.values())), title=f"{task} (chance {result.chance[task]:.2f})"
        )
        for name, scores in rows.items():
            table.add_row(name, *(f"{s.mean:.2f} ± {s.sd:.2f}" for s in scores.values()))
        Console().print(table)
    print(f"{result.seconds:.0f} s, {result.peak_memory / 2**30:.2f} GiB at most; open {page}")
