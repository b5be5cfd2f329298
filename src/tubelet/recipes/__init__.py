"""Recipes: functions whose parameters are their knobs. ``tubelet pretrain NAME`` and `run_recipe` find them here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from tubelet.errors import UserError, nearest
from tubelet.recipes.blockwise import blockwise
from tubelet.recipes.knobs import Knobs
from tubelet.recipes.layerlock import layerlock, layerlock_collapse, vjepa_layerlock
from tubelet.recipes.run import Finished, saved_config
from tubelet.recipes.salt import salt
from tubelet.recipes.videomae import salt_teacher, videomae
from tubelet.recipes.vjepa import vjepa, vjepa2

RECIPES: dict[str, Callable[..., Finished]] = {
    "videomae": videomae,
    "vjepa": vjepa,
    "vjepa2": vjepa2,
    "salt-teacher": salt_teacher,
    "salt": salt,
    "layerlock": layerlock,
    "layerlock-collapse": layerlock_collapse,
    "vjepa-layerlock": vjepa_layerlock,
    "blockwise": blockwise,
}
FROM_ZERO = {"pixel_steps", "restart", "overlap"}  # whole-numbered knobs of which 0 is a value


def find_recipe(name: str) -> Callable[..., Finished]:
    """The recipe of that name; raises UserError naming the nearest."""
    if name not in RECIPES:
        raise UserError(f'unknown recipe "{name}"{nearest(name, RECIPES)} (there are: {", ".join(RECIPES)})')
    return RECIPES[name]


def own_knobs(name: str) -> dict[str, tuple[Any, Any]]:
    """name -> (type, default) of the knobs that this recipe has beyond the shared ones."""
    recipe = find_recipe(name)
    hints = get_type_hints(recipe)
    parameters = inspect.signature(recipe).parameters
    return {n: (hints[n], p.default) for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def run_recipe(name: str, **given: Any) -> Finished:
    """Runs a recipe with the knobs given; those left out follow from data, machine and paper.

    With resume=True, knobs that are not given are those that the run began with.
    Raises UserError for an unknown recipe or knob, naming the nearest.
    """
    recipe = find_recipe(name)
    shared, own = {f.name for f in fields(Knobs)}, set(own_knobs(name))
    unknown = sorted(set(given) - shared - own)
    if unknown:
        raise UserError(f'recipe "{name}" has no knob "{unknown[0]}"{nearest(unknown[0], shared | own)}')
    for knob in sorted(own & given.keys()):
        least = 0 if knob in FROM_ZERO else 1
        if type(given[knob]) is int and given[knob] < least:
            raise UserError(f"{knob}={given[knob]}: must be at least {least}")
    if given.get("resume") and given.get("out"):
        given = {**_knobs_of(Path(given["out"]), name, shared | own), **given}
    return recipe(
        Knobs(**{k: v for k, v in given.items() if k in shared}),
        **{k: v for k, v in given.items() if k in own},
    )


def _knobs_of(out: Path, recipe: str, known: set[str]) -> dict[str, Any]:
    """What an earlier session in ``out`` was given, or nothing."""
    saved = saved_config(out, recipe) or {"knobs": {}}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in saved["knobs"].items() if k in known}
