"""Label maps as people keep them."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.labelmaps import find_label_maps, read_labels, write_labels

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 3, 0, -5], [0, 0, 4, 7], [0, 0, 0, 1]])


def save(path: Path, voxels, dtype=np.uint8, affine=AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(voxels, dtype), affine), path)
    return path


def cube(*at: tuple[int, int, int], value=1) -> np.ndarray:
    voxels = np.zeros((3, 4, 5))
    for place in at:
        voxels[place] = value
    return voxels


A, B, C = (0, 0, 0), (1, 2, 3), (2, 3, 4)


def test_multilabel_files_are_cases_by_their_names(tmp_path):
    save(tmp_path / "s0002.nii.gz", cube(A))
    save(tmp_path / "s.01.nii", cube(B))
    (tmp_path / "report.html").write_text("no map")
    assert list(find_label_maps(tmp_path)) == ["s.01", "s0002"]


def test_a_folder_of_masks_becomes_one_map_by_name(tmp_path):
    save(tmp_path / "s1" / "liver.nii.gz", cube(A, B))
    save(tmp_path / "s1" / "spleen.nii.gz", cube(C))
    save(tmp_path / "s1" / "ct.nii.gz", cube(value=-1000), np.int16)
    save(tmp_path / "s1" / "._liver.nii.gz", cube())
    found = find_label_maps(tmp_path)["s1"]
    assert found.names() == found.annotated == {"liver", "spleen"}
    volume = found.read({"liver": 5, "spleen": 300})
    assert volume.voxels[A] == volume.voxels[B] == 5
    assert volume.voxels[C] == 300
    assert np.count_nonzero(volume.voxels) == 3
    np.testing.assert_array_equal(volume.affine, AFFINE)


def test_masks_that_are_not_wanted_are_left_out(tmp_path):
    save(tmp_path / "s1" / "liver.nii.gz", cube(A))
    save(tmp_path / "s1" / "spleen.nii.gz", cube(B))
    volume = find_label_maps(tmp_path)["s1"].read({"spleen": 1, "kidney": 2})
    assert np.argwhere(volume.voxels).tolist() == [list(B)]
    assert not find_label_maps(tmp_path)["s1"].read({"kidney": 2}).voxels.any()


def test_where_masks_overlap_the_larger_id_has_the_voxel_and_the_log_says_so(tmp_path, caplog):
    save(tmp_path / "s1" / "liver.nii.gz", cube(A, B))
    save(tmp_path / "s1" / "spleen.nii.gz", cube(B, C))
    volume = find_label_maps(tmp_path)["s1"].read({"liver": 5, "spleen": 1})
    assert [volume.voxels[at] for at in (A, B, C)] == [5, 5, 1]
    assert "1 voxels" in caplog.text


def test_the_released_layout_wins_over_all_else_in_a_case(tmp_path):
    case = tmp_path / "pt_2"
    save(case / "segmentations" / "liver.nii.gz", cube(A))
    save(case / "seg_multilabel.nii.gz", cube(B))
    save(case / "targets" / "ptv.nii.gz", cube(C))
    write_labels(case / "labels.json", {9: "spleen"})
    for root in (tmp_path, case, case / "segmentations"):
        (found,) = find_label_maps(root).values()
        assert (found.case, found.names()) == ("pt_2", {"liver"})


def test_a_single_file_is_one_case(tmp_path):
    path = save(tmp_path / "scan7.nii.gz", cube(A, value=4))
    (found,) = find_label_maps(path).values()
    assert found.case == "scan7"
    assert found.read({"liver": 9}).voxels[A] == 4  # nothing says what 4 is called


def test_a_folder_of_known_names_is_one_case(tmp_path):
    save(tmp_path / "s3" / "liver.nii.gz", cube(A))
    save(tmp_path / "s3" / "spleen.nii.gz", cube(B))
    assert list(find_label_maps(tmp_path / "s3", names={"liver", "spleen", "aorta"})) == ["s3"]
    assert list(find_label_maps(tmp_path / "s3")) == ["liver", "spleen"]


def test_names_beside_a_multilabel_file_translate_its_ids(tmp_path):
    """Label 118 there is 117 here: files are matched by name."""
    save(tmp_path / "s1.nii.gz", cube(A, value=118) + cube(B, value=2) + cube(C, value=3), np.int16)
    (tmp_path / "labels.json").write_text(json.dumps({"costal_cartilages": 118, "liver": 2, "aorta": 3}))
    found = find_label_maps(tmp_path)["s1"]
    assert found.annotated == {"costal_cartilages", "liver", "aorta"}
    volume = found.read({"costal_cartilages": 117, "liver": 5})
    assert [int(volume.voxels[at]) for at in (A, B, C)] == [117, 5, 0]


def test_an_id_without_a_name_is_background_and_named_in_the_log(tmp_path, caplog):
    save(tmp_path / "s1.nii.gz", cube(A, value=7) + cube(B, value=1))
    (tmp_path / "labels.json").write_text('{"1": "liver"}')
    assert np.argwhere(find_label_maps(tmp_path)["s1"].read({"liver": 5}).voxels).tolist() == [list(B)]
    assert "no name for [7]" in caplog.text


def test_a_file_without_names_says_nothing_about_what_was_looked_for(tmp_path):
    save(tmp_path / "s1.nii.gz", cube(A))
    found = find_label_maps(tmp_path)["s1"]
    assert found.annotated is None
    assert found.names() == frozenset()


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint16, np.int8])
def test_whole_numbers_of_any_dtype_are_labels(tmp_path, dtype):
    save(tmp_path / "s1.nii.gz", cube(A, value=104), dtype)
    volume = find_label_maps(tmp_path)["s1"].read({})
    assert volume.voxels.dtype == np.uint8
    assert volume.voxels[A] == 104
    assert volume.voxels.sum() == 104


@pytest.mark.parametrize(
    ("value", "said"), [(0.5, "0.5, which is no whole number"), (-1, "value -1"), (70000, "70000"), (np.nan, "nan")]
)
def test_a_file_that_is_no_label_map_is_refused_by_name_and_value(tmp_path, value, said):
    path = save(tmp_path / "s1.nii.gz", cube(A, value=value), np.float32)
    with pytest.raises(MedsegError, match=said) as caught:
        find_label_maps(tmp_path)["s1"].read({"liver": 1})
    assert str(path) in str(caught.value)


def test_masks_on_two_grids_are_refused(tmp_path):
    save(tmp_path / "s1" / "liver.nii.gz", cube(A))
    save(tmp_path / "s1" / "spleen.nii.gz", cube(B), affine=np.diag([1.0, 1, 1, 1]))
    with pytest.raises(MedsegError, match="spleen"):
        find_label_maps(tmp_path)["s1"].read({"liver": 1, "spleen": 2})


def test_a_case_in_two_forms_is_refused(tmp_path):
    save(tmp_path / "s1.nii.gz", cube(A))
    save(tmp_path / "s1" / "liver.nii.gz", cube(A))
    with pytest.raises(MedsegError, match="'s1' twice"):
        find_label_maps(tmp_path)


def test_a_folder_of_predictions_may_hold_entropy_maps(tmp_path):
    save(tmp_path / "s1.nii.gz", cube(A))
    save(tmp_path / "uncertainty" / "s1.nii.gz", cube(A, value=0.3), np.float32)
    assert list(find_label_maps(tmp_path)) == ["s1"]


def test_a_folder_with_more_about_the_cases_beside_it_is_no_case(tmp_path):
    for file in ("a.nii.gz", "b.nii.gz", "changes/a.nii.gz", "c/liver.nii.gz"):
        save(tmp_path / file, cube(A))
    assert list(find_label_maps(tmp_path)) == ["a", "b", "c"]


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(MedsegError, match="holds no label maps"):
        find_label_maps(tmp_path)
    with pytest.raises(MedsegError, match="no file or folder"):
        find_label_maps(tmp_path / "gone")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "not valid JSON"),
        ("3", "is no class list"),
        ('{"a": 1.5}', "is no class list"),
        ('{"a": true}', "is no class list"),
        ("[]", "is no class list"),
        ('{"liver": 0}', "0 is the background"),
        ('{"liver": 65536}', "outside 1..65535"),
        ('{"liver": 1, "spleen": 1}', "twice"),
        ('["liver", "spleen", "liver"]', "twice"),
        ('{"1": "../../etc/liver"}', "cannot name"),
        ('{"1": ""}', "cannot name"),
    ],
)
def test_a_class_list_that_is_none_is_refused(tmp_path, text, said):
    (tmp_path / "l.json").write_text(text)
    with pytest.raises(MedsegError, match=said) as caught:
        read_labels(tmp_path / "l.json")
    assert "l.json" in str(caught.value)


def test_a_written_class_list_reads_the_same(tmp_path):
    write_labels(tmp_path / "labels.json", {5: "liver", 1: "left kidney"})
    assert read_labels(tmp_path / "labels.json") == {1: "left kidney", 5: "liver"}


def test_the_real_multilabel_file_says_the_same_as_its_masks(data):
    """Answer from outside: both were published by the makers of TotalSegmentator."""
    folder = data / "ct_multiorgan" / "ts_s0001"
    names = json.loads((folder / "labels.json").read_text())["labels"]
    masks = find_label_maps(folder)["ts_s0001"].read(names)
    file = find_label_maps(folder / "seg_multilabel_v1_104.nii.gz")["seg_multilabel_v1_104"].read(names)
    assert np.array_equal(masks.voxels, file.voxels)
    assert len(np.unique(file.voxels)) == 60  # INVENTORY.csv


def test_real_ids_are_translated_by_name(data):
    """lidc0001 has 118 costal_cartilages where TotalSegmentator has 117."""
    folder = data / "ct_more" / "lidc0001" / "derived"
    found = find_label_maps(folder / "seg_multilabel.nii.gz")["seg_multilabel"]
    stored = nib.load(folder / "seg_multilabel.nii.gz")
    volume = found.read({"costal_cartilages": 117})
    assert np.array_equal(volume.voxels == 117, np.asarray(stored.dataobj) == 118)
    assert (volume.voxels > 0).any()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"liver": 1, "spleen": 2, "liver": 3}', "'liver' stands there twice"),
        ('{"Liver": 1, "liver": 2}', "an id or a name twice"),
        ('{"%s": 1}' % ("a" * 201), "up to 200 letters"),
        ('{"%s": "liver"}' % ("9" * 5000), "is no class list"),
    ],
)
def test_names_that_would_be_one_file_or_none_are_refused(tmp_path, text, words):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(MedsegError, match=words):
        read_labels(tmp_path / "labels.json")
