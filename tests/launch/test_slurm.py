"""launch/slurm.sbatch requeues what can be resumed, and nothing else."""

import shutil
import subprocess

import pytest

from tests.launch.fakes import ROOT, clean, program


@pytest.mark.parametrize(
    ("code", "restarts", "requeued"),
    [
        (0, 0, False),
        (143, 0, True),
        (143, 99, True),
        (130, 0, False),  # Ctrl-C
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
    start = words.index("--label")
    # the command as it was given, from where it was submitted
    assert words[start + 1 : start + 6] == ["python", "-m", "x", "a 'b'", str(ROOT)]
    assert (tmp_path / "called").exists() == requeued
    if requeued:
        assert (tmp_path / "called").read_text() == "requeue 41\n"
