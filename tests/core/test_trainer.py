import dataclasses
import json
import os
import signal

import pytest
import torch
from torch import nn

from medseg_core.checkpoint import Card, freeze, load_model
from medseg_core.errors import MedsegError
from medseg_core.run import RunFolder, read_history
from medseg_core.settings import TrainConfig
from medseg_core.trainer import Score, Trainer

CARD = Card(package="test", version="0", model="net", arguments={})


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, x):
        return self.layers(x)


class Noise:
    """Samples that are a pure function of their draw; `at` maps a number of samples drawn to something that happens."""

    def __init__(self, num=10, at=None):
        self.num, self.at, self.drawn = num, at or {}, []

    def __len__(self):
        return self.num

    def __getitem__(self, draw):
        self.drawn.append(draw)
        if len(self.drawn) in self.at:
            self.at[len(self.drawn)]()
        x = torch.from_numpy(draw.numpy().normal(size=3)).float()
        return {"x": x, "y": x.sum()[None]}


def step(model, batch, at):
    noise = torch.rand(1, generator=at.rng)
    return {"loss": (model(batch["x"]) - batch["y"]).square().mean(), "noise": noise.mean()}


def config(**more):
    return TrainConfig(**{"epochs": 3, "batch_size": 4, "precision": "fp32", "device": "cpu", **more})


def fit(path, settings, samples=None, *, validate=None, resume=False):
    torch.manual_seed(0)
    run = RunFolder.open(path, settings, resume=resume)
    return Trainer(Net(), step, config=settings, card=CARD, run=run).fit(samples or Noise(), validate)


def content(path):
    names = ("best.safetensors", "last/state.safetensors", "metrics.jsonl")
    return {name: (path / name).read_bytes() for name in names}


class CrashError(Exception):
    pass


def crash():
    raise CrashError


@pytest.mark.parametrize("crash_at", [3, 13, 17, 29])
def test_a_run_that_broke_off_and_went_on_ends_in_the_same_bytes(tmp_path, crash_at):
    settings = config(ema=0.9, accumulate=2, clip=1.0, save_seconds=0.0)
    fit(tmp_path / "whole", settings)
    with pytest.raises(CrashError):
        fit(tmp_path / "broken", settings, Noise(at={crash_at: crash}))
    torch.rand(7)
    assert fit(tmp_path / "broken", settings, resume=True).reason == "finished"
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_a_run_that_broke_off_between_an_epoch_and_its_validation_ends_in_the_same_bytes(tmp_path):
    settings = config(save_seconds=0.0, warmup=0.2)
    fit(tmp_path / "whole", settings, validate=lambda model, at: Score(0.5))
    with pytest.raises(CrashError):
        fit(tmp_path / "broken", settings, validate=lambda model, at: crash())
    fit(tmp_path / "broken", settings, validate=lambda model, at: Score(0.5), resume=True)
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_a_network_laid_out_channels_last_goes_on_to_the_same_bytes(tmp_path):
    class Pictures(Noise):
        def __getitem__(self, draw):
            super().__getitem__(draw)
            return {"x": torch.from_numpy(draw.numpy().normal(size=(3, 8, 8))).float()}

    def fit(path, *, at=None, resume=False):
        settings = config(channels_last=True, ema=0.9)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 3))
        run = RunFolder.open(path, settings, resume=resume)
        square = lambda model, batch, _: {"loss": model(batch["x"]).square().mean()}  # noqa: E731
        Trainer(net, square, config=settings, card=CARD, run=run).fit(Pictures(at=at))

    fit(tmp_path / "whole")
    with pytest.raises(CrashError):
        fit(tmp_path / "broken", at={15: crash})
    fit(tmp_path / "broken", resume=True)
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_sigterm_finishes_the_update_saves_and_the_run_goes_on(tmp_path):
    settings = config()
    fit(tmp_path / "whole", settings)
    stopped = fit(tmp_path / "run", settings, Noise(at={13: lambda: os.kill(os.getpid(), signal.SIGTERM)}))
    assert (stopped.reason, stopped.steps) == ("stopped", 4)
    fit(tmp_path / "run", settings, resume=True)
    assert content(tmp_path / "run") == content(tmp_path / "whole")


def test_workers_change_nothing(tmp_path):
    for workers in (0, 2):
        fit(tmp_path / str(workers), config(num_workers=workers))
    one, two = ({**content(tmp_path / w)} for w in ("0", "2"))
    assert one["best.safetensors"] == two["best.safetensors"]
    assert one["metrics.jsonl"] == two["metrics.jsonl"]


def test_a_finished_run_returns_its_result_at_once(tmp_path):
    first = fit(tmp_path / "run", config(), validate=lambda m, at: Score(float(at.epoch)))
    untouched = Noise(at={1: crash})
    again = fit(tmp_path / "run", config(), untouched, validate=lambda m, at: Score(0.0), resume=True)
    assert again == first
    assert again.best == Score(2.0, {}, {})


def test_more_epochs_go_on_from_a_finished_run(tmp_path):
    fit(tmp_path / "run", config(schedule="constant"))
    assert fit(tmp_path / "run", config(schedule="constant", epochs=5), resume=True).epochs == 5
    fit(tmp_path / "whole", config(schedule="constant", epochs=5))
    assert content(tmp_path / "run")["best.safetensors"] == content(tmp_path / "whole")["best.safetensors"]


def test_a_kept_checkpoint_can_be_gone_on_from(tmp_path):
    settings = config(save_every=1, keep=2)
    fit(tmp_path / "run", settings)
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["epoch_0002", "epoch_0003"]
    before = content(tmp_path / "run")
    fit(tmp_path / "run", settings, resume=tmp_path / "run" / "checkpoints" / "epoch_0002")
    assert content(tmp_path / "run") == before


def test_other_settings_are_refused_by_name(tmp_path):
    fit(tmp_path / "run", config())
    with pytest.raises(MedsegError, match=r"lr 0\.001, not 0\.5"):
        fit(tmp_path / "run", config(lr=0.5), resume=True)


def test_another_case_list_is_refused(tmp_path):
    fit(tmp_path / "run", config())
    with pytest.raises(MedsegError, match="samples 10, not 11"):
        fit(tmp_path / "run", config(epochs=4), Noise(11), resume=True)


def test_a_folder_with_a_run_is_refused_without_resume(tmp_path):
    fit(tmp_path / "run", config())
    with pytest.raises(MedsegError, match="--resume"):
        RunFolder.open(tmp_path / "run", config())


def test_a_folder_with_something_else_is_left_alone_even_by_overwrite(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(MedsegError, match="holds no run"):
            RunFolder.open(tmp_path, config(), overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_the_best_validation_is_kept_and_patience_ends_the_run(tmp_path):
    values = iter([0.1, 0.7, 0.2, 0.3, 0.9])
    seen = []

    def validate(model, at):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return Score(next(values), {"dice": 0.5}, {"threshold": 0.1 * len(seen)})

    result = fit(tmp_path / "run", config(epochs=9, patience=2), validate=validate)
    model, card = load_model(tmp_path / "run", {"net": Net})
    assert (result.reason, result.epochs, result.best.value) == ("no gain", 4, 0.7)
    assert card.chosen == {"threshold": 0.2}
    assert all(torch.equal(v, seen[1][k]) for k, v in model.state_dict().items())
    assert read_history(tmp_path / "run")["val_score"] == [0.1, 0.7, 0.2, 0.3]


def test_two_accumulated_batches_make_the_gradient_of_one_big_batch():
    class Linear(nn.Linear):
        pass

    def loss(model, batch, at):
        return {"loss": (model(batch["x"]) - batch["y"]).square().mean()}

    x, y = torch.randn(6, 3), torch.randn(6, 1)
    weights = []
    for parts in ([slice(0, 6)], [slice(0, 4), slice(4, 6)]):
        torch.manual_seed(0)
        trainer = Trainer(Linear(3, 1), loss, config=config(optimizer="sgd", lr=0.1), card=CARD)
        trainer.update([{"x": x[p], "y": y[p]} for p in parts])
        weights.append(trainer.model.weight.detach())
    assert torch.allclose(*weights, atol=1e-7)


def test_a_loss_that_is_not_a_number_stops_with_step_rate_and_samples(tmp_path):
    def bad(model, batch, at):
        return {"loss": model(batch["x"]).mean() * (float("nan") if at.step == 2 else 1.0)}

    settings = config(batch_size=5)
    trainer = Trainer(Net(), bad, config=settings, card=CARD, run=RunFolder.open(tmp_path / "run", settings))
    with pytest.raises(MedsegError, match=r"nan at step 2 \(lr .*samples \["):
        trainer.fit(Noise(10))


def test_the_average_follows_with_the_stated_decay():
    trainer = Trainer(nn.Linear(1, 1), lambda m, b, at: {"loss": m(b["x"]).sum()}, config=config(ema=0.9), card=CARD)
    before = trainer.model.weight.item()
    trainer.update([{"x": torch.ones(1, 1)}])
    after = trainer.model.weight.item()
    assert trainer.average.weight.item() == pytest.approx(
        0.1 * before + 0.9 * after
    )  # warm-up: decay (1 + 0) / (10 + 0)


def test_a_frozen_part_keeps_its_weights_and_its_running_statistics():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = freeze(nn.BatchNorm1d(3)), nn.Linear(3, 1)

        def forward(self, x):
            return self.b(self.a(x))

    trainer = Trainer(Two(), lambda m, b, at: {"loss": m(b["x"]).sum()}, config=config(), card=CARD)
    before = {k: v.clone() for k, v in trainer.model.a.state_dict().items()}
    trainer.update([{"x": torch.randn(5, 3)}])
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.a.state_dict().items())


def test_without_validation_the_last_weights_are_the_best_and_the_log_says_so(tmp_path, caplog):
    with caplog.at_level("INFO"):
        fit(tmp_path / "run", config())
    assert "last weights are kept as best" in caplog.text
    assert (tmp_path / "run" / "best.safetensors").is_file()


def test_the_run_folder_holds_what_the_readme_lists(tmp_path):
    fit(tmp_path / "run", config(), validate=lambda m, at: Score(0.5, {"dice": 0.5}))
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"config.json", "run.json", "metrics.jsonl", "train.log", "curves.png", "best.safetensors", "last"} <= names
    first = (tmp_path / "run" / "train.log").read_text().splitlines()[:2]
    assert first[0].startswith("Epoch 1 Train loss ")
    assert first[1].startswith("Epoch 1 Eval score 0.500 dice 0.500")


def test_metrics_hold_no_clock_so_equal_runs_leave_equal_files(tmp_path):
    fit(tmp_path / "run", config())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert not {"seconds", "samples_per_second"} & rows[0].keys()
    assert {"seconds", "samples_per_second", "peak_memory_mb"} <= read_history(tmp_path / "run").keys()


def test_the_state_is_there_before_the_first_step(tmp_path):
    with pytest.raises(CrashError):
        fit(tmp_path / "run", config(), Noise(at={1: crash}))
    assert (tmp_path / "run" / "last" / "state.safetensors").is_file()


def test_a_sample_drawn_twice_in_an_epoch_is_told_apart_by_its_place():
    samples = Noise()
    Trainer(Net(), step, config=config(epochs=1), card=CARD).fit(samples)
    assert [d.place for d in samples.drawn] == list(range(10))
    draw = samples.drawn[0]
    other = dataclasses.replace(draw, place=draw.place + 1)
    assert draw.numpy().random() != other.numpy().random()
