"""Windows: what they hold, how often each picture comes, and that one draw is always the same."""

import json

import numpy as np
import pytest
import torch

from medseg_core.augment import Recipe
from medseg_core.cases import Case
from medseg_core.draw import Draw
from medseg_core.errors import MedsegError
from medseg_core.io import write_picture, write_text
from medseg_core.volume import Picture
from medseg_sem_al import samples
from medseg_sem_al.index import build_index
from medseg_sem_al.samples import Windows, intensity_of
from medseg_sem_al.settings import IndexConfig

PLAIN = {"mean": 0.0, "std": 1.0}


def made(tmp_path, masks, *, edge=40):
    """An index of pictures whose grey is their id times 50, in data sets by the first letter."""
    for name, mask in masks.items():
        home = tmp_path / name[0]
        grey = np.full((edge, edge), 50, np.uint8) if mask is None else (50 * mask).astype(np.uint8)
        grey[0, 0] = int(name[1:]) + 1  # no two are the same
        write_picture(Picture(grey), home / "raw" / f"{name}.png")
        if mask is not None:
            write_picture(Picture(mask.astype(np.uint8)), home / "labeled" / f"{name}.png")
    return build_index(tmp_path, IndexConfig(group="image", split=(1.0, 0.0, 0.0)))


def halves(edge=40):
    mask = np.zeros((edge, edge), int)
    mask[:, edge // 2 :] = 1
    return mask


def draws(windows, epoch=0):
    order = windows.order(epoch, np.random.default_rng(0))
    return [windows[Draw(int(k), epoch, place, 7)] for place, k in enumerate(order)]


def test_a_window_is_a_part_of_the_picture_with_its_mask(tmp_path):
    index = made(tmp_path, {"a0": halves(), "a1": halves()})
    for window in draws(Windows(index, index.cases, size=16, intensity=PLAIN, num_samples=20)):
        inside = window["image"][0] > 0.05  # but for the corner that tells the pictures apart
        assert torch.equal(inside, window["label"] == 1)


def test_image_and_mask_move_together(tmp_path):
    index = made(tmp_path, {"a0": halves(), "a1": halves()})
    how = Recipe(flip_chance=0.5, flip_axes=(0, 1), turn_chance=0.7)
    for window in draws(Windows(index, index.cases, size=32, intensity=PLAIN, how=how, num_samples=20)):
        assert torch.equal(window["image"][0] > 0.05, window["label"] == 1)


def test_what_lies_beyond_a_small_picture_is_no_class_and_has_the_mean(tmp_path):
    index = made(tmp_path, {"a0": halves(20), "a1": halves(20)}, edge=20)
    window = draws(Windows(index, index.cases, size=32, intensity={"mean": 0.5, "std": 0.25}, num_samples=1))[0]
    assert (window["label"] == 255).sum() == 32 * 32 - 20 * 20
    assert (window["image"][0][window["label"] == 255] == 0).all()


def test_values_are_standardised_by_the_statistics_of_the_index(tmp_path):
    index = made(tmp_path, {"a0": halves(), "a1": halves()})
    window = draws(Windows(index, index.cases, size=40, intensity={"mean": 0.1, "std": 0.05}, num_samples=1))[0]
    assert float(window["image"][0, 20, 30]) == pytest.approx((50 / 255 - 0.1) / 0.05, rel=1e-5)


def test_mean_and_deviation_are_those_of_all_pixels(tmp_path):
    pixels = [np.array([[0, 100], [200, 40]], np.uint8).repeat(32, 0), np.full((64, 8), 7, np.uint8)]
    for n, one in enumerate(pixels):
        write_picture(Picture(one), tmp_path / f"p{n}.png")
    index = build_index(tmp_path, IndexConfig(banner=0))
    both = np.concatenate([one.ravel() for one in pixels]) / 255
    found = intensity_of(index.cases)
    assert found["mean"] == pytest.approx(both.mean(), abs=2e-6)
    assert found["std"] == pytest.approx(both.std(), abs=2e-6)


def test_pictures_of_one_value_are_refused():
    case = Case("a", {}, notes={"size": [4, 4], "mean": 0.5, "std": 0.0})
    with pytest.raises(MedsegError, match="one value"):
        intensity_of([case])


def test_each_picture_comes_as_often(tmp_path):
    index = made(tmp_path, {f"a{n}": halves() for n in range(3)})
    order = Windows(index, index.cases, size=16, intensity=PLAIN, num_samples=12).order(0, np.random.default_rng(0))
    assert np.bincount(order).tolist() == [4, 4, 4]


def test_each_data_set_comes_as_often_though_one_is_larger(tmp_path):
    index = made(tmp_path, {"a0": halves(), **{f"b{n}": halves() for n in range(3)}})
    windows = Windows(index, index.cases, size=16, intensity=PLAIN, sampler="per-dataset", num_samples=12)
    order = windows.order(0, np.random.default_rng(0))
    assert np.bincount(order).tolist() == [6, 2, 2, 2]


def test_windows_of_a_rare_class_hold_it(tmp_path):
    rare = np.zeros((40, 40), int)
    rare[20, 20] = 1
    index = made(tmp_path, {"a0": rare, "a1": rare.T})
    found = draws(Windows(index, index.cases, size=8, intensity=PLAIN, sampler="per-class", num_samples=60))
    share = np.mean([bool((window["label"] == 1).any()) for window in found])
    assert 0.35 < share < 0.75  # half of the windows are centred on it; a window anywhere would hold it in 6 %


def test_an_epoch_covers_the_pictures_once_and_is_never_short(tmp_path):
    index = made(tmp_path, {f"a{n}": halves() for n in range(8)})
    assert len(Windows(index, index.cases, size=40, intensity=PLAIN)) == 64
    assert len(Windows(index, index.cases, size=10, intensity=PLAIN)) == 8 * 16


def test_one_draw_is_always_the_same(tmp_path):
    index = made(tmp_path, {"a0": halves(), "a1": halves()})
    how = Recipe(flip_chance=0.5, rotate_chance=1.0, noise_chance=1.0)
    one, other = (Windows(index, index.cases, size=16, intensity=PLAIN, how=how) for _ in range(2))
    draw = Draw(1, 3, 5, 42)
    other[Draw(0, 0, 0, 1)]  # what came before does not matter
    assert torch.equal(one[draw]["image"], other[draw]["image"])


def test_pictures_are_read_again_where_memory_is_short(tmp_path, monkeypatch):
    index = made(tmp_path, {"a0": halves(), "a1": halves()})
    plenty = Windows(index, index.cases, size=16, intensity=PLAIN)[Draw(1, 0, 0, 0)]
    monkeypatch.setattr(samples, "HELD_BYTES", 0)
    short = Windows(index, index.cases, size=16, intensity=PLAIN)
    assert torch.equal(short[Draw(1, 0, 0, 0)]["image"], plenty["image"])
    assert not short.shelf.held


def test_another_role_of_a_picture_is_another_identity(tmp_path):
    index = made(tmp_path, {"a0": halves(), "a1": halves()})
    of = lambda cases: Windows(index, cases, size=16, intensity=PLAIN).identity  # noqa: E731
    assert of(index.cases) != of(index.cases[:1])


def test_windows_of_a_picture_that_is_labelled_in_part_lie_around_its_labels(tmp_path):
    mask = np.full((40, 40), 255)
    mask[30:36, 5:9] = 1
    made(tmp_path, {"a0": mask, "a1": halves()})
    write_text(tmp_path / "classes.json", json.dumps({"a": 0, "b": 1, "unlabelled": 255}))
    config = IndexConfig(group="image", split=(1.0, 0.0, 0.0))
    index = build_index(tmp_path, config, colours=tmp_path / "classes.json")
    for window in draws(Windows(index, index.cases[:1], size=8, intensity=PLAIN, num_samples=20)):
        assert {1} < set(window["label"].unique().tolist()) <= {1, 255}
