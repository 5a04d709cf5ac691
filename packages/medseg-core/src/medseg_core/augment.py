"""Random changes of a training sample, image and label together, in 2D and 3D.

All randomness comes from one generator. `plan` draws what to do to a sample, `apply` does it, `augment` is both. Flips,
quarter turns, rotation, scale, shift and bending are one sampling of the grid, so nothing is interpolated twice.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from scipy.ndimage import gaussian_filter

from medseg_core.errors import MedsegError
from medseg_core.settings import AugmentConfig
from medseg_core.warp import warp


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How often and how far each transform goes: the fields of `AugmentConfig`; the defaults do nothing."""

    flip_chance: float = 0.0
    flip_axes: tuple[int, ...] = (0,)
    turn_chance: float = 0.0
    rotate_chance: float = 0.0
    rotate_degrees: float = 15.0
    scale_chance: float = 0.0
    scale_range: tuple[float, float] = (0.9, 1.1)
    shift_chance: float = 0.0
    shift_share: float = 0.05
    elastic_chance: float = 0.0
    elastic_cells: int = 6
    elastic_strength: float = 0.3
    brightness_chance: float = 0.0
    brightness_shift: float = 0.1
    contrast_chance: float = 0.0
    contrast_range: tuple[float, float] = (0.8, 1.25)
    gamma_chance: float = 0.0
    gamma_range: tuple[float, float] = (0.8, 1.25)
    noise_chance: float = 0.0
    noise_std: float = 0.05
    blur_chance: float = 0.0
    blur_voxels: float = 1.0


PRESETS: Mapping[str, Recipe] = MappingProxyType(
    {
        "none": Recipe(),
        "light": Recipe(
            rotate_chance=0.3,
            scale_chance=0.3,
            shift_chance=0.3,
            brightness_chance=0.2,
            contrast_chance=0.2,
            gamma_chance=0.2,
            noise_chance=0.1,
        ),
        "strong": Recipe(
            rotate_chance=0.7,
            rotate_degrees=30.0,
            scale_chance=0.7,
            scale_range=(0.75, 1.33),
            shift_chance=0.5,
            shift_share=0.1,
            elastic_chance=0.3,
            brightness_chance=0.3,
            contrast_chance=0.3,
            contrast_range=(0.65, 1.5),
            gamma_chance=0.3,
            gamma_range=(0.65, 1.5),
            noise_chance=0.3,
            noise_std=0.1,
            blur_chance=0.2,
        ),
    }
)


def recipe(config: AugmentConfig) -> Recipe:
    """The preset with what the config gives in its place.

    Raises:
        MedsegError: a range whose ends are swapped.
    """
    given = {field.name: getattr(config, field.name) for field in dataclasses.fields(Recipe)}
    for name, value in given.items():
        if name.endswith("_range") and value is not None and value[0] > value[1]:
            raise MedsegError(f"{name} goes from {value[0]:g} down to {value[1]:g}; try {value[1]:g},{value[0]:g}")
    return dataclasses.replace(PRESETS[config.augment], **{k: v for k, v in given.items() if v is not None})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What happens to one sample of d axes and C channels.

    What stands at c + x afterwards stood at c + matrix @ (x + bend(x) - shift), c being the middle of the array.

    Attributes:
        matrix: (d, d).
        shift: (d,) voxels.
        bend: (d, *points) moves of the control points of a cubic B-spline, in voxels; None bends nothing.
        swap: the sample is seen in a mirror.
        brightness, contrast, gamma, noise_std, blur_voxels: (C,); 0, 1, 1, 0, 0 change nothing.
        noise_seed: where the noise starts.
    """

    matrix: np.ndarray
    shift: np.ndarray
    bend: np.ndarray | None
    swap: bool
    brightness: np.ndarray
    contrast: np.ndarray
    gamma: np.ndarray
    noise_std: np.ndarray
    noise_seed: int
    blur_voxels: np.ndarray


def augment(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    *,
    how: Recipe,
    spacing: Sequence[float] | None = None,
    mirror: Mapping[int, int] | None = None,
    outside: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """A random variant of a sample.

    Args:
        image: (C, *space) floats, about 0 to 1; space has 2 or 3 axes, and those of length 1 stay as they are.
        label: (*space), or (L, *space) layers, of integer ids.
        rng: the sample's own, `draw.numpy()`.
        spacing: of each axis of space, in any unit; angles are true in it. None is the same for all.
        mirror: the id that each id becomes in a mirror, both ways (`{2: 3, 3: 2}`); empty where there is no left and
            right; None flips nothing.
        outside: value of what comes from beyond the image; its label is 0.

    Returns:
        New contiguous arrays of the same shapes and dtypes.

    Raises:
        MedsegError: arrays that do not fit each other, an image of integers, a mirror that does not lead back.
    """
    _check(image, label)
    if mirror is None:
        how = dataclasses.replace(how, flip_chance=0.0)
    return apply(plan(how, image.shape, rng, spacing=spacing), image, label, mirror=mirror or {}, outside=outside)


def plan(
    how: Recipe, shape: Sequence[int], rng: np.random.Generator, *, spacing: Sequence[float] | None = None
) -> Plan:
    """Draws what to do to an image of `shape` (C, *space); a transform left out changes no draw of the others.

    Factors are drawn evenly on a log scale (half as likely as double), all else evenly within its range.
    """
    channels, space = shape[0], np.array(shape[1:])
    unit = np.ones(len(space)) if spacing is None else np.asarray(spacing, dtype=float)
    if max(how.flip_axes, default=0) >= len(space):
        raise MedsegError(f"flip_axes {how.flip_axes} name an axis that an image of {len(space)} axes does not have")
    matrix, swap = _linear(how, space > 1, unit, rng)
    reach = how.shift_share * space * (space > 1)
    return Plan(
        matrix=matrix,
        swap=swap,
        shift=rng.uniform(-reach, reach) * (rng.random() < how.shift_chance),
        bend=_bend(how, space, unit, rng),
        brightness=_even(rng, how.brightness_chance, -how.brightness_shift, how.brightness_shift, channels),
        contrast=_factor(rng, how.contrast_chance, how.contrast_range, channels),
        gamma=_factor(rng, how.gamma_chance, how.gamma_range, channels),
        noise_std=_even(rng, how.noise_chance, 0.0, how.noise_std, channels),
        noise_seed=int(rng.integers(2**32)),
        blur_voxels=_even(rng, how.blur_chance, 0.0, how.blur_voxels, channels),
    )


def apply(
    plan: Plan, image: np.ndarray, label: np.ndarray, *, mirror: Mapping[int, int], outside: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Does what was planned: image linear between voxels, label from the nearest voxel (a tie goes up).

    Beyond the outermost voxel centres the image fades to `outside` within one voxel, the label is 0 from half a voxel
    on: SciPy's mode "grid-constant". Intensities change after that: blur, contrast about the mean, brightness, gamma
    (of what is above 0), noise.

    Args:
        image, label, mirror, outside: as for `augment`, which checks them.
    """
    space = image.shape[1:]
    values, layers = np.array(image, dtype=np.float32, order="C"), np.array(label, order="C").reshape(-1, *space)
    if plan.bend is not None or plan.shift.any() or (plan.matrix != np.eye(len(space))).any():
        values, layers = _moved(plan, values, layers, outside)
    if plan.swap and mirror:
        layers = _swapped(layers, mirror)
    rng = np.random.default_rng([plan.noise_seed, 0, 0, 0])
    values = np.stack([_shaded(plan, channel, part, rng) for channel, part in enumerate(values)])
    return values.astype(image.dtype, copy=False), layers.reshape(label.shape)


def crop(
    image: np.ndarray,
    label: np.ndarray,
    size: Sequence[int],
    *,
    foreground: float,
    rng: np.random.Generator,
    outside: float = 0.0,
    fill: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """A random window; where the image is smaller than that it is padded on both sides.

    Args:
        image: (C, *space), may be a memory map: only the window is copied.
        label: (*space) or (L, *space) ids from 0.
        size: of the window, an axis each.
        foreground: share of windows that are centred, as far as the border lets them, on a voxel of a structure; each
            structure in the label is as likely as any other, whatever its size. The others lie anywhere.
        outside, fill: values of padded voxels of image and label.

    Returns:
        New contiguous arrays, (C, *size) and (*size) or (L, *size).
    """
    _check(image, label)
    space, size = np.array(image.shape[1:]), np.array(size)
    if len(size) != len(space) or (size < 1).any():
        raise MedsegError(
            f"a crop of {tuple(size.tolist())} does not fit an image of {len(space)} axes; give {len(space)}"
        )
    start = rng.integers(0, np.maximum(space - size, 0) + 1)
    centre = _foreground_voxel(label, len(space), rng) if rng.random() < foreground else None
    if centre is not None:
        start = np.clip(centre - size // 2, 0, np.maximum(space - size, 0))
    start = np.where(space < size, -((size - space) // 2), start)
    return _window(image, start, size, outside), _window(label, start, size, fill)


def _linear(how: Recipe, wide: np.ndarray, unit: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """The matrix from where things will stand to where they stood, in voxels, and whether it is a mirror's."""
    num = len(wide)
    axes = np.array(how.flip_axes, dtype=int)
    flipped = axes[(rng.random(len(axes)) < how.flip_chance) & wide[axes]]
    signs = np.ones(num)
    np.multiply.at(signs, flipped, -1)
    back = np.diag(signs) / _factor(rng, how.scale_chance, how.scale_range, 1)
    planes = [plane for plane in itertools.combinations(range(num), 2) if wide[list(plane)].all()]
    angles = np.deg2rad(rng.uniform(-how.rotate_degrees, how.rotate_degrees, len(planes)))
    if rng.random() < how.rotate_chance:
        for plane, angle in zip(planes, angles, strict=True):
            back = back @ _turn_back(num, plane, math.cos(angle), math.sin(angle))
    turned, quarters, where = rng.random() < how.turn_chance, rng.integers(1, 4), rng.random()
    if turned and planes:
        back = back @ _turn_back(num, planes[int(where * len(planes))], *((0, 1), (-1, 0), (0, -1))[quarters - 1])
    return back * unit / unit[:, None], bool(len(flipped) % 2)


def _turn_back(num: int, plane: tuple[int, int], cos: float, sin: float) -> np.ndarray:
    """The inverse of the rotation that carries the plane's first axis towards its second."""
    a, b = plane
    matrix = np.eye(num)
    matrix[a, a] = matrix[b, b] = cos
    matrix[a, b], matrix[b, a] = sin, -sin
    return matrix


def _bend(how: Recipe, space: np.ndarray, unit: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """Control points; moves below 0.4 of their distance keep the map one to one (Choi and Lee, 2000)."""
    bent, seed = rng.random() < how.elastic_chance, int(rng.integers(2**32))
    if not bent:
        return None
    length = space * unit
    cells = np.maximum(1, np.rint(how.elastic_cells * length / length.max())).astype(int)
    moves = np.random.default_rng([seed, 0, 0, 0]).uniform(-1, 1, (len(space), *(cells + 3)))
    reach = how.elastic_strength * space / cells * (space > 1)
    return moves * reach.reshape(-1, *[1] * len(space))


def _even(rng: np.random.Generator, chance: float, low: float, high: float, num: int) -> np.ndarray:
    """(num,) values between low and high, each 0 where its chance does not come."""
    hit, value = rng.random(num) < chance, rng.uniform(low, high, num)
    return np.where(hit, value, 0.0)


def _factor(rng: np.random.Generator, chance: float, ends: tuple[float, float], num: int) -> np.ndarray:
    return np.exp(_even(rng, chance, math.log(ends[0]), math.log(ends[1]), num))


def _moved(plan: Plan, values: np.ndarray, layers: np.ndarray, outside: float) -> tuple[np.ndarray, np.ndarray]:
    middle = (np.array(values.shape[1:]) - 1) / 2
    offset = middle - plan.matrix @ (middle + plan.shift)
    return warp(values, layers, matrix=plan.matrix, offset=offset, bend=plan.bend, outside=outside)


def _shaded(plan: Plan, channel: int, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One channel with its intensities changed."""
    blur, contrast, gamma = plan.blur_voxels[channel], float(plan.contrast[channel]), float(plan.gamma[channel])
    if blur:
        values = gaussian_filter(values, blur * (np.array(values.shape) > 1), mode="nearest", truncate=3.0)
    if contrast != 1:
        values = values * contrast + values.mean() * (1 - contrast)
    if plan.brightness[channel]:
        values = values + float(plan.brightness[channel])
    if gamma != 1:
        values = np.maximum(values, 0) ** gamma
    if plan.noise_std[channel]:
        values = values + rng.standard_normal(values.shape, dtype=np.float32) * float(plan.noise_std[channel])
    return values


def _swapped(layers: np.ndarray, mirror: Mapping[int, int]) -> np.ndarray:
    for one, other in mirror.items():
        if mirror.get(other) != one:
            raise MedsegError(f"the mirror sends {one} to {other} but {other} to {mirror.get(other)}; give both ways")
    table = np.arange(max(int(layers.max()), *mirror) + 1)
    table[list(mirror)] = list(mirror.values())
    return np.where(layers > 0, table[np.maximum(layers, 0)], layers).astype(layers.dtype)


def _foreground_voxel(label: np.ndarray, num: int, rng: np.random.Generator) -> np.ndarray | None:
    """The index of a random voxel of a random structure, or None where there is none."""
    planes = label.reshape(-1, *label.shape[-num + 1 :])
    top = int(label.max())
    voxels = sum(np.bincount(plane.ravel(), minlength=top + 1) for plane in planes)
    (ids,) = np.nonzero(voxels[1:])
    if not len(ids):
        return None
    flat = np.flatnonzero(label == ids[rng.integers(len(ids))] + 1)
    return np.array(np.unravel_index(flat[rng.integers(len(flat))], label.shape)[-num:])


def _window(array: np.ndarray, start: np.ndarray, size: np.ndarray, filler: float) -> np.ndarray:
    space = array.shape[-len(size) :]
    result = np.full((*array.shape[: -len(size)], *size), filler, dtype=array.dtype)
    inner, outer = [], []
    for begin, length, end in zip(start.tolist(), size.tolist(), space, strict=True):
        low, high = max(begin, 0), min(begin + length, end)
        outer.append(slice(low, high))
        inner.append(slice(low - begin, high - begin))
    result[(..., *inner)] = array[(..., *outer)]
    return result


def _check(image: np.ndarray, label: np.ndarray) -> None:
    space = image.shape[1:]
    if len(space) not in (2, 3) or 0 in image.shape:
        raise MedsegError(f"the image has shape {image.shape}; make it channels first, (C, H, W) or (C, X, Y, Z)")
    if image.dtype.kind != "f":
        raise MedsegError(f"the image holds {image.dtype}; bring its values to 0 to 1 as float32 first")
    if label.shape[-len(space) :] != space or label.ndim not in (len(space), len(space) + 1):
        raise MedsegError(f"the label has shape {label.shape}; for an image {image.shape} make it {space}")
    if label.dtype.kind not in "biu":
        raise MedsegError(f"the label holds {label.dtype}; make its ids integers")
