"""Where the randomness of a sample comes from: its seed, epoch, place and index, and nothing else.

A sample drawn again is the same to the bit, in any process and after any interruption; a case that comes twice in an
epoch is augmented twice, differently, because its place differs.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medseg_core.errors import MedsegError

Batch = dict[str, Tensor]

ORDER = 2**32 - 1  # a place no sample has: the order of an epoch is drawn apart from its samples


@dataclass(frozen=True)
class Draw:
    """One sample of a run.

    Attributes:
        index: which sample, from 0; below len(samples) where no `order` says otherwise.
        epoch: from 0; a curriculum is a function of it.
        place: position in the epoch over all processes, from 0.
        seed: the run's.
    """

    index: int
    epoch: int
    place: int
    seed: int

    def numpy(self) -> np.random.Generator:
        """A new generator, equal for equal draws."""
        return np.random.default_rng(self._words())

    def torch(self) -> torch.Generator:
        """A new generator on the CPU, equal for equal draws."""
        word = np.random.SeedSequence(self._words()).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(word))

    def _words(self) -> list[int]:
        return [self.seed, self.epoch, self.place, self.index]  # always four: [a] and [a, 0] seed alike


class Samples(Protocol):
    """What a package trains on: a pure function of a draw.

    It may also have `order(epoch, rng)`, the `len(self)` indices of an epoch; `collate(list of samples)`, where
    stacking does not make the batch; and `identity`, a text that is another one for other cases: a run goes on with
    its own alone. Indices may repeat (oversampling) and go beyond `len(self)`, where an epoch shows a part of all.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, draw: Draw, /) -> Batch: ...


def order_of(samples: Samples, epoch: int, seed: int) -> np.ndarray:
    """The indices of an epoch in their order: `samples.order(epoch, rng)` where there is one, else a permutation.

    Returns:
        (len(samples),) int64, a function of epoch and seed.

    Raises:
        MedsegError: an order of another length, on which schedule and resume could not count, or with other indices.
    """
    rng = np.random.default_rng([seed, epoch, ORDER, 0])
    num = len(samples)
    if not hasattr(samples, "order"):
        return rng.permutation(num)
    order = np.asarray(samples.order(epoch, rng))
    if order.shape != (num,) or order.dtype.kind not in "iu":
        raise MedsegError(f"order() must give {num} whole numbers, one per sample, got {order.dtype} {order.shape}")
    if num and order.min() < 0:
        raise MedsegError(f"order() must give indices from 0 on, got {order.min()}")
    return order.astype(np.int64)


def repeated(kind: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray:
    """(num,) of these: all of them as often as it goes, and some of them once more."""
    whole, rest = divmod(num, len(kind))
    return np.concatenate([np.tile(kind, whole), rng.permutation(kind)[:rest]])
