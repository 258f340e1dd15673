"""A run that was killed, interrupted or damaged resumes bit for bit.

Most tests start the command in a fork (tests/commands.py).
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import pytest

from configs.radd_tiny import get_config
from ddm_jax.config import resolve
from ddm_jax.costs import hlo
from ddm_jax.costs.memory import DeviceMemory
from ddm_jax.errors import UserError
from ddm_jax.experiment import build
from ddm_jax.runs.checkpoint import Checkpoints
from ddm_jax.runs.files import read_metrics
from ddm_jax.training import loop, programs
from ddm_jax.training import start as start_module
from tests import commands
from tests.commands import RECIPE, ROOT
from tests.held_steps import hold_steps

pytestmark = pytest.mark.slow

STEPS = 40
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
    "optim.decay": "constant",
    "train.steps": STEPS,
    "train.batch_size": 8,
    "train.microbatches": 2,
    "train.log_every": 3,
    "train.checkpoint_every": 8,
    "train.keep_every": 16,
    "eval.every": 25,
    "eval.sequences": 8,
    "eval.batch_size": 8,
    "eval.draws": 1,
    "sampler.name": "ancestral",  # compiles fast
    "sampler.steps": 2,
}
TIMINGS = {"step_s", "tokens_per_s"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with a small text, and the flags that train on it."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for i in range(40):
        words = rng.choices(["the", "state", "of", "union", "is", "strong", "."], k=200)
        (folder / f"{i}.txt").write_text(" ".join(words))
    return {"data.source": f"text:{folder}/*.txt", "data.root": str(folder / "prepared")}


def with_changes(corpus, changes):
    return {**SETTINGS, **corpus, **{k.replace("__", "."): v for k, v in changes.items()}}


def small_experiment(corpus, **changes):
    """The same run in this process."""
    config = get_config()
    for name, value in with_changes(corpus, {"train__microbatches": 1, **changes}).items():
        section, field = name.split(".")
        config[section][field] = value
    return build(resolve(config))


def start(workdir, corpus, before=None, env=None, **changes):
    flags = commands.flags_of(with_changes(corpus, changes))
    return commands.start("main", RECIPE, f"--workdir={workdir}", *flags, before=before, env=env)


def finish(command, code=0):
    """All that it says."""
    ended = command.finish(code)
    return ended.stdout + ended.stderr


def wait_for_step(command, workdir, step):
    """Returns once metrics.jsonl has reached `step`."""
    while not any(r["step"] >= step for r in read_metrics(workdir / "metrics.jsonl")):
        assert command.poll() is None, command.stderr
        time.sleep(0.02)


def wait_for_checkpoint(command, workdir):
    """Returns once one is complete; they are written asynchronously, slowly under load."""
    while not any(p.name.isdigit() for p in (workdir / "checkpoints").iterdir()):
        assert command.poll() is None, command.stderr
        time.sleep(0.02)


def numbers(workdir):
    """metrics.jsonl without timings."""
    records = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in TIMINGS} for r in records]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, corpus):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    output = finish(start(workdir, corpus))
    return workdir, output


def test_run_writes_all_its_files(uninterrupted):
    workdir, output = uninterrupted
    records = read_metrics(workdir / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == list(range(3, STEPS + 1, 3))
    names = {"loss", "masked", "grad_norm", "lr", "skipped", "step_s", "tokens_per_s"}
    assert all(names <= r.keys() for r in records if "loss" in r)
    assert [r["step"] for r in records if "nll" in r] == [25, STEPS]
    assert all({"stderr", "ppl", "bits_per_byte"} <= r.keys() for r in records if "nll" in r)
    assert sorted(p.name for p in (workdir / "samples").iterdir()) == [
        "00000025.txt",
        "00000040.txt",
    ]
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["16", "32", "40"]
    assert list((workdir / "tensorboard").iterdir())
    assert (workdir / "config.json").exists()
    assert (workdir / "curve.png").stat().st_size > 1000
    assert "data" in (workdir / "layout.txt").read_text()
    program = json.loads((workdir / "program.json").read_text())
    assert program["memory_bytes"]["peak"] > 1000
    assert program["compile_s"] > 0
    assert "Validation:" in output
    assert "unigram" in output
    assert "sample 3" in output
    assert str(workdir) in output


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_run_resumes_bit_for_bit(uninterrupted, corpus, tmp_path, how):
    """Also with another number of steps, since its learning rate is constant."""
    step = random.randint(10, STEPS - 6)
    print(f"stopping after step {step}")
    release = tmp_path / "release"
    # a log at every third step
    held = {"HOLD_AT": str(step + 3), "RELEASE": str(release)}
    process = start(tmp_path, corpus, hold_steps, held, train__steps=2 * STEPS)
    wait_for_step(process, tmp_path, step)
    wait_for_checkpoint(process, tmp_path)
    process.send_signal(how)
    release.touch()
    output = finish(process, -how if how == signal.SIGKILL else 128 + how)
    if how != signal.SIGKILL:
        assert "Run the same command to resume." in output
        saved = max(int(p.name) for p in (tmp_path / "checkpoints").iterdir())
        assert saved >= step
    output = finish(start(tmp_path, corpus))
    assert "Resuming from step" in output
    assert numbers(tmp_path) == numbers(uninterrupted[0])


def test_truncated_checkpoint_falls_back_to_the_one_before(uninterrupted, corpus, tmp_path):
    shutil.copytree(uninterrupted[0], tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoints" / str(STEPS)
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    output = finish(start(tmp_path, corpus))
    assert f"Checkpoint {STEPS} cannot be read" in output
    assert "Resuming from step 32" in output
    assert (tmp_path / "checkpoints-damaged" / str(STEPS)).is_dir()
    assert numbers(tmp_path) == numbers(uninterrupted[0])


def test_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(corpus, tmp_path):
    explode = {"optim__lr": 1e30, "optim__warmup_steps": 0, "train__max_bad_steps": 4}
    process = start(tmp_path, corpus, **explode, train__checkpoint_every=1, train__log_every=1)
    output = finish(process, code=2)
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: The loss or its gradient was not finite for 4 steps in a row")
    assert "Traceback" not in output
    assert list((tmp_path / "checkpoints").iterdir())
    assert numbers(tmp_path)[-1]["skipped"] >= 3


def test_signal_between_two_steps_saves_the_next_one(corpus, tmp_path, monkeypatch, one_device):
    """In this process, so that the signal comes while a finished step is logged."""
    experiment = small_experiment(corpus)
    write = loop.Writers.write

    def write_and_stop(self, step, values, group):
        write(self, step, values, group)
        if step == 9:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.Writers, "write", write_and_stop)
    outcome = loop.train_experiment(experiment, tmp_path)
    assert (outcome.finished, outcome.signal) == (False, signal.SIGTERM)
    assert outcome.step > 9
    assert (tmp_path / "checkpoints" / str(outcome.step)).is_dir()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_validation_that_a_stop_prevented_runs_on_resume(corpus, tmp_path, monkeypatch, one_device):
    experiment = small_experiment(corpus, train__checkpoint_every=25)

    def interrupted(*_):
        raise KeyboardInterrupt

    make_validation = loop.make_validation
    monkeypatch.setattr(loop, "make_validation", lambda *_: interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train_experiment(experiment, tmp_path)
    assert (tmp_path / "checkpoints" / "25").is_dir()
    assert not [r for r in numbers(tmp_path) if "nll" in r]
    monkeypatch.setattr(loop, "make_validation", make_validation)
    loop.train_experiment(experiment, tmp_path)
    assert [r["step"] for r in numbers(tmp_path) if "nll" in r] == [25, STEPS]
    # a finished run is validated again, and nothing is written; a signal after that is too late
    close, killed = Checkpoints.close, []

    def signalled(checkpoints):
        signal.raise_signal(signal.SIGTERM)
        close(checkpoints)

    monkeypatch.setattr(Checkpoints, "close", signalled)
    before = signal.signal(signal.SIGTERM, lambda *_: killed.append("here"))
    again = loop.train_experiment(experiment, tmp_path)
    signal.signal(signal.SIGTERM, before)
    assert (again.finished, again.signal, killed) == (True, 0, [])
    assert again.validation
    assert [r["step"] for r in numbers(tmp_path) if "nll" in r] == [25, STEPS]


def test_hlo_that_cannot_be_read_does_not_stop_training(
    corpus, tmp_path, monkeypatch, capsys, one_device
):
    def fail(*_):
        raise KeyError("while.7")

    monkeypatch.setattr(hlo, "parse", fail)
    outcome = loop.train_experiment(small_experiment(corpus), tmp_path)
    assert outcome.finished
    assert "Warning: the bytes that collectives send are unknown" in (
        said := capsys.readouterr().err
    )
    assert "KeyError: 'while.7'" in said
    program = json.loads((tmp_path / "program.json").read_text())
    assert program["collectives"] is None
    assert program["memory_bytes"]["peak"] > 1000


def test_step_that_exceeds_the_memory_ends_before_it_runs(
    corpus, tmp_path, monkeypatch, capsys, one_device
):
    small = DeviceMemory(8 * 10**5, 8 * 10**5, host=True)
    monkeypatch.setattr(programs, "device_memory", lambda _: small)
    with pytest.raises(UserError, match=r"step for 8 x 16 tokens needs .* set config.train.micro"):
        loop.train_experiment(small_experiment(corpus), tmp_path)
    said = capsys.readouterr().err.splitlines()
    assert said[-2] == "Compiling the step for 8 x 16 tokens ..."
    assert re.fullmatch(r"Compiled the step in .* s; it needs 1.1 MB of memory", said[-1])
    assert not numbers(tmp_path)
    assert not (tmp_path / "config.json").exists()  # another batch size may start there
    # nor is a state made that does not fit
    smaller = DeviceMemory(10**5, 10**5, host=True)
    monkeypatch.setattr(start_module, "device_memory", lambda _: smaller)
    with pytest.raises(UserError, match=r"The train state .* needs .* smaller config.model.width"):
        loop.train_experiment(small_experiment(corpus), tmp_path / "new")
    assert not (tmp_path / "new" / "config.json").exists()


def test_validation_that_runs_out_of_memory_is_one_sentence(
    corpus, tmp_path, monkeypatch, one_device
):
    def fail(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr(loop, "make_validation", lambda *_: fail)
    with pytest.raises(UserError, match=r"The validation ran out .* set config.eval.batch_size=4"):
        loop.train_experiment(small_experiment(corpus, train__steps=1), tmp_path)
    assert (tmp_path / "checkpoints" / "1").is_dir()
    assert (tmp_path / "config.json").is_file()


IN_A_THREAD = """
import signal, sys, threading
import jax
from configs.radd_tiny import get_config
from ddm_jax.training.loop import train

config = get_config()
config.update_from_flattened_dict(SETTINGS)
config.data.workers = 1  # Grain's workers ask for parsed flags
outcomes = []
thread = threading.Thread(target=lambda: outcomes.append(train(config, sys.argv[1])))
thread.start()
thread.join()
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
(outcome,) = outcomes
assert outcome.finished and outcome.step == 40, outcome
assert 0 < outcome.validation.bound.nll and outcome.unigram_nll > 0
"""


def test_train_from_python_needs_no_flags_and_no_main_thread(uninterrupted, corpus, tmp_path):
    program = f"SETTINGS = {with_changes(corpus, {})!r}\n{IN_A_THREAD}"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | commands.VARIABLES,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path) == numbers(uninterrupted[0])
    assert (tmp_path / "curve.png").exists()
