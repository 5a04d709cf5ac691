import csv
import json
import shutil
from functools import partial

import nibabel as nib
import numpy as np
import pytest

from medseg_cardiac.dataset import discover
from medseg_cardiac.evaluate import evaluate_files, evaluate_run, headline
from medseg_cardiac.predict import predict_files
from medseg_cardiac.registered import Registered
from medseg_cardiac.settings import EvaluateConfig, PredictConfig
from medseg_core.errors import MedsegError

SHORT = partial(PredictConfig, refine=0)  # what is scored here is no good anyhow
AFFINE = np.diag([1.5, 1.5, 8.0, 1.0])


def rows(out):
    with (out / "cases.csv").open() as file:
        return list(csv.DictReader(file))


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


def volume(files):
    return np.concatenate([np.asarray(nib.load(file).dataobj) for file in sorted(files)], -1) > 0


def square(at, *, size=6, shape=(24, 24)):
    mask = np.zeros(shape, np.uint8)
    mask[at : at + size, 8 : 8 + size] = 1
    return mask


def write(mask, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(mask, AFFINE), path)


def test_scores_of_a_shifted_square_are_the_ones_by_hand(tmp_path):
    write(np.stack([square(8)] * 3, 2), tmp_path / "ref" / "a.nii.gz")
    write(np.stack([square(10)] * 3, 2), tmp_path / "pred" / "a.nii.gz")
    evaluate_files(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", EvaluateConfig())
    (row,) = rows(tmp_path / "out")
    assert float(row["dice"]) == pytest.approx(2 / 3)  # 4 of 6 rows are shared
    assert float(row["sensitivity"]) == pytest.approx(2 / 3)
    assert float(row["specificity"]) == pytest.approx(1 - 12 / (24 * 24 - 36))
    assert float(row["hd95_mm"]) == pytest.approx(3.0)  # two pixels of 1.5 mm
    assert float(row["volume_ref_ml"]) == pytest.approx(36 * 3 * 1.5 * 1.5 * 8 / 1000)
    assert (tmp_path / "out" / "report.html").is_file()


@pytest.mark.parametrize("first", [False, True])
def test_a_folder_of_slices_is_scored_as_the_volume_that_it_is(tmp_path, first):
    masks = {"slice_00": (square(8), square(8)), "slice_01": (square(8), square(14))}
    for name, pair in masks.items():
        for side, mask in zip(("ref", "pred"), pair, strict=True):
            write(mask[None] if first else mask[:, :, None], tmp_path / side / "a" / f"{name}.nii.gz")
    evaluate_files(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", EvaluateConfig())
    assert float(rows(tmp_path / "out")[0]["dice"]) == pytest.approx(0.5)  # one slice whole, one not at all


def test_slices_are_paired_by_name_and_one_not_predicted_counts_as_empty(tmp_path):
    for name, at in (("slice_00", 2), ("slice_01", 8), ("slice_02", 14)):
        write(square(at)[:, :, None], tmp_path / "ref" / "a" / f"{name}.nii.gz")
        if name != "slice_00":
            write(square(at)[:, :, None], tmp_path / "pred" / "a" / f"{name}.nii.gz")
    evaluate_files(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", EvaluateConfig())
    assert float(rows(tmp_path / "out")[0]["dice"]) == pytest.approx(2 * 2 / (2 + 3))


def test_a_pair_on_two_grids_costs_only_itself(tmp_path):
    for case in "ab":
        write(np.stack([square(8)] * 2, 2), tmp_path / "ref" / f"{case}.nii.gz")
        write(np.stack([square(8)] * (3 if case == "b" else 2), 2), tmp_path / "pred" / f"{case}.nii.gz")
    _, failed = evaluate_files(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", EvaluateConfig())
    assert list(failed) == ["b"]
    assert "predict on the reference's grid" in failed["b"]
    assert [row["case"] for row in rows(tmp_path / "out")] == ["a"]


def test_nothing_in_common_names_both_sides(tmp_path):
    write(square(8)[:, :, None], tmp_path / "ref" / "a.nii.gz")
    write(square(8)[:, :, None], tmp_path / "pred" / "b.nii.gz")
    with pytest.raises(MedsegError, match="share no case by name: they hold b and a"):
        evaluate_files(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", EvaluateConfig())


def test_an_evaluation_is_replaced_and_other_things_written_among_only_when_asked(tmp_path):
    write(square(8)[:, :, None], tmp_path / "ref" / "a.nii.gz")
    config = EvaluateConfig(measures=("overlap",))
    with pytest.raises(MedsegError, match="holds other things than an evaluation"):
        evaluate_files(tmp_path / "ref", tmp_path / "ref", tmp_path / "ref", config)
    evaluate_files(tmp_path / "ref", tmp_path / "ref", tmp_path / "out", config)
    with pytest.raises(MedsegError, match="holds an evaluation; add --overwrite"):
        evaluate_files(tmp_path / "ref", tmp_path / "ref", tmp_path / "out", config)
    evaluate_files(tmp_path / "ref", tmp_path / "ref", tmp_path / "out", config, overwrite=True)


@pytest.fixture(scope="module", autouse=True)
def short():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medseg_cardiac.evaluate.PredictConfig", SHORT)
        yield


@pytest.fixture(scope="module")
def scored(cohort, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("scored")
    return out, evaluate_run(cohort, run, out, EvaluateConfig(), split="all")


def test_infarct_is_scored_against_the_truth_on_the_cine_with_the_whole_wall_beside_it(scored, cohort):
    out, (evaluation, failed) = scored
    assert not failed
    for row in rows(out):
        mask = volume((out / "predictions" / row["case"]).iterdir())
        label = volume((cohort / "labels/cmr_MI_mask" / row["case"]).iterdir())
        assert float(row["dice"]) == pytest.approx(dice(mask, label), abs=1e-6)
    walls = {row["case"]: volume((cohort / "labels/cmr_Myo_mask" / row["case"]).iterdir()) for row in rows(out)}
    labels = {case: volume((cohort / "labels/cmr_MI_mask" / case).iterdir()) for case in walls}
    expected = np.mean([dice(walls[case], labels[case]) for case in walls])
    assert headline(evaluation)["dice_of_whole_wall"] == pytest.approx(expected, abs=1e-6)


def test_the_report_shows_bulls_eyes_and_says_what_was_trained_on(scored, run):
    out, _ = scored
    page = (out / "report.html").read_text()
    seen = json.loads((run / "split.json").read_text())["train"]
    assert f"Trained on {', '.join(seen)}" in page
    assert page.count("data:image/png") >= 6
    assert "data:image/gif" in page
    assert len(page) < 15e6


def test_a_run_is_scored_on_patients_that_it_has_not_seen(cohort, registration, tmp_path):
    evaluate_run(cohort, registration, tmp_path / "out", EvaluateConfig(), split="val")
    held_out = json.loads((registration / "split.json").read_text())["val"]
    assert {row["case"] for row in rows(tmp_path / "out")} == set(held_out)


def test_motion_is_scored_on_the_pool_that_it_carries_with_the_one_that_stays_beside_it(cohort, motion, tmp_path):
    evaluation, _ = evaluate_run(cohort, motion, tmp_path / "out", EvaluateConfig(), split="all")
    pools = {
        phase: {c: volume((cohort / f"labels/cmr_LV_mask/{c}_{phase}").iterdir()) for c in ("p0000", "p0001", "p0002")}
        for phase in ("ED", "ES")
    }
    expected = np.mean([dice(pools["ED"][case], pools["ES"][case]) for case in pools["ED"]])
    assert headline(evaluation)["dice_of_unmoved"] == pytest.approx(expected, abs=1e-6)
    carried = volume((tmp_path / "out/predictions/lv_es/p0000").iterdir())
    (row,) = [row for row in rows(tmp_path / "out") if row["case"] == "p0000"]
    assert float(row["dice"]) == pytest.approx(dice(carried, pools["ES"]["p0000"]), abs=1e-6)


def test_registration_is_judged_on_lge_myocardium_against_that_of_the_cine(cohort, registration, tmp_path):
    evaluation, _ = evaluate_run(cohort, registration, tmp_path / "out", EvaluateConfig(), split="all")
    cases = ("p0000", "p0001", "p0002")
    late, cine = (
        {c: volume((cohort / "labels" / kind / c).iterdir()) for c in cases}
        for kind in ("lge/lge_Myo_labels", "cmr_Myo_mask")
    )
    expected = np.mean([dice(late[case], cine[case]) for case in cases])
    assert 0.3 < expected < 0.95  # they are misaligned
    assert headline(evaluation)["dice_of_unmoved"] == pytest.approx(expected, abs=0.04)  # on pixels of another size


def test_without_masks_on_the_cine_the_lge_labels_are_brought_there(cohort, run, registration, tmp_path):
    others = ("truth", "cmr_MI_mask", "p0001*", "p0002*")
    data = shutil.copytree(cohort, tmp_path / "data", ignore=shutil.ignore_patterns(*others))
    predict_files(discover(data)[:1], run, tmp_path / "mine", PredictConfig(device="cpu"))
    _, failed = evaluate_run(data, run, tmp_path / "out0", EvaluateConfig(), split="all")
    assert not failed
    moved = Registered(registration).infarct(discover(data)[0].planes[0])
    assert (moved.shape, moved.dtype) == ((48, 48), bool)
    (row,) = [row for row in rows(tmp_path / "out0") if row["case"] == "p0000"]
    late = volume((data / "labels/lge/lge_MI_labels/p0000").iterdir())
    wall = volume((data / "labels/cmr_Myo_mask/p0000").iterdir())
    assert float(row["volume_ref_ml"]) > 0
    by_hand = dice(volume((tmp_path / "mine/p0000").iterdir()), late & wall)
    assert float(row["dice"]) == pytest.approx(by_hand, abs=0.12)  # resampled to the window of 1.4 mm and back


def test_a_split_that_is_none_is_met_with_the_nearest(cohort, run, tmp_path):
    with pytest.raises(MedsegError, match="--split 'tset' is none of train, val, test, all; did you mean 'test'"):
        evaluate_run(cohort, run, tmp_path / "out", EvaluateConfig(), split="tset")
    with pytest.raises(MedsegError, match="no patient is in split 'test'"):
        evaluate_run(cohort, run, tmp_path / "out", EvaluateConfig(), split="test")
    assert not (tmp_path / "out").exists()


def test_patients_without_a_reference_are_named_and_cost_only_themselves(cohort, registration, tmp_path):
    data = shutil.copytree(cohort, tmp_path / "data", ignore=shutil.ignore_patterns("truth"))
    shutil.rmtree(data / "images" / "lge" / "p0001")
    _, failed = evaluate_run(data, registration, tmp_path / "out", EvaluateConfig(), split="all")
    assert list(failed) == ["p0001"]
    assert "no slice of p0001 has a reference" in failed["p0001"]


def test_real_pools_carried_from_ed_to_es_stand_beside_those_that_stay(data, motion, tmp_path):
    evaluation, failed = evaluate_run(data / "cmr_cine", motion, tmp_path / "out", EvaluateConfig(), split="all")
    assert not failed
    assert headline(evaluation)["dice_of_unmoved"] == pytest.approx(0.864, abs=0.01)  # the mean over the nine slices
    assert len(rows(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("setting", "said"), [({"anonymous": True}, "--anonymous"), ({"missing": "ignore"}, "--missing")]
)
def test_what_is_not_honoured_is_refused(setting, said, tmp_path):
    with pytest.raises(MedsegError, match=said):
        evaluate_files(tmp_path, tmp_path, tmp_path / "out", EvaluateConfig(**setting))
    assert not (tmp_path / "out").exists()
