"""Draw docs/two_runs.png, docs/review.png and docs/panel.png: the way from the matrix to the next run, in JupyterLab.

    python tools/loop_pictures.py

On the drawn sample, with wrong labels corrected by its answer key. Needs an installed Chromium.
"""

import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pandas as pd
from playwright.sync_api import sync_playwright

from cropkit import Config, course, explore, run_experiment
from cropkit.course.sample import KEY
from cropkit.data import add_correction

DOCS = course.FOLDER / "docs"
CONFIG = Config(method="feature_extraction")
REVIEW = """
from cropkit import course, find_label_errors, nearest_photos, review
catalog = course.load_catalog()
suspects = find_label_errors(catalog, cache=course.CACHE).head(20)
review(suspects, {file!r}, nearest=nearest_photos(catalog, suspects["path"], cache=course.CACHE))
"""
PANEL = """
from cropkit import Config, course, panel
panel(course.load_catalog(), {out!r}, base=Config(method="feature_extraction"))
"""


def two_runs(out: Path, file: Path) -> str:
    """The page of the matrix before and after the wrong labels were corrected."""
    catalog = course.load_catalog()
    key = pd.read_csv(course.data_folder() / KEY, dtype=str)
    rows = catalog.set_index("path", drop=False)
    for one in key[(key["defect"] == "wrong label") & key["path"].isin(rows.index)].itertuples():
        add_correction(file, rows.loc[one.path], one.detail)
    runs = [run_experiment(Config(**(vars(CONFIG) | {"corrections": given})), catalog, out) for given in (None, file)]
    return explore(*(run.predictions[run.predictions["split"] == "test"] for run in runs)).html


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    out, file = folder / "runs", folder / "corrections.csv"
    page = two_runs(out, file)
    for name, source in (
        ("review", REVIEW.format(file=str(folder / "judged.csv"))),
        ("panel", PANEL.format(out=str(out))),
    ):
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip())])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, folder / f"{name}.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, address = secrets.token_hex(8), f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}",
               f"--ServerApp.port={port}", f"--IdentityProvider.token={token}", "--log-level=40"]  # fmt: skip
    with subprocess.Popen(command) as server, sync_playwright() as playwright:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1000, "height": 1000})
        tab.set_content(f'<body style="font-family: sans-serif">{page}</body>')
        tab.locator("summary[title*='came']").last.click()
        tab.screenshot(path=DOCS / "two_runs.png")
        for name in ("review", "panel"):
            tab = browser.new_page(viewport={"width": 1100, "height": 1300})
            tab.goto(f"{address}/lab/tree/{name}.ipynb?token={token}&reset")
            tab.locator(".jp-NotebookPanel-toolbar").get_by_text("Python 3").first.wait_for(timeout=120_000)
            shown = tab.locator(".jp-OutputArea .widget-vbox").first
            for _ in range(100):  # a click that comes before the kernel is connected is lost
                tab.get_by_role("menuitem", name="Run", exact=True).click()
                tab.get_by_role("menuitem", name="Run All Cells", exact=True).click()
                tab.wait_for_timeout(5000)
                if shown.is_visible() or "*" in tab.locator(".jp-InputArea-prompt").first.inner_text():
                    break
            shown.wait_for(timeout=600_000)
            tab.wait_for_timeout(3000)
            shown.screenshot(path=DOCS / f"{name}.png")
        browser.close()
        server.terminate()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
