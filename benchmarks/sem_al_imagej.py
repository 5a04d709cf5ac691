"""Whether outlines are filled as ImageJ fills them: its own ROI manager reads, extends, saves and fills a proposal.

    xvfb-run python benchmarks/sem_al_imagej.py --imagej /usr/share/java/ij.jar

A random mask is written as a ROI zip. ImageJ adds an oval, a rectangle, a ring and a freehand line, saves the list, and
fills it, one after the other. Printed are the outlines, and in how many pixels what is read of that list differs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from medseg_core.io import read_picture
from medseg_sem_al.outlines import read_outlines, write_outlines

NAMES, EDGE = ("matrix", "secondary", "tertiary"), 512
MACRO = """
roiManager("Open", "HOME/proposal.zip");
newImage("mask", "8-bit black", EDGE, EDGE, 1);
run("Set...", "value=255");
makeOval(100, 100, 61, 80); Roi.setName("tertiary"); roiManager("Add");
makeRectangle(300, 50, 40, 41); Roi.setName("tertiary"); roiManager("Add");
makeRectangle(200, 300, 60, 60); setKeyDown("alt"); makeOval(215, 310, 31, 30); setKeyDown("none");
Roi.setName("0007_secondary"); roiManager("Add");
makeSelection("freehand", newArray(400, 480, 470, 410, 405), newArray(400, 402, 470, 480, 430));
Roi.setName("matrix"); roiManager("Add");
roiManager("Save", "HOME/saved.zip");
for (i = 0; i < roiManager("count"); i++) {
    roiManager("select", i);
    id = 0;
    if (indexOf(Roi.getName, "secondary") >= 0) id = 1;
    if (indexOf(Roi.getName, "tertiary") >= 0) id = 2;
    run("Set...", "value=" + id);
}
run("Select None");
saveAs("Tiff", "HOME/filled.tif");
"""


def main() -> None:
    """Prints how far they agree, and fails where they do not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imagej", type=Path, required=True, help="its ij.jar; it needs java and a display")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        smooth = gaussian_filter(np.random.default_rng(0).normal(size=(len(NAMES), EDGE, EDGE)), (0, 3, 3))
        num = write_outlines(smooth.argmax(0).astype(np.uint8), NAMES, home / "proposal.zip")
        macro = home / "fill.ijm"
        macro.write_text(MACRO.replace("HOME", folder).replace("EDGE", str(EDGE)), encoding="utf-8")
        subprocess.run(["java", "-jar", options.imagej, "-batch", macro], check=True)
        ids = read_outlines(home / "saved.zip", NAMES, (EDGE, EDGE))
        wrong = int((ids != read_picture(home / "filled.tif").pixels).sum())
    print(f"{num} outlines and four of ImageJ's: {wrong} of {ids.size} pixels differ")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
