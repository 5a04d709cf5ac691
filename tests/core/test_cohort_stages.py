"""Stages of a cohort overlap; proven by events that a case can only see while another one is under way."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from medseg_core.cases import Case
from medseg_core.cohort import JOURNAL, Outcome, for_each, read_journal
from medseg_core.errors import MedsegError
from medseg_core.stages import Stages

CASES = [Case(id=name, files={}) for name in "abcd"]
PATIENCE = 20.0  # seconds until a test that waits in vain fails


class Steps:
    """Stages that note what they do, as "read a", and wait or fail where they are told to."""

    def __init__(self, *, waits=(), fails=()):
        self.waits, self.fails = dict(waits), dict(fails)
        self.notes, self.news = [], threading.Condition()
        self.stages = Stages(self.read, self.compute, self.write)

    def read(self, case):
        self.step("read", case)
        return case.id

    def compute(self, case, loaded):
        assert loaded == case.id
        self.step("compute", case)
        return loaded.upper()

    def write(self, case, result):
        assert result == case.id.upper()
        self.step("write", case)
        return {"written": result}

    def step(self, stage, case):
        name = f"{stage} {case.id}"
        with self.news:
            self.notes.append(name)
            self.news.notify_all()
            if name in self.waits:
                seen = self.news.wait_for(lambda: self.waits[name] in self.notes, PATIENCE)
                self.notes.append(f"{name} done" if seen else f"{name} waited in vain")
        if name in self.fails:
            raise self.fails[name]


def lines(out):
    return [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()[1:]]


def test_stages_do_each_case_and_keep_what_write_answers(tmp_path):
    assert for_each(CASES, Steps().stages, out=tmp_path) == Outcome(("a", "b", "c", "d"), (), {})
    assert read_journal(tmp_path) == {name: {"written": name.upper()} for name in "abcd"}


def test_the_next_case_is_read_while_one_is_computed(tmp_path):
    steps = Steps(waits={"compute a": "read b"})
    for_each(CASES, steps.stages, out=tmp_path)
    assert "compute a done" in steps.notes


def test_a_case_is_written_while_the_next_is_computed(tmp_path):
    steps = Steps(waits={"write a": "compute b"})
    for_each(CASES, steps.stages, out=tmp_path)
    assert "write a done" in steps.notes


def test_three_cases_are_under_way_at_once(tmp_path):
    steps = Steps(waits={"read c": "write a", "compute b": "read c", "write a": "compute b"})
    for_each(CASES, steps.stages, out=tmp_path)
    assert {"read c done", "compute b done", "write a done"} <= set(steps.notes)


def test_compute_runs_in_the_calling_thread_and_one_case_at_a_time(tmp_path):
    threads = []
    stages = Stages(
        read=lambda case: threading.get_ident(),
        compute=lambda case, loaded: (loaded, threading.get_ident()),
        write=lambda case, result: threads.append((*result, threading.get_ident())),
    )
    for_each(CASES, stages, out=tmp_path)
    assert {compute for _, compute, _ in threads} == {threading.get_ident()}
    assert all(len({read, compute, write}) == 3 for read, compute, write in threads)
    assert len(set(threads)) == 1


def test_one_case_at_most_is_read_ahead(tmp_path):
    steps = Steps()
    begun = threading.Event()

    def compute(case, loaded):
        if case.id == "a":
            begun.set()
            with steps.news:
                assert steps.news.wait_for(lambda: "read b" in steps.notes, PATIENCE)
                assert not steps.news.wait_for(lambda: "read c" in steps.notes, 0.3)
        return steps.compute(case, loaded)

    assert for_each(CASES, Stages(steps.read, compute, steps.write), out=tmp_path).done == ("a", "b", "c", "d")
    assert begun.is_set()


def test_one_result_at_most_waits_to_be_written(tmp_path):
    steps = Steps()

    def write(case, result):
        with steps.news:
            if case.id == "a":
                assert steps.news.wait_for(lambda: "compute b" in steps.notes, PATIENCE)
                assert not steps.news.wait_for(lambda: "compute c" in steps.notes, 0.3)
        return steps.write(case, result)

    assert for_each(CASES, Stages(steps.read, steps.compute, write), out=tmp_path).done == ("a", "b", "c", "d")


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_a_bad_case_costs_only_itself_in_any_stage_and_is_tried_again(tmp_path, stage):
    steps = Steps(fails={f"{stage} b": MedsegError("b is cut short; copy it again")})
    outcome = for_each(CASES, steps.stages, out=tmp_path)
    assert outcome == Outcome(("a", "c", "d"), (), {"b": "b is cut short; copy it again"})
    assert [(line["case"], line["status"]) for line in lines(tmp_path)] == [
        ("a", "done"),
        ("b", "failed"),
        ("c", "done"),
        ("d", "done"),
    ]
    later = {"read": ["compute b", "write b"], "compute": ["write b"], "write": []}[stage]
    assert not set(later) & set(steps.notes)
    again = Steps()
    assert for_each(CASES, again.stages, out=tmp_path) == Outcome(("b",), ("a", "c", "d"), {})
    assert again.notes == ["read b", "compute b", "write b"]


@pytest.mark.parametrize("stage", ["read", "compute", "write"])
def test_a_bug_in_any_stage_is_raised_when_what_was_under_way_is_written_down(tmp_path, stage):
    steps = Steps(fails={f"{stage} c": ZeroDivisionError("a bug")})
    with pytest.raises(ZeroDivisionError, match="a bug"):
        for_each(CASES, steps.stages, out=tmp_path)
    assert set(read_journal(tmp_path)) == ({"a", "b", "d"} if stage == "write" else {"a", "b"})
    assert threading.active_count() == 1 or not [
        t for t in threading.enumerate() if t.name.startswith(("read", "write"))
    ]


def test_the_line_of_a_case_is_on_the_disk_while_the_next_is_still_computed(tmp_path):
    def compute(case, loaded):
        if case.id == "b":
            until = time.monotonic() + PATIENCE
            while '"a"' not in (tmp_path / JOURNAL).read_text() and time.monotonic() < until:
                time.sleep(0.01)
            assert [line["case"] for line in lines(tmp_path)] == ["a"]
        return loaded

    stages = Stages(lambda case: None, compute, lambda case, result: None)
    assert for_each(CASES, stages, out=tmp_path).done == ("a", "b", "c", "d")


def test_no_line_stands_in_the_journal_before_the_case_is_written(tmp_path):
    def write(case, result):
        assert case.id not in {line["case"] for line in lines(tmp_path)}

    for_each(CASES, Stages(lambda case: None, lambda case, loaded: None, write), out=tmp_path)
    assert [line["case"] for line in lines(tmp_path)] == ["a", "b", "c", "d"]


def test_a_journal_that_cannot_be_written_ends_the_work_and_is_no_fault_of_the_case(tmp_path):
    def write(case, result):
        if case.id == "b":
            (tmp_path / JOURNAL).rename(tmp_path / "away")
            (tmp_path / JOURNAL).mkdir()

    with pytest.raises(MedsegError, match=r"cannot write .*journal\.jsonl"):
        for_each(CASES, Stages(lambda case: None, lambda case, loaded: None, write), out=tmp_path)


def test_volumes_are_let_go_as_soon_as_a_later_stage_has_them(tmp_path):
    """Of four volumes no more than two are there at any read: the one that is computed, and the one being read."""
    alive = set()

    class Loaded:
        def __init__(self, name):
            self.name = name
            alive.add(name)

        def __del__(self):
            alive.discard(self.name)

    counts = []

    def read(case):
        loaded = Loaded(case.id)
        counts.append(len(alive))
        return loaded

    def compute(case, loaded):
        if case.id == "b":
            raise MedsegError("b is cut short")  # whose traceback holds what compute was given
        return case.id

    for_each(CASES, Stages(read, compute, lambda case, result: None), out=tmp_path)
    assert max(counts) <= 2
    assert not alive


def test_stages_take_no_executor(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool, pytest.raises(MedsegError, match="leave the executor out"):
        for_each(CASES, Steps().stages, out=tmp_path, executor=pool)


SCRIPT = """
import os, sys, time
from pathlib import Path
import numpy as np
from medseg_core.cases import Case
from medseg_core.cohort import for_each
from medseg_core.io import write_volume
from medseg_core.stages import Stages
from medseg_core.volume import Volume

out, seconds = Path(sys.argv[1]), float(sys.argv[2])

def read(case):
    with (out.parent / f"read-{os.environ.get('RANK', '0')}.txt").open("a") as file:
        file.write(case.id + chr(10))
    return np.full((64, 64, 64), int(case.id[1:]), np.float32)

def compute(case, loaded):
    time.sleep(seconds)
    return loaded + np.random.default_rng(int(case.id[1:])).normal(size=loaded.shape).astype(np.float32)

def write(case, result):
    write_volume(Volume(result, np.eye(4)), out / f"{case.id}.nii.gz")
    return {"mean": float(result.mean())}

cases = [Case(id=f"c{n}", files={}) for n in range(6)]
outcome = for_each(cases, Stages(read, compute, write), out=out, config={"size": 64})
sys.stdout.write(f"{len(outcome.done)} {len(outcome.skipped)} {len(outcome.failed)}\\n")  # at once: two processes write
"""


def start(tmp_path, out, *, seconds=0.0, before=(sys.executable,)):
    (tmp_path / "work.py").write_text(SCRIPT)
    words = [*before, str(tmp_path / "work.py"), str(out), str(seconds)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def until_there(file, process):
    until = time.monotonic() + 3 * PATIENCE
    while not file.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert file.is_file()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the script writes when nothing disturbs it."""
    place = tmp_path_factory.mktemp("whole")
    assert start(place, place / "out").communicate()[0] == "6 0 0\n"
    return place / "out"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_cohort_leaves_whole_files_and_goes_on_to_the_same(tmp_path, whole, how):
    out = tmp_path / "one" / "out"
    out.parent.mkdir()
    process = start(tmp_path, out, seconds=0.2)
    until_there(out / "c1.nii.gz", process)
    process.send_signal(how)
    said = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode != 0
    assert said.count("the same call without --overwrite goes on") == (how != signal.SIGKILL)
    done = set(read_journal(out))
    assert "c0" in done
    assert len(done) < 6
    files = {path.name for path in out.iterdir() if path.name != JOURNAL}
    if how != signal.SIGKILL:
        assert files == {f"{case}.nii.gz" for case in done}
    (out.parent / "read-0.txt").unlink()
    assert start(tmp_path, out).communicate()[0] == f"{6 - len(done)} {len(done)} 0\n"
    assert (out.parent / "read-0.txt").read_text().split() == [f"c{n}" for n in range(6) if f"c{n}" not in done]
    written = sorted(path.name for path in whole.glob("*.nii.gz"))
    assert written == [f"c{n}.nii.gz" for n in range(6)]
    assert all((out / name).read_bytes() == (whole / name).read_bytes() for name in written)


def test_two_torchrun_processes_do_each_case_once(tmp_path):
    out = tmp_path / "one" / "out"
    out.parent.mkdir()
    words = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start(tmp_path, out, before=words)
    assert process.communicate()[0].splitlines() == ["6 0 0"] * 2
    read = [(out.parent / f"read-{rank}.txt").read_text().split() for rank in (0, 1)]
    assert read == [["c0", "c2", "c4"], ["c1", "c3", "c5"]]
    assert set(read_journal(out)) == {f"c{n}" for n in range(6)}
