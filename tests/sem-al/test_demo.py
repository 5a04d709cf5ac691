"""The whole way, quickly."""

import json

import pytest
from typer.testing import CliRunner

from medseg_sem_al.cli import app
from medseg_sem_al.demo import demo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a quick run, and what it told."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    return out, demo(out, quick=True)


def test_the_page_the_panels_and_the_masks_are_there(made):
    out, told = made
    assert told["report"] == str(out / "evaluation" / "report.html")
    assert (out / "evaluation" / "report.html").is_file()
    assert len(list((out / "evaluation" / "panels").glob("*.png"))) == 6
    assert len(list((out / "predictions" / "masks").glob("*.png"))) == 15


@pytest.mark.parametrize("name", ["scratch", "finetuned", "pseudo"])
def test_the_numbers_are_those_of_the_evaluations(made, name):
    out, told = made
    folder = out / "evaluation" if name == "scratch" else out / name / "evaluation"
    assert told[f"mean IoU, {name}"] == json.loads((folder / "results.json").read_text())["miou"]


def test_who_is_scored_was_trained_on_by_none_of_them(made):
    out, _ = made
    scored = {panel.stem for panel in (out / "evaluation" / "panels").glob("*.png")}
    for run in ("pretrained", "scratch", "finetuned", "pseudo"):
        parts = json.loads((out / run / "split.json").read_text())
        assert not scored & {*parts["train"], *parts["val"]}, run


def test_the_command_goes_on_with_what_is_there(made):
    out, told = made
    weights = {file: file.stat().st_mtime_ns for file in out.rglob("best.safetensors")}
    assert len(weights) == 4
    again = CliRunner().invoke(app, ["demo", "--out", str(out), "--quick"])
    assert again.exit_code == 0, again.output
    assert f"mean IoU, scratch: {told['mean IoU, scratch']:.4g}" in again.output
    assert {file: file.stat().st_mtime_ns for file in weights} == weights
