"""What is compiled ahead of time: a recipe on a machine, and its train or sample program."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.config import Config, LayoutConfig
from ddm_jax.costs.chips import Chip
from ddm_jax.data.tokenizers.tokenizer import is_trained, pretrained_tokenizer
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_parts, make_sampler
from ddm_jax.parallel.layout_hooks import hooks_of
from ddm_jax.parallel.layouts import Layout, make_layout
from ddm_jax.parallel.placement import device_bytes
from ddm_jax.samplers.signature import SampleSpec
from ddm_jax.training.programs import make_train_program
from ddm_jax.training.state import TrainState


@dataclass(frozen=True)
class AotJob:
    """A settled recipe under a layout on devices that need not be present.

    Attributes:
      config: the settled recipe.
      layout: on abstract devices.
      chip: the kind of these devices.
      vocab_size: of the recipe's tokenizer.
      sampling: compile the sampler instead of the train step.
    """

    config: Config
    layout: Layout
    chip: Chip
    vocab_size: int
    sampling: bool = False

    @property
    def batch_size(self) -> int:
        """Sequences in a batch of the program, over all devices."""
        return self.config.eval.batch_size if self.sampling else self.config.train.batch_size

    def with_batch(self, size: int) -> "AotJob":
        """The same job with another batch size."""
        config = self.config
        if self.sampling:
            section = dataclasses.replace(config.eval, batch_size=size)
            return dataclasses.replace(self, config=dataclasses.replace(config, eval=section))
        train = dataclasses.replace(config.train, batch_size=size)
        return dataclasses.replace(self, config=dataclasses.replace(config, train=train))


@dataclass(frozen=True)
class AotProgram:
    """A program to compile.

    Attributes:
      jitted: a function wrapped by jax.jit or jax.pmap.
      args: its abstract arguments, with their shardings.
      argument_bytes: bytes of parameters and state that a device holds.
    """

    jitted: Any
    args: tuple[Any, ...]
    argument_bytes: int


def vocab_size_of(tokenizer: str) -> int:
    """Number of tokens of `config.data.tokenizer`, without reading a corpus.

    Raises:
      UserError: the kind is unknown, or the model file does not exist.
    """
    if is_trained(tokenizer):
        return int(tokenizer.partition(":")[2])
    return pretrained_tokenizer(tokenizer).vocab_size


def make_aot_layout(config: LayoutConfig, devices: Sequence[jax.Device], topology: str) -> Layout:
    """The layout of a config on the devices of a topology, such as "v5e:16x16".

    Raises:
      UserError: as `make_layout`, or the axes do not follow the links of the chips.
    """
    try:
        return make_layout(config, devices)
    except NotImplementedError as error:
        axes = config.axes or "its default sizes"
        raise UserError(
            f"--axes of {config.name} ({axes}) do not lie along the links of {topology}: give "
            "sizes that are products of the sizes in its name."
        ) from error


def check_batch(job: AotJob) -> None:
    """Raises UserError unless the batch splits over the devices."""
    if job.sampling:
        job.layout.check_batch(job.batch_size, "config.eval.batch_size")
        return
    job.layout.check_batch(
        job.batch_size // job.config.train.microbatches,
        "config.train.batch_size / config.train.microbatches",
    )


def make_aot_program(job: AotJob) -> AotProgram:
    """The train step under the layout, or the sampler that validation runs.

    Raises:
      UserError: the sampler cannot be compiled for this model or layout.
    """
    return _sample_program(job) if job.sampling else _train_program(job)


def abstract_state(job: AotJob) -> TrainState:
    """The train state as shapes and dtypes, without arrays."""
    process, objective, network = make_parts(job.config, job.vocab_size)
    return make_train_program(job.config, process, objective, network, job.layout).state


def abstract_batch(config: Config, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A training batch of `size` sequences (of pairs: the longest bucket), without arrays."""
    target = (size, config.data.length)
    batch = {
        "tokens": jax.ShapeDtypeStruct(target, jnp.int32),
        "valid": jax.ShapeDtypeStruct(target, bool),
    }
    if config.model.kind != "lm":
        source = (size, config.data.source_length)
        batch |= {
            "seen": jax.ShapeDtypeStruct(target, bool),
            "source": jax.ShapeDtypeStruct(source, jnp.int32),
            "source_valid": jax.ShapeDtypeStruct(source, bool),
        }
    return batch


def _train_program(job: AotJob) -> AotProgram:
    config, layout = job.config, job.layout
    process, objective, network = make_parts(config, job.vocab_size, hooks_of(layout))
    program = make_train_program(config, process, objective, network, layout)
    shardings = layout.state_shardings(program.state)

    def as_put(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        shape = x.shape
        if layout.entry.uses_pmap:  # as Layout.put_train_batch
            shape = (layout.mesh.size, shape[0] // layout.mesh.size, *shape[1:])
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=layout.batch_sharding)

    batch = jax.tree.map(as_put, abstract_batch(config, job.batch_size))
    args = (_with_shardings(program.state, shardings), batch)
    return AotProgram(program.jitted_step(), args, device_bytes(program.state, shardings))


def _sample_program(job: AotJob) -> AotProgram:
    config, layout = job.config, job.layout
    if config.model.kind != "lm":
        raise UserError(
            f"--program=sample does not compile config.model.kind={config.model.kind!r}: give a "
            "recipe of kind 'lm'."
        )
    if layout.entry.uses_pmap:
        raise UserError("--program=sample cannot run under jax.pmap: give --layout=dp.")
    process, _, network = make_parts(config, job.vocab_size, hooks_of(layout))
    sampler = make_sampler(config)

    def sample(params: Any, key: Array, prompt: Array, fixed: Array) -> Any:
        spec = SampleSpec(config.sampler.steps, config.sampler.temperature)
        return sampler(network.apply, params, key, prompt, fixed, process, spec)

    params = abstract_state(job).params
    shardings = layout.param_shardings(params)
    shape = job.batch_size, config.data.length
    args = (
        _with_shardings(params, shardings),
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct(shape, jnp.int32, sharding=layout.batch_sharding),
        jax.ShapeDtypeStruct(shape, bool, sharding=layout.batch_sharding),
    )
    jitted = jax.jit(sample, out_shardings=layout.batch_sharding)
    return AotProgram(jitted, args, device_bytes(params, shardings))


def _with_shardings(tree: Any, shardings: Any) -> Any:
    """An abstract tree whose leaves have these shardings."""

    def leaf(x: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(leaf, tree, shardings)
