"""What a jax program computes, inner programs included, without running it."""

from collections.abc import Iterator

import jax


def equations(jaxpr) -> Iterator:
    """Every equation of the program."""
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
