"""The command line: one command per thing a person wants, options named like the Python arguments."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from tubelet.errors import UserError, nearest

USER_ERROR = 2  # the exit code of whatever the user can mend


class Parser(argparse.ArgumentParser):
    """argparse that names the nearest option and never guesses at abbreviations."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(
            *args, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, but an option that is not known ends the program here, with the nearest named."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and not isinstance(unknown[0], str):
            return found, unknown
        options = [word for word in unknown if word.startswith("--")]
        if options:
            word = options[0].partition("=")[0]
            known = [o for o in self._option_string_actions if o.startswith("--")]
            self.error(f"unknown option {word}{nearest(word.replace('_', '-'), known)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """One line, and where to read on; exit code 2."""
        raise UserError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0 done, 2 the user's mistake, 128+n stopped by signal n."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        parser = Parser(prog="tubelet", description=__doc__, epilog="tubelet COMMAND --help tells more.")
        commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
        for name, (add, _) in COMMANDS.items():
            add(commands, name)
        if not words:
            parser.print_help()
            return 0
        if words[0] == "pretrain":  # its options are the recipe's, so the recipe must be known first
            return _pretrain(words[1:])
        chosen = parser.parse_args(words)
        if chosen.command is None:
            parser.error("no command given")
        run = COMMANDS[chosen.command][1]
        assert run is not None, "pretrain was taken above"
        return run(chosen)
    except UserError as error:
        print(f"tubelet: {error}", file=sys.stderr)
        return USER_ERROR


def _add_doctor(commands: Any, name: str) -> None:
    commands.add_parser(name, help="what this machine has, what is missing, and the command that mends it")


def _doctor(chosen: argparse.Namespace) -> int:
    from tubelet.doctor import doctor, print_checks

    return print_checks(doctor())


def _add_scan(commands: Any, name: str) -> None:
    parser = commands.add_parser(name, help="read every video once: manifest and a verdict per file")
    parser.add_argument("data", metavar="DATA", help="folder of videos, list file or manifest")
    parser.add_argument("--out", default="manifest.csv", help="manifest to write (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")
    parser.add_argument(
        "--timeout", type=float, default=None, help="seconds without progress before a file is given up"
    )
    parser.add_argument("--rescan", action="store_true", help="read files again that have not changed")


def _scan(chosen: argparse.Namespace) -> int:
    from tubelet.data.scan import scan, summary

    options = {} if chosen.timeout is None else {"timeout": chosen.timeout}
    manifest = scan(chosen.data, chosen.out, workers=chosen.workers, rescan=chosen.rescan, **options)
    for line in summary(manifest):
        print(line)
    return 0


def _add_pretrain(commands: Any, name: str) -> None:
    commands.add_parser(name, help="train an encoder: tubelet pretrain RECIPE --data DATA --out RUN")


def _pretrain(words: Sequence[str]) -> int:
    """Options are made from the recipe's own parameters, so they can never disagree with them."""
    from tubelet.recipes import RECIPES, find_recipe, own_knobs, run_recipe
    from tubelet.recipes.knobs import about_knobs

    if not words or words[0] in ("-h", "--help"):
        print("usage: tubelet pretrain RECIPE --data DATA --out RUN [knobs; --help lists them]\n\nrecipes:")
        for name, function in RECIPES.items():
            print(f"  {name:14} {(inspect.getdoc(function) or '').splitlines()[0]}")
        return 0 if words else USER_ERROR
    recipe, *words = words
    parser = Parser(prog=f"tubelet pretrain {recipe}", description=inspect.getdoc(find_recipe(recipe)))
    for name, (kind, default, about) in about_knobs().items():
        _add_knob(parser, name, kind, default, about)
    own = parser.add_argument_group(f"knobs of {recipe}")
    for name, (kind, default) in own_knobs(recipe).items():
        _add_knob(own, name, kind, default, "see above")
    given = {name: value for name, value in vars(parser.parse_args(words)).items() if value is not _ABSENT}
    run_recipe(recipe, **given)
    return 0


_ABSENT = object()


def _add_knob(parser: Any, name: str, kind: Any, default: Any, about: str) -> None:
    option = "--" + name.replace("_", "-")
    if default not in (None, "", False):
        about = f"{about} (default: {default})"
    about = about.replace("%", "%%")
    if kind is bool and default is False:
        parser.add_argument(option, action="store_const", const=True, default=_ABSENT, help=about, dest=name)
    elif kind is bool:
        parser.add_argument(
            option, action=argparse.BooleanOptionalAction, default=_ABSENT, help=about, dest=name
        )
    else:
        reader, settings = _reader(kind)
        parser.add_argument(option, type=reader, default=_ABSENT, help=about, dest=name, **settings)


def _reader(kind: Any) -> tuple[Callable[[str], Any], dict[str, Any]]:
    """How a knob's type reads a word: int, float, str, a choice, or a pair written 0.9,1."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(k for k in get_args(kind) if k is not type(None))
    if get_origin(kind) is Literal:
        return str, {"choices": get_args(kind)}
    if get_origin(kind) is tuple:
        return _pair, {"metavar": "A,B"}
    assert kind in (int, float, str), f"a knob of type {kind} has no reader"
    return kind, {"metavar": kind.__name__.upper()}


def _pair(word: str) -> tuple[float, ...]:
    numbers = tuple(float(part) for part in word.split(","))
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f'"{word}" is not two numbers with a comma between')
    return numbers


def _add_probe(commands: Any, name: str) -> None:
    parser = commands.add_parser(name, help="frozen evaluation of an encoder on labelled videos")
    parser.add_argument(
        "encoder",
        metavar="ENCODER",
        help="run folder, encoder/ folder, checkpoint, random:vit_tiny, random:RUN, pixels or pixels:RUN",
    )
    parser.add_argument("--data", required=True, help="labelled manifest, list or class-per-folder")
    parser.add_argument("--kind", choices=("linear", "knn", "attentive"), default="linear")
    parser.add_argument("--which", help='of a run with two encoders: "teacher" or "student"')
    parser.add_argument(
        "--pool", choices=("mean", "time", "flat"), help="for linear and knn (default: mean; pixels: flat)"
    )
    parser.add_argument("--layers", type=_numbers, help="layers to join, such as 6,12 (default: the last)")
    parser.add_argument(
        "--segments", type=int, default=1, help="clips along a video's time (default: %(default)s)"
    )
    parser.add_argument(
        "--crops", type=int, default=1, help="crops along a frame's long side (default: %(default)s)"
    )
    parser.add_argument(
        "--folds", type=int, default=0, help="group-disjoint folds instead of the split column"
    )
    parser.add_argument("--per-class", type=int, help="learn from that many labels per class only")
    parser.add_argument(
        "--draws", type=int, default=5, help="how often those are drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--unlabelled", choices=("error", "exclude"), default="error", help="what clips without label are"
    )
    for name, kind, about in (
        ("--frames", int, "frames per clip"),
        ("--fps", float, "frames a second"),
        ("--frame-step", int, "every n-th frame"),
        ("--crop-size", int, "height and width in pixels"),
    ):
        parser.add_argument(name, type=kind, help=f"{about} (default: the encoder's)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="decoding threads (default: one per core)")
    parser.add_argument("--cache", help="folder for features (default: $TUBELET_CACHE or the user's cache)")
    parser.add_argument("--seed", type=int, default=0, help="of folds, label draws and probes")
    parser.add_argument("--out", help="folder for results.json (default: eval/ in the run's folder, or here)")


def _probe(chosen: argparse.Namespace) -> int:
    from dataclasses import replace

    from tubelet.evaluate.features import Views
    from tubelet.evaluate.probe import probe
    from tubelet.export.weights import load_encoder
    from tubelet.train.parallel import resolve_device

    if chosen.fps is not None and chosen.frame_step is not None:
        raise UserError("fps and frame_step were both given; sample by one of them")
    encoder = load_encoder(chosen.encoder, which=chosen.which)
    asked = {name: getattr(chosen, name) for name in ("frames", "fps", "frame_step", "crop_size")}
    asked = {name: value for name, value in asked.items() if value is not None}
    for name, value in asked.items():
        if not value > 0:
            raise UserError(f"{name}={value}: must be above 0")
    if "frame_step" in asked:
        asked["fps"] = None
    encoder = replace(encoder, geometry=replace(encoder.geometry, **asked))
    folder = Path(chosen.out) if chosen.out else _probe_folder(chosen)
    result = probe(
        encoder,
        chosen.data,
        chosen.kind,
        pool=chosen.pool,
        layers=chosen.layers,
        views=Views(chosen.segments, chosen.crops),
        folds=chosen.folds,
        per_class=chosen.per_class,
        draws=chosen.draws,
        unlabelled=chosen.unlabelled,
        seed=chosen.seed,
        out=folder,
        cache=chosen.cache,
        workers=chosen.workers,
        device=resolve_device(chosen.device),
    )
    print(result.sentence())
    for note in result.notes:
        print(f"  {note}")
    print(f"  {folder / 'results.json'}")
    return 0


def _probe_folder(chosen: argparse.Namespace) -> Path:
    """eval/DATA-KIND below the run, or below eval/ENCODER here for what has no folder."""
    data = Path(chosen.data)
    task = f"{data.parent.name if data.stem in ('labels', 'manifest') else data.stem}-{chosen.kind}"
    if chosen.per_class is not None:
        task += f"-{chosen.per_class}"
    run = Path(chosen.encoder)
    if not run.is_dir():
        return Path("eval") / chosen.encoder.replace("/", "_").replace(":", "-") / task
    if (run / "encoder.json").is_file():
        run = run.parent
    task = f"{chosen.which}-{task}" if chosen.which else task
    if run.parent.name == "checkpoints":  # nothing is added to a checkpoint, and it may be removed
        return run.parent.parent / "eval" / f"{run.name}-{task}"
    return run / "eval" / task


def _numbers(word: str) -> list[int]:
    if not all(part.strip().isdigit() for part in word.split(",")):
        raise argparse.ArgumentTypeError(f'"{word}" is not a list of numbers such as 6,12')
    return [int(part) for part in word.split(",")]


def _add_convergence(commands: Any, name: str) -> None:
    parser = commands.add_parser(
        name, help="which blocks of a run had settled at which step (LayerLock's map)"
    )
    parser.add_argument("run", metavar="RUN", help="finished run whose checkpoints were kept (--keep-every)")
    parser.add_argument("--out", help="folder to write (default: RUN/convergence)")
    parser.add_argument(
        "--depths",
        type=_numbers,
        help="how many blocks to freeze, such as 1,2,4 (default: all up to 6, or quarters)",
    )
    parser.add_argument(
        "--steps",
        type=_numbers,
        help="from when on, such as 100,200 (default: every checkpoint that was kept)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.01,
        help="how much higher a final loss may be and count as converged; ours (default: %(default)s)",
    )
    parser.add_argument(
        "--window",
        type=float,
        default=0.05,
        help="share of the run, at its end, to average over (default: %(default)s)",
    )
    parser.add_argument("--data", help="where the run's videos are now (default: where they were)")
    parser.add_argument("--device", help="cpu, cuda, mps (default: the run's)")
    parser.add_argument("--dry-run", action="store_true", help="state the cost and stop")


def _convergence(chosen: argparse.Namespace) -> int:
    from tubelet.recipes.convergence import convergence

    convergence(
        chosen.run,
        chosen.out,
        depths=chosen.depths,
        steps=chosen.steps,
        tolerance=chosen.tolerance,
        window=chosen.window,
        data=chosen.data,
        device=chosen.device,
        dry_run=chosen.dry_run,
    )
    return 0


def _add_demo(commands: Any, name: str) -> None:
    parser = commands.add_parser(name, help="from rendered videos to an evaluated encoder in five minutes")
    parser.add_argument("--out", default="demo", help="folder to write (default: %(default)s)")


def _demo(chosen: argparse.Namespace) -> int:
    # Threads that wait by spinning take the core that the other one needs; read when torch is first loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from tubelet.demo import demo

    demo(Path(chosen.out))
    return 0


COMMANDS: dict[str, tuple[Callable[[Any, str], None], Callable[[argparse.Namespace], int] | None]] = {
    "doctor": (_add_doctor, _doctor),
    "scan": (_add_scan, _scan),
    "pretrain": (_add_pretrain, None),
    "probe": (_add_probe, _probe),
    "convergence": (_add_convergence, _convergence),
    "demo": (_add_demo, _demo),
}


if __name__ == "__main__":
    sys.exit(main())
