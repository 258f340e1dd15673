"""Opening a run: its newest readable checkpoint, another sampler."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.errors import UserError
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs import checkpoint
from ddm_jax.runs import run as trained
from ddm_jax.runs.checkpoint import Checkpoints, restore_weights
from tests.letters import LENGTH, assert_refused, config_of, contents, drawn


def test_averaged_weights_come_back_exactly(tmp_path):
    params = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.ones(4) / 3}}
    state = {"params": jax.tree.map(jnp.zeros_like, params), "ema": params, "step": jnp.int32(4)}
    checkpoints = Checkpoints(tmp_path, 1, 9)
    checkpoints.save(4, state, {})
    checkpoints.close()
    layout = dp(jax.devices()[:4])
    step, read = restore_weights(tmp_path, jax.eval_shape(lambda: params), layout)
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, read, params)
    assert all(x.sharding == layout.replicated for x in jax.tree.leaves(read))
    for other in ({"a": params["a"], "d": params["a"]}, {"a": params["a"][:1], "b": params["b"]}):
        with pytest.raises(UserError, match=r"None of the checkpoints in .* can be read"):
            restore_weights(tmp_path, jax.eval_shape(lambda other=other: other), layout)


def damage(folder):
    for file in folder.rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.slow
def test_damaged_checkpoint_is_passed_over_and_left_where_it_is(
    letters_run, tmp_path, caplog, capfd
):
    workdir = shutil.copytree(letters_run, tmp_path / "run")
    damage(workdir / "checkpoints" / "10")
    (workdir / "checkpoints" / "11.orbax-checkpoint-tmp").mkdir()  # one that is being written
    before = contents(workdir)
    (line,) = drawn(tmp_path / "out", f"--workdir={workdir}", "--num=1")
    assert line["text"] == "b" * LENGTH
    assert line["checkpoint"] == 2
    said = caplog.text + capfd.readouterr().err
    assert "Checkpoint 10 cannot be read" in said
    assert "it is skipped" in said
    assert contents(workdir) == before
    damage(workdir / "checkpoints" / "2")
    assert_refused([f"--workdir={workdir}"], "None of the checkpoints", "step 10")


def test_checkpoint_that_a_run_deletes_meanwhile_does_no_harm(tmp_path, monkeypatch):
    """Between the listing and the reading, step 2 gives way to step 10."""
    ema = {"a": jnp.ones(3)}
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, 2, 9)
    for step in (2, 10):
        checkpoints.save(step, {"ema": ema}, {})
    checkpoints.close()
    (folder / "10").rename(tmp_path / "10")
    listed = checkpoint._steps

    def list_and_go_on(folder):
        steps = listed(folder)
        if (tmp_path / "10").exists():
            (tmp_path / "10").rename(folder / "10")
            shutil.rmtree(folder / "2")
        return steps

    monkeypatch.setattr(checkpoint, "_steps", list_and_go_on)
    assert restore_weights(folder, jax.eval_shape(lambda: ema), dp(jax.devices()))[0] == 10


def test_other_sampler_leaves_the_options_of_the_run_behind(letters_set):
    config = config_of(
        letters_set, sampler__name="ordered", sampler__order="left", sampler__steps=9
    )
    assert trained.with_sampler(config) == config
    assert trained.with_sampler(config, "ordered", 4).sampler.order == "left"
    again = trained.with_sampler(config, length=8, options={"order": "right"})
    assert (again.sampler.order, again.sampler.steps, again.data.length) == ("right", 9, 8)
    other = trained.with_sampler(config, "entropy", options={"gamma": 0.5})
    assert (other.sampler.order, other.sampler.gamma, other.sampler.steps) == (None, 0.5, 9)
