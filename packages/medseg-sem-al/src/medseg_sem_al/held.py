"""How good pre-training is on pictures that were held out, beside what needs no network.

Axes: C frames of a stack (1 of a picture), H W of a window, h w of a grid of patches, N windows, D features.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from medseg_core.distributed import gather, share
from medseg_core.draw import Draw
from medseg_core.trainer import At, Score
from medseg_sem_al.models.pretraining import hidden_patches, pixels_of
from medseg_sem_al.objectives import psnr, spread, ssim
from medseg_sem_al.samples import standardised
from medseg_sem_al.views import Views, Window

MOST_VIEWS = 128  # pairs of a validation
BINS = 32  # of a histogram of greys
FAR = 8.0  # standard deviations of the smooth fill: as far as a hole of 95 % is wide


class Reconstruction:
    """PSNR and SSIM of what was hidden in fixed windows, means over windows; beside two fills without a network.

    `mean` fills with the mean of what is visible in the window, `smooth` with the mean of what is visible nearby. All
    are of values in [0, 1]: PSNR of hidden pixels, SSIM of its windows around them, in the picture whose visible pixels
    are as they were.

    Args:
        windows: with edges that the network takes.
        share: of patches that are hidden.
        intensity: `{"mean", "std"}` of values in [0, 1].
        patch: edge in pixels.
        seed: of what is hidden.
    """

    def __init__(
        self, windows: Sequence[Window], *, share: float, intensity: dict[str, float], patch: int, seed: int
    ) -> None:
        self.windows, self.intensity, self.patch = list(windows), intensity, patch
        self.hidden_1hw = [self._hidden(number, share, seed) for number in range(len(self.windows))]
        self.rows = [self._filled(number) for number in range(len(self.windows))]

    def __call__(self, model: nn.Module, at: At) -> Score:
        """See `medseg_core.trainer.Validate`."""
        mine = [self.judged(number, self.made(model, number)) for number in share(range(len(self.windows)))]
        found = [row for part in gather(mine) for row in part]
        told = {name: float(np.mean([row[name] for row in rows])) for rows in (found, self.rows) for name in rows[0]}
        return Score(told["psnr"], told)

    @torch.no_grad()
    def made(self, model: nn.Module, number: int) -> np.ndarray:
        """(C, H, W) float32 in [0, 1]: the window, its hidden pixels made up."""
        device = next(model.parameters()).device
        values, hidden = self.windows[number].values, self.hidden_1hw[number]
        x_1CHW = torch.from_numpy(standardised(values, self.intensity))[None]
        told = model(x_1CHW.to(device), hidden.to(device)).float().cpu()[0].numpy()
        told = np.clip(told * self.intensity["std"] + self.intensity["mean"], 0, 1)
        return np.where(self.where(number), told, values)

    def where(self, number: int) -> np.ndarray:
        """(H, W) bool, what is hidden of a window."""
        return pixels_of(self.hidden_1hw[number], self.patch)[0, 0].numpy()

    def judged(self, number: int, made: np.ndarray, kind: str = "") -> dict[str, float]:
        """`psnr` and `ssim` of a window that was made up, with the name of another kind before them."""
        one, other = (torch.from_numpy(part.astype(np.float64))[None] for part in (made, self.values(number)))
        where = torch.from_numpy(self.where(number))[None, None]
        found = {"psnr": float(psnr(one, other, where)), "ssim": float(ssim(one, other, where=where))}
        return {f"{kind}_{name}" if kind else name: value for name, value in found.items()}

    def values(self, number: int) -> np.ndarray:
        """(C, H, W) of a window as it is."""
        return self.windows[number].values

    def _hidden(self, number: int, share: float, seed: int) -> Tensor:
        grid = [edge // self.patch for edge in self.values(number).shape[1:]]
        return hidden_patches(1, grid, share, Draw(number, 0, 0, seed).torch())

    def _filled(self, number: int) -> dict[str, float]:
        values, where = self.values(number), self.where(number)
        kinds = {
            "mean": np.where(where, values[:, ~where].mean(), values),
            "smooth": smooth_fill(values, where, self.patch),
        }
        return {name: v for kind, made in kinds.items() for name, v in self.judged(number, made, kind).items()}


def smooth_fill(values: np.ndarray, where: np.ndarray, patch: int) -> np.ndarray:
    """Hidden pixels as the mean of visible ones, weighted by a Gaussian of half a patch.

    Args:
        values: (C, H, W).
        where: (H, W) bool, what is hidden.
    """
    smooth = {"sigma": patch / 2, "truncate": FAR, "axes": (-2, -1)}
    weight = gaussian_filter((~where).astype(np.float64), **smooth)
    total = gaussian_filter(np.where(where, 0.0, values), **smooth)
    mean = float(values[:, ~where].mean())
    near = np.where(weight > 1e-12, total / np.maximum(weight, 1e-12), mean)
    return np.where(where, near, values).astype(values.dtype)


class Retrieval:
    """The share of views whose nearest neighbour among all other views is the other one of the same place.

    Views are those of training, drawn once for all; places of one picture may overlap. Beside it `chance`; `grey`, the
    same by histograms of greys; and `start`, the same by the network before training.

    Args:
        views: of held pictures, without small ones.
        seed: of their draws.
        start: the network before its first update.
    """

    def __init__(self, views: Views, *, seed: int, start: nn.Module) -> None:
        self.views, self.seed = views, seed
        self.num = min(len(views), MOST_VIEWS)
        greys_2ND = np.stack([np.stack([_histogram(view) for view in self._pair(n)], 0) for n in range(self.num)], 1)
        self.beside = {"chance": 1 / (2 * self.num - 1), "grey": retrieved(torch.from_numpy(greys_2ND))}
        was_training = start.training
        self.beside["start"] = self._scores(start.eval())["retrieval"]
        start.train(was_training)

    def __call__(self, model: nn.Module, at: At) -> Score:
        """See `medseg_core.trainer.Validate`."""
        told = self._scores(model)
        return Score(told["retrieval"], {**told, **self.beside})

    @torch.no_grad()
    def _scores(self, model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        features, answers = [], []
        for number in range(self.num):
            pair_2CHW = self._pair(number).to(device)
            features.append(model.pooled(pair_2CHW).float().cpu())
            answers.append(model(pair_2CHW).float().cpu())
        told = {name: float(value) for name, value in spread(torch.cat(answers)).items()}
        return {"retrieval": retrieved(torch.stack(features, 1)), **told}

    def _pair(self, number: int) -> Tensor:
        index = number % len(self.views.windows.shelf.cases)
        return self.views[Draw(index, 0, number, self.seed)]["large"]


def retrieved(features_2ND: Tensor) -> float:
    """How often the nearest of all other views, by cosine, is the partner, of (2, N, D) pairs of views."""
    num = features_2ND.shape[1]
    near = nearest(features_2ND.flatten(0, 1), 1)[0][:, 0]
    partner = (torch.arange(2 * num) + num) % (2 * num)
    return float((near == partner).double().mean())


def nearest(features_ND: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """(N, num) places and cosines of the rows most like each row, itself left out; what all have in common is too."""
    unit = torch.nn.functional.normalize(features_ND.double() - features_ND.double().mean(0), dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-np.inf)
    found = cosines.topk(num, 1)
    return found.indices, found.values


def _histogram(view_CHW: Tensor) -> np.ndarray:
    """Of standardised values within three deviations, beyond which all are in the outermost bins."""
    values = view_CHW.numpy().clip(-2.999, 2.999)
    return np.histogram(values, BINS, (-3, 3))[0].astype(np.float64)
