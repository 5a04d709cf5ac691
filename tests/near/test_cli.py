"""The commands as a user types them."""

import json

import pytest
from typer.testing import CliRunner

from medseg_near.cli import app

TINY = ["--latent", "8", "--points", "256", "--resolution", "16", "--epochs", "1", "--device", "cpu"]


def run_of(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def hearts(tmp_path_factory):
    """Two small phantom hearts."""
    out = tmp_path_factory.mktemp("hearts") / "data"
    assert run_of("phantom", "--out", out, "--num-cases", 2, "--size", 48, "--spacing-mm", 2).exit_code == 0
    return out


@pytest.mark.parametrize(("net", "latents"), [("denoising", (None, None)), ("pointwise", (2, 0))])
def test_from_a_phantom_to_scores(hearts, tmp_path, net, latents):
    noisy, cache, fitted = hearts / "noisy", tmp_path / "cache", tmp_path / "run"
    checked = run_of("check", noisy, "--label", "coronary", "--json")
    assert len(json.loads(checked.stdout)["shapes"]) == 2
    assert run_of("prepare", noisy, "--label", "coronary", "--out", cache).exit_code == 0
    made = run_of("fit", cache, "--out", fitted, "--eval-every", 1, "--json", "--net", net, *TINY)
    assert made.exit_code == 0, made.output
    assert "best_dice" in json.loads(made.stdout)
    refined = run_of("refine", noisy, "--model", fitted, "--out", tmp_path / "out", "--native", "--json")
    assert refined.exit_code == 0, refined.output
    told = json.loads(refined.stdout)
    assert (told["done"], told.get("stored"), told.get("fitted")) == (2, *latents)
    merged = run_of("merge", f"coronary={tmp_path / 'out'}", "--base", noisy, "--out", tmp_path / "merged", "--json")
    assert merged.exit_code == 0, merged.output
    scored = run_of(
        "evaluate", tmp_path / "merged", hearts / "labels", "--compare", noisy, "--out", tmp_path / "scores"
    )
    assert scored.exit_code == 0, scored.output
    assert (tmp_path / "scores" / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fit", "nowhere", "--out", "run"), "no cache of prepared shapes; make one: medseg near prepare"),
        (("prepare", "nowhere", "--out", "cache"), "there is no file or folder"),
        (("refine", "nowhere", "--model", "nowhere", "--out", "out"), "nowhere"),
        (("merge", "--base", "nowhere", "--out", "out"), "nowhere"),
    ],
)
def test_what_cannot_be_is_one_line_and_two(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_of(*words)
    assert result.exit_code == 2
    assert said in result.output.replace("\n", " ")
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())
