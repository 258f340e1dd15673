"""What a compiled program costs: memory on a device, and bytes that each device sends."""

from collections.abc import Callable
from typing import Any

import jax

from ddm_jax.costs import hlo
from ddm_jax.costs.collectives import find_collectives, moved_bytes


def program_costs(
    compiled: jax.stages.Compiled, devices: int, warn: Callable[[str], None]
) -> dict[str, Any]:
    """Memory and network traffic of a program, as the compiler reports them, ready for JSON.

    Text that cannot be read is not an error: a report does not stop training.

    Args:
      compiled: the program.
      devices: partitions of the program.
      warn: called with one sentence if the program's text cannot be read.

    Returns:
      {"memory_bytes": of a device: {"arguments", "outputs", "temporaries", "peak"}, where `peak`
      counts donated arguments once; None if the backend does not report them.
      "collectives": bytes that each device sends in one run, by kind of collective; None if the
      program's text cannot be read}.
    """
    return {
        "memory_bytes": memory_bytes(compiled),
        "collectives": _collective_bytes(compiled, devices, warn),
    }


def memory_bytes(compiled: jax.stages.Compiled) -> dict[str, int] | None:
    """The part `memory_bytes` of `program_costs`."""
    memory = compiled.memory_analysis()
    if not memory:
        return None
    arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
    temporaries = memory.temp_size_in_bytes
    return {
        "arguments": arguments,
        "outputs": outputs,
        "temporaries": temporaries,
        "peak": arguments + outputs - memory.alias_size_in_bytes + temporaries,
    }


def _collective_bytes(
    compiled: jax.stages.Compiled, devices: int, warn: Callable[[str], None]
) -> dict[str, float] | None:
    try:
        text = compiled.as_text()
        if text is None:
            raise hlo.HloError("the backend does not print it")
        return moved_bytes(find_collectives(hlo.parse(text), devices))
    except Exception as error:
        # the text is XLA's own and comes without a promise of its form: whatever fails in reading
        # a new form of it (a missing name, an index, ...) is the same failure here
        warn(
            "Warning: the bytes that collectives send are unknown, because the compiled program's "
            f"text could not be read ({type(error).__name__}: {error})."
        )
        return None
