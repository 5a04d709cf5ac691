import csv
import json
import shutil

import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.io import read_volume, write_volume
from medseg_totalseg.evaluate import evaluate_files, evaluate_run
from medseg_totalseg.predict import Predictor, predict_files
from medseg_totalseg.settings import EvaluateConfig, PredictConfig

FOLDER = EvaluateConfig(structures=("liver", "spleen"))
HEADER = (
    "case,label,name,status,dice,iou,sensitivity,specificity,precision,volume_difference,"
    "volume_ref_ml,volume_pred_ml,hd_mm,hd95_mm,assd_mm,nsd_3mm"
)


def rows(out):
    with (out / "cases.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def predictions(cohort, tmp_path):
    """The reference itself, moved by one voxel, a folder of masks per case; s0001 has lost its liver."""
    out = tmp_path / "pred"
    for case in ("s0000", "s0001"):
        for name in ("liver", "spleen"):
            mask = read_volume(cohort / case / "segmentations" / f"{name}.nii.gz")
            moved = np.roll(mask.voxels, 1, axis=0)
            if (case, name) == ("s0001", "liver"):
                moved = np.zeros_like(moved)
            write_volume(mask.like(moved), out / case / f"{name}.nii.gz")
    return out


def test_scores_equal_a_few_lines_of_numpy(cohort, predictions, tmp_path):
    evaluate_files(predictions, cohort, tmp_path / "out", FOLDER)
    assert (tmp_path / "out" / "cases.csv").read_text().splitlines()[0] == HEADER
    for row in rows(tmp_path / "out"):
        pred, ref = (
            read_volume(root / f"{row['name']}.nii.gz").voxels > 0
            for root in (predictions / row["case"], cohort / row["case"] / "segmentations")
        )
        assert float(row["dice"]) == pytest.approx(2 * (pred & ref).sum() / (pred.sum() + ref.sum()), abs=1e-6)


def test_a_missed_structure_is_a_row_that_counts_zero(cohort, predictions, tmp_path):
    evaluation, _ = evaluate_files(predictions, cohort, tmp_path / "out", FOLDER)
    (missed,) = [row for row in rows(tmp_path / "out") if row["status"] == "missed"]
    assert (missed["case"], missed["name"], float(missed["dice"]), missed["hd95_mm"]) == ("s0001", "liver", 0.0, "")
    assert evaluation.headline()["missed"] == 1
    assert evaluation.headline()["dice_of_predicting_nothing"] == 0.0


def test_a_report_lies_beside_the_tables(cohort, predictions, tmp_path):
    evaluate_files(predictions, cohort, tmp_path / "out", FOLDER)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "not a medical device" in page.lower()
    assert "s0002" in page  # a reference without a prediction is named
    assert len(page) < 10e6


def test_a_pair_on_two_grids_costs_only_itself(cohort, predictions, tmp_path):
    for file in (predictions / "s0000").glob("*.nii.gz"):
        mask = read_volume(file)
        write_volume(type(mask)(mask.voxels[1:], mask.affine), file)
    _, failed = evaluate_files(predictions, cohort, tmp_path / "out", FOLDER)
    assert list(failed) == ["s0000"]
    assert {row["case"] for row in rows(tmp_path / "out")} == {"s0001"}


def test_what_was_not_annotated_is_not_scored(cohort, predictions, tmp_path):
    data = shutil.copytree(cohort, tmp_path / "data")
    (data / "s0001" / "segmentations" / "spleen.nii.gz").unlink()
    ignore = EvaluateConfig(structures=("liver", "spleen"), missing="ignore")
    evaluate_files(predictions, data, tmp_path / "ignored", ignore)
    evaluate_files(predictions, data, tmp_path / "empty", FOLDER)
    scored = {(row["case"], row["name"]) for row in rows(tmp_path / "ignored")}
    assert ("s0001", "spleen") not in scored
    (invented,) = [row for row in rows(tmp_path / "empty") if row["status"] == "invented"]
    assert (invented["case"], invented["name"], float(invented["dice"])) == ("s0001", "spleen", 0.0)


def test_nothing_in_common_names_both_sides(cohort, predictions, tmp_path):
    (predictions / "s0000").rename(predictions / "x")
    shutil.rmtree(predictions / "s0001")
    (predictions / "y").mkdir()
    shutil.copy(predictions / "x" / "liver.nii.gz", predictions / "y" / "liver.nii.gz")
    with pytest.raises(MedsegError, match="share no case name: x, y against s0000"):
        evaluate_files(predictions, cohort, tmp_path / "out", FOLDER)


def test_an_evaluation_is_not_overwritten_unasked(cohort, predictions, tmp_path):
    evaluate_files(predictions, cohort, tmp_path / "out", FOLDER)
    with pytest.raises(MedsegError, match="--overwrite"):
        evaluate_files(predictions, cohort, tmp_path / "out", FOLDER)
    evaluate_files(predictions, cohort, tmp_path / "out", FOLDER, overwrite=True)


def test_anonymous_names_no_case(cohort, predictions, tmp_path):
    evaluate_files(predictions, cohort, tmp_path / "out", EvaluateConfig(structures=("liver",), anonymous=True))
    assert {row["case"] for row in rows(tmp_path / "out")} == {"case 0001", "case 0002"}


def test_a_run_is_scored_on_the_cases_it_has_not_seen(cohort, run, tmp_path):
    _, failed = evaluate_run(cohort, [run], tmp_path / "out", EvaluateConfig())
    split = json.loads((run / "split.json").read_text())
    assert {row["case"] for row in rows(tmp_path / "out")} == set(split["test"])
    assert not failed
    predict_files(cohort / split["test"][0], [run], tmp_path / "own", PredictConfig())
    mine = read_volume(tmp_path / "own" / f"{split['test'][0]}.nii.gz").voxels
    theirs = read_volume(tmp_path / "out" / "predictions" / f"{split['test'][0]}.nii.gz").voxels
    np.testing.assert_array_equal(mine, theirs)


def test_scores_on_training_cases_say_so(cohort, run, tmp_path):
    evaluate_run(cohort, [run], tmp_path / "out", EvaluateConfig(), split="train")
    assert "Trained on" in (tmp_path / "out" / "report.html").read_text()


def test_a_multilabel_prediction_is_paired_by_the_names_beside_it(cohort, run, tmp_path):
    predict_files(cohort / "s0000", [run], tmp_path / "pred", PredictConfig(device="cpu"))
    labels = Predictor(run).labels
    evaluate_files(tmp_path / "pred", cohort / "s0000", tmp_path / "out", EvaluateConfig())
    scored = {row["name"] for row in rows(tmp_path / "out") if row["status"] in ("both", "invented")}
    assert scored <= set(labels.values())
