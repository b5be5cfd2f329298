"""An analysis under way: who is looked at, at what, how much, and what has been found so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from tubelet.errors import UserError, nearest
from tubelet.evaluate.features import Features
from tubelet.evaluate.source import VideoSource
from tubelet.inside.footage import Asked, Footage, Manner, Means, digest
from tubelet.inside.kept import Kept
from tubelet.inside.records import Records
from tubelet.inside.subject import Subject

PARTS = (
    "decodability",
    "similarity",
    "tokens",
    "influence",
    "spectrum",
    "occdrop",
    "gratings",
    "saturation",
)
LEAST_GRATINGS = 96  # fewer, and some value of some target occurs less than once in each of three folds


@dataclass(frozen=True)
class Amounts:
    """How much is looked at.

    skip: names of `PARTS` to leave out. token_clips: clips whose tokens are looked at. influence_clips: clips from
    which patches are taken away. grating_clips: of each of the two worlds of gratings (None: all 10,800 and 15,552).
    integer_labels: reproduces the released code's fault of cutting the gratings' labels to integers. checkpoints:
    "all" or steps, to follow runs through training. Raises UserError for what makes no sense.
    """

    skip: tuple[str, ...] = ()
    token_clips: int = 64
    influence_clips: int = 2
    grating_clips: int | None = None
    integer_labels: bool = False
    checkpoints: str | None = None

    def __post_init__(self) -> None:
        for name in self.skip:
            if name not in PARTS:
                raise UserError(f'skip="{name}" is unknown{nearest(name, PARTS)} (known: {", ".join(PARTS)})')
        for name, least in (("token_clips", 1), ("influence_clips", 1), ("grating_clips", LEAST_GRATINGS)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(
                    f"{name}={value}: must be at least {least}; to leave that part out, use skip={name.split('_')[0]}"
                    f"{'s' if name != 'influence_clips' else ''}"
                )

    def has(self, part: str) -> bool:
        """Whether a part is to be measured."""
        assert part in PARTS
        return part not in self.skip


@dataclass
class Look:
    """features: of each encoder, by whether the tokens were normed first. seconds: what each part took."""

    subjects: list[Subject]
    footage: Footage
    amounts: Amounts
    manner: Manner
    kept: Kept
    out: Path
    seed: int
    progress: Progress
    command: str | None = None
    features: dict[str, dict[bool, Features]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    records: Records = field(default_factory=Records)
    _within: list[float] = field(default_factory=list)  # seconds of finished parts within each part under way

    @contextmanager
    def part(self, what: str, total: float) -> Iterator[Callable[[float], None]]:
        """A bar for one part, whose ``total`` it advances by what it is told; and the time that the part takes."""
        with self.timed(what):
            task = self.progress.add_task(what, total=total)
            try:
                yield lambda done: self.progress.advance(task, done)
            finally:
                self.progress.remove_task(task)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Adds the time that a part takes to ``seconds``, less that of parts within it."""
        began = time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            took, inner = time.perf_counter() - began, self._within.pop()
            self.seconds[what] = self.seconds.get(what, 0.0) + took - inner
            if self._within:
                self._within[-1] += took

    @contextmanager
    def no_bar(self, what: str) -> Iterator[None]:
        """For a part that has a bar of its own."""
        self.progress.stop()
        with self.timed(what):
            yield
        self.progress.start()

    def means(self, subject: Subject, layer: int, asked: Asked, normed: bool = False) -> Means:
        """Mean tokens of the clips that count, at one layer."""
        return Means(self.features[subject.name][normed], layer, asked.rows)

    def source(self, subject: Subject) -> VideoSource:
        """The videos as this encoder wants them."""
        return self.footage.of(subject.encoder.geometry, self.manner.frame_cache)

    def about(self, subject: Subject) -> dict[str, Any]:
        """What every number of this encoder on these videos depends on, for `Kept`."""
        clips = digest(self.source(subject).identity())
        return {"encoder": subject.encoder.digest, "clips": clips, "layers": list(subject.layers)}
