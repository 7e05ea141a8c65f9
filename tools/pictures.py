"""Draw the pictures of docs/ from the drawn sample; they need an installed Chromium, and the last two JupyterLab.

    python tools/pictures.py [sample explorer two_runs review panel]

`sample` is as notebook 01 shows it, `explorer` as notebook 08 does. `two_runs` compares a head fitted to the labels as
filed with one fitted to labels of train and val corrected by the answer key. `review` and `panel` are what a JupyterLab
shows, the panel with a run that is half done.
"""

import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
from playwright.sync_api import Browser, Page, sync_playwright

import cropkit
from cropkit import Config, course
from cropkit.course.sample import correct_by_the_key, on_true_labels
from cropkit.evaluation import plots

DOCS = course.FOLDER / "docs"
OUT = course.OUT / "pictures"
FROZEN = Config(method="feature_extraction")
WAIT = 300_000  # ms

REVIEW = f"""
import cropkit
from cropkit import course
catalog, model = course.load_catalog(), cropkit.create_model("efficientnet_lite0")
suspects = cropkit.find_label_errors(catalog, model=model, cache={str(OUT / "cache")!r})
near = cropkit.evaluation.nearest_photos(catalog, suspects["path"].head(20), model=model, cache={str(OUT / "cache")!r})
cropkit.review(suspects.head(20), "corrections.csv", nearest=near)
"""
PANEL = """
from cropkit import Config, course, panel
panel(course.some_photos(course.load_catalog(), classes=6), "runs", base=Config(epochs=4, batch_size=16))
"""


def draw_sample(browser: Browser) -> None:
    catalog = course.load_catalog()
    one_each = catalog.groupby("label").head(1)
    plots.contact_sheet(catalog["root"].iloc[0], list(one_each["path"]), list(one_each["label"]), columns=11)
    plt.savefig(DOCS / "sample.png", dpi=80)


def open_cell(browser: Browser, html: str, title: str, picture: str) -> None:
    """A page of `explore`, with the cell open whose title ends so."""
    tab = browser.new_page(viewport={"width": 1000, "height": 1000})
    tab.set_content(f'<body style="font-family: sans-serif">{html}</body>')
    tab.locator(f'summary[title*=" of {title}"], summary[title^="{title}"]').first.click()
    tab.screenshot(path=DOCS / picture, clip={"x": 0, "y": 0, "width": 980, "height": 980})
    tab.close()


def draw_explorer(browser: Browser) -> None:
    """With the cell of the most frequent confusion open."""
    run = cropkit.run_experiment(FROZEN, course.load_catalog(), OUT)
    test = run.predictions[run.predictions["split"] == "test"]
    true, predicted, _ = cropkit.most_confused(test).loc[0]
    open_cell(browser, cropkit.explore(test).html, f"{true} predicted as {predicted}", "explorer.png")


def draw_two_runs(browser: Browser) -> None:
    """Both on the true labels of the test photos, with the cell open that has lost most."""
    catalog, file = course.load_catalog(), OUT / "by_the_key.csv"
    file.unlink(missing_ok=True)
    correct_by_the_key(catalog, file)
    tables = []
    for config in (FROZEN, replace(FROZEN, corrections=file)):
        predictions = cropkit.run_experiment(config, catalog, OUT).predictions
        tables.append(on_true_labels(predictions[predictions["split"] == "test"]))
    change = cropkit.confusion_matrix(tables[0]) - cropkit.confusion_matrix(tables[1])
    true, predicted = change.where(change.index.to_numpy()[:, None] != change.columns.to_numpy()).stack().idxmax()
    open_cell(browser, cropkit.explore(*tables).html, f"{true} predicted as {predicted}", "two_runs.png")


@contextmanager
def jupyterlab(**notebooks: str) -> Iterator[str]:
    """A JupyterLab in a folder of its own that holds notebooks of one cell; its address, to be filled in."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        for name, source in notebooks.items():
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip())])
            notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
            nbformat.write(notebook, Path(folder, f"{name}.ipynb"))
        free.bind(("127.0.0.1", 0))
        port, token = free.getsockname()[1], secrets.token_hex(8)
        free.close()
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}"]
        command += [f"--ServerApp.port={port}", f"--IdentityProvider.token={token}"]
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for _ in range(300):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/lab/workspaces/{{0}}/tree/{{0}}.ipynb?token={token}&reset"
        finally:
            server.terminate()
            server.wait(30)


def run_notebook(browser: Browser, address: str) -> Page:
    page = browser.new_page(viewport={"width": 1500, "height": 1250})
    page.goto(address)
    page.locator(".jp-NotebookPanel-toolbar").get_by_text("Python 3").first.wait_for(timeout=WAIT)
    page.wait_for_timeout(5000)  # until the kernel is connected
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    return page


def draw_review(browser: Browser) -> None:
    """After one photo was judged."""
    with jupyterlab(review=REVIEW) as address:
        page = run_notebook(browser, address.format("review"))
        page.get_by_text("0 of 20 judged").wait_for(timeout=WAIT)
        page.get_by_role("button", name=re.compile("it is ")).click()
        page.get_by_text("1 of 20 judged").wait_for(timeout=WAIT)
        page.wait_for_timeout(1000)
        page.locator(".jp-OutputArea-output .widget-vbox, .jp-OutputArea-output .jupyter-widgets").first.screenshot(
            path=DOCS / "review.png"
        )


def draw_panel(browser: Browser) -> None:
    """One run finished, another on its way."""
    with jupyterlab(panel=PANEL) as address:
        page = run_notebook(browser, address.format("panel"))
        run = page.get_by_role("button", name="run", exact=True)
        run.click(timeout=WAIT)
        page.locator("option", has_text=re.compile("^finished")).first.wait_for(state="attached", timeout=WAIT)
        page.get_by_label("seed").fill("1")
        page.get_by_label("seed").press("Enter")
        run.click()
        page.get_by_text(re.compile("[1-3] of 4 epochs")).wait_for(timeout=WAIT)
        page.locator(".jp-OutputArea-output .widget-vbox, .jp-OutputArea-output .jupyter-widgets").first.screenshot(
            path=DOCS / "panel.png"
        )
        page.get_by_role("button", name="stop", exact=True).click()
        page.locator("option", has_text=re.compile("^running")).first.wait_for(state="detached", timeout=WAIT)


DRAW = {"sample": draw_sample, "explorer": draw_explorer, "two_runs": draw_two_runs, "review": draw_review,
        "panel": draw_panel}  # fmt: skip


def main(*names: str) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for name in names or DRAW:
            DRAW[name](browser)
            print(DOCS / f"{name}.png", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
