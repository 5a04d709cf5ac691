import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from threading import Barrier

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tests.run_folders import make_run
from typer.testing import CliRunner

from medseg_core import runs as runs_module
from medseg_core.checkpoint import Card
from medseg_core.cli import app
from medseg_core.errors import MedsegError
from medseg_core.run import RunFolder
from medseg_core.runs import describe_run, find_runs, run_path, run_table
from medseg_core.settings import TrainConfig
from medseg_core.trainer import Score, Trainer


def call(*arguments):
    return CliRunner().invoke(app, ["runs", *map(str, arguments)])


def test_a_run_without_out_is_called_by_command_date_and_time(inside):
    before = datetime.now().replace(microsecond=0)
    with run_path(None, "totalseg", "train") as path:
        (path / "config.json").touch()
    found = re.fullmatch(r"runs/totalseg-train-(\d{8}-\d{6})", str(path))
    assert before <= datetime.strptime(found[1], "%Y%m%d-%H%M%S") <= datetime.now()
    assert path.is_dir()


def test_a_run_with_out_lies_there(inside):
    with run_path(inside / "mine", "toy", "train") as path:
        assert path == inside / "mine"
    assert not list(inside.iterdir())


def test_runs_of_the_same_second_get_folders_of_their_own(inside, monkeypatch):
    monkeypatch.setattr(runs_module.time, "strftime", lambda _: "20261126-051530")
    together = Barrier(8)

    def begin(number):
        together.wait(10)
        with run_path(None, "toy", "train") as path:
            (path / "config.json").write_text(str(number))
        return path

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(begin, range(8)))
    assert [(path / "config.json").read_text() for path in paths] == [str(n) for n in range(8)]
    ends = ["", *(f"-{n}" for n in range(2, 9))]
    assert sorted(p.name for p in paths) == sorted(f"toy-train-20261126-051530{end}" for end in ends)


def test_a_folder_that_stays_empty_goes_again(inside):
    with run_path(None, "toy", "train") as path:
        assert path.is_dir()
    assert not list(inside.iterdir())


def test_a_folder_that_cannot_be_made_is_one_error(inside):
    (inside / "runs").write_text("in the way")
    with pytest.raises(MedsegError, match="name another with --out"), run_path(None, "toy", "train"):
        pass


def test_resume_without_out_takes_the_one_run_of_the_command_that_broke_off(inside):
    make_run(inside / "runs" / "toy-train-20260101-000000", done=3)
    make_run(inside / "runs" / "toy-train-20260101-000001", done=1)
    make_run(inside / "runs" / "toy-train-20260101-000002", done=2, reason="no gain")
    make_run(inside / "runs" / "other-train-20260101-000003", done=1)
    make_run(inside / "runs" / "by-hand", done=1)
    with run_path(None, "toy", "train", resume="last") as path:
        assert str(path) == "runs/toy-train-20260101-000001"


def test_resume_without_out_names_all_that_it_could_mean(inside):
    for second in (1, 2):
        make_run(inside / "runs" / f"toy-train-20260101-00000{second}", done=1, started=f"2026-01-0{second}T00:00:00")
    both = "2 runs broke off.*: runs/toy-train-20260101-000002, runs/toy-train-20260101-000001"
    with pytest.raises(MedsegError, match=both), run_path(None, "toy", "train", resume="last"):
        pass


def test_resume_without_anything_to_go_on_with_says_so_and_makes_nothing(inside):
    words = pytest.raises(MedsegError, match=r"no run runs/toy-train-\.\.\. broke off")
    with words, run_path(None, "toy", "train", resume="last"):
        pass
    assert not list(inside.iterdir())


def test_a_run_that_is_running_is_not_gone_on_with(inside):
    path = make_run(inside / "runs" / "toy-train-20260101-000001", done=1)
    words = pytest.raises(MedsegError, match=r"no run .* broke off")
    with RunFolder(path).held(), words, run_path(None, "toy", "train", resume="last"):
        pass


def test_a_checkpoint_means_the_run_that_it_lies_in(inside, monkeypatch):
    run = make_run(inside / "somewhere" / "mine")
    (run / "checkpoints" / "epoch_0001").mkdir(parents=True)
    with run_path(None, "toy", "train", resume="somewhere/mine/checkpoints/epoch_0001") as path:
        assert path.samefile(run)
    monkeypatch.chdir(run / "checkpoints")
    with run_path(None, "toy", "train", resume="epoch_0001") as path:
        assert path.samefile(run)
    monkeypatch.chdir(inside)
    with pytest.raises(MedsegError, match="lies in no run"), run_path(None, "toy", "train", resume="x.safetensors"):
        pass


def test_what_a_run_came_to(tmp_path):
    make_run(tmp_path / "a")
    assert describe_run(tmp_path / "a") == {
        "name": "a",
        "path": str(tmp_path / "a"),
        "started": "2026-03-01T10:00:00+0000",
        "command": "medseg toy train DATA",
        "epochs": 3,
        "planned": 3,
        "best": 0.75,
        "best_epoch": 2,
        "seconds": 270.0,
        "state": "finished",
        "why": [],
    }


@pytest.mark.parametrize(
    ("made", "state"),
    [
        ({"done": 3, "reason": "finished"}, "finished"),
        ({"done": 2}, "broken off"),
        ({"done": 0}, "broken off"),
        ({"done": 2, "reason": "no gain"}, "no gain"),
        ({"done": 3, "reason": "finished", "epochs": 5}, "broken off"),  # --resume --epochs 5, and stopped at once
    ],
)
def test_the_state_of_a_run(tmp_path, made, state):
    make_run(tmp_path / "a", **made)
    assert describe_run(tmp_path / "a")["state"] == state


def test_a_run_is_running_while_its_process_lives(tmp_path):
    run = make_run(tmp_path / "a", done=1)
    with RunFolder(run).held():
        assert describe_run(run)["state"] == "running"
    assert describe_run(run)["state"] == "broken off"


def test_a_run_whose_state_was_thrown_away_is_told_by_its_log(tmp_path):
    run = make_run(tmp_path / "a", done=3)
    (run / "last" / "state.safetensors").unlink()
    about = describe_run(run)
    assert (about["state"], about["epochs"], about["best"], about["why"]) == ("finished", 3, 0.75, [])


def test_a_run_that_trains_without_validation_has_no_best(tmp_path):
    run = make_run(tmp_path / "a", done=1)
    (run / "metrics.jsonl").write_text('{"epoch": 1, "step": 3, "train_loss": 0.5}\n')
    save_file(
        {"model/w": np.zeros(3)},
        run / "last" / "state.safetensors",
        {"medseg": json.dumps({"position": {"epoch": 1, "best": None}})},
    )
    about = describe_run(run)
    assert (about["best"], about["state"]) == (None, "broken off")


def cut(name, share):
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[: int(share * (run / name).stat().st_size)])


def write(name, text):
    return lambda run: (run / name).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (cut("config.json", 0.5), "config.json"),
        (write("config.json", ""), "config.json"),
        (write("config.json", "[]"), "config.json"),
        (write("config.json", '{"epochs": "many"}'), "epochs"),
        (lambda run: (run / "config.json").unlink(), "config.json"),
        (write("run.json", "{"), "run.json"),
        (cut("metrics.jsonl", 0), "metrics.jsonl holds 0 of 3 epochs"),
        (write("metrics.jsonl", "{}\n"), "line 1 of"),
        (write("metrics.jsonl", "\x00" * 100 + "\n"), "line 1 of"),
        (write("timings.jsonl", '{"epoch": 1}\n7\n'), "line 2 of"),
        (cut("last/state.safetensors", 0), "state.safetensors"),
        (cut("last/state.safetensors", 0.5), "state.safetensors"),
        (lambda run: save_file({}, run / "last/state.safetensors", {"medseg": "{}"}), "state.safetensors"),
        (
            lambda run: save_file({}, run / "last/state.safetensors", {"medseg": '{"position": []}'}),
            "state.safetensors",
        ),
    ],
)
def test_a_damaged_run_costs_only_itself(tmp_path, spoil, named):
    spoil(make_run(tmp_path / "bad"))
    make_run(tmp_path / "good")
    found, _ = find_runs(tmp_path)
    assert {run["name"]: run["state"] for run in found} == {"bad": "damaged", "good": "finished"}
    (bad,) = (run for run in found if run["name"] == "bad")
    assert named in bad["why"][0]
    result = call(tmp_path)
    assert result.exit_code == 0
    assert f"bad: {bad['why'][0]}" in result.stdout.splitlines()


@pytest.mark.parametrize("value", ['"high"', "null", "true", "[1]", "1e999", "NaN", "1" + 400 * "0"])
def test_a_score_that_is_no_number_is_no_score(tmp_path, value):
    run = make_run(tmp_path / "a", done=0)
    (run / "metrics.jsonl").write_text(f'{{"epoch": 1, "val_score": {value}}}\n')
    assert describe_run(run)["best"] is None
    assert call(tmp_path).exit_code == 0
    assert call(tmp_path, "--json").exit_code == 0


def test_a_link_to_a_run_beside_it_is_not_a_run_of_its_own(tmp_path):
    make_run(tmp_path / "runs" / "b")
    make_run(tmp_path / "elsewhere")
    (tmp_path / "runs" / "a").symlink_to("b")
    (tmp_path / "runs" / "c").symlink_to("../elsewhere")
    paths = [run["path"] for run in find_runs(tmp_path / "runs")[0]]
    assert paths == [str(tmp_path / "runs" / name) for name in "bc"]


def test_runs_come_newest_first_whatever_their_time_zone(tmp_path):
    make_run(tmp_path / "a", started="2026-03-01T10:00:00+0000")
    make_run(tmp_path / "b", started="2026-03-01T10:30:00+0200")
    make_run(tmp_path / "c", started="2026-03-01T09:30:00+0000")
    make_run(tmp_path / "d", started="once upon a time")
    assert [run["name"] for run in find_runs(tmp_path)[0]] == ["a", "c", "b", "d"]


def test_the_list_is_a_table_and_folders_without_a_run_are_named(inside):
    make_run(inside / "runs" / "toy-train-20260301-100000", done=2)
    (inside / "runs" / "notes").mkdir()
    lines = call().stdout.splitlines()
    assert lines[0].split() == ["name", "state", "epochs", "best", "time", "started", "command"]
    told = ["toy-train-20260301-100000", "broken off", "2/3", "0.7500", "3 min", "2026-03-01 10:00"]
    assert re.split(r"\s{2,}", lines[1]) == [*told, "medseg toy train DATA"]
    assert lines[2] == "no run: notes"


def test_json_holds_the_same_and_more(inside):
    make_run(inside / "runs" / "a")
    assert json.loads(call("--json").stdout) == [describe_run(inside / "runs" / "a") | {"path": "runs/a"}]


def test_one_run_is_listed_alone_and_an_empty_folder_says_so(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    assert len(call(tmp_path / "a").stdout.splitlines()) == 2
    (tmp_path / "none").mkdir()
    assert call(tmp_path / "none").stdout == f"no run in {tmp_path / 'none'}\n"


def test_without_a_folder_of_runs_there_is_one_line(inside):
    result = call()
    assert result.exit_code == 2
    assert result.stderr.startswith("error: there are no runs in runs (No such file")


def test_a_name_cannot_steer_the_terminal(tmp_path):
    run = make_run(tmp_path / "a\x1b[2Jb\nc")
    (run / "run.json").write_text(json.dumps({"command": "x\ny\x07"}))
    lines = call(tmp_path).stdout.splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(("width", "ends"), [(120, "xxx..."), (60, "2026-03-01 10:00"), (40, "..."), (0, 500 * "x")])
def test_a_line_ends_at_the_edge_of_the_screen(tmp_path, width, ends):
    run = make_run(tmp_path / "a")
    about = {"started": "2026-03-01T10:00:00+0000", "command": "medseg " + "x" * 500}
    (run / "run.json").write_text(json.dumps(about))
    line = run_table(find_runs(tmp_path)[0], width=width).splitlines()[1]
    assert line.endswith(ends)
    assert not 0 < width < len(line)


def test_a_list_is_there_without_torch(tmp_path):
    make_run(tmp_path / "a")
    code = f"import sys; sys.argv = ['medseg', 'runs', {str(tmp_path)!r}]\nfrom medseg_core.cli import app\n"
    code += "try:\n    app()\nfinally:\n    print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False False"


def test_a_hundred_runs_are_listed_in_a_blink(tmp_path):
    for number in range(100):
        make_run(tmp_path / f"run{number}")
    begun = time.process_time()
    assert len(find_runs(tmp_path)[0]) == 100
    assert time.process_time() - begun < 2


def test_a_training_is_running_until_it_ends_and_the_list_reads_what_it_left(tmp_path):
    states = []

    class Ones:
        def __len__(self):
            return 4

        def __getitem__(self, draw):
            return {"x": torch.ones(1)}

    def validate(model, at):
        states.append(describe_run(run.path)["state"])
        return Score(0.5 - 0.25 * at.epoch)

    config = TrainConfig(epochs=9, batch_size=4, device="cpu", patience=1)
    run = RunFolder.open(tmp_path / "run", config)
    card = Card(package="test", version="0", model="linear")
    step = lambda model, batch, at: {"loss": model(batch["x"]).square().mean()}  # noqa: E731
    Trainer(torch.nn.Linear(1, 1), step, config=config, card=card, run=run).fit(Ones(), validate)
    assert states == ["running", "running"]
    about = describe_run(run.path)
    assert (about["epochs"], about["planned"], about["state"]) == (2, 9, "no gain")
    assert (about["best"], about["best_epoch"], about["why"]) == (0.5, 1, [])
