"""What all command lines share: flags, and errors that end in one sentence, not a traceback."""

import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from ddm_jax.config import Config, resolve
from ddm_jax.errors import UserError

CONFIG_HELP = "a recipe, e.g. configs/radd_tiny.py; override fields with --config.train.steps=200"


def run(main: Callable[[Sequence[str]], None]) -> None:
    """absl's app.run; a UserError is printed and ends the program with exit code 2."""
    logging.set_verbosity(logging.WARNING)
    app.run(_in_one_sentence(main), flags_parser=_in_one_sentence(_parse))


def define_config() -> flags.FlagHolder:
    """--config=RECIPE[:ARGUMENT], with a --config.section.field for each of its fields."""
    return config_flags.DEFINE_config_file("config", None, CONFIG_HELP, lock_config=True)


def read_config(config: config_dict.ConfigDict | None) -> Config:
    """The frozen config of the flag.

    Raises:
      UserError: no recipe was given, or it holds something wrong.
    """
    if config is None:
        raise UserError("--config is missing: give a recipe, e.g. --config=configs/radd_tiny.py.")
    return resolve(config)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parses flags and says of every way in which a recipe can fail what is wrong."""
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        raise UserError(_sentence(error)) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # raised by ml_collections for overrides of unknown fields and of other types
        raise UserError(f"A --config flag is wrong: {_sentence(error)}") from error
    except FileNotFoundError as error:
        raise UserError(f"--config names no file: {_sentence(error)}") from error
    if len(rest) > 1:
        raise UserError(f"Unknown argument {rest[1]!r}: flags start with --.")
    return rest


def _sentence(error: Exception) -> str:
    text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    return " ".join(text.split())


def _in_one_sentence(function: Callable) -> Callable:
    def wrapped(argv: Sequence[str]) -> object:
        try:
            return function(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return wrapped
