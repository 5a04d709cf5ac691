"""The batches of an epoch, the same for any number of loader workers, from any place in the epoch."""

from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader, default_collate

from medseg_core.draw import Batch, Draw, Samples, order_of
from medseg_core.settings import TrainConfig


class Loader:
    """Batches of `config.batch_size` draws; `num_batches` an epoch, the last one smaller where it does not divide."""

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
            multiprocessing_context="forkserver" if workers else None,  # a fork after torch has worked hangs
            pin_memory=pin,
        )

    @property
    def num_batches(self) -> int:
        return -(-len(self.samples) // self.config.batch_size)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Sequence[Draw], Batch]]:
        """The batches of an epoch (from 0) with their draws, from batch number `start` on."""
        size, seed = self.config.batch_size, self.config.seed
        order = order_of(self.samples, epoch, seed)
        draws = [Draw(int(index), epoch, place, seed) for place, index in enumerate(order)]
        self.draws.batches = [draws[i : i + size] for i in range(start * size, len(draws), size)]
        yield from zip(self.draws.batches, self.loader, strict=True)


class _Draws:
    """What the loader asks for, set anew for each epoch: workers outlive epochs and would never see a change."""

    def __init__(self) -> None:
        self.batches: list[list[Draw]] = []

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
