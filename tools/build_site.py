"""Make the course's site in both languages, from notebooks that were executed: build/site/en and build/site/zh_TW.

    python tools/build_site.py [folder of executed notebooks] [folder for the site]

Nothing is executed here. No page asks anything of another host, so the site also works from a USB stick.
"""

import html
import importlib
import inspect
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from cropkit.course.records import PIECES

ROOT = Path(__file__).parents[1]
GLOSSARY = ROOT / "notebooks" / "GLOSSARY.md"
NAMES = {"en": "English", "zh_TW": "中文"}
# The words of what is made here; whole pages are in docs/ and docs/zh_TW/.
WORDS = {
    "en": {
        "answer": "Answer",
        "solution": "Solution",
        "columns": "| lesson | after it you can | minutes |",
        "minutes": r"About (\d+) minutes",
        "lessons": "Lessons",
        "beside": "To read beside them",
        "package": "The package",
        "api": "API reference",
        "english": "",
        "run": "What this run computed",
        "by": "Made by `make course` on {machine}: {minutes:.0f} minutes of computing.",
        "fast": "Fast mode: few photos and one epoch, so the accuracies mean nothing.",
        "ran": "| lesson | seconds | |",
        "trained": "What was trained",
        "comparison": "Methods compared (07)",
        "matrix": "What was mixed up (08)",
        "missing": "Not computed in this run.",
    },
    "zh_TW": {
        "answer": "答案",
        "solution": "解答",
        "columns": "| 課程 | 學完之後，你能夠 | 分鐘 |",
        "minutes": r"約 (\d+) 分鐘",
        "lessons": "課程",
        "beside": "延伸閱讀",
        "package": "套件",
        "api": "API 參考",
        "english": "函式的說明和程式一起維護，所以維持英文。",
        "run": "這次執行的結果",
        "by": "由 `make course` 產生（{machine}），計算時間 {minutes:.0f} 分鐘。",
        "fast": "快速模式：照片很少，只訓練一個週期，所以準確率沒有意義。",
        "ran": "| 課程 | 秒 | |",
        "trained": "訓練了什麼",
        "comparison": "方法比較（第 07 課）",
        "matrix": "混淆了什麼（第 08 課）",
        "missing": "這次沒有計算。",
    },
}
PAGES = ("my_model_does_not_learn", "competition", "scaling", "teachers")
ROOMS = ("data", "models", "training", "evaluation", "experiments", "panels")
WIDGET = "application/vnd.jupyter.widget-view+json"


def lesson(executed: Path, language: str) -> NotebookNode:
    """An executed notebook as the site shows it: its prose in one language, answers and solutions folded."""
    notebook, words = nbformat.read(executed, as_version=4), WORDS[language]
    prose = {}
    if language != "en":
        translated = nbformat.read(ROOT / "notebooks" / language / executed.name, as_version=4)
        prose = {cell.id: cell.source for cell in translated.cells}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "markdown":
            cell.source = prose.get(cell.id, cell.source)
            if "answer" in tags:
                fold = f'<details class="answer"><summary>{words["answer"]}</summary>'
                cell.source = f"{fold}\n\n{cell.source}\n\n</details>"
        else:  # a widget needs a kernel, and its script another host
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
            if "solution" in tags:
                cell.metadata = {"tags": ["hide-cell"], "mystnb": {"code_prompt_show": words["solution"]}}
                cell.metadata["mystnb"]["code_prompt_hide"] = words["solution"]
    return notebook


def lesson_row(notebook: NotebookNode, name: str, language: str) -> str:
    """A row of the landing page: the title, the first aim, the minutes."""
    opening = notebook.cells[0].source
    minutes = re.search(WORDS[language]["minutes"], opening)
    aims = [line.removeprefix("- ").rstrip(";.；。") for line in opening.splitlines() if line.startswith("- ")]
    aim = aims[0] if aims else opening.split("\n\n")[1]
    return f"| [{opening.splitlines()[0].removeprefix('# ')}]({name}.ipynb) | {aim} | {minutes[1] if minutes else ''} |"


def table(header: str, rows: list[str]) -> str:
    return "\n".join([header, re.sub(r"[^|]+", "---", header), *rows])


def results(run: dict, titles: dict[str, str], language: str) -> str:
    """The page of what this run computed: seconds, the models, and what lessons 07 and 08 left."""
    words, rows = WORDS[language], []
    for name, seconds in run["seconds"].items():
        failure = html.escape(run["failures"].get(name, "")).replace("|", "&#124;")
        rows.append(f"| [{titles[name]}]({name}.ipynb) | {seconds:.0f} | {failure} |")
    parts = [f"# {words['run']}", words["by"].format(**run, minutes=sum(run["seconds"].values()) / 60)]
    parts += [words["fast"]] * run["fast"] + [table(words["ran"], rows), f"## {words['trained']}"]
    header, *rest = [f"| {' | '.join(row)} |" for row in run["table"]]
    parts.append(table(header, rest))
    for name in PIECES:
        piece = run["pieces"].get(name)
        raw = f'```{{raw}} html\n<div class="wide">{piece}</div>\n```'
        parts += [f"## {words[name]}", raw if piece else words["missing"]]
    return "\n\n".join(parts) + "\n"


def reference(room: str) -> str:
    """The public names of a room, from their docstrings."""
    module = importlib.import_module(f"cropkit.{room}")
    lines = [f"# cropkit.{room}", inspect.getdoc(module).splitlines()[0], "```{eval-rst}"]
    for name, value in vars(module).items():
        own = getattr(value, "__module__", "").startswith(module.__name__)
        if own and not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value)):
            kind = "class" if inspect.isclass(value) else "function"
            lines.append(f".. auto{kind}:: cropkit.{room}.{name}\n" + "   :members:\n" * (kind == "class"))
    return "\n\n".join([*lines, "```"]) + "\n"


def write_source(executed: Path, source: Path, language: str) -> None:
    """Everything that Sphinx reads for one language."""
    words = WORDS[language]
    notebooks = {path.stem: lesson(path, language) for path in sorted(executed.glob("[0-9]*.ipynb"))}
    for name, notebook in notebooks.items():
        nbformat.write(notebook, source / f"{name}.ipynb")
    titles = {name: notebook.cells[0].source.splitlines()[0].removeprefix("# ") for name, notebook in notebooks.items()}
    run = json.loads((executed / "run.json").read_text(encoding="utf-8"))
    pages = {name: page(name, language) for name in ("index", *PAGES, "CONTRIBUTING")}
    pages["GLOSSARY"] = GLOSSARY.read_text(encoding="utf-8")
    pages["results"] = results(run, titles, language)
    pages |= {f"api_{room}": reference(room) for room in ROOMS}
    rooms = contents("", [f"api_{room}" for room in ROOMS], hidden=False)
    pages["api"] = f"# {words['api']}\n\n{words['english']}\n\n{rooms}"
    rows = [lesson_row(notebook, name, language) for name, notebook in notebooks.items()]
    pages["index"] = pages["index"].replace("`table of lessons`", table(words["columns"], rows))
    pages["index"] += contents(words["lessons"], [*notebooks, "GLOSSARY", "results"])
    pages["index"] += contents(words["beside"], PAGES) + contents(words["package"], ("api", "CONTRIBUTING"))
    for name, text in pages.items():
        (source / f"{name}.md").write_text(text, encoding="utf-8")


def page(name: str, language: str) -> str:
    """A page that lies in the checkout, in one language."""
    folder = ROOT / "docs" / language
    if language == "en":
        folder = ROOT if name == "CONTRIBUTING" else ROOT / "docs"
    return (folder / f"{name}.md").read_text(encoding="utf-8")


def contents(caption: str, entries: Sequence[str], hidden: bool = True) -> str:
    """A list of pages for the sidebar, and where it is not hidden, on the page."""
    options = [f":caption: {caption}"] * bool(caption) + [":hidden:"] * hidden
    return "\n\n```{toctree}\n" + "\n".join([*options, "", *entries]) + "\n```\n"


def search_words() -> list[str]:
    """The glossary's Chinese terms, so that the search does not cut them up."""
    rows = [row.split("|") for row in GLOSSARY.read_text(encoding="utf-8").splitlines()]
    return [term.strip() for row in rows if len(row) > 3 for term in row[2].split("/") if re.search("[一-鿿]", term)]


def build(executed: Path, site: Path, strict: bool = False) -> None:
    """Write both languages; what an earlier call made is replaced when all is done.

    Args:
        executed: folder of executed notebooks and their run.json, as `make course` leaves it.
        site: folder to write.
        strict: a warning of Sphinx is an error.

    Raises:
        FileExistsError: if `site` holds something else.
        RuntimeError: if Sphinx finds something wrong; it has said what.
    """
    import jieba
    from sphinx.cmd.build import build_main

    jieba.setLogLevel("ERROR")

    if site.exists() and any(site.iterdir()) and not (site / "en" / "searchindex.js").exists():
        raise FileExistsError(f"{site} holds something else than this site. Name a new folder.")
    site.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="site-", dir=site.parent))
    for language in NAMES:
        source = work / "source" / language
        source.mkdir(parents=True)
        write_source(executed, source, language)
        words = work / "words.txt"
        words.write_text("\n".join(search_words()), encoding="utf-8")
        os.environ["CROPKIT_LANGUAGE"], os.environ["CROPKIT_WORDS"] = language, str(words)
        options = [
            "-q",
            *["-W", "--keep-going"] * strict,
            "-b",
            "html",
            "-c",
            str(ROOT / "docs"),
            "-d",
            str(work / "doctrees" / language),
        ]
        if build_main([*options, str(source), str(work / "site" / language)]):
            raise RuntimeError(f"Sphinx could not build the {NAMES[language]} site.")
    links = " ".join(f'<a href="{language}/index.html">{html.escape(name)}</a>' for language, name in NAMES.items())
    head = '<!doctype html><meta charset="utf-8"><title>cropkit</title>'
    door = f'{head}<meta http-equiv="refresh" content="0; url=en/index.html">{links}'
    (work / "site" / "index.html").write_text(door, encoding="utf-8")
    for leftover in ("jupyter_execute", "en/_sources", "zh_TW/_sources"):
        shutil.rmtree(work / "site" / leftover, ignore_errors=True)
    if site.exists():  # on Windows this fails while a program has a page open, and the old site stays
        site.replace(work / "before")
    (work / "site").replace(site)
    shutil.rmtree(work)


def main(executed: str = "build/course", site: str = "build/site") -> int:
    folder, target = (ROOT / place for place in (executed, site))
    if not (folder / "run.json").exists():
        print(f"{folder} holds no executed notebooks: run `make course` first.", file=sys.stderr)
        return 1
    build(folder, target)
    print(f"Open {target / 'en' / 'index.html'} or {target / 'zh_TW' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
