"""Keep the Traditional Chinese edition in step with the English one.

    python tools/translate.py           # messages into locale/zh_TW/*.po, then the Chinese files from them
    python tools/translate.py --check   # change nothing; exit 1 and say what is missing or differs

The English files are the source. A message is one paragraph, heading, list item or table cell. What is translated
stays; a changed message keeps its old translation, marked fuzzy, until somebody has read it again, and one that is gone
stays at the end of its file. Code cells, tags and fenced code are copied as they are.
"""

import argparse
import difflib
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import nbformat
import polib
from markdown_it import MarkdownIt

from cropkit.data.files import replace_text

ROOT = Path(__file__).parents[1]
LANGUAGE = "zh_TW"
MARKDOWN = MarkdownIt().enable("table")
LOCALE = ROOT / "locale" / LANGUAGE
SCALE = {"thousand": 1e3, "million": 1e6, "megapixel": 1e6, "billion": 1e9}
SCALE |= {"千": 1e3, "萬": 1e4, "百萬": 1e6, "億": 1e8}
# Words of the mainland that Taiwan says otherwise.
FOREIGN = ("數據", "圖像", "默認", "網絡", "優化", "軟件", "內存", "文件", "信息", "程序", "打印", "代碼", "視頻",
           "質量", "線程", "進程", "緩存", "激活", "屏幕", "過擬合", "調用", "變量", "字符", "運行", "您")  # fmt: skip


def sources() -> dict[Path, Path]:
    """Each English file and its Chinese one."""
    notebooks, docs = ROOT / "notebooks", ROOT / "docs"
    lessons = [*sorted(notebooks.glob("[0-9]*.ipynb")), notebooks / "HANDOUT.md"]
    pairs = {path: notebooks / LANGUAGE / path.name for path in lessons}
    pairs |= {path: docs / LANGUAGE / path.name for path in [*sorted(docs.glob("*.md")), ROOT / "CONTRIBUTING.md"]}
    return pairs | {ROOT / "README.md": ROOT / "README.zh-TW.md"}


def texts(path: Path) -> dict[str, str]:
    """The Markdown of a file, by cell; a page is one text."""
    if path.suffix == ".md":
        return {"": path.read_text(encoding="utf-8")}
    cells = nbformat.read(path, as_version=4).cells
    return {cell.id: cell.source for cell in cells if cell.cell_type == "markdown"}


def catalog_of(path: Path) -> Path:
    return LOCALE / f"{path.stem}.po"


def messages(text: str) -> Iterator[tuple[str, int, int]]:
    """Each message of a Markdown text, on one line, and where it begins and ends."""
    lines, at = text.splitlines(keepends=True), 0
    for token in MARKDOWN.parse(text):
        if token.type == "inline" and token.content:
            pattern = r"\n[ \t]*".join(re.escape(line) for line in token.content.split("\n"))
            at = max(at, len("".join(lines[: token.map[0]])) if token.map else 0)
            found = re.compile(pattern).search(text, at)
            at = found.end()
            yield " ".join(token.content.split("\n")), found.start(), at


def update(path: Path) -> polib.POFile:
    """The file's messages with the translations that exist, in the order of the file, then those that are gone."""
    kept = polib.pofile(str(catalog_of(path))) if catalog_of(path).exists() else polib.POFile()
    known = {entry.msgid: entry for entry in kept if entry.msgstr}
    places: dict[str, list[str]] = {}
    for cell, text in texts(path).items():
        for message, _, _ in messages(text):
            places.setdefault(message, []).append(cell)
    gone = [message for message in known if message not in places]
    catalog = polib.POFile(wrapwidth=0)
    catalog.metadata = {"Language": LANGUAGE, "Content-Type": "text/plain; charset=UTF-8"}
    for message, cells in places.items():
        entry = known.get(message) or polib.POEntry(msgid=message)
        entry.obsolete = False
        if message not in known and (like := difflib.get_close_matches(message, gone, n=1)):
            entry.msgstr, entry.previous_msgid, entry.flags = known[like[0]].msgstr, like[0], ["fuzzy"]
        if not re.search("[A-Za-z]", re.sub("`[^`]+`", "", message)):  # code and numbers alone
            entry.msgstr = message
        entry.occurrences = [(cell, "") for cell in cells if cell]
        catalog.append(entry)
    for message in gone:
        known[message].obsolete, known[message].occurrences = True, []
        catalog.append(known[message])
    return catalog


def translated(path: Path, catalog: Iterable[polib.POEntry]) -> str:
    """The Chinese file, as text."""
    known = {entry.msgid: entry.msgstr for entry in catalog if not entry.obsolete}
    if path.suffix == ".md":
        return in_chinese(path.read_text(encoding="utf-8"), known)
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = in_chinese(cell.source, known)
    return nbformat.writes(notebook) + "\n"


def in_chinese(text: str, known: Mapping[str, str]) -> str:
    """The text with each message replaced; what is not translated stays English."""
    pieces, done = [], 0
    for message, begin, end in messages(text):
        pieces += [text[done:begin], known.get(message) or text[begin:end]]
        done = end
    return "".join(pieces) + text[done:]


def numbers(text: str) -> Counter:
    """The numbers of a text, those before "million" or 萬 as what they are worth."""
    found = re.findall(rf"(\d[\d,]*(?:\.\d+)?|(?<!\.)\.\d+)[ -]?({'|'.join(SCALE)})?", text)
    return Counter(round(float(number.replace(",", "")) * SCALE.get(scale, 1), 6) for number, scale in found)


def problems(entry: polib.POEntry) -> list[str]:
    """What a translation lost, or says in words that are not Taiwan's."""
    source, target, found = entry.msgid, entry.msgstr, []
    if not target or entry.fuzzy:
        return ["is not translated" if not target else "is fuzzy: read it again and remove the mark"]
    kinds = {"code": r"`[^`]+`", "links": r"\]\(([^)]+)\)", "options": r"\b[a-d]\)", "formulas": r"\$[^$]+\$"}
    for kind, pattern in kinds.items():
        here, there = (Counter(re.findall(pattern, text.replace("zh_TW/", ""))) for text in (source, target))
        if here != there:  # a link may lead to the page's own language
            found.append(f"{kind}: {sorted((here - there) + (there - here))}")
    prose = [re.sub(kinds["code"], "", text) for text in (source, target)]
    if numbers(prose[0]) != numbers(prose[1]):
        found.append(f"numbers: {sorted(numbers(prose[0]))} became {sorted(numbers(prose[1]))}")
    found += [f"mainland word {word}" for word in FOREIGN if word in target]
    if re.search(r"[\u4e00-\u9fff][,;:?!]|[,;:?!] ?[\u4e00-\u9fff]", re.sub(r"\([^()]*\)", "", prose[1])):
        found.append("half-width punctuation beside a Chinese character")
    inline = [token for block in MARKDOWN.parse(target) for token in block.children or ()]
    if any(token.type == "text" and "*" in token.content for token in inline) and "*" not in re.sub(
        r"\*+[^*]+\*+", "", source
    ):
        found.append("an emphasis that is not closed: put its punctuation outside, or a space behind it")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check, wrong, count = parser.parse_args(argv).check, [], 0
    glossary = ROOT / "notebooks" / "GLOSSARY.md"  # both languages are in it
    files = {glossary.parent / LANGUAGE / glossary.name: glossary.read_text(encoding="utf-8")}
    for path, target in sources().items():
        catalog, name = update(path), catalog_of(path).name
        here = [entry for entry in catalog if not entry.obsolete]
        count += len(here)
        wrong += [f"{name}: {text}: {entry.msgid[:60]}" for entry in here for text in problems(entry)]
        files |= {catalog_of(path): f"{catalog}\n", target: translated(path, catalog)}
    for path, text in files.items():
        if not check:
            replace_text(path, text)
        elif not path.exists() or path.read_bytes() != text.encode():
            wrong.append(f"{path.relative_to(ROOT)} is behind the English file: run tools/translate.py")
    print("\n".join([*wrong, f"{count} messages, {len(wrong)} to look at"]))
    return int(bool(wrong) and check)


if __name__ == "__main__":
    sys.exit(main())
