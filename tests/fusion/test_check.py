"""What `check` says before any work."""

import json

import numpy as np
import pytest
from tests.fusion.conftest import PET_AFFINE, planes, volumes
from typer.testing import CliRunner

from medseg_core.cases import read_split
from medseg_fusion.check import check
from medseg_fusion.cli import app
from medseg_fusion.sources import find_patients


def texts(checked, severity):
    return [finding["text"] for finding in checked.findings if finding["severity"] == severity]


def test_every_patient_has_a_row_and_every_bad_one_a_line(write):
    write("p1")
    data = write("p2", PET_image=(np.zeros((8, 10, 4), np.float32), PET_AFFINE))
    checked = check(data)
    assert [row["id"] for row in checked.patients] == ["p1"]
    assert checked.patients[0]["tumour_slices"] == 2
    assert checked.bad
    assert "is 0 everywhere" in texts(checked, "error")[0]


def test_a_patient_that_comes_twice_is_an_error_across_splits_and_a_warning_within_one(write, tmp_path):
    write("p1")
    data = write("p2")  # the same volumes under another name
    assert "slice 0 of p1 and 0 of p2; are they one patient?" in texts(check(data), "warning")[0]
    (tmp_path / "split.json").write_text(json.dumps({"seed": 0, "train": ["p1"], "val": ["p2"], "test": []}))
    said = texts(check(data, splits=tmp_path / "split.json"), "error")
    assert said == [
        "nearly the same picture: slice 0 of p1 in train and 0 of p2 in val; are they one patient? keep them in one "
        "split, or remove one"
    ]


def test_an_empty_mask_is_no_dice_of_1(write):
    mask, affine = volumes()["CT_mask"]
    assert "the mask is empty" in texts(check(write(CT_mask=(0 * mask, affine))), "note")[0]


def test_pictures_say_that_their_range_is_lost(draw):
    assert "8 bits per pixel: HU and SUV are lost" in texts(check(draw(planes(["a_slice_1"]))), "note")[0]


def test_the_command_ends_with_1_where_something_is_wrong(write):
    write("p1")
    data = write("p2", PET_image=None)
    done = CliRunner().invoke(app, ["check", str(data)])
    assert done.exit_code == 1
    assert "p2: error:" in done.stdout
    assert CliRunner().invoke(app, ["check", str(data / "p1")]).exit_code == 0


def test_split_divides_by_patient_and_writes_what_others_read(write, tmp_path):
    for number in range(5):
        data = write(f"p{number}", seed=number)
    done = CliRunner().invoke(app, ["split", str(data), "--out", str(tmp_path / "s.json"), "--json"])
    told = json.loads(done.stdout)
    assert (len(told["train"]), len(told["val"]), told["test"]) == (4, 1, [])
    cases = read_split(tmp_path / "s.json", find_patients(data).cases)
    assert sorted(case.id for case in cases if case.split == "val") == told["val"]


@pytest.mark.parametrize("command", ["check", "prepare", "split"])
def test_a_folder_that_is_not_there_is_one_line_and_exit_2(tmp_path, command):
    out = ["--out", str(tmp_path / "out")] if command != "check" else []
    done = CliRunner().invoke(app, [command, str(tmp_path / "no"), *out])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: there is no folder")
    assert not (tmp_path / "out").exists()
