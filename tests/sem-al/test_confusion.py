"""Confusion and the scores that follow: by hand, and over groups."""

import numpy as np
import pytest

from medseg_sem_al.confusion import confusion, miou_interval, overall, per_class

# row true, column predicted: of 10 pixels of class 0 eight are found, of 6 of class 1 four, of 4 of class 2 none
COUNTS = np.array([[8, 2, 0], [2, 4, 0], [1, 3, 0]])


def test_rows_are_true_and_columns_are_predicted():
    label, mask = np.array([[0, 0, 1, 2]], np.uint8), np.array([[0, 2, 0, 2]], np.uint8)
    assert confusion(mask, label, 3).tolist() == [[1, 0, 1], [1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(("mask", "label"), [([0, 255], [0, 1]), ([0, 1], [0, 255]), ([0, 3], [0, 2])])
def test_pixels_that_are_no_class_on_either_side_count_nowhere(mask, label):
    found = confusion(np.array(mask, np.uint8), np.array(label, np.uint8), 3)
    assert found.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_many_classes_do_not_overflow_the_ids_of_a_picture():
    ids = np.arange(200, dtype=np.uint8)
    assert (confusion(ids, ids, 200) == np.eye(200)).all()


def test_scores_of_each_class_are_those_by_hand():
    found = per_class(COUNTS)
    assert found["dice"].tolist() == pytest.approx([16 / 21, 8 / 15, 0])
    assert found["iou"].tolist() == pytest.approx([8 / 13, 4 / 11, 0])
    assert found["recall"].tolist() == pytest.approx([8 / 10, 4 / 6, 0])
    assert found["precision"].tolist() == pytest.approx([8 / 11, 4 / 9, np.nan], nan_ok=True)
    assert found["share"].tolist() == [0.5, 0.3, 0.2]


def test_scores_of_all_classes_are_means_over_classes():
    found = overall(COUNTS)
    assert found["miou"] == pytest.approx((8 / 13 + 4 / 11) / 3)
    assert found["dice"] == pytest.approx((16 / 21 + 8 / 15) / 3)
    assert found["accuracy"] == 12 / 20


def test_the_majority_is_the_share_of_its_class_over_the_number_of_classes():
    assert overall(COUNTS)["majority"] == pytest.approx(0.5 / 3)


def test_the_majority_is_of_what_is_true_and_not_of_what_was_found():
    assert overall(np.array([[1, 2], [7, 0]]))["majority"] == pytest.approx(0.7 / 2)


def test_a_class_on_neither_side_does_not_count_as_one_nor_as_none():
    counts = np.array([[6, 2, 0], [0, 8, 0], [0, 0, 0]])
    assert np.isnan(per_class(counts)["iou"][2])
    assert overall(counts)["miou"] == pytest.approx((6 / 8 + 8 / 10) / 2)
    assert overall(counts)["majority"] == pytest.approx(0.5 / 2)


@pytest.mark.parametrize("counts", [[[9, 1], [0, 0]], [[9, 0], [1, 0]]])
def test_a_class_that_was_invented_or_missed_counts_as_none(counts):
    assert overall(np.array(counts))["miou"] == pytest.approx(0.9 / 2)


def test_nothing_at_all_has_no_score():
    found = overall(np.zeros((3, 3), int))
    assert np.isnan(found["miou"])
    assert found["accuracy"] == 0


def test_the_interval_draws_groups_and_not_pictures():
    # Of two groups the first is all right and the second all wrong. A quarter of the draws holds the one alone, a
    # quarter the other: the ends are 1 and 0. Were forty pictures drawn, no end would come near.
    right, wrong = np.array([[5, 0], [0, 5]]), np.array([[0, 5], [5, 0]])
    counts = np.array([right, wrong] * 20)
    assert miou_interval(counts, ["a", "b"] * 20) == (0, 1)
    low, high = miou_interval(counts, [str(number) for number in range(40)])
    assert 0.15 < low < high < 0.6


def test_the_interval_is_of_the_pixels_of_all_pictures_together():
    # each group alone finds its own class in 8 of 10 pixels and invents the other: (0.8 + 0) / 2; both together find 8
    # of the 12 pixels that either class has on either side. The mean of the two groups would be 0.4 in every draw.
    counts = np.array([[[8, 0], [2, 0]], [[0, 2], [0, 8]]])
    assert miou_interval(counts, ["a", "b"]) == (pytest.approx(0.4), pytest.approx(8 / 12))


def test_one_group_has_no_interval_however_many_its_pictures():
    assert np.isnan(miou_interval(np.array([COUNTS] * 9), ["a"] * 9)).all()


def test_the_interval_is_the_same_whenever_it_is_drawn():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 50, (6, 3, 3))
    assert miou_interval(counts, list("abcdef")) == miou_interval(counts, list("abcdef"))
    assert miou_interval(counts, list("abcdef")) != miou_interval(counts, list("abcdef"), seed=1)
