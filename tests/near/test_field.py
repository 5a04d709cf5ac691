"""The networks: the counts that the papers give, and answers that do not depend on who else is asked."""

import pytest
import torch
from torch.nn import functional as F

from medseg_core.errors import MedsegError
from medseg_core.testing.models import ModelChecks
from medseg_near.models.field import NETS, Decoder, Shapes
from medseg_near.models.triplane import Triplane
from medseg_near.models.trunk import Trunk, looked_up

POINTWISE = ("pointwise", "triplane")


class OnPoints(Shapes):
    """Case 0 at 'pixels' that are points: (N, 3, P) -> (N, 1, P), as the checks give and want them."""

    def __init__(self, in_channels=3, num_classes=1, **more):
        super().__init__(2, 0, num_classes, **more)

    def forward(self, x_N3P):
        latent_NL = self.latents.weight.mean(0).expand(len(x_N3P), -1)
        return self.decoder.at(self.decoder.maps(latent_NL), x_N3P.transpose(1, 2))[:, None]


@pytest.mark.parametrize("net", NETS)
class TestNets(ModelChecks):
    model = OnPoints
    shapes = ((2, 3, 50), (1, 3, 1))

    @pytest.fixture(autouse=True)
    def _small(self, net):
        self.small = {"in_channels": 3, "num_classes": 1, "latent": 8, "net": net}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_counts_are_those_of_the_original():
    assert count(Trunk()) == 678_656
    assert count(Decoder(net="upstream")) == 691_457
    assert count(Decoder(1, net="upstream")) == 691_521
    assert count(Decoder(net="original")) == count(Decoder(net="pointwise")) == 849_921
    assert count(Shapes(998)) == 1_105_409


def test_a_triplane_costs_so_much_more():
    assert count(Triplane()) == 1_949_808
    assert count(Decoder(net="triplane")) == 2_841_201


def test_maps_have_four_sizes():
    maps = Trunk(8)(torch.zeros(2, 8))
    assert [tuple(one.shape) for one in maps] == [
        (2, 64, 4, 4, 4), (2, 48, 8, 8, 8), (2, 32, 16, 16, 16), (2, 16, 32, 32, 32)
    ]  # fmt: skip


def lonely_and_together(net, dtype, *, in_channels=0):
    torch.manual_seed(0)
    model = Decoder(in_channels, latent=8, net=net).to(dtype).eval()
    points = torch.rand(1, 300, 3, dtype=dtype) * 2 - 1
    maps = model.maps(torch.randn(1, 8, dtype=dtype))
    with torch.no_grad():
        together = model.at(maps, points)
        lonely = torch.cat([model.at(maps, part) for part in points.split(7, 1)], 1)
    return lonely, together


@pytest.mark.parametrize("net", POINTWISE)
def test_a_point_does_not_depend_on_its_companions(net):
    lonely, together = lonely_and_together(net, torch.float64)
    assert (lonely - together).abs().max() < 1e-12
    lonely, together = lonely_and_together(net, torch.float32)
    assert (lonely - together).abs().max() < 1e-4 * together.std()


@pytest.mark.parametrize("net", ["original", "upstream"])
def test_of_the_original_it_does(net):
    lonely, together = lonely_and_together(net, torch.float64)
    assert (lonely - together).abs().max() > 0.1 * together.std()


@pytest.mark.parametrize("net", POINTWISE)
def test_a_case_does_not_depend_on_its_companions(net):
    torch.manual_seed(0)
    model = Shapes(3, latent=8, net=net).double().eval()
    points = torch.rand(3, 20, 3, dtype=torch.float64)
    with torch.no_grad():
        together, _ = model(torch.arange(3), points)
        alone = [model(torch.tensor([i]), points[i : i + 1])[0] for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-10, rtol=0)


def test_a_map_is_looked_up_along_the_axes_of_the_points():
    ramp = torch.linspace(0, 1, 5)
    volume = torch.stack(torch.meshgrid(ramp, 10 * ramp, 100 * ramp, indexing="ij"))[None]
    found = looked_up(volume, torch.tensor([[[-1.0, 0.0, 1.0], [0.5, 1.0, -1.0]]]))
    torch.testing.assert_close(found[0], torch.tensor([[0.0, 5.0, 100.0], [0.75, 10.0, 0.0]]))


def test_planes_are_looked_up_along_the_axes_of_the_points():
    model = Triplane(8)
    ramp = torch.linspace(0, 1, 5)
    across = torch.stack(torch.meshgrid(ramp, 10 * ramp, indexing="ij"))[None]  # (1, 2, first axis, second axis)
    planes = torch.cat([across, across, across], 1)
    found = model.at(planes, torch.tensor([[[-1.0, 0.0, 1.0]]]))[0, 0]
    assert found.tolist() == [0.0, 5.0, 0.0, 10.0, 0.5, 10.0]  # X Y, X Z, Y Z


def test_before_training_hardly_anything_is_inside():
    model = Shapes(latent=8)
    logits, _ = model(torch.tensor([0]), torch.rand(1, 200, 3) * 2 - 1)
    assert 0.002 < F.sigmoid(logits).mean() < 0.05


def test_a_picture_must_be_given_where_it_is_meant():
    model, points = Decoder(1, latent=8), torch.zeros(1, 4, 3)
    with pytest.raises(MedsegError, match="wants 1 values of a picture at each point, got none"):
        model.at(model.maps(torch.zeros(1, 8)), points)
    assert model.at(model.maps(torch.zeros(1, 8)), points, torch.zeros(1, 4, 1)).shape == (1, 4)


def test_an_unknown_net_is_refused():
    with pytest.raises(MedsegError, match="net 'hash' is none of pointwise"):
        Decoder(net="hash")
    with pytest.raises(MedsegError, match="one class"):
        Shapes(num_classes=2)
