"""Training samples: what they hold, how often each kind comes, and what is random about them."""

from dataclasses import replace

import numpy as np
import pytest

from medseg_core.augment import Recipe
from medseg_core.draw import Draw, order_of
from medseg_core.errors import MedsegError
from medseg_core.store import Arrays, write_arrays
from medseg_fusion.slices import Slices, intensity_of, scaled, size_of

HU_SUV = intensity_of("HU and SUV", (-160, 240), (0, 10))


@pytest.fixture
def arrays(tmp_path):
    """A patient of 20 slices, 24 x 40, with tumour in two of them and PET that is 10 in one pixel of each."""
    ct, pet, label = (
        np.full((24, 40, 20), 40, np.int16),
        np.zeros((24, 40, 20), np.float32),
        np.zeros((24, 40, 20), "u1"),
    )
    pet[12, 20] = 10
    label[10:14, 18:22, 5:7] = 1
    about = {"unit": "HU and SUV", "spacing": [2.0, 2.0, 3.0]}
    write_arrays(tmp_path / "p", {"ct": ct, "pet": pet, "label": label}, about)
    return Arrays(tmp_path / "p")


def draws(samples, num=40):
    return [samples[Draw(index % len(samples), index // len(samples), index, 3)] for index in range(num)]


def test_windows_become_0_to_1_and_what_lies_beyond_is_cut():
    image = scaled(np.array([-1000, -160, 40, 240, 900]), np.array([0, 2.5, 5, 10, 44.8]), HU_SUV)
    np.testing.assert_allclose(image, [[0, 0, 0.5, 1, 1], [0, 0.25, 0.5, 1, 1]])


def test_pictures_of_8_bits_keep_all_their_values():
    image = scaled(np.array([0, 51, 255]), np.array([255, 0, 51]), intensity_of("8 bits", (-160, 240), (0, 10)))
    np.testing.assert_allclose(image, [[0, 0.2, 1], [1, 0, 0.2]])


def test_an_empty_window_is_refused():
    with pytest.raises(MedsegError, match="clip_suv 5,5 is empty"):
        intensity_of("HU and SUV", (0, 1), (5, 5))


def test_a_sample_is_a_square_of_both_pictures_and_the_mask(arrays):
    sample = Slices([arrays], size=32, intensity=HU_SUV)[Draw(5, 0, 0, 0)]
    assert {name: tuple(value.shape) for name, value in sample.items()} == {
        "image": (2, 32, 32),
        "present": (2,),
        "label": (1, 32, 32),
    }
    assert sample["label"].sum() == 16
    assert sample["image"][1].max() == 1


def test_half_of_an_epoch_has_tumour_where_that_is_asked(arrays):
    samples = Slices([arrays], size=32, intensity=HU_SUV, tumour_share=0.5)
    order = order_of(samples, 0, 1)
    assert len(order) == 20
    assert samples.has_tumour[order].sum() == 10  # 2 of 20 in the patient


def test_an_epoch_has_as_many_samples_as_are_asked(arrays):
    samples = Slices([arrays], size=32, intensity=HU_SUV, num_samples=50)
    assert len(samples) == 50
    assert set(np.bincount(order_of(samples, 0, 1))) == {2, 3}  # of 20 slices
    shared = Slices([arrays], size=32, intensity=HU_SUV, tumour_share=0.5, num_samples=50)
    assert shared.has_tumour[order_of(shared, 0, 1)].sum() == 25
    fewer = Slices([arrays], size=32, intensity=HU_SUV, num_samples=5)
    assert set(np.concatenate([order_of(fewer, epoch, 1) for epoch in range(40)])) == set(range(20))


def test_without_a_share_every_slice_comes_once(arrays):
    order = order_of(Slices([arrays], size=32, intensity=HU_SUV), 0, 1)
    assert sorted(order) == list(range(20))


def test_a_modality_is_missing_as_often_as_is_asked(arrays):
    present = np.array(
        [one["present"].numpy() for one in draws(Slices([arrays], size=32, intensity=HU_SUV, drop_chance=0.25), 400)]
    )
    assert (present.sum(1) >= 1).all()
    np.testing.assert_allclose(1 - present.mean(0), 0.25, atol=0.07)  # three standard deviations of 400


def test_misalignment_moves_pet_and_nothing_else(arrays):
    samples = Slices([arrays], size=40, intensity=HU_SUV, misalign_mm=6.0)
    still = Slices([arrays], size=40, intensity=HU_SUV)
    moved = []
    for index in range(20):
        draw = Draw(index, 0, index, 3)
        with_move, without = samples[draw], still[replace(draw)]
        moved.append(float((with_move["image"][1] - without["image"][1]).abs().max()))
        assert with_move["image"][0].unique().numel() <= 2
    assert np.mean(np.array(moved) > 0.1) > 0.8


def test_a_sample_depends_on_its_draw_alone(arrays):
    samples = Slices([arrays], size=32, intensity=HU_SUV, drop_chance=0.3, misalign_mm=2.0)
    one, other = samples[Draw(5, 2, 7, 1)], samples[Draw(5, 2, 7, 1)]
    assert all((one[name] == other[name]).all() for name in one)


def test_the_size_holds_the_largest_slice_in_steps_of_16(arrays):
    assert size_of([arrays]) == 48


@pytest.mark.parametrize(("unit", "axis"), [("HU and SUV", 0), ("8 bits", 1)])
def test_a_flip_exchanges_left_and_right_in_volumes_and_in_pictures(tmp_path, unit, axis):
    ct = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16, 1)
    arrays = {"ct": ct, "pet": ct, "label": np.ones_like(ct)}
    write_arrays(tmp_path / "p", arrays, {"unit": unit, "spacing": [1.0, 1.0, 1.0]})
    how = Recipe(flip_chance=1.0)
    intensity = {"unit": unit, "ct": [0.0, 255.0], "pet": [0.0, 255.0]}
    samples = Slices([Arrays(tmp_path / "p")], size=16, intensity=intensity, how=how)
    found = samples[Draw(0, 0, 0, 0)]["image"][0].numpy()
    np.testing.assert_allclose(found, np.flip(ct[..., 0], axis) / 255, atol=1e-6)
