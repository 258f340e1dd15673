"""launch/local.py starts what a pod would start, and ends it as a pod would."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import local
from tests.launch.fakes import ROOT, wait_for

# the program reads the variables itself: this tests the launcher, not ddm_jax
SUM = """
import os, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
n, k = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], n, k)
mesh = Mesh(np.array(jax.devices()), "i")
x = jax.make_array_from_callback(
    (jax.device_count(),), NamedSharding(mesh, P("i")),
    lambda index: 10.0 ** np.arange(jax.device_count(), dtype=np.float32)[index],
)
add = jax.shard_map(lambda y: jax.lax.psum(y, "i"), mesh=mesh, in_specs=P("i"), out_specs=P())
total = float(jax.jit(add)(x).addressable_data(0)[0])
print(k, jax.process_count(), jax.local_device_count(), total)
"""


def python(code):
    return [sys.executable, "-c", code]


def launcher(logs, code):
    """The command line that runs a program in two processes."""
    words = ["launch/local.py", "--processes=2", f"--logs={logs}", "--"]
    return [sys.executable, *words, *python(code)]


def outputs(folder):
    return [p.read_text() for p in sorted(folder.glob("process_*.log"))]


@pytest.mark.slow
def test_two_processes_of_two_devices_sum_over_four(tmp_path):
    ended = local.run(python(SUM), 2, 2, logs=tmp_path, show=False)
    texts = outputs(tmp_path)
    assert ended == local.Ended((0, 0), None), texts
    # 1 + 10 + 100 + 1000: every device took part, once
    assert [t.splitlines()[-1] for t in texts] == ["0 2 2 1111.0", "1 2 2 1111.0"]


def test_each_process_gets_its_variables_and_keeps_those_of_its_parent(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_a=1")
    monkeypatch.setenv("OF_THE_PARENT", "kept")
    names = ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "XLA_FLAGS", "JAX_PLATFORMS", "OF_THE_PARENT"]
    names += ["FURTHER", "JAX_COORDINATOR_ADDRESS"]
    code = f"import os; print([os.environ[n] for n in {names}])"
    local.run(python(code), 3, 4, logs=tmp_path, show=False, variables={"FURTHER": "yes"})
    rows = [eval(text) for text in outputs(tmp_path)]
    flags = "--xla_a=1 --xla_force_host_platform_device_count=4"
    assert [r[:6] for r in rows] == [["3", str(k), flags, "cpu", "kept", "yes"] for k in range(3)]
    addresses = {r[6] for r in rows}
    assert len(addresses) == 1
    assert re.fullmatch(r"127\.0\.0\.1:\d+", addresses.pop())


def test_without_devices_the_platform_is_left_alone(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    variables = local.environment(0, 1, "127.0.0.1:1", None)
    assert not {"XLA_FLAGS", "JAX_PLATFORMS"} & set(variables)


def test_ports_of_two_groups_differ_while_both_run():
    with local._free_port(None) as one, local._free_port(None) as other:
        assert one != other


FAILS_SECOND = """
import os, sys, time
if os.environ["JAX_PROCESS_ID"] == "1":
    sys.exit(5)
time.sleep(600)
"""


def test_one_failure_ends_all_and_its_code_is_the_result(tmp_path):
    """Process 1 fails with 5; 0 and 2 sleep until they receive SIGTERM, which is 143."""
    ended = local.run(python(FAILS_SECOND), 3, logs=tmp_path, show=False, grace=0.2)
    assert ended == local.Ended((143, 5, 143), 1)
    assert ended.code == 5


def test_others_may_end_by_themselves_within_the_grace(tmp_path):
    """Process 0 ends with 3 once process 1 is not only over, but has been seen to be."""
    code = f"""
import os, pathlib, sys, time
file = pathlib.Path({str(tmp_path)!r}, "pid")
if os.environ["JAX_PROCESS_ID"] == "1":
    file.with_suffix(".new").write_text(str(os.getpid()))
    file.with_suffix(".new").rename(file)
    sys.exit(5)
while not file.exists() or pathlib.Path("/proc", file.read_text()).exists():
    time.sleep(0.01)
sys.exit(3)
"""
    ended = local.run(python(code), 2, logs=tmp_path, show=False, grace=600)
    assert ended == local.Ended((3, 5), 1)


def test_what_does_not_hear_sigterm_is_killed(tmp_path):
    code = f"""
import os, pathlib, signal, sys, time
file = pathlib.Path({str(tmp_path)!r}, "deaf")
if os.environ["JAX_PROCESS_ID"] == "0":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    file.touch()
    time.sleep(600)
while not file.exists():
    time.sleep(0.01)
sys.exit(5)
"""
    ended = local.run(python(code), 2, logs=tmp_path, show=False, grace=0.2)
    assert ended == local.Ended((137, 5), 1)


def test_killed_process_is_seen(tmp_path):
    with local.started(python("import time; time.sleep(600)"), 2, logs=tmp_path, show=False) as pod:
        pod[1].handle.kill()
        ended = local.wait(pod, grace=0.2)
    assert ended == local.Ended((143, 137), 1)


def test_nothing_is_left_behind(tmp_path):
    """A process that a process started ends with it, and all end with the block."""
    code = (
        "import subprocess, sys; c = [sys.executable, '-c', 'import time; time.sleep(600)'];"
        "print(subprocess.Popen(c).pid, flush=True)"
    )
    ended = local.run(python(code), 1, logs=tmp_path, show=False)
    assert ended.code == 0
    child = int(outputs(tmp_path)[0])
    wait_for(lambda: not alive(child))
    with local.started(python("import time; time.sleep(600)"), 2, logs=tmp_path, show=False) as pod:
        pids = [p.handle.pid for p in pod]
    wait_for(lambda: not any(alive(pid) for pid in pids))


def alive(pid):
    """Whether a process runs; a zombie, which nobody has collected, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


STOPS = """
import os, pathlib, signal, sys, time
def stop(which, frame):
    print("saved", which, flush=True)
    sys.exit(128 + which)
signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_process_once_and_they_may_save(tmp_path, which):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    group = subprocess.Popen(launcher(tmp_path, STOPS), cwd=ROOT, text=True, **pipes)
    lines = [group.stdout.readline() for _ in range(2)]  # process 0's lines come as they are
    assert lines[1] == "ready\n"
    wait_for(lambda: outputs(tmp_path) == ["ready\n"])
    group.send_signal(which)
    assert group.stdout.read() == f"saved {int(which)}\n"
    assert group.stderr.read() == ""  # nothing has failed
    assert group.wait() == 128 + which
    assert outputs(tmp_path) == [f"ready\nsaved {int(which)}\n"]
    assert str(tmp_path) in lines[0]


def test_third_signal_kills(tmp_path):
    deaf = STOPS.replace('print("saved", which, flush=True)', 'print("no", flush=True); return')
    deaf = deaf.replace("time.sleep(600)", "[time.sleep(0.1) for _ in range(6000)]")
    group = subprocess.Popen(launcher(tmp_path, deaf), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert [group.stdout.readline() for _ in range(2)][1] == "ready\n"
    wait_for(lambda: outputs(tmp_path) == ["ready\n"])
    for _ in range(2):
        group.send_signal(signal.SIGTERM)
        assert group.stdout.readline() == "no\n"
    group.send_signal(signal.SIGTERM)
    assert group.wait() == 137


def test_command_line_returns_the_first_bad_code_and_shows_why(tmp_path):
    code = (
        "import os, sys; print('why', flush=True); sys.exit(7 * int(os.environ['JAX_PROCESS_ID']))"
    )
    done = subprocess.run(launcher(tmp_path, code), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 7
    assert done.stderr == "Process 1 failed first, with code 7.\nwhy\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--processes=2"], "the command is missing"),
        (["--processes=0", "--", "true"], "--processes=0 is out of range"),
        (["--processes=2", "--devices=0", "--", "true"], "--devices=0 is out of range"),
    ],
)
def test_mistakes_end_in_a_message(words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        local.main(words)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_program_that_is_not_there(capsys):
    assert local.main(["--processes=1", "--", str(Path(os.sep) / "no" / "such")]) == 127
    assert "/no/such" in capsys.readouterr().err
