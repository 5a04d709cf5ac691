"""The field on grids: a search near the surface finds what asking everywhere finds."""

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from medseg_near.models.field import Shapes
from medseg_near.occupancy import _surface, asking, cube, dense, narrow, occupancy

SIZE = (70, 64, 81)


def asked_of(logits):
    """A field that is a formula, and how many points it was asked."""
    told = []

    def ask(voxels):
        told.append(len(voxels))
        return logits(np.asarray(voxels, float)).astype(np.float32)

    return ask, told


def ball(voxels):
    return 20 - np.linalg.norm(voxels - (33, 31, 40), axis=1)


def tube(voxels):
    """A vessel of two voxels across along a slope."""
    return 1.2 - np.hypot(voxels[:, 1] - 20 - voxels[:, 0] / 3, voxels[:, 2] - 40)


def test_a_ball_is_found_by_asking_few_points():
    ask, told = asked_of(ball)
    found, asked = narrow(ask, SIZE)
    np.testing.assert_array_equal(found, dense(asked_of(ball)[0], SIZE) > 0)
    assert asked == sum(told) < 0.2 * np.prod(SIZE)


def test_a_thin_vessel_is_found_whole_from_a_seed_that_is_broken():
    true = dense(asked_of(tube)[0], SIZE) > 0
    seed = true.copy()
    seed[20:35] = False
    found, asked = narrow(asked_of(tube)[0], SIZE, seed=seed)
    np.testing.assert_array_equal(found, true)
    assert asked < 0.1 * np.prod(SIZE)


def test_what_the_seed_has_and_the_field_has_not_is_gone():
    ghost = np.zeros(SIZE, bool)
    ghost[60:66, 5:9, 70:76] = True
    found, _ = narrow(asked_of(ball)[0], SIZE, seed=ghost)
    np.testing.assert_array_equal(found, dense(asked_of(ball)[0], SIZE) > 0)


@pytest.mark.parametrize("answer", [-1.0, 1.0])
def test_a_field_without_a_surface(answer):
    found, _ = narrow(asked_of(lambda v: np.full(len(v), answer))[0], (40, 3, 9))
    assert found.shape == (40, 3, 9)
    assert (found == (answer > 0)).all()


def test_the_surface_is_what_has_a_differing_neighbour():
    mask = np.random.default_rng(0).random((9, 8, 7)) < 0.02
    cubes = np.ones((3, 3, 3))
    np.testing.assert_array_equal(_surface(mask), binary_dilation(mask, cubes) & binary_dilation(~mask, cubes))


def test_points_in_mm_are_those_of_the_cube():
    torch.manual_seed(0)
    model = Shapes(2, latent=8, half_mm=40.0).eval()
    latent = model.latents.weight[1].detach()
    points = torch.rand(50, 3) * 2 - 1
    want = model(torch.tensor([1]), points[None])[0][0].sigmoid()
    torch.testing.assert_close(occupancy(model, latent, 40 * points), want)
    n = 9
    grid = dense(asking(model, latent, cube(n)), (n, n, n))
    corner = model(torch.tensor([1]), torch.tensor([[[-1.0, 1.0, 0.0]]]))[0].item()
    assert grid[0, -1, 4] == pytest.approx(corner, abs=1e-5)
