import zipfile
from pathlib import Path

import pytest

from medseg_cardiac.sources import find_patients
from medseg_core.errors import MedsegError

DICOM = bytes(128) + b"DICM and more"


def put(path: Path, content: bytes = DICOM) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def zipped(path: Path, members: dict[str, bytes] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (members or {"0001.dcm": DICOM}).items():
            archive.writestr(name, content)
    return path


def contour(folder: Path) -> Path:
    put(folder / "IM-0001-0068-icontour-manual.txt", b"1 2\n")
    return folder


def told(source: Path, **how) -> dict[str, tuple]:
    return {case.id: (case.files["dicom"], case.files.get("contours")) for case in find_patients(source, **how)}


def test_one_patient_is_a_folder_or_a_zip_and_is_called_so(tmp_path):
    put(tmp_path / "p1/0001")
    assert told(tmp_path / "p1") == {"p1": (tmp_path / "p1", None)}
    assert told(zipped(tmp_path / "p2.zip")) == {"p2": (tmp_path / "p2.zip", None)}


def test_a_link_keeps_the_name_it_was_given(tmp_path):
    put(tmp_path / "Secret_Sam/0001")
    (tmp_path / "p1").symlink_to(tmp_path / "Secret_Sam")
    assert list(told(tmp_path / "p1")) == ["p1"]


def test_a_zip_called_dicom_takes_the_name_of_its_folder_and_the_contours_beside_it(tmp_path):
    path, beside = zipped(tmp_path / "p1/dicom.zip"), contour(tmp_path / "p1/contours")
    for source in (path, path.parent, tmp_path):
        assert told(source) == {"p1": (path, beside)}


def test_patients_of_a_folder_may_be_folders_of_series_or_zips_and_others_are_named(tmp_path, caplog):
    put(tmp_path / "p1/series1/a.dcm")
    zipped(tmp_path / "p2.zip")
    zipped(tmp_path / "p3/images.zip")
    put(tmp_path / "notes/readme.txt", b"text")
    contour(tmp_path / "contours/p2")
    expected = {"p1": (tmp_path / "p1", None), "p2": (tmp_path / "p2.zip", tmp_path / "contours/p2")}
    assert told(tmp_path) == expected | {"p3": (tmp_path / "p3/images.zip", None)}
    assert "no DICOM in notes" in caplog.text


def test_contours_by_name_are_of_one_patient_or_in_a_folder_for_each(tmp_path):
    put(tmp_path / "all/p1/0001")
    mine = contour(tmp_path / "mine")
    assert told(tmp_path / "all/p1", contours=mine)["p1"][1] == mine
    put(tmp_path / "all/p2/0001")
    with pytest.raises(MedsegError, match=r"mine holds contours of one patient, and there are several"):
        find_patients(tmp_path / "all", contours=mine)
    own = contour(tmp_path / "each/p2/contours")
    assert [files[1] for files in told(tmp_path / "all", contours=tmp_path / "each").values()] == [None, own]


def test_what_holds_no_patient_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MedsegError, match="empty holds no DICOM"):
        find_patients(tmp_path / "empty")
    with pytest.raises(MedsegError, match="there is no file or folder"):
        find_patients(tmp_path / "no")
    with pytest.raises(MedsegError, match="there is no folder of contours"):
        find_patients(tmp_path / "empty", contours=tmp_path / "no")
    zipped(tmp_path / "two/p1.zip")
    put(tmp_path / "two/p1/0001")
    with pytest.raises(MedsegError, match="would both be p1; rename"):
        find_patients(tmp_path / "two")
