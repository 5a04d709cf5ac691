"""A phantom's files are read with nibabel, and its anatomy is held against what every heart has."""

import filecmp
import json
import logging

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_fill_holes, distance_transform_edt
from scipy.ndimage import label as numbered

from medseg_core.cases import read_cases
from medseg_core.errors import MedsegError
from medseg_core.labelmaps import find_label_maps
from medseg_near.phantom import grid_of, heart, phantom
from medseg_near.whole_heart import WHOLE_HEART

SMALL = {"size": 48, "spacing_mm": 2.0}
MYO, LA, LV, AORTA, LAA, CORONARY, PV = 1, 2, 3, 6, 8, 9, 10
ANYWHERE = np.ones((3, 3, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return phantom(tmp_path_factory.mktemp("phantom") / "data", num_cases=4, **SMALL)


@pytest.fixture(scope="module")
def fine():
    """(label, spacing in mm, the heart itself) of two patients in voxels of about a millimetre."""
    hearts = {number: (heart(number), grid_of(number)) for number in (0, 1)}
    return [(patient.label_on(grid), grid.spacing_mm, patient) for patient, grid in hearts.values()]


def stored(folder, role: str, number: int = 0) -> np.ndarray:
    return np.asarray(nib.load(folder / role / f"h{number:04d}.nii.gz").dataobj)


def parts(mask: np.ndarray) -> list[int]:
    """Sizes, the largest first."""
    return sorted(np.bincount(numbered(mask, ANYWHERE)[0].ravel())[1:].tolist(), reverse=True)


def touch(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((binary_dilation(one, ANYWHERE) & other).any())


def test_every_class_is_there_in_one_part_and_vessels_of_two_sides_in_two(fine):
    for label, _, _ in fine:
        assert set(np.unique(label).tolist()) == {0, *WHOLE_HEART}
        counts = {id_: len(parts(label == id_)) for id_ in WHOLE_HEART}
        assert counts == dict.fromkeys(WHOLE_HEART, 1) | {CORONARY: 2, PV: 2}


def test_appendage_and_veins_touch_the_left_atrium(fine):
    for label, _, _ in fine:
        for side in numbered(label == PV, ANYWHERE)[0] == np.array([1, 2])[:, None, None, None]:
            assert touch(side, label == LA)
        assert touch(label == LAA, label == LA)


def test_both_coronaries_start_in_the_wall_of_the_aorta(fine):
    for label, _, patient in fine:
        ostia_mm = np.array([tree.points_mm[0] for tree in patient.vessels[CORONARY]])
        assert np.all(np.abs(patient.vessels[AORTA][0].distance_mm(ostia_mm)) < 2)
        for side in numbered(label == CORONARY, ANYWHERE)[0] == np.array([1, 2])[:, None, None, None]:
            assert touch(side, label == AORTA)


def test_coronaries_run_on_the_outside_of_the_heart(fine):
    """On the wall or in the groove: most voxels lie next to muscle or a right chamber, and none in the left one."""
    for label, spacing_mm, _ in fine:
        vessel = label == CORONARY
        from_heart_mm = distance_transform_edt(~np.isin(label, [1, 2, 3, 4, 5, 6, 7]), sampling=spacing_mm)
        assert np.quantile(from_heart_mm[vessel], 0.9) < 6
        assert distance_transform_edt(label != LV, sampling=spacing_mm)[vessel].min() > 2


def test_the_wall_encloses_the_left_ventricle_but_for_its_base(fine):
    for label, _, _ in fine:
        around = binary_dilation(label == LV) & (label != LV)
        assert np.mean(np.isin(label[around], [MYO])) > 0.75
        assert not (binary_fill_holes(label == MYO) & (label == LV)).any()  # it is open at the base


def test_coronaries_taper_from_two_millimetres_to_less_than_one(fine):
    for _, _, patient in fine:
        for tree in patient.vessels[CORONARY]:
            assert tree.radii_mm[0] == pytest.approx(2.2)
            assert tree.radii_mm[tree.ends] == pytest.approx(0.8)
            assert np.all(tree.radii_mm[1:] <= tree.radii_mm[tree.parents[1:]] + 1e-9)
            assert 100 < tree.length_mm < 400


def test_a_larger_field_shows_a_larger_heart_with_coronaries_of_the_same_width():
    small, large = (heart(0, field_mm=mm) for mm in (96.0, 192.0))
    ratio = np.linalg.det(large.matrix) / np.linalg.det(small.matrix)
    assert ratio == pytest.approx((130 / 96) ** 3)
    for one, other in zip(small.vessels[CORONARY], large.vessels[CORONARY], strict=True):
        assert one.radii_mm[0] == other.radii_mm[0] == pytest.approx(2.2)
        assert other.length_mm > 1.2 * one.length_mm


def test_patients_differ_from_one_another(fine):
    volumes = [[np.sum(label == id_) * np.prod(mm) for id_ in WHOLE_HEART] for label, mm, _ in fine]
    assert np.all(np.abs(np.log(volumes[0]) - np.log(volumes[1])) > 1e-4)
    ends = [sum(len(tree.ends) for tree in heart(n).vessels[CORONARY]) for n in range(8)]
    assert len(set(ends)) > 1


def test_files_of_a_case_lie_on_one_oblique_grid_and_cases_on_different_ones(folder):
    affines = []
    for number in range(3):
        files = [nib.load(folder / role / f"h{number:04d}.nii.gz") for role in ("labels", "images", "noisy")]
        assert [file.get_data_dtype() for file in files] == [np.uint8, np.int16, np.uint8]
        assert len({file.shape for file in files}) == 1
        assert all(np.array_equal(file.affine, files[0].affine) for file in files)
        affines.append(files[0].affine)
    assert len({nib.aff2axcodes(affine) for affine in affines}) == 3
    assert all((np.abs(affine[:3, :3]) > 1e-3).sum() > 3 for affine in affines)
    assert len(set(nib.affines.voxel_sizes(affines[1]).round(3))) > 1  # no cubes


def test_blood_is_bright_muscle_is_grey_and_lungs_are_dark(folder):
    label, image = stored(folder, "labels"), stored(folder, "images")
    means_hu = {id_: np.median(image[label == id_]) for id_ in WHOLE_HEART}
    assert 300 < means_hu[LV] < 420
    assert 60 < means_hu[MYO] < 160
    assert means_hu[CORONARY] > means_hu[MYO]
    assert np.quantile(image, 0.05) < -700
    assert 10 < np.std(image[label == LV]) < 60


def test_noise_leaves_the_coronary_recognisable_and_in_many_parts(folder):
    for number in range(4):
        clean, noisy = (stored(folder, role, number) == CORONARY for role in ("labels", "noisy"))
        dice = 2 * (clean & noisy).sum() / (clean.sum() + noisy.sum())
        assert 0.3 < dice < 0.95
        assert len(parts(noisy)) > 3


def test_noise_puts_an_island_of_every_class_away_from_it(folder):
    label, noisy = stored(folder, "labels"), stored(folder, "noisy")
    far = distance_transform_edt(
        label == 0, sampling=nib.affines.voxel_sizes(nib.load(folder / "labels/h0000.nii.gz").affine)
    )
    for id_ in WHOLE_HEART:
        assert (far[noisy == id_] > 4).any(), WHOLE_HEART[id_]


def test_noise_leaves_cavities_in_the_myocardium(folder):
    for number in range(4):
        clean, noisy = stored(folder, "labels", number), stored(folder, "noisy", number)
        holes = binary_fill_holes(noisy == MYO) & (noisy == 0)
        assert holes.sum() >= 3
        assert (clean[holes] == MYO).all()


def test_what_notes_call_lost_is_lost_and_nothing_else(tmp_path):
    cases = read_cases(phantom(tmp_path / "data", num_cases=8, size=32, spacing_mm=2.0) / "cases.json")
    names = {"LAA": LAA, "PV": PV}
    assert {name for case in cases for name in case.notes["lost"]} == set(names)
    for case in cases:
        label, noisy = (np.asarray(nib.load(case.files[role]).dataobj) for role in ("label", "noisy"))
        for name, id_ in names.items():
            kept = ((label == id_) & (noisy == id_)).sum() / (label == id_).sum()
            assert (kept < 0.9) == (name in case.notes["lost"]), (case.id, name, kept)


def test_equal_seeds_give_equal_files_and_other_seeds_others(folder, tmp_path):
    again, other = phantom(tmp_path / "a", num_cases=1, **SMALL), phantom(tmp_path / "b", num_cases=1, seed=1, **SMALL)
    for role in ("labels", "images", "noisy"):
        name = f"{role}/h0000.nii.gz"  # a patient does not depend on how many there are
        assert filecmp.cmp(folder / name, again / name, shallow=False)
        assert not filecmp.cmp(folder / name, other / name, shallow=False)


def test_a_call_that_was_stopped_is_gone_on_with(tmp_path, caplog):
    out = phantom(tmp_path / "data", num_cases=1, **SMALL)
    first = (out / "labels/h0000.nii.gz").stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        phantom(out, num_cases=2, **SMALL)
    assert "1 of 2 cases are done already" in caplog.text
    assert (out / "labels/h0000.nii.gz").stat().st_mtime_ns == first
    assert [case.id for case in read_cases(out / "cases.json")] == ["h0000", "h0001"]


def test_the_cohort_is_listed_with_files_names_and_noise(folder):
    cases = read_cases(folder / "cases.json")
    assert [case.id for case in cases] == ["h0000", "h0001", "h0002", "h0003"]
    assert all(path.is_file() for case in cases for path in case.files.values())
    assert set(cases[0].files) == {"label", "image", "noisy"}
    assert {"branches", "breaks"} < set(cases[0].notes["noise"])
    assert json.loads((folder / "labels/labels.json").read_text()) == {
        str(id_): name for id_, name in WHOLE_HEART.items()
    }
    assert find_label_maps(folder / "noisy").keys() == {case.id for case in cases}


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "scan.txt").write_text("mine")
    with pytest.raises(MedsegError, match="exists and is no phantom; give a new folder"):
        phantom(tmp_path, num_cases=1, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.txt"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_cases": 0}, "num_cases 0; give 1 or more"),
        ({"seed": -1}, "seed -1; give 0 or more"),
        ({"spacing_mm": 0}, "spacing_mm 0; give 0.2 or more"),
        ({"spacing_mm": float("nan")}, "spacing_mm nan"),
        ({"size": 20}, "no heart fits into 20 voxels of 2 mm; give a size of 32 or more"),
    ],
)
def test_numbers_that_make_no_phantom_are_refused_before_anything_is_written(tmp_path, change, said):
    with pytest.raises(MedsegError, match=said):
        phantom(tmp_path / "data", **SMALL | change)
    assert not (tmp_path / "data").exists()
