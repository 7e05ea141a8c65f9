"""Run every notebook of the course, write what came out to build/course, and end with one table.

Executed notebooks and their HTML pages go to ``build/course``, with an index page; ``CROPKIT_FAST``, ``CROPKIT_DATA``
and ``CROPKIT_ARCH`` hold here as in the notebooks. Exit code: 0; 1 if a
notebook failed; 2 if the data or the model cannot serve.
"""

import html
import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from cropkit import course
from cropkit.course import records
from cropkit.models.surgery import create_model

COURSE = course.FOLDER / "build" / "course"
TEMPLATE = """{%- extends 'lab/index.html.j2' -%}
{%- block html_head_css -%}{{ super() }}
<style>.jp-OutputArea-output pre, .jp-OutputArea-output pre span { font-family: monospace; }</style>
{%- endblock html_head_css -%}
{%- block codecell -%}
{%- if 'solution' in cell.metadata.get('tags', []) -%}
<details style="margin: 0 0 1em 5em"><summary>Solution(解答)</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock codecell -%}
{%- block markdowncell scoped -%}
{%- if 'answer' in cell.metadata.get('tags', []) -%}
<details style="margin: 0 0 1em 5em"><summary>Answer(答案)</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{%- endblock markdowncell -%}"""
INTRODUCTION = """<p>A course in transfer learning on crop photos: from the first look at a folder, through a bug that
raises no error, to two cures, the confusion matrix, and a rerun that shows whether a correction helped. You need
Python 3.10 or newer and a laptop, no GPU and no network. These pages show a run of {minutes:.0f} minutes on {cores}
cores. The photos of the course are <b>drawn by a program</b>, so that everybody has them and every defect is known; the
lessons run on your own photos too.</p>
<p lang="zh-Hant">這門課以作物照片為例，帶你認識遷移式學習（transfer learning）：
從檢視資料夾裡的照片開始，遇到一個不會出現錯誤訊息的 bug，學會兩種解法，
接著閱讀混淆矩陣、找出原因，最後修正並重新訓練，確認修正是否有效。
需要 Python 3.10 以上與一台筆電，不需要 GPU，也不需要網路。
以下頁面是在 {cores} 核心的電腦上執行 {minutes:.0f} 分鐘的結果。課程中的照片是<b>由程式畫出來的</b>，
因此人人都能取得，其中的每個缺陷也都是已知的；你也可以換成自己的照片來練習。</p>"""


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
    page, _ = html_exporter().from_notebook_node(notebook, resources={"metadata": {"name": path.stem}})
    (COURSE / f"{path.stem}.html").write_text(page, encoding="utf-8")
    return failure


def html_exporter() -> HTMLExporter:
    """An exporter whose pages ask nothing of another host."""
    exporter = HTMLExporter(raw_template=TEMPLATE, mathjax_url="", require_js_url="", jquery_url="", mermaid_js_url="")
    exporter.embed_images = True
    return exporter


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


def index_page(failures: dict[str, str], seconds: dict[str, float], table: list[list[str]]) -> str:
    """The page that says what the course is, links the notebooks and shows the closing table."""
    items = []
    for name, failure in failures.items():
        cells = nbformat.read(COURSE / f"{name}.ipynb", as_version=4).cells
        title = cells[0].source.splitlines()[0].lstrip("# ")
        aim = html.escape(re.sub("[*`]", "", cells[0].source.split("\n\n")[1]))
        state = f"<p class=failed>Failed: {html.escape(failure)}</p>" if failure else ""
        ran = f"<small>ran in {seconds[name]:.0f} s</small>"
        items.append(f'<li><a href="{name}.html">{html.escape(title)}</a> {ran}<p>{aim}</p>{state}</li>')
    rows = ["".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for row, tag in
            zip(table, ["th"] + ["td"] * len(table), strict=False)]  # fmt: skip
    introduction = INTRODUCTION.format(cores=os.cpu_count(), minutes=sum(seconds.values()) / 60)
    kind = " (fast mode: few photos, one epoch; the accuracies mean nothing)" if course.FAST else ""
    pieces = "".join(f"<h2>{title}</h2><div class=wide>{piece(name)}</div>" for name, title in records.PAGES.items())
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>cropkit: the course</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 48rem; margin: 2rem auto; padding: 0 1rem; }}
ul {{ padding: 0; }} li {{ margin: .8rem 0; list-style: none; }} li a {{ font-weight: 600; }} li p {{ margin: 0; }}
table {{ border-collapse: collapse; }} th, td {{ padding: .3rem .8rem; text-align: left; }}
.failed {{ color: #b00020; }} .wide {{ overflow-x: auto; width: min(64rem, 94vw); }} .wide table {{ font-size: .8rem; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #181818; color: #ddd; }}
a {{ color: #8ab4f8; }} .failed {{ color: #ff8a80; }} }}</style>
<h1>cropkit: the course</h1>{introduction}<ul>{"".join(items)}</ul>
<h2>What was trained{kind}</h2><div class=wide><table>{"".join(f"<tr>{row}</tr>" for row in rows)}</table></div>
{pieces}</html>
"""


def piece(name: str) -> str:
    """A piece of HTML that a notebook left in this run."""
    file = records.OUT / f"{name}.html"
    return file.read_text(encoding="utf-8") if file.exists() else "<p class=failed>missing</p>"


def main() -> int:
    started = time.perf_counter()
    shutil.rmtree(COURSE, ignore_errors=True)
    COURSE.mkdir(parents=True)
    for file in records.OUT.glob("*.*"):  # what is shown at the end was made in this run; experiments stay
        file.unlink()
    try:  # what would fail in every notebook is said once, before the first
        catalog = course.load_catalog()
        create_model(course.ARCH, num_classes=2)  # also finds a head that cannot be replaced
    except (OSError, ValueError) as error:
        print(f"The course cannot run: {error}", file=sys.stderr)
        return 2
    print(f"{len(catalog)} photos of {catalog['label'].nunique()} classes in {catalog['root'].iloc[0]}; {course.ARCH}")
    paths = sorted((course.FOLDER / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    width = max(len(path.stem) for path in paths)
    failures, seconds = {}, {}
    for number, path in enumerate(paths, start=1):
        begun = time.perf_counter()
        failures[path.stem] = run_notebook(path, f"[{number}/{len(paths)}] {path.stem:{width}s}")
        seconds[path.stem] = time.perf_counter() - begun
    table = results()
    (COURSE / "index.html").write_text(index_page(failures, seconds, table), encoding="utf-8")
    print(f"\n{as_text(table)}\n")
    for name, failure in failures.items():
        if failure:
            print(f"FAILED {name}: {failure}")
    if course.FAST:
        print("Fast mode: few photos and one epoch, so the accuracies mean nothing.")
    print(f"{time.perf_counter() - started:.0f} s. Open {COURSE / 'index.html'}")
    return int(any(failures.values()))


if __name__ == "__main__":
    sys.exit(main())
