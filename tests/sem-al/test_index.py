"""The index: what it holds of real and of made-up micrographs, and that a bad one costs no other."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from medseg_core.errors import MedsegError
from medseg_core.io import read_picture, write_picture, write_text
from medseg_core.volume import Picture
from medseg_sem_al.index import build_index, read_index, statistics
from medseg_sem_al.phantom import phantom
from medseg_sem_al.settings import IndexConfig

SUPER = {"matrix": "grey", "secondary": "#0000ff", "tertiary": "#ff0000"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return phantom(tmp_path_factory.mktemp("sem") / "data", num_images=12, num_labelled=9, size=64)


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / "data")


def errors(index):
    return {finding["case"]: finding["text"] for finding in index.findings if finding["severity"] == "error"}


def test_shared_precipitates_are_read_by_their_colours(data, tmp_path):
    write_text(tmp_path / "classes.json", json.dumps(SUPER))
    index = build_index(data / "sem" / "super", IndexConfig(group=r"spot\d+"), colours=tmp_path / "classes.json")
    assert (len(index.cases), index.findings[0]["severity"]) == (14, "note")
    case = index.cases[0]
    drawn = read_picture(case.files["label"]).pixels.astype(int)
    blue = (drawn[..., 2] - drawn[..., 0] == 255).mean()
    assert case.notes["shares"][1] == pytest.approx(blue, abs=1e-6)
    assert (index.label(case) == 1).mean() == pytest.approx(blue)


def test_shared_precipitates_without_a_table_are_refused(data):
    with pytest.raises(MedsegError, match=r"185 of them grey, and #0000ff 49.4%, #ff0000 2.1%"):
        build_index(data / "sem" / "super", IndexConfig())


def test_shared_axons_are_read_by_their_greys(data):
    index = build_index(data / "sem" / "axon", IndexConfig())
    assert index.classes.codes == {0: 0, 127: 1, 255: 2}
    assert statistics(index)[0]["size"] == [[756, 737], [771, 822]]  # rows and columns


def test_a_split_never_divides_a_specimen_of_the_shared_oxides(data):
    index = build_index(data / "sem" / "ebc", IndexConfig())
    splits = {}
    for case in index.cases:
        splits.setdefault(case.id[:8], set()).add(case.split)
    assert len(splits) > 5
    assert all(len(parts) == 1 for parts in splits.values())


def test_classes_have_the_true_shares(made):
    truth = json.loads((made / "truth.json").read_text())["areas"]
    index = build_index(made, IndexConfig())
    for case in index.cases:
        if "shares" in case.notes:
            areas = np.array(list(truth[case.id].values()))
            np.testing.assert_allclose(case.notes["shares"], areas / areas.sum(), atol=1e-6)


def test_the_pool_is_in_no_split(made):
    index = build_index(made, IndexConfig())
    assert [case.split == "" for case in index.cases] == ["label" not in case.files for case in index.cases]
    assert sum(case.split == "" for case in index.cases) == 3


def test_an_index_is_read_as_it_was_written_and_moves_with_its_files(root, tmp_path):
    index = build_index(root, IndexConfig())
    index.write(root / "index.json")
    assert read_index(root / "index.json") == index
    root.rename(tmp_path / "moved")
    moved = read_index(tmp_path / "moved" / "index.json")
    np.testing.assert_array_equal(
        moved.image(moved.cases[0]), read_picture(moved.cases[0].files["image"]).pixels / np.float32(255)
    )


def test_a_list_that_is_no_index_is_refused(tmp_path):
    write_text(tmp_path / "cases.json", '{"cases": [{"id": "a", "files": {}}]}')
    with pytest.raises(MedsegError, match="has no 'rule', so it is no index"):
        read_index(tmp_path / "cases.json")


def test_what_cannot_be_used_is_left_out_and_costs_no_other(root):
    (root / "raw" / "s00_000.tif").write_bytes(b"no picture")
    write_picture(Picture(np.zeros((5, 7), np.uint8)), root / "labeled" / "s00_001.png")
    odd = read_picture(root / "labeled" / "s00_002.png").pixels.copy()
    odd[:2, :3] = (10, 0, 250)
    write_picture(Picture(odd), root / "labeled" / "s00_002.png")
    write_text(root / "classes.json", json.dumps({"carbon": "#0000ff", "SE": "#00ffff", "AM": "#ff7e7e"}))
    index = build_index(root, IndexConfig(), colours=root / "classes.json")
    assert len(index.cases) == 9
    told = errors(index)
    assert sorted(told) == ["s00_000", "s00_001", "s00_002"]
    assert "#0a00fa in 6 pixels, nearest is carbon (#0000ff)" in told["s00_002"]


def test_a_mask_that_was_changed_since_is_no_label(root):
    index = build_index(root, IndexConfig())
    write_picture(Picture(np.full((64, 64, 3), (1, 2, 3), np.uint8)), root / "labeled" / "s00_000.png")
    with pytest.raises(MedsegError, match=r"s00_000.png: unknown values #010203 in 4096 pixels"):
        index.label(index.cases[0])


def test_nearly_equal_pictures_of_two_groups_become_one_group(root):
    pixels = read_picture(root / "raw" / "s00_000.tif").pixels
    write_picture(Picture(np.roll(pixels, 1, 0)), root / "raw" / "twin.tif")
    shutil.copy(root / "labeled" / "s00_000.png", root / "labeled" / "twin.png")
    index = build_index(root, IndexConfig())
    groups = {case.id: case.group for case in index.cases}
    assert groups["twin"] == groups["s00_000"] == groups["s00_001"] != groups["s01_000"]
    assert any("nearly the same picture: s00_000 and twin" in finding["text"] for finding in index.findings)


def test_an_index_does_not_depend_on_where_it_is_made(root, tmp_path, monkeypatch):
    build_index(root, IndexConfig()).write(root / "one.json")
    monkeypatch.chdir(root)
    build_index(type(root)("."), IndexConfig()).write(root / "two.json")
    assert (root / "one.json").read_text() == (root / "two.json").read_text()


@pytest.mark.parametrize("split", [(0.7, 0.2), (0.5, 0.2, 0.1), (0.0, 0.5, 0.5)])
def test_shares_that_are_no_split_are_refused(made, split):
    with pytest.raises(MedsegError, match="must be three shares that add up to 1"):
        build_index(made, IndexConfig(split=split))


def test_statistics_are_over_pixels(root):
    rows = statistics(build_index(root, IndexConfig()))
    pixels = np.concatenate([read_picture(path).pixels.ravel() / 255 for path in sorted((root / "raw").glob("*.tif"))])
    assert (rows[0]["images"], rows[0]["labelled"], rows[0]["pixel_nm"]) == (12, 9, [20.0])
    assert rows[0]["mean"] == pytest.approx(pixels.mean(), abs=1e-4)
    assert rows[0]["std"] == pytest.approx(pixels.std(), abs=1e-4)


def test_a_picture_that_was_cut_since_is_refused(tmp_path):
    root = phantom(tmp_path / "data", num_images=3, num_labelled=3, size=64)
    index = build_index(root, IndexConfig())
    file = index.cases[0].files["image"]
    with Image.open(file) as picture:
        small = picture.crop((0, 0, 60, 64))
    small.save(file)
    with pytest.raises(MedsegError, match=r"60 pixels wide and 64 high .* was 64 and 64 .* index again"):
        index.image(index.cases[0])


def test_shares_are_of_what_is_labelled(tmp_path):
    mask = np.full((20, 20), 9, np.uint8)  # 9 has no label
    mask[:2, :15], mask[2, :10] = 0, 1
    for name, pixels in (("a", mask), ("b", np.full_like(mask, 9)), ("c", np.ones_like(mask))):
        grey = np.random.default_rng(ord(name)).integers(0, 256, (20, 20), np.uint8)
        write_picture(Picture(grey), tmp_path / "data" / "raw" / f"{name}.png")
        write_picture(Picture(pixels), tmp_path / "data" / "labeled" / f"{name}.png")
    write_text(tmp_path / "classes.json", json.dumps({"pore": 0, "rest": 1, "unlabelled": 9}))
    index = build_index(tmp_path / "data", IndexConfig(group="image"), colours=tmp_path / "classes.json")
    partly, never, whole = index.cases
    assert (partly.notes["shares"], partly.notes["labelled"]) == ([0.75, 0.25], 0.1)
    assert ("label" in never.files, never.split) == (False, "")  # in the pool
    assert "labelled" not in whole.notes
    assert statistics(index)[0]["shares"] == pytest.approx({"pore": 30 / 440, "rest": 410 / 440})
