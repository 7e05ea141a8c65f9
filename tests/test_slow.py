"""The checks that take many minutes: `make test-slow`. Notebooks run in fast mode, but for those on real photos."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from jupyter_client import KernelManager
from notebook_runs import FOLDER, NOTEBOOKS, run

from cropkit import create_model
from cropkit.course import records

pytestmark = pytest.mark.slow

SCAN = """
import sys
import time
from cropkit import scan
sys.stderr.write("begun")
print(len(scan(sys.argv[1])), flush=True)
"""


def test_ctrl_c_ends_a_scan_of_10_000_photos_and_the_next_one_works(make_photos):
    root = make_photos({f"{number:02}": 500 for number in range(20)})
    command = [sys.executable, "-c", SCAN, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        process.stderr.read(5)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=10)
        with pytest.raises(ProcessLookupError):  # nothing of its session is left
            os.killpg(process.pid, 0)
    assert out == b"" and b"KeyboardInterrupt" in error
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"10000\n"


def test_notebooks_run_on_alexnet_from_torchs_cache(tmp_path):
    torch.manual_seed(0)
    made = tmp_path / "torch" / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    made.parent.mkdir(parents=True)
    torch.save(create_model("alexnet", weights=None).state_dict(), made)
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    startup = (
        "import dataclasses, cropkit.models.weights as w\n"
        f"w.WEIGHT_FILES['alexnet'] = dataclasses.replace(w.WEIGHT_FILES['alexnet'], sha256='{digest}')"
    )
    for path in [path for path in NOTEBOOKS if "03" <= path.stem[:2] <= "09"]:
        failure = run(path, tmp_path, startup, CROPKIT_ARCH="alexnet", TORCH_HOME=str(tmp_path / "torch"))
        assert not failure, f"{path.stem}: {failure}"


def test_accuracies_on_grocery36(tmp_path, real_data):
    wanted = dict(zip(records.ROWS, (0.76, 0.76), strict=True))
    for name, _ in wanted:
        failure = run(FOLDER / f"{name}.ipynb", tmp_path, CROPKIT_FAST="", CROPKIT_DATA=str(real_data))
        assert not failure, f"{name}: {failure}"
    for (notebook, method), least in wanted.items():
        row = json.loads(records.row_file(notebook, method).read_text())
        print(f"\n{method:24s} test {row['test_accuracy']:.3f}, {row['seconds']:.0f} s")
        assert row["test_accuracy"] >= least, method


CELL = """
from cropkit import Config, load_model, run_experiment, scan, split
catalog = split(scan({root!r}))
config = Config("mobilenet_v3_small", None, "from_scratch", epochs={epochs}, batch_size=4)
run = run_experiment(config, catalog, {out!r}, num_workers=2)
print(run.finished, run.history["epoch"].max() >= 1, load_model(run.folder).metrics["epoch"] >= 0)
"""


def test_an_interrupted_cell_returns_and_the_next_cell_trains(make_photos, tmp_path):
    root, out = make_photos({"apple": 10, "pear": 10}), tmp_path / "runs"
    manager = KernelManager()
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        printed = []

        def run(epochs, interrupt):
            cell = CELL.format(root=str(root), out=str(out), epochs=epochs)
            asked = client.execute(cell)
            if interrupt:
                end = time.monotonic() + 120
                while not any(len(f.read_text().splitlines()) > 1 for f in out.glob("*/metrics.jsonl")) and (
                    time.monotonic() < end
                ):
                    time.sleep(0.1)
                manager.interrupt_kernel()
            while True:
                message = client.get_iopub_msg(timeout=120)
                if message["parent_header"].get("msg_id") != asked:
                    continue
                if message["msg_type"] == "stream":
                    printed.append(message["content"]["text"])
                assert message["msg_type"] != "error", message["content"]["traceback"]
                if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                    return

        run(10_000, interrupt=True)
        run(2, interrupt=False)
        text = "".join(printed)
        assert "False True True" in text
        assert "True True True" in text
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_a_class_installs_from_a_stick_without_a_network(tmp_path):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rn", "true"]).returncode:
        pytest.skip("no network namespaces here (unshare -rn)")
    stick, offline = tmp_path / "stick", ["unshare", "-rn", "bash", "-euc"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "cropkit", "bundle", str(stick), "--lang", "zh_TW"], check=True)
    size = sum(path.stat().st_size for path in stick.rglob("*") if path.is_file())
    print(f"\n{size / 1e9:.2f} GB in {time.perf_counter() - start:.0f} s")
    lines = f"""
        ip link set lo up
        {sys.executable} -m venv {tmp_path}/course
        {tmp_path}/course/bin/python -m pip install -q --no-index --find-links {stick}/packages "cropkit[course]"
        cd {stick}/lessons && {tmp_path}/course/bin/jupyter execute 00_check_your_setup.ipynb
    """
    environment = {"CROPKIT_FAST": "1", "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "data")}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    subprocess.run([*offline, lines], check=True, env=clean | environment)
