"""Networks that are asked together. Axes: M networks, K classes, D frames of a stack, H W of a picture, F features."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from medseg_core.checkpoint import digest
from medseg_core.errors import MedsegError
from medseg_sem_al.models.segmenter import padded
from medseg_sem_al.parts import boxes, part_of
from medseg_sem_al.predict import Predictor
from medseg_sem_al.samples import standardised
from medseg_sem_al.settings import QueryConfig


class Committee:
    """One network, several, or each several times with dropout at work (Gal and Ghahramani, 2016).

    Args:
        runs: of `train` and its like, of the same classes and depth; the first one's features count.

    Raises:
        MedsegError: no such run, other classes, or no dropout where passes with it are asked for.
    """

    def __init__(self, runs: Sequence[Path], config: QueryConfig) -> None:
        self.members = [Predictor(run, config) for run in runs]
        self.passes, self.seed, self.window = config.dropout_passes, config.seed, config.window
        first = self.members[0]
        self.card, self.names, self.colours, self.depth = first.card, first.names, first.colours, first.depth
        self.digests = [digest(run) for run in runs]
        for run, member in zip(runs, self.members, strict=True):
            if (member.names, member.depth) != (self.names, self.depth):
                raise MedsegError(f"{run} knows other classes or stacks than {runs[0]}; ask runs of one index together")
            if self.passes and not any(layer.p for layer in _dropouts(member.net)):
                raise MedsegError(f"{run} has no dropout; train with --dropout 0.2, or give --model several times")

    @property
    def is_ensemble(self) -> bool:
        """Whether there are several answers."""
        return max(self.passes, 1) * len(self.members) > 1

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """(M, K, H, W) float32 of (D, H, W) values in [0, 1]; the same of each call."""
        return np.stack([probs for member in self.members for probs in self._answers(member, image)])

    def _answers(self, member: Predictor, image: np.ndarray) -> Iterator[np.ndarray]:
        if not self.passes:
            yield member.probabilities(image)
            return
        with _at_work(member.net):
            for number in range(self.passes):
                torch.manual_seed(self.seed + number)
                yield member.probabilities(image)

    @torch.inference_mode()
    def features(self, image: np.ndarray) -> np.ndarray:
        """(F,) float32 of length 1: the mean of the encoder's deepest level over (D, H, W) values in [0, 1]."""
        net, total = self.members[0].net, 0.0
        device = next(net.parameters()).device
        for box in boxes(image.shape[1:], self.window):
            tile = standardised(image[:, *part_of(box)], dict(self.card.intensity))
            x_NCHW, _ = padded(torch.from_numpy(tile)[None].to(device), net.encoder.multiple)
            deep_F = net.encoder(x_NCHW)[-1].float().mean((0, 2, 3)).cpu().numpy()
            total = total + deep_F * tile[0].size
        return (total / max(float(np.linalg.norm(total)), 1e-12)).astype(np.float32)


def _dropouts(net: nn.Module) -> list[_DropoutNd]:
    return [layer for layer in net.modules() if isinstance(layer, _DropoutNd)]


@contextmanager
def _at_work(net: nn.Module) -> Iterator[None]:
    """Dropout as in training, and nothing else of it."""
    for layer in _dropouts(net):
        layer.train()
    try:
        yield
    finally:
        net.eval()
