"""Made-up hearts in contrast CT: clean labels with coronary trees of known course, images, and labels with errors.

Axes: X Y Z voxels in file order. A heart's own frame is (u, v, w) in mm: u from the middle of the left ventricle's base
to the right ventricle, v to the head, w to the apex. Ids are those of the public cardiac CT labels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from medseg_core.cases import Case, write_cases
from medseg_core.cohort import JOURNAL, for_each, read_journal
from medseg_core.errors import MedsegError
from medseg_core.grid import Grid
from medseg_core.io import write_volume
from medseg_core.labelmaps import write_labels
from medseg_core.masks import keep_largest
from medseg_core.volume import Volume
from medseg_near.noise import ball, corrupt
from medseg_near.tree import Tree, smooth_way, stem, taper
from medseg_near.whole_heart import WHOLE_HEART

MYO, LA, LV, RA, RV, AORTA, PA, LAA, CORONARY, PV = WHOLE_HEART
PAINTED = (PA, RV, RA, AORTA, MYO, LV, LA, PV, LAA)  # later ones cover earlier ones
APEX_RAS, RIGHT_RAS = np.array([-0.62, 0.66, -0.42]), np.array([1.0, 1.0, 0.0])  # as most hearts lie
WHOLE_MM, LEAST_MM = 130.0, 64.0  # field that a grown heart needs, and the smallest into which one is shrunk
MIDDLE = np.array([2.0, 6.0, 10.0])  # of a heart in its own frame
OUTER, INNER, BASE = np.array([35.0, 35, 80]), np.array([25.0, 25, 69]), -4.0  # half axes of the left ventricle
OSTIUM_MM, END_MM, STEP_MM = 2.2, 0.8, 1.5  # radii of a coronary, and its nodes
AXES = ("LPS", "RAS", "LAS", "PIR", "LPI", "RAI")
THICK = ((1.0, 1.0, 1.0), (0.9, 0.9, 1.25), (0.95, 0.95, 1.1))  # shares of the spacing along R, A and S
AIR_HU, FAT_HU, LIVER_HU = -830.0, -90.0, 75.0
BLOOD_HU = {MYO: 110, LA: 370, LV: 360, RA: 150, RV: 170, AORTA: 390, PA: 210, LAA: 340, CORONARY: 380, PV: 370}
FAT_MM, BLUR_MM, NOISE_HU, GRAIN_MM = 6.0, 0.6, 28.0, 0.5
# Largest amounts of the kinds of noise in a coronary; the least is half of it.
MOST = {"holes": 0.5, "leaks": 0.6, "shifts": 0.4, "smooth": 0.25, "branches": 0.7, "breaks": 0.8}
LOST = 0.3  # how often appendage or veins are missed
NUM_CAVITIES, ISLAND_MM, APART_MM = 4, (1.5, 3.0), 4.0


@dataclass(frozen=True, eq=False)
class Heart:
    """What is where, whatever the grid.

    Args:
        matrix: (3, 3) from the heart's frame to RAS+.
        shift_mm: (3,) where the frame's origin lies.
        chambers: id -> centre and half axes in the heart's frame, for what is an ellipsoid.
        vessels: id -> trees in RAS+ mm; the coronaries are the left one and the right one.
    """

    matrix: np.ndarray
    shift_mm: np.ndarray
    chambers: Mapping[int, tuple[np.ndarray, np.ndarray]]
    vessels: Mapping[int, tuple[Tree, ...]]

    def label_on(self, grid: Grid) -> np.ndarray:
        """(X, Y, Z) uint8 ids: every class in one part, coronaries and pulmonary veins in a left and a right one."""
        label = self.beneath_on(grid)
        for tree in self.vessels[CORONARY]:
            label[tree.mask(grid)] = CORONARY
        label = keep_largest(label, n=2, ids=(CORONARY, PV))
        return keep_largest(label, ids=set(WHOLE_HEART) - {CORONARY, PV})

    def beneath_on(self, grid: Grid) -> np.ndarray:
        """(X, Y, Z) uint8 ids of all but the coronaries."""
        into = np.linalg.inv(self.matrix)
        index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
        own_mm = index @ (into @ grid.affine[:3, :3]).T + into @ (grid.affine[:3, 3] - self.shift_mm)
        label = np.zeros(grid.shape, np.uint8)
        for id_ in PAINTED:
            if id_ in self.chambers:
                centre_mm, half_mm = self.chambers[id_]
                inside = (((own_mm - centre_mm) / half_mm) ** 2).sum(-1) <= 1
                if id_ in (MYO, LV, RV):
                    inside &= own_mm[..., 2] >= BASE
                label[inside] = id_
            for tree in self.vessels.get(id_, ()):
                label[tree.mask(grid)] = id_
        return label


def phantom(out: Path, *, num_cases: int = 6, seed: int = 0, size: int = 96, spacing_mm: float = 1.0) -> Path:
    """Writes a cohort as `out/{labels,images,noisy}/<case>.nii.gz` with `cases.json` (roles label, image, noisy).

    `labels` are clean, `noisy` are they with errors (see `noisy_label`; the notes of a case say which), `images` are CT
    in HU, int16. Orientation, obliqueness and spacing differ from case to case. A folder that the same call began is
    gone on with.

    Args:
        num_cases: how many patients.
        seed: equal seeds give equal files; a patient does not depend on how many there are.
        size: edge of the field in voxels of `spacing_mm`; voxels that are no cubes make of it another number.
        spacing_mm: mean edge of a voxel. A field of less than 130 mm shows a smaller heart with coronaries of full
            width, 2.2 mm in radius at the ostium and 0.8 mm at their ends.

    Returns:
        `out`.

    Raises:
        MedsegError: a number that is too small, `out` holds something else, or the disk refuses.
    """
    for name, given, low in (("num_cases", num_cases, 1), ("seed", seed, 0), ("spacing_mm", spacing_mm, 0.2)):
        if not low <= given < math.inf:
            raise MedsegError(f"a phantom cannot be made with {name} {given}; give {low} or more")
    if not size * spacing_mm >= LEAST_MM:
        enough = int(np.ceil(LEAST_MM / spacing_mm))
        raise MedsegError(f"no heart fits into {size} voxels of {spacing_mm:g} mm; give a size of {enough} or more")
    out = Path(out)
    if out.is_dir() and any(out.iterdir()) and not (out / JOURNAL).is_file():
        raise MedsegError(f"{out} exists and is no phantom; give a new folder, real scans are not written over")
    how = {"seed": seed, "size": size, "spacing_mm": spacing_mm}
    cases = [_case(out, number) for number in range(num_cases)]
    outcome = for_each(cases, partial(_write_case, **how), out=out, config={"heart phantom": 1} | how)
    for name, reason in outcome.failed.items():
        raise MedsegError(f"phantom {name}: {reason}")
    told = read_journal(out)
    for folder in ("labels", "noisy"):
        write_labels(out / folder / "labels.json", WHOLE_HEART)
    write_cases(out / "cases.json", [replace(case, notes={**case.notes, **told[case.id]}) for case in cases])
    return out


def heart(number: int, *, seed: int = 0, field_mm: float = 96.0) -> Heart:
    """Patient `number`: sizes, places, courses and numbers of branches vary from one to the next.

    Args:
        field_mm: edge of the field into which it has to fit; in less than 130 mm all but the coronaries' radii shrink.
    """
    rng = np.random.default_rng([seed, number, 0, 0])
    scale = min(1.0, field_mm / WHOLE_MM)
    w = APEX_RAS / np.linalg.norm(APEX_RAS)
    u = RIGHT_RAS - RIGHT_RAS @ w * w
    u /= np.linalg.norm(u)
    frame = np.stack([u, np.cross(u, w), w], 1)
    matrix = _turned(rng.uniform(-8, 8, 3)) @ frame * scale * rng.uniform(0.94, 1.06, 3)
    shift_mm = rng.uniform(-2, 2, 3) - matrix @ MIDDLE
    sizes = rng.uniform(0.93, 1.07, (4, 3))
    chambers = {
        MYO: (np.zeros(3), OUTER),
        LV: (np.zeros(3), INNER * rng.uniform(0.95, 1.03)),
        RV: (np.array([30.0, 0, 15]), np.array([28.0, 36, 50]) * sizes[0]),
        RA: (np.array([34.0, -8, -24]) + rng.uniform(-2, 2, 3), np.array([22.0, 22, 24]) * sizes[1]),
        LA: (np.array([-10.0, -5, -22]) + rng.uniform(-2, 2, 3), np.array([25.0, 21, 21]) * sizes[2]),
    }
    great = _great(rng)
    fine = tuple(tree.moved(matrix, shift_mm) for tree in _coronaries(great[AORTA][0], chambers[RV][1], scale, rng))
    vessels = {id_: tuple(t.moved(matrix, shift_mm, thicker=scale) for t in trees) for id_, trees in great.items()}
    return Heart(matrix, shift_mm, chambers, vessels | {CORONARY: fine})


def grid_of(number: int, *, seed: int = 0, size: int = 96, spacing_mm: float = 1.0) -> Grid:
    """The oblique grid that patient `number` is scanned on."""
    rng = np.random.default_rng([seed, number, 1, 0])
    spacing = spacing_mm * np.array(THICK[number % len(THICK)])
    shape = np.rint(size * spacing_mm / spacing).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = _turned(rng.uniform(-15, 15, 3)) * spacing
    affine[:3, 3] = rng.uniform(-0.5, 0.5, 3) * spacing_mm - affine[:3, :3] @ (shape - 1) / 2
    return Grid(tuple(shape), affine).oriented(AXES[number % len(AXES)])


def _turned(angles_deg: np.ndarray) -> np.ndarray:
    """(3, 3) rotation about R, then A, then S."""
    turned = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles_deg)):
        turn, (i, j) = np.eye(3), [(1, 2), (2, 0), (0, 1)][axis]
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        turned = turn @ turned
    return turned


def _great(rng: np.random.Generator) -> dict[int, tuple[Tree, ...]]:
    """Vessels of the size of a finger, and the appendage, in the heart's frame at full size."""

    def course(*waypoints: tuple[float, ...], radii: tuple[float, ...], spread: float = 2.0) -> tuple:
        """The first waypoint stays, the others are moved a little."""
        points = np.array(waypoints, float)
        points[1:] += rng.uniform(-spread, spread, points[1:].shape)
        way = smooth_way(points, step_mm=4.0)
        at = np.linspace(0, 1, len(way))
        return way, np.interp(at, np.linspace(0, 1, len(radii)), radii) * rng.uniform(0.93, 1.07)

    aorta = stem(*course((7, 9, -6), (9, 14, -16), (12, 34, -28), (12, 62, -38), radii=(13, 15, 12, 12, 12)))
    trunk = stem(*course((24, 36, 0), (14, 48, -12), (-2, 52, -26), radii=(12, 12, 11)))
    pulmonary = trunk.branch(len(trunk.parents) - 1, *course((-8, 54, -30), (-34, 54, -30), radii=(9, 8)))
    pulmonary = pulmonary.branch(len(trunk.parents) - 1, *course((2, 50, -38), (30, 40, -54), radii=(9, 8)))
    appendage = stem(*course((-27, 2, -22), (-38, 14, -18), (-40, 27, -8), (-33, 34, 2), radii=(6, 8, 7, 3.5)))
    veins = []
    for root, hub, ends in (
        ((2, -12, -36), (14, -17, -46), ((26, -8, -58), (24, -30, -54))),
        ((-29, -4, -28), (-42, -7, -34), ((-58, 4, -42), (-56, -20, -42))),
    ):
        vein = stem(*course(root, hub, radii=(8, 7)))
        joint = len(vein.parents) - 1
        for end in ends:
            vein = vein.branch(joint, *course(0.7 * np.array(hub) + 0.3 * np.array(end), end, radii=(5, 5.5)))
        veins.append(vein)
    return {AORTA: (aorta,), PA: (pulmonary,), LAA: (appendage,), PV: tuple(veins)}


def _coronaries(aorta: Tree, rv_mm: np.ndarray, scale: float, rng: np.random.Generator) -> tuple[Tree, Tree]:
    """The left and the right coronary tree in the heart's frame, on the outer wall and around the right ventricle.

    Args:
        aorta: in the same frame.
        rv_mm: half axes of the right ventricle.
        scale: of the frame, in which radii are not scaled.
    """
    out = OSTIUM_MM / scale

    def wall(turn_deg: float, w: float) -> np.ndarray:
        """A place on the left ventricle: the right ventricle is at 0 degrees, the head at 90."""
        turn_deg, far = turn_deg + rng.uniform(-4, 4), OUTER[0] * np.sqrt(1 - (w / OUTER[2]) ** 2) + 0.7 * out
        return np.array([far * np.cos(np.deg2rad(turn_deg)), far * np.sin(np.deg2rad(turn_deg)), w])

    def rim(turn_deg: float, w: float = -2.0) -> np.ndarray:
        """A place on the right ventricle, by default in the groove between it and its atrium."""
        far = rv_mm[:2] * np.sqrt(1 - ((w - 15) / rv_mm[2]) ** 2) + out
        return np.array([30 + far[0] * np.cos(np.deg2rad(turn_deg)), far[1] * np.sin(np.deg2rad(turn_deg)), w])

    def grown(tree: Tree, away: np.ndarray, *waypoints: np.ndarray) -> Tree:
        """A branch that goes off at the node closest to a place."""
        node = int(np.linalg.norm(tree.points_mm - away, axis=1).argmin())
        way = smooth_way(np.array([tree.points_mm[node], *waypoints]), step_mm=STEP_MM / scale)[1:]
        return tree.branch(node, way, taper(way, 0.85 * tree.radii_mm[node] + 0.15 * END_MM, END_MM))

    def main(*waypoints: np.ndarray) -> Tree:
        way = smooth_way(np.array(waypoints), step_mm=STEP_MM / scale)
        return stem(way, taper(way, OSTIUM_MM, END_MM))

    sinus = int(np.abs(aorta.points_mm[:, 2] + 12).argmin())
    root, wide = aorta.points_mm[sinus], aorta.radii_mm[sinus]
    left, right = np.array([-0.75, 0.65, 0.1]), np.array([0.82, 0.52, 0.2])  # of length 1
    fork, end = wall(100, 2), rng.uniform(60, 72)
    along = [(82, 10), (70, 22), (64, 36), (62, 50), (62, end)]
    lca = main(root + wide * left, root + (wide + 6) * left, fork, *(wall(*at) for at in along))
    around = [wall(turn, 0) for turn in np.arange(118, rng.uniform(200, 225), 20)]
    lca = grown(lca, fork, *around)
    for w in rng.permutation([16, 28, 40])[: rng.integers(1, 4)]:
        lca = grown(lca, wall(66, w), wall(78, w + 7), wall(90, w + 15), wall(96, w + 25))
    for place in rng.permutation(len(around) - 1)[: rng.integers(1, 3)]:
        turn = 118 + 20 * place + 4
        lca = grown(lca, around[place], wall(turn, 12), wall(turn + 3, 27), wall(turn, rng.uniform(38, 50)))
    groove = [rim(turn) for turn in range(50, -101, -25)]
    rca = main(
        root + wide * right,
        root + (wide + 5) * right,
        *groove,
        wall(-66, 8),
        wall(-64, 24),
        wall(-63, rng.uniform(40, 56)),
    )
    rca = grown(rca, groove[-1], wall(-84, 2), wall(-98, 10), wall(-106, rng.uniform(22, 32)))
    if rng.random() < 0.7:
        rca = grown(rca, groove[2], rim(-5, 9), rim(-10, 20), rim(-14, 32))
    return lca, rca


def image_of(patient: Heart, grid: Grid, *, rng: np.random.Generator) -> np.ndarray:
    """(X, Y, Z) int16 HU: blood with contrast, wall, fat, lungs, and what lies below the diaphragm; blur and noise.

    A coronary that fills only part of a voxel gives it only part of its HU.
    """
    label = patient.beneath_on(grid)
    spacing_mm = np.array(grid.spacing_mm)
    speckle = gaussian_filter(rng.standard_normal(grid.shape, np.float32), 1.5 / spacing_mm)
    hu = np.where(speckle > 2.3 * speckle.std(), np.float32(20), np.float32(AIR_HU))
    index = np.meshgrid(*map(np.arange, grid.shape), indexing="ij", sparse=True)
    height_mm = sum(a * n for a, n in zip(grid.affine[2], [*index, 1], strict=True))
    hu[height_mm < height_mm[label > 0].min() + 3] = LIVER_HU
    hu[distance_transform_edt(label == 0, sampling=spacing_mm) < FAT_MM] = FAT_HU
    for id_, mean_hu in BLOOD_HU.items():
        level_hu = mean_hu * rng.uniform(0.92, 1.08)
        if id_ != CORONARY:
            hu[label == id_] = level_hu
            continue
        voxel_mm = float(spacing_mm.mean())
        for tree in patient.vessels[CORONARY]:
            share = np.clip(0.5 - tree.distance_on(grid, reach_mm=voxel_mm) / voxel_mm, 0, 1)
            hu += share * (level_hu - hu)
    hu = gaussian_filter(hu, BLUR_MM / spacing_mm)
    noise = gaussian_filter(rng.standard_normal(grid.shape, np.float32), GRAIN_MM / spacing_mm)
    return np.clip(np.rint(hu + NOISE_HU / noise.std() * noise), -1024, 3071).astype(np.int16)


def noisy_label(
    label: np.ndarray, beneath: np.ndarray, *, spacing_mm: tuple[float, float, float], rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, Any]]:
    """(X, Y, Z) ids with errors in them, and what they are.

    The coronary gets four kinds of `medseg_near.noise`, the myocardium cavities, and every class an island in the
    background, 4 mm or more from all else. In some cases the appendage, or the smaller part of the veins, is lost and
    only its island is there.

    Args:
        label, beneath: with and without the coronary.

    Returns:
        The ids; {"noise": {kind: amount}, "lost": [names]}.
    """
    others = rng.permutation([kind for kind in MOST if kind not in ("breaks", "branches")])[:2]
    amounts = {kind: float(rng.uniform(0.5, 1) * MOST[kind]) for kind in ("branches", *others.tolist(), "breaks")}
    vessel = label == CORONARY
    noisy = np.where(vessel, beneath, label)
    for kind, amount in amounts.items():
        vessel = corrupt(vessel, kind, amount=amount, spacing_mm=spacing_mm, rng=rng)
    noisy[vessel] = CORONARY
    lost = [id_ for id_ in (LAA, PV) if rng.random() < LOST]
    for id_ in lost:
        held = noisy == id_
        noisy[held ^ keep_largest(held) if id_ == PV else held] = 0
    _add_cavities(noisy, np.array(spacing_mm), rng)
    _add_islands(noisy, np.array(spacing_mm), rng)
    return noisy, {"noise": amounts, "lost": [WHOLE_HEART[id_] for id_ in lost]}


def _add_cavities(label: np.ndarray, spacing_mm: np.ndarray, rng: np.random.Generator) -> None:
    """Balls of background that the myocardium encloses, in place."""
    wall_mm = distance_transform_edt(np.pad(label == MYO, 1), sampling=spacing_mm)[1:-1, 1:-1, 1:-1]
    for centre in rng.permutation(np.argwhere(wall_mm > 0.7 * wall_mm.max()))[:NUM_CAVITIES]:
        room_mm = wall_mm[tuple(centre)] - 1.01 * spacing_mm.max()
        box, inside = ball(label.shape, centre, max(0.0, min(rng.uniform(1, 2.5), room_mm)), spacing_mm)
        label[box][inside] = 0


def _add_islands(label: np.ndarray, spacing_mm: np.ndarray, rng: np.random.Generator) -> None:
    """A ball of each class, two of the coronary, in place; fewer where there is no room."""
    largest_mm = max(ISLAND_MM[1], spacing_mm.max())
    free_mm = distance_transform_edt(label == 0, sampling=spacing_mm)
    places = np.argwhere(free_mm > largest_mm + APART_MM)
    for id_ in (CORONARY, *WHOLE_HEART):
        if not len(places):
            break
        centre = rng.choice(places)
        box, inside = ball(label.shape, centre, max(rng.uniform(*ISLAND_MM), spacing_mm.max()), spacing_mm)
        label[box][inside] = id_
        places = places[np.linalg.norm((places - centre) * spacing_mm, axis=1) > 2 * largest_mm + APART_MM]


def _case(out: Path, number: int) -> Case:
    name = f"h{number:04d}"
    folders = {"label": "labels", "image": "images", "noisy": "noisy"}
    files = {role: out / folder / f"{name}.nii.gz" for role, folder in folders.items()}
    return Case(id=name, files=files, notes={"number": number})


def _write_case(case: Case, *, seed: int, size: int, spacing_mm: float) -> Mapping[str, Any]:
    number = case.notes["number"]
    patient = heart(number, seed=seed, field_mm=size * spacing_mm)
    grid = grid_of(number, seed=seed, size=size, spacing_mm=spacing_mm)
    label = patient.label_on(grid)
    image = image_of(patient, grid, rng=np.random.default_rng([seed, number, 3, 0]))
    rng = np.random.default_rng([seed, number, 2, 0])
    noisy, told = noisy_label(label, patient.beneath_on(grid), spacing_mm=grid.spacing_mm, rng=rng)
    for role, voxels in (("label", label), ("image", image), ("noisy", noisy)):
        write_volume(Volume(voxels, grid.affine), case.files[role])
    return told | {"coronary_mm": [round(tree.length_mm, 1) for tree in patient.vessels[CORONARY]]}
