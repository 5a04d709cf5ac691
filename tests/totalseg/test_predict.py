import shutil

import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.io import read_grid, read_volume, write_volume
from medseg_core.volume import Volume, resample
from medseg_totalseg.predict import Predictor, find_images, predict_files
from medseg_totalseg.settings import PredictConfig

CPU = PredictConfig(device="cpu", precision="fp32")


@pytest.fixture
def scan(cohort):
    return read_volume(sorted(cohort.glob("*/ct.nii.gz"))[0])


def test_the_mask_lies_on_the_very_grid_of_the_scan(run, cohort, tmp_path):
    predict_files(cohort, [run], tmp_path / "out", CPU)
    for ct in sorted(cohort.glob("*/ct.nii.gz")):
        grid, mask = read_grid(ct), read_volume(tmp_path / "out" / f"{ct.parent.name}.nii.gz")
        assert mask.grid.shape == grid.shape
        np.testing.assert_allclose(mask.affine, grid.affine, atol=1e-5)
        assert mask.voxels.dtype == np.uint8


@pytest.mark.parametrize("orientation", ["LPS", "ASR", "SLP"])
def test_another_orientation_of_the_same_scan_gets_the_same_mask(run, scan, orientation):
    predictor = Predictor(run, config=CPU)
    turned = resample(scan, scan.grid.oriented(orientation))
    mask = predictor.predict(turned)
    expected = resample(predictor.predict(scan), turned.grid, how="label")
    np.testing.assert_array_equal(mask.voxels, expected.voxels)


def test_array_and_affine_in_mask_out(run, scan):
    predictor = Predictor(run, config=CPU)
    np.testing.assert_array_equal(predictor(scan.voxels, scan.affine), predictor.predict(scan).voxels)


def test_masks_are_the_multilabel_file_taken_apart(run, cohort, tmp_path):
    case = sorted(cohort.glob("*/ct.nii.gz"))[0]
    predict_files(case, [run], tmp_path / "one", CPU)
    predict_files(case, [run], tmp_path / "many", PredictConfig(device="cpu", precision="fp32", format="masks"))
    labels = Predictor(run, config=CPU).labels
    whole = read_volume(tmp_path / "one" / f"{case.parent.name}.nii.gz").voxels
    for number, name in labels.items():
        one = read_volume(tmp_path / "many" / case.parent.name / f"{name}.nii.gz").voxels
        np.testing.assert_array_equal(one, whole == number)


def test_label_files_for_people_lie_beside_the_masks(run, cohort, tmp_path):
    predict_files(cohort / "s0000", [run], tmp_path / "out", CPU)
    assert {"labels.json", "labels_itksnap.txt", "labels_slicer.ctbl"} <= {p.name for p in (tmp_path / "out").iterdir()}


def test_only_the_chosen_structures_are_written(run, scan):
    everything = Predictor(run, config=CPU).predict(scan).voxels
    bones = Predictor(run, config=PredictConfig(device="cpu", precision="fp32", structures=("bones",)))
    found = bones.predict(scan).voxels
    assert set(np.unique(found)) - {0} <= set(bones.labels)
    np.testing.assert_array_equal(found, np.where(np.isin(everything, list(bones.labels)), everything, 0))


def test_an_ensemble_of_equal_runs_is_the_run(run, scan):
    alone, twice = Predictor(run, config=CPU), Predictor(run, run, config=CPU)
    differ = alone.predict(scan).voxels != twice.predict(scan).voxels
    assert differ.mean() < 1e-4  # two logits that are all but equal may tie once they are log-probabilities


def test_uncertainty_is_between_0_and_1_on_the_scan_s_grid(run, cohort, tmp_path):
    config = PredictConfig(device="cpu", precision="fp32", uncertainty=True)
    predict_files(cohort / "s0000", [run], tmp_path / "out", config)
    predict_files(cohort / "s0000", [run], tmp_path / "plain", CPU)
    doubt = read_volume(tmp_path / "out" / "uncertainty" / "s0000.nii.gz")
    assert doubt.grid.differs(read_grid(cohort / "s0000" / "ct.nii.gz")) is None
    assert 0 <= doubt.voxels.min() < doubt.voxels.max() <= 1.001
    masks = [read_volume(tmp_path / name / "s0000.nii.gz").voxels for name in ("out", "plain")]
    np.testing.assert_array_equal(*masks)


def test_finished_cases_are_skipped_and_a_bad_one_costs_only_itself(run, cohort, tmp_path):
    data = shutil.copytree(cohort, tmp_path / "data")
    (data / "s0001" / "ct.nii.gz").write_bytes(b"junk")
    first = predict_files(data, [run], tmp_path / "out", CPU)
    assert (len(first.done), list(first.failed)) == (3, ["s0001"])
    assert not (tmp_path / "out" / "s0001.nii.gz").exists()
    shutil.copy(cohort / "s0001" / "ct.nii.gz", data / "s0001" / "ct.nii.gz")
    again = predict_files(data, [run], tmp_path / "out", CPU)
    assert (again.done, len(again.skipped)) == (("s0001",), 3)


def test_another_model_does_not_go_on_in_the_same_folder(run, cohort, tmp_path):
    predict_files(cohort / "s0000", [run], tmp_path / "out", CPU)
    with pytest.raises(MedsegError, match="other settings"):
        predict_files(cohort / "s0000", [run], tmp_path / "out", PredictConfig(device="cpu", uncertainty=True))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_scan_with_voxels_that_are_no_numbers_is_refused(run, scan, bad):
    voxels = scan.voxels.astype(np.float32)
    voxels[3, 3, 3] = bad
    with pytest.raises(MedsegError, match="NaN or infinite"):
        Predictor(run, config=CPU).predict(Volume(voxels, scan.affine))


def test_a_4d_file_names_its_shape(run, tmp_path):
    import nibabel

    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 3), np.int16), np.eye(4)), tmp_path / "cine.nii.gz")
    outcome = predict_files(tmp_path / "cine.nii.gz", [run], tmp_path / "out", CPU)
    assert "(4, 4, 4, 3)" in outcome.failed["cine"]


def test_a_folder_of_plain_files_is_predicted_by_file_name(run, scan, tmp_path):
    write_volume(scan, tmp_path / "scans" / "first.nii.gz")
    assert [case.id for case in find_images(tmp_path / "scans")] == ["first"]


def test_an_empty_folder_says_what_belongs_there(tmp_path):
    with pytest.raises(MedsegError, match="holds no scan"):
        find_images(tmp_path)


def test_scans_are_never_written_over(run, scan, tmp_path):
    write_volume(scan, tmp_path / "scans" / "first.nii.gz")
    before = (tmp_path / "scans" / "first.nii.gz").read_bytes()
    for overwrite in (False, True):
        with pytest.raises(MedsegError, match="holds the scans themselves"):
            predict_files(tmp_path / "scans", [run], tmp_path / "scans", CPU, overwrite=overwrite)
    assert (tmp_path / "scans" / "first.nii.gz").read_bytes() == before


def test_a_folder_with_something_else_is_left_alone(run, cohort, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "s0000.nii.gz").write_text("drawn by hand")
    with pytest.raises(MedsegError, match="--overwrite"):
        predict_files(cohort / "s0000", [run], tmp_path / "out", CPU)
    assert (tmp_path / "out" / "s0000.nii.gz").read_text() == "drawn by hand"
