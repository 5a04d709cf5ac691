"""The oracle is SciPy: `map_coordinates` in float64, at coordinates kept between the outermost centres."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medseg_core.sampling import sample

RNG = np.random.default_rng(0)
SHAPE = (9, 10, 11)
IMAGE = ndimage.gaussian_filter(RNG.normal(0, 1000, SHAPE), 0.7)
LABEL = ndimage.zoom(RNG.integers(0, 6, (3, 4, 4)), 3, order=0)[:9, :10, :11].astype(np.uint8)


def affine(
    *, turn: float = 0.0, scale: tuple[float, ...] = (1, 1, 1), shift: tuple[float, ...] = (0, 0, 0)
) -> np.ndarray:
    c, s = np.cos(turn), np.sin(turn)
    matrix = np.eye(4)
    matrix[:3, :3] = np.array([[c, -s, 0], [s, c, 0.3 * s], [0, -0.3 * s, 1]]) * scale
    matrix[:3, 3] = shift
    return matrix


def permuted(matrix: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    turn = np.eye(4)
    turn[:3, :3] = np.eye(3)[list(order)] * signs
    turn[:3, 3] = np.where(turn[:3, :3].sum(axis=1) < 0, np.array(SHAPE) - 1, 0)
    return turn @ matrix


MAPS = {
    "finer": affine(scale=(0.5, 0.4, 0.7), shift=(-0.2, 0.1, 0)),
    "coarser": affine(scale=(1.7, 2.3, 1.1), shift=(0.2, 0.4, 0.01)),
    "one axis": affine(scale=(1, 1, 0.6)),
    "flipped and permuted": permuted(affine(scale=(0.5, 0.8, 1.3)), (2, 0, 1), (1, -1, -1)),
    "oblique": affine(turn=0.3, scale=(0.7, 0.9, 1.2), shift=(1, -1, 0.5)),
    "oblique and flipped": permuted(affine(turn=-0.5, scale=(0.7, 0.9, 1.2)), (1, 2, 0), (-1, 1, -1)),
    "far oblique": affine(turn=0.3, shift=(5, 5, 8)),
}


def coordinates(matrix: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(3, *shape) input coordinates kept between the outermost centres, and where they lay in the field of view."""
    index = np.indices(shape).reshape(3, -1)
    at = matrix[:3, :3] @ index + matrix[:3, 3:]
    size = np.array(SHAPE)[:, None]
    inside = ((at >= -0.5) & (at <= size - 0.5)).all(axis=0)
    return np.clip(at, 0, size - 1).reshape(3, *shape), inside.reshape(shape)


def by_scipy(voxels: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    at, inside = coordinates(matrix, shape)
    values = ndimage.map_coordinates(voxels.astype(np.float64), at, order=order, mode="mirror")
    return np.where(inside, values, voxels.min())


@pytest.mark.parametrize("order", [1, 3], ids=["linear", "cubic"])
@pytest.mark.parametrize("name", MAPS)
def test_an_image_equals_scipy_everywhere(name, order):
    for voxels in (IMAGE.astype(np.float32), np.asfortranarray(IMAGE)):
        ours = sample(voxels, MAPS[name], shape=(12, 8, 14), how={1: "linear", 3: "cubic"}[order])
        np.testing.assert_allclose(ours, by_scipy(voxels, MAPS[name], (12, 8, 14), order), atol=1e-3)


@pytest.mark.parametrize("order", [1, 3], ids=["linear", "cubic"])
@pytest.mark.parametrize("turn", [0.0, 0.2])
def test_an_image_equals_affine_transform_where_edges_do_not_matter(turn, order):
    matrix = affine(turn=turn, scale=(0.6, 0.7, 0.5), shift=(2.5, 2, 2.5))
    shape = (6, 6, 6)
    assert coordinates(matrix, shape)[1].all()
    expected = ndimage.affine_transform(
        IMAGE, matrix[:3, :3], matrix[:3, 3], output_shape=shape, order=order, mode="mirror"
    )
    ours = sample(IMAGE, matrix, shape=shape, how={1: "linear", 3: "cubic"}[order])
    np.testing.assert_allclose(ours, expected, atol=1e-3)


@given(*[st.tuples(*[st.integers(1, 6)] * 3)] * 2, st.sampled_from("CF"), st.sampled_from(["linear", "cubic"]))
def test_an_image_of_any_shape_equals_scipy_over_the_same_field_of_view(size, shape, order, how):
    voxels = np.random.default_rng(0).normal(0, 1000, size)
    step = np.divide(size, shape)
    ends = [np.clip((np.arange(m) + 0.5) * f - 0.5, 0, n - 1) for m, f, n in zip(shape, step, size, strict=True)]
    at = np.stack(np.meshgrid(*ends, indexing="ij"))
    expected = ndimage.map_coordinates(voxels, at, order={"linear": 1, "cubic": 3}[how], mode="mirror")
    matrix = affine(scale=tuple(step), shift=tuple((step - 1) / 2))
    np.testing.assert_allclose(
        sample(np.asarray(voxels, order=order), matrix, shape=shape, how=how), expected, atol=1e-3
    )


def test_cubic_on_lines_far_longer_than_a_spline_equals_scipys_zoom():
    voxels, shape = RNG.normal(0, 1000, (130, 5, 67)), (41, 4, 66)
    step = np.divide(voxels.shape, shape)
    matrix = affine(scale=tuple(step), shift=tuple((step - 1) / 2))
    expected = ndimage.zoom(voxels, 1 / step, order=3, mode="mirror", grid_mode=True)
    for image in (voxels, np.asfortranarray(voxels, dtype=np.float32)):
        np.testing.assert_allclose(sample(image, matrix, shape=shape, how="cubic"), expected, atol=1e-3)


C = np.cos(np.radians(45))
TURNED = np.array([[3 * C, -3 * C, 0, 2.7], [3 * C, 3 * C, 0, 0.3], [0, 0, 3, 0], [0, 0, 0, 1]])
COARSER = {  # map, and the (f - 1) / 2 of each input axis by hand
    "separable": (affine(scale=(1.7, 2.6, 1.0), shift=(0.2, 0.4, 0.01)), (0.35, 0.8, 0)),
    "more than the image": (affine(scale=(4, 1.5, 7)), (1.5, 0.25, 3)),
    "finer along one": (affine(scale=(0.5, 3, 0.4), shift=(0.2, 1, 0.1)), (0, 1, 0)),
    "flipped and permuted": (permuted(affine(scale=(3, 2, 1.5)), (2, 0, 1), (1, -1, -1)), (0.25, 1, 0.5)),
    "every second voxel": (affine(scale=(2, 2, 1), shift=(1, 0, 0)), (0.5, 0.5, 0)),
    "one voxel": (affine(scale=(4, 4, 4), shift=(4, 5, 5)), (1.5, 1.5, 1.5)),
    "turned": (TURNED, (1, 1, 1)),
    "turned, one axis": (TURNED / (1, 3, 3, 1), (C, C, 0)),
}


@pytest.mark.parametrize("order", [1, 3], ids=["linear", "cubic"])
@pytest.mark.parametrize("name", COARSER)
def test_antialias_equals_scipys_gaussian_filter_before_the_resampling(name, order):
    matrix, sigmas = COARSER[name]
    shape = (1, 1, 1) if name == "one voxel" else (4, 5, 6)
    at, inside = coordinates(matrix, shape)
    smooth = ndimage.gaussian_filter(IMAGE, sigmas, mode="mirror")
    expected = np.where(inside, ndimage.map_coordinates(smooth, at, order=order, mode="mirror"), -7)
    for voxels in (IMAGE.astype(np.float32), np.asfortranarray(IMAGE)):
        ours = sample(voxels, matrix, shape=shape, how={1: "linear", 3: "cubic"}[order], outside=-7, antialias=True)
        np.testing.assert_allclose(ours, expected, atol=1e-3)


def vote_by_scipy(label: np.ndarray, matrix: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Arg-max of the linearly resampled one-hot maps; rounding makes ties of what differs by 1e-9."""
    at, inside = coordinates(matrix, shape)
    ids = np.unique(label)
    maps = [ndimage.map_coordinates((label == i).astype(np.float64), at, order=1, mode="nearest") for i in ids]
    return np.where(inside, ids[np.argmax(np.round(maps, 9), axis=0)], 0)


@pytest.mark.parametrize("name", MAPS)
def test_a_label_map_equals_the_arg_max_of_its_one_hot_maps(name):
    for label in (LABEL, np.asfortranarray(LABEL)):
        ours = sample(label, MAPS[name], shape=(12, 8, 14), how="label")
        np.testing.assert_array_equal(ours, vote_by_scipy(label, MAPS[name], (12, 8, 14)))


@given(
    st.tuples(*[st.floats(0.2, 3)] * 3), st.tuples(*[st.floats(-2, 6)] * 3), st.sampled_from([0.0, 0.0, 0.25]),
    st.tuples(*[st.integers(1, 7)] * 3),
)  # fmt: skip
def test_noise_for_labels_equals_the_arg_max_for_any_map(scale, shift, turn, shape):
    label = np.random.default_rng(1).integers(0, 4, SHAPE).astype(np.uint8)
    matrix = affine(turn=turn, scale=scale, shift=shift)
    at, inside = coordinates(matrix, shape)
    maps = np.stack(
        [ndimage.map_coordinates((label == i).astype(float), at, order=1, mode="nearest") for i in range(4)]
    )
    ours = sample(label, matrix, shape=shape, how="label")
    assert (ours[~inside] == 0).all()
    weight = np.take_along_axis(maps, ours[None].astype(int), 0)[0]
    assert (weight >= maps.max(axis=0) - 1e-5)[inside].all()


def test_a_tie_goes_to_the_smallest_id():
    label = np.array([5, 3, 9], np.uint8).reshape(3, 1, 1)
    matrix = affine(scale=(0.5, 1, 1))
    assert sample(label, matrix, shape=(5, 1, 1), how="label").ravel().tolist() == [5, 3, 3, 3, 9]


def test_an_id_wins_by_the_sum_of_its_neighbours_not_by_the_nearest():
    label = np.array([[1, 2], [2, 2]], np.uint8)[..., None]
    matrix = affine(shift=(0.3, 0.3, 0))  # 0.49 for the nearest, 0.51 for the three others
    assert sample(label, matrix, shape=(1, 1, 1), how="label").item() == 2


@pytest.mark.parametrize("turn", [0.0, 1e-9])
def test_the_field_of_view_ends_half_a_voxel_beyond_the_outermost_centres(turn):
    line = np.array([10, 20], np.float32).reshape(2, 1, 1)
    at = (-1.0, -0.5, -0.25, 0.0, 0.5, 1.25, 1.5, 1.75)
    values = [sample(line, affine(turn=turn, shift=(x, 0, 0)), shape=(1, 1, 1), how="linear").item() for x in at]
    np.testing.assert_allclose(values, [10, 10, 10, 10, 15, 20, 20, 10])
    values = [sample(line, affine(shift=(x, 0, 0)), shape=(1, 1, 1), how="linear", outside=7).item() for x in at]
    np.testing.assert_allclose(values, [7, 10, 10, 10, 15, 20, 20, 7])


@pytest.mark.parametrize("how", ["linear", "cubic", "label"])
def test_a_grid_that_misses_the_input_is_all_outside(how):
    for turn in (0.0, 0.3):
        values = sample(IMAGE, affine(turn=turn, shift=(50, 50, 50)), shape=(3, 4, 5), how=how)
        assert values.shape == (3, 4, 5)
        assert (values == (0 if how == "label" else IMAGE.min())).all()


@pytest.mark.parametrize("how", ["linear", "cubic"])
def test_a_ramp_is_a_ramp_on_any_grid(how):
    x, y, z = np.indices((16, 17, 18))
    ramp = (3 * x - 2 * y + z).astype(np.float32)
    matrix = affine(turn=0.2, scale=(0.4, 0.5, 0.6), shift=(6, 5, 5))
    at = np.tensordot(matrix[:3, :3], np.indices((5, 5, 5)), 1) + matrix[:3, 3, None, None, None]
    values = sample(ramp, matrix, shape=(5, 5, 5), how=how)
    np.testing.assert_allclose(values, 3 * at[0] - 2 * at[1] + at[2], atol=1e-3 if how == "linear" else 0.02)


def test_a_single_plane_serves_its_whole_thickness():
    plane = IMAGE[:, :, :1]
    values = sample(plane, affine(scale=(1, 1, 0.25), shift=(0, 0, -0.375)), shape=(9, 10, 4), how="cubic")
    np.testing.assert_allclose(values, np.repeat(plane, 4, axis=2))


DTYPES = [
    "bool",
    "uint8",
    "int8",
    "uint16",
    "int16",
    ">i2",
    "int32",
    "uint32",
    "int64",
    "float16",
    "float32",
    "float64",
]


@pytest.mark.parametrize("dtype", [*DTYPES, ">f4"])
def test_copying_changes_no_bit_of_any_dtype(dtype):
    voxels = RNG.integers(0, 2**11, SHAPE).astype(dtype)
    flip = permuted(np.eye(4), (2, 0, 1), (-1, 1, -1))
    order = np.argmax(np.abs(flip[:3, :3]), axis=0)
    shape = tuple(np.array(SHAPE)[order])
    there = sample(voxels, flip, shape=shape, how="label")
    assert there.dtype == np.dtype(dtype).newbyteorder("=")
    back = sample(there, np.linalg.inv(flip), shape=SHAPE, how="label")
    np.testing.assert_array_equal(back, voxels)
    assert not np.shares_memory(back, voxels)


@pytest.mark.parametrize("dtype", ["bool", "float16", ">i4", "int64"])
@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_votes_keep_the_dtype(dtype, turn):
    label = (LABEL > 2).astype(dtype)
    matrix = affine(turn=turn, scale=(0.7, 0.7, 0.7))
    values = sample(label, matrix, shape=SHAPE, how="label")
    assert values.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(values, vote_by_scipy(LABEL > 2, matrix, SHAPE))


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [("bool", "f4"), ("uint8", "f4"), ("int16", "f4"), (">i4", "f4"), ("f2", "f2"), ("f4", "f4"), (">f8", "f8")],
)
def test_an_image_keeps_floats_and_makes_float32_of_integers(dtype, kept):
    voxels = (IMAGE > 0).astype(dtype)
    for matrix in (np.eye(4), affine(scale=(0.5, 0.5, 0.5)), affine(turn=0.3)):
        values = sample(voxels, matrix, shape=(4, 4, 4), how="linear")
        assert values.dtype == np.dtype(kept)
        np.testing.assert_allclose(values, by_scipy(voxels, matrix, (4, 4, 4), 1), atol=1e-3)


def test_cropping_and_padding_copy_what_overlaps():
    values = sample(IMAGE, affine(shift=(-2, 3, 0)), shape=SHAPE, how="linear", outside=-7)
    expected = np.full(SHAPE, -7.0)
    expected[2:, :7] = IMAGE[:7, 3:]
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("how", ["linear", "label"])
@pytest.mark.parametrize("matrix", [np.eye(4), MAPS["finer"], MAPS["oblique"]], ids=["same", "finer", "oblique"])
def test_memory_order_is_that_of_the_input(matrix, how):
    assert sample(np.asfortranarray(LABEL), matrix, shape=(5, 6, 7), how=how).flags.f_contiguous
    assert sample(np.ascontiguousarray(LABEL), matrix, shape=(5, 6, 7), how=how).flags.c_contiguous


def test_the_minimum_outside_is_that_of_the_numbers():
    voxels = np.array([np.nan, 3, 4], np.float32).reshape(3, 1, 1)
    assert sample(voxels, affine(shift=(7, 0, 0)), shape=(1, 1, 1), how="linear").item() == 3
