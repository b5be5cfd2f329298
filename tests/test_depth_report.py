"""The page of an analysis by layers: it shows what analysis.json says and nothing else, gaps as gaps."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markup import Tags, assert_asks_for_nothing
from matplotlib.axes import Axes
from matplotlib.cbook import is_math_text
from matplotlib.figure import Figure
from matplotlib.image import imread

from tubelet.errors import UserError
from tubelet.report import curves, heatmap
from tubelet.report.curves import PRINT, Line, Panel, draw_panels, panels_picture, thin
from tubelet.report.depth.page import depth_report
from tubelet.report.depth.tables import write_tables
from tubelet.report.heatmap import Heatmap, draw_heatmaps, influence_picture
from tubelet.report.page import Page
from tubelet.report.scatter import Scatter, draw_scatters

SCORES = {"linear": 0.3, "macro_recall": 0.28, "map": 0.12, "hit@1": 0.3, "hit@5": 0.5, "hit@10": 0.65}
TOKENS = {
    "patch_similarity": 0.2,
    "occdrop": 0.3,
    "occdrop_grating": 0.15,
    "occdrop_double": 0.27,
    "attention_space": 14.0,
    "attention_time": 4.0,
    "attention_entropy": 0.8,
    "token_norm": 9.0,
    "token_norm_sd": 1.5,
    "token_outliers": 0.01,
}
SPECTRUM = {
    "effective_rank": 30.0,
    "participation_ratio": 12.0,
    "isotropy": 20.0,
    "components_90": 25.0,
    "uniformity": -2.1,
    "rankme": 41.0,
    "lidar": 18.0,
    "condition_number": 1e4,
    "norm_mean": 8.0,
    "norm_sd": 0.7,
    "cosine_mean": 0.4,
    "cosine_sd": 0.2,
    "euclid_mean": 7.0,
    "euclid_sd": 1.1,
}
TARGETS = {
    "grating": ["spatial_frequency", "orientation", "temporal_frequency", "contrast", "colour"],
    "double": [
        "left_frequency",
        "right_frequency",
        "frequency_difference",
        "higher_side",
        "frequency_match",
        "left_orientation",
        "right_orientation",
        "orientation_delta",
        "orientation_match",
    ],
}
NAMES = {
    "linear": "Linear decodability",
    "map": "Retrieval mAP",
    "grating": "Single gratings",
    "double": "Double gratings",
    "cka_linear": "Linear CKA",
    "cka_debiased": "Debiased CKA",
    "cka_rbf": "RBF-CKA",
    "patch_similarity": "Patch similarity",
    "attention_space": "Attention distance in space",
    "effective_rank": "Effective rank",
    "geometry_vs_gain": "Geometry against gain",
}


def example(
    names: tuple[str, ...] = ("end-to-end", "blockwise", "salt"), depth: int = 12, seed: int = 0
) -> dict:
    """An analysis with everything in it, some of it undefined."""
    return of_depths({name: depth for name in names}, seed)


def interval(value: float, below: float) -> dict[str, float]:
    """Twice as far up as down."""
    return {"value": value, "low": value - below, "high": value + 2 * below}


def fits(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A regression line and its correlation, of all points and of each transition that has two."""
    groups = {"all": points}
    for point in points:
        groups.setdefault(f"{point['from']} -> {point['to']}", []).append(point)
    found = []
    for transition, some in groups.items():
        pairs = [(point["cka"], point["gain"]) for point in some if point["gain"] is not None]
        if len(pairs) > 1:
            x, y = np.array(pairs).T
            slope, intercept = np.polyfit(x, y, 1)
            about = {"slope": slope, "intercept": intercept, "r": np.corrcoef(x, y)[0, 1]}
            found.append({"transition": transition, **about, "n": len(pairs)})
    return found


def of_depths(depths: dict[str, int], seed: int = 0) -> dict:
    draw = np.random.default_rng(seed)
    layers: list[dict[str, Any]] = []
    for turn, (name, depth) in enumerate(depths.items()):
        for layer in range(depth + 1):
            share = layer / depth

            def add(metric: str, value: float, target: str | None = None, wide: float = 0.0) -> None:
                # one measure is undefined at two layers of the first encoder, one everywhere
                gone = (metric == "lidar") or (metric == "linear" and turn == 0 and layer in (4, 5))  # noqa: B023
                shown = None if gone else value
                layers.append(
                    {
                        "encoder": name,  # noqa: B023
                        "layer": layer,  # noqa: B023
                        "metric": metric,
                        "target": target,
                        "value": shown,
                        "low": None if gone or not wide else value - wide,
                        "high": None if gone or not wide else value + 2 * wide,
                        "undefined": f"{metric} has no value here" if gone else None,
                    }
                )

            rise = math.sin(2.2 * share + 0.3 * turn) + 0.03 * draw.normal()
            for metric, top in SCORES.items():
                add(metric, top * (0.4 + 0.6 * rise), wide=0.02)
            for metric, targets in TARGETS.items():
                add(metric, 0.7 + 0.1 * rise, wide=0.01)
                for target in targets:
                    add(metric, float(np.clip(0.6 + 0.2 * rise + 0.1 * draw.normal(), 0, 1)), target)
            for metric, size in (TOKENS | SPECTRUM).items():
                if layer or not metric.startswith("attention"):
                    add(metric, size * (0.6 + 0.5 * rise + 0.05 * draw.normal()))
            add("linear_occluded", 0.15 + 0.1 * rise, wide=0.02)
    every = [(name, layer) for name, depth in depths.items() for layer in range(depth)]
    transitions = [
        {
            "encoder": name,
            "from": layer,
            "to": layer + 1,
            "cka_linear": float(0.85 + 0.14 * layer / depths[name] + 0.01 * draw.normal()),
            "cka_debiased": None
            if layer == 0
            else float(0.8 + 0.15 * layer / depths[name] + 0.01 * draw.normal()),
            "cka_rbf": float(0.82 + 0.15 * layer / depths[name] + 0.01 * draw.normal()),
            "gain_linear": interval(0.03 - 0.003 * layer + 0.01 * draw.normal(), 0.02),
            "gain_map": None if layer == 0 else interval(0.01 + 0.005 * draw.normal(), 0.01),
        }
        for name, layer in every
    ]
    pairs = [(a, b) for i, a in enumerate(depths) for b in list(depths)[i:]]
    maps = []
    for metric in ("cka_linear", "cka_debiased", "cka_rbf"):
        for a, b in pairs:
            one, other = np.arange(depths[a] + 1) / depths[a], np.arange(depths[b] + 1) / depths[b]
            values = (np.exp(-1.2 * np.abs(one[:, None] - other[None])) * (1 if a == b else 0.8)).tolist()
            if metric == "cka_debiased":
                values[0][-1] = None
            sides = {"layers_one": list(range(len(one))), "layers_other": list(range(len(other)))}
            maps.append({"one": a, "other": b, "metric": metric, **sides, "values": values})
    points = [
        {key: entry[key] for key in ("encoder", "from", "to")}
        | {"cka": entry["cka_linear"], "gain": entry["gain_map"] and entry["gain_map"]["value"]}
        for entry in transitions
    ]
    steps = [0, 200, 400, 800, 1200, 1600, 2000]
    return {
        "about": {
            "tubelet": "0.1.0",
            "command": "tubelet analyze a b --data clips --out inside",
            "data": {
                "name": "ucf101_20",
                "source": "clips",
                "clips": 197,
                "classes": [f"class {n}" for n in range(20)],
                "train": 157,
                "test": 197,
                "folds": 5,
                "grouped": True,
                "chance": 0.0517,
            },
            "seconds": {"read": 61.0, "similarity": 12.0},
            "notes": ["Few clips: intervals are wide.", "Gratings are synthetic."],
        },
        "definitions": {
            metric: {
                "name": NAMES.get(metric, metric.replace("_", " ")),
                "text": f"What {metric} is and how it was computed, in one sentence.",
                "source": "arXiv 2601.09040",
                "unit": "pixels" if metric == "attention_space" else "",
            }
            for metric in [*NAMES, *SCORES, *TOKENS, *SPECTRUM, "linear_occluded", "gain_linear", "gain_map"]
        },
        "encoders": [
            {
                "name": name,
                "digest": "abc",
                "depth": depth,
                "dim": 96,
                "layers": list(range(depth + 1)),
                "parameters": 1234,
                "geometry": {"frames": 16},
                "provenance": {"recipe": "blockwise"},
            }
            for name, depth in depths.items()
        ],
        "layers": layers,
        "transitions": transitions,
        "maps": maps,
        "geometry_vs_gain": {"points": points, "fits": fits(points)},
        "saturation": [
            {
                "encoder": name,
                "blocks": [depth - 3, depth - 1, depth],
                "keep": None if turn == 1 else depth - 3,
                "sentence": f"{name} says the same from layer {depth - 3} on.",
                "cuts": [
                    {
                        "layers": kept,
                        "score": interval(0.2 + 0.01 * kept + 0.01 * turn, 0.02),
                        "difference": interval(-0.0123 - 0.01 * turn, 0.0251),
                        "flops_share": kept / depth,
                        "time_share": None if turn == 1 else kept / depth,
                        "parameters_share": kept / depth,
                    }
                    for kept in (depth - 3, depth - 1)
                ],
            }
            for turn, (name, depth) in enumerate(depths.items())
        ],
        "influence": [
            {
                "encoder": next(iter(depths)),
                "clip": "v_Diving_g01.avi",
                "layers": [1, 6, 12],
                "patch": [1, 2],
                "picture": "influence/one.png",
            }
        ],
        "through": [
            {
                "encoder": f"{name} run",
                "steps": steps,
                "layers": list(range(depth + 1)),
                "series": [
                    {
                        "metric": metric,
                        "values": [
                            [top * (1 - math.exp(-(s + 100) / (400 + 60 * layer))) for s in steps]
                            for layer in range(depth + 1)
                        ],
                    }
                    for metric, top in (("linear", 0.4), ("map", 0.15), ("cka_with_final", 1.0))
                ],
                "settled": {
                    str(layer): None if layer == depth else 400 + 100 * layer for layer in range(depth + 1)
                },
                "threshold": 0.95,
            }
            for name, depth in list(depths.items())[:2]
        ],
    }


def picture() -> bytes:
    draw = np.random.default_rng(0)
    frame = draw.integers(0, 255, (48, 64, 3), dtype=np.uint8)
    influence = draw.random((3, 8, 3, 4)) ** 3
    influence[:, :, 1, 2] = 1.0
    return influence_picture(frame, influence, (1, 2), [1, 6, 12])


def write(folder: Path, analysis: dict[str, Any], influence: bytes | None = None) -> str:
    """The page's text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "analysis.json").write_text(json.dumps(analysis))
    if analysis.get("influence"):
        (folder / "influence").mkdir(exist_ok=True)
        (folder / "influence" / "one.png").write_bytes(influence or picture())
    return depth_report(folder).read_text()


def skeleton(
    depths: dict[str, int] | None = None, *parts: str, metrics: tuple[str, ...] = ("linear",)
) -> dict[str, Any]:
    """An analysis of ``metrics`` and of the named parts alone."""
    whole = of_depths(depths or {"a": 4, "b": 4})
    kept = {key: whole[key] for key in ("about", "definitions", "encoders", *parts)}
    return kept | {"layers": [entry for entry in whole["layers"] if entry["metric"] in metrics]}


def headings(text: str) -> list[str]:
    return [unescape(title) for title in re.findall(r"<h2[^>]*>(.*?)</h2>", text)]


def tables(text: str) -> dict[str, list[list[str]]]:
    """The rows of every table, the head included, by the bold sentence below it."""
    found = {}
    for figure in re.findall(r"<figure>(.*?)</figure>", text, re.S):
        shows = re.search(r"<figcaption><b>(.*?)</b>", figure)
        if "<table>" in figure and shows:
            rows = re.findall(r"<tr[^>]*>(.*?)</tr>", figure, re.S)
            cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in rows]
            found[unescape(shows[1])] = [[unescape(re.sub(r"<[^>]+>", "", c)) for c in row] for row in cells]
    return found


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[float], list[float]]]:
    """x and y of every line that is drawn, as matplotlib gets them."""
    seen: list[tuple[list[float], list[float]]] = []
    plot = Axes.plot

    def watched(self: Axes, *args: Any, **kwargs: Any) -> Any:
        seen.append((list(map(float, args[0])), list(map(float, args[1]))))
        return plot(self, *args, **kwargs)

    monkeypatch.setattr(Axes, "plot", watched)
    return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, str]:
    """An analysis with everything, its folder, and the text of its page."""
    folder = tmp_path_factory.mktemp("whole")
    analysis = example(("a", "b"), depth=4)
    # one or two of every kind are enough
    metrics = {"linear", "map", "grating", "patch_similarity", "attention_space", "rankme", "lidar"}
    kept = {"spatial_frequency", None}
    analysis["layers"] = [
        entry for entry in analysis["layers"] if entry["metric"] in metrics and entry["target"] in kept
    ]
    return analysis, folder, write(folder, analysis)


def test_the_page_is_whole_and_asks_for_nothing(whole):
    _, folder, text = whole
    assert_asks_for_nothing(text)
    assert "#0a0" not in text  # every stand-in became a colour of the page
    assert headings(text) == [
        "In words",
        "What is readable at which depth",
        "How alike layers are",
        "Geometry against gain",
        "Tokens",
        "Spectrum",
        "How many layers are worth keeping",
        "Through training",
        "All numbers",
    ]
    for said in (
        "Few clips: intervals are wide.",
        "a says the same from layer 1 on.",
        "tubelet export ENCODER --layers 1 --out DIR   # a",
        "tubelet analyze a b --data clips --out inside",
        "What cka_linear is and how it was computed, in one sentence. Source: arXiv 2601.09040.",
        "The same by RBF-CKA",
        "chance: 5.2 %",
        "×: undefined.",
    ):
        assert said in text, said
    assert "--out DIR   # b" not in text  # nothing of b can be cut off
    assert base64.b64encode((folder / "influence" / "one.png").read_bytes()).decode() in text


def test_figures_for_print_are_there_white_and_not_blank(whole):
    _, folder, _ = whole
    names = {file.stem for file in (folder / "figures").iterdir()}
    assert names == {
        "decodability",
        "retrieval",
        "gratings",
        "neighbours",
        "similarity",
        "geometry",
        "tokens",
        "spectrum",
        "saturation",
        "through",
    }
    for name in names:
        pixels = imread(folder / "figures" / f"{name}.png")
        assert pixels[-1, -1].tolist() == [1, 1, 1, 1], name
        ink = (pixels[..., :3].min(-1) < 0.9).mean()
        assert 0.003 < ink < 0.8, (name, ink)


def test_every_number_in_the_tables_comes_from_the_analysis(whole):
    analysis, _, text = whole
    found = tables(text)
    names = {about["name"]: metric for metric, about in analysis["definitions"].items()}
    for encoder in ("a", "b"):
        head, *rows = found[f"{encoder}, layer by layer."]
        assert head == ["measure", "0", "1", "2", "3", "4"]
        mine = [entry for entry in analysis["layers"] if entry["encoder"] == encoder]
        told = 0
        for title, *cells in rows:
            name, _, target = title.partition(": ")
            metric = names[re.sub(r" \((%|pixels)\)$", "", name)]
            percent = name.endswith("(%)")
            assert percent == (metric in {*SCORES, *TARGETS, "linear_occluded"})
            for layer, cell in enumerate(cells):
                entries = [
                    entry
                    for entry in mine
                    if (entry["metric"], entry["layer"]) == (metric, layer)
                    and entry["target"] == (target.replace(" ", "_") or None)
                ]
                told += len(entries)
                assert cell == expected(entries, percent), (title, layer)
        assert told == len(mine)
    (row,) = (row for row in found["a, layer by layer."] if row[0] == "Linear decodability (%)")
    assert row[5] == "–"
    assert text.count("<li>lidar: layers 0, 1, 2, 3, 4: undefined: lidar has no value here.</li>") == 2
    assert text.count("<li>Linear decodability (%): layer 4: undefined: linear has no value here.</li>") == 1


def expected(entries: list[dict[str, Any]], percent: bool) -> str:
    """A cell, written another way."""
    if not entries or entries[0]["value"] is None:
        return "–"
    (entry,) = entries
    told = [
        ("%.1f" % (100 * entry[key]) if percent else "%.4g" % entry[key]).replace("-", "−")  # noqa: UP031
        for key in ("value", "low", "high")
        if entry[key] is not None
    ]
    return told[0] if len(told) == 1 else f"{told[0]} [{told[1]}, {told[2]}]"


def test_the_cuts_and_the_fits_are_those_of_the_analysis(whole):
    analysis, _, text = whole
    found = tables(text)
    head, *rows = found[
        "Every cut: its score, the difference to the whole encoder, and what is left of the price."
    ]
    assert rows[0] == ["a", "1", "21.0 [19.0, 25.0]", "−1.2 [−3.7, +3.8]", "25 %", "25 %", "25 %"]
    assert rows[2] == ["b", "1", "22.0 [20.0, 26.0]", "−2.2 [−4.7, +2.8]", "25 %", "–", "25 %"]
    assert text.count('class="best"') == 1
    head, *rows = found["Slope and intercept of gain on CKA, correlation r, number of points n."]
    assert head[0] == "transition"
    lines = analysis["geometry_vs_gain"]["fits"]
    assert [row[0] for row in rows] == [line["transition"] for line in lines]
    for row, one in zip(rows, lines, strict=True):
        shown = [float(cell.replace("−", "-")) for cell in row[1:]]
        assert shown == pytest.approx([one[key] for key in ("slope", "intercept", "r", "n")], rel=6e-3)
    _, head, *rows = found["The step at which each layer settled."]
    assert head == ["run", "0", "1", "2", "3", "4"]
    assert rows[0] == ["a run", "400", "500", "600", "700", "not yet"]


def test_a_null_is_a_gap_and_never_a_zero(tmp_path, drawn):
    analysis = skeleton({"a": 6})
    write(tmp_path, analysis)
    assert len(drawn) == 2  # on the page and in decodability.png
    for x, y in drawn:
        assert x == [0, 1, 2, 3, 4, 5, 6]
        assert [math.isnan(value) for value in y] == [False] * 4 + [True] * 2 + [False]
        for entry, value in zip(analysis["layers"], y, strict=True):
            assert entry["value"] is None or value == pytest.approx(100 * entry["value"])


def test_what_is_undefined_everywhere_is_not_drawn(tmp_path):
    text = write(tmp_path, skeleton(None, metrics=("lidar",)))
    assert headings(text) == ["In words", "All numbers"]
    assert not (tmp_path / "figures").exists()
    assert "undefined: lidar has no value here" in text


@pytest.mark.parametrize(
    ("part", "heading", "figure"),
    [
        ("transitions", "How alike layers are", "neighbours"),
        ("maps", "How alike layers are", "similarity"),
        ("geometry_vs_gain", "Geometry against gain", "geometry"),
        ("saturation", "How many layers are worth keeping", "saturation"),
        ("influence", "Tokens", None),
        ("through", "Through training", "through"),
    ],
)
def test_a_part_without_data_is_absent_and_with_data_is_there(tmp_path, part, heading, figure):
    shared = {"transitions": {"Geometry against gain"}}.get(part, set())
    analysis = skeleton({"a": 2}, part, metrics=())
    text = write(tmp_path, analysis, influence=b"png")
    assert set(headings(text)) == {"In words", heading, "All numbers"} | shared
    files = sorted(file.stem for file in tmp_path.glob("figures/*.png"))
    assert files == ([] if figure is None else [figure])
    without = write(tmp_path, analysis | {part: None})
    assert headings(without) == ["In words", "All numbers"]
    assert not list(tmp_path.glob("figures/*.png"))  # of an earlier page


def test_measures_that_the_page_does_not_know_are_drawn_too(tmp_path):
    analysis = skeleton({"a": 2}, metrics=())
    entry = {"encoder": "a", "layer": 1, "metric": "new_one", "target": "part", "value": 0.5}
    text = write(tmp_path, analysis | {"layers": [entry]})
    assert "Other measures" in headings(text)
    assert "<h3>new one: part</h3>" in text


def test_names_are_escaped_and_never_read_as_formulas(tmp_path):
    evil = "<script>alert('&')</script> $\\frac$ {"
    other = "_hidden $x$"
    analysis = skeleton({evil: 2, other: 2}, "maps", "geometry_vs_gain", "influence")
    analysis["maps"] = [entry for entry in analysis["maps"] if entry["metric"] == "cka_linear"][1:2]
    analysis["layers"] += [
        {"encoder": name, "layer": 1, "metric": "grating", "target": evil, "value": 0.5}
        for name in (evil, other)
    ]
    analysis["about"]["notes"] = [evil]
    text = write(tmp_path, analysis)
    assert "<script" not in text
    assert_asks_for_nothing(text)
    assert "$\\frac$" in text and "_hidden $x$" in text


def test_no_name_is_read_as_a_formula():
    for name in ("$x$", "_a", "$\\frac$", "a_b"):
        figure = Figure()
        drawn = figure.text(0, 0, curves.plain(name))
        figure.canvas.draw()
        assert is_math_text(drawn.get_text()) is False
        assert not drawn.get_text().startswith("_")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (None, "is not there"),
        ("{", "damaged"),
        ("[]", "no object"),
        ('{"about": {}, "layers": []}', '"encoders" is missing'),
        ('{"about": {}, "layers": [], "encoders": []}', "there are no encoders"),
        ({"encoders": [{"name": "a", "depth": 2}] * 2}, "two encoders have one name"),
        ({"geometry_vs_gain": {"points": [{}]}}, 'geometry_vs_gain.points.* no proper "encoder"'),
        ({"layers": [{"encoder": "a", "metric": "linear"}]}, r'layers\[0\] has no proper "layer"'),
        ({"layers": [{"encoder": "c", "layer": 1, "metric": "linear"}]}, "unknown encoder 'c'"),
        ({"layers": [{"encoder": "a", "layer": 1, "metric": "map", "value": "0.1"}]}, '"value" of layers'),
        (
            {
                "maps": [
                    {
                        "one": "a",
                        "other": "a",
                        "metric": "x",
                        "layers_one": [1],
                        "layers_other": [1],
                        "values": [[]],
                    }
                ]
            },
            r"maps\[0\] has no 1 x 1",
        ),
        (
            {"through": [{"encoder": "a", "steps": [1], "layers": [1], "series": [{"metric": "map"}]}]},
            r"through\[0\] has no 1 x 1",
        ),
        ({"saturation": [{"encoder": "a", "sentence": "", "cuts": [{}]}]}, 'cuts without "layers"'),
        (
            {"influence": [{"encoder": "a", "clip": "c", "picture": "influence/gone.png"}]},
            "gone.png is named in analysis.json but cannot be read",
        ),
        ({"influence": [{"encoder": "a", "clip": "c", "picture": "../x.png"}]}, "outside its folder"),
    ],
)
def test_a_missing_or_damaged_analysis_is_told_and_leaves_the_earlier_page(tmp_path, damage, said):
    (tmp_path / "report.html").write_text("before")
    if damage is not None:
        damaged = json.dumps(skeleton({"a": 2}, metrics=()) | damage) if isinstance(damage, dict) else damage
        (tmp_path / "analysis.json").write_text(damaged)
    with pytest.raises(UserError, match=said):
        depth_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "before"


def test_encoders_of_different_depth_are_drawn_over_the_share_of_their_depth(tmp_path, drawn):
    text = write(tmp_path, skeleton({"pixels": 1, "small": 2, "base": 4}, metrics=("map",)))
    assert "different depths" in text and "share of depth" in text
    assert [x for x, _ in drawn][:3] == [[0, 1], [0, 0.5, 1], [0, 0.25, 0.5, 0.75, 1]]


def test_pixels_have_no_depth_to_share(tmp_path, drawn):
    analysis = skeleton({"base": 4}, metrics=("map",))
    analysis["encoders"].append(analysis["encoders"][0] | {"name": "pixels", "depth": 0})
    analysis["layers"].append(analysis["layers"][0] | {"encoder": "pixels"})
    assert "share of depth" not in write(tmp_path, analysis)
    assert [x for x, _ in drawn][:2] == [[0, 1, 2, 3, 4], [0]]


def test_levels_are_drawn_where_they_belong(tmp_path, monkeypatch):
    seen = []
    draw = Axes.axhline
    monkeypatch.setattr(Axes, "axhline", lambda self, y, **look: (seen.append(y), draw(self, y, **look)))
    analysis = skeleton({"a": 2}, metrics=("linear", "map", "grating"))
    level = {"metric": "grating", "target": "colour", "name": "majority", "value": 0.2}
    text = write(tmp_path, analysis | {"levels": [level]})
    assert seen == pytest.approx([5.17, 5.17, 20, 20])  # each on the page and in print
    assert "majority" in text


# tables


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def back(text: str) -> float | None:
    return float(text) if text else None


def test_the_tables_have_every_number_of_the_analysis(tmp_path):
    analysis = of_depths({"a": 3, "b": 2})
    write_tables(analysis, tmp_path)
    layers = read_csv(tmp_path / "layers.csv")
    assert list(layers[0]) == ["encoder", "layer", "metric", "target", "value", "low", "high", "undefined"]
    assert len(layers) == len(analysis["layers"])
    for row, entry in zip(layers, analysis["layers"], strict=True):
        assert {key: back(row[key]) for key in ("value", "low", "high")} == {
            key: entry[key] for key in ("value", "low", "high")
        }
        assert row["target"] == (entry["target"] or "") and row["undefined"] == (entry["undefined"] or "")
    for row, entry in zip(read_csv(tmp_path / "transitions.csv"), analysis["transitions"], strict=True):
        assert back(row["cka_debiased"]) == entry["cka_debiased"]
        assert back(row["gain_linear_low"]) == entry["gain_linear"]["low"]
        assert back(row["gain_map"]) == (entry["gain_map"] and entry["gain_map"]["value"])
    cells = [value for entry in analysis["maps"] for row in entry["values"] for value in row]
    similarity = read_csv(tmp_path / "similarity.csv")
    assert [back(row["value"]) for row in similarity] == cells
    row = next(row for row in similarity if (row["one"], row["other"], row["layer_one"]) == ("a", "b", "3"))
    assert row["layer_other"] == "0"
    through = read_csv(tmp_path / "through.csv")
    last = analysis["through"][1]["series"][2]["values"][-1]
    assert [back(row["value"]) for row in through[-len(last) :]] == last
    assert {row["step"] for row in through} == {str(step) for step in analysis["through"][0]["steps"]}
    saturation = read_csv(tmp_path / "saturation.csv")
    assert [(row["encoder"], row["layers"], row["kept"]) for row in saturation[:2]] == [
        ("a", "0", "True"),
        ("a", "2", "False"),
    ]
    write_tables(analysis | {"through": None}, tmp_path)
    assert not (tmp_path / "through.csv").exists()


@settings(max_examples=25, deadline=None)
@given(
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\0"), min_size=1),
    st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
)
def test_numbers_and_names_read_back_as_they_were(tmp_path_factory, name, value):
    folder = tmp_path_factory.mktemp("csv")
    encoders = [{"name": name, "depth": 1}]
    entry = {"encoder": name, "layer": 1, "metric": "map", "value": value}
    write_tables({"about": {}, "encoders": encoders, "layers": [entry]}, folder)
    (row,) = read_csv(folder / "layers.csv")
    assert row["encoder"] == name
    assert back(row["value"]) == value
    assert [file.name for file in folder.iterdir()] == ["layers.csv"]


# drawing


def test_a_name_has_the_same_colour_in_every_figure():
    html = draw_panels([Panel("a", [Line("y", [0, 1], [0, 1])])], names=["x", "y"])
    assert "stroke: var(--c2)" in html and "stroke: var(--c1)" not in html
    assert ">y</li>" in html and ">x</li>" not in html
    dots = draw_scatters([Scatter("a", {"y": [(0, 1)]}, "x", "y")], names=["x", "y"])
    assert "color: var(--c2)" in dots and "var(--c1)" not in dots


def test_more_encoders_than_colours_are_drawn_in_parts():
    names = [f"encoder {number}" for number in range(9)]
    lines = [Line(name, [0, 1], [0, 1]) for name in names]
    assert draw_panels([Panel("a", lines)], names).count("<h3>a</h3>") == 2
    assert draw_panels([Panel("a", lines[:2])], names).count("<h3>a</h3>") == 1
    points = {name: [(0.0, 1.0)] for name in names}
    assert draw_scatters([Scatter("a", points, "x", "y")], names).count("<h3>a</h3>") == 1  # two are hollow
    looks = [tuple(map(str, PRINT.look(place).values())) for place in range(14)]
    assert len(set(looks)) == 14
    assert imread(io.BytesIO(panels_picture([Panel("a", lines)], names)), format="png").shape[0] > 300


def test_charts_of_more_names_than_there_are_signs_have_the_same_axes(monkeypatch):
    limits = []
    draw = Axes.draw
    monkeypatch.setattr(
        Axes,
        "draw",
        lambda axes, *a, **k: (limits.append((*axes.get_xlim(), *axes.get_ylim())), draw(axes, *a, **k)),
    )
    points = {f"encoder {number}": [(float(number), 1.0 - number)] for number in range(15)}
    html = draw_scatters([Scatter("a", points, "x", "y")])
    assert html.count("<h3>a</h3>") == html.count('<ul class="legend">') == 2
    assert len(set(limits)) == 1 and limits[0][0] < 0 and limits[0][1] > 14


@pytest.mark.parametrize("letters", [3, 6, 11, 30])
def test_the_legend_of_a_picture_fits_into_it(letters, monkeypatch):
    drawn, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda one, *a, **k: (drawn.append(one), save(one, *a, **k)))
    panels_picture([Panel("a", [Line("n" * letters + str(n), [0, 1], [0, n]) for n in range(9)])])
    ((legend,), whole) = drawn[0].legends, drawn[0].bbox
    size = legend.get_window_extent()
    assert size.x0 >= 0 and size.x1 <= whole.x1 and size.y1 <= whole.y1 + 1e-6


def test_bands_reach_from_low_to_high(monkeypatch):
    seen = []
    monkeypatch.setattr(
        Axes,
        "fill_between",
        lambda _, x, low, high, **__: seen.append((list(x), low.tolist(), high.tolist())),
    )
    bars = []
    monkeypatch.setattr(Axes, "vlines", lambda _, x, low, high, **__: bars.append((x.tolist(), low.tolist())))
    nan = math.nan
    line = Line("x", [0, 1, 2, 3], [1, nan, 3, 3], low=[0.5, nan, 2.5, 2], high=[3, nan, 4, 5])
    draw_panels([Panel("a", [line], ticks=[(0, "0")])])
    ((x, low, high),) = seen
    assert x == [0, 1, 2, 3] and low[2:] == [2.5, 2] and high[2:] == [4, 5] and math.isnan(low[1])
    assert bars == [([0.0], [0.5])]  # it stands alone, so that no band would be seen
    kept = thin(line)
    assert (list(kept.x), kept.low, kept.high) == ([0, 2, 3], [0.5, 2.5, 2], [3, 4, 5])


def test_a_map_has_the_colours_of_its_numbers_and_crosses_what_is_undefined():
    table = Heatmap("a", ["0", "1"], ["0", "1"], [[0.0, 1.0], [0.5, math.nan]], 0.0, 1.0)
    html = draw_heatmaps([table])
    cividis = matplotlib.colormaps["cividis"]
    pictures = [
        imread(io.BytesIO(base64.b64decode(data)), format="png")
        for data in re.findall(r'base64,\s*([^"]+)"', html)
    ]
    cells = next(picture for picture in pictures if picture.shape[:2] == (2, 2))
    bottom, top = cells[::-1] if np.allclose(cells[-1, 0, :3], cividis(0.0)[:3], atol=0.01) else cells
    np.testing.assert_allclose(bottom[:, :3], [cividis(0.0)[:3], cividis(1.0)[:3]], atol=0.01)
    np.testing.assert_allclose(top[0, :3], cividis(0.5)[:3], atol=0.01)
    assert top[1, 3] == 0  # no colour at all
    assert html.count(">×<") == 1
    assert ">0.50<" in html  # small enough for its numbers


def test_the_labels_of_a_long_axis_do_not_overlap():
    steps = [f"{step:,}" for step in range(0, 200_000, 10_000)]
    table = Heatmap("a", ["0"], steps, [[0.5] * len(steps)], 0.0, 1.0, square=False)
    html = draw_heatmaps([table])
    shown = [step for step in steps if f">{step}<" in html]
    assert len(shown) >= 2 and sum(map(len, shown)) <= heatmap._LETTERS + 7


def test_a_regression_line_is_drawn_as_far_as_the_points_reach(drawn):
    draw_scatters([Scatter("a", {"x": [(0.8, 0.1), (0.9, 0.2)]}, "x", "y", fit=(-0.5, 0.6))])
    assert drawn[0] == ([0.8, 0.9], [0.1, 0.2])
    assert drawn[1][0] == [0.8, 0.9] and drawn[1][1] == pytest.approx([0.2, 0.15])


def test_influence_shows_the_frame_and_every_layer():
    frame = np.full((32, 64, 3), (255, 0, 0), np.uint8)
    influence = np.zeros((2, 3, 2, 4))
    influence[1, :, 0, 3] = 1.0
    influence[0, 0, 1, 1] = math.nan
    pixels = imread(io.BytesIO(influence_picture(frame, influence, (0, 3), [1, 12])), format="png")[..., :3]
    assert (np.abs(pixels - (1, 0, 0)).max(-1) < 0.02).mean() > 0.01
    cividis = matplotlib.colormaps["cividis"]
    for end in (0.0, 1.0):
        assert (np.abs(pixels - cividis(end)[:3]).max(-1) < 0.02).mean() > 0.005
    half = pixels.shape[0] // 2
    most = np.abs(pixels - cividis(1.0)[:3]).max(-1)[:, : int(0.85 * pixels.shape[1])] < 0.02
    assert most[half:].sum() > 100 and not most[:half].sum()  # only the deeper layer, which stands below


@pytest.mark.parametrize(
    ("frame", "influence", "place", "said"),
    [
        (np.zeros((4, 4, 3)), np.ones((1, 1, 2, 2)), (0, 0), "uint8"),
        (np.zeros((4, 4, 3), np.uint8), np.ones((2, 1, 2, 2)), (0, 0), "1 layers"),
        (np.zeros((4, 4, 3), np.uint8), np.ones((1, 1, 2, 2)), (2, 0), "outside the grid"),
    ],
)
def test_influence_refuses_what_does_not_fit(frame, influence, place, said):
    with pytest.raises(ValueError, match=said):
        influence_picture(frame, influence, place, [1])


def test_what_is_added_while_folded_is_folded():
    page = Page("a")
    with page.folded("more <b>"):
        page.text("inside")
    page.text("outside")
    html = page.html()
    assert re.search(
        r"<details><summary>more &lt;b&gt;</summary>\n<p>inside</p>\n</details>\n<p>outside", html
    )
    assert Tags(html)
