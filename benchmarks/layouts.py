"""What each layout costs on the devices of this machine: step time relative to dp, and memory.

    python -m benchmarks.layouts [--devices=8] [--only=fsdp,tp] [--width=256] [--json]

RADD's t-DCE with the same model, batch and results under each layout (tests/parallel). --devices
sets the number of virtual devices of this CPU. They share its cores and memory, so the times show
how much work and copying a layout adds, but not what a network costs (docs/scaling.md estimates
that). The steps of a layout and of dp run in turn; the ratio is the median over rounds, above 1 if
the layout is faster, and the ratio of dp to itself shows the error. MiB on a device: parameters,
average and optimizer state, and what the compiled step takes in addition.
"""

import json
import os
import statistics

import jax
from absl import flags

from benchmarks.peers.ours import Ours, our_step
from ddm_jax import cli
from ddm_jax.compare.cells import DEVICES_FLAG
from ddm_jax.config import Config, defaults, resolve
from ddm_jax.experiment import make_parts
from ddm_jax.parallel.layout_hooks import hooks_of
from ddm_jax.parallel.layouts import LAYOUTS, make_layout
from ddm_jax.parallel.placement import MIB, device_bytes
from ddm_jax.settle import settle

REFERENCE = "dp"
ROUNDS, STEPS = 7, 2

_DEVICES = flags.DEFINE_integer(
    "devices", 0, "Virtual devices of this CPU; 0 for the devices of the machine."
)
_ONLY = flags.DEFINE_list("only", [], "Layouts to run; all if empty.")
_WIDTH = flags.DEFINE_integer("width", 256, "Width of the network, of 8 heads.")
_DEPTH = flags.DEFINE_integer("depth", 4, "Layers.")
_LENGTH = flags.DEFINE_integer("length", 128, "Tokens of a sequence.")
_BATCH = flags.DEFINE_integer("batch", 16, "Sequences of a batch.")
_VOCAB = flags.DEFINE_integer("vocab", 4096, "Tokens of the vocabulary.")
_JSON = cli.define_json()


def main(argv: list[str]) -> None:
    """Prints one row for each layout."""
    del argv
    if _DEVICES.value:
        flag = f"{DEVICES_FLAG}={_DEVICES.value}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
        jax.config.update("jax_platforms", "cpu")
    print(f"{jax.device_count()} devices, {jax.devices()[0].device_kind}")
    print(
        f"{'layout':8} {'ms/step':>8} {'ratio_to_' + REFERENCE:>12} {'MiB state':>10} {'more':>8}"
    )
    reference = compiled(REFERENCE)[0].turn(STEPS)
    result = {}
    for name in _ONLY.value or LAYOUTS:
        step, held = compiled(name)
        run = step.turn(STEPS)
        pairs = [(reference(), run()) for _ in range(ROUNDS)]
        row = {
            "step_s": statistics.median(own for _, own in pairs),
            f"ratio_to_{REFERENCE}": statistics.median(base / own for base, own in pairs),
            "state_bytes": held,
            "temporary_bytes": step.temporary_bytes,
        }
        result[name] = row
        seconds, ratio, held, more = row.values()
        print(
            f"{name:8} {1e3 * seconds:8.1f} {ratio:12.2f} {held / MIB:10.1f} {more / MIB:8.1f}",
            flush=True,
        )
    if _JSON.value:
        print(json.dumps(result))


def compiled(name: str) -> tuple[Ours, int]:
    """(the step under a layout with its default axes, bytes of state on a device)."""
    config = sized(name)
    layout = make_layout(config.layout, jax.devices())
    parts = make_parts(config, _VOCAB.value, hooks_of(layout))
    step = our_step(config, *parts, _LENGTH.value, layout)
    state = jax.eval_shape(step.start)
    return step, device_bytes(state, layout.state_shardings(state))


def sized(name: str) -> Config:
    """The settled config of the flags under a layout."""
    config = defaults()
    config.model.width, config.model.depth, config.model.heads = _WIDTH.value, _DEPTH.value, 8
    config.data.length, config.train.batch_size = _LENGTH.value, _BATCH.value
    config.objective.name, config.layout.name = "radd_t_dce", name
    return settle(resolve(config))


if __name__ == "__main__":
    cli.run(main)
