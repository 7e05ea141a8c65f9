"""The unpacked course: what somebody has changed in it is never lost."""

import nbformat
import pytest

from cropkit.course import handout

NAME = "00_try.ipynb"


def notebook(*sources, ids=None):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    for cell, name in zip(cells, ids or "abcdef", strict=False):
        cell.id = name
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells)).encode()


def tagged(data):
    read = nbformat.reads(data.decode(), as_version=4)
    read.cells[0].metadata["slideshow"] = {"slide_type": "slide"}
    return nbformat.writes(read).encode()


@pytest.fixture
def version(monkeypatch):
    """What the installed cropkit brings; call it with other cells for a newer one."""
    files = {}

    def bring(*sources, **others):
        files.clear()
        files.update({NAME: notebook(*sources), "README.md": b"read me"}, **others)

    monkeypatch.setattr(handout, "shipped", lambda lang: dict(files))
    bring("one", "two")
    return bring


@pytest.fixture
def folder(version, tmp_path):
    handout.unpack(tmp_path / "course")
    return tmp_path / "course"


def sources(path):
    return [cell.source for cell in nbformat.read(path, as_version=4).cells]


@pytest.mark.parametrize(
    "edited",
    [
        notebook("mine", "two"),
        notebook("two"),
        notebook("one", "two", "mine"),
        notebook("one", "two", ids="xb"),
        notebook("two", "one", ids="ba"),
        tagged(notebook("one", "two")),
        b"not a notebook any more",
    ],
    ids=["edited", "deleted", "added", "renamed", "moved", "tagged", "broken"],
)
def test_an_edit_stays_and_the_new_notebook_lies_beside_it(version, folder, edited):
    (folder / NAME).write_bytes(edited)
    version("one", "two, corrected")
    assert handout.unpack(folder, update=True) == [f"kept, changed by you: {NAME}; the new one: 00_try.new.ipynb"]
    assert (folder / NAME).read_bytes() == edited
    assert sources(folder / "00_try.new.ipynb") == ["one", "two, corrected"]
    assert handout.unpack(folder, update=True) == [f"kept, changed by you: {NAME}"]  # said, and not put there twice
    assert len(list(folder.glob("*.ipynb"))) == 2


def test_an_edit_of_the_file_beside_it_is_an_edit_too(version, folder):
    (folder / NAME).write_bytes(notebook("mine"))
    version("one", "second")
    handout.unpack(folder, update=True)
    (folder / "00_try.new.ipynb").write_bytes(notebook("mine, in the new one"))
    version("one", "third")
    handout.unpack(folder, update=True)
    assert sources(folder / "00_try.new.ipynb") == ["mine, in the new one"]
    assert sources(folder / "00_try.new-2.ipynb") == ["one", "third"]


def test_a_notebook_that_was_only_run_is_replaced_when_there_is_a_newer_one(version, folder):
    ran = nbformat.read(folder / NAME, as_version=4)
    ran.cells[0].update(execution_count=1, outputs=[nbformat.v4.new_output("stream", text="1")])
    ran.cells[0].metadata["execution"] = {"iopub.execute_input": "2026-11-27T12:00:00"}
    ran.metadata["language_info"] = {"version": "3.13.1"}
    nbformat.write(ran, folder / NAME)
    before = (folder / NAME).read_bytes()
    assert handout.unpack(folder, update=True) == [] and (folder / NAME).read_bytes() == before
    version("one", "newer")
    assert handout.unpack(folder, update=True) == [f"written: {NAME}"] and sources(folder / NAME) == ["one", "newer"]


def test_files_that_are_gone_come_back_and_files_of_ones_own_stay(version, folder):
    (folder / NAME).unlink()
    (folder / "mine.ipynb").write_bytes(notebook("mine"))
    assert handout.unpack(folder, update=True) == [f"written: {NAME}"]
    version("one", "two", **{"01_more.ipynb": notebook("more")})
    assert handout.unpack(folder, update=True) == ["written: 01_more.ipynb"]
    version("one", "two")
    assert handout.unpack(folder, update=True) == ["no longer in the course, kept: 01_more.ipynb"]
    assert sorted(path.name for path in folder.glob("*.ipynb")) == [NAME, "01_more.ipynb", "mine.ipynb"]


def test_a_folder_in_use_is_left_alone_unless_an_update_is_asked_for(version, folder, tmp_path):
    with pytest.raises(FileExistsError, match="--update"):
        handout.unpack(folder)
    with pytest.raises(ValueError, match="holds the en edition"):
        handout.unpack(folder, lang="zh_TW", update=True)
    with pytest.raises(FileNotFoundError, match="no course was unpacked here"):
        handout.unpack(tmp_path / "elsewhere", update=True)


def test_an_unpacking_that_was_cut_off_goes_on_by_an_update(version, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(handout, "replace_file", full)
        with pytest.raises(OSError, match="disk full"):
            handout.unpack(tmp_path / "course", "zh_TW")
    assert handout.unpack(tmp_path / "course", update=True) == [f"written: {NAME}", "written: README.md"]


def test_both_languages_hold_the_same_lessons_a_readme_and_an_environment():
    english, chinese = handout.shipped("en"), handout.shipped("zh_TW")
    assert (
        english.keys() == chinese.keys() >= {"README.md", "GLOSSARY.md", "environment.yml", "00_check_your_setup.ipynb"}
    )
    assert "cropkit[course]==" in english["environment.yml"].decode()
    assert "檢查環境" in chinese["00_check_your_setup.ipynb"].decode()


@pytest.mark.parametrize("damage", ["", "[1]", "{}", '{"lang": "en", "files": 3}'])
def test_a_damaged_record_is_said_and_nothing_is_touched(version, folder, damage):
    (folder / handout.RECORD).write_text(damage)
    version("newer")
    with pytest.raises(ValueError, match=r"\.cropkit\.json is damaged"):
        handout.unpack(folder, update=True)
    assert sources(folder / NAME) == ["one", "two"]


def test_a_bundle_that_pip_cannot_fill_says_so_and_goes_on(tmp_path, monkeypatch, version):
    monkeypatch.setattr(handout, "checkout", lambda: tmp_path / "nowhere")
    with pytest.raises(RuntimeError, match="pip could not bring all packages"):
        handout.bundle(tmp_path / "stick")
    assert sources(tmp_path / "stick" / "lessons" / NAME) == ["one", "two"]
    called = []
    monkeypatch.setattr(handout, "call", called.append)
    handout.bundle(tmp_path / "stick", torch_index="an address")
    assert called[0][-4:] == ["--index-url", "an address", "torch", "torchvision"]
    assert called[1][-1] == f"{tmp_path / 'nowhere'}[course]"
    assert "cropkit course my-course --lang en" in (tmp_path / "stick" / "README.md").read_text(encoding="utf-8")


def test_a_bundle_leaves_a_folder_of_something_else_alone(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        handout.bundle(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
