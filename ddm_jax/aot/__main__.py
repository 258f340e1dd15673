"""Compiles a recipe for TPUs or GPUs that are not here, and says what a step of it takes there.

    python -m ddm_jax.aot --config=configs/radd_small.py --topology=v5e:16x16 --layout=fsdp

No data is read and no device is needed, only the compiler: `pip install "jax[tpu]"` (or "cuda13").
Memory is the compiler's own answer. Time is not: it is the roofline of public figures
(parallel/roofline.py). Where there is no GPU, its compiler cannot try which kernels are fastest and
has no cuDNN: for GPUs all of it is an estimate.
"""

import dataclasses
import functools
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from ddm_jax import cli
from ddm_jax.config import Config, ModelConfig
from ddm_jax.costs import flops, hlo
from ddm_jax.costs.chips import GIB, Chip
from ddm_jax.costs.collectives import Collective, collectives, moved_bytes
from ddm_jax.costs.roofline import Roofline, roofline, traffic
from ddm_jax.costs.topology import compiler, devices_of, places
from ddm_jax.data.tokenizers.tokenizer import given, is_trained
from ddm_jax.diffusion.randomness import TIMES, example_keys, step_key
from ddm_jax.errors import UserError
from ddm_jax.experiment import describe, make_parts, make_sampler, settle
from ddm_jax.models.head import chunk_rows
from ddm_jax.models.layout_hooks import ALONE, Spread
from ddm_jax.models.network import padded_vocab
from ddm_jax.objectives import Noise
from ddm_jax.objectives.source import with_source
from ddm_jax.parallel.layout_hooks import spread_of
from ddm_jax.parallel.layouts import LAYOUTS, Layout, make_layout
from ddm_jax.parallel.placement import device_bytes, summary, table
from ddm_jax.samplers import SampleSpec
from ddm_jax.training.optimizer import make_optimizer
from ddm_jax.training.state import TrainState, init_state
from ddm_jax.training.step import make_train_step, metric_names

_CONFIG = cli.define_config()
_TOPOLOGY = flags.DEFINE_string("topology", "", "TPUs or GPUs: v5e:16x16, v5p:2x2x2, h200:8")
_SLICES = flags.DEFINE_integer("slices", 1, "or nodes of that, with the data centre between them")
_LAYOUT = flags.DEFINE_string("layout", "", f"{', '.join(LAYOUTS)}; the recipe's if empty")
_AXES = flags.DEFINE_string("axes", "", "sizes of the mesh's axes, such as data=16,fsdp=16")
_PROGRAM = flags.DEFINE_enum("program", "train", ["train", "sample"], "which step to compile")
_SEARCH = flags.DEFINE_bool("search_batch", False, "find the largest batch that fits")
_TABLE = flags.DEFINE_bool("table", False, "show where each parameter lies")
_JSON = cli.define_json()

MFU_NOTE = (
    "Assumed: every matmul at the chip's bfloat16 peak, HBM and links at their full bandwidth, no "
    "latency, and a network that waits for the chip (the compiler hides some of it); a real step "
    "takes longer than the first time and may beat the second only by hiding the network."
)


@dataclass(frozen=True)
class Job:
    """A settled recipe for a layout on devices. vocab_size: of the recipe's tokenizer."""

    config: Config
    layout: Layout
    chip: Chip
    vocab_size: int
    sampling: bool = False

    @property
    def batch_size(self) -> int:
        """Sequences of the program, over all devices."""
        return self.config.eval.batch_size if self.sampling else self.config.train.batch_size

    def with_batch(self, size: int) -> "Job":
        """The same of other batches."""
        section, name = (
            (self.config.eval, "eval") if self.sampling else (self.config.train, "train")
        )
        section = dataclasses.replace(section, batch_size=size)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **{name: section}))


@dataclass(frozen=True)
class Program:
    """What is compiled: a jitted function, its abstract arguments, and what a device holds."""

    jitted: Any
    args: tuple[Any, ...]
    held: int


@dataclass(frozen=True)
class Answer:
    """What the compiler says. need: bytes of a device's memory; text: the program, if it fits."""

    fits: bool
    need: float
    text: str
    seconds: float


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
    layout = arrange(config, devices)
    job = Job(config, layout, chip, vocab_size, _PROGRAM.value == "sample")
    print(describe(config))
    check_batch(job)
    state = abstract_state(job)
    print(table(layout, state) if _TABLE.value else summary(layout, state), flush=True)
    trials: dict[int, Answer] = {}
    if _SEARCH.value:
        job = search(job, trials)
    answer = trials.get(job.batch_size) or compile_for(job)
    result = {
        "topology": _TOPOLOGY.value,
        "slices": _SLICES.value,
        "devices": len(devices),
        "program": _PROGRAM.value,
        "jax": jax.__version__,
        "compiler": compiler(_TOPOLOGY.value),
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


def vocabulary(spec: str) -> int:
    """Tokens of `data.tokenizer`, without its corpus.

    Raises:
      UserError: unknown kind, or no such model file.
    """
    return int(spec.partition(":")[2]) if is_trained(spec) else given(spec).vocab_size


def arrange(config: Config, devices: Sequence[Any]) -> Layout:
    """The layout of a config on the devices of a topology.

    Raises:
      UserError: as `make_layout`, or the axes do not follow the links of the chips.
    """
    try:
        return make_layout(config.layout, devices)
    except NotImplementedError as error:
        axes = config.layout.axes or "its default sizes"
        raise UserError(
            f"--axes of {config.layout.name} ({axes}) do not lie along the links of "
            f"{_TOPOLOGY.value}: give sizes that are products of the sizes in its name."
        ) from error


def check_batch(job: Job) -> None:
    """Raises UserError unless the batch splits over the devices."""
    if job.sampling:
        job.layout.check_batch(job.batch_size, "config.eval.batch_size")
        return
    job.layout.check_batch(
        job.batch_size // job.config.train.microbatches,
        "config.train.batch_size / config.train.microbatches",
    )


def search(job: Job, trials: dict[int, Answer]) -> Job:
    """The job with the largest batch that fits, or with the smallest if none does.

    trials: takes the answer for each batch that was tried. The layout and the micro-batches of the
    recipe say what a batch is a multiple of.
    """
    layout = job.layout
    unit = layout.size(*layout.row.batch) * (1 if job.sampling else job.config.train.microbatches)

    def fits(n: int) -> bool:
        answer = trials[n * unit] = compile_for(job.with_batch(n * unit))
        print(f"batch {n * unit}: {verdict(answer, job.chip)}", flush=True)
        return answer.fits

    most = largest(fits, start=max(1, job.batch_size // unit))
    return job.with_batch(max(most, 1) * unit)


def largest(fits: Callable[[int], bool], start: int = 1) -> int:
    """The largest n >= 1 that fits, 0 if none does; what is smaller than one that fits, fits too.

    From start by doubling or halving, then by bisection.
    """
    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while low == 0 and high > 1:
        middle = high // 2
        low, high = (middle, high) if fits(middle) else (0, middle)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def compile_for(job: Job) -> Answer:
    """What the compiler says of a job; too little memory is an answer.

    Raises:
      UserError: the compiler refuses for another reason.
    """
    program = make_program(job)
    begin = time.perf_counter()
    try:
        compiled = program.jitted.lower(*program.args).compile()
    except jax.errors.JaxRuntimeError as error:
        text = str(error)
        if "RESOURCE_EXHAUSTED" not in text:
            raise UserError(f"The compiler refuses: {text.splitlines()[0]}") from error
        return Answer(False, needed(text, program.held), "", time.perf_counter() - begin)
    peak = _peak(compiled.memory_analysis())
    fits = peak <= job.chip.hbm * GIB  # the compiler for GPUs does not say it
    return Answer(fits, peak, compiled.as_text(), time.perf_counter() - begin)


def _peak(stats: Any) -> int:
    """Bytes that a device holds at once; on a GPU what the program is given and what it takes."""
    given = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.peak_memory_in_bytes or given + stats.temp_size_in_bytes


def needed(message: str, held: int) -> float:
    """Bytes of memory that the compiler asks for when it runs out of them.

    held: of the arguments, which it does not count where it speaks of temporaries alone.
    """
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    if found := re.search(r"temporaries \(([\d.]+)([KMGT])\)", message):
        return float(found[1]) * unit[found[2]] + held
    if found := re.search(r"Used ([\d.]+)([KMGT]) of", message):
        return float(found[1]) * unit[found[2]]
    return float("nan")


def make_program(job: Job) -> Program:
    """The train step under the layout, or the sampler that validation runs."""
    return _sample_program(job) if job.sampling else _train_program(job)


def abstract_state(job: Job) -> TrainState:
    """The train state, without arrays."""
    _, objective, network = make_parts(job.config, job.vocab_size)
    optimizer = make_optimizer(job.config.optim, job.config.train.steps)
    names = metric_names(network, objective)
    init = functools.partial(init_state, network, optimizer, metrics=names)
    return jax.eval_shape(init, jax.random.key(0))


def abstract_batch(config: Config, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch of training, the longest bucket of pairs, without arrays."""
    sides = {"tokens": config.data.length}
    if config.model.kind != "lm":
        sides["source"] = config.data.source_length
    batch = {}
    for name, length in sides.items():
        valid = {"tokens": ("valid", "seen"), "source": ("source_valid",)}[name]
        batch[name] = jax.ShapeDtypeStruct((size, length), jnp.int32)
        batch |= {key: jax.ShapeDtypeStruct((size, length), bool) for key in valid}
    if config.model.kind == "lm":
        del batch["seen"]
    return batch


def _train_program(job: Job) -> Program:
    config, layout = job.config, job.layout
    process, objective, network = make_parts(config, job.vocab_size, spread_of(layout))
    optimizer = make_optimizer(config.optim, config.train.steps)
    step = make_train_step(config, network, objective, process, optimizer, layout)
    state = abstract_state(job)
    shardings = layout.state_shardings(state)

    def shape(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        dims = x.shape
        if layout.row.mapped:  # as Layout.put_train_batch
            dims = (layout.mesh.size, dims[0] // layout.mesh.size, *dims[1:])
        return jax.ShapeDtypeStruct(dims, x.dtype, sharding=layout.by_example)

    batch = jax.tree.map(shape, abstract_batch(config, job.batch_size))
    args = (_placed(state, shardings), batch)
    return Program(layout.program(step, state), args, device_bytes(state, shardings))


def _sample_program(job: Job) -> Program:
    config, layout = job.config, job.layout
    if config.model.kind != "lm":
        raise UserError(
            f"--program=sample does not compile config.model.kind={config.model.kind!r}: only 'lm'."
        )
    if layout.row.mapped:
        raise UserError("--program=sample is not mapped by jax.pmap: use --layout=dp.")
    process, _, network = make_parts(config, job.vocab_size, spread_of(layout))
    sampler = make_sampler(config)

    def sample(params: Any, key: Any, prompt: Any, fixed: Any) -> Any:
        spec = SampleSpec(config.sampler.steps, config.sampler.temperature)
        return sampler(network.apply, params, key, prompt, fixed, process, spec)

    params = abstract_state(job).params
    shardings = layout.param_shardings(params)
    rows = job.batch_size, config.data.length
    args = (
        _placed(params, shardings),
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct(rows, jnp.int32, sharding=layout.by_example),
        jax.ShapeDtypeStruct(rows, bool, sharding=layout.by_example),
    )
    jitted = jax.jit(sample, out_shardings=layout.by_example)
    return Program(jitted, args, device_bytes(params, shardings))


def _placed(tree: Any, shardings: Any) -> Any:
    def leaf(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree, shardings)


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

    def made(model: ModelConfig, spread: Spread) -> tuple[Any, Any, Any]:
        return make_parts(dataclasses.replace(config, model=model), job.vocab_size, spread)

    process, objective, network = made(config.model, Spread(examples=parts[0], positions=parts[1]))
    step = make_train_step(config, network, objective, process, optimizer)
    turns = head_turns(job, positions // config.train.microbatches)
    done = flops.count(step, abstract_state(job), batch, turns=turns)

    plain = dataclasses.replace(config.model, attention="plain", remat="none")
    process, objective, network = made(plain, ALONE)

    def loss(params: Any, batch: Any) -> jax.Array:
        index = jnp.arange(job.batch_size)
        key = step_key(config.seed, 0)
        times = TIMES[config.train.times](key, index, job.batch_size)
        apply, _ = with_source(network, params, batch)
        noise = Noise(times, example_keys(key, index))
        return objective.loss(apply, params, batch, noise, process).loss

    params, turns = abstract_state(job).params, head_turns(job, positions)
    return 3 * flops.count(loss, params, batch, turns=turns), done


def head_turns(job: Job, positions: int) -> int:
    """Chunks in which the head reads so many positions of a device, if all have a loss."""
    return -(-positions // chunk_rows(positions, padded_vocab(job.vocab_size)))


def assess(job: Job, answer: Answer) -> dict[str, Any]:
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
    program = hlo.parse(answer.text, turns, shorter=not job.sampling)
    found = collectives(program, devices)
    known |= {
        "kernels": answer.text.count('custom_call_target="tpu_custom_call"'),
        "unknown_loops": program.unknown_loops,
        "unknown_turns": turns,
        "network_bytes": sum(moved_bytes(found).values()),
        "collectives": moved_bytes(found),
        "largest_collectives": _largest_collectives(found),
        "hbm_bytes": traffic(program),
    }
    if job.sampling:
        return known
    model, done = step_flops(job)
    line = roofline(
        done / devices, known["hbm_bytes"], found, places(layout.mesh.devices.flat), job.chip
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


def verdict(answer: Answer, chip: Chip) -> str:
    """One line: whether it fits."""
    sizes = f"{answer.need / GIB:.2f} of {chip.hbm:.2f} GiB a device"
    return f"fits: {sizes}" if answer.fits else f"does not fit: needs {sizes}"


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


if __name__ == "__main__":
    cli.run(main)
