import csv
import math

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from medseg_core.errors import MedsegError
from medseg_core.io import read_volume
from medseg_core.table import write_csv
from medseg_near.audit import Limits, audit, flagged, read_limits, rim, within_reach

ANYWHERE = Limits(percent=1e9, mm=1e9)


def empty(shape=(9, 9, 9)):
    return np.zeros(shape, bool)


def cube(start=3, stop=6):
    mask = empty()
    mask[start:stop, start:stop, start:stop] = True
    return mask


def blobs(seed, share=0.02, shape=(14, 11, 9)):
    rng = np.random.default_rng(seed)
    return rng.random(shape) < share


def test_an_added_voxel_beside_the_surface_has_the_spacing_of_its_axis():
    after = cube()
    after[6, 4, 4] = after[4, 6, 4] = after[4, 4, 6] = True
    change_mm = audit(cube(), after, spacing_mm=(0.5, 1.0, 3.0)).change_mm
    assert (change_mm[6, 4, 4], change_mm[4, 6, 4], change_mm[4, 4, 6]) == (0.5, 1.0, 3.0)


def test_an_island_counts_with_its_distance_from_the_input():
    after = cube()
    after[8, 4, 8] = True  # from (5, 4, 5) 3 mm along x and 4 mm along z
    assert audit(cube(), after, spacing_mm=(1, 1, 4 / 3)).largest_mm == pytest.approx(5.0)


def test_a_lost_branch_counts_with_its_length_though_it_is_one_voxel_thick():
    before = cube()
    before[6:9, 4, 4] = True
    change_mm = audit(before, cube(), spacing_mm=(0.7, 1, 1)).change_mm
    assert change_mm[6:9, 4, 4].tolist() == pytest.approx([-0.7, -1.4, -2.1])


def test_what_did_not_change_is_zero_in_the_map():
    before, after = blobs(1), blobs(2)
    change_mm = audit(before, after, spacing_mm=(1, 1, 1)).change_mm
    assert change_mm.dtype == np.float32
    assert ((change_mm != 0) == (before != after)).all()


@pytest.mark.parametrize("seed", range(4))
def test_distances_are_those_of_scipy(seed):
    spacing_mm = (0.4, 1.1, 2.5)
    before, after = blobs([seed, 0]), blobs([seed, 1])
    expected = np.where(after & ~before, distance_transform_edt(~before, spacing_mm), 0)
    expected -= np.where(before & ~after, distance_transform_edt(~after, spacing_mm), 0)
    assert np.allclose(audit(before, after, spacing_mm=spacing_mm).change_mm, expected, atol=1e-5)


def test_swapping_input_and_result_swaps_the_signs():
    before, after = blobs(3), blobs(4)
    there, back = (audit(*pair, spacing_mm=(1, 2, 3)) for pair in ((before, after), (after, before)))
    assert np.array_equal(there.change_mm, -back.change_mm)


def test_memory_order_changes_nothing():
    before, after = blobs(5), blobs(6)
    first = audit(before, after, spacing_mm=(1, 2, 3))
    second = audit(np.asfortranarray(before), np.asfortranarray(after), spacing_mm=(1, 2, 3))
    assert np.array_equal(first.change_mm, second.change_mm)
    assert first.as_row() == second.as_row()


def test_volumes_are_counted_in_millilitres():
    after = cube()
    after[3, 3, 3] = False
    after[7, 4:8, 4] = True
    found = audit(cube(), after, spacing_mm=(1, 2, 5))  # a voxel has 0.01 ml; 27 before, 4 come, 1 goes
    assert (found.before_ml, found.after_ml) == pytest.approx((0.27, 0.30))
    assert (found.added_ml, found.removed_ml) == pytest.approx((0.04, 0.01))
    assert (found.added_percent, found.removed_percent) == pytest.approx((400 / 27, 100 / 27))


def test_a_volume_that_shrinks_changes_by_a_negative_percentage():
    assert audit(cube(3, 6), cube(3, 5), spacing_mm=(1, 1, 1)).change_percent == pytest.approx(-100 * 19 / 27)


def test_dice_is_twice_the_common_part_over_both():
    assert audit(cube(3, 6), cube(3, 5), spacing_mm=(1, 1, 1)).dice == pytest.approx(2 * 8 / (27 + 8))


def test_components_touching_at_a_corner_are_one():
    before, after = empty(), empty()
    before[1, 1, 1] = before[2, 2, 2] = True
    after[1, 1, 1] = after[3, 3, 3] = True
    found = audit(before, after, spacing_mm=(1, 1, 1))
    assert (found.num_components_before, found.num_components_after) == (1, 2)


def test_mean_largest_and_percentile_are_of_changed_voxels_alone():
    before, after = empty((30, 3, 3)), empty((30, 3, 3))
    before[0, 1, 1] = True
    after[:21, 1, 1] = True  # 20 voxels, 1 to 20 mm away
    found = audit(before, after, spacing_mm=(1, 1, 1))
    assert (found.mean_mm, found.largest_mm) == (10.5, 20.0)
    assert found.p95_mm == pytest.approx(19.05)  # between the 19th and the 20th, at 0.95 of 19 steps


def test_nothing_changed_is_zero_everywhere():
    found = audit(cube(), cube(), spacing_mm=(1, 1, 1))
    assert (found.largest_mm, found.p95_mm, found.mean_mm, found.change_percent, found.dice) == (0, 0, 0, 0, 1)


def test_without_an_input_no_share_of_it_is_told_and_distances_are_the_diagonal():
    found = audit(empty(), cube(), spacing_mm=(1, 1, 1))
    assert found.note == "input is empty"
    assert math.isnan(found.change_percent)
    assert math.isnan(found.added_percent)
    assert found.largest_mm == pytest.approx(9 * math.sqrt(3))
    assert found.dice == 0


def test_a_result_that_is_empty_is_told():
    found = audit(cube(), empty(), spacing_mm=(1, 1, 1))
    assert (found.note, found.change_percent, found.num_components_after) == ("result is empty", -100, 0)
    assert found.change_mm.min() == pytest.approx(-9 * math.sqrt(3))


def test_two_empty_masks_have_no_dice():
    found = audit(empty(), empty(), spacing_mm=(1, 1, 1))
    assert found.note == "both are empty"
    assert math.isnan(found.dice)
    assert not found.change_mm.any()


def test_a_row_goes_into_a_table_with_empty_cells_for_what_is_undefined(tmp_path):
    row = audit(empty(), cube(), spacing_mm=(1, 1, 1)).as_row()
    write_csv(tmp_path / "audit.csv", [row], tuple(row))
    (read,) = csv.DictReader((tmp_path / "audit.csv").open())
    assert read["change_percent"] == ""
    assert (float(read["after_ml"]), read["note"]) == (0.027, "input is empty")


def test_work_is_bounded_by_the_box_about_both_masks():
    before, after = np.zeros((2, 400, 300, 200), bool)
    before[100:103, 50:60, 20] = True
    after[101:106, 50:60, 20:22] = True
    found = audit(before, after, spacing_mm=(1, 1, 1))
    assert found.crop_mm.shape == (6, 10, 2)
    assert found.start == (100, 50, 20)


def test_masks_on_two_grids_are_refused():
    with pytest.raises(MedsegError, match="must lie on one grid"):
        audit(empty((3, 3, 3)), empty((3, 3, 4)), spacing_mm=(1, 1, 1))


def test_a_label_map_is_no_mask():
    with pytest.raises(MedsegError, match="the result holds uint8 where a mask is bool"):
        audit(cube(), cube().astype(np.uint8), spacing_mm=(1, 1, 1))


def test_the_rim_of_a_cube_is_all_but_its_middle():
    expected = cube()
    expected[4, 4, 4] = False
    assert np.array_equal(rim(cube()), expected)


def test_voxels_at_the_edge_of_the_array_belong_to_the_rim():
    assert rim(np.ones((3, 3, 3), bool)).sum() == 26


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20%", Limits(percent=20)),
        ("5mm", Limits(mm=5)),
        (" 2.5 % , .5 MM ", Limits(percent=2.5, mm=0.5)),
        ("none", Limits()),
    ],
)
def test_bounds_are_named_by_their_units(text, expected):
    assert read_limits(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("20", "got '20'; write 20% of the volume, 20mm"),
        ("five mm", "got 'five mm'; write 20%"),
        ("-3mm", "got '-3mm'"),
        ("3mm,4mm", "bounds mm twice"),
        ("", "got ''"),
    ],
)
def test_a_bound_that_is_none_is_refused_with_the_fix(text, said):
    with pytest.raises(MedsegError, match=said):
        read_limits(text)


def test_without_bounds_nothing_is_flagged():
    assert flagged(audit(cube(), empty(), spacing_mm=(1, 1, 1)), Limits()) == ""


def test_what_is_exactly_at_its_bound_passes():
    after = cube()
    after[6:8, 4, 4] = True
    found = audit(cube(), after, spacing_mm=(0.1 * 3, 1, 1))
    assert flagged(found, Limits(percent=200 / 27, mm=0.6)) == ""


def test_a_share_beyond_its_bound_is_flagged_with_both_numbers():
    found = audit(cube(3, 6), cube(3, 5), spacing_mm=(1, 1, 1))
    assert flagged(found, Limits(percent=20)) == "removed 70.4 % of the volume, allowed 20 %"


def test_a_distance_beyond_its_bound_is_flagged_with_both_numbers():
    after = cube()
    after[8, 4, 4] = True
    found = audit(cube(), after, spacing_mm=(1, 1, 1))
    assert flagged(found, Limits(mm=2, percent=50)) == "changed 3 mm away, allowed 2 mm"


def test_a_mask_that_moved_is_flagged_though_its_volume_is_the_same():
    found = audit(cube(0, 3), cube(5, 8), spacing_mm=(1, 1, 1))
    assert found.change_percent == 0
    assert "added 100 %" in flagged(found, Limits(percent=50))


def test_a_result_that_is_empty_is_too_much_for_any_bound():
    assert "the result is empty" in flagged(audit(cube(), empty(), spacing_mm=(1, 1, 1)), ANYWHERE)


def test_a_result_without_an_input_is_too_much_for_any_bound():
    assert "the input is empty" in flagged(audit(empty(), cube(), spacing_mm=(1, 1, 1)), ANYWHERE)


def test_two_empty_masks_are_not_flagged():
    assert flagged(audit(empty(), empty(), spacing_mm=(1, 1, 1)), ANYWHERE) == ""


def test_two_segmentations_of_a_real_aorta_differ_by_what_scipy_measures(data):
    folder = data / "ct_multiorgan" / "ts_s0001"
    exact, fast = (read_volume(folder / f"seg_multilabel_v1_104{end}.nii.gz") for end in ("", "_fast"))
    before, after = exact.voxels == 7, fast.voxels == 7
    found = audit(before, after, spacing_mm=exact.spacing_mm)
    expected = np.where(after, distance_transform_edt(~before, exact.spacing_mm), 0)
    expected -= np.where(before, distance_transform_edt(~after, exact.spacing_mm), 0)
    assert np.allclose(found.change_mm, expected, atol=1e-5)
    assert found.added_ml == pytest.approx(np.count_nonzero(after & ~before) * 0.027)


@pytest.mark.parametrize(("reach_mm", "kept"), [(4.9, 0), (5.0, 1)])
def test_a_part_that_lies_by_itself_stays_only_where_it_is_near_the_input(reach_mm, kept):
    after = cube()
    after[8, 4, 8] = True  # from (5, 4, 5) 3 mm along x and 4 mm along z
    found, left_out = within_reach(cube(), after, reach_mm=reach_mm, spacing_mm=(1, 1, 4 / 3))
    assert (found[8, 4, 8], left_out) == (kept, 1 - kept)
    assert (found[:8] == cube()[:8]).all()


def test_a_part_that_touches_the_input_may_reach_as_far_as_it_likes():
    after = cube()
    after[5, 4, :] = True
    found, left_out = within_reach(cube(), after, reach_mm=1, spacing_mm=(1, 1, 1))
    assert (found == after).all()
    assert left_out == 0


def test_an_empty_input_leaves_the_result_as_it_is():
    found, left_out = within_reach(empty(), cube(), reach_mm=1, spacing_mm=(1, 1, 1))
    assert (found == cube()).all()
    assert left_out == 0
