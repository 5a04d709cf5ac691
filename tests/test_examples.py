"""Both notebooks run from top to bottom, with fewer scans and epochs, and none is committed with outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICKER = {"num_cases=8": "num_cases=4", "epochs=6": "epochs=1", "widths=(8, 16, 32, 64)": "widths=(4, 8)"}


def read(name):
    return nbformat.read(EXAMPLES / name, as_version=4)


def run(name, folder):
    notebook = read(name)
    for cell in notebook.cells:
        for slow, quick in QUICKER.items():
            cell.source = cell.source.replace(slow, quick)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


@pytest.mark.slow
def test_the_notebooks_run_one_after_the_other(tmp_path):
    trained = run("train.ipynb", tmp_path)
    analysed = run("analyse.ipynb", tmp_path)
    kinds = {
        key for cell in trained.cells + analysed.cells for out in cell.get("outputs", []) for key in out.get("data", {})
    }
    assert "image/png" in kinds  # curves and overlays are shown
    assert (tmp_path / "notebook" / "evaluation" / "report.html").is_file()


@pytest.mark.parametrize("name", ["train.ipynb", "analyse.ipynb"])
def test_no_outputs_are_committed(name):
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
