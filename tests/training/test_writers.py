"""Metrics reach metrics.jsonl, TensorBoard and wandb."""

import math
import sys
import types

import pytest

from ddm_jax.errors import UserError
from ddm_jax.runs.files import read_metrics
from ddm_jax.training.metric_writers import Writers


def test_records_after_the_resumed_step_and_torn_lines_are_removed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    writers = Writers(tmp_path, 1, "", {})
    writers.write(2, {"loss": 2.5})
    writers.close()
    assert read_metrics(path) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}]


def test_values_that_are_not_finite_are_left_out(tmp_path):
    writers = Writers(tmp_path, 0, "", {})
    writers.write(1, {"loss": math.nan, "grad_norm": math.inf, "lr": 0.1})
    writers.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "lr": 0.1}]


def test_wandb_gets_the_same_numbers(tmp_path, monkeypatch):
    seen = []
    run = types.SimpleNamespace(log=lambda values, step: seen.append((step, values)))
    fake = types.SimpleNamespace(init=lambda **options: seen.append(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    writers = Writers(tmp_path, 0, "my_project", {"seed": 1})
    writers.write(5, {"loss": 2.0})
    writers.close()
    assert seen[0]["project"] == "my_project"
    assert seen[0]["config"] == {"seed": 1}
    assert seen[1] == (5, {"loss": 2.0})


def test_missing_wandb_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"needs wandb: pip install .*\[wandb\]'"):
        Writers(tmp_path, 0, "my_project", {})
