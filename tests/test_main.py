import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import precision_score

from cropkit import Config, __main__, load_model, make_loaders, predict, prepare
from cropkit.__main__ import main
from cropkit.evaluation import average, weighted_precision

TINY = ["--arch", "mobilenet_v3_small", "--weights", "None", "--resolution", "64", "--method", "feature_extraction"]


@pytest.fixture
def data(make_photos):
    return make_photos({"apple": 10, "pear": 10})


@pytest.fixture
def trained(data, tmp_path, capsys):
    """A run's folder, and what was printed."""
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "runs"), *TINY]) == 0
    told = json.loads(capsys.readouterr().out)
    return told["run"], told


def test_train_prints_the_runs_folder_and_scores_and_nothing_else(trained, data, tmp_path):
    folder, told = trained
    catalog, _ = prepare(data)
    predictions = predict(
        load_model(f"{folder}/best.safetensors"),
        make_loaders(catalog, load_model(f"{folder}/best.safetensors"))["test"],
    )
    assert told["test_accuracy"] == (predictions["target"] == predictions["predicted"]).mean()
    record = json.loads((tmp_path / "runs" / folder.rsplit("/", 1)[1] / "config.json").read_text())
    expected = Config(arch="mobilenet_v3_small", weights=None, resolution=64, method="feature_extraction")
    assert Config(**record["config"]) == expected


def test_every_field_of_a_config_is_an_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for field in Config.__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in shown
    assert "--no-augment" in shown  # "--augment False" would be true, where bool() reads it


def test_evaluate_scores_the_runs_own_test_photos_and_no_others(trained, data, tmp_path, capsys):
    folder, told = trained
    assert main(["evaluate", "--model", folder, "--data", str(data), "--out", str(tmp_path / "test.csv")]) == 0
    scores = json.loads(capsys.readouterr().out)
    known = pd.read_csv(f"{folder}/split.csv").set_index("path")["split"]
    counted = pd.read_csv(tmp_path / "test.csv")
    assert set(counted["path"]) == set(known[known == "test"].index)
    assert scores["photos"] == 4 and scores["accuracy"] == told["test_accuracy"]
    assert scores["between"][0] <= scores["accuracy"] <= scores["between"][1]
    assert set(scores["never_predicted"]) == set(counted["target"]) - set(counted["predicted"])
    assert 0 <= scores["lowest_f1"] <= scores["weighted_precision"]
    for split, photos in (("train", 12), ("val", 4), ("all", 20)):  # asked for by name
        assert main(["evaluate", "--model", folder, "--data", str(data), "--split", split]) == 0
        assert json.loads(capsys.readouterr().out)["photos"] == photos


def test_on_pure_noise_a_model_scores_no_better_on_its_folder_than_on_its_test_photos(trained, data, capsys):
    folder, told = trained  # the photos are noise: what it learned by heart must not count
    assert main(["evaluate", "--model", folder, "--data", str(data)]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == told["test_accuracy"]


def test_evaluate_on_other_photos_leaves_out_those_whose_picture_was_learned(trained, data, make_photos, capsys):
    folder, _ = trained
    rng = np.random.default_rng(7)
    other = data.with_name("other")
    for crop in ("apple", "pear"):
        (other / crop).mkdir(parents=True)
        for number in range(3):
            noise = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
            noise.resize((80, 60)).save(other / crop / f"new{number}.jpg")
    known = pd.read_csv(f"{folder}/split.csv")
    learned = known.loc[known["split"] == "train", "path"].iloc[:2].tolist()
    shutil.copy(data / learned[0], other / learned[0].split("/")[0] / "same_bytes.jpg")
    Image.open(data / learned[1]).save(other / learned[1].split("/")[0] / "saved_again.jpg", quality=80)
    assert main(["evaluate", "--model", folder, "--data", str(other)]) == 0
    assert json.loads(capsys.readouterr().out)["photos"] == 6


def test_a_model_file_without_its_run_does_not_guess(trained, data, tmp_path, capsys):
    shutil.copy(f"{trained[0]}/best.safetensors", tmp_path / "mine.safetensors")
    command = ["evaluate", "--model", str(tmp_path / "mine.safetensors"), "--data", str(data)]
    assert main(command) == 1
    assert "split.csv is gone, so nobody knows which photos it learned from" in capsys.readouterr().err
    assert main([*command, "--split", "all"]) == 0
    assert json.loads(capsys.readouterr().out)["photos"] == 20


@pytest.mark.parametrize(
    "error",
    [
        FloatingPointError("the loss became nan\nin step 3"),
        MemoryError("a batch of 32 photos does not fit"),
        RuntimeError("a process that reads photos was killed"),
    ],
)
def test_whatever_a_training_stops_for_is_one_line(data, tmp_path, monkeypatch, capsys, error):
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(__main__.experiments, "run_experiment", fails)
    assert main(["train", "--data", str(data), "--out", str(tmp_path)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cropkit: ")]
    assert lines == [f"cropkit: {' '.join(str(error).split())}"]


def test_predict_gives_every_file_a_row_and_tells_which_it_cannot_read(trained, make_photos, tmp_path, capsys):
    folder = trained[0]
    inbox = make_photos({"a/b": 2, ".": 1}, tmp_path / "inbox")
    (inbox / "a" / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    Image.new("L", (50, 40)).save(inbox / "grey.PNG")
    assert main(["predict", "--model", folder, "--data", str(inbox)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "filename,label"
    rows = dict(line.split(",") for line in lines[1:])
    assert set(rows) == {"0.jpg", "a/b/0.jpg", "a/b/1.jpg", "a/broken.jpg", "grey.PNG"}
    assert rows.pop("a/broken.jpg") == "" and set(rows.values()) <= {"apple", "pear"}
    assert "not readable: a/broken.jpg" in err


def test_several_models_answer_together(trained, data, tmp_path, capsys):
    folder = trained[0]
    assert main(["train", "--data", str(data), "--out", str(tmp_path), *TINY, "--mirror"]) == 0
    other = json.loads(capsys.readouterr().out)["run"]
    assert main(["predict", "--model", folder, "--model", other, "--data", str(data)]) == 0
    rows = dict(line.split(",") for line in capsys.readouterr().out.splitlines()[1:])
    together = average(*(predict(load_model(one), data) for one in (folder, other)))
    assert rows == dict(zip(together["path"], together["predicted"], strict=True))


def test_submit_writes_the_template_with_the_answers_of_all_models(trained, data, tmp_path, capsys):
    folder = trained[0]
    assert main(["train", "--data", str(data), "--out", str(tmp_path), *TINY, "--mirror"]) == 0
    other = json.loads(capsys.readouterr().out)["run"]
    together = average(*(predict(load_model(one), data) for one in (folder, other))).set_index("path")["predicted"]
    template, out = tmp_path / "template.csv", tmp_path / "submission.csv"
    template.write_text("\n".join(["filename,label", *(f"{path}," for path in reversed(together.index))]))
    models = ["--model", folder, "--model", other]
    command = ["submit", *models, "--data", str(data), "--template", str(template), "--out", str(out)]
    assert main(command) == 0
    written = pd.read_csv(out)
    assert written["filename"].tolist() == list(reversed(together.index))
    assert written["label"].tolist() == together[written["filename"]].tolist()
    truth = written["filename"].str.split("/").str[0]
    score = precision_score(truth, written["label"], average="weighted", zero_division=0)
    run = together.reset_index().assign(target=lambda table: table["path"].str.split("/").str[0], p_apple=0, p_pear=0)
    assert weighted_precision(run) == pytest.approx(score)
    template.write_text("filename,label\napple/nowhere.jpg,\n")
    assert main(command) == 1
    assert "'apple/nowhere.jpg' is none of the" in capsys.readouterr().err
    assert pd.read_csv(out).equals(written)


def test_predict_says_what_the_loaders_say(trained, data, capsys):
    folder = trained[0]
    assert main(["predict", "--model", folder, "--data", str(data)]) == 0
    rows = dict(line.split(",") for line in capsys.readouterr().out.splitlines()[1:])
    model = load_model(f"{folder}/best.safetensors")
    for loader in make_loaders(prepare(data)[0], model, augment=False).values():
        table = predict(model, loader)
        assert table["predicted"].tolist() == [rows[path] for path in table["path"]]


def test_scan_and_compare_print_tables(trained, data, tmp_path, capsys):
    (data / "apple" / "empty.jpg").write_bytes(b"")
    assert main(["scan", "--data", str(data)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("path,label,") and len(out.splitlines()) == 22
    assert "1 cannot be used" in err
    assert main(["compare", "--out", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.startswith("run,method,")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scan", "--data", "nowhere"], "nowhere: no such folder"),
        (["compare", "--out", "nowhere"], "nowhere: holds no run"),
        (["predict", "--model", "nowhere", "--data", "."], "nowhere"),
        (["predict", "--data", "."], "no model is named. Give --model"),
        (["train", "--data", "nowhere", "--epochs", "0"], "epochs is 0, but must be at least 1"),
        (["train", "--data", "nowhere", "--method", "from_scratch", "--recipe", "lp_ft"], "none of from_scratch's"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_1(arguments, said, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(arguments)
    except SystemExit as stop:  # found while the command line is read
        code = stop.code
    out, err = capsys.readouterr()
    assert code in (1, 2) and out == ""
    assert said in " ".join(err.replace("│", " ").split())
    assert "Traceback" not in err


def test_an_unknown_option_is_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--data", ".", "--epoch", "3"])
    assert stop.value.code == 2
    assert "--epochs" in capsys.readouterr().err  # what was probably meant


def test_ctrl_c_is_exit_code_130(data, tmp_path, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(__main__.experiments, "run_experiment", interrupted)
    assert main(["train", "--data", str(data), "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().out == ""


def test_it_runs_as_a_module(trained, data):
    command = [sys.executable, "-m", "cropkit", "predict", "--model", trained[0], "--data", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "filename,label"
