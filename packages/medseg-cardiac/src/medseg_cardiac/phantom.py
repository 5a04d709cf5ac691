"""A small cohort of cine and LGE with a motion that is a formula: displacement, strain and infarct are known."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from medseg_cardiac.heart import Infarct, Ring, Shift, contraction
from medseg_cardiac.tissue import FINE, LATE_NOISE, NOISE, insertions_deg, recorded, sampled, signals, tissues
from medseg_core.cases import Case, write_cases
from medseg_core.cohort import JOURNAL, for_each, read_journal
from medseg_core.errors import MedsegError
from medseg_core.io import replacing, write_series, write_text, write_volume
from medseg_core.volume import Series, Volume

FIELD_MM, SLICE_MM = 180.0, 10.0
HEALTHY_EVERY = 5  # the last of so many patients has no infarct
APEX_RAS = np.array([-0.62, 0.66, -0.42])  # from base to apex, as most hearts lie
SEPTUM_RAS = np.array([1.0, 1.0, 0.0])  # from the left to the right ventricle
STRAINS = ("radial", "circumferential")


@dataclass(frozen=True, eq=False)
class Scan:
    """A slice of a patient: where it lies, how it moves, how LGE shows it. Frame 0 is end-diastole.

    Args:
        key: seed, patient and slice, from which texture and noise are drawn.
        ring: the left ventricle.
        shift: from the cine at end-diastole to LGE.
        septum_deg: direction of the right ventricle, from the h to the w axis.
        centre: of the ventricle, (h, w) in pixels.
        spacing_mm: edge of a pixel.
        affine: (4, 4) index (h, w, 0) -> RAS+ mm.
        size: H and W.
        num_frames: T.
        es: frame of end-systole.
        beat_s: length of the cycle.
    """

    key: tuple[int, int, int]
    ring: Ring
    shift: Shift
    septum_deg: float
    centre: tuple[float, float]
    spacing_mm: float
    affine: np.ndarray
    size: int
    num_frames: int
    es: int
    beat_s: float

    @cached_property
    def points_mm(self) -> np.ndarray:
        """(2, H, W): the pixels' places from the centre of the ventricle."""
        return self.place_mm(np.indices((self.size, self.size)).astype(float))

    @cached_property
    def moving(self) -> np.ndarray:
        """(H, W) bool: where motion reaches at all."""
        return np.hypot(*self.points_mm) < self.ring.reach_mm

    @cached_property
    def contractions(self) -> np.ndarray:
        """(T,): 0 at end-diastole, 1 at end-systole."""
        return contraction(np.arange(self.num_frames) / self.num_frames, self.es / self.num_frames)

    def place_mm(self, pixels: np.ndarray) -> np.ndarray:
        """(2, H, W) pixels -> mm from the centre of the ventricle."""
        return (pixels - np.reshape(self.centre, (2, 1, 1))) * self.spacing_mm

    def pixels(self, place_mm: np.ndarray) -> np.ndarray:
        """(2, ...) mm from the centre of the ventricle -> pixels."""
        return place_mm / self.spacing_mm + np.reshape(self.centre, (2,) + (1,) * (place_mm.ndim - 1))

    def rng(self, stream: int) -> np.random.Generator:
        """A generator of this slice."""
        seed, number, index = self.key
        return np.random.default_rng([seed, number, stream, index])


def phantom(
    out: Path, *, num_cases: int = 6, seed: int = 0, size: int = 128, num_slices: int = 3, num_frames: int = 20
) -> Path:
    """Writes a cohort of cine, LGE and masks as `discover` reads it, with the truth beside it.

    Cines are `images/cmr/<case>/slice_NN.nii.gz`, (H, W, 1, T) with end-diastole as frame 0, slices from base to apex.
    LGE, (H, W, 1), lies on the same grid but shows the heart elsewhere. `labels` has masks per slice: `cmr_Myo_mask`,
    `cmr_LV_mask/<case>_ED` and `_ES`, `cmr_MI_mask` (the infarct in the cine at end-diastole, where no intensity tells
    of it), `lge/lge_Myo_labels` and `lge/lge_MI_labels`. `truth/<case>.json` says strain over time, infarcts and
    misalignment; `read_truth` and `read_misalignment` read the fields. A folder that the same call began is gone on
    with.

    Args:
        num_cases: how many patients; the last of every five has no infarct.
        seed: equal seeds give equal files; a patient does not depend on how many there are.
        size: H and W in pixels. A slice is 180 mm wide, give or take 5 %, at any size.

    Returns:
        `out`.

    Raises:
        MedsegError: a number that is too small, `out` holds something else, or the disk refuses.
    """
    least = {"num_cases": (num_cases, 1), "seed": (seed, 0), "size": (size, 32), "num_slices": (num_slices, 1)}
    for name, (given, low) in (least | {"num_frames": (num_frames, 2)}).items():
        if given < low:
            raise MedsegError(f"a phantom cannot be made with {name} {given}; give {low} or more")
    out = Path(out)
    if out.is_dir() and any(out.iterdir()) and not (out / JOURNAL).is_file():
        raise MedsegError(f"{out} exists and is no phantom; give a new folder, real scans are not written over")
    shape = {"seed": seed, "size": size, "num_slices": num_slices, "num_frames": num_frames}
    cases = [Case(id=f"p{i:04d}", files={}, notes={"number": i}) for i in range(num_cases)]
    outcome = for_each(cases, partial(_write_case, out=out, **shape), out=out, config={"cardiac phantom": 1} | shape)
    for name, reason in outcome.failed.items():
        raise MedsegError(f"phantom {name}: {reason}")
    phases = read_journal(out)
    write_cases(out / "cases.json", [replace(case, notes=phases[case.id]) for case in cases])
    return out


def read_truth(out: Path, case: str, plane: str) -> np.ndarray:
    """Displacement of a slice, (T, 2, H, W) float32 pixels: what is at x at end-diastole is at x + u[t](x) in frame t.

    Args:
        plane: name of the slice, "slice_00".

    Raises:
        MedsegError: no such file, or one that is no such array.
    """
    return _read_field(Path(out) / "truth" / case / f"{plane}.npy", 4)


def read_misalignment(out: Path, case: str, plane: str) -> np.ndarray:
    """What is at x in the cine at end-diastole is at x + m(x) in LGE: (2, H, W) float32 pixels; errors as `read_truth`.

    Args:
        plane: name of the slice, "slice_00".
    """
    return _read_field(Path(out) / "truth" / case / f"{plane}_lge.npy", 3)


def scan(number: int, index: int, *, seed: int = 0, size: int = 128, num_slices: int = 3, num_frames: int = 20) -> Scan:
    """Slice `index` of patient `number`, from the base on; sizes, motion, infarct and place vary between patients."""
    rng = np.random.default_rng([seed, number, 0, 0])
    place = index / (num_slices - 1) if num_slices > 1 else 0.5  # 0 base, 1 apex
    inner_mm, wall_mm, spacing_mm = rng.uniform((22, 8.5, 0.95 * FIELD_MM / size), (26, 11, 1.05 * FIELD_MM / size))
    shrink, swell, base_deg, apex_deg = rng.uniform((0.22, 0.14, -4, 4), (0.30, 0.22, -1, 8))
    oval, oval_deg, uneven, uneven_deg = rng.uniform(0, (0.1, 180, 0.1, 360))
    es = int(np.clip(np.rint(rng.uniform(0.35, 0.40) * num_frames), 1, num_frames - 1))
    beat_s, tilt_deg, septum_deg = rng.uniform((0.7, -6, 260), (1.1, 6, 280))
    middle_mm, origin_mm = rng.uniform(-9, 9, 2), rng.uniform((-35, 30, -10), (-15, 50, 10))
    jitter_mm = np.random.default_rng([seed, number, 1, index]).uniform(-1.5, 1.5, 2)
    inner_mm *= 1.04 - 0.2 * place**2
    ring = Ring(
        inner_mm=inner_mm,
        outer_mm=inner_mm + wall_mm * (1.05 - 0.15 * place),
        shrink=shrink,
        swell=swell,
        twist_deg=base_deg + (apex_deg - base_deg) * place,
        oval=oval,
        oval_deg=oval_deg,
        uneven=uneven,
        uneven_deg=uneven_deg,
        infarct=_infarct(seed, number, place),
    )
    return Scan(
        key=(seed, number, index),
        ring=ring,
        shift=_shift(seed, number, index),
        septum_deg=septum_deg,
        centre=tuple(((size - 1) / 2 + (middle_mm + jitter_mm) / spacing_mm).tolist()),
        spacing_mm=spacing_mm,
        affine=_affine(spacing_mm, size, origin_mm, tilt_deg=tilt_deg, along_mm=index * SLICE_MM),
        size=size,
        num_frames=num_frames,
        es=es,
        beat_s=beat_s,
    )


def _infarct(seed: int, number: int, place: float) -> Infarct | None:
    """From a stream of its own, so that nothing else of a patient depends on it."""
    rng = np.random.default_rng([seed, number, 2, 0])
    centre_deg, width_deg, depth, middle, drift_deg = rng.uniform((0, 55, 0.6, 0, -15), (360, 100, 1.3, 1, 15))
    width_deg *= 1 - 0.4 * (place - middle) ** 2
    if number % HEALTHY_EVERY == HEALTHY_EVERY - 1:
        return None
    depth = min(1.0, depth)
    return Infarct((centre_deg + drift_deg * place) % 360, width_deg, depth, activity=0.5 - 0.3 * depth)


def _shift(seed: int, number: int, index: int) -> Shift:
    rng = np.random.default_rng([seed, number, 3, index])
    angle_deg, way_mm = rng.uniform((-6, 2.5), (6, 6.5))
    length_mm, height_mm = rng.uniform((90, 0.6), (130, 1.3), (2, 2)).T
    way, run, towards = (np.stack([np.cos(a), np.sin(a)], -1) for a in rng.uniform(0, 2 * np.pi, (3, 2)))
    waves = np.column_stack(
        [rng.uniform(0, 2 * np.pi, 2), height_mm[:, None] * towards, 2 * np.pi / length_mm[:, None] * run]
    )
    return Shift(angle_deg, tuple((way_mm * way[0]).tolist()), tuple(map(tuple, waves.tolist())))


def _affine(spacing_mm: float, size: int, origin_mm: np.ndarray, *, tilt_deg: float, along_mm: float) -> np.ndarray:
    """Rows run from anterior to inferior, columns from the septum to the left and the back of the patient."""
    apex = APEX_RAS / np.linalg.norm(APEX_RAS)
    across = SEPTUM_RAS @ apex * apex - SEPTUM_RAS
    across /= np.linalg.norm(across)
    down, turn = np.cross(across, apex), np.deg2rad(tilt_deg)
    h, w = np.cos(turn) * down - np.sin(turn) * across, np.sin(turn) * down + np.cos(turn) * across
    affine = np.eye(4)
    affine[:3, :3] = np.stack([h * spacing_mm, w * spacing_mm, apex * SLICE_MM], 1)
    affine[:3, 3] = origin_mm + apex * along_mm - affine[:3, :2].sum(1) * (size - 1) / 2
    return affine


def pictures(plane: Scan) -> tuple[np.ndarray, np.ndarray]:
    """What the scanner gives: cine (T, H, W) and LGE (H, W), int16 from 0 to 1000."""
    rng = plane.rng(4)
    fine_mm = plane.place_mm(np.indices((plane.size * FINE, plane.size * FINE)) / FINE)
    middle_mm = ((plane.size - 1) / 2 - np.array(plane.centre)) * plane.spacing_mm
    ids = tissues(plane.ring, fine_mm, middle_mm, septum_deg=plane.septum_deg, rng=rng)
    cine, late = signals(ids, plane.ring.infarcted(fine_mm), rng)
    frames = np.empty((plane.num_frames, plane.size, plane.size))
    frames[:] = sampled(cine, plane.pixels(plane.points_mm))
    here_mm = was_mm = plane.points_mm[:, plane.moving]
    for frame, share in zip(frames, plane.contractions, strict=True):
        was_mm = plane.ring.inverse(here_mm, share, start_mm=was_mm)
        frame[plane.moving] = sampled(cine, plane.pixels(was_mm))
    late_frame = sampled(late, plane.pixels(plane.shift.inverse(plane.points_mm)))
    return recorded(frames, NOISE, plane.rng(5)), recorded(late_frame[None], LATE_NOISE, plane.rng(6))[0]


def masks(plane: Scan) -> dict[str, np.ndarray]:
    """(H, W) bool by place under `labels`, with {case} for the patient."""
    ring = plane.ring
    in_late_mm = plane.shift.inverse(plane.points_mm)
    depth, late_depth = ring.wall_depth(plane.points_mm), ring.wall_depth(in_late_mm)
    return {
        "cmr_Myo_mask/{case}": (depth >= 0) & (depth <= 1),
        "cmr_LV_mask/{case}_ED": depth < 0,
        "cmr_LV_mask/{case}_ES": ring.wall_depth(ring.inverse(plane.points_mm, 1.0)) < 0,
        "cmr_MI_mask/{case}": ring.infarcted(plane.points_mm),
        "lge/lge_Myo_labels/{case}": (late_depth >= 0) & (late_depth <= 1),
        "lge/lge_MI_labels/{case}": ring.infarcted(in_late_mm),
    }


def displacement(plane: Scan) -> np.ndarray:
    """(T, 2, H, W) float32 pixels, on the grid of end-diastole."""
    field = np.zeros((plane.num_frames, *plane.points_mm.shape), np.float32)
    here_mm = plane.points_mm[:, plane.moving]
    for moves, share in zip(field, plane.contractions, strict=True):
        moves[:, plane.moving] = (plane.ring.forward(here_mm, share) - here_mm) / plane.spacing_mm
    return field


def mean_strain(plane: Scan, mask: np.ndarray) -> dict[str, list[float]]:
    """Mean radial and circumferential Green-Lagrange strain of the pixels of a mask at end-diastole, by frame."""
    points_mm = plane.points_mm[:, mask]
    means = [plane.ring.strain(points_mm, share).mean(1) for share in plane.contractions]
    return dict(zip(STRAINS, np.transpose(means).tolist(), strict=True))


def _write_case(case: Case, *, out: Path, seed: int, num_slices: int, **how: int) -> Mapping[str, Any]:
    number = case.notes["number"]
    planes = {f"slice_{k:02d}": scan(number, k, seed=seed, num_slices=num_slices, **how) for k in range(num_slices)}
    slices = {name: _write_slice(plane, out, case.id, name=name) for name, plane in planes.items()}
    sizes = [told["num_pixels"] for told in slices.values()]
    strain = {
        kind: np.average([told["strain"][kind] for told in slices.values()], axis=0, weights=sizes).tolist()
        for kind in STRAINS
    }
    truth = {"ed": 0, "es": planes["slice_00"].es, "strain": strain, "slices": slices}
    write_text(out / "truth" / f"{case.id}.json", json.dumps(truth, indent=1) + "\n")
    return {"ed": dict.fromkeys(planes, 0), "es": {name: plane.es for name, plane in planes.items()}}


def _write_slice(plane: Scan, out: Path, case: str, *, name: str) -> dict[str, Any]:
    """The files of a slice; its answer is what the truth says of it."""
    cine, late = pictures(plane)
    times_s = plane.beat_s * np.arange(plane.num_frames) / plane.num_frames
    write_series(Series(cine[..., None], plane.affine, times_s), out / "images" / "cmr" / case / f"{name}.nii.gz")
    write_volume(Volume(late[..., None], plane.affine), out / "images" / "lge" / case / f"{name}.nii.gz")
    drawn = masks(plane)
    for place, mask in drawn.items():
        path = out / "labels" / place.format(case=case) / f"{name}.nii.gz"
        write_volume(Volume(mask[..., None].astype(np.uint8), plane.affine), path)
    moves, shift = displacement(plane), plane.shift.forward(plane.points_mm) - plane.points_mm
    shift = (shift / plane.spacing_mm).astype(np.float32)
    _write_field(moves, out / "truth" / case / f"{name}.npy")
    _write_field(shift, out / "truth" / case / f"{name}_lge.npy")
    myo = drawn["cmr_Myo_mask/{case}"]
    return {
        "num_pixels": int(myo.sum()),
        "num_infarct_pixels": int(drawn["cmr_MI_mask/{case}"].sum()),
        "centre": plane.centre,
        "spacing_mm": plane.spacing_mm,
        "insertions_deg": insertions_deg(plane.ring, septum_deg=plane.septum_deg),
        "strain": mean_strain(plane, myo),
        "mean_displacement_px": float(np.hypot(*moves[plane.es][:, myo]).mean()),
        "mean_misalignment_px": float(np.hypot(*shift[:, myo]).mean()),
        "ring": asdict(plane.ring),
        "misalignment": asdict(plane.shift),
    }


def _write_field(field: np.ndarray, path: Path) -> None:
    with replacing(path) as beside:
        np.save(beside, field, allow_pickle=False)


def _read_field(path: Path, num_axes: int) -> np.ndarray:
    try:
        field = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise MedsegError(f"there is no {path}; give a folder that `phantom` wrote, a case and a slice of it") from None
    except (OSError, ValueError, EOFError) as error:
        raise MedsegError(f"cannot read {path}: {error}; write the phantom again") from None
    if not isinstance(field, np.ndarray) or field.ndim != num_axes or field.dtype != np.float32:
        raise MedsegError(f"{path} is no field of {num_axes} axes in float32; write the phantom again")
    return field
