"""What all commands share: flags and their help, and errors that are one sentence, no traceback."""

import builtins
import contextlib
import functools
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from ddm_jax import command_help
from ddm_jax.compile_cache import keep_compiled_programs
from ddm_jax.config import Config, field_type, resolve
from ddm_jax.config_fields import TYPE_WORDS
from ddm_jax.errors import UserError
from ddm_jax.recipes import extend_configs, find_recipe, similar_recipe

T = TypeVar("T")
_GROUPS: dict[str, str] = {}  # flag -> the title under which --help lists it
EXAMPLE = "configs/radd_tiny.py"
CONFIG_HELP = (
    f"a recipe: a file such as {EXAMPLE}, or the name of one that ships with ddm_jax, such as "
    "radd_tiny; with a variant: radd_tiny:loss=ao"
)


def run(
    main: Callable[[Sequence[str]], int | None], define_flags: Callable[[], None] | None = None
) -> None:
    """Runs absl's app.run; a UserError is printed and ends the program with exit code 2.

    Ctrl-C ends it with 130, unless `main` handles it. --help prints the docstring of
    the module of `main` and the flags that `define_flags` defines.

    Args:
      main: receives what is left of the command line after the flags; returns the exit code, None
        for 0.
      define_flags: defines the flags of the command. A command does not define them when it is
        imported, so that one process can import all commands, several of which have a flag of the
        same name.
    """
    parse = _parse
    if define_flags is not None:
        _GROUPS.clear()
        with group("Flags"):
            define_flags()
        parse = functools.partial(_answer_or_parse, sys.modules[main.__module__].__doc__ or "")
    logging.set_verbosity(logging.WARNING)
    app.run(_in_one_sentence(main), flags_parser=_in_one_sentence(parse))


@contextlib.contextmanager
def group(title: str) -> Iterator[None]:
    """Lists the flags that are defined within it under a title in --help."""
    before = set(flags.FLAGS)
    yield
    for name in flags.FLAGS:
        if name not in before:
            _GROUPS.setdefault(name, title)


def define_config() -> flags.FlagHolder:
    """Defines --config=RECIPE[:ARGUMENT], with a --config.section.field for each of its fields."""
    return config_flags.DEFINE_config_file("config", None, CONFIG_HELP, lock_config=True)


def define_json() -> flags.FlagHolder[bool]:
    """Defines --json, a flag of every command that has a result."""
    with group("Output"):
        return flags.DEFINE_bool(
            "json", False, "print the result as one JSON object, as the last line"
        )


def read_config(config: config_dict.ConfigDict | None) -> Config:
    """The frozen config of the flag.

    Raises:
      UserError: no recipe was given, or it holds something wrong.
    """
    if not flags.FLAGS["config"].present:
        raise UserError(f"--config is missing: give a recipe, e.g. --config={EXAMPLE}.")
    if not hasattr(config, "to_dict"):
        raise UserError(
            f"--config={_config_filename()} is not a recipe: get_config returns "
            f"{type(config).__name__}, not what ddm_jax.config.defaults() made."
        )
    return resolve(config)


def recipe_name() -> str:
    """The name of the recipe in --config, without folder, suffix and argument."""
    return Path(_config_filename().split(":")[0]).stem


def _config_filename() -> str:
    return config_flags.get_config_filename(flags.FLAGS["config"])


def _answer_or_parse(doc: str, argv: Sequence[str]) -> list[str]:
    """Prints the help that the flags ask for and ends the process, otherwise parses the flags.

    Raises:
      UserError: --help_config=SECTION names no section; or see `_parse`.
    """
    for arg in argv[1:]:
        if re.fullmatch(r"--?(help|helpshort|h|\?)", arg):
            command_help.show(command_help.help_text(doc, _GROUPS))
        elif re.fullmatch(r"--?version", arg):
            command_help.show(command_help.version_text())
        elif wanted := re.fullmatch(r"--?help_config(?:=(.*))?", arg):
            from ddm_jax.config_help import config_help  # imports jax and all tables

            command_help.show(config_help(wanted[1] or ""))
        else:
            continue
        sys.exit(0)
    rest = _parse(argv)
    keep_compiled_programs()
    return rest


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses flags; what is wrong with them, or with the recipe, becomes a UserError."""
    try:
        args = flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)
        rest = flags.FLAGS([argv[0], *_resolve_config_flags(args)])
    except (flags.Error, AttributeError, KeyError, TypeError) as error:
        mistake = _mistake(error)
        if mistake is None:
            raise
        raise UserError(mistake) from error
    if len(rest) > 1:
        raise UserError(f"Unknown argument {rest[1]!r}: flags start with --.")
    return rest


def _resolve_config_flags(args: Sequence[str]) -> list[str]:
    """Checks the names of the recipe and of overridden fields, before any recipe runs.

    Returns:
      The arguments, where --config=PATH names the file of the recipe.

    Raises:
      UserError: there is no such recipe or field, or a field comes before the recipe.
    """
    resolved = []
    recipe = ""
    remaining = iter(args)
    for arg in remaining:
        if whole := re.fullmatch(r"--?config(?:=(.*))?", arg):
            recipe = next(remaining, "") if whole[1] is None else whole[1]
            name, *variant = recipe.partition(":")
            file = find_recipe(name)
            if file is None:
                raise UserError(
                    f"--config={recipe} is not a recipe: give a .py file that exists (relative "
                    f"paths start from {Path.cwd()}), or the name of a recipe that ships with "
                    f"ddm_jax, e.g. --config={similar_recipe(name)}."
                )
            extend_configs(file.parent)
            arg = "".join([f"--config={file}", *variant])
        elif override := re.match(r"--?(?:no)?config\.([^=]*)", arg):
            field_type(override[1])
            if not recipe:
                raise UserError(f"{arg} comes before --config: give the recipe first.")
        resolved.append(arg)
    return resolved


def _mistake(error: Exception) -> str | None:
    """The user's mistake that made absl or ml_collections raise this; None if it is a bug."""
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    for cause in chain:
        frames = traceback.extract_tb(cause.__traceback__)
        if any(frame.name == "get_config" for frame in frames):
            return _recipe_mistake(cause, frames)
    text = " ".join(str(error).split())
    if "get_config" in text:
        return (
            f"--config is not a recipe: its file must define get_config(arg) as {EXAMPLE} does "
            f"({chain[-1]})."
        )
    if wrong := re.match(r"flag --config\.([\w.]+)=(.*?): ", text):
        words = TYPE_WORDS[field_type(wrong[1])]
        return f"config.{wrong[1]}={wrong[2]!r} has the wrong type: give {words}."
    if wrong := re.match(r"flag (--\w+=.*?): (invalid literal|could not convert)", text):
        words = TYPE_WORDS[int if wrong[2].startswith("invalid") else float]
        return f"{wrong[1]} has the wrong type: give {words}."
    if isinstance(error, flags.UnrecognizedFlagError):
        return _unknown_flag(error.flagname, text)
    return text if isinstance(error, flags.Error) else None


def _unknown_flag(name: str, text: str) -> str:
    """What to do about a flag that absl does not know; `text` is its message."""
    if close := re.search(r"Did you mean: (\w+)", text):
        return f"--{name} is unknown: did you mean --{close[1]}? --help lists all flags."
    with contextlib.suppress(UserError):
        if "config" in flags.FLAGS and field_type(name):
            return f"--{name} is unknown: a field of the recipe is set by --config.{name}=VALUE."
    return f"--{name} is unknown: --help lists all flags."


def _recipe_mistake(error: BaseException, frames: traceback.StackSummary) -> str | None:
    """The line of the recipe that its ConfigDict refused; None if the recipe itself is broken."""
    library = Path(config_dict.__file__).parent
    if library not in Path(frames[-1].filename).parents:
        return None
    line = [frame for frame in frames if library not in Path(frame.filename).parents][-1]
    if wanted := re.search(r"cannot be casted to type <class '(\w+)'>", str(error)):
        wrong = f"has the wrong type: give {TYPE_WORDS[getattr(builtins, wanted[1])]}"
    else:
        close = re.search(r'Did you mean "(\w+)"', str(error))
        hint = f"did you mean {close[1]}?" if close else "--help_config lists them"
        wrong = f"names an unknown field ({hint})"
    return f"{line.filename}, line {line.lineno}: `{line.line}` {wrong}."


def _sentence(error: BaseException) -> str:
    """What a user can do about an error; "" if it is a bug, or Ctrl-C."""
    from ddm_jax.costs.memory import exhausted  # imports jax

    if isinstance(error, UserError):
        return str(error)
    if reason := exhausted(error):
        return f"Out of memory ({reason}): use smaller batches or a device with more memory."
    return ""


def _reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as after `| head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always reported
    return bool(poll.poll(0))


def _exit_at_once(code: int) -> NoReturn:
    """Ends the process without the work of Python's own end.

    XLA crashes in it, with code 139, after Ctrl-C in the middle of a compilation.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _in_one_sentence(function: Callable[[Sequence[str]], T]) -> Callable[[Sequence[str]], T]:
    """The function, whose errors end the process, with one sentence if a user can correct them."""

    def wrapped(argv: Sequence[str]) -> T:
        try:
            return function(argv)
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, BrokenPipeError) and _reader_has_gone():
                _exit_at_once(128 + signal.SIGPIPE)
            from ddm_jax.parallel import processes  # imports jax, which not all commands need

            if sentence := _sentence(error):
                print(f"error: {processes.label()}{sentence}", file=sys.stderr)
                processes.exit_process(2)
            processes.end_all_processes(error)
            if isinstance(error, KeyboardInterrupt):
                print("Interrupted.", file=sys.stderr)
                _exit_at_once(128 + signal.SIGINT)
            raise

    return wrapped
