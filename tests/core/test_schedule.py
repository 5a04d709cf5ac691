import math

import pytest

from medseg_core.schedule import lr_at
from medseg_core.settings import TrainConfig


@pytest.mark.parametrize(
    ("schedule", "progress", "lr"),
    [
        ("constant", 0.7, 1.0),
        ("cosine", 0.0, 1.0),
        ("cosine", 0.5, 0.5),
        ("cosine", 1.0, 0.0),
        ("poly", 0.5, 0.5**0.9),
        ("multistep", 0.59, 1.0),
        ("multistep", 0.6, 0.1),
        ("multistep", 0.9, 0.01),
    ],
)
def test_the_learning_rate_falls_as_the_formula_says(schedule, progress, lr):
    assert math.isclose(lr_at(TrainConfig(schedule=schedule), 1.0, progress), lr, abs_tol=1e-12)


def test_warm_up_rises_linearly_and_the_rest_is_the_whole_schedule():
    config = TrainConfig(schedule="cosine", warmup=0.2)
    assert [lr_at(config, 1.0, p) for p in (0.0, 0.1)] == [0.0, 0.5]
    assert math.isclose(lr_at(config, 1.0, 0.6), 0.5)  # half of what is left after warm-up


def test_plateau_halves_with_each_reduction_down_to_min_lr():
    config = TrainConfig(schedule="plateau", min_lr=0.2)
    assert [lr_at(config, 1.0, 0.5, n) for n in range(4)] == [1.0, 0.5, 0.25, 0.2]
