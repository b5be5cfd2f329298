"""The rules of CONTRIBUTING.md that a machine can check: which way imports point, what is named how."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import tubelet

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "tubelet"
FILES = sorted(SOURCE.rglob("*.py"))

# What each part may import beside itself. A name with a dot is that one module, without its neighbours.
# The roots `errors` (the exception meant for people) and `files` (whole or absent) are allowed to all parts
# that report or write; `types` stands on nothing.
ROOTS = {"errors", "files", "quiet"}
BELOW = {"types", "tensors", "masks", "nn", "data", "methods", "train", "evaluate", "analysis", "export"}
ARROWS: dict[str, set[str]] = {
    "errors": set(),
    "quiet": set(),
    "types": set(),
    "tensors": set(),
    "files": {"errors"},
    "nn": {"types", "errors"},
    "masks": {"types", "errors"},
    "data": {"types"} | ROOTS,
    "methods": {"types", "nn", "errors"},
    "train": {"types", "methods.method", "nn.block", "tensors"} | ROOTS,
    "analysis": {"types", "nn", "data"} | ROOTS,
    # `Encoder.embed_video` is `embed.embed.embed_video`, imported when it is called: the one arrow that points upwards
    "export": {"types", "tensors", "nn", "data", "embed.embed"} | ROOTS,
    # what is evaluated is a loaded encoder: `export.weights` is where that type and its loader are
    "evaluate": {"types", "tensors", "nn", "data", "export.weights"} | ROOTS,
    "report": BELOW | ROOTS,
    # a recipe writes its run's page; a page knows no recipe
    "recipes": BELOW | ROOTS | {"report"},
    # what compares runs, runs recipes
    "compare": BELOW | ROOTS | {"report", "recipes"},
    # a look inside encoders draws its own page
    "inside": BELOW | ROOTS | {"report"},
    "embed": BELOW | ROOTS,
    "search": BELOW | ROOTS | {"embed", "report"},
    "doctor": BELOW | ROOTS,
    "demo": BELOW | ROOTS | {"report", "recipes"},
    "cli": BELOW | ROOTS | {"report", "recipes", "compare", "inside", "embed", "search", "doctor", "demo"},
    "__init__": BELOW
    | ROOTS
    | {"report", "recipes", "compare", "inside", "embed", "search", "doctor", "demo", "cli"},
    "__main__": {"cli"},
}


PUBLIC = {
    "UserError",
    "analyze",
    "load_encoder",
    "pretrain",
    "probe",
    "read_manifest",
    "save_encoder",
    "scan",
}


def module_of(file: Path) -> str:
    """nn/vit.py -> nn.vit"""
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts)


def part_of(module: str) -> str:
    return module.split(".")[0]


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and module, relative to tubelet, of everything of ours that ``file`` imports, wherever in it."""
    package = ["tubelet", *file.relative_to(SOURCE).parent.parts]
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            # `from tubelet.data import decode` imports a module where there is one of that name
            names = [
                f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base for alias in node.names
            ]
        else:
            continue
        for name in names:
            if name == "tubelet" or name.startswith("tubelet."):
                yield node.lineno, name.removeprefix("tubelet").removeprefix(".") or "__init__"


def is_module(name: str) -> bool:
    path = SOURCE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def wrong_arrows(file: Path) -> list[str]:
    part = part_of(module_of(file))
    allowed = ARROWS[part]
    return [
        f"{file.relative_to(ROOT)}:{line}: {part} may not import {name}"
        for line, name in imports(file)
        if part_of(name) != part and part_of(name) not in allowed and name not in allowed
    ]


def test_every_part_has_its_arrows():
    parts = {part_of(module_of(file)) for file in FILES}
    assert parts <= ARROWS.keys(), f"name what these may import: {sorted(parts - ARROWS.keys())}"


def test_imports_point_the_right_way():
    assert not (wrong := [line for file in FILES for line in wrong_arrows(file)]), "\n".join(wrong)


def test_a_wrong_arrow_would_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("test_house_rules.SOURCE", tmp_path / "tubelet")
    monkeypatch.setattr("test_house_rules.ROOT", tmp_path)
    for text in (
        "from tubelet.analysis.health import verdict",
        "from ..analysis import health",
        "import tubelet",
    ):
        file = tmp_path / "tubelet" / "train" / "loop.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"def f() -> None:\n    {text}\n")
        assert len(wrong_arrows(file)) == 1, text
    file.write_text("from tubelet.nn.block import Block\nfrom tubelet.methods.method import Method\n")
    assert wrong_arrows(file) == []
    file.write_text("from tubelet.methods.vjepa import VJEPA\n")
    assert len(wrong_arrows(file)) == 1


def words_of(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Names, attributes and string constants in code; neither comments nor docstrings."""
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        match node:
            case (
                ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name))
            ):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.Constant(value=str(text)) if id(node) not in prose:
                yield node.lineno, text


def test_the_loop_knows_no_method():
    methods = [
        file.stem for file in (SOURCE / "methods").glob("*.py") if file.stem not in ("__init__", "method")
    ]
    assert methods
    forbidden = re.compile(
        rf"\b({'|'.join([*methods, 'teacher', 'student', 'ema', 'momentum_encoder'])})\b", re.I
    )
    found = [
        f"{file.relative_to(ROOT)}:{line}: {word!r}"
        for file in (SOURCE / "train").glob("*.py")
        for line, word in words_of(parse(file))
        if forbidden.search(re.sub(r"([a-z])([A-Z])|_", r"\1 \2", word))
    ]
    assert not found, "\n".join(found)
    loop = (SOURCE / "train" / "loop.py").read_text(encoding="utf-8")
    assert "isinstance(" not in loop


def swallows(handler: ast.ExceptHandler) -> bool:
    """Catches everything. Cleaning up after an interruption, and raising it again, is not swallowing."""
    caught = set(re.findall(r"\w+", ast.unparse(handler.type))) if handler.type else {"BaseException"}
    last = handler.body[-1]
    again = isinstance(last, ast.Raise) and last.exc is None
    return "Exception" in caught or ("BaseException" in caught and not again)


def test_no_error_is_swallowed():
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in FILES
        for node in ast.walk(parse(file))
        if isinstance(node, ast.ExceptHandler) and swallows(node)
    ]
    assert not found, f"catch what can happen, by name: {found}"


@pytest.mark.parametrize("part", ["nn", "methods", "train"])
def test_nothing_takes_arguments_that_it_does_not_know(part):
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}(**{node.args.kwarg.arg})"
        for file in (SOURCE / part).glob("*.py")
        for node in ast.walk(parse(file))
        if isinstance(node, ast.FunctionDef) and node.args.kwarg is not None
    ]
    assert not found, found


def test_files_are_named_after_what_they_hold():
    names = {file.stem for file in FILES} & {"utils", "util", "helpers", "helper", "misc", "common"}
    assert not names


def test_public_names():
    names = getattr(tubelet, "__all__", [])
    assert set(names) == PUBLIC, "a new public name is a promise: list it in this test, or do without"
    assert all(hasattr(tubelet, name) for name in names)
    assert len(names) <= 12


def test_every_recipe_says_how_it_is_run():
    from tubelet.recipes import RECIPES

    silent = [
        name for name, recipe in RECIPES.items() if f"tubelet pretrain {name} " not in (recipe.__doc__ or "")
    ]
    assert not silent, f"no command in the docstring of {silent}"


def undocumented(file: Path) -> Iterator[str]:
    """Public classes, functions and methods without a docstring of their own or of the class they come from."""
    for node in parse(file).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"
        # the attributes of a protocol are told in its docstring
        if isinstance(node, ast.ClassDef) and "Protocol" not in map(ast.unparse, node.bases):
            for method in node.body:
                if not isinstance(method, ast.FunctionDef) or method.name.startswith("_"):
                    continue
                if not ast.get_docstring(method) and not inherited_doc(file, node.name, method.name):
                    yield f"{file.relative_to(ROOT)}:{method.lineno} {node.name}.{method.name}"


def inherited_doc(file: Path, cls: str, method: str) -> bool:
    found = getattr(importlib.import_module(f"tubelet.{module_of(file)}"), cls)
    return any(
        inspect.getdoc(getattr(base, method, None)) for base in found.__mro__[1:] if hasattr(base, method)
    )


def test_public_things_have_docstrings():
    found = [line for file in FILES for line in undocumented(file)]
    assert not found, "\n".join(found)


def test_everything_is_typed():
    found = []
    for file in FILES:
        for node in ast.walk(parse(file)):
            if not isinstance(node, ast.FunctionDef):
                continue
            args = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            bare = [arg.arg for arg in args if arg.annotation is None and arg.arg not in ("self", "cls")]
            if bare or (node.returns is None and node.name != "__init__"):
                found.append(f"{file.relative_to(ROOT)}:{node.lineno} {node.name}: {bare or 'return type'}")
    assert not found, "\n".join(found)


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_text_names_a_machine():
    # written in pieces, so that this file does not find itself
    folders = "|".join(["work", "home", "Users", "opt", "root", "mnt"])
    places = re.compile(
        rf"(?<![\w.:/<~-])/({folders})/\w|" + "file:" + "///|" + "(extra-)?index-" + "url|find-" + "links"
    )
    found = []
    for file in tracked():
        if file.suffix in {".png", ".mp4", ".safetensors", ".npz", ".jpg"}:
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if places.search(line) and not (file.name == "README.md" and "download.pytorch.org" in line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)
