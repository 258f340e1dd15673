"""The record of a run: config, data, versions and revision, written before the first step."""

import dataclasses
import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ddm_jax.config import Config, resolve
from ddm_jax.data.open import prepare_command
from ddm_jax.data.sets.kinds import PreparedSet, spec_of
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.parallel import processes
from ddm_jax.runs.files import write_atomically
from ddm_jax.settle import settle

CONVERTED = "converted"  # key of a record of converted weights: their origin
TOKENIZER = "tokenizer"  # folder of the tokenizer of converted weights
PACKAGES = ("ddm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# fields and sections that may change when a run is resumed: its numbers do not depend on them
MAY_CHANGE: tuple[str, ...] = (
    "data.workers",
    "data.root",
    "train.log_every",
    "train.checkpoint_every",
    "train.checkpoints",
    "train.keep_last",
    "train.keep_every",
    "train.max_bad_steps",
    "train.wandb_project",
    "train.profile",
    "plugins",
    "eval",
    "sampler",
    "layout",
)
STEPS = "train.steps"  # may change too, with a schedule of the learning rate that ignores it
ENDLESS = ("constant", "inverse_sqrt")


def write_record(workdir: Path, config: Config, data: PreparedSet) -> None:
    """Writes workdir/config.json, after checking an existing one; process 0 writes.

    Args:
      workdir: the folder of the run; made if it is missing.
      config: settled.
      data: what the run trains on.

    Raises:
      UserError: the folder holds another run, and the message names the first difference; or it
        cannot be written.
    """
    before = check_workdir(workdir, config)
    if before and _data_identity(before) != (data.tokenizer.fingerprint, data.source_fingerprint):
        raise UserError(
            f"{workdir} holds a run on other text or another tokenizer than {data.folder}: use "
            "another --workdir, or the old data."
        )
    if not processes.is_first():
        return
    record = {
        "config": dataclasses.asdict(config),
        "data": data.description() | {"folder": str(data.folder)},
        "versions": versions(),
        "git_revision": git_revision(),
        "devices": [d.device_kind for d in jax.devices()],
    }
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomically(workdir / "config.json", json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise _unusable(workdir, error) from error


def read_record(workdir: Path) -> tuple[Config, Tokenizer]:
    """The settled config of the run in workdir, and the tokenizer of its prepared set.

    Converted weights have no set, but a tokenizer in their own folder.

    Raises:
      UserError: there is no run, its record cannot be read, or its prepared set is missing or has
        changed.
    """
    path = workdir / "config.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        config = resolve(ConfigDict(record["config"]))
        folder, spec = workdir / TOKENIZER, None
        if CONVERTED not in record:
            folder, spec = Path(record["data"]["folder"]), spec_of(record["data"])
        fingerprint = record["data"]["tokenizer"]["fingerprint"]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"--workdir={workdir} is not the folder of a run (it has no config.json): give one "
            "that `python -m ddm_jax.main` wrote."
        ) from error
    except UserError as error:  # what it names stands in this file, such as a plug-in that is gone
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give another run.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not the record of a run ({type(error).__name__}: {error}): give another "
            "--workdir."
        ) from error
    if not folder.is_dir():
        if spec is None:
            raise UserError(f"{folder} is gone: convert the weights again.")
        raise UserError(
            f"The run in {workdir} read {folder}, which is gone: put it back, or run "
            f"`{prepare_command(spec, folder)}`."
        )
    tokenizer = tokenizers.load(folder)
    if tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"The tokenizer in {folder} is not the one that the run in {workdir} had: put that "
            "one back."
        )
    return config, tokenizer


def check_workdir(workdir: Path, config: Config) -> dict[str, Any] | None:
    """Checks that a run with this config may start or resume in workdir; needs no data.

    Args:
      workdir: a folder, which need not exist.
      config: settled.

    Returns:
      The record in workdir; None if there is none yet.

    Raises:
      UserError: the record cannot be read, or is that of a run with another config.
    """
    path = workdir / "config.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        # settled again, so that fields that did not exist then have their defaults; with the
        # plug-ins of this config, since their files may have moved
        recorded = _with_plugins(before["config"], config.plugins, workdir)
        converted = CONVERTED in before
        if not converted:
            _data_identity(before)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(workdir, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not the record of a run ({type(error).__name__}: {error}): use another "
            "--workdir."
        ) from error
    if converted:
        raise UserError(
            f"{workdir} holds converted weights, not a run: train from them in another --workdir, "
            f"with --config.train.init_from={workdir}."
        )
    _check_same(workdir, recorded, config)
    return before


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_revision() -> str:
    """`git describe` of this code, with -dirty after changes; "unknown" outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _with_plugins(recorded: dict[str, Any], plugins: tuple[str, ...], workdir: Path) -> Config:
    """A recorded config, settled, with other plug-ins.

    Raises:
      UserError: it is not valid with them.
    """
    try:
        return settle(resolve(ConfigDict(recorded | {"plugins": plugins})))
    except UserError as error:
        before = ",".join(recorded.get("plugins", ()))
        if plugins or not before:
            raise
        raise UserError(
            f"{workdir} holds a run with config.plugins={before}: give --config.plugins too, or "
            "use another --workdir."
        ) from error


def _check_same(workdir: Path, recorded: Config, config: Config) -> None:
    """Raises UserError at the first field that differs and may not change."""
    free = MAY_CHANGE
    if config.optim.decay in ENDLESS:
        free += (STEPS,)
    before, now = (_flatten(dataclasses.asdict(c)) for c in (recorded, config))
    for name in sorted(now):
        may_change = any(name == f or name.startswith(f + ".") for f in free)
        if not may_change and now[name] != before[name]:
            raise UserError(
                f"{workdir} holds a run with config.{name}={before[name]!r}, not {now[name]!r}: "
                f"use another --workdir, {_remedy(name, workdir, config)}."
            )


def _remedy(name: str, workdir: Path, config: Config) -> str:
    """What else than another work directory a user may want whose config differs in a field."""
    if name != STEPS:
        return "or the old value"
    return (
        f"and --config.train.init_from={workdir} to start from its weights (only runs with "
        f"config.optim.decay={' or '.join(ENDLESS)} can be prolonged, not {config.optim.decay})"
    )


def _data_identity(record: dict[str, Any]) -> tuple[str, str]:
    data = record["data"]
    return data["tokenizer"]["fingerprint"], data["source_fingerprint"]


def _unusable(workdir: Path, error: OSError) -> UserError:
    return UserError(
        f"--workdir={workdir} cannot be used ({error.strerror}: {error.filename}): give a folder "
        "that can be written."
    )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
