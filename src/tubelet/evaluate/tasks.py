"""Labels and splits: what a probe is asked, and which clips it may learn from.

Nothing is ever chosen on test clips, and clips of one group (a camera, a venue, an animal, a person) never lie
on both sides of a split, because an encoder that recognises the group would look as if it knew the class.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from tubelet.data.manifest import Video
from tubelet.errors import UserError, nearest

TRAIN = frozenset({"train", "training"})
VALIDATION = frozenset({"val", "valid", "validation", "dev"})
TEST = frozenset({"test", "testing"})


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
    or a group, if a split has another name, if a group is in both splits, if a class has no training clip.
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
    names = [str(videos[i].label) for i in rows]
    classes = tuple(sorted(set(names)))
    if len(classes) < 2:
        found = f'only the class "{classes[0]}"' if classes else "no labelled clip"
        raise UserError(f"{source}: a probe needs at least two classes, there is {found}")
    task = Task(
        classes,
        np.array(rows),
        np.array([classes.index(name) for name in names]),
        _column([videos[i].split for i in rows], "split", source),
        _column([videos[i].group for i in rows], "group", source),
        tuple(notes),
    )
    if task.split is not None:
        task = replace(task, split=np.array([_split_name(str(s), source) for s in task.split]))
        _check_split(task, source)
    return task


def _column(values: list[str | None], name: str, source: str) -> np.ndarray | None:
    filled = [value for value in values if value]
    if not filled:
        return None
    if len(filled) < len(values):
        raise UserError(
            f'{source}: {len(values) - len(filled)} of {len(values)} clips have no "{name}"; '
            "fill the column for all clips or drop it"
        )
    return np.array(filled)


def _split_name(name: str, source: str) -> str:
    for known, aliases in (("train", TRAIN), ("val", VALIDATION), ("test", TEST)):
        if name.lower() in aliases:
            return known
    near = nearest(name, TRAIN | VALIDATION | TEST)
    raise UserError(f'{source}: unknown split "{name}"{near} (known: train, val, test)')


def _check_split(task: Task, source: str) -> None:
    assert task.split is not None
    if task.group is not None:
        for name in sorted(set(task.group)):
            splits = sorted(set(task.split[task.group == name]))
            if len(splits) > 1:
                raise UserError(
                    f'{source}: group "{name}" is in the splits {" and ".join(splits)}, so the score would '
                    "reward recognising the group; move all its clips to one split"
                )
    train = task.split == "train"
    if not train.any() or train.all():
        side = "test" if train.all() else "train"
        raise UserError(f"{source}: the split column has no {side} clip; add some, or drop the column")
    unseen = sorted(set(task.label[~train]) - set(task.label[train]))
    if unseen:
        named = ", ".join(f'"{task.classes[c]}"' for c in unseen)
        raise UserError(f"{source}: no training clip has the class {named}; move some there or leave it out")


def folds(task: Task, count: int = 0, seed: int = 0) -> list[Fold]:
    """Train and test clips: the manifest's own split, or ``count`` folds.

    count: 0 takes the split column if there is one (its "val" clips are the test clips if it has no "test")
    and five folds otherwise; 2 or more ignores the column. Folds are group-disjoint where groups are known, and
    stratified by class.
    Raises UserError if there are too few groups or clips, or a class that only one group has: it cannot be
    learned from one group and tested on another.
    """
    if count == 0 and task.split is not None:
        test = "test" if (task.split == "test").any() else "val"
        return [Fold(np.flatnonzero(task.split == "train"), np.flatnonzero(task.split == test))]
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
        count = min(count, len(set(task.group)))
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
    if group is not None and len(set(group)) > 1:
        cut = _cut(label, group, min(count, len(set(group))), seed)
        asked = [Fold(train, test[np.isin(label[test], label[train])]) for train, test in cut]
        if usable := [fold for fold in asked if len(fold.train) and len(fold.test)]:
            return usable, ""
    note = (
        ""
        if group is None
        else "knobs were chosen on a cut that shares groups: the training groups allow none"
    )
    count = min(count, int(np.bincount(label)[np.unique(label)].min()))
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


def few_labels(label: np.ndarray, train: np.ndarray, per_class: int, draw: int, seed: int = 0) -> np.ndarray:
    """``per_class`` of the clips ``train`` of each class, at random: a function of (seed, draw, class) alone.

    A class with fewer clips gives all it has. A larger ``per_class`` contains a smaller one of the same draw.
    """
    chosen = []
    for c in np.unique(label[train]):
        mine = train[label[train] == c]
        chosen.append(np.random.default_rng([seed, draw, int(c)]).permutation(mine)[:per_class])
    return np.sort(np.concatenate(chosen))
