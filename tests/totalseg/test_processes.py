"""Two processes that torchrun starts: each case once, and the answers of one process."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from medseg_core.io import read_volume
from medseg_core.trainer import At
from medseg_totalseg.plan import complete, make_plan
from medseg_totalseg.predict import predict_files
from medseg_totalseg.prepare import read_cohort
from medseg_totalseg.settings import PredictConfig
from medseg_totalseg.validation import Validation

SCRIPT = """
import json, sys
from pathlib import Path
from medseg_core.config import resolve
from medseg_core.distributed import place
from medseg_core.trainer import At
from medseg_totalseg.plan import complete, make_plan
from medseg_totalseg.predict import predict_files
from medseg_totalseg.prepare import prepare, read_cohort
from medseg_totalseg.settings import PredictConfig, PrepareConfig, TotalsegConfig
from medseg_totalseg.validation import Validation

data, run = map(Path, sys.argv[1:])
prepare(data, Path("cache"), PrepareConfig(structures=("liver", "spleen", "bones")))
config = complete(resolve(TotalsegConfig, json.loads(Path("config.json").read_text())))
plan = make_plan(read_cohort(Path("cache")), config, None)
held_out = [*plan.arrays("train"), *plan.arrays("val")]
score = Validation(held_out, plan, Path("samples"))(plan.network().eval(), At(0, 0, 0.0, None, None))
Path(f"score-{place()[0]}.json").write_text(json.dumps([score.value, score.blank]))
outcome = predict_files(data, [run], Path("masks"), PredictConfig(device="cpu", precision="fp32"))
assert len(outcome.done) == 4 and not outcome.failed, outcome
"""


@pytest.mark.slow
def test_two_processes_prepare_validate_and_predict_as_one_does(run, cohort, quick, tmp_path):
    shutil.copy(run / "config.json", tmp_path)
    (tmp_path / "ranks.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "ranks.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, str(cohort), str(run)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

    journals = (tmp_path / "masks").glob("journal*.jsonl")
    lines = [json.loads(line) for journal in journals for line in journal.read_text().splitlines()]
    assert sorted(line["case"] for line in lines if "case" in line) == [f"s000{i}" for i in range(4)]
    predict_files(cohort, [run], tmp_path / "alone", PredictConfig(device="cpu", precision="fp32"))
    for case in ("s0000", "s0001", "s0002", "s0003"):
        one, two = (read_volume(tmp_path / name / f"{case}.nii.gz").voxels for name in ("alone", "masks"))
        np.testing.assert_array_equal(one, two)

    plan = make_plan(read_cohort(run / "cache"), complete(quick), None)
    assert (tmp_path / "cache" / "dataset.json").read_bytes() == (run / "cache" / "dataset.json").read_bytes()
    held_out = [*plan.arrays("train"), *plan.arrays("val")]
    alone = Validation(held_out, plan, tmp_path / "pictures")(plan.network().eval(), At(0, 0, 0.0, None, None))
    told = [json.loads((tmp_path / f"score-{rank}.json").read_text()) for rank in (0, 1)]
    assert told == [[pytest.approx(alone.value, abs=1e-6), alone.blank]] * 2
