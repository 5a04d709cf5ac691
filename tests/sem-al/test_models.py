"""Networks: shapes, counts, and that what is loaded is what is asked for."""

from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from medseg_core.errors import MedsegError
from medseg_core.testing.models import ModelChecks
from medseg_sem_al.models.encoders import ViTEncoder, encoder_of, load_pretrained, of_timm
from medseg_sem_al.models.original import SixLevels
from medseg_sem_al.models.segmenter import Segmenter, padded

pytest.importorskip("timm")
TWO = {"in_channels": 2, "num_classes": 4}


class TestUNet(ModelChecks):
    model = Segmenter
    small: ClassVar = {**TWO, "width": 2}
    shapes = ((2, 2, 32, 48), (1, 2, 33, 50), (1, 2, 5, 9))
    # 64 to 1024 channels is the count that is known of the U-Net with transposed convolutions and without biases
    num_parameters = (
        ({"in_channels": 3, "width": 64}, 31_037_763),
        ({}, 1_942_323),
    )


class TestSixLevels(ModelChecks):
    model = SixLevels
    small: ClassVar = {**TWO, "width": 2}
    shapes = ((2, 2, 64, 64), (1, 2, 33, 50))
    num_parameters = (({}, 201_891_907), ({"in_channels": 1}, 201_890_755))


class TestResNet(ModelChecks):
    model = Segmenter
    small: ClassVar = {**TWO, "encoder": "resnet18"}
    shapes = ((2, 2, 64, 64), (1, 2, 45, 70))


class TestDeepLab(ModelChecks):
    model = Segmenter
    small: ClassVar = {**TWO, "width": 2, "decoder": "deeplabv3plus"}
    shapes = ((2, 2, 32, 48), (1, 2, 33, 50))


class TestViT(ModelChecks):
    model = Segmenter
    small: ClassVar = {**TWO, "encoder": "vit_tiny"}
    shapes = ((2, 2, 32, 64), (1, 2, 45, 70))


def test_the_encoder_of_the_original_has_as_many_parameters_as_it_had():
    with torch.device("meta"):
        encoder = SixLevels(3, 3).encoder
    assert sum(p.numel() for p in encoder.parameters()) == 75_478_464


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("resnet34", (64, 64, 128, 256, 512)),
        ("resnet50", (64, 256, 512, 1024, 2048)),
        ("efficientnet_b4", (24, 32, 56, 160, 448)),
        ("efficientnet_b5", (24, 40, 64, 176, 512)),
    ],
)
def test_levels_of_known_networks_have_the_published_channels(name, widths):
    encoder = encoder_of(name, 1)
    assert encoder.widths == widths
    assert encoder.strides == (2, 4, 8, 16, 32)


def test_dinov2_has_the_published_size_and_a_token_for_16_pixels_of_any_picture():
    encoder = encoder_of("dinov2_small", 3)
    assert sum(p.numel() for p in encoder.parameters()) == 22_056_576 - 384  # as published, without its mask token
    with torch.inference_mode():
        levels = encoder.eval()(torch.zeros(1, 3, 64, 96))
    assert [tuple(level.shape) for level in levels] == [(1, 384, 4, 6)] * 4


def test_an_unknown_encoder_is_refused_with_the_nearest():
    with pytest.raises(MedsegError, match=r"resnet43.*did you mean .*resnet34"):
        Segmenter(encoder="resnet43")


def test_what_is_padded_is_the_picture_in_its_own_mirror():
    x = torch.arange(6.0).reshape(1, 1, 1, 6)
    wide, place = padded(x, 8)
    assert wide[0, 0, 0].tolist() == [1, 0, 1, 2, 3, 4, 5, 4]
    assert wide[..., *place].tolist() == x.tolist()


@pytest.mark.parametrize("num_classes", [1000, 5, 0])
def test_published_weights_fill_the_encoder_from_a_file_and_say_how_much(tmp_path, num_classes):
    torch.manual_seed(0)
    donor = of_timm("resnet18", 3, num_classes=num_classes)
    save_file(donor.state_dict(), tmp_path / "resnet18.safetensors")
    encoder = encoder_of("resnet18", 1)
    filled, total = load_pretrained(encoder, tmp_path / "resnet18.safetensors")
    assert filled == total
    assert torch.equal(encoder.body.layer1[0].conv1.weight, donor.layer1[0].conv1.weight)
    # one grey channel sees what three equal ones would
    assert torch.allclose(encoder.body.conv1.weight, donor.conv1.weight.sum(1, keepdim=True))


@pytest.mark.parametrize("num_classes", [1000, 5, 0])
def test_weights_of_another_network_are_refused(tmp_path, num_classes):
    save_file(of_timm("resnet34", 3, num_classes=num_classes).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(MedsegError, match="no weights of resnet18"):
        load_pretrained(encoder_of("resnet18", 1), tmp_path / "other.safetensors")


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path):
    with pytest.raises(MedsegError, match="medseg checkpoint import"):
        load_pretrained(encoder_of("resnet18", 1), tmp_path / "weights.pth")


def test_a_vit_is_filled_too(tmp_path):
    donor = of_timm("vit_tiny", 3, num_classes=7)
    save_file(donor.state_dict(), tmp_path / "vit.safetensors")
    encoder = ViTEncoder("vit_tiny", 1)
    load_pretrained(encoder, tmp_path / "vit.safetensors")
    assert torch.equal(encoder.body.blocks[3].attn.qkv.weight, donor.blocks[3].attn.qkv.weight)
