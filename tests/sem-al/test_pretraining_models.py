"""Pre-training's networks and losses: what they may see, what is kept of them, and numbers by hand."""

import math
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from medseg_core.checkpoint import Card, load_weights, save_model
from medseg_core.errors import MedsegError
from medseg_core.testing.models import ModelChecks
from medseg_sem_al.models.original import SixLevels
from medseg_sem_al.models.pretraining import (
    MaskedAutoencoder,
    MaskedViT,
    SelfDistilled,
    from_patches,
    hidden_patches,
    normalised,
    pixels_of,
    positions,
    to_patches,
)
from medseg_sem_al.models.segmenter import Segmenter
from medseg_sem_al.objectives import Agreement, MaskedPixels, MaskedTokens, distinct, psnr, sinkhorn, spread, ssim

GREY = {"mean": 0.5, "std": 0.2}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class TestMaskedAutoencoder(ModelChecks):
    model = MaskedAutoencoder
    small: ClassVar = {"in_channels": 2, "num_classes": 2, "width": 2}
    shapes = ((2, 2, 32, 48), (1, 2, 16, 16))
    bad_shapes = ((1, 2, 33, 50), (1, 2, 8, 16))
    # the U-Net's encoder has 9 (16 + 16^2 + 16 * 32 + ... + 256^2) + 4 * 496, the decoder a 1x1 convolution of 256 to
    # 256, transposed ones of 4x4 down to 128, 64, 32 and 16 with two numbers a channel, and a last one to one channel
    num_parameters = (({}, 9 * 130_832 + 4 * 496 + 257 * 256 + 16 * 43_520 + 2 * 240 + 17),)


class TestMaskedViT(ModelChecks):
    model = MaskedViT
    small: ClassVar = {"in_channels": 2, "num_classes": 2, "decoder_dim": 32, "depth": 1}
    shapes = ((2, 2, 32, 64), (1, 2, 48, 32))
    bad_shapes = ((1, 2, 33, 50),)

    def test_every_parameter_gets_a_gradient(self):
        model = self._model()
        hidden = hidden_patches(2, (2, 4), 0.5, rng())
        model(self._input(self.shapes[0]), hidden.to(next(model.parameters()).device)).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name


class TestSelfDistilled(ModelChecks):
    model = SelfDistilled
    small: ClassVar = {"in_channels": 2, "num_classes": 5, "width": 2}
    shapes = ((2, 2, 32, 48), (1, 2, 33, 50), (1, 2, 5, 9))

    def test_logits_lie_on_the_grid_of_the_input(self):
        """A picture has one answer."""
        for shape in self.shapes:
            assert self._model()(self._input(shape)).shape == (shape[0], 5)

    def test_answers_are_cosines(self):
        model = self._model()
        with torch.no_grad():
            before = model(self._input(self.shapes[0]))
            model.prototypes.mul_(3)
            assert torch.allclose(model(self._input(self.shapes[0])), before, atol=1e-6)
            model.head[-1].weight.zero_()
            model.head[-1].bias.copy_(model.prototypes[3])
            assert torch.allclose(model(self._input(self.shapes[0]))[:, 3], torch.ones(2), atol=1e-6)


@pytest.mark.parametrize(
    ("made", "user"),
    [
        (lambda: MaskedAutoencoder(width=3), lambda: Segmenter(1, 4, width=3)),
        (lambda: MaskedAutoencoder(encoder="resnet18"), lambda: Segmenter(1, 4, encoder="resnet18")),
        (lambda: MaskedAutoencoder(encoder="six_levels", width=2), lambda: SixLevels(1, 4, width=2)),
        (lambda: MaskedViT(encoder="vit_tiny"), lambda: Segmenter(1, 4, encoder="vit_tiny")),
        (lambda: SelfDistilled(width=3), lambda: Segmenter(1, 4, width=3, decoder="deeplabv3plus")),
    ],
)
def test_all_of_the_encoder_fits_a_network_that_segments(made, user, tmp_path):
    torch.manual_seed(0)
    model, segmenter = made(), user()
    save_model(tmp_path / "best.safetensors", model, Card(package="medseg-sem-al", version="0", model="x"))
    load_weights(segmenter.encoder, tmp_path, take="encoder")
    for name, tensor in segmenter.encoder.state_dict().items():
        assert torch.equal(tensor, model.encoder.state_dict()[name]), name


def test_nothing_goes_past_the_deepest_level():
    model, x = MaskedAutoencoder(width=2).eval(), torch.randn(1, 1, 32, 32, generator=rng())
    before = model(x)
    model.encoder.register_forward_hook(lambda *call: [*(level * 0 + 9 for level in call[2][:-1]), call[2][-1]])
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("made", [lambda: MaskedAutoencoder(width=2), lambda: MaskedViT(decoder_dim=32, depth=1)])
def test_what_is_hidden_is_not_seen(made):
    torch.manual_seed(0)
    model, x = made().eval(), torch.randn(2, 1, 64, 64, generator=rng())
    hidden = hidden_patches(2, (4, 4), 0.75, rng())
    where = pixels_of(hidden, 16)
    with torch.no_grad():
        before = model(x, hidden)
        assert torch.equal(model(torch.where(where, 7.0, x), hidden), before)
        assert not torch.equal(model(torch.where(where, x, 7.0), hidden), before)


def test_hidden_tokens_never_enter_the_vit():
    model = MaskedViT(decoder_dim=32, depth=1).eval()
    lengths = []
    model.encoder.body.blocks[0].register_forward_hook(lambda *call: lengths.append(call[1][0].shape[1]))
    model(torch.zeros(2, 1, 64, 64), hidden_patches(2, (4, 4), 0.75, rng()))
    assert lengths == [1 + 4]  # the class token and a quarter of 16


@pytest.mark.parametrize("name", ["vit_tiny", "dinov2_small"])
def test_with_nothing_hidden_the_tokens_are_those_of_the_encoder(name):
    torch.manual_seed(0)
    model, x = MaskedViT(encoder=name).eval(), torch.randn(1, 1, 48, 32, generator=rng())
    with torch.no_grad():
        tokens = model.seen(x, torch.ones(1, 6, dtype=torch.bool))
        assert torch.allclose(tokens.transpose(1, 2).reshape(1, -1, 3, 2), model.encoder(x)[-1], atol=1e-5)


def test_tokens_go_back_to_their_places():
    # the encoder's answer for a token must reach the decoder at that token's place, whatever is hidden around it
    model = MaskedViT(decoder_dim=32, depth=1).eval()
    hidden = torch.tensor([[True, False, True, True], [True, True, True, False]]).reshape(2, 2, 2)
    model.seen = lambda x, visible: torch.ones(2, 1, 192)
    arrived = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: arrived.append(args[0] - positions((2, 2), 32)))
    with torch.no_grad():
        model.to_decoder.weight.fill_(1.0)
        model.to_decoder.bias.zero_()
        model.unseen.zero_()
        model(torch.zeros(2, 1, 32, 32), hidden)
    want = torch.tensor([[0.0, 192, 0, 0], [0, 0, 0, 192]])
    assert torch.allclose(arrived[0].mean(-1), want, atol=1e-4)


def test_a_vit_alone_has_tokens():
    with pytest.raises(MedsegError, match=r"'resnet18' has none; try vit_tiny"):
        MaskedViT(encoder="resnet18")


def test_as_many_patches_are_hidden_in_each_picture_and_others_in_another():
    hidden = hidden_patches(50, (4, 5), 0.6, rng(3))
    assert hidden.flatten(1).sum(1).tolist() == [12] * 50
    assert torch.equal(hidden, hidden_patches(50, (4, 5), 0.6, rng(3)))
    shares = hidden.float().mean(0)  # each patch as often: 0.6 with a deviation of 0.07
    assert shares.min() > 0.3
    assert shares.max() < 0.9


@pytest.mark.parametrize(("share", "want"), [(0.01, 1), (0.99, 3)])
def test_one_patch_at_least_is_hidden_and_one_is_not(share, want):
    assert hidden_patches(1, (2, 2), share, rng()).sum() == want


def test_patches_are_read_row_by_row_and_put_back():
    x = torch.arange(32.0).reshape(1, 1, 4, 8)
    patches = to_patches(x, 2)
    assert patches[0, 1].tolist() == [2, 3, 10, 11]
    assert patches[0, 4].tolist() == [16, 17, 24, 25]
    assert torch.equal(from_patches(patches, (2, 4), 2), x)


def test_positions_are_sines_and_cosines_of_row_and_column():
    found = positions((2, 3), 8)
    assert found.shape == (6, 8)
    row, column = 1, 2
    want = [f(angle * rate) for angle in (row, column) for f in (math.sin, math.cos) for rate in (1, 0.01)]
    assert torch.allclose(found[1 * 3 + 2], torch.tensor(want), atol=1e-6)


def test_the_error_of_tokens_is_of_patches_with_mean_0_and_deviation_1():
    # a network that says 0 of all: error 1 of the patch, and mean^2 + std^2 over two of its moments
    image = torch.tensor([1.0, 3.0]).repeat(8).expand(1, 1, 16, 16).clone()  # mean 2, deviation 1
    image = torch.cat([image, 3 * image], 3)  # mean 6, deviation 3
    model = lambda x, hidden, parts: (torch.zeros(1, 2, 256), torch.zeros(1, 2, 2))  # noqa: E731
    model.patch = 16
    found = MaskedTokens(0.5)(model, {"image": image}, SimpleNamespace(rng=rng()))
    assert float(found["mse"]) == pytest.approx(1)
    assert float(found["moments_mse"]) in (pytest.approx((2**2 + 1**2) / 2), pytest.approx((6**2 + 3**2) / 2))
    assert float(found["loss"]) == pytest.approx(float(found["mse"] + found["moments_mse"]))


def test_a_flat_patch_has_no_infinite_target():
    values, moments = normalised(torch.full((1, 1, 4), 2.0))
    assert values.tolist() == [[[0, 0, 0, 0]]]
    assert moments[0, 0].tolist() == pytest.approx([2, 1e-3])


def test_the_error_of_pixels_is_of_hidden_ones_alone():
    image = torch.randn(2, 1, 32, 32, generator=rng())

    def model(x, hidden):  # right where it is hidden but for 0.5, far off elsewhere
        return torch.where(pixels_of(hidden, 16), x + 0.5, x + 100)

    model.patch = 16
    found = MaskedPixels(0.5, 0.3, GREY)(model, {"image": image}, SimpleNamespace(rng=rng()))
    assert float(found["mse"]) == pytest.approx(0.25, rel=1e-5)
    assert float(found["loss"]) == pytest.approx(0.25 + 0.3 * (1 - float(found["ssim"])), rel=1e-5)


def test_ssim_drives_the_network_too():
    image, told = torch.randn(1, 1, 32, 32, generator=rng()), nn.Parameter(torch.zeros(1, 1, 32, 32))
    model = lambda x, hidden: told  # noqa: E731
    model.patch = 16
    found = MaskedPixels(0.5, 1.0, GREY)(model, {"image": image}, SimpleNamespace(rng=rng()))
    of = {name: torch.autograd.grad(value, told, retain_graph=True)[0] for name, value in found.items()}
    assert of["ssim"].abs().sum() > 0
    assert torch.allclose(of["loss"], of["mse"] - of["ssim"], atol=1e-7)


def test_ssim_of_equal_pictures_is_1_and_of_flat_ones_by_hand():
    x = torch.rand(2, 1, 16, 20, generator=rng())
    assert torch.allclose(ssim(x, x), torch.ones(2))
    flat = [torch.full((1, 1, 12, 12), value) for value in (0.2, 0.6)]
    c1 = 0.01**2
    assert float(ssim(*flat)) == pytest.approx((2 * 0.2 * 0.6 + c1) / (0.2**2 + 0.6**2 + c1), rel=1e-4)


def test_ssim_of_a_negative_is_below_0():
    x = torch.rand(1, 1, 16, 16, generator=rng()) - 0.5
    assert float(ssim(0.5 + x, 0.5 - x)) < -0.5


def test_ssim_scales_with_the_range():
    x, y = torch.rand(2, 1, 1, 16, 16, generator=rng(), dtype=torch.float64)
    assert float(ssim(255 * x, 255 * y, data_range=255.0)) == pytest.approx(float(ssim(x, y)), rel=1e-9)


def test_ssim_has_the_right_gradient():
    x, y = torch.rand(2, 1, 1, 12, 12, generator=rng(), dtype=torch.float64)
    assert torch.autograd.gradcheck(ssim, (x.requires_grad_(), y))


def test_ssim_counts_the_windows_that_are_asked_for():
    x, y = torch.rand(2, 1, 1, 40, 40, generator=rng())
    y[..., 9:31, 9:31] = x[..., 9:31, 9:31]
    where = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    where[..., 14:26, 14:26] = True  # windows of 11 around these lie where both are equal
    assert float(ssim(x, y, where=where)) == pytest.approx(1)
    assert float(ssim(x, y, where=~where)) < 0.9


def test_psnr_of_an_error_of_a_tenth_is_20_whatever_the_rest():
    x = torch.rand(1, 1, 4, 4, generator=rng())
    where = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    where[..., 0] = True
    assert float(psnr(torch.where(where, x + 0.1, x - 9), x, where)) == pytest.approx(20, abs=1e-3)
    assert float(psnr(x, x, where)) == 100


def test_sinkhorn_by_hand():
    # rows and columns of [[a, 1 - a], [1 - a, a]] sum to 1, and (a / (1 - a))^2 stays 4: a is 2 / 3
    found = sinkhorn(torch.tensor([[4.0, 1.0], [1.0, 1.0]]).log(), rounds=50)
    assert torch.allclose(found, torch.tensor([[2 / 3, 1 / 3], [1 / 3, 2 / 3]]), atol=1e-4)


def test_sinkhorn_uses_all_prototypes_though_all_pictures_want_one():
    logits = torch.randn(8, 4, generator=rng()) + torch.tensor([30.0, 0, 0, 0])
    found = sinkhorn(logits, rounds=50)
    assert torch.allclose(found.sum(1), torch.ones(8), atol=1e-4)
    assert torch.allclose(found.sum(0), torch.full((4,), 2.0), atol=1e-3)


def test_a_teacher_that_hardly_tells_pictures_apart_teaches_as_sharply():
    # at a fixed temperature all answers become uniform, and stay so
    logits = torch.randn(6, 4, generator=rng(), dtype=torch.float64)
    faint = 0.3 + 1e-3 * logits + torch.randn(4, generator=rng(), dtype=torch.float64)
    assert torch.allclose(distinct(faint), distinct(logits), atol=1e-6)
    assert float(distinct(faint).std(correction=0)) == pytest.approx(3)
    assert not distinct(torch.ones(3, 4)).any()


def test_entropies_tell_a_collapse():
    sure = 100 * torch.eye(4)
    told = [tuple(float(v) for v in spread(x).values()) for x in (sure, sure[:1].expand(4, 4), 0 * sure)]
    assert told == [pytest.approx(t, abs=1e-5) for t in [(1, 0), (0, 0), (1, 1)]]


def test_a_view_is_taught_by_the_other_large_view_never_by_itself():
    # a view is one number; the network answers with its own logits per picture, the teacher with others
    rand = np.random.default_rng(0)
    student, teacher = rand.normal(size=(3, 2, 4)), rand.normal(size=(2, 2, 4))  # views, pictures, prototypes
    numbers = {"large": torch.tensor([[0, 1], [2, 3]]), "small": torch.tensor([[4], [5]])}  # by picture, then view
    batch = {name: value.reshape(*value.shape, 1, 1, 1).float() for name, value in numbers.items()}
    places = {0: (0, 0), 1: (1, 0), 2: (0, 1), 3: (1, 1), 4: (2, 0), 5: (2, 1)}

    def answers(table):
        return lambda *views: torch.tensor(np.array([table[places[int(v)]] for x in views for v in x.flatten()]))

    at = SimpleNamespace(teacher=answers(teacher))
    found = Agreement()(answers(student), batch, at)
    apart = [t - t.mean(0) - t.mean(1, keepdims=True) + t.mean() for t in teacher]
    taught = [sinkhorn(torch.tensor(3 * t / t.std())).numpy() for t in apart]
    logs = [s / 0.1 - np.log(np.exp(s / 0.1).sum(-1, keepdims=True)) for s in student]
    pairs = [(1, 0), (2, 0), (0, 1), (2, 1)]
    want = np.mean([-(taught[t] * logs[v]).sum(-1).mean() for v, t in pairs])
    assert float(found["loss"]) == pytest.approx(want, rel=1e-4)
