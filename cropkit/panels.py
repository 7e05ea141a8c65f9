"""A panel for runs: choose, start, watch, stop, go on, compare. All that it shows it reads from the runs' folders.

Training runs in a process of its own, so it outlives the page and the kernel: JupyterLab loses what a running cell
prints when its page is closed (jupyterlab#4237).
"""

import asyncio
import contextlib
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd

from cropkit.data.corrections import read_corrections
from cropkit.data.files import replace_file, replace_text
from cropkit.evaluation.explorer import explore
from cropkit.evaluation.pages import text
from cropkit.experiments import RECIPES, RECORD, Config, Run, is_locked, read_run, run_experiment

PROCESS, LOG, OPENED = "process.json", "process.log", "test_opened.json"
CHILD = "import sys; from cropkit.panels import main; sys.exit(main(*sys.argv[1:]))"
WATCHING: dict[str, asyncio.Task] = {}  # by folder: what keeps the newest panel of each up to date
EVERY = 1.0  # seconds between two looks at the folders
WIDTH, HEIGHT = 420, 120  # pixels of the curve
NUMBERS: dict[str, Callable[[str], Any]] = {
    "epochs": int,
    "learning_rate": float,
    "batch_size": int,
    "seed": int,
    "cut": float,
}


def start(config: Config, catalog: pd.DataFrame, out: str | os.PathLike[str]) -> Path:
    """Train what a config says in a process of its own, or go on with it; see `run_experiment`.

    Args:
        config: as for `run_experiment`.
        catalog: as for `run_experiment`.
        out: the folder for runs.

    Returns:
        The run's folder; ``process.log`` in it has what the process printed.

    Raises:
        BlockingIOError: if it is trained already.
        OSError: if the folder cannot be written.

    Example:
        >>> folder = start(Config("mobilenet_v3_small", None, "feature_extraction", resolution=64), catalog, "started")
        >>> state_of(folder)
        'running'
        >>> stop(folder)
    """
    out = Path(out).expanduser()
    if config.corrections is not None:  # as they are now: more may be said before the process reads them
        read_corrections(config.corrections)  # refuses what is none, in a sentence
        said = Path(config.corrections).expanduser().read_bytes()
        kept = out / "catalogs" / f"corrections-{hashlib.sha256(said).hexdigest()[:16]}.csv"
        replace_file(kept, said, durable=True)
        config = replace(config, corrections=str(kept))
    folder = out / config.name
    if state_of(folder) in ("running", "elsewhere"):
        raise BlockingIOError(f"{folder.name} is trained already. Stop it first, or change a field.")
    table = catalog.to_csv(index=False)
    photos = out / "catalogs" / f"{hashlib.sha256(table.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.csv"
    replace_text(photos, table)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOG, "w") as log:  # a session of its own, so that no signal to the kernel reaches it
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, json.dumps(asdict(config)), str(photos), str(out)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    _note_process(folder, child.pid)
    return folder


def stop(folder: str | os.PathLike[str], *, wait: float = 60.0) -> None:
    """Let a run's process finish its step, save and end; the run can go on with `start`.

    On Windows it ends at once, and goes on from its last saving.

    Args:
        folder: the run's.
        wait: seconds until the process has ended, at most; 0 does not wait.

    Raises:
        TimeoutError: if it has not ended by then.
        ValueError: if a cell or a shell trains it.
    """
    import psutil

    if (process := _process_of(Path(folder))) is None:
        if is_locked(folder):
            raise ValueError(f"{Path(folder).name} is trained by a cell or a shell. Interrupt it there.")
    else:
        with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended by itself
            process.terminate()  # SIGTERM, which run_experiment answers by saving
        if wait and not _ended(process, wait):
            raise TimeoutError(f"{folder}: its process has not ended within {wait:g} s. Wait, or end it by hand.")


def state_of(folder: str | os.PathLike[str]) -> str:
    """As folder and processes say: ``"finished"``, ``"running"`` (by `start`), ``"elsewhere"`` (trained by a cell or a
    shell) or ``"stopped"``."""
    if _process_of(Path(folder)) is not None:
        return "running"
    record = Path(folder) / RECORD
    if record.exists() and json.loads(record.read_text("utf-8"))["finished"]:
        return "finished"
    return "elsewhere" if is_locked(folder) else "stopped"


def _process_of(folder: Path) -> Any:
    """The process that trains in a folder, or None."""
    import psutil

    try:
        noted = json.loads((folder / PROCESS).read_text())
        process = psutil.Process(noted["pid"])
        # Another process may have got the same number since.
        alive = process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - noted["created"]) < 1
    except (OSError, ValueError, psutil.Error):
        return None
    return process if alive else None


def _ended(process: Any, within: float) -> bool:
    import psutil

    try:
        process.wait(within)
    except psutil.TimeoutExpired:
        return False
    return True


def _note_process(folder: Path, pid: int) -> None:
    import psutil

    replace_text(folder / PROCESS, json.dumps({"pid": pid, "created": psutil.Process(pid).create_time()}))


def panel(catalog: pd.DataFrame, out: str | os.PathLike[str], *, base: Config | None = None) -> Any:
    """Controls for runs: the fields of a `Config`, run, stop, go on, clone, and what all runs in a folder reached.

    The runs' processes outlive page and kernel, and the panel is made of their folders alone: after a reload, or in
    another kernel, the same call shows the same. It shows val; test is opened for one run at a time, by a button, and
    the run's folder records when.

    Args:
        catalog: divided into train, val and test.
        out: the folder for runs, as for `run_experiment`.
        base: what the controls say at first.

    Returns:
        A widget.

    Raises:
        OSError: if the folder cannot be written.
        ImportError: if ipywidgets is not installed.

    Example:
        >>> widget = panel(catalog, "runs", base=Config("mobilenet_v3_small", None))
        >>> [button.description for button in widget.children[1].children]
        ['run', 'stop', 'go on', 'clone', 'open the test']
    """
    try:
        import ipywidgets as widgets
        import psutil  # noqa: F401
    except ImportError as error:
        raise ImportError("panel needs ipywidgets and psutil: pip install ipywidgets psutil") from error
    out = Path(out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise PermissionError(f"{out}: cannot be written, so no run can be kept there. Name another folder.")
    wide = {"description_width": "8em"}

    def control(name: str) -> Any:
        if name in ("augment", "mirror"):
            return widgets.Checkbox(description=name, style=wide)
        if name == "method":
            return widgets.Dropdown(options=list(RECIPES), description=name, style=wide)
        if name == "around":
            return widgets.Dropdown(options=["centre", "crosshair"], description=name, style=wide)
        if name == "recipe":
            recipes = dict.fromkeys(recipe for each in RECIPES.values() for recipe in each)
            return widgets.Dropdown(options=["", *recipes], description=name, style=wide)
        return widgets.Text(description=name, style=wide, continuous_update=False)

    controls = {field.name: control(field.name) for field in fields(Config)}

    def fill(config: Config) -> None:
        for name, one in controls.items():
            value = getattr(config, name)
            one.value = value if isinstance(value, bool) else "" if value is None else str(value)

    def asked() -> Config:
        values: dict[str, Any] = {}
        for name, one in controls.items():
            value = one.value.strip() if isinstance(one.value, str) else one.value
            if value == "":
                value = None
            elif name in NUMBERS or (name == "resolution" and value != "auto"):
                try:
                    value = NUMBERS.get(name, int)(value)
                except ValueError as error:
                    raise ValueError(f"{name} is {value!r}, but must be a number.") from error
            values[name] = value
        return Config(**values)

    buttons = [widgets.Button(description=name) for name in ("run", "stop", "go on", "clone", "open the test")]
    chosen = widgets.Select(options=[], description="runs", rows=6, layout={"width": "60em"}, style=wide)
    before, after = (widgets.Dropdown(options=[], description=name, style=wide) for name in ("before", "after"))
    compare = widgets.Button(description="compare")
    told, curve, page = widgets.HTML(), widgets.HTML(), widgets.HTML()
    known: dict[str, Run] = {}

    def refresh() -> None:
        for record in out.glob(f"*/{RECORD}"):
            name = record.parent.name
            if name not in known or not known[name].finished:  # what is finished stays as it is
                with contextlib.suppress(ValueError):  # of another version, or damaged: it is listed by its name
                    known[name] = read_run(record.parent)
        for name in [name for name in known if not (out / name).exists()]:
            del known[name]
        begun = sorted({file.parent.name for kind in (PROCESS, RECORD) for file in out.glob(f"*/{kind}")})
        shown = [(_line(out / name, known.get(name), known), name) for name in begun]
        if list(chosen.options) != shown:
            kept = chosen.value
            chosen.options = shown
            chosen.value = kept if kept in begun else begun[-1] if begun else None
        finished = [name for name in begun if name in known and known[name].finished]
        for one in (before, after):
            if list(one.options) != finished:
                kept = one.value
                one.options = finished
                one.value = kept if kept in finished else None
        curve.value = _progress(out / chosen.value, known.get(chosen.value)) if chosen.value else ""

    def on(button: Any, act: Callable[[], str]) -> None:
        def clicked(_: object) -> None:
            try:
                told.value = text(act())
            except Exception as error:  # nobody else would see it
                told.value = f"<b>{text(error)}</b>"
            refresh()

        button.on_click(clicked)

    def picked() -> str:
        if chosen.value is None:
            raise ValueError("there is no run yet. Choose, and press run.")
        return chosen.value

    def run_now() -> str:
        folder = start(asked(), catalog, out)
        refresh()
        chosen.value = folder.name
        return f"started {folder.name}"

    def go_on() -> str:
        name = picked()
        if name not in known or known[name].config.name != name:
            raise ValueError(f"{name} cannot go on: it has not begun, or is of an earlier version. Press run.")
        start(known[name].config, catalog, out)
        return f"goes on: {name}"

    def end() -> str:
        stop(out / picked(), wait=0)
        return f"{picked()} finishes its step, saves and stops"

    def copy() -> str:
        if picked() not in known:
            raise ValueError(f"{picked()} has no record yet. Wait until it has begun.")
        fill(known[picked()].config)
        return f"the fields are those of {picked()}. Change one, and press run."

    def open_test() -> str:
        name = picked()
        if name not in known or not known[name].finished:
            raise ValueError(f"{name} is not finished, so there is no test to open.")
        if not (out / name / OPENED).exists():
            when = datetime.now(timezone.utc).isoformat(timespec="seconds")
            replace_text(out / name / OPENED, json.dumps({"when": when}))
        return f"the test of {name} is open; its folder says so"

    def show_both() -> str:
        if before.value is None or after.value is None:
            raise ValueError("choose a run before, and a run after.")
        pair = [known[one.value] for one in (before, after)]
        split = "test" if all((run.folder / OPENED).exists() for run in pair) else "val"
        tables = [run.predictions[run.predictions["split"] == split] for run in pair]
        # Corrections of val change its labels, or leave photos out: what both have alike is compared.
        same = set(tables[0].merge(tables[1], on=["path", "target"])["path"])
        page.value = explore(*(table[table["path"].isin(same)] for table in tables)).html
        left = max(map(len, tables)) - len(same)
        others = f"; {left} left out, since their labels differ" if left else ""
        return f"the {split} photos: {before.value}, then {after.value}{others}"

    for button, act in zip([*buttons, compare], (run_now, end, go_on, copy, open_test, show_both), strict=True):
        on(button, act)
    chosen.observe(lambda _: refresh(), "value")
    fill(base or Config())
    half = math.ceil(len(controls) / 2)
    columns = [widgets.VBox(list(controls.values())[:half]), widgets.VBox(list(controls.values())[half:])]
    box = widgets.VBox(
        [
            widgets.HBox(columns),
            widgets.HBox(buttons),
            told,
            chosen,
            curve,
            widgets.HBox([before, after, compare]),
            page,
        ]
    )
    box.refresh = refresh
    refresh()

    async def watch() -> None:
        while box.comm is not None:  # until it is closed
            with contextlib.suppress(OSError, ValueError):  # a folder is being removed or written
                refresh()
            await asyncio.sleep(EVERY)

    with contextlib.suppress(RuntimeError):  # outside a notebook nothing runs beside the caller
        if (earlier := WATCHING.pop(str(out.resolve()), None)) is not None:
            earlier.cancel()  # the panel that the same cell made before
        WATCHING[str(out.resolve())] = asyncio.get_running_loop().create_task(watch())
    return box


def _line(folder: Path, run: Run | None, all_runs: dict[str, Run]) -> str:
    """A run in the list: its state, what it differs in from the others, and what it reached on val."""
    state = state_of(folder)
    if run is None:
        return f"{state:9s} {folder.name}"
    configs = [asdict(one.config) for one in all_runs.values()]
    differ = [name for name in configs[0] if len({str(config[name]) for config in configs}) > 1]
    said = ", ".join(f"{name} {getattr(run.config, name)}" for name in differ)
    best = run.history["val_accuracy"].max() if len(run.history) else math.nan
    reached = "" if math.isnan(best) else f"; val {best:.1%}"
    if (folder / OPENED).exists() and "test_accuracy" in run.metrics:
        reached += f"; test {run.metrics['test_accuracy']:.1%}"
    return f"{state:9s} {run.config.method} {folder.name[-8:]}{f' ({said})' if said else ''}{reached}"


def _progress(folder: Path, run: Run | None) -> str:
    """Where a run stands, in words, and its curve."""
    state = state_of(folder)
    log = (folder / LOG).read_text(errors="replace").strip() if (folder / LOG).exists() else ""
    if state == "stopped" and log:  # the last thing that its process said
        state = f"stopped: {text(log.splitlines()[-1])}"
    if run is None or "epoch" not in run.history:
        return f"<div>{state}</div>"
    epochs = run.history[run.history["epoch"] > 0]
    left = run.config.epochs - len(epochs)
    if state == "running" and len(epochs):
        state += f", about {epochs['seconds'].mean() * left / 60:.0f} min left"
    return f"<div>{state}; {len(epochs)} of {run.config.epochs} epochs</div>{_curve(run.history)}"


def _curve(history: pd.DataFrame) -> str:
    """Accuracy over the epochs as a small drawing: val as a line, train dashed."""
    last = max(1, int(history["epoch"].max()))
    lines = []
    for column, style in (("val_accuracy", ""), ("train_accuracy", "stroke-dasharray:4 3")):
        known = history[history[column].notna()]
        points = " ".join(
            f"{30 + (WIDTH - 40) * epoch / last:.0f},{10 + (HEIGHT - 30) * (1 - value):.0f}"
            for epoch, value in zip(known["epoch"], known[column], strict=True)
        )
        lines.append(f'<polyline points="{points}" style="fill:none;stroke:rgb(0,114,178);stroke-width:2;{style}"/>')
    labels = "".join(
        f'<text x="0" y="{14 + (HEIGHT - 30) * (1 - value):.0f}" style="font-size:10px">{value:.0%}</text>'
        for value in (0, 0.5, 1)
    )
    title = f"accuracy from epoch 0 to {last}: val, and train dashed"
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" role="img" aria-label="{title}"><title>{title}</title>'
        f'{labels}{"".join(lines)}<text x="30" y="{HEIGHT - 2}" style="font-size:10px">{title}</text></svg>'
    )


def main(config: str, photos: str, out: str) -> int:
    """What the child process does."""
    catalog = pd.read_csv(photos, dtype=str, keep_default_na=False, encoding_errors="surrogateescape")
    try:
        run_experiment(Config(**json.loads(config)), catalog, out)
    except (OSError, ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0
