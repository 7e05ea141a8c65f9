"""The package as somebody has it who installed the wheel: no checkout beside it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder that holds nothing but the installed wheel."""
    source, wheels, site = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(FOLDER / name, source)
    for name in ("cropkit", "notebooks"):
        shutil.copytree(FOLDER / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, source], check=True)
    (wheel,) = wheels.iterdir()
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    return site


def run(site, home, *command):
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "XDG_DATA_HOME": str(home)}
    environment |= {"XDG_CACHE_HOME": str(home / "cache"), "HOME": str(home)}
    done = subprocess.run([sys.executable, *command], cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


SEEN = """
import cropkit
from cropkit import course
from cropkit.course.fetch import SOURCES, checkout, data_home
print(cropkit.__file__)
print(SOURCES["grocery36"].manifest.stat().st_size > 100_000, checkout())
print(data_home(), course.OUT, sep="\\n")
"""


def test_data_belongs_to_the_users_folder_and_the_manifest_comes_along(site, tmp_path):
    file, manifest, data, out = run(site, tmp_path, "-c", SEEN).splitlines()
    assert file.startswith(str(site))
    assert manifest == "True None"
    assert Path(data).is_relative_to(tmp_path) and Path(out).is_relative_to(tmp_path)


def test_every_module_is_in_the_wheel(site):
    modules = {path.relative_to(FOLDER) for path in (FOLDER / "cropkit").rglob("*.py")}
    assert {path.relative_to(site) for path in (site / "cropkit").rglob("*.py")} == modules


def test_the_course_is_unpacked_from_it(site, tmp_path):
    said = run(site, tmp_path, "-m", "cropkit", "course", "my-course", "--lang", "zh_TW")
    assert "written: 12_beyond_one_machine.ipynb" in said.splitlines()
    chinese = (FOLDER / "notebooks" / "zh_TW" / "05_feature_extraction.ipynb").read_bytes()
    assert (tmp_path / "my-course" / "05_feature_extraction.ipynb").read_bytes() == chinese
    assert run(site, tmp_path, "-m", "cropkit", "course", "my-course", "--update") == "nothing is newer\n"


def test_the_sample_is_drawn_there_and_nothing_into_the_package(site, tmp_path):
    before = sorted(site.rglob("*"))
    folder = run(site, tmp_path, "-m", "cropkit", "sample", "--photos-per-class", "5").strip()
    assert Path(folder).is_relative_to(tmp_path) and len(list(Path(folder, "train").iterdir())) == 33
    assert sorted(site.rglob("*")) == before
