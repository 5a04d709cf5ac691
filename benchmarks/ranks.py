"""How far the gradient of two processes lies from that of one on the same batch, by the normalisation of the network.

    python benchmarks/ranks.py [--processes 2] [--batch 8] [--edge 64]

Every process takes its share of one batch through `Trainer.update`, in float64, so that rounding does not show. What
looks at one case at a time gives the gradient of one process; batch normalisation sees only the share of its process.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medseg_core.checkpoint import Card
from medseg_core.distributed import place
from medseg_core.losses import dice_ce
from medseg_core.settings import TrainConfig
from medseg_core.trainer import Trainer
from medseg_totalseg.models.unet2d import UNet2d
from medseg_totalseg.models.unet3d import UNet3d

NUM_CLASSES = 5


def main() -> None:
    """Print the relative difference for each network."""
    parser = argparse.ArgumentParser(description="Gradients of several processes beside those of one.")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--edge", type=int, default=64)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.out:
        for name in networks():
            np.save(arguments.out / f"{name}-{place()[1]}.npy", gradient(name, arguments.batch, arguments.edge))
        return
    with tempfile.TemporaryDirectory() as folder:
        words = [__file__, "--out", folder, "--batch", str(arguments.batch), "--edge", str(arguments.edge)]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(arguments.processes)]
        for command in ([sys.executable, *words], [sys.executable, *torchrun, *words]):
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        for name in networks():
            one, many = (np.load(Path(folder) / f"{name}-{size}.npy") for size in (1, arguments.processes))
            difference = np.linalg.norm(many - one) / np.linalg.norm(one)
            print(f"{name:36} {arguments.processes} processes: gradient differs by {difference:.1e} of its length")


def networks() -> dict[str, nn.Module]:
    """Small ones, by how they normalise."""
    return {
        "UNet2d, batch normalisation": UNet2d(1, NUM_CLASSES, widths=(8, 16)),
        "UNet3d, instance normalisation": UNet3d(1, NUM_CLASSES, widths=(8, 16)),
    }


def gradient(name: str, batch_size: int, edge: int) -> np.ndarray:
    """The gradient of one update on one batch, of which this process takes its share."""
    torch.manual_seed(0)
    net = networks()[name].double()
    space = (edge, edge) if "2d" in name else (edge // 4,) * 3
    drawn = torch.Generator().manual_seed(1)
    label = torch.randint(NUM_CLASSES, (batch_size, *space), generator=drawn)
    image = label[:, None] + torch.randn(batch_size, 1, *space, generator=drawn).double()
    config = TrainConfig(precision="fp32", device="cpu", batch_size=batch_size)
    card = Card(package="benchmark", version="0", model="net")
    trainer = Trainer(net, lambda m, b, _: {"loss": dice_ce(m(b["image"]), b["label"])}, config=config, card=card)
    kept = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: kept.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).numpy().copy())
    )
    rank, ranks = place()
    trainer.update([{"image": image[rank::ranks], "label": label[rank::ranks]}])
    return kept[0]


if __name__ == "__main__":
    main()
