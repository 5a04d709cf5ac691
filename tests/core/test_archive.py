import zipfile
from pathlib import Path

import pytest

from medseg_core.archive import unpacked
from medseg_core.errors import MedsegError

DICOM = bytes(128) + b"DICM and more"


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


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
        (tmp_path / f"{name}.zip").write_bytes(content)
        with pytest.raises(MedsegError, match=said), unpacked(tmp_path / f"{name}.zip"):
            pass
    monkeypatch.setattr("medseg_core.archive.MOST_BYTES", 100)
    with pytest.raises(MedsegError, match="more than the scans of one patient"), unpacked(tmp_path / "whole.zip"):
        pass
