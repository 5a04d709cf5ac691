"""What the networks are trained on: pictures, displacements and distances that belong together from every view."""

import pickle

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medseg_cardiac import samples
from medseg_cardiac.cohort import ROLES, Slice
from medseg_cardiac.fields import warp
from medseg_cardiac.samples import InfarctSlices, MotionPairs, RegistrationPairs, coil_shading, signed_distance, view_of
from medseg_core import augment
from medseg_core.augment import Recipe
from medseg_core.draw import Draw
from medseg_core.store import Arrays, write_arrays

SIZE, CROP, ED, ES = 96, 64, 1, 4
POOLS = {"ed": 20.0, "es": 12.0}  # radii
STRAIGHT = Recipe()
STILL = np.zeros((2, SIZE, SIZE))
ALL_ROUND = Recipe(  # every change of place, none of grey values
    **dict.fromkeys(("flip_chance", "rotate_chance", "scale_chance", "shift_chance"), 1.0),
    flip_axes=(0, 1),
    rotate_degrees=180.0,
    scale_range=(0.8, 1.25),
)

NOISY = Recipe(noise_chance=1.0, noise_std=0.05)


def disc(radius, *, size=SIZE, centre=(0.0, 0.0)):
    h, w = np.indices((size, size)) - (size - 1) / 2
    return np.hypot(h - centre[0], w - centre[1]) < radius


def packed(folder, frames, *, ed=ED, es=ES, lge=None, **masks):
    """One slice in a folder, as `cohort.pack` leaves it."""
    layers = np.stack([masks.get(role, np.zeros(frames.shape[1:])) for role in (*ROLES, "lge_myo", "lge_mi")])
    arrays = {"cine-a": frames.astype(np.float16), "masks-a": layers.astype(np.uint8)}
    arrays |= {} if lge is None else {"lge-a": lge.astype(np.float16)}
    about = {"name": "a", "ed": ed, "es": es, "has": ["cine", *masks, *(["lge"] if lge is not None else [])]}
    write_arrays(folder, arrays, {"case": folder.name, "slices": [about], "pixel_mm": 1.0})
    return Slice(Arrays(folder), folder.name, "a", about)


@pytest.fixture
def unstretched(monkeypatch):
    """Views without the little that they lengthen one axis."""
    monkeypatch.setattr(samples, "STRETCH", 0.0)


@pytest.fixture(scope="module")
def textured(tmp_path_factory):
    """Five smooth frames that are like each other nowhere."""
    noise = np.random.default_rng(0).standard_normal((5, SIZE, SIZE))
    frames = np.stack([gaussian_filter(frame, 4) for frame in noise])
    frames = (frames - frames.min()) / (frames.max() - frames.min())
    return packed(tmp_path_factory.mktemp("textured"), frames)


@pytest.fixture(scope="module")
def beating(tmp_path_factory):
    """Bright pools on black, off the middle and with a knob so that no turn looks alike, outlined at ED and ES.

    Frames beside these two show the same.
    """
    pools = {phase: disc(r, centre=(4, -6)) | disc(r / 2, centre=(4 + r, -6)) for phase, r in POOLS.items()}
    frames = np.stack([pools["ed"]] * 3 + [pools["es"]] * 3).astype(float)
    folder = tmp_path_factory.mktemp("beating")
    return packed(folder, frames, lv_ed=pools["ed"], lv_es=pools["es"])


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """Frame t is t / 10 all over."""
    frames = np.arange(6).reshape(-1, 1, 1) / 10 + np.zeros((6, SIZE, SIZE))
    return packed(tmp_path_factory.mktemp("numbered"), frames)


def draws(num, *, index=0, seed=0):
    return [Draw(index, 0, place, seed) for place in range(num)]


def pairs(one, how=STRAIGHT, **more):
    slices = one if isinstance(one, list) else [one]
    return MotionPairs(slices, crop=CROP, how=how, **more)


def number(picture):
    """Which frame of `numbered` it shows."""
    assert picture.max() - picture.min() < 1e-3
    return round(float(picture.mean()) * 10)


@pytest.mark.parametrize("how", [STRAIGHT, ALL_ROUND], ids=["straight", "turned and mirrored"])
def test_a_frame_moved_by_the_made_displacement_is_the_fixed_picture(how, textured):
    for draw in draws(8):
        sample = pairs(textured, how, synthetic=1.0)[draw]
        assert sample["known"] == 1
        assert sample["flow"].abs().max() > 0.5
        moved = warp(sample["moving"][None], sample["flow"][None])[0]
        at = torch.stack(torch.meshgrid(*[torch.arange(float(CROP))] * 2, indexing="ij")) + sample["flow"]
        inside = ((at >= 0) & (at <= CROP - 1)).all(0)
        gap, unmoved = ((picture - sample["fixed"])[0][inside].abs().mean() for picture in (moved, sample["moving"]))
        assert gap < 0.005
        assert gap < unmoved / 5 or unmoved < 0.01


def test_a_view_that_changes_nothing_is_the_middle(textured, unstretched):
    sample = pairs(textured, frames="ed")[Draw(0, 0, 0, 0)]
    middle = np.s_[(SIZE - CROP) // 2 : (SIZE + CROP) // 2]
    np.testing.assert_allclose(sample["fixed"][0], textured.frames[ED][middle, middle], atol=1e-6)
    assert (sample["flow"].any(), sample["known"].item(), sample["drawn"].item()) == (False, 0, 0)


def test_a_view_takes_places_as_the_augmentation_of_core_does(textured, unstretched):
    picture = np.asarray(textured.frames[0], np.float32)
    for seed in range(5):
        view = view_of(SIZE, SIZE, ALL_ROUND, np.random.default_rng(seed), shading=0.0)
        plan = augment.plan(ALL_ROUND, (2, SIZE, SIZE), np.random.default_rng(seed))
        want = augment.apply(plan, picture[None], np.zeros((SIZE, SIZE), np.uint8), mirror={}, outside=np.nan)[0][0]
        known = np.isfinite(want)
        assert known.mean() > 0.5
        np.testing.assert_allclose(view.take([picture])[0][known], want[known], atol=1e-4)


def test_equal_draws_give_equal_samples_and_others_do_not(textured):
    source = pairs(textured, ALL_ROUND, synthetic=0.5, shading=0.5)
    copy = pickle.loads(pickle.dumps(source))
    one, again, other = source[Draw(0, 2, 7, 1)], copy[Draw(0, 2, 7, 1)], source[Draw(0, 2, 8, 1)]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["moving"], other["moving"])


def test_the_frame_at_ed_stays_where_that_is_asked_for(numbered):
    found = [pairs(numbered, frames="ed")[draw] for draw in draws(30)]
    assert {number(sample["fixed"]) for sample in found} == {ED}
    assert {number(sample["moving"]) for sample in found} == set(range(6))


def test_else_any_two_frames_are_a_pair(numbered):
    found = [pairs(numbered, frames="any")[draw] for draw in draws(60)]
    assert {number(sample["fixed"]) for sample in found} == set(range(6))
    assert len({(number(sample["fixed"]), number(sample["moving"])) for sample in found}) > 20


def test_made_motion_shows_one_frame_twice_as_often_as_is_asked_for(numbered):
    found = [pairs(numbered, synthetic=0.3)[draw] for draw in draws(200)]
    known = [sample for sample in found if sample["known"]]
    assert abs(len(known) / 200 - 0.3) < 0.1
    assert all(number(sample["fixed"]) == number(sample["moving"]) for sample in known)


def test_each_slice_comes_several_times_in_an_epoch(numbered, textured):
    source = pairs([numbered, textured], per_slice=3)
    assert len(source) == 6
    spread = [float(np.ptp(source[Draw(index, 0, index, 0)]["fixed"].numpy())) for index in range(6)]
    assert [value > 0.1 for value in spread] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("synthetic", [0.0, 0.2], ids=["as they are", "moved further"])
@pytest.mark.parametrize("frames", ["ed", "any"])
def test_distances_say_where_the_pools_of_their_pictures_end(frames, synthetic, beating):
    """From every view, the other way round too, and with motion on top: half bright is where the distance is 0."""
    found = [pairs(beating, ALL_ROUND, frames=frames, synthetic=synthetic, drawn=1.0)[draw] for draw in draws(40)]
    found = [sample for sample in found if sample["drawn"]]
    assert len(found) > 25
    larger = set()
    for sample in found:
        for name in ("moving", "fixed"):
            bright = sample[name] > 0.5
            assert (bright != (sample[f"near_{name}"] > 0)).float().mean() < 0.015
        larger.add(bool((sample["near_fixed"] > 0).sum() > (sample["near_moving"] > 0).sum()))
    assert larger == ({True} if frames == "ed" else {True, False})


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_distances_are_in_pixels_of_the_sample(factor, tmp_path, unstretched):
    one = packed(tmp_path / "p", np.zeros((6, SIZE, SIZE)), lv_ed=disc(20), lv_es=disc(12))
    how = Recipe(scale_chance=1.0, scale_range=(factor, factor))
    sample = pairs(one, how, frames="ed", drawn=1.0)[Draw(0, 0, 0, 0)]
    for name, radius in (("near_fixed", 20), ("near_moving", 12)):
        found = sample[name][0, 32, 32:].numpy()
        np.testing.assert_allclose(found, radius * factor - np.arange(32) - 0.5, atol=1)
        assert found[4] - found[30] == pytest.approx(26, abs=1)


def test_a_slice_without_outlines_is_never_a_drawn_pair(textured):
    for draw in draws(10):
        sample = pairs(textured, drawn=1.0)[draw]
        assert not sample["drawn"]
        assert not sample["near_fixed"].any()


def test_grey_values_of_a_pair_change_almost_alike(numbered):
    how = Recipe(**dict.fromkeys(("contrast_chance", "brightness_chance", "gamma_chance"), 1.0), gamma_range=(0.5, 2))
    found = [pairs([numbered], how, frames="ed", synthetic=1.0, shading=0.4)[draw] for draw in draws(40)]
    bright = [sample for sample in found if sample["fixed"].mean() > 0.1]
    assert len(bright) > 15
    for sample in bright:
        moving, fixed = sample["moving"].mean().item(), sample["fixed"].mean().item()
        assert moving != fixed
        assert abs(np.log(moving) - np.log(fixed)) < 0.8


def test_two_frames_have_noise_of_their_own(numbered):
    source = pairs(numbered, NOISY, frames="ed")
    for draw in draws(10):
        moving, fixed = (source[draw][name].flatten().numpy() for name in ("moving", "fixed"))
        assert min(moving.std(), fixed.std()) > 1e-4
        assert abs(np.corrcoef(moving, fixed)[0, 1]) < 0.1


def test_shading_of_none_changes_nothing():
    assert (coil_shading(32, 2, 0.0, np.random.default_rng(0)) == 1).all()


def test_shading_is_smooth_and_nearly_the_same_for_both_frames():
    factors = np.stack([coil_shading(64, 2, 0.5, np.random.default_rng(seed)) for seed in range(60)])
    assert factors.min() > 0
    assert (factors.mean((1, 2, 3)).min() < 0.6, factors.mean((1, 2, 3)).max() > 1.1) == (True, True)
    assert np.abs(np.diff(np.log(factors), axis=2)).max() < 0.15  # of a pixel and the next, where gains reach 3
    ratio = factors[:, 0] / factors[:, 1]
    assert 0.01 < np.abs(ratio - 1).mean() < 0.15


def test_lge_and_cine_are_seen_from_one_view(tmp_path, textured):
    picture = np.asarray(textured.frames[ED])
    same = packed(tmp_path / "same", textured.frames[:], lge=picture)
    source = RegistrationPairs([same], crop=CROP, how=ALL_ROUND, shading=0.0, identity="")
    seen = [source[draw] for draw in draws(5)]
    assert all(torch.equal(sample["moving"], sample["fixed"]) for sample in seen)
    assert not torch.equal(seen[0]["fixed"], seen[1]["fixed"])


def test_lge_and_cine_have_noise_of_their_own(tmp_path):
    """Equal noise would say that nothing moved."""
    one = packed(tmp_path / "p", np.full((6, SIZE, SIZE), 0.5), lge=np.full((SIZE, SIZE), 0.5))
    sample = RegistrationPairs([one], crop=CROP, how=NOISY, shading=0.0, identity="")[Draw(0, 0, 0, 0)]
    moving, fixed = (sample[name].flatten().numpy() for name in ("moving", "fixed"))
    assert abs(np.corrcoef(moving, fixed)[0, 1]) < 0.1


def test_lge_is_what_moves(tmp_path):
    one = packed(tmp_path / "p", np.zeros((6, SIZE, SIZE)), lge=np.full((SIZE, SIZE), 0.5))
    sample = RegistrationPairs([one], crop=CROP, how=STRAIGHT, shading=0.0, identity="x")[Draw(0, 0, 0, 0)]
    assert (sample["moving"] == 0.5).all()
    assert not sample["fixed"].any()


def test_an_infarct_lies_where_its_picture_shows_it(tmp_path):
    infarct, myo = disc(9, centre=(12, -7)), disc(24)
    frames = np.zeros((6, SIZE, SIZE))
    frames[ED], frames[ES] = infarct, 0.25
    one = packed(tmp_path / "p", frames, myo=myo)
    source = InfarctSlices([one], [infarct], [STILL], crop=CROP, how=ALL_ROUND)
    assert len(source) == 1
    for draw in draws(10):
        sample = source[draw]
        assert ((sample["fixed"] > 0.5) != (sample["infarct"] > 0)).float().mean() < 0.005
        assert (sample["moving"] - 0.25).abs().max() < 1e-4
        assert (sample["infarct"].dtype, sample["infarct"].shape) == (torch.uint8, (1, CROP, CROP))


def test_a_displacement_turns_and_grows_with_its_picture(tmp_path):
    """What lies at x at ED lies 5 pixels down and 3 to the left at ES, in any view."""
    frames = np.zeros((6, SIZE, SIZE))
    frames[ED], frames[ES] = disc(12), disc(12, centre=(5, -3))
    flow = np.stack([np.full((SIZE, SIZE), part) for part in (5.0, -3.0)])
    source = InfarctSlices([packed(tmp_path / "p", frames, myo=disc(20))], [disc(0)], [flow], crop=CROP, how=ALL_ROUND)
    for draw in draws(10):
        sample = source[draw]
        moved = warp(sample["moving"][None], sample["flow"][None])[0]
        assert ((moved > 0.5) != (sample["fixed"] > 0.5)).float().mean() < 0.005


def test_what_is_called_infarct_outside_the_wall_is_none(tmp_path):
    one = packed(tmp_path / "p", np.zeros((6, SIZE, SIZE)), myo=disc(12))
    sample = InfarctSlices([one], [disc(20)], [STILL], crop=CROP, how=STRAIGHT)[Draw(0, 0, 0, 0)]
    assert torch.equal(sample["infarct"], sample["myo"])
    np.testing.assert_array_equal(sample["myo"][0], disc(12, size=CROP))


def test_the_distance_to_a_straight_edge_is_counted_from_between_the_pixels():
    mask = np.broadcast_to(np.arange(9) >= 5, (4, 9))
    np.testing.assert_allclose(signed_distance(mask), np.arange(9) - 4.5 + np.zeros((4, 1)))
