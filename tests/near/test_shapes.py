import pickle
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import find_objects

from medseg_core.cases import Case
from medseg_core.errors import MedsegError
from medseg_core.grid import Grid
from medseg_near.shapes import Shape, box_of, part_of, read_shapes, write_list, write_shape

WHOLE = Grid((10, 11, 12), np.diag([-2.0, 2.0, 3.0, 1.0]))  # R falls along X
START = (2, 3, 4)
BOX = tuple(slice(s, s + n) for s, n in zip(START, (4, 5, 6), strict=True))


def shape(name: str = "a", *, image: bool = False) -> Shape:
    """A block of 2 x 1 x 3 voxels, from (3, 5, 6) of the file on."""
    label = np.zeros((4, 5, 6), bool)
    label[1:3, 2, 2:5] = True
    grey = np.linspace(0, 1, label.size, dtype=np.float16).reshape(label.shape) if image else None
    return Shape(name, label, part_of(WHOLE, BOX), grey, WHOLE, START)


def test_the_centre_is_the_middle_of_the_box_in_ras_mm():
    np.testing.assert_allclose(shape().centre_mm, [-2 * 3.5, 2 * 5, 3 * 7])


def test_half_is_that_of_the_longest_edge_to_the_faces_of_its_voxels():
    assert shape().half_mm == pytest.approx(3 * 3 / 2)


def test_an_oblique_voxel_fits_into_the_cube_about_it():
    turn = np.eye(4)
    turn[:2, :2] = np.array([[1, -1], [1, 1]]) / np.sqrt(2) * 2  # 45 degrees, 2 mm
    grid = Grid((3, 3, 3), turn)
    label = np.zeros((3, 3, 3), bool)
    label[1, 1, 1] = True
    one = Shape("a", label, grid, None, grid, (0, 0, 0))
    assert one.half_mm == pytest.approx(np.sqrt(2))
    np.testing.assert_allclose(one.centre_mm, [0, 2 * np.sqrt(2), 1], atol=1e-12)


def test_spacing_is_that_of_the_file():
    assert shape().spacing_mm == (2.0, 2.0, 3.0)


def test_an_empty_shape_has_no_centre():
    with pytest.raises(MedsegError, match="a is an empty mask"):
        _ = replace(shape(), label=np.zeros((4, 5, 6), bool)).centre_mm


def test_a_mask_comes_home_to_where_it_was():
    home = shape().home(shape().label)
    assert home.shape == WHOLE.shape
    assert home.dtype == bool
    expected = np.zeros(WHOLE.shape, bool)
    expected[3:5, 5, 6:9] = True
    np.testing.assert_array_equal(home, expected)


def test_a_mask_of_another_shape_is_sent_away():
    with pytest.raises(MedsegError, match=r"\(4, 5, 5\) does not lie on its crop of \(4, 5, 6\)"):
        shape().home(np.zeros((4, 5, 5), bool))


def test_voxels_of_a_part_lie_where_they_lay():
    part = part_of(WHOLE, BOX)
    assert part.shape == (4, 5, 6)
    np.testing.assert_allclose(part.affine @ [1, 2, 2, 1], WHOLE.affine @ [3, 5, 6, 1])


@pytest.mark.parametrize("seed", range(5))
def test_a_box_is_that_of_scipy(seed):
    mask = np.random.default_rng(seed).random((9, 8, 7)) < 0.01
    mask[4, 4, 4] = True
    assert box_of(mask) == find_objects(mask.astype(int))[0]


def test_nothing_has_no_box():
    assert box_of(np.zeros((3, 3, 3), bool)) is None


def cache(folder, *names, image=False):
    for name in names:
        write_shape(shape(name, image=image), folder)
    write_list(folder, [Case(name, {}, group="g") for name in names])
    return folder


def test_a_cache_gives_back_what_was_written(tmp_path):
    (read,) = read_shapes(cache(tmp_path, "a", image=True))
    written = shape("a", image=True)
    np.testing.assert_array_equal(read.label, written.label)
    np.testing.assert_array_equal(read.image, written.image)
    assert (read.label.dtype, read.image.dtype) == (bool, np.float16)
    assert (read.id, read.start) == ("a", START)
    assert read.grid.differs(written.grid, tolerance_mm=0) is None
    assert read.whole.differs(WHOLE, tolerance_mm=0) is None


def test_shapes_come_in_the_order_of_the_list(tmp_path):
    assert [one.id for one in read_shapes(cache(tmp_path, "b", "c", "a"))] == ["b", "c", "a"]


def test_arrays_are_mapped_and_not_read(tmp_path):
    (read,) = read_shapes(cache(tmp_path, "a"))
    assert isinstance(read.label, np.memmap)
    assert read.image is None


def test_a_shape_of_a_cache_travels_as_a_path(tmp_path):
    write_shape(replace(shape(), label=np.ones((40, 50, 60), bool), grid=Grid((40, 50, 60), np.eye(4))), tmp_path)
    write_list(tmp_path, [Case("a", {})])
    (read,) = read_shapes(tmp_path)
    _ = read.label.sum()
    sent = pickle.dumps(read)
    assert len(sent) < 3000
    assert pickle.loads(sent).label.sum() == 40 * 50 * 60


def test_another_label_on_a_shape_of_a_cache_has_a_box_of_its_own(tmp_path):
    (read,) = read_shapes(cache(tmp_path, "a"))
    assert read.half_mm == pytest.approx(4.5)
    assert replace(read, label=np.ones((4, 5, 6), bool)).half_mm == pytest.approx(9)


def test_a_folder_that_is_no_cache_is_told(tmp_path):
    with pytest.raises(MedsegError, match="no cache of prepared shapes; make one: medseg near prepare"):
        read_shapes(tmp_path)


def test_a_shape_that_is_gone_is_named(tmp_path):
    cache(tmp_path, "a", "b")
    (tmp_path / "shapes" / "b" / "about.json").unlink()
    with pytest.raises(MedsegError, match=r"shapes/b holds no prepared arrays"):
        read_shapes(tmp_path)


def test_a_crop_that_does_not_say_where_it_lies_is_told(tmp_path):
    about = cache(tmp_path, "a") / "shapes" / "a" / "about.json"
    about.write_text(about.read_text().replace('"start"', '"begin"'))
    with pytest.raises(MedsegError, match="does not say where its crop lies; prepare it again"):
        read_shapes(tmp_path)
