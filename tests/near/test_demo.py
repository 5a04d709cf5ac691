"""The whole way, in seconds."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import label as numbered
from typer.testing import CliRunner

from medseg_core.errors import MedsegError
from medseg_core.io import read_volume
from medseg_near import demo as module
from medseg_near.cli import app
from medseg_near.demo import demo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a quick run, and what it told."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    return out, demo(out, quick=True)


def mask(out, folder):
    return read_volume(out / folder / "h0002.nii.gz").voxels > 0


def test_the_page_shows_the_broken_vessels_before_and_after(made):
    page = (made[0] / "report.html").read_text()
    assert 'id="view3d"' in page
    assert all(f'"label":"{view}"' in page for view in ("Changes", "Before", "After", "Truth"))
    assert 'alt="h0002" src="data:image/' in page


def test_the_page_tells_the_numbers_of_both_sides(made):
    out, told = made
    page = (out / "report.html").read_text()
    assert f"Dice {told['dice_before']:.3f} before, {told['dice_after']:.3f} after." in page
    assert f"NSD within 1 mm {told['nsd_before']:.3f} before, {told['nsd_after']:.3f} after." in page
    assert f"Parts of a tree {told['parts_before']:.1f} before, {told['parts_after']:.1f} after, 2.0 in truth." in page


def test_the_numbers_are_those_of_the_masks(made):
    out, told = made
    clean = mask(out, "unseen/clean")
    for side, folder in (("before", "unseen/broken"), ("after", "refined")):
        this = mask(out, folder)
        assert told[f"dice_{side}"] == pytest.approx(2 * (this & clean).sum() / (this.sum() + clean.sum()))
        assert told[f"parts_{side}"] == numbered(this, np.ones((3, 3, 3)))[1]


def test_a_demo_that_is_stopped_says_so_and_does_not_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "fit", lambda *_, **__: SimpleNamespace(reason="stopped"))
    with pytest.raises(MedsegError, match="stopped; the same call with --out"):
        demo(tmp_path / "demo", quick=True)
    assert not (tmp_path / "demo" / "refined").exists()


def test_who_is_repaired_was_not_learnt(made):
    out, told = made
    learnt = {case["id"] for case in json.loads((out / "cache" / "cases.json").read_text())["cases"]}
    assert learnt == {"h0000", "h0001"}
    assert (told["hearts"], told["unseen"]) == (3, 1)


def test_gaps_holes_and_missed_branches_take_away_and_add_nothing(made):
    out, _ = made
    clean, broken = mask(out, "unseen/clean"), mask(out, "unseen/broken")
    assert not (broken & ~clean).any()
    assert 0.2 * clean.sum() < broken.sum() < 0.8 * clean.sum()
    assert numbered(broken, np.ones((3, 3, 3)))[1] > numbered(clean, np.ones((3, 3, 3)))[1]


def test_the_command_goes_on_with_what_is_there(made):
    out, told = made
    kept = {name: (out / name).stat().st_mtime_ns for name in ("run/best.safetensors", "refined/h0002.nii.gz")}
    again = CliRunner().invoke(app, ["demo", "--out", str(out), "--quick"])
    assert again.exit_code == 0, again.output
    assert f"dice_after: {told['dice_after']:.4g}" in again.output
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
