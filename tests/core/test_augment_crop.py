"""Random windows: answers by hand."""

import numpy as np
import pytest

from medseg_core.augment import crop
from medseg_core.errors import MedsegError


def rng(seed=0):
    return np.random.default_rng(seed)


def sample(space):
    return rng().random((1, *space), dtype=np.float32), rng().integers(0, 6, space, dtype=np.uint8)


def test_image_and_label_are_cut_alike():
    label = np.arange(30 * 20, dtype=np.int64).reshape(30, 20)
    for draw in rng().spawn(20):
        got, mask = crop(label[None].astype(np.float64), label, (7, 9), foreground=0.5, rng=draw)
        assert got.shape == (1, 7, 9)
        np.testing.assert_array_equal(got[0], mask)
        start = divmod(int(mask[0, 0]), 20)
        np.testing.assert_array_equal(mask, label[start[0] : start[0] + 7, start[1] : start[1] + 9])


def test_without_foreground_every_place_is_as_likely():
    label = np.zeros((6, 5), np.uint8)
    image = np.arange(30, dtype=np.float32).reshape(1, 6, 5)
    starts = [crop(image, label, (4, 4), foreground=1.0, rng=draw)[0][0, 0, 0] for draw in rng().spawn(600)]
    corners, hits = np.unique(starts, return_counts=True)
    assert corners.tolist() == [0, 1, 5, 6, 10, 11]
    assert hits.min() > 65  # of 100: four standard deviations


def test_the_share_of_foreground_is_kept():
    label = np.zeros((400, 4), np.uint8)
    label[200, 2] = 1
    image = label[None].astype(np.float32)
    hits = [crop(image, label, (4, 4), foreground=0.7, rng=draw)[1].any() for draw in rng().spawn(500)]
    assert np.mean(hits) == pytest.approx(0.7 + 0.3 * 4 / 397, abs=0.07)


def test_small_structures_are_seen_as_often_as_large_ones():
    label = np.zeros((60, 60), np.uint8)
    label[:, 30:] = 1
    label[10, 10] = 2
    image = label[None].astype(np.float32)
    seen = [2 in crop(image, label, (5, 5), foreground=1.0, rng=draw)[1] for draw in rng().spawn(300)]
    assert np.mean(seen) == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("place", [(20, 10, 5), (0, 19, 9)])
def test_a_structure_lies_in_the_middle_as_far_as_the_border_lets_it(place):
    label = np.zeros((30, 20, 10), np.uint16)
    label[place] = 3
    index = np.arange(label.size, dtype=np.float64).reshape(1, *label.shape)
    got, mask = crop(index, label, (7, 6, 5), foreground=1.0, rng=rng())
    start = np.clip(np.array(place) - [3, 3, 2], 0, np.array(label.shape) - [7, 6, 5])
    np.testing.assert_array_equal(np.unravel_index(int(got[0, 0, 0, 0]), label.shape), start)
    assert mask[tuple(np.array(place) - start)] == 3


def test_a_small_image_is_padded_on_both_sides():
    image, label = np.ones((1, 2, 3), np.float32), np.ones((2, 3), np.uint8)
    got, mask = crop(image, label, (4, 2), foreground=0.0, rng=rng(), outside=-1.0, fill=255)
    np.testing.assert_array_equal(got[0], [[-1, -1], [1, 1], [1, 1], [-1, -1]])
    np.testing.assert_array_equal(mask, [[255, 255], [1, 1], [1, 1], [255, 255]])


def test_layers_are_cut_alike_and_any_of_them_may_hold_the_structure():
    layers = np.zeros((2, 50, 50), np.uint8)
    layers[1, 40, 7] = 4
    got, mask = crop(layers.astype(np.float32), layers, (5, 5), foreground=1.0, rng=rng())
    assert mask[1, 2, 2] == 4
    np.testing.assert_array_equal(got, mask)


def test_equal_seeds_give_equal_crops():
    image, label = sample((50, 40))
    one, same = (crop(image, label, (9, 9), foreground=0.5, rng=rng(3)) for _ in range(2))
    np.testing.assert_array_equal(one[0], same[0])


def test_a_memory_map_is_left_as_it_is(tmp_path):
    image, label = sample((50, 40))
    np.save(tmp_path / "image.npy", image)
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    got, _ = crop(mapped, label, (9, 9), foreground=0.5, rng=rng())
    assert type(got) is np.ndarray
    assert got.flags.writeable


@pytest.mark.parametrize(("size", "says"), [((4, 4, 4), "2 axes"), ((0, 4), r"\(0, 4\)")])
def test_a_size_that_does_not_fit_is_refused(size, says):
    with pytest.raises(MedsegError, match=says):
        crop(*sample((24, 18)), size, foreground=0.5, rng=rng())
