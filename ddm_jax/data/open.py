"""The config section `data` -> a prepared set, for every command that reads text."""

import contextlib
import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddm_jax.config import DataConfig
from ddm_jax.data import pair_encoding
from ddm_jax.data.build.atomic_folder import exclusive_lock
from ddm_jax.data.build.pairs import prepare_pairs
from ddm_jax.data.build.text import prepare_text
from ddm_jax.data.sets.folder import is_prepared
from ddm_jax.data.sets.kinds import PreparedSet, Spec, default_folder, open_folder, spec_type
from ddm_jax.data.sets.pairs import PairSpec
from ddm_jax.data.sets.text import PreparedText
from ddm_jax.data.sources import pair_files
from ddm_jax.data.sources import registry as sources
from ddm_jax.errors import UserError


def open_or_prepare(config: DataConfig) -> PreparedSet:
    """Opens the prepared set that a run asks for; prepares a local source first if it has to.

    If several processes find the set missing, one prepares it and the others wait.

    Raises:
      UserError: bad config or text; a prepared folder that does not match the config; or a source
        that must be downloaded first, with the command that does it.
    """
    folder = Path(config.source).expanduser()
    if folder.is_dir() and not sources.is_source(config.source):
        prepared = open_folder(folder)
        _check_match(prepared, config)
        _check_reading_options(prepared.spec, config)
        return _with_reading_options(prepared, config)
    spec_class = spec_type(config.source)
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(spec_class)}
    spec: Spec = spec_class(**fields)
    _check_reading_options(spec, config)
    folder = default_folder(config.root, spec)
    # a finished set may be in a folder that cannot be written to
    lock = contextlib.nullcontext() if is_prepared(folder) else exclusive_lock(folder)
    if isinstance(spec, PairSpec):
        with lock:
            return _with_reading_options(prepare_pairs(spec, folder), config)
    if is_prepared(folder) or all(map(sources.is_local, spec.named.values())):
        with lock:
            return prepare_text(spec, folder)
    raise UserError(
        f"data.source={config.source} is not prepared yet: run `{prepare_command(spec, folder)}`."
    )


def source_of(config: DataConfig, split: str) -> str:
    """Returns the source of a split: one named for it, otherwise `data.source`."""
    named = {"validation": config.validation, "test": config.test}
    return named.get(split) or config.source


def prepare_command(spec: Spec, out: Path) -> str:
    """Returns the shell command that prepares a spec in the folder `out`."""
    values = {**dataclasses.asdict(spec), "out": out}
    flags = [f"--{name}={value}" for name, value in values.items()]
    return shlex.join(["python", "-m", "ddm_jax.prepare", *flags])


def _check_match(prepared: PreparedSet, config: DataConfig) -> None:
    """Refuses a prepared set that is not the one of the config; "" and 0 match everything."""
    if config.tokenizer and not prepared.has_tokenizer(config.tokenizer):
        raise UserError(
            f"data.tokenizer={config.tokenizer} does not match the data: {prepared.folder} was "
            f"prepared with {prepared.tokenizer.name}; set data.tokenizer to that, or prepare the "
            "data again."
        )
    for field, wants in _fields_to_match(prepared, config).items():
        has = getattr(prepared.spec, field)
        if wants and wants != has:
            raise UserError(
                f"data.{field}={wants} does not match the data: {prepared.folder} was prepared "
                f"with {field}={has}; set data.{field} to that, or prepare the data again."
            )


def _fields_to_match(prepared: PreparedSet, config: DataConfig) -> Mapping[str, Any]:
    """Returns the config's values of the fields of the spec that a batch depends on."""
    held_out = {"validation": config.validation, "test": config.test}
    named = {field: source for field, source in held_out.items() if source}
    if isinstance(prepared, PreparedText):
        named = {field: sources.absolute(source, field) for field, source in named.items()}
        return {"length": config.length, "pack": config.pack, **named}
    named = {f: pair_files.absolute(source, f"data.{f}") for f, source in named.items()}
    return {"length": config.length, "source_length": config.source_length, **named}


def _check_reading_options(spec: Spec, config: DataConfig) -> None:
    """Refuses fields of the config that are not part of the spec and do not fit it."""
    if isinstance(spec, PairSpec):
        pair_encoding.bucket_shapes(spec.length, spec.source_length, config.buckets)


def _with_reading_options(prepared: PreparedSet, config: DataConfig) -> PreparedSet:
    """Adds how the run reads prepared pairs, which is not part of what is on disk."""
    if isinstance(prepared, PreparedText):
        return prepared
    predict_eos = config.eos == "predicted"
    return dataclasses.replace(prepared, buckets=config.buckets, predict_eos=predict_eos)
