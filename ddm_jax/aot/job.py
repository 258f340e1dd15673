"""What is compiled ahead of time: a recipe on a machine, and its train or sample program."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ddm_jax.config import Config
from ddm_jax.costs.chips import Chip
from ddm_jax.data.tokenizers.tokenizer import is_trained, pretrained_tokenizer
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_parts, make_sampler
from ddm_jax.parallel.layout_hooks import hooks_of
from ddm_jax.parallel.layouts import Layout, make_layout
from ddm_jax.parallel.placement import device_bytes
from ddm_jax.samplers.signature import SampleSpec
from ddm_jax.training.optimizer import make_optimizer
from ddm_jax.training.state import TrainState, init_state
from ddm_jax.training.step import make_train_step, metric_names


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
class AotProgram:
    """What is compiled: a jitted function, its abstract arguments, and what a device holds."""

    jitted: Any
    args: tuple[Any, ...]
    held: int


def vocabulary(spec: str) -> int:
    """Tokens of `data.tokenizer`, without its corpus.

    Raises:
      UserError: unknown kind, or no such model file.
    """
    return (
        int(spec.partition(":")[2]) if is_trained(spec) else pretrained_tokenizer(spec).vocab_size
    )


def arrange(config: Config, devices: Sequence[Any], topology: str) -> Layout:
    """The layout of a config on the devices of a topology, e.g. "v5e:16x16".

    Raises:
      UserError: as `make_layout`, or the axes do not follow the links of the chips.
    """
    try:
        return make_layout(config.layout, devices)
    except NotImplementedError as error:
        axes = config.layout.axes or "its default sizes"
        raise UserError(
            f"--axes of {config.layout.name} ({axes}) do not lie along the links of "
            f"{topology}: give sizes that are products of the sizes in its name."
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


def make_aot_program(job: Job) -> AotProgram:
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


def _train_program(job: Job) -> AotProgram:
    config, layout = job.config, job.layout
    process, objective, network = make_parts(config, job.vocab_size, hooks_of(layout))
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
    return AotProgram(layout.program(step, state), args, device_bytes(state, shardings))


def _sample_program(job: Job) -> AotProgram:
    config, layout = job.config, job.layout
    if config.model.kind != "lm":
        raise UserError(
            f"--program=sample does not compile config.model.kind={config.model.kind!r}: only 'lm'."
        )
    if layout.row.mapped:
        raise UserError("--program=sample is not mapped by jax.pmap: use --layout=dp.")
    process, _, network = make_parts(config, job.vocab_size, hooks_of(layout))
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
    return AotProgram(jitted, args, device_bytes(params, shardings))


def _placed(tree: Any, shardings: Any) -> Any:
    def leaf(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree, shardings)
