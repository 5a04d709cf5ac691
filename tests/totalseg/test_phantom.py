"""Analytic organs: what the files hold is held against the geometry, through nibabel."""

import filecmp
import math
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_totalseg.dataset import discover, masks_of
from medseg_totalseg.labels import CLASS_LISTS, mirror_pairs
from medseg_totalseg.phantom import PHANTOM_LABELS, Structure, anatomy, phantom


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return phantom(tmp_path_factory.mktemp("phantom") / "data", num_cases=3)


def world(image) -> np.ndarray:
    return nib.affines.apply_affine(image.affine, np.indices(image.shape).transpose(1, 2, 3, 0))


def points(step_mm: float = 3.0) -> np.ndarray:
    axis = np.arange(-180, 180, step_mm)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)


def test_names_and_ids_are_official_with_pairs_and_vessels():
    assert PHANTOM_LABELS.items() <= CLASS_LISTS["v2"].items()
    assert 12 <= len(PHANTOM_LABELS) <= 16
    assert len(mirror_pairs(PHANTOM_LABELS)) == 8
    assert {"aorta", "inferior_vena_cava", "portal_vein_and_splenic_vein"} <= set(PHANTOM_LABELS.values())


def test_an_ellipsoid_has_the_volume_of_the_formula():
    ellipsoid = Structure("x", 0, np.array([[3.0, -7, 11]]), np.array([40.0, 25, 60]))
    volume = ellipsoid.contains(points()).sum() * 27
    assert volume == pytest.approx(4 / 3 * math.pi * 40 * 25 * 60, rel=0.005)


def test_a_tube_has_the_volume_of_a_capsule():
    ends = np.array([[11.0, 23, -100], [3, 9, 0], [-4, -3.25, 87.5]])  # on one line
    tube = Structure("x", 0, ends, np.array([20.0]))
    volume = tube.contains(points()).sum() * 27
    length = np.linalg.norm(ends[2] - ends[0])
    assert volume == pytest.approx(math.pi * 20**2 * length + 4 / 3 * math.pi * 20**3, rel=0.005)


def test_masks_are_the_geometry_on_every_grid(folder):
    ids = {name: label for label, name in PHANTOM_LABELS.items()}
    for number, case in enumerate(discover(folder)):
        patient = anatomy(number)
        truth = patient.labels_of(patient.index_at(world(nib.load(case.files["ct"]))))
        for name, path in masks_of(case).items():
            inside = np.asarray(nib.load(path).dataobj)
            assert inside.any()
            assert np.array_equal(inside, truth == ids[name]), (case.id, name)


def test_orientations_and_spacings_differ_between_cases(folder):
    images = [nib.load(case.files["ct"]) for case in discover(folder)]
    assert [nib.aff2axcodes(image.affine) for image in images] == [tuple("RAS"), tuple("LPS"), tuple("LAS")]
    assert len({tuple(image.header.get_zooms()) for image in images}) == 3
    assert all(0.4 * 64**3 < np.prod(image.shape) < 64**3 for image in images)


def test_left_lies_left_of_right_in_the_patient(folder):
    for case in discover(folder):
        x_mm = world(nib.load(case.files["ct"]))[..., 0]
        middle = {n: x_mm[np.asarray(nib.load(path).dataobj) > 0].mean() for n, path in masks_of(case).items()}
        lefts = [name for name in middle if name.endswith("_left")]
        assert len(lefts) == 4
        assert all(middle[name] < 0 < middle[name.replace("left", "right")] for name in lefts)


def test_masks_are_exclusive_and_inside_the_body(folder):
    for case in discover(folder):
        total = sum(np.asarray(nib.load(path).dataobj).astype(int) for path in masks_of(case).values())
        assert total.max() == 1
        hu = np.asarray(nib.load(case.files["ct"]).dataobj)
        assert (hu[total > 0] > -950).mean() > 0.99


def test_intensities_are_those_of_a_ct(folder):
    """Fat -90, lung -820, liver 105 HU before blur; the noise of 15 HU is seen in air, which is cut at -1024."""
    case = discover(folder)[0]
    image, masks = nib.load(case.files["ct"]), masks_of(case)
    hu = np.asarray(image.dataobj)
    assert hu.dtype == np.int16
    median = {name: np.median(hu[np.asarray(nib.load(path).dataobj) > 0]) for name, path in masks.items()}
    assert median["liver"] == pytest.approx(105, abs=12)
    assert median["lung_lower_lobe_left"] == pytest.approx(-820, abs=30)
    assert hu[0, 0].mean() == pytest.approx(-1000, abs=5)
    assert -1024 <= hu.min() < -1000


def test_equal_seeds_give_equal_files_and_other_seeds_other_patients(folder, tmp_path):
    again = phantom(tmp_path / "a", num_cases=1)
    case = "s0000/ct.nii.gz"
    assert filecmp.cmp(folder / case, again / case, shallow=False)
    mask = "s0000/segmentations/liver.nii.gz"
    assert filecmp.cmp(folder / mask, again / mask, shallow=False)
    assert not filecmp.cmp(folder / mask, phantom(tmp_path / "b", num_cases=1, seed=1) / mask, shallow=False)


def test_patients_differ_in_place_and_size():
    livers = [next(s for s in anatomy(n).structures if s.name == "liver") for n in range(4)]
    for one, other in pairwise(livers):
        assert np.linalg.norm(one.points_mm - other.points_mm) > 1
        assert not np.allclose(one.radii_mm, other.radii_mm, rtol=1e-3)


@pytest.mark.parametrize(
    ("num", "splits"), [(1, "train"), (2, "train train"), (3, "train val test"), (8, "train " * 6 + "val test")]
)
def test_splits_leave_something_to_train_on(tmp_path, num, splits, monkeypatch):
    monkeypatch.setattr("medseg_totalseg.phantom._write_case", lambda case, out, seed: {})
    rows = (phantom(tmp_path, num_cases=num) / "meta.csv").read_text().splitlines()
    assert [row.split(";")[5] for row in rows[1:]] == splits.split()


def test_a_begun_folder_is_gone_on_with_and_another_one_refused(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    phantom(folder, num_cases=3)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")} == before
    with pytest.raises(MedsegError, match="seed"):
        phantom(folder, num_cases=3, seed=9)


def test_real_scans_are_not_written_over(tmp_path):
    scan = tmp_path / "s0000" / "ct.nii.gz"
    scan.parent.mkdir()
    scan.write_text("somebody's scan")
    with pytest.raises(MedsegError, match="is no phantom"):
        phantom(tmp_path, num_cases=1)
    assert scan.read_text() == "somebody's scan"


def test_a_phantom_of_nobody_is_refused(tmp_path):
    with pytest.raises(MedsegError, match="at least one case"):
        phantom(tmp_path, num_cases=0)
