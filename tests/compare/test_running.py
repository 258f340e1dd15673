"""Cells run by programs that stand in for ddm_jax.main: how many at once, and what stops what."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ddm_jax.compare import cell_progress, running
from ddm_jax.compare.cells import Cell, read_cell
from tests.compare.made import make_run
from tests.compare.test_cells import cells_of

# tells the file `log` when it starts and ends, and leaves behind what a finished run does; it lasts
# until the log has some texts, split by |
PROGRAM = """
import shutil, signal, sys, time
from pathlib import Path
folder, kind, until = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
log = folder.parent.parent / "log"
def tell(what):
    with log.open("a") as file:
        file.write(f"{what} {folder.name}\\n")
def stop(*_):
    tell("stopped")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
tell("started")
for _ in range(60_000):  # only a failing test needs an end
    if all(text in log.read_text() for text in until.split("|")):
        break
    time.sleep(0.01)
if kind == "mistake":
    print("error: The batch does not split.", file=sys.stderr)
    sys.exit(2)
if kind == "crash":
    print("Traceback of something", flush=True)
    sys.exit(1)
shutil.copytree(folder.parent.parent / "made" / folder.name, folder, dirs_exist_ok=True)
tell("ended")
"""


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """Two objectives under two layouts; kind of each, and the text of the log that it waits for."""
    made = cells_of(tmp_path, ("ar", "gidd"), seeds=(0,))
    for cell in made:
        folder = make_run(tmp_path / "made" / cell.name, cell.objective, cell.layout, cell.seed)
        (folder / "checkpoints" / "20").mkdir(parents=True)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    kinds = {}

    def command(cell):
        kind, until = kinds.get(cell.name, ("good", ""))
        return [sys.executable, str(program), str(cell.folder), kind, until]

    monkeypatch.setattr(Cell, "command", property(command))
    monkeypatch.setattr(running, "POLL", 0.02)
    return made, kinds


def log(tmp_path):
    path = tmp_path / "log"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(tmp_path, line):
    for _ in range(60_000):  # only a failing test needs an end
        if line in log(tmp_path):
            return
        time.sleep(0.01)
    raise AssertionError(f"{line}: it never came")


def test_one_after_another_and_none_twice(cells, tmp_path):
    made, _ = cells
    assert running.run_cells(made, at_once=1)
    assert log(tmp_path) == [f"{what} {c.name}" for c in made for what in ("started", "ended")]
    assert all(read_cell(c.folder).whole for c in made)
    assert running.run_cells(made, at_once=1)
    assert len(log(tmp_path)) == 8


def test_several_at_once(cells, tmp_path):
    made, kinds = cells
    # none ends before all three have started
    three = "|".join(f"started {cell.name}" for cell in made[:3])
    kinds |= {cell.name: ("good", three) for cell in made[:3]}
    assert running.run_cells(made, at_once=3)
    assert {line.split()[0] for line in log(tmp_path)[:3]} == {"started"}
    assert log(tmp_path)[3].split()[0] == "ended"


def test_a_failed_cell_stops_nothing_and_keeps_its_reason(cells, tmp_path):
    made, kinds = cells
    kinds |= {made[0].name: ("mistake", ""), made[1].name: ("crash", "")}
    assert running.run_cells(made, at_once=1)
    assert read_cell(made[0].folder).reason == "The batch does not split."
    assert "exit code 1" in read_cell(made[1].folder).reason
    assert "Traceback of something" in read_cell(made[1].folder).reason
    assert all(cell.is_finished() for cell in made[2:])
    # once mended, it runs, and its old reason is gone
    kinds.clear()
    assert running.run_cells(made, at_once=1)
    assert all(cell.is_finished() for cell in made)
    assert read_cell(made[0].folder).reason is None


def test_a_recipe_that_changes_meanwhile_fails_its_cells_alone(cells, tmp_path):
    made, _ = cells
    path = tmp_path / "made" / made[0].name / "config.json"
    record = json.loads(path.read_text())
    record["config"]["optim"]["lr"] = 0.5
    path.write_text(json.dumps(record))
    assert running.run_cells(made, at_once=1)
    assert "holds a run with config.optim.lr=0.5" in read_cell(made[0].folder).reason
    assert all(cell.is_finished() for cell in made[1:])


def test_a_cell_of_an_invalid_config_is_not_started(cells, tmp_path):
    (bad,) = cells_of(tmp_path, ("udlm",), ("dp",), (0,))
    made, _ = cells
    assert running.run_cells([bad, made[0]], at_once=1)
    assert "does not fit" in read_cell(bad.folder).reason
    assert made[0].is_finished()


def test_a_signal_is_passed_on_and_nothing_more_is_started(cells, tmp_path):
    made, kinds = cells
    kinds |= {cell.name: ("good", "never") for cell in made}

    def stop():
        wait_for(tmp_path, f"started {made[0].name}")
        wait_for(tmp_path, f"started {made[1].name}")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    assert not running.run_cells(made, at_once=2)
    thread.join()
    assert sorted(log(tmp_path)[2:]) == sorted(f"stopped {c.name}" for c in made[:2])
    assert read_cell(made[0].folder).reason is None


def test_a_cell_that_outlives_a_killed_comparison_is_waited_for(cells, tmp_path, monkeypatch):
    """A process that holds the lock, as the child of a killed comparison does.

    It ends once the comparison has looked, and found no cell that it can start.
    """
    made, _ = cells
    cell = made[0]
    cell.folder.mkdir(parents=True)
    holder = f"""
import fcntl, subprocess, sys
lock = open({str(cell.folder / ".lock")!r}, "w")
fcntl.flock(lock, fcntl.LOCK_EX)
command = {[*cell.command[:-1], "waits"]!r}
subprocess.Popen(command, pass_fds=(lock.fileno(),))
"""
    subprocess.run([sys.executable, "-c", holder], check=True)  # and is gone
    wait_for(tmp_path, f"started {cell.name}")
    show = cell_progress.CellProgress.show

    def show_and_tell(self, waiting, running):
        show(self, waiting, running)
        if waiting and not running and len(log(tmp_path)) == 1:
            with (tmp_path / "log").open("a") as file:
                file.write("waits\n")

    monkeypatch.setattr(cell_progress.CellProgress, "show", show_and_tell)
    assert running.run_cells(made[:1], at_once=1)
    assert log(tmp_path) == [f"started {cell.name}", "waits", f"ended {cell.name}"]


def test_progress_says_cells_loss_speed_and_time_left(cells, tmp_path, monkeypatch, capsys):
    made, _ = cells
    monkeypatch.setattr(cell_progress, "LINE_EVERY", 0.0)
    assert running.run_cells(made[:2], at_once=1)
    part = make_run(tmp_path / "part", losses=(4.5,), nll=(), steps=20)
    made[2].folder.mkdir(exist_ok=True)
    (made[2].folder / "metrics.jsonl").write_text((part / "metrics.jsonl").read_text())
    assert (
        cell_progress.status_of(made[2]) == f"{made[2].name} step 10/20, loss 4.500, 100 tokens/s"
    )
    said = capsys.readouterr().err
    assert "time left: known after the first cell" in said
    assert "1/2 cells" in said
    assert "left" in said.rsplit("1/2 cells", 1)[1]
    assert json.loads((made[0].folder / "cell.json").read_text())["seconds"] > 0
