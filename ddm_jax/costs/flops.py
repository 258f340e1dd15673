"""FLOPs of a program's matmuls, counted in what was traced, before any compiler has seen it.

A matmul [M, K] x [K, N] is 2 M N K FLOPs; a loop does its body so many times. XLA's own
cost_analysis counts the body of a loop once, and a Pallas kernel as nothing, so it is of no use
here. For a transformer of L layers, width D and an MLP of r D, per token of a sequence of T, the
count comes to the usual formula (Kaplan et al. 2020, arXiv:2001.08361, section 2.1):

    forward    2 N + 4 L T D,  N = L (4 + 2 r) D^2 + D V_pad
    a step     3 times that: the backward pass has two matmuls for every one
    remat      "dots": attention's 4 L T D once more; "full": all of the layers' once more
    the head   once more where `Readout.read` reads its logits in chunks (models/network.py)

tests/costs/test_roofline.py holds the count to this.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core


def count(function: Any, *args: Any, turns: int = 1) -> int:
    """FLOPs of all matmuls in function(*args), of (abstract) arrays, summed over all devices.

    turns: of a loop that is as long as the data says. Of two ways that the data chooses between
    the cheaper counts, since training takes it (models/head.py); in a kernel the dearer one, where
    the other does nothing, and that of the machine with the dearer.
    """
    return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr, turns, min)


def _of_jaxpr(jaxpr: core.Jaxpr, turns: int, way: Callable) -> int:
    return sum(_of_equation(equation, turns, way) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn, turns: int, way: Callable) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        depth = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        return 2 * depth * math.prod(equation.outvars[0].aval.shape)
    inside = max if name == "pallas_call" else way
    inner = [x for value in params.values() for x in _jaxprs(value)]
    counts = [_of_jaxpr(jaxpr, turns, inside) for jaxpr in inner]
    if name == "cond":  # between machines, or by the data
        return (max if params.get("branches_platforms") else way)(counts, default=0)
    return sum(counts) * (turns if name == "while" else _turns(name, params))


def _turns(name: str, params: dict[str, Any]) -> int:
    """How often an equation runs what is in it."""
    if name == "scan":
        return params["length"]
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    if name == "shard_map":  # on each device its own part
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _jaxprs(value: Any) -> list[core.Jaxpr]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [jaxpr for item in value for jaxpr in _jaxprs(item)]
    return []
