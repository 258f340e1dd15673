"""examples/quickstart.ipynb runs from top to bottom in any folder; the committed one is small."""

from pathlib import Path

import pytest

from tests import commands

NOTEBOOK = Path(__file__).parents[1] / "examples" / "quickstart.ipynb"
FEW = 200_000  # bytes


def test_committed_notebook_is_small_and_shows_its_results():
    nbformat = pytest.importorskip("nbformat")
    assert NOTEBOOK.stat().st_size < FEW
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)  # the curve
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    parameters = [cell for cell in cells if "parameters" in cell.metadata.get("tags", ())]
    assert len(parameters) == 1


@pytest.mark.slow
def test_notebook_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient").NotebookClient
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("XLA_FLAGS", commands.VARIABLES["XLA_FLAGS"])  # one device
    monkeypatch.setenv("HOME", str(tmp_path))  # nothing is left in ~/.cache/ddm_jax
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source = "workdir, steps = 'run', 2"
    client(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
    assert "bits per byte" in notebook.cells[-2].outputs[0].text
