"""Folders against folders: paired, scored, continued, audited, compared; whoever does the work."""

import csv
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from medseg_core import folders
from medseg_core.cli import app
from medseg_core.errors import MedsegError
from medseg_core.folders import evaluate_folders
from medseg_core.io import write_picture, write_volume
from medseg_core.settings import ScoreConfig
from medseg_core.volume import Picture, Volume

HERE = ScoreConfig(workers=1)
AFFINE = np.diag((2.0, 2.0, 3.0, 1.0))


def boxes(seed: int) -> np.ndarray:
    """Two boxes, ids 1 and 2, somewhere in (16, 14, 12)."""
    rng = np.random.default_rng(seed)
    label = np.zeros((16, 14, 12), np.uint8)
    for i, low in enumerate(((1, 2, 2), (8, 4, 3)), 1):
        x, y, z = np.add(low, rng.integers(0, 3, 3))
        label[x : x + 5, y : y + 6, z : z + 5] = i
    return label


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """ref, and two models that are one and two voxels off; `good` has lost a structure in the third case."""
    for n in range(6):
        label = boxes(n)
        for model, off in (("ref", 0), ("good", 1), ("bad", 2)):
            mask = np.roll(label, off, axis=0)
            if (model, n) == ("good", 2):
                mask[mask == 2] = 0
            write_volume(Volume(mask, AFFINE), tmp_path / model / f"c{n}.nii.gz")
    return tmp_path


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def report(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def test_every_number_is_that_of_numpy(cohort):
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE)
    found = rows(cohort / "out" / "cases.csv")
    assert len(found) == 12
    for row in found:
        label = boxes(int(row["case"][1]))
        mask = np.roll(label, 1, axis=0)
        a, b = mask == int(row["label"]), label == int(row["label"])
        if (row["case"], row["label"]) == ("c2", "2"):
            assert (row["status"], float(row["dice"]), row["hd95_mm"]) == ("missed", 0.0, "")
        else:
            assert float(row["dice"]) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
            assert (float(row["hd_mm"]), float(row["volume_ref_ml"])) == (2.0, pytest.approx(b.sum() * 12 / 1000))


def test_what_has_no_partner_is_named_in_the_report(cohort):
    (cohort / "good" / "c5.nii.gz").rename(cohort / "good" / "c9.nii.gz")
    evaluation, failed = evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE)
    assert (len(evaluation.cases), failed) == (5, {})
    assert "1 in" in report(cohort / "out")
    assert "c9" in report(cohort / "out")


def test_a_bad_case_costs_only_itself_and_exit_code_2(cohort):
    (cohort / "good" / "c0.nii.gz").write_bytes(b"no gzip")
    write_volume(Volume(boxes(1)[1:], AFFINE), cohort / "good" / "c1.nii.gz")
    words = [
        "evaluate",
        *(str(cohort / name) for name in ("good", "ref")),
        "--out",
        str(cohort / "out"),
        "--workers",
        "1",
    ]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "cases: 4" in result.stdout
    assert "failed: c0:" in result.stderr
    assert "failed: c1:" in result.stderr
    assert "shape (15, 14, 12) against (16, 14, 12)" in report(cohort / "out")


def test_an_interrupted_evaluation_goes_on_where_it_was(cohort, monkeypatch):
    once = {"left": 4}

    def interrupted(case, **how):
        once["left"] -= 1
        if once["left"] < 0:
            raise KeyboardInterrupt
        return scored(case, **how)

    scored = folders.score_case
    monkeypatch.setattr(folders, "score_case", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE)
    assert not (cohort / "out" / "report.html").exists()
    once["left"] = 2
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE)
    monkeypatch.undo()
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "whole", HERE)
    assert (cohort / "out" / "cases.csv").read_bytes() == (cohort / "whole" / "cases.csv").read_bytes()
    assert report(cohort / "out") == report(cohort / "whole")


def test_a_case_that_was_mended_is_scored_by_the_same_call(cohort):
    whole = (cohort / "good" / "c0.nii.gz").read_bytes()
    (cohort / "good" / "c0.nii.gz").write_bytes(whole[:50])
    _, failed = evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE)
    assert list(failed) == ["c0"]
    (cohort / "good" / "c0.nii.gz").write_bytes(whole)
    evaluation, failed = evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE)
    assert (len(evaluation.cases), failed) == (6, {})
    with pytest.raises(MedsegError, match="--overwrite"):
        evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE)


def test_what_was_written_anew_is_scored_again_and_nothing_else(cohort, monkeypatch, caplog):
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE)
    shutil.copy(cohort / "ref" / "c1.nii.gz", cohort / "good" / "c1.nii.gz")
    scored, seen = folders.score_case, []
    monkeypatch.setattr(folders, "score_case", lambda case, **how: seen.append(case.id) or scored(case, **how))
    evaluation, _ = evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE)
    assert seen == ["c1"]
    assert "1 cases have changed since they were scored: c1" in caplog.text
    assert evaluation.case_means("dice")["c1"] == 1.0
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "whole", HERE)
    assert (cohort / "out" / "cases.csv").read_bytes() == (cohort / "whole" / "cases.csv").read_bytes()


def test_nothing_to_score_is_one_line_and_no_report(cohort):
    for file in (cohort / "good").iterdir():
        file.write_bytes(b"no gzip")
    with pytest.raises(MedsegError, match=r"nothing could be scored in 6 cases; first: .*c0"):
        evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE)
    assert [file.name for file in (cohort / "out").iterdir()] == ["journal.jsonl"]


def test_other_settings_do_not_go_on_with_it(cohort, monkeypatch):
    monkeypatch.setattr(folders, "write_report", lambda *_, **__: None)
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE)
    with pytest.raises(MedsegError, match=r"tolerance was 3\.0, now 2\.0"):
        evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", ScoreConfig(tolerance=2.0, workers=1))


def test_a_folder_in_use_is_refused_unless_asked_for(cohort):
    (cohort / "out").mkdir()
    (cohort / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(MedsegError, match="--overwrite"):
        evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE)
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE, overwrite=True)
    assert "Not a medical device" in report(cohort / "out")


def test_overwriting_keeps_what_is_not_ours(cohort):
    (cohort / "good").rename(cohort / "pictures")
    for _ in range(2):
        evaluate_folders(cohort / "pictures", cohort / "ref", cohort, HERE, overwrite=True)
    assert len(list((cohort / "pictures").glob("*.nii.gz"))) == 6


def test_names_without_ids_are_not_matched_with_ids_without_names(cohort):
    label = boxes(0)
    for i, name in enumerate(("liver", "spleen"), 1):
        write_volume(Volume((label == i).astype(np.uint8), AFFINE), cohort / "named" / "c0" / f"{name}.nii.gz")
    with pytest.raises(MedsegError, match=r"has names and .* has ids; say which id is which: --labels"):
        evaluate_folders(cohort / "good", cohort / "named", cohort / "out", HERE)


def test_a_structure_that_only_the_prediction_names_is_invented(cohort):
    (cohort / "ref" / "labels.json").write_text('{"liver": 1, "spleen": 2}')
    (cohort / "good" / "labels.json").write_text('{"tumour": 1, "spleen": 2}')
    evaluation, _ = evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE)
    found = {row["name"]: row["status"] for row in evaluation.rows if row["case"] == "c0"}
    assert found == {"liver": "missed", "spleen": "both", "tumour": "invented"}


def test_an_image_that_cannot_be_read_costs_its_overlay_alone(cohort):
    (cohort / "images").mkdir()
    (cohort / "images" / "c0.nii.gz").write_bytes(b"no gzip")
    _, failed = evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE, images=cohort / "images")
    assert not failed
    assert (cohort / "out" / "report.html").exists()


@pytest.mark.parametrize("wrong", [{"measures": ("surfce",)}, {"connectivity": 5}])
def test_a_setting_that_cannot_be_is_told_before_any_work(cohort, wrong):
    with pytest.raises(MedsegError, match=r"did you mean 'surface'|connectivity 5"):
        evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", ScoreConfig(workers=1, **wrong))
    assert not (cohort / "out").exists()


def test_a_rival_with_fewer_cases_takes_none_from_the_model(cohort):
    for n in (0, 1):
        (cohort / "bad" / f"c{n}.nii.gz").unlink()
    evaluation, _ = evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE, compare=cohort / "bad")
    assert len(evaluation.cases) == 6
    assert {row["n_cases"] for row in evaluation.rivalry if row["kind"] == "all" and row["measure"] == "dice"} == {4}


def test_any_executor_gives_the_same_tables(cohort):
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "here", HERE)
    with ThreadPoolExecutor(3) as pool:
        evaluate_folders(cohort / "good", cohort / "ref", cohort / "there", HERE, executor=pool)
    assert (cohort / "here" / "cases.csv").read_bytes() == (cohort / "there" / "cases.csv").read_bytes()


@pytest.mark.slow
def test_processes_give_the_same_tables(cohort):
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "here", HERE)
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "there", ScoreConfig(workers=2))
    assert (cohort / "here" / "cases.csv").read_bytes() == (cohort / "there" / "cases.csv").read_bytes()


@pytest.mark.slow
def test_ranks_of_torchrun_share_the_cases_and_one_of_them_reports(cohort):
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "here", HERE)
    words = ["evaluate", "good", "ref", "--out", "there"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = [*torchrun, "--no-python", sys.executable, "-c", "from medseg_core.cli import app; app()", *words]
    subprocess.run(run, check=True, cwd=cohort, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    assert (cohort / "here" / "cases.csv").read_bytes() == (cohort / "there" / "cases.csv").read_bytes()
    done = [len((cohort / "there" / name).read_text().splitlines()) for name in ("journal.jsonl", "journal-1.jsonl")]
    assert done == [4, 4]  # the settings, and three cases each


def test_two_models_are_compared_pair_by_pair(cohort):
    evaluation, _ = evaluate_folders(
        cohort / "bad", cohort / "ref", cohort / "out", HERE, compare=cohort / "good", labels={1: "left", 2: "right"}
    )
    table = rows(cohort / "out" / "comparison.csv")
    (found,) = [row for row in table if (row["kind"], row["measure"]) == ("all", "dice")]
    dice = {name: [] for name in ("bad", "good")}
    for model, off in (("bad", 2), ("good", 1)):
        for n in range(6):
            label = boxes(n)
            mask = np.roll(label, off, axis=0)
            mask = np.where((mask == 2) & ((model, n) == ("good", 2)), 0, mask)
            pairs = [(mask == i, label == i) for i in (1, 2)]
            dice[model].append(np.mean([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in pairs]))
    assert float(found["difference"]) == pytest.approx(np.mean(dice["bad"]) - np.mean(dice["good"]))
    assert float(found["p"]) == pytest.approx(stats.wilcoxon(dice["bad"], dice["good"]).pvalue)
    assert evaluation.headline()["difference"] == float(found["difference"])
    assert "Compared with “good”" in report(cohort / "out")


def test_the_same_masks_compared_do_not_differ(cohort):
    shutil.copytree(cohort / "good", cohort / "again")
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE, compare=cohort / "again")
    assert {float(row["difference"]) for row in rows(cohort / "out" / "comparison.csv")} == {0.0}
    assert {float(row["p"]) for row in rows(cohort / "out" / "comparison.csv") if row["n_cases"] != "1"} == {1.0}


def test_ids_that_do_not_meet_are_told_aloud(tmp_path):
    for n in range(2):
        label = boxes(n) > 0
        write_picture(Picture(label[..., 4].astype(np.uint8)), tmp_path / "pred" / f"p{n}.png")
        write_picture(Picture(label[..., 4]), tmp_path / "ref" / f"p{n}.png")  # bool is stored as 0 and 255
    evaluation, _ = evaluate_folders(tmp_path / "pred", tmp_path / "ref", tmp_path / "out", HERE)
    assert evaluation.headline()["dice"] == 0
    assert "no id in common between prediction and reference in p0, p1" in report(tmp_path / "out")


def test_ids_without_a_name_are_told_and_not_scored(cohort):
    evaluation, _ = evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE, labels={1: "left"})
    assert evaluation.rows.names == ["left"]
    assert any("not scored: 2" in finding for finding in evaluation.audit["findings"])


def test_pictures_are_measured_in_pixels_or_in_their_size(tmp_path):
    label = boxes(0)[..., 4]
    for folder, off in (("pred", 1), ("ref", 0)):
        write_picture(Picture(np.roll(label, off, 0)), tmp_path / folder / "plain.png")
        write_picture(Picture(np.roll(label, off, 0), pixel_nm=5.0), tmp_path / f"{folder}_nm" / "sized.tif")
    evaluate_folders(tmp_path / "pred", tmp_path / "ref", tmp_path / "px", HERE)
    evaluate_folders(tmp_path / "pred_nm", tmp_path / "ref_nm", tmp_path / "nm", HERE)
    assert {float(row["hd_px"]) for row in rows(tmp_path / "px" / "cases.csv")} == {1.0}
    assert {float(row["hd_nm"]) for row in rows(tmp_path / "nm" / "cases.csv")} == {5.0}


def test_anonymous_leaves_no_name_behind_in_what_is_shown(cohort):
    (cohort / "good" / "c0.nii.gz").write_bytes(b"no gzip")
    for folder in ("good", "ref"):
        (cohort / folder / "c3.nii.gz").rename(cohort / folder / "Jane_Doe.nii.gz")
    config = ScoreConfig(anonymous=True, workers=1)
    (cohort / "ref" / "c5.nii.gz").rename(cohort / "ref" / "Jane_Doe_2.nii.gz")
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", config)
    shown = [file for file in (cohort / "out").rglob("*") if file.suffix in (".csv", ".json", ".html")]
    assert len(shown) == 5
    for file in shown:
        assert "Jane_Doe" not in file.read_text(encoding="utf-8")
    assert "case 0002 could not be scored" in report(cohort / "out")


def test_nnunets_channel_suffix_finds_the_image(cohort):
    for n in range(6):
        write_volume(Volume(boxes(n) * np.int16(100), AFFINE), cohort / "images" / f"c{n}_0000.nii.gz")
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE, images=cohort / "images")
    from PIL import Image

    with Image.open(cohort / "out" / "pictures" / "0001.png") as with_image:
        wide = with_image.width
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "bare", HERE)
    with Image.open(cohort / "bare" / "pictures" / "0001.png") as without:
        assert wide > 1.3 * without.width


def test_the_summary_holds_audit_and_comparison_as_strict_json(cohort):
    evaluate_folders(cohort / "good", cohort / "ref", cohort / "out", HERE, compare=cohort / "bad")
    document = json.loads((cohort / "out" / "summary.json").read_text(), parse_constant=pytest.fail)
    assert document["audit"]["grids"]["spacing"] == {"2 x 2 x 3 mm": 6}
    assert document["audit"]["labels"][1] == {"id": 2, "name": "2", "cases_label": 6, "cases_mask": 5}
    assert document["comparison"][0]["kind"] == "all"


def test_real_patients_with_hand_drawn_organs(data, tmp_path):
    source = data / "ct_more" / "openkbp"
    for case in ("pt_2", "pt_17"):
        shutil.copytree(source / case / "segmentations", tmp_path / "pred" / case)
    evaluation, failed = evaluate_folders(
        tmp_path / "pred", source, tmp_path / "out", ScoreConfig(missing="ignore", workers=1), images=source
    )
    assert not failed
    assert {row["dice"] for row in evaluation.rows} == {1.0}
    assert ("pt_2", "larynx") not in {(row["case"], row["name"]) for row in [*evaluation.rows, *evaluation.absent]}
    assert evaluation.audit["grids"]["orientation"] == {"PLI": 2}
