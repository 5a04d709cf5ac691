"""What lies in a loop's folder for the person with the mouse.

WATCH/ANNOTATING.md   what to do in ImageJ, GIMP or the page
WATCH/annotate.ijm    an ImageJ macro that opens what is awaited, and saves it under the right name
WATCH/palette.png     the colour of each class, to be picked from
"""

import shutil
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from medseg_core import figures
from medseg_core.io import replacing
from medseg_sem_al.colours import Classes
from medseg_sem_al.panels import colours_of
from medseg_sem_al.proposals import BLANK

FILES = ("ANNOTATING.md", "annotate.ijm")


def write_guide(watch: Path, classes: Classes) -> None:
    """Writes all of it, over what is there."""
    for name in FILES:
        with replacing(watch / name) as beside:
            shutil.copyfile(Path(__file__).parent / name, beside)
    figures.save(_palette(classes), watch / "palette.png", dpi=100)


def _palette(classes: Classes) -> Figure:
    """A square of each class beside its name, and the white of what has no label."""
    rows = [*zip(classes.names, colours_of(classes), strict=True), ("no label", BLANK)]
    figure = Figure(figsize=(2.4, 0.36 * len(rows)))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 2.4), ylim=(0.36 * len(rows), 0))
    axes.set_axis_off()
    for number, (name, colour) in enumerate(rows):
        place, paint = (0.06, 0.36 * number + 0.04), [part / 255 for part in colour]
        axes.add_patch(Rectangle(place, 0.5, 0.28, facecolor=paint, edgecolor="grey", lw=1))
        axes.text(0.66, 0.36 * number + 0.18, name, va="center", fontsize=9, parse_math=False)
    return figure
