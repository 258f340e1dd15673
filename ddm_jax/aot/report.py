"""What a compiled job needs and how fast it would be, as a record and as text."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddm_jax.aot.compiling import CompileResult
from ddm_jax.aot.job import (
    Job,
    abstract_batch,
    abstract_state,
)
from ddm_jax.config import ModelConfig
from ddm_jax.costs import flops, hlo
from ddm_jax.costs.chips import GIB
from ddm_jax.costs.collectives import Collective, find_collectives, moved_bytes
from ddm_jax.costs.roofline import Roofline, hbm_traffic, roofline
from ddm_jax.costs.topology import places_of
from ddm_jax.diffusion.process import Process
from ddm_jax.diffusion.randomness import TIMES, example_keys, step_key
from ddm_jax.experiment import make_parts
from ddm_jax.models.head import chunk_rows
from ddm_jax.models.layout_hooks import SINGLE_DEVICE, LayoutHooks
from ddm_jax.models.network import Network, padded_vocab
from ddm_jax.objectives.signature import Noise, Objective
from ddm_jax.objectives.source import with_source
from ddm_jax.training.optimizer import make_optimizer
from ddm_jax.training.step import make_train_step

MFU_NOTE = (
    "Assumed: every matmul at the chip's bfloat16 peak, HBM and links at their full bandwidth, no "
    "latency, and a network that waits for the chip (the compiler hides some of it); a real step "
    "takes longer than the first time and may beat the second only by hiding the network."
)


def step_flops(job: Job) -> tuple[int, int]:
    """FLOPs of a step over all devices: those of the model, and those that are really done.

    The model's are three times the forward pass's, whatever is computed again to save memory:
    what MFU is of (Chowdhery et al. 2022, arXiv:2204.02311, appendix B). Both as if every position
    had a loss.
    """
    config, layout = job.config, job.layout
    positions = job.batch_size * config.data.length
    parts = layout.size(*layout.row.batch), layout.size(layout.row.positions)
    optimizer = make_optimizer(config.optim, config.train.steps)
    batch = abstract_batch(config, job.batch_size)

    def made(model: ModelConfig, hooks: LayoutHooks) -> tuple[Process, Objective, Network]:
        return make_parts(dataclasses.replace(config, model=model), job.vocab_size, hooks)

    process, objective, network = made(
        config.model, LayoutHooks(examples=parts[0], positions=parts[1])
    )
    step = make_train_step(config, network, objective, process, optimizer)
    turns = head_turns(job, positions // config.train.microbatches)
    done = flops.count(step, abstract_state(job), batch, while_trip_count=turns)

    plain = dataclasses.replace(config.model, attention="plain", remat="none")
    process, objective, network = made(plain, SINGLE_DEVICE)

    def loss(params: Any, batch: Any) -> jax.Array:
        index = jnp.arange(job.batch_size)
        key = step_key(config.seed, 0)
        times = TIMES[config.train.times](key, index, job.batch_size)
        apply, _ = with_source(network, params, batch)
        noise = Noise(times, example_keys(key, index))
        return objective.loss(apply, params, batch, noise, process).loss

    params, turns = abstract_state(job).params, head_turns(job, positions)
    return 3 * flops.count(loss, params, batch, while_trip_count=turns), done


def head_turns(job: Job, positions: int) -> int:
    """Chunks in which the head reads so many positions of a device, if all have a loss."""
    return -(-positions // chunk_rows(positions, padded_vocab(job.vocab_size)))


def assess(job: Job, answer: CompileResult) -> dict[str, Any]:
    """All that is known of a compiled job, as JSON takes it; bytes and FLOPs are of a device."""
    config, layout = job.config, job.layout
    devices = layout.mesh.size
    known = {
        "objective": config.objective.name,
        "attention": config.model.attention,
        "remat": config.model.remat,
        "layout": layout.name,
        "mesh": dict(layout.mesh.shape),
        "batch_size": job.batch_size,
        "microbatches": config.train.microbatches,
        "fits": answer.fits,
        "need_gib": answer.need / GIB,
        "available_gib": job.chip.hbm,
        "compile_s": answer.seconds,
    }
    if not answer.fits:
        return known
    turns = 1
    if not job.sampling:
        split = layout.size(*layout.row.batch, layout.row.positions) * config.train.microbatches
        turns = head_turns(job, job.batch_size * config.data.length // split)
    program = hlo.parse(answer.text, turns, cheapest_branch=not job.sampling)
    found = find_collectives(program, devices)
    known |= {
        "kernels": answer.text.count('custom_call_target="tpu_custom_call"'),
        "unknown_loops": program.unknown_loops,
        "unknown_turns": turns,
        "network_bytes": sum(moved_bytes(found).values()),
        "collectives": moved_bytes(found),
        "largest_collectives": _largest_collectives(found),
        "hbm_bytes": hbm_traffic(program),
    }
    if job.sampling:
        return known
    model, done = step_flops(job)
    line = roofline(
        done / devices, known["hbm_bytes"], found, places_of(layout.mesh.devices.flat), job.chip
    )
    return (
        known
        | {"model_flops": model / devices, "flops": done / devices}
        | _speed(job, line, model / devices)
    )


def _speed(job: Job, line: Roofline, model_flops: float) -> dict[str, Any]:
    tokens = job.batch_size * job.config.data.length
    peak = job.chip.flops / job.chip.devices
    return {
        "compute_s": line.compute,
        "memory_s": line.memory,
        "network_s": line.network,
        "bound": line.bound,
        "step_s": line.serial,
        "overlapped_step_s": line.overlapped,
        "tokens_per_s": tokens / line.serial,
        "mfu": model_flops / line.serial / peak,
        "overlapped_mfu": model_flops / line.overlapped / peak,
    }


def _largest_collectives(found: Sequence[Collective], number: int = 10) -> list[dict[str, Any]]:
    """Those that move most, alike ones together; stride: from partition to partition of a group."""
    together: dict[tuple, list[float]] = {}
    for one in found:
        stride = abs(one.groups[0][1] - one.groups[0][0])
        total = together.setdefault((one.kind, one.dtype, one.size, stride, one.source), [0, 0])
        total[0] += one.moved * one.runs
        total[1] += one.runs
    most = sorted(together.items(), key=lambda item: -item[1][0])[:number]
    names = ("kind", "dtype", "group", "stride", "source", "bytes", "runs")
    return [dict(zip(names, (*key, *total), strict=True)) for key, total in most]


def report(result: dict[str, Any]) -> str:
    """What a person wants to know."""
    r = result
    sizes = f"{r['need_gib']:.2f} of {r['available_gib']:.2f} GiB a device"
    lines = [
        f"{r['program']} step of {r['batch_size']} sequences on {r['devices']} devices of "
        f"{r['topology']}, compiled in {r['compile_s']:.0f} s (jax {r['jax']}, "
        f"{r['compiler']}; nothing ran):",
    ]
    if not r["fits"]:
        splash = "config.model.attention=splash, " if "libtpu" in r["compiler"] else ""
        return "\n".join(
            [
                *lines,
                f"  does not fit: needs {sizes}; use smaller batches, more "
                f"config.train.microbatches, config.model.remat=full, {splash}or a layout that "
                "splits the parameters",
            ]
        )
    lines.append(f"  fits: {sizes}")
    if r["kernels"]:
        lines.append(f"  {r['kernels']} Pallas kernels")
    lines.append(
        f"  network, bytes that a device sends in a step: {r['network_bytes'] / 1e6:,.1f} MB"
    )
    for one in r["largest_collectives"]:
        lines.append(
            f"    {one['bytes'] / 1e6:10,.1f} MB  {one['kind']} of {one['dtype']} over "
            f"{one['group']}, {one['runs']} times: {one['source'][-60:]}"
        )
    if r["unknown_loops"]:
        lines.append(
            f"  {r['unknown_loops']} loops are as long as the data says: counted as "
            f"{r['unknown_turns']} turns each, which the head has if every position has a loss"
        )
    if "step_s" not in r:
        return "\n".join(lines)
    lines += [
        f"  compute {r['flops'] / 1e12:8.2f} TFLOP a device ({r['model_flops'] / 1e12:.2f} of the "
        f"model): {r['compute_s'] * 1e3:8.1f} ms",
        f"  memory  {r['hbm_bytes'] / 1e9:8.1f} GB of HBM traffic: {r['memory_s'] * 1e3:8.1f} ms",
        f"  network {r['network_bytes'] / 1e9:8.3f} GB: {r['network_s'] * 1e3:8.1f} ms",
        f"  a step: {r['step_s'] * 1e3:.1f} ms (max of compute and memory, and then the network), "
        f"{r['tokens_per_s']:,.0f} tokens/s, MFU {r['mfu']:.1%}; bound by {r['bound']}",
        f"  with all of it overlapped: {r['overlapped_step_s'] * 1e3:.1f} ms, MFU "
        f"{r['overlapped_mfu']:.1%}",
        MFU_NOTE,
    ]
    return "\n".join(lines)
