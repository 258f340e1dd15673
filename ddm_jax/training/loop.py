"""The loop around the step: data in, numbers, checkpoints, validation and samples out."""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax import Array
from ml_collections import ConfigDict

from ddm_jax.config import Config
from ddm_jax.costs.program import program_costs
from ddm_jax.data.loading.loader import train_iterator
from ddm_jax.errors import UserError
from ddm_jax.experiment import Experiment, build
from ddm_jax.parallel import processes
from ddm_jax.parallel.placement import summary, table
from ddm_jax.recipes import make_config
from ddm_jax.runs.checkpoint import Checkpoints, folder_of
from ddm_jax.runs.files import read_metrics, write_atomically
from ddm_jax.runs.interrupt import Interrupt
from ddm_jax.runs.progress import Progress
from ddm_jax.runs.record import check_workdir, write_record
from ddm_jax.settle import describe, settle
from ddm_jax.training.curve import draw_curve
from ddm_jax.training.init_from import started_from
from ddm_jax.training.memory import give_back_memory
from ddm_jax.training.metric_writers import Writers
from ddm_jax.training.optimizer import make_optimizer
from ddm_jax.training.profile import Profile
from ddm_jax.training.state import init_state
from ddm_jax.training.step import make_train_step, metric_names
from ddm_jax.training.validation import Validation, make_validation

STALL_TIMEOUT = 600.0  # seconds


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      workdir: the folder of the run.
      step: the last step, of which there is a checkpoint.
      finished: whether that is the last step of the config; False after SIGTERM or Ctrl-C.
      validation: the last validation; None if there was none.
      unigram_nll: cross entropy of a unigram model on the validation split, nats per token: what
        any trained network must beat.
    """

    workdir: Path
    step: int
    finished: bool
    validation: Validation | None
    unigram_nll: float


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
        (parallel.processes.Watch). They must have called `parallel.processes.initialize`.
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
        draw_curve(workdir, outcome.unigram_nll)
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
        other processes see, or the loss was not finite for train.max_bad_steps steps in a row.
    """
    processes.barrier("to train")
    with processes.Watch(stall_timeout) as watch:
        return _train(experiment, workdir, watch)


def _train(experiment: Experiment, workdir: Path, watch: processes.Watch) -> Outcome:
    config, layout = experiment.config, experiment.layout
    write_record(workdir, config, experiment.data)
    optimizer = make_optimizer(config.optim, config.train.steps)
    init = functools.partial(
        init_state,
        experiment.network,
        optimizer,
        metrics=metric_names(experiment.network, experiment.objective),
    )
    key = jax.random.key(config.seed)
    abstract = jax.eval_shape(init, key)
    shardings = layout.state_shardings(abstract)
    folder = folder_of(workdir, config.train)
    if not processes.all_see(folder):
        raise UserError(
            f"{folder} is not the same folder on all processes: give a --workdir that they share, "
            "or a config.train.checkpoints that all can reach."
        )
    checkpoints = Checkpoints(folder, config.train.keep_last, config.train.keep_every)
    loader = train_iterator(
        experiment.data,
        batch_size=config.train.batch_size,
        seed=config.seed,
        rows=layout.rows,
        workers=config.data.workers,
    )
    restored = checkpoints.restore(abstract, layout)
    if restored:
        state, position = restored
        loader.set_state(position)
    else:
        state = jax.jit(init, out_shardings=shardings)(key)
        if config.train.init_from:
            state = started_from(state, config, experiment.data.tokenizer, layout)
    start = step = int(state.step)
    if processes.max_over_processes(processes.max_over_processes(step) != step):
        raise UserError(
            f"The processes do not read the same checkpoints in {folder} (here the newest is that "
            f"of step {step}): look for one that is damaged, and remove it."
        )
    progress = Progress(start, config.train.steps, config.train.batch_size * config.data.length)
    progress.say(f"{'Going on from' if restored else 'Starting at'} step {start} in {workdir}")
    progress.say(summary(layout, abstract))
    writers = None
    if processes.is_first():
        write_atomically(workdir / "layout.txt", table(layout, abstract) + "\n")
        writers = Writers(workdir, start, config.train.wandb_project, dataclasses.asdict(config))

    profile = Profile(workdir / "profile", config.train.profile)
    validation, pending = None, None
    validate = make_validation(experiment, workdir)
    step_fn = layout.program(
        make_train_step(
            config, experiment.network, experiment.objective, experiment.process, optimizer, layout
        ),
        abstract,
    )
    programs: dict[tuple[int, ...], Any] = {}  # one for each shape of a batch

    def program(batch: dict[str, Array]) -> Any:
        """The compiled step for such a batch."""
        shape = batch["tokens"].shape
        if shape not in programs:
            begin = time.perf_counter()
            with watch.slow():
                programs[shape] = step_fn.lower(state, batch).compile()
                give_back_memory()
            seconds = time.perf_counter() - begin
            progress.leave_out(seconds)
            size = f"{math.prod(shape[:-1])} x {shape[-1]} tokens"
            progress.say(f"Compiled the step for {size} in {seconds:.1f} s")
            if processes.is_first():
                about = {"batch": size, "compile_s": seconds}
                about |= program_costs(programs[shape], layout.mesh.size, warn=progress.say)
                write_atomically(workdir / "program.json", json.dumps(about, indent=2) + "\n")
        return programs[shape]

    def write(step: int, values: dict[str, float]) -> None:
        if writers:
            writers.write(step, values)

    def read(step: int, metrics: dict[str, Array]) -> None:
        """Waits for a step that has been started, and logs it where a log is due."""
        logged = step % config.train.log_every == 0
        wanted = metrics if logged else {"bad_in_a_row": metrics["bad_in_a_row"]}
        values = {name: float(x) for name, x in jax.device_get(wanted).items()}
        progress.tick(step)
        watch.beat(step)
        if values["bad_in_a_row"] >= config.train.max_bad_steps:
            raise UserError(
                f"The loss or its gradient was not finite for {config.train.max_bad_steps} steps "
                f"in a row (config.train.max_bad_steps) up to step {step}: lower "
                f"config.optim.lr={config.optim.lr} or look at the data; the last good checkpoint "
                f"is in {folder}."
            )
        if logged:
            values |= progress.timing(step)
            del values["bad_in_a_row"]
            write(step, values)
            progress.show(step, values)

    def check(step: int) -> None:
        nonlocal validation
        with watch.slow():
            validation = validate(state.ema, step)
        write(step, validation.metrics())
        progress.say(validation.describe(step))

    def is_due(step: int) -> bool:
        return step % config.eval.every == 0 or step == config.train.steps

    try:
        with Interrupt() as interrupt:
            missing = processes.is_first() and not _has_validation(workdir, step)
            if step and is_due(step) and processes.max_over_processes(missing):
                check(step)  # the run was stopped between its checkpoint and its validation
            interrupted, done = False, step >= config.train.steps
            if not done:
                batch = layout.put_train_batch(next(loader))
                program(batch)
                progress.restart(step)
            while not done:
                run = program(batch)
                profile.begin_step()
                state, metrics = run(state, batch)
                if traced := profile.end_step(metrics):
                    progress.say(traced)
                step += 1
                done = interrupted or step == config.train.steps
                save = done or step % config.train.checkpoint_every == 0
                position = loader.get_state() if save else None
                if not done:
                    batch = layout.put_train_batch(next(loader))
                if pending:
                    read(*pending)
                pending = step, metrics
                if save or is_due(step):
                    read(*pending)
                    pending = None
                    if save:
                        with watch.slow():
                            checkpoints.save(step, state, position)
                    if is_due(step) and not interrupted:
                        check(step)
                    progress.restart(step)
                # a signal that comes later than this line is for the step after the next
                interrupted = interrupt.agreed()
            if not validation and not interrupted:  # the run had ended before: say how
                with watch.slow():
                    validation = validate(state.ema, step)
    except BaseException as error:
        processes.end_all_processes(error)
        raise
    finally:
        with watch.slow():
            checkpoints.close()
        if writers:
            writers.close()
        profile.close()
        loader.close()
        progress.close()
    return Outcome(
        workdir,
        step,
        finished=step >= config.train.steps,
        validation=validation,
        unigram_nll=experiment.data.unigram_entropy("validation"),
    )


def _has_validation(workdir: Path, step: int) -> bool:
    return any(r["step"] == step and "nll" in r for r in read_metrics(workdir / "metrics.jsonl"))
