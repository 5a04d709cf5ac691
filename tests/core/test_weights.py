"""What a checkpoint holds, told without reading it."""

from importlib.metadata import EntryPoint

import pytest
import torch
from torch import nn

from medseg_core import checkpoint
from medseg_core.checkpoint import Card, freeze, save_model, save_state
from medseg_core.errors import MedsegError
from medseg_core.weights import checkpoint_screen, describe_checkpoint


class Cascade(nn.Module):
    """A frozen part of 3 * 2 + 2 parameters, a trained one of 2 * 5 + 5, a norm with 2 * 5 + 1 buffers."""

    def __init__(self):
        super().__init__()
        self.motion, self.segment = freeze(nn.Linear(3, 2)), nn.Linear(2, 5)
        self.norm = nn.BatchNorm1d(5, affine=False)


MODELS = {"cascade": Cascade}
CARD = Card(package="medseg-test", version="0", model="cascade")


@pytest.fixture
def installed(monkeypatch):
    point = EntryPoint("medseg-test", f"{__name__}:MODELS", "medseg.models")
    monkeypatch.setattr(EntryPoint, "load", lambda self: MODELS)
    monkeypatch.setattr(checkpoint, "entry_points", lambda group: [point])


def test_parts_that_the_class_freezes_are_counted(installed, tmp_path):
    save_model(tmp_path / "w", Cascade(), CARD)
    facts = describe_checkpoint(tmp_path / "w")
    assert facts["parameters"] == {"total": 23, "trainable": 15, "frozen": 8}
    assert facts["buffers"] == 11
    assert facts["bytes_of_tensors"] == 4 * (23 + 10) + 8
    assert "23, 8 of them frozen; buffers 11" in checkpoint_screen(facts)


def test_where_the_class_is_not_installed_that_is_said(tmp_path):
    save_model(tmp_path / "w", Cascade(), CARD)
    facts = describe_checkpoint(tmp_path / "w")
    assert facts["parameters"] is None
    assert "unknown: no installed package registers the models of 'medseg-test'" in checkpoint_screen(facts)


def test_a_card_cannot_paint_the_terminal(tmp_path):
    card = Card(package="p", version="\x1b[2J", model="m\nerror: all is lost", labels={1: "\x07liver"})
    save_model(tmp_path / "w", nn.Linear(1, 1), card)
    lines = checkpoint_screen(describe_checkpoint(tmp_path / "w")).splitlines()
    assert all(line.isprintable() for line in lines)
    assert not [line for line in lines if line.startswith("error:")]


@pytest.mark.parametrize(
    "position", [None, 3, [], {}, {"best": 3, "epoch": "a"}, {"best": {"metrics": [1]}, "step": []}]
)
def test_a_state_that_says_nonsense_is_still_described(tmp_path, position):
    save_state(tmp_path / "state.safetensors", {"model": {"w": torch.ones(7)}}, {"position": position})
    facts = describe_checkpoint(tmp_path)
    assert facts["parts"] == {"model": 7}
    assert checkpoint_screen(facts)


def test_a_run_without_weights_is_its_state(tmp_path):
    position = {"epoch": 4, "step": 1200, "best": {"value": 0.5, "metrics": {"dice": 0.5}}, "reason": ""}
    save_state(tmp_path / "last" / "state.safetensors", {"model": {"w": torch.ones(7)}}, {"position": position})
    facts = describe_checkpoint(tmp_path)
    assert (facts["epoch"], facts["step"], facts["best"]) == (4, 1200, {"dice": 0.5})
    assert "after epoch 4, step 1,200; not ended" in checkpoint_screen(facts)


def test_a_folder_without_either_is_one_line(tmp_path):
    with pytest.raises(MedsegError, match="no weights at"):
        describe_checkpoint(tmp_path)
