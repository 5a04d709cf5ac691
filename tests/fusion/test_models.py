"""The four networks: `ModelChecks`, the counts of every part, pictures of any size, a modality that is missing."""

import os
from typing import ClassVar

import numpy as np
import pytest
import torch

from medseg_core.checkpoint import train_mode
from medseg_core.errors import MedsegError
from medseg_core.testing.models import ModelChecks
from medseg_fusion.models import MODELS
from medseg_fusion.models.baselines import V1, EarlyConcat, Single
from medseg_fusion.models.dual_unet import FourWay, fusions
from medseg_fusion.models.inputs import padded
from medseg_fusion.models.unet import Decoder, Encoder, conv_block, norm_of
from medseg_fusion.models.vgg import VGGTrunk

SHAPES = ((2, 2, 32, 48), (1, 2, 7, 5), (1, 2, 33, 16), (1, 2, 1, 1))
WIDTHS = (32, 64, 128, 256)
MISSING = [([1, 0], 1), ([0, 1], 0)]


def count(module, *, trainable=None):
    return sum(p.numel() for p in module.parameters() if trainable in (None, p.requires_grad))


def small(name):
    """In eval mode, with attention that counts and the running statistics of what it has seen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return settled(MODELS[name](2, 1, width=4))


def settled(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
        for _ in range(10 if isinstance(model, V1) else 0):
            model.train()(torch.rand(4, 2, 32, 48))
    return model.eval()


class Checks(ModelChecks):
    """Without noise on the weights, which would make VGG's output and with it the energies astronomical."""

    small: ClassVar = {"in_channels": 2, "num_classes": 3, "width": 4}
    shapes = SHAPES

    def _model(self):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return settled(self.build()).to(os.environ.get("MEDSEG_TEST_DEVICE", "cpu"))

    def test_every_parameter_gets_a_gradient(self):
        """But the frozen ones of VGG; a bias before a batch norm may have gradient 0 in training."""
        for model in (self._model(), self._model().train()):
            model(self._input(self.shapes[0])).square().sum().backward()
            for name, parameter in model.named_parameters():
                frozen = name.startswith("vgg_")
                assert (parameter.grad is None) == frozen, name
                assert frozen or parameter.grad.any(), f"{name} has gradient 0"


class TestFourWay(Checks):
    model = FourWay
    num_parameters = (({}, 13_418_341), ({"attention": "unscaled"}, 13_418_341), ({"num_classes": 3}, 13_418_407))


class TestFourWayAsFirstDescribed(Checks):
    model = FourWay
    small: ClassVar = {**Checks.small, "attention": "unscaled", "norm": "instance"}
    num_parameters = (({"norm": "instance"}, 13_418_341),)


class TestEarlyConcat(Checks):
    model = EarlyConcat
    num_parameters = (({}, 8_769_369),)


class TestSingleOnCt(Checks):
    model = Single
    small: ClassVar = {**Checks.small, "modality": "ct"}
    num_parameters = (({}, 8_769_081),)  # 9 * 32 fewer than on two channels


class TestSingleOnPet(TestSingleOnCt):
    small: ClassVar = {**Checks.small, "modality": "pet"}


class TestV1(Checks):
    model = V1
    num_parameters = (({}, 11_439_492),)


def test_the_four_way_network_trains_what_its_docstring_says():
    with torch.device("meta"):
        net = FourWay()
    assert (count(net, trainable=True), count(net, trainable=False)) == (8_769_509, 4_648_832)


def test_v1_trains_what_its_docstring_says():
    with torch.device("meta"):
        net = V1()
    assert (count(net, trainable=True), count(net, trainable=False)) == (6_790_660, 4_648_832)


def test_the_parts_of_the_four_way_network_have_the_stated_counts():
    with torch.device("meta"):
        net = FourWay()
    assert (count(net.encoder_ct), count(net.encoder_pet)) == (1_171_680, 1_171_680)
    assert [count(fuse) for fuse in net.fuse] == [147_520, 589_952, 2_359_552]
    assert [count(attend) for attend in net.attend] == [27_745, 110_785, 442_753, 1_770_241]
    assert count(net.decoder) == 977_601


def test_a_fusion_of_three_streams_takes_three_quarters_of_the_weights():
    with torch.device("meta"):
        assert [count(fuse) for fuse in fusions(WIDTHS, 3, torch.nn.InstanceNorm2d)] == [
            *(9 * 3 * 64 * 64 + 64, 9 * 3 * 128 * 128 + 128, 9 * 3 * 256 * 256 + 256)
        ]


@pytest.mark.parametrize("width", [4, 8, 12, 16, 32, 64])
def test_early_concatenation_trains_as_much_as_the_four_way_network(width):
    with torch.device("meta"):
        ours, early = count(FourWay(width=width), trainable=True), count(EarlyConcat(width=width), trainable=True)
    assert abs(early / ours - 1) < 0.02


def test_vgg_is_projected_only_where_its_widths_differ():
    with torch.device("meta"):
        assert count(FourWay().project) == 0
        assert [count(project) for project in FourWay(width=8).project] == [64 * 16 + 16, 128 * 32 + 32, 256 * 64 + 64]


def test_the_two_trunks_are_separate_so_that_each_may_be_filled():
    trunks = [module for module in FourWay(width=4).modules() if isinstance(module, VGGTrunk)]
    assert len(trunks) == 2
    assert trunks[0] is not trunks[1]


def test_train_mode_leaves_the_trunks_in_eval():
    net = FourWay(width=4)
    train_mode(net)
    assert net.training
    assert not net.vgg_ct.training


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("present", "missing"), MISSING)
def test_the_logits_do_not_depend_on_a_missing_picture_at_all(name, present, missing):
    net, x_N2HW = small(name), torch.rand(1, 2, 32, 48)
    want = net(x_N2HW, torch.tensor([present]))
    for other in (torch.rand(32, 48), torch.full((32, 48), torch.nan)):
        x_N2HW[0, missing] = other
        assert torch.equal(net(x_N2HW, torch.tensor([present])), want)


@pytest.mark.parametrize("name", MODELS)
def test_a_picture_that_is_there_is_looked_at(name):
    net, x_N2HW = small(name), torch.rand(1, 2, 32, 48)
    channel = 1  # Single takes PET by itself
    before = net(x_N2HW, torch.tensor([[1, 1]]))
    x_N2HW[0, channel] = torch.rand(32, 48)
    assert not torch.equal(net(x_N2HW, torch.tensor([[1, 1]])), before)


@pytest.mark.parametrize("name", MODELS)
def test_all_present_is_the_same_as_nothing_said(name):
    net, x_N2HW = small(name), torch.rand(2, 2, 32, 48)
    assert torch.equal(net(x_N2HW, torch.ones(2, 2)), net(x_N2HW))


@pytest.mark.parametrize("name", ["four_way", "early", "v1"])
def test_each_slice_of_a_batch_misses_its_own(name):
    net, x_N2HW = small(name), torch.rand(3, 2, 32, 48)
    present_N2 = torch.tensor([[1, 0], [1, 1], [0, 1]])
    together = net(x_N2HW, present_N2)
    alone = torch.cat([net(x_N2HW[n : n + 1], present_N2[n : n + 1]) for n in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("present", "missing"), MISSING)
def test_the_streams_of_a_missing_picture_reach_attention_as_zeros(present, missing):
    net, seen = small("four_way"), []
    for attend in net.attend:
        attend.register_forward_pre_hook(lambda _, inputs: seen.append(bool(inputs[0].any())))
    net(torch.rand(1, 2, 32, 48), torch.tensor([present]))
    ct, pet = bool(present[0]), bool(present[1])
    assert seen == [ct, pet] + 3 * [ct, pet, ct, pet]


def test_a_missing_picture_teaches_its_encoder_nothing():
    net = small("four_way").train()
    net(torch.rand(2, 2, 32, 48), torch.tensor([[1, 0], [1, 0]])).square().sum().backward()
    assert not any(parameter.grad.any() for parameter in net.encoder_pet.parameters())


@pytest.mark.parametrize(("modality", "other"), [("ct", 1), ("pet", 0)])
def test_single_ignores_the_other_channel(modality, other):
    net, x_N2HW = Single(width=4, modality=modality).eval(), torch.rand(1, 2, 32, 48)
    before = net(x_N2HW)
    x_N2HW[:, other] = torch.nan
    assert torch.equal(net(x_N2HW), before)


@pytest.mark.parametrize(
    ("height", "width", "modes"),
    [(20, 33, ("reflect", "reflect")), (7, 40, ("edge", "reflect")), (1, 16, ("edge", "reflect"))],
)
def test_pictures_are_reflected_where_they_are_large_enough_and_else_repeat_their_edge(height, width, modes):
    picture = np.random.default_rng(0).random((height, width))
    got, crop = padded(torch.from_numpy(picture)[None, None])
    for axis, mode in enumerate(modes):
        missing = max(32, -(-picture.shape[axis] // 16) * 16) - picture.shape[axis]
        ends = [(0, 0), (0, 0)]
        ends[axis] = (missing // 2, missing - missing // 2)
        picture = np.pad(picture, ends, mode=mode)
    assert np.array_equal(got[0, 0].numpy(), picture)
    assert got[..., *crop].shape[2:] == (height, width)


def test_a_picture_that_fits_is_left_alone():
    x_N2HW = torch.rand(1, 2, 32, 64)
    assert padded(x_N2HW)[0] is x_N2HW


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(2, 32, 32), (1, 1, 32, 32), (1, 2, 0, 32), (0, 2, 32, 32), (1, 2, 8, 32, 32)])
def test_another_shape_is_refused_by_its_numbers(name, shape):
    with pytest.raises(MedsegError, match=str(shape)[1:-1]):
        MODELS[name](width=2)(torch.zeros(shape))


@pytest.mark.parametrize("name", MODELS)
def test_presence_of_another_shape_is_refused(name):
    with pytest.raises(MedsegError, match=r"present is \(2,\) for 1 slices; it must be \(N, 2\)"):
        MODELS[name](width=2)(torch.rand(1, 2, 32, 32), torch.ones(2))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("arguments", "told"),
    [({"in_channels": 3}, "in_channels is 3"), ({"num_classes": 0}, "num_classes 0"), ({"width": 0}, "width 0")],
)
def test_arguments_out_of_range_are_refused(name, arguments, told):
    with pytest.raises(MedsegError, match=told):
        MODELS[name](**arguments)


@pytest.mark.parametrize("kind", [FourWay, V1])
def test_an_unknown_attention_is_refused(kind):
    with pytest.raises(MedsegError, match="attention is 'cosine'; it must be 'scaled' or 'unscaled'"):
        kind(attention="cosine")


def test_an_unknown_modality_is_refused():
    with pytest.raises(MedsegError, match="modality is 'mr'; it must be 'ct' or 'pet'"):
        Single(modality="mr")


@pytest.mark.parametrize("name", ["four_way", "early", "single"])
def test_an_unknown_norm_is_refused(name):
    with pytest.raises(MedsegError, match="norm is 'batch'; it must be 'layer' or 'instance'"):
        MODELS[name](norm="batch")


@pytest.mark.parametrize(("name", "kept"), [("layer", True), ("instance", False)])
def test_a_layer_norm_keeps_how_hot_a_slice_is_and_an_instance_norm_does_not(name, kept):
    """Nothing is negative here, so a hotter slice is an affine change of each channel: an instance norm undoes it."""
    block = conv_block(1, 4, norm_of(name))
    with torch.no_grad():
        block[0].weight.abs_()
        block[0].bias.uniform_(1, 2)
        cold, hot = (block(factor * torch.rand(1, 1, 16, 16, generator=torch.manual_seed(0))) for factor in (1, 3))
    assert ((hot - cold).abs().max() > 0.1) == kept


def test_a_level_normalises_what_the_activation_gives():
    """An instance norm comes last, so that each channel of each level has mean 0 and variance 1."""
    for x_NChw in Encoder(1, (4, 8), torch.nn.InstanceNorm2d)(torch.rand(2, 1, 16, 16)):
        torch.testing.assert_close(x_NChw.mean((2, 3)), torch.zeros(x_NChw.shape[:2]), atol=1e-4, rtol=0)
        torch.testing.assert_close(x_NChw.var((2, 3), correction=0), torch.ones(x_NChw.shape[:2]), atol=0.05, rtol=0)


def test_logits_come_at_full_size_from_a_decoder_of_any_depth():
    decoder = Decoder((4, 8, 16), (5, 6), 3, torch.nn.InstanceNorm2d)
    skips = [torch.rand(1, 5, 16, 24), torch.rand(1, 6, 8, 12)]
    assert decoder(torch.rand(1, 16, 4, 6), skips).shape == (1, 3, 16, 24)
