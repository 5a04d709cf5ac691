"""Class lists, their groups and mirror images, and what viewers read."""

import json
from collections import Counter

import pytest

from medseg_core.errors import MedsegError
from medseg_core.figures import colour_of
from medseg_totalseg.labels import CLASS_LISTS, choose, group_of, groups, mirror_pairs, select, write_label_files


def test_the_lists_have_the_official_lengths_and_ids():
    """Ids from TotalSegmentator's `class_map`, read off its source by hand."""
    v1, v2 = CLASS_LISTS["v1"], CLASS_LISTS["v2"]
    assert (len(v2), len(set(v2.values())), min(v2), max(v2)) == (117, 117, 1, 117)
    assert (len(v1), len(set(v1.values())), min(v1), max(v1)) == (104, 104, 1, 104)
    known = {1: "spleen", 26: "vertebrae_S1", 50: "vertebrae_C1", 51: "heart", 77: "hip_left", 92: "rib_left_1"}
    assert known.items() <= v2.items()
    assert {104: "rib_right_1", 115: "rib_right_12", 117: "costal_cartilages"}.items() <= v2.items()
    known = {7: "aorta", 18: "vertebrae_L5", 41: "vertebrae_C1", 49: "pulmonary_artery", 81: "rib_right_12"}
    assert known.items() <= v1.items()
    assert {93: "face", 104: "urinary_bladder"}.items() <= v1.items()


@pytest.mark.parametrize(("scan", "version"), [("ts_s0001", "v1"), ("ts_s0002", "v2")])
def test_ids_are_those_of_the_published_multilabel_files(data, scan, version):
    published = json.loads((data / "ct_multiorgan" / scan / "labels.json").read_text())
    ids = {name: label for label, name in CLASS_LISTS[version].items()}
    assert published["labels"].items() <= ids.items()
    assert set(published.get("empty_classes_left_out", [])) <= set(ids)


def test_the_104_fall_into_the_groups_that_the_paper_counts():
    """Wasserthal et al., Radiology AI 2023: 27 organs, 59 bones, 10 muscles, 8 vessels."""
    found = Counter(group_of(name) for name in CLASS_LISTS["v1"].values())
    assert found == {"organs": 27, "bones": 59, "muscles": 10, "vessels": 8}


def test_the_117_have_a_group_each_and_other_names_have_none():
    """Counted by hand. Bones: those of v1, skull, sternum, costal cartilages and S1."""
    found = Counter(groups(CLASS_LISTS["v2"]).values())
    assert found == {"bones": 59 + 4, "vessels": 16, "muscles": 10, "organs": 28}
    assert group_of("atrial_appendage_left") == group_of("spinal_cord") == "organs"
    assert group_of("hipster") == ""
    assert groups({1: "mandible", 2: "liver"}) == {"liver": "organs"}


def test_mirror_pairs_go_both_ways_and_leave_unpaired_structures_alone():
    labels = {1: "kidney_left", 2: "liver", 5: "kidney_right", 6: "rib_left_12", 7: "rib_right_12", 8: "lobe_right"}
    assert mirror_pairs(labels) == {1: 5, 5: 1, 6: 7, 7: 6}
    assert mirror_pairs({1: "right lung", 2: "left lung"}) == {1: 2, 2: 1}
    assert mirror_pairs({1: "bright_left", 2: "bright_right", 3: "cleft"}) == {1: 2, 2: 1}


def test_mirror_pairs_of_v2_are_an_involution_of_named_sides():
    labels = CLASS_LISTS["v2"]
    pairs = mirror_pairs(labels)
    sided = [n for n in labels.values() if "_left" in n or "_right" in n]
    lonely = {"atrial_appendage_left", "lung_middle_lobe_right"}
    assert {labels[i] for i in pairs} == set(sided) - lonely
    assert all(pairs[pairs[i]] == i for i in pairs)


def test_official_takes_the_list_that_holds_all_names():
    assert choose(["liver", "sternum"]) == CLASS_LISTS["v2"]
    assert choose(["liver", "face"]) == CLASS_LISTS["v1"]
    assert choose(["liver"]) == CLASS_LISTS["v2"]  # both would do


def test_official_names_what_it_does_not_know_and_the_way_out():
    with pytest.raises(MedsegError, match=r"mandible.*parotid_left|parotid_left.*mandible") as caught:
        choose(["liver", "mandible", "parotid_left", "spleeen"])
    assert "spleeen (nearest: spleen)" in str(caught.value)
    assert "--labels folder" in str(caught.value)
    assert "liver" not in str(caught.value)


def test_a_long_list_of_unknown_names_is_cut_and_counted():
    with pytest.raises(MedsegError, match="and 12 more"):
        choose([f"x{i:02d}" for i in range(20)])


def test_folder_numbers_the_names_in_order():
    assert choose(["larynx", "brainstem", "larynx"], "folder") == {1: "brainstem", 2: "larynx"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"larynx": 7, "cord": 2}'),
        ("b.json", '{"7": "larynx", "2": "cord"}'),
        ("c.json", '{"labels": {"larynx.nii.gz": 7, "cord.nii.gz": 2}}'),
    ],
)
def test_a_file_gives_names_and_ids_either_way_round(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert choose(["cord"], tmp_path / name) == {2: "cord", 7: "larynx"}


def test_a_text_file_has_a_name_per_line(tmp_path):
    (tmp_path / "names.txt").write_text("# mine\nlarynx\n\ncord\n")
    assert choose(["cord"], str(tmp_path / "names.txt")) == {1: "larynx", 2: "cord"}


def test_a_file_must_hold_all_names(tmp_path):
    (tmp_path / "names.txt").write_text("larynx\ncord\n")
    with pytest.raises(MedsegError, match=r"names\.txt lacks.*lyrynx \(nearest: larynx\)"):
        choose(["cord", "lyrynx"], tmp_path / "names.txt")


def test_structures_are_names_and_groups_mixed():
    labels = {1: "spleen", 5: "liver", 52: "aorta", 53: "pulmonary_vein", 200: "mandible"}
    assert select(labels, ("liver", "vessels")) == {5: "liver", 52: "aorta", 53: "pulmonary_vein"}
    assert select(labels, ("liver|mandible",)) == {5: "liver", 200: "mandible"}
    assert select(labels, ()) == labels


def test_an_unknown_structure_is_refused_with_the_nearest_name():
    with pytest.raises(MedsegError, match=r"'livr'.*did you mean 'liver'"):
        select(CLASS_LISTS["v2"], ("livr",))
    with pytest.raises(MedsegError, match="groups are bones, muscles, organs, vessels"):
        select(CLASS_LISTS["v2"], ("qqq",))


def test_a_group_without_members_in_the_list_is_refused():
    with pytest.raises(MedsegError, match="'vessels'"):
        select({1: "liver"}, ("vessels",))


def test_label_files_say_names_and_colours(tmp_path):
    write_label_files(tmp_path, {5: "liver", 2: "left kidney"})
    assert json.loads((tmp_path / "labels.json").read_text()) == {"2": "left kidney", "5": "liver"}
    red, green, blue = colour_of(5)
    lines = (tmp_path / "labels_itksnap.txt").read_text().splitlines()
    snap = [line.split(maxsplit=7) for line in lines if line[0] != "#"]
    assert [line[0] for line in snap] == ["0", "2", "5"]
    assert snap[2] == ["5", str(red), str(green), str(blue), "1", "1", "1", '"liver"']
    slicer = [line.split() for line in (tmp_path / "labels_slicer.ctbl").read_text().splitlines() if line[0] != "#"]
    assert slicer[0] == ["0", "background", "0", "0", "0", "0"]
    assert slicer[1][:2] == ["2", "left_kidney"]  # Slicer parts columns by spaces
    assert slicer[2] == ["5", "liver", str(red), str(green), str(blue), "255"]
