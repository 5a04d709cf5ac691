"""What a user types: the commands of the README on a small phantom, and bad input as one line with exit code 2."""

import json
import shutil
from functools import partial

import pytest
from typer.testing import CliRunner

from medseg_cardiac.cli import app
from medseg_cardiac.settings import PredictConfig

TINY = ["--size", "48", "--crop", "48", "--epochs", "1", "--device", "cpu", "--pairs-per-slice", "1"]
COMMANDS = (
    "check split prepare train-motion train-registration train-segmentation predict evaluate init-weights phantom demo"
)


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def works(*arguments):
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*arguments):
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "failed: "))]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize("command", COMMANDS.split())
def test_every_command_has_a_help_screen(command):
    assert "Usage:" in works(command, "--help")


def test_check_prints_a_table_and_its_findings_and_writes_a_case_list(cohort, tmp_path):
    out = works("check", cohort, "--out", tmp_path / "cases.json")
    assert out.splitlines()[0].split() == ["patient", "slices", "frames", "pixels", "mm", "masks", "ED/ES", "infarct"]
    assert [line.split()[0] for line in out.splitlines()[1:4]] == ["p0000", "p0001", "p0002"]
    told = json.loads(works("check", cohort, "--json"))
    assert {row["patient"]: row["slices"] for row in told["patients"]} == {"p0000": 2, "p0001": 2, "p0002": 2}
    assert isinstance(told["findings"], list)
    assert (tmp_path / "cases.json").is_file()


def test_check_ends_with_1_where_something_is_wrong(cohort, tmp_path):
    data = shutil.copytree(cohort, tmp_path / "data", ignore=shutil.ignore_patterns("truth"))
    (data / "images/cmr/p0001/slice_00.nii.gz").write_bytes(b"junk")
    result = call("check", data)
    assert result.exit_code == 1
    assert "p0001: error: " in result.stdout


def test_split_writes_the_lists_of_each_part(cohort, tmp_path):
    works("split", cohort, "--out", tmp_path / "splits.json", "--ratios", "0.34,0.33,0.33", "--seed", "7")
    parts = json.loads((tmp_path / "splits.json").read_text())
    for part in ("train", "val", "test"):
        assert (tmp_path / f"{part}_cases.txt").read_text().split() == parts[part]
        assert len(parts[part]) == 1
    assert "are no numbers" in fails("split", cohort, "--out", tmp_path / "s.json", "--ratios", "much,little,none")


def test_one_patient_cannot_be_split_and_the_command_says_so(cohort, tmp_path):
    for part in ("images/cmr", "labels/cmr_Myo_mask"):
        shutil.copytree(cohort / part / "p0000", tmp_path / "data" / part / "p0000")
    assert "1 patients cannot fill 3 parts" in fails("split", tmp_path / "data", "--out", tmp_path / "s.json")
    assert not (tmp_path / "s.json").exists()


def test_the_way_from_patients_to_scores(cohort, motion, tmp_path, monkeypatch):
    """Training without --registration, prediction of a folder and of one slice, both forms of evaluate."""
    monkeypatch.setattr("medseg_cardiac.evaluate.PredictConfig", partial(PredictConfig, refine=0))
    run, out = tmp_path / "run", tmp_path / "out"
    works("train-segmentation", cohort, "--motion", motion, "--out", run, "--width", 4, *TINY[:-2], "--val", 0.34)
    told = json.loads(works("predict", cohort, "--model", run, "--out", out, "--json"))
    assert (told["done"], told["failed"]) == (3, 0)
    myo, cine = cohort / "labels/cmr_Myo_mask/p0000", cohort / "images/cmr/p0000"
    told = json.loads(
        works(
            "predict", "--cine", cine, "--myo", myo, "--slice", 1, "--model", run, "--out", tmp_path / "one", "--json"
        )
    )
    assert (told["slices"], told["folds"]) == (1, 0)
    assert [f.name for f in (tmp_path / "one" / "p0000").iterdir()] == ["slice_01.nii.gz"]
    truth = cohort / "labels" / "cmr_MI_mask"
    told = json.loads(works("evaluate", out, truth, "--out", tmp_path / "pair", "--json"))
    assert told["cases"] == 3
    more = ("--data", cohort, "--model", run, "--split", "val", "--out", tmp_path / "scored", "--json")
    told = json.loads(works("evaluate", *more))
    assert {"dice", "dice_of_whole_wall", "report"} <= told.keys()


def test_a_finished_training_is_gone_on_with_only_when_asked(cohort, motion):
    arguments = ("train-motion", cohort, "--out", motion, "--val", 0.34, "--precision", "fp32", *TINY)
    assert "add --resume" in fails(*arguments)
    assert json.loads(works(*arguments, "--resume", "--json"))["epochs"] == 1


def test_evaluate_takes_one_of_its_two_forms(cohort, motion, tmp_path):
    for wrong in ((), (cohort,), ("--data", cohort), (cohort, cohort, "--data", cohort, "--model", motion)):
        assert "PRED and REF, or --data DATA with --model RUN" in fails("evaluate", *wrong, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_patient_that_fails_ends_the_command_with_2_and_a_list(cohort, motion, tmp_path):
    data = shutil.copytree(cohort, tmp_path / "data", ignore=shutil.ignore_patterns("truth"))
    shutil.rmtree(data / "labels/cmr_Myo_mask/p0001")
    line = fails("predict", data, "--model", motion, "--out", tmp_path / "out", "--flow", "--refine", 0)
    assert line.startswith("failed: p0001: no slice of p0001 can be used; first slice_00: ")
    assert sorted(p.name for p in (tmp_path / "out/flow").iterdir()) == ["p0000", "p0002"]


def test_init_weights_says_how_large_the_networks_are(tmp_path):
    rows = {row["network"]: row for row in json.loads(works("init-weights", "--out", tmp_path / "init", "--json"))}
    counts = {name: row["parameters"] for name, row in rows.items()}
    assert counts == {
        "motion": 1_137_638,
        "registration": 1_956_674,
        "attention-unet": 34_879_149,
        "sum": 37_973_461,
    }
    assert rows["motion"]["weights_mb"] == pytest.approx(4 * 1_137_638 / 1e6, rel=0.01)
    assert rows["motion"]["state_mb"] == pytest.approx(12 * 1_137_638 / 1e6, rel=0.01)  # and two moments of each
    assert "add --overwrite" in fails("init-weights", "--out", tmp_path / "init")


def test_a_phantom_is_checked_without_any_finding_that_is_wrong(tmp_path):
    works("phantom", "--out", tmp_path / "data", "--num-cases", 1, "--size", 48, "--num-slices", 1, "--num-frames", 4)
    told = json.loads(works("check", tmp_path / "data", "--json"))
    assert {finding["severity"] for finding in told["findings"]} <= {"note"}


def test_real_dicom_becomes_data_that_motion_is_predicted_on(data, motion, tmp_path):
    source = data / "cmr_cine" / "SCD0000201"
    assert json.loads(works("prepare", source, "--out", tmp_path / "data", "--json"))["done"] == 1
    (row,) = json.loads(works("check", tmp_path / "data", "--json"))["patients"]
    info = json.loads((source / "info.json").read_text())["slices"]
    assert (row["ed"], row["es"]) == ([info[0]["ED_frame_index"]], [info[0]["ES_frame_index"]])
    told = json.loads(
        works(
            "predict",
            tmp_path / "data",
            "--model",
            motion,
            "--out",
            tmp_path / "out",
            "--strain",
            "--refine",
            0,
            "--json",
        )
    )
    assert told["slices"] == len(info)


def test_real_patients_without_lge_are_told_that_infarct_cannot_be_trained(data, motion, tmp_path):
    told = json.loads(works("check", data / "cmr_cine", "--json"))
    assert "no LGE: motion can be trained" in " ".join(finding["text"] for finding in told["findings"])
    for verb, more in (("train-registration", ()), ("train-segmentation", ("--motion", motion))):
        line = fails(verb, data / "cmr_cine", *more, "--out", tmp_path / verb, *TINY[:-2])
        assert "has cine and lge" in line
