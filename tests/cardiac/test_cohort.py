import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from medseg_cardiac.cohort import divided, normalised, pack, see, with_phases
from medseg_cardiac.dataset import Place, Plane, discover
from medseg_cardiac.settings import DataConfig
from medseg_core.errors import MedsegError

HOW = {"pixel_mm": 1.5, "size": 48, "intensity": {"percentiles": [1, 99]}}


def beating(*, smallest, num_frames=8, size=40):
    """A ring of 1.5 mm pixels whose pool shrinks up to one frame: (T, H, W) and its myocardium in frame 0."""
    h, w = np.indices((size, size)) - size // 2
    away = np.hypot(h, w)
    radii = 8 + 2 * np.cos(2 * np.pi * (np.arange(num_frames) - smallest) / num_frames + np.pi)
    radii[0] = 10.5
    frames = np.stack([np.where(away < r, 500, np.where(away < 14, 150, 30)) for r in radii]).astype(np.int16)
    return frames, (away >= 10.5) & (away < 14)


def written(folder, name, frames, myo, *, pixel_mm=1.5):
    affine = np.diag([pixel_mm, pixel_mm, 8.0, 1.0])
    nib.save(nib.Nifti1Image(np.moveaxis(frames, 0, -1)[:, :, None], affine), folder / f"{name}_cine.nii.gz")
    nib.save(nib.Nifti1Image(myo.astype(np.uint8)[:, :, None], affine), folder / f"{name}_myo.nii.gz")
    places = {"cine": Place(folder / f"{name}_cine.nii.gz"), "myo": Place(folder / f"{name}_myo.nii.gz")}
    return Plane("p", name, 0, places)


@pytest.fixture
def spoilt(cohort, tmp_path):
    """A copy of the cohort, and one of its slices to spoil."""
    data = shutil.copytree(cohort, tmp_path / "data", ignore=shutil.ignore_patterns("truth"))
    return data, data / "images" / "cmr" / "p0001" / "slice_00.nii.gz"


def test_grey_values_are_cut_at_percentiles_of_the_whole_sequence():
    whole = np.arange(101.0)
    whole[100] = 1e6  # an outlier moves nothing
    got = normalised(np.array([0.0, 10.0, 50.0, 90.0, 1e6]), whole, {"percentiles": (10, 90)})
    np.testing.assert_allclose(got, [0, 0, 0.5, 1, 1], atol=1e-6)


def test_the_window_lies_about_the_myocardium_wherever_that_is(tmp_path):
    frames, myo = beating(smallest=4)
    frames, myo = np.roll(frames, (4, -5), (1, 2)), np.roll(myo, (4, -5), (0, 1))
    seen = see(written(tmp_path, "a", frames, myo), **HOW)
    middle = np.argwhere(seen.masks["myo"]).mean(0)
    np.testing.assert_allclose(middle, 23.5, atol=0.51)  # the middle of 48 pixels
    assert seen.frames.shape == (8, 48, 48)
    assert seen.masks["myo"].sum() == myo.sum()  # pixels of the same size are copied, not blurred


def test_slices_of_one_patient_share_the_phases_that_most_blood_shows(tmp_path):
    most = [written(tmp_path, name, *beating(smallest=3)) for name in "abcd"]
    odd = written(tmp_path, "e", *beating(smallest=5))
    assert see(odd, **HOW).es == 5
    assert [(p.ed, p.es) for p in with_phases([*most, odd])] == [(0, 3)] * 5


def test_phases_of_a_case_list_stay(cohort):
    planes = discover(cohort)[0].planes
    assert with_phases(planes) == list(planes)
    assert {plane.ed for plane in planes} == {0}


@pytest.mark.parametrize(("ed", "es"), [(2, 2), (0, 8)])
def test_phases_that_cannot_be_are_refused(tmp_path, ed, es):
    plane = written(tmp_path, "a", *beating(smallest=4))
    with pytest.raises(MedsegError, match=r"nothing moves|no frame 8; they are counted from 0 to 7"):
        see(Plane("p", "a", 0, plane.places, ed=ed, es=es), **HOW)


def test_a_wall_that_vanishes_on_coarse_pixels_is_named(tmp_path):
    frames, myo = beating(smallest=4)
    only = np.zeros_like(myo)
    only[20, 20] = True
    with pytest.raises(MedsegError, match="1 pixels of myocardium in a vanish on pixels of 6 mm"):
        see(written(tmp_path, "a", frames, only), **{**HOW, "pixel_mm": 6.0})


def junk(file):
    file.write_bytes(b"junk")


def no_number(file):
    image = nib.load(file)
    voxels = np.asarray(image.dataobj).astype(np.float32)
    voxels[3, 3] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine), file)


def one_frame(file):
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[..., :1], image.affine), file)


@pytest.mark.parametrize(
    ("spoil", "told"), [(junk, "not a NIfTI"), (no_number, "no numbers"), (one_frame, "has no (end systole|frame)")]
)
def test_a_bad_slice_costs_only_itself(spoilt, tmp_path, caplog, spoil, told):
    data, file = spoilt
    spoil(file)
    slices = pack(data, tmp_path / "cache", DataConfig(size=48))
    assert len(slices) == 5
    assert ("p0001", "slice_00") not in {(one.case, one.name) for one in slices}
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("left out: p0001 slice_00")]
    assert re.search(told, line)


def test_a_bad_lge_leaves_the_cine_to_motion(spoilt, tmp_path):
    data, file = spoilt
    junk(data / "images" / "lge" / "p0001" / file.name)
    slices = pack(data, tmp_path / "cache", DataConfig(size=48), needs=("myo",))
    assert len(slices) == 6
    assert [one.has("lge") for one in slices] == [True, True, False, True, True, True]


def test_where_nothing_can_be_used_the_first_reason_is_told(spoilt, tmp_path):
    data, _ = spoilt
    for file in (data / "images" / "cmr").rglob("*.nii.gz"):
        one_frame(file)
    with pytest.raises(MedsegError, match=r"no slice of .* can be used; first p0000: .*slice_00"):
        pack(data, tmp_path / "cache", DataConfig(size=48))


def test_what_is_needed_and_nowhere_there_is_named(spoilt, tmp_path):
    data, _ = spoilt
    shutil.rmtree(data / "images" / "lge")
    with pytest.raises(MedsegError, match=r"no slice of .* has cine and lge and myo"):
        pack(data, tmp_path / "cache", DataConfig(size=48), needs=("lge", "myo"))


def test_a_split_file_that_lacks_a_patient_is_one_line(cohort, tmp_path):
    slices = pack(cohort, tmp_path / "cache", DataConfig(size=48))
    text = json.dumps({"seed": 0, "unit": "group", "train": ["p0000"], "val": [], "test": ["p0002"]})
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(MedsegError, match="does not say where case 'p0001' belongs"):
        divided(slices, tmp_path / "split.json", DataConfig())


def test_a_packed_cohort_is_gone_on_with(cohort, tmp_path, caplog):
    first = pack(cohort, tmp_path / "cache", DataConfig(size=48))
    with caplog.at_level("INFO"):
        again = pack(cohort, tmp_path / "cache", DataConfig(size=48))
    assert "3 of 3 cases are done already" in caplog.text
    np.testing.assert_array_equal(first[0].frames, again[0].frames)
