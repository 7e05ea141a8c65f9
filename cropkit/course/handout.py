"""The lessons as files of one's own: unpacked, brought up to date without a loss, bundled for a USB stick."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from cropkit.course.fetch import checkout
from cropkit.data.files import replace_file, replace_text

Language = Literal["en", "zh_TW"]
RECORD = ".cropkit.json"  # which edition was unpacked, and what its files held
ENVIRONMENT = """name: cropkit
dependencies:
  - python>=3.10
  - pip
  - pip:
      - cropkit[course]=={version}
"""
STICK = """# The course on a stick 隨身碟上的課程

For {system}, Python {python}. No network is needed 不需要網路. In a folder of your own, not on the stick
(在你自己的資料夾裡，不要在隨身碟上):

```sh
python3 -m venv own
own/bin/python -m pip install --no-index --find-links <stick>/packages "cropkit[course]"
own/bin/cropkit course my-course --lang {lang}
own/bin/jupyter lab my-course/00_check_your_setup.ipynb
```

On Windows `python` in place of `python3`, and `own\\Scripts\\` in place of `own/bin/`.
`lessons` has the notebooks to look at 可直接瀏覽的筆記本.
"""
# What JupyterLab writes into a notebook by itself; all other metadata is its owner's.
BY_ITSELF = {"execution", "collapsed", "scrolled", "jupyter", "trusted", "kernelspec", "language_info", "widgets"}


def unpack(folder: str | os.PathLike[str], lang: Language | None = None, update: bool = False) -> list[str]:
    """Put the course's notebooks into a folder, with a README, the glossary and an environment.yml.

    An update never writes over a file that somebody has changed: the new one is put beside it. Of a notebook its cells
    and metadata count, not what running it leaves (outputs, counts).

    Args:
        folder: a new or empty folder; with `update`, one that a course was unpacked into.
        lang: ``"en"`` or ``"zh_TW"``; an update keeps the folder's unless given, and a new folder gets English.
        update: bring the files of the installed version into a folder that is in use.

    Returns:
        A line for each file that was written, or kept as its owner left it.

    Raises:
        FileExistsError: if `folder` is not empty and no update is asked for.
        FileNotFoundError: if an update is asked for where no course was unpacked.
        ValueError: if the folder holds the other language, or its record is damaged.

    Example:
        >>> unpack("my-course", lang="zh_TW")[0]
        'written: 00_check_your_setup.ipynb'
        >>> unpack("my-course", update=True)
        []
    """
    folder = Path(folder)
    record = folder / RECORD
    edition: Language = lang or "en"
    before: dict[str, str] = {}
    if update:
        if not record.exists():
            raise FileNotFoundError(f"{folder}: no course was unpacked here. Name its folder, or leave --update out.")
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
            edition, before = found["lang"], dict(found["files"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{record} is damaged. Unpack into a new folder; the notebooks here stay.") from error
        if lang not in (None, edition):
            raise ValueError(f"{folder} holds the {edition} edition. Unpack {lang} into another folder.")
    elif folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty. Name a new folder, or bring it up to date by --update.")
    if not update:  # one that is cut off here can be gone on with, by an update
        replace_text(record, json.dumps({"lang": edition, "files": {}}))
    said: list[str] = []
    files: dict[str, str] = {}
    for name, data in shipped(edition).items():
        path, files[name] = folder / name, fingerprint(name, data)
        there = fingerprint(name, path.read_bytes()) if path.exists() else None
        if there == files[name]:
            continue
        if there in (None, before.get(name)):
            replace_file(path, data)
            said.append(f"written: {name}")
        elif before.get(name) == files[name]:
            said.append(f"kept, changed by you: {name}")
        else:
            said.append(f"kept, changed by you: {name}; the new one: {put_beside(path, data).name}")
    said += [f"no longer in the course, kept: {name}" for name in before if name not in files]
    replace_text(record, json.dumps({"lang": edition, "files": files}, indent=1))
    return said


def put_beside(path: Path, data: bytes) -> Path:
    """Write next to a file, under the first name that is free or holds the same."""
    number = 1
    while True:
        beside = path.with_name(f"{path.stem}.new{'' if number == 1 else f'-{number}'}{path.suffix}")
        if not beside.exists():
            replace_file(beside, data)
        if beside.read_bytes() == data:
            return beside
        number += 1


def shipped(lang: Language) -> dict[str, bytes]:
    """The files of the course: from the wheel, or from the checkout that this package was imported from."""
    lessons = Path(__file__).with_name("lessons")
    if (home := checkout()) is not None:
        lessons = home / "notebooks"
    folder = lessons if lang == "en" else lessons / lang
    paths = [*sorted(folder.glob("[0-9]*.ipynb")), folder / "GLOSSARY.md"]
    files = {path.name: path.read_bytes() for path in paths}
    files["README.md"] = (folder / "HANDOUT.md").read_bytes()
    files["environment.yml"] = ENVIRONMENT.format(version=version("cropkit")).encode()
    return files


def fingerprint(name: str, data: bytes) -> str:
    """What its owner may have changed in a file."""
    if name.endswith(".ipynb"):
        try:
            notebook = json.loads(data)
            for cell in notebook["cells"]:
                cell["source"] = "".join(cell["source"])
                cell.pop("outputs", None), cell.pop("execution_count", None)
            for part in (notebook, *notebook["cells"]):
                part["metadata"] = {key: value for key, value in part["metadata"].items() if key not in BY_ITSELF}
            data = json.dumps([notebook["metadata"], notebook["cells"]], sort_keys=True).encode()
        except (ValueError, KeyError, TypeError, AttributeError):  # no notebook any more: all of it counts
            pass
    return hashlib.sha256(data).hexdigest()


def bundle(folder: str | os.PathLike[str], lang: Language = "en", torch_index: str | None = None) -> Path:
    """Make a folder for a USB stick: every package as a wheel, and the unpacked course.

    The wheels are for machines like this one: system, processor and version of Python.

    Args:
        folder: a new or empty folder.
        lang: ``"en"`` or ``"zh_TW"``.
        torch_index: an address of CPU-only builds of torch; without it Linux gets about 3 GB of CUDA.

    Returns:
        The folder: ``packages``, ``lessons`` and a README.md with the lines that install them without a network.

    Raises:
        FileExistsError: if `folder` holds something else than a bundle.
        RuntimeError: if pip could not get a package; it has said which. The same call goes on.
    """
    folder = Path(folder)
    begun = (folder / "lessons" / RECORD).exists()
    if folder.exists() and any(folder.iterdir()) and not begun:
        raise FileExistsError(f"{folder} is not empty. Name a new folder.")
    unpack(folder / "lessons", lang, update=begun)
    packages, home = folder / "packages", checkout()
    pip = [sys.executable, "-m", "pip", "wheel", "--wheel-dir", str(packages), "--find-links", str(packages)]
    if torch_index:
        call([*pip, "--index-url", torch_index, "torch", "torchvision"])
    if home:  # what an earlier build left there would come along
        shutil.rmtree(home / "build" / "lib", ignore_errors=True)
    call([*pip, f"{home}[course]" if home else f"cropkit[course]=={version('cropkit')}"])
    system, python = f"{platform.system()} {platform.machine()}", ".".join(platform.python_version_tuple()[:2])
    replace_text(folder / "README.md", STICK.format(system=system, python=python, lang=lang))
    return folder


def call(command: list[str]) -> None:
    if subprocess.run(command, stdout=sys.stderr).returncode:
        raise RuntimeError("pip could not bring all packages; what it said stands above. The same line goes on.")
