"""Predictions that a learner writes down, and the drawings that explain."""

import matplotlib.pyplot as plt
import pytest

from cropkit import course, create_model
from cropkit.course import answers


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(answers, "_was_right", {})


def test_an_answer_is_judged_with_its_reason_and_counted_once_however_often_its_cell_runs(capsys):
    course.answer("b", "b", "Two heads are better.")
    course.answer(" A) ", "b", "One thing at a time.")
    course.answer("c", "c", "One thing at a time.")  # corrected, and run again
    assert capsys.readouterr().out.splitlines() == [
        "Right, b: Two heads are better.",
        "Not a, but b: One thing at a time.",
        "Right, c: One thing at a time.",
    ]
    assert course.score() == "Predictions written down: 2. Right: 2."
    course.answer("a", "b", "Two heads are better.")
    assert course.score() == "Predictions written down: 2. Right: 1."


def test_a_wrong_letter_with_a_hint_is_not_told_the_answer(capsys):
    course.answer("a", "b", "The head is old.", hints={"a": "Look at the shape."})
    course.answer("c", "b", "The head is old.", hints={"a": "Look at the shape."})
    course.answer("b", "b", "The head is old.", hints={"a": "Look at the shape."})
    assert capsys.readouterr().out.splitlines() == [
        "Not a: Look at the shape.",
        "Not c, but b: The head is old.",
        "Right, b: The head is old.",
    ]


def test_an_unanswered_question_says_nothing_and_counts_nothing(capsys):
    course.answer("?", "a", "Nobody asked.")
    assert capsys.readouterr().out == ""
    assert course.score().startswith("No prediction was written down")


def test_what_is_no_letter_is_explained_and_not_counted(capsys):
    course.answer("maybe", "a", "Nobody knows.")
    assert "is no letter of the question" in capsys.readouterr().out
    assert course.score().startswith("No prediction was written down")
    with pytest.raises(ValueError, match="must be one of"):
        course.answer("a", "?", "The notebook is wrong.")


def test_the_drawing_of_a_model_names_its_parts_with_their_true_sizes():
    model = create_model("resnet18", weights=None, num_classes=33)
    said = " ".join(text.get_text() for text in course.draw_model(model).texts)
    for part in ("3 x 224 x 224", "11,176,512 weights", "head\nfc\n16,929 weights", "features\n512", "logits\n33"):
        assert part in said
    plt.close("all")


def test_the_drawn_road_is_the_one_of_the_course():
    said = [text.get_text() for text in course.draw_road().texts if text.get_text()]
    assert said[:9] == ["photos", "scan", "catalog", "split", "loaders", "model", "predictions", "matrix", "cause"]
    plt.close("all")
