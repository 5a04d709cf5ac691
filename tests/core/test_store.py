import pickle
import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.store import Arrays, write_arrays

IMAGE = np.asfortranarray(np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32))


def test_arrays_come_back_as_read_only_maps_in_their_order(tmp_path):
    write_arrays(tmp_path / "a", {"image": IMAGE, "label": np.ones((2, 3), np.uint8)}, {"spacing_mm": [1.5, 1, 1]})
    arrays = Arrays(tmp_path / "a")
    assert isinstance(arrays["image"], np.memmap)
    np.testing.assert_array_equal(arrays["image"], IMAGE)
    assert arrays["image"].flags.f_contiguous
    assert arrays["label"].flags.c_contiguous
    assert arrays.about == {"spacing_mm": [1.5, 1, 1]}
    assert sorted(arrays) == ["image", "label"]
    with pytest.raises(ValueError, match="read-only"):
        arrays["image"][0] = 1


@pytest.mark.parametrize(
    "array", [np.zeros((0, 3)), np.float64(3.5), np.array([True, False]), np.arange(3, dtype=">i2")]
)
def test_odd_arrays_come_back_too(tmp_path, array):
    write_arrays(tmp_path / "a", {"x": array}, {})
    read = Arrays(tmp_path / "a")["x"]
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_a_case_travels_as_its_path(tmp_path):
    write_arrays(tmp_path / "a", {"image": np.zeros((100, 100, 100))}, {})
    arrays = Arrays(tmp_path / "a")
    assert arrays["image"].nbytes == 8_000_000
    assert len(pickle.dumps(arrays)) < 500
    assert pickle.loads(pickle.dumps(arrays)).folder == tmp_path / "a"


def test_a_worker_process_opens_its_own_map(tmp_path):
    write_arrays(tmp_path / "a", {"image": IMAGE}, {})
    with ProcessPoolExecutor(1, mp_context=get_context("forkserver")) as pool:
        read = pool.submit(Arrays.__getitem__, Arrays(tmp_path / "a"), "image").result()
    np.testing.assert_array_equal(read, IMAGE)


def test_more_cases_than_file_descriptors_can_be_open(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(400):
        write_arrays(tmp_path / str(number), {"x": np.array([number])}, {})
    cases = [Arrays(tmp_path / str(number)) for number in range(400)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 300, hard))
    try:
        assert [int(case["x"][0]) for case in cases] == list(range(400))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_writing_again_replaces_the_whole_folder(tmp_path):
    write_arrays(tmp_path / "a", {"image": IMAGE, "old": IMAGE}, {"n": 1})
    before = Arrays(tmp_path / "a")["image"]
    write_arrays(tmp_path / "a", {"image": IMAGE + 1}, {"n": 2})
    after = Arrays(tmp_path / "a")
    assert list(after) == ["image"]
    assert after.about == {"n": 2}
    np.testing.assert_array_equal(after["image"], IMAGE + 1)
    np.testing.assert_array_equal(before, IMAGE)  # what was open stays what it was
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_foreign_folder_is_not_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("")
    with pytest.raises(MedsegError, match="holds no arrays of ours"):
        write_arrays(tmp_path / "a", {"image": IMAGE}, {})
    assert (tmp_path / "a" / "thesis.txt").exists()


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "a").mkdir()
    write_arrays(tmp_path / "a", {"image": IMAGE}, {})
    np.testing.assert_array_equal(Arrays(tmp_path / "a")["image"], IMAGE)


def test_the_old_arrays_come_back_where_the_new_cannot_be_moved_in(tmp_path, monkeypatch):
    write_arrays(tmp_path / "a", {"image": IMAGE}, {})
    move = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if "-new-" in path.name:
            raise PermissionError(13, "Permission denied")
        return move(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(MedsegError, match="Permission denied"):
        write_arrays(tmp_path / "a", {"image": IMAGE + 1}, {})
    np.testing.assert_array_equal(Arrays(tmp_path / "a")["image"], IMAGE)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_leaves_the_old_arrays_and_nothing_beside(tmp_path):
    write_arrays(tmp_path / "a", {"image": IMAGE}, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(MedsegError, match="cannot write"):
            write_arrays(tmp_path / "a", {"image": np.zeros(10**6)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    np.testing.assert_array_equal(Arrays(tmp_path / "a")["image"], IMAGE)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_bug_while_writing_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        write_arrays(tmp_path / "a", {"image": IMAGE}, {"not JSON": IMAGE})
    assert not list(tmp_path.iterdir())


def test_what_was_not_prepared_is_told_with_the_fix(tmp_path):
    with pytest.raises(MedsegError, match=r"nowhere holds no prepared arrays.*prepare it first"):
        Arrays(tmp_path / "nowhere")
    for content in ("", "{", "[]", '{"about": {}}', "[" * 100_000):
        (tmp_path / "about.json").write_text(content)
        with pytest.raises(MedsegError, match="not written by medseg"):
            Arrays(tmp_path)


def test_a_damaged_or_missing_array_is_named(tmp_path):
    write_arrays(tmp_path / "a", {"image": IMAGE, "label": IMAGE, "more": IMAGE}, {})
    arrays = Arrays(tmp_path / "a")
    (tmp_path / "a" / "image.npy").write_bytes((tmp_path / "a" / "image.npy").read_bytes()[:200])
    (tmp_path / "a" / "label.npy").write_bytes(b"hello")
    (tmp_path / "a" / "more.npy").unlink()
    for name, words in {"image": "damaged", "label": "damaged", "more": "cannot read"}.items():
        with pytest.raises(MedsegError, match=words) as caught:
            arrays[name]
        assert f"{name}.npy" in str(caught.value)


def test_an_unknown_name_is_told_with_the_nearest(tmp_path):
    write_arrays(tmp_path / "a", {"image": IMAGE, "label": IMAGE}, {})
    with pytest.raises(MedsegError, match="no array 'lable', only image, label; did you mean 'label'"):
        Arrays(tmp_path / "a")["lable"]


def test_arrays_of_a_newer_format_ask_for_an_update(tmp_path):
    write_arrays(tmp_path / "a", {"image": IMAGE}, {})
    about = tmp_path / "a" / "about.json"
    about.write_text(about.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(MedsegError, match="update medseg-core"):
        Arrays(tmp_path / "a")


@pytest.mark.filterwarnings("error")
def test_what_is_no_array_of_ours_is_one_line_without_a_word_from_numpy(tmp_path):
    write_arrays(tmp_path / "a", {"image": np.zeros((2, 3))}, {})
    sound = (tmp_path / "a" / "image.npy").read_bytes()
    damaged = [
        sound.replace(b"(2, 3)", b"(-2,3)"),
        sound.replace(b"(2, 3)", b"(2, 3 "),
        sound.replace(b"'<f8'", b"'|O' "),
        sound.replace(b"'<f8'", b"'\\_8'"),
        sound[:100],
    ]
    for content in damaged:
        (tmp_path / "a" / "image.npy").unlink()
        (tmp_path / "a" / "image.npy").write_bytes(content)
        with pytest.raises(MedsegError, match="damaged or cut short"):
            Arrays(tmp_path / "a")["image"]
    for about in ('{"format": 1, "arrays": [], "about": [1]}', '{"format": 1, "arrays": ["../a"], "about": {}}', "[]"):
        (tmp_path / "a" / "about.json").write_text(about)
        with pytest.raises(MedsegError, match="not written by medseg"):
            Arrays(tmp_path / "a")
