"""A short-axis plane of a left ventricle whose motion is a formula: contraction, thickening, twist, infarct.

Points are (2, ...) in mm from the centre of the ventricle, along the array axes h and w. An angle runs from the h axis
to the w axis: in a picture whose rows go down and columns to the right, 0 is below, 90 right, 180 above, 270 left.
Capital R and theta are a material point at end-diastole, r and phi where it is later. `contraction` is 0 at
end-diastole and 1 at end-systole.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

POOL = 0.36  # share of the cavity's area, at its rim, over which the pool's compression turns into the wall's stretch
NEAR, REACH = 0.5, 1.1  # in areas within the outer wall: where stretch ends beyond it, and where motion ends
TETHER_DEG = 14.0  # half the width of the border over which an infarct's motion turns into a healthy wall's
LAYER_MM = 2.0  # likewise across the wall
TINY_MM = 1e-9
NEWTON_STEPS, NEWTON_MM = 30, 1e-7
FIXED_POINT_STEPS = 12  # each leaves less than a third of the error


@dataclass(frozen=True)
class Infarct:
    """A sector of the wall that takes little part in the motion.

    Args:
        centre_deg, width_deg: the sector.
        depth: share of the wall from the endocardium on; 1 is transmural.
        activity: what is left of the motion, as a share of the healthy wall's.
    """

    centre_deg: float
    width_deg: float
    depth: float
    activity: float


@dataclass(frozen=True)
class Ring:
    """A thick-walled ring. Its motion is smooth and invertible in the whole plane, and ends 1.45 outer radii away.

    At contraction c the wall of a round, even ring without infarct follows
    r^2 = (1 - shrink c)^2 inner^2 + (1 + swell c) (R^2 - inner^2): it keeps its volume while its length shortens to
    1 / (1 + swell c), as the cylinder of Guccione, McCulloch and Waldman (1991) does. Cavity and surroundings make up
    for it.

    Args:
        inner_mm, outer_mm: radii of endocardium and epicardium at end-diastole.
        shrink: share of its radius that the endocardium loses up to end-systole.
        swell: share of its in-plane area that the wall gains up to end-systole.
        twist_deg: rotation of the pool at end-systole; the epicardium has two thirds of it.
        oval, oval_deg: squared radii vary by this share, and are largest in this direction and against it.
        uneven, uneven_deg: the motion varies by this share, and is largest in this direction.
        infarct: None in a healthy slice.
    """

    inner_mm: float
    outer_mm: float
    shrink: float = 0.0
    swell: float = 0.0
    twist_deg: float = 0.0
    oval: float = 0.0
    oval_deg: float = 0.0
    uneven: float = 0.0
    uneven_deg: float = 0.0
    infarct: Infarct | None = None

    @property
    def reach_mm(self) -> float:
        """From here on nothing moves."""
        return self.outer_mm * float(np.sqrt((1 + REACH) * (1 + self.oval)))

    def wall_depth(self, points_mm: np.ndarray) -> np.ndarray:
        """Where a point of end-diastole lies across the wall: (...), 0 at the endocardium and 1 at the epicardium."""
        radius_mm, angle = _polar(points_mm)
        radius_mm = radius_mm / np.sqrt(self._shape(angle)[0])
        return (radius_mm - self.inner_mm) / (self.outer_mm - self.inner_mm)

    def infarcted(self, points_mm: np.ndarray) -> np.ndarray:
        """(...) bool: whether a point of end-diastole lies in the infarct."""
        depth = self.wall_depth(points_mm)
        if self.infarct is None:
            return np.zeros(depth.shape, bool)
        off = _turn(_polar(points_mm)[1] - np.deg2rad(self.infarct.centre_deg))
        inside = np.abs(off) <= np.deg2rad(self.infarct.width_deg / 2)
        return inside & (depth >= 0) & (depth <= self.infarct.depth)

    def forward(self, points_mm: np.ndarray, contraction: float) -> np.ndarray:
        """Where the material points of end-diastole are at a contraction: (2, ...) mm."""
        radius_mm, angle, *_ = self._move(*_polar(points_mm), contraction)
        return _plane(radius_mm, angle)

    def inverse(self, points_mm: np.ndarray, contraction: float, *, start_mm: np.ndarray | None = None) -> np.ndarray:
        """The material points of end-diastole that are at these places at a contraction: (2, ...) mm, by Newton.

        Args:
            start_mm: (2, ...) a guess, such as the answer of a contraction nearby.
        """
        r, phi = _polar(points_mm)
        R, theta = _polar(points_mm if start_mm is None else start_mm)
        for _ in range(NEWTON_STEPS):
            r_is, phi_is, r_R, r_theta, phi_R, phi_theta = self._move(R, theta, contraction)
            far, turn = r - r_is, _turn(phi - phi_is)
            if max(np.abs(far).max(initial=0), np.abs(r * turn).max(initial=0)) < NEWTON_MM:
                break
            volume = r_R * phi_theta - r_theta * phi_R
            R = np.clip(R + (phi_theta * far - r_theta * turn) / volume, R / 2, R * 2)
            theta = theta + np.clip((r_R * turn - phi_R * far) / volume, -0.5, 0.5)
        return _plane(R, theta)

    def gradient(self, points_mm: np.ndarray, contraction: float) -> np.ndarray:
        """The deformation gradient at material points of end-diastole: (2, 2, ...).

        Its rows stand along e_r and e_phi where the point is, its columns along e_R and e_theta where it was.
        """
        R, theta = _polar(points_mm)
        r, _, r_R, r_theta, phi_R, phi_theta = self._move(R, theta, contraction)
        return np.stack([np.stack([r_R, r_theta / R]), np.stack([r * phi_R, r * phi_theta / R])])

    def strain(self, points_mm: np.ndarray, contraction: float) -> np.ndarray:
        """Green-Lagrange strain at material points of end-diastole: (2, ...), radial and circumferential."""
        return ((self.gradient(points_mm, contraction) ** 2).sum(0) - 1) / 2

    def _move(self, R: np.ndarray, theta: np.ndarray, contraction: float) -> tuple[np.ndarray, ...]:
        """r and phi of the points (R, theta), and their slopes r_R, r_theta, phi_R, phi_theta."""
        shape, shape_t = self._shape(theta)
        area = R**2 / shape  # within the point, as if the ring were round; mm^2 by pi
        area_R, area_t = 2 * R / shape, -area * shape_t / shape
        scar, scar_t = self._scar(theta)
        core, core_a = _step(area, 0, self.inner_mm**2 * (1 - POOL))  # no direction has a say in the very centre
        active, active_t = self._activity(theta, scar, scar_t)
        share = contraction * (self._mean_activity + (active - self._mean_activity) * core)
        share_a = contraction * (active - self._mean_activity) * core_a
        within, within_a, within_s = self._areas(area, share)
        within_a = within_a + within_s * share_a
        r = np.sqrt(shape * within)
        r_R = shape * within_a * area_R / (2 * r)
        r_t = (shape_t * within + shape * (within_a * area_t + within_s * contraction * active_t * core)) / (2 * r)
        twist, twist_a, twist_t = self._twist(area, scar, scar_t, core, core_a)
        phi = theta + contraction * twist
        phi_R, phi_t = contraction * twist_a * area_R, 1 + contraction * (twist_t + twist_a * area_t)
        return r, phi, r_R, r_t, phi_R, phi_t

    def _areas(self, area: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The area that the material within `area` takes now, and its slopes by area and by share of contraction.

        The slope is `pool` in the cavity, 1 + swell in the wall, and beyond it what makes up for the rest.
        """
        inner, outer, half = self.inner_mm**2, self.outer_mm**2, 1 - POOL / 2
        wall, wall_s = 1 + self.swell * share, self.swell
        left = 1 - self.shrink * share
        pool, pool_s = (left**2 - wall * POOL / 2) / half, (-2 * self.shrink * left - wall_s * POOL / 2) / half
        owed = (wall - pool) * inner * half + (1 - wall) * outer * (1 + NEAR / 2)
        owed_s = (wall_s - pool_s) * inner * half - wall_s * outer * (1 + NEAR / 2)
        rim, rim_a = _ramp(area, inner * (1 - POOL), inner * POOL)
        near, near_a = _ramp(area, outer, outer * NEAR)
        back, back_a = _step(area, outer, outer * REACH)
        return (
            pool * area + (wall - pool) * rim + (1 - wall) * near + owed * back,
            pool + (wall - pool) * rim_a + (1 - wall) * near_a + owed * back_a,
            pool_s * area + (wall_s - pool_s) * rim - wall_s * near + owed_s * back,
        )

    def _twist(self, area, scar, scar_t, core, core_a) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rotation at end-systole in radians, and its slopes by area and theta; an infarct's layer stays behind."""
        full = np.deg2rad(self.twist_deg)
        start = self.inner_mm**2 / 2
        fade, fade_a = _step(area, start, self.outer_mm**2 * (1 + REACH) - start)
        if self.infarct is None:
            return full * (1 - fade), -full * fade_a, np.zeros_like(area)
        loss, layer, layer_a = 1 - self.infarct.activity, core, core_a
        if self.infarct.depth < 1:
            deep_mm = self.inner_mm + self.infarct.depth * (self.outer_mm - self.inner_mm)
            out, out_a = _step(area, (deep_mm - LAYER_MM) ** 2, 4 * deep_mm * LAYER_MM)
            layer, layer_a = core * (1 - out), core_a * (1 - out) - core * out_a
        kept = 1 - loss * scar * layer
        slope = -full * (fade_a * kept + (1 - fade) * loss * scar * layer_a)
        return full * (1 - fade) * kept, slope, -full * (1 - fade) * loss * scar_t * layer

    def _shape(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        off = 2 * (theta - np.deg2rad(self.oval_deg))
        return 1 + self.oval * np.cos(off), -2 * self.oval * np.sin(off)

    def _scar(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """1 in the infarct's sector, 1/2 at its edges, 0 in healthy wall; and its slope."""
        if self.infarct is None:
            return np.zeros_like(theta), np.zeros_like(theta)
        off = _turn(theta - np.deg2rad(self.infarct.centre_deg))
        start, width = np.deg2rad(self.infarct.width_deg / 2 - TETHER_DEG), np.deg2rad(2 * TETHER_DEG)
        x = np.clip((np.abs(off) - start) / width, 0, 1)
        return 1 - x**2 * (3 - 2 * x), -6 * x * (1 - x) / width * np.sign(off)

    def _activity(self, theta, scar, scar_t) -> tuple[np.ndarray, np.ndarray]:
        """Share of the full contraction in a direction, and its slope."""
        off = theta - np.deg2rad(self.uneven_deg)
        healthy, healthy_t = 1 + self.uneven * np.cos(off), -self.uneven * np.sin(off)
        loss = 1 - self.infarct.activity if self.infarct else 0.0
        return healthy * (1 - loss * scar), healthy_t * (1 - loss * scar) - healthy * loss * scar_t

    @cached_property
    def _mean_activity(self) -> float:
        around = np.linspace(-np.pi, np.pi, 360, endpoint=False)
        return float(self._activity(around, *self._scar(around))[0].mean())


@dataclass(frozen=True)
class Shift:
    """How another breath and beat moved a plane: a turn about the centre, a way, and waves that bend it.

    Args:
        angle_deg: from the h to the w axis.
        way_mm: (h, w).
        waves: for each its phase, its height (h, w) in mm and its run (h, w) in radians per mm. Heights times runs sum
            up to less than 1, else there is no way back.
    """

    angle_deg: float
    way_mm: tuple[float, float]
    waves: tuple[tuple[float, float, float, float, float], ...]

    def forward(self, points_mm: np.ndarray) -> np.ndarray:
        """Where points are after it: (2, ...) mm."""
        turn = np.deg2rad(self.angle_deg)
        h, w = points_mm
        moved_h = self.way_mm[0] + np.cos(turn) * h - np.sin(turn) * w
        moved_w = self.way_mm[1] + np.sin(turn) * h + np.cos(turn) * w
        for phase, height_h, height_w, run_h, run_w in self.waves:
            wave = np.sin(phase + run_h * h + run_w * w)
            moved_h, moved_w = moved_h + height_h * wave, moved_w + height_w * wave
        return np.stack([moved_h, moved_w])

    def inverse(self, points_mm: np.ndarray) -> np.ndarray:
        """Where they were before it: (2, ...) mm, by fixed-point iteration."""
        were_mm = points_mm
        for _ in range(FIXED_POINT_STEPS):
            were_mm = were_mm + points_mm - self.forward(were_mm)
        return were_mm


def contraction(phase: np.ndarray, es_phase: float) -> np.ndarray:
    """How far a cycle has come, 0 at end-diastole and 1 at end-systole: systole, relaxation, rest, atrial kick.

    Args:
        phase: (...) share of the cycle, in [0, 1].
        es_phase: phase of end-systole, up to 0.5.
    """
    systole, _ = _step(np.asarray(phase, float), 0, es_phase)
    relaxation, _ = _step(np.asarray(phase, float), es_phase, 0.27)
    kick, _ = _step(np.asarray(phase, float), 0.8, 0.2)
    return systole - 0.8 * relaxation - 0.2 * kick


def _step(x: np.ndarray, start: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    """From 0 at `start` to 1 a width later, with two continuous slopes; and its slope."""
    x = np.clip((x - start) / width, 0, 1)
    return x**3 * (10 + x * (6 * x - 15)), 30 * (x * (1 - x)) ** 2 / width


def _ramp(x: np.ndarray, start: float, width: float) -> tuple[np.ndarray, np.ndarray]:
    """What has slope 0 before `start` and 1 from a width later on; and its slope."""
    x = (x - start) / width
    bent = np.clip(x, 0, 1)
    return width * (bent**3 * (1 - bent / 2) + np.maximum(x - 1, 0)), bent**2 * (3 - 2 * bent)


def _polar(points_mm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.maximum(np.hypot(*points_mm), TINY_MM), np.arctan2(points_mm[1], points_mm[0])


def _plane(radius_mm: np.ndarray, angle: np.ndarray) -> np.ndarray:
    return radius_mm * np.stack([np.cos(angle), np.sin(angle)])


def _turn(angle: np.ndarray) -> np.ndarray:
    """The same angle within half a turn of 0."""
    return (angle + np.pi) % (2 * np.pi) - np.pi
