"""A trace has the number of steps that config.train.profile gives."""

import gzip
import json

import jax
import jax.numpy as jnp

from ddm_jax.training.profile import WARM_UP, Profile


def calls(folder):
    """How often the traced program was called according to the trace; calls may nest events."""
    (trace,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    found = [e for e in events if e.get("name") == "PjitFunction(one_step)"]
    number, end = 0, 0.0
    for event in sorted(found, key=lambda e: e["ts"]):
        number += event["ts"] >= end
        end = max(end, event["ts"] + event["dur"])
    return number


def run(profile, steps):
    @jax.jit
    def one_step(x):
        return x @ x / 2

    x, said = jnp.eye(64), []
    for _ in range(steps):
        profile.begin_step()
        x = one_step(x)
        said.append(profile.end_step(x))
    profile.close()
    return said


def test_steps_are_traced_after_the_warm_up(tmp_path):
    said = run(Profile(tmp_path, 3), 20)
    assert calls(tmp_path) == 3
    assert [i for i, x in enumerate(said, 1) if x] == [WARM_UP + 3]
    assert str(tmp_path) in said[WARM_UP + 2]


def test_a_run_that_ends_early_leaves_a_shorter_trace(tmp_path):
    run(Profile(tmp_path, 10), WARM_UP + 2)
    assert calls(tmp_path) == 2


def test_zero_steps_trace_nothing(tmp_path):
    assert not any(run(Profile(tmp_path, 0), 20))
    assert not list(tmp_path.iterdir())
