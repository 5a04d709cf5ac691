import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from medseg_core import run as run_module
from medseg_core.errors import MedsegError
from medseg_core.run import RunFolder, is_held, read_history
from medseg_core.settings import TrainConfig

CONFIG = TrainConfig(epochs=3)
ROW = {"epoch": 1, "step": 3, "lr": 0.1, "train_loss": 0.1 + 0.2}


def begun(path):
    """A run with a state, as a training that broke off leaves it."""
    run = RunFolder.open(path, CONFIG)
    run.state.parent.mkdir()
    run.state.touch()
    return run


def test_the_circumstances_say_how_many_processes_and_when(tmp_path):
    RunFolder.open(tmp_path / "run", CONFIG)
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["processes"] == 1
    assert about["seed"] == 42
    assert abs(time.mktime(time.strptime(about["started"][:19], "%Y-%m-%dT%H:%M:%S")) - time.time()) < 600


def test_the_commit_is_the_one_checked_out_and_says_where_code_was_changed(tmp_path, monkeypatch):
    def git(*words):
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "tag.gpgsign=false", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    def told():
        path = tmp_path / "runs" / str(time.monotonic_ns())
        RunFolder.open(path, CONFIG)
        return json.loads((path / "run.json").read_text())["commit"]

    (tmp_path / "run.py").touch()
    (tmp_path / ".gitignore").write_text("runs\n")
    monkeypatch.setattr(run_module, "__file__", str(tmp_path / "run.py"))
    assert told() is None
    git("init")
    git("add", ".gitignore")
    git("commit", "-m", "something else")
    assert told() is None  # installed within a checkout that it is no part of
    git("add", "run.py")
    git("commit", "-m", "the code")
    git("commit", "--allow-empty", "-m", "another file")
    git("tag", "v1")
    head = git("rev-parse", "HEAD").strip()
    assert told() == head
    (tmp_path / "run.py").write_text("changed")
    assert told() == f"{head}-dirty"


def test_a_run_that_goes_on_keeps_the_date_of_its_beginning(tmp_path):
    begun(tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    about = json.loads(file.read_text())
    assert "resumed" not in about
    file.write_text(json.dumps({**about, "started": "2020-02-02T02:02:02+0000"}))
    RunFolder.open(tmp_path / "run", CONFIG, resume=True).record(CONFIG)
    again = json.loads(file.read_text())
    assert again["started"] == "2020-02-02T02:02:02+0000"
    assert again["resumed"] >= about["started"]


@pytest.mark.parametrize("text", ["", '{"lr": 0.00', "[1, 2]", "\xff", "[" * 100_000])
def test_damaged_settings_are_one_error_that_names_the_file(tmp_path, text):
    begun(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(MedsegError, match=r"cannot read .*config\.json") as told:
        RunFolder.open(tmp_path / "run", CONFIG, resume=True)
    assert "\n" not in str(told.value)
    assert (tmp_path / "run" / "config.json").read_text(encoding="latin-1") == text


def test_going_on_and_replacing_at_once_is_refused(tmp_path):
    run = begun(tmp_path / "run")
    with pytest.raises(MedsegError, match="give one of them"):
        RunFolder.open(tmp_path / "run", CONFIG, resume=True, overwrite=True)
    assert run.state.is_file()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_where_the_folder_should_be_is_left_alone(tmp_path, overwrite):
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(MedsegError, match="is a file"):
        RunFolder.open(tmp_path / "run", CONFIG, overwrite=overwrite)
    assert (tmp_path / "run").read_text() == "in the way"


def test_numbers_are_logged_unrounded_and_what_is_no_number_as_null(tmp_path):
    run = RunFolder.open(tmp_path / "run", CONFIG)
    run.append("metrics.jsonl", {**ROW, "val_dice": float("nan")})
    line = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert line == '{"epoch": 1, "step": 3, "lr": 0.1, "train_loss": 0.30000000000000004, "val_dice": null}\n'


def test_a_log_on_a_full_disk_is_one_error(tmp_path):
    run = RunFolder.open(tmp_path / "run", CONFIG)
    (tmp_path / "run" / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(MedsegError, match=r"cannot write .*metrics\.jsonl: No space left"):
        run.append("metrics.jsonl", ROW)


@pytest.mark.parametrize("name", ["metrics.jsonl", "timings.jsonl", "train.log"])
@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_a_killed_process_left_half_written_is_gone_after_going_on(tmp_path, name, cut):
    run = RunFolder.open(tmp_path / "run", CONFIG)
    for epoch in (1, 2):
        run.append(name, f"Epoch {epoch} Train loss 0.5 lr 1.0e-03 3 s" if name == "train.log" else {"epoch": epoch})
    file = tmp_path / "run" / name
    whole = file.read_bytes()
    third = b"Epoch 3 Train loss 0.25" if name == "train.log" else b'{"epoch": 3, "loss": 0.25}'
    file.write_bytes(whole + third[:-cut])
    run.cut_logs(3)
    assert file.read_bytes() == whole


def test_what_was_logged_after_the_saved_state_is_forgotten(tmp_path):
    run = RunFolder.open(tmp_path / "run", CONFIG)
    for epoch in (1, 2, 10):
        run.append("metrics.jsonl", {"epoch": epoch})
    run.cut_logs(2)
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


def test_the_history_survives_a_cut_last_line_and_names_any_other_damage(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1, "train_loss": 0.5}\n{"epoch": 2, "train_lo')
    (tmp_path / "timings.jsonl").write_text('{"epoch": 1, "seconds": 3.0}\n{"epoch": 2, "seconds": 4.0}\n')
    assert read_history(tmp_path) == {"epoch": [1, 2], "train_loss": [0.5, None], "seconds": [3.0, 4.0]}
    (tmp_path / "timings.jsonl").write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n')
    with pytest.raises(MedsegError, match=r"line 2 of .*timings\.jsonl is damaged"):
        read_history(tmp_path)


HOLDER = """
import os, sys, time
from pathlib import Path
from medseg_core.run import RunFolder
with RunFolder(Path(sys.argv[1])).held():
    if len(sys.argv) > 2 and os.fork() == 0:  # a worker, which outlives its parent
        time.sleep(60)
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds RUN; killed in the end."""
    started = []

    def start(*more):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path / "run"), *more],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert int(process.stdout.readline()) == process.pid
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_second_process_is_refused_with_the_number_of_the_first_and_changes_nothing(tmp_path, holder):
    begun(tmp_path / "run")
    first = holder()
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    for more in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(MedsegError, match=f"process {first.pid} on .* is at work here"):
            RunFolder.open(tmp_path / "run", CONFIG, **more)
    with pytest.raises(MedsegError, match=f"process {first.pid}"), RunFolder(tmp_path / "run").held():
        pass
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("more", [(), ("with a worker",)])
def test_a_killed_process_lets_go_even_where_its_worker_lives_on(tmp_path, holder, more):
    RunFolder.open(tmp_path / "run", CONFIG)
    process = holder(*more)
    assert is_held(tmp_path / "run")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not is_held(tmp_path / "run")
    with RunFolder(tmp_path / "run").held():
        assert is_held(tmp_path / "run")
    assert not is_held(tmp_path / "run")


def test_one_process_holds_a_folder_once_and_asking_does_not_let_go(tmp_path):
    run = RunFolder.open(tmp_path / "run", CONFIG)
    ask = f"from medseg_core.run import is_held; print(is_held({str(run.path)!r}))"
    with run.held():
        with run.held():  # the same run, a longer block around a shorter one
            assert is_held(run.path)
        with pytest.raises(MedsegError, match=f"process {os.getpid()}"), RunFolder(run.path).held():
            pass
        assert subprocess.check_output([sys.executable, "-c", ask], text=True) == "True\n"
    assert subprocess.check_output([sys.executable, "-c", ask], text=True) == "False\n"


def test_a_block_that_raises_lets_go(tmp_path):
    run = RunFolder.open(tmp_path / "run", CONFIG)
    with pytest.raises(ZeroDivisionError), run.held():
        raise ZeroDivisionError
    assert not is_held(run.path)


def test_of_several_processes_the_first_alone_holds_the_folder(tmp_path, monkeypatch):
    run = RunFolder.open(tmp_path / "run", CONFIG)
    monkeypatch.setattr(run_module, "place", lambda: (1, 2))
    with run.held():
        assert not is_held(run.path)


def test_a_disk_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    run = RunFolder.open(tmp_path / "run", CONFIG)
    monkeypatch.setattr(run_module.fcntl, "lockf", refuse)
    with run.held():
        assert (run.path / ".lock").is_file()


RANKS = """
import json, os
from pathlib import Path
from medseg_core.checkpoint import save_state
from medseg_core.errors import MedsegError
from medseg_core.run import RunFolder
from medseg_core.runs import run_path
from medseg_core.settings import TrainConfig

rank, config, said = int(os.environ["RANK"]), TrainConfig(), {}
with run_path(None, "toy", "train") as path:
    run = RunFolder.open(path, config)
    said["new"] = [str(run.path), run.start]
    if rank == 0:
        save_state(run.state, {}, {"position": {"epoch": 0, "reason": ""}})
try:
    RunFolder.open(path, config)
except MedsegError as error:
    said["refused"] = str(error)
with run_path(None, "toy", "train", resume="last") as path:
    run = RunFolder.open(path, config, resume=True)
    said["on"] = [str(run.path), str(run.start)]
Path(f"rank-{rank}.json").write_text(json.dumps(said))
"""


def test_two_processes_of_torchrun_open_one_folder_and_share_its_errors(tmp_path):
    (tmp_path / "ranks.py").write_text(RANKS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "ranks.py"]
    subprocess.run(torchrun, check=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    one, two = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert one == two
    (only,) = (tmp_path / "runs").iterdir()
    name = f"runs/{only.name}"
    assert one["new"] == [name, None]
    assert one["refused"].startswith(f"{name} holds a run; add --resume")
    assert one["on"] == [name, f"{name}/last/state.safetensors"]
    assert json.loads((only / "run.json").read_text())["processes"] == 2


def test_a_folder_that_cannot_be_locked_says_so(tmp_path):
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    with pytest.raises(MedsegError, match=r"cannot write .*\.lock: Is a directory"), RunFolder(tmp_path / "run").held():
        pass
