"""Notebooks in a real JupyterLab and a real browser: what a learner clicks is what a learner sees, and what is kept."""

import base64
import importlib.util
import io
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import numpy as np
import pytest
from PIL import Image

from cropkit import course, open_photo, scan
from cropkit.data import good_photos
from cropkit.data.photos import contain
from cropkit.evaluation.explorer import THUMBNAIL

NOTEBOOK = course.FOLDER / "notebooks" / "08_read_the_confusion_matrix.ipynb"
WAIT = 120_000  # ms; what is waited for comes long before, but on a loaded machine


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed (pip install playwright)")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the notebook, and beside it some crops of its own, so that no other test trains in its place."""
    from cropkit.course.fetch import data_home
    from cropkit.course.sample import make_sample

    folder = tmp_path_factory.mktemp("lab")
    sample = make_sample(data_home() / "sample-fast", photos_per_class=5)
    for crop in ("broccoli", "kale", "litchi", "longan", "mango", "pear"):
        for part in ("train", "val", "test"):
            shutil.copytree(sample / part / crop, folder / "photos" / part / crop)
    shutil.copy(NOTEBOOK, folder / "08.ipynb")
    return folder


@pytest.fixture(scope="module")
def lab(folder):
    """The address of a JupyterLab whose root is that folder, with its token."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    environment = os.environ | {"CROPKIT_FAST": "1", "CROPKIT_DATA": str(folder / "photos"), "CROPKIT_ARCH": ""}
    with open(folder / "lab.log", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, (folder / "lab.log").read_text()
                time.sleep(0.1)
        # a workspace for each notebook: else a page that is loaded again also shows what other pages had open
        yield lambda path: f"{address}/lab/workspaces/{Path(path).stem}/tree/{path}?token={token}&reset"
    finally:
        server.terminate()
        server.wait(30)


def open_page(browser, address):
    """A page, and the list of other hosts that it asks for anything."""
    page, strangers = browser.new_page(viewport={"width": 1366, "height": 768}), []

    def look(request):
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob", "file") and parts.hostname != "127.0.0.1":
            strangers.append(request.url)

    page.on("request", look)
    page.goto(address)
    return page, strangers


def check_some_cells(page, folder):
    """Open the first and the last cell of the matrix; by their pixels their photos are of the class that it says."""
    photos = {
        f"{row.label}/{Path(row.path).name}": contain(open_photo(folder / "photos" / row.path), THUMBNAIL)
        for row in good_photos(scan(folder / "photos")).itertuples()
    }
    cells = page.locator("table:has(details)").first.locator("td > details")
    cells.first.wait_for(state="attached", timeout=WAIT)
    for cell in (cells.first, cells.last):
        summary = cell.locator("> summary")
        count, true = re.match(r"(\d+) photos? of (.*) predicted as", summary.get_attribute("title")).groups()
        images = cell.locator('img[alt*="predicted as"]:not([alt$="larger"])')
        assert not images.first.is_visible()
        summary.focus()
        summary.press("Enter")  # a keyboard is enough
        images.first.wait_for(state="visible", timeout=WAIT)
        box = images.first.bounding_box()
        assert box["width"] > 40 and box["height"] > 40 and 0 <= box["x"] < 1366 - box["width"]
        assert images.count() == min(int(count), 12)
        for image in images.all():
            data = image.get_attribute("src").split("base64,")[1]
            seen = Image.open(io.BytesIO(base64.b64decode(data)))
            assert image.evaluate("image => image.complete && image.naturalWidth") == seen.width
            apart = {
                name: np.abs(np.asarray(photo, float) - np.asarray(seen, float)).mean()
                for name, photo in photos.items()
                if photo.size == seen.size
            }
            assert min(apart, key=apart.__getitem__).split("/")[0] == true
            claimed = image.locator("xpath=ancestor::div[1]/following-sibling::div[@title]").get_attribute("title")
            claimed = Path(claimed).name
            assert apart[f"{true}/{claimed}"] < min(apart.values()) + 1  # a twin in another part may be as near
        summary.press("Enter")
        images.first.wait_for(state="hidden", timeout=WAIT)


@pytest.fixture(scope="module")
def executed(browser, lab, folder):
    """The notebook, run and saved by its menus; its page, its code cells and the other hosts that were asked."""
    page, strangers = open_page(browser, lab("08.ipynb"))
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=WAIT)
    page.locator(".jp-NotebookPanel-toolbar").get_by_text("Python 3").first.wait_for(timeout=WAIT)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    for _ in range(WAIT // 1000):
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1000)
        cells = nbformat.read(folder / "08.ipynb", as_version=4).cells
        code = [cell for cell in cells if cell.cell_type == "code"]
        if all(cell.execution_count for cell in code):
            break
    yield page, code, strangers
    page.close()


def test_a_learner_runs_notebook_08_and_opens_cells_of_the_matrix(executed, folder):
    page, code, strangers = executed
    assert all(cell.execution_count for cell in code)
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    page.locator(".jp-RenderedHTMLCommon details").first.scroll_into_view_if_needed()
    check_some_cells(page, folder)
    assert strangers == []


def test_the_matrix_works_in_a_notebook_that_is_not_trusted(executed, browser, lab, folder):
    notebook = json.loads((folder / "08.ipynb").read_text(encoding="utf-8"))
    notebook["cells"][0]["source"] = "another hand was here"  # so that the signature does not fit
    (folder / "untrusted.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    page, strangers = open_page(browser, lab("untrusted.ipynb"))
    page.locator(".jp-RenderedHTMLCommon details").first.wait_for(state="attached", timeout=WAIT)
    assert page.locator("summary[aria-label]").count() == 0  # JupyterLab took away what it does not know
    page.locator(".jp-RenderedHTMLCommon details").first.scroll_into_view_if_needed()
    check_some_cells(page, folder)
    assert strangers == []
    page.close()


@pytest.fixture(scope="module")
def site(executed, folder, tmp_path_factory):
    """The course's site in both languages: 08 as it was executed here, the other lessons without results."""
    pytest.importorskip("sphinx", reason="Sphinx is not installed (pip install 'cropkit[site]')")
    spec = importlib.util.spec_from_file_location("build_site", course.FOLDER / "tools" / "build_site.py")
    build_site = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build_site)
    ran, site = tmp_path_factory.mktemp("ran"), tmp_path_factory.mktemp("pages") / "site"
    for path in NOTEBOOK.parent.glob("[0-9]*.ipynb"):
        shutil.copy(path, ran)
    shutil.copy(folder / "08.ipynb", ran / NOTEBOOK.name)
    run = {"machine": "a test", "fast": True, "seconds": {NOTEBOOK.stem: 20}, "failures": {}, "pieces": {}}
    (ran / "run.json").write_text(json.dumps({**run, "table": [["model"], ["lite"]]}), encoding="utf-8")
    build_site.build(ran, site, strict=True)
    return site


def test_the_sites_matrix_works_without_jupyter(site, browser, folder):
    page, strangers = open_page(browser, (site / "en" / f"{NOTEBOOK.stem}.html").as_uri())
    check_some_cells(page, folder)
    assert strangers == []
    page.close()


@pytest.mark.parametrize("width", [1366, 390])
@pytest.mark.parametrize(
    ("language", "other", "solution", "word", "found"),
    [
        ("en", "zh_TW", "Solution", "softmax", "02"),
        ("zh_TW", "en", "解答", "混淆矩陣", "08"),
    ],
)
def test_a_reader_finds_a_word_opens_a_solution_and_changes_the_language(
    site, browser, width, language, other, solution, word, found
):
    page, strangers = open_page(browser, (site / language / "index.html").as_uri())
    page.set_viewport_size({"width": width, "height": 800})
    page.context.set_offline(True)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # nothing sticks out
    page.keyboard.press("Control+k")
    page.locator("dialog input[type=search]").fill(word)
    page.keyboard.press("Enter")
    page.locator(f"#search-results a[href*='/{found}_'], #search-results a[href^='{found}_']").first.click(timeout=WAIT)
    page.locator("details > summary", has_text=solution).first.click()
    cell = page.locator("details", has=page.locator(f"summary:has-text('{solution}')")).first
    cell.locator("pre").first.wait_for(timeout=WAIT)
    name = Path(urlsplit(page.url).path).name
    page.locator("a.language").click()
    page.wait_for_url(f"**/{other}/{name}*")
    assert page.locator("html").get_attribute("lang").startswith(other[:2]) and page.locator("a.language").is_visible()
    assert strangers == []
    page.close()


def test_no_page_of_the_site_names_a_script_or_a_picture_of_another_host(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 50
    for path in pages:
        text = path.read_text(encoding="utf-8")
        elsewhere = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=.https?:[^>]*", text)
        assert elsewhere == [], path
    english, chinese = ({path.name for path in (site / language).glob("*.html")} for language in ("en", "zh_TW"))
    assert english == chinese


def cells_notebook(folder, name, *sources):
    """A notebook of these code cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / name)


def run_all(page):
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=WAIT)
    page.locator(".jp-NotebookPanel-toolbar").get_by_text("Python 3").first.wait_for(timeout=WAIT)
    prompt = page.locator(".jp-InputArea-prompt").first
    before = prompt.inner_text()
    for _ in range(6):  # a click that comes before the kernel is connected is lost
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        for _ in range(25):
            page.wait_for_timeout(200)
            if prompt.inner_text() != before:
                return
    raise AssertionError("the notebook does not run")


def restart_kernel(address, notebook):
    """What the button does, by the server's own interface."""
    parts = urlsplit(address)
    headers = {"Authorization": f"token {parts.query.split('&')[0].removeprefix('token=')}"}
    base = f"{parts.scheme}://{parts.netloc}/api"

    def ask(path, method="GET"):
        request = urllib.request.Request(f"{base}/{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    (session,) = (one for one in ask("sessions") if one["path"] == notebook)
    ask(f"kernels/{session['kernel']['id']}/restart", "POST")


def wait_until(page, condition):
    for _ in range(WAIT // 200):
        if condition():
            return
        page.wait_for_timeout(200)
    raise AssertionError("it did not happen in time")


PANEL = """
from cropkit import Config, panel, prepare
catalog, _ = prepare("photos")
panel(catalog, "runs", base=Config("mobilenet_v3_small", None, "from_scratch", epochs=15, resolution=64))
"""


def test_a_run_outlives_the_page_and_the_kernel_and_ends_as_if_nobody_had_disturbed_it(browser, lab, folder, tmp_path):
    from cropkit import Config, prepare, run_experiment
    from cropkit.experiments import read_runs

    config = Config("mobilenet_v3_small", None, "from_scratch", epochs=15, resolution=64)
    lines = folder / "runs" / config.name / "metrics.jsonl"

    def epochs():
        return len(lines.read_text().splitlines()) if lines.exists() else 0

    cells_notebook(folder, "panel.ipynb", PANEL)
    page, strangers = open_page(browser, lab("panel.ipynb"))
    run_all(page)
    page.get_by_role("button", name="run", exact=True).click(timeout=WAIT)
    wait_until(page, lambda: epochs() >= 2)
    page.keyboard.press("Control+s")
    page.reload()
    done = epochs()
    page.get_by_role("button", name="stop", exact=True).wait_for(timeout=WAIT)  # the panel is there again
    wait_until(page, lambda: epochs() > done)
    restart_kernel(lab("panel.ipynb"), "panel.ipynb")
    done = epochs()
    page.wait_for_timeout(2000)
    run_all(page)
    wait_until(page, lambda: epochs() > done or epochs() == 16)
    listed = page.locator("option", has_text=re.compile(r"finished\s+from_scratch"))
    listed.first.wait_for(state="attached", timeout=WAIT)
    whole = run_experiment(config, prepare(folder / "photos")[0], tmp_path)
    (run,) = read_runs(folder / "runs")
    assert run.finished
    assert run.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    assert (run.folder / "best.safetensors").read_bytes() == (whole.folder / "best.safetensors").read_bytes()
    assert strangers == []
    page.close()


REVIEW = """
import os
from pathlib import Path
from cropkit import prepare, review
Path("kernel.pid").write_text(str(os.getpid()))
catalog, _ = prepare("photos")
review(catalog.head(5).assign(suggested="pear"), "corrections.csv")
"""


def test_what_was_judged_is_kept_when_the_kernel_is_killed(browser, lab, folder):
    from cropkit.data.corrections import decisions

    cells_notebook(folder, "review.ipynb", REVIEW)
    page, strangers = open_page(browser, lab("review.ipynb"))
    run_all(page)
    page.get_by_text("0 of 5 judged").wait_for(timeout=WAIT)
    for number, button in enumerate(("it is pear", "exclude", "right"), start=1):
        page.get_by_role("button", name=button, exact=True).click()
        page.get_by_text(f"{number} of 5 judged").wait_for(timeout=WAIT)
        assert len(decisions(folder / "corrections.csv")) == number
    os.kill(int((folder / "kernel.pid").read_text()), 9)
    catalog = prepare_quietly(folder / "photos")
    said = decisions(folder / "corrections.csv")
    assert said["path"].tolist() == catalog["path"].head(3).tolist()
    assert said["to"].tolist() == ["pear", "exclude", catalog["label"][2]]
    assert strangers == []
    page.close()


def prepare_quietly(root):
    from cropkit import prepare

    return prepare(root)[0]


def test_two_runs_are_compared_by_keyboard_on_a_page_without_jupyter(browser, folder, tmp_path):
    import pandas as pd

    from cropkit import explore

    catalog = prepare_quietly(folder / "photos")
    names = sorted(set(catalog["label"]))
    rng = np.random.default_rng(0)

    def answers():
        predicted = [label if rng.random() < 0.6 else str(rng.choice(names)) for label in catalog["label"]]
        table = pd.DataFrame({"root": catalog["root"], "path": catalog["path"], "target": catalog["label"]})
        table = table.assign(predicted=predicted, probability=0.5, loss=rng.random(len(catalog)))
        return table.assign(**{f"p_{name}": 1 / len(names) for name in names})

    before, after = answers(), answers()
    (tmp_path / "two.html").write_text(f"<meta charset=utf-8>{explore(before, after).html}", encoding="utf-8")
    page, strangers = open_page(browser, (tmp_path / "two.html").as_uri())
    cells = page.locator("td > details")
    assert cells.count() > 2
    for cell in (cells.first, cells.last):
        summary, photos = cell.locator("> summary"), cell.locator('img[alt*="predicted as"]')
        summary.focus()
        assert not photos.first.is_visible()
        page.keyboard.press("Enter")
        photos.first.wait_for(state="visible")
        row, panel = summary.bounding_box(), cell.locator("> div").bounding_box()
        assert panel["y"] >= row["y"] + row["height"] - 2 or panel["y"] + panel["height"] <= row["y"] + 2  # beside it
        page.keyboard.press("Enter")
    assert strangers == []
    page.close()
