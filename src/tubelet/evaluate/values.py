"""Labels that are numbers: what a regression is asked, and which clips it may learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import GroupKFold, KFold

from tubelet.data.manifest import Video
from tubelet.errors import UserError
from tubelet.evaluate.tasks import Fold, given_fold, labelled_rows, read_column, read_number, read_splits


@dataclass(frozen=True)
class RealTask:
    """A regression over n clips.

    rows: int64 [n], each clip's place in the manifest. value: float64 [n]. split: [n] of "train", "val", "test",
    or None. group: [n] of names, or None. notes: what a reader of the result must know.
    """

    rows: np.ndarray
    value: np.ndarray
    split: np.ndarray | None
    group: np.ndarray | None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)


def read_values(
    videos: Sequence[Video],
    source: str,
    unlabelled: str = "error",
    excluded: Sequence[int] = (),
) -> RealTask:
    """The regression that labels, splits and groups of ``videos`` make; arguments as `tasks.read_task` takes them.

    Raises UserError if labels are missing, if one is not a finite number, if all are equal, on either side of the
    split too, if only some clips have a split or a group, if a group is in both splits.
    """
    rows, notes = labelled_rows(videos, source, unlabelled, excluded)
    found = [read_number(str(videos[i].label)) for i in rows]
    wrong = [i for i, number in zip(rows, found, strict=True) if number is None]
    if wrong:
        first = videos[wrong[0]]
        raise UserError(
            f'{source}: {len(wrong)} of {len(rows)} labels are no finite numbers, such as "{first.label}" of '
            f'{first.path}; mend them, name the column that holds the numbers, or take kind="linear" for classes'
        )
    value = np.array(found, dtype=np.float64)
    split = read_column([videos[i].split for i in rows], "split", source)
    group = read_column([videos[i].group for i in rows], "group", source)
    if split is not None:
        split = read_splits(split, group, source)
    task = RealTask(np.array(rows, dtype=np.int64), value, split, group, tuple(notes))
    _check_spread(task, source)
    return task


def _check_spread(task: RealTask, source: str) -> None:
    sides = {"": np.arange(len(task))}
    if task.split is not None:
        fold = given_fold(task.split)
        sides = {" of the training clips": fold.train, " of the test clips": fold.test}
    for name, clips in sides.items():
        values = np.unique(task.value[clips])
        if len(values) < 2:
            what = f"are all {values[0]:g}" if len(values) else "are not there"
            raise UserError(
                f"{source}: the labels{name} {what}, so R² is undefined; a regression needs labels that differ"
            )


def value_folds(task: RealTask, count: int = 0, seed: int = 0) -> list[Fold]:
    """Train and test clips: the manifest's own split, or ``count`` folds, group-disjoint where groups are known.

    count: as `tasks.folds` takes it. Raises UserError if there is one group, or one clip.
    """
    if count == 0 and task.split is not None:
        return [given_fold(task.split)]
    if task.group is not None and len(set(task.group)) < 2:
        raise UserError(
            f'all clips are of the group "{task.group[0]}", so nothing can be tested on another group; '
            "add clips of another group, or give a split column"
        )
    return _cut(len(task), task.group, count or 5, seed)


def inner_value_folds(n: int, group: np.ndarray | None, count: int, seed: int) -> tuple[list[Fold], str]:
    """Cuts n training clips again, to choose a penalty on: by group where groups are known.

    Returns at most ``count`` folds and a note, empty if all is well; no folds for fewer than two clips.
    """
    if group is not None and len(set(group)) > 1:
        return _cut(n, group, count, seed), ""
    note = "" if group is None else "the penalty was chosen on a cut that shares groups: there is only one"
    if n < 2:
        return [], "too few training clips to choose a penalty on: the default was used"
    return _cut(n, None, count, seed), note


def _cut(n: int, group: np.ndarray | None, count: int, seed: int) -> list[Fold]:
    if group is None:
        cut = KFold(min(count, n), shuffle=True, random_state=seed).split(np.zeros(n))
    else:
        cut = GroupKFold(min(count, len(set(group))), shuffle=True, random_state=seed).split(
            np.zeros(n), groups=group
        )
    return [Fold(train, test) for train, test in cut]
