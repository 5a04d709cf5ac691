"""The 3D U-Net: `ModelChecks`, and what it does with thick slices."""

from typing import ClassVar

import pytest
import torch

from medseg_core.errors import MedsegError
from medseg_core.testing.models import ModelChecks
from medseg_totalseg.models.unet3d import UNet3d


class TestUNet3d(ModelChecks):
    """A block f -> g has 27fg + 27gg weights and twice g scales and g shifts; an upsampling 8fg + g; the head 33 * 118.

    Down 28,640 + 166,144 + 664,064 + 2,655,232 + 4,977,920, up 655,616 + 262,272 + 65,600 + 16,416, on the way up
    83,072 + 332,032 + 1,327,616 + 5,309,440, the head 3,894.
    """

    model = UNet3d
    small: ClassVar = {"in_channels": 2, "num_classes": 3, "widths": (4, 6, 8)}
    shapes = ((2, 2, 8, 12, 16), (1, 2, 4, 4, 8), (1, 2, 8, 8, 8))
    bad_shapes = ((1, 2, 7, 8, 8), (1, 2, 8, 8, 10), (1, 2, 4, 4, 4), (1, 2, 1, 1, 1), (2, 2, 0, 4, 8))
    num_parameters = (({}, 16_547_958), ({"strides": [[2, 2, 1], [2, 2, 1], [2, 2, 2], [2, 2, 2]]}, 16_506_998))


class TestUNet3dOfThickSlices(ModelChecks):
    """As above; two upsamplings that leave Z alone have 4fg weights: 4 * 64 * 32 + 4 * 128 * 64 = 40,960 fewer."""

    model = UNet3d
    small: ClassVar = {"in_channels": 1, "num_classes": 2, "widths": (4, 6, 8), "strides": ((2, 2, 1), (2, 2, 2))}
    shapes = ((2, 1, 8, 12, 6), (1, 1, 4, 4, 4))
    bad_shapes = ((1, 1, 8, 8, 5), (1, 1, 6, 8, 4), (1, 1, 4, 4, 2))


def test_a_patch_that_cannot_be_divided_names_the_nearest_that_can():
    with pytest.raises(MedsegError, match="multiple of 16x16x16 and larger than that; try 48x64x32 or 64x64x48"):
        UNet3d(1, 2, widths=(2, 2, 2, 2, 2))(torch.zeros(1, 1, 50, 64, 40))


@pytest.mark.parametrize("shape", [(1, 2, 8, 8, 8), (1, 8, 8, 8), (1, 1, 8, 8)])
def test_other_inputs_than_patches_of_its_channels_are_refused(shape):
    with pytest.raises(MedsegError, match=r"takes patches \(N, 1, X, Y, Z\), got"):
        UNet3d(1, 2, widths=(2, 2))(torch.zeros(shape))


@pytest.mark.parametrize("arguments", [{"in_channels": 0}, {"num_classes": 0}, {"widths": ()}, {"widths": (4, 0)}])
def test_channels_below_one_are_refused(arguments):
    with pytest.raises(MedsegError, match="at least 1"):
        UNet3d(**arguments)


@pytest.mark.parametrize("strides", [[[2, 2, 2]], [[2, 2], [2, 2]], [[2, 2, 2], [2, 2, 0]]])
def test_strides_that_do_not_fit_the_widths_are_refused(strides):
    with pytest.raises(MedsegError, match="give 2 of three numbers"):
        UNet3d(1, 2, widths=(2, 2, 2), strides=strides)


def test_each_layer_keeps_the_mean_square_of_what_it_gets():
    """In expectation, and for a convolution when a ReLU comes before it (He et al., 2015)."""
    torch.manual_seed(0)
    net = UNet3d(1, 64, widths=(32, 64))
    fine, coarse = torch.randn(2, 32, 12, 12, 12), torch.randn(2, 64, 6, 6, 6)
    with torch.no_grad():
        conv = net.encode[0][3](fine.relu())[..., 1:-1, 1:-1, 1:-1]  # what padding thins out aside
        for y in (conv, net.upsample[0](coarse), net.head(fine)):
            assert y.square().mean() == pytest.approx(1, rel=0.15)


def test_a_level_that_leaves_z_alone_shows_so_under_deep_supervision():
    net = UNet3d(1, 2, widths=(2, 3, 4, 5), strides=((2, 2, 1), (2, 2, 1), (2, 2, 2)), deep_supervision=True)
    levels = net(torch.zeros(1, 1, 16, 16, 8), deep=True)
    assert [tuple(y.shape[2:]) for y in levels] == [(16, 16, 8), (8, 8, 8), (4, 4, 8)]


def test_learns_two_shapes_by_heart_in_forty_steps():
    torch.manual_seed(0)
    label = torch.zeros(1, 16, 16, 16, dtype=torch.int64)
    label[:, 2:7, 3:10, 2:9], label[:, 9:14, 5:8, 8:15] = 1, 2
    image = (label == 1).float()[:, None] - (label == 2).float()[:, None] + 0.3 * torch.randn(1, 1, 16, 16, 16)
    net = UNet3d(1, 3, widths=(8, 16))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(image), label).backward()
        optimizer.step()
    with torch.no_grad():
        assert (net.eval()(image).argmax(1) == label).float().mean() > 0.98
