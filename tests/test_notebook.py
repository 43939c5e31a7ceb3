"""The notebook runs from the first to the last cell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "use-your-model.ipynb"
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
print("\\n".join(output.text for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output))
"""


def test_the_notebook_runs(tmp_path):
    """In a process of its own: the kernel and its client keep threads and event loops."""
    pytest.importorskip("nbclient")
    root = str(NOTEBOOK.parent.parent)
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", EXECUTE, str(NOTEBOOK)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "is the nearest of 100 for" in result.stdout
    difference = float(result.stdout.partition("largest difference: ")[2].split()[0])
    assert difference < 1e-4
    assert "prediction" in result.stdout
