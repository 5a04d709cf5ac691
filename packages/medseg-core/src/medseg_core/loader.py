"""The batches of an epoch, the same for any number of loader workers, from any place in the epoch."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader, default_collate

from medseg_core.distributed import place
from medseg_core.draw import Batch, Draw, Samples, order_of
from medseg_core.errors import MedsegError
from medseg_core.settings import TrainConfig


@dataclass(frozen=True)
class Part:
    """What this process works on in one batch.

    Attributes:
        batch: the collated samples.
        draws: what they were drawn by.
        num: how many of them count: 0 where fewer samples than processes were left and one is here to keep step.
        total: samples of the batch over all processes.
    """

    batch: Batch
    draws: Sequence[Draw]
    num: int
    total: int


class Loader:
    """Batches of `config.batch_size` draws over all processes; the last of an epoch is smaller where it must be."""

    def __init__(self, samples: Samples, config: TrainConfig, *, pin: bool = False) -> None:
        self.samples, self.config = samples, config
        self.draws = _Draws()
        workers = config.num_workers
        self.loader = DataLoader(
            samples,  # type: ignore[arg-type]
            batch_sampler=self.draws,
            collate_fn=getattr(samples, "collate", default_collate),
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_stopping_to_the_parent,
            multiprocessing_context="forkserver" if workers else None,  # a fork after torch has worked hangs
            pin_memory=pin,  # no timeout: with one, a worker that died is missed until it has passed
        )

    @property
    def num_batches(self) -> int:
        return -(-len(self.samples) // self.config.batch_size)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Part]:
        """This process's parts of the batches of an epoch (from 0), from batch number `start` on.

        Raises:
            MedsegError: a sample's own, or a worker that died.
        """
        size, seed = self.config.batch_size, self.config.seed
        rank, ranks = place()
        order = order_of(self.samples, epoch, seed)
        draws = [Draw(int(index), epoch, place, seed) for place, index in enumerate(order)]
        whole = [draws[i : i + size] for i in range(start * size, len(draws), size)]
        self.draws.batches = [batch[rank::ranks] or batch[:1] for batch in whole]
        for batch, own, loaded in zip(whole, self.draws.batches, self._loaded(), strict=True):
            yield Part(loaded, own, len(batch[rank::ranks]), len(batch))

    def _loaded(self) -> Iterator[Batch]:
        try:
            yield from self.loader
        except MedsegError as error:  # from a worker it comes with its traceback as text
            text = error.args[0]
            raise MedsegError(text.strip().splitlines()[-1].partition("MedsegError: ")[2] or text) from None
        except RuntimeError as error:
            if not str(error).startswith("DataLoader"):  # a bug in a sample starts with "Caught"
                raise
            reason = str(error).splitlines()[0]
            raise MedsegError(
                f"a loader worker is gone ({reason}); memory may have run out: lower --num-workers"
                f" (now {self.config.num_workers}), 0 loads in the main process"
            ) from None


def _leave_stopping_to_the_parent(_: int) -> None:
    """A terminal's Ctrl-C reaches the workers too; the parent still needs the samples of the update under way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Draws:
    """What the loader asks for, set anew for each epoch: workers outlive epochs and would never see a change."""

    def __init__(self) -> None:
        self.batches: list[list[Draw]] = []

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
