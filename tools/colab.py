"""Copies of the notebooks for Google Colab, in both languages: each begins with a cell that installs cropkit.

python tools/colab.py <owner/repository[@commit]> <folder>
"""

import sys
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def main(repository: str, folder: str) -> None:
    for path in sorted(NOTEBOOKS.rglob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        install = f'%pip install --quiet "cropkit[course] @ git+https://github.com/{repository}"'
        notebook.cells.insert(0, nbformat.v4.new_code_cell(install, id="install"))
        copy = Path(folder) / path.relative_to(NOTEBOOKS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, copy)


if __name__ == "__main__":
    main(*sys.argv[1:])
