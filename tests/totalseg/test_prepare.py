"""From a released folder to a cache."""

import filecmp
import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg_core.errors import MedsegError
from medseg_core.store import Arrays
from medseg_totalseg.prepare import is_cache, prepare, read_cohort, whole_hu
from medseg_totalseg.settings import PrepareConfig

LPS = np.array([[-2.0, 0, 0, 30], [0, -3, 0, 20], [0, 0, 4, -10], [0, 0, 0, 1]])
SHAPE = (6, 5, 4)


def save(path: Path, voxels, dtype=np.uint8, affine=LPS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(voxels, dtype), affine), path)
    return path


def block(*slices: slice) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[slices] = 1
    return mask


def ramp() -> np.ndarray:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE) - 50


def put(folder: Path, affine=LPS, **masks: np.ndarray) -> Path:
    save(folder / "ct.nii.gz", ramp(), np.int16, affine)
    (folder / "segmentations").mkdir()
    for name, mask in masks.items():
        save(folder / "segmentations" / f"{name}.nii.gz", mask, affine=affine)
    return folder


LIVER, SPLEEN = block(slice(0, 3)), block(slice(4, 6), slice(0, 2))


def test_image_and_label_lie_in_ras_voxel_for_voxel(tmp_path):
    """From LPS to RAS both in-plane axes are flipped; nothing else happens at the file's own spacing."""
    put(tmp_path / "data" / "s1", liver=LIVER, spleen=SPLEEN)
    prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig())
    arrays = Arrays(tmp_path / "cache" / "s1")
    assert arrays["image"].dtype == np.int16
    assert np.array_equal(arrays["image"], ramp()[::-1, ::-1])
    assert arrays["label"].dtype == np.uint8
    assert np.array_equal(arrays["label"], (5 * LIVER + SPLEEN)[::-1, ::-1])
    assert arrays.names == ("image", "label", "places")
    ras = np.diag([2.0, 3, 4, 1])
    ras[:3, 3] = (30 - 5 * 2, 20 - 4 * 3, -10)
    np.testing.assert_allclose(arrays.about["affine"], ras)


def test_places_are_voxels_of_the_stored_label(tmp_path):
    put(tmp_path / "data" / "s1", liver=LIVER, spleen=SPLEEN)
    prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig())
    arrays = Arrays(tmp_path / "cache" / "s1")
    ids, x, y, z = np.asarray(arrays["places"]).T
    assert np.array_equal(arrays["label"][x, y, z], ids)
    assert len(ids) == np.count_nonzero(arrays["label"])


def test_a_plane_is_one_run_of_the_file(tmp_path):
    put(tmp_path / "data" / "s1", liver=LIVER)
    prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig())
    arrays = Arrays(tmp_path / "cache" / "s1")
    for name in ("image", "label"):
        assert isinstance(arrays[name], np.memmap)
        assert arrays[name][:, :, 2].flags.f_contiguous


def test_the_spacing_is_the_median_of_the_cohort_along_patient_axes(tmp_path):
    turned = np.array([[0, 0, 5.0, 0], [2.0, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, 0, 1]])  # axes are A, S, R
    put(tmp_path / "data" / "a", liver=LIVER)  # 2, 3, 4
    put(tmp_path / "data" / "b", affine=turned, liver=LIVER)  # 5, 2, 4
    put(tmp_path / "data" / "c", affine=np.diag([1.0, 1, 9, 1]), liver=LIVER)  # 1, 1, 9
    prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig())
    cohort = read_cohort(tmp_path / "cache")
    assert cohort.spacing_mm == (2.0, 2.0, 4.0)
    shapes = [Arrays(case.files["arrays"])["image"].shape for case in cohort.cases]
    assert shapes == [(6, 8, 4), (10, 6, 5), (3, 2, 9)]  # the extents 12 15 16, 20 12 20, 6 5 36, rounded half to even


def test_a_given_spacing_is_taken(tmp_path):
    put(tmp_path / "data" / "a", liver=LIVER)
    prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig(spacing_mm=(4.0, 3.0, 2.0)))
    assert Arrays(tmp_path / "cache" / "a")["label"].shape == (3, 5, 8)


def test_overlaps_are_kept_counted_and_told(tmp_path):
    """Rows 0-2 of X are liver (60 voxels), rows 2-3 aorta (40), rows 2-2 heart (20): 80 labelled, 20 in three."""
    masks = {"liver": LIVER, "aorta": block(slice(2, 4)), "heart": block(slice(2, 3))}
    put(tmp_path / "data" / "s1", **masks)
    prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig())
    arrays = Arrays(tmp_path / "cache" / "s1")
    rows = {name: arrays[name][::-1][:, 0, 0].tolist() for name in ("label", "label2", "label3")}
    assert rows == {"label": [5, 5, 52, 52, 0, 0], "label2": [0, 0, 51, 0, 0, 0], "label3": [0, 0, 5, 0, 0, 0]}
    assert arrays.about["overlaps"] == [[5, 51, 20], [5, 52, 20], [51, 52, 20]]
    assert arrays.about["voxels"] == {"5": 60, "51": 20, "52": 40}
    assert read_cohort(tmp_path / "cache").overlap == 20 / 80


def test_a_missing_file_is_empty_or_not_annotated(tmp_path):
    put(tmp_path / "data" / "s1", liver=LIVER, spleen=SPLEEN)
    put(tmp_path / "data" / "s2", spleen=SPLEEN)
    for missing in ("empty", "ignore"):
        prepare(tmp_path / "data", tmp_path / missing, PrepareConfig(missing=missing))
    annotated = {m: [Arrays(tmp_path / m / s).about["annotated"] for s in ("s1", "s2")] for m in ("empty", "ignore")}
    assert annotated == {"empty": [None, None], "ignore": [[1, 5], [1]]}
    assert read_cohort(tmp_path / "ignore").missing == "ignore"


def test_only_chosen_structures_are_read(tmp_path):
    put(tmp_path / "data" / "s1", liver=LIVER, spleen=SPLEEN, aorta=block(slice(3, 4)))
    (tmp_path / "data" / "s1" / "segmentations" / "liver.nii.gz").write_bytes(b"broken, and not wanted")
    prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig(structures=("spleen", "vessels")))
    assert np.unique(Arrays(tmp_path / "cache" / "s1")["label"]).tolist() == [0, 1, 52]
    assert 5 not in read_cohort(tmp_path / "cache").labels


def test_splits_and_groups_travel(tmp_path):
    put(tmp_path / "data" / "s1", liver=LIVER)
    put(tmp_path / "data" / "s2", liver=LIVER)
    (tmp_path / "data" / "meta.csv").write_text("image_id;split;patient\ns1;train;p\ns2;test;q\n")
    prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig())
    assert [(c.id, c.split, c.group) for c in read_cohort(tmp_path / "cache").cases] == [
        ("s1", "train", "p"),
        ("s2", "test", "q"),
    ]


def test_hu_are_rounded_and_cut():
    assert whole_hu(np.array([-0.5, 1.5, 2.4, 1e6, -1e6])).tolist() == [0, 2, 2, 32767, -32768]


def _nan(case: Path) -> None:
    voxels = ramp().astype(np.float32)
    voxels[1, 2, 3] = np.nan
    save(case / "ct.nii.gz", voxels, np.float32)


def _cut_short(case: Path) -> None:
    path = case / "segmentations" / "liver.nii.gz"
    path.write_bytes(gzip.compress(np.random.default_rng(0).bytes(2000))[:1000])


BROKEN = {
    "no numbers": _nan,
    "four": lambda case: save(case / "ct.nii.gz", np.zeros((*SHAPE, 2)), np.int16),
    "ct.nii.gz is not a NIfTI": lambda case: (case / "ct.nii.gz").write_bytes(b"hello" * 100),
    "liver.nii.gz": _cut_short,
    "liver.nii.gz does not lie on": lambda case: save(case / "segmentations" / "liver.nii.gz", np.zeros((6, 5, 5))),
    "mm apart": lambda case: save(case / "segmentations" / "liver.nii.gz", LIVER, affine=np.diag([2.0, 3, 4, 1])),
    "liver.nii.gz holds the value 3": lambda case: save(case / "segmentations" / "liver.nii.gz", 3 * LIVER),
    "holds no masks": lambda case: (case / "segmentations" / "liver.nii.gz").unlink(),
}


@pytest.mark.parametrize("said", BROKEN)
def test_a_bad_case_costs_only_itself_and_is_tried_again(tmp_path, said):
    for name in ("s1", "s2", "s3"):
        put(tmp_path / "data" / name, liver=LIVER)
    BROKEN[said](tmp_path / "data" / "s2")
    said = {"four": "three axes|shape"}.get(said, said)
    outcome = prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig())
    assert (outcome.done, set(outcome.failed)) == (("s1", "s3"), {"s2"})
    assert "\n" not in outcome.failed["s2"]
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(outcome.failed["s2"])
    assert [case.id for case in read_cohort(tmp_path / "cache").cases] == ["s1", "s3"]
    assert not (tmp_path / "cache" / "s2").exists()
    save(tmp_path / "data" / "s2" / "ct.nii.gz", ramp(), np.int16)
    save(tmp_path / "data" / "s2" / "segmentations" / "liver.nii.gz", LIVER)
    outcome = prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig())
    assert (outcome.done, outcome.skipped, outcome.failed) == (("s2",), ("s1", "s3"), {})
    assert len(read_cohort(tmp_path / "cache").cases) == 3


def test_what_is_done_is_not_done_again(tmp_path):
    put(tmp_path / "data" / "s1", liver=LIVER)
    prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig())
    before = (tmp_path / "cache" / "s1" / "image.npy").stat().st_mtime_ns
    put(tmp_path / "data" / "s2", affine=np.diag([9.0, 9, 9, 1]), liver=LIVER)
    outcome = prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig())
    assert (outcome.done, outcome.skipped) == (("s2",), ("s1",))
    assert (tmp_path / "cache" / "s1" / "image.npy").stat().st_mtime_ns == before
    assert read_cohort(tmp_path / "cache").spacing_mm == (2.0, 3.0, 4.0)  # what was begun with holds


@pytest.mark.parametrize("file", ["about.json", "image.npy"])
def test_a_case_that_was_damaged_since_is_prepared_again(tmp_path, file):
    for name in ("s1", "s2"):
        put(tmp_path / "data" / name, liver=LIVER)
    prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig())
    (tmp_path / "cache" / "s1" / file).write_text("{")
    assert prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig()).done == ("s1",)
    assert len(read_cohort(tmp_path / "cache").cases) == 2


def test_other_settings_are_refused(tmp_path):
    put(tmp_path / "data" / "s1", liver=LIVER)
    prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig())
    before = (tmp_path / "cache" / "dataset.json").read_bytes()
    with pytest.raises(MedsegError, match="missing"):
        prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig(missing="ignore"))
    assert (tmp_path / "cache" / "dataset.json").read_bytes() == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    put(tmp_path / "data" / "s1", liver=LIVER)
    with pytest.raises(MedsegError, match="is no cache"):
        prepare(tmp_path / "data", tmp_path / "data", PrepareConfig())
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["s1"]


def test_another_scan_of_the_same_name_is_refused(tmp_path):
    put(tmp_path / "data" / "s1", liver=LIVER)
    prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig())
    put(tmp_path / "more" / "s1", liver=LIVER)
    save(tmp_path / "more" / "s1" / "ct.nii.gz", np.random.default_rng(0).integers(0, 99, SHAPE), np.int16)
    with pytest.raises(MedsegError, match="holds another s1"):
        prepare(tmp_path / "more", tmp_path / "cache", PrepareConfig())


def test_a_cache_that_was_not_finished_says_so(tmp_path, monkeypatch):
    put(tmp_path / "data" / "s1", liver=LIVER)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medseg_totalseg.prepare.write_arrays", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig())
    assert is_cache(tmp_path / "cache")
    with pytest.raises(MedsegError, match="not prepared to the end"):
        read_cohort(tmp_path / "cache")
    assert prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig()).done == ("s1",)


def test_what_is_no_cache_is_refused(tmp_path):
    with pytest.raises(MedsegError, match="is no prepared cohort"):
        read_cohort(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format": 2}')
    with pytest.raises(MedsegError, match="newer medseg"):
        read_cohort(tmp_path)
    whole = {"format": 1, "labels": {"5": "liver"}, "spacing_mm": [1, 1, 1], "missing": "empty", "cases": []}
    deep = "[" * 100_000
    for content in ("[]", deep, *(json.dumps({**whole, name: 5}) for name in ("labels", "spacing_mm", "cases"))):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(MedsegError, match="damaged; prepare the cohort again, into a new folder"):
            read_cohort(tmp_path)


def test_a_cohort_without_any_mask_is_refused(tmp_path):
    put(tmp_path / "data" / "s1")
    with pytest.raises(MedsegError, match="no case holds a mask"):
        prepare(tmp_path / "data", tmp_path / "cache", PrepareConfig())
    assert not (tmp_path / "cache").exists()


def test_workers_and_executors_write_the_same_bytes(tmp_path):
    for name in ("s1", "s2"):
        put(tmp_path / "data" / name, liver=LIVER, spleen=SPLEEN)
    prepare(tmp_path / "data", tmp_path / "one", PrepareConfig())
    prepare(tmp_path / "data", tmp_path / "two", PrepareConfig(workers=2))
    with ThreadPoolExecutor(2) as executor:
        prepare(tmp_path / "data", tmp_path / "threads", PrepareConfig(), executor=executor)
    files = [
        "dataset.json",
        *(f"{s}/{f}" for s in ("s1", "s2") for f in ("image.npy", "label.npy", "places.npy", "about.json")),
    ]
    for other in ("two", "threads"):
        assert filecmp.cmpfiles(tmp_path / "one", tmp_path / other, files, shallow=False)[0] == files


def test_the_real_v1_case_equals_the_published_label_map(data, tmp_path):
    """float64 masks, int32 CT; its grid is RAS, 3 mm, so nothing is interpolated."""
    folder = data / "ct_multiorgan" / "ts_s0001"
    prepare(folder, tmp_path, PrepareConfig())
    arrays = Arrays(tmp_path / "ts_s0001")
    assert np.array_equal(arrays["label"], nib.load(folder / "seg_multilabel_v1_104.nii.gz").dataobj)
    assert np.array_equal(arrays["image"], nib.load(folder / "ct.nii.gz").dataobj)
    cohort = read_cohort(tmp_path)
    assert (len(cohort.labels), cohort.overlap) == (104, 0)


def test_real_patients_know_what_was_not_annotated(data, tmp_path):
    """SOURCES.md: pt_2 has no larynx."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("pt_2", "pt_4"):
        (folder / name).symlink_to(data / "ct_more" / "openkbp" / name)
    prepare(folder, tmp_path / "cache", PrepareConfig(labels="folder", missing="ignore"))
    cohort = read_cohort(tmp_path / "cache")
    larynx = next(label for label, name in cohort.labels.items() if name == "larynx")
    annotated = {case.id: Arrays(case.files["arrays"]).about["annotated"] for case in cohort.cases}
    assert set(cohort.labels) - set(annotated["pt_2"]) == {larynx}
    assert set(cohort.labels) == set(annotated["pt_4"])
    assert json.loads((tmp_path / "cache" / "dataset.json").read_text())["missing"] == "ignore"
