"""launch/tpu_vm.sh works with a fake gcloud in place of the cloud.

The fake runs a worker's commands in a folder of this machine, the home of that worker.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests.launch.fakes import ROOT, TRAINS, clean, program, wait_for

FAKE_GCLOUD = f"""#!{sys.executable}
import json, os, pathlib, re, shutil, subprocess, sys
here = pathlib.Path(os.environ["FAKE"])
words = sys.argv[1:]
with open(here / "calls", "a") as f:
    f.write(json.dumps(words) + "\\n")
assert words[:3] == ["compute", "tpus", "queued-resources"], words
verb, rest = words[3], words[4:]
flags = dict(w[2:].partition("=")[::2] for w in rest if w.startswith("--"))
plain = [w for w in rest if not w.startswith("--")]
assert flags["zone"] == "z" and plain[-1].startswith("radd") or verb == "scp"
state = here / "state"
workers = [here / f"worker{{j}}{{k}}" for j in range(2) for k in range(2)]
if verb == "create":
    assert not state.exists()
    assert flags["node-count"] == "2" and flags["node-prefix"] == "radd" and "spot" in flags
    state.write_text("ACTIVE\\n")
    for w in workers:
        w.mkdir()
elif verb == "describe":
    if not state.exists():
        sys.exit("NOT_FOUND")
    print(state.read_text(), end="")
elif verb == "delete":
    assert "force" in flags and "quiet" in flags
    state.unlink()
    for w in workers:
        shutil.rmtree(w)
elif verb == "scp":
    assert state.read_text() == "ACTIVE\\n" and flags["node"] == flags["worker"] == "all"
    for w in workers:
        shutil.copy(plain[0], w / plain[1].removeprefix("radd:"))
elif verb == "ssh":
    assert state.read_text() == "ACTIVE\\n"
    codes = []
    for w in workers:
        j, k = w.name[-2:]
        if flags["node"] in ("all", j) and flags["worker"] in ("all", k):
            env = os.environ | {{"HOME": str(w)}}
            done = subprocess.run(["bash", "-c", flags["command"]], cwd=w, env=env)
            codes.append(done.returncode)
    sys.exit(max(codes))
else:
    sys.exit(f"no such verb: {{verb}}")
"""
FAKE_UV = f"""#!/bin/bash
if [ "$1" = venv ]; then mkdir -p .venv/bin && ln -s {sys.executable} .venv/bin/python; fi
echo "$@" >> "$HOME/uv"
"""


@pytest.fixture
def here(tmp_path):
    """The test's folder; no run of a worker outlives it."""
    yield tmp_path
    for file in tmp_path.glob("worker*/ddm_jax/run.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.mark.slow
def test_a_life_on_tpu_vms(here):
    """Two slices of two workers, from create to delete, with a preemption between."""
    program(here / "bin", "gcloud", FAKE_GCLOUD)
    program(here / "bin", "uv", FAKE_UV)
    env = clean(FAKE=str(here), TMPDIR=str(here), DDM_POLL="0.1")
    env["PATH"] = f"{here / 'bin'}:{env['PATH']}"
    # wherever the tests run from, there is a checkout to copy
    checkout = here / "checkout"
    shutil.copytree(ROOT / "launch", checkout / "launch")
    (checkout / "file of mine").write_text("new")
    (checkout / "ignored").write_text("x")
    (checkout / ".gitignore").write_text("ignored\n")
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)

    def vm(verb, *words, code=0):
        command = ["launch/tpu_vm.sh", verb, "--name=radd", "--zone=z", "--slices=2", "--tier=spot"]
        done = subprocess.run(
            [*command, *words], cwd=checkout, env=env, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    strange = ["it's", 'a "b" $HOME `c`', "*", ""]
    train = ["--", "python", "-c", TRAINS, *strange]
    logs = [here / f"worker{j}{k}" / "ddm_jax" / "run.log" for j in range(2) for k in range(2)]

    def all_say(word):
        return all(log.exists() and word in log.read_text() for log in logs)

    assert "radd does not exist" in vm("wait", code=2)
    vm("create")
    vm("wait")
    assert vm("status").count("no run") == 4
    vm("install")
    for log in logs:
        assert (log.parent / "file of mine").read_text() == "new"
        assert not (log.parent / "ignored").exists()
        assert "pip install" in (log.parents[1] / "uv").read_text()
    assert vm("run", *train).count("started") == 4
    wait_for(lambda: all_say("True"))
    assert all(log.read_text() == f"{strange} True\n" for log in logs)
    assert vm("status").count("running") == 4
    assert "a run is in progress" in vm("run", *train, code=1)
    assert vm("stop").count("asked to save and stop") == 4
    wait_for(lambda: all_say("ended with code 143"))
    assert all("Stopped and saved at step 7" in log.read_text() for log in logs)
    assert vm("status").count("ended; [ended with code 143") == 4
    vm("run", *train)  # resumes
    wait_for(lambda: all(log.read_text().count("True") == 2 for log in logs))
    pids = [int((log.parent / "run.pid").read_text()) for log in logs]
    for pid in pids:  # preemption: the machines are gone, the request is suspended
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: all_say("ended with code 137"))
    (here / "state").write_text("SUSPENDED\n")
    assert "SUSPENDED" in vm("wait", code=1)
    vm("resume", *train)  # new machines: the logs start anew
    wait_for(lambda: all_say("True"))
    assert all(log.read_text().count("True") == 1 for log in logs)
    calls = [json.loads(line)[3] for line in (here / "calls").read_text().splitlines()]
    assert calls[-7:] == ["describe", "delete", "create", "describe", "scp", "ssh", "ssh"]
    vm("stop")
    wait_for(lambda: all_say("ended with code 143"))
    vm("delete")
    assert not (here / "state").exists()
