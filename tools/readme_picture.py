"""Draw the README's pictures: docs/sample.png, as notebook 01 shows it, and docs/explorer.png, as notebook 07 does.

The second needs an installed Chromium.
"""

import shutil

import matplotlib.pyplot as plt
import pandas as pd
from playwright.sync_api import sync_playwright

from cropkit import Config, course, explore, most_confused, run_experiment
from cropkit.evaluation import plots


def draw_sample(catalog: pd.DataFrame) -> None:
    one_each = catalog.groupby("label").head(1)
    plots.contact_sheet(catalog["root"].iloc[0], list(one_each["path"]), list(one_each["label"]), columns=11)
    plt.savefig(course.FOLDER / "docs" / "sample.png", dpi=80)


def draw_explorer(catalog: pd.DataFrame) -> None:
    """What a head on a frozen backbone says of the test photos, with the cell of the most frequent confusion open."""
    run = run_experiment(Config(method="feature_extraction", recipe="logistic"), catalog, course.OUT / "readme")
    test = run.predictions[run.predictions["split"] == "test"]
    true, predicted, _ = most_confused(test).loc[0]
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 940, "height": 1000})
        tab.set_content(f'<body style="font-family: sans-serif">{explore(test).html}</body>')
        tab.locator(f"summary[title*='{true} predicted as {predicted}']").click()
        tab.screenshot(path=course.FOLDER / "docs" / "explorer.png", clip={"x": 0, "y": 0, "width": 870, "height": 940})
        browser.close()


if __name__ == "__main__":
    photos = course.load_catalog()
    draw_sample(photos)
    draw_explorer(photos)
