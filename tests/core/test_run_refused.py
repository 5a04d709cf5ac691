"""What a run folder is refused for, and what it is never made to lose."""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from medseg_core.checkpoint import Card
from medseg_core.draw import Draw
from medseg_core.errors import MedsegError
from medseg_core.loader import Loader
from medseg_core.run import RunFolder, read_history
from medseg_core.settings import TrainConfig
from medseg_core.trainer import Score, Trainer

CARD = Card(package="test", version="0", model="net", arguments={})


class Ones:
    """`num` equal samples of the cases that `identity` names."""

    def __init__(self, identity: str = "", num: int = 4) -> None:
        self.identity, self.num = identity, num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, draw: Draw) -> dict[str, torch.Tensor]:
        return {"x": torch.ones(2)}


class Interrupted(Ones):
    """A terminal's Ctrl-C reaches the worker before each sample."""

    def __getitem__(self, draw: Draw) -> dict[str, torch.Tensor]:
        os.kill(os.getpid(), signal.SIGINT)
        return super().__getitem__(draw)


def config(**more):
    return TrainConfig(**{"epochs": 2, "batch_size": 2, "device": "cpu", "save_every": 1, **more})


def fit(path, settings=None, samples=None, *, scores=(), width=1, **more):
    settings, left = settings or config(), list(scores)
    torch.manual_seed(0)
    run = RunFolder.open(path, settings, **more)
    step = lambda model, batch, at: {"loss": model(batch["x"]).square().mean()}  # noqa: E731
    trainer = Trainer(nn.Linear(2, width), step, config=settings, card=CARD, run=run)
    return trainer.fit(samples or Ones(), (lambda *_: Score(left.pop(0))) if scores else None)


def inside(path):
    return {p.relative_to(path): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_another_program_that_has_a_config_json_too_is_left_alone(tmp_path, overwrite):
    (tmp_path / "config.json").write_text('{"mine": 1}')
    (tmp_path / "thesis.txt").write_text("precious")
    before = inside(tmp_path)
    with pytest.raises(MedsegError, match="holds no run"):
        RunFolder.open(tmp_path, config(), overwrite=overwrite)
    assert inside(tmp_path) == before


@pytest.mark.parametrize("name", ["cache", "split.json", "."])
def test_a_run_that_holds_what_the_new_one_reads_is_not_replaced(tmp_path, name):
    fit(tmp_path / "run")
    (tmp_path / "run" / "cache").mkdir()
    before = inside(tmp_path)
    with pytest.raises(MedsegError, match=r"--overwrite would remove .*choose another --out"):
        RunFolder.open(tmp_path / "run", config(), overwrite=True, inputs=(None, tmp_path / "run" / name))
    assert inside(tmp_path) == before


def test_replacing_a_run_behind_a_link_leaves_the_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    fit(tmp_path / "run")
    RunFolder.open(tmp_path / "run", config(), overwrite=True)
    assert (tmp_path / "run").readlink() == Path("disk")
    assert {p.name for p in inside(tmp_path / "disk")} == {"config.json", "run.json"}


def test_weights_are_no_state_to_go_on_from(tmp_path):
    fit(tmp_path / "run")
    with pytest.raises(MedsegError, match=r"holds weights to predict with; go on from RUN/last"):
        fit(tmp_path / "run", resume=tmp_path / "run" / "best.safetensors")


def test_a_run_folder_means_its_last_state(tmp_path):
    fit(tmp_path / "run")
    assert fit(tmp_path / "run", config(epochs=3), resume=tmp_path / "run").epochs == 3


def test_other_cases_of_the_same_number_are_refused(tmp_path):
    fit(tmp_path / "run", samples=Ones("these"))
    with pytest.raises(MedsegError, match="saved with other cases"):
        fit(tmp_path / "run", config(epochs=3), Ones("those"), resume=True)
    assert fit(tmp_path / "run", config(epochs=3), Ones("these"), resume=True).epochs == 3


def test_a_state_of_another_network_is_one_error_that_names_it(tmp_path):
    fit(tmp_path / "run")
    with pytest.raises(MedsegError, match=r"state\.safetensors does not fit the network"):
        fit(tmp_path / "run", config(epochs=3), width=2, resume=True)


def test_a_state_of_another_run_is_refused_where_that_run_had_other_settings(tmp_path):
    fit(tmp_path / "old")
    with pytest.raises(MedsegError, match=r"old was begun with lr 0\.001, not 0\.5"):
        RunFolder.open(tmp_path / "new", config(lr=0.5), resume=tmp_path / "old" / "checkpoints" / "epoch_0001")
    assert not (tmp_path / "new").exists()


def test_a_run_is_not_gone_on_with_from_the_state_of_another(tmp_path):
    fit(tmp_path / "a")
    fit(tmp_path / "b")
    before = inside(tmp_path)
    with pytest.raises(MedsegError, match="is of another one; choose another --out"):
        RunFolder.open(tmp_path / "b", config(), resume=tmp_path / "a" / "last")
    assert inside(tmp_path) == before


def test_a_run_begun_from_the_state_of_another_has_its_history_and_best_weights_of_its_own(tmp_path):
    fit(tmp_path / "old", scores=(0.9, 0.1))
    result = fit(tmp_path / "new", scores=(0.2,), resume=tmp_path / "old" / "checkpoints" / "epoch_0001")
    assert read_history(tmp_path / "new")["val_score"] == [0.9, 0.2]
    assert result.best.value == 0.2
    assert (tmp_path / "new" / "best.safetensors").is_file()


def test_ctrl_c_leaves_the_loader_workers_at_work():
    loader = Loader(Interrupted(), config(num_workers=1))
    assert [part.total for part in loader.epoch(0)] == [2, 2]


def test_a_run_that_lost_its_state_is_not_begun_anew_by_resume(tmp_path):
    fit(tmp_path / "run")
    (tmp_path / "run" / "last" / "state.safetensors").unlink()
    before = inside(tmp_path / "run")
    with pytest.raises(MedsegError, match=r"lost its last/state\.safetensors; go on with --resume .*epoch_0002"):
        fit(tmp_path / "run", resume=True)
    assert inside(tmp_path / "run") == before


@pytest.mark.parametrize("cut", [0, 100, -1])
def test_a_damaged_state_is_told_with_a_way_on_that_works(tmp_path, cut):
    fit(tmp_path / "run", config(epochs=3))
    last, (*_, older, newest) = tmp_path / "run/last", sorted((tmp_path / "run/checkpoints").iterdir())
    for folder, way in ((last, newest), (newest, older)):
        (folder / "state.safetensors").write_bytes((folder / "state.safetensors").read_bytes()[:cut])
        with pytest.raises(MedsegError, match=f"not a readable .*; go on with --resume {way}$"):
            fit(tmp_path / "run", config(epochs=3), resume=folder)
    assert fit(tmp_path / "run", config(epochs=3), resume=older).epochs == 3


def test_a_damaged_state_without_a_kept_one_is_begun_again(tmp_path):
    fit(tmp_path / "run", config(save_every=0))
    (tmp_path / "run/last/state.safetensors").write_bytes(b"")
    with pytest.raises(MedsegError, match=r"begin again with --overwrite$"):
        fit(tmp_path / "run", config(save_every=0), resume=True)
    assert fit(tmp_path / "run", config(save_every=0), overwrite=True).epochs == 2


def test_a_state_that_is_refused_leaves_the_run_as_it_was(tmp_path):
    fit(tmp_path / "run")
    before = inside(tmp_path / "run")
    with pytest.raises(MedsegError, match="samples 4, not 5"):
        fit(tmp_path / "run", config(epochs=3), Ones(num=5), resume=True)
    assert inside(tmp_path / "run") == before


def test_a_picture_that_the_disk_refuses_costs_a_warning_and_not_the_run(tmp_path, caplog):
    (tmp_path / "run" / "curves.png").mkdir(parents=True)  # a folder where the picture should go
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "run" / "run.json").write_text('{"started": "2020-02-02T02:02:02+0000", "versions": {}}')
    assert fit(tmp_path / "run").reason == "finished"
    assert "curves.png" in caplog.text
