"""Estimates for a compiled job: FLOPs, network and HBM traffic, and the time of a step."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ddm_jax.aot.compiling import CompileResult
from ddm_jax.aot.job import AotJob, abstract_batch, abstract_state
from ddm_jax.aot.report import (
    AotReport,
    CollectiveTotal,
    CompileTarget,
    JobSettings,
    MemoryFit,
    ProgramTraffic,
    StepEstimate,
)
from ddm_jax.costs import flops, hlo
from ddm_jax.costs.chips import GIB
from ddm_jax.costs.collectives import Collective, find_collectives, moved_bytes
from ddm_jax.costs.roofline import hbm_traffic, roofline
from ddm_jax.costs.topology import places_of
from ddm_jax.diffusion.randomness import TIMES, example_keys, step_key
from ddm_jax.experiment import make_parts
from ddm_jax.models.head import chunk_rows
from ddm_jax.models.layout_hooks import LayoutHooks
from ddm_jax.models.network import Params, padded_vocab
from ddm_jax.objectives import Batch
from ddm_jax.objectives.signature import Noise
from ddm_jax.objectives.source import with_source
from ddm_jax.training.optimizer import make_optimizer
from ddm_jax.training.step import make_train_step

_PALLAS_CALL = 'custom_call_target="tpu_custom_call"'


def make_report(job: AotJob, compiled: CompileResult, target: CompileTarget) -> AotReport:
    """All that is known of a compiled job."""
    config = job.config
    settings = JobSettings(
        objective=config.objective.name,
        attention=config.model.attention,
        remat=config.model.remat,
        layout=job.layout.name,
        mesh=dict(job.layout.mesh.shape),
        batch_size=job.batch_size,
        microbatches=config.train.microbatches,
    )
    memory = MemoryFit(
        fits=compiled.fits,
        need_gib=compiled.needed_bytes / GIB,
        available_gib=job.chip.hbm,
        compile_s=compiled.seconds,
    )
    if not compiled.fits:
        return AotReport(target, settings, memory)
    chunks = 1 if job.sampling else _head_chunks_per_device(job)
    program = hlo.parse(compiled.hlo_text, chunks, cheapest_branch=not job.sampling)
    found = find_collectives(program, job.layout.mesh.size)
    sent = moved_bytes(found)
    traffic = ProgramTraffic(
        kernels=compiled.hlo_text.count(_PALLAS_CALL),
        unknown_loops=program.unknown_loops,
        unknown_turns=chunks,
        network_bytes=sum(sent.values()),
        collectives=sent,
        largest_collectives=_largest_collectives(found),
        hbm_bytes=hbm_traffic(program),
    )
    step = None if job.sampling else _estimate_step(job, found, traffic.hbm_bytes)
    return AotReport(target, settings, memory, traffic, step)


def model_flops(job: AotJob) -> int:
    """FLOPs of a step of the model over all devices: three times those of the forward pass.

    What is computed again to save memory does not count; MFU is defined by this number (Chowdhery
    et al. 2022, arXiv:2204.02311, appendix B). Counted as if every position had a loss.
    """
    model = dataclasses.replace(job.config.model, attention="plain", remat="none")
    config = dataclasses.replace(job.config, model=model)
    process, objective, network = make_parts(config, job.vocab_size)

    def loss(params: Params, batch: Batch) -> jax.Array:
        index = jnp.arange(job.batch_size)
        key = step_key(config.seed, 0)
        times = TIMES[config.train.times](key, index, job.batch_size)
        apply, _ = with_source(network, params, batch)
        noise = Noise(times, example_keys(key, index))
        return objective.loss(apply, params, batch, noise, process).loss

    params, batch = abstract_state(job).params, abstract_batch(config, job.batch_size)
    chunks = head_chunks(job, job.batch_size * config.data.length)
    return 3 * flops.count(loss, params, batch, while_trip_count=chunks)


def step_flops(job: AotJob) -> int:
    """FLOPs that a step performs over all devices, including what is computed again.

    Counted as if every position had a loss.
    """
    config, layout = job.config, job.layout
    hooks = LayoutHooks(
        batch_parts=layout.axis_size(*layout.entry.batch_axes),
        position_parts=layout.axis_size(layout.entry.position_axis),
    )
    process, objective, network = make_parts(config, job.vocab_size, hooks)
    optimizer = make_optimizer(config.optim, config.train.steps)
    step = make_train_step(config, network, objective, process, optimizer)
    positions = job.batch_size * config.data.length // config.train.microbatches
    return flops.count(
        step,
        abstract_state(job),
        abstract_batch(config, job.batch_size),
        while_trip_count=head_chunks(job, positions),
    )


def head_chunks(job: AotJob, positions: int) -> int:
    """Number of chunks in which the head reads the logits of `positions`, if all carry a loss."""
    return -(-positions // chunk_rows(positions, padded_vocab(job.vocab_size)))


def _head_chunks_per_device(job: AotJob) -> int:
    """Chunks of the head for the positions of a micro-batch on one device."""
    config, layout = job.config, job.layout
    parts = (
        layout.axis_size(*layout.entry.batch_axes, layout.entry.position_axis)
        * config.train.microbatches
    )
    return head_chunks(job, job.batch_size * config.data.length // parts)


def _estimate_step(job: AotJob, found: Sequence[Collective], hbm_bytes: int) -> StepEstimate:
    devices = job.layout.mesh.size
    model, performed = model_flops(job) / devices, step_flops(job) / devices
    places = places_of(job.layout.mesh.devices.flat)
    line = roofline(performed, hbm_bytes, found, places, job.chip)
    peak = job.chip.flops / job.chip.devices
    return StepEstimate(
        model_flops=model,
        flops=performed,
        compute_s=line.compute,
        memory_s=line.memory,
        network_s=line.network,
        bound=line.bound,
        step_s=line.serial,
        overlapped_step_s=line.overlapped,
        tokens_per_s=job.batch_size * job.config.data.length / line.serial,
        mfu=model / line.serial / peak,
        overlapped_mfu=model / line.overlapped / peak,
    )


def _largest_collectives(
    found: Sequence[Collective], number: int = 10
) -> tuple[CollectiveTotal, ...]:
    """The collectives that send most bytes; those that are alike are added up."""
    totals: dict[tuple[str, str, int, int, str], CollectiveTotal] = {}
    for one in found:
        stride = abs(one.groups[0][1] - one.groups[0][0])
        key = (one.kind, one.dtype, one.size, stride, one.source)
        before = totals.get(key, CollectiveTotal(*key, bytes=0, runs=0))
        totals[key] = dataclasses.replace(
            before, bytes=before.bytes + one.moved * one.runs, runs=before.runs + one.runs
        )
    return tuple(sorted(totals.values(), key=lambda one: -one.bytes)[:number])
