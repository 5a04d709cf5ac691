import json
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from medseg_core.cases import read_cases
from medseg_core.errors import MedsegError
from medseg_core.io import write_volume
from medseg_core.volume import Volume
from medseg_near.prepare import prepare
from medseg_near.settings import PrepareConfig
from medseg_near.shapes import read_shapes

AFFINE = np.array([[0, -2.0, 0, 5], [1.0, 0, 0, -7], [0, 0, 4.0, 3], [0, 0, 0, 1]])  # 1 x 2 x 4 mm
CONFIG = PrepareConfig(margin_mm=4.0)


def labels(*, at=(10, 10, 5)):
    """Id 9 in a block of 3 x 2 x 2 voxels, id 4 in a corner."""
    voxels = np.zeros((20, 20, 10), np.uint8)
    x, y, z = at
    voxels[x : x + 3, y : y + 2, z : z + 2] = 9
    voxels[-1, -1, -1] = 4
    return voxels


def save(voxels, path, affine=AFFINE):
    write_volume(Volume(voxels, affine), path)
    return path


@pytest.fixture
def maps(tmp_path):
    """Label maps of two cases."""
    for name, x in (("b", 10), ("a", 3)):
        save(labels(at=(x, 10, 5)), tmp_path / "maps" / f"{name}.nii.gz")
    return tmp_path / "maps"


def made(source, out, config=CONFIG, **kwargs):
    outcome = prepare(source, out, config, **kwargs)
    assert not outcome.failed
    return read_shapes(out)


def failure(source, out, **kwargs):
    (why,) = prepare(source, out, kwargs.pop("config", CONFIG), **kwargs).failed.values()
    assert "\n" not in why
    return why


def test_a_crop_has_the_margin_on_every_side_in_voxels_of_its_own_size(maps, tmp_path):
    one = {shape.id: shape for shape in made(maps, tmp_path / "cache", label="9")}["b"]
    assert one.start == (10 - 4, 10 - 2, 5 - 1)  # 4 mm are 4, 2 and 1 voxels
    assert one.label.shape == (3 + 8, 2 + 4, 2 + 2)
    np.testing.assert_array_equal(one.label, (labels() == 9)[6:17, 8:14, 4:8])
    assert one.spacing_mm == (1.0, 2.0, 4.0)


def test_a_part_of_a_voxel_counts_as_one(maps, tmp_path):
    one = made(maps, tmp_path / "cache", PrepareConfig(margin_mm=2.1), label="9", only=["b"])[0]
    assert one.label.shape == (3 + 2 * 3, 2 + 2 * 2, 2 + 2 * 1)


def test_a_crop_ends_where_its_file_ends(maps, tmp_path):
    one = made(maps, tmp_path / "cache", PrepareConfig(margin_mm=200), label="9")[0]
    assert (one.start, one.label.shape) == ((0, 0, 0), (20, 20, 10))


def test_every_voxel_keeps_its_place_in_the_patient(maps, tmp_path):
    one = made(maps, tmp_path / "cache", label="9", only=["b"])[0]
    first = np.argwhere(one.label)[0]
    np.testing.assert_allclose(one.grid.affine @ [*first, 1], AFFINE @ [10, 10, 5, 1])


def test_what_comes_home_is_the_label_of_the_file(maps, tmp_path):
    for one in made(maps, tmp_path / "cache", label="9,4"):
        case, structure = one.id.split("-")
        stored = np.asarray(nib.load(maps / f"{case}.nii.gz").dataobj)
        np.testing.assert_array_equal(one.home(one.label), stored == int(structure))


def test_shapes_have_the_order_of_the_source_also_when_one_is_mended_later(maps, tmp_path):
    save(np.zeros((20, 20, 10), np.uint8), maps / "a.nii.gz")
    out = tmp_path / "cache"
    assert "holds no voxel of id 9, only background" in failure(maps, out, label="9")
    assert [shape.id for shape in read_shapes(out)] == ["b"]
    save(labels(), maps / "a.nii.gz")
    outcome = prepare(maps, out, CONFIG, label="9")
    assert (outcome.done, outcome.skipped) == (("a",), ("b",))
    assert [shape.id for shape in read_shapes(out)] == ["a", "b"]


def test_structures_of_a_scan_are_its_group(maps, tmp_path):
    made(maps, tmp_path / "cache", label="9,4")
    listed = {case.id: case.group for case in read_cases(tmp_path / "cache" / "cases.json")}
    assert listed == {"a-9": "a", "a-4": "a", "b-9": "b", "b-4": "b"}


def test_the_window_of_a_ct_becomes_0_to_1(maps, tmp_path):
    ct = np.full((20, 20, 10), -1000, np.int16)
    ct[10:13, 10, 5] = (-200, 150, 500)
    ct[10:13, 11, 5] = (-500, 325, 3000)
    save(ct, tmp_path / "ct.nii.gz")
    one = made(maps / "b.nii.gz", tmp_path / "cache", label="9", images=tmp_path / "ct.nii.gz")[0]
    assert one.image.dtype == np.float16
    np.testing.assert_array_equal(one.image[4:7, 2:4, 1].T, [[0, 0.5, 1], [0, 0.75, 1]])
    assert one.image.shape == one.label.shape


def test_a_ct_with_a_value_that_is_no_number_in_the_crop_is_refused(maps, tmp_path):
    ct = np.zeros((20, 20, 10), np.float32)
    ct[10, 10, 5:7] = np.nan
    save(ct, tmp_path / "ct.nii.gz")
    said = failure(maps / "b.nii.gz", tmp_path / "cache", label="9", images=tmp_path / "ct.nii.gz")
    assert "ct.nii.gz holds 2 values about b that are not finite; set them to that of air" in said
    assert not (tmp_path / "cache" / "shapes").exists()


def test_what_is_no_number_far_from_the_structure_does_no_harm(maps, tmp_path):
    ct = np.zeros((20, 20, 10), np.float32)
    ct[0, 0, 0] = np.nan
    save(ct, tmp_path / "ct.nii.gz")
    assert made(maps / "b.nii.gz", tmp_path / "cache", label="9", images=tmp_path / "ct.nii.gz")


def test_a_ct_on_another_grid_is_refused_with_the_difference_and_the_others_go_on(maps, tmp_path):
    moved = AFFINE + np.array([[0, 0, 0, 3], *[[0, 0, 0, 0]] * 3])
    save(np.zeros((20, 20, 10), np.int16), tmp_path / "images" / "a.nii.gz", moved)
    save(np.zeros((20, 20, 10), np.int16), tmp_path / "images" / "b.nii.gz")
    said = failure(maps, tmp_path / "cache", label="9", images=tmp_path / "images")
    assert "images/a.nii.gz does not lie on the grid of" in said
    assert "corner voxels lie up to 3 mm apart" in said
    assert [shape.id for shape in read_shapes(tmp_path / "cache")] == ["b"]


def test_an_empty_window_is_refused_before_any_work(maps, tmp_path):
    with pytest.raises(MedsegError, match="window_hu 300,300 is empty"):
        prepare(maps, tmp_path / "cache", replace(CONFIG, window_hu=(300, 300)), label="9")
    assert not (tmp_path / "cache").exists()


def test_a_structure_that_is_absent_is_told_with_those_that_are_there(maps, tmp_path):
    (maps / "labels.json").write_text(json.dumps({"coronary": 9, "coronary_sinus": 2, "atrium": 4}))
    said = failure(maps / "b.nii.gz", tmp_path / "cache", label="coronary_sinus")
    assert "no voxel of coronary_sinus (id 2), only 4 (atrium), 9 (coronary); did you mean 'coronary'?" in said


def test_a_name_of_the_whole_heart_is_not_guessed_where_ids_are_of_another_list(tmp_path):
    save(labels() * 10, tmp_path / "s.nii.gz")
    said = failure(tmp_path / "s.nii.gz", tmp_path / "cache", label="coronary")
    assert "holds ids up to 90, so it is no map of the whole heart" in said


def test_a_name_of_the_whole_heart_is_its_id(maps, tmp_path):
    assert [one.label.sum() for one in made(maps, tmp_path / "cache", label="coronary")] == [12, 12]


def test_a_full_mask_is_refused(tmp_path):
    save(np.ones((4, 4, 4), np.uint8), tmp_path / "s.nii.gz")
    assert "1 fills the whole file; is it turned inside out?" in failure(
        tmp_path / "s.nii.gz", tmp_path / "cache", label="1"
    )


def test_an_empty_mask_is_refused(tmp_path):
    save(np.zeros((4, 4, 4), np.uint8), tmp_path / "c" / "segmentations" / "aorta.nii.gz")
    said = failure(tmp_path / "c", tmp_path / "cache", label="aorta")
    assert "aorta.nii.gz is empty: there is no voxel of aorta; leave this case out" in said


@pytest.mark.parametrize(("value", "said"), [(1.5, "holds 1.5, which is no whole number"), (np.nan, "the value nan")])
def test_numbers_that_are_no_ids_are_refused(tmp_path, value, said):
    voxels = labels().astype(np.float32)
    voxels[0, 0, 0] = value
    save(voxels, tmp_path / "s.nii.gz")
    assert said in failure(tmp_path / "s.nii.gz", tmp_path / "cache", label="9")


def test_masks_kept_in_float64_are_taken(tmp_path):
    save((labels() == 9).astype(np.float64), tmp_path / "c" / "segmentations" / "aorta.nii.gz")
    assert made(tmp_path / "c", tmp_path / "cache", label="aorta")[0].label.sum() == 12


def test_the_only_id_needs_no_name(tmp_path):
    save((labels() == 9) * np.uint8(7), tmp_path / "s.nii.gz")
    assert made(tmp_path / "s.nii.gz", tmp_path / "cache")[0].label.sum() == 12


def test_of_several_ids_one_has_to_be_named(maps, tmp_path):
    assert "holds the ids 4, 9; say which structure is meant: --label ID" in failure(
        maps / "a.nii.gz", tmp_path / "cache"
    )


def test_a_second_call_has_nothing_to_do(maps, tmp_path):
    made(maps, tmp_path / "cache", label="9")
    before = {file: file.read_bytes() for file in (tmp_path / "cache").rglob("*") if file.is_file()}
    outcome = prepare(maps, tmp_path / "cache", CONFIG, label="9")
    assert (outcome.done, outcome.skipped) == ((), ("a", "b"))
    assert {file: file.read_bytes() for file in (tmp_path / "cache").rglob("*") if file.is_file()} == before


def test_equal_calls_give_equal_files(maps, tmp_path):
    first, second = (
        {file.relative_to(tmp_path / name): file.read_bytes() for file in (tmp_path / name).rglob("*.*")}
        for name in ("one", "two")
        if made(maps, tmp_path / name, label="9")
    )
    assert first == second


def test_a_cache_of_other_settings_is_refused(maps, tmp_path):
    made(maps, tmp_path / "cache", label="9")
    with pytest.raises(MedsegError, match="label was '9', now '4'"):
        prepare(maps, tmp_path / "cache", CONFIG, label="4")


def test_a_folder_of_something_else_is_left_alone(maps, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.txt").write_text("mine")
    with pytest.raises(MedsegError, match="exists and is no cache of `prepare`"):
        prepare(maps, tmp_path / "cache", CONFIG, label="9")
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["thesis.txt"]


def test_a_shape_that_was_taken_away_is_made_again(maps, tmp_path, caplog):
    out = tmp_path / "cache"
    made(maps, out, label="9")
    (out / "shapes" / "a" / "about.json").unlink()
    (out / "shapes" / "a" / "label.npy").unlink()
    assert prepare(maps, out, CONFIG, label="9").done == ("a",)
    assert "gone and prepared again: a" in caplog.text
    assert [int(one.label.sum()) for one in read_shapes(out)] == [12, 12]


def test_a_limit_takes_the_first_and_can_be_raised(maps, tmp_path):
    assert [one.id for one in made(maps, tmp_path / "cache", label="9", limit=1)] == ["a"]
    assert [one.id for one in made(maps, tmp_path / "cache", label="9", limit=2)] == ["a", "b"]


def test_only_some_scans_or_shapes_are_taken(maps, tmp_path):
    assert [one.id for one in made(maps, tmp_path / "cache", label="9,4", only=["a", "b-4"])] == ["a-9", "a-4", "b-4"]


def test_a_scan_that_is_not_there_is_told_with_the_nearest(maps, tmp_path):
    with pytest.raises(MedsegError, match="there is no shape 'b-99' to prepare; did you mean 'b-9'"):
        prepare(maps, tmp_path / "cache", CONFIG, label="9,4", only=["b-99"])


def test_what_is_refused_by_its_name_is_told_with_the_rest(tmp_path):
    for case, name in (("a", "aorta"), ("b", "liver")):
        save(labels() // 9, tmp_path / "masks" / case / "segmentations" / f"{name}.nii.gz")
    outcome = prepare(tmp_path / "masks", tmp_path / "cache", CONFIG, label="aorta")
    assert outcome.done == ("a",)
    assert "no structure 'aorta', only liver" in outcome.failed["b"]


def test_structures_in_several_parts_are_taken_and_told(maps, tmp_path, caplog):
    voxels = labels()
    voxels[0, 0, :4] = 9
    save(voxels, maps / "b.nii.gz")
    made(maps, tmp_path / "cache", label="9")
    assert "1 of 2 structures lie in several parts: b (2, the largest has 75.0%)" in caplog.text
    notes = {case.id: case.notes for case in read_cases(tmp_path / "cache" / "cases.json")}
    assert (notes["b"]["voxels"], notes["b"]["parts"], notes["b"]["largest"]) == (16, 2, 0.75)
    assert notes["a"]["ml"] == pytest.approx(12 * 8 / 1000)


def test_other_workers_give_the_same_shapes(maps, tmp_path):
    with ThreadPoolExecutor(2) as executor:
        outcome = prepare(maps, tmp_path / "cache", CONFIG, label="9", executor=executor)
    assert set(outcome.done) == {"a", "b"}
    assert [one.id for one in read_shapes(tmp_path / "cache")] == ["a", "b"]


def test_shapes_of_medmnist_are_what_the_file_holds(tmp_path):
    images = np.zeros((3, 10, 11, 12), np.uint8)
    images[:, 4:6, 5:7, 6:8] = 255
    images[2, 1, 1, 1] = 255
    np.savez_compressed(tmp_path / "vesselmnist3d.npz", train_images=images[:2], val_images=images[2:])
    shapes = made(tmp_path / "vesselmnist3d.npz", tmp_path / "cache", PrepareConfig(margin_mm=1))
    assert [one.id for one in shapes] == ["train_0000", "train_0001", "val_0000"]
    for one, image in zip(shapes, images, strict=True):
        np.testing.assert_array_equal(one.home(one.label), image > 0)
    assert shapes[0].spacing_mm == (1.0, 1.0, 1.0)
    np.testing.assert_array_equal(shapes[0].whole.affine, np.eye(4))
    assert [case.split for case in read_cases(tmp_path / "cache" / "cases.json")] == ["train", "train", "val"]


def test_grey_volumes_of_medmnist_are_no_shapes(tmp_path):
    images = np.arange(512, dtype=np.uint16).reshape(1, 8, 8, 8).astype(np.uint8)
    np.savez_compressed(tmp_path / "organmnist3d.npz", train_images=images)
    said = failure(tmp_path / "organmnist3d.npz", tmp_path / "cache")
    assert "shape 0 of train_images holds 1 beside 255, where a shape has 0 and 255" in said


def first_near(root, *, appearance=None, dtype=np.int16):
    for folder in ("shape", "appearance"):
        (root / folder).mkdir(parents=True)
    for name in ("z9", "a1"):
        np.save(root / "shape" / f"{name}.npy", labels().astype(dtype))
        if appearance is not None:
            np.save(root / "appearance" / f"{name}.npy", appearance)
    (root / "info.csv").write_text("id\nz9\na1\n")
    return root


def test_the_format_of_the_first_near_keeps_its_order_and_its_appearance(tmp_path):
    grey = np.linspace(0, 1, labels().size, dtype=np.float32).reshape(labels().shape)
    shapes = made(first_near(tmp_path / "near", appearance=grey), tmp_path / "cache", label="coronary")
    assert [one.id for one in shapes] == ["z9", "a1"]
    (x, y, z), (nx, ny, nz) = shapes[0].start, shapes[0].label.shape
    np.testing.assert_array_equal(shapes[0].image, grey[x : x + nx, y : y + ny, z : z + nz].astype(np.float16))
    assert [case.notes["row"] for case in read_cases(tmp_path / "cache" / "cases.json")] == [0, 1]


def test_an_absent_class_of_the_first_near_is_told_with_those_that_are_there(tmp_path):
    outcome = prepare(first_near(tmp_path / "near"), tmp_path / "cache", CONFIG, label="LAA")
    assert "a1.npy holds no voxel of LAA (id 8), only 4 (RA), 9 (coronary)" in outcome.failed["a1"]


def test_an_appearance_beyond_0_to_1_is_refused(tmp_path):
    root = first_near(tmp_path / "near", appearance=np.full((20, 20, 10), 300.0))
    outcome = prepare(root, tmp_path / "cache", CONFIG, label="9")
    assert "holds 300 to 300 where an appearance has 0 to 1; scale it" in outcome.failed["z9"]


def test_an_appearance_of_another_shape_is_refused(tmp_path):
    root = first_near(tmp_path / "near", appearance=np.zeros((20, 20, 9), np.float32))
    outcome = prepare(root, tmp_path / "cache", CONFIG, label="9")
    assert "shape (20, 20, 9) against (20, 20, 10)" in outcome.failed["a1"]


def test_whole_numbers_in_floats_are_ids_and_others_are_not(tmp_path):
    root = first_near(tmp_path / "near", dtype=np.float32)
    np.save(root / "shape" / "a1.npy", labels() * 0.5)
    outcome = prepare(root, tmp_path / "cache", CONFIG, label="9")
    assert outcome.done == ("z9",)
    assert "holds 4.5, which is no whole number" in outcome.failed["a1"]


def test_a_file_of_objects_is_not_opened(tmp_path):
    root = first_near(tmp_path / "near")
    np.save(root / "shape" / "a1.npy", np.array([{}], object), allow_pickle=True)
    outcome = prepare(root, tmp_path / "cache", CONFIG, label="9")
    assert "a1.npy is no array of NumPy, or damaged" in outcome.failed["a1"]


def real(data, *parts):
    path = data.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)}")
    return path


def test_real_adrenals_have_the_voxels_of_their_file(data, tmp_path, caplog):
    caplog.set_level(logging.ERROR)
    path = real(data, "shapes3d", "adrenalmnist3d_64_trainval.npz")
    shapes = made(path, tmp_path / "cache", PrepareConfig())
    with np.load(path) as archive:
        counts = [int((image > 0).sum()) for part in ("train", "val") for image in archive[f"{part}_images"]]
    assert len(shapes) == 1286
    assert [int(one.label.sum()) for one in shapes] == counts


def test_real_vessels_have_the_voxels_of_their_files_and_a_ct(data, tmp_path):
    case = real(data, "ct_multiorgan", "ts_s0001")
    names = ["aorta", "iliac_artery_left", "iliac_artery_right", "iliac_vena_left", "iliac_vena_right"]
    names += ["portal_vein_and_splenic_vein", "inferior_vena_cava", "adrenal_gland_left", "adrenal_gland_right"]
    shapes = made(case, tmp_path / "cache", PrepareConfig(), label=",".join(names), images=case / "ct.nii.gz")
    assert [one.id for one in shapes] == [f"ts_s0001-{name}" for name in names]
    for one, name in zip(shapes, names, strict=True):
        stored = nib.load(case / "segmentations" / f"{name}.nii.gz").get_fdata()
        np.testing.assert_array_equal(one.home(one.label), stored == 1)
        hu = nib.load(case / "ct.nii.gz").get_fdata()[one.home(one.label)].clip(-200, 500)
        np.testing.assert_allclose(one.image[one.label], (hu + 200) / 700, atol=5e-4)


def test_real_arteries_and_veins_of_an_atlas_have_the_voxels_of_its_ids(data, tmp_path):
    atlas = real(data, "ct_more", "spl_abdomen_labels", "derived", "seg_multilabel.nii.gz")
    ids = json.loads((atlas.parent / "labels.json").read_text())
    voxels = np.asarray(nib.load(atlas).dataobj)
    label = "*artery*,aorta,celiac_trunk,*vein,inferior_vena_cava"
    shapes = made(atlas, tmp_path / "cache", PrepareConfig(), label=label)
    assert len(shapes) == 21 + 13
    for one in shapes:
        assert one.label.sum() == (voxels == ids[one.id.removeprefix("seg_multilabel-")]).sum()
