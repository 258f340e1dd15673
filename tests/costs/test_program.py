"""The costs of programs whose bytes are known by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ddm_jax.costs.program import program_costs


def test_costs_of_a_sum_over_devices_are_those_counted_by_hand():
    mesh = Mesh(jax.devices()[:4], ("data",))
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    x = jax.ShapeDtypeStruct((4, 1000), jnp.float32, sharding=split)
    total = jax.jit(lambda x: x.sum(0), out_shardings=whole).lower(x).compile()
    found = program_costs(total, 4, warn=pytest.fail)
    # of n bytes on each of g devices, an all-reduce sends 2 n (g - 1) / g
    assert found["collectives"] == {"all-reduce": 2 * 4000 * 3 / 4}
    memory = found["memory_bytes"]
    assert (memory["arguments"], memory["outputs"]) == (4000, 4000)
    assert memory["peak"] == 8000 + memory["temporaries"]


def test_a_donated_argument_counts_once():
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    program = jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()
    memory = program_costs(program, 1, warn=pytest.fail)["memory_bytes"]
    assert memory["peak"] == 4000 + memory["temporaries"]


@pytest.mark.parametrize(
    "text", [None, "ENTRY %main (x: f32[]) -> f32[] {\n  %y = f32[] while(%x)\n}"]
)
def test_text_that_cannot_be_read_is_a_warning_and_leaves_the_memory(text):
    class Compiled:
        def memory_analysis(self):
            x = jax.ShapeDtypeStruct((1000,), jnp.float32)
            return jax.jit(lambda x: x + 1).lower(x).compile().memory_analysis()

        def as_text(self):
            return text

    said = []
    found = program_costs(Compiled(), 1, said.append)
    assert found["collectives"] is None
    assert found["memory_bytes"]["arguments"] == 4000
    (sentence,) = said
    assert sentence.startswith("Warning: the bytes that collectives send are unknown")
