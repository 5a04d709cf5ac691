import contextlib
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import EnhancedMRImageStorage
from tests.core.test_dicom import AFFINE, CORNER, PATIENT, TURNED, header, saved, unpacked

from medseg_core.dicom_cine import read_cine
from medseg_core.errors import MedsegError

NUM = 4
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 4000, (7, NUM, 5, 6)).astype(np.uint16)  # place, time, rows, columns
PLACES = (0, 2, 3)  # slices of the stack in `test_dicom`, unevenly


def cine(folder: Path, *, change=lambda z, t: {}, leave=(), places=PLACES) -> Path:
    """A file per place and time, whose names and numbers run against both."""
    for z in places:
        for t in set(range(NUM)) - {t for place, t in leave if place == z}:
            tags = {"SOPInstanceUID": f"1.2.{z + 1}.{t + 1}", "TriggerTime": 20.5 + 40 * t, "InstanceNumber": 50 - t}
            path = folder / f"{9 - t}{9 - z}.dcm"
            saved(header(z, **{**tags, **change(z, t)}), path, FRAMES[z, t])
    return folder


def assert_whole(planes) -> None:
    """Every frame of every place, in the order of time."""
    for z, plane in zip(PLACES, planes, strict=True):
        np.testing.assert_array_equal(plane.series.frames[..., 0], FRAMES[z].transpose(0, 2, 1))


def test_planes_go_by_place_and_frames_by_trigger_time_whatever_files_are_called(tmp_path):
    planes = read_cine(cine(tmp_path / "cine"))
    assert_whole(planes)
    for z, plane in zip(PLACES, planes, strict=True):
        assert plane.series.times_s == pytest.approx([0.0205, 0.0605, 0.1005, 0.1405])
        assert plane.names == tuple(f"{9 - t}{9 - z}" for t in range(NUM))
        corner, along_x = plane.series.affine @ (0, 0, 0, 1), plane.series.affine @ (5, 3, 0, 1)
        np.testing.assert_allclose(corner, AFFINE @ (0, 0, z, 1), atol=1e-5)
        np.testing.assert_allclose(along_x, AFFINE @ (5, 3, z, 1), atol=1e-5)


def test_a_plane_is_as_thick_as_its_slice(tmp_path):
    planes = read_cine(cine(tmp_path / "cine", change=lambda z, t: {"SliceThickness": 7}))
    assert [np.linalg.norm(plane.series.affine[:3, 2]) for plane in planes] == pytest.approx([7, 7, 7])


@pytest.mark.parametrize("tag", ["TemporalPositionIdentifier", "AcquisitionTime", "InstanceNumber"])
@pytest.mark.parametrize("trigger", [None, 0])
def test_without_trigger_times_the_next_tag_that_tells_frames_apart_orders_them(tmp_path, tag, trigger):
    def change(z: int, t: int) -> dict:
        time = {"AcquisitionTime": f"1200{t:02d}"}.get(tag, t)
        return {"TriggerTime": trigger, tag: time} | ({} if tag == "InstanceNumber" else {"InstanceNumber": 1})

    if trigger is None:
        original = change
        change = lambda z, t: {"TriggerTime": ""} | {k: v for k, v in original(z, t).items() if v is not None}  # noqa: E731
    planes = read_cine(cine(tmp_path / "cine", change=change))
    assert_whole(planes)
    assert all(plane.series.times_s is None for plane in planes)


def test_frames_of_an_enhanced_file_go_by_their_trigger_delay(tmp_path):
    order = [(z, t) for t in (2, 0, 3, 1) for z in (3, 0, 2)]
    whole = header(0, SOPClassUID=EnhancedMRImageStorage, NumberOfFrames=len(order))
    whole.PerFrameFunctionalGroupsSequence = []
    for z, t in order:
        group, position, timing = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = header(z).ImagePositionPatient
        timing.NominalCardiacTriggerDelayTime = 40.0 * t
        group.PlanePositionSequence, group.CardiacSynchronizationSequence = [position], [timing]
        whole.PerFrameFunctionalGroupsSequence.append(group)
    del whole.ImagePositionPatient
    path = saved(whole, tmp_path / "a.dcm", np.stack([FRAMES[z, t] for z, t in order]))
    planes = read_cine(path)
    assert_whole(planes)
    assert planes[0].series.times_s == pytest.approx([0, 0.04, 0.08, 0.12])


def test_several_series_are_refused_by_name_and_taken_as_one_when_asked(tmp_path):
    own = lambda z, t: {"SeriesInstanceUID": f"1.2.3.{z + 1}"}  # noqa: E731 as scanners write that give each slice one
    for z in PLACES:
        cine(tmp_path / f"series{z}", change=own, places=(z,))
    with pytest.raises(MedsegError, match=r"holds 3 series: 1\.2\.3\.1 \(CT, thorax, 4 files"):
        read_cine(tmp_path)
    assert_whole(read_cine(tmp_path, series="all"))
    assert len(read_cine(tmp_path, series="1.2.3.3")) == 1


REFUSED = {
    "fewer frames": ({"leave": [(2, 3)]}, r"slice 1 \(97\.dcm to 77\.dcm\) has 3 frames where .* are 4: export"),
    "a gap in all": ({"leave": [(z, 2) for z in PLACES]}, r"slice 0 has 80 ms from 89\.dcm to 69\.dcm and 40 ms"),
    "two kinds": (
        {"change": lambda z, t: {"TriggerTime": t // 2, "InstanceNumber": 1, "ImageType": ["A", "MP"[t % 2]]}},
        "lie at one place and time, and differ in ImageType",
    ),
    "same image": (
        {"change": lambda z, t: {"SOPInstanceUID": "1.2", "TriggerTime": 1, "InstanceNumber": 1}},
        "same im",
    ),
    "turned": (
        {"change": lambda z, t: {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]} if z == 2 else {}},
        "differ in direction",
    ),
    "side by side": (
        {"change": lambda z, t: {"ImagePositionPatient": (CORNER + z * TURNED[:, 0]).round(6).tolist()}},
        "side by side at one height",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_whole_cine_ends_in_one_line_without_the_patient(tmp_path, case):
    how, words = REFUSED[case]
    folder = cine(tmp_path / "cine", **how)
    with pytest.raises(MedsegError, match=words) as caught:
        read_cine(folder)
    assert str(folder) in str(caught.value)
    assert PATIENT[:6] not in str(caught.value)


def test_only_our_error_comes_of_random_damage(tmp_path):
    files = sorted(cine(tmp_path / "cine", places=(0, 2)).iterdir())
    whole = [file.read_bytes() for file in files]
    for number in range(120):
        which = int(RNG.integers(len(files)))
        damaged = bytearray(whole[which])
        damaged[RNG.integers(132, len(damaged) - 240)] = RNG.integers(256)
        files[which].write_bytes(damaged[: RNG.integers(140, len(damaged))] if number % 10 == 0 else damaged)
        with contextlib.suppress(MedsegError):
            read_cine(tmp_path / "cine")
        files[which].write_bytes(whole[which])


def test_the_real_cine_has_the_times_and_frames_of_its_files_in_silence(data, tmp_path, caplog):
    folder = unpacked(data / "cmr_cine/SCD0000101/dicom.zip", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # its UIDs break the rules
        planes = read_cine(folder)
    assert not caplog.records
    assert [plane.names for plane in planes] == [
        tuple(f"{first + t:04d}" for t in range(20)) for first in (141, 101, 61)
    ]
    assert planes[2].series.times_s[[0, 1, 19]] == pytest.approx([0.01923077, 0.0576923, 0.75], abs=1e-6)
