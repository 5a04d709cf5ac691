import zipfile
from pathlib import Path

import pytest

from medseg_cardiac.sources import find_patients, unpacked
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


def test_a_zip_is_unpacked_beside_nothing_and_is_gone_afterwards(tmp_path):
    names = ("a/1.dcm", "b/1.dcm", "../../evil.dcm", "/root.dcm", "c:\\x\\2.dcm", "__MACOSX/a/1.dcm", ".hidden", "d/")
    path = zipped(tmp_path / "in/p1.zip", {name: name.encode() for name in names})
    with unpacked(path) as folder:
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert sorted(file.read_text() for file in files) == sorted(names[:5])
        assert all(file.resolve().is_relative_to(folder.resolve()) for file in files)
        assert sorted(file.name for file in files) == ["1.dcm", "1.dcm", "2.dcm", "evil.dcm", "root.dcm"]
    assert not folder.exists()
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["p1.zip"]


def test_a_folder_is_used_as_it_lies(tmp_path):
    with unpacked(tmp_path) as folder:
        assert folder == tmp_path
    assert tmp_path.is_dir()


def test_errors_name_the_zip_and_the_folder_in_it(tmp_path):
    path = zipped(tmp_path / "p1.zip", {"s1/1.dcm": DICOM})

    def fail() -> None:
        with unpacked(path) as folder:
            (file,) = folder.rglob("*.dcm")
            raise MedsegError(f"{file} is bad, and {folder} is")

    with pytest.raises(MedsegError) as caught:
        fail()
    assert str(caught.value) == f"{path}/s1/1.dcm is bad, and {path} is"


def test_zips_that_are_damaged_encrypted_or_bombs_end_in_one_line(tmp_path, monkeypatch):
    whole = zipped(tmp_path / "whole.zip", {"1.dcm": DICOM * 50}).read_bytes()
    at, central = whole.index(b"PK\x03\x04"), whole.index(b"PK\x01\x02")
    hostile = {
        "empty": (b"", "no zip"),
        "cut": (whole[:-40], "no zip"),
        "flipped": (whole[: at + 45] + b"\xff" * 10 + whole[at + 55 :], "no zip, or damaged"),
        "encrypted": (whole[: central + 8] + b"\x01" + whole[central + 9 :], "encrypted; unpack it first"),
        "promising": (whole[: central + 24] + b"\xff\xff\xff\x3f" + whole[central + 28 :], "which it cannot hold"),
    }
    for name, (content, said) in hostile.items():
        with pytest.raises(MedsegError, match=said), unpacked(put(tmp_path / f"{name}.zip", content)):
            pass
    monkeypatch.setattr("medseg_cardiac.sources.MOST_BYTES", 100)
    with pytest.raises(MedsegError, match="more than a cine of one patient"), unpacked(tmp_path / "whole.zip"):
        pass
