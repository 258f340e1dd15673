"""What a compiled program takes: memory of a device, and bytes that it sends."""

from typing import Any

import jax

from ddm_jax.costs import hlo
from ddm_jax.costs.collectives import collectives, moved_bytes


def program_costs(compiled: jax.stages.Compiled, devices: int) -> dict[str, Any]:
    """By the compiler's own account; for JSON.

    devices: partitions of the program.

    Returns:
      {"memory_bytes": of a device: {"arguments", "outputs", "temporaries", "peak"}, where `peak`
      counts donated arguments once, or None where the backend does not say; "collectives": bytes
      that each device sends in one run, by kind}.
    """
    memory = compiled.memory_analysis()
    found = None
    if memory:
        arguments, outputs = memory.argument_size_in_bytes, memory.output_size_in_bytes
        temporaries = memory.temp_size_in_bytes
        peak = arguments + outputs - memory.alias_size_in_bytes + temporaries
        found = {
            "arguments": arguments,
            "outputs": outputs,
            "temporaries": temporaries,
            "peak": peak,
        }
    sent = moved_bytes(collectives(hlo.parse(compiled.as_text()), devices))
    return {"memory_bytes": found, "collectives": sent}
