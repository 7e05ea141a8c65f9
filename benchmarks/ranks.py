"""Two processes against one with the same number of threads in all: seconds, accuracy, number of predictions.

    python benchmarks/ranks.py <folder of photos> [epochs]

`cropkit train` and `torchrun --nproc-per-node=2 -m cropkit train`, each with an empty cache; seconds are those of the
run's record, so process start and scan are excluded. On one machine nothing is gained, since both share its cores; the
figure shows what sharing costs.
"""

import json
import os
import subprocess
import sys
import tempfile

import pandas as pd
from machine import machine

import cropkit

THREADS = 2


def train(data: str, out: str, processes: int, method: str, epochs: int) -> dict:
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    options = ["--data", data, "--out", out, "--method", method, "--epochs", str(epochs)]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS // processes)}
    command = [sys.executable, *start, "-m", "cropkit", "train", *options]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    run = cropkit.experiments.read_runs(out)[0]
    told = json.loads(done.stdout)
    assert told["photos"] == len(run.predictions) == run.predictions["path"].nunique()
    return {
        "method": method,
        "processes": processes,
        "seconds": round(run.seconds),
        "test accuracy": round(told["test_accuracy"], 3),
        "predictions": told["photos"],
    }


def main(data: str, epochs: int = 3) -> None:
    print(machine(), f"{epochs} epochs", flush=True)
    rows = []
    for method in ("feature_extraction", "fine_tuning"):
        for processes in (1, THREADS):
            with tempfile.TemporaryDirectory() as out:
                rows.append(train(data, out, processes, method, epochs))
                print(rows[-1], flush=True)
    print(pd.DataFrame(rows).to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
