"""What is told of a patient beside overlap: burden, uptake, and what plain thresholds of SUV would have found.

Axes: X Y Z voxels of a patient, or H W S of pictures.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from medseg_core.pairs import Pair
from medseg_fusion.patients import BITS

BURDEN = {"tmtv_ml": "tmtv_ref_ml", "tlg": "tlg_ref", "suvmax": "suvmax_ref", "suvmean": "suvmean_ref"}
SHARE_OF_MAX, FIXED_SUV = 0.41, 2.5  # Boellaard et al., EANM guidelines 2015; the threshold of lymphoma trials


def burden(pair: Pair) -> dict[str, float]:
    """Of the mask, and with `_ref` of the label: tumour volume, glycolysis and uptake; accuracy beside its rival.

    `tmtv_ml` is the metabolic tumour volume, `tlg` it times the mean SUV (g); SUV of an empty side is nan. `accuracy`
    is the share of voxels that are right, and `accuracy_of_nothing` what an empty mask would have of it.
    """
    mask, label = pair.mask == 1, pair.label == 1
    told = {"accuracy": float((mask == label).mean()), "accuracy_of_nothing": float(1 - label.mean())}
    if "pet" not in pair.images or pair.unit != "mm":
        return told
    ml = float(np.prod(pair.spacing)) / 1000
    for name, side in (("", mask), ("_ref", label)):
        suv = pair.images["pet"][side]
        mean, most = (float(suv.mean()), float(suv.max())) if suv.size else (np.nan, np.nan)
        told |= {f"tmtv{name}_ml": suv.size * ml, f"tlg{name}": float(suv.sum(dtype=np.float64)) * ml}
        told |= {f"suvmean{name}": mean, f"suvmax{name}": most}
    return told


def agreement(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """How far volume, glycolysis and uptake of the mask lie from those of the label (Bland and Altman, Lancet 1986).

    Args:
        rows: one for each patient, with the numbers of `burden`.

    Returns:
        `bias`, the mean difference, and the limits `low` and `high` that 95 % of differences keep, over `n` patients
        who have both.
    """
    rows, told = list(rows), {}
    for name, label in BURDEN.items():
        pairs = np.array([(row[name], row[label]) for row in rows if name in row], float).reshape(-1, 2)
        gaps = np.subtract(*pairs[np.isfinite(pairs).all(1)].T)
        if len(gaps) > 1:
            bias, spread = float(gaps.mean()), 1.96 * float(gaps.std(ddof=1))
            told[name] = {"bias": bias, "low": bias - spread, "high": bias + spread, "n": len(gaps)}
    return told


def share_of_max(pair: Pair) -> np.ndarray:
    """41 % of the highest SUV of the patient."""
    pet = pair.images["pet"]
    return (pet >= SHARE_OF_MAX * pet.max()).astype(np.uint8)


def fixed_suv(pair: Pair) -> np.ndarray:
    """SUV above 2.5."""
    return (pair.images["pet"] > FIXED_SUV).astype(np.uint8)


def best_suv(pair: Pair) -> np.ndarray:
    """The threshold whose Dice is the highest for this very patient: nobody has it, for it needs the truth."""
    pet, label = pair.images["pet"], pair.label == 1
    order = np.argsort(pet, axis=None)[::-1]
    hits = np.cumsum(label.ravel()[order])
    dice = 2 * hits / (np.arange(1, pet.size + 1) + hits[-1])
    values = pet.ravel()[order]
    ends = np.append(values[1:] < values[:-1], True)  # voxels of one value go in together
    threshold = values[np.where(ends, dice, -1).argmax()]
    return (pet >= threshold).astype(np.uint8) if label.any() else np.zeros(pet.shape, np.uint8)


def thresholds(unit: str) -> Mapping[str, Callable[[Pair], np.ndarray]]:
    """Name -> mask of a pair; none where there is no SUV."""
    if unit == BITS:
        return {}
    return {"41 % of SUVmax": share_of_max, "SUV > 2.5": fixed_suv, "best SUV with the truth in hand": best_suv}
