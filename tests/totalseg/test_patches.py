"""Training patches against arrays worked out by hand."""

import pickle

import numpy as np
import pytest
import torch

from medseg_core.augment import Recipe
from medseg_core.draw import Draw
from medseg_core.store import Arrays, write_arrays
from medseg_totalseg.patches import Patches
from medseg_totalseg.places import places_of

SHAPE = (12, 14, 10)


def stored(folder, label, *, annotated=None, with_places=True, **more) -> Arrays:
    """The image is x + 100 y + 10000 z, scaled into -1000 to 1000 HU so that each voxel says where it is."""
    x, y, z = np.indices(label.shape)
    arrays = {"image": np.asfortranarray((x + 20 * y + 280 * z - 1000).astype(np.int16))}
    arrays |= {"label": np.asfortranarray(label)} | {name: np.asfortranarray(layer) for name, layer in more.items()}
    if with_places:
        arrays["places"] = places_of([label, *more.values()])
    write_arrays(folder, arrays, {"annotated": annotated, "spacing_mm": [2.0, 2.0, 5.0]})
    return Arrays(folder)


def patches(*cases: Arrays, **options) -> Patches:
    given = {"patch": (6, 6, 6), "per_case": 3, "intensity": {"window_hu": (-1000.0, 3000.0)}, "channels": (0, 5, 2)}
    return Patches(cases, **{"head": "softmax", **given, **options})


def cube(*corners: tuple[int, int, int, int], shape=SHAPE) -> np.ndarray:
    """Label ids, a cube of 2 voxels each: (x, y, z, id)."""
    label = np.zeros(shape, np.uint8)
    for x, y, z, number in corners:
        label[x : x + 2, y : y + 2, z : z + 2] = number
    return label


LABEL = cube((0, 0, 0, 5), (8, 9, 7, 2))


def corner_of(sample) -> tuple[int, int, int]:
    """Where a patch begins, read off its first voxel."""
    value = round(float(sample["image"].flatten()[0]) * 4000)
    return value % 280 % 20, value % 280 // 20, value // 280


def test_a_patch_is_a_piece_of_its_volume(tmp_path):
    case = stored(tmp_path / "a", LABEL)
    for place in range(10):
        sample = patches(case)[Draw(0, 0, place, 0)]
        x, y, z = corner_of(sample)
        piece = (slice(x, x + 6), slice(y, y + 6), slice(z, z + 6))
        expected = (np.asarray(case["image"][piece], np.float32) + 1000) / 4000
        np.testing.assert_allclose(sample["image"][0].numpy(), expected, atol=1e-6)
        channel = np.select([LABEL[piece] == 5, LABEL[piece] == 2], [1, 2])
        np.testing.assert_array_equal(sample["label"].numpy(), channel)
        assert (sample["image"].dtype, sample["label"].dtype) == (torch.float32, torch.int64)


def test_an_epoch_has_so_many_patches_of_each_case(tmp_path):
    cases = [stored(tmp_path / str(number), cube((4, 4, 4, number))) for number in (5, 2)]
    samples = patches(*cases, foreground=1.0)
    seen = [samples[Draw(i, 0, i, 0)]["label"].max().item() for i in range(len(samples))]
    assert seen == [1, 1, 1, 2, 2, 2]


def test_a_sample_is_a_function_of_its_draw(tmp_path):
    samples = patches(stored(tmp_path / "a", LABEL))
    first, again = (samples[Draw(1, 3, 7, 42)] for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert len({corner_of(samples[Draw(1, epoch, 7, 42)]) for epoch in range(20)}) > 10


def test_every_corner_can_be_drawn_and_none_lies_outside(tmp_path):
    samples = patches(stored(tmp_path / "a", np.zeros(SHAPE, np.uint8)), patch=(11, 13, 9))
    seen = {corner_of(samples[Draw(0, 0, place, 0)]) for place in range(100)}
    assert seen == {(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)}


def test_small_volumes_are_padded_with_air_and_background(tmp_path):
    sample = patches(stored(tmp_path / "a", LABEL), patch=(16, 6, 16))[Draw(0, 0, 0, 0)]
    assert sample["image"].shape == (1, 16, 6, 16)
    inside = sample["image"][0, 2:14, :, 3:13]  # 12 of 16 and 10 of 16, padded on both sides
    assert inside.flatten()[1:].min() > 0
    assert torch.count_nonzero(sample["image"]) == torch.count_nonzero(inside)


def test_each_structure_is_as_likely_a_centre_as_any_other(tmp_path):
    """Id 5 has 8 voxels, id 2 has 400: of 200 centred patches half show id 5, give or take 4 standard deviations."""
    label = cube((0, 0, 0, 5), shape=(40, 40, 30))
    label[20:30, 20:30, 20:24] = 2
    samples = patches(stored(tmp_path / "a", label), foreground=1.0)
    shows = [set(samples[Draw(0, 0, place, 0)]["label"].unique().tolist()) for place in range(200)]
    assert all(len(found & {1, 2}) == 1 for found in shows)
    assert abs(sum(1 in found for found in shows) - 100) < 4 * 50**0.5


def test_the_share_of_centred_patches_is_the_one_asked_for(tmp_path):
    """A patch at random meets the one structure in 1 of about 2000 places."""
    label = cube((30, 30, 20, 5), shape=(64, 64, 40))
    samples = patches(stored(tmp_path / "a", label), foreground=0.25, patch=(4, 4, 4))
    hits = sum(bool(samples[Draw(0, 0, place, 0)]["label"].any()) for place in range(200))
    assert abs(hits - 50) < 4 * (200 * 0.25 * 0.75) ** 0.5


def test_structures_that_are_not_trained_centre_no_patch(tmp_path):
    label = cube((38, 38, 28, 5), shape=(40, 40, 30))
    label[:20, :20, :20] = 9
    samples = patches(stored(tmp_path / "a", label), foreground=1.0)
    assert all((samples[Draw(0, 0, place, 0)]["label"] == 1).any() for place in range(10))


def test_a_cache_without_places_gives_the_same_patches(tmp_path):
    new, old = (stored(tmp_path / str(i), LABEL, with_places=bool(i)) for i in (1, 0))
    for place in range(5):
        one, other = (patches(case, foreground=1.0)[Draw(0, 0, place, 0)] for case in (new, old))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_case_without_structures_gives_patches_anywhere(tmp_path):
    samples = patches(stored(tmp_path / "a", np.zeros(SHAPE, np.uint8)), foreground=1.0)
    assert len({corner_of(samples[Draw(0, 0, place, 0)]) for place in range(20)}) > 10


def test_sigmoid_targets_keep_what_overlaps(tmp_path):
    case = stored(tmp_path / "a", cube((2, 2, 2, 5)), label2=cube((2, 2, 2, 2)))
    label = patches(case, channels=(2, 5), head="sigmoid", foreground=1.0)[Draw(0, 0, 0, 0)]["label"]
    assert (label.shape, label.dtype) == ((2, 6, 6, 6), torch.uint8)
    assert label.sum((1, 2, 3)).tolist() == [8, 8]


def test_known_says_what_was_annotated(tmp_path):
    cases = [stored(tmp_path / "a", LABEL, annotated=[5]), stored(tmp_path / "b", LABEL)]
    samples = patches(*cases, per_case=1)
    assert [samples[Draw(i, 0, 0, 0)]["known"].tolist() for i in (0, 1)] == [[True, True, False], [True, True, True]]


def test_a_mirrored_patch_swaps_left_and_right(tmp_path):
    """In RAS axis 0 goes from left to right."""
    case = stored(tmp_path / "a", cube((1, 4, 4, 5), (8, 4, 4, 2)))
    options = {"patch": SHAPE, "mirror": {5: 2, 2: 5}}
    plain, mirrored = (patches(case, how=how, **options)[Draw(0, 0, 0, 0)] for how in (None, Recipe(flip_chance=1.0)))
    assert torch.equal(mirrored["image"], plain["image"].flip(1))
    assert torch.equal(mirrored["label"], torch.tensor([0, 2, 1])[plain["label"]].flip(0))


@pytest.mark.parametrize("angle", [0.0, 20.0])
def test_image_and_label_turn_together(tmp_path, angle):
    label = cube(*((x, y, z, 5) for x in (3, 5) for y in (4, 6) for z in (3, 5)))
    folder = tmp_path / "a"
    arrays = {"image": label.astype(np.int16), "label": label}
    write_arrays(folder, arrays, {"annotated": None, "spacing_mm": [2.0, 2.0, 5.0]})
    how = Recipe(rotate_chance=1.0, rotate_degrees=angle, scale_chance=1.0)
    samples = patches(
        Arrays(folder), patch=SHAPE, how=how, intensity={"window_hu": (0.0, 5.0)}, channels=(0, 5), foreground=1.0
    )
    for place in range(5):
        sample = samples[Draw(0, 0, place, 0)]
        image, moved = sample["image"][0].numpy(), sample["label"].numpy() == 1
        assert moved.sum() > 20
        assert (image[moved] > 0.1).mean() > 0.99
        assert (image[~moved] < 0.9).all()


def test_samples_travel_to_workers_as_paths(tmp_path):
    samples = patches(stored(tmp_path / "a", LABEL), foreground=1.0)
    sent = pickle.dumps(samples)
    assert len(sent) < 20_000
    assert torch.equal(pickle.loads(sent)[Draw(0, 0, 0, 0)]["label"], samples[Draw(0, 0, 0, 0)]["label"])
