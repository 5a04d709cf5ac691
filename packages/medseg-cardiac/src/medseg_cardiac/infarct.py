"""How much of the left ventricle is infarcted: mass, share, and per segment share and transmurality."""

import math
from dataclasses import asdict, dataclass

import numpy as np

from medseg_cardiac.segments import CAP, NUM_SEGMENTS, SEGMENTS, centre_of, has_cavity, marked
from medseg_core.errors import MedsegError

DENSITY_G_PER_ML = 1.05  # of myocardium
CHORD_DEG = 1.0
STEP_PIXELS = 0.1


@dataclass(frozen=True)
class InSegment:
    """The infarct in one segment.

    Attributes:
        share: of the segment's volume; nan where the segment is absent.
        transmurality: mean, over the chords that hit infarct, of the share of the wall's thickness that is infarcted;
            0 where none does, nan where the segment is absent or is the cap, which no chord crosses.
        transmurality_most: the largest of these.
        num_slices: slices in which the segment has infarct.
    """

    share: float
    transmurality: float
    transmurality_most: float
    num_slices: int


@dataclass(frozen=True)
class Infarct:
    """The infarct of one patient.

    Attributes:
        mass_g, lv_mass_g: of the infarct and of the myocardium; nan where the thickness of a slice is unknown.
        share_of_lv: infarct over myocardium, by volume.
        num_slices: slices with infarct.
        num_outlined: slices with myocardium.
        segments: id 1 to 17 -> what is in it.
        num_absent: segments that no slice shows.
        said: one line each, of what was left out.
    """

    mass_g: float
    lv_mass_g: float
    share_of_lv: float
    num_slices: int
    num_outlined: int
    segments: dict[int, InSegment]
    num_absent: int
    said: tuple[str, ...]

    def values(self, name: str) -> np.ndarray:
        """(17,) one field of all segments, as `bullseye` takes it."""
        return np.array([getattr(self.segments[i], name) for i in range(1, NUM_SEGMENTS + 1)], float)

    def as_json(self) -> dict[str, object]:
        """Plain numbers and words, None for nan, segments by their names."""
        told = {key: _plain(value) for key, value in asdict(self).items() if key != "segments"}
        segments = {
            SEGMENTS[i]: {"id": i} | {key: _plain(value) for key, value in asdict(inside).items()}
            for i, inside in self.segments.items()
        }
        return told | {"said": list(self.said), "segments": segments}


def summarise(
    infarct: np.ndarray,
    myo: np.ndarray,
    *,
    segments: np.ndarray,
    spacing_mm: tuple[float, float],
    thickness_mm: float | None,
) -> Infarct:
    """Mass, share and transmurality of an infarct.

    A chord runs from the centre of the ventricle outward, one per degree in every slice that has a cavity; what it
    crosses of the wall is its thickness there. It belongs to the segment in which most of that lies.

    Args:
        infarct, myo: (S, H, W), bool or 0 and 1; what lies outside of the myocardium counts nowhere, and is said.
        segments: (S, H, W) ids, as from `aha_segments` for this myocardium.
        spacing_mm: along H and W.
        thickness_mm: from slice to slice; None leaves the masses nan.

    Raises:
        MedsegError: masks on different grids, an empty myocardium, NaN, or a size that is not above 0.
    """
    wall = marked(myo, "the myocardium")
    if not np.shape(infarct) == wall.shape == np.shape(segments):
        raise MedsegError(
            f"infarct {np.shape(infarct)}, myocardium {wall.shape} and segments {np.shape(segments)} lie on different "
            "grids; give all three as (slices, H, W)"
        )
    _check_sizes(spacing_mm, thickness_mm)
    there = marked(infarct, "the infarct", may_be_empty=True)
    hit = there & wall
    segments = np.where(wall, segments, 0)
    chords = [_chords(*planes, spacing_mm) for planes in zip(hit, wall, segments, strict=True)]
    by_id, through = (np.concatenate([pair[i] for pair in chords]) for i in range(2))
    inside = {i: _in_segment(i, hit, segments, through[by_id == i]) for i in range(1, NUM_SEGMENTS + 1)}
    gram = DENSITY_G_PER_ML * math.prod(spacing_mm) * (math.nan if thickness_mm is None else thickness_mm) / 1000
    absent = [i for i, segment in inside.items() if math.isnan(segment.share)]
    return Infarct(
        mass_g=float(hit.sum() * gram),
        lv_mass_g=float(wall.sum() * gram),
        share_of_lv=float(hit.sum() / wall.sum()),
        num_slices=int(hit.any(axis=(1, 2)).sum()),
        num_outlined=int(wall.any(axis=(1, 2)).sum()),
        segments=inside,
        num_absent=len(absent),
        said=_said(there, hit, absent, thickness_mm),
    )


def _in_segment(segment: int, hit: np.ndarray, segments: np.ndarray, through: np.ndarray) -> InSegment:
    """Of one id: `through` holds the infarcted share of each of its chords."""
    here = segments == segment
    if not here.any():
        return InSegment(share=math.nan, transmurality=math.nan, transmurality_most=math.nan, num_slices=0)
    infarcted = through[through > 0]
    none = math.nan if segment == CAP or not len(through) else 0.0
    return InSegment(
        share=float(hit[here].mean()),
        transmurality=float(infarcted.mean()) if len(infarcted) else none,
        transmurality_most=float(infarcted.max()) if len(infarcted) else none,
        num_slices=int((hit & here).any(axis=(1, 2)).sum()),
    )


def _chords(
    hit: np.ndarray, wall: np.ndarray, segments: np.ndarray, spacing_mm: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Of one slice (H, W): the segment of each chord, and the share of its wall that is infarcted."""
    if not wall.any() or not has_cavity(wall):
        return np.zeros(0, int), np.zeros(0)
    centre = centre_of(wall)
    deg = np.arange(CHORD_DEG / 2, 360, CHORD_DEG)
    directions = np.stack([-np.sin(np.radians(deg)), np.cos(np.radians(deg))], axis=-1) / spacing_mm
    furthest = np.linalg.norm((np.argwhere(wall) - centre) * spacing_mm, axis=1).max() + max(spacing_mm)
    reach = np.arange(0, furthest, STEP_PIXELS * min(spacing_mm))
    places = np.rint(centre + reach[:, None, None] * directions).astype(int)  # (steps, chords, 2)
    inside = ((places >= 0) & (places < wall.shape)).all(axis=-1)
    at = tuple(np.where(inside, places[..., i], 0) for i in range(2))
    in_wall = inside & wall[at]
    thickness = in_wall.sum(axis=0)
    crossed = thickness > 0
    ids = np.where(in_wall, segments[at], 0)
    votes = np.stack([(ids == i).sum(axis=0) for i in range(NUM_SEGMENTS + 1)])
    votes[0] = 0
    share = (in_wall & hit[at]).sum(axis=0) / np.maximum(thickness, 1)
    return votes.argmax(axis=0)[crossed], share[crossed]


def _check_sizes(spacing_mm: tuple[float, float], thickness_mm: float | None) -> None:
    sizes = [*spacing_mm, *([] if thickness_mm is None else [thickness_mm])]
    if not all(math.isfinite(size) and size > 0 for size in sizes):
        raise MedsegError(
            f"voxels of {' x '.join(f'{size:g}' for size in sizes)} mm have no volume; give sizes above 0, "
            "or no thickness"
        )


def _said(there: np.ndarray, hit: np.ndarray, absent: list[int], thickness_mm: float | None) -> tuple[str, ...]:
    outside = int(there.sum() - hit.sum())
    lines = []
    if outside:
        lines.append(f"{outside} of {int(there.sum())} infarct voxels lie outside of the myocardium and do not count")
    if absent:
        lines.append(f"{len(absent)} of {NUM_SEGMENTS} segments are in no slice: {', '.join(map(str, absent))}")
    if thickness_mm is None:
        lines.append("no slice thickness in the file, so no mass")
    return tuple(lines)


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
