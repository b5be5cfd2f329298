"""Labels and splits: what a probe is asked, and which clips it may learn from.

Nothing is ever chosen on test clips, and clips of one group (a camera, a venue, an animal, a person) never lie
on both sides of a split, because an encoder that recognises the group would look as if it knew the class.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from tubelet.data.manifest import Video
from tubelet.errors import UserError, nearest
from tubelet.evaluate.amount import Amount

TRAIN = frozenset({"train", "training"})
VALIDATION = frozenset({"val", "valid", "validation", "dev"})
TEST = frozenset({"test", "testing"})
SINGLES = 50  # so many classes of one clip each, all of them numbers, are a measurement and no classes


@dataclass(frozen=True)
class Task:
    """A classification task over n clips.

    classes: names, sorted. rows: int64 [n], each clip's place in the manifest. label: int64 [n], index into
    classes. split: [n] of "train", "val", "test", or None. group: [n] of names, or None. notes: what a reader
    of the result must know.
    """

    classes: tuple[str, ...]
    rows: np.ndarray
    label: np.ndarray
    split: np.ndarray | None
    group: np.ndarray | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Fold:
    """Clips (indices into the task) to learn from and to test on."""

    train: np.ndarray
    test: np.ndarray


def read_task(
    videos: Sequence[Video],
    source: str,
    unlabelled: str = "error",
    excluded: Sequence[int] = (),
) -> Task:
    """The task that labels, splits and groups of ``videos`` make.

    source: what to call the data in errors. unlabelled: "error", or "exclude" to leave such clips out and say
    so. excluded: manifest rows without features (unreadable videos), left out in any case.
    Raises UserError if labels are missing, if there are fewer than two classes, if only some clips have a split
    or a group, if a split has another name, if a group is in both splits, if a class has no training clip, if the
    labels are numbers that hardly ever occur twice.
    """
    rows, notes = labelled_rows(videos, source, unlabelled, excluded)
    names = [str(videos[i].label) for i in rows]
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        found = f'only the class "{classes[0]}"' if classes else "no labelled clip"
        raise UserError(f"{source}: a probe needs at least two classes, there is {found}")
    _check_classes(names, source)
    places = {name: place for place, name in enumerate(classes)}
    task = Task(
        classes,
        np.array(rows),
        np.array([places[name] for name in names]),
        read_column([videos[i].split for i in rows], "split", source),
        read_column([videos[i].group for i in rows], "group", source),
        tuple(notes),
    )
    if task.split is not None:
        task = replace(task, split=read_splits(task.split, task.group, source))
        _check_split(task, source)
    return task


def labelled_rows(
    videos: Sequence[Video], source: str, unlabelled: str, excluded: Sequence[int]
) -> tuple[list[int], list[str]]:
    """The manifest rows that have features and a label, and what a reader must know of the others.

    Raises UserError as `read_task` does.
    """
    if unlabelled not in ("error", "exclude"):
        raise UserError(f'unlabelled="{unlabelled}" is unknown; use "error" or "exclude"')
    gone = set(excluded)
    rows = [i for i in range(len(videos)) if i not in gone]
    notes = [f"{len(gone)} unreadable videos are left out"] if gone else []
    bare = [i for i in rows if not videos[i].label]
    if bare and unlabelled == "error":
        named = ", ".join(str(videos[i].path) for i in bare[:3])
        raise UserError(
            f"{source}: {len(bare)} of {len(rows)} clips have no label ({named}{', …' if len(bare) > 3 else ''}); "
            'add a "label" column, put the videos into one folder per class, or pass unlabelled="exclude"'
        )
    if bare:
        notes.append(f"{len(bare)} clips without a label are left out")
        rows = sorted(set(rows) - set(bare))
    return rows, notes


def take_label(videos: Sequence[Video], column: str, source: str) -> list[Video]:
    """The videos with another column of their list as label; an empty cell is no label.

    Raises UserError, naming the nearest, if no video has a column of that name.
    """
    if column in ("label", "split", "group"):
        return [replace(video, label=getattr(video, column)) for video in videos]
    known = {name for video in videos for name in video.extra} | {"label", "split", "group"}
    if column not in known:
        there = ", ".join(sorted(known))
        raise UserError(
            f'{source}: no column "{column}" to take labels from{nearest(column, known)} (there are: {there})'
        )
    return [replace(video, label=video.extra.get(column) or None) for video in videos]


def read_number(text: str) -> float | None:
    """The finite number that ``text`` is, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _check_classes(names: Sequence[str], source: str) -> None:
    """Numbers that hardly ever occur twice are not classes."""
    counts = Counter(names)
    alone = sum(count == 1 for count in counts.values())
    if alone > max(SINGLES, len(counts) / 2) and all(read_number(name) is not None for name in counts):
        raise UserError(
            f"{source}: the labels are {len(counts)} numbers, {alone} of them of a single clip each; "
            'labels to be predicted as numbers need kind="ridge"'
        )


def read_column(values: list[str | None], name: str, source: str) -> np.ndarray | None:
    """One value per clip, or None if no clip has one; raises UserError if only some have."""
    filled = [value for value in values if value]
    if not filled:
        return None
    if len(filled) < len(values):
        raise UserError(
            f'{source}: {len(values) - len(filled)} of {len(values)} clips have no "{name}"; '
            "fill the column for all clips or drop it"
        )
    return np.array(filled)


def read_splits(names: np.ndarray, group: np.ndarray | None, source: str) -> np.ndarray:
    """[n] of "train", "val" and "test", for whatever these are called.

    Raises UserError if a name is unknown, if there is nothing to learn from or nothing to test on, or if a group
    is in two splits.
    """
    split = np.array([_split_name(str(name), source) for name in names])
    for name in () if group is None else sorted(set(group)):
        splits = sorted(set(split[group == name]))
        if len(splits) > 1:
            raise UserError(
                f'{source}: group "{name}" is in the splits {" and ".join(splits)}, so the score would '
                "reward recognising the group; move all its clips to one split"
            )
    train = split == "train"
    if not train.any() or train.all():
        side = "test" if train.all() else "train"
        raise UserError(f"{source}: the split column has no {side} clip; add some, or drop the column")
    return split


def _split_name(name: str, source: str) -> str:
    for known, aliases in (("train", TRAIN), ("val", VALIDATION), ("test", TEST)):
        if name.lower() in aliases:
            return known
    near = nearest(name, TRAIN | VALIDATION | TEST)
    raise UserError(f'{source}: unknown split "{name}"{near} (known: train, val, test)')


def _check_split(task: Task, source: str) -> None:
    assert task.split is not None
    train = task.split == "train"
    unseen = sorted(set(task.label[~train]) - set(task.label[train]))
    if unseen:
        named = ", ".join(f'"{task.classes[c]}"' for c in unseen)
        raise UserError(f"{source}: no training clip has the class {named}; move some there or leave it out")


def given_fold(split: np.ndarray) -> Fold:
    """The split column as it is: its "val" clips are the test clips if it has no "test"."""
    test = "test" if (split == "test").any() else "val"
    return Fold(np.flatnonzero(split == "train"), np.flatnonzero(split == test))


def folds(task: Task, count: int = 0, seed: int = 0) -> list[Fold]:
    """Train and test clips: the manifest's own split, or ``count`` folds.

    count: 0 takes the split column if there is one (its "val" clips are the test clips if it has no "test")
    and five folds otherwise; 2 or more ignores the column. Folds are group-disjoint where groups are known, and
    stratified by class.
    Raises UserError if there are too few groups or clips, or a class that only one group has: it cannot be
    learned from one group and tested on another.
    """
    if count == 0 and task.split is not None:
        return [given_fold(task.split)]
    count = count or 5
    sizes = np.bincount(task.label)
    if task.group is not None:
        groups = [len(set(task.group[task.label == c])) for c in range(len(task.classes))]
        for name, n in zip(task.classes, groups, strict=True):
            if n < 2:
                raise UserError(
                    f'class "{name}" has clips of one group only, so no fold can learn it and test it on another '
                    "group; add clips of another group, leave the class out, or give a split column"
                )
        count = min(count, len(set(task.group)), int(sizes.max()))
    elif sizes.min() < 2:
        raise UserError(
            f'class "{task.classes[sizes.argmin()]}" has a single clip: nothing is left to test it on'
        )
    else:
        count = min(count, int(sizes.min()))
    return [Fold(train, test) for train, test in _cut(task.label, task.group, count, seed)]


def inner_folds(label: np.ndarray, group: np.ndarray | None, count: int, seed: int) -> tuple[list[Fold], str]:
    """Cuts training clips again, to choose knobs on: by group where groups are known, else stratified.

    Returns at most ``count`` folds and a note, empty if all is well. A class that a fold cannot learn is not
    asked of it. Where groups leave nothing to ask, the cut ignores them, and where that fails too (a class with
    one clip) there are no folds; the note says so.
    """
    sizes = np.bincount(label)[np.unique(label)]
    if group is not None and len(set(group)) > 1 and sizes.max() > 1:
        cut = _cut(label, group, min(count, len(set(group)), int(sizes.max())), seed)
        asked = [Fold(train, test[np.isin(label[test], label[train])]) for train, test in cut]
        # one class alone is nothing to learn
        if usable := [fold for fold in asked if len(fold.test) and len(np.unique(label[fold.train])) > 1]:
            return usable, ""
    note = (
        ""
        if group is None
        else "knobs were chosen on a cut that shares groups: the training groups allow none"
    )
    count = min(count, int(sizes.min()))
    if count < 2:
        return [], "too few training clips to choose knobs on: the defaults were used"
    return [Fold(train, test) for train, test in _cut(label, None, count, seed)], note


def _cut(
    label: np.ndarray, group: np.ndarray | None, count: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    splitter = StratifiedKFold if group is None else StratifiedGroupKFold
    with warnings.catch_warnings():
        # A class with fewer clips than folds: said above where it matters.
        warnings.simplefilter("ignore", UserWarning)
        return list(splitter(count, shuffle=True, random_state=seed).split(label, label, group))


def few_labels(label: np.ndarray, train: np.ndarray, amount: Amount, draw: int, seed: int = 0) -> np.ndarray:
    """``amount`` of the clips ``train`` of each class, at random: a function of (seed, draw, class) alone.

    A class with fewer clips gives all it has. A larger amount contains a smaller one of the same draw.
    """
    chosen = []
    for c in np.unique(label[train]):
        mine = train[label[train] == c]
        taken = amount.of(len(mine))
        chosen.append(np.random.default_rng([seed, draw, int(c)]).permutation(mine)[:taken])
    return np.sort(np.concatenate(chosen))
