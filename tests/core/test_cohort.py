import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from medseg_core import cohort
from medseg_core.cases import Case
from medseg_core.cohort import JOURNAL, Outcome, answers, clear_journal, for_each, read_journal
from medseg_core.errors import MedsegError

CASES = [Case(id=name, files={}) for name in "abcd"]


@dataclass(frozen=True)
class Settings:
    size: int = 256
    spacing_mm: tuple[float, ...] = (1.5, 1.5)


def size(case: Case) -> dict[str, int]:
    return {"size": ord(case.id)}


def bad_b(case: Case) -> dict[str, int]:
    if case.id == "b":
        raise MedsegError("b.nii.gz is cut short; copy it again")
    return size(case)


def buggy_c(case: Case) -> dict[str, int]:
    if case.id == "c":
        raise ZeroDivisionError("a bug")
    return size(case)


def test_what_work_answers_stands_in_the_journal(tmp_path):
    assert for_each(CASES, size, out=tmp_path) == Outcome(("a", "b", "c", "d"), (), {})
    assert read_journal(tmp_path) == {name: {"size": ord(name)} for name in "abcd"}


def test_work_that_answers_nothing_is_done_too(tmp_path):
    assert for_each(CASES, lambda case: None, out=tmp_path / "new" / "folder").done == ("a", "b", "c", "d")
    assert read_journal(tmp_path / "new" / "folder") == {"a": {}, "b": {}, "c": {}, "d": {}}


def test_what_is_done_is_not_done_again(tmp_path):
    seen = []
    for_each(CASES[:2], seen.append, out=tmp_path)
    outcome = for_each(CASES, seen.append, out=tmp_path)
    assert [case.id for case in seen] == ["a", "b", "c", "d"]
    assert outcome == Outcome(("c", "d"), ("a", "b"), {})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_case_costs_only_itself_and_is_tried_again(tmp_path, workers):
    with ThreadPoolExecutor(2) as pool:
        executor = pool if workers else None
        outcome = for_each(CASES, bad_b, out=tmp_path, executor=executor)
        assert sorted(outcome.done) == ["a", "c", "d"]
        assert outcome.failed == {"b": "b.nii.gz is cut short; copy it again"}
        assert set(read_journal(tmp_path)) == {"a", "c", "d"}
        assert for_each(CASES, size, out=tmp_path, executor=executor) == Outcome(("b",), ("a", "c", "d"), {})
    assert set(read_journal(tmp_path)) == {"a", "b", "c", "d"}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_is_raised_when_what_ran_is_written_down(tmp_path, workers):
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError, match="a bug"):
        for_each(CASES, buggy_c, out=tmp_path, executor=pool if workers else None)
    assert {"a", "b"} <= set(read_journal(tmp_path)) < {"a", "b", "c", "d"} | {"c"}
    assert "c" not in read_journal(tmp_path)


def test_what_still_runs_beside_a_bug_is_kept(tmp_path):
    together = threading.Barrier(2)

    def work(case: Case) -> dict[str, int]:
        together.wait(10)
        if case.id == "a":
            raise ZeroDivisionError
        time.sleep(0.05)
        return size(case)

    with ThreadPoolExecutor(2) as pool, pytest.raises(ZeroDivisionError):
        for_each(CASES[:2], work, out=tmp_path, executor=pool)
    assert set(read_journal(tmp_path)) == {"b"}


def test_a_line_is_on_the_disk_before_the_next_case_begins(tmp_path):
    lines = []

    def work(case: Case) -> None:
        lines.append(len((tmp_path / JOURNAL).read_text().splitlines()))

    for_each(CASES, work, out=tmp_path)
    assert lines == [1, 2, 3, 4]  # the settings stand first


def test_a_line_that_a_crash_left_half_written_is_done_again(tmp_path):
    for_each(CASES[:3], size, out=tmp_path)
    whole = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(whole[:-10])
    assert for_each(CASES[:3], size, out=tmp_path) == Outcome(("c",), ("a", "b"), {})
    assert (tmp_path / JOURNAL).read_bytes() == whole


def test_a_crash_before_the_first_line_leaves_a_folder_that_can_be_used(tmp_path):
    (tmp_path / JOURNAL).write_text('{"format": 1, "con')
    assert for_each(CASES, size, out=tmp_path, config={"a": 1}).done == ("a", "b", "c", "d")


def test_a_folder_begun_with_other_settings_is_refused_and_the_setting_named(tmp_path):
    for_each(CASES[:1], size, out=tmp_path, config=Settings())
    before = (tmp_path / JOURNAL).read_bytes()
    with pytest.raises(MedsegError, match="begun with other settings: size was 256, now 128"):
        for_each(CASES, size, out=tmp_path, config=Settings(size=128))
    with pytest.raises(MedsegError, match="other settings"):
        for_each(CASES, size, out=tmp_path)
    assert (tmp_path / JOURNAL).read_bytes() == before
    assert for_each(CASES, size, out=tmp_path, config=Settings()).skipped == ("a",)
    assert for_each(CASES, size, out=tmp_path, config={"spacing_mm": [1.5, 1.5], "size": 256}).done == ()


@pytest.mark.parametrize("text", ["hello\n", "{}\n", '{"format": 1, "config": null}\n[]\n', '{"format": 1}\n', "1\n"])
def test_a_foreign_journal_is_refused(tmp_path, text):
    (tmp_path / JOURNAL).write_text(text)
    with pytest.raises(MedsegError, match=r"journal\.jsonl is no journal of ours"):
        for_each(CASES, size, out=tmp_path)


def test_two_cases_of_one_name_are_refused(tmp_path):
    with pytest.raises(MedsegError, match="two cases are called 'a'"):
        for_each([*CASES, CASES[0]], size, out=tmp_path)


def test_numbers_of_numpy_and_paths_are_written_plainly_and_other_answers_are_a_bug(tmp_path):
    for_each(CASES[:1], lambda case: {"n": np.int64(3), "x": np.float32(0.5), "at": Path("x")}, out=tmp_path)
    assert read_journal(tmp_path) == {"a": {"n": 3, "x": 0.5, "at": "x"}}
    with pytest.raises(TypeError, match="ndarray"):
        for_each(CASES, lambda case: {"n": np.zeros(3)}, out=tmp_path)


def test_a_full_disk_is_told(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(MedsegError, match="File too large"):
            for_each(CASES, lambda case: {"long": "x" * 300}, out=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert set(read_journal(tmp_path)) == {"a"}


WORKER = """
import os, signal
def work(case):
    if case.id == "c":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"pid": os.getpid()}
"""


def test_a_killed_worker_ends_in_one_line_and_keeps_what_is_done(tmp_path, monkeypatch):
    (tmp_path / "killing.py").write_text(WORKER)
    monkeypatch.syspath_prepend(tmp_path)
    import killing

    words = pytest.raises(MedsegError, match=r"worker process was killed.*fewer workers")
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool, words:
        for_each(CASES[:3], killing.work, out=tmp_path / "out", executor=pool)
    assert set(read_journal(tmp_path / "out")) == {"a", "b"}
    assert read_journal(tmp_path / "out")["a"]["pid"] != os.getpid()


def test_the_journal_is_lines_of_json(tmp_path):
    for_each(CASES[:2], bad_b, out=tmp_path, config={"size": 3})
    lines = [json.loads(line) for line in (tmp_path / JOURNAL).read_text().splitlines()]
    assert lines == [
        {"format": 1, "config": {"size": 3}},
        {"case": "a", "status": "done", "answer": {"size": 97}},
        {"case": "b", "status": "failed", "error": "b.nii.gz is cut short; copy it again"},
    ]


def test_what_another_process_did_is_not_done_again(tmp_path, monkeypatch):
    with monkeypatch.context() as second:
        second.setenv("RANK", "1")
        second.setenv("WORLD_SIZE", "2")
        second.setattr(cohort, "gather", lambda value: [value])
        assert for_each(CASES, size, out=tmp_path).done == ("b", "d")
    outcome = for_each(CASES, size, out=tmp_path)
    assert (outcome.done, outcome.skipped) == (("a", "c"), ("b", "d"))
    assert read_journal(tmp_path) == {name: {"size": ord(name)} for name in "abcd"}


def test_answers_come_sorted_by_case_whoever_was_first(tmp_path):
    for_each(CASES[2:], size, out=tmp_path)
    for_each(CASES, size, out=tmp_path)
    assert [case for case, _ in answers(tmp_path)] == ["a", "b", "c", "d"]


def test_a_forgotten_case_is_done_again_and_no_other(tmp_path, monkeypatch):
    for rank in (0, 1):
        monkeypatch.setattr(cohort, "place", lambda rank=rank: (rank, 2))
        monkeypatch.setattr(cohort, "share", lambda cases, rank=rank: cases[rank::2])
        monkeypatch.setattr(cohort, "gather", lambda value: [value])
        for_each(CASES, size, out=tmp_path)
    monkeypatch.undo()
    cohort.forget(tmp_path, {"b", "c", "z"})
    assert list(read_journal(tmp_path)) == ["a", "d"]
    assert for_each(CASES, size, out=tmp_path) == Outcome(("b", "c"), ("a", "d"), {})


def test_a_cleared_journal_lets_all_be_done_again(tmp_path):
    for_each(CASES, size, out=tmp_path)
    clear_journal(tmp_path)
    assert for_each(CASES, size, out=tmp_path).done == ("a", "b", "c", "d")


SLEEPING = """
import os, sys, time
from pathlib import Path
from medseg_core.cases import Case
from medseg_core.cohort import for_each, processes

def work(case):
    Path(sys.argv[1], case.id).write_text(str(os.getpid()))
    time.sleep(300)

if __name__ == "__main__":
    with processes(2) as pool:
        for_each([Case(id=name, files={}) for name in "ab"], work, out=Path(sys.argv[1], "out"), executor=pool)
"""


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.is_file() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def within(seconds, condition) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.05)
    return condition()


def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    (tmp_path / "sleeping.py").write_text(SLEEPING)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "sleeping.py"), str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        files = [tmp_path / name for name in "ab"]
        assert within(60, lambda: all(file.is_file() and file.read_text() for file in files))
    finally:
        parent.kill()
        parent.wait()
    pids = [int(file.read_text()) for file in files]
    try:
        assert within(20, lambda: not any(lives(pid) for pid in pids))
    finally:
        for pid in filter(lives, pids):
            os.kill(pid, signal.SIGKILL)


def test_a_case_whose_file_changed_is_done_again_and_no_other(tmp_path, caplog):
    files = {name: tmp_path / name for name in "ab"}
    for file in files.values():
        file.write_text("1")
    cases = [Case(name, {"image": file}) for name, file in files.items()]
    read = lambda case: {"text": case.files["image"].read_text()}  # noqa: E731
    for_each(cases, read, out=tmp_path / "out", again=True)
    files["b"].write_text("two")
    again = for_each(cases, read, out=tmp_path / "out", again=True)
    assert (again.done, again.skipped) == (("b",), ("a",))
    assert read_journal(tmp_path / "out")["b"] == {"text": "two"}
    assert "b: its files are others than those it was done with" in caplog.text


def test_a_case_whose_folder_changed_is_done_again(tmp_path):
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_text("1")
    cases = [Case("a", {"ct": tmp_path / "series"})]
    for_each(cases, size, out=tmp_path / "out", again=True)
    assert for_each(cases, size, out=tmp_path / "out", again=True).skipped == ("a",)
    (tmp_path / "series" / "2.dcm").write_text("1")
    assert for_each(cases, size, out=tmp_path / "out", again=True).done == ("a",)


def test_a_case_whose_files_are_gone_stays_done(tmp_path):
    (tmp_path / "image").write_text("1")
    cases = [Case("a", {"image": tmp_path / "image"})]
    for_each(cases, size, out=tmp_path / "out", again=True)
    (tmp_path / "image").unlink()
    assert for_each(cases, size, out=tmp_path / "out", again=True).skipped == ("a",)


def test_files_that_changed_are_left_where_nobody_asked(tmp_path):
    (tmp_path / "image").write_text("1")
    cases = [Case("a", {"image": tmp_path / "image"})]
    for_each(cases, size, out=tmp_path / "out")
    (tmp_path / "image").write_text("two")
    assert for_each(cases, size, out=tmp_path / "out").skipped == ("a",)
