"""Fitting: a run that says what it saw, resumes to the same bits, and scores shapes on the whole cube."""

import csv
import json

import numpy as np
import pytest
import torch
from tests.near.conftest import SMALL

from medseg_core.checkpoint import load_model, read_card
from medseg_core.errors import MedsegError
from medseg_core.run import read_history
from medseg_near import fit as module
from medseg_near.fit import dice_on_cube, fit
from medseg_near.latent import read_latents
from medseg_near.models import MODELS
from medseg_near.models.field import Shapes
from medseg_near.settings import FitConfig


def test_a_run_says_what_predicting_needs(run, shapes):
    card = read_card(run)
    half_mm = 1.1 * max(shape.half_mm for shape in shapes[:2])
    assert card.arguments["num_cases"] == 2
    assert card.arguments["half_mm"] == card.grid["half_mm"] == pytest.approx(half_mm)
    assert card.grid["label"] == "3"
    assert json.loads((run / "split.json").read_text())["train"] == ["ball_5", "ball_6"]


def test_the_parts_of_the_loss_and_the_share_of_positives_are_logged(run):
    history = read_history(run)
    names = {"train_dice_loss", "train_focal", "train_latent", "train_positives", "val_dice", "val_dice_worst"}
    assert names <= history.keys()
    loss = 0.7 * history["train_dice_loss"][0] + 0.3 * history["train_focal"][0] + 1e-4 * history["train_latent"][0]
    assert history["train_loss"][0] == pytest.approx(loss, rel=1e-4)


def test_the_table_of_latents_is_that_of_the_network(run):
    model, _ = load_model(run, MODELS)
    known = read_latents(run)
    assert list(known) == ["ball_5", "ball_6"]
    np.testing.assert_array_equal(np.stack(list(known.values())), model.latents.weight.detach().numpy())
    with (run / "latents.csv").open(newline="") as stream:
        assert next(csv.reader(stream)) == ["case", *(f"z{i}" for i in range(8))]


def test_a_fit_that_was_killed_goes_on_to_the_same_weights(cache, tmp_path, monkeypatch):
    config = FitConfig(**{**SMALL, "epochs": 3, "save_seconds": 0})
    fit(cache, tmp_path / "whole", config)
    calls, call = [], module.FieldStep.__call__

    def killed(self, model, batch, at):
        calls.append(at)
        if len(calls) == 5:  # of nine
            raise KeyboardInterrupt
        return call(self, model, batch, at)

    monkeypatch.setattr(module.FieldStep, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(cache, tmp_path / "run", config)
    fit(cache, tmp_path / "run", config, resume="last")
    one, other = ((tmp_path / name / "best.safetensors").read_bytes() for name in ("whole", "run"))
    assert one == other


class Ball(Shapes):
    """A field that is a ball of 6 mm, whatever the latent."""

    def __init__(self):
        super().__init__(1, latent=8, half_mm=9.0)
        self.decoder.maps = lambda latent: []
        self.decoder.at = lambda maps, points, picture=None: 6 - 9 * points.norm(dim=-1)


def test_dice_on_the_cube_is_that_of_volumes(shapes):
    """A ball in a smaller or a larger one: twice the smaller volume through that of both, up to voxels of 2 mm."""
    for shape, radius_mm in zip(shapes, (5, 6, 7), strict=True):
        small, large = sorted((radius_mm**3, 6**3))
        found = dice_on_cube(Ball(), torch.zeros(8), shape, 48)
        assert found == pytest.approx(2 * small / (small + large), abs=0.08)


def test_a_single_shape_is_fitted_with_a_warning(cache, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="medseg_near.fit"):
        fit(cache, tmp_path / "run", FitConfig(**SMALL), only=("ball_5",))
    assert "a single shape teaches no shape model" in caplog.text


def test_what_cannot_be_fitted_is_refused(cache, tmp_path):
    with pytest.raises(MedsegError, match="no CT, so --appearance cannot see it; prepare with --images"):
        fit(cache, tmp_path / "run", FitConfig(appearance=True, **SMALL))
    with pytest.raises(MedsegError, match="no shape 'ball_8' to learn; did you mean 'ball_"):
        fit(cache, tmp_path / "run", FitConfig(**SMALL), only=("ball_8",))
    assert not (tmp_path / "run").exists()
