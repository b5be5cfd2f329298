"""What a comparison says in words: a paragraph that can be quoted, made of nothing but what its numbers allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tubelet.evaluate.comparison import Arm, Comparison, Evaluation
from tubelet.evaluate.noise import Interval
from tubelet.evaluate.standings import Standings
from tubelet.report.units import flops

_WORDS = {
    "macro_recall": "macro recall",
    "f1_macro": "macro F1",
    "map": "mAP",
    "auroc": "AUROC",
    "r2": "R²",
    "mae": "mean absolute error",
}
_NAMED = 6  # arms that a sentence can name
_PLAIN = ("r2", "mae")  # these are no shares, and not shown in percent


class Unit(NamedTuple):
    """How a metric is shown: times ``scale``, with so many ``digits``, followed by ``sign``."""

    scale: float
    digits: int
    sign: str

    def tell(self, value: float) -> str:
        """The value as it is read."""
        return f"{self.scale * value:.{self.digits}f}{self.sign}".replace("-", "−")

    def interval(self, found: Interval) -> str:
        """Low and high as they are read."""
        return f"{self.tell(found.low)} to {self.tell(found.high)}"


def unit(metric: str) -> Unit:
    """Shares are shown in percent, R² and errors as they are."""
    return Unit(1.0, 3, "") if metric.partition("@")[0] in _PLAIN else Unit(100.0, 1, " %")


def words(metric: str) -> str:
    """ "macro_recall@k20" -> "macro recall, k 20"."""
    name, _, k = metric.partition("@")
    return _WORDS.get(name, name) + (f", k {k.removeprefix('k')}" if k else "")


def headlines(found: Comparison) -> list[Evaluation]:
    """The evaluations that arms are ranked by: with all labels, of the last layer; all, if there is none such."""
    plain = [one for one in found.evals if one.labels is None and one.layer is None]
    return plain or list(found.evals)


def listed(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def _some(names: Sequence[str]) -> str:
    """The names, or how many where they are too many to be read."""
    return listed(names) if len(names) <= _NAMED else f"{len(names)} arms"


def paragraph(found: Comparison, standings: Standings) -> str:
    """What was compared, on what, for how much; what is best where, and by more than chance; what is not equal."""
    said = [_what(found), _progress(found)]
    for one in headlines(found):
        if any((arm.name, one.key) in standings.intervals for arm in found.trained):
            said += [_best(found, standings, one), _untrained(found, standings, one)]
    said += [_health(found), _chance(found, standings)]
    if found.not_equal:
        said.append(f"What was equal and what not: {' '.join(found.not_equal)}")
    return " ".join(sentence for sentence in said if sentence)


def _what(found: Comparison) -> str:
    arms = found.trained
    methods = list(dict.fromkeys(arm.method for arm in arms))
    sizes = list(dict.fromkeys(arm.model for arm in arms))
    budgets = sorted({arm.budget for arm in arms if arm.budget is not None})
    if len(budgets) == 1 and all(arm.budget for arm in arms):
        price = f"for {flops(budgets[0])} each, by formula and with all stages"
    elif len(budgets) > 1:
        price = f"for {flops(budgets[0])} to {flops(budgets[-1])} each, by formula and with all stages"
    else:
        price = "for as many steps as the table of costs says"
    seeds = f"{len(found.seeds)} seeds" if len(found.seeds) > 1 else "one seed"
    encoder = f"a {sizes[0]} encoder" if len(sizes) == 1 else f"encoders of the sizes {listed(sizes)}"
    return (
        f"{listed(methods)} pretrained {encoder} on {found.data} ({found.clips:,} videos) {price}, {seeds}; the frozen "
        "encoders were then judged alike."
    )


def _progress(found: Comparison) -> str:
    trained = [run for arm in found.trained for run in found.of(arm)]
    done = sum(map(found.finished, trained))
    return "" if done == len(trained) else f"This is not finished: {done} of {len(trained)} runs are done."


def _best(found: Comparison, standings: Standings, one: Evaluation) -> str:
    """The arm with the highest mean, and which of those it was compared with it leaves behind."""
    known = [arm for arm in found.trained if (arm.name, one.key) in standings.intervals]
    best = max(known, key=lambda arm: standings.intervals[arm.name, one.key].value)
    own, shown = standings.intervals[best.name, one.key], unit(one.metric)
    start = f"On {one.title}, {best.name} is first, {words(one.metric)} {shown.tell(own.value)} ({shown.interval(own)})"
    rivals = [
        (arm, gap) for arm in known if arm is not best and (gap := standings.pair(best, arm, one)) is not None
    ]
    clear = [arm.name for arm, gap in rivals if gap.clear]
    noise = [arm.name for arm, gap in rivals if not gap.clear]
    parts = [f"beyond the noise ahead of {_some(clear)}"] if clear else []
    parts += [f"within the noise of {_some(noise)}"] if noise else []
    return f"{start}{', ' if parts else ''}{', '.join(parts)}."


def _untrained(found: Comparison, standings: Standings, one: Evaluation) -> str:
    """Which arms are beyond the noise better than each of the baselines, and which are not."""
    sentences = []
    for base in found.baselines:
        gaps = {arm: gap for arm in found.trained if (gap := standings.pair(arm, base, one)) is not None}
        if not gaps:
            continue
        level = unit(one.metric).tell(standings.intervals[base.name, one.key].value)
        better = [arm.name for arm, gap in gaps.items() if gap.low > 0]
        worse = [arm.name for arm, gap in gaps.items() if gap.high < 0]
        if len(better) == len(gaps):
            told = "all are better beyond the noise" if len(gaps) > 1 else "it is better beyond the noise"
        else:
            told = f"{_some(better) or 'none'} {'is' if len(better) < 2 else 'are'} better beyond the noise"
        told += f", {_some(worse)} worse" if worse else ""
        sentences.append(f"Against {_name(base)} ({level}), {told}.")
    return " ".join(sentences)


def _name(base: Arm) -> str:
    if base.name == "pixels":
        return "raw pixels"
    return base.name.replace("random", "an untrained encoder", 1)


def _health(found: Comparison) -> str:
    sick: dict[str, list[str]] = {}
    for arm in found.trained:
        told = [run.verdict for run in found.of(arm) if run.verdict is not None]
        for state in dict.fromkeys(told):
            if state not in ("healthy", "too early"):
                sick.setdefault(state, []).append(f"{arm.name} ({told.count(state)} of {len(told)} seeds)")
    return " ".join(f"{state.capitalize()} of the features: {_some(names)}." for state, names in sick.items())


def _chance(found: Comparison, standings: Standings) -> str:
    one_seed = (
        " One seed says nothing of other seeds: intervals contain test groups alone."
        if len(found.seeds) == 1
        else ""
    )
    count = len(standings.pairs)
    if count < 2:
        return one_seed.strip()
    clear = sum(pair.interval.clear for pair in standings.pairs)
    return (
        f"Of {count} differences {clear} are beyond the noise (zero outside a 95 % interval); were all arms equal, "
        f"about {max(1, round(0.05 * count))} would be so by chance.{one_seed}"
    )
