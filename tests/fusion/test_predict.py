"""Prediction: on the grid of the CT, by the threshold of the card, with what is missing, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image
from tests.fusion.conftest import CT_AFFINE, PET_AFFINE, planes
from torch import nn
from typer.testing import CliRunner

from medseg_core.checkpoint import Card
from medseg_core.errors import MedsegError
from medseg_core.io import read_picture, read_volume
from medseg_fusion import predict as module
from medseg_fusion.cli import app
from medseg_fusion.predict import Predictor, find_inputs, predict_files
from medseg_fusion.settings import PredictConfig

CONFIG = PredictConfig(device="cpu")


class Hot(nn.Module):
    """Tumour where PET is, as probability; without PET where CT is."""

    def __init__(self):
        super().__init__()
        self.none = nn.Parameter(torch.zeros(1))

    def forward(self, image, present):
        seen = torch.where(present[:, 1:, None, None] > 0, image[:, 1:], image[:, :1])
        return torch.logit(seen.clamp(1e-4, 1 - 1e-4))


@pytest.fixture
def hot(monkeypatch, tmp_path):
    """A run whose network is `Hot`, in HU and SUV unless told otherwise."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.safetensors").write_bytes(b"weights")

    def run(unit="HU and SUV", missing=(), threshold=0.4):
        ends = [0.0, 255.0] if unit == "8 bits" else None
        intensity = {"unit": unit, "ct": ends or [-160.0, 240.0], "pet": ends or [0.0, 10.0], "missing": list(missing)}
        chosen, grid = {"threshold": threshold}, {"spacing": [2.0, 2.0, 4.0]}
        card = Card(package="medseg-fusion", version="0", model="early", intensity=intensity, chosen=chosen, grid=grid)
        monkeypatch.setattr(module, "load_model", lambda *_: (Hot().eval(), card))
        return tmp_path / "run"

    return run


def test_a_mask_lies_on_the_grid_of_the_ct_where_pet_is_hot(write, hot, tmp_path):
    home = write() / "p1"
    predict_files(home / "CT_image.nii.gz", home / "PET_image.nii.gz", hot(), tmp_path / "out", CONFIG)
    found = read_volume(tmp_path / "out" / "p1.nii.gz")
    np.testing.assert_array_equal(found.affine, CT_AFFINE)
    assert found.voxels.shape == (16, 20, 4)
    # PET voxels 2 to 4 and 3 to 5 of 4 mm are CT voxels 4 to 9 and 6 to 11 of 2 mm, but for half a voxel on each side
    assert found.voxels[5:8, 7:10, 1:3].all()
    assert not found.voxels[:3].any()
    assert not found.voxels[..., [0, 3]].any()


@pytest.mark.parametrize(("given", "expected"), [(None, 0.4), (0.7, 0.7)])
def test_the_threshold_is_the_cards_unless_one_is_given(hot, given, expected):
    assert Predictor(hot(), PredictConfig(threshold=given, device="cpu")).threshold == expected


def test_probabilities_are_kept_where_that_is_asked(write, hot, tmp_path):
    home, config = write() / "p1", PredictConfig(save_prob=True, device="cpu")
    predict_files(home / "CT_image.nii.gz", home / "PET_image.nii.gz", hot(), tmp_path / "out", config)
    probs = read_volume(tmp_path / "out" / "probs" / "p1.nii.gz").voxels
    assert 0.6 < probs.max() < 0.7  # SUV 6 to 7 of 10
    mask = read_volume(tmp_path / "out" / "p1.nii.gz").voxels
    np.testing.assert_array_equal(mask, probs >= 0.4)


def test_pet_alone_is_predicted_on_its_own_grid_by_a_network_that_can_do_without_ct(write, hot, tmp_path):
    home = write() / "p1"
    predict_files(None, home / "PET_image.nii.gz", hot(missing=("ct", "pet")), tmp_path / "out", CONFIG)
    found = read_volume(tmp_path / "out" / "p1.nii.gz")
    np.testing.assert_array_equal(found.affine, PET_AFFINE)
    assert found.voxels.any()


def test_a_network_that_always_had_both_refuses_one(write, hot, tmp_path):
    home = write() / "p1"
    outcome = predict_files(home / "CT_image.nii.gz", None, hot(), tmp_path / "out", CONFIG)
    assert "p1 has no PET, and" in outcome.failed["p1"]
    assert "--drop-chance" in outcome.failed["p1"]
    assert not (tmp_path / "out" / "p1.nii.gz").exists()


def test_pictures_of_folders_go_by_their_names(draw, hot, tmp_path):
    some = planes(["x_slice_1", "y_slice_2"], roles=("CT", "PET"))
    data = draw(some)
    predict_files(data / "CT", data / "PET", hot("8 bits", threshold=0.5), tmp_path / "out", CONFIG)
    found = read_picture(tmp_path / "out" / "y_slice_2.png").pixels
    np.testing.assert_array_equal(found, 255 * (some["PET"]["y_slice_2"] / np.float32(255) >= 0.5))


def test_pictures_are_no_input_of_a_network_of_hu_and_suv(draw, hot, tmp_path):
    data = draw(planes(["x_slice_1"], roles=("CT", "PET")))
    outcome = predict_files(data / "CT", data / "PET", hot(), tmp_path / "out", CONFIG)
    assert "comes in 8 bits, and" in next(iter(outcome.failed.values()))


def test_files_of_two_folders_belong_together_by_their_names_without_ct_and_pet(tmp_path):
    for role, names in {"a": ("p1_CT", "p2_CT"), "b": ("p2_PT", "p1_PT")}.items():
        (tmp_path / role).mkdir()
        for name in names:
            (tmp_path / role / f"{name}.nii.gz").touch()
    cases = find_inputs(tmp_path / "a", tmp_path / "b")
    assert [(case.id, case.files["ct"].name, case.files["pet"].name) for case in cases] == [
        ("p1", "p1_CT.nii.gz", "p1_PT.nii.gz"),
        ("p2", "p2_CT.nii.gz", "p2_PT.nii.gz"),
    ]
    (tmp_path / "b" / "p1_PT.nii.gz").unlink()
    (tmp_path / "b" / "p3_PT.nii.gz").touch()
    with pytest.raises(MedsegError, match=r"p1_CT\.nii\.gz has no PET of the name 'p1'"):
        find_inputs(tmp_path / "a", tmp_path / "b")


def test_what_is_read_is_never_written_over(write, hot):
    home = write() / "p1"
    with pytest.raises(MedsegError, match="holds what is to be predicted"):
        predict_files(home / "CT_image.nii.gz", home / "PET_image.nii.gz", hot(), home, CONFIG)


def test_nothing_given_is_one_line_and_exit_2(tmp_path):
    done = CliRunner().invoke(app, ["predict", "--model", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert done.stderr == "error: nothing to predict; give --ct, --pet, or both\n"


def test_a_file_that_names_nobody_takes_the_name_of_its_folder(tmp_path):
    (tmp_path / "p7").mkdir()
    for name in ("CT_image.nii.gz", "pet_dicom.zip"):
        (tmp_path / "p7" / name).touch()
    assert [case.id for case in find_inputs(None, tmp_path / "p7" / "pet_dicom.zip")] == ["p7"]
    assert [case.id for case in find_inputs(tmp_path / "p7" / "CT_image.nii.gz", None)] == ["p7"]


def test_masks_of_jpegs_are_png(hot, tmp_path):
    pixels = np.full((16, 16), 200, np.uint8)
    for role in ("CT", "PET"):
        (tmp_path / role).mkdir()
        Image.fromarray(pixels).save(tmp_path / role / "a.jpg")
    outcome = predict_files(tmp_path / "CT", tmp_path / "PET", hot("8 bits"), tmp_path / "out", CONFIG)
    assert not outcome.failed
    assert read_picture(tmp_path / "out" / "a.png").pixels.min() == 255


def test_one_folder_may_hold_ct_and_pet(write, hot, tmp_path):
    home = write() / "p1"
    predict_files(home, home, hot(), tmp_path / "out", CONFIG)
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["p1.nii.gz"]


def test_a_folder_of_folders_is_refused_with_what_to_give(write, hot, tmp_path):
    data = write()
    outcome = predict_files(data, data, hot(), tmp_path / "out", CONFIG)
    assert "holds no volume, picture or DICOM file; give the file itself" in next(iter(outcome.failed.values()))


def test_another_patient_of_the_same_name_is_predicted_anew(write, hot, tmp_path):
    home, cold = write() / "p1", (np.full((8, 10, 4), 0.5, np.float32), PET_AFFINE)
    for replaced in ({}, {"PET_image": cold}):
        write(**replaced)
        outcome = predict_files(home / "CT_image.nii.gz", home / "PET_image.nii.gz", hot(), tmp_path / "out", CONFIG)
        assert outcome.done == ("p1",)
    assert not read_volume(tmp_path / "out" / "p1.nii.gz").voxels.any()
