"""TensorBoard and W&B: each training is a process of its own, killed with SIGKILL where that is the question."""

import json
import os
import signal
import subprocess
import sys

import pytest

from medseg_core.run import read_history

TRAINING = """
import logging, os, signal, socket, sys
from pathlib import Path

asked = Path("asked.txt")
asked.touch()
look_up = socket.getaddrinfo

def told(host, *more, **named):
    with asked.open("a") as file:
        file.write(f"{host}\\n")
    return look_up(host, *more, **named)

socket.getaddrinfo = told

import torch
from medseg_core import trainer
from medseg_core.checkpoint import Card
from medseg_core.run import RunFolder
from medseg_core.settings import TrainConfig

class Line:
    def __len__(self):
        return 8
    def __getitem__(self, draw):
        x = torch.from_numpy(draw.numpy().normal(size=1)).float()
        return {"x": x, "y": 2 * x + 1}

def step(model, batch, at):
    return {"loss": (model(batch["x"]) - batch["y"]).square().mean()}

logger, last_save = sys.argv[1], int(sys.argv[2])
save_state, saves = trainer.save_state, []

def killing(*arguments):
    saves.append(arguments)
    if len(saves) == last_save:
        os.kill(os.getpid(), signal.SIGKILL)  # the epoch is logged and its state is not
    save_state(*arguments)

trainer.save_state = killing
config = TrainConfig(epochs=4, batch_size=4, lr=0.1, device="cpu", logger=logger, wandb_project="lines")
card = Card(package="mine", version="1", model="linear")
torch.manual_seed(0)
run = RunFolder.open(Path("runs/toy-train-20261126-051530"), config, resume=True)
validate = lambda model, at: trainer.Score(float(model.weight))
trainer.Trainer(torch.nn.Linear(1, 1), step, config=config, card=card, run=run).fit(Line(), validate)
"""
NAME = "toy-train-20261126-051530"


@pytest.fixture
def train(tmp_path):
    """Trains in `tmp_path`; `last_save` kills instead of saving for that many a time: 1 is the start, 3 the epoch 2."""

    def run(logger, *, last_save=0):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        words = [sys.executable, "-c", TRAINING, logger, str(last_save)]
        done = subprocess.run(words, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == (-signal.SIGKILL if last_save else 0), done.stderr
        return tmp_path / "runs" / NAME

    return run


def events(run):
    """Tag -> (steps, values) as TensorBoard shows them."""
    multiplexer = pytest.importorskip("tensorboard.backend.event_processing.plugin_event_multiplexer")
    tensor_util = pytest.importorskip("tensorboard.util.tensor_util")
    shown = multiplexer.EventMultiplexer().AddRunsFromDirectory(str(run.parent)).Reload()
    assert list(shown.Runs()) == [NAME]
    found = {}
    for tag in shown.Runs()[NAME]["tensors"]:
        series = shown.Tensors(NAME, tag)
        values = [float(tensor_util.make_ndarray(event.tensor_proto)) for event in series]
        found[tag] = [event.step for event in series], values
    return found


@pytest.mark.slow
def test_tensorboard_shows_each_epoch_once_under_the_name_of_the_run_after_a_kill(train):
    pytest.importorskip("tensorboard")
    run = train("tensorboard", last_save=3)
    assert events(run)["train/loss"][0] == [1, 2]  # on the disk before the process was killed
    train("tensorboard")
    found, history = events(run), read_history(run)
    for tag, name in (("train/loss", "train_loss"), ("val/score", "val_score"), ("lr", "lr"), ("seconds", "seconds")):
        steps, values = found[tag]
        assert steps == history["epoch"] == [1, 2, 3, 4]
        assert values == pytest.approx(history[name], rel=1e-6)  # events hold float32


def records(file):
    """What W&B's offline file holds: records in the log format of LevelDB, in blocks of 32 KiB."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, place, part = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield pb.Record.FromString(part)
            part = b""


def session(file):
    """What a session of W&B holds: its run record, and the steps and training losses of its history."""
    about, steps, losses = None, [], []
    for record in records(file):
        if record.HasField("run"):
            about = record.run
        if record.HasField("history"):
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            steps.append(record.history.step.num)
            losses.append(items["train_loss"])
    return about, steps, losses


@pytest.mark.slow
def test_wandb_keeps_one_run_of_the_folder_name_offline_and_goes_on_after_a_kill(train, tmp_path):
    pytest.importorskip("wandb")
    run = train("wandb", last_save=4)
    train("wandb")
    killed, last = sorted(run.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime)
    about, steps, losses = session(last)
    assert killed.stem == last.stem == f"run-{about.run_id}"
    assert (about.display_name, about.project) == (NAME, "lines")
    history = read_history(run)
    assert steps == history["epoch"] == [1, 2, 3, 4]
    assert losses == history["train_loss"]
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "asked.txt"}
    assert (tmp_path / "asked.txt").read_text() == ""


@pytest.mark.parametrize("logger", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_one_error_with_its_extra(tmp_path, monkeypatch, logger):
    from medseg_core.errors import MedsegError
    from medseg_core.journal import Journal
    from medseg_core.run import RunFolder
    from medseg_core.settings import TrainConfig

    for name in ("torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    config = TrainConfig(logger=logger)
    with pytest.raises(MedsegError, match=rf"pip install 'medseg-core\[{logger}\]'"):
        Journal(RunFolder.open(tmp_path / "run", config), config, total=1, start=0)
