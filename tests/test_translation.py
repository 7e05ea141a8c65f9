"""The Chinese edition says what the English one says, and runs the same code."""

import importlib.util
import shutil

import nbformat
import pytest

from cropkit import course

NOTEBOOKS = sorted((course.FOLDER / "notebooks").glob("[0-9]*.ipynb"))


@pytest.fixture(scope="module")
def translate():
    pytest.importorskip("polib")
    spec = importlib.util.spec_from_file_location("translate", course.FOLDER / "tools" / "translate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def edition(translate, tmp_path, monkeypatch):
    """A small course of one notebook, to be translated."""
    (tmp_path / "notebooks").mkdir()
    for name in ("README.md", "CONTRIBUTING.md", "notebooks/GLOSSARY.md", "notebooks/HANDOUT.md"):
        (tmp_path / name).write_text("# 0\n")
    cells = [nbformat.v4.new_markdown_cell("Run it 3 times."), nbformat.v4.new_code_cell("print('run it')")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "00_try.ipynb")
    monkeypatch.setattr(translate, "ROOT", tmp_path)
    monkeypatch.setattr(translate, "LOCALE", tmp_path / "locale")
    return tmp_path


def set_message(translate, edition, msgstr):
    file = edition / "locale" / "00_try.po"
    catalog = translate.polib.pofile(str(file))
    catalog[0].msgstr, catalog[0].flags = msgstr, []
    catalog.save(str(file))


def test_every_message_is_translated_and_nothing_has_drifted(translate, capsys):
    assert translate.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_chinese_notebook_runs_the_same_code(path):
    english, chinese = (nbformat.read(file, as_version=4).cells for file in (path, path.parent / "zh_TW" / path.name))
    assert [cell.id for cell in english] == [cell.id for cell in chinese]
    for one, other in zip(english, chinese, strict=True):
        assert (one.cell_type, one.metadata) == (other.cell_type, other.metadata)
        assert one.cell_type == "markdown" or one.source == other.source, one.id


def test_what_is_not_translated_or_changed_since_is_said(translate, edition, capsys):
    translate.main([])
    assert translate.main(["--check"]) == 1 and "is not translated: Run it 3 times." in capsys.readouterr().out
    set_message(translate, edition, "執行 3 次。")
    translate.main([])
    assert translate.main(["--check"]) == 0
    file = edition / "notebooks" / "00_try.ipynb"
    file.write_text(file.read_text().replace("Run it 3 times.", "Run it 3 times, at least."))
    capsys.readouterr()
    assert translate.main(["--check"]) == 1 and "00_try.po is behind the English file" in capsys.readouterr().out
    translate.main([])
    assert translate.main(["--check"]) == 1 and "is fuzzy" in capsys.readouterr().out
    file.write_text(file.read_text().replace("Run it 3 times, at least.", "Something else."))
    translate.main([])
    assert "執行 3 次。" in (edition / "locale" / "00_try.po").read_text(encoding="utf-8")  # nothing was lost
    file.write_text(file.read_text().replace("Something else.", "Run it 3 times, at least."))
    translate.main([])
    assert "執行 3 次。" in (edition / "notebooks" / "zh_TW" / "00_try.ipynb").read_text(encoding="utf-8")


def test_a_chinese_file_that_somebody_edited_is_noticed(translate, edition, capsys):
    translate.main([])
    set_message(translate, edition, "執行 3 次。")
    translate.main([])
    file = edition / "notebooks" / "zh_TW" / "00_try.ipynb"
    file.write_text(file.read_text(encoding="utf-8").replace("執行", "跑"), encoding="utf-8")
    assert translate.main(["--check"]) == 1 and "00_try.ipynb is behind the English file" in capsys.readouterr().out
    shutil.rmtree(file.parent)
    assert translate.main(["--check"]) == 1


def test_only_prose_is_translated(translate):
    text = "# A\n\n- b\n  c\n  - d\n\n1. e\n2. e\n\n```\na\n```\n\n| f | a |\n|---|---|\n| `g` | 1 |\n"
    found = [message for message, _, _ in translate.messages(text)]
    assert found == ["A", "b c", "d", "e", "e", "f", "a", "`g`", "1"]
    known = dict(zip(("A", "b c", "d", "e", "f", "a"), "甲乙丙丁戊己", strict=True))
    chinese = "# 甲\n\n- 乙\n  - 丙\n\n1. 丁\n2. 丁\n\n```\na\n```\n\n| 戊 | 己 |\n|---|---|\n| `g` | 1 |\n"
    assert translate.in_chinese(text, known) == chinese


@pytest.mark.parametrize(
    ("english", "chinese", "said"),
    [
        ("Call `fit` once.", "呼叫 `fit_head` 一次。", "code"),
        ("See [the page](a.md).", "見[這一頁](b.md)。", "links"),
        ("It takes 25 epochs.", "需要 20 個訓練週期。", "numbers"),
        ("a) nothing", "b) 什麼都沒有", "options"),
        ("The data are here.", "數據在這裡。", "mainland word"),
        ("First, look.", "先看,再做。", "half-width"),
        ("**Predict.** What now?", "**預測。**接著呢？", "emphasis"),
    ],
)
def test_what_a_translation_may_not_lose(translate, english, chinese, said):
    assert said in " ".join(translate.problems(translate.polib.POEntry(msgid=english, msgstr=chinese)))


@pytest.mark.parametrize(
    ("english", "chinese"),
    [
        ("1.28 million photos", "128 萬張照片"),
        ("5 billion", "50 億"),
        ("12 megapixels", "1200 萬像素"),
        ("(1, number of crops)", "(1, 作物的種類數)"),
        ("**Predict.** What now?", "**預測：** 接著呢？"),
        ("values from 0..255", "0 到 255 的數值"),
    ],
)
def test_what_is_said_another_way_in_chinese_is_no_loss(translate, english, chinese):
    assert translate.problems(translate.polib.POEntry(msgid=english, msgstr=chinese)) == []
