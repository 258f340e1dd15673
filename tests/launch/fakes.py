"""Shared by the tests of launch/: a plain environment, and fake programs."""

import os
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ["python", "-m", "ddm_jax.main", "--config=configs/radd_small.py", "--workdir=gs://b/r"]
# trains until SIGTERM, when it saves; prints its arguments first
TRAINS = """
import os, pathlib, signal, sys, time
def stop(which, frame):
    print("Stopped and saved at step 7. Run the same command to resume.")
    sys.exit(128 + which)
signal.signal(signal.SIGTERM, stop)
print(sys.argv[1:], pathlib.Path("launch/local.py").exists())
time.sleep(600)
"""


def clean(**more):
    """A minimal environment, so that golden text does not depend on the machine's."""
    names = ("PATH", "HOME", "LANG")
    return {k: os.environ[k] for k in names if k in os.environ} | {"TMPDIR": "/tmp"} | more


def program(folder, name, text):
    """Writes an executable program into a folder that comes first in PATH."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)


def wait_for(condition):
    """Waits until the condition holds; the time limit is only to end a failing test."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")
