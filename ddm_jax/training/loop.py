"""Training: the loop around the step, with its logs, checkpoints and validations."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax import Array
from ml_collections import ConfigDict

from ddm_jax.config import Config
from ddm_jax.costs.memory import out_of_memory
from ddm_jax.errors import UserError
from ddm_jax.experiment import Experiment, build
from ddm_jax.parallel import processes
from ddm_jax.parallel.placement import layout_summary, layout_table
from ddm_jax.recipes import make_config
from ddm_jax.runs.files import read_metrics, write_atomically
from ddm_jax.runs.interrupt import Interrupt
from ddm_jax.runs.progress import Progress
from ddm_jax.runs.record import check_workdir
from ddm_jax.settle import describe, settle
from ddm_jax.training.curve import draw_curve
from ddm_jax.training.memory_settings import step_settings, validation_settings
from ddm_jax.training.metric_writers import EVAL, TRAIN, Writers
from ddm_jax.training.profile import Profile
from ddm_jax.training.programs import CompiledSteps, make_train_program
from ddm_jax.training.start import record_of_what_starts, start_run
from ddm_jax.training.step import Metrics
from ddm_jax.training.validation import Validation, make_validation
from ddm_jax.wording import counted

STALL_TIMEOUT = 600.0  # seconds


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      workdir: the folder of the run.
      step: the last step, of which there is a checkpoint.
      finished: whether that is the last step of the config; False after SIGTERM or Ctrl-C.
      validation: the last validation; None if there was none.
      signal: number of the signal that stopped the run before its last step, or before the
        validation after it; 0 if none did.
      unigram_nll: cross entropy of a unigram model on the validation split, nats per token: what
        any trained network must beat.
    """

    workdir: Path
    step: int
    finished: bool
    validation: Validation | None
    unigram_nll: float
    signal: int = 0


def train(
    config: str | Path | ConfigDict | Config,
    workdir: str | Path,
    stall_timeout: float = STALL_TIMEOUT,
    overrides: Mapping[str, Any] | None = None,
) -> Outcome:
    """Trains a recipe in a work directory, or resumes the run in it; draws its curve.

    This is what `python -m ddm_jax.main` calls; it needs no flags. SIGTERM and Ctrl-C save a
    checkpoint and return; the same call then resumes. Outside the main thread, as in some
    notebooks, signals are left as they are.

    Args:
      config: the name of a shipped recipe or the path of one, such as "radd_tiny"; or a config,
        from its `get_config()` or `ddm_jax.config.resolve`.
      workdir: the folder of the run, on this machine; made if it is missing.
      stall_timeout: seconds without a finished step after which a run of several processes ends
        (parallel.processes.Watchdog). They must have called `parallel.processes.initialize`.
      overrides: fields of the config to change, such as {"train.steps": 200}.

    Returns:
      How the run ended.

    Raises:
      UserError: there is no such recipe, the config does not fit together, its data cannot be
        prepared, `workdir` holds another run, or as `train_experiment`.
    """
    config = settle(make_config(config, overrides))
    if "://" in str(workdir):
        raise UserError(
            f"--workdir={workdir} is not a folder of this machine: give one, and keep the "
            f"checkpoints there with --config.train.checkpoints={workdir}."
        )
    workdir = Path(workdir).expanduser()
    check_workdir(workdir, config)  # before data is prepared, which may take minutes
    experiment = build(config)
    if processes.is_first():
        print(describe(config))
    outcome = train_experiment(experiment, workdir, stall_timeout)
    if processes.is_first():
        draw_curve(workdir, outcome.unigram_nll, config)
    return outcome


def train_experiment(
    experiment: Experiment, workdir: Path, stall_timeout: float = STALL_TIMEOUT
) -> Outcome:
    """Trains from the newest checkpoint in `workdir`, or from the start, up to train.steps.

    SIGTERM and Ctrl-C save a checkpoint and return; the same call then resumes. With several
    processes, all call this; a signal to one of them stops them all, at the same step. They share
    the checkpoints, and process 0 writes the rest.

    Args:
      experiment: of `ddm_jax.experiment.build`.
      workdir: the folder of the run.
      stall_timeout: as in `train`.

    Returns:
      How the run ended.

    Raises:
      UserError: the folder holds another run, its checkpoints cannot be read or are not those that
        other processes see, memory does not suffice, or the loss was not finite for
        train.max_bad_steps steps in a row.
    """
    remedy = functools.partial(step_settings, experiment.config, experiment.layout)
    processes.barrier("training starts")
    with (
        record_of_what_starts(workdir, experiment.config),
        processes.Watchdog(stall_timeout) as watch,
    ):
        training = _Training(experiment, workdir, watch)
        with Interrupt() as interrupt:  # until the last checkpoint is written
            try:
                with out_of_memory("Training", remedy):
                    training.run(interrupt)
            except BaseException as error:
                processes.end_all_processes(error)
                raise
            finally:
                training.close()
    return Outcome(
        workdir,
        training.step,
        finished=training.step >= experiment.config.train.steps,
        validation=training.validation,
        unigram_nll=experiment.data.unigram_entropy("validation"),
        signal=training.signal,
    )


class _Training:
    """A run from its start to its end.

    Attributes:
      step: the last step that was started.
      validation: the last validation; None before the first.
      signal: number of the signal that has stopped it; 0 if none has.
    """

    def __init__(self, experiment: Experiment, workdir: Path, watch: processes.Watchdog):
        config, layout = experiment.config, experiment.layout
        program = make_train_program(
            config, experiment.process, experiment.objective, experiment.network, layout
        )
        start = start_run(experiment, program, workdir)
        self.step = start.step
        self.validation: Validation | None = None
        self.signal = 0
        self._state = start.state
        self._checkpoints, self._folder = start.checkpoints, start.folder
        self._loader = start.loader
        self._config, self._layout, self._workdir, self._watch = config, layout, workdir, watch

        tokens = config.train.batch_size * config.data.length
        self._progress = Progress(start.step, config.train.steps, tokens)
        begin = "Resuming from" if start.resumed else "Starting at"
        self._progress.say(f"{begin} step {start.step} in {workdir}")
        self._progress.say(layout_summary(layout, program.state))
        self._writers: Writers | None = None
        if processes.is_first():
            write_atomically(workdir / "layout.txt", layout_table(layout, program.state) + "\n")
            project = config.train.wandb_project
            self._writers = Writers(workdir, start.step, project, dataclasses.asdict(config))
        self._profile = Profile(workdir / "profile", config.train.profile)
        self._validate = make_validation(experiment, workdir)
        self._compiled = CompiledSteps(config, program, workdir, self._progress, watch)

    def run(self, interrupt: Interrupt) -> None:
        """Trains to the last step, or until an interrupt."""
        if self._lacks_validation():
            self._check()
        if self.step < self._config.train.steps:
            self._take_steps(interrupt)
        if not self.validation and not self.signal:  # the run had ended before
            self.validation = self._measure()

    def close(self) -> None:
        """Waits for the checkpoints, and closes all files and threads."""
        with self._watch.slow():
            self._checkpoints.close()
            if self._writers:
                self._writers.close()
        self._profile.close()
        self._loader.close()
        self._progress.close()

    def _take_steps(self, interrupt: Interrupt) -> None:
        """Trains to the last step, or to the one after a signal.

        The host runs one step ahead of what it reads: the next batch is loaded and a step is
        started before the metrics of the step before it are waited for.
        """
        config = self._config.train
        batch = self._next_batch()
        self._compiled.get(self._state, batch)
        self._progress.restart(self.step)
        pending: tuple[int, Metrics] | None = None
        done = False
        while not done:
            metrics = self._start_step(batch)
            done = bool(self.signal) or self.step == config.steps
            save = done or self.step % config.checkpoint_every == 0
            position = self._loader.get_state() if save else None
            if not done:
                batch = self._next_batch()
            if pending:
                self._finish_step(*pending)
            pending = self.step, metrics
            if save or self._is_due():
                self._finish_step(*pending)
                pending = None
                if position is not None:
                    with self._watch.slow():
                        self._checkpoints.save(self.step, self._state, position)
                if self._is_due() and not self.signal:
                    self._check()
                self._progress.restart(self.step)
            if not done:
                # a signal that comes later than this line is for the step after the next
                self.signal = interrupt.agreed()

    def _next_batch(self) -> dict[str, Array]:
        return self._layout.put_train_batch(next(self._loader))

    def _start_step(self, batch: dict[str, Array]) -> Metrics:
        """Starts the next step, and does not wait for it unless it is the last to be traced."""
        program = self._compiled.get(self._state, batch)
        self._profile.begin_step()
        self._state, metrics = program(self._state, batch)
        if traced := self._profile.end_step(metrics):
            self._progress.say(traced)
        self.step += 1
        return metrics

    def _finish_step(self, step: int, metrics: Metrics) -> None:
        """Waits for a step that has been started, and logs it if a log is due."""
        config = self._config.train
        logged = step % config.log_every == 0
        wanted = metrics if logged else {"bad_in_a_row": metrics["bad_in_a_row"]}
        values = {name: float(x) for name, x in jax.device_get(wanted).items()}
        self._progress.tick(step)
        self._watch.step_finished(step)
        if values["bad_in_a_row"] >= config.max_bad_steps:
            raise UserError(
                "The loss or its gradient was not finite for "
                f"{counted(config.max_bad_steps, 'step')} in a row (config.train.max_bad_steps) up "
                f"to step {step}: lower config.optim.lr={self._config.optim.lr} or look at the "
                f"data; the last good checkpoint is in {self._folder}."
            )
        if logged:
            values |= self._progress.timing(step)
            del values["bad_in_a_row"]
            if self._writers:
                self._writers.write(step, values, TRAIN)
            self._progress.show(step, values)

    def _check(self) -> None:
        """Validates, and logs it."""
        self.validation = self._measure()
        if self._writers:
            self._writers.write(self.step, self.validation.metrics(), EVAL)
            self._writers.write_samples(self.step, self.validation.samples)
        self._progress.say(self.validation.describe(self.step))

    def _measure(self) -> Validation:
        if not self.validation:
            self._progress.say("Compiling the validation and the sampler ...")
        settings = functools.partial(validation_settings, self._config, self._layout)
        with self._watch.slow(), out_of_memory("The validation", settings):
            return self._validate(self._state.ema, self.step)

    def _is_due(self) -> bool:
        """Whether a validation belongs to the last step."""
        every, last = self._config.eval.every, self._config.train.steps
        return self.step % every == 0 or self.step == last

    def _lacks_validation(self) -> bool:
        """Whether the run was stopped between its newest checkpoint and that step's validation."""
        missing = False
        if processes.is_first():
            records = read_metrics(self._workdir / "metrics.jsonl")
            missing = not any(r["step"] == self.step and "nll" in r for r in records)
        due = self.step > 0 and self._is_due()
        return due and bool(processes.max_over_processes(missing))
