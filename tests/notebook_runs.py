"""Run a notebook in fast mode, as it is or with one thing changed, for the tests that take many minutes."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from cropkit import course

FOLDER = course.FOLDER / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def run(
    path: Path, folder: Path, startup: str = "", replace: tuple[str, str] | None = None, **environment: str
) -> tuple[str, str] | None:
    """Execute a notebook; returns the id of the cell that failed and its error, or None.

    Args:
        path: the notebook; the file stays as it is.
        folder: where the startup code is put.
        startup: code that runs first, in the kernel and in every Python that the notebook starts.
        replace: a text of a code cell, and what stands there instead.
        environment: more variables.
    """
    (folder / "sitecustomize.py").write_text(startup)  # Python imports it by itself when it starts
    notebook = nbformat.read(path, as_version=4)
    cells = code_cells(notebook)
    if replace is not None:
        changed = next(cell for cell in cells if replace[0] in cell.source)
        changed.source = changed.source.replace(*replace)
    client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(path.parent)}})
    own = {"CROPKIT_FAST": "1", "IPYTHONDIR": str(folder), "PYTHONPATH": str(folder)}
    try:
        client.execute(env={**os.environ, **own, **environment})
    except CellExecutionError as error:
        failed = next(cell.id for cell in cells if any(output.output_type == "error" for output in cell.outputs))
        return failed, f"{error.ename}: {error.evalue}"
    return None
