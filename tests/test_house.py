"""The house rules of CONTRIBUTING.md, read off the sources."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "packages").glob("*/src/*/**/*.py"))
OURS = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "benchmarks").rglob("*.py"))]
LIGHT = {"medseg_core." + name for name in ("checkpoint_cli", "cli", "config", "errors", "options", "settings")}
UNPICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
CONVERTER = "medseg_core/foreign.py"  # the one file that may open other people's .pth files
LAYERS = ("Conv", "Linear", "BatchNorm", "GroupNorm", "InstanceNorm", "LayerNorm", "MultiheadAttention")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def package_of(path: Path) -> str:
    """medseg_core, of packages/medseg-core/src/medseg_core/volume.py."""
    return path.relative_to(ROOT / "packages").parts[2]


def imports(path: Path, *, at_top: bool = False) -> Iterator[tuple[str, str]]:
    """(dotted module, where) for all that a file imports; at_top: without what stands inside functions."""
    package = list(path.relative_to(ROOT / "packages").parts[2:-1])
    for node in parsed(path).body if at_top else ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, where(path, node)) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            yield ".".join([*above, *filter(None, [node.module])]), where(path, node)


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def strangers(path: Path, allowed: set[str], *, at_top: bool = False) -> list[tuple[str, str]]:
    """What a file imports beside the standard library and `allowed`."""
    found = imports(path, at_top=at_top)
    return [
        (at, name) for name, at in found if name not in allowed and name.split(".")[0] not in sys.stdlib_module_names
    ]


def test_there_are_sources_to_judge():
    assert {"medseg_core", "medseg_totalseg"} <= {package_of(path) for path in SOURCES}


def test_arrows_point_from_domain_to_core_and_nowhere_else():
    wrong = [
        (at, name)
        for path in SOURCES
        for name, at in imports(path)
        if name.startswith("medseg") and name.split(".")[0] not in {"medseg_core", package_of(path)}
    ]
    assert not wrong


def test_nothing_reads_or_writes_a_pickle():
    wrong = []
    for path in SOURCES:
        wrong += [(at, name) for name, at in imports(path) if name.split(".")[0] in UNPICKLERS]
        for node in ast.walk(parsed(path)):
            said = ast.unparse(node) if isinstance(node, ast.Attribute | ast.keyword) else ""
            if said in {"torch.load", "torch.save"} and not str(path).endswith(CONVERTER):
                wrong.append((where(path, node), said))
            if said.startswith("allow_pickle=") and said != "allow_pickle=False":
                wrong.append((where(path, node), said))
    assert not wrong


def test_what_opens_foreign_weights_unpickles_tensors_only():
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in ast.unparse(node), where(path, node)


def test_a_file_has_fewer_than_400_lines():
    assert not {str(path): n for path in OURS if (n := len(path.read_text().splitlines())) >= 400}


def test_a_function_has_fewer_than_50_lines_beside_its_docstring():
    wrong = {}
    for path in OURS:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                doc = node.body[0] if ast.get_docstring(node) else None
                lines = node.end_lineno - node.lineno + 1 - (doc.end_lineno - doc.lineno + 1 if doc else 0)
                wrong |= {where(path, node): (node.name, lines)} if lines >= 50 else {}
    assert not wrong


def test_a_module_is_named_by_what_it_does():
    assert not [path for path in OURS if path.stem in {"utils", "helpers", "common", "misc"}]


def test_settings_import_the_standard_library_and_core_settings_only():
    allowed = {"medseg_core.config", "medseg_core.settings"}
    files = [path for path in SOURCES if path.name == "settings.py"]
    assert files
    assert not [stranger for path in files for stranger in strangers(path, allowed)]


def test_a_command_line_is_light_at_the_top():
    files = [path for path in SOURCES if path.name.endswith(("cli.py", "options.py"))]
    assert files
    for path in files:
        own = {f"{package_of(other)}.{other.stem}" for other in files if package_of(other) == package_of(path)}
        allowed = {"typer", "typer.core", f"{package_of(path)}.settings", *own, *LIGHT}
        assert not strangers(path, allowed, at_top=True)


def test_a_package_is_its_version_and_nothing_else():
    for path in SOURCES:
        if path.name == "__init__.py" and path.parent.name == package_of(path):
            assert [name for name, _ in imports(path)] == [f"{package_of(path)}._version"], path


def test_no_network_and_no_block_of_one_lives_in_core():
    wrong = [
        (where(path, node), ast.unparse(node.func))
        for path in SOURCES
        if package_of(path) == "medseg_core"
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(tuple(f"nn.{name}" for name in LAYERS))
    ]
    assert not wrong
