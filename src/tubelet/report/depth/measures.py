"""The sections of what is measured at every layer by itself: scores, tokens, spectrum and whatever else."""

from __future__ import annotations

from pathlib import Path

from tubelet.errors import UserError
from tubelet.report.depth.analysis import Analysis
from tubelet.report.depth.charts import add_panels, layer_panel, layer_panels, prefixed, print_panels
from tubelet.report.page import Page

_READABLE = ("linear", "macro_recall", "linear_occluded")
_RETRIEVAL = ("map", "hit@1", "hit@5", "hit@10")
_GRATINGS = ("grating", "double")
_MIXING = ("patch_similarity", "occdrop", "occdrop_grating", "occdrop_double")
_ATTENTION = ("attention_space", "attention_time", "attention_entropy")
_NORMS = ("token_norm", "token_norm_sd", "token_outliers")
_SPECTRUM = (
    "effective_rank",
    "participation_ratio",
    "isotropy",
    "components_90",
    "uniformity",
    "rankme",
    "lidar",
)
_SIZES = (
    "condition_number",
    "norm_mean",
    "norm_sd",
    "cosine_mean",
    "cosine_sd",
    "euclid_mean",
    "euclid_sd",
)


def add_readable(page: Page, found: Analysis, figures: dict[str, bytes]) -> None:
    """What is readable at which depth: classes, neighbours and gratings; its pictures for print go into ``figures``."""
    readable, retrieval = layer_panels(found, _READABLE), layer_panels(found, _RETRIEVAL)
    gratings = layer_panels(found, _GRATINGS)
    if not (readable or retrieval or gratings):
        return
    page.heading("What is readable at which depth")
    _axis(page, found)
    if readable:
        add_panels(
            page,
            found,
            readable,
            _READABLE,
            "How well a linear reader tells the classes apart from each layer.",
            "Dashed: a guess.",
        )
        figures["decodability"] = print_panels(found, readable)
    if retrieval:
        shows = "How often the clips nearest to a clip are of its class."
        add_panels(page, found, retrieval, _RETRIEVAL, shows)
        figures["retrieval"] = print_panels(found, retrieval)
    if gratings:
        shows = "How well a linear reader tells the properties of drifting gratings from each layer: means over them."
        add_panels(page, found, gratings, _GRATINGS, shows)
        for metric in _GRATINGS:
            single = [
                panel for target in found.targets(metric) if (panel := layer_panel(found, metric, target))
            ]
            if single:
                shows = f"{found.name(metric)}: each property by itself."
                page.curves(single, shows, "One linear reader for each.", found.names)
                gratings += [prefixed(panel, found.name(metric)) for panel in single]
        figures["gratings"] = print_panels(found, gratings)


def add_tokens(page: Page, found: Analysis, figures: dict[str, bytes]) -> None:
    """Mixing, attention and norms of tokens; the picture for print goes into ``figures``."""
    mixing, attention, norms = (layer_panels(found, some) for some in (_MIXING, _ATTENTION, _NORMS))
    if not (mixing or attention or norms or found.all["influence"]):
        return
    page.heading("Tokens")
    if mixing:
        add_panels(
            page,
            found,
            mixing,
            _MIXING,
            "How alike the tokens of a clip are, and how much of the score is lost when all of the clip but one patch "
            "is blank.",
            "Tokens that have taken in the whole clip are alike; what lies in a relation of patches is lost with them.",
        )
    if attention:
        shows = "How far attention looks in space and in time, and how evenly it is spread."
        add_panels(page, found, attention, _ATTENTION, shows)
    if norms:
        add_panels(page, found, norms, _NORMS, "How long the tokens are, and how many stand out.")
    if mixing or attention or norms:
        figures["tokens"] = print_panels(found, [*mixing, *attention, *norms])


def add_influence(page: Page, found: Analysis, folder: Path) -> None:
    """The pictures of influence, from ``folder``; raises UserError if one is missing or outside of it."""
    for entry in found.all["influence"]:
        file = folder / entry["picture"]
        if not file.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{folder / 'analysis.json'} names a picture outside its folder: {entry['picture']}"
            )
        try:
            png = file.read_bytes()
        except OSError as error:
            raise UserError(
                f"{file} is named in analysis.json but cannot be read ({error.strerror}); run the analysis again"
            ) from error
        page.picture(
            png,
            f"{entry['encoder']}, clip {entry['clip']}: how much each token changes when the framed patch is removed.",
            " ".join(found.how(["influence"])),
        )


def add_spectrum(page: Page, found: Analysis, figures: dict[str, bytes]) -> None:
    """How the clips spread, and how large they are; the picture for print goes into ``figures``."""
    panels, sizes = layer_panels(found, _SPECTRUM), layer_panels(found, _SIZES)
    if not (panels or sizes):
        return
    page.heading("Spectrum")
    if panels:
        shows = "Into how many directions the clips spread, and how evenly."
        add_panels(page, found, panels, _SPECTRUM, shows)
        figures["spectrum"] = print_panels(found, panels)
    if sizes:
        with page.folded("Sizes, angles and distances"):
            add_panels(page, found, sizes, _SIZES, "Lengths of the clips' vectors, and pairs of clips.")


def add_rest(page: Page, found: Analysis) -> None:
    """What is measured but has no place above."""
    known = {*_READABLE, *_RETRIEVAL, *_GRATINGS, *_MIXING, *_ATTENTION, *_NORMS, *_SPECTRUM, *_SIZES}
    others = [
        (metric, target)
        for metric, target in found.measures()
        if metric not in known or (target is not None and metric not in _GRATINGS)
    ]
    panels = []
    for metric, target in others:
        if panel := layer_panel(found, metric, target):
            panels.append(panel if target is None else prefixed(panel, found.name(metric)))
    if panels:
        page.heading("Other measures")
        names = dict.fromkeys(metric for metric, _ in others)
        add_panels(page, found, panels, tuple(names), "What else was measured at every layer.")


def _axis(page: Page, found: Analysis) -> None:
    if found.depth is None:
        page.text(
            "The encoders have different depths, so they are drawn over the share of their depth: 0 is before the "
            "first block, 1 after the last."
        )
