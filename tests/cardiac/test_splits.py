import json
from itertools import chain

import nibabel as nib
import numpy as np
import pytest

from medseg_cardiac.splits import split
from medseg_core.cases import Case, read_split, write_cases
from medseg_core.errors import MedsegError


@pytest.fixture
def cohort(tmp_path):
    """A folder of as many patients as asked for."""

    def make(num: int):
        for k in range(num):
            path = tmp_path / f"data/images/cmr/p{k:02d}/slice_00.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(np.zeros((4, 4, 1, 3), np.int16), np.eye(4)), path)
        return tmp_path / "data"

    return make


@pytest.mark.parametrize(("num", "sizes"), [(3, (1, 1, 1)), (4, (2, 1, 1)), (20, (14, 3, 3))])
def test_patients_are_shared_by_the_ratios_and_each_part_has_one_at_least(tmp_path, cohort, num, sizes):
    lists = split(cohort(num), tmp_path / "splits.json")
    assert tuple(len(lists[part]) for part in ("train", "val", "test")) == sizes
    assert sorted(chain.from_iterable(lists.values())) == [f"p{k:02d}" for k in range(num)]


def test_the_file_is_what_core_reads_and_the_lists_lie_beside_it(tmp_path, cohort):
    lists = split(cohort(4), tmp_path / "out/splits.json")
    content = json.loads((tmp_path / "out/splits.json").read_text())
    assert {"seed": 42, "unit": "group", **lists} == content
    for part, names in lists.items():
        assert (tmp_path / f"out/{part}_cases.txt").read_text().split() == names
    cases = read_split(tmp_path / "out/splits.json", [Case(name, {}) for name in lists["val"]])
    assert [case.split for case in cases] == ["val"]


def test_a_seed_gives_the_same_parts_again_and_another_gives_others(tmp_path, cohort):
    data = cohort(12)
    one, again, other = (split(data, tmp_path / "s.json", seed=seed) for seed in (1, 1, 2))
    assert one == again != other


def test_scans_of_one_patient_stay_together(tmp_path, cohort):
    data = cohort(6)
    write_cases(data / "cases.json", [Case(f"p{k:02d}", {}, group="ab"[k % 2]) for k in range(6)])
    lists = split(data, tmp_path / "s.json", ratios=(0.5, 0, 0.5))
    assert sorted([lists["train"], lists["test"]]) == [["p00", "p02", "p04"], ["p01", "p03", "p05"]]
    assert lists["val"] == []


@pytest.mark.parametrize(
    ("num", "ratios", "said"),
    [
        (2, (0.7, 0.15, 0.15), r"2 patients cannot fill 3 parts.*--ratios 0\.5,0,0\.5"),
        (1, (0.5, 0, 0.5), "1 patients cannot fill 2 parts.*--ratios 1,0,0"),
        (3, (0.7, 0.2, 0.2), r"1\.1 together and must be 1; try 0\.636,0\.182,0\.182"),
        (3, (0.7, 0.3), "must be shares of train"),
        (3, (0, 0.5, 0.5), "must be shares of train"),
        (3, (1.5, -0.25, -0.25), "must be shares of train"),
    ],
)
def test_what_cannot_be_split_is_said_with_the_fix_and_nothing_is_written(tmp_path, cohort, num, ratios, said):
    with pytest.raises(MedsegError, match=said):
        split(cohort(num), tmp_path / "s.json", ratios=ratios)
    assert not (tmp_path / "s.json").exists()


def test_a_patient_that_cannot_be_read_is_in_no_part(tmp_path, cohort, caplog):
    data = cohort(3)
    (data / "images/cmr/broken.nii.gz").write_bytes(b"nothing")
    assert "broken" not in [*chain.from_iterable(split(data, tmp_path / "s.json").values())]
    assert "broken" in caplog.text


def test_the_three_real_patients_are_one_each(data, tmp_path):
    lists = split(data / "cmr_cine", tmp_path / "s.json")
    assert [len(names) for names in lists.values()] == [1, 1, 1]
