"""Scores per case and structure, and what is said about a cohort."""

import csv
import json
import math
import weakref
from dataclasses import replace
from itertools import product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import stats

from medseg_core.errors import MedsegError
from medseg_core.evaluate import Evaluation, Pair, evaluate, from_rows

LABELS = {1: "liver", 2: "spleen", 3: "aorta", 4: "colon"}
OVERLAP = ["dice", "iou", "sensitivity", "specificity", "precision", "volume_difference"]
DISTANCE = ["volume_ref_ml", "volume_pred_ml", "hd_mm", "hd95_mm", "assd_mm", "nsd_3mm"]
COLUMNS = ["case", "label", "name", "status", *OVERLAP, *DISTANCE]


def line(*ids: int) -> np.ndarray:
    """(L, 1, 1) label map."""
    return np.array(ids, np.uint8)[:, None, None]


def pair(case: str, mask: np.ndarray, label: np.ndarray, **more: object) -> Pair:
    return Pair(case, mask, label, (10.0, 10.0, 10.0), **more)


# liver on both sides, spleen missed, aorta invented, colon absent
MIXED = pair("a", line(1, 1, 3, 0, 0, 0), line(0, 1, 1, 1, 2, 0))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def overall(evaluation: Evaluation, measure: str = "dice") -> dict:
    return next(e for e in evaluation.summary() if e["kind"] == "all" and e["measure"] == measure)


def cohort(dice: dict[str, dict[str, float]]) -> Evaluation:
    """Structure -> dice per case, as rows."""
    return from_rows(
        [{"case": c, "name": n, "status": "both", "dice": d} for c, by in dice.items() for n, d in by.items()]
    )


def test_a_row_holds_the_numbers_counted_by_hand():
    liver = evaluate([MIXED], LABELS).rows[0]
    assert list(liver) == COLUMNS
    # 2 predicted, 3 true, 1 shared, 6 in all; a voxel is 1 ml; surfaces are 10 mm apart at one end and at the other
    assert liver["dice"] == pytest.approx(2 / 5)
    assert liver["iou"] == pytest.approx(1 / 4)
    assert liver["sensitivity"] == pytest.approx(1 / 3)
    assert liver["specificity"] == pytest.approx(2 / 3)
    assert liver["precision"] == pytest.approx(1 / 2)
    assert (liver["volume_ref_ml"], liver["volume_pred_ml"], liver["volume_difference"]) == (
        3,
        2,
        pytest.approx(-1 / 3),
    )
    assert liver["hd_mm"] == 20
    assert liver["assd_mm"] == pytest.approx((10 + 0 + 0 + 10 + 20) / 5)
    assert liver["nsd_3mm"] == pytest.approx(2 / 5)
    assert liver["hd95_mm"] == pytest.approx(19)  # of 0, 10, 20, linearly


def test_missed_and_invented_structures_are_rows_of_dice_0_without_distances():
    rows = {row["name"]: row for row in evaluate([MIXED], LABELS).rows}
    assert {name: row["status"] for name, row in rows.items()} == {
        "liver": "both",
        "spleen": "missed",
        "aorta": "invented",
    }
    for name in ("spleen", "aorta"):
        assert rows[name]["dice"] == rows[name]["iou"] == rows[name]["nsd_3mm"] == 0
        assert math.isnan(rows[name]["hd95_mm"])
        assert math.isnan(rows[name]["assd_mm"])


def test_misses_and_inventions_pull_the_mean_down_and_are_counted():
    dice = overall(evaluate([MIXED], LABELS))
    assert dice["mean"] == pytest.approx((2 / 5 + 0 + 0) / 3)
    assert (dice["n"], dice["n_missed"], dice["n_invented"]) == (3, 1, 1)


def test_a_distance_is_averaged_where_it_exists_and_says_over_how_many():
    distance = overall(evaluate([MIXED], LABELS), "assd_mm")
    assert distance["mean"] == pytest.approx(8)
    assert (distance["n"], distance["n_missed"], distance["n_invented"]) == (1, 1, 1)


def test_predicting_nothing_scores_0_and_not_the_share_of_absent_structures():
    empty = overall(evaluate([replace(MIXED, mask=MIXED.mask * 0)], LABELS))
    assert (empty["mean"], empty["n_missed"]) == (0, 2)


def test_absent_structures_are_in_the_table_and_nowhere_else(tmp_path: Path):
    rows = evaluate([MIXED], LABELS, out=tmp_path).rows
    assert "colon" not in {row["name"] for row in rows}
    table = read(tmp_path / "cases.csv")
    assert list(table[0]) == COLUMNS
    assert [(row["name"], row["status"]) for row in table][-1] == ("colon", "absent")
    assert set(list(table[-1].values())[4:]) == {""}


def test_structures_that_nobody_annotated_are_scored_nowhere(tmp_path: Path):
    evaluation = evaluate([replace(MIXED, known={1, 4})], LABELS, out=tmp_path)
    assert [row["name"] for row in evaluation.rows] == ["liver"]
    assert [row["name"] for row in read(tmp_path / "cases.csv")] == ["liver", "colon"]


def test_the_background_is_no_structure():
    assert [row["name"] for row in evaluate([MIXED], {0: "background", 1: "liver"}).rows] == ["liver"]


def test_pictures_are_measured_in_their_unit():
    label = np.zeros((4, 4), np.uint8)
    label[1:3, 1:3] = 1
    (row,) = evaluate([Pair("a", label, label, (0.5, 0.5), unit="nm")], {1: "pore"}, tolerance=2).rows
    assert (row["area_ref_nm2"], row["hd95_nm"], row["nsd_2nm"]) == (1, 0, 1)


def test_every_case_weighs_the_same_in_the_mean_of_all():
    evaluation = cohort({"a": {"x": 1.0, "y": 0.8, "z": 0.6}, "b": {"x": 0.2}})
    assert overall(evaluation)["mean"] == pytest.approx((0.8 + 0.2) / 2)
    assert (overall(evaluation)["n"], overall(evaluation)["n_cases"]) == (4, 2)


def test_a_group_is_the_mean_of_its_structures():
    rows = cohort({"a": {"x": 1.0, "y": 0.8, "z": 0.6}, "b": {"x": 0.2}}).rows
    evaluation = from_rows(rows, groups={"y": "bones", "z": "bones"})
    (bones,) = [entry for entry in evaluation.summary() if entry["kind"] == "group"]
    assert (bones["name"], bones["mean"], bones["n_cases"]) == ("bones", pytest.approx(0.7), 1)


def test_intervals_agree_with_scipys_bootstrap():
    values = np.random.default_rng(0).beta(8, 2, 40)
    ours = overall(cohort({f"c{i}": {"x": v} for i, v in enumerate(values)}))
    peer = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000).confidence_interval
    assert (ours["low"], ours["high"]) == pytest.approx(tuple(peer), abs=0.1 * (peer.high - peer.low))
    assert ours["std"] == pytest.approx(values.std(ddof=1))


def test_more_structures_of_the_same_patients_do_not_narrow_an_interval():
    values = np.random.default_rng(0).random(12)
    one = overall(cohort({f"c{i}": {"x": v} for i, v in enumerate(values)}))
    ten = overall(cohort({f"c{i}": {f"x{k}": v for k in range(10)} for i, v in enumerate(values)}))
    assert (one["low"], one["high"]) == pytest.approx((ten["low"], ten["high"]))
    assert one["high"] - one["low"] > 0.1


def test_one_case_has_no_interval():
    dice = overall(evaluate([MIXED], LABELS))
    assert math.isnan(dice["low"])
    assert math.isnan(dice["high"])


def test_intervals_depend_on_the_seed_alone():
    shuffled = {f"c{i}": {"x": i / 20} for i in (3, 1, 4, 15, 9, 2, 6, 5)}
    evaluation, again = cohort(shuffled), cohort(dict(sorted(shuffled.items())))
    assert evaluation.summary(seed=1) == again.summary(seed=1)
    assert evaluation.summary(seed=1) != evaluation.summary(seed=2)


def test_the_paired_comparison_is_that_of_scipy():
    ours, theirs = np.random.default_rng(0).random((2, 15))
    mine, other = (cohort({f"c{i:02d}": {"x": v} for i, v in enumerate(values)}) for values in (ours, theirs))
    found = mine.against(other, "dice")
    assert found["p"] == pytest.approx(stats.wilcoxon(ours, theirs).pvalue)
    assert found["difference"] == pytest.approx((ours - theirs).mean())
    assert found["low"] < found["difference"] < found["high"]


@pytest.mark.parametrize("num", [5, 9, 12])
def test_with_ties_p_is_that_of_all_ways_to_give_signs(num):
    ours, theirs = np.random.default_rng(num).integers(0, 4, (2, num)) / 4
    mine, other = (cohort({f"c{i:02d}": {"x": v} for i, v in enumerate(values)}) for values in (ours, theirs))
    gaps = (ours - theirs)[ours != theirs]
    ranks = stats.rankdata(np.abs(gaps))
    sums = np.array(list(product((0, 1), repeat=len(gaps)))) @ ranks
    positive = ranks[gaps > 0].sum()
    expected = min(1.0, 2 * min((sums <= positive).mean(), (sums >= positive).mean()))
    assert mine.against(other, "dice")["p"] == pytest.approx(expected)


def test_only_what_both_sides_have_is_compared():
    mine = cohort({"a": {"x": 0.5, "y": 1.0}, "b": {"x": 0.7}, "c": {"x": 0.1}})
    other = cohort({"a": {"x": 0.4}, "b": {"x": 0.8, "z": 0.0}})
    found = mine.against(other, "dice")
    assert found["difference"] == pytest.approx((0.1 - 0.1) / 2)
    assert (found["n"], found["n_cases"], found["n_alone"]) == (2, 2, 3)


def test_equal_results_differ_by_nothing_with_p_1():
    same = cohort({"a": {"x": 0.5}, "b": {"x": 0.7}})
    assert same.against(same, "dice")["p"] == 1


def test_comparing_a_measure_that_is_not_there_names_the_nearest():
    with pytest.raises(MedsegError, match="did you mean 'dice'"):
        cohort({"a": {"x": 0.5}}).against(cohort({"a": {"x": 0.5}}), "dise")


def test_a_pair_is_let_go_before_the_next_is_asked_for(tmp_path: Path):
    alive = []

    def pairs():
        for n in range(3):
            label = line(0, 1, 1, n).copy()
            yield pair(f"c{n}", label.copy(), label)
            watched = weakref.ref(label)
            del label
            alive.append(watched() is not None)

    evaluate(pairs(), LABELS, out=tmp_path)
    assert alive == [False, False, False]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"mask": line(1, 1)}, r"case a.*\(2, 1, 1\).*\(6, 1, 1\)"),
        ({"mask": MIXED.mask * 0.5}, "case a.*float64"),
        ({"spacing": (1.0, 1.0)}, r"case a.*spacing \(1.0, 1.0\)"),
        ({"images": {"ct": line(1)}}, "case a.*'ct'"),
    ],
)
def test_a_pair_that_does_not_fit_is_refused_by_name(changed: dict, told: str):
    with pytest.raises(MedsegError, match=told):
        evaluate([replace(MIXED, **changed)], LABELS)


@pytest.mark.parametrize(
    ("pairs", "labels", "told"),
    [
        ([MIXED, MIXED], LABELS, "case a comes twice"),
        ([], LABELS, "no case"),
        ([MIXED], {1: "liver", 2: "liver"}, "id 2 is named 'liver', as id 1"),
    ],
)
def test_a_cohort_whose_rows_would_collide_is_refused(pairs: list, labels: dict, told: str):
    with pytest.raises(MedsegError, match=told):
        evaluate(pairs, labels)


def test_measures_of_the_whole_case_stand_under_no_structure():
    evaluation = evaluate([MIXED], LABELS, more=lambda this: {"burden": float((this.mask == 1).sum())})
    assert evaluation.rows[-1] == {"case": "a", "label": "", "name": "", "status": "", "burden": 2.0}
    (entry,) = [entry for entry in evaluation.summary() if entry["kind"] == "case"]
    assert (entry["measure"], entry["mean"]) == ("burden", 2)
    assert overall(evaluation)["n"] == 3
    assert evaluation.baselines["empty"].rows[-1]["burden"] == 0


def test_baselines_are_scored_by_the_same_rules_and_can_be_compared(tmp_path: Path):
    perfect = {"perfect": lambda this: this.label}
    evaluation = evaluate([MIXED, replace(MIXED, id="b")], LABELS, baselines=perfect, out=tmp_path)
    assert overall(evaluation.baselines["perfect"])["mean"] == 1
    assert overall(evaluation.baselines["empty"])["mean"] == 0
    assert evaluation.against(evaluation.baselines["perfect"], "dice")["difference"] == pytest.approx((0.4 - 1 - 1) / 2)
    assert {row["model"] for row in read(tmp_path / "baselines.csv")} == {"empty", "perfect"}
    assert {row["model"] for row in read(tmp_path / "summary.csv")} == {"", "empty", "perfect"}


def test_the_summary_is_json_that_every_reader_takes(tmp_path: Path):
    evaluation = evaluate([MIXED], LABELS, out=tmp_path)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    document = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse)
    assert document == evaluation.document()
    assert (document["cases"], document["missed"], document["invented"]) == (1, 1, 1)
    assert document["summary"][0]["low"] is None


def test_each_case_leaves_a_picture_and_the_worst_its_surfaces(tmp_path: Path):
    good = pair("good", line(1, 2, 2), line(1, 2, 2))
    evaluation = evaluate([good, MIXED, replace(good, id="c")], LABELS, out=tmp_path)
    names = {case: path.name for case, path in evaluation.pictures.items()}
    assert names == {"good": "0001.png", "a": "0002.png", "c": "0003.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in evaluation.pictures.values())
    assert evaluation.worst == "a"
    assert {trace.name for trace in evaluation.scene.data} == {"liver", "spleen", "aorta"}


def test_rows_made_elsewhere_get_the_same_summary():
    mine = evaluate([MIXED], LABELS)
    summary = [entry for entry in mine.document()["summary"] if entry["model"] == ""]
    assert from_rows(mine.rows).document()["summary"] == summary


def test_rows_of_a_model_become_a_baseline():
    rows = [{"case": "a", "tre_mm": 2.0}, {"case": "b", "tre_mm": 4.0}]
    rows += [{**row, "tre_mm": 9.0, "model": "identity"} for row in rows]
    evaluation = from_rows(rows)
    assert evaluation.measures == ("tre_mm",)
    assert evaluation.against(evaluation.baselines["identity"], "tre_mm")["difference"] == -6


@pytest.mark.parametrize("row", [{"dice": 1.0}, {"case": "a", "dice": "good"}])
def test_a_row_without_case_or_number_is_shown(row: dict):
    with pytest.raises(MedsegError, match=r"case|good"):
        from_rows([row])


def test_real_label_maps_score_as_a_loop_over_booleans(data: Path):
    folder = data / "ct_multiorgan" / "ts_s0001"
    label, mask = (
        np.asarray(nib.load(folder / f"seg_multilabel_v1_104{kind}.nii.gz").dataobj).astype(np.uint8)
        for kind in ("", "_fast")
    )
    rows = evaluate([Pair("s0001", mask, label, (3.0, 3.0, 3.0))], {i: str(i) for i in range(1, 105)}).rows
    expected = {}
    for i in range(1, 105):
        a, b = mask == i, label == i
        if a.any() or b.any():
            expected[i] = 2 * (a & b).sum() / (a.sum() + b.sum())
    assert {row["label"]: row["dice"] for row in rows} == pytest.approx(expected)
