"""ImageNet-1K (arXiv 1409.0575) as video: each image is a clip in which nothing moves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from tubelet.errors import UserError

from .. import images
from ..manifest import Manifest
from .parse import read_lines, read_table
from .places import Places, official_file
from .rows import Row, manifest_of

TOPS = ("", "ILSVRC/Data/CLS-LOC")  # as most keep it, and as Kaggle's archive has it


def read_imagenet(folder: Path, variant: str) -> Manifest:
    """Train and validation images, labelled by class name where the names are there, else by synset.

    Files: `train/n01440764/NAME.JPEG`; `val/` the same way, or flat with `LOC_val_solution.csv`
    (ImageId,PredictionString, of which the first word is the synset); both also below `ILSVRC/Data/CLS-LOC/`.
    `LOC_synset_mapping.txt` (`n01440764 tench, Tinca tinca`) gives names; two classes of one name keep their synset
    beside it. Readers repeat an image for as many frames as a clip has, as V-JEPA's evaluation does.
    Raises UserError for files that are absent or not of this form.
    """
    top = next((folder / place for place in TOPS if (folder / place / "train").is_dir()), None)
    if top is None:
        places = ", ".join(str(folder / place / "train") for place in TOPS)
        raise UserError(f"ImageNet: no folder of training images; looked for {places}")
    mapping = official_file(folder, ["LOC_synset_mapping.txt"])
    names = _names(mapping) if mapping else {}

    def labelled(synset: str) -> str:
        return names.get(synset, synset)

    def rows() -> Iterator[Row]:
        yield from _by_class(top / "train", "train", labelled)
        if any(entry.is_dir() for entry in (top / "val").iterdir()):
            yield from _by_class(top / "val", "val", labelled)
            return
        solution = official_file(folder, ["LOC_val_solution.csv"])
        if solution is None:
            raise UserError(
                f"{top / 'val'} has no folders of classes, and {folder / 'LOC_val_solution.csv'} does not exist; "
                "put the official file there"
            )
        for where, row in read_table(solution, ("ImageId", "PredictionString")):
            synset = row["PredictionString"].split()[0]
            yield Row([f"val/{row['ImageId']}"], labelled(synset), "val", where)

    if not (top / "val").is_dir():
        raise UserError(f"ImageNet: {top / 'val'} does not exist; the validation images belong there")
    notes = [] if names else ["LOC_synset_mapping.txt is not there, so labels are synsets"]
    return manifest_of(rows(), Places(top, ("",), pictures=True), folder, ".JPEG", notes)


def _by_class(folder: Path, split: str, labelled: Callable[[str], str]) -> Iterator[Row]:
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        raise UserError(f"{folder} has no folders of classes, such as {folder / 'n01440764'}")
    for below in classes:
        for file in sorted(below.iterdir()):
            if file.suffix.lower() in images.EXTENSIONS:
                yield Row([f"{split}/{below.name}/{file.stem}"], labelled(below.name), split, str(file))


def _names(file: Path) -> dict[str, str]:
    words = {synset: text for _, (synset, text) in read_lines(file, None, 2, "n01440764 tench, Tinca tinca")}
    often = Counter(words.values())
    return {synset: text if often[text] == 1 else f"{text} ({synset})" for synset, text in words.items()}
