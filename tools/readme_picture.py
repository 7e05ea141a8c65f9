"""Draw docs/sample.png, the picture of the README: one photo of each class of the sample, as notebook 01 shows them."""

import matplotlib.pyplot as plt

from cropkit import course, plots

if __name__ == "__main__":
    catalog = course.load_catalog()
    one_each = catalog.groupby("label").head(1)
    plots.contact_sheet(catalog.attrs["root"], list(one_each["path"]), list(one_each["label"]), columns=11)
    (course.FOLDER / "docs").mkdir(exist_ok=True)
    plt.savefig(course.FOLDER / "docs" / "sample.png", dpi=80)
