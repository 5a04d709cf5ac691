"""How right the measures of a mask are, where the truth is known: discs, bars and pictures of random discs.

    python benchmarks/measures.py            # minutes on one core

Prints the errors of boundaries and of the lengths and widths of slender particles, how often 95 % intervals of a share
hold the truth, and the time for a large mask.
"""

import math
import time

import numpy as np

from medseg_sem_al.measures import contacts, fraction_interval, interval_within, particles, phases

NAMES = ("ground", "grain")
EDGE, NUM_PICTURES = 128, 1000


def main() -> None:
    """Prints one line for each question."""
    rng = np.random.default_rng([0, 0, 0, 0])
    for radius in (4, 8, 16, 50):
        errors = [_boundary(_disc(rng, radius)) / (2 * math.pi * radius) - 1 for _ in range(200)]
        print(f"boundary of a disc of radius {radius:2}: {100 * np.mean(errors):+.1f} % on average")
    for radius in (4, 8, 16):
        found = [_boundary(_discs(rng, radius, 0.4)) / EDGE**2 for _ in _each()]
        true = -2 / radius * math.log(1 - 0.4) * (1 - 0.4)  # perimeters per area, of which 1 - share lies in no other
        print(f"boundary of random discs of radius {radius:2}: {100 * (np.mean(found) / true - 1):+.1f} % on average")
    _bars(rng)
    for diameter in (0.06, 0.2, 0.6, 1.0):
        held = [_holds(interval_within(_discs(rng, diameter * EDGE / 2, 0.4), NAMES)[1], 0.4) for _ in _each()]
        print(f"one picture, discs of {diameter:.2f} of its edge: held in {100 * np.mean(held):.0f} %")
    for num in (3, 5, 10):
        held = [_holds(_of_several(rng, num), 0.4) for _ in _each()]
        print(f"{num} pictures: held in {100 * np.mean(held):.0f} %")
    _timed(rng)


def _each() -> range:
    return range(NUM_PICTURES)


def _disc(rng: np.random.Generator, radius: float) -> np.ndarray:
    """At a random place within a pixel."""
    edge = 2 * radius + 9
    row, column = edge / 2 + rng.random(2)
    y, x = np.ogrid[:edge, :edge]
    return ((y - row) ** 2 + (x - column) ** 2 <= radius**2).astype(np.uint8)


def _boundary(mask: np.ndarray) -> float:
    return contacts(mask, NAMES, pixel_nm=None)[0]["length_px"]


def _bars(rng: np.random.Generator) -> None:
    """A bar of each width at each angle."""
    y, x = np.mgrid[:256, :256] - 127.5
    lengths, widths = [], []
    for width in range(3, 21):
        length = max(80.0, 6.0 * width)
        for degrees in range(0, 90, 5):
            angle, (row, column) = math.radians(degrees), rng.random(2)
            along = (x - column) * math.cos(angle) + (y - row) * math.sin(angle)
            across = (y - row) * math.cos(angle) - (x - column) * math.sin(angle)
            mask = (np.abs(along) <= length / 2) & (np.abs(across) <= width / 2)
            (found,) = [
                row for row in particles(mask.astype(np.uint8), NAMES, pixel_nm=None) if row["class"] == "grain"
            ]
            lengths.append(found["length_px"] / length - 1)
            widths.append(found["width_px"] - width)
    off, wide = np.abs(lengths).max(), np.abs(widths).max()
    print(f"length of bars: {100 * np.mean(lengths):+.2f} % on average, {100 * off:.1f} % at most")
    print(f"width of bars: {np.mean(widths):+.2f} px on average, {wide:.2f} px at most")


def _discs(rng: np.random.Generator, radius: float, share: float, edge: int = EDGE) -> np.ndarray:
    """A window of a Boolean model: independent discs, so many that they cover this share on average."""
    num = rng.poisson(-math.log(1 - share) / (math.pi * radius**2) * (edge + 2 * radius) ** 2)
    y, x = np.ogrid[:edge, :edge]
    mask = np.zeros((edge, edge), np.uint8)
    for row, column in rng.uniform(-radius, edge + radius, (num, 2)):
        mask[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = 1
    return mask


def _of_several(rng: np.random.Generator, num: int) -> dict[str, float]:
    shares = np.array([[1 - m.mean(), m.mean()] for m in (_discs(rng, 10.0, 0.4) for _ in range(num))])
    return fraction_interval(shares, np.ones(num), names=NAMES)[1]


def _holds(row: dict[str, float], share: float) -> bool:
    return row["low"] <= share <= row["high"]


def _timed(rng: np.random.Generator) -> None:
    mask = np.kron((rng.random((128, 128)) < 0.3).astype(np.uint8), np.ones((8, 8), np.uint8))
    particles(mask, NAMES, pixel_nm=None)  # compiled
    begun = time.process_time()
    num = len([*particles(mask, NAMES, pixel_nm=None), *phases(mask, NAMES, pixel_nm=None)])
    contacts(mask, NAMES, pixel_nm=None)
    interval_within(mask, NAMES)
    print(f"all of 1024 x 1024 with {num - len(NAMES)} particles: {time.process_time() - begun:.2f} s of CPU")


if __name__ == "__main__":
    main()
