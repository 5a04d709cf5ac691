import gzip
import json
import math
import re

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from medseg_core.cli import app
from medseg_core.errors import MedsegError
from medseg_core.info import describe, describe_each
from medseg_core.io import write_picture, write_volume
from medseg_core.screen import screen
from medseg_core.volume import Picture, Volume

RNG = np.random.default_rng(0)
AFFINE = np.array([[-0.5, 0, 0, 10], [0, 0, 3, 20], [0, 2, 0, 30], [0, 0, 0, 1.0]])  # X to the left, Y up, Z forward
IMAGE = RNG.integers(-1000, 1000, (6, 7, 8)).astype(np.int16)


def save(path, voxels, affine=AFFINE, **header):
    """With nibabel, sform only; `header` fields are put over its own, as a faulty program leaves them."""
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm", "sec")
    content = image.to_bytes()
    raw = nib.Nifti1Header(content[:348])
    for name, value in header.items():
        raw[name] = value
    content = raw.binaryblock + content[348:]
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def boxes():
    """Ids 1 (two parts, 2 and 24 voxels) and 7 (one voxel) in 6 x 7 x 8."""
    ids = np.zeros((6, 7, 8), np.uint8)
    ids[0, 0, 0:2] = 1
    ids[2:4, 2:5, 3:7] = 1
    ids[5, 6, 0] = 7
    return ids


def test_a_volume_is_told_by_its_header_and_its_values(tmp_path):
    facts = describe(save(tmp_path / "a.nii", IMAGE))
    assert facts == {
        "path": str(tmp_path / "a.nii"),
        "kind": "image",
        "shape": [6, 7, 8],
        "axes": "X Y Z",
        "spacing_mm": [0.5, 2.0, 3.0],
        "fov_mm": [3.0, 14.0, 24.0],
        "orientation": "LSA",
        "oblique_deg": 0.0,
        "dtype": "int16",
        "bytes_unpacked": 6 * 7 * 8 * 2,
        "bytes": 352 + 6 * 7 * 8 * 2,
        "range": {
            "min": IMAGE.min(),
            **{
                name: np.percentile(IMAGE, share, method="inverted_cdf")
                for name, share in (("p1", 1), ("median", 50), ("p99", 99))
            },
            "max": IMAGE.max(),
        },
        "warnings": [],
    }
    assert json.loads(json.dumps(facts)) == facts


def test_the_range_is_of_values_and_the_dtype_as_stored_where_a_file_has_a_scale(tmp_path):
    facts = describe(save(tmp_path / "a.nii.gz", IMAGE, scl_slope=2, scl_inter=-1024))
    assert (facts["dtype"], facts["slope"], facts["intercept"]) == ("int16", 2, -1024)
    assert facts["range"]["max"] == 2 * IMAGE.max() - 1024


def test_labels_are_told_by_size_parts_and_box_in_a_volume(tmp_path):
    facts = describe(save(tmp_path / "a.nii.gz", boxes()))
    assert (facts["kind"], facts["background"]) == ("label map", 1 - 27 / 336)
    ml = 0.5 * 2 * 3 / 1000
    assert facts["labels"] == [
        {"id": 1, "name": None, "voxels": 26, "ml": pytest.approx(26 * ml), "parts": 2, "extent_mm": [2.0, 10.0, 21.0]},
        {"id": 7, "name": None, "voxels": 1, "ml": pytest.approx(ml), "parts": 1, "extent_mm": [0.5, 2.0, 3.0]},
    ]
    assert facts["range"] == {"min": 0, "max": 7}


def test_labels_are_told_in_pixels_and_shares_in_a_picture(tmp_path):
    ids = np.zeros((10, 20), np.uint8)
    ids[2:4, 5:15] = 3
    write_picture(Picture(ids, 500.0), tmp_path / "a.tif")
    facts = describe(tmp_path / "a.tif")
    assert facts["pixel_nm"] == pytest.approx(500)
    (row,) = facts["labels"]
    assert (row["pixels"], row["share"], row["parts"], row["extent_px"]) == (20, 0.1, 1, [2, 10])
    assert row["um2"] == pytest.approx(20 * 0.25)
    write_picture(Picture(ids), tmp_path / "b.png")
    assert "um2" not in describe(tmp_path / "b.png")["labels"][0]


def test_parts_and_boxes_are_scipys(tmp_path):
    coarse = RNG.integers(0, 3, (5, 6, 7)) * RNG.integers(0, 2, (5, 6, 7)) * 200
    ids = ndimage.zoom(coarse, 3, order=0).astype(np.uint16)
    facts = describe(save(tmp_path / "a.nii.gz", ids))
    assert [row["id"] for row in facts["labels"]] == [200, 400]
    for row in facts["labels"]:
        assert row["parts"] == ndimage.label(ids == row["id"], np.ones((3, 3, 3)))[1]
        (place,) = ndimage.find_objects((ids == row["id"]).astype(int))
        edges = [(side.stop - side.start) * mm for side, mm in zip(place, (0.5, 2, 3), strict=True)]
        assert row["extent_mm"] == pytest.approx(edges)


def test_labels_stored_with_a_scale_are_told_by_their_values(tmp_path):
    rows = describe(save(tmp_path / "a.nii", boxes(), scl_slope=2, scl_inter=1))["labels"]
    assert {row["id"]: row["voxels"] for row in rows} == {1: 336 - 27, 3: 26, 15: 1}
    assert [row["parts"] for row in rows] == [1, 2, 1]


def test_a_series_has_frames_and_volumes_of_a_frame_on_average(tmp_path):
    frames = np.stack([boxes(), boxes() * 0, boxes(), boxes()], axis=-1)
    pixdim = [1, 0.5, 2, 3, 0.04, 0, 0, 0]
    facts = describe(save(tmp_path / "a.nii.gz", frames, pixdim=pixdim))
    assert (facts["shape"], facts["axes"], facts["frame_s"]) == ([6, 7, 8, 4], "X Y Z T", pytest.approx(0.04))
    assert facts["labels"][0] == {"id": 1, "name": None, "voxels": 78, "ml": pytest.approx(78 / 4 * 0.003)}
    assert "4 frames, 0.04 s apart" in screen(facts)


def test_names_come_from_the_list_given_or_from_the_one_beside_the_file(tmp_path):
    path = save(tmp_path / "a.nii.gz", boxes())
    (tmp_path / "labels.json").write_text('{"liver": 1, "spleen": 2, "aorta": 3}')
    beside = describe(path)
    assert [row["name"] for row in beside["labels"]] == ["liver", None]
    assert (beside["labels_from"], beside["absent"]) == ("labels.json", ["spleen", "aorta"])
    assert beside["warnings"] == ["labels.json has no name for 7"]
    given = describe(path, labels={0: "air", 1: "fat", 7: "bone"})
    assert [row["name"] for row in given["labels"]] == ["fat", "bone"]
    assert (given["absent"], given["warnings"]) == ([], [])


def test_a_broken_list_that_nobody_asked_for_is_a_warning(tmp_path):
    (tmp_path / "labels.json").write_text("[1, 2]")
    (warning,) = describe(save(tmp_path / "a.nii.gz", boxes()))["warnings"]
    assert "is no class list" in warning
    assert not describe(save(tmp_path / "b.nii.gz", IMAGE))["warnings"]


def turned(degrees):
    return nib.affines.from_matvec(nib.eulerangles.euler2mat(math.radians(degrees)) * (0.5, 2, 3), (1, 2, 3))


def test_oblique_is_the_largest_angle_to_the_closest_patient_axis(tmp_path):
    facts = describe(save(tmp_path / "a.nii.gz", IMAGE, turned(12)))
    assert facts["oblique_deg"] == pytest.approx(12, abs=1e-3)
    assert re.search(r"oblique by 12\.0 degrees", screen(facts))
    assert not facts["warnings"]


SHEARED = np.array([[1, 1, 0, 5], [0, 1, 0, 5], [0, 0, 2, 5], [0, 0, 0, 1.0]])
HOLED = np.where(IMAGE < 0, np.nan, IMAGE).astype(np.float32)


@pytest.mark.parametrize(
    ("voxels", "affine", "header", "words"),
    [
        (IMAGE, AFFINE, {"qform_code": 1, "qoffset_x": 15}, "qform and sform differ.* up to 5 mm apart"),
        (IMAGE, AFFINE, {"qform_code": 1, "quatern_b": 3}, "qform is no rotation"),
        (IMAGE, AFFINE, {"qform_code": 1, "qoffset_x": np.nan}, "qform is no rotation"),
        (IMAGE, AFFINE, {"pixdim": [1, 1, 1, 1, 0, 0, 0, 0]}, "pixdim says 1 x 1 x 1 mm .* 0.5 x 2 x 3 mm"),
        (IMAGE, AFFINE, {"sform_code": 0}, "states no place"),
        (IMAGE, SHEARED, {}, "two axes meet at 45 degrees"),
        (IMAGE, np.eye(4), {}, "lost its affine"),
        (IMAGE, np.diag([0.04, 25, 1, 1]), {}, "0.04 mm along X and 25 mm along Y: another unit"),
        (IMAGE.astype(np.float64), AFFINE, {}, "stored as float64: int16 holds them in 1/4"),
        (boxes().astype(np.float32), AFFINE, {}, "stored as float32: uint8 holds them in 1/4"),
        (boxes() * 0, AFFINE, {}, "every value is 0$"),
        (HOLED, AFFINE, {}, f"^{(IMAGE < 0).sum()} values are nan and 0 infinite"),
        (IMAGE[..., None, None].repeat(3, 4), AFFINE, {}, "it has 5 axes"),
    ],
)
def test_each_fault_of_a_volume_is_one_warning(tmp_path, voxels, affine, header, words):
    (warning,) = describe(save(tmp_path / "a.nii.gz", voxels, affine, **header))["warnings"]
    assert re.search(words, warning), warning


@pytest.mark.parametrize("affine", [AFFINE, turned(12), np.diag([-1, -1, 1, 1.0]) + np.eye(4, k=3) * 90])
def test_what_we_write_has_no_fault(tmp_path, affine):
    for voxels in (IMAGE, boxes(), IMAGE / np.float32(7)):
        write_volume(Volume(voxels, affine), tmp_path / "a.nii.gz")
        assert not describe(tmp_path / "a.nii.gz")["warnings"]


def test_header_and_voxels_are_those_of_zipped_big_endian_and_nifti_2_files(tmp_path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(IMAGE, AFFINE, header), tmp_path / "a.nii")
    nib.save(nib.Nifti2Image(IMAGE, AFFINE), tmp_path / "b.nii")
    save(tmp_path / "c.nii.gz", IMAGE).rename(tmp_path / "c.nii")  # zipped in spite of its name
    for name in "abc":
        facts = describe(tmp_path / f"{name}.nii")
        assert (facts["range"]["max"], facts["warnings"]) == (IMAGE.max(), [])


def test_a_grey_picture_in_three_colours_is_told_as_grey_and_a_colourful_one_is_an_image(tmp_path):
    ids = np.zeros((20, 30), np.uint8)
    ids[5:10, 5:20] = 255
    write_picture(Picture(np.stack([ids] * 3, -1)), tmp_path / "grey.png")
    grey = describe(tmp_path / "grey.png")
    assert (grey["kind"], grey["shape"], grey["labels"][0]["pixels"]) == ("label map", [20, 30, 3], 75)
    assert re.search("equal everywhere", grey["warnings"][0])
    write_picture(Picture(np.stack([ids, ids, ids * 0], -1)), tmp_path / "yellow.png")
    yellow = describe(tmp_path / "yellow.png")
    assert (yellow["kind"], yellow["warnings"]) == ("image", [])


def test_a_label_map_as_jpeg_is_warned_of(tmp_path):
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(tmp_path / "a.jpg")
    assert "JPEG" in describe(tmp_path / "a.jpg")["warnings"][-1]


def test_a_screen_has_at_most_100_columns_and_40_labels(tmp_path):
    ids = np.repeat(np.arange(300, dtype=np.uint16), 24).reshape(6, 40, 30, order="F") * 7
    facts = describe(save(tmp_path / "a.nii.gz", ids), labels={7: "left " + "very " * 20 + "long name", 3: "x"})
    lines = screen(facts | {"path": "a.nii.gz"}).splitlines()
    assert max(map(len, lines)) <= 100
    assert "  and 259 more (--json has all)" in lines
    table = lines[lines.index("") + 1 :][:41]
    assert table[0].split()[:3] == ["id", "name", "voxels"]
    assert [int(row.split()[0]) for row in table[1:]] == [7 * i for i in range(1, 41)]
    assert len({len(row) for row in table}) == 1


def test_numbers_on_a_screen_are_readable(tmp_path):
    ids = np.ones((100, 100, 100), np.uint8)
    ids[0, 0, 0] = 2
    text = screen(describe(save(tmp_path / "a.nii.gz", ids, np.diag([1, 1, 1.2345, 1]))))
    assert re.search(r"^   1  999,999  1,234\.5 +1 +100 x 100 x 123$", text, re.MULTILINE)
    assert re.search(r"^   2 +1 +<0\.1 +1 ", text, re.MULTILINE)
    assert "unpacked 1 MB" in text


def call(*args):
    return CliRunner().invoke(app, ["info", *map(str, args)])


def test_one_bad_file_costs_itself_and_the_exit_code(tmp_path):
    good = save(tmp_path / "a.nii.gz", boxes())
    result = call(tmp_path / "none.nii.gz", good, tmp_path / "none.png")
    assert result.exit_code == 2
    assert result.stdout == screen(describe(good)) + "\n"
    assert [line.split(": ")[:2] for line in result.stderr.splitlines()] == [
        ["failed", str(tmp_path / "none.nii.gz")],
        ["failed", str(tmp_path / "none.png")],
    ]


def test_the_only_file_fails_in_one_line(tmp_path):
    result = call(tmp_path / "none.nii.gz")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: there is no file {tmp_path / 'none.nii.gz'}\n"


def test_json_is_a_list_of_what_describe_finds(tmp_path):
    files = [save(tmp_path / "a.nii.gz", boxes()), save(tmp_path / "b.nii.gz", HOLED * np.nan)]
    (tmp_path / "names.txt").write_text("liver\nspleen\n")
    result = call(*files, "--json", "--labels", tmp_path / "names.txt")
    assert result.exit_code == 0
    found, failed = describe_each(files, labels={1: "liver", 2: "spleen"})
    assert not failed
    assert json.loads(result.stdout) == found
    assert found[1]["range"] is None
    assert screen(found[1])


def test_a_bad_class_list_ends_the_command_before_any_file(tmp_path):
    result = call(save(tmp_path / "a.nii.gz", boxes()), "--labels", tmp_path / "none.json")
    assert (result.exit_code, result.stdout) == (2, "")


def test_real_files_are_told_apart_and_have_the_faults_that_are_known(data):
    images = ["ct_multiorgan/*/ct.nii.gz", "ct_multiorgan/ts_mr/mr.nii.gz", "ctpet/STS_00*/*_image.nii.gz"]
    images += ["cmr_cine/*/derived/images/**/*.nii.gz", "sem/axon/*_SEM.png", "sem/*/images/*1_*.tif"]
    maps = ["ct_multiorgan/*/seg_*.nii.gz", "ctpet/STS_00*/*_mask.nii.gz", "ct_more/openkbp/*/seg_*.nii.gz"]
    maps += ["cmr_cine/*/derived/labels/**/*.nii.gz", "sem/axon/*manual.png", "sem/ebc/masks/*1_*.tif"]
    for kind, patterns in (("image", images), ("label map", maps)):
        for pattern in patterns:
            files = list(data.glob(pattern))
            assert files, pattern
            assert {describe(file)["kind"] for file in files} == {kind}, pattern
    cine = describe(next(data.glob("cmr_cine/*/derived/images/**/*.nii.gz")))
    assert "along X" in cine["warnings"][0]  # the first axis is time
    quirk = describe(data / "ct_multiorgan/ts_s0001/seg_multilabel_v1_104.nii.gz")
    assert "float64" in quirk["warnings"][0]


def test_a_real_organ_is_the_same_in_a_multilabel_file_as_in_its_own(data):
    case = data / "ct_multiorgan" / "ts_s0001"
    rows = {row["name"]: row for row in describe(case / "seg_multilabel_v1_104.nii.gz")["labels"]}
    for name in ("liver", "aorta", "rib_left_7"):
        (alone,) = describe(case / "segmentations" / f"{name}.nii.gz")["labels"]
        assert rows[name] | {"id": 1, "name": None} == alone


def test_what_no_reader_takes_is_an_error_that_names_it(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"hello")
    with pytest.raises(MedsegError, match=r"a\.nii\.gz is not a NIfTI file"):
        describe(tmp_path / "a.nii.gz")
    with pytest.raises(MedsegError, match=r"b\.nii: the affine is singular"):
        describe(save(tmp_path / "b.nii", IMAGE, srow_x=[0, 0, 0, 0]))
