"""Lesions by hand, and against SciPy's parts taken one by one and all ways to pair them tried."""

from fractions import Fraction
from functools import partial

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from scipy import ndimage

from medseg_core import lesions
from medseg_core.errors import MedsegError
from medseg_core.lesions import lesion_metrics

MYELIN = "_seg-axonmyelin-manual.png"
RANKS = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}
# three reference lesions of 2, 2 and 8 pixels; one prediction covers two of them, three lie in the third, one in none
LABEL = np.array([[1, 1, 0, 1, 1, 0, 0, 0, 0, 0], [0] * 10, [1] * 8 + [0] * 2], np.uint8)
MASK = np.array([[1, 1, 1, 1, 0, 0, 0, 0, 1, 1], [0] * 10, [1, 1, 0, 1, 1, 0, 1, 0, 0, 0]], np.uint8)

in_pixels = partial(lesion_metrics, ids=[1], spacing=(1, 1))
in_voxels = partial(lesion_metrics, ids=[1], spacing=(1, 1, 1))


def row(*parts: tuple[int, int], width: int) -> np.ndarray:
    """Pixels from `begin` to before `end`, in a picture one pixel high."""
    pixels = np.zeros((1, width), np.uint8)
    for begin, end in parts:
        pixels[0, begin:end] = 1
    return pixels


def random_pair(seed: int, shape: tuple[int, ...], order: str) -> tuple[np.ndarray, np.ndarray]:
    """Two ids in small parts that touch each other, and other parts nearby."""
    rng = np.random.default_rng(seed)
    label = rng.integers(1, 3, shape) * (rng.random(shape) < 0.4)
    mask = np.where(rng.random(shape) < 0.25, rng.integers(0, 3, shape), label)
    return np.array(mask, np.uint8, order=order), np.array(label, np.uint8)


def parts_by_scipy(side: np.ndarray, connectivity: int, min_voxels: int) -> list[np.ndarray]:
    numbered, num = ndimage.label(side, ndimage.generate_binary_structure(side.ndim, RANKS[connectivity]))
    return [part for part in (numbered == n for n in range(1, num + 1)) if part.sum() >= min_voxels]


def best(ious: list[dict[int, Fraction]], taken: frozenset[int] = frozenset()) -> tuple[Fraction, int]:
    """Sum and number of the pairs with the largest sum, by trying them all; of equal sums, the most pairs."""
    if not ious:
        return Fraction(0), 0
    ways = [best(ious[1:], taken)]
    for other, iou in ious[0].items():
        if other not in taken:
            total, num = best(ious[1:], taken | {other})
            ways.append((total + iou, num + 1))
    return max(ways)


def one_by_one(
    mask: np.ndarray,
    label: np.ndarray,
    *,
    connectivity: int,
    min_iou: Fraction = Fraction(0),
    min_voxels: int = 1,
) -> dict[str, float]:
    """The measures of one id, in voxels, from a loop over the parts of each side."""
    refs, preds = (parts_by_scipy(side, connectivity, min_voxels) for side in (label, mask))
    missed = [ref for ref in refs if not any((ref & pred).any() for pred in preds)]
    invented = [pred for pred in preds if not any((ref & pred).any() for ref in refs)]
    found, true = len(refs) - len(missed), len(preds) - len(invented)
    measures = {}
    if min_iou:
        ious = [[Fraction(int((r & p).sum()), int((r | p).sum())) for p in preds] for r in refs]
        total, found = best([{n: iou for n, iou in enumerate(of_ref) if iou >= min_iou} for of_ref in ious])
        true = found
        measures["lesion_pq"] = float(2 * total / (len(refs) + len(preds))) if refs or preds else np.nan
    sensitivity = found / len(refs) if refs else np.nan
    precision = true / len(preds) if preds else np.nan
    f1 = 2 * sensitivity * precision / (sensitivity + precision) if found and true else 0.0
    return measures | {
        "lesions_ref": len(refs),
        "lesions_pred": len(preds),
        "lesions_found": found,
        "lesions_missed": len(refs) - found,
        "lesions_invented": len(preds) - true,
        "lesion_sensitivity": sensitivity,
        "lesion_precision": precision,
        "lesion_f1": f1 if refs or preds else np.nan,
        "missed_volume": sum(int(part.sum()) for part in missed),
        "invented_volume": sum(int(part.sum()) for part in invented),
    }


def of_one(found: dict[str, np.ndarray], n: int = 0) -> dict[str, float]:
    return {name: values[n].item() for name, values in found.items()}


def test_any_common_voxel_counts_each_side_by_itself():
    assert of_one(in_pixels(MASK, LABEL)) == pytest.approx(
        {
            "lesions_ref": 3,
            "lesions_pred": 5,
            "lesions_found": 3,
            "lesions_missed": 0,
            "lesions_invented": 1,
            "lesion_sensitivity": 1,
            "lesion_precision": 4 / 5,
            "lesion_f1": 8 / 9,
            "missed_volume": 0,
            "invented_volume": 2,
        }
    )


def test_pairs_take_each_lesion_once():
    found = of_one(in_pixels(MASK, LABEL, min_iou=0.2))  # 2/4 and 1/5; 2/8, 2/8 and 1/8
    assert found == pytest.approx(
        {
            "lesions_ref": 3,
            "lesions_pred": 5,
            "lesions_found": 2,
            "lesions_missed": 1,
            "lesions_invented": 3,
            "lesion_sensitivity": 2 / 3,
            "lesion_precision": 2 / 5,
            "lesion_f1": 2 * 2 / (3 + 5),
            "lesion_pq": (2 / 4 + 2 / 8) / (2 + 3 / 2 + 1 / 2),
            "missed_volume": 0,
            "invented_volume": 2,
        }
    )


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([((6, 7), 4), ((6, 7), 8), ((4, 3, 4), 6), ((4, 5, 4), 18), ((4, 5, 4), 26)]),
    st.sampled_from("CF"),
    st.sampled_from([Fraction(0), Fraction(1, 10), Fraction(1, 4), Fraction(1, 2), Fraction(2, 3), Fraction(1)]),
    st.integers(1, 3),
)
def test_measures_are_those_of_a_loop_over_the_parts(seed, place, order, min_iou, min_voxels):
    shape, connectivity = place
    mask, label = random_pair(seed, shape, order)
    how = {"connectivity": connectivity, "min_voxels": min_voxels}
    found = lesion_metrics(mask, label, ids=[2, 1], spacing=(1,) * len(shape), min_iou=float(min_iou), **how)
    for n, i in enumerate([2, 1]):
        expected = one_by_one(mask == i, label == i, min_iou=min_iou, **how)
        assert of_one(found, n) == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_pairs_have_the_largest_sum_of_ious_and_not_the_largest_first():
    label, mask = row((0, 4), (5, 11), width=12), row((1, 9), (10, 12), width=12)
    assert in_pixels(mask, label, min_iou=0.1)["lesion_pq"] == pytest.approx((1 / 3 + 1 / 7) / 2)  # beside 2/5 alone


def test_pairs_have_the_largest_sum_of_ious_and_not_the_largest_number():
    label, mask = row((0, 4), (5, 11), width=20), row((2, 9), (10, 20), width=20)
    found = of_one(in_pixels(mask, label, min_iou=0.05))
    assert found["lesions_found"] == 1
    assert found["lesion_pq"] == pytest.approx(4 / 9 / 2)  # beside 2/9 + 1/15


@pytest.mark.parametrize(
    ("label", "mask"),
    [
        (row((0, 1), (3, 9), width=9), row((0, 6), (7, 8), width=9)),  # 1/6 + 1/6 = 1/3
        (row((0, 1), (5, 12), width=14), row((0, 9), (10, 14), width=14)),  # 1/9 + 2/9 = 1/3
        (row((0, 1), (2, 6), width=14), row((0, 4), (5, 14), width=14)),  # 1/4 + 1/12 = 1/3
    ],
)
def test_of_equal_sums_the_most_pairs_are_taken(label, mask):
    for turn in (1, -1):
        for sides in ((mask[:, ::turn], label[:, ::turn]), (label[:, ::turn], mask[:, ::turn])):
            assert in_pixels(*sides, min_iou=0.05)["lesions_found"] == 2


@pytest.mark.parametrize(("min_iou", "found"), [(0.5, 1), (np.nextafter(0.5, 1), 0)])
def test_an_iou_of_min_iou_is_enough(min_iou, found):
    assert in_pixels(row((0, 4), width=9), row((0, 8), width=9), min_iou=min_iou)["lesions_found"] == found


def test_empty_sides_follow_the_table():
    label, mask = np.array([[1, 0, 2, 2, 0, 0]], np.uint8), np.array([[1, 0, 0, 0, 3, 0]], np.uint8)
    found, nan = lesion_metrics(mask, label, ids=[1, 2, 3, 4], spacing=(1, 1), min_iou=0.5), np.nan
    assert_array_equal(found["lesion_sensitivity"], [1, 0, nan, nan])
    assert_array_equal(found["lesion_precision"], [1, nan, 0, nan])
    assert_array_equal(found["lesion_f1"], [1, 0, 0, nan])
    assert_array_equal(found["lesion_pq"], [1, 0, 0, nan])
    assert_array_equal(found["lesions_missed"], [0, 1, 0, 0])
    assert_array_equal(found["lesions_invented"], [0, 0, 1, 0])
    assert_array_equal(found["missed_volume"], [0, 2, 0, 0])
    assert_array_equal(found["invented_volume"], [0, 0, 1, 0])


def test_lesions_of_two_ids_never_match():
    found = lesion_metrics(np.array([[2, 2]]), np.array([[1, 1]]), ids=[1, 2], spacing=(1, 1))
    assert_array_equal(found["lesions_missed"], [1, 0])
    assert_array_equal(found["lesions_invented"], [0, 1])


@pytest.mark.parametrize(("connectivity", "num"), [(4, 2), (8, 1), (None, 1)])
def test_connectivity_says_what_one_lesion_is(connectivity, num):
    corners = np.eye(2, dtype=np.uint8)
    assert in_pixels(corners, corners, connectivity=connectivity)["lesions_ref"] == num


def test_small_parts_are_background_on_either_side():
    label = row((0, 1), (3, 6), (8, 11), width=20)
    mask = row((0, 3), (4, 5), (8, 10), (14, 15), width=20)
    found = of_one(in_pixels(mask, label, min_voxels=2))
    assert (found["lesions_ref"], found["lesions_pred"], found["lesions_found"]) == (2, 2, 1)
    assert (found["missed_volume"], found["invented_volume"]) == (3, 3)


def test_volumes_are_in_the_unit_of_the_spacing_cubed():
    label, mask = np.zeros((2, 5, 6, 7), np.uint8)
    label[0, :2, :3], mask[4, 5, 6] = 1, 1
    found = lesion_metrics(mask, label, ids=[1], spacing=(0.5, 2, 3))
    assert (found["missed_volume"], found["invented_volume"]) == (2 * 3 * 3, 3)


def test_volumes_are_of_lesions_without_a_common_voxel_whatever_the_least_iou():
    mask, label = random_pair(0, (20, 20), "C")
    loose, strict = (in_pixels(mask, label, connectivity=4, min_iou=min_iou) for min_iou in (0.0, 1.0))
    assert strict["lesions_missed"] > loose["lesions_missed"] > 0
    for name in ("missed_volume", "invented_volume"):
        assert strict[name] == loose[name] > 0


@pytest.mark.parametrize("min_iou", [0.0, 0.3])
def test_sides_exchanged_exchange_what_is_missed_and_invented(min_iou):
    mask, label = random_pair(1, (8, 7, 6), "C")
    there, back = in_voxels(mask, label, min_iou=min_iou), in_voxels(label, mask, min_iou=min_iou)
    for one, other in (
        ("lesions_ref", "lesions_pred"),
        ("lesions_missed", "lesions_invented"),
        ("lesion_sensitivity", "lesion_precision"),
        ("missed_volume", "invented_volume"),
        ("lesion_f1", "lesion_f1"),
    ):
        assert there[one] == back[other]
        assert there[other] == back[one]


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i2", "i8"])
@pytest.mark.parametrize("orders", ["CC", "CF", "FC", "FF"])
@pytest.mark.parametrize("shape", [(9, 8), (7, 6, 5)])
def test_type_and_memory_order_do_not_matter(dtype, orders, shape):
    mask, label = random_pair(2, shape, "C")
    how = {"ids": [1, 2], "spacing": shape, "min_iou": 0.2}
    expected = lesion_metrics(mask, label, **how)
    turned = [np.array(side, dtype, order=order) for side, order in zip((mask, label), orders, strict=True)]
    turned[0].flags.writeable = False
    for name, values in lesion_metrics(turned[0], turned[1].astype("u2", order="K"), **how).items():
        assert_allclose(values, expected[name], rtol=1e-12, err_msg=name)


def test_views_that_are_not_contiguous_are_taken_as_they_look():
    mask, label = random_pair(3, (9, 8, 7), "F")
    for view in (lambda a: a[::-1], lambda a: a[1:, ::2], lambda a: a.transpose(1, 2, 0)):
        seen, copied = in_voxels(view(mask), view(label)), in_voxels(view(mask).copy(), view(label).copy())
        assert of_one(seen) == of_one(copied)


@pytest.mark.parametrize("block", [1, 7])
def test_blocks_do_not_matter(block, monkeypatch):
    mask, label = random_pair(4, (9, 8, 7), "F")
    expected = of_one(in_voxels(mask, label, min_iou=0.2))
    monkeypatch.setattr(lesions, "BLOCK", block)
    assert of_one(in_voxels(mask, label, min_iou=0.2)) == expected


def test_one_side_may_have_more_than_65535_lesions():
    many, few = np.zeros((2, 520, 520), np.uint8)
    many[::2, ::2], few[:3, :3] = 1, 1
    for mask, label in ((many, few), (few, many)):
        found = in_pixels(mask, label, min_iou=0.1)
        assert found["lesions_ref"] + found["lesions_pred"] == 260**2 + 1
        assert found["lesion_pq"] == pytest.approx(1 / 9 / ((260**2 + 1) / 2))


def test_bool_is_id_1():
    assert of_one(in_pixels(MASK == 1, LABEL == 1)) == of_one(in_pixels(MASK, LABEL))


def test_ids_come_in_their_order_and_absent_ones_with_zeros():
    found = lesion_metrics(MASK * np.uint16(60000), LABEL * np.uint16(60000), ids=[5, 60000], spacing=(1, 1))
    assert_array_equal(found["lesions_ref"], [0, 3])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3), (4, 4)])
def test_nothing_has_no_lesions(shape):
    empty = np.zeros(shape, np.uint8)
    found = lesion_metrics(empty, empty, ids=[1], spacing=(1,) * len(shape), min_iou=0.5)
    assert found["lesions_ref"] == found["lesions_pred"] == 0
    assert np.isnan(found["lesion_pq"])


def test_a_lesion_that_fills_the_array_is_one():
    full = np.ones((3, 4), np.uint8)
    assert of_one(in_pixels(full, full, min_iou=1.0))["lesion_pq"] == 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"ids": [0, 1]}, "id 0 is the background"),
        ({"spacing": (1, 1, 1)}, r"spacing \(1, 1, 1\) must be 2"),
        ({"spacing": (1, 0)}, r"spacing \(1, 0\) must be 2 positive"),
        ({"min_iou": 1.5}, "min_iou=1.5"),
        ({"min_iou": float("nan")}, "min_iou=nan"),
        ({"min_voxels": 0}, "min_voxels=0"),
        ({"connectivity": 18}, r"connectivity 18 .* 2D; take one of \(4, 8\)"),
        ({"label": LABEL[:2]}, "resample"),
    ],
)
def test_what_cannot_be_is_refused_with_its_value(wrong, told):
    with pytest.raises(MedsegError, match=told):
        lesion_metrics(**{"mask": MASK, "label": LABEL, "ids": [1], "spacing": (1, 1), **wrong})


@pytest.mark.parametrize("case", ["STS_044", "STS_048"])
@pytest.mark.parametrize("min_iou", [Fraction(0), Fraction(1, 5)])
def test_hot_spots_of_real_pet_are_held_against_tumours_as_in_the_loop(data, case, min_iou):
    folder = data / "ctpet" / case
    suv, label = (np.asanyarray(nib.load(folder / f"PET_{kind}.nii.gz").dataobj) for kind in ("image", "mask"))
    found = in_voxels(suv > 2.5, label, connectivity=18, min_iou=float(min_iou))
    expected = one_by_one(suv > 2.5, label == 1, connectivity=18, min_iou=min_iou)
    assert expected["lesions_pred"] > 100
    assert of_one(found) == pytest.approx(expected)


def test_myelin_of_a_real_micrograph_is_held_against_a_threshold_as_in_the_loop(data):
    name = str(data / "sem" / "axon" / "sub-rat3_sample-data9_SEM")
    image, label = (np.asarray(Image.open(name + end).convert("L"))[:400, :400] for end in (".png", MYELIN))
    mask, how = ndimage.uniform_filter(image, 5) > 100, {"connectivity": 4, "min_voxels": 20}
    expected = one_by_one(mask, label == 127, **how)
    assert expected["lesions_ref"] > 20
    assert of_one(in_pixels(mask, label == 127, **how)) == pytest.approx(expected)
