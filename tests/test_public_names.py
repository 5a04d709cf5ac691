"""What other people's code and scripts may rest on, compared with `public_names.txt`.

`hatch run names` writes the file anew; each change of it is a line in the package's changelog.
"""

import ast
import difflib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

ROOT = Path(__file__).parents[1]
WRITTEN = Path(__file__).with_name("public_names.txt")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_names() -> str:
    """Every module of every package, with its functions and classes; every command, with its arguments and flags.

    A constant is public where it is annotated; in bare capitals it is its module's own.
    """
    lines = []
    for path in sorted((ROOT / "packages").glob("*/src/*/**/*.py")):
        module = ".".join(path.relative_to(ROOT / "packages").parts[2:]).removesuffix(".py").removesuffix(".__init__")
        if any(part.startswith("_") for part in module.split(".")):
            continue
        names = list(commands(module) if path.stem == "cli" else names_of(ast.parse(path.read_text())))
        lines += ["", module, *(f"    {name}" for name in names)] if names else []
    return "\n".join(lines).lstrip() + "\n"


def names_of(scope: ast.Module | ast.ClassDef) -> Iterator[str]:
    """The public names of a module or class with their signatures, in the order of the source; aliases in CamelCase."""
    for node in scope.body:
        if isinstance(node, Function) and is_public(node.name):
            marks = [f"@{ast.unparse(mark)} " for mark in node.decorator_list if isinstance(mark, ast.Name)]
            result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            yield f"{''.join(marks)}{node.name}({ast.unparse(node.args)}){result}"
        elif isinstance(node, ast.ClassDef) and is_public(node.name):
            bases = ", ".join(ast.unparse(base) for base in node.bases)
            yield f"class {node.name}({bases})" if bases else f"class {node.name}"
            yield from (f"    {name}" for name in names_of(node))
        elif isinstance(node, ast.AnnAssign) and is_public(ast.unparse(node.target)):
            yield f"{ast.unparse(node.target)}: {ast.unparse(node.annotation)}{default_of(node.value)}"
        elif isinstance(node, ast.Assign):
            yield from (name for name in map(ast.unparse, node.targets) if name[0].isupper() and not name.isupper())


def default_of(value: ast.expr | None) -> str:
    """The default of a field; of a `setting(...)` its first argument, since its help may change freely."""
    if isinstance(value, ast.Call):
        return f" = {ast.unparse(value.args[0])}" if ast.unparse(value.func) == "setting" else " = ..."
    return f" = {ast.unparse(value)}" if value and len(ast.unparse(value)) < 60 else ""


def is_public(name: str) -> bool:
    special = name.startswith("__") and name.endswith("__") and name != "__post_init__"
    return special or not name.startswith("_")


def commands(module: str) -> Iterator[str]:
    """One line per command of a package, with its arguments and flags."""
    app = typer.main.get_command(importlib.import_module(module).app)
    yield " ".join(["(group)", *(opt for param in app.params for opt in param.opts)])
    for name, command in sorted(getattr(app, "commands", {}).items()):
        yield " ".join([name, *(written(param) for param in command.params)])


def written(param: Any) -> str:
    """How a parameter is spelt, in brackets where it may be left out."""
    spelt = "/".join([*param.opts, *param.secondary_opts])
    spelt = spelt if param.param_type_name == "option" else (param.metavar or spelt.upper())
    return spelt if param.required else f"[{spelt}]"


def test_public_names_are_those_written_down():
    change = difflib.unified_diff(
        WRITTEN.read_text().splitlines(),
        public_names().splitlines(),
        "public_names.txt",
        "the sources",
        lineterm="",
        n=0,
    )
    assert not list(change), "if this is meant: `hatch run names`, and a line in the changelog"


if __name__ == "__main__":
    WRITTEN.write_text(public_names())
