"""The one exception whose message is meant for the user, and how to install what is missing.

Command lines print it as one sentence and exit with code 2; any other exception is a bug and keeps
its traceback.
"""

import importlib.metadata
import shlex
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


class UserError(Exception):
    """A bad config, data set, checkpoint or prompt: names the field, the value and the remedy."""


def how_to_install(extra: str) -> str:
    """The command that installs an extra of pyproject.toml, such as "hf", for a UserError.

    ddm_jax is not in a package index. In a checkout the command therefore installs the checkout,
    from wherever it is run; with a wheel it installs the packages that the extra names.

    Args:
      extra: a name of [project.optional-dependencies].
    """
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file():
        folder = "." if Path.cwd() == checkout else checkout
        return f"pip install -e {shlex.quote(f'{folder}[{extra}]')}"
    return f"pip install {shlex.join(_requirements_of(extra))}"


def _requirements_of(extra: str) -> list[str]:
    """The requirements that an extra adds to those of the installed ddm_jax."""
    from packaging.requirements import Requirement  # only with a wheel, when something is missing

    found = []
    for line in importlib.metadata.requires("ddm_jax") or ():
        requirement = Requirement(line)
        marker = requirement.marker
        if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            requirement.marker = None
            found.append(str(requirement))
    return found
