"""What lies beside the rounds for the person with the mouse."""

from medseg_core.io import read_picture
from medseg_sem_al.colours import Classes
from medseg_sem_al.guide import write_guide

CLASSES = Classes(("pore", "SE"), codes={"#102030": 0, "#00ffff": 1})


def test_the_palette_has_the_exact_colours_of_the_classes_one_below_the_other(tmp_path):
    write_guide(tmp_path, CLASSES)
    pixels = read_picture(tmp_path / "palette.png").pixels
    column = [tuple(row[:3].tolist()) for row in pixels[:, 30]]
    found = [column.index(colour) for colour in ((16, 32, 48), (0, 255, 255))]
    assert found == sorted(found)
    assert column[-12] == (255, 255, 255)  # of what has no label
