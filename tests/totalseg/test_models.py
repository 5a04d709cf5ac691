"""The 2D U-Net: `ModelChecks`, and the counts that the original printed; and what all networks share."""

from typing import ClassVar

import pytest
import torch

from medseg_core.errors import MedsegError
from medseg_core.testing.models import ModelChecks
from medseg_totalseg.models import MODELS
from medseg_totalseg.models.unet2d import UNet2d
from medseg_totalseg.models.unet2d_attention import AttentionUNet2d
from medseg_totalseg.models.unet3d import UNet3d


class TestUNet2d(ModelChecks):
    model = UNet2d
    small: ClassVar = {"in_channels": 2, "num_classes": 3, "widths": (4, 6, 8)}
    shapes = ((2, 2, 16, 24), (1, 2, 4, 4), (1, 2, 12, 8))
    bad_shapes = ((1, 2, 15, 16), (1, 2, 16, 18), (1, 2, 3, 1), (2, 2, 0, 4))
    num_parameters = (({"in_channels": 1, "num_classes": 117}, 7_769_237), ({}, 7_769_270))


def test_networks_are_registered_under_the_names_that_cards_hold():
    assert {"unet2d": UNet2d, "unet2d-attention": AttentionUNet2d, "unet3d": UNet3d} == MODELS


def small(name, **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MODELS[name](1, 3, widths=(4, 6, 8, 10), **more)
        return net, torch.randn(2, 1, *[16] * (3 if name == "unet3d" else 2))


@pytest.mark.parametrize("name", MODELS)
def test_deep_supervision_answers_at_every_level_but_the_coarsest(name):
    net, x = small(name, deep_supervision=True)
    levels = net(x, deep=True)
    assert [tuple(y.shape[:2]) for y in levels] == [(2, 3)] * 3
    assert [y.shape[-1] for y in levels] == [16, 8, 4]
    assert all(len(set(y.shape[2:])) == 1 for y in levels)


@pytest.mark.parametrize("name", MODELS)
def test_the_finest_level_is_what_the_network_answers_without_the_others(name):
    net, x = small(name, deep_supervision=True)
    net.eval()
    assert torch.equal(net(x, deep=True)[0], net(x))


@pytest.mark.parametrize("name", MODELS)
def test_with_deep_supervision_every_parameter_takes_part(name):
    net, x = small(name, deep_supervision=True)
    sum(y.square().mean() for y in net(x, deep=True)).backward()
    assert [key for key, parameter in net.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", MODELS)
def test_without_deep_supervision_there_are_no_heads_for_it(name):
    """Two levels lie between the first and the last: (6 + 1) * 3 and (8 + 1) * 3 parameters."""
    with_heads, without = (
        sum(p.numel() for p in small(name, deep_supervision=deep)[0].parameters()) for deep in (True, False)
    )
    assert with_heads - without == (6 + 1) * 3 + (8 + 1) * 3


def test_a_size_that_cannot_be_halved_names_the_nearest_that_can():
    with pytest.raises(MedsegError, match="250x300 must be a multiple of 16; try 240x288 or 256x304"):
        UNet2d(1, 2, widths=(2, 2, 2, 2, 2))(torch.zeros(1, 1, 250, 300))


@pytest.mark.parametrize("shape", [(1, 2, 16, 16), (1, 16, 16), (1, 1, 16, 16, 16)])
def test_other_inputs_than_slices_of_its_channels_are_refused(shape):
    with pytest.raises(MedsegError, match=r"takes slices \(N, 1, H, W\), got"):
        UNet2d(1, 2, widths=(2, 2))(torch.zeros(shape))


@pytest.mark.parametrize("arguments", [{"in_channels": 0}, {"num_classes": 0}, {"widths": ()}, {"widths": (4, 0)}])
def test_channels_below_one_are_refused(arguments):
    with pytest.raises(MedsegError, match="at least 1"):
        UNet2d(**arguments)


def test_each_layer_keeps_the_mean_square_of_what_it_gets():
    """In expectation, and for a convolution when a ReLU comes before it (He et al., 2015)."""
    torch.manual_seed(0)
    net = UNet2d(1, 64, widths=(64, 128))
    fine, coarse = torch.randn(2, 64, 32, 32), torch.randn(2, 128, 16, 16)
    with torch.no_grad():
        conv = net.encode[1][0](fine.relu())[..., 1:-1, 1:-1]  # what padding thins out aside
        for y in (conv, net.upsample[0](coarse), net.head(fine)):
            assert y.square().mean() == pytest.approx(1, rel=0.15)


def test_learns_two_shapes_by_heart_in_forty_steps():
    torch.manual_seed(0)
    label = torch.zeros(1, 32, 32, dtype=torch.int64)
    label[:, 4:12, 6:20], label[:, 18:28, 10:16] = 1, 2
    image = (label == 1).float()[:, None] - (label == 2).float()[:, None] + 0.3 * torch.randn(1, 1, 32, 32)
    net = UNet2d(1, 3, widths=(8, 16))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(image), label).backward()
        optimizer.step()
    with torch.no_grad():
        assert (net.eval()(image).argmax(1) == label).float().mean() > 0.98
