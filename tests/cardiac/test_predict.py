"""What `predict` writes: on which grid, from which input, and what it refuses."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_fill_holes
from torch import nn

from medseg_cardiac import predictor as module
from medseg_cardiac.dataset import discover
from medseg_cardiac.predict import find_patients, predict_files
from medseg_cardiac.predictor import Predictor
from medseg_cardiac.settings import PredictConfig
from medseg_cardiac.weights import init_weights
from medseg_core.checkpoint import Card, save_model
from medseg_core.cohort import read_journal
from medseg_core.errors import MedsegError

ALL = PredictConfig(flow=True, strain=True, contours=True, refine=0, device="cpu", precision="fp32")
MASK = PredictConfig(refine=0, device="cpu", precision="fp32")
TURNED = np.array([[0, -1.2, 0.4, 5], [1.1, 0, 0, -7], [0, 0.4, 9.0, 30], [0, 0, 0, 1.0]])


def voxels(file):
    return np.asarray(nib.load(file).dataobj)


@pytest.fixture(scope="module")
def predicted(cohort, run, tmp_path_factory):
    """All that can be asked for, of the whole cohort."""
    out = tmp_path_factory.mktemp("predicted")
    return out, predict_files(discover(cohort)[:2], run, out, ALL)


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor(run, config=MASK)


@pytest.fixture
def patient(cohort, tmp_path):
    """One patient of its own, to spoil."""
    for folder in ("images/cmr", "labels/cmr_Myo_mask"):
        shutil.copytree(cohort / folder / "p0000", tmp_path / "data" / folder / "p0000")
    return tmp_path / "data"


def stacked(cohort, folder, *, axis=2, affine=TURNED, crop=slice(None)):
    """The patient's cine as one (H, W, S, T) file, and the myocardium as a volume with its slices along `axis`."""
    cines = [voxels(f)[crop, :, 0] for f in sorted((cohort / "images/cmr/p0000").iterdir())]
    myos = [voxels(f)[crop, :, 0] for f in sorted((cohort / "labels/cmr_Myo_mask/p0000").iterdir())]
    order = [2, 0, 1, 3] if axis == 0 else [0, 1, 2, 3]
    nib.save(nib.Nifti1Image(np.stack(cines, 2), affine), folder / "cine.nii.gz")
    nib.save(nib.Nifti1Image(np.stack(myos, axis).astype(np.uint8), affine[:, order]), folder / "myo.nii.gz")
    return folder / "cine.nii.gz", folder / "myo.nii.gz"


def test_everything_asked_for_lies_there_and_nothing_failed(predicted):
    out, outcome = predicted
    assert (outcome.done, outcome.failed) == (("p0000", "p0001"), {})
    for case in outcome.done:
        assert json.loads((out / "infarct" / f"{case}.json").read_text())["case"] == case
        strain = json.loads((out / "strain" / f"{case}.json").read_text())
        assert len(strain["radial"]) == 6
        for name in ("slice_00", "slice_01"):
            assert (out / "flow" / case / f"{name}.mha").is_file()
            assert (out / "contours" / case / f"{name}.gif").is_file()
        assert all((out / kind / f"{case}.png").is_file() for kind in ("infarct", "strain", "contours"))


def test_strain_is_nothing_in_the_frame_that_motion_starts_from(predicted):
    out, _ = predicted
    strain = json.loads((out / "strain" / "p0000.json").read_text())
    assert strain["radial"][strain["ed"]] == strain["circumferential"][strain["ed"]] == 0


def test_masks_lie_inside_the_myocardium_as_it_is_drawn(predicted, cohort):
    out, outcome = predicted
    found = 0
    for case in outcome.done:
        for file in sorted((out / case).iterdir()):
            infarct, wall = voxels(file), voxels(cohort / "labels/cmr_Myo_mask" / case / file.name)
            assert not (infarct[wall == 0]).any()
            found += int(infarct.sum())
    assert found


@pytest.mark.parametrize(("axis", "crop"), [(0, slice(None)), (2, slice(4, 45))])
def test_masks_lie_on_the_very_grid_of_the_myocardium_file(cohort, run, tmp_path, axis, crop):
    cine, myo = stacked(cohort, tmp_path, axis=axis, crop=crop)
    predict_files([find_patients(None, cine, myo)[0]], run, tmp_path / "out", PredictConfig(contours=True, refine=0))
    drawn = nib.load(myo)
    for file in (tmp_path / "out" / "cine.nii.gz", tmp_path / "out" / "lv_es" / "cine.nii.gz"):
        mask = nib.load(file)
        assert mask.shape == drawn.shape
        np.testing.assert_allclose(mask.affine, drawn.affine, atol=1e-5)
        assert mask.get_data_dtype() == np.uint8


def test_a_stack_and_a_file_per_slice_give_one_answer(cohort, run, predicted, tmp_path):
    out, _ = predicted
    affine = nib.load(cohort / "images/cmr/p0000/slice_00.nii.gz").affine
    cine, myo = stacked(cohort, tmp_path, axis=0, affine=affine)
    given = PredictConfig(ed=0, es=discover(cohort)[0].planes[0].es, device="cpu", precision="fp32")
    predict_files(find_patients(None, cine, myo), run, tmp_path / "out", given)
    stack = voxels(tmp_path / "out" / "cine.nii.gz")
    for k in range(2):
        np.testing.assert_array_equal(stack[k], voxels(out / "p0000" / f"slice_0{k}.nii.gz")[:, :, 0])


@pytest.mark.parametrize("number", [0, 1])
def test_one_slice_of_a_stack_leaves_the_others_empty(cohort, run, tmp_path, number):
    cine, myo = stacked(cohort, tmp_path)
    predict_files(
        find_patients(None, cine, myo, slice_index=number), run, tmp_path / "out", PredictConfig(threshold=0.0)
    )
    mask = voxels(tmp_path / "out" / "cine.nii.gz")
    np.testing.assert_array_equal(mask.any((0, 1)), np.arange(2) == number)
    np.testing.assert_array_equal(mask[:, :, number], voxels(myo)[:, :, number])  # all that may be infarct


def test_the_pool_at_es_moves_by_what_the_net_says_in_pixels_of_the_file(patient, motion, tmp_path, monkeypatch):
    """Where pixels of the file are half as large, two pixels of the window are four of the file, along one axis."""
    pixel_mm = Predictor(motion).pixel_mm
    for file in sorted(patient.rglob("*.nii.gz")):
        nib.save(nib.Nifti1Image(voxels(file), np.diag([pixel_mm / 2, pixel_mm / 2, 10, 1])), file)

    def two_along(_, frames, ed, **how):
        flows = np.zeros((len(frames), 2, *frames.shape[1:]), np.float32)
        flows[np.arange(len(frames)) != ed, 0] = 2.0
        return flows

    monkeypatch.setattr(module, "cycle", two_along)
    predict_files(discover(patient), motion, tmp_path / "out", PredictConfig(contours=True, refine=0, device="cpu"))
    for file in sorted((tmp_path / "out/lv_es/p0000").iterdir()):
        wall = voxels(patient / "labels/cmr_Myo_mask/p0000" / file.name)[:, :, 0] > 0
        pool = binary_fill_holes(wall) & ~wall
        np.testing.assert_array_equal(voxels(file)[:, :, 0], np.roll(pool, 4, axis=0))


def test_a_motion_net_finds_no_infarct_and_writes_what_it_can(patient, motion, tmp_path):
    predict_files(discover(patient), motion, tmp_path / "out", MASK)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["contours", "journal.jsonl", "lv_es", "strain"]


def test_what_is_done_is_skipped_when_called_again(predicted, cohort, run):
    out, _ = predicted
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.nii.gz")}
    again = predict_files(discover(cohort)[:2], run, out, ALL)
    assert (again.done, again.skipped) == ((), ("p0000", "p0001"))
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.nii.gz")} == before


def test_another_slice_of_the_same_name_is_never_taken_for_done(cohort, run, tmp_path):
    cine, myo = stacked(cohort, tmp_path)
    predict_files(find_patients(None, cine, myo, slice_index=0), run, tmp_path / "out", MASK)
    with pytest.raises(MedsegError, match="holds cine, predicted from other files or another slice"):
        predict_files(find_patients(None, cine, myo, slice_index=1), run, tmp_path / "out", MASK)


def spoil(patient, which, change):
    file = patient / which / "p0000" / "slice_01.nii.gz"
    image = nib.load(file)
    nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), file)


CINE, MYO = "images/cmr", "labels/cmr_Myo_mask"
BAD = {
    "no myocardium": (lambda p: (p / MYO / "p0000" / "slice_01.nii.gz").unlink(), "no myocardium mask"),
    "another grid": (lambda p: spoil(p, MYO, lambda v: v[1:]), "another grid than the 48 x 48"),
    "empty": (lambda p: spoil(p, MYO, np.zeros_like), "myocardium of slice_01 is empty"),
    "one frame": (lambda p: spoil(p, CINE, lambda v: v[..., :1]), "1 frame"),
    "nan": (lambda p: spoil(p, CINE, lambda v: np.where(v == v.max(), np.nan, v).astype("f4")), "no numbers"),
    "time last": (lambda p: spoil(p, CINE, lambda v: v[:, :, 0]), "--axes HWT"),
    "flat": (lambda p: spoil(p, CINE, np.ones_like), "equal, so nothing moves"),
    "no file": (lambda p: (p / CINE / "p0000" / "slice_01.nii.gz").write_bytes(b"x"), "not a NIfTI"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_slice_is_named_and_costs_only_itself(patient, predictor, name):
    change, told = BAD[name]
    change(patient)
    found, (line,) = predictor.patient(discover(patient)[0], track=False)
    assert [one.seen.plane.name for one in found] == ["slice_00"]
    assert line.startswith("slice_01: ")
    assert told in line


def test_a_slice_that_is_left_out_is_in_the_journal_and_has_no_mask(patient, run, tmp_path):
    BAD["empty"][0](patient)
    assert predict_files(discover(patient), run, tmp_path / "out", MASK).done == ("p0000",)
    assert read_journal(tmp_path / "out")["p0000"]["left_out"][0].startswith("slice_01: ")
    assert [file.name for file in (tmp_path / "out" / "p0000").iterdir()] == ["slice_00.nii.gz"]


def test_predicted_again_no_mask_is_left_of_a_slice_that_is_not_used_any_more(patient, run, tmp_path):
    out, config = tmp_path / "out", MASK
    predict_files(discover(patient), run, out, config)
    before = {file.name for file in (out / "p0000").iterdir()}
    (patient / "labels/cmr_Myo_mask/p0000/slice_01.nii.gz").unlink()
    predict_files(discover(patient), run, out, config, overwrite=True)
    assert before - {file.name for file in (out / "p0000").iterdir()} == {"slice_01.nii.gz"}


def test_a_slice_whose_cine_is_missing_is_named(patient, predictor, caplog):
    (patient / CINE / "p0000" / "slice_01.nii.gz").unlink()
    predictor.patient(discover(patient)[0], track=False)
    assert "holds slice_01, which the cine has not" in caplog.text


def test_a_patient_of_whom_nothing_can_be_used_fails_in_one_line(patient, run, tmp_path):
    shutil.rmtree(patient / MYO)
    outcome = predict_files(discover(patient), run, tmp_path / "out", MASK)
    assert outcome.failed == {
        "p0000": "no slice of p0000 can be used; first slice_00: slice_00 has no myocardium mask; draw it, or leave "
        "the slice out"
    }
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["journal.jsonl"]


def test_weights_of_another_kind_are_named(patient, registration, tmp_path):
    save_model(
        tmp_path / "w.safetensors", nn.Linear(1, 1), Card(package="medseg-totalseg", version="0", model="unet2d")
    )
    for wrong, told in ((registration, "medseg-cardiac, registration"), (tmp_path / "w.safetensors", "unet2d")):
        with pytest.raises(MedsegError, match=told):
            predict_files(discover(patient), wrong, tmp_path / "out", MASK)
    assert not (tmp_path / "out").exists()


def test_a_run_without_weights_says_what_to_give(patient, run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("cache", "best.safetensors"))
    with pytest.raises(MedsegError, match="no weights at"):
        predict_files(discover(patient), tmp_path / "run", tmp_path / "out", MASK)


def test_untrained_weights_are_refused(patient, tmp_path, monkeypatch):
    monkeypatch.setattr("medseg_cardiac.weights.NETS", {"motion": {"passes": 2}})
    init_weights(tmp_path / "init")
    with pytest.raises(MedsegError, match="as they are before any training; train first"):
        predict_files(discover(patient), tmp_path / "init" / "motion.safetensors", tmp_path / "out", MASK)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("inside", ["", "images/cmr", "labels/cmr_Myo_mask/new"])
def test_nothing_is_written_over_or_among_the_data(patient, run, inside):
    before = sorted(patient.rglob("*"))
    with pytest.raises(MedsegError, match="is where the data lies that is read"):
        predict_files(discover(patient), run, patient / inside, MASK, overwrite=True)
    assert sorted(patient.rglob("*")) == before


def test_a_folder_that_holds_something_else_is_left_alone(patient, run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(MedsegError, match="not begun by predict"):
        predict_files(discover(patient), run, tmp_path / "out", MASK)


def test_slices_are_counted_from_0_and_only_of_files(cohort, tmp_path):
    cine, myo = stacked(cohort, tmp_path)
    with pytest.raises(MedsegError, match=r"--slice counts from 0 to 1|none of number 2"):
        find_patients(None, cine, myo, slice_index=2)
    with pytest.raises(MedsegError, match="--slice goes with --cine"):
        find_patients(cohort, None, None, slice_index=0)
    for data, file, mask in ((None, None, None), (None, cine, None), (cohort, cine, myo)):
        with pytest.raises(MedsegError, match="predict takes a data folder, or --cine FILE with --myo FILE"):
            find_patients(data, file, mask)


def test_real_cine_without_lge_gives_motion_on_the_very_grid_of_its_masks(data, motion, tmp_path):
    real = data / "cmr_cine" / "SCD0000101"
    outcome = predict_files(discover(real), motion, tmp_path / "out", ALL)
    assert outcome.done == ("SCD0000101",)
    drawn, moved = (
        nib.load(file)
        for file in (real / "derived/labels/cmr_Myo_mask/SCD0000101.nii.gz", tmp_path / "out/lv_es/SCD0000101.nii.gz")
    )
    assert (moved.shape, moved.shape[0]) == (drawn.shape, 3)  # slices first
    np.testing.assert_array_equal(moved.affine, drawn.affine)
    strain = json.loads((tmp_path / "out/strain/SCD0000101.json").read_text())
    assert (len(strain["radial"]), strain["es"]) == (20, 7)  # ES as the readers of these scans chose it
    assert len(list((tmp_path / "out").rglob("*.mha"))) == 3


def test_an_infarct_net_works_on_real_cine_of_another_pixel_size(data, run, tmp_path):
    real = data / "cmr_cine" / "SCD0000301"
    predict_files(discover(real), run, tmp_path / "out", MASK)
    mask = voxels(tmp_path / "out/SCD0000301.nii.gz")
    wall = voxels(real / "derived/labels/cmr_Myo_mask/SCD0000301.nii.gz")
    assert mask.shape == wall.shape
    assert not mask[wall == 0].any()
