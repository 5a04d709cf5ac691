"""Which micrographs a folder holds, by which rule, and what cannot be paired."""

import json

import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.io import write_picture
from medseg_core.volume import Picture
from medseg_sem_al.sources import find_micrographs


@pytest.fixture
def folder(tmp_path):
    """Writes small pictures of the given names."""

    def write(*names):
        for name in names:
            write_picture(Picture(np.zeros((4, 4), np.uint8)), tmp_path / name)
        return tmp_path

    return write


def named(found):
    return {case.id: {role: file.name for role, file in case.files.items()} for case in found.cases}


@pytest.mark.parametrize(
    ("rule", "image", "mask"),
    [
        ("raw/ + labeled/", "raw/a.tif", "labeled/a.png"),
        ("raw_images/ + masks_3class/", "raw_images/a.tif", "masks_3class/a.png"),
        ("images/ + masks*/", "images/a.tif", "masks_rgba/a_mask.tif"),
        ("X beside X_mask or X_seg-*", "a.png", "a_mask.png"),
        ("X beside X_mask or X_seg-*", "a.png", "a_seg-axon.png"),
    ],
)
def test_each_rule_pairs_an_image_with_its_mask_and_is_named(folder, rule, image, mask):
    found = find_micrographs(folder(image, mask))
    assert (found.rule, found.findings) == (rule, [])
    assert named(found) == {"a": {"image": image.split("/")[-1], "label": mask.split("/")[-1]}}


def test_images_without_masks_are_a_pool(folder):
    found = find_micrographs(folder("a.png", "b.png"))
    assert (found.rule, named(found)) == ("one folder of images", {"a": {"image": "a.png"}, "b": {"image": "b.png"}})


def test_each_folder_may_be_a_data_set(folder):
    root = folder("one/raw/a.png", "one/labeled/a.png", "two/raw/a.png")
    found = find_micrographs(root)
    assert [(case.id, case.notes["dataset"]) for case in found.cases] == [("one_a", "one"), ("two_a", "two")]


def test_folders_train_and_val_are_parts_of_one_data_set(folder):
    root = folder("train/images/a.png", "train/masks/a.png", "val/images/a.png", "val/masks/a.png")
    found = find_micrographs(root)
    assert [(case.id, case.split, case.notes["dataset"]) for case in found.cases] == [
        ("train_a", "train", root.name),
        ("val_a", "val", root.name),
    ]


def test_of_several_masks_the_one_that_names_all_others_is_taken(folder):
    root = folder("a.png", "a_seg-axon-manual.png", "a_seg-axonmyelin-manual.png", "a_seg-myelin-manual.png")
    assert named(find_micrographs(root)) == {"a": {"image": "a.png", "label": "a_seg-axonmyelin-manual.png"}}


def test_masks_of_which_none_names_the_others_are_two_claims(folder):
    found = find_micrographs(folder("a.png", "a_seg-oxide.png", "a_seg-crack.png", "b.png"))
    assert list(named(found)) == ["b"]
    assert "a_seg-crack.png and a_seg-oxide.png are both 'a'" in found.findings[0]["text"]


def test_two_files_that_claim_one_stem_are_told_and_cost_no_other(folder):
    found = find_micrographs(folder("raw/a.png", "raw/a.tif", "raw/b.png", "labeled/a.png", "labeled/b.png"))
    assert list(named(found)) == ["b"]
    assert found.findings == [
        {"case": "a", "severity": "error", "text": found.findings[0]["text"]},
    ]
    assert "a.png and a.tif are both 'a'" in found.findings[0]["text"]


def test_a_mask_without_image_is_told_with_the_nearest_name(folder):
    found = find_micrographs(folder("raw/sample_1.png", "labeled/sample_2.png"))
    assert "labeled/sample_2.png has no image of the name 'sample_2'; did you mean" in found.findings[0]["text"]


def test_names_may_hold_any_letters(folder):
    assert named(find_micrographs(folder("raw/Probe µ 1.png", "labeled/Probe µ 1.png"))) == {
        "Probe µ 1": {"image": "Probe µ 1.png", "label": "Probe µ 1.png"}
    }


def test_globs_pair_what_their_stars_stand_for(folder):
    root = folder("x/img_1.png", "x/img_2.png", "x/gt_1.png", "raw/not_this.png")
    found = find_micrographs(root, images="x/img_*.png", masks="x/gt_*.png")
    assert named(found) == {"1": {"image": "img_1.png", "label": "gt_1.png"}, "2": {"image": "img_2.png"}}


def test_a_glob_of_images_leaves_out_the_masks_it_would_also_find(folder):
    found = find_micrographs(folder("1.png", "gt_1.png"), images="*.png", masks="gt_*.png")
    assert named(found) == {"1": {"image": "1.png", "label": "gt_1.png"}}


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"images": "y/*.png"}, "has no picture y/"),
        ({"masks": "*.png"}, "say by --images"),
        ({"images": "../*.png"}, "leaves"),
    ],
)
def test_globs_that_find_nothing_or_leave_the_folder_are_refused(folder, how, told):
    with pytest.raises(MedsegError, match=told):
        find_micrographs(folder("x/a.png"), **how)


def test_stacks_of_the_original_give_their_middle_frame_between_the_others(tmp_path):
    samples = [{"sample_id": "s_9", "frames": ["a8.png", "a9.png", "a9.png"], "mask_file": "a9.png"}]
    about = {"dataset_name": "d", "root_raw_image_dir": "raw", "root_labeled_mask_dir": "masks", "samples": samples}
    (tmp_path / "list.json").write_text(json.dumps(about))
    (case,) = find_micrographs(tmp_path / "list.json").cases
    assert (case.id, case.notes["dataset"]) == ("s_9", "d")
    frames = {"frame-1": "a8.png", "image": "a9.png", "frame+1": "a9.png"}
    raw = {role: tmp_path / "raw" / name for role, name in frames.items()}
    assert case.files == {**raw, "label": tmp_path / "masks" / "a9.png"}


def test_data_sets_of_the_original_are_found_by_their_roots(tmp_path):
    roots = {"d": {"raw_image_root": "d/raw", "mask_root": "d/masks"}}
    samples = [{"dataset": "d", "frames": ["a.png"], "mask_file": None}, {"dataset": "d", "image_file": "b.png"}]
    (tmp_path / "list.json").write_text(json.dumps({"datasets_info": roots, "samples": samples}))
    cases = find_micrographs(tmp_path / "list.json").cases
    assert [(case.id, case.files) for case in cases] == [
        ("d_a", {"image": tmp_path / "d" / "raw" / "a.png"}),
        ("d_b", {"image": tmp_path / "d" / "raw" / "b.png"}),
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"samples": []}', '{"samples": [{"dataset": "d"}]}'])
def test_other_json_is_refused_with_what_to_do(tmp_path, text):
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(MedsegError, match="give the folder instead"):
        find_micrographs(tmp_path / "list.json")


def test_a_folder_without_pictures_is_refused(tmp_path):
    with pytest.raises(MedsegError, match="holds no pictures that a rule knows"):
        find_micrographs(tmp_path)


def test_two_data_sets_that_make_one_name_keep_the_first_picture(folder):
    found = find_micrographs(folder("a/b_c.png", "a_b/c.png"))
    assert [case.id for case in found.cases] == ["a_b_c"]
    assert "rename the folder" in found.findings[0]["text"]
