"""Training samples against arrays worked out by hand."""

import pickle

import numpy as np
import pytest
import torch

from medseg_core.augment import Recipe
from medseg_core.draw import Draw
from medseg_core.errors import MedsegError
from medseg_core.store import Arrays, write_arrays
from medseg_totalseg.slices import Slices, normalise

WINDOW = {"window_hu": (-1000.0, 1000.0)}
EDGE = 16


def stored(folder, *, annotated=None, edge=EDGE, **layers) -> Arrays:
    """Three planes; the image is its own X index + 100 k, in HU."""
    x, _, k = np.indices((edge, edge, 3))
    arrays = {"image": np.asfortranarray((x + 100 * k).astype(np.int16))}
    arrays |= {name: np.asfortranarray(layer) for name, layer in layers.items()}
    write_arrays(folder, arrays, {"annotated": annotated, "spacing_mm": [2.0, 2.0, 5.0]})
    return Arrays(folder)


def blocks(*corners: tuple[int, int, int], dtype=np.uint8, edge=EDGE) -> np.ndarray:
    """Label ids, a 4x4 block each: (x, y, id) in every plane."""
    label = np.zeros((edge, edge, 3), dtype)
    for x, y, number in corners:
        label[x : x + 4, y : y + 4] = number
    return label


def slices(*cases: Arrays, **options) -> Slices:
    given = {"size": EDGE, "intensity": WINDOW, "channels": (0, 5, 2), "head": "softmax"}
    return Slices(cases, **{**given, **options})


LABEL = blocks((0, 0, 5), (8, 4, 2))


def test_a_window_is_a_straight_line_cut_at_its_ends():
    hu = np.array([[[-2000, -1000, 0, 500, 1000, 3000]]], np.int16)
    expected = np.array([0, 0, 0.5, 0.75, 1, 1], np.float32)
    assert np.array_equal(normalise(hu, WINDOW)[0, 0], expected)
    assert normalise(hu, WINDOW).dtype == np.float32


def test_fractions_are_rounded_as_the_cache_does():
    hu = np.array([[[0.4, 0.6, 1.5]]])
    assert np.array_equal(normalise(hu, {"window_hu": (0, 2)})[0, 0], np.array([0, 0.5, 1], np.float32))


def test_percentiles_are_those_of_the_volume():
    hu = np.arange(-50, 51, dtype=np.int16).reshape(101, 1, 1)  # percentile p is p - 50
    scaled = normalise(hu, {"percentiles": (10, 90)})[:, 0, 0]
    assert np.allclose(scaled, np.clip((np.arange(101) - 10) / 80, 0, 1))


def test_a_volume_of_one_value_becomes_zero():
    assert not normalise(np.full((2, 2, 2), 7, np.int16), {"percentiles": (1, 99)}).any()


def test_an_empty_window_is_refused():
    with pytest.raises(MedsegError, match="window_hu 5,5 is empty"):
        normalise(np.zeros((1, 1, 1), np.int16), {"window_hu": (5, 5)})


def test_a_sample_is_its_plane(tmp_path):
    samples = slices(stored(tmp_path / "a", label=LABEL))
    assert len(samples) == 3
    sample = samples[Draw(2, 0, 0, 0)]
    x = np.indices((EDGE, EDGE))[0]
    assert sample["image"].dtype == torch.float32
    np.testing.assert_array_equal(sample["image"][0].numpy(), ((x + 200 + 1000) / 2000).astype(np.float32))
    expected = np.zeros((EDGE, EDGE), int)
    expected[0:4, 0:4] = 1  # id 5 is channel 1
    expected[8:12, 4:8] = 2  # id 2 is channel 2
    assert sample["label"].dtype == torch.int64
    np.testing.assert_array_equal(sample["label"].numpy(), expected)
    assert "known" not in sample


@pytest.mark.parametrize("intensity", [WINDOW, {"percentiles": (2, 95)}])
def test_training_sees_what_prediction_sees(tmp_path, intensity):
    case = stored(tmp_path / "a", label=LABEL)
    samples = slices(case, intensity=intensity)
    whole = normalise(case["image"], intensity)
    for k in range(3):
        np.testing.assert_array_equal(samples[Draw(k, 0, 0, 0)]["image"][0].numpy(), whole[:, :, k])


def test_planes_of_all_cases_come_in_order(tmp_path):
    cases = [stored(tmp_path / str(i), label=blocks((0, 0, i))) for i in (2, 5)]
    seen = [slices(*cases)[Draw(i, 0, 0, 0)]["label"].unique().tolist() for i in range(6)]
    assert seen == [[0, 2]] * 3 + [[0, 1]] * 3


def test_ids_that_are_no_channels_are_background_and_hide_nothing(tmp_path):
    """Id 9 covers id 5 and is not asked for."""
    case = stored(tmp_path / "a", label=blocks((0, 0, 9), (8, 4, 2)), label2=blocks((0, 0, 5)))
    label = slices(case)[Draw(0, 0, 0, 0)]["label"].numpy()
    assert (label[0:4, 0:4] == 1).all()
    assert (label == 2).sum() == 16
    assert (label > 0).sum() == 32


def test_sigmoid_targets_keep_what_overlaps(tmp_path):
    case = stored(tmp_path / "a", label=blocks((0, 0, 5), (8, 4, 2)), label2=blocks((0, 0, 2)))
    label = slices(case, channels=(2, 5, 7), head="sigmoid")[Draw(1, 0, 0, 0)]["label"]
    assert (label.shape, label.dtype) == ((3, EDGE, EDGE), torch.uint8)
    expected = np.stack([blocks((0, 0, 1), (8, 4, 1)), blocks((0, 0, 1)), blocks()])[..., 0]
    np.testing.assert_array_equal(label.numpy(), expected)


def test_ids_above_255_are_kept(tmp_path):
    case = stored(tmp_path / "a", label=blocks((0, 0, 300), (8, 4, 44), dtype=np.uint16))
    label = slices(case, channels=(0, 300))[Draw(0, 0, 0, 0)]["label"].numpy()
    assert (label == 1).sum() == 16
    assert (label > 0).sum() == 16


def test_known_says_what_was_annotated(tmp_path):
    cases = [stored(tmp_path / "a", label=LABEL, annotated=[5]), stored(tmp_path / "b", label=LABEL, annotated=None)]
    samples = slices(*cases)
    assert samples[Draw(0, 0, 0, 0)]["known"].tolist() == [True, True, False]
    assert samples[Draw(3, 0, 0, 0)]["known"].tolist() == [True, True, True]
    assert slices(*cases, channels=(2, 5), head="sigmoid")[Draw(0, 0, 0, 0)]["known"].tolist() == [False, True]


def test_small_planes_are_padded_with_air_and_background(tmp_path):
    sample = slices(stored(tmp_path / "a", label=LABEL), size=32)[Draw(0, 0, 0, 0)]
    assert sample["image"].shape == (1, 32, 32)
    assert (sample["image"] > 0).sum() == EDGE**2  # all HU there are above -1000
    assert (sample["label"] > 0).sum() == 32


def test_a_sample_is_a_function_of_its_draw(tmp_path):
    samples = slices(stored(tmp_path / "a", label=LABEL), size=8)
    first, again = (samples[Draw(1, 3, 7, 42)] for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    corners = {float(samples[Draw(1, 3, place, 42)]["image"][0, 0, 0]) for place in range(20)}
    assert len(corners) > 3  # the crop lies elsewhere


def test_crops_are_centred_on_structures_when_asked_to(tmp_path):
    samples = slices(stored(tmp_path / "a", label=blocks((0, 0, 5), edge=64), edge=64), size=8, foreground=1.0)
    assert all(samples[Draw(i % 3, 0, i, 0)]["label"].any() for i in range(20))


def test_structures_that_are_not_trained_draw_no_crop(tmp_path):
    """Id 9 is large but no channel; id 5 is small and in another corner."""
    label = blocks((60, 60, 5), edge=64)
    label[:40, :40] = 9
    samples = slices(stored(tmp_path / "a", label=label, edge=64), size=8, foreground=1.0)
    assert all((samples[Draw(0, 0, i, 0)]["label"] == 1).any() for i in range(10))


ALWAYS_MIRRORED = Recipe(flip_chance=1.0)


def test_a_mirrored_sample_swaps_left_and_right(tmp_path):
    case = stored(tmp_path / "a", label=blocks((0, 0, 5), (8, 4, 2)))
    plain, mirrored = (slices(case, how=how, mirror={5: 2, 2: 5})[Draw(0, 0, 0, 0)] for how in (None, ALWAYS_MIRRORED))
    assert torch.equal(mirrored["image"], plain["image"].flip(1))
    swapped = torch.tensor([0, 2, 1])[plain["label"]]
    assert torch.equal(mirrored["label"], swapped.flip(0))


def test_a_mirrored_sample_knows_partners_that_are_no_channels(tmp_path):
    """Only the left one, id 5, is trained: in a mirror it is where the right one, id 2, stood."""
    case = stored(tmp_path / "a", label=blocks((0, 0, 5), (8, 4, 2)))
    sample = slices(case, how=ALWAYS_MIRRORED, mirror={5: 2, 2: 5}, channels=(0, 5))[Draw(0, 0, 0, 0)]
    expected = torch.from_numpy((blocks((8, 4, 1))[..., 0]).astype(np.int64)).flip(0)
    assert torch.equal(sample["label"], expected)


def test_without_sides_nothing_is_mirrored(tmp_path):
    case = stored(tmp_path / "a", label=LABEL)
    plain, other = (slices(case, how=how)[Draw(0, 0, 0, 0)] for how in (None, ALWAYS_MIRRORED))
    assert torch.equal(plain["image"], other["image"])


def test_image_and_label_move_together(tmp_path):
    """The image is the label: where they part by more than a border, one of them was moved alone."""
    label = blocks((4, 2, 5), (8, 10, 5), edge=32).repeat(2, axis=1)[:, :32]
    write_arrays(
        tmp_path / "a",
        {"image": np.asfortranarray(label.astype(np.int16)), "label": np.asfortranarray(label)},
        {"annotated": None, "spacing_mm": [2.0, 2.0, 5.0]},
    )
    how = Recipe(rotate_chance=1.0, scale_chance=1.0, shift_chance=1.0)
    samples = slices(Arrays(tmp_path / "a"), size=32, how=how, intensity={"window_hu": (0.0, 5.0)}, channels=(0, 5))
    for place in range(5):
        sample = samples[Draw(0, 0, place, 0)]
        image, moved = sample["image"][0].numpy(), sample["label"].numpy()
        assert np.array_equal(image[1:-1, 1:-1] > 0.99, (image > 0.99)[1:-1, 1:-1] & (moved == 1)[1:-1, 1:-1])
        assert not (moved[image < 0.01]).any()
        assert 20 < moved.sum() < 200


def test_samples_travel_to_workers_as_paths(tmp_path):
    samples = slices(stored(tmp_path / "a", label=LABEL))
    sent = pickle.dumps(samples)
    assert len(sent) < 20_000
    assert torch.equal(pickle.loads(sent)[Draw(0, 0, 0, 0)]["label"], samples[Draw(0, 0, 0, 0)]["label"])
