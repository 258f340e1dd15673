"""What a run does before its first step: its record, its newest checkpoint or new weights."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
from etils import epath

from ddm_jax.config import Config, TrainConfig
from ddm_jax.costs.memory import check_fits, device_memory, out_of_memory
from ddm_jax.data.loading.loader import TrainIterator, train_iterator
from ddm_jax.errors import UserError
from ddm_jax.experiment import Experiment
from ddm_jax.parallel import processes
from ddm_jax.parallel.placement import device_bytes
from ddm_jax.runs.checkpoint import Checkpoints, folder_of
from ddm_jax.runs.progress import say
from ddm_jax.runs.record import write_record
from ddm_jax.training.init_from import load_initial_weights
from ddm_jax.training.memory_settings import state_settings
from ddm_jax.training.programs import TrainProgram
from ddm_jax.training.state import TrainState

_STATE = "The train state (weights, average and optimizer state)"


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
      state: restored or fresh, laid out on the devices.
      step: that of the state.
      resumed: whether it is that of a checkpoint.
      loader: positioned at the batch of the next step.
      checkpoints: where the run saves.
      folder: of the checkpoints.
    """

    state: TrainState
    step: int
    resumed: bool
    loader: TrainIterator
    checkpoints: Checkpoints
    folder: epath.Path


def start_run(experiment: Experiment, program: TrainProgram, workdir: Path) -> Start:
    """Writes the record of a run, and restores its newest checkpoint or makes a fresh state.

    Raises:
      UserError: the folder holds another run, its checkpoints cannot be read or are not those that
        other processes see, config.train.init_from does not fit, or the state exceeds the memory
        of a device.
    """
    config, layout = experiment.config, experiment.layout
    write_record(workdir, config, experiment.data)
    _check_state_fits(config, program)
    folder = _checkpoint_folder(workdir, config.train)
    checkpoints = Checkpoints(folder, config.train.keep_last, config.train.keep_every)
    loader = train_iterator(
        experiment.data,
        batch_size=config.train.batch_size,
        seed=config.seed,
        rows=layout.local_rows,
        workers=config.data.workers,
    )
    restored = checkpoints.restore(program.state, layout)
    if restored:
        state, position = restored
        loader.set_state(position)
    else:
        with out_of_memory(_STATE, lambda: state_settings(config, layout)):
            state = program.jitted_init()(jax.random.key(config.seed))
        if config.train.init_from:
            state = load_initial_weights(state, config, experiment.data.tokenizer, layout)
    step = int(state.step)
    _check_same_step(step, folder)
    return Start(state, step, restored is not None, loader, checkpoints, folder)


@contextlib.contextmanager
def record_of_what_starts(workdir: Path, config: Config) -> Iterator[None]:
    """Takes the record of a new run back after a UserError within it before the first step.

    The settings that the message names, such as a smaller batch, can then start in the same folder.
    """
    record, metrics = workdir / "config.json", workdir / "metrics.jsonl"
    is_new = not record.exists()
    try:
        yield
    except UserError:
        checkpoints = folder_of(workdir, config.train)
        saved = checkpoints.is_dir() and any(checkpoints.iterdir())
        logged = metrics.is_file() and metrics.stat().st_size
        if is_new and processes.is_first() and not saved and not logged:
            record.unlink(missing_ok=True)
        raise


def _check_state_fits(config: Config, program: TrainProgram) -> None:
    """Raises UserError if the state that is restored or made exceeds the memory of a device."""
    layout = program.layout
    held = device_bytes(program.state, layout.state_shardings(program.state))
    check_fits(
        _STATE,
        {"peak": held, "arguments": 0},
        device_memory(layout.mesh.local_devices),
        lambda: state_settings(config, layout),
        warn=say,
    )


def _checkpoint_folder(workdir: Path, config: TrainConfig) -> epath.Path:
    """The folder of the run's checkpoints, which all processes see."""
    folder = folder_of(workdir, config)
    if not processes.is_shared(folder):
        raise UserError(
            f"{folder} is not the same folder on all processes: give a --workdir that they share, "
            "or a config.train.checkpoints that all can reach."
        )
    return folder


def _check_same_step(step: int, folder: epath.Path) -> None:
    """Raises UserError unless all processes have read the checkpoint of the same step."""
    if processes.max_over_processes(processes.max_over_processes(step) != step):
        raise UserError(
            f"The processes do not read the same checkpoints in {folder} (the newest here is of "
            f"step {step}): look for a damaged one, and remove it."
        )
