"""What a made-up short-axis slice looks like at end-diastole, in cine and in LGE."""

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates, spline_filter

from medseg_cardiac.heart import Ring

FINE = 2  # samples of the tissue per pixel
BLUR_PX, GRAIN_PX = 0.5, (1.3, 2.0)
CHEST_MM, WALL_MM, FAT_MM = (82.0, 86.0), 12.0, 6.0
RV_MM, RV_WALL_MM = (20.0, 33.0), 3.0  # half axes of the right ventricle, towards the septum and along it
PAPILLARY_DEG, PAPILLARY_MM = (25.0, 145.0), (3.2, 4.6)
NOISE, LATE_NOISE = (9.0, 15.0), (12.0, 18.0)
LARGEST = 1000

TISSUES = (  # signal in cine, in LGE, and how strongly it is grained
    ("air", 8, 8, 0.0),
    ("lung", 28, 25, 0.2),
    ("vessel", 170, 120, 0.1),
    ("muscle", 165, 110, 0.1),
    ("fat", 520, 420, 0.12),
    ("liver", 200, 150, 0.1),
    ("right wall", 175, 55, 0.15),
    ("right ventricle", 480, 300, 0.06),
    ("wall", 170, 50, 0.15),
    ("pool", 500, 320, 0.07),
    ("scar", 170, 620, 0.15),
)
IDS = {name: number for number, (name, *_) in enumerate(TISSUES)}


def in_right_ventricle(ring: Ring, points_mm: np.ndarray, *, septum_deg: float, margin_mm: float = 0.0) -> np.ndarray:
    """(...) bool: an ellipse behind the septum, of which the left ventricle cuts a crescent.

    Args:
        points_mm: (2, ...) from the centre of the left ventricle.
        septum_deg: where it lies, from the h to the w axis.
        margin_mm: how much larger it is.
    """
    turn = np.deg2rad(septum_deg)
    towards = np.cos(turn) * points_mm[0] + np.sin(turn) * points_mm[1] - ring.outer_mm - 2
    along = np.cos(turn) * points_mm[1] - np.sin(turn) * points_mm[0]
    return (towards / (RV_MM[0] + margin_mm)) ** 2 + (along / (RV_MM[1] + margin_mm)) ** 2 <= 1


def insertions_deg(ring: Ring, *, septum_deg: float) -> tuple[float, float]:
    """Where the right ventricle meets the left one's epicardium: the anterior place and the inferior one."""
    off_deg = np.arange(-120, 120, 0.5)
    angle = np.deg2rad(septum_deg + off_deg)
    rim_mm = (ring.outer_mm + 1) * np.stack([np.cos(angle), np.sin(angle)])
    met = off_deg[in_right_ventricle(ring, rim_mm, septum_deg=septum_deg, margin_mm=RV_WALL_MM)]
    return float(septum_deg + met.min()), float(septum_deg + met.max())


def tissues(
    ring: Ring, points_mm: np.ndarray, middle_mm: np.ndarray, *, septum_deg: float, rng: np.random.Generator
) -> np.ndarray:
    """(...) uint8 ids into TISSUES at end-diastole. The infarct is not among them.

    Args:
        points_mm: (2, H, W) from the centre of the left ventricle.
        middle_mm: (2,) the middle of the chest, from there.
    """
    ids = np.full(points_mm.shape[1:], IDS["lung"], np.uint8)
    step_mm = points_mm[0, 1, 0] - points_mm[0, 0, 0]
    vessels = gaussian_filter(rng.standard_normal(ids.shape, np.float32), 1.6 / step_mm)
    ids[vessels > 2.2 * vessels.std()] = IDS["vessel"]
    chest_mm = points_mm - middle_mm[:, None, None]
    below = np.hypot(chest_mm[0] - rng.uniform(84, 92), chest_mm[1] + rng.uniform(0, 30))
    ids[below < 48] = IDS["liver"]
    away = np.hypot(chest_mm[0] / CHEST_MM[0], chest_mm[1] / CHEST_MM[1]) * CHEST_MM[0]
    for name, inside_mm in (("muscle", WALL_MM), ("fat", FAT_MM), ("air", 0.0)):
        ids[away > CHEST_MM[0] - inside_mm] = IDS[name]
    for name, margin_mm in (("fat", RV_WALL_MM + 2), ("right wall", RV_WALL_MM), ("right ventricle", 0.0)):
        ids[in_right_ventricle(ring, points_mm, septum_deg=septum_deg, margin_mm=margin_mm)] = IDS[name]
    depth = ring.wall_depth(points_mm)
    ids[depth <= 1] = IDS["wall"]
    ids[depth < 0] = IDS["pool"]
    for angle_deg in PAPILLARY_DEG:
        radius_mm, angle = rng.uniform(*PAPILLARY_MM), np.deg2rad(angle_deg + rng.uniform(-15, 15))
        place = (ring.inner_mm - radius_mm - rng.uniform(1, 4)) * np.array([np.cos(angle), np.sin(angle)])
        ids[np.hypot(*(points_mm - place[:, None, None])) < radius_mm] = IDS["wall"]
    return ids


def signals(ids: np.ndarray, scar: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cine and LGE signal of fine tissue, (FINE H, FINE W) each, as coefficients of cubic splines.

    Args:
        scar: bool, the infarct, which only LGE shows.
    """
    table = np.array([row[1:] for row in TISSUES], np.float32)
    table[:, :2] *= rng.uniform(0.9, 1.1, (len(table), 2))
    grain = gaussian_filter(rng.standard_normal(ids.shape, np.float32), rng.uniform(*GRAIN_PX) * FINE, mode="wrap")
    grain = 1 + grain / grain.std() * table[:, 2][ids]
    late_ids = np.where(scar & (ids == IDS["wall"]), IDS["scar"], ids)
    cine, late = table[:, 0][ids] * grain, table[:, 1][late_ids] * grain
    return tuple(spline_filter(gaussian_filter(picture, BLUR_PX * FINE), 3) for picture in (cine, late))


def sampled(coefficients: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """What `signals` gave, at (2, ...) places in pixels."""
    return map_coordinates(coefficients, pixels * FINE, order=3, mode="nearest", prefilter=False)


def recorded(signal: np.ndarray, noise: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """int16 frames as a magnitude image gives them: a coil that sees near things brighter, and Rician noise.

    Args:
        signal: (T, H, W) without noise.
        noise: least and largest standard deviation of the noise, of which one is drawn.
    """
    num_frames, *shape = signal.shape
    h, w = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")
    slope_h, slope_w, bowl = rng.uniform(-1, 1, 3).astype(np.float32) * (0.12, 0.12, 0.06)
    gain = 1 + 0.008 * rng.standard_normal((num_frames, 1, 1), np.float32)
    real = signal * (1 + slope_h * h + slope_w * w - bowl * (h**2 + w**2)) * gain
    std = rng.uniform(*noise)
    shape = (2, *signal.shape)
    real_noise, imaginary = std * rng.standard_normal(shape, np.float32)
    return np.clip(np.rint(np.hypot(real + real_noise, imaginary)), 0, LARGEST).astype(np.int16)
