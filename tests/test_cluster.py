"""Groups and odd windows that were planted are found, by numbers counted otherwise; files, picture and page."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markup import assert_asks_for_nothing
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from sklearn.metrics import adjusted_rand_score, silhouette_score
from video import write_video

from tubelet.cli import main
from tubelet.embed.table import Embeddings, save_embeddings
from tubelet.errors import UserError
from tubelet.report.curves import draw_png
from tubelet.report.scatter import dot_signs, scatter_drawer
from tubelet.search import cluster as module
from tubelet.search import index
from tubelet.search.cluster import FAR_OUT, NEIGHBOURS, cluster, directions
from tubelet.search.groups import cluster_features, map_of

ABOUT = {
    "encoder": {"name": "toy", "digest": "0" * 16, "spec": "nowhere", "dim": 6},
    "layer": 2,
    "pool": "mean",
}


def table(vectors: Any, file: list[str] | None = None, start: Any = None, label: Any = None) -> Embeddings:
    """Windows of 4 s; by default each of a file of its own."""
    vectors = np.asarray(vectors)
    n = len(vectors)
    begin = np.zeros(n) if start is None else np.asarray(start, float)
    names = np.array(file or [f"{i}.mp4" for i in range(n)], object)
    labels: list[str | None] = [None] * n if label is None else list(label)
    return Embeddings(
        Path("features"), dict(ABOUT), names, begin, begin + 4, labels, vectors, [None] * len(names)
    )


def planted(sizes: tuple[int, ...] = (40, 30, 20), odd: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of any length around as many directions, and which is whose; the odd ones, of -1, come last."""
    random = np.random.default_rng(0)
    which = np.repeat(np.arange(len(sizes)), sizes)
    vectors = np.eye(6)[which] + 0.08 * random.standard_normal((len(which), 6))
    far = -np.eye(6)[np.arange(odd)] * 3
    scale = random.uniform(0.5, 5, (len(which), 1))
    return np.concatenate([vectors * scale, far]), np.concatenate([which, np.full(odd, -1)])


def test_planted_groups_are_found_and_counted() -> None:
    vectors, which = planted()
    found = cluster(table(vectors))
    assert found.groups == 3 and adjusted_rand_score(which, found.cluster) == 1.0
    assert np.bincount(found.cluster).tolist() == [0, 40, 30, 20]  # 1 is the largest
    assert max(found.silhouettes, key=lambda k: found.silhouettes[k]) == 3
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert found.silhouettes[3] == pytest.approx(silhouette_score(unit, which))


def test_distance_is_to_the_mean_direction_of_the_group() -> None:
    vectors, _ = planted()
    found = cluster(table(vectors))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for group in (1, 2, 3):
        mine = found.cluster == group
        centre = unit[mine].mean(axis=0)
        assert found.distance[mine] == pytest.approx(1 - unit[mine] @ centre / np.linalg.norm(centre))


def slowly(one: Embeddings) -> np.ndarray:
    """Oddness, window by window."""
    vectors = one.vectors / np.linalg.norm(one.vectors, axis=1, keepdims=True)
    found = []
    for row in range(len(vectors)):
        apart = [
            1 - float(vectors[row] @ vectors[other])
            for other in range(len(vectors))
            if other != row
            and not (
                one.file[other] == one.file[row]
                and one.start[other] < one.end[row]
                and one.start[row] < one.end[other]
            )
        ]
        found.append(np.mean(sorted(apart)[:NEIGHBOURS]) if apart else np.nan)
    return np.array(found)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(4, 25), st.sampled_from([1, 2, 5]))
def test_oddness_equals_the_slow_way(seed: int, rows: int, files: int) -> None:
    random = np.random.default_rng(seed)
    names = [f"{n}" for n in random.integers(0, files, rows)]
    one = table(random.standard_normal((rows, 4)), names, random.integers(0, 30, rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CANDIDATES", (2,))
        patch.setattr(module, "_PIECE", 40)
        patch.setattr(index, "_CHUNK", 24)
        found = cluster(one)
    assert found.oddness == pytest.approx(slowly(one), abs=1e-12, nan_ok=True)


def test_planted_odd_windows_are_the_oddest_and_far_out() -> None:
    vectors, which = planted(odd=2)
    found = cluster(table(vectors))
    assert set(np.argsort(found.oddness)[-2:]) == set(np.flatnonzero(which == -1))
    low, high = np.quantile(found.oddness, (0.25, 0.75))
    assert found.odd.tolist() == (found.oddness > high + FAR_OUT * (high - low)).tolist()
    assert found.odd[which == -1].all() and found.odd.sum() < 5


@pytest.mark.parametrize("seed", range(6))
def test_copies_of_each_other_are_never_odd(seed: int) -> None:
    """As of a camera that stands still: 1 - cosine of copies is rounding, which is far out where quartiles are 0."""
    random = np.random.default_rng(seed)
    copies = np.repeat(random.standard_normal((5, 96)), 40, axis=0).astype(np.float32)
    found = cluster(table(copies), 5)
    assert found.oddness.tolist() == [0.0] * 200 and not found.odd.any()
    alone = np.concatenate([copies, random.standard_normal((3, 96))])
    assert np.flatnonzero(cluster(table(alone), 5).odd).tolist() == [200, 201, 202]


def test_an_odd_event_seen_by_overlapping_windows_stays_odd() -> None:
    vectors, which = planted(odd=1)
    last = vectors[-1:]
    crowd = np.concatenate([vectors[:-1], *[last + 0.01 * n for n in range(4)]])
    names = [f"{i}" for i in range(len(which) - 1)] + ["event"] * 4
    found = cluster(table(crowd, names, [0.0] * (len(which) - 1) + [0, 1, 2, 3]))
    assert set(np.argsort(found.oddness)[-4:]) == set(range(len(which) - 1, len(crowd)))


def test_the_same_table_gives_the_same_groups() -> None:
    vectors, _ = planted(odd=1)
    one, other = cluster(table(vectors)), cluster(table(vectors))
    for name in ("cluster", "distance", "oddness", "odd", "sample"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    assert one.silhouettes == other.silhouettes


def test_groups_are_learned_from_a_sample_and_all_windows_are_assigned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SAMPLE", 45)
    monkeypatch.setattr(index, "_CHUNK", 60)
    vectors, which = planted()
    found = cluster(table(vectors))
    assert len(found.sample) == 45 and adjusted_rand_score(which, found.cluster) == 1.0
    assert np.allclose(directions(table(vectors), found.sample) ** 2 @ np.ones(6), 1)
    assert len(found.cluster) == 90 and found.cluster.min() == 1


def test_as_many_groups_as_are_asked_for() -> None:
    vectors, _ = planted()
    assert cluster(table(vectors), 5).groups == 5
    for groups in (1, 91):
        with pytest.raises(UserError, match=rf"groups={groups}: must be between 2 and 90"):
            cluster(table(vectors), groups)


def test_windows_without_a_direction_are_in_no_group() -> None:
    vectors, _ = planted()
    vectors[5] = 0
    found = cluster(table(vectors))
    assert (
        found.cluster[5] == 0 and np.isnan([found.distance[5], found.oddness[5]]).all() and not found.odd[5]
    )
    assert 5 not in found.sample and (np.delete(found.cluster, 5) > 0).all()


def test_too_little_to_group_is_said() -> None:
    with pytest.raises(UserError, match="holds no windows"):
        cluster(table(np.zeros((0, 4))))
    with pytest.raises(UserError, match="1 different windows; groups need 3"):
        cluster(table(np.ones((50, 4))))
    with pytest.raises(UserError, match=r"row 2.*is not finite"):
        cluster(table([[1.0, 0], [0, 1], [np.nan, 0], [1, 1]]))


@pytest.mark.parametrize("picture", ["pca", "tsne"])
def test_the_map_keeps_groups_apart_and_names_each_window_once(picture: Any) -> None:
    vectors, _ = planted()
    one = table(vectors)
    panel = map_of(one, cluster(one), picture, 0)
    assert [len(panel.points[f"group {n}"]) for n in (1, 2, 3)] == [40, 30, 20]
    places = np.concatenate([np.array(panel.points[f"group {n}"]) for n in (1, 2, 3)])
    assert silhouette_score(places, np.repeat([1, 2, 3], [40, 30, 20])) > 0.5


@pytest.mark.parametrize("groups", [2, 3, 10, 20])
def test_the_chart_keeps_most_of_the_picture_however_many_groups(
    groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    saved = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda one, *a, **k: (drawn.append(one), saved(one, *a, **k))[1])
    one = table(np.random.default_rng(0).standard_normal((80, 6)))
    panel = map_of(one, cluster(one, groups), "pca", 0)
    style = {name: place for place, name in enumerate(panel.points)}
    png = imread(io.BytesIO(draw_png([scatter_drawer(panel, style)], dot_signs(list(style), style))))
    (figure,) = drawn
    (axes,), (legend,) = figure.axes, figure.legends
    assert png.shape[:2] == pytest.approx(200 * figure.get_size_inches()[::-1], abs=1)
    assert len(legend.get_texts()) == len(panel.points) == min(groups, 14)
    renderer = FigureCanvasAgg(figure).get_renderer()
    whole, chart, names = figure.bbox, axes.get_tightbbox(renderer), legend.get_window_extent(renderer)
    assert chart is not None
    assert chart.height > 0.6 * whole.height and chart.width > 0.9 * whole.width
    assert names.y0 >= chart.y1 and names.x1 <= whole.x1
    for part in (chart, names):  # and nothing runs out of it
        assert part.x0 >= -1 and part.y0 >= -1 and part.x1 <= whole.x1 + 1 and part.y1 <= whole.y1 + 1


def test_the_page_has_one_map_with_hollow_signs_and_strips_that_can_be_seen(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((60, 6)).astype(np.float32)
    video = str(write_video(tmp_path / "a.mp4", 150))
    start = np.arange(60) / 12
    save_embeddings(tmp_path / "f", ABOUT, [video] * 60, start, start + 0.5, [None] * 60, vectors)
    cluster_features(tmp_path / "f", groups=10)
    page = (tmp_path / "f" / "clusters" / "report.html").read_text()
    assert page.count("<h3>60 windows</h3>") == 1
    legend = re.findall(r'<b class="mark" style="color: var\(--c(\d)\)">(.)</b>group (\d+)<', page)
    assert [int(group) for _, _, group in legend] == list(range(1, 11))
    assert [(colour, sign) for colour, sign, _ in legend[:1] + legend[7:]] == [
        ("1", "●"),
        ("1", "○"),
        ("2", "□"),
        ("3", "◇"),
    ]
    assert len({(colour, sign) for colour, sign, _ in legend}) == 10
    pictures = re.findall(r'alt="frames of (group)?[^"]*" src="data:image/png;base64,([^"]*)"', page)
    wide = {group: imread(io.BytesIO(base64.b64decode(data))).shape for group, data in pictures}
    # half a column for a group's, a whole one for the odd ones: frames are equally large to the eye
    assert wide["group"][0] == wide[""][0] and wide["group"][1] < 0.55 * wide[""][1]


def test_the_command_writes_table_picture_and_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors, _ = planted((12, 9), odd=1)
    video = write_video(tmp_path / "a.mp4", 150)
    names = [str(video) if n % 2 else str(tmp_path / "gone.mp4") for n in range(22)]
    start, label = np.arange(22) // 2 * 0.25, ["x", None] * 11
    save_embeddings(tmp_path / "f", ABOUT, names, start, start + 1, label, vectors.astype(np.float32))
    assert main(["cluster", str(tmp_path / "f"), "--groups", "2"]) == 0
    assert "22 windows, 2 groups" in capsys.readouterr().out
    folder = tmp_path / "f" / "clusters"
    with (folder / "clusters.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["start"]) for row in rows] == start.tolist() and len(rows) == 22
    assert {row["cluster"] for row in rows} == {"1", "2"} and rows[-1]["odd"] == "yes"
    assert max(rows, key=lambda row: float(row["oddness"])) == rows[-1]
    record = json.loads((folder / "clusters.json").read_text())
    assert record["groups"] == 2 and sum(record["sizes"]) == 22
    assert (folder / "clusters.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text()
    assert_asks_for_nothing(page)
    assert "Odd windows" in page and "Could not be read: gone.mp4 (the file is not there)." in page
    again = (folder / "clusters.csv").read_bytes()
    assert main(["cluster", str(tmp_path / "f"), "--groups", "2", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "clusters.csv").read_bytes() == again


def test_odd_words_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", str(tmp_path / "none")]) == 2
    assert "does not exist" in capsys.readouterr().err
