"""Where weights come from: all of them, the encoder alone, or none; never in part, and never a pickle."""

import shlex

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from medseg_core.checkpoint import Card, load_model, save_model
from medseg_core.cli import app
from medseg_core.errors import MedsegError
from medseg_sem_al.models import MODELS
from medseg_sem_al.models.segmenter import Segmenter
from medseg_sem_al.start import Start


def net(seed, **how):
    torch.manual_seed(seed)
    return Segmenter(**{"width": 2, **how})


def saved(folder, model):
    about = {"head": "softmax", "channels": (0, 1, 2), "labels": {0: "carbon", 1: "SE", 2: "AM"}}
    card = Card(package="medseg-sem-al", version="0", model="segmenter", arguments={"width": 2}, **about)
    save_model(folder / "best.safetensors", model, card)
    return folder


def copied(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return {name for name, tensor in one.items() if torch.equal(tensor, other[name])}


@pytest.fixture
def other(tmp_path):
    """Another network, and its run."""
    model = net(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.state_dict(), saved(tmp_path / "run", model)


def test_nothing_given_leaves_the_weights_as_they_are():
    model = net(0)
    before = copied(model)
    assert Start().fill(model) == "random weights"
    assert same(before, model.state_dict()) == set(before)


@pytest.mark.parametrize("name", ["", "best.safetensors"])
def test_init_fills_all_of_the_network_and_says_with_what(other, name):
    weights, run = other
    model = net(0)
    said = Start(init=run / name).fill(model)
    assert same(weights, model.state_dict()) == set(weights)
    assert said == f"{len(weights)} of {len(weights)} tensors of {run / name}"


def test_encoder_init_fills_the_encoder_and_nothing_else(other):
    weights, run = other
    model = net(0)
    before = copied(model)
    said = Start(encoder_init=run).fill(model)
    inside = {name for name in weights if name.startswith("encoder.")}
    assert len(inside) > 10
    assert same({name: weights[name] for name in inside}, model.state_dict()) == inside
    assert same(before, model.state_dict()) >= set(weights) - inside
    num = sum(weights[name].numel() for name in inside)
    assert said == f"the encoder, {num:,} of {num:,} values, of {run}"


def test_an_encoder_goes_to_a_network_of_other_classes_and_another_decoder(other):
    weights, run = other
    model = net(0, num_classes=7, decoder="deeplabv3plus")
    Start(encoder_init=run).fill(model)
    assert torch.equal(next(model.encoder.parameters()), weights[next(iter(dict(model.named_parameters())))])


@pytest.mark.parametrize(
    ("key", "how"), [("init", {"num_classes": 4}), ("init", {"width": 3}), ("encoder_init", {"width": 3})]
)
def test_weights_that_do_not_fit_are_refused_and_none_of_them_taken(other, key, how):
    model = net(0, **how)
    before = copied(model)
    with pytest.raises(MedsegError, match=r"in the file, .* in the model"):
        Start(**{key: other[1]}).fill(model)
    assert same(before, model.state_dict()) == set(before)


@pytest.mark.parametrize("key", ["init", "encoder_init"])
def test_weights_that_lack_one_tensor_are_refused_and_none_of_them_taken(other, tmp_path, key):
    weights = load_file(other[1] / "best.safetensors")
    lost = [name for name in weights if name.startswith("encoder.")][3]
    del weights[lost]
    save_file(weights, tmp_path / "part.safetensors")
    model = net(0)
    before = copied(model)
    with pytest.raises(MedsegError, match=f"has no '{lost.removeprefix('encoder.' * (key != 'init'))}'"):
        Start(**{key: tmp_path / "part.safetensors"}).fill(model)
    assert same(before, model.state_dict()) == set(before)


def test_weights_without_an_encoder_are_refused(tmp_path):
    save_file({"decoder.weight": torch.zeros(2)}, tmp_path / "none.safetensors")
    with pytest.raises(MedsegError, match=r"no tensor's name starts with 'encoder\.'"):
        Start(encoder_init=tmp_path / "none.safetensors").fill(net(0))


def test_weights_that_are_not_there_are_named(tmp_path):
    with pytest.raises(MedsegError, match=f"no weights at {tmp_path / 'none'}"):
        Start(init=tmp_path / "none").fill(net(0))


@pytest.mark.parametrize(
    "given",
    [{"init": "a", "encoder_init": "b"}, {"init": "a", "pretrained": "hub"}, {"encoder_init": "b", "pretrained": "c"}],
)
def test_two_ways_to_begin_are_refused(given):
    with pytest.raises(MedsegError, match="give one of them"):
        Start(**given)


def test_nobody_has_weights_of_our_own_encoder():
    with pytest.raises(MedsegError, match="nobody published weights of this U-Net"):
        Start(pretrained="hub").fill(net(0))


@pytest.mark.parametrize("key", ["init", "encoder_init"])
@pytest.mark.parametrize("name", ["old.pth", "old.pt", "old.ckpt"])
def test_a_pickle_is_not_opened_and_the_command_that_converts_it_is_told(tmp_path, key, name):
    file = tmp_path / name
    file.write_bytes(b"never opened")
    line = f"medseg checkpoint import {file} {file.with_suffix('.safetensors')} --as sem-al:segmenter --card RUN"
    with pytest.raises(MedsegError) as refused:
        Start(**{key: file}).fill(net(0))
    assert str(refused.value).endswith(f"convert it first: {line}")


def test_the_command_names_the_network_that_is_to_be_filled(tmp_path):
    model = MODELS["six_levels"](width=2)
    with pytest.raises(MedsegError, match="--as sem-al:six_levels"):
        Start(init=tmp_path / "old.pth").fill(model)


def test_the_command_that_was_told_converts_it(other, tmp_path):
    weights, run = other
    old = tmp_path / "of old" / "old.pth"
    old.parent.mkdir()
    torch.save(weights, old)
    with pytest.raises(MedsegError) as refused:
        Start(init=old).fill(net(0))
    words = shlex.split(str(refused.value).split("medseg ")[-1].replace("RUN", str(run)))
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    model = net(0)
    Start(init=old.with_suffix(".safetensors")).fill(model)
    assert same(weights, model.state_dict()) == set(weights)
    assert isinstance(load_model(old.with_suffix(".safetensors"), MODELS)[0], Segmenter)
