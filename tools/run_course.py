"""Run every notebook of the course, end with one table, and make the site from what came out.

Executed notebooks go to ``build/course``, the site to ``build/site``; ``CROPKIT_FAST``, ``CROPKIT_DATA``
and ``CROPKIT_ARCH`` hold here as in the notebooks. Exit code: 0; 1 if a
notebook failed; 2 if the data or the model cannot serve.
"""

import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from datetime import date
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from cropkit import course
from cropkit.course import records
from cropkit.data.files import replace_text
from cropkit.models.surgery import create_model

COURSE = course.FOLDER / "build" / "course"
SITE = course.FOLDER / "build" / "site"


def run_notebook(path: Path, label: str) -> str:
    """Execute one notebook into `COURSE`; returns "" or one line on what failed."""
    notebook = nbformat.read(path, as_version=4)
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    started = time.perf_counter()
    done = 0

    def show(ending: str) -> None:
        print(f"\r{label} {done:2d}/{cells} cells {time.perf_counter() - started:4.0f} s", end=ending, flush=True)

    def on_cell(cell: NotebookNode, cell_index: int) -> None:
        nonlocal done
        done += cell.cell_type == "code"
        if sys.stdout.isatty():
            show("")

    client = NotebookClient(
        notebook,
        timeout=3600,
        kernel_name="python3",
        store_widget_state=False,  # pages would fetch a script for it from another host
        coalesce_streams=True,  # a progress bar leaves its last state, not each of them
        extra_arguments=["--log-level=40"],  # errors only: a kernel warns that its local sockets are not encrypted
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_complete=on_cell,
    )
    failure = ""
    try:
        client.execute()
    except CellExecutionError as error:
        failure = f"{error.ename}: {error.evalue}".splitlines()[0]
    except (CellTimeoutError, DeadKernelError) as error:
        failure = str(error).splitlines()[0]
    show("  FAILED\n" if failure else "\n")
    nbformat.write(notebook, COURSE / path.name)
    return failure


def results() -> list[list[str]]:
    """The rows of the closing table, header first; a row that no notebook wrote in this run says so."""
    table = [["model", "method", "trainable parameters", "test accuracy", "seconds"]]
    for notebook, method in records.ROWS:
        file = records.row_file(notebook, method)
        if file.exists():
            row = json.loads(file.read_text(encoding="utf-8"))
            accuracy, seconds = f"{row['test_accuracy']:.1%}", f"{row['seconds']:.0f}"
            table.append([row["model"], method, f"{row['trainable']:,}", accuracy, seconds])
        else:
            table.append([course.ARCH, method, "missing", "missing", "missing"])
    return table


def as_text(table: list[list[str]]) -> str:
    widths = [max(len(row[k]) for row in table) for k in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def site() -> str:
    """Build the site, where Sphinx is installed; a line on where to read the course."""
    if importlib.util.find_spec("sphinx") is None:
        return f"Open {COURSE}. For pages to read: pip install sphinx and the rest of the extra `site`, then make site."
    import build_site

    build_site.build(COURSE, SITE)
    return f"Open {SITE / 'en' / 'index.html'} or {SITE / 'zh_TW' / 'index.html'}"


def main() -> int:
    started = time.perf_counter()
    try:  # what would fail in every notebook is said once, before the first
        catalog = course.load_catalog()
        create_model(course.ARCH, num_classes=2)  # also finds a head that cannot be replaced
    except (OSError, ValueError) as error:
        print(f"The course cannot run: {error}", file=sys.stderr)
        return 2
    shutil.rmtree(COURSE, ignore_errors=True)
    COURSE.mkdir(parents=True)
    for file in records.OUT.glob("*.*"):  # what is shown at the end was made in this run; experiments stay
        file.unlink()
    print(f"{len(catalog)} photos of {catalog['label'].nunique()} classes in {catalog['root'].iloc[0]}; {course.ARCH}")
    paths = sorted((course.FOLDER / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    width = max(len(path.stem) for path in paths)
    failures, seconds = {}, {}
    for number, path in enumerate(paths, start=1):
        begun = time.perf_counter()
        failures[path.stem] = run_notebook(path, f"[{number}/{len(paths)}] {path.stem:{width}s}")
        seconds[path.stem] = time.perf_counter() - begun
    table = results()
    pieces = {path.stem: path.read_text(encoding="utf-8") for path in sorted(records.OUT.glob("*.html"))}
    machine = f"{date.today()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    run = {"machine": machine, "fast": course.FAST, "seconds": seconds, "failures": failures}
    replace_text(COURSE / "run.json", json.dumps({**run, "table": table, "pieces": pieces}))
    print(f"\n{as_text(table)}\n")
    for name, failure in failures.items():
        if failure:
            print(f"FAILED {name}: {failure}")
    if course.FAST:
        print("Fast mode: few photos and one epoch, so the accuracies mean nothing.")
    print(f"{time.perf_counter() - started:.0f} s")
    print(site())
    return int(any(failures.values()))


if __name__ == "__main__":
    sys.exit(main())
