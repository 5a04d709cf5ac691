"""Refinement of labels: on their own grids, told change by change, and never further than is allowed."""

import csv
import shutil

import numpy as np
import pytest
import torch
from tests.near.conftest import TURNED, ball_of

from medseg_core.checkpoint import load_model, save_model
from medseg_core.errors import MedsegError
from medseg_core.io import read_volume, write_volume
from medseg_core.volume import Volume
from medseg_near import refine as module
from medseg_near.models import MODELS
from medseg_near.models.field import Shapes
from medseg_near.refine import Refiner, refine_files
from medseg_near.settings import RefineConfig

CONFIG = RefineConfig(fit_steps=2, fit_points=256, margin_mm=4, max_change="none", device="cpu")


class Ball(Shapes):
    """A field that is a ball of 6 mm about the middle."""

    def __init__(self):
        super().__init__(2, latent=8, half_mm=9.0)
        self.decoder.maps = lambda latent: [latent]
        self.decoder.at = lambda maps, points, picture=None: 2 * (6 - 9 * points.norm(dim=-1)) + 0 * maps[0].sum()


@pytest.fixture
def ball(monkeypatch):
    """Every run's model is the ball."""
    load = module.load_model
    monkeypatch.setattr(module, "load_model", lambda run, models: (Ball().eval(), load(run, models)[1]))


def table(out):
    with (out / "changes.csv").open(newline="") as stream:
        return {row["case"]: row for row in csv.DictReader(stream)}


def test_a_case_of_the_run_keeps_its_latent_and_a_new_one_is_fitted(balls, run, tmp_path):
    outcome = refine_files([balls], run, tmp_path / "out", CONFIG)
    assert len(outcome.done) == 3
    origins = {case: row["latent"] for case, row in table(tmp_path / "out").items()}
    assert origins == {"ball_5": "stored", "ball_6": "stored", "ball_7": "fitted"}
    known = Refiner(run, RefineConfig(known=False, device="cpu")).known
    assert known == {}


def test_latents_unlike_the_network_are_not_used(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    table = tmp_path / "run" / "latents.csv"
    table.write_text("".join(table.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(MedsegError, match="of 1 cases with 8 numbers, and a network of 2 with 8"):
        Refiner(tmp_path / "run", CONFIG)
    assert Refiner(tmp_path / "run", RefineConfig(**{**vars(CONFIG), "known": False})).known == {}


def test_a_result_lies_on_the_grid_of_its_label(ball, balls, run, tmp_path):
    refine_files([balls], run, tmp_path / "out", CONFIG)
    true = ball_of(6.0)
    for radius_mm in (5, 6, 7):
        found = read_volume(tmp_path / "out" / f"ball_{radius_mm}.nii.gz")
        np.testing.assert_allclose(found.affine, TURNED, atol=1e-6)
        both = (found.voxels > 0) & true
        assert 2 * both.sum() / ((found.voxels > 0).sum() + true.sum()) > 0.9


def test_the_map_of_changes_undone_is_the_input(ball, balls, run, tmp_path):
    refine_files([balls], run, tmp_path / "out", CONFIG)
    change = read_volume(tmp_path / "out" / "changes" / "ball_7.nii.gz").voxels
    after = read_volume(tmp_path / "out" / "ball_7.nii.gz").voxels > 0
    np.testing.assert_array_equal(after ^ (change != 0), ball_of(7))
    assert change.min() < -0.9
    assert not (change > 0).any()


def test_a_change_beyond_the_bound_is_not_made(ball, balls, run, tmp_path):
    refine_files([balls], run, tmp_path / "out", RefineConfig(**{**vars(CONFIG), "max_change": "10%"}))
    kept = read_volume(tmp_path / "out" / "ball_7.nii.gz").voxels > 0
    np.testing.assert_array_equal(kept, ball_of(7))
    rows = table(tmp_path / "out")
    assert "removed" in rows["ball_7"]["flag"]
    assert rows["ball_6"]["flag"] == ""
    assert "ball_7 was left as it was" in (tmp_path / "out" / "report.html").read_text()


def test_a_cube_brought_to_the_voxels_says_the_same(ball, balls, run, tmp_path):
    refine_files([balls], run, tmp_path / "native", CONFIG)
    refine_files([balls], run, tmp_path / "cube", RefineConfig(**{**vars(CONFIG), "resolution": 64}))
    for radius_mm in (5, 7):
        one, other = (
            read_volume(tmp_path / name / f"ball_{radius_mm}.nii.gz").voxels > 0 for name in ("native", "cube")
        )
        assert (one != other).sum() < 0.05 * one.sum()


def test_probabilities_are_those_of_the_field(ball, balls, run, tmp_path):
    refine_files([balls], run, tmp_path / "out", RefineConfig(**{**vars(CONFIG), "save_prob": True}))
    probs = read_volume(tmp_path / "out" / "probs" / "ball_6.nii.gz").voxels
    mask = read_volume(tmp_path / "out" / "ball_6.nii.gz").voxels
    np.testing.assert_array_equal(probs >= 0.5, mask > 0)
    assert probs.max() == pytest.approx(torch.sigmoid(torch.tensor(12.0)).item(), abs=1e-3)


def test_a_higher_threshold_takes_less(ball, balls, run, tmp_path):
    for threshold in (0.1, 0.9):
        refine_files([balls], run, tmp_path / str(threshold), RefineConfig(**{**vars(CONFIG), "threshold": threshold}))
    low, high = (read_volume(tmp_path / t / "ball_6.nii.gz").voxels.sum() for t in ("0.1", "0.9"))
    assert low > high > 0


def test_a_case_that_fails_costs_only_itself(ball, balls, run, tmp_path):
    for file in balls.iterdir():
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / file.name).write_bytes(file.read_bytes())
    write_volume(Volume(np.zeros((8, 8, 8), np.uint8), TURNED), tmp_path / "labels" / "bare.nii.gz")
    outcome = refine_files([tmp_path / "labels"], run, tmp_path / "out", CONFIG)
    assert len(outcome.done) == 3
    assert "no voxel of id 3" in outcome.failed["bare"]


def test_a_bound_without_a_unit_is_refused(run):
    with pytest.raises(MedsegError, match="a number with its unit"):
        Refiner(run, RefineConfig(max_change="20"))


def test_a_model_that_sees_nothing_deletes_nothing(balls, run, tmp_path):
    """After one epoch it says "outside" everywhere."""
    refine_files(
        [balls], run, tmp_path / "out", RefineConfig(**{**vars(CONFIG), "max_change": RefineConfig.max_change})
    )
    kept = read_volume(tmp_path / "out" / "ball_5.nii.gz").voxels > 0
    np.testing.assert_array_equal(kept, ball_of(5))
    assert "the result is empty" in table(tmp_path / "out")["ball_5"]["flag"]


def test_probabilities_do_not_depend_on_the_threshold(ball, balls, run, tmp_path):
    config = RefineConfig(**{**vars(CONFIG), "save_prob": True, "threshold": 0.9})
    refine_files([balls], run, tmp_path / "out", config)
    probs = read_volume(tmp_path / "out" / "probs" / "ball_6.nii.gz").voxels
    assert probs.max() == pytest.approx(torch.sigmoid(torch.tensor(12.0)).item(), abs=1e-3)
    np.testing.assert_array_equal(probs >= 0.9, read_volume(tmp_path / "out" / "ball_6.nii.gz").voxels > 0)


def test_labels_are_never_written_over(ball, balls, run, tmp_path):
    before = {file.name: file.read_bytes() for file in balls.iterdir()}
    with pytest.raises(MedsegError, match="which is read; choose another --out"):
        refine_files([balls], run, balls, CONFIG, overwrite=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(MedsegError, match="was not begun by refine"):
        refine_files([balls], run, tmp_path / "out", CONFIG)
    assert {file.name: file.read_bytes() for file in balls.iterdir()} == before


def test_another_model_is_not_taken_for_the_one_that_began(ball, balls, run, tmp_path):
    refine_files([balls], run, tmp_path / "out", CONFIG)
    other = tmp_path / "other"
    shutil.copytree(run, other)
    card = load_model(other, MODELS)[1]
    save_model(other / "best.safetensors", Shapes(**card.arguments), card)
    with pytest.raises(MedsegError, match="other settings"):
        refine_files([balls], other, tmp_path / "out", CONFIG)


def two_balls(net, latent, frame, look):
    """One of 4 mm about the middle, one of 1.5 mm beside it, 2 mm apart."""

    def ask(voxels):
        points = 9 * frame.points(voxels.astype(float))
        return np.maximum(4 - np.linalg.norm(points, axis=-1), 1.5 - np.linalg.norm(points - (7.5, 0, 0), axis=-1))

    return ask


@pytest.mark.parametrize(("reach_mm", "left_out", "parts"), [(1.0, "1", "1"), (50.0, "0", "2")])
def test_what_lies_far_from_a_label_is_left_out_and_counted(
    ball, balls, run, tmp_path, monkeypatch, reach_mm, left_out, parts
):
    monkeypatch.setattr(module, "asking", two_balls)
    config = RefineConfig(**{**vars(CONFIG), "save_prob": True, "reach_mm": reach_mm})
    refine_files([balls], run, tmp_path / "out", config)
    row = table(tmp_path / "out")["ball_5"]
    assert (row["parts_left_out"], row["num_components_after"]) == (left_out, parts)


def seen_by_the_model(monkeypatch):
    """The labels that `field` is asked about, as they come."""
    seen, field = [], Refiner.field
    monkeypatch.setattr(
        Refiner, "field", lambda self, shape: (seen.append(np.asarray(shape.label)), field(self, shape))[1]
    )
    return seen


@pytest.mark.parametrize(("wanted", "told"), [(True, ("3", "4.5")), (False, ("0", "0.0"))])
def test_slices_that_moved_are_put_back_before_the_model_sees_them_where_that_is_asked(
    ball, balls, run, tmp_path, monkeypatch, wanted, told
):
    clean = np.zeros((24, 24, 20), bool)
    clean[7:17, 8:18, 3:17] = True
    moved = clean.copy()
    moved[..., 9:12] = np.roll(moved[..., 9:12], 3, axis=1)
    write_volume(Volume(3 * moved.astype(np.uint8), TURNED), tmp_path / "moved" / "one.nii.gz")
    seen = seen_by_the_model(monkeypatch)
    config = RefineConfig(**{**vars(CONFIG), "put_back": wanted, "margin_mm": 0})
    refine_files([tmp_path / "moved"], run, tmp_path / "out", config)
    row = table(tmp_path / "out")["one"]
    assert (row["slices_put_back"], row["farthest_slice_mm"]) == told
    assert seen[0].sum() == clean.sum()
    assert (len(np.unique(np.argwhere(seen[0])[:, 1])) == 10) == wanted


@pytest.mark.parametrize("wanted", [True, False])
def test_a_smooth_label_is_sharpened_only_where_that_is_asked(ball, balls, run, tmp_path, monkeypatch, wanted):
    seen = seen_by_the_model(monkeypatch)
    refine_files([balls], run, tmp_path / "out", RefineConfig(**{**vars(CONFIG), "sharpen": wanted}))
    assert (float(table(tmp_path / "out")["ball_7"]["sharpened_voxels"]) > 0) == wanted
    assert (int(seen[2].sum()) != int(ball_of(7).sum())) == wanted  # the third is the case that the run does not know


def test_a_label_whose_latent_is_stored_stays_as_it_is(ball, balls, run, tmp_path):
    refine_files([balls], run, tmp_path / "out", RefineConfig(**{**vars(CONFIG), "sharpen": True}))
    rows = table(tmp_path / "out")
    assert {case: row["sharpened_voxels"] for case, row in rows.items() if row["latent"] == "stored"} == {
        "ball_5": "0.0",
        "ball_6": "0.0",
    }
