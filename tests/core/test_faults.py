import os
import resource
import signal

import pytest
import torch
from torch import nn

from medseg_core.checkpoint import Card, load_state
from medseg_core.errors import MedsegError
from medseg_core.run import RunFolder
from medseg_core.settings import TrainConfig
from medseg_core.trainer import Score, Trainer

CARD = Card(package="test", version="0", model="net")


class Noise:
    """Ten samples; `act` is called with the draw before each."""

    def __init__(self, act=lambda draw: None):
        self.act = act

    def __len__(self):
        return 10

    def __getitem__(self, draw):
        self.act(draw)
        x = torch.from_numpy(draw.numpy().normal(size=3)).float()
        return {"x": x, "y": x.sum()[None]}


def kill_worker(draw):
    if draw.place == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def refuse(draw):
    if draw.place == 5:
        raise MedsegError("case s0007 holds no voxels; remove it")


def divide(draw):
    return 1 // (draw.place != 5)


def step(model, batch, at):
    return {"loss": (model(batch["x"]) - batch["y"]).square().mean()}


def trainer(path, step=step, **more):
    config = TrainConfig(**{"epochs": 3, "batch_size": 4, "precision": "fp32", "device": "cpu", **more})
    torch.manual_seed(0)
    return Trainer(nn.Linear(3, 1), step, config=config, card=CARD, run=RunFolder.open(path, config))


def test_the_batch_of_a_loss_that_is_not_finite_is_kept_with_its_samples(tmp_path):
    seen = {}

    def bad(model, batch, at):
        seen[at.step] = batch["x"]
        return {"loss": model(batch["x"]).mean() * (float("inf") if at.step == 4 else 1.0)}

    with pytest.raises(MedsegError, match=r"inf at step 4 .*failed.*batch-0\.safetensors; lower --lr"):
        trainer(tmp_path / "run", bad).fit(Noise())
    parts, about = load_state(tmp_path / "run" / "failed" / "batch-0.safetensors")
    assert torch.equal(parts["batch"]["x"], seen[4])
    assert (about["step"], about["epoch"], len(about["samples"])) == (4, 1, 4)


def test_the_state_from_before_a_loss_that_is_not_finite_stays(tmp_path):
    def bad(model, batch, at):
        return {"loss": model(batch["x"]).mean() * (float("nan") if at.step == 4 else 1.0)}

    with pytest.raises(MedsegError):
        trainer(tmp_path / "run", bad, save_seconds=0.0).fit(Noise())
    parts, about = load_state(tmp_path / "run" / "last" / "state.safetensors")
    assert about["position"]["step"] == 4
    assert all(torch.isfinite(tensor).all() for tensor in parts["model"].values())


def test_memory_that_runs_out_names_settings_that_need_less(tmp_path):
    def greedy(model, batch, at):
        return {"loss": model(batch["x"]).mean() + torch.empty(2**50).mean()}

    with pytest.raises(MedsegError, match=r"at step 0 with batch_size 4; take --batch-size 2 --accumulate 6"):
        trainer(tmp_path / "run", greedy, accumulate=3).fit(Noise())


def test_a_loader_worker_that_is_killed_is_an_error_and_no_hang(tmp_path):
    with pytest.raises(MedsegError, match=r"worker is gone .*lower --num-workers \(now 1\)"):
        trainer(tmp_path / "run", num_workers=1).fit(Noise(kill_worker))


def test_a_bad_case_is_told_in_one_line_from_a_worker_too(tmp_path):
    for workers in (0, 1):
        with pytest.raises(MedsegError) as caught:
            trainer(tmp_path / str(workers), num_workers=workers).fit(Noise(refuse))
        assert str(caught.value) == "case s0007 holds no voxels; remove it"


def test_a_bug_in_a_sample_keeps_its_name_in_a_worker(tmp_path):
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path / "run", num_workers=1).fit(Noise(divide))


def test_a_full_disk_leaves_the_last_good_state(tmp_path):
    last = tmp_path / "run" / "last" / "state.safetensors"
    before = {}

    def fill_up(draw):
        if draw.epoch == 1:
            before["state"] = before.get("state") or last.read_bytes()
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with pytest.raises(MedsegError, match="cannot write"):
            trainer(tmp_path / "run").fit(Noise(fill_up))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert last.read_bytes() == before["state"]
    assert [file.name for file in last.parent.iterdir()] == [last.name]


@pytest.mark.parametrize(("blank", "told"), [([True] * 3, True), ([True, True, False, True, True], False)])
def test_a_model_that_predicts_nothing_three_times_running_is_told_with_the_setting(tmp_path, caplog, blank, told):
    answers = iter(blank)
    trainer(tmp_path / "run", epochs=len(blank)).fit(Noise(), lambda model, at: Score(0.9, blank=next(answers)))
    assert ("predicted nothing at 3 validations running: take a --loss" in caplog.text) == told


def test_a_second_training_in_the_same_folder_is_refused(tmp_path):
    def second(draw):
        if draw.epoch == 1:
            config = TrainConfig(epochs=3, batch_size=4, precision="fp32", device="cpu")
            run = RunFolder(tmp_path / "run")
            Trainer(nn.Linear(3, 1), step, config=config, card=CARD, run=run).fit(Noise())

    with pytest.raises(MedsegError, match=str(tmp_path / "run")):
        trainer(tmp_path / "run").fit(Noise(second))
