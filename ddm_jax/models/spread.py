"""What a network is told of the layout that it runs under: how, not where."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jax import Array

# (array, kind) -> array; kind "hidden" is an activation [B, L, D], "table" an embedding [V, D]
Constrain = Callable[[Array, str], Array]


def anywhere(x: Array, kind: str) -> Array:
    """Leaves the place of an array to the compiler."""
    del kind
    return x


def alone(x: Array) -> Array:
    """The largest of one."""
    return x


def at_once(function: Callable[..., Array], *heads: Any) -> Array:
    """Runs a function of [B, L, H, D] arrays on whole arrays."""
    return function(*heads)


def all_rows(function: Callable[..., Any], rows: Any, own: Any, whole: Any) -> Any:
    """Runs a function on whole arrays, of one device."""
    return function(rows, own, whole)


@dataclass(frozen=True)
class Spread:
    """A layout, as far as a network has to know it; the default is a device of its own.

    constrain: says where an array lies where it is used. locally: locally(f, *arrays
    [B, L, H, D]) runs f on each device's own examples and heads, the first array's own positions
    and all of the others', for kernels that cannot be partitioned. rowwise: rowwise(f, rows, own,
    whole) -> (rows, own) runs f on each device's own positions of the [B, L, ...] arrays in the
    tree `rows`, its own part of those in `own`, [devices, ...], where f sees and gives [1, ...],
    and all of those in `whole`. largest: within f, the largest of the numbers that devices have, if
    they wait for each other there: where they split the vocabulary. examples, positions,
    vocabulary: into how many parts the sequences of a batch, the positions of a sequence and the
    logits of a position are split.
    """

    constrain: Constrain = anywhere
    locally: Callable[..., Array] = at_once
    rowwise: Callable[..., Any] = all_rows
    largest: Callable[[Array], Array] = alone
    examples: int = 1
    positions: int = 1
    vocabulary: int = 1


ALONE = Spread()
