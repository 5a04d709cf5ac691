"""Files of NeAR and of the first NeAR for coronaries: taken over whole, with the answers that they gave.

`Theirs` is written after the published layout, on grids of points (N, D, H, W, 3) whose numbers are places along W, H
and D. Axes: N cases, L numbers of a latent, C channels, D H W a volume as it is stored, P points.
"""

import json

import pytest
import torch
from tests.near.conftest import ball_of
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from medseg_core.checkpoint import load_model, read_card
from medseg_core.cli import app
from medseg_core.foreign import SAFE
from medseg_core.io import read_volume
from medseg_near.models.field import Shapes
from medseg_near.occupancy import occupancy
from medseg_near.refine import refine_files, summary
from medseg_near.settings import RefineConfig

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < SAFE, reason="needs PyTorch 2.11, as the importer does"
)
CASES = 3
CORONARY = {"num_cases": CASES, "net": "original"}


def layer(before, after, edge):
    """Convolution, norm of eight groups, leaky ReLU."""
    conv = nn.Conv3d(before, after, edge, padding=edge // 2)
    return nn.Sequential(conv, nn.GroupNorm(8, after), nn.LeakyReLU())


class Unfold(nn.Module):
    """Eight times the channels, halved, as a cube of twice the edge."""

    def __init__(self, channels):
        super().__init__()
        self.mlp = layer(channels, 4 * channels, 1)

    def forward(self, x):
        n, c, d, h, w = self.mlp(x).shape
        return self.mlp(x).reshape(n, c // 8, 2 * d, 2 * h, 2 * w)


def double(before, after):
    grow = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True)
    return nn.Sequential(grow, layer(before, after, 3), layer(after, after, 3))


class Field(nn.Module):
    """Maps of 4, 8, 16 and 32 voxels, and a network of convolutions of size 1 at the points."""

    def __init__(self, *, deep, pictures):
        super().__init__()
        self.deep, num = deep, 163 + pictures
        self.decoder_1 = nn.Sequential(Unfold(256), Unfold(128), layer(64, 64, 3))
        self.decoder_2, self.decoder_3, self.decoder_4 = double(64, 48), double(48, 32), double(32, 16)
        if deep:
            self.fc1, self.fc2 = layer(num, 256, 1), layer(256, 256, 1)
            self.fc3, self.fc4 = layer(256 + num, 128, 1), layer(128, 64, 1)
            self.output = nn.Conv3d(64, 1, 1)
        else:
            self.implicit_mlp = nn.Sequential(*layer(num, 64, 1), *layer(64, 32, 1), nn.Conv3d(32, 1, 1))

    def forward(self, latent_NL, grid_NDHW3, picture_NCDHW=None):
        maps = [latent_NL[:, :, None, None, None]]
        for grow in (self.decoder_1, self.decoder_2, self.decoder_3, self.decoder_4):
            maps.append(grow(maps[-1]))
        found = [F.grid_sample(one, grid_NDHW3, align_corners=True) for one in maps[1:]]
        picture = [] if picture_NCDHW is None else [picture_NCDHW]
        x = torch.cat([grid_NDHW3.permute(0, 4, 1, 2, 3), *found, *picture], 1)
        if not self.deep:
            return self.implicit_mlp(x)
        return self.output(self.fc4(self.fc3(torch.cat([self.fc2(self.fc1(x)), x], 1))))


class Theirs(nn.Module):
    """A latent for each case, and the field."""

    def __init__(self, *, deep=True, pictures=0):
        super().__init__()
        self.encoder, self.decoder = nn.Embedding(CASES, 256), Field(deep=deep, pictures=pictures)

    def forward(self, case_N, grid_NDHW3, picture_NCDHW=None):
        return self.decoder(self.encoder(case_N), grid_NDHW3, picture_NCDHW)


def trained(*, seed=0, **kind):
    """Values that no start has, norms included."""
    torch.manual_seed(seed)
    model = Theirs(**kind)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(0.1 * torch.rand(tensor.shape))
    return model.eval()


def imported(folder, model, *arguments, prefix="", **given):
    """What `medseg checkpoint import` says and makes of a model's file."""
    old, new = folder / "best.pth", folder / "new.safetensors"
    torch.save({prefix + name: tensor for name, tensor in model.state_dict().items()}, old)
    call = ["checkpoint", "import", old, new, "--as", "near:shapes", "--arguments", json.dumps(given), *arguments]
    return CliRunner().invoke(app, list(map(str, call))), new


def refusal(result):
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


def grid_of_points(size=(5, 6, 7)):
    """(1, D, H, W, 3) all over the cube, its faces included."""
    ramps = [torch.linspace(-1, 1, n, dtype=torch.float64) for n in size]
    d, h, w = torch.meshgrid(*ramps, indexing="ij")
    return torch.stack([w, h, d], -1)[None]


@pytest.mark.parametrize(
    ("kind", "given", "prefix"),
    [
        ({"deep": True}, CORONARY, ""),
        ({"deep": True}, CORONARY, "module."),  # of DataParallel
        ({"deep": False}, {"num_cases": CASES, "net": "upstream"}, ""),
        ({"deep": False, "pictures": 1}, {"num_cases": CASES, "net": "upstream", "in_channels": 1}, ""),
    ],
)
def test_an_old_file_gives_its_old_answers(kind, given, prefix, tmp_path):
    theirs = trained(**kind)
    result, new = imported(tmp_path, theirs, prefix=prefix, **given)
    assert result.exit_code == 0, result.output
    ours, _ = load_model(new)
    theirs, ours, grid = theirs.double(), ours.double(), grid_of_points()
    picture = torch.rand(1, 1, 5, 6, 7, dtype=torch.float64) if kind.get("pictures") else None
    points = grid.reshape(1, -1, 3).flip(-1)  # along the axes of the volume: D, H, W are our X, Y, Z
    with torch.no_grad():
        for case in torch.arange(2):
            wanted = theirs(case[None], grid, picture).reshape(1, -1)
            found, _ = ours(case[None], points, None if picture is None else picture.reshape(1, -1, 1))
            torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)
            assert wanted.std() > 0.01


def test_probabilities_of_an_old_file_are_asked_for_in_mm(tmp_path):
    theirs = trained()
    _, new = imported(tmp_path, theirs, half_mm=40.0, **CORONARY)
    ours, card = load_model(new)
    grid = grid_of_points().float()
    with torch.no_grad():
        wanted = theirs(torch.tensor([1]), grid).sigmoid().ravel()
    points_mm = 40 * grid.reshape(-1, 3).flip(-1)
    torch.testing.assert_close(occupancy(ours, ours.latents.weight[1].detach(), points_mm), wanted, atol=1e-5, rtol=0)
    assert card.arguments["half_mm"] == 40.0


def test_labels_are_refined_by_an_old_file(balls, tmp_path):
    _, new = imported(tmp_path, trained(), half_mm=9.0, **CORONARY)
    config = RefineConfig(fit_steps=2, fit_points=64, max_change="none", device="cpu")
    outcome = refine_files([balls / "ball_5.nii.gz"], new, tmp_path / "out", config)
    assert not outcome.failed
    assert summary(tmp_path / "out")["fitted"] == 1
    assert read_volume(tmp_path / "out" / "ball_5.nii.gz").voxels.shape == ball_of(5).shape


def test_the_file_says_how_many_cases_it_has(tmp_path):
    result, new = imported(tmp_path, trained(), num_cases=120, net="original")
    line = refusal(result)
    assert "num_cases 3 where the network has 120" in line
    assert line.endswith('--arguments needs "num_cases": 3')
    assert not new.exists()


def test_a_net_that_would_take_the_tensors_and_answer_otherwise_is_refused(tmp_path):
    """The pointwise net has the original's shapes, and is what nobody asking gets."""
    line = refusal(imported(tmp_path, trained(), num_cases=CASES)[0])
    assert line.endswith('--arguments needs "net": "original"')
    line = refusal(imported(tmp_path, trained(deep=False, pictures=1), num_cases=2)[0])
    assert line.endswith('--arguments needs "num_cases": 3, "net": "upstream", "in_channels": 1')


def test_names_of_ones_own_are_told_by_a_table(tmp_path):
    theirs = trained()
    theirs.codes, theirs.encoder = theirs.encoder, nn.Identity()
    table = {**Shapes.renames, "codes": "latents"}
    (tmp_path / "renames.json").write_text(json.dumps(table))
    result, new = imported(tmp_path, theirs, "--renames", tmp_path / "renames.json", **CORONARY)
    assert result.exit_code == 0, result.output
    assert torch.equal(load_model(new)[0].latents.weight, theirs.codes.weight)
    line = refusal(imported(tmp_path, theirs, "--overwrite", **CORONARY)[0])
    assert "has no 'latents.weight'" in line
    assert line.endswith("--arguments or --renames mend it")


def test_every_parameter_of_the_first_near_has_a_place():
    """1,105,409 with its 998 cases."""
    num = sum(parameter.numel() for parameter in trained().parameters()) + (998 - CASES) * 256
    assert num == 1_105_409


def test_what_an_old_file_is_for_stands_in_its_card(tmp_path):
    _, new = imported(tmp_path, trained(), "--card", '{"grid": {"label": "coronary"}}', **CORONARY)
    card = read_card(new)
    assert card.grid == {"label": "coronary"}
    assert (card.head, card.channels, card.labels) == ("sigmoid", (1,), {1: "structure"})
