"""The command line: one command per thing a person wants, options named like the Python arguments."""

from __future__ import annotations

import argparse
import inspect
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from tubelet.errors import UserError, nearest

STOPPED = 130  # the exit code of what ctrl-C has stopped
# what these have done is kept, and found again
_AGAIN = "; run the same command again and it goes on"
RESUMED = dict.fromkeys(("embed", "probe", "analyze", "compare", "study"), _AGAIN) | {
    "pretrain": "; if it had saved a checkpoint, the same command with --resume goes on from it"
}
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
        if words[0] in OF_RECIPES:
            return OF_RECIPES[words[0]](words[1:])
        chosen = parser.parse_args(words)
        if chosen.command is None:
            parser.error("no command given")
        run = COMMANDS[chosen.command][1]
        assert run is not None, f"{chosen.command} was taken above"
        return run(chosen)
    except UserError as error:
        print(f"tubelet: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print(f"tubelet: stopped{RESUMED.get(next(iter(words), ''), '')}", file=sys.stderr)
        return STOPPED


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
        from tubelet.recipes.words import reader_of

        reader, settings = reader_of(kind)
        parser.add_argument(option, type=reader, default=_ABSENT, help=about, dest=name, **settings)


ENCODERS = (
    "run folder, encoder/ folder, checkpoint, published V-JEPA or VideoMAE file or folder of weights, hf://OWNER/NAME, "
    "random:vit_tiny, random:RUN, pixels or pixels:RUN"
)


def _add_encoder(parser: Any) -> None:
    """ENCODER, and what tells `_load` which one is meant and how it is read."""
    parser.add_argument("encoder", metavar="ENCODER", help=ENCODERS)
    parser.add_argument(
        "--which",
        help='of a run with two encoders: "teacher" or "student"; of a V-JEPA file: "target_encoder" or "encoder"',
    )
    _add_reading(parser)


def _add_reading(parser: Any) -> None:
    """How published weights are read, of one encoder or of several."""
    parser.add_argument(
        "--heads", type=int, help="attention heads of published weights whose size is not a known one"
    )
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="load published weights that do not fit as far as they do, and leave the rest random",
    )


def _add_origin(parser: Any) -> None:
    """Whose weights these are, which no file can prove; for what is kept of them."""
    parser.add_argument("--licence", help="of the weights (default: what the file or its card says)")
    parser.add_argument("--source", help="where the weights come from, such as hf://OWNER/NAME")


def _add_clips(parser: Any) -> None:
    """Which clips the encoder gets, where not those that it was trained on."""
    for name, kind, about in (
        ("--frames", int, "frames per clip"),
        ("--fps", float, "frames a second"),
        ("--frame-step", int, "every n-th frame"),
        ("--crop-size", int, "height and width in pixels"),
    ):
        parser.add_argument(name, type=kind, help=f"{about} (default: the encoder's)")


def _load(chosen: argparse.Namespace) -> Any:
    """The encoder that the options of `_add_encoder` name; what published weights are is told by the loader.

    With the clips of `_add_clips` and the words of `_add_origin`, where there are such options.
    """
    from dataclasses import replace

    from tubelet.export.weights import load_encoder

    given = vars(chosen)
    clips = ("frames", "fps", "frame_step", "crop_size")
    asked = {name: given[name] for name in clips if given.get(name) is not None}
    if "fps" in asked and "frame_step" in asked:
        raise UserError("fps and frame_step were both given; sample by one of them")
    for name, value in asked.items():
        if not 0 < value < float("inf"):
            raise UserError(f"{name}={value}: must be above 0")
    if "frame_step" in asked:
        asked["fps"] = None
    encoder = load_encoder(
        chosen.encoder, which=chosen.which, allow_partial=chosen.allow_partial, heads=chosen.heads
    )
    said = {name: given[name] for name in ("licence", "source") if given.get(name)}
    return replace(
        encoder, geometry=replace(encoder.geometry, **asked), provenance={**encoder.provenance, **said}
    )


def _add_probe(commands: Any, name: str) -> None:
    parser = commands.add_parser(name, help="frozen evaluation of an encoder on labelled videos")
    _add_encoder(parser)
    parser.add_argument("--data", required=True, help="labelled manifest, list or class-per-folder")
    parser.add_argument(
        "--kind",
        choices=("linear", "knn", "attentive", "ridge", "finetune", "retrieval"),
        help="ridge: for labels that are numbers; finetune: not frozen, the upper bound; retrieval: among the test "
        "clips, or with --folds among all (default: linear; with a preset attentive)",
    )
    parser.add_argument(
        "--preset",
        help="a paper's clips, views, layers and heads: vjepa-k400, vjepa2-ssv2, salt-diving48, ... or cheap; for "
        "finetune vjepa-k400-l, ... or cheap",
    )
    parser.add_argument(
        "--protocol",
        help="frames x segments x spatial crops, such as 16x2x3 (default: the encoder's frames, 1x1)",
    )
    parser.add_argument(
        "--best-on-test",
        action="store_true",
        help="choose the attentive head by its TEST score, as V-JEPA 2's published numbers do; the result says so",
    )
    parser.add_argument("--label", metavar="COLUMN", help="another column of the list to take labels from")
    parser.add_argument(
        "--pool", choices=("mean", "time", "flat"), help="of all but attentive (default: mean; pixels: flat)"
    )
    parser.add_argument("--layers", type=_numbers, help="layers to join, such as 6,12 (default: the last)")
    parser.add_argument("--segments", type=int, help="clips along a video's time (default: 1)")
    parser.add_argument("--crops", type=int, help="crops along a frame's long side (default: 1)")
    parser.add_argument(
        "--folds", type=int, default=0, help="group-disjoint folds instead of the split column"
    )
    parser.add_argument(
        "--labels",
        metavar="LIST",
        help="learn from few labels: per class, or a share of each class's clips, such as 1,5,10%%,100%%",
    )
    parser.add_argument("--per-class", type=int, help="learn from that many labels per class only")
    parser.add_argument(
        "--draws", type=int, default=5, help="how often those are drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--unlabelled", choices=("error", "exclude"), default="error", help="what clips without label are"
    )
    _add_clips(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="decoding threads (default: one per core)")
    parser.add_argument("--cache", help="folder for features (default: $TUBELET_CACHE or the user's cache)")
    parser.add_argument("--frame-cache", help="folder for decoded frames, which other encoders can then use")
    parser.add_argument("--seed", type=int, default=0, help="of folds, label draws and probes")
    parser.add_argument("--out", help="folder for the result (default: eval/ in the run's folder, or here)")


def _probe(chosen: argparse.Namespace) -> int:
    from tubelet.evaluate.head import HEAD
    from tubelet.evaluate.probe import probe
    from tubelet.report.probe import probe_report
    from tubelet.train.parallel import resolve_device

    chosen.kind = chosen.kind or ("attentive" if chosen.preset else "linear")
    views = _views(chosen)
    encoder = _load(chosen)
    folder = Path(chosen.out) if chosen.out else _probe_folder(chosen)
    if chosen.kind == "retrieval":
        return _retrieve(chosen, encoder, views, folder)
    result = probe(
        encoder,
        chosen.data,
        chosen.kind,
        preset=chosen.preset,
        best_on_test=chosen.best_on_test,
        pool=chosen.pool,
        layers=chosen.layers,
        views=views,
        label=chosen.label,
        folds=chosen.folds,
        labels=chosen.labels,
        per_class=chosen.per_class,
        draws=chosen.draws,
        unlabelled=chosen.unlabelled,
        seed=chosen.seed,
        out=folder,
        cache=chosen.cache,
        frame_cache=Path(chosen.frame_cache) if chosen.frame_cache else None,
        workers=chosen.workers,
        device=resolve_device(chosen.device),
    )
    page = probe_report(folder)
    print(result.sentence())
    for line in (*result.few_sentences(), *result.notes):
        print(f"  {line}")
    if why := result.no_head():
        print(f"  no head is kept for tubelet embed: {why}")
    print(f"  {folder / 'results.json'}\n  {page}")
    if chosen.kind == "attentive" and not why:
        print(f"  {folder / HEAD}: for tubelet embed --pool attentive --head {folder}")
    return 0


def _retrieve(chosen: argparse.Namespace, encoder: Any, views: Any, folder: Path) -> int:
    from tubelet.evaluate.probe import retrieve
    from tubelet.train.parallel import resolve_device

    given = [name for name in ("preset", "labels", "per_class") if getattr(chosen, name) is not None]
    if given or chosen.best_on_test:
        raise UserError(
            f"{(given or ['best_on_test'])[0]} is about probes that learn, and retrieval does not; leave it out"
        )
    result = retrieve(
        encoder,
        chosen.data,
        pool=chosen.pool,
        layers=chosen.layers,
        views=views,
        label=chosen.label,
        unlabelled=chosen.unlabelled,
        within="all" if chosen.folds else "test",
        seed=chosen.seed,
        out=folder,
        cache=chosen.cache,
        frame_cache=Path(chosen.frame_cache) if chosen.frame_cache else None,
        workers=chosen.workers,
        device=resolve_device(chosen.device),
    )
    found = ", ".join(f"{name} {value:.3f}" for name, value in result.overall.values.items())
    print(f"{encoder.name}, retrieval on {chosen.data}: {found} ({result.overall.queries} queries)")
    print(f"  {folder / 'results.json'}")
    return 0


def _views(chosen: argparse.Namespace) -> Any:
    """Segments and crops, from the protocol if there is one, whose frames become ``chosen.frames``; or None."""
    from tubelet.evaluate.presets import read_protocol
    from tubelet.evaluate.source import Views

    if chosen.protocol is not None:
        if clash := [
            name for name in ("frames", "segments", "crops", "preset") if getattr(chosen, name) is not None
        ]:
            raise UserError(f"protocol={chosen.protocol} says what {clash[0]} says too; give one of them")
        protocol = read_protocol(chosen.protocol)
        chosen.frames = protocol.frames
        return protocol.views
    if chosen.segments is None and chosen.crops is None:
        return None
    return Views(*(1 if given is None else given for given in (chosen.segments, chosen.crops)))


def _probe_folder(chosen: argparse.Namespace) -> Path:
    """eval/DATA-KIND below the run, or below eval/ENCODER here for what has no folder."""
    data = Path(chosen.data)
    task = f"{data.parent.name if data.stem in ('labels', 'manifest') else data.stem}-{chosen.kind}"
    if chosen.preset is not None:
        task += f"-{chosen.preset}"
    if chosen.best_on_test:
        task += "-best-on-test"
    if chosen.label is not None:
        task += f"-{chosen.label.replace('/', '_')}"
    if chosen.labels is not None:
        task += "-few-labels" if "," in chosen.labels else f"-{chosen.labels.replace('%', 'pct')}"
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


def _add_embed(commands: Any, name: str) -> None:
    parser = commands.add_parser(name, help="vectors of sliding windows over videos of any length")
    _add_encoder(parser)
    _add_origin(parser)
    _add_clips(parser)
    parser.add_argument("--data", required=True, help="manifest, list, folder of videos, or one video")
    parser.add_argument(
        "--out", required=True, help="folder to write; an interrupted run goes on in it when started again"
    )
    parser.add_argument(
        "--window", help="4s for seconds, 64 for frames of the file (default: the encoder's clip)"
    )
    parser.add_argument("--stride", help="from one window to the next, as --window (default: the window)")
    parser.add_argument("--layer", type=int, help="tokens after that many blocks (default: the last)")
    parser.add_argument(
        "--pool",
        choices=("mean", "attentive", "none", "time", "space"),
        default="mean",
        help="time: mean over space, times joined; space: mean over time, places joined; none: all tokens "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--head",
        metavar="FOLDER",
        help="for --pool attentive: result of tubelet probe --kind attentive, or its head.safetensors",
    )
    parser.add_argument(
        "--segments", type=int, default=1, help="clips along a window's time, averaged (default: %(default)s)"
    )
    parser.add_argument(
        "--crops",
        type=int,
        default=1,
        help="crops along a frame's long side, averaged (default: %(default)s)",
    )
    parser.add_argument(
        "--format",
        choices=("parquet", "numpy", "both"),
        default="both",
        help="vectors in windows.parquet, in vectors.npy, or in both (default: %(default)s)",
    )
    parser.add_argument("--fp16", action="store_true", help="store vectors in half precision")
    parser.add_argument(
        "--batch-size", type=int, default=16, help="clips through the encoder at once (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="files decoded at once (default: one per core)")


def _embed(chosen: argparse.Namespace) -> int:
    from tubelet.embed.embed import embed, sentence
    from tubelet.evaluate.source import Views
    from tubelet.train.parallel import resolve_device

    done = embed(
        _load(chosen),
        chosen.data,
        chosen.out,
        window=chosen.window,
        stride=chosen.stride,
        layer=chosen.layer,
        pool=chosen.pool,
        head=chosen.head,
        views=Views(chosen.segments, chosen.crops),
        kept=chosen.format,
        fp16=chosen.fp16,
        batch_size=chosen.batch_size,
        workers=chosen.workers,
        device=resolve_device(chosen.device),
    )
    print(sentence(done))
    print(f"  {done.folder}")
    return 0


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


def _add_analyze(commands: Any, name: str) -> None:
    parser = commands.add_parser(
        name,
        help="a look inside encoders: what each depth knows",
        description="What every layer of encoders knows: linear probes, retrieval, gratings, similarity of layers, "
        "single tokens, spectrum, and which blocks change nothing.",
        epilog="tubelet analyze runs/a random:runs/a --data labels.csv --out runs/look; how to read the report: "
        "docs/reading_depth.md",
    )
    parser.add_argument(
        "encoders",
        metavar="ENCODER",
        nargs="+",
        help=f"{ENCODERS}; several are drawn over each other",
    )
    _add_reading(parser)
    parser.add_argument(
        "--data", required=True, help="manifest, list or folder; labels are needed for probes"
    )
    parser.add_argument("--out", required=True, help="folder for analysis.json, CSVs and report.html")
    parser.add_argument("--names", type=_words, help="what to call the encoders, such as ours,random")
    parser.add_argument("--layers", type=_numbers, help="such as 0,3,6 (default: all, the embedding too)")
    parser.add_argument(
        "--skip",
        type=_words,
        default=(),
        help="parts to leave out: decodability, similarity, tokens, influence, spectrum, occdrop, gratings, saturation",
    )
    parser.add_argument("--label", metavar="COLUMN", help="another column of the list to take labels from")
    parser.add_argument(
        "--folds", type=int, default=0, help="group-disjoint folds instead of the split column"
    )
    parser.add_argument(
        "--unlabelled", choices=("error", "exclude"), default="error", help="what clips without label are"
    )
    parser.add_argument(
        "--segments", type=int, default=1, help="clips along a video's time (default: %(default)s)"
    )
    parser.add_argument(
        "--crops", type=int, default=1, help="crops along a frame's long side (default: %(default)s)"
    )
    parser.add_argument(
        "--token-clips", type=int, default=64, help="clips whose tokens are looked at (default: %(default)s)"
    )
    parser.add_argument(
        "--influence-clips",
        type=int,
        default=2,
        help="clips to take patches away from (default: %(default)s)",
    )
    parser.add_argument(
        "--grating-clips", type=int, help="of each world of gratings (default: all 10,800 and 15,552)"
    )
    parser.add_argument(
        "--integer-labels",
        action="store_true",
        help="cut the gratings' labels to integers, as the blockwise paper's released code does by mistake",
    )
    parser.add_argument(
        "--checkpoints", help='"all" or steps such as 100,200: follow runs through the checkpoints they kept'
    )
    parser.add_argument("--batch-size", type=int, default=16, help="clips at once (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="decoding threads (default: one per core)")
    parser.add_argument("--cache", help="folder for features (default: $TUBELET_CACHE or the user's cache)")
    parser.add_argument("--frame-cache", help="folder for decoded frames, which other encoders can then use")
    parser.add_argument("--seed", type=int, default=0, help="of folds and samples (default: %(default)s)")


def _analyze(chosen: argparse.Namespace) -> int:
    from tubelet.evaluate.source import Views
    from tubelet.inside.analyze import analyze
    from tubelet.inside.footage import Manner
    from tubelet.inside.look import Amounts
    from tubelet.train.parallel import resolve_device

    amounts = ("skip", "token_clips", "influence_clips", "grating_clips", "integer_labels", "checkpoints")
    analyze(
        chosen.encoders,
        chosen.data,
        chosen.out,
        names=chosen.names,
        layers=chosen.layers,
        label=chosen.label,
        folds=chosen.folds,
        unlabelled=chosen.unlabelled,
        views=Views(chosen.segments, chosen.crops),
        amounts=Amounts(**{name: getattr(chosen, name) for name in amounts}),
        manner=Manner(
            chosen.cache,
            Path(chosen.frame_cache) if chosen.frame_cache else None,
            chosen.batch_size,
            chosen.workers,
            resolve_device(chosen.device),
        ),
        seed=chosen.seed,
        command=" ".join(["tubelet", *sys.argv[1:]]),
        allow_partial=chosen.allow_partial,
        heads=chosen.heads,
    )
    return 0


def _add_export(commands: Any, name: str) -> None:
    parser = commands.add_parser(name, help="an encoder as a file that others open, run before it counts")
    _add_encoder(parser)
    _add_origin(parser)
    _add_clips(parser)
    parser.add_argument("--out", required=True, help="new folder to write")
    parser.add_argument(
        "--to",
        default="safetensors",
        help="safetensors: our own folder; hf: one that transformers opens, with a model card; onnx; pt2: "
        "torch.export's; vjepa2: Meta's layout (default: %(default)s)",
    )
    parser.add_argument("--layers", type=int, metavar="K", help="keep the first K blocks and the final norm")
    parser.add_argument(
        "--push", metavar="OWNER/NAME", help="with --to hf: upload it to the Hugging Face hub"
    )


def _export(chosen: argparse.Namespace) -> int:
    from tubelet.export.hub import check_name, push
    from tubelet.export.save import export, refuse_filled

    refuse_filled(Path(chosen.out))
    if chosen.push is not None:
        check_name(chosen.push)
        if chosen.to != "hf":
            raise UserError(f"push={chosen.push}: the hub gets a folder that transformers opens; add --to hf")
    encoder = _load(chosen)
    done = export(encoder, chosen.out, chosen.to, chosen.layers, chosen.encoder)
    about = done.encoder.provenance
    print(f"{done.encoder.name}: {done.folder}, {chosen.to}; {done.checked()}")
    for line in (f"licence of the weights: {about['licence']}; source: {about['source']}", *done.told):
        print(f"  {line}")
    if chosen.push is not None:
        print(f"  {push(done.folder, chosen.push)}")
    return 0


def _add_compare(commands: Any, name: str) -> None:
    commands.add_parser(
        name, help="methods at equal compute: tubelet compare --data DATA --budget FLOPS --out OUT"
    )


def _compare(words: Sequence[str]) -> int:
    """Its knobs are those that all recipes share."""
    from tubelet.compare.compare import METHODS, PROBES, compare

    parser = Parser(prog="tubelet compare", description=inspect.getdoc(compare))
    parser.add_argument(
        "--methods", type=_words, default=METHODS, help=f"recipes (default: {','.join(METHODS)})"
    )
    parser.add_argument(
        "--budget",
        "--budgets",
        type=_budgets,
        required=True,
        dest="budgets",
        metavar="FLOPS,...",
        help="FLOPs of each run, such as 2e15; several draw the frontier",
    )
    parser.add_argument("--sizes", type=_words, default=(), help="of the encoder, such as vit_tiny,192x6x3")
    parser.add_argument(
        "--probes", type=_words, default=PROBES, help=f"evaluations (default: {','.join(PROBES)})"
    )
    _add_comparison(parser)
    given = vars(parser.parse_args(words))
    knobs, manner = _knobs_given(given), _manner(given)
    compare(**given, manner=manner, knobs=knobs)
    return 0


def _add_study(commands: Any, name: str) -> None:
    commands.add_parser(
        name, help="a paper's experiment: tubelet study NAME --data DATA --budget FLOPS --out OUT"
    )


def _study(words: Sequence[str]) -> int:
    """As `compare`, with arms and evaluations that the study knows."""
    from tubelet.compare.studies import STUDIES, find_study
    from tubelet.compare.study import study

    if not words or words[0] in ("-h", "--help"):
        print(
            "usage: tubelet study NAME --data DATA --budget FLOPS --out OUT [--help lists more]\n\nstudies:"
        )
        for name, known in STUDIES.items():
            print(f"  {name:20} {known.question}")
        return 0 if words else USER_ERROR
    name, *words = words
    about = f"{find_study(name).title}. {find_study(name).question}\n\n{inspect.getdoc(study)}"
    parser = Parser(prog=f"tubelet study {name}", description=about)
    parser.add_argument("--budget", type=float, required=True, metavar="FLOPS", help="such as 2e15")
    parser.add_argument("--model", help="vit_tiny, vit_small, ... or WIDTHxDEPTHxHEADS")
    parser.add_argument("--sizes", type=_words, default=(), help="of further teachers (salt-teacher)")
    parser.add_argument(
        "--sources", type=_words, default=(), help="videos of further teachers (salt-teacher)"
    )
    _add_comparison(parser)
    given = vars(parser.parse_args(words))
    knobs, manner = _knobs_given(given), _manner(given)
    study(name, **given, manner=manner, knobs=knobs)
    return 0


def _add_comparison(parser: Any) -> None:
    """What `compare` and `study` both take: where, on what, how often, how, and the knobs of all runs."""
    from tubelet.compare.plan import SET_HERE
    from tubelet.recipes.knobs import about_knobs

    parser.add_argument("--data", required=True, help="videos to pretrain on, and to evaluate on if labelled")
    parser.add_argument("--out", required=True, help="folder of the comparison")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each (default: %(default)s)")
    parser.add_argument(
        "--tasks", type=_words, default=(), help="labelled lists to evaluate on (default: DATA)"
    )
    parser.add_argument(
        "--folds", type=int, default=0, help="group-disjoint folds instead of the split column"
    )
    parser.add_argument(
        "--unlabelled", choices=("error", "exclude"), default="error", help="what clips without label are"
    )
    parser.add_argument("--headline", default="macro_recall", help="metric to rank by (default: %(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="settings",
        metavar="METHOD.KNOB=VALUE",
        help="a knob of one method, such as salt.teacher_share=0.25; may be repeated",
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of each run (default: torch's)")
    parser.add_argument(
        "--reuse", metavar="OUT", help="take over runs of another comparison that are the same"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would run and its cost, and stop")
    group = parser.add_argument_group("knobs of all runs, as in tubelet pretrain")
    for name, (kind, default, about) in about_knobs().items():
        if name not in SET_HERE:
            _add_knob(group, name, kind, default, about)


def _knobs_given(given: dict[str, Any]) -> dict[str, Any]:
    """The shared knobs that were given, taken out of ``given``."""
    from tubelet.compare.plan import SET_HERE
    from tubelet.recipes.knobs import about_knobs

    found = {name: given.pop(name) for name in about_knobs() if name not in SET_HERE}
    return {name: value for name, value in found.items() if value is not _ABSENT}


def _manner(given: dict[str, Any]) -> Any:
    """How runs are done, taken out of ``given``."""
    from tubelet.compare.execute import Manner

    return Manner(**{name: given.pop(name) for name in ("jobs", "threads", "dry_run", "reuse")})


def _words(text: str) -> tuple[str, ...]:
    found = tuple(word.strip() for word in text.split(",") if word.strip())
    if len(set(found)) < len(found) or not found:
        raise argparse.ArgumentTypeError(f'"{text}" names something twice, or nothing')
    return found


def _budgets(text: str) -> tuple[float, ...]:
    return tuple(sorted(float(word) for word in _words(text)))


# what means something only where there is a --query
OF_QUERY = ("start", "end", "top", "device", "head", "encoder")


def _add_query(parser: Any, query: str) -> None:
    """The table, and what is looked for in it; ``query`` says what that is for."""
    parser.add_argument("features", metavar="FEATURES", help="folder that tubelet embed has written")
    parser.add_argument("--query", metavar="FILE", help=query)
    parser.add_argument("--start", type=float, help="seconds: where the query begins (default: all of it)")
    parser.add_argument("--end", type=float, help="seconds: where it ends")
    parser.add_argument("--top", type=int, help="stretches to find (default: 10)")
    parser.add_argument("--head", metavar="FOLDER", help="the head that the table was pooled by, if it was")
    parser.add_argument("--encoder", metavar="SPEC", help="where the table's encoder is now, if it was moved")
    parser.add_argument("--device", help="cpu, cuda, mps (default: auto)")


def _given(chosen: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given."""
    return {name: value for name in names if (value := getattr(chosen, name)) is not None}


def _add_search(commands: Any, name: str) -> None:
    parser = commands.add_parser(name, help="what in embedded videos is most like a clip")
    _add_query(parser, "a video, in the table or not")
    parser.add_argument(
        "--exact", action="store_true", default=None, help="compare all windows, however many there are"
    )
    parser.add_argument("--evaluate", action="store_true", help="do windows find their class in other files?")
    parser.add_argument(
        "--seed", type=int, help="with --evaluate: of intervals, and of files drawn (default: 0)"
    )
    parser.add_argument("--out", help="folder for the result as CSV, JSON and a page of filmstrips")


def _search(chosen: argparse.Namespace) -> int:
    from tubelet.search.answer import answer, evaluate

    if chosen.evaluate == (chosen.query is not None):
        raise UserError("give either --query FILE, or --evaluate")
    of_query, of_judging = _given(chosen, *OF_QUERY, "exact"), _given(chosen, "seed")
    if chosen.evaluate:
        if of_query:
            raise UserError(
                f"--{next(iter(of_query))} is of a query, and --evaluate asks with all windows; leave it out"
            )
        evaluate(chosen.features, chosen.out, **of_judging)
        return 0
    if of_judging:
        raise UserError("--seed is of --evaluate, and a search draws nothing at random; leave it out")
    answer(chosen.features, chosen.query, out=chosen.out, **of_query)
    return 0


def _add_browse(commands: Any, name: str) -> None:
    parser = commands.add_parser(name, help="a page on this machine to look at embedded videos and play them")
    _add_query(parser, "begin with what is like this video")
    parser.add_argument("--port", type=int, default=0, help="of the page (default: any that is free)")


def _browse(chosen: argparse.Namespace) -> int:
    from tubelet.search.server import browse

    of_query = _given(chosen, *OF_QUERY)
    if chosen.query is None and of_query:
        raise UserError(f"--{next(iter(of_query))} is of a query; give --query FILE too, or leave it out")
    browse(chosen.features, chosen.port, chosen.query, **of_query)
    return 0


def _add_cluster(commands: Any, name: str) -> None:
    parser = commands.add_parser(name, help="groups of windows that are alike, and the odd ones")
    parser.add_argument("features", metavar="FEATURES", help="folder that tubelet embed has written")
    parser.add_argument("--groups", type=int, help="how many (default: by the highest silhouette)")
    parser.add_argument(
        "--map", choices=("pca", "tsne"), default="pca", help="the picture (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of samples and starts (default: %(default)s)")
    parser.add_argument("--out", help="folder to write (default: clusters/ in FEATURES)")


def _cluster(chosen: argparse.Namespace) -> int:
    from tubelet.search.groups import cluster_features

    cluster_features(chosen.features, chosen.out, chosen.groups, chosen.map, chosen.seed)
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
    "embed": (_add_embed, _embed),
    "analyze": (_add_analyze, _analyze),
    "export": (_add_export, _export),
    "search": (_add_search, _search),
    "browse": (_add_browse, _browse),
    "cluster": (_add_cluster, _cluster),
    "compare": (_add_compare, None),
    "study": (_add_study, None),
    "convergence": (_add_convergence, _convergence),
    "demo": (_add_demo, _demo),
}
# Their options are the recipes', which are loaded only for them.
OF_RECIPES: dict[str, Callable[[Sequence[str]], int]] = {
    "pretrain": _pretrain,
    "compare": _compare,
    "study": _study,
}


if __name__ == "__main__":
    sys.exit(main())
