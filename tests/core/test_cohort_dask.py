"""The same work on a Dask cluster, by its address."""

import numpy as np
import pytest
from typer.testing import CliRunner

from medseg_core.cli import app
from medseg_core.io import write_volume
from medseg_core.volume import Volume

distributed = pytest.importorskip("distributed")


def test_a_cluster_gives_the_same_tables(tmp_path):
    label = np.pad(np.ones((4, 5, 6), np.uint8), 2)
    for n in range(3):
        for folder, off in (("pred", n), ("ref", 0)):
            write_volume(Volume(np.roll(label, off, 0), np.eye(4)), tmp_path / folder / f"c{n}.nii.gz")
    words = ["evaluate", str(tmp_path / "pred"), str(tmp_path / "ref"), "--out"]
    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        there = CliRunner().invoke(app, [*words, str(tmp_path / "there"), "--dask", cluster.scheduler_address])
    here = CliRunner().invoke(app, [*words, str(tmp_path / "here"), "--workers", "1"])
    assert (here.exit_code, there.exit_code) == (0, 0), there.output
    assert (tmp_path / "here" / "cases.csv").read_bytes() == (tmp_path / "there" / "cases.csv").read_bytes()


def test_a_cluster_that_does_not_answer_is_one_line_and_exit_code_2(tmp_path):
    for folder in ("pred", "ref"):
        write_volume(Volume(np.ones((2, 2, 2), np.uint8), np.eye(4)), tmp_path / folder / "c.nii.gz")
    words = ["evaluate", str(tmp_path / "pred"), str(tmp_path / "ref"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*words, "--dask", "tcp://127.0.0.1:9"])
    assert result.exit_code == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in result.stderr
    assert not (tmp_path / "out").exists()
