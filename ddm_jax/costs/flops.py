"""FLOPs of a program's matmuls, counted in the traced program (jaxpr), before compilation.

A matmul [M, K] x [K, N] is 2 M N K FLOPs; the body of a loop counts once per trip. XLA's own
cost_analysis is of no use here: it counts the body of a loop once, and a Pallas kernel as nothing.
For a transformer of L layers, width D and an MLP of inner width r D, per token of a sequence of
length T, the count equals the usual formula (Kaplan et al. 2020, arXiv:2001.08361, section 2.1):

    forward    2 N + 4 L T D,  N = L (4 + 2 r) D^2 + D V_pad
    a step     3 times that: the backward pass has two matmuls for each one of the forward pass
    remat      "dots": attention's 4 L T D once more; "full": those of all layers once more
    the head   once more where `Readout.read` reads its logits in chunks (models/network.py)

tests/costs/test_roofline.py compares the count with this formula.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count(function: Callable[..., Any], *args: Any, while_trip_count: int = 1) -> int:
    """FLOPs of all matmuls in function(*args), summed over all devices.

    Where the data chooses between branches, the cheaper one counts, because training takes it
    (models/head.py); inside a Pallas kernel the dearer one, because there the other branch does
    nothing. Where the platform chooses, the dearer one counts.

    Args:
      function: traceable by jax.make_jaxpr.
      *args: arrays or jax.ShapeDtypeStruct.
      while_trip_count: trips of a loop whose length depends on the data.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr, while_trip_count, min)


def _of_jaxpr(jaxpr: core.Jaxpr, while_trip_count: int, choose: Callable[..., int]) -> int:
    return sum(_of_equation(equation, while_trip_count, choose) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn, while_trip_count: int, choose: Callable[..., int]) -> int:
    """FLOPs of one equation; `choose` is min or max, over the branches of a conditional."""
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(_shape(equation.invars[0])[i] for i in contracted)
        return 2 * depth * math.prod(_shape(equation.outvars[0]))
    choose_inside = max if name == "pallas_call" else choose
    inner = [jaxpr for value in params.values() for jaxpr in _jaxprs(value)]
    counts = [_of_jaxpr(jaxpr, while_trip_count, choose_inside) for jaxpr in inner]
    if name == "cond":
        by_platform = bool(params.get("branches_platforms"))
        return (max if by_platform else choose)(counts, default=0)
    return sum(counts) * (while_trip_count if name == "while" else _trip_count(name, params))


def _shape(variable: core.Var | core.Literal) -> tuple[int, ...]:
    """The shape of an operand or result of a matmul, which is always an array."""
    return variable.aval.shape  # type: ignore[attr-defined]  # AbstractValue is its base class


def _trip_count(name: str, params: dict[str, Any]) -> int:
    """How often an equation runs the jaxprs in its parameters, over all devices."""
    if name == "scan":
        return params["length"]
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    if name == "shard_map":  # each device runs its own part
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _jaxprs(value: Any) -> list[core.Jaxpr]:
    """The jaxprs in a parameter of an equation, which may be a sequence of them."""
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [jaxpr for item in value for jaxpr in _jaxprs(item)]
    return []
