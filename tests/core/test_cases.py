import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg_core.cases import (
    Case,
    keep_split,
    of_split,
    read_cases,
    read_split,
    split_cases,
    warned_of_training,
    write_cases,
    write_split,
)
from medseg_core.errors import MedsegError


def cohort(num: int, *, per_group: int = 1, split: str = "") -> list[Case]:
    group = "" if per_group == 1 else "p{}"
    return [Case(id=f"s{i:04}", files={}, group=group.format(i // per_group), split=split) for i in range(num)]


def counted(cases: list[Case]) -> Counter:
    return Counter(case.split for case in cases)


def test_cases_come_back_as_they_were_written(tmp_path):
    cases = [
        Case(
            id="s1",
            files={"ct": tmp_path / "s1" / "ct.nii.gz"},
            group="p1",
            split="train",
            notes={"sex": "f", "n": [1]},
        ),
        Case(id="é 2", files={"ct": Path("/elsewhere/ct.nii.gz"), "pet": tmp_path / "pet.nii"}),
    ]
    write_cases(tmp_path / "cases.json", cases)
    assert read_cases(tmp_path / "cases.json") == cases


def test_a_list_moves_with_its_files(tmp_path):
    (tmp_path / "here").mkdir()
    write_cases(tmp_path / "here" / "cases.json", [Case(id="s1", files={"ct": tmp_path / "here" / "x" / "ct.nii.gz"})])
    (tmp_path / "here").rename(tmp_path / "there")
    (case,) = read_cases(tmp_path / "there" / "cases.json")
    assert case.files == {"ct": tmp_path / "there" / "x" / "ct.nii.gz"}


def test_a_list_may_say_more_than_its_cases(tmp_path):
    write_cases(tmp_path / "cases.json", [Case("s1", {})], about={"classes": ["a"]})
    assert json.loads((tmp_path / "cases.json").read_text())["classes"] == ["a"]
    assert read_cases(tmp_path / "cases.json") == [Case("s1", {})]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "no 'cases'"),
        ('{"cases": []}', "lists no cases"),
        ('{"cases": {"id": "a"}}', "lists no cases"),
        ('{"cases": [1]}', "case 1 of .* must be an object"),
        ('{"cases": [{"id": "a"}]}', "with id and files"),
        ('{"cases": [{"id": "a", "files": {}}, {"id": 7, "files": {}}]}', "case 2 of .*: id must be a str, got 7"),
        ('{"cases": [{"id": "../a", "files": {}}]}', "cannot name a file"),
        ('{"cases": [{"id": "..", "files": {}}]}', "cannot name a file"),
        ('{"cases": [{"id": "", "files": {}}]}', "cannot name a file"),
        ('{"cases": [{"id": "a", "files": []}]}', "files must be a dict"),
        ('{"cases": [{"id": "a", "files": {"ct": null}}]}', "file 'ct' must be a path, got None"),
        ('{"cases": [{"id": "a", "files": {"ct": "a\\u0000b"}}]}', "must be a path"),
        ('{"cases": [{"id": "a", "files": {}, "split": "tset"}]}', "split 'tset'"),
        ('{"cases": [{"id": "a", "files": {}, "gruop": "p"}]}', "unknown entry 'gruop'; did you mean 'group'"),
        ('{"cases": [{"id": "a", "files": {}}, {"id": "a", "files": {}}]}', "lists case 'a' twice"),
    ],
)
def test_a_hostile_list_ends_in_one_line_that_names_it(tmp_path, text, words):
    (tmp_path / "cases.json").write_text(text)
    with pytest.raises(MedsegError, match=words) as caught:
        read_cases(tmp_path / "cases.json")
    assert "cases.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    for name in ("none.json", "bytes.json", "."):
        with pytest.raises(MedsegError, match=str(tmp_path)):
            read_cases(tmp_path / name)


def test_shares_are_those_of_the_groups():
    assert counted(split_cases(cohort(10), val=0.2, test=0.3)) == {"train": 5, "val": 2, "test": 3}
    assert counted(split_cases(cohort(100, per_group=10), val=0.2)) == {"train": 80, "val": 20}


def test_a_share_above_nothing_is_at_least_one_group():
    assert counted(split_cases(cohort(4), val=0.01, test=0.01)) == {"train": 2, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("num", "expected"),
    [(1, {"train": 1}), (2, {"train": 1, "val": 1}), (3, {"train": 1, "val": 1, "test": 1})],
)
def test_few_groups_train_first_then_validate_then_test(num, expected):
    assert counted(split_cases(cohort(num), val=0.4, test=0.4)) == expected


def test_two_scans_of_one_patient_give_nothing_to_validate_on():
    assert counted(split_cases(cohort(2, per_group=2), val=0.5)) == {"train": 2}


@given(st.integers(1, 40), st.integers(1, 5), st.floats(0, 0.5), st.floats(0, 0.49), st.integers(0, 99))
def test_no_group_is_divided_and_some_train_whatever_the_shares(num, per_group, val, test, seed):
    cases = split_cases(cohort(num, per_group=per_group), val=val, test=test, seed=seed)
    places = {}
    for case in cases:
        assert places.setdefault(case.unit, case.split) == case.split
    assert counted(cases)["train"] > 0
    assert all(case.split for case in cases)


def test_the_order_of_the_cases_does_not_matter():
    cases = cohort(30, per_group=3)
    shuffled = random.Random(0).sample(cases, len(cases))
    first = {case.id: case.split for case in split_cases(cases, val=0.2, test=0.2)}
    assert first == {case.id: case.split for case in split_cases(shuffled, val=0.2, test=0.2)}
    assert [case.id for case in split_cases(shuffled, val=0.2)] == [case.id for case in shuffled]


def test_another_seed_is_another_split_and_the_same_seed_the_same_in_another_process():
    def held_out(seed: int) -> list[str]:
        return [case.id for case in split_cases(cohort(50), val=0.2, seed=seed) if case.split == "val"]

    assert held_out(1) != held_out(2)
    code = (
        "from medseg_core.cases import *; cases = [Case(id=f's{i:04}', files={}) for i in range(50)];"
        "print([c.id for c in split_cases(cases, val=0.2, seed=1) if c.split == 'val'])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(held_out(1))


def test_another_case_moves_few():
    old, new = ({case.id: case.split for case in split_cases(cohort(num), val=0.2)} for num in (100, 101))
    assert sum(old[name] != new[name] for name in old) <= 2


def test_a_split_that_all_bring_along_is_kept():
    cases = [*cohort(3, split="train"), Case(id="t", files={}, split="test")]
    assert split_cases(cases, val=0.5) == cases


def test_a_split_that_some_bring_along_is_refused():
    with pytest.raises(MedsegError, match="3 of 4 cases have a split and t has none"):
        split_cases([*cohort(3, split="train"), Case(id="t", files={})], val=0.5)


def test_a_given_split_that_divides_a_patient_is_refused():
    cases = [Case(id="a", files={}, group="p", split="train"), Case(id="b", files={}, group="p", split="test")]
    with pytest.raises(MedsegError, match="'p' is in two splits: case a in train, case b in test"):
        split_cases(cases, val=0.5)


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0), (0.5, 0.5), (1, 0), (float("nan"), 0)])
def test_shares_that_leave_nothing_to_train_on_are_refused(val, test):
    with pytest.raises(MedsegError, match="shares"):
        split_cases(cohort(10), val=val, test=test)


def test_a_split_file_gives_back_the_split(tmp_path):
    cases = split_cases(cohort(12, per_group=2), val=0.2, test=0.2, seed=7)
    write_split(tmp_path / "split.json", cases, seed=7)
    content = json.loads((tmp_path / "split.json").read_text())
    assert set(content) == {"seed", "unit", "train", "val", "test"}
    assert (content["seed"], content["unit"], len(content["val"])) == (7, "group", 2)
    assert read_split(tmp_path / "split.json", cohort(12, per_group=2)) == cases
    assert read_split(tmp_path / "split.json", cohort(4, per_group=2)) == cases[:4]


def test_a_split_file_that_does_not_fit_is_told_with_the_case(tmp_path):
    path = tmp_path / "split.json"
    for content, words in (
        ({"train": ["s0000"], "val": [], "test": []}, "does not say where case 's0001' belongs; did you mean 's0000'"),
        ({"train": ["s0000", "s0001"], "val": ["s0000"], "test": []}, "'s0000' in train and in val"),
        ({"train": [1], "val": [], "test": []}, "has 1 in train"),
        ({"train": "s0000", "val": ["s0001"], "test": 7}, "has 7 in test"),
        ({"train": ["s0000"], "val": []}, "no 'test'"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(MedsegError, match=words):
            read_split(path, cohort(2))
    path.write_text(json.dumps({"train": ["s0000"], "val": ["s0001"], "test": []}))
    with pytest.raises(MedsegError, match="'p0' is in two splits"):
        read_split(path, cohort(2, per_group=2))


def test_ids_and_names_that_no_disk_takes_are_refused(tmp_path):
    path = tmp_path / "cases.json"
    for name in ("\x1b[31m", "a\x00", "a\x85b", "\u2028", "\ud800", "é" * 101, "a" * 201):
        with pytest.raises(MedsegError, match="cannot name a file") as caught:
            Case(id=name, files={})
        assert str(caught.value).isprintable()
        path.write_text(json.dumps({"cases": [{"id": name, "files": {}}]}))
        with pytest.raises(MedsegError):
            read_cases(path)
    assert Case(id="CT\u00a0é" * 20, files={}).id
    with pytest.raises(MedsegError, match="no UTF-8"):
        write_cases(path, [Case(id="a", files={"ct": tmp_path / "\udce9.nii"})])


def test_ids_that_are_one_file_on_many_disks_are_refused(tmp_path):
    for other in ("S1", "é", "E\u0301"):
        cases = [{"id": name, "files": {}} for name in ("s1", "É", other)]
        (tmp_path / "cases.json").write_text(json.dumps({"cases": cases}))
        with pytest.raises(MedsegError, match="one file on many disks"):
            read_cases(tmp_path / "cases.json")


def test_a_key_that_stands_there_twice_is_no_slip(tmp_path):
    (tmp_path / "split.json").write_text('{"train": ["s0000"], "val": [], "test": [], "val": ["s0000"]}')
    with pytest.raises(MedsegError, match="'val' stands there twice"):
        read_split(tmp_path / "split.json", cohort(1))


def test_a_list_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "cases.json").write_text('{"cases": [{"id": "a", "files": {}}]}', encoding="utf-8-sig")
    assert [case.id for case in read_cases(tmp_path / "cases.json")] == ["a"]


def test_the_split_of_a_run_stays_what_it_was_begun_with(tmp_path):
    cases = [Case("a", {}, split="train"), Case("b", {}, split="val")]
    keep_split(tmp_path / "split.json", cases, seed=1)
    keep_split(tmp_path / "split.json", cases, seed=1)
    begun = (tmp_path / "split.json").read_bytes()
    with pytest.raises(MedsegError, match="has another split, or other cases"):
        keep_split(tmp_path / "split.json", cohort(2, split="train"), seed=1)
    assert (tmp_path / "split.json").read_bytes() == begun


PARTS = ("train", "val", "test")


@pytest.fixture
def ran(tmp_path):
    """A run that was trained on a, validated on b and shall be tested on c; and those cases with one more."""
    write_split(tmp_path / "split.json", [Case(n, {}, split=s) for n, s in zip("abc", PARTS, strict=True)], seed=1)
    return tmp_path, [Case(name, {}) for name in "abcd"]


def test_a_run_knows_which_cases_are_in_a_part_and_what_it_was_trained_on(ran):
    run, cases = ran
    for part, name in zip(PARTS, "abc", strict=True):
        chosen, trained_on = of_split(cases, run / "best.safetensors", part)
        assert [case.id for case in chosen] == [name]
        assert trained_on == {"a"}
    assert len(of_split(cases, run, "all")[0]) == 4


def test_a_part_that_is_unknown_or_empty_is_refused_with_what_there_is(ran):
    run, cases = ran
    with pytest.raises(MedsegError, match=r"no split 'tets'.*did you mean 'test'"):
        of_split(cases, run, "tets")
    with pytest.raises(MedsegError, match=r"of 1 cases .* \(1 in train, 1 in val, 1 in test\); try --split all"):
        of_split(cases[3:], run, "test")


def test_scores_of_cases_that_were_trained_on_come_with_a_warning(ran):
    _, cases = ran
    assert warned_of_training(cases, {"a", "z"})[0].startswith("Trained on a:")
    assert warned_of_training(cases[1:], {"a"}) == []


def test_scores_of_weights_of_unknown_training_say_so(ran, tmp_path):
    _, cases = ran
    (tmp_path / "split.json").unlink()
    chosen, trained_on = of_split(cases, tmp_path / "elsewhere.safetensors", "all")
    assert "is not known" in warned_of_training(chosen, trained_on)[0]
