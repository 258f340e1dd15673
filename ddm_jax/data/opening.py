"""The config section `data` -> a prepared set, for every command line that reads text."""

import dataclasses
import shlex
from pathlib import Path
from typing import Protocol

from ddm_jax.data import sources
from ddm_jax.data.prepare import prepare
from ddm_jax.data.prepared import (
    PreparedSet,
    PrepareSpec,
    default_folder,
    is_prepared,
    open_prepared,
)
from ddm_jax.errors import UserError


class DataConfig(Protocol):
    """The fields of the config section `data` that are read here."""

    source: str
    tokenizer: str
    length: int
    pack: str
    root: str
    validation_fraction: float
    test_fraction: float


def open_or_prepare(config: DataConfig) -> PreparedSet:
    """The prepared set that a run asks for; a local source is prepared now if it has to be.

    Raises:
        UserError: bad config or text; a prepared folder that does not match the config; or a
            source that must be downloaded first, with the command that does it.
    """
    folder = Path(config.source).expanduser()
    if folder.is_dir() and not sources.names_kind(config.source):
        return _matching(open_prepared(folder), config)
    spec = PrepareSpec(**{f.name: getattr(config, f.name) for f in dataclasses.fields(PrepareSpec)})
    folder = default_folder(config.root, spec)
    if is_prepared(folder) or sources.is_local(config.source):
        return prepare(spec, folder)
    raise UserError(
        f"data.source={config.source} is not prepared yet: run `{command(spec, folder)}`."
    )


def command(spec: PrepareSpec, out: Path) -> str:
    """The shell command that prepares a spec."""
    flags = {**dataclasses.asdict(spec), "out": out}
    return shlex.join(
        ["python", "-m", "ddm_jax.prepare", *(f"--{k}={v}" for k, v in flags.items())]
    )


def _matching(prepared: PreparedSet, config: DataConfig) -> PreparedSet:
    """Refuses a prepared set unlike the one that the config asks for; "" and 0 ask for nothing."""
    if config.tokenizer and not prepared.has_tokenizer(config.tokenizer):
        raise UserError(
            f"data.tokenizer={config.tokenizer} does not match the data: {prepared.folder} was "
            f"prepared with {prepared.tokenizer.name}; set data.tokenizer to that, or prepare the "
            "data again."
        )
    for field in ("length", "pack"):
        wants, has = getattr(config, field), getattr(prepared.spec, field)
        if wants and wants != has:
            raise UserError(
                f"data.{field}={wants} does not match the data: {prepared.folder} was prepared "
                f"with {field}={has}; set data.{field} to that, or prepare the data again."
            )
    return prepared
