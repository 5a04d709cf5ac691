import csv
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.io import read_volume, write_volume
from medseg_core.labelmaps import read_labels, write_labels
from medseg_core.volume import Volume
from medseg_near.merge import flags, merge_files, summary
from medseg_near.settings import MergeConfig

SHAPE = (10, 6, 5)
AFFINE = np.diag([1.0, 2.0, 5.0, 1.0])  # a voxel has 0.01 ml
PLAIN = MergeConfig(keep=("coronary=1",), touch=None, near=None, fill=None)


def row(*ids):
    """A label map with these ids along x and nothing else."""
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[: len(ids), 2, 2] = ids
    return voxels


def put(path, voxels, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(Volume(voxels, affine), path)
    return path


@pytest.fixture
def cohort(tmp_path):
    """Two cases, their base, and refined coronaries; in `b` a part of the coronary is a stray."""
    put(tmp_path / "base" / "a.nii.gz", row(1, 1, 9, 9))
    put(tmp_path / "base" / "b.nii.gz", row(1, 1, 9))
    put(tmp_path / "fine" / "a.nii.gz", row(0, 0, 1, 1, 1))
    put(tmp_path / "fine" / "b.nii.gz", row(1, 0, 1, 1))
    return tmp_path


def merge(cohort, *refined, config=PLAIN, out="out", base="base", **more):
    refined = refined or (f"coronary={cohort / 'fine'}",)
    return merge_files(refined, cohort / base, cohort / out, config, **more)


def ids(path, num=6):
    return read_volume(path).voxels[:num, 2, 2].tolist()


def table(path):
    return list(csv.DictReader(Path(path).open()))


def test_masks_of_one_class_are_fused_with_the_base(cohort):
    outcome = merge(cohort)
    assert set(outcome.done) == {"a", "b"}
    assert ids(cohort / "out" / "a.nii.gz") == [1, 1, 9, 9, 9, 0]
    assert ids(cohort / "out" / "b.nii.gz") == [1, 1, 9, 9, 0, 0]


def test_the_result_lies_on_the_grid_of_the_base(cohort):
    merge(cohort)
    result, base = (read_volume(cohort / folder / "a.nii.gz") for folder in ("out", "base"))
    assert np.array_equal(result.affine, base.affine)
    assert result.voxels.shape == base.voxels.shape
    assert result.voxels.dtype == np.uint8


def test_every_effect_stands_in_a_table(cohort):
    merge(cohort)
    (kept,) = [r for r in table(cohort / "out" / "rules.csv") if (r["case"], r["rule"]) == ("b", "keep coronary=1")]
    assert (kept["class"], kept["outcome"], kept["removed_voxels"], kept["num_components"]) == (
        *("coronary", "changed"),
        *("1", "1"),
    )
    assert float(kept["removed_ml"]) == pytest.approx(0.01)
    assert kept["note"] == "1 to myocardium"


def test_classes_stand_in_a_table_before_and_after(cohort):
    merge(cohort)
    (coronary,) = [r for r in table(cohort / "out" / "classes.csv") if (r["case"], r["class"]) == ("a", "coronary")]
    assert (coronary["base_voxels"], coronary["merged_voxels"]) == ("2", "3")
    assert float(coronary["dice"]) == pytest.approx(0.8)


def test_names_of_the_ids_lie_beside_the_result(cohort):
    merge(cohort)
    assert read_labels(cohort / "out" / "labels.json")[9] == "coronary"


def test_the_summary_adds_up_over_cases(cohort):
    merge(cohort)
    (kept,) = [r for r in summary(cohort / "out") if r["rule"] == "keep coronary=1"]
    assert (kept["cases"], kept["changed"], kept["removed_voxels"]) == (2, 1, 1)


def test_flags_are_told_by_case(cohort, caplog):
    put(cohort / "fine" / "a.nii.gz", row(0))
    merge(cohort)
    assert list(flags(cohort / "out")) == ["a"]
    assert "a: coronary, refined: the refined mask is empty, so the base is kept" in caplog.text


def test_masks_may_be_named_after_case_and_class(cohort):
    for case in "ab":
        (cohort / "fine" / f"{case}.nii.gz").rename(cohort / "fine" / f"{case}-coronary.nii.gz")
    assert set(merge(cohort).done) == {"a", "b"}


def test_masks_of_0_and_255_are_masks(cohort):
    put(cohort / "fine" / "a.nii.gz", row(0, 0, 255, 255, 255))
    merge(cohort)
    assert ids(cohort / "out" / "a.nii.gz") == [1, 1, 9, 9, 9, 0]


def test_a_label_map_refines_the_classes_whose_ids_it_holds(cohort):
    put(cohort / "maps" / "a.nii.gz", row(0, 0, 0, 9))
    merge(cohort, cohort / "maps")
    assert ids(cohort / "out" / "a.nii.gz") == [1, 1, 0, 9, 0, 0]


def test_a_folder_of_masks_refines_the_classes_it_names(cohort):
    put(cohort / "cases" / "a" / "coronary.nii.gz", row(0, 0, 0, 1))
    merge(cohort, cohort / "cases")
    assert ids(cohort / "out" / "a.nii.gz") == [1, 1, 0, 9, 0, 0]


def test_a_class_of_its_own_wins_over_label_maps(cohort):
    put(cohort / "maps" / "a.nii.gz", row(1, 0, 9))
    merge(cohort, f"coronary={cohort / 'fine'}", cohort / "maps")
    assert ids(cohort / "out" / "a.nii.gz") == [1, 0, 9, 9, 9, 0]


def test_one_file_against_one_file_belong_together(cohort):
    merge(cohort, f"coronary={cohort / 'fine' / 'b.nii.gz'}", base="base/a.nii.gz")
    assert ids(cohort / "out" / "a.nii.gz") == [1, 1, 9, 9, 0, 0]


def test_without_refined_masks_the_rules_alone_clean_the_base(cohort):
    put(cohort / "base" / "a.nii.gz", row(9, 1, 9, 9))
    merge_files([], cohort / "base", cohort / "out", PLAIN)
    assert ids(cohort / "out" / "a.nii.gz") == [0, 1, 9, 9, 0, 0]


def test_cases_with_nothing_refined_are_left_out_and_told(cohort, caplog):
    (cohort / "fine" / "b.nii.gz").unlink()
    put(cohort / "fine" / "c.nii.gz", row(1))
    assert merge(cohort).done == ("a",)
    assert "1 cases of" in caplog.text
    assert "have nothing refined and are left out: b" in caplog.text
    assert "belong to no case of" in caplog.text


def test_names_beside_the_base_are_the_class_list(cohort):
    write_labels(cohort / "base" / "labels.json", {1: "wall", 9: "vessel"})
    config = MergeConfig(priority=("vessel",), keep=("vessel=1",), touch=None, near=None, fill=None)
    merge(cohort, f"vessel={cohort / 'fine'}", config=config)
    assert ids(cohort / "out" / "b.nii.gz") == [1, 1, 9, 9, 0, 0]
    assert read_labels(cohort / "out" / "labels.json") == {1: "wall", 9: "vessel"}


def test_a_class_list_that_is_given_renumbers_by_name(cohort):
    write_labels(cohort / "base" / "labels.json", {1: "myocardium", 9: "coronary"})
    merge(cohort, labels={5: "myocardium", 7: "coronary"})
    assert ids(cohort / "out" / "a.nii.gz") == [5, 5, 7, 7, 7, 0]


def test_ids_without_a_name_are_kept_and_flagged(cohort):
    put(cohort / "base" / "a.nii.gz", row(1, 40, 9))
    merge(cohort, labels={1: "myocardium", 9: "coronary"})
    assert ids(cohort / "out" / "a.nii.gz") == [1, 40, 9, 9, 9, 0]
    assert flags(cohort / "out")["a"] == ["ids 40 have no name; they are kept as they are"]


def test_ids_that_the_heart_lacks_ask_for_a_class_list(cohort):
    put(cohort / "base" / "a.nii.gz", row(1, 40, 9))
    outcome = merge(cohort)
    assert "holds the id 40, which the classes of the heart lack; give --labels FILE" in outcome.failed["a"]
    assert outcome.done == ("b",)


def test_a_mask_on_another_grid_costs_its_case_alone(cohort):
    moved = AFFINE.copy()
    moved[0, 3] = 3.0
    put(cohort / "fine" / "a.nii.gz", row(0, 0, 1), affine=moved)
    outcome = merge(cohort)
    assert "not on the grid of the base: corner voxels lie up to 3 mm apart" in outcome.failed["a"]
    assert outcome.done == ("b",)
    assert not (cohort / "out" / "a.nii.gz").exists()


def test_a_mask_of_another_shape_is_refused_with_both_shapes(cohort):
    put(cohort / "fine" / "a.nii.gz", np.zeros((10, 6, 4), np.uint8))
    assert "shape (10, 6, 4) against (10, 6, 5)" in merge(cohort).failed["a"]


def test_a_mask_with_two_ids_is_refused(cohort):
    put(cohort / "fine" / "a.nii.gz", row(1, 2))
    assert "holds the ids [1, 2] where a mask of coronary has one" in merge(cohort).failed["a"]


def test_a_map_that_was_interpolated_is_refused(cohort):
    put(cohort / "fine" / "a.nii.gz", row(1).astype(np.float32) / 2)
    assert "0.5, which is no whole number" in merge(cohort).failed["a"]


def test_a_class_in_two_label_maps_is_refused(cohort):
    for folder in ("one", "two"):
        put(cohort / folder / "a.nii.gz", row(0, 9))
    assert "coronary is in" in merge(cohort, cohort / "one", cohort / "two").failed["a"]


def test_a_class_given_twice_is_refused(cohort):
    with pytest.raises(MedsegError, match="coronary is given twice"):
        merge(cohort, f"coronary={cohort / 'fine'}", f"Coronary={cohort / 'fine'}")


def test_an_unknown_class_is_refused_with_the_nearest(cohort):
    with pytest.raises(MedsegError, match="no class is called 'coronry'; did you mean 'coronary'"):
        merge(cohort, f"coronry={cohort / 'fine'}")


def test_folders_without_a_common_case_are_refused_with_both(cohort):
    put(cohort / "other" / "x.nii.gz", row(1))
    with pytest.raises(MedsegError, match=r"share no case: a, b against x"):
        merge(cohort, f"coronary={cohort / 'other'}")


@pytest.mark.parametrize("out", ["base", "fine", "."])
def test_inputs_are_never_written_over(cohort, out):
    with pytest.raises(MedsegError, match="which is read; choose another --out"):
        merge(cohort, out=out, overwrite=True)


def test_a_folder_of_something_else_is_refused_unless_asked_for(cohort):
    put(cohort / "out" / "mine.nii.gz", row(1))
    with pytest.raises(MedsegError, match="was not begun by merge"):
        merge(cohort)
    assert merge(cohort, overwrite=True).done == ("a", "b")


def test_a_second_call_skips_what_is_done(cohort):
    merge(cohort)
    assert merge(cohort).skipped == ("a", "b")
    assert len(table(cohort / "out" / "classes.csv")) == 4


def test_another_number_of_processes_goes_on_in_the_same_folder(cohort):
    merge(cohort)
    assert merge(cohort, config=replace(PLAIN, workers=2)).skipped == ("a", "b")


def test_a_case_with_a_new_mask_is_merged_again(cohort, caplog):
    caplog.set_level(logging.INFO)
    merge(cohort)
    put(cohort / "fine" / "a.nii.gz", row(0, 1, 1, 1, 1, 1))
    outcome = merge(cohort)
    assert (outcome.done, outcome.skipped) == (("a",), ("b",))
    assert "done again: a" in caplog.text
    assert ids(cohort / "out" / "a.nii.gz") == [1, 9, 9, 9, 9, 9]


def test_a_case_that_lost_its_output_is_merged_again(cohort):
    merge(cohort)
    (cohort / "out" / "b.nii.gz").unlink()
    assert merge(cohort).done == ("b",)


def test_other_rules_need_another_folder(cohort):
    merge(cohort)
    with pytest.raises(MedsegError, match="was begun with other settings: keep"):
        merge(cohort, config=MergeConfig(keep=None, touch=None, near=None, fill=None))


def test_merging_the_output_again_gives_equal_files(cohort):
    merge(cohort)
    merge(cohort, cohort / "out", base="out", out="again")
    for case in "ab":
        first, second = ((cohort / out / f"{case}.nii.gz").read_bytes() for out in ("out", "again"))
        assert first == second


def test_processes_give_what_one_process_gives(cohort):
    merge(cohort)
    merge(cohort, out="two", config=replace(PLAIN, workers=2))
    assert (cohort / "out" / "rules.csv").read_bytes() == (cohort / "two" / "rules.csv").read_bytes()


def test_a_real_scan_is_fused_with_its_quick_segmentation(data, tmp_path):
    folder = data / "ct_multiorgan" / "ts_s0001"
    files = [folder / f"seg_multilabel_v1_104{end}.nii.gz" for end in ("_fast", "")]
    vessels = ("aorta", "inferior_vena_cava", "portal_vein_and_splenic_vein")
    rules = {"keep": tuple(f"{name}=1" for name in vessels), "touch": ("iliac_artery_left:aorta",), "near": None}
    merge_files(files[:1], files[1], tmp_path / "out", MergeConfig(priority=vessels, fill=("liver",), **rules))
    fast, result = read_volume(files[0]).voxels, read_volume(next((tmp_path / "out").glob("*.nii.gz"))).voxels
    names = json.loads((folder / "labels.json").read_text())["labels"]
    assert np.count_nonzero(fast == names["aorta"]) == np.count_nonzero(result == names["aorta"])
    rows = {(r["class"], r["rule"]): r for r in table(tmp_path / "out" / "rules.csv")}
    assert rows["portal_vein_and_splenic_vein", "keep portal_vein_and_splenic_vein=1"]["removed_voxels"] == "4"
    assert rows["heart_myocardium", "refined"]["outcome"] == "left"
