"""`--help` answers at once: nothing heavy is imported before a command runs."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "numpy", "scipy", "nibabel", "numba", "matplotlib", "plotly", "PIL", "safetensors"}
TELL_MODULES = """
import sys
sys.argv = {argv}
from {package}.cli import app
try:
    app()
finally:
    print(*{{name.split(".")[0] for name in sys.modules}}, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("package", "argv"),
    [
        ("medseg_core", ["medseg", "--help"]),
        ("medseg_core", ["medseg", "--version"]),
        ("medseg_core", ["medseg", "checkpoint", "--help"]),
        ("medseg_core", ["medseg", "checkpoint", "import", "--help"]),
        ("medseg_core", ["medseg", "totalseg", "--help"]),
        ("medseg_core", ["medseg", "totalseg", "train", "--help"]),
        ("medseg_core", ["medseg", "totalseg", "train", "CACHE", "--out", "RUN", "--print-config"]),
        ("medseg_totalseg", ["medseg-totalseg", "--help"]),
        ("medseg_totalseg", ["medseg-totalseg", "evaluate", "--help"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_imports_nothing_heavy(package, argv):
    code = TELL_MODULES.format(argv=argv, package=package)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
    modules = set(done.stderr.split())
    assert "typer" in modules
    assert not HEAVY & modules


def test_the_umbrella_lists_a_package_without_importing_it():
    code = TELL_MODULES.format(argv=["medseg", "--help"], package="medseg_core")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "totalseg" in done.stdout
    assert "medseg_totalseg" not in done.stderr.split()


def test_help_takes_about_as_long_as_a_bare_typer_app():
    startup = runpy.run_path(str(ROOT / "benchmarks" / "startup.py"))
    commands = {name: startup["COMMANDS"][name] for name in ("bare Typer app", "medseg")}
    medians = startup["seconds"](commands, rounds=7, clock=lambda: sum(os.times()[2:4]))  # of the processor
    ratio = medians["medseg"] / medians["bare Typer app"]
    assert ratio <= 1.8, f"{ratio:.2f}x; the aim is 1.5, which benchmarks/startup.py measures at rest"
