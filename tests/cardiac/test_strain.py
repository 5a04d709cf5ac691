"""Strain over the cycle: of pure stretches, of turns, and of a heart whose strain is a formula."""

import json

import numpy as np
import pytest

from medseg_cardiac import phantom
from medseg_cardiac.strain import Strain, as_json, joined, mean_strain, strain_maps
from medseg_core.errors import MedsegError

H, W, CENTRE = 60, 72, (29.0, 37.0)


def mapped(matrix, spacing_mm=(1.0, 1.0)):
    """(D, H, W) pixels: x -> centre + matrix (x - centre), the matrix acting on mm."""
    size = np.reshape(spacing_mm, (2, 1, 1))
    away_mm = (np.indices((H, W)) - np.reshape(CENTRE, (2, 1, 1))) * size
    return (np.tensordot(np.array(matrix) - np.eye(2), away_mm, 1)) / size


def ring(inner=10, outer=16, spacing_mm=(1.0, 1.0)):
    away = (np.indices((H, W)) - np.reshape(CENTRE, (2, 1, 1))) * np.reshape(spacing_mm, (2, 1, 1))
    return (np.hypot(*away) >= inner) & (np.hypot(*away) < outer)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0), (1.4, 0.9)])
@pytest.mark.parametrize("factor", [0.7, 1.2])
def test_a_picture_scaled_by_s_is_strained_by_half_of_s_squared_less_one(factor, spacing_mm):
    flows = np.stack([mapped(np.eye(2), spacing_mm), mapped(factor * np.eye(2), spacing_mm)])
    found = mean_strain(flows, ring(spacing_mm=spacing_mm), spacing_mm)
    want = [0, (factor**2 - 1) / 2]
    np.testing.assert_allclose(found.radial, want, atol=1e-9)
    np.testing.assert_allclose(found.circumferential, want, atol=1e-9)


def test_a_turned_heart_is_not_strained():
    cos, sin = np.cos(0.5), np.sin(0.5)
    spacing_mm = (1.5, 1.0)
    flows = mapped([[cos, -sin], [sin, cos]], spacing_mm)[None]
    found = mean_strain(flows, ring(spacing_mm=spacing_mm), spacing_mm)
    assert abs(found.radial[0]) < 1e-9
    assert abs(found.circumferential[0]) < 1e-9


def test_on_pixels_of_unequal_sides_a_turn_taken_for_square_ones_is_a_strain():
    cos, sin = np.cos(0.5), np.sin(0.5)
    flows = mapped([[cos, -sin], [sin, cos]], (1.5, 1.0))[None]
    assert abs(strain_maps(flows, CENTRE, (1.0, 1.0))[0]).max() > 0.05


def test_a_stretch_along_the_rows_is_radial_below_the_centre_and_circumferential_beside_it():
    radial, across = strain_maps(mapped(np.diag([1.2, 1.0]))[None], CENTRE, (1.0, 1.0))
    assert radial.shape == across.shape == (1, H, W)
    want = (1.2**2 - 1) / 2
    assert (radial[0, 45, 37], across[0, 45, 37]) == pytest.approx((want, 0), abs=1e-9)
    assert (radial[0, 29, 50], across[0, 29, 50]) == pytest.approx((0, want), abs=1e-9)


def test_a_ring_that_moves_in_by_a_length_thickens_nowhere_and_shortens_by_it():
    """u = -2 e_r: no slope along the ray, and each circle of radius r becomes one of r - 2."""
    away = np.indices((H, W)) - np.reshape(CENTRE, (2, 1, 1))
    radius = np.maximum(np.hypot(*away), 1e-9)
    myo = ring()
    found = mean_strain((-2 * away / radius)[None], myo, (1.0, 1.0))
    want = (((radius[myo] - 2) / radius[myo]) ** 2 - 1) / 2
    assert found.radial[0] == pytest.approx(0, abs=0.005)
    assert found.circumferential[0] == pytest.approx(want.mean(), abs=0.005)
    assert found.num_pixels == myo.sum()


def test_pixels_beside_the_wall_have_no_say():
    flows = mapped(1.1 * np.eye(2))[None].copy()
    flows[:, :, :8] = 50.0
    assert mean_strain(flows, ring(), (1.0, 1.0)).radial[0] == pytest.approx((1.1**2 - 1) / 2)


@pytest.mark.parametrize(("number", "index"), [(0, 0), (1, 1), (4, 2)])
def test_the_strain_of_the_phantom_is_found_from_its_displacement(number, index):
    """With infarct (0, 1) and without (4), at the base, in the middle and at the apex."""
    plane = phantom.scan(number, index, size=128, num_frames=10)
    myo = phantom.masks(plane)["cmr_Myo_mask/{case}"]
    found = mean_strain(phantom.displacement(plane), myo, (plane.spacing_mm,) * 2)
    for name, want in phantom.mean_strain(plane, myo).items():
        np.testing.assert_allclose(found.curves[name], want, atol=0.01, err_msg=name)
    assert found.peaks()["peak_radial"] > 0.1
    assert found.peaks()["peak_circumferential"] < -0.05
    assert int(np.argmin(found.circumferential)) == plane.es


def test_peaks_are_the_most_thickening_and_the_most_shortening():
    strain = Strain(np.array([0, 0.4, 0.2]), np.array([0, -0.1, -0.15]), 9)
    assert strain.peaks() == {"peak_radial": 0.4, "peak_circumferential": -0.15}


def test_slices_are_weighed_by_their_pixels():
    one = Strain(np.array([0, 0.4]), np.array([0, -0.1]), 30)
    other = Strain(np.array([0, 0.2]), np.array([0, -0.3]), 10)
    both = joined([one, other])
    np.testing.assert_allclose(both.radial, [0, 0.35])
    np.testing.assert_allclose(both.circumferential, [0, -0.15])
    assert both.num_pixels == 40


def test_strain_is_written_as_plain_numbers():
    flows = np.stack([mapped(np.eye(2)), mapped(0.8 * np.eye(2))])
    told = json.loads(json.dumps(as_json(mean_strain(flows, ring(), (1.0, 1.0)))))
    assert told["circumferential"] == [0, -0.18]
    assert told["peak_circumferential"] == pytest.approx(-0.18)
    assert told["peak_radial"] == pytest.approx(0)


def test_an_empty_wall_has_no_strain():
    with pytest.raises(MedsegError, match=r"myocardium is empty.*draw it"):
        mean_strain(mapped(np.eye(2))[None], np.zeros((H, W), bool), (1.0, 1.0))
