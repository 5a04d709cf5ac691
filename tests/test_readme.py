"""What the documents say to type is typed: marked blocks run as written, every flag exists, every example works.

A fenced block is judged by the comment above it:

    <!-- runs -->             run as written; the blocks of a document share one folder, in their order
    <!-- runs with DATA -->   the same, where a phantom cohort lies in DATA
    <!-- file: NAME -->       written into NAME, in a copy of the tree; what lies under tests/ is run
    <!-- add to: NAME -->     added to NAME there

In other `bash` blocks each line that starts with `medseg` must parse.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer.main
from typer.core import TyperGroup

ROOT = Path(__file__).parents[1]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DOCUMENTS = [ROOT / "README.md", CONTRIBUTING, *sorted((ROOT / "packages").glob("*/README.md"))]
BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*?) -->\s*)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
RUNS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


class Block(NamedTuple):
    mark: str
    language: str
    code: str


def blocks(document: Path) -> list[Block]:
    found = BLOCK.finditer(document.read_text())
    return [Block(match["mark"] or "", match["language"], match["code"]) for match in found]


def command_lines(document: Path) -> list[str]:
    """The commands of `bash` blocks that are not run, each on one line, without what follows a pipe."""
    lines = []
    for block in blocks(document):
        if block.language == "bash" and not block.mark.startswith("runs"):
            lines += re.sub(r"\\\n\s*", " ", block.code).splitlines()
    return [re.split(r"\s(?:\||&&|;|>)\s", line)[0] for line in lines]


@each_document
def test_every_medseg_line_parses(document):
    for line in command_lines(document):
        words = shlex.split(line, comments=True)
        if words and words[0].split("-")[0] == "medseg":
            parse(words)


def parse(words: list[str]) -> None:
    """Reads a command line as the program would, up to the point where it would run."""
    module = words[0].replace("-", "_") if "-" in words[0] else "medseg_core"
    command: Any = typer.main.get_command(import_module(f"{module}.cli").app)
    name, words = words[0], words[1:]
    while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        name, command, words = command.resolve_command(typer.Context(command), words)
    with suppress(typer.Exit):  # --help and --version answer at once
        command.make_context(name, words)


def test_a_flag_that_does_not_exist_is_found():
    with pytest.raises(Exception, match="--epoch"):
        parse(["medseg", "totalseg", "train", "DATA", "--out", "RUN", "--epoch", "3"])
    with pytest.raises(Exception, match="totalsegg"):
        parse(["medseg", "totalsegg", "train"])


@each_document
def test_every_hatch_line_names_a_script(document):
    environments = tomllib.loads((ROOT / "hatch.toml").read_text())["envs"]
    for environment, script in re.findall(r"hatch run (?:([\w-]+):)?([\w-]+)", document.read_text()):
        scripts = environments[environment or "default"].get("scripts", environments["default"]["scripts"])
        assert script in scripts or script in {"python", "pytest", "medseg"}, (environment, script)


@each_document
def test_every_link_into_the_tree_leads_somewhere(document):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text()):
        assert target.startswith("http") or (document.parent / target).exists(), target


@pytest.mark.slow
@each_document
def test_marked_blocks_run_as_written(document, tmp_path):
    if document != CONTRIBUTING:
        run_marked(document, tmp_path, [])


@pytest.mark.slow
def test_the_worked_examples_of_contributing_work(uv, tmp_path):
    examples = [block for block in blocks(CONTRIBUTING) if block.mark.startswith(("file:", "add to:"))]
    paths = write_examples(examples, uv, tmp_path)
    run_marked(CONTRIBUTING, tmp_path, paths)
    tests = [name for block in examples if (name := block.mark.removeprefix("file: ")).startswith("tests/")]
    # how long a file is depends on the file that an example is added to
    rules = ["tests/test_house.py", "-k", "not lines"]
    run([sys.executable, "-m", "pytest", *tests, *rules], tmp_path, environment(tmp_path, paths))


def run_marked(document: Path, folder: Path, paths: list[Path]) -> None:
    place = environment(folder, paths)
    for block in blocks(document):
        if block.mark.startswith("runs"):
            cohort = block.mark.removeprefix("runs").removeprefix(" with ")
            if cohort and not (folder / cohort).exists():
                run(["medseg", "totalseg", "phantom", "--out", cohort], folder, place)
            run([*RUNS[block.language], block.code], folder, place)


def environment(folder: Path, paths: list[Path]) -> dict[str, str]:
    """The scripts of this environment and of `folder`, and the sources of `paths` before all others."""
    scripts = [str(folder / "site" / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    return os.environ | {"PATH": os.pathsep.join(scripts), "PYTHONPATH": os.pathsep.join(map(str, paths))}


def write_examples(examples: list[Block], uv: str, folder: Path) -> list[Path]:
    """Lays the examples of a document into a copy of the tree, installs its new packages, and says where all lies."""
    shutil.copytree(ROOT / "packages", folder / "packages", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pytest.toml", "tests/conftest.py", "tests/test_house.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for block in examples:
        verb, _, name = block.mark.partition(": ")
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.read_text() + "\n\n" + block.code if verb == "add to" else block.code)
    for path in (folder / "packages").iterdir():
        if not (ROOT / "packages" / path.name).exists():
            (path / "README.md").touch()
            install = [
                "pip",
                "install",
                "--offline",
                "--no-deps",
                "--python",
                sys.executable,
                "--target",
                folder / "site",
            ]
            run([uv, *install, path], folder, os.environ)
    return [folder / "site", *(folder / "packages").glob("*/src")]


def run(command: list[Any], folder: Path, place: Mapping[str, str]) -> None:
    done = subprocess.run(command, cwd=folder, env=place, capture_output=True, text=True, check=False)
    assert not done.returncode, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
