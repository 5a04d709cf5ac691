"""Answers by hand and from theory; the grid sampling itself stands against SciPy in test_warp."""

import dataclasses
import math

import numpy as np
import pytest

from medseg_core.augment import PRESETS, Recipe, apply, augment, plan, recipe
from medseg_core.config import resolve
from medseg_core.errors import MedsegError
from medseg_core.settings import AugmentConfig
from medseg_core.warp import bend_everywhere

STRONG = PRESETS["strong"]
SPACES = [(24, 18), (11, 9, 10)]


def rng(seed=0):
    return np.random.default_rng(seed)


def sample(space=(24, 18), *, channels=1, seed=0):
    draw = rng(seed)
    return draw.random((channels, *space), dtype=np.float32), draw.integers(0, 6, space, dtype=np.uint8)


def square(space=(40, 40)):
    """A bright block on its label, away from the middle."""
    label = np.zeros(space, np.uint8)
    label[(slice(8, 22),) * len(space)] = 1
    return label[None].astype(np.float32), label


def still(image, **changes):
    """A plan that does nothing but the changes."""
    return dataclasses.replace(plan(Recipe(), image.shape, rng()), **changes)


def only(name, **more):
    return Recipe(**{f"{name}_chance": 1.0}, **more)


def done(image, label, **changes):
    return apply(still(image, **changes), image, label, mirror={})


class TestNothing:
    @pytest.mark.parametrize("space", SPACES)
    def test_the_preset_none_changes_nothing(self, space):
        image, label = sample(space)
        got = augment(image, label, rng(), how=recipe(AugmentConfig(augment="none")), mirror={})
        np.testing.assert_array_equal(got[0], image)
        np.testing.assert_array_equal(got[1], label)

    def test_what_comes_back_is_new_contiguous_and_writable(self):
        image, label = (np.asfortranarray(array) for array in sample())
        image.flags.writeable = label.flags.writeable = False
        for how in (Recipe(), STRONG):
            for array in augment(image, label, rng(), how=how):
                assert array.flags.c_contiguous
                assert array.flags.writeable
                assert not np.shares_memory(array, image)
                assert not np.shares_memory(array, label)

    @pytest.mark.parametrize("label_type", [bool, np.uint8, np.uint16, np.int64])
    @pytest.mark.parametrize("image_type", [np.float32, np.float64])
    def test_shapes_and_types_stay(self, label_type, image_type):
        image, label = sample(channels=2)
        got = augment(image.astype(image_type), label.astype(label_type), rng(), how=STRONG, mirror={})
        assert [(a.shape, a.dtype) for a in got] == [(image.shape, image_type), (label.shape, label_type)]


class TestRandomness:
    @pytest.mark.parametrize("space", SPACES)
    def test_equal_seeds_give_equal_samples_and_others_differ(self, space):
        image, label = sample(space)
        one, same, other = (augment(image, label, rng(seed), how=STRONG) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one[0], same[0])
        np.testing.assert_array_equal(one[1], same[1])
        assert not np.array_equal(one[0], other[0])

    def test_global_randomness_plays_no_part(self):
        np.random.seed(0)  # noqa: NPY002
        before = np.random.get_state()[1].copy()  # noqa: NPY002
        augment(*sample(), rng(), how=STRONG)
        np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002

    def test_leaving_a_transform_out_changes_no_draw_of_the_others(self):
        always = dataclasses.replace(STRONG, **{f"{name}_chance": 1.0 for name in TRANSFORMS})
        whole = plan(always, (2, 24, 18), rng())
        for name, part in TRANSFORMS.items():
            without = plan(dataclasses.replace(always, **{f"{name}_chance": 0.0}), (2, 24, 18), rng())
            touched = {part, "matrix"} if name == "flip" else {part}
            for field in set(TRANSFORMS.values()) - touched:
                np.testing.assert_array_equal(getattr(without, field), getattr(whole, field), err_msg=f"{name} {field}")

    def test_chances_are_shares_of_samples(self):
        how = Recipe(flip_chance=0.3, shift_chance=0.6, elastic_chance=0.2, noise_chance=0.8)
        plans = [plan(how, (1, 8, 8), draw) for draw in rng().spawn(2000)]
        hits = [(p.swap, p.shift.any(), p.bend is not None, p.noise_std[0] > 0) for p in plans]
        shares = np.mean(hits, axis=0)
        np.testing.assert_allclose(shares, [0.3, 0.6, 0.2, 0.8], atol=0.04)  # 3.6 standard deviations

    def test_values_fill_their_ranges_and_factors_are_even_on_a_log_scale(self):
        how = Recipe(rotate_chance=1, rotate_degrees=15, contrast_chance=1, contrast_range=(0.5, 2.0), blur_chance=1)
        plans = [plan(how, (1, 8, 8), draw) for draw in rng().spawn(500)]
        degrees = np.rad2deg([math.atan2(p.matrix[0, 1], p.matrix[0, 0]) for p in plans])
        contrast = np.concatenate([p.contrast for p in plans])
        blur = np.concatenate([p.blur_voxels for p in plans])
        for values, low, high in ((degrees, -15, 15), (contrast, 0.5, 2), (blur, 0, 1)):
            assert values.min() >= low
            assert values.max() <= high
            np.testing.assert_allclose([values.min(), values.max()], [low, high], atol=0.05 * (high - low))
        assert (contrast < 1).mean() == pytest.approx(0.5, abs=0.08)

    def test_channels_change_brightness_each_on_their_own(self):
        image, label = np.zeros((3, 8, 8), np.float32), np.zeros((8, 8), np.uint8)
        got, _ = augment(image, label, rng(), how=only("brightness"))
        assert len(np.unique(got)) == 3
        assert np.ptp(got, axis=(1, 2)).max() == 0


TRANSFORMS = {
    "flip": "swap",
    "rotate": "matrix",
    "scale": "matrix",
    "turn": "matrix",
    "shift": "shift",
    "elastic": "bend",
    "brightness": "brightness",
    "contrast": "contrast",
    "gamma": "gamma",
    "noise": "noise_std",
    "blur": "blur_voxels",
}


class TestGeometry:
    @pytest.mark.parametrize("space", [(40, 40), (30, 30, 30)])
    def test_a_bright_block_stays_on_its_label(self, space):
        image, label = square(space)
        shape = {name: getattr(STRONG, name) for name in ("rotate_degrees", "scale_range", "shift_share")}
        how = Recipe(**{f"{n}_chance": 1 for n in ("flip", "rotate", "scale", "shift", "elastic")}, **shape)
        for draw in rng().spawn(4):
            got, mask = augment(image, label, draw, how=how, mirror={})
            assert 0.2 < mask.mean() / label.mean() < 3
            bright = got[0] >= 0.5
            assert 2 * (bright & (mask == 1)).sum() / (bright.sum() + mask.sum()) > 0.95

    def test_quarter_turns_are_numpys(self):
        image, label = sample((9, 9))
        samples = [augment(image, label, draw, how=only("turn")) for draw in rng().spawn(30)]
        wanted = [(np.rot90(image[0], quarters), np.rot90(label, quarters)) for quarters in (1, 2, 3)]
        found = [[np.array_equal(got[0], w[0]) and np.array_equal(mask, w[1]) for w in wanted] for got, mask in samples]
        assert np.sum(found, axis=1).tolist() == [1] * 30
        assert np.any(found, axis=0).all()

    def test_a_rotation_moves_a_point_about_the_middle_by_its_angle(self):
        image, label = np.zeros((1, 41, 41), np.float32), np.zeros((41, 41), np.uint8)
        image[0, 35, 20] = 1  # 15 voxels from the middle
        for draw in rng().spawn(5):
            got, _ = augment(image, label, draw, how=only("rotate", rotate_degrees=30.0))
            x, y = (np.indices((41, 41)) * got[0]).sum((1, 2)) / got.sum() - 20
            assert math.hypot(x, y) == pytest.approx(15, abs=0.3)
            assert abs(math.degrees(math.atan2(y, x))) < 31

    def test_quarter_turns_are_exact_in_3d(self):
        image, label = sample((6, 6, 6))
        for draw in rng().spawn(5):
            got, mask = augment(image, label, draw, how=only("turn"))
            np.testing.assert_array_equal(np.sort(got, axis=None), np.sort(image, axis=None))
            np.testing.assert_array_equal(np.bincount(mask.ravel()), np.bincount(label.ravel()))
            assert not np.array_equal(mask, label)

    def test_angles_are_true_in_millimetres(self):
        label = np.zeros((16, 8), np.uint8)
        label[4:12, 4] = 1  # 8 mm by 2 mm at 1 mm and 2 mm
        how = only("turn")
        masks = [
            augment(label[None].astype(np.float32), label, d, how=how, spacing=(1.0, 2.0))[1] for d in rng().spawn(20)
        ]
        quarter = [mask for mask in masks if mask.sum(0).max() < 8]  # not turned by 180 degrees
        assert quarter
        for mask in quarter:
            rows, columns = np.nonzero(mask)
            assert (np.ptp(rows), np.ptp(columns)) == (1, 3)

    def test_a_whole_shift_moves_voxels_and_fills_what_was_outside(self):
        image, label = sample()
        plan_ = still(image, shift=np.array([3.0, -2.0]))
        got, mask = apply(plan_, image, label, mirror={}, outside=0.7)
        np.testing.assert_array_equal(got[0, 3:, :-2], image[0, :-3, 2:])
        np.testing.assert_array_equal(mask[3:, :-2], label[:-3, 2:])
        assert (got[0, :3] == np.float32(0.7)).all()
        assert (got[0, :, -2:] == np.float32(0.7)).all()
        assert not mask[:3].any()
        assert not mask[:, -2:].any()

    def test_a_factor_above_one_enlarges(self):
        label = np.zeros((40, 40), np.uint8)
        label[15:25, 15:25] = 1
        _, mask = augment(label[None].astype(np.float32), label, rng(), how=only("scale", scale_range=(2.0, 2.0)))
        assert mask.sum() == 4 * label.sum()

    def test_shifts_are_shares_of_the_length(self):
        plans = [plan(only("shift", shift_share=0.1), (1, 100, 20), draw) for draw in rng().spawn(300)]
        farthest = np.abs([p.shift for p in plans]).max(0)
        np.testing.assert_allclose(farthest, [10, 2], rtol=0.05)

    @pytest.mark.parametrize("space", [(40, 30), (20, 24, 16)])
    def test_bending_never_folds(self, space):
        how = only("elastic", elastic_strength=0.4, elastic_cells=4)
        for draw in rng().spawn(3):
            bend = plan(how, (1, *space), draw).bend
            bend = np.sign(bend) * np.abs(bend).max(
                axis=tuple(range(1, bend.ndim)), keepdims=True
            )  # the worst there is
            moves = bend_everywhere(bend, space)
            slopes = np.stack([np.stack(np.gradient(move), -1) for move in moves], -2)
            assert np.linalg.det(slopes + np.eye(len(space))).min() > 0
            assert np.abs(moves).max() > 0.5

    def test_bending_cells_have_about_equal_edges_in_millimetres(self):
        bend = plan(only("elastic", elastic_cells=8), (1, 32, 64, 16), rng(), spacing=(2.0, 2.0, 4.0)).bend
        assert bend.shape == (3, 4 + 3, 8 + 3, 4 + 3)

    def test_axes_of_length_one_stay(self):
        how = dataclasses.replace(
            STRONG, **{f"{name}_chance": 1.0 for name in ("rotate", "scale", "shift", "elastic", "turn")}
        )
        image, label = np.ones((1, 30, 30, 1), np.float32), np.ones((30, 30, 1), np.uint8)
        for draw in rng().spawn(5):
            drawn = plan(how, image.shape, draw)
            assert drawn.shift[2] == 0
            assert not drawn.bend[2].any()
            assert not drawn.matrix[2, :2].any()
            got, mask = apply(drawn, image, label, mirror={})
            assert got.max() > 0
            assert mask[10:20, 10:20].all()

    def test_layers_of_labels_move_as_one(self):
        image, label = sample()
        layers = np.stack([label, (label + 1) % 6])
        _, mask = augment(image, layers, rng(), how=STRONG)
        for layer, single in zip(mask, layers, strict=True):
            np.testing.assert_array_equal(layer, augment(image, single, rng(), how=STRONG)[1])


MIRROR = {2: 3, 3: 2, 9: 8, 8: 9}
SWAPPED = np.array([0, 1, 3, 2, 4, 5])


class TestMirror:
    def test_left_and_right_swap(self):
        image, label = sample()
        got, mask = augment(image, label, rng(), how=only("flip"), mirror=MIRROR)
        np.testing.assert_array_equal(got, image[:, ::-1])
        np.testing.assert_array_equal(mask, SWAPPED[label[::-1]])

    def test_two_mirrors_make_a_turn_and_swap_nothing(self):
        image, label = sample()
        _, mask = augment(image, label, rng(), how=only("flip", flip_axes=(0, 1)), mirror=MIRROR)
        np.testing.assert_array_equal(mask, label[::-1, ::-1])

    def test_the_named_axis_is_mirrored(self):
        image, label = sample((6, 7, 8))
        _, mask = augment(image, label, rng(), how=only("flip", flip_axes=(2,)), mirror={})
        np.testing.assert_array_equal(mask, label[:, :, ::-1])

    def test_where_left_and_right_are_not_told_nothing_is_mirrored(self):
        image, label = sample()
        got, mask = augment(image, label, rng(), how=only("flip"))
        np.testing.assert_array_equal(got, image)
        np.testing.assert_array_equal(mask, label)

    def test_an_ignored_id_below_zero_stays(self):
        image, label = sample()
        label = np.where(label == 5, -1, label.astype(np.int64))
        _, mask = augment(image, label, rng(), how=only("flip"), mirror=MIRROR)
        np.testing.assert_array_equal(mask == -1, label[::-1] == -1)

    def test_a_mirror_that_does_not_lead_back_is_refused(self):
        with pytest.raises(MedsegError, match="2 to 3 but 3 to None; give both ways"):
            augment(*sample(), rng(), how=only("flip"), mirror={2: 3})

    def test_presets_mirror_nothing(self):
        assert all(preset.flip_chance == preset.turn_chance == 0 for preset in PRESETS.values())


class TestIntensity:
    image = np.array([[[0.0, 0.25], [0.5, 0.75]]], np.float32)
    label = np.array([[0, 1], [2, 3]], np.uint8)

    @pytest.mark.parametrize(
        ("change", "expected"),
        [
            ({"brightness": 0.1}, [0.1, 0.35, 0.6, 0.85]),
            ({"contrast": 2.0}, [-0.375, 0.125, 0.625, 1.125]),
            ({"gamma": 2.0}, [0, 0.0625, 0.25, 0.5625]),
            ({"brightness": -0.25, "gamma": 2.0}, [0, 0, 0.0625, 0.25]),
        ],
        ids=str,
    )
    def test_values_change_as_by_hand_and_the_label_stays(self, change, expected):
        got, mask = done(self.image, self.label, **{name: np.array([value]) for name, value in change.items()})
        np.testing.assert_allclose(got.ravel(), expected, atol=1e-6)
        np.testing.assert_array_equal(mask, self.label)

    def test_noise_has_its_standard_deviation(self):
        image, label = np.full((1, 100, 100), 0.5, np.float32), np.zeros((100, 100), np.uint8)
        got, _ = done(image, label, noise_std=np.array([0.05]))
        assert got.mean() == pytest.approx(0.5, abs=0.002)
        assert got.std() == pytest.approx(0.05, rel=0.03)

    def test_blur_has_its_standard_deviation_and_keeps_the_sum(self):
        image, label = np.zeros((1, 41, 41, 1), np.float32), np.zeros((41, 41, 1), np.uint8)
        image[0, 20, 20, 0] = 1
        got, _ = done(image, label, blur_voxels=np.array([2.0]))
        place = np.arange(41) - 20
        assert got.sum() == pytest.approx(1, rel=1e-4)
        assert (got[0, :, :, 0].sum(1) * place**2).sum() == pytest.approx(4, rel=0.05)  # cut at 3 deviations


class TestRecipe:
    def test_what_is_given_takes_the_place_of_the_presets(self):
        how = recipe(resolve(AugmentConfig, {"augment": "light", "rotate_degrees": "45", "scale_range": "0.5,2"}))
        assert (how.rotate_degrees, how.scale_range) == (45, (0.5, 2))
        assert how == dataclasses.replace(PRESETS["light"], rotate_degrees=45.0, scale_range=(0.5, 2.0))

    def test_zero_switches_a_transform_of_the_preset_off(self):
        assert recipe(AugmentConfig(augment="strong", elastic_chance=0.0)).elastic_chance == 0

    def test_config_and_recipe_name_the_same_things(self):
        config = {field.name for field in dataclasses.fields(AugmentConfig)} - {"augment"}
        assert config == {field.name for field in dataclasses.fields(Recipe)}

    def test_presets_keep_the_bounds_of_the_settings(self):
        for name, preset in PRESETS.items():
            given = {**dataclasses.asdict(preset), "augment": name}
            assert recipe(resolve(AugmentConfig, given)) == preset

    def test_strong_is_stronger_than_light(self):
        light, strong = PRESETS["light"], PRESETS["strong"]
        for field in dataclasses.fields(Recipe):
            weak, hard = getattr(light, field.name), getattr(strong, field.name)
            if field.name.endswith("_range"):
                assert hard[0] <= weak[0] <= weak[1] <= hard[1]
            else:
                assert weak <= hard

    def test_swapped_ends_are_refused(self):
        with pytest.raises(MedsegError, match=r"scale_range goes from 1\.1 down to 0\.9; try 0\.9,1\.1"):
            recipe(AugmentConfig(scale_range=(1.1, 0.9)))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x, y: augment(x[0], y, rng(), how=STRONG), "channels first"),
        (lambda x, y: augment(x.astype(np.uint8), y, rng(), how=STRONG), "uint8.*float32 first"),
        (lambda x, y: augment(x, y[:-1], rng(), how=STRONG), r"\(23, 18\).*make it \(24, 18\)"),
        (lambda x, y: augment(x, y.astype(float), rng(), how=STRONG), "make its ids integers"),
        (lambda x, y: augment(x, y, rng(), how=Recipe(flip_axes=(2,))), "does not have"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_fix(call, says):
    with pytest.raises(MedsegError, match=says):
        call(*sample())
