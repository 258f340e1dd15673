"""launch/slurm.sbatch and launch/resumable.sh restart what can be resumed, and nothing else."""

import shutil
import signal
import subprocess
import sys

import pytest

from tests.launch.fakes import ROOT, TRAINS, clean, program


@pytest.mark.parametrize(
    ("program_text", "code"),
    [
        ("print('Stopped and saved at step 3. Run the same command to resume.')", 75),
        ("print('done')", 0),
        ("import sys; print('Stopped and saved at step 3'); sys.exit(9)", 9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
def test_resumable_distinguishes_a_stop_from_an_end(program_text, code):
    command = ["bash", "launch/resumable.sh", sys.executable, "-c", program_text]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    if "print" in program_text:
        assert len(done.stdout.splitlines()) == 1


def test_resumable_passes_the_signal_on_and_waits():
    slow = TRAINS.replace("sys.exit(0)", "time.sleep(1); sys.exit(0)")
    command = ["bash", "launch/resumable.sh", sys.executable, "-c", slow]
    running = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert running.stdout.readline() == "[] True\n"
    running.send_signal(signal.SIGTERM)
    assert "Stopped and saved at step 7" in running.stdout.read()
    assert running.wait() == 75


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (0, 0, False),
        (75, 0, True),
        (75, 99, True),
        (3, 0, True),
        (3, 20, False),
        (1, 0, False),
        (2, 0, False),
        (137, 0, False),
    ],
)
def test_slurm_requeues_what_can_be_resumed(tmp_path, code, restarts, requeued):
    program(tmp_path / "bin", "srun", f'#!/bin/bash\nprintf "%s\\n" "$@" "$PWD"\nexit {code}\n')
    program(tmp_path / "bin", "scontrol", f'#!/bin/bash\necho "$@" >{tmp_path}/called\n')
    env = clean(SLURM_JOB_ID="41", SLURM_RESTART_COUNT=str(restarts), SLURM_SUBMIT_DIR=str(ROOT))
    env["PATH"] = f"{tmp_path / 'bin'}:{env['PATH']}"
    # Slurm runs a copy of the script, elsewhere
    shutil.copy(ROOT / "launch" / "slurm.sbatch", tmp_path / "slurm_script")
    command = ["bash", "slurm_script", "python", "-m", "x", "a 'b'"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == code
    words = done.stdout.splitlines()
    start = words.index("launch/resumable.sh")
    # the command as it was given, from where it was submitted
    assert words[start + 1 : start + 6] == ["python", "-m", "x", "a 'b'", str(ROOT)]
    assert (tmp_path / "called").exists() == requeued
    if requeued:
        assert (tmp_path / "called").read_text() == "requeue 41\n"
