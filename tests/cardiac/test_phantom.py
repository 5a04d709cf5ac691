"""A phantom's motion is held against formulas by hand, finite differences, and what its own files show."""

import filecmp
import json
import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion, map_coordinates

from medseg_cardiac.dataset import discover
from medseg_cardiac.heart import Infarct, Ring, Shift, contraction
from medseg_cardiac.phantom import displacement, masks, phantom, pictures, read_misalignment, read_truth, scan
from medseg_core.errors import MedsegError

PLAIN = Ring(24.0, 33.0, shrink=0.25, swell=0.15)
UNEVEN = replace(PLAIN, shrink=0.3, swell=0.22, twist_deg=8, oval=0.1, oval_deg=30, uneven=0.1, uneven_deg=100)
SCARRED = replace(UNEVEN, infarct=Infarct(200, 60, depth=0.6, activity=0.25))
SMALL = {"size": 64, "num_slices": 2, "num_frames": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return phantom(tmp_path_factory.mktemp("phantom") / "data", num_cases=5, **SMALL)


def at(radius_mm, angle_deg) -> np.ndarray:
    angle, radius_mm = np.deg2rad(angle_deg), np.array(radius_mm)
    return np.array([radius_mm * np.cos(angle), radius_mm * np.sin(angle)]).reshape(2, -1)


def plane_mm(step_mm: float = 1.4) -> np.ndarray:
    """Places that avoid the very centre, where an angle has no meaning."""
    return np.indices((100, 100)) * step_mm - 50 * step_mm + 0.3


def polar(points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.hypot(*points_mm), np.arctan2(points_mm[1], points_mm[0])


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def stored(path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def mask_of(folder, place: str, name: str = "slice_00") -> np.ndarray:
    return stored(folder / "labels" / place / f"{name}.nii.gz")[..., 0] > 0


def test_nothing_moves_at_end_diastole():
    assert np.abs(SCARRED.forward(plane_mm(), 0.0) - plane_mm()).max() < 1e-9
    assert np.abs(SCARRED.strain(plane_mm(), 0.0)).max() < 1e-9


def test_strain_at_both_rims_is_that_of_a_shrinking_and_swelling_tube_by_hand():
    """The inner radius goes from 24 to 18; the square of the outer one from 33^2 to 18^2 + 1.15 (33^2 - 24^2)."""
    radial, circumferential = PLAIN.strain(at([24.0, 33.0], [70.0, 200.0]), 1.0)
    outer = math.sqrt(324 + 1.15 * 513)
    assert circumferential == pytest.approx([(0.75**2 - 1) / 2, ((outer / 33) ** 2 - 1) / 2])
    assert radial == pytest.approx([((1.15 / 0.75) ** 2 - 1) / 2, ((1.15 * 33 / outer) ** 2 - 1) / 2])


def test_a_healthy_wall_keeps_its_volume_while_it_shortens_and_twists():
    twisted = replace(PLAIN, twist_deg=8.0)
    points_mm = plane_mm()
    wall = (polar(points_mm)[0] > 24) & (polar(points_mm)[0] < 33)
    (rr, rt), (tr, tt) = twisted.gradient(points_mm[:, wall], 1.0)
    assert rr * tt - rt * tr == pytest.approx(np.full(wall.sum(), 1.15))
    assert np.abs(tr).max() > 0.05  # it does twist


def test_strain_agrees_with_finite_differences_of_the_motion():
    points_mm, step_mm = plane_mm(), 1e-5
    steps = np.eye(2)[:, :, None, None] * step_mm
    ahead, behind = (np.stack([SCARRED.forward(points_mm + s * way, 1.0) for way in steps], 1) for s in (1, -1))
    slopes = (ahead - behind) / (2 * step_mm)
    _, angle = polar(points_mm)
    for kind, way in enumerate([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]):
        length = np.einsum("ij...,j...->i...", slopes, np.array(way))
        assert SCARRED.strain(points_mm, 1.0)[kind] == pytest.approx(((length**2).sum(0) - 1) / 2, abs=1e-7)


def test_the_inverse_leads_back_and_nothing_folds():
    there_mm = SCARRED.forward(plane_mm(), 1.0)
    assert np.abs(SCARRED.inverse(there_mm, 1.0) - plane_mm()).max() < 1e-6
    assert np.abs(SCARRED.forward(SCARRED.inverse(plane_mm(), 1.0), 1.0) - plane_mm()).max() < 1e-6
    (rr, rt), (tr, tt) = SCARRED.gradient(plane_mm(0.7), 1.0)
    assert (rr * tt - rt * tr).min() > 0.15


def test_motion_fades_within_fifteen_millimetres_of_the_wall():
    assert PLAIN.reach_mm < 33 + 15
    far = at(SCARRED.reach_mm + 0.01, np.arange(0, 360, 7.0))
    assert np.abs(SCARRED.forward(far, 1.0) - far).max() < 1e-9
    near = at(34.0, np.arange(0, 360, 7.0))
    assert np.hypot(*(SCARRED.forward(near, 1.0) - near)).min() > 0.5


def test_an_infarct_moves_less_by_its_activity_and_thickens_less():
    scarred = replace(PLAIN, infarct=Infarct(200, 60, depth=1.0, activity=0.25))
    rims = at([24.0, 33.0], 200)
    inner, outer = np.hypot(*scarred.forward(rims, 1.0))
    healthy_inner, healthy_outer = np.hypot(*PLAIN.forward(rims, 1.0))
    assert 24 - inner == pytest.approx(0.25 * (24 - healthy_inner))
    assert (outer - inner - 9) / (healthy_outer - healthy_inner - 9) == pytest.approx(0.25, abs=0.05)
    beyond = at(24.0, [200 - 45.0, 200 + 45.0])  # a border of 14 degrees on
    assert np.hypot(*scarred.forward(beyond, 1.0)) == pytest.approx(np.hypot(*PLAIN.forward(beyond, 1.0)))


def test_the_layer_of_an_infarct_twists_less_than_the_healthy_layer_outside_it():
    healthy, scarred = (replace(PLAIN, twist_deg=8.0, infarct=i) for i in (None, Infarct(200, 60, 0.5, 0.25)))
    depths = at([25.0, 32.9], 200)
    turned, less = (np.rad2deg(polar(r.forward(depths, 1.0))[1] - polar(depths)[1]) for r in (healthy, scarred))
    assert less[0] == pytest.approx(0.25 * turned[0])
    assert less[1] == pytest.approx(turned[1])


def test_the_pool_turns_by_the_twist_and_the_epicardium_by_two_thirds():
    points = at([3.0, 33.0], 10)
    turned = polar(replace(PLAIN, twist_deg=8.0).forward(points, 1.0))[1] - np.deg2rad(10)
    assert np.rad2deg(turned) == pytest.approx([8, 16 / 3], abs=0.2)


def test_a_cycle_contracts_to_end_systole_relaxes_rests_and_fills():
    phase = np.linspace(0, 1, 1001)
    course = contraction(phase, 0.35)
    assert course[[0, 350, 1000]] == pytest.approx([0, 1, 0], abs=1e-12)
    assert (np.diff(course[:351]) >= 0).all()
    assert (np.diff(course[350:]) <= 1e-12).all()
    assert course[(phase > 0.63) & (phase < 0.79)] == pytest.approx(0.2)
    assert np.abs(np.diff(course, 2)).max() < 1e-4  # no jolt


def test_a_quarter_turn_and_a_way_are_what_they_are_by_hand_and_lead_back():
    moved = Shift(90.0, (3.0, -2.0), ()).forward(np.array([[10.0], [4.0]]))
    assert moved[:, 0] == pytest.approx([-4 + 3, 10 - 2])
    bent = scan(0, 0).shift
    assert np.abs(bent.forward(bent.inverse(plane_mm())) - plane_mm()).max() < 1e-4


def test_discover_finds_every_role_and_misses_nothing(folder):
    patients = discover(folder)
    assert [patient.id for patient in patients] == [f"p{i:04d}" for i in range(5)]
    assert not [note for patient in patients for note in patient.notes]
    for plane in (plane for patient in patients for plane in patient.planes):
        assert set(plane.places) == {"cine", "myo", "lv_ed", "lv_es", "mi", "lge", "lge_myo", "lge_mi"}
        assert (plane.ed, plane.es) == (0, 4)


def test_end_systole_is_where_the_cavity_is_smallest():
    plane = scan(0, 0)
    grown = [np.linalg.det(np.moveaxis(plane.ring.gradient(at(5.0, 0), s), -1, 0)).item() for s in plane.contractions]
    assert int(np.argmin(grown)) == plane.es
    assert plane.es in (7, 8)
    drawn = masks(plane)
    assert 0.4 < drawn["cmr_LV_mask/{case}_ES"].sum() / drawn["cmr_LV_mask/{case}_ED"].sum() < 0.75


def test_a_late_frame_warped_by_the_truth_is_the_first_frame_but_for_noise():
    plane = scan(1, 0)
    cine = pictures(plane)[0].astype(float)
    here = np.indices(cine.shape[1:]) + displacement(plane)[plane.es]
    back = map_coordinates(cine[plane.es], here, order=3)
    heart = np.hypot(*plane.points_mm) < 33
    off, unmoved = (np.sqrt(np.mean((picture - cine[0])[heart] ** 2)) for picture in (back, cine[plane.es]))
    assert off < 25  # noise of two frames is up to 21
    assert unmoved > 80


def test_the_stored_truth_carries_the_cavity_from_one_mask_to_the_other(folder):
    moves = read_truth(folder, "p0001", "slice_00")
    assert (moves.shape, moves.dtype) == ((10, 2, 64, 64), np.float32)
    assert np.abs(moves[0]).max() < 1e-6
    before, after = (mask_of(folder, f"cmr_LV_mask/p0001_{phase}") for phase in ("ED", "ES"))
    carried = map_coordinates(after.astype(float), np.indices((64, 64)) + moves[4], order=1) > 0.5
    assert dice(carried, before) > 0.97
    assert dice(after, before) < 0.9


def test_stored_strain_is_the_mean_that_the_stored_displacement_shows():
    """By differences between pixels, which a border of an infarct does not suit: a healthy patient at 128 pixels."""
    plane = scan(4, 1)
    moves = displacement(plane)[plane.es].astype(float)
    slopes = np.stack(np.gradient(moves, axis=(1, 2)), 1) + np.eye(2)[:, :, None, None]
    inner = binary_erosion(masks(plane)["cmr_Myo_mask/{case}"])
    expected = plane.ring.strain(plane.points_mm[:, inner], 1.0)
    _, angle = polar(plane.points_mm)
    for kind, way in enumerate([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]):
        length = np.einsum("ij...,j...->i...", slopes, np.array(way))
        shown = (((length**2).sum(0) - 1) / 2)[inner]
        assert shown.mean() == pytest.approx(expected[kind].mean(), abs=0.01)


def test_the_table_of_strains_is_zero_first_and_largest_at_end_systole(folder):
    for case in range(5):
        truth = json.loads((folder / f"truth/p{case:04d}.json").read_text())
        radial, circumferential = truth["strain"]["radial"], truth["strain"]["circumferential"]
        assert [radial[0], circumferential[0]] == pytest.approx([0, 0], abs=1e-9)
        assert (int(np.argmax(radial)), int(np.argmin(circumferential))) == (truth["es"], truth["es"])
        assert 0.2 < max(radial) < 0.7
        assert -0.25 < min(circumferential) < -0.05


def test_late_labels_warped_by_the_known_misalignment_are_the_infarct_in_the_cine():
    unmoved = []
    for number in range(4):
        plane = scan(number, 1)
        drawn = masks(plane)
        way = (plane.shift.forward(plane.points_mm) - plane.points_mm) / plane.spacing_mm
        at_px = np.rint(np.indices((128, 128)) + way).astype(int).clip(0, 127)
        truth, late = drawn["cmr_MI_mask/{case}"], drawn["lge/lge_MI_labels/{case}"]
        warped = late[tuple(at_px)]
        assert not (warped & ~binary_dilation(truth, np.ones((3, 3)))).any()
        assert not (binary_erosion(truth, np.ones((3, 3))) & ~warped).any()
        unmoved.append(dice(late, truth))
    assert np.mean(unmoved) < 0.75


def test_the_stored_misalignment_lays_late_myocardium_onto_the_cines(folder):
    way = read_misalignment(folder, "p0002", "slice_01")
    assert (way.shape, way.dtype) == ((2, 64, 64), np.float32)
    cine, late = (mask_of(folder, f"{place}/p0002", "slice_01") for place in ("cmr_Myo_mask", "lge/lge_Myo_labels"))
    warped = map_coordinates(late.astype(float), np.indices((64, 64)) + way, order=1) > 0.5
    assert dice(warped, cine) > 0.93 > dice(late, cine)


def test_no_pixel_of_the_first_frame_depends_on_the_infarct():
    plane = scan(0, 1)
    healthy = replace(plane, ring=replace(plane.ring, infarct=None))
    (cine, late), (same, other) = pictures(plane), pictures(healthy)
    assert np.array_equal(cine[0], same[0])
    assert not np.array_equal(cine[plane.es], same[plane.es])
    assert not np.array_equal(late, other)


def test_intensity_of_the_first_frame_does_not_tell_infarct_from_healthy_wall():
    ratios = []
    for number in (0, 1, 2, 3, 5, 6):
        plane = scan(number, 1, num_frames=2)
        (cine, _), drawn = pictures(plane), masks(plane)
        infarct = binary_erosion(drawn["cmr_MI_mask/{case}"])
        remote = binary_erosion(drawn["cmr_Myo_mask/{case}"]) & ~binary_dilation(drawn["cmr_MI_mask/{case}"])
        ratios.append(cine[0][infarct].mean() / cine[0][remote].mean())
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)
    assert min(ratios) < 1 < max(ratios)


def test_late_enhancement_shows_a_bright_infarct_in_nulled_wall(folder):
    for case in ("p0000", "p0003"):
        late = stored(folder / f"images/lge/{case}/slice_01.nii.gz")[..., 0]
        infarct, wall = (mask_of(folder, f"lge/{kind}_labels/{case}", "slice_01") for kind in ("lge_MI", "lge_Myo"))
        pool = np.median(late[map_centre(wall)])
        assert np.median(late[infarct]) > 1.3 * pool > 1.3 * 2 * np.median(late[wall & ~infarct])


def map_centre(wall: np.ndarray) -> tuple[int, int]:
    """The pixel amid a ring."""
    return tuple(np.rint(np.argwhere(wall).mean(0)).astype(int))


def test_the_last_of_five_patients_is_healthy_and_the_others_are_not(folder):
    sizes = [[mask_of(folder, f"cmr_MI_mask/p{i:04d}", f"slice_{k:02d}").sum() for k in range(2)] for i in range(5)]
    assert [min(pair) > 0 for pair in sizes] == [True, True, True, True, False]
    assert max(sizes[4]) == 0


def test_infarcts_lie_in_the_wall_and_cover_the_share_of_their_sector():
    for number in range(4):
        plane = scan(number, 1)
        drawn, told = masks(plane), plane.ring.infarct
        infarct, wall = drawn["cmr_MI_mask/{case}"], drawn["cmr_Myo_mask/{case}"]
        inner, outer = plane.ring.inner_mm, plane.ring.outer_mm
        deep = inner + told.depth * (outer - inner)
        share = told.width_deg / 360 * (deep**2 - inner**2) / (outer**2 - inner**2)
        assert not (infarct & ~wall).any()
        assert infarct.sum() / wall.sum() == pytest.approx(share, rel=0.12)  # an oval is no circle
    depths = [scan(number, 1).ring.infarct.depth for number in range(4)]
    assert min(depths) < 0.8 < max(depths) == 1


def test_cines_are_pictures_in_the_patient_with_their_time(folder):
    images = [nib.load(folder / f"images/cmr/p0000/slice_0{k}.nii.gz") for k in range(2)]
    assert images[0].shape == (64, 64, 1, 10)
    assert images[0].get_data_dtype() == np.int16
    step = images[1].affine[:3, 3] - images[0].affine[:3, 3]
    assert np.linalg.norm(step) == pytest.approx(10)
    along = images[0].affine[:3, :3] / np.linalg.norm(images[0].affine[:3, :3], axis=0)
    assert step / 10 == pytest.approx(along[:, 2], abs=1e-5)
    assert along.T @ along == pytest.approx(np.eye(3), abs=1e-5)
    assert along[2, 0] < -0.7  # rows go to the feet
    assert along[0, 1] < -0.4  # columns to the left
    assert images[0].header.get_zooms()[0] == pytest.approx(180 / 64, rel=0.051)
    assert 0.07 <= images[0].header.get_zooms()[3] <= 0.11
    assert np.array_equal(nib.load(folder / "images/lge/p0000/slice_00.nii.gz").affine, images[0].affine)
    voxels = stored(folder / "images/cmr/p0000/slice_00.nii.gz")
    assert 0 <= voxels.min() < 20
    assert 400 < voxels.max() <= 1000


def test_equal_seeds_give_equal_files_whatever_the_number_of_patients(folder, tmp_path):
    again = phantom(tmp_path / "a", num_cases=1, **SMALL)
    files = [path.relative_to(again) for path in again.rglob("*") if path.is_file() and "p0000" in str(path)]
    assert len(files) == 2 * (2 + 6 + 2) + 1
    assert not [name for name in files if not filecmp.cmp(folder / name, again / name, shallow=False)]
    other = phantom(tmp_path / "b", num_cases=1, seed=1, **SMALL)
    assert not [name for name in files if filecmp.cmp(folder / name, other / name, shallow=False)]
    assert scan(0, 0).ring.inner_mm != scan(0, 0, seed=1).ring.inner_mm != scan(1, 0, seed=1).ring.inner_mm


def test_a_begun_folder_is_gone_on_with_and_another_one_refused(folder, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    phantom(folder, num_cases=5, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")} == before
    with pytest.raises(MedsegError, match="seed"):
        phantom(folder, num_cases=5, seed=9, **SMALL)
    (tmp_path / "scan.dcm").write_text("somebody's scan")
    with pytest.raises(MedsegError, match="is no phantom"):
        phantom(tmp_path, num_cases=1)


@pytest.mark.parametrize("bad", [{"num_cases": 0}, {"size": 8}, {"num_slices": 0}, {"num_frames": 1}, {"seed": -1}])
def test_numbers_that_make_no_phantom_are_named(tmp_path, bad):
    (name, value), *_ = bad.items()
    with pytest.raises(MedsegError, match=f"{name} {value}; give"):
        phantom(tmp_path / "x", **bad)


def test_a_missing_or_damaged_truth_is_one_line(folder, tmp_path):
    with pytest.raises(MedsegError, match=r"there is no .*slice_77"):
        read_truth(folder, "p0000", "slice_77")
    path = tmp_path / "truth" / "p0000"
    path.mkdir(parents=True)
    (path / "slice_00.npy").write_bytes(b"\x93NUMPY no array")
    np.save(path / "slice_01.npy", np.zeros((2, 8, 8), np.float32))
    np.save(path / "slice_02.npy", np.zeros((3, 2, 8, 8)))
    for name in ("slice_00", "slice_01", "slice_02"):
        with pytest.raises(MedsegError, match="write the phantom again"):
            read_truth(tmp_path, "p0000", name)
