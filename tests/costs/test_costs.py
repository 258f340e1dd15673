"""What a program takes, of one whose bytes are known by hand."""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ddm_jax.costs.program import program_costs


def test_costs_of_a_sum_over_devices_are_those_counted_by_hand():
    mesh = Mesh(jax.devices()[:4], ("data",))
    split, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
    x = jax.ShapeDtypeStruct((4, 1000), jnp.float32, sharding=split)
    total = jax.jit(lambda x: x.sum(0), out_shardings=whole).lower(x).compile()
    found = program_costs(total, 4)
    # of n bytes on each of g devices, an all-reduce sends 2 n (g - 1) / g
    assert found["collectives"] == {"all-reduce": 2 * 4000 * 3 / 4}
    memory = found["memory_bytes"]
    assert (memory["arguments"], memory["outputs"]) == (4000, 4000)
    assert memory["peak"] == 8000 + memory["temporaries"]


def test_a_donated_argument_counts_once():
    x = jax.ShapeDtypeStruct((1000,), jnp.float32)
    program = jax.jit(lambda x: x + 1, donate_argnums=0).lower(x).compile()
    memory = program_costs(program, 1)["memory_bytes"]
    assert memory["peak"] == 4000 + memory["temporaries"]
