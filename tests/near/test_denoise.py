"""Errors made on purpose: what the network is shown of them, that it reads any grid, and learns to undo them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from tests.near.conftest import SMALL

from medseg_core.cases import Case
from medseg_core.checkpoint import read_card
from medseg_core.draw import Draw
from medseg_core.errors import MedsegError
from medseg_core.grid import Grid
from medseg_core.run import read_history
from medseg_near.denoise import (
    Errors,
    Repairs,
    _features,
    cell_of,
    patch_of,
    repairing,
    steps_of,
    with_errors,
)
from medseg_near.fit import fit
from medseg_near.models.denoiser import REACH, Denoiser, folded, unfolded
from medseg_near.refine import Refiner, refine_files
from medseg_near.settings import FitConfig, RefineConfig
from medseg_near.shapes import Shape, write_list, write_shape

CONFIG = FitConfig(**{**SMALL, "net": "denoising", "width": 8})
FINE = {"optimizer": "adamw", "clip": 1.0, "ema": 0.9}


def tube(size=(20, 20, 36), spacing_mm=(1.0, 1.0, 1.0), image=False):
    """A straight tube of 4 mm radius along Z, 2 voxels from its ends, and a CT that shows it."""
    x, y, z = np.indices(size)
    label = ((x - 9.5) * spacing_mm[0]) ** 2 + ((y - 9.5) * spacing_mm[1]) ** 2 <= 16
    label &= (z >= 2) & (z < size[2] - 2)
    grid = Grid(size, np.diag([*spacing_mm, 1.0]))
    return Shape("tube", label, grid, label.astype(np.float16) if image else None, grid, (0, 0, 0))


def net_of(**more):
    """A network that already has an opinion."""
    torch.manual_seed(0)
    net = Denoiser(**{"width": 8, **more}).eval()
    torch.nn.init.normal_(net.head[-1].weight)
    return net


def test_before_it_learns_a_label_is_what_it_is():
    shape = tube()
    ask = repairing(Denoiser(width=8).eval(), shape)
    everywhere = np.argwhere(np.ones(shape.label.shape))
    np.testing.assert_array_equal(ask(everywhere) > 0, shape.label.ravel())


def test_folding_puts_each_block_into_channels_and_unfolding_brings_it_back():
    x = torch.arange(2 * 3 * 4 * 6 * 8).reshape(2, 3, 4, 6, 8)
    assert folded(x)[1, 8:16, 1, 2, 3].tolist() == x[1, 1, 2:4, 4:6, 6:8].flatten().tolist()
    assert torch.equal(unfolded(folded(x)), x)


def test_a_sample_shows_the_error_and_tells_the_truth():
    """At points on voxels the truth is the label, and what is known there is the label with the error."""
    samples = Errors([tube(image=True)], replace(CONFIG, appearance=True), num_points=4000, cell_mm=1.0)
    sample = next(s for s in map(samples.__getitem__, draws()) if (s["here"][:, 0] != s["inside"]).any())
    assert sample["seen"].shape == (2, 48, 48, 48)
    on = (sample["at"] % 1 == 0).all(1)
    assert 0.4 < on.float().mean() < 0.6
    x, y, z = sample["at"][on].long().T
    assert torch.equal(sample["seen"][0, x, y, z], sample["here"][on, 0])
    assert torch.equal(sample["seen"][1, x, y, z], sample["inside"][on])  # the CT of this tube is its label


def draws():
    return [Draw(0, 0, place, 1) for place in range(20)]


def test_equal_draws_give_equal_samples():
    samples = Errors([tube()], CONFIG, num_points=50, cell_mm=1.0)
    for one, other in zip(samples[Draw(0, 2, 3, 7)].values(), samples[Draw(0, 2, 3, 7)].values(), strict=True):
        assert torch.equal(one, other)


def test_a_label_of_so_many_is_left_alone():
    """One in seven, beside six kinds."""
    label = tube().label
    same = sum(
        with_errors(label, CONFIG.errors, (1, 1, 1), np.random.default_rng([0, i, 0, 0])) is label for i in range(400)
    )
    assert 0.09 < same / 400 < 0.2


def test_a_lattice_coarser_than_the_voxels_averages_them():
    """A plane of one voxel in four is seen as a quarter everywhere."""
    values = np.zeros((32, 8, 8), np.float32)
    values[::4] = 1
    seen = patch_of(values, np.zeros(3, int), np.array([4.0, 1, 1]), (8, 8, 8))
    np.testing.assert_allclose(seen[2:6], 0.25, atol=0.07)


def test_a_patch_between_the_voxels_is_that_of_the_whole_crop():
    """Trilinear, and averaged where the lattice is coarser, as if all of the crop were read."""
    values = np.random.default_rng(0).random((40, 30, 50))
    step, corner, size = np.array([0.7, 1.6, 1.0]), np.array([20, 3, -4]), (8, 9, 10)
    smooth = gaussian_filter(values, (0, 0.8, 0), mode="nearest")
    at = np.meshgrid(*((np.arange(n) + c) * s for n, c, s in zip(size, corner, step, strict=True)), indexing="ij")
    whole = map_coordinates(smooth, at, order=1, mode="grid-constant")
    np.testing.assert_allclose(patch_of(values, corner, step, size), whole, atol=1e-5)


def test_a_patch_lies_where_its_corner_says():
    values = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    seen = patch_of(values, np.array([-1, 2, 3]), np.ones(3), (6, 2, 9))
    np.testing.assert_array_equal(seen[1:5, :, :3], values[:, 2:4, 3:])
    assert seen.sum() == values[:, 2:4, 3:].sum()


def test_what_is_asked_for_beside_a_point_changes_nothing():
    ask = repairing(net_of(), tube())
    points = np.random.default_rng(0).uniform(0, 18, (500, 3))
    np.testing.assert_allclose(ask(points)[:7], ask(points[:7]), atol=1e-5)


def test_a_voxel_depends_on_its_surroundings_alone():
    """A larger crop says the same in the middle of it: there are no norms over the crop."""
    net = net_of()
    small, large = (torch.zeros(1, 1, n, 24, 24) for n in (160, 240))
    small[..., 72:88, 8:16, 8:16] = large[..., 112:128, 8:16, 8:16] = 1
    with torch.inference_mode():
        one, other = net.features(small)[:, :, 72:88], net.features(large)[:, :, 112:128]
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_nothing_farther_than_the_reach_plays_a_role():
    net, seen = net_of(), torch.zeros(1, 1, 160, 8, 8)
    seen[..., 80:, :, :] = torch.rand(80, 8, 8, generator=torch.Generator().manual_seed(0))
    other = seen.clone()
    other[..., 80 + REACH :, :, :] = 0
    with torch.inference_mode():
        changed = (net.features(seen) != net.features(other)).any(1)[0].any((1, 2)).nonzero()
    assert 80 < changed.min() < 80 + REACH


def test_tile_by_tile_the_features_are_the_same():
    net, seen = net_of(), (torch.rand(1, 1, 200, 20, 12, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    with torch.inference_mode():
        torch.testing.assert_close(_features(net, seen, tile=48), _features(net, seen, tile=200), atol=0.01, rtol=0)


def test_a_grid_of_other_voxels_is_read_in_the_same_mm():
    """The same tube with voxels of half the length along it: the lattice is the same, so are the answers."""
    net = net_of(cell_mm=1.0)
    whole = tube(size=(20, 20, 37))
    half = tube(size=(20, 20, 73), spacing_mm=(1.0, 1.0, 0.5))
    half.label[:, :, 3::2], half.label[:, :, ::2] = False, whole.label
    half.label[:, :, 1::2] = half.label[:, :, :-1:2] & half.label[:, :, 2::2]
    assert steps_of(half, 1.0).tolist() == [1, 1, 2]
    points = np.argwhere(np.ones((20, 20, 37)))
    one, other = repairing(net, whole)(points), repairing(net, half)(points * [1, 1, 2])
    inner = (points[:, 2] > 8) & (points[:, 2] < 28)
    assert np.abs(one - other)[inner].mean() < 0.1 * one.std()


def test_the_lattice_has_the_voxels_that_most_have():
    shapes = [tube(spacing_mm=(1, 1, n)) for n in (0.5, 0.7, 3.0)]
    assert cell_of(shapes) == pytest.approx(0.7)


def test_validation_tells_what_was_there_before(shapes):
    """A network that changes nothing repairs nothing, and harms nothing."""
    told = Repairs(shapes, CONFIG)(Denoiser(width=8).eval(), None).metrics
    assert told["dice"] == told["dice_unrepaired"] < 0.95
    assert told["dice_of_clean"] == 1


@pytest.fixture(scope="module")
def denoised(cache, tmp_path_factory):
    """A run of a few updates."""
    out = tmp_path_factory.mktemp("runs") / "denoising"
    fit(cache, out, replace(CONFIG, epochs=2))
    return out


def test_a_run_says_what_was_learnt(denoised):
    card, history = read_card(denoised), read_history(denoised)
    assert (card.model, card.inputs, card.grid["cell_mm"]) == ("denoiser", ("label",), 1.0)
    assert {"train_bce", "train_dice_loss", "train_dice_unrepaired", "val_dice_of_clean"} <= history.keys()
    assert not (denoised / "latents.csv").exists()


def test_a_run_refines_without_a_latent(denoised, balls, tmp_path):
    config = RefineConfig(margin_mm=4, device="cpu", resolution=0)
    outcome = refine_files([balls], denoised, tmp_path / "out", config)
    assert len(outcome.done) == 3
    assert {row.split(",")[1] for row in (tmp_path / "out" / "changes.csv").read_text().splitlines()[1:]} == {"none"}


def test_a_cube_asks_the_same_field(denoised, shapes):
    """At 48^3 points, so up to a layer of them."""
    config = RefineConfig(device="cpu", max_change="none")
    one, other = (Refiner(denoised, replace(config, resolution=n)).refine(shapes[2])[0].mask for n in (0, 48))
    assert (one != other).sum() < 0.1 * one.sum()


def test_a_model_that_looks_at_a_ct_wants_one(cache, shapes, tmp_path):
    with pytest.raises(MedsegError, match="has no CT"):
        fit(cache, tmp_path / "run", replace(CONFIG, appearance=True))


@pytest.mark.parametrize(("errors", "said"), [(("hole",), "'hole' does not exist; did you mean"), ((), "no error is")])
def test_errors_that_do_not_exist_are_refused_before_a_run_begins(cache, tmp_path, errors, said):
    with pytest.raises(MedsegError, match=said):
        fit(cache, tmp_path / "run", replace(CONFIG, errors=errors))
    assert not (tmp_path / "run").exists()


def test_holes_are_filled_once_they_were_learnt(tmp_path):
    """A tube that loses a quarter of its voxels, after some seconds of learning what holes are."""
    write_shape(tube(), tmp_path / "cache")
    write_list(tmp_path / "cache", [Case("tube", {}, notes={"structure": "tube"})])
    learning = {"errors": ("holes",), "epochs": 160, "val_every": 160, "lr": 3e-3, "points": 4096, "patch": 32}
    told = fit(tmp_path / "cache", tmp_path / "run", replace(CONFIG, **learning, **FINE)).best.metrics
    assert told["dice"] > told["dice_unrepaired"] + 0.05
    assert told["dice_of_clean"] > 0.95
