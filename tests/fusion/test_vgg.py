"""VGG19 for grey pictures beside the same layers on three normalised colours, and which files fill it."""

import socket

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from medseg_core.errors import MedsegError
from medseg_fusion.models.vgg import LUMA, REPLICATED, VGGTrunk, load_vgg, vgg_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of torchvision's documentation
CONVOLUTIONS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128)} | {
    place: (128 if place == 10 else 256, 256) for place in (10, 12, 14, 16)
}


@pytest.fixture(scope="module")
def state():
    """As torchvision names it: the layers to relu3_4, one deeper, one of the classifier."""
    rng = torch.Generator().manual_seed(0)
    tensors = {}
    for place, (before, after) in CONVOLUTIONS.items():
        tensors[f"features.{place}.weight"] = torch.randn(after, before, 3, 3, generator=rng) / (9 * before) ** 0.5
        tensors[f"features.{place}.bias"] = torch.randn(after, generator=rng)
    return tensors | {"features.19.weight": torch.zeros(2, 2), "classifier.6.bias": torch.zeros(3)}


def saved(folder, tensors, name="vgg.safetensors"):
    safetensors.torch.save_file(tensors, folder / name)
    return folder / name


def in_three_colours(state, grey_N1HW, shares):
    """The layers one by one, with the additional pool after relu1_1."""
    colours = [(grey_N1HW - mean) / std * share for mean, std, share in zip(MEAN, STD, shares, strict=True)]
    x, outputs = torch.cat(colours, 1), []
    for place in CONVOLUTIONS:
        kernel, bias = (state[f"features.{place}.{kind}"].to(x.dtype) for kind in ("weight", "bias"))
        x = F.conv2d(x, kernel, bias, padding=1).relu()
        if place in (2, 7, 16):
            outputs.append(x)
        if place in (0, 2, 7):
            x = F.max_pool2d(x, 2)
    return outputs


def test_it_has_the_parameters_of_eight_convolutions_on_grey():
    assert sum(parameter.numel() for parameter in VGGTrunk().parameters()) == 2_324_416


def test_its_outputs_lie_on_the_grids_of_the_levels_of_a_unet():
    shapes = [tuple(x.shape) for x in VGGTrunk()(torch.rand(2, 1, 32, 48))]
    assert shapes == [(2, 64, 16, 24), (2, 128, 8, 12), (2, 256, 4, 6)]


@pytest.mark.parametrize("shares", [LUMA, REPLICATED])
def test_a_grey_picture_gives_what_three_normalised_colours_give_up_to_the_border(tmp_path, state, shares):
    trunk = VGGTrunk().double()
    load_vgg(trunk, saved(tmp_path, state), shares=shares)
    grey_N1HW = torch.rand(2, 1, 16, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for got, want in zip(trunk(grey_N1HW), in_three_colours(state, grey_N1HW, shares), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prefix", ["features.", ""])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_both_kinds_of_file_and_of_names_fill_it(tmp_path, state, prefix, suffix):
    tensors = {name.replace("features.", prefix): tensor for name, tensor in state.items()}
    file = saved(tmp_path, tensors) if suffix == ".safetensors" else tmp_path / "vgg.pth"
    if suffix == ".pth":
        torch.save(tensors, file)
    trunk = VGGTrunk()
    assert load_vgg(trunk, file).matched == 16
    assert torch.equal(trunk.conv3_4.weight, state["features.16.weight"])


def test_what_lies_deeper_is_told_as_ignored(tmp_path, state):
    assert load_vgg(VGGTrunk(), saved(tmp_path, state)).ignored == ("19.weight", "classifier.6.bias")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"features.16.weight": None}, "lacks 'features.16.weight', 15 of 16 tensors match"),
        ({"features.1.running_mean": torch.zeros(64)}, "unknown '1.running_mean', 16 of 16 tensors match"),
        ({"features.5.bias": torch.zeros(64)}, r"'features.5.bias' is \(64,\) torch.float32, and VGG19 has \(128,\)"),
        ({"features.0.weight": torch.zeros(64, 1, 3, 3)}, r"VGG19 has \(64, 3, 3, 3\)"),
        ({"features.2.bias": torch.zeros(64, dtype=torch.int64)}, "torch.int64"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(tmp_path, state, change, told):
    tensors = {name: tensor for name, tensor in (state | change).items() if tensor is not None}
    trunk = VGGTrunk()
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    with pytest.raises(MedsegError, match=told):
        load_vgg(trunk, saved(tmp_path, tensors))
    assert all(torch.equal(before[name], tensor) for name, tensor in trunk.state_dict().items())


@pytest.mark.parametrize("name", ["vgg.safetensors", "vgg.pth"])
def test_a_damaged_file_and_a_missing_one_are_refused_by_name(tmp_path, name):
    with pytest.raises(MedsegError, match=name):
        load_vgg(VGGTrunk(), tmp_path / name)
    (tmp_path / name).write_bytes(b"PK or not")
    with pytest.raises(MedsegError, match=name):
        load_vgg(VGGTrunk(), tmp_path / name)


def test_it_stays_frozen_while_the_network_around_it_trains(tmp_path, state):
    trunk = VGGTrunk()
    around = nn.Sequential(trunk).train()
    load_vgg(trunk, saved(tmp_path, state))
    assert not trunk.training
    assert not any(module.training for module in trunk.modules())
    assert not any(parameter.requires_grad for parameter in around.parameters())


def test_a_random_trunk_keeps_the_size_of_its_signal():
    """He et al.: the mean square stays of one order from layer to layer; the lower bound is for dead pictures."""
    torch.manual_seed(0)
    first, *_, last = VGGTrunk()(torch.rand(1, 1, 64, 64))
    assert 0.1 < float(last.square().mean() / first.square().mean()) < 10


def test_random_means_no_file():
    assert vgg_weights("random") is None


def test_a_file_is_taken_as_it_is_named(tmp_path, state):
    assert vgg_weights(str(saved(tmp_path, state))) == tmp_path / "vgg.safetensors"


def test_a_file_that_is_not_there_is_refused_with_the_other_choices(tmp_path):
    with pytest.raises(MedsegError, match=r"no file .*lost\.pth.*--vgg imagenet.*--vgg random"):
        vgg_weights(str(tmp_path / "lost.pth"))


def test_imagenet_is_the_file_that_torchvision_left(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    assert vgg_weights("imagenet") == file


def test_without_it_one_line_says_where_to_get_it_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MedsegError) as refusal:
        vgg_weights("imagenet")
    place = str(tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth")
    for part in (place, "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth", "--vgg FILE", "--vgg random"):
        assert part in str(refusal.value)


def test_nothing_is_fetched(tmp_path, monkeypatch):
    def connect(*_):
        raise AssertionError("asked the network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", connect)
    VGGTrunk()
    with pytest.raises(MedsegError, match="none are downloaded"):
        vgg_weights("imagenet")
