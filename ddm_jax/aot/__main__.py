"""Compiles a recipe for TPUs or GPUs that are not here, and says what a step of it takes there.

    python -m ddm_jax.aot --config=configs/radd_small.py --topology=v5e:16x16 --layout=fsdp

No data is read and no device is needed, only the compiler: `pip install "jax[tpu]"` (or "cuda13").
Memory is the compiler's own answer. Time is not: it is the roofline of public figures
(costs/roofline.py). Where there is no GPU, its compiler cannot try which kernels are fastest and
has no cuDNN: for GPUs all of it is an estimate.
"""

import dataclasses
import json
from collections.abc import Sequence

import jax
from absl import flags

from ddm_jax import cli
from ddm_jax.aot.compiling import CompileResult, compile_for, search
from ddm_jax.aot.job import (
    Job,
    abstract_state,
    arrange,
    check_batch,
    vocabulary,
)
from ddm_jax.aot.report import assess, report
from ddm_jax.costs.chips import GIB
from ddm_jax.costs.topology import compiler_version, devices_of
from ddm_jax.errors import UserError
from ddm_jax.parallel.layouts import LAYOUTS
from ddm_jax.parallel.placement import summary, table
from ddm_jax.settle import describe, settle

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_string("topology", "", "TPUs or GPUs: v5e:16x16, v5p:2x2x2, h200:8")
_SLICES = flags.DEFINE_integer("slices", 1, "or nodes of that, with the data centre between them")
_LAYOUT = flags.DEFINE_string("layout", "", f"{', '.join(LAYOUTS)}; the recipe's if empty")
_AXES = flags.DEFINE_string("axes", "", "sizes of the mesh's axes, such as data=16,fsdp=16")
_PROGRAM = flags.DEFINE_enum("program", "train", ["train", "sample"], "which step to compile")
_SEARCH = flags.DEFINE_bool("search_batch", False, "find the largest batch that fits")
_TABLE = flags.DEFINE_bool("table", False, "show where each parameter lies")
_JSON = cli.define_json()


def main(argv: Sequence[str]) -> None:
    """Compiles and reports.

    Raises:
      UserError: a bad flag or recipe, or no compiler.
    """
    del argv
    config = settle(cli.read_config(_CONFIG.value))
    name, axes = _LAYOUT.value or config.layout.name, _AXES.value or config.layout.axes
    if _SLICES.value < 1:
        raise UserError(f"--slices={_SLICES.value} is out of range: give a number of at least 1.")
    if not _TOPOLOGY.value:
        raise UserError("--topology is missing: give a machine, such as v5e:4x4 or h200:8.")
    vocab_size = vocabulary(config.data.tokenizer)
    chip, devices = devices_of(_TOPOLOGY.value, _SLICES.value)
    if chip.target and config.model.attention == "cudnn":
        raise UserError(
            "config.model.attention='cudnn' needs a GPU to be compiled: use auto, whose scores "
            "take memory that cuDNN's kernel would not."
        )
    config = dataclasses.replace(
        config, layout=dataclasses.replace(config.layout, name=name, axes=axes)
    )
    layout = arrange(config, devices, _TOPOLOGY.value)
    job = Job(config, layout, chip, vocab_size, _PROGRAM.value == "sample")
    print(describe(config))
    check_batch(job)
    state = abstract_state(job)
    print(table(layout, state) if _TABLE.value else summary(layout, state), flush=True)
    trials: dict[int, CompileResult] = {}
    if _SEARCH.value:
        job = search(job, trials)
    answer = trials.get(job.batch_size) or compile_for(job)
    result = {
        "topology": _TOPOLOGY.value,
        "slices": _SLICES.value,
        "devices": len(devices),
        "program": _PROGRAM.value,
        "jax": jax.__version__,
        "compiler": compiler_version(_TOPOLOGY.value),
    }
    result |= assess(job, answer)
    if _SEARCH.value:
        result["largest_batch"] = job.batch_size if answer.fits else None
        result["trials"] = {
            n: {"fits": a.fits, "need_gib": a.need / GIB} for n, a in sorted(trials.items())
        }
    print(report(result))
    if _JSON.value:
        print(json.dumps(result))


if __name__ == "__main__":
    cli.run(main)
