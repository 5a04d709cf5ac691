"""The command: what it prints, and what it ends with."""

import json

import pytest
from typer.testing import CliRunner

from medseg_sem_al.cli import app
from medseg_sem_al.phantom import phantom


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return phantom(tmp_path_factory.mktemp("sem") / "data", num_images=6, num_labelled=6, size=64)


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_an_index_is_written_and_its_rule_named(made, tmp_path):
    done = run("index", made, "--out", tmp_path / "index.json")
    assert done.exit_code == 0, done.output
    assert "rule: raw/ + labeled/" in done.stdout
    assert "classes: 0 carbon, 1 SE, 2 AM" in done.stdout
    stats = run("stats", tmp_path / "index.json", "--json")
    assert json.loads(stats.stdout)[0]["labelled"] == 6


def test_check_writes_nothing(made, inside):
    assert run("check", made).exit_code == 0
    assert not list(inside.iterdir())


def test_what_was_left_out_is_told_and_ends_with_1(tmp_path):
    data = phantom(tmp_path / "data", num_images=3, num_labelled=3, size=64)
    (data / "raw" / "s00_001.tif").unlink()
    done = run("index", data, "--out", tmp_path / "index.json")
    assert done.exit_code == 1
    assert "s00_001.png has no image" in done.stdout
    assert (tmp_path / "index.json").is_file()


def test_no_folder_is_one_line_and_2(tmp_path):
    done = run("index", tmp_path / "none", "--out", tmp_path / "index.json")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)


def test_one_picture_at_a_time_is_a_preset():
    told = CliRunner().invoke(app, ["loop", "--config", "one-image", "--print-config"])
    assert {"num = 1", "rounds = 20", "epochs = 10", 'strategy = "entropy"'} <= set(told.stdout.splitlines())
