"""Counts against NumPy's own, scores by hand, and the policy for empty sides."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from medseg_core.errors import MedsegError
from medseg_core.metrics import Counts, count, scores, status

LABEL = np.array([[1, 1, 1, 1], [2, 2, 0, 0], [0, 0, 0, 3]], np.uint8)
MASK = np.array([[1, 1, 1, 0], [2, 0, 2, 2], [4, 0, 0, 0]], np.uint8)


def random_pair(seed: int, shape: tuple[int, ...], *, largest: int = 9) -> tuple[np.ndarray, np.ndarray]:
    """Label maps with runs long enough to fill words, and noise."""
    rng = np.random.default_rng(seed)
    label = np.repeat(rng.integers(0, largest + 1, shape), 11, axis=-1)
    mask = np.where(rng.random(label.shape) < 0.1, rng.integers(0, largest + 1, label.shape), label)
    return mask, label


def counted_by_class(mask: np.ndarray, label: np.ndarray) -> dict[int, tuple[int, int, int]]:
    ids = sorted({*np.unique(mask).tolist(), *np.unique(label).tolist()} - {0})
    return {i: (int(((mask == i) & (label == i)).sum()), int((mask == i).sum()), int((label == i).sum())) for i in ids}


def as_dict(counts: Counts) -> dict[int, tuple[int, int, int]]:
    rows = zip(counts.ids, counts.both, counts.mask, counts.label, strict=True)
    return {int(i): (int(both), int(mask), int(label)) for i, both, mask, label in rows}


def test_counts_by_hand():
    counts = count(MASK, LABEL)
    assert as_dict(counts) == {1: (3, 3, 4), 2: (1, 3, 2), 3: (0, 0, 1), 4: (0, 1, 0)}
    assert counts.total == 12


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 5), min_size=2, max_size=3))
def test_counts_equal_a_loop_over_classes(seed, shape):
    mask, label = (ids.astype(np.uint8) for ids in random_pair(seed, tuple(shape)))
    assert as_dict(count(mask, label)) == counted_by_class(mask, label)


@pytest.mark.parametrize("mask_order", ["C", "F"])
@pytest.mark.parametrize("label_order", ["C", "F"])
@pytest.mark.parametrize("shape", [(70, 4), (37, 35, 4)])
def test_memory_order_does_not_matter(mask_order, label_order, shape):
    mask, label = (ids.astype(np.uint8) for ids in random_pair(0, shape))
    found = count(np.array(mask, order=mask_order), np.array(label, order=label_order))
    assert as_dict(found) == counted_by_class(mask, label)


def test_views_that_are_not_contiguous_are_counted_as_they_look():
    mask, label = (ids.astype(np.uint8) for ids in random_pair(1, (9, 8, 2)))
    for view in (lambda a: a[::-1], lambda a: a[1:, ::2], lambda a: a.transpose(1, 2, 0), lambda a: a[:, 3]):
        assert as_dict(count(view(mask), view(label))) == counted_by_class(view(mask), view(label))


@pytest.mark.parametrize("mask_type", ["u1", "u2", "i2", "i8", ">i2"])
@pytest.mark.parametrize("label_type", ["u1", "i2", "i4"])
def test_integer_types_may_differ(mask_type, label_type):
    mask, label = random_pair(2, (5, 6, 3), largest=100)
    expected = counted_by_class(mask, label)
    assert as_dict(count(mask.astype(mask_type), label.astype(label_type))) == expected


def test_bool_is_label_1():
    assert as_dict(count(MASK == 2, LABEL == 2)) == {1: (1, 3, 2)}


def test_ids_up_to_65535_are_told_apart():
    mask = np.full((2, 4), 65535, np.uint16)
    label = np.where(np.arange(8).reshape(2, 4) < 3, 65535, 256).astype(np.int32)
    assert as_dict(count(mask, label)) == {256: (0, 0, 5), 65535: (3, 8, 3)}


def test_read_only_arrays_are_counted():
    mask, label = MASK.copy(), LABEL.copy()
    mask.flags.writeable = label.flags.writeable = False
    assert as_dict(count(mask, label)) == counted_by_class(MASK, LABEL)


def test_wanted_ids_come_in_their_order_and_absent_ones_with_zeros():
    counts = count(MASK, LABEL, ids=[7, 2, 0])
    assert_array_equal(counts.ids, [7, 2, 0])
    assert_array_equal(counts.both, [0, 1, 2])
    assert_array_equal(counts.mask, [0, 3, 5])
    assert_array_equal(counts.label, [0, 2, 5])


def test_empty_arrays_have_no_ids():
    assert len(count(np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint8)).ids) == 0


def test_real_organs_are_counted_as_numpy_does(data):
    folder = data / "ct_multiorgan" / "ts_s0001"
    files = ("seg_multilabel_v1_104_fast.nii.gz", "seg_multilabel_v1_104.nii.gz")
    mask, label = (np.asanyarray(nib.load(folder / file).dataobj).astype(np.uint8, order="K") for file in files)
    confusion = np.bincount(mask.astype(np.int64).ravel() * 256 + label.ravel(), minlength=2**16).reshape(256, 256)
    counts = count(mask, label, ids=range(256))
    assert_array_equal(counts.both, confusion.diagonal())
    assert_array_equal(counts.mask, confusion.sum(axis=1))
    assert_array_equal(counts.label, confusion.sum(axis=0))


def test_scores_by_hand():
    found = scores(count(MASK, LABEL, ids=[2]))
    expected = {"dice": 2 / 5, "iou": 1 / 4, "sensitivity": 1 / 2, "specificity": 8 / 10, "precision": 1 / 3}
    expected |= {"accuracy": 9 / 12, "volume_difference": 3 / 2 - 1}
    assert {name: values.item() for name, values in found.items()} == pytest.approx(expected, abs=1e-15)


def test_empty_sides_follow_the_table():
    counts = count(MASK, LABEL, ids=[1, 3, 4, 5])
    found, nan = scores(counts), np.nan
    assert_array_equal(status(counts), ["both", "missed", "invented", "absent"])
    assert_array_equal(found["dice"][1:], [0, 0, nan])
    assert_array_equal(found["iou"][1:], [0, 0, nan])
    assert_array_equal(found["sensitivity"][1:], [0, nan, nan])
    assert_array_equal(found["precision"][1:], [nan, 0, nan])
    assert_array_equal(found["specificity"][1:], [1, 11 / 12, nan])
    assert_array_equal(found["accuracy"][1:], [11 / 12, 11 / 12, nan])
    assert_array_equal(found["volume_difference"], [-1 / 4, -1, nan, nan])


def test_a_label_everywhere_has_no_specificity():
    everywhere = np.ones((2, 3), np.uint8)
    assert np.isnan(scores(count(everywhere, everywhere))["specificity"]).all()


def test_an_empty_prediction_never_scores():
    found = scores(count(np.zeros_like(LABEL), LABEL, ids=range(1, 118)))
    assert np.nansum(found["dice"]) == 0
    assert np.isfinite(found["dice"]).sum() == 3


@pytest.mark.parametrize(
    ("mask", "label", "told"),
    [
        (MASK[:2], LABEL, r"mask has shape \(2, 4\) and label \(3, 4\).*resample"),
        (MASK.astype(np.float32), LABEL, r"mask holds float32.*astype"),
        (MASK, LABEL.astype(np.int16) - 1, "label holds the id -1"),
        (MASK, LABEL.astype(np.int64) * 30000, "label holds the id 90000"),
        (MASK[None, None], LABEL, r"mask has shape \(1, 1, 3, 4\)"),
    ],
)
def test_what_is_no_pair_of_label_maps_is_refused_by_name(mask, label, told):
    with pytest.raises(MedsegError, match=told):
        count(mask, label)


@pytest.mark.parametrize("wrong", [-1, 65536])
def test_an_id_that_cannot_be_is_refused(wrong):
    with pytest.raises(MedsegError, match=f"no id {wrong}"):
        count(MASK, LABEL, ids=[1, wrong])
