"""Checkpoints through Orbax: asynchronous, atomic, with the position of the loader.

Arrays are saved whole under any layout, and can be restored under any other. A folder may be
remote, gs://BUCKET/FOLDER: Orbax and etils then need gcsfs.
"""

import importlib.util
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from ddm_jax.config import TrainConfig
from ddm_jax.errors import UserError, how_to_install
from ddm_jax.models.network import Params
from ddm_jax.parallel import processes
from ddm_jax.parallel.layouts import Layout

State = TypeVar("State")  # a pytree of arrays
_FILE_BYTES = 2**24  # size of a file of bare weights


def folder_of(workdir: Path, config: TrainConfig) -> epath.Path:
    """The folder of a run's checkpoints: train.checkpoints, or `checkpoints` in its workdir.

    Raises:
      UserError: Orbax cannot write there, or gcsfs is missing.
    """
    if not config.checkpoints:
        return epath.Path(workdir).absolute() / "checkpoints"
    scheme, _, rest = config.checkpoints.partition("://")
    if not rest:
        return epath.Path(config.checkpoints).expanduser().absolute()
    if scheme != "gs":
        raise UserError(
            f"config.train.checkpoints={config.checkpoints!r} is not a place that Orbax can write "
            "to: give gs://BUCKET/FOLDER or a folder, such as one where a bucket is mounted."
        )
    if not importlib.util.find_spec("gcsfs"):
        raise UserError(
            f"config.train.checkpoints={config.checkpoints!r} needs gcsfs: {how_to_install('gcs')}."
        )
    return epath.Path(config.checkpoints)


class Checkpoints:
    """The checkpoints `folder`/STEP/{state,loader} of a run that trains."""

    def __init__(self, folder: epath.Path, keep_last: int, keep_every: int):
        """Opens the folder; makes it if it is missing.

        Args:
          folder: of `folder_of`.
          keep_last: number of newest checkpoints that are kept.
          keep_every: checkpoints at multiples of this step are kept too.
        """
        self._folder = folder
        options = ocp.CheckpointManagerOptions(max_to_keep=keep_last, keep_period=keep_every)
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._reader = _reader()

    def save(self, step: int, state: Any, loader: Mapping[str, Any]) -> None:
        """Starts to save; `state` may be donated as soon as this returns.

        Args:
          step: the name of the checkpoint.
          state: a pytree of arrays.
          loader: the position of the loader, for JSON.
        """
        if jax.default_backend() == "cpu":
            # on CPU, Orbax has no copy on the host to write from, only the buffers themselves,
            # which the next step overwrites
            state = jax.tree.map(lambda x: x.copy(), state)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), loader=ocp.args.JsonSave(dict(loader))
        )
        self._manager.save(step, args=args)

    def restore(self, abstract: State, layout: Layout) -> tuple[State, dict[str, Any]] | None:
        """Restores the newest readable checkpoint.

        Newer checkpoints, which cannot be read, are moved to `checkpoints-damaged/`, with a
        warning.

        Args:
          abstract: shapes and types of the state.
          layout: where its arrays go.

        Returns:
          (state, loader) as saved; None if there is no checkpoint.

        Raises:
          UserError: there are checkpoints, and none can be read; nothing is moved.
        """
        abstract = jax.tree.map(_placed, abstract, layout.state_shardings(abstract))
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), loader=ocp.args.JsonRestore()
        )
        damaged: dict[int, Exception] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            found, error = self._read(step, args)
            if processes.max_over_processes(found is None):  # all resume from the same one
                damaged[step] = error or ValueError("another process cannot read it")
                continue
            assert found is not None, "no process failed to read it"
            for broken, reason in damaged.items():
                self._set_aside(broken, reason)
            return found["state"], found["loader"]
        if damaged:
            newest, reason = next(iter(damaged.items()))
            raise UserError(
                f"None of the checkpoints in {self._folder} can be read (step {newest}: "
                f"{_first_line(reason)}): restore them from a copy, or start again with another "
                "--workdir."
            )
        return None

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()
        self._reader.close()

    def _read(self, step: int, args: ocp.args.Composite) -> tuple[Any, Exception | None]:
        """(content, None), or (None, error) if the checkpoint is damaged."""
        try:
            return self._reader.restore(self._folder / str(step), args=args), None
        except Exception as error:  # whatever a torn file makes Orbax raise
            return None, error

    def _set_aside(self, step: int, error: Exception) -> None:
        if processes.is_first():
            folder = self._folder.with_name(self._folder.name + "-damaged")
            folder.mkdir(exist_ok=True)
            target = folder / str(step)
            while target.exists():
                target = target.with_name(target.name + "_")
            (self._folder / str(step)).rename(target)
            logging.warning(
                "Checkpoint %d cannot be read (%s): moved to %s; resuming from an older one.",
                step,
                _first_line(error),
                target,
            )
        processes.barrier(f"checkpoint {step} is set aside")
        self._manager.reload()


def save_weights(folder: epath.Path, step: int, weights: Params) -> None:
    """Saves bare weights as the averaged weights of a checkpoint; only `restore_weights` reads it.

    numpy arrays are written without a copy: nothing may change them before this returns.

    Args:
      folder: of the checkpoints.
      step: the name of the checkpoint.
      weights: a pytree of arrays of jax or numpy.
    """
    handlers = ocp.type_handlers
    registry = handlers.create_type_handler_registry(
        (jax.Array, handlers.ArrayHandler()),  # without it Orbax warns
        (np.ndarray, handlers.NumpyHandler(deepcopy_host_arrays=False)),
    )
    state = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    # the content of a file is held in memory until the file is full
    save = ocp.args.PyTreeSave(
        {"ema": jax.tree.map(np.asarray, weights)}, ocdbt_target_data_file_size=_FILE_BYTES
    )
    with ocp.CheckpointManager(folder, item_handlers={"state": state}) as manager:
        manager.save(step, args=ocp.args.Composite(state=save))


def restore_weights(
    folder: epath.Path, abstract: Params, layout: Layout, which: str = "ema", last: int = 1
) -> tuple[int, Params]:
    """Reads the weights of the newest readable checkpoint.

    Nothing in the folder changes, whether its run has ended or not. Checkpoints that cannot be read
    are skipped with a warning.

    Args:
      folder: of the checkpoints.
      abstract: shapes and types of the weights.
      layout: where they go.
      which: "ema", the running average of the weights, or "params", the weights themselves.
      last: number of newest checkpoints to take the mean of.

    Returns:
      (step, weights); the step is that of the newest checkpoint.

    Raises:
      UserError: there are fewer checkpoints than `last`, or none can be read.
    """
    found = list(itertools.islice(_newest_first(folder, abstract, layout, which), last))
    if len(found) < last:
        raise UserError(
            f"{folder} has {len(found)} checkpoints that can be read, not {last}: average fewer, "
            "or keep more with config.train.keep_last."
        )
    step, weights = found[0]
    if last > 1:
        weights = jax.tree.map(lambda *x: sum(x) / last, *(w for _, w in found))
    return step, weights


def _newest_first(
    folder: epath.Path, abstract: Params, layout: Layout, which: str
) -> Iterator[tuple[int, Params]]:
    """Yields (step, weights) of every checkpoint that can be read.

    Raises:
      UserError: there is none.
    """
    shardings = layout.param_shardings(abstract)
    item = {which: jax.tree.map(_placed, abstract, shardings)}
    args = ocp.args.PyTreeRestore(
        item=item,
        restore_args=ocp.checkpoint_utils.construct_restore_args(item),
        partial_restore=True,
    )
    good: set[int] = set()
    damaged: dict[int, Exception] = {}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        # listed again each time: a run that still trains saves new ones and deletes old ones
        while left := {s for s in _steps(folder) if s < min(good, default=s + 1)} - damaged.keys():
            step = max(left)
            try:
                tree = reader.restore(folder / str(step) / "state", args=args)[which]
                if not all(isinstance(x, jax.Array) for x in jax.tree.leaves(tree)):
                    raise ValueError("it holds another network")
            except Exception as caught:  # whatever a torn file makes Orbax raise
                damaged[step] = caught
                reason = _first_line(caught)
                logging.warning("Checkpoint %d cannot be read (%s): it is skipped.", step, reason)
                continue
            good.add(step)
            yield step, tree
    if good:
        return
    if not damaged:
        raise UserError(f"{folder} has no checkpoint yet: wait until the run has saved one.")
    newest, error = next(iter(damaged.items()))
    raise UserError(
        f"None of the checkpoints in {folder} can be read (step {newest}: {_first_line(error)}): "
        "restore them from a copy."
    )


def _reader() -> ocp.Checkpointer:
    """A reader that does not wait for other processes, which may fail to read what this one can."""
    own = jax.process_index()
    only_this = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=only_this),
        state=ocp.StandardCheckpointHandler(multiprocessing_options=only_this),
        loader=ocp.JsonCheckpointHandler(multiprocessing_options=only_this),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=only_this)


def _placed(x: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _steps(folder: epath.Path) -> list[int]:
    return ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
