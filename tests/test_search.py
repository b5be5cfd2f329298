"""Search against plain counting and scikit-learn, hits that are joined, queries of every kind, and what goes wrong."""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from markup import assert_asks_for_nothing
from sklearn.metrics import average_precision_score
from sklearn.neighbors import NearestNeighbors
from video import write_images, write_video

from tubelet.cli import COMMANDS, main
from tubelet.embed.embed import embed
from tubelet.embed.table import Embeddings, read_embeddings, save_embeddings
from tubelet.errors import UserError
from tubelet.export.geometry import Geometry
from tubelet.export.names import named_as
from tubelet.export.weights import load_encoder, save_encoder
from tubelet.files import writing
from tubelet.nn.published import VJEPA2
from tubelet.nn.tokens import Rotary
from tubelet.nn.vit import ViT
from tubelet.report.found import between, frames_between
from tubelet.search import index as module
from tubelet.search.answer import answer, judged_lines, judged_page
from tubelet.search.cluster import cluster
from tubelet.search.hits import Hit, merge
from tubelet.search.index import Nearest, has_faiss, nearest, nearest_exact, nearest_indexed
from tubelet.search.judge import judge_search
from tubelet.search.query import query_of_file, query_of_row, search

ABOUT = {
    "encoder": {"name": "toy", "digest": "0" * 16, "spec": "nowhere", "dim": 4},
    "layer": 2,
    "pool": "mean",
    "clip": {"frames": 4, "fps": None, "frame_step": 1, "crop_size": 32},
    "window_s": 4.0,
    "stride_s": 2.0,
    "views": {"segments": 1, "crops": 1},
}


def table(
    vectors: Any,
    file: list[str] | None = None,
    start: Any = None,
    label: Any = None,
    seconds: float = 4.0,
    group: Any = None,
) -> Embeddings:
    """Windows of 4 s; by default each of a file of its own."""
    vectors = np.asarray(vectors)
    n = len(vectors)
    begin = np.zeros(n) if start is None else np.asarray(start, float)
    names = np.array(file or [f"{i}.mp4" for i in range(n)], object)
    return Embeddings(
        Path("features"),
        dict(ABOUT),
        names,
        begin,
        begin + seconds,
        [None] * n if label is None else list(label),
        vectors,
        [None] * n if group is None else list(group),
    )


def noise(rows: int, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def test_nearest_windows_equal_those_of_scikit_learn() -> None:
    vectors, queries = noise(300), noise(3, seed=1)
    for query in queries:
        oracle = NearestNeighbors(n_neighbors=12, metric="cosine").fit(vectors)
        distance, rows = oracle.kneighbors(query[None])
        found = nearest(table(vectors), query[None], 12)
        assert found.rows.tolist() == rows[0].tolist() and found.exact
        assert found.cosine == pytest.approx(1 - distance[0], abs=1e-6)


def test_of_several_vectors_the_nearest_counts() -> None:
    vectors, queries = noise(200).astype(np.float64), noise(3, seed=1).astype(np.float64)
    length = np.linalg.norm(vectors, axis=1)[:, None] * np.linalg.norm(queries, axis=1)
    expected = (vectors @ queries.T / length).max(axis=1)
    found = nearest_exact(table(vectors), queries, 200)
    assert found.cosine == pytest.approx(np.sort(expected)[::-1])
    assert found.cosine == pytest.approx(expected[found.rows])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 60), st.integers(1, 70), st.integers(1, 100))
def test_the_size_of_the_chunks_changes_nothing(seed: int, rows: int, k: int, chunk: int) -> None:
    random = np.random.default_rng(seed)
    vectors = random.integers(-1, 2, (rows, 3)).astype(np.float32)  # many ties, some without a direction
    skipped = random.random(rows) < 0.2
    query = np.array([[1.0, 2.0, 0.5]])
    whole = nearest_exact(table(vectors), query, k, skipped)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", chunk)
        parts = nearest_exact(table(vectors), query, k, skipped)
    assert parts.rows.tolist() == whole.rows.tolist() and parts.cosine.tolist() == whole.cosine.tolist()
    there = vectors.any(axis=1) & ~skipped
    assert len(whole.rows) == min(k, there.sum()) and there[whole.rows].all()
    order = list(zip(-whole.cosine, whole.rows, strict=True))
    assert order == sorted(order)  # ties go to the earlier row


def peak_of(look: Callable[[], Any]) -> int:
    """Bytes that are held at once while it looks."""
    import tracemalloc

    tracemalloc.start()
    look()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 2**14)
    peaks = []
    for rows in (2_000, 40_000):
        np.save(tmp_path / "v.npy", noise(rows, 16))
        one = table(np.load(tmp_path / "v.npy", mmap_mode="r"))
        peaks.append(peak_of(lambda one=one: nearest_exact(one, noise(1, 16), 10)))
    assert peaks[1] < 1.2 * peaks[0] < 40_000 * 16 * 4 / 2


def test_memory_does_not_grow_with_the_queries_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 2**16)
    one, many = table(noise(20_000, 16)), noise(2_000, 16, seed=1)
    alone, all_of_them = (peak_of(lambda q=q: nearest_exact(one, q, 10)) for q in (many[:1], many))
    assert all_of_them < alone + 3 * many.nbytes  # the queries themselves, as float64 and at length 1
    assert all_of_them < 2_000 * (2**16 // 16) * 8 / 10


def test_half_precision_is_searched_as_it_is() -> None:
    vectors = noise(50).astype(np.float16)
    one, other = (nearest_exact(table(v), noise(1, seed=1), 5) for v in (vectors, vectors.astype(np.float64)))
    assert one.rows.tolist() == other.rows.tolist() and one.cosine.tolist() == other.cosine.tolist()


def test_bad_vectors_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = noise(20)
    vectors[13, 2] = np.nan
    monkeypatch.setattr(module, "_CHUNK", 16)
    with pytest.raises(UserError, match=r"13\.mp4 at 0 s \(row 13\) is not finite.*embed this file again"):
        nearest_exact(table(vectors), noise(1), 3)
    good = table(noise(20))
    with pytest.raises(UserError, match=r"query's vectors are \[1, 5\].*have 8 numbers each"):
        nearest_exact(good, noise(1, 5), 3)
    with pytest.raises(UserError, match="not finite"):
        nearest_exact(good, np.full((1, 8), np.inf), 3)
    with pytest.raises(UserError, match="no direction"):
        nearest_exact(good, np.zeros((1, 8)), 3)
    with pytest.raises(UserError, match="holds no windows"):
        nearest_exact(table(noise(0)), noise(1), 3)


needs_faiss = pytest.mark.skipif(not has_faiss(), reason="faiss is not installed (the extra 'search')")


def saved(folder: Path, vectors: np.ndarray, **more: Any) -> Embeddings:
    """The table of `table`, on disk and read back."""
    one = table(vectors, **more)
    save_embeddings(folder, one.about, one.file.tolist(), one.start, one.end, one.label, vectors)
    return read_embeddings(folder)


def lumps(rows: int, width: int = 16) -> np.ndarray:
    """As embeddings are: around some directions."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((30, width))
    return (centres[random.integers(0, 30, rows)] + 0.4 * random.standard_normal((rows, width))).astype(
        np.float32
    )


@needs_faiss
def test_beyond_the_threshold_the_index_finds_nearly_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = saved(tmp_path / "features", lumps(4000))
    monkeypatch.setattr(module, "EXACT_UP_TO", 3999)
    shared = 0
    for row in range(0, 400, 10):
        query, own = np.asarray(one.vectors[[row]]), np.arange(4000) == row
        found = nearest(one, query, 10, own)
        exact = nearest(one, query, 10, own, exact=True)
        assert not found.exact and exact.exact and row not in found.rows
        shared += len(set(found.rows.tolist()) & set(exact.rows.tolist()))
        cosine = dict(zip(exact.rows.tolist(), exact.cosine, strict=True))
        for there, value in zip(found.rows.tolist(), found.cosine, strict=True):
            assert value == cosine.get(there, value)  # candidates are compared exactly
    assert shared >= 0.95 * 400


@needs_faiss
def test_an_index_is_built_once_and_again_when_the_vectors_change(tmp_path: Path) -> None:
    one = saved(tmp_path / "features", lumps(500))
    query = np.asarray(one.vectors[[7]])
    first = nearest_indexed(one, query, 3)
    built = (tmp_path / "features" / module.INDEX).stat()
    assert nearest_indexed(one, query, 3).rows.tolist() == first.rows.tolist()
    assert (tmp_path / "features" / module.INDEX).stat().st_mtime_ns == built.st_mtime_ns
    shutil.copytree(tmp_path / "features", tmp_path / "kept")
    one = saved(tmp_path / "features", lumps(600)[::-1].copy())
    for name in (module.INDEX, module.ABOUT):  # an index of other vectors, left behind
        shutil.copy(tmp_path / "kept" / name, tmp_path / "features" / name)
    assert nearest_indexed(one, np.asarray(one.vectors[[7]]), 1).rows.tolist() == [7]
    file = tmp_path / "features" / module.INDEX
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged; remove it, and it is built again"):
        nearest_indexed(one, query, 3)
    file.unlink()
    assert nearest_indexed(one, np.asarray(one.vectors[[7]]), 1).rows.tolist() == [7]


@needs_faiss
def test_the_index_is_asked_and_candidates_are_compared_some_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, many = saved(tmp_path / "features", lumps(6000)), lumps(3000)
    own = np.arange(6000) % 7 == 0
    whole = nearest_indexed(one, many, 20, own)
    monkeypatch.setattr(module, "_CHUNK", 2**16)
    found: list[Nearest] = []
    peak = peak_of(lambda: found.append(nearest_indexed(one, many, 20, own)))
    assert found[0].rows.tolist() == whole.rows.tolist()
    assert found[0].cosine.tolist() == whole.cosine.tolist() and not own[found[0].rows].any()
    assert peak < 3000 * (8 * 20 + own.sum()) * 8 / 10  # what the index would answer for all at once


@needs_faiss
@pytest.mark.parametrize("damage", [b"\xff\xfe", b"{", b"[]", b""])
def test_an_index_whose_stamp_cannot_be_read_is_built_again(tmp_path: Path, damage: bytes) -> None:
    one = saved(tmp_path / "features", lumps(500))
    query, stamp = np.asarray(one.vectors[[7]]), tmp_path / "features" / module.ABOUT
    first, whole = nearest_indexed(one, query, 3), stamp.read_bytes()
    stamp.write_bytes(damage)
    assert nearest_indexed(one, query, 3).rows.tolist() == first.rows.tolist()
    assert stamp.read_bytes() == whole


def test_without_faiss_large_tables_are_compared_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_UP_TO", 10)
    monkeypatch.setattr(module, "has_faiss", lambda: False)
    assert nearest(table(noise(30)), noise(1), 3).exact


def hits(stretches: list[tuple[str, float]], top: int) -> list[tuple[str, float, float, int]]:
    """Windows of 4 s, the nearest first; file, start, end and number of the windows of each hit."""
    one = table(noise(len(stretches)), [f for f, _ in stretches], [s for _, s in stretches])
    ranking = Nearest(np.arange(len(stretches)), np.linspace(1, 0, len(stretches)), True)
    return [(hit.file, hit.start, hit.end, hit.windows) for hit in merge(one, ranking, top)]


def test_overlapping_windows_of_a_file_are_one_hit() -> None:
    assert hits([("a", 2), ("a", 0), ("b", 0), ("a", 4)], 4) == [("a", 0, 8, 3), ("b", 0, 4, 1)]
    assert hits([("a", 0), ("a", 4)], 2) == [("a", 0, 4, 1), ("a", 4, 8, 1)]  # they only touch
    # the third joins the first two
    assert hits([("a", 0), ("a", 6), ("a", 3)], 3) == [("a", 0, 10, 3)]


def test_places_that_joining_frees_are_filled_and_hits_do_not_creep() -> None:
    found = hits([("a", 0), ("a", 2), ("a", 4), ("b", 0), ("b", 2), ("c", 0)], 2)
    # a's window from 4 s and b's from 2 s are not among the two nearest: they make no hit longer
    assert found == [("a", 0, 6, 2), ("b", 0, 4, 1)]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40)), max_size=30, unique=True),
    st.integers(1, 8),
)
def test_hits_never_overlap_and_are_the_nearest_first(windows: list[tuple[str, int]], top: int) -> None:
    one = table(noise(len(windows)), [f for f, _ in windows], [s / 2 for _, s in windows])
    found = merge(one, Nearest(np.arange(len(windows)), np.linspace(1, 0, len(windows)), True), top)
    assert len(found) <= top and [h.cosine for h in found] == sorted((h.cosine for h in found), reverse=True)
    for place, hit in enumerate(found):
        assert one.start[hit.row] >= hit.start and one.end[hit.row] <= hit.end
        for other in found[:place]:
            assert other.file != hit.file or other.end <= hit.start or hit.end <= other.start
    if windows:
        assert found[0].row == 0
    if len(found) < top:  # then every window is in a hit, or overlaps one
        for file, half in windows:
            assert any(h.file == file and half / 2 < h.end and h.start < half / 2 + 4 for h in found)


def test_a_search_leaves_out_what_overlaps_the_query() -> None:
    vectors = noise(6)
    vectors[1:3] = vectors[0] + 0.01
    one = table(vectors, ["a", "a", "a", "b", "b", "c"], [0, 2, 4, 0, 4, 0])
    found = search(one, query_of_row(one, 0), top=10)
    assert found.hits[0] == Hit("a", 4, 8, found.hits[0].cosine, 2, 1, None)  # 2-6 s overlaps 0-4 s
    assert {(hit.file, hit.start) for hit in found.hits} == {("a", 4), ("b", 0), ("b", 4), ("c", 0)}
    with pytest.raises(UserError, match="top=0"):
        search(one, query_of_row(one, 0), top=0)
    with pytest.raises(UserError, match=r"no row 6.*rows 0 to 5"):
        query_of_row(one, 6)


def test_top_is_reached_even_where_nearly_all_windows_overlap() -> None:
    # 500 windows of one file crowd in front, 3 more files are far
    vectors = np.concatenate(
        [np.ones((500, 4)) + 0.001 * noise(500, 4), -np.ones((3, 4)) + noise(3, 4) / 9, [[1, 1, 1, 1.0]]]
    )
    one = table(vectors, ["a"] * 500 + ["b", "c", "d", "q"], [*np.arange(500) / 1000, 0, 0, 0, 0])
    found = search(one, query_of_row(one, 503), top=4)
    assert found.hits[0].file == "a" and {hit.file for hit in found.hits} == {*"abcd"}


def test_a_query_in_the_table_needs_no_encoder() -> None:
    one = table(noise(5), ["a", "a", "a", "b", "c"], [0, 2, 4, 0, 0])
    assert query_of_file(one, "a", 2.6).rows.tolist() == [1]
    assert query_of_file(one, "a", 2.0, 6.004).rows.tolist() == [1]
    assert query_of_file(one, "a", end=4.0).rows.tolist() == [0]
    whole = query_of_file(one, "a")
    assert whole.rows.tolist() == [0, 1, 2] and (whole.start, whole.end) == (0, 8)
    assert whole.own.tolist() == [True, True, True, False, False]
    for start, end, said in (
        (-1, None, "hold no video"),
        (3, 2, "hold no video"),
        (9, None, "nearest is 4 to 8 s"),
    ):
        with pytest.raises(UserError, match=said):
            query_of_file(one, "a", start, end)
    with pytest.raises(UserError, match=r'neither in features nor on disk; did you mean "aaa\.mp4"'):
        query_of_file(table(noise(1), ["aaa.mp4"]), "aab.mp4")


def test_start_alone_takes_a_window_that_holds_this_second() -> None:
    one = table(noise(5), ["a", "a", "a", "b", "b"], [0, 2, 4, 0, 10])
    # the window from 4 s begins nearest to 3.9 s, but does not hold it
    assert query_of_file(one, "a", 3.9).rows.tolist() == [1]
    assert query_of_file(one, "a", 3.99).rows.tolist() == [2]  # as near as a time told to two decimals can be
    assert query_of_file(one, "b", 3.9).rows.tolist() == [3]
    for start, near in ((4.0, "0 to 4"), (6.5, "0 to 4"), (7.5, "10 to 14"), (14.0, "10 to 14")):
        with pytest.raises(
            UserError, match=rf"no window of b in features holds second {start:g}; the nearest is {near} s"
        ):
            query_of_file(one, "b", start)


def test_a_long_videos_seconds_are_named_to_their_last_digit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "f", noise(4), file=["a", "a", "b", "b"], start=[12345.67, 12349.67, 0, 4])
    answer(tmp_path / "f", "a", 12345.678, top=3)
    assert "--query a --start 12345.678 --top 3" in capsys.readouterr().out
    answer(tmp_path / "f", "a", 12345.67, 12349.67)
    assert "--start 12345.67 --end 12349.67\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"the nearest is 12349\.67 to 12353\.67 s: .*--start 12349\.67"):
        query_of_file(read_embeddings(tmp_path / "f"), "a", 12399.123)


def test_images_without_times_can_be_asked_for_and_are_not_found_themselves() -> None:
    one = table(noise(3), ["a", "a", "b"], [np.nan, np.nan, np.nan])
    assert [hit.row for hit in search(one, query_of_file(one, "a")).hits] == [2]
    assert between(np.nan, np.nan) == "all of it"
    with pytest.raises(UserError, match="images without times"):
        query_of_file(one, "a", 1.0)


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of 6 s, an encoder of random weights, and its features of four of them."""
    root = tmp_path_factory.mktemp("footage")
    vit = ViT(48, 2, 3)
    vit.init_weights()
    save_encoder(vit, root / "encoder", Geometry(frames=4, fps=2.0, crop_size=32), {"name": "little"})
    for number in range(5):
        write_video(root / "clips" / f"{number}.mp4", range(150 * number, 150 * number + 150))
    (root / "clips" / "4.mp4").rename(root / "other.mp4")
    rows = [f"clips/{n}.mp4,{'even' if n % 2 == 0 else 'odd'}" for n in range(4)]
    (root / "labels.csv").write_text("\n".join(["path,label", *rows]))
    spec = str(root / "encoder")
    embed(
        load_encoder(spec),
        root / "labels.csv",
        root / "features",
        window="2s",
        stride="1s",
        progress=False,
    )
    return root


def test_a_query_is_embedded_exactly_as_the_table_was(footage: Path) -> None:
    one = read_embeddings(footage / "features")
    shutil.copy(footage / "clips" / "2.mp4", footage / "copy.mp4")
    query = query_of_file(one, footage / "copy.mp4", device="cpu")
    mine = [Path(name).name == "2.mp4" for name in one.file]
    assert query.vectors == pytest.approx(one.vectors[mine], abs=1e-5) and not query.own.any()
    part = query_of_file(one, footage / "copy.mp4", 2.0, 4.0, device="cpu")
    assert part.vectors == pytest.approx(one.vectors[mine][[2]], abs=1e-5)
    best = search(one, part, 3).hits[0]
    assert Path(best.file).name == "2.mp4" and best.cosine > 0.9999 and one.start[best.row] == 2.0


def test_a_query_is_embedded_by_published_weights_read_as_they_were(
    footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A file of two encoders of no known size, one tensor short: what the command was told is told again."""
    vit = ViT(48, 2, 3, positions=Rotary(legacy=True))
    vit.init_weights()
    state = named_as(vit, VJEPA2)
    short = {name: tensor for name, tensor in state.items() if name != "norm.bias"}
    file = tmp_path / "vit.pt"
    torch.save({"target_encoder": {"norm.bias": torch.zeros(48)}, "encoder": short}, file)
    command = ["embed", str(file), "--data", str(footage / "clips" / "1.mp4"), "--out", str(tmp_path / "f")]
    command += ["--window", "2s", "--batch-size", "1", "--device", "cpu"]
    assert main([*command, "--which", "encoder"]) == 2
    assert "say heads=NUMBER" in capsys.readouterr().err
    assert main([*command, "--which", "encoder", "--heads", "3"]) == 2
    assert "allow_partial" in capsys.readouterr().err
    with caplog.at_level("INFO", "tubelet"):
        assert main([*command, "--which", "encoder", "--heads", "3", "--allow-partial"]) == 0
    assert any(
        "V-JEPA 2 (encoder), licence MIT if published by Meta" in line and "left random" in line
        for line in caplog.messages
    )
    one = read_embeddings(tmp_path / "f")
    assert one.about["encoder"]["which"] == "encoder" and one.about["encoder"]["heads"] == 3
    shutil.copy(footage / "clips" / "1.mp4", tmp_path / "copy.mp4")
    query = query_of_file(one, tmp_path / "copy.mp4", 0.0, 2.0, device="cpu")
    assert query.vectors == pytest.approx(one.vectors[:1], abs=1e-4)


def test_a_stretch_of_a_file_in_the_table_does_not_find_itself(footage: Path) -> None:
    one = read_embeddings(footage / "features")
    query = query_of_file(one, footage / "clips" / "1.mp4", 1.5, 3.5, device="cpu")
    assert not len(query.rows) and len(query.vectors) == 1
    mine = np.array([Path(name).name == "1.mp4" for name in one.file])
    assert query.own.tolist() == (mine & (one.start < 3.5) & (one.end > 1.5)).tolist()
    assert not {hit.row for hit in search(one, query).hits} & set(np.flatnonzero(query.own).tolist())


def test_a_stretch_behind_the_last_window_is_embedded(footage: Path) -> None:
    """The table ends at 4 s of the file, as where the last window was not whole; the file does not."""
    one = read_embeddings(footage / "features")
    kept = np.flatnonzero(one.end < 4.5)
    short = replace(
        one,
        file=one.file[kept],
        start=one.start[kept],
        end=one.end[kept],
        label=[one.label[row] for row in kept],
        kept=np.asarray(one.vectors[kept]),
        group=[one.group[row] for row in kept],
    )
    query = query_of_file(short, footage / "clips" / "1.mp4", 4.0, 6.0, device="cpu")
    (row,) = (row for row in range(len(one)) if Path(one.file[row]).name == "1.mp4" and one.start[row] == 4.0)
    assert query.vectors == pytest.approx(one.vectors[[row]], abs=1e-5) and not query.own.any()
    gone = replace(short, file=np.array([f"/gone/{Path(name).name}" for name in short.file], object))
    with pytest.raises(
        UserError, match=r"not at its place any more, and this stretch is none of its windows"
    ):
        query_of_file(gone, "/gone/1.mp4", 4.0, 6.0)


@pytest.mark.parametrize(
    ("without", "said"),
    [
        (("clip", "pool", "views", "window_s", "stride_s"), "clip, pool, views, window_s, stride_s"),
        (("views",), "views"),
        (("clip.frames",), "clip.frames"),
        (("clip.fps",), "clip.fps"),
    ],
)
def test_a_table_that_does_not_say_how_it_was_made_is_queried_by_its_own_windows_only(
    footage: Path, tmp_path: Path, without: tuple[str, ...], said: str
) -> None:
    one = read_embeddings(footage / "features")
    about = {name: value for name, value in one.about.items() if name not in without}
    if "clip" in about:
        about["clip"] = {k: v for k, v in about["clip"].items() if f"clip.{k}" not in without}
    rows = np.asarray(one.vectors)
    save_embeddings(tmp_path / "f", about, one.file.tolist(), one.start, one.end, one.label, rows)
    other = read_embeddings(tmp_path / "f")
    assert len(query_of_file(other, footage / "clips" / "1.mp4").rows) == 5
    with pytest.raises(UserError, match=rf"embeddings\.json does not say {re.escape(said)}: nothing can be"):
        query_of_file(other, footage / "other.mp4", device="cpu")


def test_a_file_is_known_by_another_name_for_its_place(
    footage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(footage / "clips")
    one = read_embeddings(footage / "features")
    assert len(query_of_file(one, "../clips/1.mp4").rows) == 5


def test_an_index_built_by_another_encoder_is_refused(footage: Path, tmp_path: Path) -> None:
    one = read_embeddings(footage / "features")
    changed = {**one.about, "encoder": {**one.about["encoder"], "digest": "f" * 16}}
    other = replace(one, about=changed)
    with pytest.raises(UserError, match="an index built by another encoder: little, digest ffffffffffffffff"):
        query_of_file(other, footage / "other.mp4", device="cpu")
    changed["encoder"]["spec"] = str(tmp_path / "gone")
    with pytest.raises(UserError, match=r"cannot be loaded.*gone.*or ask for windows that are in the table"):
        query_of_file(other, footage / "other.mp4", device="cpu")


def test_the_command_writes_a_table_and_a_page(
    footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", str(footage / "features"), "--query", str(footage / "other.mp4"), "--start", "1"]
    assert main([*words, "--end", "3", "--top", "3", "--device", "cpu", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    record = json.loads((tmp_path / "results.json").read_text())
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert [row["file"] for row in rows] == [hit["file"] for hit in record["hits"]]
    assert all(row["file"] in said and row["label"] in ("even", "odd") for row in rows)
    assert (record["query"]["start"], record["query"]["end"], record["exact"]) == (1.0, 3.0, True)
    page = (tmp_path / "report.html").read_text()
    assert_asks_for_nothing(page)
    assert page.count('alt="frames of') == 4 and "other.mp4 0:01.0–0:03.0" in page
    assert "20 windows, all compared" in page and "Could not be read" not in page


def test_more_than_there_is_is_no_error(footage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(footage / "features", footage / "clips" / "0.mp4", top=1000)
    assert 3 <= len(found.hits) <= 15 and len({hit.file for hit in found.hits}) == 3
    assert "0.mp4, 0:00.0–0:06.0" in capsys.readouterr().out


def test_missing_videos_are_named_and_the_page_is_made(footage: Path, tmp_path: Path) -> None:
    one = read_embeddings(footage / "features")
    (tmp_path / "torn.mp4").write_bytes(b"no video")
    instead = {"1.mp4": tmp_path / "gone.mp4", "2.mp4": tmp_path / "torn.mp4"}
    names = [str(instead.get(Path(name).name, name)) for name in one.file]
    save_embeddings(tmp_path / "f", one.about, names, one.start, one.end, one.label, np.asarray(one.vectors))
    answer(tmp_path / "f", names[0], 0.0, top=20, out=tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Could not be read: gone.mp4 (the file is not there); torn.mp4 (" in page
    assert page.count("(cannot be read)") >= 2


def test_damaged_folders_and_odd_words_end_in_one_line(
    footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(footage / "features", tmp_path / "torn")
    (tmp_path / "torn" / "vectors.npy").write_bytes(b"nothing")
    features = str(footage / "features")
    for words, said in (
        ([str(tmp_path / "none"), "--query", "a"], "does not exist"),
        ([str(tmp_path / "torn"), "--query", "a"], "vectors.npy is damaged"),
        ([features], "--query FILE, or --evaluate"),
        ([features, "--query", "a.mp4", "--evaluate"], "--query FILE, or --evaluate"),
        ([features, "--query", str(footage / "clips" / "0.mp4"), "--top", "-1"], "top=-1"),
    ):
        assert main(["search", *words]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert re.search(said, line)


def judged_by_hand(vectors: np.ndarray, files: np.ndarray, label: np.ndarray, name: str) -> float:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = []
    for row in np.flatnonzero(label == name):
        others = files != files[row]
        if (label[others] == name).any():
            found.append(average_precision_score(label[others] == name, unit[others] @ unit[row]))
    return float(np.mean(found))


def test_map_per_class_equals_scikit_learns_with_own_files_left_out() -> None:
    random = np.random.default_rng(0)
    files = np.array([f"{i // 5}.mp4" for i in range(60)])
    label = np.array(["abc"[i // 5 % 3] for i in range(60)])
    vectors = random.standard_normal((60, 6)) + 0.7 * np.eye(6)[(np.arange(60) // 5) % 3]
    judged = judge_search(table(vectors, files.tolist(), np.arange(60) % 5 * 4.0, label))
    expected = {name: judged_by_hand(vectors, files, label, name) for name in "abc"}
    assert {name: values["map"] for name, values in judged.classes.items()} == pytest.approx(expected)
    assert judged.overall.map == pytest.approx(np.mean(list(expected.values())))
    assert (judged.windows, judged.files, judged.drawn) == (60, 12, False)


def test_map_other_groups_equals_scikit_learns_with_own_groups_left_out(tmp_path: Path) -> None:
    """Groups of two files; the last four files have none, and are a group each."""
    random = np.random.default_rng(0)
    number = np.arange(60) // 5
    files = np.array([f"{i}.mp4" for i in number])
    label = np.array(["abc"[i // 2 % 3] for i in number])
    group = [f"g{i // 2}" if i < 8 else None for i in number]
    alone = np.array([name or file for name, file in zip(group, files, strict=True)])
    vectors = random.standard_normal((60, 6)) + 0.7 * np.eye(6)[number // 2 % 3]
    vectors += 2 * random.standard_normal((12, 6))[number // 2]  # what is of a group is alike
    judged = judge_search(table(vectors, files.tolist(), np.arange(60) % 5 * 4.0, label, group=group))
    within = {name: judged_by_hand(vectors, files, label, name) for name in "abc"}
    apart = {name: judged_by_hand(vectors, alone, label, name) for name in "abc"}
    assert {name: values["map"] for name, values in judged.classes.items()} == pytest.approx(within)
    assert {name: values["map_other_groups"] for name, values in judged.classes.items()} == pytest.approx(
        apart
    )
    assert judged.elsewhere is not None and judged.elsewhere.map < judged.overall.map
    assert judged.elsewhere.map == pytest.approx(np.mean(list(apart.values())))
    assert judged.groups == len(set(alone)) == 8
    judged.save(tmp_path, {})
    record = json.loads((tmp_path / "retrieval.json").read_text())
    assert record["map_other_groups"] == judged.elsewhere.map and record["groups"] == 8
    assert record["intervals"]["map_other_groups"] == list(judged.elsewhere.intervals["map"])
    low, high = judged.overall.intervals["map"]
    single = judge_search(table(vectors, files.tolist(), np.arange(60) % 5 * 4.0, label))
    assert (low, high) != single.overall.intervals["map"]  # groups are drawn again, not files
    assert single.elsewhere is None and single.groups == 0
    said = "\n".join(judged_lines(judged))
    assert "map_other_groups" in said and "those of their own group do not count either (8 groups)" in said
    said = "\n".join(judged_lines(single))
    assert "map_other_groups" not in said and "No groups are known" in said
    assert "map_other_groups" in judged_page(table(vectors), judged).html()


def test_groups_that_share_a_file_are_one_and_may_leave_nothing_to_find() -> None:
    files, group = ["a", "a", "b", "b", "c", "c"], ["x", "y", "y", "y", "z", "z"]
    one = table(noise(6), files, [0, 4] * 3, list("kkkkll"), group=group)
    judged = judge_search(one)
    assert judged.groups == 2 and judged.elsewhere is None
    assert all(np.isnan(values["map_other_groups"]) for values in judged.classes.values())
    assert "No class occurs in two of the 2 groups" in "\n".join(judged_lines(judged))


def test_classes_of_one_file_are_undefined_and_labels_are_needed(tmp_path: Path) -> None:
    one = table(noise(6), ["a", "a", "b", "b", "c", "c"], [0, 4] * 3, ["x", "x", "x", "x", "y", None])
    judged = judge_search(one)
    assert np.isnan(judged.classes["y"]["map"]) and judged.classes["y"]["asked"] == 0
    assert judged.left_out == 1 and judged.overall.skipped == 1
    judged.save(tmp_path, {})
    record = json.loads((tmp_path / "retrieval.json").read_text())
    assert [row["map"] is None for row in record["classes"]] == [False, True]
    with pytest.raises(UserError, match="no labels"):
        judge_search(table(noise(3)))
    with pytest.raises(UserError, match="no class occurs in two files"):
        judge_search(table(noise(3), label=["x", "y", "z"]))


def test_of_too_many_windows_whole_files_are_drawn() -> None:
    files = [f"{i // 4}" for i in range(80)]
    one = table(noise(80), files, np.arange(80) % 4 * 4.0, ["x", "y"] * 40)
    judged = judge_search(one, most=30)
    assert (judged.windows, judged.files, judged.drawn) == (28, 7, True)
    assert judge_search(one, most=30).overall.values == judged.overall.values
    assert judge_search(one, seed=1, most=30).overall.values != judged.overall.values


def test_the_command_judges(footage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(footage / "features"), "--evaluate", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "20 windows of 4 files asked" in said and "recall@10" in said
    with (tmp_path / "retrieval.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["even", "odd"]
    record = json.loads((tmp_path / "retrieval.json").read_text())
    assert record["map"] == pytest.approx(np.mean([float(row["map"]) for row in rows]))
    assert_asks_for_nothing((tmp_path / "report.html").read_text())


def test_frames_are_those_of_the_stretch(footage: Path, tmp_path: Path) -> None:
    from video import numbers_in

    clip = frames_between(footage / "clips" / "2.mp4", 2.0, 4.0, 5)
    assert numbers_in(clip) == [350, 362, 374, 387, 399]
    (late,) = frames_between(footage / "clips" / "2.mp4", 3.01, 3.02, 1)
    assert numbers_in(late[None]) == [375]  # none appears in between: the one on screen
    images = frames_between(write_images(tmp_path / "images"), np.nan, np.nan, 3)
    assert images.shape[0] == 3


def test_the_documentation_runs(footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent.parent / "docs" / "search.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.S)
    shutil.copytree(footage / "features", tmp_path / "features")
    shutil.copy(footage / "other.mp4", tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(compile(block, "search.md", "exec"), space)
    assert 4 <= len(space["found"].hits) <= 10 and space["groups"].groups >= 2
    for line in re.findall(r"^tubelet (search|browse|cluster) features/(.*?)(?:#|$)", text, re.M):
        parser = {name: add for name, (add, _) in COMMANDS.items()}[line[0]]
        commands = argparse.ArgumentParser().add_subparsers()
        parser(commands, line[0])
        commands.choices[line[0]].parse_args(["features/", *shlex.split(line[1])])


def test_a_table_made_in_python_is_queried_from_any_folder(
    footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Clips that are not the encoder's, and the encoder moved away in the end."""
    shutil.copytree(footage / "encoder", tmp_path / "encoder")
    monkeypatch.chdir(tmp_path)
    loaded = load_encoder("encoder")
    geometry = replace(loaded.geometry, frames=2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    data = footage / "clips" / "1.mp4"
    one = embed(replace(loaded, geometry=geometry), data, "f", window="2s", progress=False)
    monkeypatch.chdir("/")
    one = read_embeddings(tmp_path / "f")
    shutil.copy(data, tmp_path / "copy.mp4")
    query = query_of_file(one, tmp_path / "copy.mp4", device="cpu")
    assert query.vectors == pytest.approx(one.vectors, abs=1e-5)
    (tmp_path / "encoder").rename(tmp_path / "moved")
    words = ["search", str(tmp_path / "f"), "--query", str(tmp_path / "copy.mp4"), "--device", "cpu"]
    assert main(words) == 2
    assert "--encoder" in capsys.readouterr().err
    words += ["--encoder", str(tmp_path / "moved"), "--top", "2"]
    assert main(words) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("to play them")]
    kept = shlex.split(line.partition(": ")[2])
    assert (
        kept[kept.index("--encoder") + 1] == str(tmp_path / "moved") and kept[kept.index("--top") + 1] == "2"
    )
    assert kept[kept.index("--device") + 1] == "cpu"


def test_a_table_that_does_not_say_where_its_encoder_is(footage: Path) -> None:
    one = read_embeddings(footage / "features")
    nameless = {name: value for name, value in one.about["encoder"].items() if name != "spec"}
    other = replace(one, about={**one.about, "encoder": nameless})
    with pytest.raises(
        UserError, match=r"little \(digest \w+\), and the table does not say where that is.*--encoder"
    ):
        query_of_file(other, footage / "other.mp4", device="cpu")
    found = query_of_file(other, footage / "other.mp4", device="cpu", encoder=footage / "encoder")
    assert len(found.vectors) == 5


@pytest.mark.parametrize("becomes", ["a file elsewhere", "an encoder of ours", "of a run"])
def test_an_encoder_that_moved_is_read_as_it_is_by_now(footage: Path, tmp_path: Path, becomes: str) -> None:
    """The table was made with heads and which; elsewhere both may be needed, one, or none."""
    torch.manual_seed(0)
    models = [ViT(48, 2, 2, patch=(2, 8, 8), positions=Rotary(legacy=True)) for _ in range(2)]
    wrapped = [{f"module.backbone.{n}": t.clone() for n, t in named_as(m, VJEPA2).items()} for m in models]
    file, run = tmp_path / "odd.pt", tmp_path / "run"
    torch.save(
        {"target_encoder": wrapped[0], "encoder": wrapped[1], "predictor": {"norm.weight": torch.ones(9)}},
        file,
    )
    loaded = load_encoder(file, Geometry(4, 4.0, 1, 32), "encoder", heads=2)
    data = footage / "clips" / "1.mp4"
    embed(loaded, data, tmp_path / "f", window="2s", progress=False)
    if becomes == "of a run":
        table = json.loads((tmp_path / "f" / "embeddings.json").read_text())
        table["encoder"] |= {"which": "teacher", "heads": None}  # as of a run's second encoder
        (tmp_path / "f" / "embeddings.json").write_text(json.dumps(table))
        for model, name in zip(models, ("encoder", "encoder-teacher"), strict=True):
            save_encoder(
                model, run / name, loaded.geometry, {"which": "student"} if name == "encoder" else {}
            )
    elif becomes == "an encoder of ours":
        save_encoder(models[1], run, loaded.geometry, {})
    else:
        shutil.copy(file, run := tmp_path / "elsewhere.pt")
    file.unlink()
    shutil.copy(data, tmp_path / "copy.mp4")
    table = read_embeddings(tmp_path / "f")
    query = query_of_file(table, tmp_path / "copy.mp4", device="cpu", encoder=run)
    assert query.vectors == pytest.approx(table.vectors, abs=1e-5)


def test_a_video_that_was_moved_is_said_to_be(footage: Path) -> None:
    one = read_embeddings(footage / "features")
    gone = replace(one, file=np.array([f"/gone/{Path(name).name}" for name in one.file], object))
    assert len(query_of_file(gone, "/gone/1.mp4", 1.0).rows) == 1
    with pytest.raises(UserError, match=r"not at its place any more.*or name the file where it is now"):
        query_of_file(gone, "/gone/1.mp4", 0.3, 1.1)


def test_options_of_a_query_are_refused_where_there_is_none(
    footage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    features = str(footage / "features")
    options = [["--start", "0"], ["--end", "2"], ["--top", "10"], ["--head", "a"], ["--encoder", "a"]]
    options += [["--device", "auto"]]
    for option in (*options, ["--exact"]):
        assert main(["search", features, "--evaluate", *option]) == 2
        assert f"{option[0]} is of a query" in capsys.readouterr().err
    for option in options:
        assert main(["browse", features, *option]) == 2
        assert f"{option[0]} is of a query; give --query FILE too" in capsys.readouterr().err
    assert main(["search", features, "--query", "a.mp4", "--seed", "0"]) == 2
    assert "--seed is of --evaluate" in capsys.readouterr().err


def test_vectors_too_wide_to_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 20 * 8 * 8 - 1)
    one = table(noise(20), label=["a", "b"] * 10)
    for look in (judge_search, cluster):
        with pytest.raises(UserError, match=r"has 8 numbers a window, and 20 windows at once.*--pool mean"):
            look(one)
        look(table(noise(19), label=["a", "b"] * 9 + ["a"]))


@needs_faiss
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_no_room_for_the_index_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = saved(tmp_path / "f", noise(300))
    with monkeypatch.context() as patch:
        patch.setattr(module, "writing", lambda _: writing(Path("/dev/full")))
        with pytest.raises(UserError, match="no room left on disk"):
            nearest_indexed(one, noise(1), 3)
    assert not (tmp_path / "f" / module.INDEX).exists()
    assert len(nearest_indexed(one, noise(1), 3).rows) == 3
