"""The model card: whose weights these are, what they were made from and at what cost, and how to use them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tubelet.export.hub import SCHEME
from tubelet.export.story import Score, Story
from tubelet.export.weights import UNTRAINED, Encoder
from tubelet.nn.published import UNPROVEN
from tubelet.nn.tokens import name_positions
from tubelet.nn.vit import ViT

UNKNOWN = "unknown"
# https://huggingface.co/docs/hub/repositories-licenses
_HUB = (
    "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m "
    "bigscience-bloom-rail-1.0 bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear "
    "bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 "
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 "
    "cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 "
    "creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 "
    "fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc "
    "lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 "
    "ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 pddl postgresql unknown "
    "unlicense wtfpl zlib "
)
HUB_LICENCES = frozenset(_HUB.split())


def write_card(
    encoder: Encoder, model: ViT, folder: Path, named: str, told: tuple[str, ...], story: Story
) -> None:
    """`README.md` of a Hugging Face folder: a head that the hub reads, and the same and more for people.

    named: the class that opens it. told: what its user must know. What is not known is said to be unknown. Paths of
    this machine must not be in ``encoder.provenance`` any more (`tubelet.export.about.about`).
    """
    head = yaml.safe_dump(_head(encoder, story), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{head}---\n\n# {encoder.name}\n",
        f"A video encoder: a plain vision transformer over tubelets of {_times(model.patch)} (frames, height, width) "
        f"with {model.depth} blocks of {model.dim} channels, {model.heads} heads, an MLP of {model.hidden}, and "
        f"positions `{name_positions(model.positions)[0]}`; {_parameters(model)} parameters. It turns a "
        f"clip into {model.dim} numbers for each tubelet.\n",
        _origin(encoder),
        _clips(encoder),
        _data(encoder),
        _cost(story),
        _scores(story.scores),
        _use(encoder, named),
        "## To know\n\n" + "".join(f"* {line[0].upper()}{line[1:]}.\n" for line in told),
    ]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def licence_id(licence: str) -> str:
    """The hub's word for a licence: its identifier, "unknown" for what nobody knows, "other" for all else.

    Of several, joined by "and" or a comma, in any order: "unknown" if one is, else their common word, else "other".
    """
    words = {_word(part) for part in re.split(r" and |, ", licence.lower())}
    if UNKNOWN in words:
        return UNKNOWN
    return words.pop() if len(words) == 1 else "other"


def _word(licence: str) -> str:
    if licence in HUB_LICENCES:
        return licence
    return UNKNOWN if licence.startswith("yours") or licence.endswith(UNPROVEN) else "other"


def _head(encoder: Encoder, story: Story) -> dict[str, Any]:
    about = encoder.provenance
    licence = str(about["licence"])
    head: dict[str, Any] = {
        "library_name": "transformers",
        "license": licence_id(licence),
        "pipeline_tag": "feature-extraction",
        "tags": ["video", "self-supervised", "tubelet", *([about["recipe"]] if "recipe" in about else [])],
    }
    if head["license"] == "other":
        head["license_name"] = licence
        if "licence_link" in about:
            head["license_link"] = about["licence_link"]
    if bases := [base.removeprefix(SCHEME) for base in _bases(encoder) if base.startswith(SCHEME)]:
        head["base_model"] = bases if len(bases) > 1 else bases[0]
    if story.scores:
        results = [_result(score) for score in story.scores]
        head["model-index"] = [{"name": encoder.name, "results": results}]
    return head


def _result(score: Score) -> dict[str, Any]:
    return {
        "task": {"type": "video-classification", "name": f"frozen evaluation ({score.kind})"},
        "dataset": {"type": score.task, "name": score.task},
        "metrics": [{"type": score.metric, "value": round(score.value, 4)}],
    }


def _bases(encoder: Encoder) -> list[str]:
    """Whose weights training began with, or these are; none for an encoder that was trained from scratch."""
    about = encoder.provenance
    for began in ("began_from", "init_from", "branch_from"):
        if about.get(began, UNKNOWN) not in (None, UNKNOWN):
            return [about[began]]
    source = about["source"]
    if "recipe" in about or source == UNTRAINED:
        return []
    if not source.startswith(SCHEME) and "base_model" in about:
        base = about["base_model"]
        return [SCHEME + one for one in (base if isinstance(base, list) else [base])]
    return [source]


def _origin(encoder: Encoder) -> str:
    about, licence = encoder.provenance, str(encoder.provenance["licence"])
    if licence_id(licence) == UNKNOWN:
        licence += (
            " (whoever publishes this says here under which licence; without one nobody else may use it)"
        )
    rows = {
        "method": about.get("recipe") or about.get("kind") or UNKNOWN,
        "which encoder": _which(about),
        "source": about["source"],
        "base model": ", ".join(_bases(encoder))
        or ("none, not trained" if about["source"] == UNTRAINED else "none, trained from scratch"),
        "licence of the weights": licence,
        "blocks": about.get("layers") or "all",
        "digest": encoder.digest,
    }
    if "taught_by" in about:
        rows["teacher"] = about["taught_by"]
    if "partial" in about:
        left = about["partial"]["left_random"]
        rows["left random"] = f"{len(left)} tensors: {', '.join(left)}"
    return "## Where it comes from\n\n" + _table(("", ""), list(rows.items()))


def _which(about: dict[str, Any]) -> str:
    step = f", step {about['step']}" if "step" in about else ""
    return f"{about.get('which') or UNKNOWN}{step}"


def _clips(encoder: Encoder) -> str:
    clips = encoder.geometry
    rate = (
        f"one in {clips.frame_step} of the video's" if clips.fps is None else f"{clips.fps:g} frames a second"
    )
    return (
        f"## Clips\n\n{clips.frames} frames, {rate}, {clips.crop_size} x {clips.crop_size} pixels: the short side "
        f"scaled to 256/224 of that, then the centre. Values in [0, 1], less mean {_numbers(clips.mean)}, over std "
        f"{_numbers(clips.std)}.\n"
    )


def _data(encoder: Encoder) -> str:
    about = encoder.provenance
    if "data" in about:
        split = f", split {about['split']}" if about.get("split") else ""
        known = f"Trained on `{about['data']}`{split} (digest {about.get('data_digest') or UNKNOWN}), without labels."
    else:
        known = f"Trained on what its source says ({about['source']}); it was not trained here."
    return (
        f"## Training data\n\n{known} Who and what is seen in these videos, and under which terms they were made, is "
        f"not known to the tool that wrote this card: whoever publishes it adds that here.\n"
    )


def _cost(story: Story) -> str:
    if story.cost is None:
        return "## Cost\n\nUnknown: there was no run folder beside the encoder.\n"
    cost = dict(story.cost)
    if "seconds" in cost:
        cost["hours"] = cost.pop("seconds") / 3600
    words = {
        "steps": "{:,.0f} steps",
        "clips": "{:,.0f} clips",
        "train_flops": "{:.3g} FLOPs",
        "hours": "{:.2f} hours",
    }
    known = ", ".join(word.format(cost[name]) for name, word in words.items() if name in cost)
    return f"## Cost\n\n{known}. What it began with, and failed or other runs, are not counted.\n"


def _scores(scores: tuple[Score, ...]) -> str:
    if not scores:
        return "## Evaluation\n\nNone was found for exactly these weights.\n"
    rows = [
        (
            score.task,
            score.kind,
            score.metric,
            f"{score.value:.3f}",
            UNKNOWN if score.low is None or score.high is None else f"{score.low:.3f} to {score.high:.3f}",
        )
        for score in scores
    ]
    columns = ("data", "probe", "metric", "value", "95 % interval")
    return "## Evaluation\n\n" + _table(columns, rows)


def _use(encoder: Encoder, named: str) -> str:
    clips = encoder.geometry
    trust = ", trust_remote_code=True" if named == "TubeletModel" else ""
    options = ", skip_predictor=True" if named == "VJEPA2Model" else ""
    return f"""## Use

```python
import torch
from transformers import AutoModel

model = AutoModel.from_pretrained("OWNER/NAME"{trust}).eval()
# [clips, frames, channels, height, width], normalised
clip = torch.zeros(1, {clips.frames}, 3, {clips.crop_size}, {clips.crop_size})
tokens = model(clip{options}).last_hidden_state  # [clips, tubelets, width]
```

or, with [tubelet](https://pypi.org/project/tubelet/), frames after channels:

```python
from tubelet import load_encoder

tokens = load_encoder("hf://OWNER/NAME").model(clip.transpose(1, 2))
```
"""


def _table(columns: tuple[str, ...], rows: Any) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in line)} |\n" for line in lines)


def _times(numbers: tuple[int, ...]) -> str:
    return " x ".join(map(str, numbers))


def _numbers(numbers: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{number:g}" for number in numbers) + ")"


def _parameters(model: ViT) -> str:
    count = sum(p.numel() for p in model.parameters())
    return f"{count / 1e6:.1f} million" if count >= 1e5 else f"{count:,}"
