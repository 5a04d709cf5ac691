"""What the packages declare is what they use, and what is built from them works where nothing else is installed."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, distributions, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path.parent for path in (ROOT / "packages").glob("*/pyproject.toml"))
PROJECTS = {folder.name: tomllib.loads((folder / "pyproject.toml").read_text())["project"] for folder in FOLDERS}
MOST_PACKAGES = {"medseg-totalseg": 30, "medseg-sem-al": 50}  # beside the torch stack, core's among them; each one is
# a download, a licence and a way to break

each_package = pytest.mark.parametrize("name", PROJECTS)


def requirements(name: str, *, extras: bool = True) -> dict[str, Requirement]:
    """What a package's pyproject.toml asks for, by canonical name."""
    project = PROJECTS[name]
    lines = [*project["dependencies"]]
    for group in project.get("optional-dependencies", {}).values() if extras else ():
        lines += group
    return {canonicalize_name(need.name): need for need in map(Requirement, lines)}


def imported(name: str) -> set[str]:
    """Canonical names of the distributions that a package's sources import, its own aside."""
    modules = set()
    for path in (ROOT / "packages" / name / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                modules.add(node.module.split(".")[0])
    found = packages_distributions()
    modules -= {*sys.stdlib_module_names, name.replace("-", "_")}
    return {canonicalize_name(found.get(module, [module])[0]) for module in modules}


@each_package
def test_every_import_is_declared(name):
    assert imported(name) <= requirements(name).keys()


@each_package
def test_every_dependency_is_imported(name):
    assert requirements(name, extras=False).keys() <= imported(name)


@each_package
def test_every_dependency_has_a_floor(name):
    assert not [str(need) for need in requirements(name).values() if ">=" not in str(need.specifier)]


@each_package
def test_the_pins_admit_the_packages_of_this_tree(name):
    for other, need in requirements(name).items():
        if other in PROJECTS:
            assert need.specifier.contains(version_of(other)), f"{need} refuses {other} {version_of(other)}"


@each_package
def test_a_domain_pins_core_by_a_range_that_ends_below_1(name):
    if name != "medseg-core":
        assert not requirements(name)["medseg-core"].specifier.contains("1.0")


@each_package
def test_a_package_carries_what_its_users_look_for(name):
    folder, module = ROOT / "packages" / name, name.replace("-", "_")
    for part in ("README.md", "CHANGELOG.md", f"src/{module}/py.typed", f"src/{module}/_version.py"):
        assert (folder / part).is_file(), part
    assert PROJECTS[name]["license"] == "Apache-2.0"
    assert version_of(name) in (folder / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", MOST_PACKAGES)
def test_a_package_and_core_stay_within_the_budget(name, capsys):
    beside = closure(name) - closure("torch") - PROJECTS.keys()
    with capsys.disabled():
        print(f"\n{name}: {len(beside)} packages beside the torch stack: {' '.join(sorted(beside))}")
    assert len(beside) <= MOST_PACKAGES[name]


def version_of(name: str) -> str:
    text = (ROOT / "packages" / name / "src" / name.replace("-", "_") / "_version.py").read_text()
    return ast.literal_eval(ast.parse(text).body[-1].value)


def closure(name: str) -> set[str]:
    """A distribution and all that it needs in this environment, read from the installed metadata; no extras."""
    seen, left = set(), [canonicalize_name(name)]
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        needs = map(Requirement, distribution(name).requires or [])
        left += [canonicalize_name(n.name) for n in needs if not n.marker or n.marker.evaluate({"extra": ""})]
    return seen


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Path:
    """The packages of this tree, elsewhere, without what lies about in a worked-in one."""
    folder = tmp_path_factory.mktemp("clone")
    clutter = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT / "packages", folder / "packages", ignore=clutter)
    return folder


class Empty:
    """An environment of its own, filled by uv from its cache with the very versions that run these tests."""

    def __init__(self, uv: str, folder: Path) -> None:
        self.uv, self.folder, self.pins = uv, folder, folder / "pins.txt"
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder / "venv"], check=True)
        found = {canonicalize_name(d.metadata["Name"]): d.version for d in distributions()}
        self.pins.write_text("".join(f"{n}=={v}\n" for n, v in sorted(found.items()) if n not in PROJECTS))

    def install(self, *what: str, cwd: Path) -> None:
        command = [self.uv, "pip", "install", "--offline", "--link-mode", "symlink", "--constraint", self.pins, *what]
        inside = os.environ | {"VIRTUAL_ENV": str(self.folder / "venv")}
        done = subprocess.run(command, cwd=cwd, env=inside, capture_output=True, text=True, check=False)
        if done.returncode and "CI" not in os.environ:
            pytest.skip("uv cannot do it from its cache alone; a new environment of hatch fills that")
        assert not done.returncode, done.stderr

    def run(self, *command: str) -> str:
        """What an installed script prints, where no source can be imported by chance."""
        run = [self.folder / "venv" / "bin" / command[0], *command[1:]]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run(run, cwd=self.folder, env=clean, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
        return done.stdout


@pytest.mark.slow
def test_the_wheels_alone_give_the_commands_and_the_demo(clone, uv, tmp_path):
    for name in PROJECTS:
        build = [uv, "build", "--quiet", "--offline", "--wheel", "--out-dir", tmp_path, clone / "packages" / name]
        subprocess.run(build, check=True)
    place = Empty(uv, tmp_path)
    place.install(*map(str, tmp_path.glob("*.whl")), cwd=tmp_path)
    assert "prepare" in place.run("medseg-totalseg", "--help")
    assert "totalseg" in place.run("medseg", "--help")
    place.run("medseg-totalseg", "demo", "--quick", "--out", "demo")
    assert 0 < (tmp_path / "demo" / "report.html").stat().st_size < 10e6


README = re.sub(r"\\\n\s*", " ", (ROOT / "README.md").read_text())
INSTALLS = sorted(set(re.findall(r"^pip install .*medseg-.*$", README, flags=re.MULTILINE)))
FROM_A_CLONE = [
    line for line in INSTALLS if set(shlex.split(line)[2:]) <= {"-e", *(f"./packages/{n}" for n in PROJECTS)}
]


def test_the_readme_installs_from_a_clone_editable_with_extras_and_by_git():
    assert len(FROM_A_CLONE) >= 2
    for form in ("pip install ./", "pip install -e", "git+https", "["):
        assert any(form in line for line in INSTALLS), form


@pytest.mark.parametrize("line", INSTALLS)
def test_an_install_line_names_folders_and_extras_that_are_there(line):
    places = re.findall(r"(?:\./|#subdirectory=)packages/([\w-]+)(?:\[([\w,]+)\])?", line)
    places += re.findall(r"(medseg-[\w]+)\[([\w,]+)\]", line)
    assert places
    for name, extras in places:
        assert {*filter(None, extras.split(","))} <= PROJECTS[name].get("optional-dependencies", {}).keys()


@pytest.mark.slow
@pytest.mark.parametrize("line", FROM_A_CLONE)
def test_an_install_line_works_in_a_clone(line, clone, uv, tmp_path):
    place = Empty(uv, tmp_path)
    place.install(*shlex.split(line)[2:], cwd=clone)
    assert "prepare" in place.run("medseg", "totalseg", "--help")
