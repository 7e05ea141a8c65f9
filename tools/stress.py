"""Kill a training 50 times at random moments, and see that nothing is ever lost.

    python tools/stress.py [kills]

After every kill the folder must be usable: what was saved last can be loaded, and a best model that was there still is.
Whenever a training gets to its end, it is compared with one that nobody killed, bit for bit.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from cropkit import Config, load_model
from cropkit.data.files import previous_of
from cropkit.training.checkpoints import _read_or_offer

TRAIN = """
import sys
import cropkit.training.checkpoints
from cropkit import Config, run_experiment, scan, split
from cropkit.training import checkpoints
checkpoints.EVERY = 0.0  # save after every step, so that most kills fall into a saving
if __name__ == "__main__":
    config = Config("mobilenet_v3_small", None, "from_scratch", epochs=8, batch_size=4, seed=int(sys.argv[3]))
    run_experiment(config, split(scan(sys.argv[1])), sys.argv[2], num_workers=int(sys.argv[4]))
"""


def draw(root: Path) -> None:
    rng = np.random.default_rng(0)
    for label in ("apple", "pear"):
        (root / label).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((80, 60)).save(root / label / f"{number}.jpg")


def command(photos: Path, out: Path, seed: int) -> list[str]:
    return [sys.executable, "-c", TRAIN, str(photos), str(out), str(seed), str(random.choice((0, 2)))]


def result(folder: Path) -> tuple[bytes, list[dict[str, float]]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return (folder / "best.safetensors").read_bytes(), [row | {"seconds": 0.0} for row in rows]


def check(folder: Path, had_best: bool) -> bool:
    """Raise if a killed training left something unusable; returns whether it has a best model."""
    last = folder / "last.safetensors"
    if last.exists() or previous_of(last).exists():
        _read_or_offer(last)
    best = folder / "best.safetensors"
    has_best = best.exists() or previous_of(best).exists()
    assert has_best or not had_best, f"{best} was lost"
    if has_best:
        _read_or_offer(best)
        load_model(best)
    return has_best


def main() -> None:
    wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 50
    random.seed(0)
    with tempfile.TemporaryDirectory() as place:
        photos, whole, cut = Path(place) / "photos", Path(place) / "whole", Path(place) / "cut"
        draw(photos)
        kills, seed, after = 0, 0, {"nothing": 0, "a checkpoint": 0, "a best model": 0}
        while kills < wanted:
            config = Config("mobilenet_v3_small", None, "from_scratch", epochs=8, batch_size=4, seed=seed)
            begin = time.monotonic()
            subprocess.run(command(photos, whole, seed), check=True)
            seconds, had_best = time.monotonic() - begin, False
            while True:
                process = subprocess.Popen(command(photos, cut, seed))
                try:
                    assert process.wait(random.uniform(0.3, 1.5) * seconds) == 0, "going on failed"
                    break
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                kills += 1
                had_best = check(cut / config.name, had_best)
                saved = list((cut / config.name).glob("last.safetensors*"))
                after["a best model" if had_best else "a checkpoint" if saved else "nothing"] += 1
            assert result(cut / config.name) == result(whole / config.name), f"{config.name} differs"
            seed += 1
            print(f"{kills} kills (after {after}), {seed} trainings ended as if there had been none", flush=True)


if __name__ == "__main__":
    start = time.monotonic()
    main()
    print(f"{time.monotonic() - start:.0f} s")
