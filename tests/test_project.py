"""The promises that files make about each other: notebooks, glossary, environment, Makefile."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[1]
NOTEBOOKS = sorted((FOLDER / "notebooks").glob("*.ipynb"))


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_environment_yml_installs_what_pyproject_declares():
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    environment = (FOLDER / "environment.yml").read_text(encoding="utf-8")
    assert f"python{project['requires-python']}" in environment
    extra = re.search(r"-e \.\[(\w+)\]", environment).group(1)
    assert extra in project["optional-dependencies"]
    assert f'".[{extra}]"' in (FOLDER / "Makefile").read_text(encoding="utf-8")
    assert "torch" not in re.sub("#.*", "", environment)  # pip brings it, with its torchvision


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_headings_carry_their_chinese_term_from_the_glossary(path):
    glossary = (FOLDER / "notebooks" / "GLOSSARY.md").read_text(encoding="utf-8")
    terms = {
        term.strip() for row in glossary.splitlines() if row.count("|") == 4 for term in row.split("|")[2].split("/")
    }
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for heading in re.findall(r"^#+ .*$", cell.source, flags=re.M):
                found = re.search(r"[(\uff08]([^()\uff08\uff09]+)[)\uff09]$", heading)
                assert found, f"{heading!r} has no Chinese term"
                assert set(found.group(1).split("、")) <= terms, f"{heading!r} is not in the glossary"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_follows_the_template(path):
    cells = code_cells(path)
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
    assert max(cell.source.count("\n") + 1 for cell in cells) <= 20
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    assert text.count("**Predict.**") >= 3
    assert text.count("**What happened.**") >= 3
    for cell in nbformat.read(path, as_version=4).cells:  # folded in the pages: no question, no heading
        if cell.source.startswith("**What happened."):
            assert cell.metadata.tags == ["answer"], cell.id
            assert "**Predict.**" not in cell.source and "\n#" not in cell.source, cell.id
    for part in ("Exercises", "Takeaways", "Questions to think about", "After this you can"):
        assert part in text
    solutions = [cell for cell in cells if "solution" in cell.metadata.get("tags", [])]
    assert len(solutions) == 2
    assert all("assert" in cell.source or "AssertionError" in cell.source for cell in solutions)
    assert all(cell.metadata["jupyter"]["source_hidden"] for cell in solutions)


def test_the_copies_for_colab_install_first_and_are_the_notebooks_otherwise(tmp_path):
    command = [sys.executable, str(FOLDER / "tools" / "colab.py"), "somebody/cropkit", str(tmp_path)]
    subprocess.run(command, check=True)
    assert len(list(tmp_path.rglob("*.ipynb"))) == 2 * len(NOTEBOOKS)
    for path in (*NOTEBOOKS, *(FOLDER / "notebooks" / "zh_TW").glob("*.ipynb")):
        install, *cells = nbformat.read(tmp_path / path.relative_to(FOLDER / "notebooks"), as_version=4).cells
        assert install.source == '%pip install --quiet "cropkit[course] @ git+https://github.com/somebody/cropkit"'
        assert cells == nbformat.read(path, as_version=4).cells


@pytest.fixture(scope="module")
def build_site():
    spec = importlib.util.spec_from_file_location("build_site", FOLDER / "tools" / "build_site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_results_shows_what_the_run_left(build_site):
    run = {"machine": "a test", "fast": False, "seconds": {"07": 61}, "failures": {"07": "KeyError: 'a | b' <i>"}}
    run |= {"table": [["model"], ["lite"]], "pieces": {"matrix": "<table>the matrix</table>"}}
    page = build_site.results(run, {"07": "Compare"}, "en")
    assert "| [Compare](07.ipynb) | 61 | KeyError: &#x27;a &#124; b&#x27; &lt;i&gt; |" in page
    assert "| lite |" in page and '<div class="wide"><table>the matrix</table></div>' in page
    assert page.count("Not computed in this run.") == 1  # the comparison


def test_the_site_takes_no_folder_that_holds_something_else(build_site, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something else"):
        build_site.build(tmp_path / "executed", tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert build_site.main(str(tmp_path), str(tmp_path / "site")) == 1  # nothing was executed there
