"""One call for all measures: its columns, its policies for empty sides as their table says, and files."""

import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from medseg_core import metrics
from medseg_core.errors import MedsegError
from medseg_core.io import write_picture, write_volume
from medseg_core.labelmaps import label_map
from medseg_core.pairs import Pair, score_pair
from medseg_core.score import KINDS, score, score_files
from medseg_core.surface import POLICIES
from medseg_core.volume import Picture, Volume

OVERLAP = ["dice", "iou", "sensitivity", "specificity", "precision", "accuracy", "volume_difference"]
VOLUMES = ["volume_ref", "volume_pred"]
SURFACE = ["hd", "hd95", "assd", "nsd"]
CENTRELINE = ["cldice", "topology_precision", "topology_sensitivity"]
LESIONS = ["lesions_ref", "lesions_pred", "lesions_found", "lesions_missed", "lesions_invented", "lesion_sensitivity"]
LESIONS += ["lesion_precision", "lesion_f1", "missed_volume", "invented_volume"]
NUMBERS_OF_NOTHING = {*VOLUMES, *LESIONS} - {"lesion_sensitivity", "lesion_precision", "lesion_f1"}

BOTH, MISSED, INVENTED, ABSENT = range(1, 5)
SHAPE, SPACING = (9, 10, 8), (1.0, 2.0, 2.5)
DIAGONAL = np.linalg.norm(np.multiply(SHAPE, SPACING))


def moved() -> tuple[np.ndarray, np.ndarray]:
    """A mask and a label that has BOTH, a row of the mask farther along the first axis, MISSED and INVENTED."""
    mask, label = np.zeros((2, *SHAPE), np.uint8)
    label[1:4, 2:5, 2:6], mask[2:5, 2:5, 2:6] = BOTH, BOTH
    label[6:8, 7:9, 1:3], mask[6:8, 7:9, 5:7] = MISSED, INVENTED
    return mask, label


def volume(voxels: np.ndarray, spacing: tuple[float, ...] = SPACING) -> Volume:
    return Volume(voxels, np.diag([*spacing, 1.0]))


def table_of_empty_sides() -> list[tuple[str, str, list[str]]]:
    """Measure, policy and what stands under missed, invented and absent, out of the docstring of `metrics`."""
    lines = [line for line in metrics.__doc__.splitlines() if line.startswith("|")]
    head, _, *body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert head == ["measure", "both", "missed", "invented", "absent"]
    rows = []
    for names, both, *cells in body:
        assert both == "number"
        policy = re.search(r'`empty="(\w+)"`', names)
        kinds = re.search(r"(\w+) \(of voxels, lesions, courses\)", names)
        measures = [kinds[1], f"lesion_{kinds[1]}", f"topology_{kinds[1]}"] if kinds else names.split(", ")
        measures = [name for name in measures if "`" not in name]
        rows += [(name, each, cells) for name in measures for each in ([policy[1]] if policy else POLICIES)]
    return rows


def of_every_kind(policy: str) -> dict[str, np.ndarray]:
    ids = [BOTH, MISSED, INVENTED, ABSENT]
    return score(*moved(), spacing=SPACING, ids=ids, measures=KINDS, empty=policy)


@pytest.mark.parametrize(("measure", "policy", "cells"), table_of_empty_sides())
def test_empty_sides_have_what_the_table_says(measure, policy, cells):
    both, *found = of_every_kind(policy)[measure].tolist()
    assert np.isfinite(both)
    for value, told in zip(found, cells, strict=True):
        if told == "number":
            assert 0 < value <= 1
        else:
            assert value == pytest.approx({"nan": np.nan, "diagonal": DIAGONAL}.get(told) or float(told), nan_ok=True)


def test_the_table_has_every_measure_that_empty_sides_leave_open():
    told = {measure for measure, _, _ in table_of_empty_sides()}
    assert told == {*of_every_kind("undefined")} - {"id", "status"} - NUMBERS_OF_NOTHING


@pytest.mark.parametrize("policy", POLICIES)
def test_numbers_and_volumes_of_what_is_not_there_are_0(policy):
    found = of_every_kind(policy)
    assert all(found[name][3] == 0 for name in NUMBERS_OF_NOTHING)
    lesions = ["lesions_ref", "lesions_pred", "lesions_missed", "lesions_invented"]
    assert [found[name][1:3].tolist() for name in lesions] == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert [found[name][1:3].tolist() for name in ("volume_ref", "missed_volume")] == [[8 * 5, 0]] * 2
    assert [found[name][1:3].tolist() for name in ("volume_pred", "invented_volume")] == [[0, 8 * 5]] * 2


def test_columns_come_in_the_order_of_their_kinds():
    assert list(of_every_kind("undefined")) == ["id", "status", *OVERLAP, *VOLUMES, *SURFACE, *CENTRELINE, *LESIONS]


@pytest.mark.parametrize(
    ("measures", "columns"),
    [
        ((), []),
        (("overlap",), OVERLAP + VOLUMES),
        ("surface", SURFACE),
        (["surface", "overlap"], OVERLAP + VOLUMES + SURFACE),
        ({"centreline"}, CENTRELINE),
        (("lesions",), LESIONS),
    ],
)
def test_only_the_kinds_asked_for_are_measured(measures, columns):
    assert list(score(*moved(), spacing=SPACING, measures=measures)) == ["id", "status", *columns]


def test_without_measures_named_overlap_and_surface_are_taken():
    assert list(score(*moved(), spacing=SPACING)) == ["id", "status", *OVERLAP, *VOLUMES, *SURFACE]


def test_rows_are_the_ids_on_either_side_in_ascending_order():
    found = score(*moved(), spacing=SPACING)
    assert_array_equal(found["id"], [BOTH, MISSED, INVENTED])
    assert_array_equal(found["status"], ["both", "missed", "invented"])


def test_rows_come_in_the_order_of_the_ids_asked_for():
    found = score(*moved(), spacing=SPACING, ids=[ABSENT, INVENTED, BOTH], measures=KINDS)
    assert_array_equal(found["id"], [ABSENT, INVENTED, BOTH])
    assert_array_equal(found["status"], ["absent", "invented", "both"])
    assert all(values.shape == (3,) for values in found.values())
    assert found["dice"].tolist() == pytest.approx([np.nan, 0, 2 / 3], nan_ok=True)


def test_measures_of_two_boxes_by_hand():
    found = {name: values[0] for name, values in score(*moved(), spacing=SPACING, tolerance=0.5).items()}
    num, both = 3 * 3 * 4, 2 * 3 * 4
    assert (found["dice"], found["iou"]) == (pytest.approx(both / num), pytest.approx(both / (2 * num - both)))
    assert (found["volume_ref"], found["volume_pred"], found["volume_difference"]) == (num * 5, num * 5, 0)
    assert (found["hd"], found["hd95"]) == (1, 1)


@pytest.mark.parametrize(("percentile", "column"), [(95, "hd95"), (90.0, "hd90"), (97.5, "hd97.5"), (100, "hd100")])
def test_the_percentile_is_in_the_name_of_its_column(percentile, column):
    mask, label = np.zeros((2, 1, 21), np.uint8)
    label[0], mask[0, 0] = 1, 1
    found = score(mask, label, spacing=(1, 1), measures="surface", percentile=percentile)
    assert list(found)[2:] == ["hd", column, "assd", "nsd"]
    assert found[column] == pytest.approx(20 * percentile / 100)


def test_each_structure_has_its_own_tolerance():
    mask, label = np.zeros((2, 3, 10), np.uint8)
    for row, i in enumerate((7, 5, 6)):
        label[row, 0], mask[row, 1 + row] = i, i
    found = score(mask, label, spacing=(1, 0.5), ids=[7, 5, 6], measures="surface", tolerance=[0.5, 0.9, 1.5])
    assert found["nsd"].tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"measures": ["overlap", "surfaces"]}, "no measures 'surfaces'; did you mean 'surface'.*overlap, surface, "),
        ({"measures": "centerline"}, "no measures 'centerline'; did you mean 'centreline'"),
        ({"empty": "worse"}, r"empty 'worse' is not one of \('undefined', 'worst'\); did you mean 'worst'"),
        ({"convention": "voxels"}, "convention 'voxels' .* did you mean 'voxel'"),
        ({"tolerance": [1, 2]}, "2 tolerances for 3 structures; give one for all, or one for each"),
        ({"spacing": (1, 1)}, r"spacing \(1, 1\) must be 3 positive lengths"),
        ({"spacing": (1, 1), "measures": ["overlap"]}, r"spacing \(1, 1\) must be 3 positive lengths"),
        ({"spacing": (1, 0, 1), "measures": ["centreline"]}, r"spacing \(1, 0, 1\) must be 3 positive lengths"),
        ({"ids": [70000]}, "there is no id 70000"),
        ({"ids": [0]}, "id 0 is the background"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_the_fix(wrong, told):
    with pytest.raises(MedsegError, match=told):
        score(*moved(), **{"spacing": SPACING, **wrong})


def test_hd95_of_two_files_in_three_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    label = np.pad(np.ones((8, 8, 8), np.uint8), 4)
    write_volume(volume(np.roll(label, 2, axis=2)), "mask.nii.gz")
    write_volume(volume(label), "label.nii.gz")

    from medseg_core.score import score_files

    hd95 = score_files("mask.nii.gz", "label.nii.gz")["hd95"]
    assert hd95 == [5.0]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_files_of_volumes_are_scored_in_mm(tmp_path, suffix):
    sides = [tmp_path / f"{name}{suffix}" for name in ("mask", "label")]
    for voxels, file in zip(moved(), sides, strict=True):
        write_volume(volume(voxels), file)
    found = score_files(*sides, measures=KINDS, tolerance=1.5, ids=[BOTH, MISSED])
    expected = score(*moved(), spacing=SPACING, measures=KINDS, tolerance=1.5, ids=[BOTH, MISSED])
    assert list(found) == list(expected)
    assert_array_equal(found.pop("status"), expected.pop("status"))
    for name, values in found.items():
        assert_allclose(values, expected[name], rtol=1e-6, err_msg=name)


def a_step_of_pictures(folder, suffix: str, *, pixel_nm: tuple[float | None, float | None] = (None, None)) -> list:
    """Files of a mask and a label, a square of 4x4 pixels that lies 3 pixels farther down in the mask."""
    mask, label = np.zeros((2, 20, 16), np.uint8)
    label[2:6, 5:9], mask[5:9, 5:9] = 1, 1
    files = [folder / f"{name}{suffix}" for name in ("mask", "label")]
    for pixels, file, size in zip((mask, label), files, pixel_nm, strict=True):
        write_picture(Picture(pixels, size), file)
    return files


def test_pictures_are_scored_in_pixels(tmp_path):
    found = score_files(*a_step_of_pictures(tmp_path, ".png"))
    assert (found["hd"], found["volume_ref"], found["dice"]) == (3, 16, 4 / 16)


def test_pictures_of_a_known_pixel_size_are_scored_in_nanometres(tmp_path):
    found = score_files(*a_step_of_pictures(tmp_path, ".tif", pixel_nm=(25.0, 25.0)))
    assert (found["hd"], found["volume_ref"]) == (pytest.approx(75), pytest.approx(16 * 25**2))


def test_a_mask_without_a_pixel_size_has_that_of_its_label(tmp_path):
    found = score_files(*a_step_of_pictures(tmp_path, ".tif", pixel_nm=(None, 25.0)))
    assert found["hd"] == pytest.approx(75)


def test_pixels_of_another_size_are_refused_with_both_files(tmp_path):
    mask, label = a_step_of_pictures(tmp_path, ".tif", pixel_nm=(30.0, 25.0))
    told = f"{re.escape(str(mask))} .* {re.escape(str(label))}: pixels of 30 nm against 25 nm"
    with pytest.raises(MedsegError, match=told):
        score_files(mask, label)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (volume(moved()[0][1:]), r"shape \(8, 10, 8\) against \(9, 10, 8\)"),
        (volume(moved()[0], (1.0, 2.0, 3.0)), "corner voxels lie up to 3.5 mm apart"),
        (Volume(moved()[0], np.diag([-1.0, 2.0, 2.5, 1.0])), "LAS against RAS"),
    ],
)
def test_grids_that_differ_are_refused_with_both_files_the_mask_first(tmp_path, other, reason):
    mask, label = tmp_path / "mask.nii.gz", tmp_path / "label.nii.gz"
    write_volume(other, mask)
    write_volume(volume(moved()[1]), label)
    told = f"{re.escape(str(mask))} .* {re.escape(str(label))}: .*{reason}.*; predict on"
    with pytest.raises(MedsegError, match=told):
        score_files(mask, label)


def test_a_volume_against_a_picture_is_refused(tmp_path):
    mask, _ = a_step_of_pictures(tmp_path, ".png")
    write_volume(volume(moved()[1]), tmp_path / "label.nii.gz")
    with pytest.raises(MedsegError, match=r"shape \(20, 16\) against \(9, 10, 8\)"):
        score_files(mask, tmp_path / "label.nii.gz")


@pytest.mark.parametrize("which", [0, 1])
def test_a_folder_is_refused_with_the_fix(tmp_path, which):
    folder = tmp_path / "case"
    write_volume(volume(moved()[1]), folder / "liver.nii.gz")
    sides = [folder / "liver.nii.gz"] * 2
    sides[which] = folder
    with pytest.raises(MedsegError, match=rf"{re.escape(str(folder))} is a folder.*label_map\(path\).read"):
        score_files(*sides)


def test_the_fix_for_a_folder_works(tmp_path):
    for name, voxels in (("liver", moved()[1] == BOTH), ("spleen", moved()[1] == MISSED)):
        write_volume(volume(voxels), tmp_path / "case" / f"{name}.nii.gz")
    true = label_map(tmp_path / "case").read({"liver": 1, "spleen": 2})
    found = score(true.voxels, true.voxels, spacing=true.spacing_mm, ids=[1, 2])
    assert found["dice"].tolist() == [1, 1]


def test_a_file_that_is_missing_or_in_colour_is_refused_by_name(tmp_path):
    mask, label = a_step_of_pictures(tmp_path, ".png")
    Image.new("RGB", (16, 20)).save(tmp_path / "colour.png")
    for file, told in (("nowhere.png", "there is no file .*nowhere.png"), ("colour.png", "colour.png .* in colour")):
        with pytest.raises(MedsegError, match=told):
            score_files(tmp_path / file, label)
        with pytest.raises(MedsegError, match=told):
            score_files(mask, tmp_path / file)


def test_a_table_refuses_several_tolerances():
    pair = Pair("s01", *moved(), spacing=SPACING)
    with pytest.raises(MedsegError, match=r"tolerance \[1, 2\] must be one number.*score.score"):
        score_pair(pair, {1: "a", 2: "b"}, tolerance=[1, 2])


def test_two_files_that_are_numbered_differently_are_refused(tmp_path):
    label = np.zeros((4, 4, 4), np.uint8)
    label[1:3, 1:3, 1:3] = 1
    for folder, names in (("pred", '{"liver": 1}'), ("ref", '{"spleen": 1}')):
        write_volume(Volume(label, np.eye(4)), tmp_path / folder / "a.nii.gz")
        (tmp_path / folder / "labels.json").write_text(names)
    with pytest.raises(MedsegError, match="number their structures differently"):
        score_files(tmp_path / "pred" / "a.nii.gz", tmp_path / "ref" / "a.nii.gz")
    (tmp_path / "pred" / "labels.json").write_text('{"spleen": 1}')
    assert score_files(tmp_path / "pred" / "a.nii.gz", tmp_path / "ref" / "a.nii.gz")["dice"] == 1


@pytest.mark.parametrize("spacing", [1.0, (1.0, 1.0), np.ones((3, 1)), (1.0, 0.0, 1.0), (1.0, np.nan, 1.0)])
def test_a_spacing_that_is_none_is_one_line(spacing):
    label = np.ones((2, 2, 2), np.uint8)
    with pytest.raises(MedsegError, match="3 positive lengths"):
        score(label, label, spacing=spacing)
