"""The four networks: `ModelChecks`, the counts of every layer, pictures of any size, and what stays frozen."""

import os
from typing import ClassVar

import pytest
import torch

from medseg_cardiac.models.attention_unet import AttentionUNet, DoubleConv, Gate, UpConv
from medseg_cardiac.models.cascade import Cascade
from medseg_cardiac.models.motion import Motion
from medseg_cardiac.models.registration import Registration
from medseg_core.checkpoint import train_mode
from medseg_core.errors import MedsegError
from medseg_core.testing.models import ModelChecks


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def on_pairs(kind):
    """The network with both pictures as channels of one input, as the checks give them."""

    class OnPairs(kind):
        def __init__(self, in_channels=2, num_classes=2, **more):
            super().__init__(**more)

        def forward(self, x):
            return super().forward(x[:, :1], x[:, 1:])

    return OnPairs


class TestMotion(ModelChecks):
    model = on_pairs(Motion)
    small: ClassVar = {"in_channels": 2, "num_classes": 2}
    shapes = ((2, 2, 32, 48), (1, 2, 7, 5), (1, 2, 33, 16))
    num_parameters = (({}, 1_137_638), ({"diffeomorphic": True}, 1_137_638))


class TestRegistration(ModelChecks):
    model = on_pairs(Registration)
    small: ClassVar = {"in_channels": 2, "num_classes": 2}
    shapes = ((2, 2, 16, 24), (1, 2, 7, 5))
    num_parameters = (({}, 1_956_674),)


class Calm:
    """With the statistics of what it has seen, and without noise on its weights, which would shut or open all gates."""

    def _model(self):
        torch.manual_seed(0)
        model = self.build()
        for _ in range(10):
            model.train()(torch.randn(4, 4, 32, 48))
        return model.eval().to(os.environ.get("MEDSEG_TEST_DEVICE", "cpu"))


class TestAttentionUNet(Calm, ModelChecks):
    model = AttentionUNet
    small: ClassVar = {"in_channels": 4, "num_classes": 2, "width": 16}
    shapes = ((2, 4, 32, 48), (1, 4, 7, 5))
    num_parameters = (({}, 34_879_149), ({"in_channels": 3}, 34_878_573), ({"in_channels": 1}, 34_877_421))


class TestCascade(Calm, ModelChecks):
    model: ClassVar = type(
        "OnPairs", (Cascade,), {"forward": lambda self, x: Cascade.forward(self, x[:, :1], x[:, 1:2])}
    )
    small: ClassVar = {"in_channels": 4, "num_classes": 1, "width": 8}
    shapes = ((2, 4, 32, 48), (1, 4, 7, 5))
    num_parameters = (({}, 1_137_638 + 34_879_149),)

    def test_every_parameter_gets_a_gradient(self):
        model = self._model()
        model(self._input(self.shapes[0])).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == name.startswith("motion."), name


def test_the_layers_of_the_motion_net_have_the_stated_counts():
    net = Motion()
    encoder, decoder = net.encoder, net.decoder
    assert [count(m) for m in (encoder.conv1, encoder.conv2, encoder.conv3, encoder.conv4)] == [
        *(3_232, 51_392, 74_112, 295_680)
    ]
    heads = (decoder.flow_pred4, decoder.flow_pred3, decoder.flow_pred2, decoder.flow_pred1, decoder.final_flow)
    assert [count(m) for m in heads] == [4_610, 4_646, 2_342, 1_190, 290]
    ups = (decoder.upconv3, decoder.upconv2, decoder.upconv1, decoder.final_upconv)
    assert [count(m) for m in ups] == [524_416, 133_184, 33_824, 8_720]


def test_the_layers_of_the_registration_net_have_the_stated_counts():
    net = Registration().unet
    blocks = (net.enc1, net.enc2, net.enc3, net.enc4, net.dec4, net.dec3, net.dec2, net.dec1, net.flow_layer)
    assert [count(m) for m in blocks] == [9_984, 55_680, 221_952, 886_272, 590_592, 147_840, 37_056, 7_008, 290]


def test_the_layers_of_the_attention_unet_have_the_stated_counts():
    with torch.device("meta"):
        assert [count(DoubleConv(*io)) for io in ((4, 64), (512, 1024))] == [39_552, 14_161_920]
        assert [count(UpConv(2 * w, w)) for w in (512, 256, 128, 64)] == [4_720_128, 1_180_416, 295_296, 73_920]
        assert [count(Gate(w)) for w in (512, 256, 128, 64)] == [263_939, 66_435, 16_835, 4_323]
        assert [count(DoubleConv(2 * w, w)) for w in (512, 256, 128, 64)] == [7_080_960, 1_771_008, 443_136, 110_976]


def test_a_fresh_motion_net_hardly_moves_anything():
    torch.manual_seed(0)
    pair = torch.rand(2, 1, 1, 64, 64)
    for kind in (Motion, Registration):
        assert kind().eval()(*pair).abs().max() < 0.05


@pytest.mark.parametrize("kind", [Motion, Registration])
def test_nothing_folds_when_a_wild_answer_is_integrated(kind):
    """The same weights without integration fold; that is what the option is for."""
    from medseg_cardiac.fields import num_folds

    torch.manual_seed(0)
    wild, calm, pair = kind().train(), kind(diffeomorphic=True).train(), torch.rand(2, 1, 1, 64, 64)
    last = wild.decoder.final_flow if kind is Motion else wild.unet.flow_layer
    with torch.no_grad():
        last.weight.mul_(1.5 / wild(*pair).std())
        calm.load_state_dict(wild.state_dict())
        assert num_folds(wild(*pair)).item() > 0
        assert num_folds(calm(*pair)).item() == 0


def test_pictures_of_two_sizes_are_no_pair():
    with pytest.raises(MedsegError, match="one size"):
        Motion()(torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 48))


def test_the_motion_net_inside_a_cascade_keeps_its_statistics_in_training():
    net = Cascade(width=8)
    train_mode(net)
    before = {name: buffer.clone() for name, buffer in net.motion.named_buffers()}
    net(torch.rand(2, 1, 32, 32), torch.rand(2, 1, 32, 32))
    assert all(torch.equal(before[name], buffer) for name, buffer in net.motion.named_buffers())


def test_a_cascade_that_sees_end_diastole_alone_does_not_notice_the_other_frame():
    net = Cascade(width=8, sees="ed").eval()
    ed, es, other = torch.rand(3, 1, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(net(ed, es), net(ed, other))


def test_no_grid_of_one_size_is_kept_among_the_tensors():
    assert not [name for name in Cascade(width=8).state_dict() if "grid" in name]
