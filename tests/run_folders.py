"""Run folders as trainings leave them, made in no time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file


def make_run(
    path: Path,
    *,
    epochs: int = 3,
    done: int = 3,
    reason: str = "",
    started: str = "2026-03-01T10:00:00+0000",
    scores: tuple[float, ...] = (0.5, 0.75, 0.25),
    **more: Any,
) -> Path:
    """A run folder as a training leaves it after `done` epochs of 90 seconds."""
    (path / "last").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({"epochs": epochs, "lr": 0.001, **more}))
    (path / "run.json").write_text(json.dumps({"started": started, "command": "medseg toy train DATA"}))
    rows = [
        {"epoch": n, "step": n, "lr": 0.001, "train_loss": 1 / n, "train_dice": score - 0.1}
        | {"val_score": score, "val_dice": score, "val_loss": 2 / n}
        for n, score in zip(range(1, done + 1), scores, strict=False)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "timings.jsonl").write_text(
        "".join(json.dumps({"epoch": n, "seconds": 90.0}) + "\n" for n in range(1, done + 1))
    )
    position = {"epoch": done, "reason": reason, "best": {"value": max(scores[:done])} if done else None}
    about = {"medseg": json.dumps({"position": position})}
    save_file({"model/w": np.zeros(3, np.float32)}, path / "last" / "state.safetensors", about)
    return path
