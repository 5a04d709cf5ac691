"""The sampler and the measures of `benchmarks/original_recipe.py`, on voxels that can be counted by hand."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg_core.draw import Draw
from medseg_core.grid import Grid
from medseg_near.models.field import Shapes
from medseg_near.settings import FitConfig
from medseg_near.shapes import Shape

HALF_MM = 10.0


@pytest.fixture(scope="module")
def recipe():
    return runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "original_recipe.py"))


@pytest.fixture
def bar():
    """3 x 3 x 9 voxels of 1 mm, along the last axis."""
    label = np.zeros((21, 21, 21), bool)
    label[9:12, 9:12, 6:15] = True
    grid = Grid(label.shape, np.eye(4))
    return Shape("bar", label, grid, None, grid, (0, 0, 0))


def test_the_shell_is_outside_alone(recipe):
    """About one voxel: 6 neighbours, 6 behind them and 12 edges; none of its own."""
    one = np.zeros((7, 7, 7), bool)
    one[3, 3, 3] = True
    shell = recipe["shell_of"](one, 2)
    assert len(shell) == 24
    assert not one.ravel()[shell].any()


def test_points_of_the_shell_are_asked_for_at_transposed_places(recipe, bar):
    config = FitConfig(curriculum=(1.0,), epochs=1)
    samples = recipe["SwappedShell"]([bar], config, half_mm=HALF_MM, num_points=2000)
    sample = samples[Draw(0, 0, 0, 0)]
    places = 10 + 10 * sample["points"].numpy()  # of voxels: the bar's middle is voxel 10
    assert np.allclose(places, np.rint(places), atol=1e-4)
    shell = np.stack(np.unravel_index(recipe["shell_of"](bar.label, 2), bar.label.shape), 1)
    swapped = {tuple(place) for place in shell[:, ::-1]}
    assert {tuple(place) for place in np.rint(places).astype(int)} <= swapped
    inside = bar.label[tuple(np.rint(places).astype(int).T)]
    np.testing.assert_array_equal(sample["inside"].numpy() > 0.5, inside)
    assert places.max(0)[0] > 14  # beyond the bar along the first axis, as far as it reaches along the last


def test_the_cube_is_asked_octant_by_octant_and_whole(recipe):
    model = Shapes(1, latent=8)
    model.decoder.at = lambda maps, points, picture=None: points.sum(-1) + 1000 * (points[0, 0] > 0).sum()
    points, logits = recipe["in_chunks"](model, [torch.zeros(1)], 6)
    assert len({tuple(point) for point in points.round(6)}) == 6**3
    positive = (points > 0).sum(1)
    np.testing.assert_allclose(logits, points.sum(1) + 1000 * positive, atol=1e-3)


def test_dice_is_counted(recipe):
    one, other = np.array([1, 1, 1, 0], bool), np.array([0, 1, 1, 1], bool)
    assert recipe["dice"](one, other) == pytest.approx(2 * 2 / 6)
    assert recipe["dice"](~one & one, ~one & one) == 0.0
