"""Surface distances by hand, against SciPy written out, and against MONAI, MedPy and surface-distance."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from numpy.testing import assert_allclose, assert_array_equal
from scipy import ndimage

from medseg_core.errors import MedsegError
from medseg_core.surface import surface_metrics

IDS = (1, 2, 300)
CASES = [((17, 15), (0.7, 2.5)), ((11, 12, 9), (1.0, 1.0, 1.0)), ((9, 12, 10), (0.8, 1.5, 3.1))]
CONVENTIONS = ["voxel", "surface"]


def blobs(seed: int, shape: tuple[int, ...], *, dtype: str = "u2") -> np.ndarray:
    """Smooth structures that touch each other and the edge of the array."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.normal(size=shape), 1.5) for _ in range(len(IDS) + 1)]
    return np.array([0, *IDS])[np.argmax(fields, axis=0)].astype(dtype)


def pair(seed: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    label = blobs(seed, shape)
    other = np.random.default_rng(seed + 1).random(shape) < 0.3
    return np.where(other, blobs(seed + 2, shape), label), label


def by_scipy(mask: np.ndarray, label: np.ndarray, spacing: tuple[float, ...], tolerance: float) -> dict[str, float]:
    edges = [side ^ ndimage.binary_erosion(side) for side in (mask, label)]
    maps = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    there, back = maps[1][edges[0]], maps[0][edges[1]]
    both = np.concatenate([there, back])
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return {"hd": both.max(), "hd95": hd95, "assd": both.mean(), "nsd": (both <= tolerance).mean()}


def one_by_one(measure, mask: np.ndarray, label: np.ndarray) -> dict[str, list[float]]:
    rows = [measure(mask == i, label == i) for i in IDS]
    return {name: [row[name] for row in rows] for name in rows[0]}


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, list[float]], *, rtol: float = 1e-9) -> None:
    for name, values in expected.items():
        assert_allclose(found[name], values, rtol=rtol, atol=1e-9, err_msg=name)


def test_voxels_apart_have_the_distance_of_their_centres_in_mm():
    mask, label = np.zeros((2, 9, 9, 9), np.uint8)
    mask[2, 3, 4], label[5, 3, 8] = 1, 1
    found = surface_metrics(mask, label, ids=[1], spacing=(1, 5, 0.5), tolerance_mm=3.6)
    assert [found[name].item() for name in ("hd", "hd95", "assd")] == pytest.approx([np.hypot(3, 2)] * 3, abs=1e-12)
    assert found["nsd"] == 0


def test_a_tail_by_hand():
    label = np.array([[1, 1, 0, 0, 0]], np.uint8)
    mask = np.array([[1, 1, 1, 1, 0]], np.uint8)
    found = surface_metrics(mask, label, ids=[1], spacing=(1, 2), tolerance_mm=2, percentile=50)
    assert {name: value.item() for name, value in found.items()} == {"hd": 4, "hd95": 1, "assd": 1, "nsd": 5 / 6}


def test_hd95_is_the_larger_of_both_directions_and_not_of_both_together():
    label = np.ones((1, 10), np.uint8)
    mask = np.zeros((1, 10), np.uint8)
    mask[0, 0] = 1
    found = surface_metrics(mask, label, ids=[1], spacing=(1, 1))
    assert found["hd95"] == pytest.approx(np.percentile(np.arange(10), 95))
    assert found["hd95"] != pytest.approx(np.percentile([0, *range(10)], 95))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_same_on_both_sides_is_at_distance_0(convention):
    label = blobs(0, (9, 9, 9))
    found = surface_metrics(label, label, ids=IDS, spacing=(1, 2, 3), tolerance_mm=0, convention=convention)
    assert_array_equal([*found.values()], [[0] * 3, [0] * 3, [0] * 3, [1] * 3])


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_empty_sides_follow_the_table(convention):
    mask = np.array([[1, 1, 0, 0], [3, 0, 0, 0]], np.uint8)
    label = np.array([[1, 0, 0, 0], [0, 0, 2, 2]], np.uint8)
    found = surface_metrics(mask, label, ids=[4, 3, 2, 1], spacing=(1, 1), convention=convention)
    assert_array_equal(found["nsd"], [np.nan, 0, 0, 1])
    for name in ("hd", "hd95", "assd"):
        assert_array_equal(np.isfinite(found[name]), [False, False, False, True])


@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_voxel_distances_are_scipys(shape, spacing):
    mask, label = pair(0, shape)
    found = surface_metrics(mask, label, ids=IDS, spacing=spacing, tolerance_mm=1.2)
    assert_equal(found, one_by_one(lambda a, b: by_scipy(a, b, spacing, 1.2), mask, label))


@settings(max_examples=40)
@given(st.integers(0, 2**31), st.floats(0.3, 4), st.floats(0.3, 4))
def test_voxel_distances_are_scipys_on_noise(seed, width, height):
    rng = np.random.default_rng(seed)
    mask, label = (np.pad(rng.integers(0, 2, (4, 6)), ((0, 1), (1, 0)), constant_values=1) for _ in range(2))
    found = surface_metrics(mask, label, ids=[1], spacing=(width, height), tolerance_mm=1.1)
    expected = by_scipy(mask == 1, label == 1, (width, height), 1.1)
    assert_equal(found, {name: [value] for name, value in expected.items()})


def test_a_plane_of_a_volume_is_all_edge_as_scipy_has_it():
    mask, label = (np.ones((6, 6), np.uint8) for _ in range(2))
    mask[:, 4:] = 0
    mask_plane, label_plane = mask[..., None], label[..., None]
    volume = surface_metrics(mask_plane, label_plane, ids=[1], spacing=(1, 1, 1))
    expected = by_scipy(mask_plane > 0, label_plane > 0, (1, 1, 1), 3.0)
    assert_equal(volume, {name: [value] for name, value in expected.items()})
    assert surface_metrics(mask, label, ids=[1], spacing=(1, 1))["assd"] > volume["assd"]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_sides_exchanged_give_the_same(shape, spacing, convention):
    mask, label = pair(1, shape)
    how = {"ids": IDS, "spacing": spacing, "convention": convention}
    assert_equal(surface_metrics(mask, label, **how), surface_metrics(label, mask, **how), rtol=1e-12)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_memory_order_type_and_mirroring_do_not_matter(shape, spacing, convention):
    mask, label = pair(2, shape)
    how = {"ids": IDS, "spacing": spacing, "convention": convention, "tolerance_mm": 1.0}
    expected = surface_metrics(mask, label, **how)
    in_fortran_order = np.asfortranarray(mask)
    in_fortran_order.flags.writeable = False
    assert_equal(surface_metrics(in_fortran_order, label.astype(np.int32), **how), expected)
    assert_equal(surface_metrics(in_fortran_order, np.asfortranarray(label), **how), expected)
    assert_equal(surface_metrics(mask[::-1], label[::-1], **how), expected)
    how["spacing"] = spacing[::-1]
    assert_equal(surface_metrics(mask.T, label.T, **how), expected)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_what_lies_around_does_not_matter(convention):
    mask, label = pair(3, (8, 9, 7))
    how = {"ids": IDS, "spacing": (1, 1.5, 2), "convention": convention}
    wide = surface_metrics(np.pad(mask, 3), np.pad(label, 3), **how)
    assert_equal(wide, surface_metrics(mask, label, **how), rtol=1e-12)


def test_a_distance_of_the_tolerance_is_within_it_in_spite_of_rounding():
    mask, label = np.zeros((2, 1, 40), np.uint8)
    mask[0, 33], label[0, 3] = 1, 1
    found = surface_metrics(mask, label, ids=[1], spacing=(1, float(np.float32(0.1))), tolerance_mm=3)
    assert found["hd"] > 3
    assert found["nsd"] == 1


@pytest.mark.parametrize("spacing", [(3, 4), (2, 3, 4)])
def test_corners_weigh_the_surface_around_them_by_hand(spacing):
    label = np.ones((*(1,) * (len(spacing) - 1), 2), np.uint8)
    mask = np.zeros_like(label)
    mask[..., 0] = 1
    found = surface_metrics(mask, label, ids=[1], spacing=spacing, tolerance_mm=3.9, convention="surface")
    if len(spacing) == 2:  # the contour cuts a pixel's corners through the middle of its edges, and runs along the pair
        at_end, between = 0.5 * np.hypot(3, 4), 4
    else:  # a triangle at a voxel's corner, two that make a rectangle along an edge
        at_end, between = np.linalg.norm([3 * 4, 2 * 4, 2 * 3]) / 8, 0.5 * np.hypot(2, 3) * 4
    num = 2 ** (len(spacing) - 1)
    total = 4 * num * at_end + num * between
    assert found["hd"] == found["hd95"] == 4
    assert found["assd"] == pytest.approx(4 * num * at_end / total)
    assert found["nsd"] == pytest.approx(1 - num * at_end / total)


@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_voxel_distances_are_monais(shape, spacing):
    torch, monai = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    mask, label = pair(4, shape)
    sides = [torch.from_numpy(np.stack([side == i for i in IDS])[None]) for side in (mask, label)]
    how = {"include_background": True, "spacing": spacing}
    expected = {
        "hd": monai.compute_hausdorff_distance(*sides, **how),
        "hd95": monai.compute_hausdorff_distance(*sides, percentile=95, **how),
        "assd": monai.compute_average_surface_distance(*sides, symmetric=True, **how),
        "nsd": monai.compute_surface_dice(*sides, class_thresholds=[1.2] * 3, **how),
    }
    found = surface_metrics(mask, label, ids=IDS, spacing=spacing, tolerance_mm=1.2)
    assert_equal(found, {name: values[0].tolist() for name, values in expected.items()}, rtol=1e-6)


@pytest.mark.parametrize(("shape", "spacing"), CASES)
def test_voxel_distances_are_medpys(shape, spacing):
    medpy = pytest.importorskip("medpy.metric.binary")
    mask, label = pair(5, shape)
    found = surface_metrics(mask, label, ids=IDS, spacing=spacing)
    peer = {name: getattr(medpy, name) for name in ("hd", "assd")}
    assert_equal(found, one_by_one(lambda a, b: {n: f(a, b, spacing) for n, f in peer.items()}, mask, label))


def by_surface_distance(peer, mask: np.ndarray, label: np.ndarray, spacing: tuple[float, ...]) -> dict[str, float]:
    found = peer.compute_surface_distances(label, mask, spacing)
    areas = [found["surfel_areas_gt"].sum(), found["surfel_areas_pred"].sum()]
    return {
        "hd": peer.compute_robust_hausdorff(found, 100),
        "hd95": peer.compute_robust_hausdorff(found, 95),
        "assd": np.average(peer.compute_average_surface_distance(found), weights=areas),
        "nsd": peer.compute_surface_dice_at_tolerance(found, 1.2),
    }


@pytest.mark.parametrize(("shape", "spacing"), CASES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_surface_distances_are_those_of_surface_distance(shape, spacing):
    peer = pytest.importorskip("surface_distance")
    mask, label = pair(6, shape)
    found = surface_metrics(mask, label, ids=IDS, spacing=spacing, tolerance_mm=1.2, convention="surface")
    assert_equal(found, one_by_one(lambda a, b: by_surface_distance(peer, a, b, spacing), mask, label))


@pytest.mark.parametrize(("shape", "spacing"), [((30, 28), (0.7, 2.5)), ((12, 14, 13), (0.8, 1.5, 3.1))])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_way_through_a_corner_weighs_what_surface_distance_says(shape, spacing):
    peer = pytest.importorskip("surface_distance")
    label = np.random.default_rng(0).random(shape) < 0.5
    around = sliding_window_view(label, (2,) * label.ndim).reshape(-1, 2**label.ndim)
    assert len(np.unique(around, axis=0)) == 2**2**label.ndim
    mask = np.random.default_rng(1).random(shape) < 0.02
    found = surface_metrics(mask, label, ids=[1], spacing=spacing, tolerance_mm=1.2, convention="surface")
    assert_equal(found, {name: [value] for name, value in by_surface_distance(peer, mask, label, spacing).items()})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"convention": "surfce"}, "'surfce'.*'voxel', 'surface'.*did you mean 'surface'"),
        ({"ids": [0, 1]}, "id 0 is the background"),
        ({"spacing": (1, 1)}, r"spacing \(1, 1\) must be 3"),
        ({"spacing": (1, 1, 0)}, r"spacing \(1, 1, 0\) must be 3 positive"),
        ({"tolerance_mm": -1}, "tolerance_mm=-1"),
        ({"percentile": 101}, "percentile=101"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_its_value(wrong, told):
    label = np.ones((2, 2, 2), np.uint8)
    with pytest.raises(MedsegError, match=told):
        surface_metrics(label, label, **{"ids": [1], "spacing": (1, 1, 1), **wrong})


def test_arrays_of_different_shape_are_refused():
    with pytest.raises(MedsegError, match="resample"):
        surface_metrics(np.ones((2, 2), np.uint8), np.ones((2, 3), np.uint8), ids=[1], spacing=(1, 1))


def test_real_organs_are_at_scipys_distances(data):
    folder = data / "ct_multiorgan" / "ts_s0001"
    files = ("seg_multilabel_v1_104_fast.nii.gz", "seg_multilabel_v1_104.nii.gz")
    mask, label = (np.asanyarray(nib.load(folder / file).dataobj).astype(np.uint8, order="K") for file in files)
    ids = sorted(set(np.unique(mask)) & set(np.unique(label)) - {0})[::20]
    found = surface_metrics(mask, label, ids=ids, spacing=(3, 3, 3))
    expected = [by_scipy(mask == i, label == i, (3, 3, 3), 3.0) for i in ids]
    assert len(ids) == 3
    assert_equal(found, {name: [row[name] for row in expected] for name in found})
