"""Splits of a cache: scans stay whole, and a file that does not fit is told from one that does."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg_core.cases import Case
from medseg_core.errors import MedsegError
from medseg_near.cli import app
from medseg_near.shapes import write_list
from medseg_near.sources import find_structures
from medseg_near.splits import read_parts, split


@pytest.fixture
def cohort(tmp_path):
    """The list of a cache: aorta and iliac vein of ten scans."""
    names = ("aorta", "iliac_vein")
    cases = [Case(f"s{n:02d}-{name}", {}, group=f"s{n:02d}") for n in range(10) for name in names]
    write_list(tmp_path / "cache", cases)
    return tmp_path / "cache"


@pytest.fixture
def write(tmp_path):
    """Writes a split file."""

    def written(**parts):
        file = tmp_path / "split.json"
        file.write_text(json.dumps({"seed": 0, "unit": "group", "train": [], "val": [], "test": [], **parts}))
        return file

    return written


def shapes_of(*scans):
    return [f"s{n:02d}-{name}" for n in scans for name in ("aorta", "iliac_vein")]


def scans_in(ids):
    return {name.split("-")[0] for name in ids}


def test_structures_of_one_scan_stay_together(cohort, tmp_path):
    parts = split(cohort, tmp_path / "out.json", val=0.1, test=0.2)
    scans = [scans_in(parts[part]) for part in ("train", "val", "test")]
    assert [len(one) for one in scans] == [7, 1, 2]  # of ten
    assert sum(len(ids) for ids in parts.values()) == 20
    assert len(set().union(*scans)) == 10


def test_what_was_split_is_read(cohort, tmp_path):
    parts = split(cohort, tmp_path / "out.json", seed=7)
    # the order of this cache is that of the names
    assert read_parts(cohort, tmp_path / "out.json") == (parts["train"], parts["val"])
    assert json.loads((tmp_path / "out.json").read_text())["unit"] == "group"


def test_another_seed_divides_otherwise_and_the_same_one_alike(cohort, tmp_path):
    one, again, other = (split(cohort, tmp_path / "out.json", seed=seed) for seed in (1, 1, 2))
    assert one == again != other


def test_a_file_may_name_scans(cohort, write):
    scans = [f"s{n:02d}" for n in range(10)]
    file = write(train=scans[:6], val=scans[6:7], test=scans[7:])
    assert read_parts(cohort, file) == (shapes_of(*range(6)), shapes_of(6))


def test_the_order_is_that_of_the_cache(cohort, write):
    file = write(train=shapes_of(*range(9))[::-1], val=shapes_of(9)[::-1])
    assert read_parts(cohort, file) == (shapes_of(*range(9)), shapes_of(9))


def test_cases_of_test_need_not_be_there(cohort, write):
    file = write(train=shapes_of(*range(10)), test=["s77-aorta"])
    assert read_parts(cohort, file) == (shapes_of(*range(10)), [])


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        (
            {"train": shapes_of(*range(10)), "val": ["s11-aorta"]},
            r"cache lacks s11-aorta of val; did you mean 's01-aorta'\?; prepare what is missing, or take it out of ",
        ),
        ({"train": shapes_of(*range(9))}, "does not say where case 's09-aorta' belongs.*; add it; a split that fits: "),
        (
            {"train": [*shapes_of(*range(9)), "s09-aorta"], "val": ["s09-iliac_vein"]},
            "'s09' is in two splits: case s09-aorta in train, case s09-iliac_vein in val.* medseg near split ",
        ),
        ({"test": shapes_of(*range(10))}, "leaves nothing to learn: no shape of .* is in its train; put some there"),
        ({"train": "s00-aorta s01-aorta"}, "cache lacks s00-aorta s01-aorta of train"),
        ({"train": [3]}, "has 3 in train.*medseg near split CACHE --out .*split.json writes one"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(cohort, write, parts, told):
    file = write(**parts)
    with pytest.raises(MedsegError, match=told) as refused:
        read_parts(cohort, file)
    assert "\n" not in str(refused.value)


def test_no_file_and_no_cache_are_told(cohort, write, tmp_path):
    with pytest.raises(MedsegError, match=r"cannot read .*gone\.json.*; medseg near split CACHE --out .* writes one"):
        read_parts(cohort, tmp_path / "gone.json")
    for call in (read_parts, split):
        with pytest.raises(MedsegError, match="is no cache of prepared shapes; make one: medseg near prepare"):
            call(tmp_path, write())
    with pytest.raises(MedsegError, match="must be shares"):
        split(cohort, tmp_path / "out.json", val=0.6, test=0.4)
    assert not (tmp_path / "out.json").exists()


def test_the_parts_of_medmnist_are_kept(tmp_path, caplog):
    """Their names do not tell which two glands are of one patient; their makers knew."""
    ball = np.zeros((3, 8, 8, 8), np.uint8)
    ball[:, 3:5, 3:5, 3:5] = 255
    np.savez_compressed(tmp_path / "adrenalmnist3d.npz", train_images=ball, val_images=ball[:1])
    write_list(tmp_path / "cache", find_structures(tmp_path / "adrenalmnist3d.npz").cases)
    with caplog.at_level("WARNING", logger="medseg_near.splits"):
        parts = split(tmp_path / "cache", tmp_path / "out.json")
    assert parts == {"train": ["train_0000", "train_0001", "train_0002"], "val": ["val_0000"], "test": []}
    assert "has parts of its own, which are kept" in caplog.text


def test_the_command_says_who_is_where(cohort, tmp_path):
    call = ["split", str(cohort), "--out", str(tmp_path / "out.json"), "--val", "0.2", "--test", "0", "--json"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    parts = json.loads(result.stdout)
    assert {part: len(ids) for part, ids in parts.items()} == {"train": 16, "val": 4, "test": 0}
    assert read_parts(cohort, tmp_path / "out.json") == (parts["train"], parts["val"])
