"""Groups and odd windows as files and as a page: a table of all windows, a map, filmstrips."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from tubelet.embed.table import Embeddings, read_embeddings
from tubelet.files import replace_file, write_json
from tubelet.report.curves import draw_png
from tubelet.report.found import Stretch, add_stretches, between
from tubelet.report.page import Key, Page
from tubelet.report.scatter import Scatter, dot_signs, scatter_drawer
from tubelet.search.answer import about
from tubelet.search.cluster import FAR_OUT, NEIGHBOURS, Clusters, cluster, directions
from tubelet.search.query import path_of, write_rows

Picture = Literal["pca", "tsne"]

COLUMNS = ("file", "start", "end", "row", "label", "cluster", "distance", "oddness", "odd")
EXAMPLES, ODDEST = 3, 8
_FRAMES = 4  # of an example: groups stand in two columns, and more would be too small to see
_DRAWN = 2000  # windows in the map
_NAMED = 13  # groups with a sign of their own in it


def cluster_features(
    features: str | Path,
    out: str | Path | None = None,
    groups: int | None = None,
    picture: Picture = "pca",
    seed: int = 0,
) -> Clusters:
    """Groups a folder of embeddings and writes clusters.csv, clusters.json, clusters.png and report.html.

    out: folder for them (default: ``clusters`` in ``features``). picture: of two dimensions by principal components,
    or by t-SNE, which keeps neighbours together and no distances. Errors as of `cluster`.
    """
    table = read_embeddings(Path(features))
    found = cluster(table, groups, seed)
    folder = table.folder / "clusters" if out is None else Path(out)
    panel = map_of(table, found, picture, seed)
    names = list(panel.points)
    style = {name: place for place, name in enumerate(names)}
    drawn = draw_png([scatter_drawer(panel, style)], dot_signs(names, style))
    write_rows(folder / "clusters.csv", COLUMNS, _rows(table, found))
    write_json(folder / "clusters.json", {**_record(found), **about(table), "seed": seed})
    with replace_file(folder / "clusters.png") as draft:
        draft.write_bytes(drawn)
    page = _page(table, found, panel).write(folder / "report.html")
    print(_sentence(table, found))
    for group in range(1, found.groups + 1):
        print(f"  {_about_group(table, found, group)}")
    print(f"  {folder / 'clusters.csv'}\n  {page}")
    return found


def _rows(table: Embeddings, found: Clusters) -> list[dict[str, Any]]:
    def shown(value: float) -> str:
        return "" if math.isnan(value) else f"{value:.6f}"

    return [
        {
            "file": table.file[row],
            "start": shown(table.start[row]),
            "end": shown(table.end[row]),
            "row": row,
            "label": table.label[row] or "",
            "cluster": found.cluster[row] or "",
            "distance": shown(found.distance[row]),
            "oddness": shown(found.oddness[row]),
            "odd": "yes" if found.odd[row] else "no",
        }
        for row in range(len(table))
    ]


def _record(found: Clusters) -> dict[str, Any]:
    tried = {str(k): None if math.isnan(value) else value for k, value in found.silhouettes.items()}
    size = np.bincount(found.cluster, minlength=found.groups + 1)[1:].tolist()
    return {"groups": found.groups, "sizes": size, "silhouettes": tried, "odd": int(found.odd.sum())}


def map_of(table: Embeddings, found: Clusters, picture: Picture, seed: int) -> Scatter:
    """Windows of the sample in two dimensions."""
    rows = np.sort(np.random.default_rng(seed).permutation(found.sample)[:_DRAWN])
    direction = directions(table, rows)
    if picture == "tsne":
        spread = min(30.0, (len(rows) - 1) / 3)
        places = TSNE(perplexity=spread, init="pca", random_state=seed).fit_transform(direction)
        labels = ("t-SNE, first", "t-SNE, second")
    else:
        model = PCA(2, random_state=seed)
        places = model.fit_transform(direction)
        first, second = (f"{100 * share:.0f} % of variance" for share in model.explained_variance_ratio_)
        labels = (f"first component ({first})", f"second component ({second})")
    named = {
        group: f"group {group}" if group <= _NAMED or found.groups == _NAMED + 1 else "other groups"
        for group in range(1, found.groups + 1)
    }
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in named.values()}
    for row, (x, y) in zip(rows, places.tolist(), strict=True):
        points[named[int(found.cluster[row])]].append((x, y))
    points = {name: pairs for name, pairs in points.items() if pairs}
    return Scatter(f"{len(rows):,} windows", points, labels[0], labels[1])


def _page(table: Embeddings, found: Clusters, panel: Scatter) -> Page:
    page = Page(
        f"Groups and odd windows of {table.folder.name}",
        f"{len(table):,} windows as {table.about['encoder']['name']} sees them.",
    )
    best = _silhouette(found)
    page.keys(
        [
            Key("windows", f"{len(table):,}", f"in {len(set(map(str, table.file))):,} files"),
            Key("groups", f"{found.groups}", "by k-means"),
            Key("silhouette", "–" if math.isnan(best) else f"{best:.2f}", "1: far apart, 0: touching"),
            Key("odd", f"{int(found.odd.sum()):,}", "far from every other"),
        ]
    )
    page.heading("Map")
    manner = (
        "t-SNE keeps neighbours together; distances between groups mean nothing."
        if panel.x_label.startswith("t-SNE")
        else "Principal components of the directions of the vectors."
    )
    page.scatters([panel], "Windows by group.", manner)
    page.heading("Groups")
    tried = ", ".join(f"{k}: {value:.2f}" for k, value in found.silhouettes.items() if not math.isnan(value))
    page.table(
        ["group", "windows", "files", "commonest label", "of them", "mean distance"],
        [_group_row(table, found, group) for group in range(1, found.groups + 1)],
        "The groups, the largest first.",
        f"Distance: 1 - cosine to the centre. Mean silhouette by number of groups: {tried or 'undefined'}.",
    )
    add_stretches(
        page,
        [_examples(table, found, group) for group in range(1, found.groups + 1)],
        "Windows nearest to each group's centre.",
        "Of as many files as there are.",
        _FRAMES,
    )
    page.heading("Odd windows")
    known = np.flatnonzero(np.isfinite(found.oddness))
    oddest = known[np.lexsort((known, -found.oddness[known]))][:ODDEST]
    strips = [
        _stretch(table, row, f"{rank}", f"oddness {found.oddness[row]:.3f}")
        for rank, row in enumerate(oddest, 1)
    ]
    add_stretches(
        page,
        [strips],
        "The windows least like any other.",
        f"Oddness: mean of 1 - cosine to the {NEIGHBOURS} nearest windows that do not overlap in the same file. "
        f"{int(found.odd.sum())} are far out: beyond the upper quartile by {FAR_OUT:g} times the quartiles' distance.",
    )
    return page


def _silhouette(found: Clusters) -> float:
    """Of the number of groups that was taken: the highest there is."""
    return max((value for value in found.silhouettes.values() if not math.isnan(value)), default=math.nan)


def _sentence(table: Embeddings, found: Clusters) -> str:
    best = _silhouette(found)
    how = "silhouette undefined" if math.isnan(best) else f"silhouette {best:.2f}"
    return f"{len(table):,} windows, {found.groups} groups ({how}), {int(found.odd.sum())} odd windows"


def _about_group(table: Embeddings, found: Clusters, group: int) -> str:
    _, windows, files, label, share, distance = _group_row(table, found, group)
    common = f", {label} {share}" if label != "–" else ""
    return f"group {group}: {windows} windows of {files} files{common}, mean distance {distance}"


def _group_row(table: Embeddings, found: Clusters, group: int) -> list[str]:
    rows = np.flatnonzero(found.cluster == group)
    labels = Counter(label for row in rows if (label := table.label[row]) is not None)
    name, size = labels.most_common(1)[0] if labels else ("–", 0)
    share = f"{100 * size / labels.total():.0f} %" if labels else "–"
    files = len({str(table.file[row]) for row in rows})
    return [f"{group}", f"{len(rows):,}", f"{files:,}", name, share, f"{found.distance[rows].mean():.3f}"]


def _examples(table: Embeddings, found: Clusters, group: int) -> Sequence[Stretch]:
    """The nearest to the centre, each of another file while there are others."""
    rows = np.flatnonzero(found.cluster == group)
    rows = rows[np.lexsort((rows, found.distance[rows]))].tolist()
    seen: set[str] = set()
    first = [row for row in rows if str(table.file[row]) not in seen and not seen.add(str(table.file[row]))]
    chosen = [*first, *(row for row in rows if row not in set(first[:EXAMPLES]))][:EXAMPLES]
    return [_stretch(table, row, f"group {group}", "") for row in chosen]


def _stretch(table: Embeddings, row: int, label: str, note: str) -> Stretch:
    start, end = float(table.start[row]), float(table.end[row])
    file = str(table.file[row])
    told = " · ".join(
        part for part in (f"{Path(file).name} {between(start, end)}", note, table.label[row] or "") if part
    )
    return Stretch(path_of(file), start, end, label, told)
