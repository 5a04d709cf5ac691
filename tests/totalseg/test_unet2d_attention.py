"""The Attention U-Net: `ModelChecks`, and what its gates are."""

from typing import ClassVar

import pytest
import torch

from medseg_core.errors import MedsegError
from medseg_core.testing.models import ModelChecks
from medseg_totalseg.models.unet2d_attention import AttentionUNet2d, Gate


class TestAttentionUNet2d(ModelChecks):
    """The U-Net's 7,769,270, and in a gate between widths f and g = f / 2: 4gg for the skip, fg + g = 2gg + g for the
    coarser level, g + 1 for the sum. That is 6gg + 2g + 1: 6,209 + 24,705 + 98,561 + 393,729 = 523,204."""

    model = AttentionUNet2d
    small: ClassVar = {"in_channels": 2, "num_classes": 3, "widths": (3, 4, 5)}  # wider, its random gates are all shut
    shapes = ((2, 2, 16, 24), (1, 2, 4, 4), (1, 2, 12, 8))
    bad_shapes = ((1, 2, 15, 16), (1, 2, 16, 18), (1, 2, 3, 1), (2, 2, 0, 4))
    num_parameters = (({}, 7_769_270 + 523_204), ({"num_classes": 117}, 7_769_237 + 523_204))


def gates_of(net, x):
    """What each gate of a network lets through, coarsest first."""
    seen = []
    hooks = [gate.register_forward_hook(lambda *given: seen.append(given[2])) for gate in net.gates]
    net(x)
    for hook in hooks:
        hook.remove()
    return seen


def test_gates_lie_between_0_and_1_with_one_number_a_pixel():
    torch.manual_seed(0)
    seen = gates_of(AttentionUNet2d(1, 2, widths=(4, 6, 8)), 10 * torch.randn(2, 1, 16, 24))
    assert [tuple(gate.shape) for gate in seen] == [(2, 1, 8, 12), (2, 1, 16, 24)]
    for gate in seen:
        assert 0 < gate.min() < gate.max() < 1


def test_a_gate_is_the_sigmoid_of_what_both_sides_add_up_to():
    """By hand: skip 3 everywhere, coarse -1; 4 * 0.5 * 3 + 2 * -1 + 0.5 = 4.5; 0.25 * 4.5 - 1 = 0.125."""
    gate = Gate(1, 1)
    with torch.no_grad():
        for layer, weight, bias in ((gate.of_skip, 0.5, None), (gate.of_coarse, 2.0, 0.5), (gate.together, 0.25, -1.0)):
            layer.weight.fill_(weight)
            if bias is not None:
                layer.bias.fill_(bias)
        let_through = gate(torch.full((1, 1, 4, 4), 3.0), torch.full((1, 1, 2, 2), -1.0))
    assert torch.allclose(let_through, torch.sigmoid(torch.tensor(0.125)).expand(1, 1, 4, 4))


def test_shut_gates_keep_the_skips_out():
    """With every gate at 0 the network sees its input through the coarsest level alone: fine detail is gone."""
    torch.manual_seed(0)
    net = AttentionUNet2d(1, 2, widths=(4, 6)).eval()
    with torch.no_grad():
        net.gates[0].together.weight.zero_()
        net.gates[0].together.bias.fill_(-200.0)
        net.encode[1].apply(lambda layer: layer.weight.data.zero_() if hasattr(layer, "weight") else None)
        first, second = (net(torch.randn(1, 1, 8, 8)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("shape", [(1, 2, 16, 16), (1, 16, 16)])
def test_other_inputs_than_slices_of_its_channels_are_refused(shape):
    with pytest.raises(MedsegError, match=r"takes slices \(N, 1, H, W\), got"):
        AttentionUNet2d(1, 2, widths=(2, 2))(torch.zeros(shape))


@pytest.mark.parametrize("arguments", [{"in_channels": 0}, {"num_classes": 0}, {"widths": ()}, {"widths": (4, 0)}])
def test_channels_below_one_are_refused(arguments):
    with pytest.raises(MedsegError, match="at least 1"):
        AttentionUNet2d(**arguments)
