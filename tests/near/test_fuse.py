import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg_core.config import resolve
from medseg_near.fuse import fuse
from medseg_near.rules import read_rules
from medseg_near.settings import MergeConfig
from medseg_near.whole_heart import WHOLE_HEART

NONE = {"priority": None, "touch": None, "near": None, "keep": None, "fill": None, "max_removed": 1.0}
MYOCARDIUM, LA, LV, AORTA, LAA, CORONARY, PV = 1, 2, 3, 6, 8, 9, 10
SHAPE = (10, 6, 6)


def grid(**places):
    """A label map of boxes: `c9=[(slice(0, 4), 3, 3), ...]`."""
    ids = np.zeros(SHAPE, np.uint8)
    for name, points in places.items():
        for point in points:
            ids[point] = int(name[1:])
    return ids


def mask(*points):
    return grid(c1=points) > 0


def merged(base, refined=None, spacing_mm=(1, 1, 1), *, labels=WHOLE_HEART, **rules):
    """With the rules that are given, and the default priority unless it is given."""
    config = resolve(MergeConfig, {**NONE, "priority": MergeConfig().priority, **rules})
    return fuse(base, refined or {}, read_rules(config, labels), spacing_mm=spacing_mm)


def effect(found, name, rule):
    (row,) = [row for row in found.effects if (row["class"], row["rule"]) == (name, rule)]
    return row


def counts(found, name, rule):
    row = effect(found, name, rule)
    return row["added_voxels"], row["removed_voxels"]


def cohort_of_noise(seed):
    """A base and refined masks of noise, three of them, overlapping."""
    rng = np.random.default_rng(seed)
    base = rng.choice([0, 0, 0, 1, 2, 3, 6, 8, 9, 10], SHAPE).astype(np.uint8)
    chosen = rng.choice([1, 2, 6, 8, 9, 10], 3, replace=False).tolist()
    return base, {i: rng.random(SHAPE) < rng.choice([0.03, 0.3, 0.9]) for i in chosen}


def test_a_refined_class_takes_the_place_of_that_of_the_base():
    base = grid(c9=[(slice(0, 4), 0, 0)], c2=[(0, 5, 5)])
    found = merged(base, {CORONARY: mask((slice(2, 7), 0, 0))})
    assert np.array_equal(found.label, grid(c9=[(slice(2, 7), 0, 0)], c2=[(0, 5, 5)]))
    assert counts(found, "coronary", "refined") == (3, 2)


def test_the_class_of_higher_priority_has_a_voxel_that_two_claim():
    base = grid(c1=[(slice(0, 6), 0, 0)], c8=[(slice(6, 9), 0, 0)])
    found = merged(base, {CORONARY: mask((slice(4, 6), 0, 0)), LA: mask((slice(7, 10), 0, 0))})
    assert found.label[:, 0, 0].tolist() == [1, 1, 1, 1, 9, 9, 8, 8, 8, 2]  # coronary > myocardium; LAA > LA
    assert counts(found, "myocardium", "priority") == (0, 2)
    assert counts(found, "LA", "priority") == (0, 2)
    assert counts(found, "coronary", "priority") == (0, 0)


def test_priority_can_be_turned_round():
    base = grid(c1=[(slice(0, 6), 0, 0)])
    found = merged(base, {CORONARY: mask((slice(4, 8), 0, 0))}, priority="myocardium,coronary")
    assert found.label[:, 0, 0].tolist() == [1] * 6 + [9, 9, 0, 0]


def test_what_a_rule_removes_falls_to_what_lies_beneath():
    base = grid(c1=[(slice(0, 6), 0, 0)])
    coronary = mask((slice(0, 3), 0, 0), (slice(5, 7), 0, 0))
    found = merged(base, {CORONARY: coronary}, keep="coronary=1")
    assert found.label[:, 0, 0].tolist() == [9, 9, 9, 1, 1, 1, 0, 0, 0, 0]
    assert counts(found, "coronary", "keep coronary=1") == (0, 2)
    assert effect(found, "coronary", "keep coronary=1")["note"] == "1 to background, 1 to myocardium"
    assert counts(found, "myocardium", "uncovered") == (1, 0)


def test_where_the_base_had_the_removed_class_itself_there_is_background():
    found = merged(grid(c9=[(slice(0, 3), 0, 0), (5, 0, 0)]), keep="coronary=1")
    assert found.label[:, 0, 0].tolist() == [9, 9, 9, 0, 0, 0, 0, 0, 0, 0]


def test_a_removed_voxel_may_fall_to_another_refined_class():
    refined = {CORONARY: mask((0, 0, 0), (slice(5, 7), 0, 0)), AORTA: mask((slice(0, 3), 0, 0))}
    found = merged(grid(), refined, keep="coronary=1")
    assert found.label[:, 0, 0].tolist() == [6, 6, 6, 0, 0, 9, 9, 0, 0, 0]


def test_touch_comes_before_keep_so_that_a_large_stray_does_not_win():
    base = grid(c2=[(0, 0, 0)], c8=[(1, 0, 0), (slice(5, 9), 0, 0)])
    found = merged(base, touch="LAA:LA", keep="LAA=1")
    assert found.label[:, 0, 0].tolist() == [2, 8, 0, 0, 0, 0, 0, 0, 0, 0]
    assert counts(found, "LAA", "touch LAA:LA") == (0, 4)
    assert effect(found, "LAA", "keep LAA=1")["outcome"] == "nothing to do"


def test_rules_go_on_until_none_changes_anything():
    # PV at 5 hangs on the stray LA at 4, which goes only when LA keeps its largest part
    base = grid(c2=[(slice(0, 2), 0, 0), (4, 0, 0)], c10=[(2, 0, 0), (5, 0, 0)])
    found = merged(base, touch="PV:LA", keep="LA=1")
    assert found.label[:, 0, 0].tolist() == [2, 2, 10, 0, 0, 0, 0, 0, 0, 0]
    assert counts(found, "PV", "touch PV:LA") == (0, 1)


def test_holes_are_filled_and_counted():
    base = grid(c1=[(slice(0, 5), slice(0, 5), slice(0, 5))], c0=[(2, 2, 2), (2, 2, 1)])
    found = merged(base, fill="myocardium")
    assert (found.label == MYOCARDIUM).sum() == 125
    row = effect(found, "myocardium", "fill myocardium")
    assert (row["added_voxels"], row["num_components"], row["outcome"]) == (2, 1, "changed")


def test_a_hole_that_opens_late_is_filled_too():
    # in the wall lie a stray LA and a PV that hangs on it: the LA goes first, then the PV
    base = grid(c1=[(slice(0, 6), slice(0, 5), slice(0, 5))], c2=[(2, 2, 2), (slice(8, 10), 0, 0)], c10=[(3, 2, 2)])
    base[9, 1, 0] = PV
    found = merged(base, touch="PV:LA", keep="LA=1", fill="myocardium")
    assert (found.label == MYOCARDIUM).sum() == 150
    assert (found.label == PV).sum() == 1


def test_volumes_are_told_in_millilitres():
    base = grid(c9=[(slice(0, 3), 0, 0), (5, 0, 0)])
    found = merged(base, keep="coronary=1", spacing_mm=(1, 2, 5))
    assert effect(found, "coronary", "keep coronary=1")["removed_ml"] == pytest.approx(0.01)
    (row,) = found.classes
    assert (row["base_ml"], row["merged_ml"]) == pytest.approx((0.04, 0.03))


def test_classes_are_compared_with_the_base():
    (row,) = merged(grid(c9=[(slice(0, 3), 0, 0), (5, 0, 0)]), keep="coronary=1").classes
    assert (row["class"], row["id"], row["base_voxels"], row["merged_voxels"]) == ("coronary", 9, 4, 3)
    assert (row["base_components"], row["merged_components"]) == (2, 1)
    assert row["dice"] == pytest.approx(6 / 7)


def test_a_rule_with_nothing_to_do_is_told():
    found = merged(grid(c9=[(0, 0, 0)]), keep="coronary=2,aorta=2", touch="LAA:LA")
    outcomes = {row["rule"]: row["outcome"] for row in found.effects if row["rule"] not in ("priority", "refined")}
    assert outcomes == {
        "touch LAA:LA": "class absent",
        "keep coronary=2": "nothing to do",
        "keep aorta=2": "class absent",
    }


def test_a_rule_that_would_remove_a_class_leaves_it_and_says_so():
    base = grid(c2=[(0, 0, 0)], c8=[(5, 0, 0)])
    found = merged(base, touch="LAA:LA")
    assert np.array_equal(found.label, base)
    assert found.flags == ("LAA, touch LAA:LA: it would remove the whole class, so it is not applied",)
    row = effect(found, "LAA", "touch LAA:LA")
    assert (row["outcome"], row["flagged"]) == ("left", True)


def test_a_rule_that_would_remove_more_than_it_may_leaves_the_class_and_says_so():
    base = grid(c9=[(slice(0, 3), 0, 0), (slice(4, 6), 0, 0), (slice(7, 9), 0, 0)])  # 4 of 7 voxels
    found = merged(base, keep="coronary=1", max_removed=0.5)
    assert np.array_equal(found.label, base)
    why = "it would remove 57% of the class, more than max_removed 0.5, so it is not applied"
    assert found.flags == (f"coronary, keep coronary=1: {why}",)


def test_a_rule_that_removes_just_what_it_may_is_applied():
    base = grid(c9=[(slice(0, 2), 0, 0), (4, 0, 0), (6, 0, 0)])
    assert (merged(base, keep="coronary=1", max_removed=0.5).label == CORONARY).sum() == 2


def test_a_rule_that_was_left_is_applied_once_it_finds_its_target():
    # LAA at 4 touches LA only when the stray coronary at 3 is gone, which lies on LA
    refined = {LA: mask((0, 0, 0), (3, 0, 0)), CORONARY: mask((3, 0, 0), (slice(5, 7), 3, 3))}
    found = merged(grid(c8=[(4, 0, 0), (8, 0, 0)]), refined, touch="LAA:LA", keep="coronary=1")
    assert found.label[:, 0, 0].tolist() == [2, 0, 0, 2, 8, 0, 0, 0, 0, 0]
    assert found.flags == ()
    assert effect(found, "LAA", "touch LAA:LA")["outcome"] == "changed"


def test_a_refined_mask_that_is_empty_gives_way_to_the_base():
    base = grid(c9=[(slice(0, 4), 0, 0)])
    found = merged(base, {CORONARY: mask()})
    assert np.array_equal(found.label, base)
    assert found.flags == ("coronary, refined: the refined mask is empty, so the base is kept",)


def test_a_refined_mask_that_is_empty_where_the_base_is_empty_too_is_no_finding():
    assert merged(grid(c2=[(0, 0, 0)]), {CORONARY: mask()}).flags == ()


def test_a_class_that_others_cover_wholly_is_drawn_above_them():
    found = merged(grid(c1=[(slice(2, 4), 0, 0)]), {CORONARY: mask((slice(0, 6), 0, 0))})
    assert found.label[:, 0, 0].tolist() == [9, 9, 1, 1, 9, 9, 0, 0, 0, 0]
    assert found.flags == ("myocardium, priority: others cover all of it, so it is drawn above them",)


def test_two_classes_that_claim_the_same_voxels_cannot_both_be_kept():
    found = merged(grid(c1=[(slice(2, 4), 0, 0)]), {CORONARY: mask((slice(2, 4), 0, 0))})
    assert found.label[:, 0, 0].tolist() == [0, 0, 9, 9, 0, 0, 0, 0, 0, 0]
    assert effect(found, "myocardium", "priority")["outcome"] == "lost"
    assert "no voxel is left for it" in found.flags[0]


def test_a_refined_class_that_is_lost_is_told_though_the_base_had_none():
    claimed = mask((slice(2, 4), 0, 0))
    found = merged(grid(), {MYOCARDIUM: claimed, CORONARY: claimed})
    assert effect(found, "myocardium", "priority")["outcome"] == "lost"
    assert counts(found, "myocardium", "refined") == (2, 0)
    assert counts(found, "myocardium", "priority") == (0, 2)


def test_ids_without_a_name_stay_below_all_classes():
    found = merged(grid(c40=[(slice(0, 4), 0, 0)]), {CORONARY: mask((slice(2, 6), 0, 0))})
    assert found.label[:, 0, 0].tolist() == [40, 40, 9, 9, 9, 9, 0, 0, 0, 0]


def test_ids_above_255_are_held():
    found = merged(grid(c2=[(0, 0, 0)]), {300: mask((1, 0, 0))}, labels={2: "a", 300: "b"})
    assert (found.label.dtype, found.label[1, 0, 0]) == (np.uint16, 300)


def test_the_base_and_the_masks_are_not_changed():
    base, refined = cohort_of_noise(0)
    before = base.copy(), {i: each.copy() for i, each in refined.items()}
    fuse(base, refined, read_rules(MergeConfig()), spacing_mm=(1, 1, 1))
    assert np.array_equal(base, before[0])
    assert all(np.array_equal(refined[i], before[1][i]) for i in refined)


def test_memory_order_changes_nothing():
    base, refined = cohort_of_noise(1)
    first = fuse(base, refined, read_rules(MergeConfig()), spacing_mm=(1, 2, 3))
    turned = {i: np.asfortranarray(each) for i, each in refined.items()}
    second = fuse(np.asfortranarray(base), turned, read_rules(MergeConfig()), spacing_mm=(1, 2, 3))
    assert np.array_equal(first.label, second.label)
    assert first.effects == second.effects
    assert second.label.flags.f_contiguous


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.permutations([1, 2, 3, 6, 8, 9, 10]))
def test_without_rules_every_voxel_has_the_first_class_that_claims_it(seed, order):
    base, refined = cohort_of_noise(seed)
    found = merged(base, refined, priority=",".join(WHOLE_HEART[i] for i in order))
    layers = {i: base == i for i in order} | refined
    expected = np.zeros(SHAPE, np.uint8)
    for i in reversed(order):
        expected[layers[i]] = i
    drawn_above = any("priority" in flag for flag in found.flags)
    assert drawn_above or np.array_equal(found.label, expected)


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_merging_the_result_again_changes_nothing(seed):
    base, refined = cohort_of_noise(seed)
    rules = read_rules(MergeConfig())
    first = fuse(base, refined, rules, spacing_mm=(1, 2, 3)).label
    again = fuse(first, {i: first == i for i in refined}, rules, spacing_mm=(1, 2, 3))
    alone = fuse(first, {}, rules, spacing_mm=(1, 2, 3))
    assert np.array_equal(again.label, first)
    assert np.array_equal(alone.label, first)
    assert not any(row["added_voxels"] + row["removed_voxels"] for row in alone.effects)


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_the_rows_of_a_class_add_up_to_its_voxels(seed):
    base, refined = cohort_of_noise(seed)
    found = fuse(base, refined, read_rules(MergeConfig()), spacing_mm=(1, 2, 3))
    for i, name in WHOLE_HEART.items():
        rows = [row for row in found.effects if row["class"] == name]
        gained = sum(row["added_voxels"] - row["removed_voxels"] for row in rows)
        assert np.count_nonzero(base == i) + gained == np.count_nonzero(found.label == i)


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_no_class_vanishes_without_a_flag(seed):
    base, refined = cohort_of_noise(seed)
    found = fuse(base, refined, read_rules(MergeConfig()), spacing_mm=(1, 2, 3))
    there = set(np.unique(base).tolist()) | {i for i, each in refined.items() if each.any()}
    gone = {WHOLE_HEART[i] for i in there - set(np.unique(found.label).tolist()) - {0}}
    assert gone <= {flag.split(",")[0] for flag in found.flags}
