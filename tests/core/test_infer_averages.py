"""Averages over mirror images and over nets: by hand, on positions in the window, in 2D, 3D and planes of a scan."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from medseg_core.infer import infer, mean_of


def random_net(num_axes, *, num_classes=5):
    torch.manual_seed(0)
    kind = nn.Conv2d if num_axes == 2 else nn.Conv3d
    return kind(2, num_classes, 3, padding=1).eval()


def random_image(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def everything(y):
    return y


def positions(x):
    """Logits of channel k: the position along axis k of the window, whatever the image."""
    ramps = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in x.shape[2:]), indexing="ij")
    return torch.stack(ramps).expand(len(x), -1, *x.shape[2:])


@pytest.mark.parametrize("window", [(4, 3), (4, 3, 1), (1, 4, 3), (3, 4, 5)])
def test_what_rises_along_an_axis_is_level_after_mirroring_that_axis_alone(window):
    axes = range(len(window))
    for mirror in (m for n in axes for m in itertools.combinations(axes, n + 1)):
        got = infer(positions, np.zeros((1, *window), np.float32), window=window, reduce=everything, mirror=mirror)
        for axis, edge in enumerate(window):
            want = np.full(edge, (edge - 1) / 2) if axis in mirror else np.arange(edge)
            shape = [edge if a == axis else 1 for a in axes]
            np.testing.assert_allclose(got[axis], np.broadcast_to(want.reshape(shape), window), err_msg=str(mirror))


@pytest.mark.parametrize("space", [(6, 5), (6, 5, 4)])
def test_mirroring_averages_over_all_combinations_of_flips(space):
    image, net, axes = random_image(2, *space), random_net(len(space)), range(len(space))
    got = infer(net, image, window=space, reduce=everything, mirror=axes)
    x = torch.from_numpy(image)[None]
    flips = [[2 + a for a in flip] for n in range(len(space) + 1) for flip in itertools.combinations(axes, n)]
    with torch.no_grad():
        want = sum(net(x.flip(dims)).flip(dims) for dims in flips)[0] / len(flips)
    assert len(flips) == 2 ** len(space)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_planes_of_a_scan_are_mirrored_as_pictures_are():
    image, net = random_image(2, 6, 5, 3), random_net(2)
    planes = lambda x: net(x[..., 0])[..., None]  # noqa: E731
    got = infer(planes, image, window=(6, 5, 1), reduce=everything, mirror=(0, 1))
    for z in range(3):
        want = infer(net, np.ascontiguousarray(image[..., z]), window=(6, 5), reduce=everything, mirror=(0, 1))
        np.testing.assert_allclose(got[..., z], want, atol=1e-6)


@pytest.mark.parametrize("space", [(4, 4), (4, 4, 3), (4, 4, 1)])
@pytest.mark.parametrize("mirror", [(0,), (0, 1), (1, 0)])
def test_mirroring_swaps_left_and_right_channels_along_its_first_axis_only(space, mirror):
    """A net that calls what is bright 'left' (1) or 'right' (2) by the half it lies in, which a flip turns round."""
    halves = torch.zeros(1, 3, *space)
    across = mirror[0]
    halves[:, 1].narrow(1 + across, 0, 2).fill_(1)
    halves[:, 2].narrow(1 + across, 2, 2).fill_(1)
    image = random_image(1, *space)
    options = {"window": space, "reduce": everything, "mirror": mirror, "swap": {1: 2, 2: 1}}
    got = infer(lambda x: halves * x, image, **options)
    np.testing.assert_allclose(got, (halves * torch.from_numpy(image))[0], atol=1e-6)


@pytest.mark.parametrize("space", [(5, 4), (5, 4, 3)])
def test_the_nets_own_output_is_not_written_to_by_mirroring(space):
    kept = torch.ones(1, 2, *space)
    got = infer(lambda x: kept, random_image(1, *space), window=space, reduce=everything, mirror=(0, 1))
    assert (kept == 1).all()
    assert (got == 1).all()


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_an_ensemble_has_the_mean_of_the_probabilities(head):
    to_probs = torch.sigmoid if head == "sigmoid" else lambda y: y.softmax(1)
    nets = []
    for scale in (1.0, 5.0, 0.2):
        net = random_net(2)
        net.weight.data *= scale
        nets.append(net)
    x = torch.randn(1, 2, 6, 6)
    with torch.no_grad():
        want = sum(to_probs(net(x)) for net in nets) / 3
        got = mean_of(nets, head=head)(x)
    np.testing.assert_allclose(to_probs(got), want, atol=1e-6)
    if head == "softmax":
        np.testing.assert_allclose(got.exp(), want, atol=1e-6)


def test_an_ensemble_survives_logits_whose_probabilities_underflow():
    far = nn.Conv2d(1, 1, 1, bias=False).eval()
    nn.init.constant_(far.weight, 500.0)
    with torch.no_grad():
        assert mean_of([far, far], head="sigmoid")(torch.ones(1, 1, 1, 1)).item() == pytest.approx(500)


@pytest.mark.parametrize("space", [(6, 5), (6, 5, 4), (6, 5, 1)])
def test_an_ensemble_in_bf16_averages_probabilities_in_float32(space):
    """Of logits 0, 0 and 0, 8: the mean of the second class is 0.74983, which bf16 does not tell from 0.75."""
    nets = []
    for bias in ([0.0, 0.0], [0.0, 8.0]):
        net = (nn.Conv2d if len(space) == 2 else nn.Conv3d)(1, 2, 1).eval()
        nn.init.zeros_(net.weight)
        net.bias.data = torch.tensor(bias)
        nets.append(net)
    image = np.zeros((1, *space), np.float32)
    got = infer(mean_of(nets), image, window=space, reduce=everything, precision="bf16")
    second = (0.5 + 1 / (1 + np.exp(-8.0))) / 2
    assert got.dtype == np.float32
    for probs, want in zip(np.exp(got), (1 - second, second), strict=True):
        np.testing.assert_allclose(probs, want, rtol=1e-5)
