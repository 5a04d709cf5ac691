"""The settings of every command. Standard library and core's settings only: `--help` reads this file."""

from dataclasses import dataclass

from medseg_core.config import setting


@dataclass(frozen=True, kw_only=True)
class IndexConfig:
    """Index."""

    images: str = setting("", "Images by a glob below ROOT, before all rules: 'scans/*.tif'.")
    masks: str = setting("", "Masks by a glob; their stars stand for what those of the images do: 'scans/*_gt.png'.")
    split: tuple[float, ...] = setting(
        (0.7, 0.2, 0.1), "Shares to train on, to validate on, to test on.", low=0, high=1
    )
    seed: int = setting(42, "Draws the split.", low=0)
    group: str = setting(
        "sequence",
        "What a split keeps whole: sequence is a name without its last number; block is a run of such numbers without "
        "a gap; image is each by itself; anything else is a regular expression whose match is the group.",
    )
    banner: int = setting(
        -1, "Rows to cut at the foot, where the instrument writes; -1 finds them.", low=-1, high=10000
    )
    pixel_nm: float = setting(0.0, "Edge of a pixel in nm, where no file says it; 0 is unknown.", low=0)
