"""Several real processes are one run: the same numbers, one log, stopped together, and resumed.

Every run is the command, in forks (tests/commands.py) with CPU devices of their own.
"""

import json
import os
import random
import shutil
import signal
import socket
import threading
import time

import numpy as np
import pytest

from ddm_jax.data.build.atomic_folder import exclusive_lock
from ddm_jax.errors import UserError
from ddm_jax.parallel import processes
from ddm_jax.runs.files import read_metrics
from tests import commands
from tests.commands import RECIPE, VARIABLES
from tests.held_steps import hold_steps

STEPS = 60
SETTINGS = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "model.dropout": 0.1,
    "data.tokenizer": "bytes",
    "data.length": 16,
    "data.validation_fraction": 0.2,
    "data.test_fraction": 0.0,
    "optim.warmup_steps": 5,
    "train.steps": STEPS,
    "train.batch_size": 8,
    "train.log_every": 1,
    "train.checkpoint_every": 6,
    "eval.every": STEPS,
    "eval.sequences": 12,
    "eval.batch_size": 8,
    "eval.draws": 1,
    "sampler.steps": 2,
    "sampler.num": 1,
    "sampler.name": "ancestral",  # compiles fast
}
TIMINGS = {"step_s", "tokens_per_s"}


def tear_for_one():
    """Each process reads its own part of the arrays, and that of process 1 is torn."""
    import orbax.checkpoint as ocp

    restore = ocp.Checkpointer.restore

    def torn(self, folder, *args, **kwargs):
        if folder.name == os.environ["TORN"] and os.environ["JAX_PROCESS_ID"] == "1":
            raise ValueError("torn")
        return restore(self, folder, *args, **kwargs)

    ocp.Checkpointer.restore = torn


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for i in range(20):
        words = rng.choices(["the", "state", "of", "union", "is", "strong", "."], k=200)
        (folder / f"{i}.txt").write_text(" ".join(words))
    return {"data.source": f"text:{folder}/*.txt", "data.root": str(folder / "prepared")}


def start(workdir, corpus, count, devices, layout="dp", extra=(), before=None, **variables):
    """The processes of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = commands.flags_of({**SETTINGS, **corpus, "layout.name": layout})
    xla = f"{VARIABLES['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    made = []
    for number in range(count):
        env = {"XLA_FLAGS": xla, **variables}
        if count > 1:
            by_hand = (f"127.0.0.1:{port}", str(count), str(number))
            env |= dict(zip(processes.MANUAL_VARIABLES, by_hand, strict=True))
        words = (RECIPE, f"--workdir={workdir}", *flags, *extra)
        made.append(commands.start("main", *words, env=env, before=before))
    return made


def outputs(made):
    """What each has said; errors are last."""
    return [process.stdout + process.stderr for process in made]


def finish(made):
    codes = [process.wait() for process in made]
    assert not any(codes), "\n".join(outputs(made))
    return outputs(made)


def numbers(workdir):
    """metrics.jsonl without what the clock decides."""
    records = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in TIMINGS} for r in records]


@pytest.fixture(scope="module")
def alone_run(tmp_path_factory, corpus):
    """One process with four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finish(start(workdir, corpus, 1, 4))
    return numbers(workdir)


@pytest.fixture(scope="module")
def together(tmp_path_factory, corpus, alone_run):
    """Two processes with two devices each, which share the state and find the data prepared."""
    del alone_run
    workdir = tmp_path_factory.mktemp("together") / "run"
    said = finish(start(workdir, corpus, 2, 2, "fsdp"))
    return workdir, said


def assert_close(found, wanted):
    assert [r["step"] for r in found] == [r["step"] for r in wanted]
    for name in ("loss", "grad_norm", "nll"):
        a, b = ([r[name] for r in records if name in r] for records in (found, wanted))
        np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_two_processes_are_one_run_with_one_log(together, alone_run):
    workdir, said = together
    assert_close(numbers(workdir), alone_run)
    assert [r["step"] for r in numbers(workdir) if "loss" in r] == list(range(1, STEPS + 1))
    assert len([r for r in numbers(workdir) if "nll" in r]) == 1
    assert [p.name for p in (workdir / "samples").iterdir()] == [f"{STEPS:08d}.txt"]
    assert len(list((workdir / "tensorboard").iterdir())) == 1
    assert "Validation:" in said[0]
    # gloo, JAX's library of collectives on CPUs, greets by itself
    assert [line for line in said[1].splitlines() if "[Gloo]" not in line] == []


@pytest.mark.parametrize(("layout", "count", "devices"), [("dp", 1, 1), ("pmap", 4, 1)])
@pytest.mark.slow
def test_other_numbers_of_processes_resume_from_a_checkpoint_of_two(
    together, alone_run, corpus, tmp_path, layout, count, devices
):
    workdir = tmp_path / "run"
    shutil.copytree(together[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    before = saved(workdir)
    assert 0 < before < STEPS
    said = finish(start(workdir, corpus, count, devices, layout))
    assert f"Resuming from step {before}" in said[0]
    assert_close(numbers(workdir), alone_run)


def saved(workdir, before=0):
    """The step of the newest checkpoint, or the one `before` places earlier; 0 without one."""
    folder = workdir / "checkpoints"
    found = folder.iterdir() if folder.is_dir() else []
    steps = sorted(int(p.name) for p in found if p.name.isdigit())
    return steps[-1 - before] if len(steps) > before else 0


def interrupted(workdir, corpus, which, how):
    """Sends `how` to processes `which` after a new checkpoint: (codes, outputs, step before)."""
    before, release = saved(workdir), workdir.with_name("release")
    release.unlink(missing_ok=True)
    # JAX ends the others where process 0 is killed; otherwise only the timeout can
    stalls = how == signal.SIGSTOP or (how == signal.SIGKILL and 0 not in which)
    extra = ("--stall_timeout=2",) if stalls else ()
    held = {"HOLD_AT": str(before + 8), "RELEASE": str(release)}  # a checkpoint at every sixth step
    made = start(workdir, corpus, 2, 2, "fsdp", extra, hold_steps, **held)
    while saved(workdir) <= before:
        assert all(p.poll() is None for p in made), "\n".join(outputs(made))
        time.sleep(0.02)
    for number in which:
        made[number].send_signal(how)
    release.touch()
    others = [p for k, p in enumerate(made) if k not in which or how == signal.SIGTERM]
    codes = [p.wait() for p in others]
    for process in made:
        process.kill()
        process.wait()
    return codes, outputs(made), before


@pytest.mark.slow
def test_run_stopped_in_any_way_resumes_bit_for_bit(together, corpus, tmp_path):
    workdir = tmp_path / "run"
    for how, victim in ((signal.SIGKILL, 1), (signal.SIGKILL, 0), (signal.SIGSTOP, 1)):
        codes, said, _ = interrupted(workdir, corpus, [victim], how)
        assert codes == [processes.STALLED]
        last = said[1 - victim].strip().splitlines()[-1]
        assert last.startswith(f"error: process {1 - victim} of 2: "), said
        assert "another process" in last
        assert "Run the same command on each of them to resume from the last checkpoint" in last
        if how == signal.SIGSTOP:
            assert "nothing has happened for 2 s" in last
    codes, said, before = interrupted(workdir, corpus, [1], signal.SIGTERM)
    assert codes == [143, 143], said
    assert f"Resuming from step {before}" in said[0]
    # process 0 says at which step, and the checkpoint of that step is whole: all were there
    newest, older = saved(workdir), saved(workdir, before=1)
    assert f"Stopped and saved at step {newest}. Run the same command to resume." in said[0]
    assert numbers(workdir)[-1]["step"] == newest < STEPS
    torn = {"before": tear_for_one, "TORN": str(newest)}
    said = finish(start(workdir, corpus, 2, 2, "fsdp", **torn))
    assert f"Checkpoint {newest} cannot be read (another process cannot read it)" in said[0]
    assert f"Resuming from step {older}" in said[0]
    assert numbers(workdir) == numbers(together[0])


def test_limit_is_that_of_a_step_only_after_the_first_step():
    """Before it, also after something slow: programs are compiled, or read, in between."""
    watch = processes.Watchdog(10)
    limits = []
    for what in ("start", "slow", "step", "slow"):
        if what == "slow":
            with watch.slow():
                limits.append(watch._deadline[1])
        if what == "step":
            watch.step_finished(1)
        limits.append(watch._deadline[1])
    long = 10 * processes.SLOW_FACTOR
    assert limits == [long, long, long, 10, long, 10]


@pytest.mark.slow
def test_each_process_reports_a_mistake_of_all(corpus, tmp_path):
    made = start(tmp_path / "run", corpus, 2, 2, extra=("--config.train.batch_size=6",))
    assert [p.wait() for p in made] == [2, 2]
    said = outputs(made)
    for number, text in enumerate(said):
        assert f"error: process {number} of 2: config.train.batch_size" in text
        assert "does not split over 4 devices" in text
        assert "Traceback" not in text


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (("10.0.0.1:12", "2", ""), "JAX_PROCESS_ID must be set too"),
        (("", "2", "0"), "JAX_COORDINATOR_ADDRESS must be set too"),
        (("10.0.0.1", "2", "0"), "has no port"),
        (("10.0.0.1:12", "two", "0"), "JAX_NUM_PROCESSES=two is not a number of at least 1"),
        (("10.0.0.1:12", "2", "2"), "JAX_PROCESS_ID=2 is not below JAX_NUM_PROCESSES=2"),
    ],
)
def test_manual_variables_are_checked(monkeypatch, given, match):
    for name, value in zip(processes.MANUAL_VARIABLES, given, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=match):
        processes.initialize()


def test_environments_in_which_processes_join(monkeypatch):
    joined = []
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda **x: joined.append(x))
    monkeypatch.setattr(processes, "_explain_aborts", lambda: None)
    monkeypatch.setattr(processes, "_label", "")
    monkeypatch.setattr(processes.jax.config, "update", lambda *_: None)
    for name in [*processes.MANUAL_VARIABLES, *(n for n in os.environ if n.startswith("SLURM"))]:
        monkeypatch.delenv(name, raising=False)
    processes.initialize()
    assert not joined
    step = {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a[1-2]"}
    for name, value in (step | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}).items():
        monkeypatch.setenv(name, value)
    processes.initialize()
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", "1(x4)")
    processes.initialize()
    # JAX finds the rest by itself; a task that has its node alone uses all of its devices
    assert joined == [{}, {"local_device_ids": []}]
    monkeypatch.delenv("SLURM_STEP_NODELIST")  # an allocation, and no step
    processes.initialize()
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-0")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    processes.initialize()
    assert len(joined) == 2
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "host-0,host-1")
    processes.initialize()
    assert joined[2:] == [{}]


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_commands_of_one_process_refuse_to_be_one_of_several(command, tmp_path):
    done = commands.run(command, f"--workdir={tmp_path}", env={"JAX_NUM_PROCESSES": "2"}, code=2)
    assert done.stderr.splitlines()[-1] == (
        "error: JAX_NUM_PROCESSES says that there are several processes, and this command runs in "
        "one: start it once, without JAX_NUM_PROCESSES, where the folder of the run can be read."
    )


@pytest.mark.parametrize(
    ("given", "several"),
    [
        ({}, ""),
        ({"JAX_NUM_PROCESSES": "1"}, ""),
        ({"SLURM_NTASKS": "4"}, ""),  # an allocation, and no step
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "a1"}, ""),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "a[1-2]"}, "SLURM_NTASKS"),
        ({"TPU_WORKER_HOSTNAMES": "host-0"}, ""),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1"}, "TPU_WORKER_HOSTNAMES"),
        ({"TPU_WORKER_HOSTNAMES": "host-0,host-1", "JAX_PLATFORMS": "cpu"}, ""),
    ],
)
def test_variable_that_says_there_are_several_processes(monkeypatch, given, several):
    for name in [*processes.MANUAL_VARIABLES, *(n for n in os.environ if n.startswith("SLURM"))]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda _: object())
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    if not several:
        processes.require_single_process()
        return
    with pytest.raises(UserError, match=f"^{several} says"):
        processes.require_single_process()


def test_second_process_waits_until_the_first_has_prepared(tmp_path, capsys):
    out, seen = tmp_path / "root" / "set", []

    def second():
        with exclusive_lock(out):
            seen.append("second")

    with exclusive_lock(out):
        thread = threading.Thread(target=second, daemon=True)
        thread.start()
        while "Waiting for another process" not in capsys.readouterr().err:
            assert thread.is_alive()
            time.sleep(0.01)
        seen.append("first")
    thread.join()
    assert seen == ["first", "second"]


@pytest.mark.slow
def test_config_of_the_run_is_written_once(together):
    """Process 1 writes nothing: the record names the devices of all, as process 0 sees them."""
    record = json.loads((together[0] / "config.json").read_text())
    assert len(record["devices"]) == 4
