"""What a run that lacks memory is told to set."""

import types

import jax
import jax.numpy as jnp

from ddm_jax.config import LayoutConfig, defaults, resolve
from ddm_jax.costs.memory import DeviceMemory
from ddm_jax.parallel.layouts import make_layout
from ddm_jax.settle import settle
from ddm_jax.training.memory_settings import (
    activation_share,
    state_settings,
    step_settings,
    validation_settings,
)

# of a recipe that inherits 512 sequences of 1,024 tokens, on one CPU device
MEASURED = {"arguments": 24_229_924, "temporaries": 26_634_298_728, "peak": 26_658_529_276}


def config_of(**fields):
    config = defaults()
    config.update_from_flattened_dict({k.replace("__", "."): x for k, x in fields.items()})
    return settle(resolve(config))


def layout_of(name, devices):
    return make_layout(LayoutConfig(name=name), jax.devices()[:devices])


def state_of(size):
    return types.SimpleNamespace(params={"kernel": jax.ShapeDtypeStruct((size,), jnp.float32)})


def share_of(total, free, sharing=1, measured=MEASURED):
    memory = DeviceMemory(total, free, sharing, host=True)
    return activation_share(measured, memory, state_of(10**6), layout_of("dp", 1))


def test_settings_of_a_step_that_is_somewhat_too_large():
    share = share_of(25_276_510_208, 22_620_282_880)
    assert 0.7 < share < 0.8  # 0.9 of what is free now, by 26.6 GB
    assert step_settings(config_of(), layout_of("dp", 1), share) == (
        "set config.train.microbatches=2, config.train.batch_size=256, config.data.length=512 or "
        "config.model.remat='full'"
    )


def test_settings_fit_the_share_and_the_devices():
    """A sixth: 3 sequences of each device do not split further; 8 times fewer tokens do."""
    config = config_of(train__batch_size=24, model__remat="full")
    assert step_settings(config, layout_of("dp", 8), 1 / 6) == (
        "set config.data.length=128 or config.layout.name='fsdp'"
    )
    config = config_of(train__batch_size=64, train__microbatches=2, model__remat="full")
    assert step_settings(config, layout_of("fsdp", 4), 1 / 3) == (
        "set config.train.microbatches=8, config.train.batch_size=16 or config.data.length=256"
    )


def test_state_that_does_not_fit_needs_a_split_or_a_smaller_network():
    share = share_of(20_000_000, 10_000_000)
    assert share < 0
    smaller = "a smaller config.model.width than 768 or a smaller config.model.depth than 12"
    assert step_settings(config_of(), layout_of("dp", 1), share) == f"set {smaller}"
    assert state_settings(config_of(), layout_of("dp", 8)) == (
        f"set config.layout.name='fsdp', {smaller}"
    )


def test_devices_that_share_memory_have_a_part_each():
    assert share_of(80 * 10**9, 80 * 10**9, sharing=8) < 0.5 < share_of(10**11, 10**11)
    state = {"arguments": 10**10, "temporaries": 10**9, "peak": 11 * 10**9}
    assert share_of(80 * 10**9, 80 * 10**9, sharing=8, measured=state) < 0


def test_settings_of_a_validation():
    assert validation_settings(config_of(), layout_of("dp", 8)) == (
        "set config.eval.batch_size=32 or config.sampler.num=1"
    )
    config = config_of(eval__batch_size=8, sampler__num=1)
    assert validation_settings(config, layout_of("fsdp", 8)).startswith("set a smaller config.mod")
