import dataclasses
import inspect

import matplotlib.pyplot as plt
import nbformat
import pytest

from cropkit import course
from cropkit.course import clinic, settings

PATIENTS = pytest.mark.parametrize("number", clinic.PATIENTS)


@pytest.fixture(scope="module")
def data():
    """The clinic's photos in fast mode, wherever they were drawn."""
    patch = pytest.MonkeyPatch()
    patch.setattr(clinic, "FAST", True)
    patch.setattr(settings, "FAST", True)
    yield clinic.gather()
    patch.undo()


@PATIENTS
def test_the_check_fails_on_the_sick_code_and_passes_on_the_cured_one(data, number):
    patient = clinic.PATIENTS[number]
    assert not patient.healthy(patient.code(data), data)
    assert patient.healthy(patient.run_cured(data), data)


@PATIENTS
def test_the_code_is_short_and_the_cure_shorter(number):
    patient = clinic.PATIENTS[number]
    assert len(inspect.getsource(patient.code).splitlines()) <= 20
    before, after = inspect.getsource(patient.code).splitlines(), patient.cured().splitlines()
    assert 1 <= len(set(after) - set(before)) <= 2


@PATIENTS
def test_a_wrong_diagnosis_gets_a_hint_and_the_right_one_its_reason(number, capsys):
    patient = clinic.PATIENTS[number]
    assert len(patient.causes) >= 4
    assert set(patient.hints) == set(patient.causes) - {patient.right}
    for letter in patient.causes:
        clinic.diagnose(number, letter)
        said = capsys.readouterr().out
        assert said.startswith("Right" if letter == patient.right else f"Not {letter}: {patient.hints.get(letter)}")
        assert (patient.causes[patient.right] in said) == (letter == patient.right)


@PATIENTS
def test_a_patient_is_shown_with_code_and_symptom_and_treated(data, number, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(clinic, "display", shown.append)
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    case = clinic.admit(number, data)
    assert f"def patient_{number}(" in shown[0].data
    assert len(shown) > 1 or capsys.readouterr().out  # a curve, pictures, or numbers
    assert case
    plt.close("all")
    clinic.treat(number, data)
    said = capsys.readouterr().out
    assert "the check: fails before, passes after" in said
    assert clinic.PATIENTS[number].guard in said
    assert ("Error: " in said or "HeadMismatch: " in said) == (clinic.PATIENTS[number].refusal is not None)


def test_three_symptoms_have_two_patients_of_different_causes():
    table = clinic.closing_table()
    pairs = table.groupby("symptom")["cause"].agg(["size", "nunique"]).query("size > 1")
    assert len(pairs) >= 3
    assert (pairs["size"] == pairs["nunique"]).all()


def test_the_notebook_offers_the_causes_that_the_code_checks():
    path = course.FOLDER / "notebooks" / "10_debugging_clinic.ipynb"
    questions = [cell.source for cell in nbformat.read(path, as_version=4).cells if "## Patient" in cell.source]
    for patient in clinic.PATIENTS.values():
        options = "\n".join(f"- {letter}) {cause}" for letter, cause in patient.causes.items())
        assert any(options in question for question in questions), options


def test_a_cure_that_is_none_is_noticed(data, monkeypatch):
    patient = clinic.PATIENTS[14]
    monkeypatch.setitem(clinic.PATIENTS, 14, dataclasses.replace(patient, cure=[("argmax(dim=1)", "argmax(dim=-1)")]))
    with pytest.raises(AssertionError, match="does not cure"):
        clinic.treat(14, data)
