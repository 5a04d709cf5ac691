"""New cases: a latent is found with the decoder as it is."""

import numpy as np
import pytest
import torch
from tests.near.conftest import SMALL

from medseg_core.checkpoint import load_model
from medseg_core.errors import MedsegError
from medseg_near.fit import FieldStep
from medseg_near.latent import fit_latent, read_latents
from medseg_near.models import MODELS
from medseg_near.models.field import Shapes
from medseg_near.points import Points
from medseg_near.settings import FitConfig

CONFIG = FitConfig(**SMALL)


class Radius(Shapes):
    """A decoder whose shapes are balls, of 6 mm and a mm more for each unit of the latent's first number."""

    def __init__(self):
        super().__init__(2, latent=8, half_mm=9.0)
        with torch.no_grad():
            self.latents.weight.zero_()
        self.decoder.maps = lambda latent: [latent]
        self.decoder.at = lambda maps, points, picture=None: 3 * (6 + maps[0][:, :1] - 9 * points.norm(dim=-1))


@pytest.mark.parametrize(("row", "radius_mm"), [(0, 5), (1, 6), (2, 7)])
def test_the_latent_of_a_ball_is_its_radius(shapes, row, radius_mm):
    latent = fit_latent(Radius().eval(), shapes[row], CONFIG, steps=60, lr=0.1, seed=0)
    assert latent[0].item() == pytest.approx(radius_mm - 6, abs=0.4)


def test_the_network_stays_as_it_is_and_equal_seeds_find_equal_latents(run, shapes):
    model, _ = load_model(run, MODELS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    one, other = (fit_latent(model, shapes[2], CONFIG, steps=3, lr=0.1, seed=1) for _ in range(2))
    assert torch.equal(one, other)
    assert not torch.equal(one, model.latents.weight.mean(0))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_fitted_latent_explains_the_shape_better_than_the_mean(run, shapes):
    model, _ = load_model(run, MODELS)
    points = Points([shapes[2]], CONFIG, half_mm=model.half_mm, num_points=4000)
    from medseg_core.draw import Draw

    batch = {name: value[None] for name, value in points[Draw(0, 0, 0, 9)].items()}

    def loss(latent):
        ask = lambda _, p, picture: (model.decoder.at(model.decoder.maps(latent[None]), p), latent[None])  # noqa: E731
        return FieldStep(CONFIG)(ask, batch, None)["loss"].item()

    latent = fit_latent(model, shapes[2], CONFIG, steps=30, lr=0.1, seed=0)
    assert loss(latent) < loss(model.latents.weight.detach().mean(0))


def test_a_table_of_latents_that_was_changed_is_refused(tmp_path):
    assert read_latents(tmp_path) == {}
    (tmp_path / "latents.csv").write_text("case,z0,z1\na,1,2\nb,3\n")
    with pytest.raises(MedsegError, match="rows of different lengths"):
        read_latents(tmp_path)
    (tmp_path / "latents.csv").write_text("case,z0,z1\na,1,two\n")
    with pytest.raises(MedsegError, match="words where numbers are meant"):
        read_latents(tmp_path)
    (tmp_path / "latents.csv").write_text("case,z0,z1\na,1,0.1\n")
    np.testing.assert_array_equal(read_latents(tmp_path)["a"], np.array([1, 0.1], np.float32))
