"""What the tests of launch/ share: a plain environment, and programs that play others."""

import os
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ["python", "-m", "ddm_jax.main", "--config=configs/radd_small.py", "--workdir=gs://b/r"]
# trains until it is told to stop: writes what it was given, saves at SIGTERM
TRAINS = """
import os, pathlib, signal, sys, time
def stop(which, frame):
    print("Stopped and saved at step 7: the same command goes on.")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print(sys.argv[1:], pathlib.Path("launch/local.py").exists())
time.sleep(600)
"""


def clean(**more):
    """An environment that golden text may depend on."""
    names = ("PATH", "HOME", "LANG")
    return {k: os.environ[k] for k in names if k in os.environ} | {"TMPDIR": "/tmp"} | more


def program(folder, name, text):
    """A program of that name, in a folder that comes first in PATH."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)


def wait_for(condition):
    """Waits for what must come; the test's own limit, not a measurement."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")
