"""Channel attention: its counts, an example by hand, and why the energies are scaled."""

import math

import pytest
import torch

from medseg_fusion.models.attention import ChannelAttention


def plain(channels, *, scaled, gamma=0.0):
    """Its convolutions hand on what they get."""
    net = ChannelAttention(channels, scaled=scaled)
    with torch.no_grad():
        for conv in (net.query, net.key, net.value):
            torch.nn.init.dirac_(conv.weight)
            conv.bias.zero_()
        net.gamma.fill_(gamma)
    return net


def mean_of_largest_weights(*, scaled):
    """Over the rows, of a fresh block on white noise of 64 x 64."""
    rng = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ChannelAttention(64, scaled=scaled)
    with torch.no_grad():
        return float(net.weights(torch.randn(1, 64, 64, 64, generator=rng)).amax(-1).mean())


@pytest.mark.parametrize(("channels", "count"), [(32, 27_745), (64, 110_785), (128, 442_753), (256, 1_770_241)])
def test_it_has_three_convolutions_and_one_number(channels, count):
    assert sum(parameter.numel() for parameter in ChannelAttention(channels).parameters()) == count


@pytest.mark.parametrize(("scaled", "spread"), [(False, 1.0), (True, 0.5)])
def test_two_channels_of_two_pixels_are_mixed_as_by_hand(scaled, spread):
    """E = [[1, 1], [1, 2]], so that the first row is even and the second prefers the less similar channel."""
    x_NChw = torch.tensor([[[[1.0, 0.0]], [[1.0, 1.0]]]])
    less = 1 / (1 + math.exp(-spread))
    mixed = torch.tensor([[[[1.0, 0.5]], [[1.0, 1 - less]]]])
    torch.testing.assert_close(plain(2, scaled=scaled, gamma=3.0)(x_NChw), 3 * mixed + x_NChw)


def test_a_fresh_block_is_its_value_convolution():
    net, x_NChw = ChannelAttention(4), torch.rand(2, 4, 6, 5)
    assert torch.equal(net(x_NChw), net.value(x_NChw))


def test_unscaled_energies_pick_one_channel_per_row():
    assert mean_of_largest_weights(scaled=False) > 0.9


def test_scaled_energies_leave_a_mixture():
    assert mean_of_largest_weights(scaled=True) < 0.2


def test_scaled_energies_do_not_depend_on_the_size_of_the_picture():
    x_NChw = torch.rand(1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    net = plain(4, scaled=True)
    torch.testing.assert_close(net.weights(x_NChw.repeat(1, 1, 3, 4)), net.weights(x_NChw))


def test_energies_are_exact_under_autocast():
    """Sums of 1024 and 1025 are one number in bfloat16; their difference of 1 weighs the channels e : 1."""
    x_NChw = torch.zeros(1, 2, 41, 25)
    x_NChw[0, 0] = 1
    x_NChw[0, 1].view(-1)[:1024] = 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weights = plain(2, scaled=False).weights(x_NChw)
    even, odd = 0.5, 1 / (1 + math.e)
    torch.testing.assert_close(weights, torch.tensor([[[odd, 1 - odd], [even, even]]]))


def test_its_gradient_is_right_in_float64():
    net = ChannelAttention(3).double()
    torch.nn.init.ones_(net.gamma)
    x_NChw = torch.rand(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(net, (x_NChw,))
