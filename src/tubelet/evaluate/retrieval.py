"""Retrieval within a set: do the nearest clips show the same thing?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.data.manifest import Video
from tubelet.evaluate.metrics import RESAMPLES, group_draws
from tubelet.evaluate.noise import Interval
from tubelet.evaluate.tasks import Task, folds
from tubelet.files import write_json

KS = (1, 5, 10)
EXAMPLES, SHOWN = 4, 5  # queries whose nearest clips are kept to be looked at, and how many clips of each
_CHUNK = 2**22  # similarities held at once


@dataclass(frozen=True)
class Retrieval:
    """What clips find among the others, means over queries.

    map: mean average precision. hits: k -> share of queries with a relevant clip among the k nearest. recall: k ->
    share of all relevant clips that are among the k nearest. queries: how many counted. skipped: how many have no
    relevant clip in the set. intervals: "map", "hit@k", "recall@k" -> 95 % bootstrap interval over groups of queries.
    """

    map: float
    hits: dict[int, float]
    recall: dict[int, float]
    queries: int
    skipped: int
    intervals: dict[str, tuple[float, float]]

    @property
    def values(self) -> dict[str, float]:
        """All means by the names that ``intervals`` has."""
        hits = {f"hit@{k}": value for k, value in self.hits.items()}
        return {"map": self.map, **hits, **{f"recall@{k}": value for k, value in self.recall.items()}}


@dataclass(frozen=True)
class Neighbours:
    """The clips nearest to one. clip: the query. found: int64 [k], nearest first. cosine: float64 [k]."""

    clip: int
    found: np.ndarray
    cosine: np.ndarray


def retrieval(
    features: np.ndarray,
    label: np.ndarray,
    group: np.ndarray | None = None,
    resampled: np.ndarray | None = None,
    seed: int = 0,
) -> Retrieval:
    """Every clip asks for the others of its class, by cosine similarity.

    features: float [n, D]. label: int [n]. The query itself is left out; queries without another clip of their
    class are skipped. Source: BWSSL (arXiv 2601.09040), within the test set; recall@k is ours. group: also leaves
    out the clips of the query's own group, cuts of one recording that are found too easily (ours). resampled: [n],
    the groups that intervals draw again (default: ``group``, or every clip for itself); of the queries only, the set
    that is searched stays.
    Raises ValueError if features are not finite, or if no clip has another of its class.
    """
    cluster = next((one for one in (resampled, group) if one is not None), None)
    return summary(ask(features, label, group), cluster, seed)


def summary(found: Queries, cluster: np.ndarray | None = None, seed: int = 0) -> Retrieval:
    """Means over the queries that were asked. cluster: [q], the groups that intervals draw again (None: queries)."""
    asked, values = found.asked, found.values[found.asked]
    groups = np.arange(len(asked)) if cluster is None else cluster
    means = values.mean(axis=0)
    low, high = _interval(values, groups[asked], seed)
    names = ["map", *(f"hit@{k}" for k in KS), *(f"recall@{k}" for k in KS)]
    return Retrieval(
        map=float(means[0]),
        hits={k: float(v) for k, v in zip(KS, means[1:], strict=False)},
        recall={k: float(v) for k, v in zip(KS, means[1 + len(KS) :], strict=True)},
        queries=int(asked.sum()),
        skipped=int((~asked).sum()),
        intervals={n: (float(a), float(b)) for n, a, b in zip(names, low, high, strict=True)},
    )


@dataclass(frozen=True)
class Queries:
    """What each clip found. values: float64 [q, 1 + 2 * len(KS)], average precision, hits, recalls.

    asked: bool [q], False for clips that have no other of their class to find.
    """

    values: np.ndarray
    asked: np.ndarray


def ask(features: np.ndarray, label: np.ndarray, group: np.ndarray | None = None) -> Queries:
    """What every clip finds among the others; arguments and errors as of `retrieval`."""
    parts = [_judge(label, ranking) for ranking in _rankings(features, group, np.arange(len(features)))]
    found = Queries(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "asked"))
    )
    if not found.asked.any():
        raise ValueError("no clip has another of its class to find")
    return found


def map_difference(
    one: Queries, other: Queries, cluster: np.ndarray | None = None, seed: int = 0
) -> Interval:
    """mAP of ``one`` minus that of ``other`` on the same queries, with its paired 95 % bootstrap interval.

    cluster: [q], the groups that are drawn again (None: every query for itself). The same queries are hard for both,
    so this interval is narrower than those of the two apart suggest.
    """
    assert np.array_equal(one.asked, other.asked), "other queries were asked"
    apart = (one.values - other.values)[one.asked][:, :1]
    groups = np.arange(len(one.asked)) if cluster is None else cluster
    low, high = _interval(apart, groups[one.asked], seed)
    return Interval(float(apart.mean()), float(low[0]), float(high[0]))


def neighbours(
    features: np.ndarray, queries: Sequence[int], k: int = SHOWN, group: np.ndarray | None = None
) -> list[Neighbours]:
    """The ``k`` clips nearest to each of ``queries`` by cosine, fewer where there are not so many.

    Never the query itself, nor, with ``group``, a clip of its group. Raises ValueError if features are not finite.
    """
    found: list[Neighbours] = []
    for ranking in _rankings(features, group, np.asarray(queries, np.int64)):
        for row, clip in enumerate(ranking.queries):
            near = ranking.order[row, : min(k, int(ranking.others[row].sum()))]
            found.append(Neighbours(int(clip), near.numpy(), ranking.cosine[row, near].numpy()))
    return found


@dataclass(frozen=True)
class RetrievalResult:
    """Retrieval on a task's clips, and examples to look at.

    overall: among all clips. elsewhere: among clips of other groups only, where groups are known and it is defined.
    examples: as they go into results.json.
    """

    overall: Retrieval
    elsewhere: Retrieval | None
    examples: list[dict[str, Any]]
    about: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Writes results.json into ``folder``, whole or not at all.

        Keys: "map", "hit@k", "recall@k", "map_other_groups" (null if undefined), "intervals" (name -> [low, high]),
        "asked", "skipped", "queries" (examples), and those of ``about``.
        """
        intervals = {name: list(pair) for name, pair in self.overall.intervals.items()}
        if self.elsewhere is not None:
            intervals["map_other_groups"] = list(self.elsewhere.intervals["map"])
        record = {
            **self.about,
            **self.overall.values,
            "map_other_groups": None if self.elsewhere is None else self.elsewhere.map,
            "intervals": intervals,
            "asked": self.overall.queries,
            "skipped": self.overall.skipped,
            "queries": self.examples,
        }
        write_json(Path(folder) / "results.json", record)


def judge_retrieval(
    features: np.ndarray,
    task: Task,
    videos: Sequence[Video],
    about: dict[str, Any] | None = None,
    clips: np.ndarray | None = None,
    examples: int = EXAMPLES,
    seed: int = 0,
) -> RetrievalResult:
    """Retrieval within the test clips of ``task`` (all clips, if it has no split), as BWSSL does it.

    features: float [clips of the task, D]. videos: the manifest's, in which ``task.rows`` are places. about: what to
    add to results.json, such as the encoder's name. clips: other clips of the task to search within. examples:
    queries whose five nearest clips are kept, of as many classes; which ones depends on task and seed alone, so that
    encoders are shown on the same queries.
    Raises ValueError as `retrieval` does.
    """
    if clips is None:
        clips = np.arange(len(task)) if task.split is None else folds(task)[0].test
    own, label = features[clips], task.label[clips]
    group = None if task.group is None else task.group[clips]
    overall = retrieval(own, label, resampled=group, seed=seed)
    elsewhere = None
    if group is not None and _somewhere_else(label, group):
        elsewhere = retrieval(own, label, group, seed=seed)

    def tell(place: int) -> dict[str, Any]:
        video = videos[int(task.rows[clips[place]])]
        stretch = {name: t for name in ("start", "end") if (t := getattr(video, name)) is not None}
        return {"path": str(video.path), "label": task.classes[label[place]], **stretch}

    shown = []
    for near in neighbours(own, _queries(label, examples, seed)):
        query = tell(near.clip)
        found = [
            {**tell(int(place)), "cosine": float(cosine)}
            for place, cosine in zip(near.found, near.cosine, strict=True)
        ]
        shown.append({"query": query.pop("path"), **query, "found": found})
    return RetrievalResult(overall, elsewhere, shown, about or {})


def _queries(label: np.ndarray, count: int, seed: int) -> list[int]:
    """One clip of each of ``count`` classes (fewer if there are fewer), classes with another clip to find."""
    random = np.random.default_rng(seed)
    classes = [c for c in random.permutation(np.unique(label)) if (label == c).sum() > 1]
    return [int(random.choice(np.flatnonzero(label == c))) for c in classes[:count]]


def _somewhere_else(label: np.ndarray, group: np.ndarray) -> bool:
    """Whether any class occurs in two groups."""
    return any(len(set(group[label == c])) > 1 for c in np.unique(label))


@dataclass(frozen=True)
class _Ranking:
    """Some queries' clips by nearness.

    queries: int64 [q]. order: int64 [q, n], nearest first, clips that do not count last. others: bool [q, n], those
    that count. cosine: float64 [q, n].
    """

    queries: np.ndarray
    order: Tensor
    others: Tensor
    cosine: Tensor


def _rankings(features: np.ndarray, group: np.ndarray | None, queries: np.ndarray) -> Iterator[_Ranking]:
    """Every query against all clips, some queries at a time."""
    if not np.isfinite(features).all():
        raise ValueError("features are not finite: retrieval is undefined")
    rows = F.normalize(torch.as_tensor(features, dtype=torch.float64), dim=1)
    places = np.arange(len(rows)) if group is None else np.unique(group, return_inverse=True)[1]
    apart = torch.as_tensor(places)  # only clips of another place count; without groups each clip has its own
    for part in torch.as_tensor(queries).split(max(1, _CHUNK // max(1, len(rows)))):
        others = apart[None, :] != apart[part, None]
        cosine = rows[part] @ rows.T
        # ties are broken by place in the set, so the result does not depend on the sorting algorithm
        order = cosine.masked_fill(~others, -torch.inf).argsort(dim=1, descending=True, stable=True)
        yield _Ranking(part.numpy(), order, others, cosine)


def _judge(label: np.ndarray, ranking: _Ranking) -> Queries:
    labels = torch.as_tensor(label)
    same = (labels[None, :] == labels[ranking.queries, None]) & ranking.others
    relevant = same.gather(1, ranking.order).double()
    total = relevant.sum(1)
    reached = relevant.cumsum(1)
    precision = reached / torch.arange(1, relevant.shape[1] + 1)
    columns = [(precision * relevant).sum(1) / total]
    within = [reached[:, min(k, relevant.shape[1]) - 1] for k in KS]
    columns += [(count > 0).double() for count in within]
    columns += [count / total for count in within]
    return Queries(torch.stack(columns, 1).numpy(), (total > 0).numpy())


def _interval(values: np.ndarray, cluster: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The middle 95 % of the means [columns] over queries when groups are drawn with replacement."""
    names, place = np.unique(cluster, return_inverse=True)
    n = len(names)
    sums = np.zeros((n, values.shape[1]))
    np.add.at(sums, place, values)
    counts = np.bincount(place, minlength=n)
    draws = group_draws(n, RESAMPLES, len(values), seed)
    means = np.concatenate([(weight @ sums) / (weight @ counts)[:, None] for weight in draws])
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    return low, high
