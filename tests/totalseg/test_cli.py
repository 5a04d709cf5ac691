"""What a user types: bad input is one line with the fix and exit code 2, and leaves nothing half-written."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from torch import nn
from typer.testing import CliRunner

from medseg_core.checkpoint import Card, save_model
from medseg_core.io import read_volume
from medseg_totalseg.cli import app

TINY = ["--epochs", "1", "--size", "64", "--widths", "4,8", "--structures", "liver", "--device", "cpu"]


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def fails(*arguments):
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "failed: "))]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture
def case(cohort, tmp_path):
    """A case of its own, to spoil."""
    return shutil.copytree(cohort / "s0000", tmp_path / "case")


def spoil_ct(case, voxels=None, affine=None):
    image = nib.load(case / "ct.nii.gz")
    voxels = np.asarray(image.dataobj) if voxels is None else voxels
    nib.save(nib.Nifti1Image(voxels, image.affine if affine is None else affine), case / "ct.nii.gz")


def cut_gzip(case):
    content = (case / "ct.nii.gz").read_bytes()
    (case / "ct.nii.gz").write_bytes(content[: len(content) // 2])


def singular(case):
    image = nib.load(case / "ct.nii.gz")
    header = image.header.copy()
    header.set_sform(np.diag([0.0, 1.0, 1.0, 1.0]))
    header.set_qform(None, code=0)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, header), case / "ct.nii.gz")


def mask_of(case, values):
    file = case / "segmentations" / "liver.nii.gz"
    image = nib.load(file)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj).astype(np.float32) * values, image.affine), file)


def shifted_mask(case):
    file = case / "segmentations" / "liver.nii.gz"
    image = nib.load(file)
    affine = image.affine.copy()
    affine[0, 3] += 50
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), file)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (cut_gzip, "ct.nii.gz"),
        (lambda case: (case / "ct.nii.gz").write_bytes(b"no scan"), "ct.nii.gz"),
        (lambda case: (case / "ct.nii.gz").write_bytes(b""), "ct.nii.gz"),
        (lambda case: spoil_ct(case, voxels=np.zeros((9, 9, 9, 2), np.int16)), "ct.nii.gz"),
        (lambda case: spoil_ct(case, voxels=np.zeros((9, 9, 9), np.int16)), "shape"),
        (lambda case: spoil_ct(case, voxels=np.full(nib.load(case / "ct.nii.gz").shape, np.nan, np.float32)), "NaN"),
        (singular, "ct.nii.gz"),
        (lambda case: mask_of(case, 0.5), "liver.nii.gz"),
        (lambda case: mask_of(case, -1), "liver.nii.gz"),
        (shifted_mask, "mm"),
    ],
)
def test_a_bad_file_is_one_line_and_leaves_no_case(case, tmp_path, spoil, named):
    spoil(case)
    line = fails("prepare", case, "--out", tmp_path / "cache")
    assert named in line
    assert not (tmp_path / "cache" / "case").exists()


def test_check_tells_the_same_before_any_work(case, tmp_path):
    cut_gzip(case)
    result = call("check", case, "--json")
    findings = json.loads(result.stdout)
    assert result.exit_code == 1
    assert [f["case"] for f in findings if f["severity"] == "error"] == ["case"]


def test_an_unknown_structure_file_asks_for_a_class_list(case, tmp_path):
    (case / "segmentations" / "liver.nii.gz").rename(case / "segmentations" / "livr.nii.gz")
    line = fails("prepare", case, "--out", tmp_path / "cache")
    assert "livr (nearest: liver)" in line
    assert "--labels folder" in line


def test_an_unknown_structure_name_is_met_with_the_nearest(cohort, tmp_path):
    assert "did you mean 'liver'?" in fails("prepare", cohort, "--out", tmp_path / "c", "--structures", "livre")


def test_an_empty_folder_says_what_belongs_there(tmp_path):
    assert "ct.nii.gz" in fails("prepare", tmp_path, "--out", tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_checkpoint_of_another_package_is_named(case, tmp_path):
    save_model(tmp_path / "w.safetensors", nn.Linear(1, 1), Card(package="medseg-near", version="0", model="field"))
    assert "medseg-near" in fails("predict", case, "--model", tmp_path / "w.safetensors", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_size_that_cannot_be_halved_names_one_that_can(cohort, tmp_path):
    line = fails("train", cohort, "--out", tmp_path / "run", *TINY, "--size", "65")
    assert "try 64" in line
    assert not (tmp_path / "run").exists()


def test_an_output_that_cannot_be_written_is_one_line(cohort, tmp_path):
    (tmp_path / "file").write_text("in the way")
    fails("train", cohort, "--out", tmp_path / "file" / "run", *TINY)
    fails("prepare", cohort, "--out", tmp_path / "file" / "cache")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_with_a_bad_scan_ends_with_2_and_a_list(cohort, run, tmp_path):
    data = shutil.copytree(cohort, tmp_path / "data")
    cut_gzip(data / "s0002")
    line = fails("predict", data, "--model", run, "--out", tmp_path / "out")
    assert line.startswith("failed: s0002: ")
    assert sorted(p.name for p in (tmp_path / "out").glob("*.nii.gz")) == [f"s000{i}.nii.gz" for i in (0, 1, 3)]


def test_evaluate_needs_two_sides(tmp_path):
    assert "PRED and REF" in fails("evaluate", tmp_path, "--out", tmp_path / "out")


def test_train_from_scans_prepares_them_and_goes_on_when_asked(cohort, tmp_path):
    assert call("train", cohort, "--out", tmp_path / "run", *TINY).exit_code == 0
    assert "--resume" in fails("train", cohort, "--out", tmp_path / "run", *TINY)
    result = call("train", cohort, "--out", tmp_path / "run", *TINY, "--epochs", "2", "--resume", "--json")
    assert json.loads(result.stdout)["epochs"] == 2
    assert (tmp_path / "run" / "cache" / "dataset.json").is_file()


def test_the_demo_ends_in_a_report_and_can_be_called_again(tmp_path):
    result = call("demo", "--out", tmp_path / "demo", "--quick")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "demo" / "report.html").is_file()
    assert "dice_of_predicting_nothing: 0" in result.stdout
    again = call("demo", "--out", tmp_path / "demo", "--quick")
    assert again.exit_code == 0, again.output


def test_real_104_names_with_float64_masks_are_taken_as_they_are(data, tmp_path):
    result = call("prepare", data / "ct_multiorgan" / "ts_s0001", "--out", tmp_path / "cache", "--json")
    facts = json.loads(result.stdout)
    assert (facts["structures"], facts["done"], facts["failed"]) == (104, 1, 0)
    label = np.load(tmp_path / "cache" / "ts_s0001" / "label.npy")
    released = read_volume(data / "ct_multiorgan" / "ts_s0001" / "seg_multilabel_v1_104.nii.gz").voxels
    np.testing.assert_array_equal(label, released)  # already RAS, and one case is its own median spacing
