"""Damaged files through the commands: exit code 0, or 2 and one line, and nothing half-written."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tests.core import test_fuzz_images as images
from tests.core import test_fuzz_texts as texts
from tests.core import test_fuzz_weights as weights
from tests.fuzzing import bounded, changed, clear
from typer.testing import CliRunner

from medseg_core.checkpoint import load_model, save_model
from medseg_core.cli import app
from medseg_core.config import as_dict, as_toml
from medseg_core.errors import MedsegError
from medseg_core.io import read_volume, write_volume
from medseg_core.volume import Volume
from medseg_totalseg.predict import Predictor
from medseg_totalseg.prepare import prepare
from medseg_totalseg.settings import PrepareConfig

MEMORY = 3 << 29  # threads and their stacks are in it


class Shell:
    """Calls `medseg` in this process and judges how it ends."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.codes = folder, []

    def __call__(self, *words: object, out: Path | None = None) -> None:
        with warnings.catch_warnings(record=True) as caught, bounded(60, MEMORY):
            warnings.simplefilter("always")
            result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code in (0, 2), result.output
        assert not caught, [str(w.message) for w in caught]
        said = result.stderr.splitlines()
        last = [line for line in said if line.startswith(("error: ", "failed: "))]
        assert len(last) == (1 if result.exit_code else 0), result.stderr
        for line in last:
            clear(line)
        assert "Traceback" not in result.output
        assert "Warning" not in result.stderr
        if out is not None:
            whole(out, done=result.exit_code == 0)
            shutil.rmtree(out, ignore_errors=True)
        self.codes.append(result.exit_code)

    @property
    def both(self) -> bool:
        """Whether some calls ended well and some did not."""
        return set(self.codes) == {0, 2}


def whole(out: Path, *, done: bool) -> None:
    """What is there can be read, and nothing lies around that was to be renamed."""
    files = [file for file in out.rglob("*") if file.is_file()]
    assert not [file for file in files if file.name.startswith(".")]
    assert files or not done
    for file in files:
        if file.suffix == ".json":
            json.loads(file.read_text())
        elif file.name.endswith(".nii.gz"):
            read_volume(file)


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def cache(cohort, tmp_path_factory):
    """Two prepared scans of a few voxels."""
    out = tmp_path_factory.mktemp("cache")
    data = out / "data"
    for name in sorted(p.name for p in cohort.iterdir() if p.is_dir())[:2]:
        for file in [cohort / name / "ct.nii.gz", *(cohort / name / "segmentations").glob("*l*.nii.gz")]:
            volume = read_volume(file)
            small = Volume(volume.voxels[::3, ::3, ::3], volume.affine @ np.diag([3, 3, 3, 1]))
            write_volume(small, data / file.relative_to(cohort))
    prepare(data, out / "cache", PrepareConfig(structures=("liver", "spleen")))
    return out / "cache"


@pytest.fixture(scope="module")
def sound(run, cohort, cache, tmp_path_factory):
    """One file of each kind that the commands take, by name."""
    folder = tmp_path_factory.mktemp("sound")
    voxels = np.random.default_rng(0).integers(-1000, 1000, (16, 16, 4)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([3.0, 3.0, 5.0, 1.0])), folder / "ct.nii")
    nib.save(nib.Nifti1Image((voxels > 500).astype(np.uint8), np.diag([3.0, 3.0, 5.0, 1.0])), folder / "label.nii.gz")
    ids = sorted(p.name for p in cache.iterdir() if p.is_dir())
    (folder / "split.json").write_text(
        json.dumps({"seed": 1, "unit": "case", "train": ids[:1], "val": ids[1:], "test": []})
    )
    (folder / "labels.json").write_text('{"labels": {"background": 0, "liver": 1, "spleen": 2, "aorta": 7}}')
    shutil.copy(run / "best.safetensors", folder / "best.safetensors")
    return folder


@pytest.fixture
def damaged(sound, tmp_path):
    """A file of some kind, damaged."""
    rng = np.random.default_rng(5)
    twists = {
        "best.safetensors": (weights.twist_header, weights.twist_card, weights.twist_card),
        "split.json": texts.twists_of("split.json"),
        "labels.json": texts.twists_of("labels.json"),
    }

    def make(name: str, content: bytes | None = None) -> Path:
        sane = (sound / name).read_bytes() if content is None else content
        path = tmp_path / name
        path.write_bytes(changed(sane, twists.get(name) or images.twists_of(name) or texts.twists_of(name), rng))
        return path

    return make


def test_info_on_60_damaged_files(shell, damaged):
    files = images.VOLUMES | images.PICTURES
    for n in range(60):
        name = list(files)[n % len(files)]
        shell("info", damaged(name, files[name]))
    assert shell.both


def test_evaluate_on_12_damaged_masks(shell, damaged, sound, tmp_path):
    shell("evaluate", sound / "label.nii.gz", sound / "label.nii.gz", "--out", tmp_path / "out", out=tmp_path / "out")
    for _ in range(12):
        out = tmp_path / "out"
        shell("evaluate", damaged("label.nii.gz"), sound / "label.nii.gz", "--out", out, out=out)
    assert shell.both


def test_evaluate_on_10_damaged_class_lists(shell, damaged, sound, tmp_path):
    for _ in range(10):
        names, out = damaged("labels.json"), tmp_path / "out"
        shell("evaluate", sound / "label.nii.gz", sound / "label.nii.gz", "--labels", names, "--out", out, out=out)
    assert shell.both


def test_predict_on_20_damaged_scans(shell, damaged, sound, tmp_path):
    for _ in range(20):
        out = tmp_path / "out"
        shell("totalseg", "predict", damaged("ct.nii"), "--model", sound / "best.safetensors", "--out", out, out=out)
    assert shell.both


def test_predict_with_20_damaged_weights(shell, damaged, sound, tmp_path):
    for _ in range(20):
        out = tmp_path / "out"
        shell("totalseg", "predict", sound / "ct.nii", "--model", damaged("best.safetensors"), "--out", out, out=out)
    assert shell.both


def test_train_with_30_damaged_configs(shell, damaged, cache, quick, tmp_path):
    fitting = replace(quick, structures=("liver", "spleen"))
    for n in range(30):
        name = ("config.toml", "config.json")[n % 2]
        content = (as_toml(fitting) if n % 2 == 0 else json.dumps(as_dict(fitting))).encode()
        config, out = damaged(name, content), tmp_path / "out"
        shell("totalseg", "train", cache, "--config", config, "--dry-run", "--out", out, out=out)
    assert shell.both


def test_train_with_20_damaged_splits(shell, damaged, cache, tmp_path):
    for _ in range(20):
        out = tmp_path / "out"
        flags = ("--size", 32, "--widths", "4,8", "--device", "cpu", "--dry-run")
        shell("totalseg", "train", cache, "--splits", damaged("split.json"), *flags, "--out", out, out=out)
    assert shell.both


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("grid", {"spacing_mm": "far"}),
        ("grid", {"spacing_mm": 1.5}),
        ("grid", {"orientation": "XYZ"}),
        ("grid", {"size": 0}),
        ("intensity", {"window_hu": [100.0, -100.0]}),
        ("labels", {5: None}),
    ],
)
def test_a_card_that_cannot_be_is_refused_before_any_scan_is_read(run, tmp_path, part, values):
    net, card = load_model(run)
    told = {name: value for name, value in {**getattr(card, part), **values}.items() if value is not None}
    save_model(tmp_path / "w.safetensors", net, replace(card, **{part: told}))
    with pytest.raises(MedsegError, match=r"the card of .*w\.safetensors cannot be: .* again"):
        Predictor(tmp_path / "w.safetensors")
