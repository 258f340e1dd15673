"""Compiles a recipe ahead of time for TPUs or GPUs, and reports what a step needs there.

    python -m ddm_jax.aot --config=radd_small --topology=v5e:16x16 --layout=fsdp
    python -m ddm_jax.aot --config=radd_small --topology=h200:8 --search_batch

It reads no data and needs no device, only the compiler: `pip install "jax[tpu]"` (or "cuda13").
Memory is the compiler's own answer. Time is an estimate, the roofline of public figures
(docs/scaling.md). Without a GPU, the compiler for GPUs cannot try which kernels are fastest and
has no cuDNN: everything reported for GPUs is an estimate.
"""

import dataclasses
import json
from collections.abc import Sequence

import jax
from absl import flags

from ddm_jax import cli
from ddm_jax.aot.compiling import CompileResult, compile_job, search_largest_batch
from ddm_jax.aot.estimate import make_report
from ddm_jax.aot.job import AotJob, abstract_state, check_batch, make_aot_layout, vocab_size_of
from ddm_jax.aot.report import CompileTarget, report_text
from ddm_jax.costs.chips import GIB
from ddm_jax.costs.topology import compiler_version, devices_of
from ddm_jax.errors import UserError
from ddm_jax.parallel.layouts import LAYOUTS
from ddm_jax.parallel.placement import layout_summary, layout_table
from ddm_jax.settle import describe, settle

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    with cli.group("The program"):
        cli.define_config()
        flags.DEFINE_string("layout", "", f"{', '.join(LAYOUTS)}; the recipe's if empty")
        flags.DEFINE_string("axes", "", "sizes of the mesh's axes, such as data=16,fsdp=16")
        flags.DEFINE_enum("program", "train", ["train", "sample"], "which step to compile")
    with cli.group("The machine"):
        flags.DEFINE_string("topology", "", "TPUs or GPUs: v5e:16x16, v5p:2x2x2, h200:8")
        flags.DEFINE_integer(
            "slices", 1, "number of such slices or nodes, connected by the data-centre network"
        )
        flags.DEFINE_bool("search_batch", False, "find the largest batch that fits")
    with cli.group("Output"):
        flags.DEFINE_bool("table", False, "show how each parameter is split over the devices")
    cli.define_json()


def main(argv: Sequence[str]) -> None:
    """Compiles the program and prints the report.

    Raises:
      UserError: a bad flag or recipe, or the compiler is not installed.
    """
    del argv
    jax.config.update("jax_enable_compilation_cache", False)  # the time to compile is reported
    job = _job_of_flags()
    print(describe(job.config))
    check_batch(job)
    state = abstract_state(job)
    show = layout_table if FLAGS.table else layout_summary
    print(show(job.layout, state), flush=True)
    trials: dict[int, CompileResult] = {}
    if FLAGS.search_batch:
        job, trials = search_largest_batch(job)
    compiled = trials.get(job.batch_size) or compile_job(job)
    target = CompileTarget(
        topology=FLAGS.topology,
        slices=FLAGS.slices,
        devices=job.layout.mesh.size,
        program=FLAGS.program,
        jax=jax.__version__,
        compiler=compiler_version(FLAGS.topology),
    )
    report = make_report(job, compiled, target)
    print(report_text(report))
    if FLAGS.json:
        result = report.to_json()
        if FLAGS.search_batch:
            result["largest_batch"] = job.batch_size if compiled.fits else None
            result["trials"] = {
                size: {"fits": trial.fits, "need_gib": trial.needed_bytes / GIB}
                for size, trial in sorted(trials.items())
            }
        print(json.dumps(result))


def _job_of_flags() -> AotJob:
    config = settle(cli.read_config(FLAGS.config))
    name, axes = FLAGS.layout or config.layout.name, FLAGS.axes or config.layout.axes
    if FLAGS.slices < 1:
        raise UserError(f"--slices={FLAGS.slices} is out of range: give a number of at least 1.")
    if not FLAGS.topology:
        raise UserError("--topology is missing: give a machine, such as v5e:4x4 or h200:8.")
    vocab_size = vocab_size_of(config.data.tokenizer)
    chip, devices = devices_of(FLAGS.topology, FLAGS.slices)
    if chip.target and config.model.attention == "cudnn":
        raise UserError(
            "config.model.attention='cudnn' cannot be compiled without a GPU: give auto, which "
            "keeps the attention scores in memory, as cuDNN's kernel would not."
        )
    layout_config = dataclasses.replace(config.layout, name=name, axes=axes)
    config = dataclasses.replace(config, layout=layout_config)
    layout = make_aot_layout(config.layout, devices, FLAGS.topology)
    return AotJob(config, layout, chip, vocab_size, sampling=FLAGS.program == "sample")


if __name__ == "__main__":
    cli.run(main, define_flags)
