import json
import logging
import zipfile

import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.io import write_picture, write_volume
from medseg_core.volume import Picture, Volume
from medseg_near.sources import find_structures

NAMES = {"heart": 1, "vessel_left": 2, "vessel_right": 3}


def save(path, ids=(1, 2, 3)):
    """A label map with a voxel of each id."""
    voxels = np.zeros((4, 4, 4), np.uint8)
    voxels.flat[: len(ids)] = ids
    write_volume(Volume(voxels, np.eye(4)), path)
    return path


@pytest.fixture
def maps(tmp_path):
    """Two label maps and their names."""
    for name in ("s2", "s1"):
        save(tmp_path / "maps" / f"{name}.nii.gz")
    (tmp_path / "maps" / "labels.json").write_text(json.dumps(NAMES))
    return tmp_path / "maps"


@pytest.fixture
def masks(tmp_path):
    """Two cases with a file per structure, the second without a right vessel."""
    for case, structure in (("c1", "heart"), ("c1", "vessel_left"), ("c1", "vessel_right"), ("c2", "vessel_left")):
        save(tmp_path / "masks" / case / "segmentations" / f"{structure}.nii.gz", (1,))
    return tmp_path / "masks"


def near_format(root, *, rows=("b", "a"), head="id", appearance=()):
    for folder in ("shape", "appearance"):
        (root / folder).mkdir(parents=True)
    for name in rows:
        np.save(root / "shape" / f"{name}.npy", np.zeros((3, 3, 3), np.int16))
    for name in appearance:
        np.save(root / "appearance" / f"{name}.npy", np.zeros((3, 3, 3), np.float32))
    (root / "info.csv").write_text("\n".join([f"{head},age", *(f"{name},60" for name in rows)]))
    return root


def ids(found):
    return [case.id for case in found.cases]


def numbers(found):
    return [case.notes["id"] for case in found.cases]


def why(*args, **kwargs):
    with pytest.raises(MedsegError) as error:
        find_structures(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_one_structure_is_called_like_its_case(maps):
    found = find_structures(maps, label="vessel_left")
    assert (ids(found), numbers(found)) == (["s1", "s2"], [2, 2])


def test_several_structures_bear_their_names_too_and_stay_together_as_a_group(maps):
    found = find_structures(maps, label="heart, 3")
    assert ids(found) == ["s1-heart", "s1-vessel_right", "s2-heart", "s2-vessel_right"]
    assert [case.group for case in found.cases] == ["s1", "s1", "s2", "s2"]


def test_a_pattern_stands_for_all_names_that_it_fits(maps):
    assert ids(find_structures(maps / "s1.nii.gz", label="vessel_*")) == ["s1-vessel_left", "s1-vessel_right"]


def test_a_structure_that_is_named_twice_is_taken_once(maps):
    assert ids(find_structures(maps / "s1.nii.gz", label="heart,1")) == ["s1-heart"]


def test_small_and_large_letters_are_one_name(maps):
    assert numbers(find_structures(maps, label="Heart")) == [1, 1]


def test_an_unknown_name_is_told_with_the_nearest(maps):
    assert "no structure 'vesel_left', only heart, vessel_left, vessel_right; did you mean 'vessel_left'?" in why(
        maps, label="vesel_left"
    )


def test_a_class_list_wins_over_the_one_beside_the_files(maps, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"trunk": 3}))
    assert numbers(find_structures(maps, label="trunk", names=tmp_path / "mine.json")) == [3, 3]


def test_without_a_class_list_names_are_those_of_the_whole_heart(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    found = find_structures(save(tmp_path / "s.nii.gz", (9,)), label="coronary,PV")
    assert numbers(found) == [9, 10]
    assert "coronary is id 9, PV is id 10" in caplog.text


def test_a_name_that_nothing_explains_asks_for_a_class_list(tmp_path):
    assert "nothing says which id of" in why(save(tmp_path / "s.nii.gz"), label="splenic_artery")


@pytest.mark.parametrize("label", ["0", "70000"])
def test_an_id_that_no_structure_has_is_refused(maps, label):
    assert f"label {label} is outside 1..65535; 0 is the background" in why(maps / "s1.nii.gz", label=label)


def test_masks_are_found_by_their_names_and_a_case_without_one_costs_only_itself(masks):
    found = find_structures(masks, label="vessel_right,vessel_left")
    assert ids(found) == ["c1-vessel_right", "c1-vessel_left", "c2-vessel_left"]
    assert list(found.refused) == ["c2-vessel_right"]
    assert "no structure 'vessel_right', only vessel_left" in found.refused["c2-vessel_right"]


def test_one_case_of_masks_may_be_given_by_its_folder(masks):
    assert ids(find_structures(masks / "c1", label="heart")) == ["c1"]


def test_masks_may_lie_right_in_the_folder_of_their_case(tmp_path):
    for name in ("heart", "vessel"):
        save(tmp_path / "case7" / f"{name}.nii.gz", (1,))
    found = find_structures(tmp_path / "case7", label="vessel")
    assert ids(found) == ["case7"]
    assert found.cases[0].files["label"].name == "vessel.nii.gz"


def test_files_called_by_numbers_are_cases_and_no_structures(tmp_path):
    for name in "12":
        save(tmp_path / "numbered" / f"{name}.nii.gz", (1,))
    assert ids(find_structures(tmp_path / "numbered", label="1")) == ["1", "2"]


def test_masks_have_no_ids(masks):
    assert "which have names and no ids; give a name for 7: only heart, vessel_left" in why(masks / "c1", label="7")


def test_of_several_masks_one_has_to_be_named(masks):
    assert "holds heart, vessel_left, vessel_right; say which" in why(masks / "c1")


def test_a_single_mask_needs_no_name(tmp_path):
    save(tmp_path / "c" / "segmentations" / "aorta.nii.gz", (1,))
    found = find_structures(tmp_path / "c")
    assert [(case.id, case.notes["structure"]) for case in found.cases] == [("c", "aorta")]


def test_names_in_a_segmentation_of_slicer_are_known(tmp_path):
    lines = ["NRRD0004", "type: uint8", "dimension: 3", "sizes: 2 2 2", "encoding: raw", "spacings: 1 1 1"]
    lines += ["Segment0_Name:=left lung", "Segment0_LabelValue:=6", "Segment1_Name:=rib", "Segment1_LabelValue:=2"]
    (tmp_path / "s.seg.nrrd").write_bytes("\n".join(lines).encode() + b"\n\n" + bytes(8))
    found = find_structures(tmp_path / "s.seg.nrrd", label="left lung,rib")
    assert list(zip(ids(found), numbers(found), strict=True)) == [("s-left lung", 6), ("s-rib", 2)]


def test_a_picture_is_no_shape(tmp_path):
    write_picture(Picture(np.ones((8, 8), np.uint8)), tmp_path / "p.png")
    assert "p.png is a picture, where a shape has three axes" in why(tmp_path / "p.png", label="1")


def test_a_path_with_nothing_there_is_told_with_the_nearest(tmp_path):
    save(tmp_path / "labels" / "s.nii.gz")
    assert why(tmp_path / "label", label="1").endswith("did you mean 'labels'?")


@pytest.mark.parametrize(
    ("case", "file"),
    [
        ("s1", "s1.nii.gz"),
        ("s1", "s1_0000.nii.gz"),
        ("s1", "s1/ct.nii.gz"),
        ("s1_label", "s1.nii.gz"),
        ("1.label", "1.img.nii.gz"),
    ],
)
def test_the_ct_of_a_case_is_found_by_name(tmp_path, case, file):
    for name in (case, "other"):
        save(tmp_path / "maps" / f"{name}.nii.gz")
    for name in (file, "other.nii.gz"):
        save(tmp_path / "images" / name)
    found = find_structures(tmp_path / "maps", label="1", images=tmp_path / "images")
    by_id = {one.id: one.files["image"] for one in found.cases}
    assert by_id[case] == tmp_path / "images" / file


def test_the_ct_beside_segmentations_belongs_to_that_case(masks):
    save(masks / "c1" / "ct.nii.gz")
    found = find_structures(masks / "c1", label="heart", images=masks / "c1")
    assert found.cases[0].files["image"] == masks / "c1" / "ct.nii.gz"


def test_scans_between_the_labels_of_imagecas_are_no_labels(tmp_path):
    for name in ("1.img", "1.label", "2.img", "2.label"):
        save(tmp_path / "casts" / f"{name}.nii.gz")
    found = find_structures(tmp_path / "casts", label="1", images=tmp_path / "casts")
    assert [(case.id, case.files["image"].name) for case in found.cases] == [
        ("1.label", "1.img.nii.gz"),
        ("2.label", "2.img.nii.gz"),
    ]


def test_a_case_without_a_ct_costs_only_itself(maps, tmp_path):
    save(tmp_path / "images" / "s1.nii.gz")
    found = find_structures(maps, label="1", images=tmp_path / "images")
    assert ids(found) == ["s1"]
    assert "has no CT of s2; name it s2.nii.gz, or leave it out" in found.refused["s2"]


def test_one_ct_is_not_that_of_several_cases(maps, tmp_path):
    assert "is one CT for several cases" in why(maps, label="1", images=save(tmp_path / "ct.nii.gz"))


def test_one_ct_is_that_of_the_only_case(maps, tmp_path):
    ct = save(tmp_path / "ct.nii.gz")
    assert find_structures(maps / "s1.nii.gz", label="1", images=ct).cases[0].files["image"] == ct


def medmnist(path, **members):
    np.savez_compressed(path, **members)
    return path


def test_shapes_of_medmnist_keep_their_part_and_number(tmp_path):
    parts = {f"{part}_images": np.zeros((n, 8, 8, 8), np.uint8) for part, n in (("val", 1), ("train", 2), ("test", 1))}
    found = find_structures(medmnist(tmp_path / "adrenalmnist3d_8.npz", **parts))
    assert ids(found) == ["train_0000", "train_0001", "val_0000", "test_0000"]
    assert [case.split for case in found.cases] == ["train", "train", "val", "test"]
    assert {case.notes["structure"] for case in found.cases} == {"adrenal"}


def test_a_folder_that_holds_a_medmnist_file_stands_for_it(tmp_path):
    (tmp_path / "folder").mkdir()
    medmnist(tmp_path / "folder" / "x.npz", train_images=np.zeros((1, 8, 8, 8), np.uint8))
    assert ids(find_structures(tmp_path / "folder")) == ["train_0000"]


@pytest.mark.parametrize("label", ["1", "255", "vessel"])
def test_the_one_structure_of_medmnist_may_be_named(tmp_path, label):
    path = medmnist(tmp_path / "vesselmnist3d.npz", train_images=np.zeros((1, 8, 8, 8), np.uint8))
    assert ids(find_structures(path, label=label)) == ["train_0000"]


def test_medmnist_has_no_other_structure(tmp_path):
    path = medmnist(tmp_path / "vesselmnist3d.npz", train_images=np.zeros((1, 8, 8, 8), np.uint8))
    assert "holds one structure, vessel; leave --label 9 out" in why(path, label="9")


def test_an_npz_of_something_else_is_refused_with_what_it_holds(tmp_path):
    assert "holds points, scale, where a MedMNIST file has train_images" in why(
        medmnist(tmp_path / "a.npz", points=np.zeros(3), scale=np.ones(1))
    )


@pytest.mark.parametrize("images", [np.zeros((2, 28, 28), np.uint8), np.zeros((2, 28, 28, 3), np.uint8)])
def test_pictures_of_medmnist_are_no_shapes(tmp_path, images):
    assert "take a 3D set such as adrenalmnist3d" in why(medmnist(tmp_path / "a.npz", train_images=images))


def test_an_array_of_objects_is_not_opened(tmp_path):
    path = medmnist(tmp_path / "a.npz", train_images=np.array([{}] * 2, object))
    assert "train_images holds object" in why(path)


def test_a_file_that_is_no_zip_is_told(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"no zip at all")
    assert "is no .npz, or damaged" in why(tmp_path / "a.npz")


def test_an_npz_that_promises_more_than_it_holds_is_refused_before_anything_is_read(tmp_path):
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|u1', 'fortran_order': False, 'shape': (90000, 640, 640, 640)}"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("train_images.npy", header.ljust(127) + b"\n" + bytes(100))
    assert "train_images promises (90000, 640, 640, 640), which it cannot hold" in why(tmp_path / "a.npz")


def test_no_ct_fits_on_labels_without_a_place(tmp_path):
    path = medmnist(tmp_path / "a.npz", train_images=np.zeros((1, 8, 8, 8), np.uint8))
    assert "leave --images out" in why(path, images=save(tmp_path / "ct.nii.gz"))


def test_the_rows_of_info_csv_give_the_order_of_the_latents(tmp_path):
    found = find_structures(near_format(tmp_path, rows=("b", "c", "a")), label="coronary")
    assert ids(found) == ["b", "c", "a"]
    assert [case.notes["row"] for case in found.cases] == [0, 1, 2]
    assert numbers(found) == [9, 9, 9]


def test_a_row_without_a_file_costs_only_itself(tmp_path):
    near_format(tmp_path, rows=("b", "c", "a"))
    (tmp_path / "shape" / "c.npy").unlink()
    found = find_structures(tmp_path, label="9")
    assert [(case.id, case.notes["row"]) for case in found.cases] == [("b", 0), ("a", 2)]
    assert "row 1 of info.csv is c, and there is no file" in found.refused["c"]


def test_an_appearance_is_taken_where_there_is_one(tmp_path):
    found = find_structures(near_format(tmp_path, appearance=("a",)), label="9")
    assert ["image" in case.files for case in found.cases] == [False, True]


def test_info_csv_without_a_column_id_is_refused(tmp_path):
    assert "has the columns name, age, where a column id names the shapes" in why(near_format(tmp_path, head="name"))


def test_an_id_twice_in_info_csv_is_refused(tmp_path):
    assert "names 'a' twice" in why(near_format(tmp_path, rows=("a", "b", "a")))


def test_files_that_info_csv_does_not_name_are_told(tmp_path, caplog):
    near_format(tmp_path)
    np.save(tmp_path / "shape" / "z.npy", np.zeros((3, 3, 3), np.int16))
    assert ids(find_structures(tmp_path, label="9")) == ["b", "a"]
    assert "does not name 1 files of shape/, which stay out: z" in caplog.text


def test_without_info_csv_shapes_come_by_name(tmp_path, caplog):
    (near_format(tmp_path) / "info.csv").unlink()
    assert ids(find_structures(tmp_path, label="9")) == ["a", "b"]
    assert "its shapes are taken by name" in caplog.text


def test_real_arteries_and_veins_are_found_by_pattern(data):
    atlas = data / "ct_more" / "spl_abdomen_labels" / "derived" / "seg_multilabel.nii.gz"
    if not atlas.is_file():
        pytest.skip("needs ct_more/spl_abdomen_labels")
    assert len(find_structures(atlas, label="*artery*,aorta,celiac_trunk").cases) == 21
    assert len(find_structures(atlas, label="*vein,inferior_vena_cava").cases) == 13


def test_segments_of_a_real_file_of_slicer_have_names(data):
    file = data / "ct_more" / "slicer_ctchest" / "Segmentation.seg.nrrd"
    if not file.is_file():
        pytest.skip("needs ct_more/slicer_ctchest")
    assert numbers(find_structures(file, label="right lung,left lung")) == [5, 6]
