"""The whole way, quickly."""

import json

import pytest
from typer.testing import CliRunner

from medseg_fusion.cli import app
from medseg_fusion.demo import demo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a quick run, and what it told."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    return out, demo(out, quick=True)


def test_the_pages_and_panels_are_there(made):
    out, told = made
    assert told["comparison"] == str(out / "comparison" / "report.html")
    page = (out / "comparison" / "report.html").read_text()
    first = json.loads((out / "comparison" / "comparison.json").read_text())["differences"][0]
    assert f"early against pet: {first['difference']:+.3f} Dice" in page
    assert (out / "patients" / "report.html").is_file()
    assert list((out / "patients" / "panels").glob("*.png"))


def test_the_numbers_are_those_of_the_comparison(made):
    out, told = made
    kept = json.loads((out / "comparison" / "comparison.json").read_text())
    assert {name: row["mean"] for name, row in kept["dice"].items()} == {
        name.removeprefix("dice, "): value for name, value in told.items() if name.startswith("dice, ")
    }


def test_who_is_shown_was_not_trained_on(made):
    out, _ = made
    parts = json.loads((out / "comparison" / "folds" / "0.json").read_text())
    shown = {row["case"] for row in json.loads((out / "patients" / "results.json").read_text())["per_patient_metrics"]}
    assert shown
    assert shown <= set(parts["test"])


def test_the_command_goes_on_with_what_is_there(made):
    out, told = made
    weights = {file: file.stat().st_mtime_ns for file in (out / "comparison").rglob("best.safetensors")}
    assert len(weights) == 4
    again = CliRunner().invoke(app, ["demo", "--out", str(out), "--quick"])
    assert again.exit_code == 0, again.output
    assert f"dice, early: {told['dice, early']:.4g}" in again.output
    assert {file: file.stat().st_mtime_ns for file in weights} == weights
