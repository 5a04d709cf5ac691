"""The cache: what it holds, what costs only itself, and how the same call goes on."""

import shutil

import numpy as np
import pytest
from tests.fusion.conftest import planes

from medseg_core.cases import write_cases
from medseg_core.errors import MedsegError
from medseg_core.store import Arrays
from medseg_fusion.prepare import prepare, read_cohort
from medseg_fusion.settings import PrepareConfig
from medseg_fusion.sources import find_patients


def test_a_cache_holds_what_was_read(write, tmp_path):
    prepare(write(), tmp_path / "cache", PrepareConfig())
    (case,) = read_cohort(tmp_path / "cache")
    arrays = Arrays(case.files["arrays"])
    assert {name: str(arrays[name].dtype) for name in arrays} == {"ct": "int16", "label": "uint8", "pet": "float32"}
    assert arrays.about["home"]["shape"] == [16, 20, 4]
    assert case.notes["tumour_ml"] == pytest.approx(6 * 6 * 2 * 2 * 2 * 4 / 1000)


def test_a_bad_patient_costs_only_itself_and_the_next_call_takes_it_when_mended(write, tmp_path):
    write("p1")
    data = write("p2", PET_image=(np.full((8, 10, 4), 9e3, np.float32), np.diag([-4.0, -4, 4, 1])))
    first = prepare(data, tmp_path / "cache", PrepareConfig())
    assert (first.done, list(first.failed)) == (("p1",), ["p2"])
    assert [case.id for case in read_cohort(tmp_path / "cache")] == ["p1"]
    again = prepare(write("p2", seed=3), tmp_path / "cache", PrepareConfig())
    assert (again.done, again.skipped) == (("p2",), ("p1",))
    assert [case.id for case in read_cohort(tmp_path / "cache")] == ["p1", "p2"]


def test_other_settings_do_not_mix_with_a_cache(write, tmp_path):
    data = write()
    prepare(data, tmp_path / "cache", PrepareConfig())
    with pytest.raises(MedsegError, match="spacing_mm"):
        prepare(data, tmp_path / "cache", PrepareConfig(spacing_mm=(4.0, 4.0, 4.0)))


def test_a_folder_with_something_else_is_left_alone(write, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(MedsegError, match="is no cache of `prepare`"):
        prepare(write(), tmp_path / "mine", PrepareConfig())


def test_splits_that_pictures_bring_along_stay(draw, tmp_path):
    draw(planes(["a_slice_1"]), "train")
    prepare(draw(planes(["b_slice_1"]), "val"), tmp_path / "cache", PrepareConfig())
    assert {case.id: case.split for case in read_cohort(tmp_path / "cache")} == {"a": "train", "b": "val"}


def test_no_cache_says_how_to_make_one(tmp_path):
    with pytest.raises(MedsegError, match="medseg fusion prepare DATA --out"):
        read_cohort(tmp_path)
    (tmp_path / "p001").mkdir()
    with pytest.raises(MedsegError, match=r"medseg fusion prepare \S+ --out cache"):
        read_cohort(tmp_path)


def test_arrays_that_were_removed_or_cut_short_are_made_again(write, tmp_path):
    write("p1")
    data, cache = write("p2", seed=1), tmp_path / "cache"
    prepare(data, cache, PrepareConfig())
    shutil.rmtree(cache / "p1")
    whole = (cache / "p2" / "pet.npy").read_bytes()
    (cache / "p2" / "pet.npy").write_bytes(whole[:100])
    assert prepare(data, cache, PrepareConfig()).done == ("p1", "p2")
    assert (cache / "p2" / "pet.npy").read_bytes() == whole


def test_patients_of_the_same_names_from_elsewhere_are_made_again(write, tmp_path):
    prepare(write("p1"), tmp_path / "cache", PrepareConfig())
    before = np.array(Arrays(tmp_path / "cache" / "p1")["pet"])
    again = prepare(write("p1", seed=4), tmp_path / "cache", PrepareConfig())
    assert again.done == ("p1",)
    assert not np.array_equal(Arrays(tmp_path / "cache" / "p1")["pet"], before)


def test_a_list_of_patients_is_no_cache_and_a_cache_no_list_of_patients(write, tmp_path):
    prepare(write(), tmp_path / "cache", PrepareConfig())
    with pytest.raises(MedsegError, match="this is a cache that prepare made"):
        find_patients(tmp_path / "cache")
    write_cases(tmp_path / "cases.json", find_patients(tmp_path / "data").cases)
    with pytest.raises(MedsegError, match=r"lists patients and is no cache; make one: medseg fusion prepare"):
        read_cohort(tmp_path)
