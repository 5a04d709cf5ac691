import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TRAIN = """
import json, sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from medseg_core.checkpoint import Card
from medseg_core.distributed import gather, place, share
from medseg_core.losses import dice_ce
from medseg_core.run import RunFolder
from medseg_core.settings import TrainConfig
from medseg_core.trainer import Score, Trainer

out = Path(sys.argv[1])
norm = {"group": lambda: nn.GroupNorm(2, 4), "batch": lambda: nn.BatchNorm2d(4)}[sys.argv[2]]


class Squares:
    drawn = []

    def __len__(self):
        return 13  # batches of 6, 6 and 1: the last leaves a process without a sample

    def __getitem__(self, draw):
        self.drawn.append([draw.index, draw.epoch, draw.place])
        label = np.zeros((8, 8), dtype=np.int64)
        label[: 2 + draw.index % 6, :4] = 1
        image = label + draw.numpy().normal(0, 0.3, label.shape)
        return {"image": torch.from_numpy(image)[None], "label": torch.from_numpy(label)}


def step(model, batch, at):
    return {"loss": dice_ce(model(batch["image"]), batch["label"])}


def validate(model, at):
    fixed = [torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(5)]
    rows = [float(model(image)[:, 1].mean()) for image in share(fixed)]
    return Score(float(np.mean(sorted(x for part in gather(rows) for x in part))))


torch.manual_seed(place()[0])  # the first process's weights must win
net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm(), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
config = TrainConfig(epochs=3, batch_size=6, accumulate=2, optimizer="sgd", lr=0.01, precision="fp32", device="cpu")
run = RunFolder.open(out / "run", config)
trainer = Trainer(net, step, config=config, card=Card(package="test", version="0", model="net"), run=run)
gradients = []
trainer.optimizer.register_step_pre_hook(
    lambda *_: gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).numpy().copy())
)
result = trainer.fit(Squares(), validate)
statistics = [b.double().flatten().tolist() for b in trainer.model.buffers()]
told = {"drawn": Squares.drawn, "score": result.best.value, "statistics": statistics}
(out / f"told-{place()[0]}.json").write_text(json.dumps(told))
np.save(out / f"gradients-{place()[0]}.npy", np.array(gradients))
"""


def trained(out, *, processes, norm):
    """What each process told, and the gradient of every update as each saw it."""
    out.mkdir()
    script = out / "train.py"
    script.write_text(TRAIN)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(script), str(out), norm]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [json.loads((out / f"told-{rank}.json").read_text()) for rank in range(processes)]
    return told, [np.load(out / f"gradients-{rank}.npy") for rank in range(processes)], done.stderr


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("ranks") / "one", processes=1, norm="group")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("ranks") / "two", processes=2, norm="group")


@pytest.fixture(scope="module")
def two_with_batch_norm(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("ranks") / "batch", processes=2, norm="batch")


def drawn(told):
    return {tuple(draw) for process in told for draw in process["drawn"]}


def test_two_processes_draw_the_samples_of_one(one, two):
    assert drawn(two[0]) == drawn(one[0])
    assert len(drawn(one[0])) == 3 * 13


def test_gradients_of_two_processes_are_those_of_one_on_the_whole_batch(one, two):
    whole, halves = one[1][0], two[1][0]
    assert whole.shape == halves.shape == (6, len(whole[0]))
    assert np.abs(halves - whole).max() < 1e-6 * np.abs(whole).max()


def test_both_processes_see_one_gradient(two):
    assert np.array_equal(two[1][0], two[1][1])


def test_two_processes_reach_the_validation_score_of_one(one, two):
    scores = [process["score"] for process in two[0]]
    assert scores == pytest.approx([one[0][0]["score"]] * 2, rel=1e-9)


def test_running_statistics_stay_equal_in_both_processes(two_with_batch_norm):
    first, second = two_with_batch_norm[0]
    assert first["statistics"] == second["statistics"]
    assert any(value not in (0.0, 1.0) for value in first["statistics"][0])


def test_batch_normalisation_within_a_process_is_told_at_the_start(two, two_with_batch_norm):
    assert "sees 3 of the 6 samples" in two_with_batch_norm[2]
    assert "batch normalisation" not in two[2]


def test_a_process_that_dies_ends_the_others(tmp_path):
    script = tmp_path / "die.py"
    script.write_text(
        "import os, sys\nfrom medseg_core.distributed import gather, place\ngather(0)\n"
        "sys.exit(3) if place()[0] else gather(1)\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(torchrun, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0


THREADS = """
import atexit, os
from pathlib import Path

def tell():
    names = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    Path(f"left-{place()[0]}").write_text(" ".join(name for name in names if "gloo" in name))

atexit.register(tell)  # called last
from medseg_core.distributed import gather, place
gather(0)
import torch.distributed.nn  # as a network on the meta device does
gather(1)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed by Linux alone")
def test_no_thread_of_the_group_is_left_when_python_ends(tmp_path):
    (tmp_path / "threads.py").write_text(THREADS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "threads.py"]
    subprocess.run(torchrun, check=True, cwd=tmp_path, capture_output=True, timeout=300)
    assert [(tmp_path / f"left-{rank}").read_text() for rank in (0, 1)] == ["", ""]


def benchmark(*words):
    kill = Path(__file__).parents[2] / "benchmarks" / "kill.py"
    return subprocess.run([sys.executable, kill, *words], check=False, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("how", [("--workers", "2"), ("--workers", "0", "--processes", "2")])
def test_a_run_killed_at_random_moments_ends_in_the_bytes_of_one_that_was_not(how):
    done = benchmark("--kills", "2", "--seconds", "5", *how)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
