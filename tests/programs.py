"""How the tests compile a jax program that runs for long, and what a program computes."""

from collections.abc import Iterator

import jax

# takes half a second longer to compile than the level of the other programs (conftest.py), and a
# third of the time to run
RUNS_LONG = {"xla_backend_optimization_level": 1}


def equations(jaxpr) -> Iterator:
    """Every equation of the program, inner programs included, without running it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def outputs(jaxpr) -> Iterator[tuple[str, jax.core.AbstractValue]]:
    """(name of the primitive, shape and dtype) of every array that the program computes."""
    for equation in equations(jaxpr):
        for out in equation.outvars:
            yield equation.primitive.name, out.aval
