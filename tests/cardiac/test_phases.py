import json

import numpy as np
import pytest

from medseg_cardiac.dataset import discover, read_cine, read_mask
from medseg_cardiac.phases import blood_area, find_phases, find_shared_phases, phases_of
from medseg_core.errors import MedsegError

NUM = 20
H, W = np.mgrid[:64, :60]
RADIUS = np.hypot(H - 30, W - 28)


def heart(*, ed: int = 17, es: int = 6, noise: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """A ring whose inner radius goes from 14 at ED to 8 at ES, and its myocardium at ED."""
    rng = np.random.default_rng(0)
    down = (es - ed) % NUM
    share = [t / down if t <= down else (NUM - t) / (NUM - down) for t in ((np.arange(NUM) - ed) % NUM)]
    frames = [np.where(14 - 6 * s > RADIUS, 200.0, np.where(RADIUS < 22, 60.0, 100.0)) for s in share]
    return np.stack(frames) + rng.normal(0, noise, (NUM, *H.shape)), (RADIUS >= 14) & (RADIUS < 22)


@pytest.mark.parametrize(("ed", "es"), [(17, 6), (0, 9), (19, 7), (5, 14)])
def test_the_largest_and_the_smallest_pool_are_found_wherever_the_cycle_begins(ed, es):
    assert find_phases(*heart(ed=ed, es=es)) == (ed, es)


def test_the_area_of_blood_is_that_of_the_circle_it_fills():
    frames, myo = heart(ed=0, es=10, noise=0.0)
    area = blood_area(frames, myo)
    assert area[[0, 10]] == pytest.approx([np.pi * 14**2, np.pi * 8**2], rel=0.05)


def test_blood_of_the_other_ventricle_within_the_outline_is_not_counted():
    frames, myo = heart(ed=0, es=10, noise=0.0)
    beside = (np.abs(H - 30) < 4) & (np.abs(W - 48) < 2)  # in the wall, as where the heart has moved aside
    with_other = np.where(beside & (np.arange(NUM) == 10)[:, None, None], 200.0, frames)
    assert blood_area(with_other, myo)[10] == blood_area(frames, myo)[10]


@pytest.mark.parametrize("mask", ["none", "full", "empty", "dark"])
def test_without_a_pool_to_see_es_differs_most_from_frame_0(mask):
    frames, myo = heart(ed=0, es=8, noise=40.0 if mask == "dark" else 8.0)
    masks = {"none": None, "full": RADIUS < 22, "empty": np.zeros_like(myo), "dark": myo}
    assert find_phases(300 - frames if mask == "dark" else frames, masks[mask]) == (0, 8)


def test_slices_share_the_phases_of_their_summed_blood():
    (large, myo), (small, _) = heart(ed=0, es=9, noise=0.0), heart(ed=2, es=11, noise=0.0)
    assert find_shared_phases([large, large, large, small], [myo] * 4) == (0, 9)
    assert find_shared_phases([large, small], [np.zeros_like(myo)] * 2) == (0, 9)
    with pytest.raises(MedsegError, match=r"slices have \[10, 20\] frames"):
        find_shared_phases([large, small[:10]], [myo, myo])


def test_one_frame_or_equal_frames_are_refused():
    frames, myo = heart()
    with pytest.raises(MedsegError, match="1 frame has no end systole"):
        find_phases(frames[:1], myo)
    with pytest.raises(MedsegError, match="all 20 frames of the cine are equal"):
        find_phases(np.repeat(frames[:1], NUM, axis=0), myo)


def test_whole_numbers_do_not_wrap_around():
    frames = np.full((3, 4, 4), 210, np.uint8)
    frames[1] = 255  # 45 off everywhere
    frames[2, :2] = 0  # 210 off in half of it, which would wrap to 46
    assert find_phases(frames) == (0, 2)


def test_the_real_patients_agree_with_their_readers_within_two_frames_or_empty_further(data):
    apart, of_patient = [], []
    for patient in discover(data / "cmr_cine"):
        about = json.loads((data / "cmr_cine" / patient.id / "info.json").read_text())["slices"]
        cines, myos = [], []
        for plane, told in zip(patient.planes, about, strict=True):
            cines.append(read_cine(plane.places["cine"]).frames)
            myos.append(read_mask(plane.places["myo"], cines[-1].shape[1:]))
            area = blood_area(cines[-1], myos[-1])
            read = np.array([told["ED_frame_index"], told["ES_frame_index"]])
            found = np.array(phases_of(area))
            apart.append(np.minimum((found - read) % NUM, (read - found) % NUM))
            assert area[found[1]] <= area[read[1]]
        found = np.array(find_shared_phases(cines, myos))
        of_patient.append(np.minimum((found - read) % NUM, (read - found) % NUM))
    ed, es = np.transpose(apart)
    assert max(ed) <= 2
    assert sum(es <= 2) >= 6
    assert np.transpose(of_patient).tolist() == [[1, 1, 2], [0, 0, 4]]
