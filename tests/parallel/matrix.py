"""Every layout, micro-batch count and device count against one device: 384 cells of 20 steps.

    python -m tests.parallel.matrix OUT.jsonl [OBJECTIVE ...]

Too long for the suite, which runs a part of it (test_layouts.py). A line of OUT per cell: the
objective, layout, devices and micro-batches, the largest relative difference of its losses to those
of one device, and whether every corrupted batch was the same. The same command resumes where it
stopped; it exits with 1 if a cell differs.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

from ddm_jax.parallel.layouts import LAYOUTS
from tests.parallel.runs import make, train

OBJECTIVES = ("radd_t_dce", "sedd_uniform", "d3pm", "ar")
TOLERANCE, STEPS = 1e-5, 20  # relative


def main(out: Path, objectives: Sequence[str]) -> int:
    """Runs the cells that `out` lacks; 1 if a cell of it differs, otherwise 0."""
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    found = {tuple(cell["cell"]): cell for cell in map(json.loads, lines)}
    for devices in (8, 4, 2, 1):
        for name in objectives:
            reference = None
            for layout in LAYOUTS:
                for parts in (1, 2, 4):
                    cell = (name, layout, devices, parts)
                    if cell in found:
                        continue
                    start = time.monotonic()
                    reference = reference or train(make(name), STEPS)[:2]
                    losses, checksums, _ = train(make(name, layout, devices, parts), STEPS)
                    jax.clear_caches()
                    found[cell] = {
                        "cell": cell,
                        "difference": float(abs(losses / reference[0] - 1).max()),
                        "same_batches": bool((checksums == reference[1]).all()),
                        "seconds": round(time.monotonic() - start, 1),
                    }
                    print(json.dumps(found[cell]), flush=True)
                    with out.open("a", encoding="utf-8") as file:
                        print(json.dumps(found[cell]), file=file)
    largest = max(found.values(), key=lambda cell: cell["difference"])
    bad = [
        cell["cell"]
        for cell in found.values()
        if not (cell["same_batches"] and cell["difference"] <= TOLERANCE)
    ]
    print(f"{len(found)} cells, largest difference {largest}; differing: {bad or 'none'}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:] or OBJECTIVES))
