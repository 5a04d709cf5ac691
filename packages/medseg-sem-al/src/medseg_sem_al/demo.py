"""The whole way on phantom micrographs: what few labels are worth, with and without the pictures that have none.

OUT/data, index.json    micrographs of known phases, some with masks
OUT/pretrained          an encoder learnt without masks, OUT/pretrained/inspected what it fills in
OUT/scratch, finetuned, pseudo   runs: random weights, that encoder, and the pool taught by the first
OUT/evaluation          of the first on sequences that it has not seen: report.html, panels/
OUT/predictions         masks and measures of all pictures
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medseg_sem_al.evaluate import evaluate_run
from medseg_sem_al.index import build_index
from medseg_sem_al.phantom import phantom
from medseg_sem_al.predict import predict_files
from medseg_sem_al.pretrain import inspect, pretrain
from medseg_sem_al.pseudo import pseudo
from medseg_sem_al.settings import IndexConfig, PretrainConfig, PseudoConfig, SegConfig
from medseg_sem_al.start import Start
from medseg_sem_al.train import train

IMAGES = {"num_images": 36, "num_labelled": 24, "size": 192}
FEW = {"num_images": 15, "num_labelled": 12, "size": 96}
INDEX = IndexConfig(split=(0.25, 0.25, 0.5))
SIZES: Mapping[str, Any] = {"size": 96, "batch_size": 8, "epoch_windows": 96, "val_every": 4}
PRETRAIN = PretrainConfig(**SIZES, width=8, lr=3e-3, epochs=8)
TRAIN = SegConfig(**SIZES, width=8, lr=3e-3, epochs=16)
PSEUDO = PseudoConfig(**SIZES, lr=1e-3, epochs=8)


def demo(out: Path, *, quick: bool = False) -> dict[str, Any]:
    """Learns from two labelled sequences of eight, three ways, and scores all on four others.

    Args:
        out: begun where it is not there, gone on with where it is.
        quick: a run of seconds, which shows that everything works and finds nothing.
    """
    begun, out = time.monotonic(), Path(out)
    less = {"epochs": 1, "epoch_windows": 8, "val_every": 1, "size": 64} if quick else {}
    narrow = {**less, "width": 2} if quick else {}
    phantom(out / "data", **(FEW if quick else IMAGES))
    index = out / "index.json"
    build_index(out / "data", INDEX).write(index)
    pretrain(index, out / "pretrained", replace(PRETRAIN, **narrow), resume="last")
    inspect(out / "pretrained", index, out / "pretrained" / "inspected")
    config = replace(TRAIN, **narrow)
    train(index, out / "scratch", config, resume="last")
    train(index, out / "finetuned", config, start=Start(encoder_init=out / "pretrained"), resume="last")
    pseudo(index, out / "pseudo", replace(PSEUDO, **less), model=out / "scratch", resume="last")
    told: dict[str, Any] = {}
    for name in ("scratch", "finetuned", "pseudo"):
        folder = out / "evaluation" if name == "scratch" else out / name / "evaluation"
        found = evaluate_run(index, out / name, folder, overwrite=True)
        told["mean IoU, majority class"] = found["majority"]
        told[f"mean IoU, {name}"] = found["miou"]
        told[f"its interval, {name}"] = [found["miou_low"], found["miou_high"]]
    predict_files(out / "data", out / "scratch", out / "predictions")
    told |= {"report": str(out / "evaluation" / "report.html"), "predictions": str(out / "predictions")}
    return {**told, "minutes": (time.monotonic() - begun) / 60}
