"""The config section `data` -> a prepared set, for every command line that reads text."""

import contextlib
import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ddm_jax.data import pair_encoding as pairs
from ddm_jax.data.build.atomic_folder import alone
from ddm_jax.data.build.pairs import prepare_pairs
from ddm_jax.data.build.text import prepare
from ddm_jax.data.sets.pairs import PairSpec, PreparedPairs, open_folder, spec_kind
from ddm_jax.data.sets.text import PreparedSet, PrepareSpec, default_folder, is_prepared
from ddm_jax.data.sources import pair_files
from ddm_jax.data.sources import registry as sources
from ddm_jax.errors import UserError


class DataConfig(Protocol):
    """The fields of the config section `data` that are read here; the last five are of pairs."""

    source: str
    tokenizer: str
    length: int
    pack: str
    root: str
    validation_fraction: float
    test_fraction: float
    validation: str
    test: str
    source_length: int
    buckets: int
    eos: str


def open_or_prepare(config: DataConfig) -> PreparedSet | PreparedPairs:
    """The prepared set that a run asks for; a local source is prepared now if it has to be.

    Of several processes that find it missing, one prepares it, and the others wait.

    Raises:
        UserError: bad config or text; a prepared folder that does not match the config; or a
            source that must be downloaded first, with the command that does it.
    """
    folder = Path(config.source).expanduser()
    if folder.is_dir() and not sources.names_kind(config.source):
        prepared = _matching(open_folder(folder), config)
        _check_reading(prepared.spec, config)
        return _as_read(prepared, config)
    kind = spec_kind(config.source)
    spec = kind(**{f.name: getattr(config, f.name) for f in dataclasses.fields(kind)})
    _check_reading(spec, config)
    folder = default_folder(config.root, spec)
    # a finished set may be where nothing can be written
    lock = contextlib.nullcontext() if is_prepared(folder) else alone(folder)
    if isinstance(spec, PairSpec):
        with lock:
            return _as_read(prepare_pairs(spec, folder), config)
    if is_prepared(folder) or sources.is_local(config.source):
        with lock:
            return prepare(spec, folder)
    raise UserError(
        f"data.source={config.source} is not prepared yet: run `{command(spec, folder)}`."
    )


def spec_of(description: Mapping[str, Any]) -> PrepareSpec | PairSpec:
    """What a set was prepared from, by its `description`.

    Raises:
        KeyError, TypeError: it is no description.
    """
    spec = description["spec"]
    return spec_kind(spec["source"])(**spec)


def command(spec: PrepareSpec | PairSpec, out: Path) -> str:
    """The shell command that prepares a spec."""
    flags = {**dataclasses.asdict(spec), "out": out}
    return shlex.join(
        ["python", "-m", "ddm_jax.prepare", *(f"--{k}={v}" for k, v in flags.items())]
    )


def _matching(
    prepared: PreparedSet | PreparedPairs, config: DataConfig
) -> PreparedSet | PreparedPairs:
    """Refuses a prepared set unlike the one that the config asks for; "" and 0 ask for nothing."""
    if config.tokenizer and not prepared.has_tokenizer(config.tokenizer):
        raise UserError(
            f"data.tokenizer={config.tokenizer} does not match the data: {prepared.folder} was "
            f"prepared with {prepared.tokenizer.name}; set data.tokenizer to that, or prepare the "
            "data again."
        )
    for field, wants in _wanted(prepared, config).items():
        has = getattr(prepared.spec, field)
        if wants and wants != has:
            raise UserError(
                f"data.{field}={wants} does not match the data: {prepared.folder} was prepared "
                f"with {field}={has}; set data.{field} to that, or prepare the data again."
            )
    return prepared


def _wanted(prepared: PreparedSet | PreparedPairs, config: DataConfig) -> Mapping[str, Any]:
    """What the config says on the fields of the spec that a batch depends on."""
    if isinstance(prepared, PreparedSet):
        return {"length": config.length, "pack": config.pack}
    files = {field: getattr(config, field) for field in ("validation", "test")}
    named = {f: pair_files.absolute(spec, f"data.{f}") for f, spec in files.items() if spec}
    return {"length": config.length, "source_length": config.source_length, **named}


def _check_reading(spec: PrepareSpec | PairSpec, config: DataConfig) -> None:
    """Refuses what the config says beyond the spec and does not go with it."""
    if isinstance(spec, PairSpec):
        pairs.buckets(spec.length, spec.source_length, config.buckets)
        return
    for field in ("validation", "test"):
        if getattr(config, field):
            raise UserError(
                f"data.{field}={getattr(config, field)} names held-out pairs, but data.source="
                f"{config.source} is text: leave it empty, or use data.source=pairs:NAME."
            )


def _as_read(
    prepared: PreparedSet | PreparedPairs, config: DataConfig
) -> PreparedSet | PreparedPairs:
    """Adds what is no part of prepared pairs, but of how a run reads them."""
    if isinstance(prepared, PreparedSet):
        return prepared
    eos = config.eos == "predicted"
    return dataclasses.replace(prepared, buckets=config.buckets, predict_eos=eos)
