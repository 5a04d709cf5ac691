"""`train` without `--out`: where the run lies, and which one goes on."""

import json
import re

import pytest
from typer.testing import CliRunner

from medseg_totalseg.cli import app
from medseg_totalseg.prepare import prepare
from medseg_totalseg.settings import PrepareConfig

TINY = ["--size", "64", "--widths", "4,8", "--structures", "liver", "--device", "cpu"]


@pytest.fixture(scope="module")
def cache(cohort, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    prepare(cohort, folder, PrepareConfig())
    return folder


def train(cache, *arguments):
    return CliRunner().invoke(app, ["train", str(cache), *TINY, *arguments])


def test_a_run_without_out_lies_under_runs_and_is_told_at_the_end(cache, inside):
    result = train(cache, "--epochs", "1", "--json")
    assert result.exit_code == 0, result.output
    run = json.loads(result.stdout)["run"]
    assert re.fullmatch(r"runs/totalseg-train-\d{8}-\d{6}", run)
    assert (inside / run / "best.safetensors").is_file()
    result = train(cache, "--epochs", "2", "--resume")
    assert result.exit_code == 2
    assert "broke off; name the one to go on with by --out" in result.stderr  # it is finished
    result = train(cache, "--epochs", "2", "--resume", "--out", run, "--json")
    assert json.loads(result.stdout)["epochs"] == 2
    assert [path.name for path in (inside / "runs").iterdir()] == [run.removeprefix("runs/")]


def test_a_run_that_was_refused_leaves_no_folder(cache, inside):
    assert train(cache, "--size", "65").exit_code == 2
    assert not list(inside.iterdir())


def test_a_rehearsal_without_out_is_no_run(cache, inside):
    result = train(cache, "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"runs/totalseg-dry-run-\d{8}-\d{6}/batch.png", json.loads(result.stdout)["picture"])
