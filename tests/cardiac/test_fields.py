"""Displacements: which axis is which, which grid they live on, and strain against what theory says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg_cardiac.fields import (
    compose,
    gradient_norm,
    green_lagrange,
    integrate,
    jacobian,
    num_folds,
    radial_circumferential,
    smooth,
    warp,
)

H, W = 40, 56


def places(height=H, width=W):
    h, w = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack([h, w])[None].double()


def linear(matrix, centre):
    """The displacement of x -> centre + matrix (x - centre), (1, 2, H, W)."""
    centre = torch.tensor(centre, dtype=torch.float64).reshape(1, 2, 1, 1)
    matrix = torch.tensor(matrix, dtype=torch.float64) - torch.eye(2, dtype=torch.float64)
    return torch.einsum("ij,njhw->nihw", matrix, places() - centre)


def picture():
    """Asymmetric: a bright block in one corner region, and a ramp."""
    x = torch.zeros(1, 1, H, W, dtype=torch.float64)
    x[..., 10:14, 20:30] = 1.0
    return x + 0.01 * places()[:, :1] + 0.003 * places()[:, 1:]


def test_a_shift_of_three_rows_and_minus_two_columns_is_taken_from_there():
    flow = torch.tensor([3.0, -2.0]).reshape(1, 2, 1, 1).expand(1, 2, H, W).double()
    moved = warp(picture(), flow)
    assert torch.allclose(moved[..., :-3, 2:], picture()[..., 3:, :-2], atol=1e-12)


def test_beyond_the_edge_the_edge_holds():
    flow = torch.tensor([0.0, 5.0]).reshape(1, 2, 1, 1).expand(1, 2, H, W).double()
    assert torch.allclose(warp(picture(), flow)[..., -5:], picture()[..., -1:], atol=1e-12)


def test_a_quarter_turn_brings_rows_to_columns():
    """x -> c + R (x - c) with R = [[0, -1], [1, 0]]: a row h above the centre is looked up h to the side."""
    square = torch.nn.functional.pad(picture(), (0, 0, 0, 1))[..., :41, :41]
    h, w = torch.meshgrid(torch.arange(41.0), torch.arange(41.0), indexing="ij")
    flow = torch.stack([20 - (w - 20) - h, 20 + (h - 20) - w])[None].double()
    assert torch.allclose(warp(square, flow)[0, 0], torch.rot90(square[0, 0], -1), atol=1e-9)


def test_composed_shifts_add_up():
    one, two = (torch.tensor(v).reshape(1, 2, 1, 1).expand(1, 2, H, W) for v in ([1.5, 0.0], [-0.5, 2.0]))
    assert torch.allclose(compose(one, two), torch.tensor([1.0, 2.0]).reshape(1, 2, 1, 1).expand(1, 2, H, W))


def test_composing_goes_the_first_way_first():
    """first: everything one column on; then: what stands left of column 20 goes two rows down."""
    first = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1).expand(1, 2, H, W)
    then = torch.zeros(1, 2, H, W)
    then[:, 0, :, :20] = 2.0
    way = compose(first, then)
    assert way[0, :, 5, 18].tolist() == [2.0, 1.0]
    assert way[0, :, 5, 19].tolist() == [0.0, 1.0]


def test_the_flow_of_a_linear_velocity_is_its_matrix_exponential():
    velocity = linear([[1.1, 0.05], [-0.08, 0.93]], (20, 28))
    want = linear(torch.linalg.matrix_exp(torch.tensor([[0.1, 0.05], [-0.08, -0.07]]).double()).tolist(), (20, 28))
    inner = (..., slice(12, 28), slice(16, 40))
    assert (integrate(velocity) - want)[inner].abs().max() < 2e-3


@given(seed=st.integers(0, 50), size=st.floats(0.5, 4))
def test_minus_the_velocity_leads_back(seed, size):
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 2, 5, 7, generator=rng) * 2 - 1
    velocity = size * torch.nn.functional.interpolate(coarse, (H, W), mode="bicubic")
    window = torch.hann_window(H)[:, None] * torch.hann_window(W)
    there, back = integrate(velocity * window), integrate(-velocity * window)
    assert compose(there, back).abs().max() < 0.08 * size
    assert num_folds(there).item() == 0


def test_smoothing_keeps_a_plane_and_the_sum_of_a_peak():
    """A Gaussian of one pixel at its centre: 1 / sqrt(2 pi) along each axis, 0.159 in two dimensions."""
    peak = torch.zeros(1, 2, H, W, dtype=torch.float64)
    peak[0, 0, 20, 28] = 1.0
    assert smooth(peak).sum().item() == pytest.approx(1.0)
    assert smooth(peak)[0, 0, 20, 28].item() == pytest.approx(1 / (2 * math.pi), rel=0.01)
    assert torch.allclose(smooth(places())[..., 5:-5, 5:-5], places()[..., 5:-5, 5:-5])


def test_a_fold_is_counted_where_it_is():
    flow = torch.zeros(1, 2, 10, 10)
    assert num_folds(flow).tolist() == [0]
    flow[0, 0, 4, 4] = 1.5  # the point jumps over its lower neighbour
    assert num_folds(flow).item() == 2  # of the four cells around it the two below
    mirrored = torch.stack([torch.zeros(10, 10), -2 * torch.arange(10.0).expand(10, 10)])[None]
    assert num_folds(mirrored).item() == 81


def test_the_jacobian_of_a_linear_map_is_its_matrix():
    matrix = [[1.2, 0.3], [-0.1, 0.8]]
    found = jacobian(linear(matrix, (3, 4)))
    assert torch.allclose(found, torch.tensor(matrix).double().reshape(1, 2, 2, 1, 1).expand_as(found))


def test_a_stretch_of_a_fifth_is_a_strain_of_22_percent():
    """(1.2 ** 2 - 1) / 2 = 0.22 along the stretched axis, 0 across it, whatever the pixels."""
    strain = green_lagrange(linear([[1.2, 0], [0, 1]], (0, 0)), (1.4, 0.7))
    assert torch.allclose(strain[:, 0, 0], torch.full((1, H, W), 0.22).double())
    assert strain[:, 1, 1].abs().max() < 1e-12


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (1.4, 0.8)])
def test_a_rotation_has_no_strain_and_yet_a_gradient(spacing_mm):
    c, s = math.cos(0.5), math.sin(0.5)
    in_pixels = [[c, -s * spacing_mm[1] / spacing_mm[0]], [s * spacing_mm[0] / spacing_mm[1], c]]
    flow = linear(in_pixels, (20, 28))
    assert green_lagrange(flow, spacing_mm).abs().max() < 1e-12
    assert gradient_norm(flow)[..., :-1, :-1].min() > 0.3


def test_shear_counts_the_millimetres_of_each_axis():
    """A shear of h by 0.5 px for each px of w, at 2 mm and 1 mm: F_hw = 1.0, so E_hw = 0.5 and E_ww = 0.5."""
    strain = green_lagrange(linear([[1, 0.5], [0, 1]], (0, 0)), (2.0, 1.0))[0, :, :, 5, 5]
    assert torch.allclose(strain, torch.tensor([[0.0, 0.5], [0.5, 0.5]]).double())


def test_a_contracting_disc_shortens_by_the_same_along_and_across_the_ray():
    """Scaled by 0.8 about the centre: E = (0.64 - 1) / 2 = -0.18 both ways."""
    strain = green_lagrange(linear([[0.8, 0], [0, 0.8]], (20, 28)), (1.3, 1.3))
    for part in radial_circumferential(strain, (20, 28), (1.3, 1.3)):
        away = part[0].clone()
        away[20, 28] = -0.18
        assert torch.allclose(away, torch.full_like(away, -0.18))


def test_radial_and_circumferential_follow_the_ray_in_millimetres():
    """Stretched along w only: radial on the ray along w, circumferential on the ray along h."""
    strain = green_lagrange(linear([[1, 0], [0, 1.2]], (20, 28)), (1.0, 1.0))
    radial, across = radial_circumferential(strain, (20, 28), (1.0, 1.0))
    assert radial[0, 20, 40].item() == pytest.approx(0.22)
    assert across[0, 20, 40].item() == pytest.approx(0.0, abs=1e-12)
    assert radial[0, 30, 28].item() == pytest.approx(0.0, abs=1e-12)
    assert across[0, 30, 28].item() == pytest.approx(0.22)


def test_the_gradient_norm_is_that_of_forward_differences_in_pixels():
    flow = torch.zeros(1, 2, 4, 4)
    flow[0, 0, 2, 1], flow[0, 1, 1, 2] = 3.0, 4.0
    norm = gradient_norm(flow)[0, 0]
    assert norm[1, 1].item() == pytest.approx(5.0)  # 3 down and 4 to the right
    assert norm[3, 3].item() == pytest.approx(0.0, abs=1e-5)
