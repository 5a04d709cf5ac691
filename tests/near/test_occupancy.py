"""The field on grids: a search near the surface finds what asking everywhere finds."""

import tracemalloc

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation, map_coordinates

from medseg_near.models.field import Shapes
from medseg_near.occupancy import (
    CPU_CHUNK,
    _halved,
    _surface,
    _surface_places,
    asking,
    cube,
    dense,
    narrow,
    occupancy,
    on_grid,
)
from medseg_near.points import Frame

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


def test_a_part_too_small_for_the_lattice_is_found_by_a_seed_that_touches_it():
    def speck(voxels):
        return 1.2 - np.linalg.norm(voxels - (33, 31, 41), axis=1)

    seed = np.zeros(SIZE, bool)
    seed[33, 31, 42] = True
    found, _ = narrow(asked_of(speck)[0], SIZE, seed=seed)
    assert found.sum() == 7
    np.testing.assert_array_equal(found, dense(asked_of(speck)[0], SIZE) > 0)


def test_hardly_more_is_asked_than_what_lies_at_the_surface():
    found, asked = narrow(asked_of(ball)[0], SIZE)
    assert asked < 1.8 * _surface(found).sum()


def test_no_point_is_asked_twice():
    told = []

    def ask(voxels):
        told.append(voxels)
        return tube(voxels.astype(float)).astype(np.float32)

    _, asked = narrow(ask, SIZE, seed=dense(asked_of(ball)[0], SIZE) > 0)
    assert len(np.unique(np.concatenate(told), axis=0)) == asked


def test_both_of_any_two_neighbours_that_differ_were_asked():
    known = np.zeros(SIZE, bool)

    def ask(voxels):
        known[tuple(voxels.T)] = True
        return np.maximum(ball(voxels.astype(float)), tube(voxels.astype(float))).astype(np.float32)

    found, _ = narrow(ask, SIZE)
    cubes = np.ones((3, 3, 3))
    assert known[binary_dilation(found, cubes) & binary_dilation(~found, cubes)].all()


def test_a_search_holds_little_more_than_its_masks():
    size, ask = (160, 160, 160), asked_of(tube)[0]
    seed = dense(ask, size) > 0
    tracemalloc.start()
    narrow(ask, size, seed=seed)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3 * seed.nbytes  # the answer, where it is known, and an eighth of each on the lattice before


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.2, 1.0])
def test_places_of_a_surface_are_those_of_the_whole_mask(share):
    mask = np.random.default_rng(1).random((37, 20, 19)) < share
    np.testing.assert_array_equal(_surface_places(mask), np.flatnonzero(_surface(mask)))


def test_half_of_a_mask_has_every_voxel_of_it():
    mask = np.random.default_rng(2).random((7, 6, 5)) < 0.1
    blocks = np.pad(mask, [(0, 1), (0, 0), (0, 1)]).reshape(4, 2, 3, 2, 3, 2)
    np.testing.assert_array_equal(_halved(mask), blocks.any((1, 3, 5)))


def test_a_label_lies_on_a_grid_as_its_nearest_voxels():
    label = np.random.default_rng(3).random((9, 14, 11)) < 0.3
    label[:2] = False
    turned = np.array([[0.1, 0.2, 5.0], [-7.0, 0.3, 0.1], [0.2, 6.0, -0.1]])
    frame, grid, size = Frame(turned, np.array([4.123, 6.789, 5.234])), cube(24), (24, 24, 24)
    at = frame.voxels(grid.points(np.indices(size).reshape(3, -1).T.astype(float))).T
    nearest = map_coordinates(label.astype(np.uint8), at, order=0).reshape(size) > 0
    assert nearest.any()
    np.testing.assert_array_equal(on_grid(label, frame, grid, size), nearest)
    assert not on_grid(np.zeros((3, 4, 5), bool), frame, grid, size).any()


def test_answers_are_those_of_the_network_asked_once_for_all():
    torch.manual_seed(0)
    model, num = Shapes(1, latent=8, net="pointwise").eval(), CPU_CHUNK + 5
    voxels = np.random.default_rng(4).integers(0, 100, (num, 3))
    points = torch.from_numpy(cube(100).points(voxels.astype(float)).astype(np.float32))
    with torch.no_grad():
        want = model(torch.tensor([0]), points[None])[0][0].numpy()
    found = asking(model, model.latents.weight[0].detach(), cube(100))(voxels)
    np.testing.assert_allclose(found, want, atol=1e-5)


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
