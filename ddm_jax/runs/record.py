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

# of weights from elsewhere: the key of the record that says where from, and the tokenizer's folder
CONVERTED, TOKENIZER = "converted", "tokenizer"
PACKAGES = ("ddm_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
# what may change when a run goes on: nothing that its numbers depend on
MAY_CHANGE = ("train.log_every", "train.checkpoint_every", "train.keep_last", "train.keep_every")
MAY_CHANGE += ("train.max_bad_steps", "train.wandb_project", "eval", "sampler", "layout")
MAY_CHANGE += ("data.workers", "data.root", "train.checkpoints", "train.profile")


def write_record(workdir: Path, config: Config, data: PreparedSet) -> None:
    """Writes workdir/config.json, or checks the one that is there; process 0 writes.

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
      UserError: there is no run, its record cannot be read, or its prepared set is gone or another.
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
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): give another run.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not the record of a run ({type(error).__name__}: {error}): give another "
            "--workdir."
        ) from error
    if not folder.is_dir() and spec is None:
        raise UserError(f"{folder} is gone: convert the weights again.")
    if not folder.is_dir():
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
    """The record in workdir, None where there is none yet; needs no data.

    Raises:
      UserError: the record cannot be read, or is that of a run with another config.
    """
    path = workdir / "config.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        # settled again, so that what was not a field yet has its default
        then = settle(resolve(ConfigDict(before["config"])))
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
    # a constant learning rate does not depend on the number of steps
    free = (*MAY_CHANGE, "train.steps") if config.optim.decay == "constant" else MAY_CHANGE
    now, then = (_flatten(dataclasses.asdict(c)) for c in (config, then))
    for name in sorted(now):
        is_free = any(name == f or name.startswith(f + ".") for f in free)
        if not is_free and now[name] != then[name]:
            raise UserError(
                f"{workdir} holds a run with config.{name}={then[name]!r}, not "
                f"{now[name]!r}: use another --workdir, or the old value."
            )
    return before


def versions() -> dict[str, str]:
    """Of Python and the packages that a run's numbers go through."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_revision() -> str:
    """`git describe` of this code, with -dirty if it has been changed; or "unknown"."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _data_identity(record: dict[str, Any]) -> tuple[str, str]:
    data = record["data"]
    return data["tokenizer"]["fingerprint"], data["source_fingerprint"]


def _unusable(workdir: Path, error: OSError) -> UserError:
    return UserError(
        f"--workdir={workdir} cannot be used ({error.strerror}: {error.filename}): give a folder "
        "that can be written."
    )


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
